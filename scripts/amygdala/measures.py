"""What held-out texts say of a direction: AUC with a bootstrap interval, effect size, null distributions, and figures of the
rows themselves. Every draw is seeded by its caller.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

REPLICATES = 1000
LEVEL = 0.95
FEW_DRAWS = 20  # of a null: fewer show no twentieth
NOISE = 0.1  # standard deviation by chance above which a share of variance says nothing


def generator(*salt: Any) -> np.random.Generator:
    """Random numbers that depend on `salt` alone."""
    seed = hashlib.sha256("\0".join(str(part) for part in salt).encode("utf-8", "surrogatepass")).digest()[:16]
    return np.random.default_rng(np.frombuffer(seed, dtype="<u4"))


def aucs(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column: the share of pairs that the positive wins, a tie half (Mann and Whitney, 1947).

    positive [n, k], negative [m, k], finite, to float64 [k]; n, m > 0.
    """
    n, m = len(positive), len(negative)
    values = np.concatenate([positive, negative]).T
    order = np.argsort(values, axis=1)
    wins = (order < n) @ np.arange(1.0, n + m + 1) - n * (n + 1) / 2
    ordered = np.take_along_axis(values, order, axis=1)
    for column in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1)):
        against = np.sort(negative[:, column])
        wins[column] = sum(np.searchsorted(against, positive[:, column], side).sum() for side in ("left", "right")) / 2
    return wins / (n * m)


def auc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """AUC of positive [n] against negative [m]; None where a side is empty."""
    if not len(positive) or not len(negative):
        return None
    return float(aucs(positive[:, None], negative[:, None])[0])


