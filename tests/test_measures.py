"""Figures of directions and rows against closed forms, scikit-learn, scipy and plain loops."""

from __future__ import annotations

import math
import random as python_random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import f_oneway, pearsonr, rankdata
from sklearn.metrics import roc_auc_score

from amygdala import measures
from amygdala.measures import Bootstrap, generator


def counted_auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The share of pairs in the right order, ties half."""
    right = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative)
    return right / (len(positive) * len(negative))


# generator


def test_draws_depend_on_the_salt_alone() -> None:
    first = generator("nulls", "joy", 3).random(5)
    np.random.seed(1)
    python_random.seed(1)
    generator("nulls", "joy", 4).random(100)
    assert generator("nulls", "joy", 3).random(5).tolist() == first.tolist()
    for other in (("nulls", "joy", 4), ("nulls", "grief", 3), ("heads", "joy", 3), ("nulls", "joy3"), ("nullsjoy", 3)):
        assert generator(*other).random(5).tolist() != first.tolist()


def test_drawing_leaves_the_global_state_alone() -> None:
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    random = generator("any")
    Bootstrap(5, 6, random).interval(np.arange(5.0), np.arange(6.0))
    measures.random_directions(4, 3, random)
    measures.halves(4, 5, random, paired=False)
    assert np.random.random() == expected


def test_a_salt_that_is_no_valid_text() -> None:
    assert generator("\ud800").random() != generator("\udfff").random()


# AUC


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_aucs_against_scikit_learn_with_ties(seed: int, levels: int, dtype: Any) -> None:
    random = np.random.default_rng(seed)
    n, m = random.integers(1, 40, size=2)
    positive = ((random.integers(0, levels, size=(n, 7)) + levels // 5) / 7).astype(dtype)
    negative = (random.integers(0, levels, size=(m, 7)) / 7).astype(dtype)
    found, label = measures.aucs(positive, negative), np.repeat([1, 0], [n, m])
    for column, (p, q) in enumerate(zip(positive.T, negative.T, strict=True)):
        assert found[column] == pytest.approx(roc_auc_score(label, np.concatenate([p, q])), abs=1e-12)
        assert found[column] == pytest.approx(counted_auc(p.tolist(), q.tolist()), abs=1e-12)
        assert measures.auc(p, q) == found[column]


def test_one_tie_among_many_columns() -> None:
    """A tie in one column changes no other."""
    random = np.random.default_rng(0)
    positive, negative = random.standard_normal((6, 3)), random.standard_normal((5, 3))
    negative[2, 1] = positive[4, 1]
    expected = [counted_auc(positive[:, column].tolist(), negative[:, column].tolist()) for column in range(3)]
    assert measures.aucs(positive, negative).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("positive", "negative", "expected"), [([2], [1], 1.0), ([1], [2], 0.0), ([1, 1], [1], 0.5)])
def test_auc_at_its_ends(positive: list[float], negative: list[float], expected: float) -> None:
    assert measures.auc(np.array(positive), np.array(negative)) == expected


@pytest.mark.parametrize(("positives", "negatives"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_is_measured_of_an_empty_side(positives: int, negatives: int) -> None:
    positive, negative = np.ones(positives), np.zeros(negatives)
    assert measures.auc(positive, negative) is None
    assert Bootstrap(positives, negatives, generator("x")).interval(positive, negative) is None
    assert measures.cohens_d(positive, negative) is None


# bootstrap


def test_bootstrap_against_texts_drawn_by_hand() -> None:
    """Each replicate repeats each text as often as it was drawn, and counts pairs."""
    random = np.random.default_rng(3)
    positive, negative = random.integers(0, 6, 9) / 2, random.integers(0, 5, 7) / 2
    bootstrap = Bootstrap(9, 7, generator("by hand"), replicates=50)
    assert bootstrap.positive is not None and bootstrap.negative is not None
    expected = []
    for counts in zip(bootstrap.positive, bootstrap.negative, strict=True):
        drawn = [
            np.repeat(side, of_side.astype(int)).tolist() for side, of_side in zip((positive, negative), counts, strict=True)
        ]
        assert [len(side) for side in drawn] == [9, 7], "as many texts as there are"
        expected.append(counted_auc(*drawn))
    assert bootstrap.aucs(positive, negative).tolist() == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 20
    limits = np.percentile(expected, [2.5, 97.5]).tolist()
    assert bootstrap.interval(positive, negative) == pytest.approx(limits, abs=1e-6)


def test_bootstrap_draws_texts_evenly() -> None:
    bootstrap = Bootstrap(10, 4, generator("even"))
    for counts, texts in ((bootstrap.positive, 10), (bootstrap.negative, 4)):
        assert counts is not None and counts.shape == (1000, texts)
        assert np.abs(counts.mean(axis=0) - 1).max() < 0.12  # four standard errors of a count of mean 1
        assert counts[:, 0].var() == pytest.approx(1 - 1 / texts, abs=0.2)


@pytest.mark.parametrize(("n", "m", "distance"), [(40, 120, 0.8), (100, 100, 0.0), (25, 80, 1.2)])
def test_intervals_cover_the_true_auc(n: int, m: int, distance: float) -> None:
    """Two normals a distance apart have AUC Phi(distance / sqrt 2). Percentile intervals cover somewhat less than they say."""
    true = 0.5 * (1 + math.erf(distance / 2))
    random, covered, trials = np.random.default_rng(5), 0, 150
    for trial in range(trials):
        bootstrap = Bootstrap(n, m, generator("coverage", trial), replicates=200)
        low, high = bootstrap.interval(random.standard_normal(n) + distance, random.standard_normal(m)) or []
        covered += low <= true <= high
    assert 0.88 < covered / trials < 0.99


# effect size, quantiles, null


def test_cohens_d_in_closed_form() -> None:
    """Squares about the means sum to 4 and 32, with 5 degrees of freedom; the means are 5 / sqrt 2 and 1."""
    positive, negative = np.array([3.0, 5.0, 7.0]) * 0.5**0.5, np.array([-3.0, 1.0, 1.0, 5.0])
    pooled = math.sqrt((4 + 32) / 5)
    assert measures.cohens_d(positive, negative) == pytest.approx((5 * 0.5**0.5 - 1) / pooled)


def test_cohens_d_of_one_text_a_side_or_no_variance() -> None:
    with np.errstate(all="raise"):  # it is not worked out as 0 / 0 either
        assert measures.cohens_d(np.array([1.0]), np.array([0.0])) is None
        assert measures.cohens_d(np.ones(3), np.zeros(3)) is None
    assert np.full(3, 0.1).var() > 0, "by rounding"
    assert measures.cohens_d(np.full(3, 0.1), np.full(3, 0.7)) is None
    assert measures.cohens_d(np.array([1.0]), np.array([0.0, 2.0])) == 0.0


def test_null_distribution() -> None:
    null = measures.spread_of(np.arange(0, 101) / 100, 0.9)
    assert null["reached"] == pytest.approx(11 / 101), "0.9 itself counts"
    assert (null["mean"], null["draws"]) == (pytest.approx(0.5), 101)
    assert null["sd"] == pytest.approx(math.sqrt(101 * 102 / 12) / 100)
    assert null["interval"] == pytest.approx([0.025, 0.975])
    assert measures.spread_of(np.array([0.3]), 0.5) == {"reached": 0, "mean": 0.3, "sd": 0, "interval": None, "draws": 1}


def test_random_directions_are_even() -> None:
    directions = measures.random_directions(3, 20_000, generator("sphere"))
    assert directions.shape == (3, 20_000) and directions.dtype == np.float32
    unit = directions / np.linalg.norm(directions, axis=0)
    assert np.abs(unit.mean(axis=1)).max() < 0.02
    assert np.allclose(unit @ unit.T / 20_000, np.eye(3) / 3, atol=0.02)


# other labels of the same rows


def test_shuffles_part_all_rows_anew() -> None:
    random, firsts = generator("shuffles"), []
    for _ in range(200):
        positive, negative = measures.shuffled(3, 5, random, paired=False)
        assert sorted([*positive, *negative]) == list(range(8)) and len(positive) == 3
        firsts.append(positive)
    share = np.bincount(np.concatenate(firsts), minlength=8) / 200
    assert np.abs(share - 3 / 8).max() < 0.14  # four standard errors


def test_paired_shuffles_swap_partners_alone() -> None:
    random, swapped = generator("pairs"), []
    for _ in range(200):
        positive, negative = measures.shuffled(6, 6, random, paired=True)
        assert all({p, n} == {row, row + 6} for row, (p, n) in enumerate(zip(positive, negative, strict=True)))
        swapped.append(positive >= 6)
    assert np.abs(np.mean(swapped, axis=0) - 0.5).max() < 0.15


@pytest.mark.parametrize("paired", [False, True])
def test_halves_part_both_sides(paired: bool) -> None:
    random, orders = generator("halves"), set()
    for _ in range(20):
        (p1, n1), (p2, n2) = measures.halves(7, 7, random, paired)
        assert sorted([*p1, *p2]) == list(range(7)) and sorted([*n1, *n2]) == list(range(7, 14))
        assert abs(len(p1) - len(p2)) <= 1 and abs(len(n1) - len(n2)) <= 1
        assert (set(p1 + 7) == set(n1)) or not paired
        orders.add((tuple(sorted(p1)), tuple(sorted(n1))))
    assert len(orders) > 10
    assert paired or any({at + 7 for at in p} != set(n) for p, n in orders), "the sides are drawn apart"


def test_weights_make_differences_of_means() -> None:
    random = np.random.default_rng(2)
    rows = random.standard_normal((9, 4)).astype(np.float32)
    groups = [measures.shuffled(4, 5, random, paired=False) for _ in range(3)]
    found = measures.weights(groups, 9) @ rows
    for direction, (positive, negative) in zip(found, groups, strict=True):
        assert np.allclose(direction, rows[positive].mean(axis=0) - rows[negative].mean(axis=0), atol=1e-6)


# rows


def test_cosine() -> None:
    assert measures.cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(24 / 25)
    assert measures.cosine(np.array([1.0, 0.0]), np.array([-2.0, 0.0])) == -1
    assert measures.cosine(np.zeros(2), np.ones(2)) is None
    assert measures.cosine(np.array([np.nan, 1]), np.ones(2)) is None


@pytest.mark.parametrize(("n", "hidden"), [(30, 8), (8, 30), (12, 12), (2, 5), (5, 1)])
def test_spectrum_against_singular_values(n: int, hidden: int) -> None:
    rows = (np.random.default_rng(n).standard_normal((n, hidden)) * np.linspace(0.1, 5, hidden) + 100).astype(np.float32)
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    found = measures.spectrum(rows)
    assert found["first_component"] == pytest.approx(variances[0] / variances.sum(), rel=1e-9)
    assert measures.first_component(rows) == pytest.approx(found["first_component"], rel=1e-9)
    assert found["participation_ratio"] == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-9)
    held = 0.0
    for count, variance in enumerate(variances, 1):  # noqa: B007
        held += variance / variances.sum()
        if held >= 0.9:
            break
    assert found["components_90"] == count


def test_spectrum_in_closed_form() -> None:
    """Points at both ends of orthogonal axes: variances are the squares of their lengths, 9 to 1, then ten alike."""
    rows = np.array([[3, 0], [-3, 0], [0, 1], [0, -1]], dtype=np.float32)
    spectrum = {"first_component": 0.9, "components_90": 1, "participation_ratio": pytest.approx(100 / 82)}
    assert measures.spectrum(rows) == {**spectrum, "first_component": pytest.approx(0.9)}
    even = np.concatenate([np.eye(10), -np.eye(10)])
    assert measures.spectrum(even) == {
        "first_component": pytest.approx(0.1),
        "components_90": 9,
        "participation_ratio": pytest.approx(10),
    }


@pytest.mark.parametrize("rows", [np.ones((4, 3), np.float32), np.ones((1, 3), np.float32)])
def test_spectrum_of_rows_that_do_not_vary(rows: np.ndarray) -> None:
    assert set(measures.spectrum(rows).values()) == {None}
    assert measures.first_component(rows) is None


def test_relative_spread_in_closed_form() -> None:
    rows = np.array([[13, 0], [7, 0], [10, 1], [10, -1], [10, 0]], dtype=np.float32)
    assert measures.relative_spread(rows) == pytest.approx(0.1), "distances 3, 3, 1, 1, 0 from (10, 0)"
    assert measures.relative_spread(np.array([[1.0, 0], [-1, 0]])) is None


def test_ranks_against_scipy() -> None:
    values = np.random.default_rng(1).integers(0, 9, size=(50, 4)) / 3
    assert np.array_equal(measures.ranked(values), rankdata(values, axis=0) - 1)
    assert np.array_equal(measures.ranked(values[:, 0]), rankdata(values[:, 0]) - 1)


def test_correlation_against_scipy() -> None:
    random = np.random.default_rng(4)
    first, second = random.standard_normal((2, 40))
    assert measures.correlation(first, second + first) == pytest.approx(pearsonr(first, second + first).statistic, abs=1e-12)
    assert measures.correlation(first, -3 * first + 2) == pytest.approx(-1)
    assert measures.correlation(first, np.ones(40)) is None


def test_variance_between_groups_against_an_analysis_of_variance() -> None:
    """Kelley's epsilon squared from the F statistic: (k - 1)(F - 1) / ((k - 1) F + n - k)."""
    random = np.random.default_rng(6)
    groups = random.integers(0, 4, 200)
    values = random.standard_normal(200) + 0.6 * groups
    parts = [values[groups == group] for group in range(4)]
    statistic = f_oneway(*parts).statistic
    expected = 3 * (statistic - 1) / (3 * statistic + 196)
    assert 0.1 < expected < 0.7
    assert measures.explained_by_groups(values, groups * 7 + 2) == pytest.approx(expected, rel=1e-10)


