"""Methods and denoise against planted directions, closed forms and brute force."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge

import tiny
from amygdala import methods
from amygdala.errors import UserError
from amygdala.methods import (
    METHODS,
    lda,
    logistic,
    mean_difference,
    neutral_components,
    paired,
    pca,
    scenario_means,
    shared_scenarios,
    without,
)

Direction = Callable[[np.ndarray, np.ndarray], np.ndarray]
every_method = pytest.mark.parametrize("direction", [method.direction for method in METHODS.values()], ids=list(METHODS))
SHAPES = [(30, 12), (20, 60)]  # rows a side, hidden: more rows than columns and fewer
both_shapes = pytest.mark.parametrize(("count", "hidden"), SHAPES)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def planted(count: int, hidden: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sides float64 [count, hidden] with correlated noise, a common offset and means a few deviations apart."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(hidden, hidden)) / np.sqrt(hidden) + np.eye(hidden)
    towards = rng.normal(size=hidden)
    sides = [rng.normal(size=(count, hidden)) @ mixing + 3 for _ in range(2)]
    return sides[0] + towards, sides[1]


# what holds for every method


def test_these_are_the_methods() -> None:
    assert list(METHODS) == ["mean_difference", "paired", "pca", "logistic", "lda"]
    assert [name for name, method in METHODS.items() if method.by_scenario] == ["paired"]


@every_method
@both_shapes
def test_a_method_gives_a_finite_float64_direction_from_negatives_to_positives(
    direction: Direction, count: int, hidden: int
) -> None:
    positive, negative = (side.astype(np.float32) for side in planted(count, hidden))
    kept = positive.copy(), negative.copy()
    found = direction(positive, negative)
    assert found.shape == (hidden,) and found.dtype == np.float64 and np.isfinite(found).all()
    assert (positive @ found).mean() > (negative @ found).mean()
    assert np.array_equal(found, direction(positive, negative))
    assert np.array_equal(positive, kept[0]) and np.array_equal(negative, kept[1])
    assert cosine(direction(negative, positive), -found) > 1 - 1e-6


@every_method
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(8, 5), (6, 11)]),
    factor=st.floats(1e-3, 1e3),
    shift=st.floats(-50, 50),
)
def test_a_direction_knows_no_origin_unit_or_order(
    direction: Direction, seed: int, shape: tuple[int, int], factor: float, shift: float
) -> None:
    positive, negative = planted(*shape, seed=seed)
    order = np.random.default_rng(seed).permutation(shape[0])
    found = direction(positive, negative)
    offset = shift * np.random.default_rng(seed + 1).normal(size=shape[1])
    assert cosine(direction(positive + offset, negative + offset), found) > 1 - 1e-6
    assert cosine(direction(positive * factor, negative * factor), found) > 1 - 1e-6
    assert cosine(direction(positive[order], negative[order]), found) > 1 - 1e-6


@every_method
@both_shapes
def test_a_column_that_never_varies_counts_for_nothing(direction: Direction, count: int, hidden: int) -> None:
    positive, negative = planted(count, hidden)
    found = direction(positive, negative)
    for value in (0.0, 0.1, -1e4):
        wider = [np.column_stack([side, np.full(count, value)]) for side in (positive, negative)]
        assert wider[0][:, -1].mean() == pytest.approx(value)
        got = direction(*wider)
        assert abs(got[-1]) < 1e-9 * np.linalg.norm(got)
        assert cosine(got[:-1], found) > 1 - 1e-8


@every_method
@both_shapes
@pytest.mark.parametrize(("value", "rounding"), [(0.0, 1e-14), (1e8, 1.5e-8)])
def test_a_column_that_varies_by_rounding_counts_for_nothing(
    direction: Direction, count: int, hidden: int, value: float, rounding: float
) -> None:
    positive, negative = planted(count, hidden)
    found = direction(positive, negative)
    # the rounding even parts the sides
    wider = [np.column_stack([side, np.full(count, value + sign * rounding)]) for side, sign in ((positive, 1), (negative, -1))]
    got = direction(*wider)
    assert abs(got[-1]) < 1e-6 * np.linalg.norm(got)
    assert cosine(got[:-1], found) > 1 - 1e-8


@every_method
def test_equal_rows_give_no_direction(direction: Direction) -> None:
    rows = np.full((5, 7), 0.1)
    assert np.array_equal(direction(rows, rows), np.zeros(7))


@every_method
def test_one_row_a_side_is_enough(direction: Direction) -> None:
    positive, negative = np.array([[1.0, 2.0, 5.0]]), np.array([[1.0, 1.0, 1.0]])
    found = direction(positive, negative)
    assert np.isfinite(found).all() and found[0] == 0 and found[1] > 0 and found[2] > 0


@every_method
def test_rows_that_give_no_direction_are_refused(direction: Direction) -> None:
    rows, none = np.ones((3, 4)), np.ones((0, 4))
    for sides in ((none, rows), (rows, none)):
        with pytest.raises(ValueError, match="a direction needs both"):
            direction(*sides)
    for uneven in ((rows, np.ones((3, 5))), (rows, np.ones(4)), (np.ones(4), rows)):
        with pytest.raises(ValueError, match="not rows of one width"):
            direction(*uneven)
    for value in (np.nan, np.inf):
        broken = rows.copy()
        broken[1, 2] = value
        for sides in ((broken, rows), (rows, broken)):
            with pytest.raises(ValueError, match="not finite"):
                direction(*sides)


def test_the_module_is_light() -> None:
    code = "import sys, amygdala.methods; print([name for name in ('torch', 'sklearn', 'scipy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tiny.REPOSITORY / "scripts", check=True
    )
    assert done.stdout.strip() == "[]"


# each method


def test_mean_difference_by_hand() -> None:
    positive, negative = np.array([[1, 2], [3, 6]], dtype=np.float32), np.array([[0, 1], [0, 1], [3, 1]], dtype=np.float32)
    assert mean_difference(positive, negative).tolist() == [1.0, 3.0]


def test_mean_difference_sums_in_float64() -> None:
    # 2^24 + 1 is no float32: a sum in float32 stands still
    positive = np.array([[2.0**24], [1.0], [1.0], [1.0]], dtype=np.float32)
    assert mean_difference(positive, np.zeros((1, 1), np.float32)).tolist() == [(2.0**24 + 3) / 4]


def test_paired_by_hand() -> None:
    positive, negative = np.array([[10.0, 1.0], [3.0, 0.0]]), np.array([[9.0, 0.0], [0.0, 0.0]])
    assert paired(positive, negative).tolist() == [2.0, 0.5]


def test_paired_finds_what_scenarios_hide() -> None:
    rng = np.random.default_rng(0)
    emotion = rng.normal(size=40)
    offsets = 20 * rng.normal(size=(6, 40))
    sides: list[tuple[np.ndarray, list[list[str]]]] = []
    # the positives come from other scenarios than the negatives for the most part
    for counts, shift in (([30, 30, 2, 2, 2, 0], emotion), ([2, 2, 30, 30, 2, 9], 0 * emotion)):
        scenarios = np.repeat(np.arange(6), counts)
        rows = offsets[scenarios] + shift + 0.1 * rng.normal(size=(len(scenarios), 40))
        sides.append((rows, [[f"scene {number}"] for number in scenarios]))
    names = shared_scenarios(sides[0][1], sides[1][1])
    assert names == [f"scene {number}" for number in range(5)]
    means = [scenario_means(rows, scenarios, names) for rows, scenarios in sides]
    assert cosine(METHODS["paired"].direction(*means), emotion) > 0.99
    assert abs(cosine(mean_difference(sides[0][0], sides[1][0]), emotion)) < 0.5


def test_paired_takes_as_many_rows_of_each_side() -> None:
    with pytest.raises(ValueError, match="3 positive and 2 negative rows: each scenario has one of both"):
        paired(np.ones((3, 4)), np.ones((2, 4)))


@pytest.mark.parametrize(("count", "others", "hidden"), [(9, 14, 30), (40, 25, 12)])
def test_pca_is_the_first_direction_of_the_differences_of_all_pairs(count: int, others: int, hidden: int) -> None:
    positive, negative = planted(count, hidden)[0], planted(others, hidden, seed=1)[1]
    pairs = (positive[:, None] - negative[None]).reshape(-1, hidden)
    first = np.linalg.svd(pairs, full_matrices=False)[2][0]
    found = pca(positive, negative)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert abs(found @ first) == pytest.approx(1, abs=1e-10)
    assert (positive.mean(axis=0) - negative.mean(axis=0)) @ found > 0


def test_pca_finds_the_axis_that_dominates() -> None:
    rng = np.random.default_rng(0)
    axis = np.eye(20)[3]
    sides = [0.1 * rng.normal(size=(50, 20)) + sign * axis for sign in (1, -1)]
    assert cosine(pca(*sides), axis) > 0.999
    # an axis that both sides vary on by more than they differ is found instead: what pca is known to do
    noise = np.eye(20)[7]
    louder = [side + 5 * rng.normal(size=(50, 1)) * noise for side in sides]
    assert abs(cosine(pca(*louder), noise)) > 0.9
    assert cosine(mean_difference(*louder), axis) > abs(cosine(pca(*louder), axis))


def test_pca_has_no_sign_without_a_difference() -> None:
    rows = planted(6, 4)[0]
    assert not pca(rows, rows).any()
    assert not pca(rows * 1e-200, rows[:2] * 1e-200).any()  # its square is no number above 0


def standardised(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = np.concatenate([positive, negative])
    scale = rows.std(axis=0)
    return (positive - rows.mean(axis=0)) / scale, (negative - rows.mean(axis=0)) / scale, scale


def shrunk(sides: Sequence[np.ndarray], shrinkage: float) -> tuple[np.ndarray, float]:
    """Fisher's direction with the pooled covariance shrunk towards its mean variance, and the mean squared error on each row of
    a ridge regression on the labels that was fitted to the others, by refitting it.
    """
    within = np.concatenate([side - side.mean(axis=0) for side in sides])
    covariance = within.T @ within / len(within)
    mean = np.trace(covariance) / len(covariance)
    target = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance))
    direction = np.linalg.solve(target, sides[0].mean(axis=0) - sides[1].mean(axis=0))
    rows, labels = np.concatenate(sides), np.repeat([1, -1], [len(side) for side in sides])
    errors = []
    for row in range(len(rows)):
        left = np.arange(len(rows)) != row
        ridge = Ridge(alpha=shrinkage / (1 - shrinkage) * mean * len(rows)).fit(rows[left], labels[left])
        errors.append(labels[row] - ridge.predict(rows[row : row + 1])[0])
    return direction, float(np.mean(np.square(errors)))


@pytest.mark.parametrize("mixed", [0.1, 1.0, 3.0])
@both_shapes
def test_lda_is_the_shrunk_discriminant_that_predicts_left_out_rows_best(count: int, hidden: int, mixed: float) -> None:
    rng = np.random.default_rng(1)
    positive, negative = planted(count, hidden)[0], planted(count + 7, hidden, seed=1)[1]
    positive, negative = (side + mixed * rng.normal(size=side.shape) for side in (positive, negative))
    *sides, scale = standardised(positive, negative)
    tried = [shrunk(sides, shrinkage) for shrinkage in methods.SHRINKAGES]
    best = min(range(len(tried)), key=lambda number: tried[number][1])
    found = lda(positive, negative)
    assert cosine(found, tried[best][0] / scale) > 1 - 1e-9
    assert cosine(found, tried[best - 1][0] / scale) < 1 - 1e-7


def test_lda_with_plenty_of_rows_shrinks_as_little_as_ledoit_and_wolf() -> None:
    sides = gaussian()[2](4000, 1)
    *scaled, scale = standardised(*sides)
    covariance = ledoit_wolf(np.concatenate([side - side.mean(axis=0) for side in scaled]), assume_centered=True)[0]
    expected = np.linalg.solve(covariance, scaled[0].mean(axis=0) - scaled[1].mean(axis=0)) / scale
    assert cosine(lda(*sides), expected) > 0.999


def gaussian(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Callable[[int, int], tuple[np.ndarray, np.ndarray]]]:
    """(d, covariance, sampler) of two normal distributions with the same covariance, whose means are d apart along the axes
    that vary most and least alike.
    """
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    covariance = axes @ np.diag(np.geomspace(0.05, 20, 10)) @ axes.T
    towards = axes.sum(axis=1) / 2
    root = np.linalg.cholesky(covariance)

    def sample(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        noise = np.random.default_rng(seed).normal(size=(2, count, 10)) @ root.T
        return noise[0] + towards, noise[1]

    return towards, covariance, sample


def test_lda_finds_the_optimum_where_the_noise_is_not_round() -> None:
    towards, covariance, sample = gaussian()
    best = np.linalg.solve(covariance, towards)
    sides = sample(20_000, 1)
    assert cosine(lda(*sides), best) > 0.999
    assert cosine(mean_difference(*sides), towards) > 0.99
    assert cosine(mean_difference(*sides), best) < 0.6
    fresh = sample(3000, 2)
    for direction, ideal in ((lda, best), (mean_difference, towards)):
        found = direction(*sides)
        auc = (fresh[0] @ found > (fresh[1] @ found)[:, None]).mean()
        # two normal distributions: P(positive > negative) = Phi(w d / sqrt(2 w S w))
        assert auc == pytest.approx(norm.cdf(ideal @ towards / np.sqrt(2 * ideal @ covariance @ ideal)), abs=0.02)
    sklearns = LinearDiscriminantAnalysis(solver="lsqr").fit(np.concatenate(sides), np.repeat([1, 0], 20_000)).coef_[0]
    assert cosine(lda(*sides), sklearns) > 0.999


@pytest.mark.parametrize("direction", [lda, logistic])
@both_shapes
def test_lda_and_logistic_know_no_unit_of_a_column(direction: Direction, count: int, hidden: int) -> None:
    positive, negative = planted(count, hidden)
    units = np.geomspace(1e-3, 1e3, hidden)
    assert direction(positive * units, negative * units) * units == pytest.approx(direction(positive, negative), rel=1e-4)


@both_shapes
def test_lda_takes_a_column_that_parts_the_sides_without_noise(count: int, hidden: int) -> None:
    positive, negative = planted(count, hidden)
    positive[:, 0], negative[:, 0] = 1, -1
    assert cosine(lda(positive, negative), np.eye(hidden)[0]) > cosine(mean_difference(positive, negative), np.eye(hidden)[0])
    assert np.isfinite(lda(positive, negative)).all()


def test_lda_on_a_covariance_of_rank_1() -> None:
    along, centre = np.array([3.0, 1.0, 0.0]), np.array([1.0, -1.0, 4.0])
    found = lda(np.stack([centre + along, centre - along]), np.stack([along, -along]))
    assert np.isfinite(found).all()
    assert abs(cosine(found, along)) < abs(cosine(centre, along))


@pytest.mark.parametrize("counts", [(1, 9), (9, 1), (2, 1)])
def test_lda_takes_a_side_of_one_row(counts: tuple[int, int]) -> None:
    for noise in (1.0, 1e-9):
        rng = np.random.default_rng(0)
        positive, negative = (noise * rng.normal(size=(count, 6)) + shift for count, shift in zip(counts, (1, 0), strict=True))
        found = lda(positive, negative)
        assert np.isfinite(found).all() and found @ (positive.mean(axis=0) - negative.mean(axis=0)) > 0


def test_lda_without_noise_is_the_difference_of_means() -> None:
    positive, negative = np.tile([1.0, 2.0, 5.0], (4, 1)), np.tile([0.0, 4.0, 5.0], (3, 1))
    assert lda(positive, negative).tolist() == [1.0, -2.0, 0.0]


@both_shapes
def test_logistic_is_sklearn_s_optimum_on_scaled_rows(count: int, hidden: int) -> None:
    positive, negative = planted(count, hidden)[0], planted(3 * count, hidden, seed=1)[1]
    *sides, scale = standardised(positive, negative)
    model = LogisticRegression(C=methods.LOGISTIC_C, solver="newton-cholesky", tol=1e-12)
    model.fit(np.concatenate(sides), np.repeat([1, 0], [len(positive), len(negative)]))
    expected = model.coef_[0] / scale
    found = logistic(positive, negative)
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_logistic_s_penalty_is_strong_enough_for_few_rows_in_many_columns() -> None:
    """Fresh texts are told apart better than with the weak penalty that would fit plenty of rows."""

    def weak(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        *sides, scale = standardised(positive, negative)
        model = LogisticRegression(C=0.3, solver="newton-cholesky")
        return model.fit(np.concatenate(sides), np.repeat([1, 0], [len(positive), len(negative)])).coef_[0] / scale

    found: dict[str, list[float]] = {"own": [], "weak": []}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        towards = rng.normal(size=60)
        towards *= 1.5 / np.linalg.norm(towards)
        (*sides, fresh, others) = (rng.normal(size=(count, 60)) + shift for count in (60, 2000) for shift in (towards, 0))
        for name, method in (("own", logistic), ("weak", weak)):
            direction = method(*sides)
            found[name].append(float((fresh @ direction > (others @ direction)[:, None]).mean()))
    assert np.mean(found["own"]) > np.mean(found["weak"]) + 0.01


def test_logistic_says_so_where_it_does_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "LOGISTIC_ITERATIONS", 1)
    with pytest.raises(UserError, match="logistic did not converge in 1 iterations on 30 positives and 30 negatives"):
        logistic(*planted(30, 12))


# denoise


def axes_rows(variances: list[float], hidden: int) -> np.ndarray:
    """Rows [2 c, hidden] with exactly these shares of variance along the first c axes, about a mean far from 0."""
    rows = np.concatenate([sign * np.diag(np.sqrt(variances)) for sign in (1, -1)])
    return np.pad(rows, ((0, 0), (0, hidden - len(variances)))) + 100


@pytest.mark.parametrize("hidden", [5, 40])
@pytest.mark.parametrize(
    ("share", "count"), [(0.1, 1), (0.39, 1), (0.4, 1), (0.69, 1), (0.7, 2), (0.89, 2), (0.9, 3), (0.99, 3), (1.0, 4)]
)
def test_components_hold_up_to_the_share_of_variance(hidden: int, share: float, count: int) -> None:
    components = neutral_components(axes_rows([4, 3, 2, 1], hidden).astype(np.float32), share)
    assert components.dtype == np.float64
    assert np.abs(components) == pytest.approx(np.eye(hidden)[:count], abs=1e-5)


@both_shapes
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 1.0])
def test_components_are_those_of_an_svd(count: int, hidden: int, share: float) -> None:
    rows = planted(count, hidden)[0]
    _, values, vectors = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    rank = min(count - 1, hidden)
    held = (np.cumsum(values**2) / (values**2).sum())[:rank]
    kept = rank if share == 1 else max(1, int((held <= share).sum()))
    components = neutral_components(rows, share)
    assert components.shape == (kept, hidden)
    assert components @ components.T == pytest.approx(np.eye(kept), abs=1e-12)
    assert components.T @ components == pytest.approx(vectors[:kept].T @ vectors[:kept], abs=1e-8)


def test_components_of_small_variance_are_orthogonal_too() -> None:
    """Few rows, whose deviations fall to a millionth: their Gram matrix knows the last ones to few digits alone."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(60, 20)))[0]
    rows = np.linalg.qr(rng.normal(size=(20, 20)))[0] * np.geomspace(1, 1e-6, 20) @ axes.T
    components = neutral_components(rows, 1.0)
    assert len(components) > 15 and components @ components.T == pytest.approx(np.eye(len(components)), abs=1e-12)


