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
SHRINKAGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
LOGISTIC_C = 0.003
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
    """The mean over scenarios of (emotion - baseline of the same scenario), the baseline being the mean of the scenario's texts
    without the emotion (neutral, or told with another one); rows are means by scenario, row i of both sides of
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
    """Fisher's discriminant, ((1 - a) S + a m I)^-1 (mean(positive) - mean(negative)): S is the pooled within-side covariance
    of columns scaled to unit variance, m its mean variance, a the one of SHRINKAGES that predicts left-out rows best.

    It is the ridge regression on the labels 1 and -1 (Bishop 2006, 4.1.5), whose errors on left-out rows have a closed form
    (Allen 1974): error of row i / (1 - h_ii), h the hat matrix. Ledoit and Wolf's shrinkage fits the covariance, not the
    separation: on GoEmotions' training texts it was too weak. Scaling makes the method blind to the units of a column: some
    models' residual has columns a thousand times as wide as the rest, and a multiple of I that fits those drowns all others.
    """
    positive, negative = _checked(positive, negative)
    *sides, scale = _scaled(positive, negative)
    within = sum(float(np.square(side - side.mean(axis=0)).sum()) for side in sides)
    if within == 0:
        return mean_difference(positive, negative)
    rows = np.concatenate(sides)
    labels = np.repeat([1.0, -1.0], [len(positive), len(negative)])
    labels -= labels.mean()
    few, values, vectors = _eigen(rows)
    turned = vectors * np.sqrt(values) if few else rows @ vectors  # the rows in their principal axes
    share = np.array(SHRINKAGES)
    damped = 1 / (values[:, None] + share / (1 - share) * within / np.isfinite(scale).sum())  # [c, shrinkages]
    normals = (turned.T @ labels)[:, None] * damped
    leverage = 1 / len(rows) + np.square(turned) @ damped
    errors = (labels[:, None] - turned @ normals) / np.maximum(1 - leverage, FLAT)
    normal = normals[:, np.argmin(np.square(errors).mean(axis=0))]
    return np.asarray((rows.T @ (vectors @ (normal / np.sqrt(values))) if few else vectors @ normal) / scale)


def logistic(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The normal of a logistic regression with an L2 penalty (C = LOGISTIC_C) on columns scaled to unit variance, taken back to
    the rows' own scale. UserError where it does not converge.

    L-BFGS until the gradient is below 1e-6: on 800 rows the normal is within 1e-4 of the exact one. C was chosen by
    cross-validation on GoEmotions' training texts.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    positive, negative, scale = _scaled(*_checked(positive, negative))
    model = LogisticRegression(C=LOGISTIC_C, solver="lbfgs", tol=1e-6, max_iter=LOGISTIC_ITERATIONS)
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


def _eigen(rows: np.ndarray, count: int | None = None) -> tuple[bool, np.ndarray, np.ndarray]:
    """(whether there are no more rows than columns, eigenvalues [c], eigenvectors [n or hidden, c]) of rows rows' where that is
    so, else of rows' rows: float64, largest first, without those that are zero to rounding; at most `count`.
    """
    from scipy.linalg import eigh

    few = len(rows) <= rows.shape[1]
    gram = rows @ rows.T if few else rows.T @ rows
    if count is None:
        values, vectors = np.linalg.eigh(gram)
    else:
        values, vectors = eigh(gram, subset_by_index=(max(len(gram) - count, 0), len(gram) - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(float(values[0]), 0.0) * len(gram) * np.finfo(np.float64).eps
    return few, values[kept], vectors[:, kept]


def _principal(rows: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(squared singular values [c], right singular vectors [c, hidden]) of float64 rows, which are not centred here; which of
    them, as _eigen() says.
    """
    few, values, vectors = _eigen(rows, count)
    return values, (rows.T @ vectors / np.sqrt(values)).T if few else vectors.T


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
    kept = vectors[: max(1, int(np.count_nonzero(held <= share * (1 + FLAT))))]
    return np.asarray(np.linalg.qr(kept.T)[0].T)  # the Gram matrix's rounding took from their being orthogonal


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