def test_variance_between_random_groups_is_none_on_average() -> None:
    random = np.random.default_rng(8)
    plain, corrected = [], []
    for _ in range(200):
        groups, values = random.integers(0, 20, 120), random.standard_normal(120)
        means = np.array([values[groups == group].mean() for group in groups])
        plain.append(((means - values.mean()) ** 2).sum() / ((values - values.mean()) ** 2).sum())
        corrected.append(measures.explained_by_groups(values, groups))
    known = [value for value in corrected if value is not None]
    assert len(known) == 200 and np.mean(plain) > 0.14
    assert np.mean(known) < 0.03 and np.mean([value == 0 for value in known]) > 0.4
    assert np.std(known) < measures.NOISE


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (np.arange(100.0), np.zeros(100, int)),
        (np.arange(100.0), np.arange(100)),
        (np.ones(100), np.arange(100) % 2),
        (np.arange(100.0), np.minimum(np.arange(100), 97)),  # 98 groups: the last has three texts, the others one
    ],
)
def test_groups_that_explain_nothing_for_sure(values: np.ndarray, groups: np.ndarray) -> None:
    assert measures.explained_by_groups(values, groups) is None


@pytest.mark.parametrize(("texts", "known"), [(14, False), (15, True)])
def test_groups_that_chance_alone_would_spread_by_a_tenth_explain_nothing(texts: int, known: bool) -> None:
    """Of two groups 2 / (12 * 15) and 2 / (13 * 16) is the variance: a standard deviation of 0.105 and of 0.098."""
    found = measures.explained_by_groups(np.arange(float(texts)), np.arange(texts) // 7 % 2)
    assert (found is not None) == known