def test_neutral_rows_that_do_not_vary_have_no_component() -> None:
    assert neutral_components(np.full((9, 4), 0.1), 0.5).shape == (0, 4)


def test_denoise_refuses_what_has_no_components() -> None:
    for count in (0, 1):
        with pytest.raises(UserError, match=f"two neutral texts at least, there are {count}"):
            neutral_components(np.ones((count, 3)), 0.5)
    for share in (0.0, -0.1, 1.01, np.nan):
        with pytest.raises(ValueError, match="share"):
            neutral_components(np.eye(3), share)


def test_without_by_hand() -> None:
    component = np.array([[0.6, 0.8, 0.0]])
    rows = np.array([[5.0, 0.0, 2.0], [-0.8, 0.6, 1.0]], dtype=np.float32)
    left = without(rows, component)
    assert left.dtype == np.float64
    assert left == pytest.approx(np.array([[3.2, -2.4, 2.0], [-0.8, 0.6, 1.0]]), abs=1e-6)
    assert np.array_equal(without(rows, np.empty((0, 3))), rows)


@both_shapes
def test_without_leaves_nothing_along_the_components_and_all_else(count: int, hidden: int) -> None:
    positive, neutral = planted(count, hidden)
    components = neutral_components(neutral, 0.5)
    left = without(positive, components)
    assert left @ components.T == pytest.approx(np.zeros((count, len(components))), abs=1e-10)
    assert without(left, components) == pytest.approx(left, abs=1e-10)
    assert np.square(positive - left).sum() == pytest.approx(np.square(positive @ components.T).sum())
    centred = neutral - neutral.mean(axis=0)
    assert np.square(without(centred, components)).sum() >= 0.5 * np.square(centred).sum() * (1 - 1e-9)


