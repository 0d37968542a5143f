"""How examples become a direction.

A method takes positive [n, hidden] and negative [m, hidden] rows (any float dtype, n, m >= 1) and gives a direction, float64
[hidden], of any length, that points from the negatives to the positives; zeros where the rows give none. ValueError where a
side has no rows, the widths differ or a value is not finite. A new method is a function here and a line in METHODS.

`denoise`, before any method, takes away what neutral texts vary by most: without(rows, neutral_components(neutral, share)).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from amygdala.errors import UserError

FLAT = 1e-10  # a column whose deviation is this small against its values, or against the widest column, is rounding
LEAST_SHRINKAGE = 1e-6
LOGISTIC_C = 0.01
LOGISTIC_ITERATIONS = 1000


@dataclass(frozen=True)
class Method:
    """direction: positive [n, hidden], negative [m, hidden] to float64 [hidden]. by_scenario: the rows are means by scenario,
    and row i of both sides is of the same one (see scenario_means).
    """

    direction: Callable[[np.ndarray, np.ndarray], np.ndarray]
    by_scenario: bool = False


def _checked(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64; ValueError where they are no two tables of finite rows of one width."""
    if positive.ndim != 2 or negative.ndim != 2 or positive.shape[1] != negative.shape[1]:
        raise ValueError(f"positive {positive.shape} and negative {negative.shape} are not rows of one width")
    if not len(positive) or not len(negative):
        raise ValueError(f"{len(positive)} positive and {len(negative)} negative rows: a direction needs both")
    sides = positive.astype(np.float64), negative.astype(np.float64)
    if not all(np.isfinite(side).all() for side in sides):
        raise ValueError("the rows hold values that are not finite")
    return sides


