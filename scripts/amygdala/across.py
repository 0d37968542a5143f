"""Figures across emotions at one layer, as products of whole matrices: V [n, hidden] holds the unit vectors of n emotions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RIDGE = 0.01  # of the squared length of a vector
TOP = 5
DRAWS = 200
GENERAL = 3.0  # standard deviations


def top(row: np.ndarray, names: Sequence[str], by: np.ndarray | None = None, count: int = TOP) -> list[list[Any]]:
    """The `count` largest of a row [n] (by `by`, where given) as [name, value]; nan and -inf are left out."""
    order = np.argsort(-(row if by is None else by), kind="stable")[:count]
    return [[names[at], float(row[at])] for at in order if np.isfinite(row[at])]


def nearest(cosines: np.ndarray, names: Sequence[str], count: int = TOP) -> list[list[list[Any]]]:
    """For each emotion the `count` others with the largest cosine, as [name, cosine]; cosines float64 [n, n]."""
    others = cosines.copy()
    np.fill_diagonal(others, -np.inf)
    return [top(row, names, count=count) for row in others]


def ridge_on_others(cosines: np.ndarray, strength: float = RIDGE) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of each vector on all others: (R^2 [n], coefficients [n, n] with 0 on the diagonal).

    cosines: V V^T, float64 [n, n]. With A = V V^T + strength I and B = A^-1, the coefficients of vector e on the others are
    -B_ej / B_ee (the inverse of a block matrix), so that one inversion serves all n regressions. R^2 = 1 - |v - sum c_j v_j|^2
    for unit vectors, uncentred.
    """
    n = len(cosines)
    inverse = np.linalg.inv(cosines + strength * np.eye(n))
    coefficients = -inverse / np.diag(inverse)[:, None]
    np.fill_diagonal(coefficients, 0)
    explained = 2 * (coefficients * cosines).sum(axis=1) - ((coefficients @ cosines) * coefficients).sum(axis=1)
    return explained, coefficients


def correlations(projections: np.ndarray) -> np.ndarray:
    """Pearson's r between the columns of projections [texts, n]: float64 [n, n], nan where one does not vary."""
    centred = projections - projections.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (centred.T @ centred) / np.outer(lengths, lengths)


def cohesion(cosines: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Mean cosine between a family's members less that from members to others: member bool [families, n] to float64 [families].

    nan where a family has fewer than two members, or nobody is outside.
    """
    inside = member.astype(np.float64)
    sizes = inside.sum(axis=1)
    outside = len(cosines) - sizes
    total = ((inside @ cosines) * inside).sum(axis=1)
    own = (inside * np.diag(cosines)).sum(axis=1)
    to_all = (inside @ cosines).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        within = (total - own) / (sizes * (sizes - 1))
        away = (to_all - total) / (sizes * outside)
    return np.where((sizes >= 2) & (outside >= 1), within - away, np.nan)


def family_figures(
    cosines: np.ndarray, names: Sequence[str], families: Mapping[str, Sequence[str]], random: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Cohesion of each family with two members or more here, and that of as many random emotions (mean and sd of DRAWS
    sets).
    """
    found: dict[str, dict[str, Any]] = {}
    for family, members in families.items():
        chosen = np.array([name in members for name in names], dtype=bool)
        value = float(cohesion(cosines, chosen[None])[0])
        if np.isnan(value):
            continue
        size = int(chosen.sum())
        draws = np.zeros((DRAWS, len(names)), dtype=bool)
        for draw in draws:
            draw[random.permutation(len(names))[:size]] = True
        null = cohesion(cosines, draws)
        found[family] = {
            "emotions": [name for name in names if name in members],
            "cohesion": value,
            "random": {"mean": float(null.mean()), "sd": float(null.std(ddof=1)), "draws": DRAWS},
        }
    return found


def head_service(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Which heads of a layer serve many emotions, and which only one.

    figures: {emotion: its head figures at the layer}. A head serves an emotion where it is in the top quarter by |contribution|
    (by raw_norm where the model's weights are not known). general: served more emotions than chance by GENERAL standard
    deviations of a binomial; only: {head: emotion} that one alone. None where the layer has no heads.
    """
    known = {emotion: figure for emotion, figure in figures.items() if "heads" in figure}
    if not known:
        return None
    n_heads = next(iter(known.values()))["n_heads"]
    k = max(1, n_heads // 4)
    served: dict[int, list[str]] = {head: [] for head in range(n_heads)}
    for emotion, figure in known.items():
        lines = figure["heads"]
        by = "raw_norm" if any(line["contribution"] is None for line in lines) else "contribution"
        for line in sorted(lines, key=lambda line: (-abs(line[by]), line["head"]))[:k]:
            served[line["head"]].append(emotion)
    share = k / n_heads
    expected, sd = len(known) * share, float(np.sqrt(len(known) * share * (1 - share)))
    return {
        "k": k,
        "n_heads": n_heads,
        "expected": expected,
        "heads": [[head, len(names)] for head, names in sorted(served.items(), key=lambda item: (-len(item[1]), item[0]))],
        "general": [head for head, names in served.items() if len(names) > expected + GENERAL * sd],
        "only": {str(head): names[0] for head, names in served.items() if len(names) == 1},
    }