def test_denoise_shows_a_direction_under_neutral_noise() -> None:
    rng = np.random.default_rng(0)
    emotion, loud = np.eye(30)[:2]

    def rows(count: int) -> np.ndarray:
        return 0.3 * rng.normal(size=(count, 30)) + 20 * rng.normal(size=(count, 1)) * loud

    sides, neutral = (rows(40) + emotion, rows(40)), rows(200)
    components = neutral_components(neutral, 0.5)
    assert len(components) == 1
    assert cosine(mean_difference(*sides), emotion) < 0.5
    assert cosine(mean_difference(*(without(side, components) for side in sides)), emotion) > 0.9


@every_method
def test_methods_stay_off_components_that_were_taken_out(direction: Direction) -> None:
    # an axis that denoise took out holds rounding alone, which no scaling may blow up
    positive, negative = planted(20, 12)
    components = np.eye(12)[4:5]
    huge = [side + 1e4 * np.random.default_rng(3).normal(size=(20, 1)) * components for side in (positive, negative)]
    found = direction(*(without(side, components) for side in huge))
    assert abs(found[4]) < 1e-9 * np.linalg.norm(found)


# scenarios


def test_scenario_means_against_a_loop() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    scenarios = [["b"], ["a", "b"], ["a", "a"], [], ["c"], ["b"]]
    means = scenario_means(rows, scenarios, ["b", "a"])
    assert means.dtype == np.float64
    assert means == pytest.approx(np.stack([(rows[0] + rows[1] + rows[5]) / 3, (rows[1] + rows[2]) / 2]), rel=1e-6)
    assert scenario_means(rows, scenarios, []).shape == (0, 3)


def test_scenario_means_refuse_a_scenario_without_rows() -> None:
    with pytest.raises(ValueError, match="no row is of scenario 'z'"):
        scenario_means(np.ones((2, 3)), [["a"], ["b"]], ["a", "z"])
    with pytest.raises(ValueError, match="2 rows, scenarios of 1"):
        scenario_means(np.ones((2, 3)), [["a"]], ["a"])


def test_shared_scenarios_are_those_of_both_sides() -> None:
    assert shared_scenarios([["b", "x"], ["a"], []], [["a", "c"], ["b"], ["b"]]) == ["a", "b"]
    assert shared_scenarios([["a"]], [[]]) == []