def mean_difference(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """mean(positive) - mean(negative), sums in float64: Contrastive Activation Addition (Rimsky et al., 2312.06681)."""
    positive, negative = _checked(positive, negative)
    return np.asarray(positive.mean(axis=0) - negative.mean(axis=0))


def paired(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The mean over scenarios of (emotion - baseline of the same scenario); rows are means by scenario, row i of both sides of
    the same one: Wang et al. (2510.11328). What a scenario does to both sides cancels. ValueError where the counts differ.
    """
    positive, negative = _checked(positive, negative)
    if len(positive) != len(negative):
        raise ValueError(f"{len(positive)} positive and {len(negative)} negative rows: each scenario has one of both")
    return np.asarray((positive - negative).mean(axis=0))


def pca(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The first principal direction of the differences of all pairs of a positive and a negative, not centred, with the sign of
    the mean difference: Representation Engineering (Zou et al., 2310.01405), without a choice of pairs.

    The second moment of these n m differences is S+ + S- + d d', with the covariances (1/n) of both sides and the difference d
    of their means; so its first eigenvector is that of n + m + 1 rows.
    """
    positive, negative = _checked(positive, negative)
    towards = mean_difference(positive, negative)
    sides = [(side - side.mean(axis=0)) / np.sqrt(len(side)) for side in (positive, negative)]
    _, vectors = _principal(np.concatenate([*sides, towards[None]]), 1)
    if not len(vectors) or not towards.any():
        return np.zeros_like(towards)
    return vectors[0] if vectors[0] @ towards >= 0 else -vectors[0]


def _scaled(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both sides less the mean of all rows and over their standard deviation, by column, and that deviation [hidden]: inf, so
    that rows and whatever is taken back through it are 0, where the column does not vary.
    """
    rows = np.concatenate([positive, negative])
    centre, scale = rows.mean(axis=0), rows.std(axis=0)
    scale[scale <= FLAT * np.maximum(np.abs(rows).max(axis=0), scale.max())] = np.inf
    return (positive - centre) / scale, (negative - centre) / scale, scale


def lda(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Fisher's discriminant, covariance^-1 (mean(positive) - mean(negative)), with the pooled within-side covariance of columns
    scaled to unit variance, shrunk towards a multiple of the identity by Ledoit and Wolf (2004, "A well-conditioned estimator
    for large-dimensional covariance matrices"): (1 - a) S + a m I, m = tr(S) / hidden, a = b / d of their lemma 3.2 to 3.4.

    Scaling makes it blind to the units of a column: some models' residual has columns a thousand times as wide as the rest,
    and a multiple of the identity that fits those drowns all others. Solved in the smaller of rows and columns.
    """
    positive, negative = _checked(positive, negative)
    sides = _scaled(positive, negative)
    towards, scale = sides[0].mean(axis=0) - sides[1].mean(axis=0), sides[2]
    rows = np.concatenate([side - side.mean(axis=0) for side in sides[:2]])
    count, hidden = len(rows), int(np.isfinite(scale).sum())
    woodbury = count <= rows.shape[1]
    gram = (rows @ rows.T if woodbury else rows.T @ rows) / count
    trace, squared = float(np.trace(gram)), float((gram**2).sum())  # of S too: S and the Gram matrix share their eigenvalues
    mean = trace / max(hidden, 1)
    if mean == 0:
        return mean_difference(positive, negative)
    distance = squared - hidden * mean**2
    spread = float((np.square(rows).sum(axis=1) ** 2).sum()) / count**2 - squared / count
    shrinkage = min(max(spread / distance, LEAST_SHRINKAGE), 1.0) if distance > 0 else 1.0
    inner = (1 - shrinkage) * gram
    inner[np.diag_indices_from(inner)] += shrinkage * mean
    if not woodbury:
        return np.asarray(np.linalg.solve(inner, towards) / scale)
    # Woodbury: (r I + c X'X)^-1 t = (t - c X' (r I + c X X')^-1 X t) / r, with c = (1 - a) / count
    inward = rows.T @ np.linalg.solve(inner, rows @ towards)
    return np.asarray((towards - (1 - shrinkage) / count * inward) / (shrinkage * mean * scale))


def logistic(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The normal of a logistic regression with an L2 penalty (C = LOGISTIC_C), both sides of equal weight, on columns scaled to
    unit variance, taken back to the rows' own scale. UserError where it does not converge.

    L-BFGS with the gradient down to 1e-6: on 800 rows the normal is within 1e-4 of the exact one, ten times as fast as Newton.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    positive, negative, scale = _scaled(*_checked(positive, negative))
    model = LogisticRegression(C=LOGISTIC_C, class_weight="balanced", solver="lbfgs", tol=1e-6, max_iter=LOGISTIC_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(np.concatenate([positive, negative]), np.repeat([1, 0], [len(positive), len(negative)]))
        except ConvergenceWarning:
            raise UserError(
                f"method logistic did not converge in {LOGISTIC_ITERATIONS} iterations on {len(positive)} positives and "
                f"{len(negative)} negatives: choose another method"
            ) from None
    return np.asarray(model.coef_[0] / scale)


METHODS: dict[str, Method] = {
    "mean_difference": Method(mean_difference),
    "paired": Method(paired, by_scenario=True),
    "pca": Method(pca),
    "logistic": Method(logistic),
    "lda": Method(lda),
}


def _principal(rows: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(squared singular values [c], right singular vectors [c, hidden]) of float64 rows, largest first, without those that are
    zero to rounding; at most `count`. Found in the smaller of the two Gram matrices. The rows are not centred here.
    """
    from scipy.linalg import eigh

    few = len(rows) <= rows.shape[1]
    gram = rows @ rows.T if few else rows.T @ rows
    first = 0 if count is None else max(len(gram) - count, 0)
    values, vectors = eigh(gram, subset_by_index=(first, len(gram) - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(float(values[0]), 0.0) * len(gram) * np.finfo(np.float64).eps
    values, vectors = values[kept], vectors[:, kept]
    if few:
        # what the Gram matrix's rounding took from their being orthogonal
        vectors, upper = np.linalg.qr(rows.T @ vectors)
        vectors = vectors * np.sign(np.diag(upper))
    return values, vectors.T


def neutral_components(neutral: np.ndarray, share: float) -> np.ndarray:
    """The first principal components of neutral texts' rows [n, hidden], as many as hold up to `share` (0 to 1) of the rows'
    variance, one at least where the rows vary: float64 [c, hidden], orthonormal. Anthropic (2604.07729) takes them out of every
    vector. UserError for fewer than 2 rows; ValueError for a share that is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is not above 0 and up to 1")
    if len(neutral) < 2:
        raise UserError(f"denoise needs two neutral texts at least, there are {len(neutral)}")
    rows = neutral.astype(np.float64)
    centred = rows - rows.mean(axis=0)
    if np.abs(centred).max() <= FLAT * np.abs(rows).max():
        return np.empty((0, rows.shape[1]))
    values, vectors = _principal(centred)
    held = np.cumsum(values) / np.square(centred).sum()
    return vectors[: max(1, int(np.count_nonzero(held <= share * (1 + FLAT))))]


def without(rows: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Rows [n, hidden] less their projection on orthonormal components [c, hidden]: float64 [n, hidden]."""
    rows = rows.astype(np.float64)
    return np.asarray(rows - (rows @ components.T) @ components)


def scenario_means(rows: np.ndarray, scenarios: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """The mean row of each scenario in `names`: float64 [len(names), hidden]. rows [n, hidden]; scenarios: of each row, those
    that its text is of. ValueError for a name that no row has.
    """
    if len(rows) != len(scenarios):
        raise ValueError(f"{len(rows)} rows, scenarios of {len(scenarios)}")
    members: dict[str, list[int]] = {name: [] for name in names}
    for row, own in enumerate(scenarios):
        for name in set(own) & members.keys():
            members[name].append(row)
    lacking = [name for name, found in members.items() if not found]
    if lacking:
        raise ValueError(f"no row is of scenario {lacking[0]!r}")
    means = [rows[members[name]].mean(axis=0, dtype=np.float64) for name in names]
    return np.stack(means) if means else np.empty((0, rows.shape[1]))


def shared_scenarios(positive: Sequence[Sequence[str]], negative: Sequence[Sequence[str]]) -> list[str]:
    """The scenarios that have texts on both sides, sorted; each side says of each text which ones it is of."""
    sides = [{name for own in side for name in own} for side in (positive, negative)]
    return sorted(sides[0] & sides[1])
