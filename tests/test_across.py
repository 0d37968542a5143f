"""Figures across emotions against scikit-learn, numpy and plain loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from amygdala import across
from amygdala.measures import generator


def units(count: int, width: int = 12, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng([count, seed]).standard_normal((count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def names_of(count: int) -> list[str]:
    return [f"emotion_{number}" for number in range(count)]


# nearest


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 7, 30])
def test_nearest_against_loops(count: int) -> None:
    rows, names = units(count), names_of(count)
    found = across.nearest(rows @ rows.T, names)
    assert len(found) == count
    for number, own in enumerate(found):
        cosines = [(float(rows[number] @ rows[other]), names[other]) for other in range(count) if other != number]
        best = sorted(cosines, reverse=True)[:5]
        assert [name for name, _ in own] == [name for _, name in best]
        assert [cosine for _, cosine in own] == pytest.approx([cosine for cosine, _ in best], abs=1e-12)


def test_nearest_of_equal_and_opposite_vectors() -> None:
    rows = np.array([[1.0, 0], [1, 0], [-1, 0]])
    cosines = rows @ rows.T
    before = cosines.copy()
    assert across.nearest(cosines, ["a", "b", "c"]) == [[["b", 1], ["c", -1]], [["a", 1], ["c", -1]], [["a", -1], ["b", -1]]]
    assert np.array_equal(cosines, before), "what it is given stays as it was"


def test_top_goes_by_another_row_and_leaves_out_what_is_no_number() -> None:
    row = np.array([0.1, -0.9, np.nan, 0.5, -np.inf])
    assert across.top(row, list("abcde"), np.array([0.1, 0.9, -np.inf, 0.5, -np.inf])) == [["b", -0.9], ["d", 0.5], ["a", 0.1]]
    assert across.top(row, list("abcde"), np.array([0.1, 0.9, -np.inf, 0.5, -np.inf]), count=1) == [["b", -0.9]]


# ridge


@pytest.mark.parametrize("count", [2, 3, 10, 40])  # 40 vectors in 12 dimensions: more than the space holds
@pytest.mark.parametrize("strength", [0.01, 0.3])
def test_ridge_against_scikit_learn(count: int, strength: float) -> None:
    rows = units(count)
    explained, coefficients = across.ridge_on_others(rows @ rows.T, strength)
    for own in range(count):
        others = [other for other in range(count) if other != own]
        model = Ridge(alpha=strength, fit_intercept=False, tol=1e-12).fit(rows[others].T, rows[own])
        assert coefficients[own, others] == pytest.approx(model.coef_, abs=1e-8)
        assert coefficients[own, own] == 0
        left = rows[own] - model.predict(rows[others].T)
        assert explained[own] == pytest.approx(1 - float(left @ left), abs=1e-8)


def test_ridge_of_a_sum_and_of_orthogonal_vectors() -> None:
    rows = np.eye(4)
    rows[3] = (rows[0] + rows[1]) / np.sqrt(2)
    explained, coefficients = across.ridge_on_others(rows @ rows.T)
    assert explained[3] > 0.999 and coefficients[3, :3] == pytest.approx([0.7, 0.7, 0], abs=0.01)
    assert explained[2] == pytest.approx(0, abs=1e-12)


def test_ridge_of_one_vector_twice() -> None:
    """In closed form: c = 1 / (1 + strength), R^2 = 1 - (1 - c)^2."""
    rows = np.array([[0.6, 0.8], [0.6, 0.8]])
    explained, coefficients = across.ridge_on_others(rows @ rows.T, 0.25)
    assert coefficients.tolist() == [[0, pytest.approx(0.8)], [pytest.approx(0.8), 0]]
    assert explained == pytest.approx([0.96, 0.96])


# projections


def test_correlations_against_numpy() -> None:
    projections = np.random.default_rng(5).standard_normal((50, 6)) + 1000
    assert across.correlations(projections) == pytest.approx(np.corrcoef(projections, rowvar=False), abs=1e-9)


def test_correlations_of_what_does_not_vary_are_no_numbers() -> None:
    projections = np.random.default_rng(5).standard_normal((50, 3))
    projections[:, 1] = 2
    found = across.correlations(projections)
    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
    assert found[0, 2] == pytest.approx(np.corrcoef(projections[:, 0], projections[:, 2])[0, 1])


# families


def loop_cohesion(cosines: np.ndarray, members: list[int]) -> float:
    outside = [other for other in range(len(cosines)) if other not in members]
    within = [float(cosines[a, b]) for a, b in itertools.combinations(members, 2)]
    away = [float(cosines[a, b]) for a in members for b in outside]
    return sum(within) / len(within) - sum(away) / len(away)


def test_cohesion_against_loops() -> None:
    rows = units(9)
    cosines = rows @ rows.T
    families = [[0, 4], [1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]]
    member = np.array([[number in family for number in range(9)] for family in families])
    assert across.cohesion(cosines, member) == pytest.approx([loop_cohesion(cosines, family) for family in families], abs=1e-12)


def test_cohesion_is_none_of_a_lone_member_or_with_nobody_outside() -> None:
    member = np.array([[True, False, False], [True, True, True], [False, False, False]])
    assert np.isnan(across.cohesion(np.eye(3), member)).all()


def test_families_against_random_ones() -> None:
    """Three vectors close together among 20: cohesion far above that of random sets, whose mean is near 0."""
    rows = units(20, 50)
    rows[[2, 5, 8]] = rows[2] + 0.3 * rows[[2, 5, 8]]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = names_of(20)
    families = {"close": [names[8], names[2], names[5], "not built"], "loose": names[10:14], "lone": [names[0]], "whole": names}
    found = across.family_figures(rows @ rows.T, names, families, generator("families", 1))
    assert list(found) == ["close", "loose"]
    assert found["close"]["emotions"] == [names[2], names[5], names[8]]
    for family, members in (("close", [2, 5, 8]), ("loose", [10, 11, 12, 13])):
        assert found[family]["cohesion"] == pytest.approx(loop_cohesion(rows @ rows.T, members))
        null = found[family]["random"]
        assert abs(null["mean"]) < 0.05 and null["sd"] > 0 and null["draws"] == across.DRAWS
    assert found["close"]["cohesion"] > 0.5 > 4 * found["close"]["random"]["sd"]
    again = across.family_figures(rows @ rows.T, names, families, generator("families", 1))
    assert again == found


# heads


def heads_of(n_heads: int, order: list[int], contributions: bool = True) -> dict[str, Any]:
    """Figures in which heads are strongest in `order`, with signs that take turns; lines are by head."""
    values = {head: (-1) ** rank * (n_heads - rank) for rank, head in enumerate(order)}
    lines = [
        {"head": head, "raw_norm": abs(values[head]), "contribution": values[head] if contributions else None}
        for head in range(n_heads)
    ]
    return {"n_heads": n_heads, "heads": lines}


def test_heads_that_serve_against_loops() -> None:
    random = np.random.default_rng(3)
    orders = {f"emotion_{number}": random.permutation(12).tolist() for number in range(30)}
    for order in orders.values():  # head 7 serves all, head 4 one alone
        order.remove(7)
        order.remove(4)
        order[:] = [7, *order, 4]
    orders["emotion_3"].remove(4)
    orders["emotion_3"].insert(1, 4)
    found = across.head_service({name: heads_of(12, order) for name, order in orders.items()})
    assert found is not None
    served = {head: [name for name, order in orders.items() if head in order[:3]] for head in range(12)}
    assert dict(map(tuple, found["heads"])) == {head: len(names) for head, names in served.items()}
    assert [count for _, count in found["heads"]] == sorted((len(names) for names in served.values()), reverse=True)
    assert (found["k"], found["n_heads"], found["expected"]) == (3, 12, 7.5)
    spread = (30 * 0.25 * 0.75) ** 0.5
    assert found["general"] == [head for head, names in served.items() if len(names) > 7.5 + 3 * spread] == [7]
    assert found["only"] == {str(head): names[0] for head, names in served.items() if len(names) == 1}
    assert found["only"]["4"] == "emotion_3"


def test_heads_serve_by_their_norm_where_weights_are_unknown() -> None:
    figures = heads_of(4, [2, 0, 1, 3])
    for line in figures["heads"]:
        line["raw_norm"] = 10.0 if line["head"] == 3 else 1.0
    found = across.head_service({"joy": figures})
    assert found is not None and found["heads"][0] == [2, 1] and found["only"] == {"2": "joy"}
    for line in figures["heads"]:
        line["contribution"] = None
    found = across.head_service({"joy": figures})
    assert found is not None and found["heads"][0] == [3, 1] and found["only"] == {"3": "joy"}


def test_of_fewer_than_four_heads_one_serves() -> None:
    found = across.head_service({"joy": heads_of(3, [1, 0, 2]), "awe": heads_of(3, [1, 2, 0]), "calm": heads_of(3, [2, 1, 0])})
    assert found is not None and (found["k"], found["n_heads"], found["expected"]) == (1, 3, pytest.approx(1))
    assert found["heads"] == [[1, 2], [2, 1], [0, 0]] and found["only"] == {"2": "calm"}


def test_a_layer_without_heads_serves_nothing() -> None:
    assert across.head_service({"joy": {"no_heads": "a gated delta net"}}) is None
    assert across.head_service({}) is None