class Bootstrap:
    """Percentile intervals of AUC over texts drawn anew from each side (Efron and Tibshirani, 1993, ch. 13 and 16).

    One draw of texts serves all that is measured on the same texts, so that figures of several layers or methods are
    comparable.
    """

    def __init__(self, n: int, m: int, random: np.random.Generator, replicates: int = REPLICATES) -> None:
        """n positives, m negatives; replicates: how many draws."""
        self.positive = random.multinomial(n, np.full(n, 1 / n), size=replicates).astype(np.float32) if n else None
        self.negative = random.multinomial(m, np.full(m, 1 / m), size=replicates).astype(np.float32) if m else None

    def aucs(self, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """positive [n], negative [m] to float64 [replicates]."""
        assert self.positive is not None and self.negative is not None
        wins = (positive[:, None] > negative[None, :]) + np.float32(0.5) * (positive[:, None] == negative[None, :])
        total = ((self.positive @ wins.astype(np.float32)) * self.negative).sum(axis=1, dtype=np.float64)
        return total / (len(positive) * len(negative))

    def interval(self, positive: np.ndarray, negative: np.ndarray) -> list[float] | None:
        """[low, high] of the AUC at LEVEL; None where a side has fewer than two texts, which drawn anew are always the same."""
        if min(len(positive), len(negative)) < 2:
            return None
        return quantiles(self.aucs(positive, negative))


def quantiles(values: np.ndarray) -> list[float]:
    """[low, high]: what holds the middle LEVEL of the values."""
    tail = (1 - LEVEL) / 2
    return [float(value) for value in np.quantile(values, [tail, 1 - tail])]


def spread_of(values: np.ndarray, reached: float) -> dict[str, Any]:
    """{"mean", "sd", "interval", "draws"} of a null distribution, and the share of its draws that are `reached` or more."""
    return {
        "reached": float((values >= reached).mean()),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "interval": quantiles(values) if len(values) >= FEW_DRAWS else None,
        "draws": len(values),
    }


def cohens_d(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """(mean positive - mean negative) / pooled standard deviation (Cohen, 1988, eq. 2.5.1); None where it is undefined."""
    n, m = len(positive), len(negative)
    if min(n, m) < 1 or n + m < 3:
        return None
    scale = max(np.abs(positive).max(), np.abs(negative).max())
    squares = ((positive - positive.mean()) ** 2).sum() + ((negative - negative.mean()) ** 2).sum()
    pooled = float(np.sqrt(squares / (n + m - 2)))
    return float(positive.mean() - negative.mean()) / pooled if pooled > 1e-12 * scale else None


def random_directions(hidden: int, count: int, random: np.random.Generator) -> np.ndarray:
    """float32 [hidden, count]: directions drawn evenly from the sphere (normals; their length does not matter to an AUC)."""
    return random.standard_normal((hidden, count)).astype(np.float32)


def shuffled(n: int, m: int, random: np.random.Generator, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows (of n positives, then m negatives) that count as positive and as negative once labels are shuffled; with `paired`
    rows (n = m) a label only changes places with its partner's.
    """
    if paired:
        swap = random.random(n) < 0.5
        first = np.arange(n)
        return np.where(swap, first + n, first), np.where(swap, first, first + n)
    order = random.permutation(n + m)
    return order[:n], order[n:]


def halves(n: int, m: int, random: np.random.Generator, paired: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two halves as (rows of the positives, rows of the negatives); `paired` rows stay together."""
    of_positive = random.permutation(n)
    of_negative = of_positive if paired else random.permutation(m)
    return [(of_positive[part::2], of_negative[part::2] + n) for part in (0, 1)]


def weights(groups: list[tuple[np.ndarray, np.ndarray]], rows: int) -> np.ndarray:
    """float32 [groups, rows]: what each row counts in mean(positive) - mean(negative) of each group."""
    table = np.zeros((len(groups), rows), dtype=np.float32)
    for number, (positive, negative) in enumerate(groups):
        table[number, positive] = 1 / len(positive)
        table[number, negative] = -1 / len(negative)
    return table


def cosine(first: np.ndarray, second: np.ndarray) -> float | None:
    """None where one of them has no direction."""
    lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return float(first @ second) / lengths if lengths > 0 and np.isfinite(lengths) else None


def _gram(rows: np.ndarray) -> np.ndarray | None:
    """The smaller Gram matrix of rows [n, hidden] after centring, float64: its eigenvalues are n times the variances of the
    principal components. None where nothing varies.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    gram = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
    return gram if len(rows) > 1 and np.trace(gram) > 0 else None


def spectrum(rows: np.ndarray) -> dict[str, Any]:
    """How the variance of rows [n, hidden] spreads over principal components, after centring.

    first_component: the largest one's share; components_90: how many hold 90 %; participation_ratio: (sum of variances)^2 /
    sum of their squares, the number of components if all were alike (Gao et al., 2017). None where nothing varies.
    """
    gram = _gram(rows)
    if gram is None:
        return {"first_component": None, "components_90": None, "participation_ratio": None}
    values = np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None)
    shares = np.cumsum(values) / values.sum()
    return {
        "first_component": float(shares[0]),
        "components_90": int(np.searchsorted(shares, 0.9 - 1e-12) + 1),
        "participation_ratio": float(np.trace(gram)) ** 2 / float((gram**2).sum()),
    }


def first_component(rows: np.ndarray) -> float | None:
    """The same share of the largest component alone, in less time."""
    from scipy.linalg import eigvalsh

    gram = _gram(rows)
    if gram is None:
        return None
    last = len(gram) - 1
    return float(eigvalsh(gram, subset_by_index=(last, last))[0]) / float(np.trace(gram))


def relative_spread(rows: np.ndarray) -> float | None:
    """The median distance of rows [n, hidden] from their mean over the length of that mean; None where it has none."""
    mean = rows.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(mean))
    return float(np.median(np.linalg.norm(rows - mean, axis=1))) / length if length > 0 else None


def ranked(values: np.ndarray) -> np.ndarray:
    """Each column's ranks from 0, equal values the mean of theirs: values [n] or [n, k] to float64.

    Some models give a few texts an activation out of all proportion (Sun et al., 2402.17762), and Pearson's r of the values
    themselves is then theirs alone.
    """
    ranks = np.empty(values.shape)
    for column, of_column in zip(values.reshape(len(values), -1).T, ranks.reshape(len(values), -1).T, strict=True):
        order = np.argsort(column)
        ordered = column[order]
        if (ordered[1:] > ordered[:-1]).all():
            of_column[order] = np.arange(len(order))
        else:
            of_column[:] = (np.searchsorted(ordered, column) + np.searchsorted(ordered, column, "right") - 1) / 2
    return ranks


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's r of two columns [n]; None where one does not vary."""
    x, y = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale > 1e-12 else None


def explained_by_groups(values: np.ndarray, groups: np.ndarray) -> float | None:
    """Share of the variance of values [n] that lies between groups (int [n]), less what as many groups of random texts would
    have: epsilon squared (Kelley, 1935), not below 0. None where it is undefined (one group, or nothing varies), or where that
    chance alone would spread it by more than NOISE: 2 (k - 1) / ((n - k) (n + 1)) is its variance for k random groups.
    """
    names, place = np.unique(groups, return_inverse=True)
    n, k = len(values), len(names)
    if k < 2 or n <= k or 2 * (k - 1) / ((n - k) * (n + 1)) > NOISE**2:
        return None
    total = float(((values - values.mean()) ** 2).sum())
    if total <= 1e-12:
        return None
    sizes = np.bincount(place)
    means = np.bincount(place, weights=values) / sizes
    within = float(((values - means[place]) ** 2).sum())
    return max(0.0, 1 - (within / (n - k)) / (total / (n - 1)))
