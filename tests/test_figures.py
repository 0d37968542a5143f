"""An emotion's own figures against brute force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import figures
from amygdala import methods
from amygdala.directions import Denoiser, Recipe, direction_of
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN, Example
from amygdala.measures import Bootstrap, auc, cosine, generator, halves, random_directions, shuffled
from amygdala.modelweights import read_weights
from amygdala.segments import RESIDUAL
from figures import Emotion, furthest, layer_figures, nulls_and_halves
from stubs import StubReader, digest_of, unit_file, weights_file

HIDDEN = 7


def examples_of(train: tuple[int, int], held_out: tuple[int, int], scenarios: int = 0) -> list[Example]:
    return [
        Example(
            digest_of(f"{split} {side} {at}"), side, split, f"the {side} text {at}", [f"s{at % scenarios}"] if scenarios else []
        )
        for split, counts in ((TRAIN, train), (HELD_OUT, held_out))
        for side, count in zip((POSITIVE, NEGATIVE), counts, strict=True)
        for at in range(count)
    ]


class Case:
    """joy at layer 3: rows of all its texts, its vector, and what layer_figures makes of them."""

    def __init__(
        self,
        train: tuple[int, int] = (9, 12),
        held_out: tuple[int, int] = (6, 8),
        recipe: Recipe = Recipe("mean_difference"),  # noqa: B008
        short: tuple[str, ...] = (),
        scenarios: int = 0,
        distance: float = 1.5,
    ) -> None:
        examples = examples_of(train, held_out, scenarios)
        self.reader, random = StubReader(), np.random.default_rng(4)
        for text in examples:
            shift = distance * (text.polarity == POSITIVE) * np.eye(HIDDEN)[1]
            self.reader.put(3, RESIDUAL, [text.digest], (random.standard_normal(HIDDEN) + shift + 5)[None])
        self.reader.short = {digest_of(name) for name in short}
        self.emotion = Emotion.of("joy", examples, ["joy"], self.reader)
        self.rows = self.reader.rows(3, RESIDUAL, self.emotion.digests)
        self.random = random_directions(HIDDEN, 20, generator("random", 3))
        self.recipe = recipe
        positive, negative = self.side(TRAIN, POSITIVE), self.side(TRAIN, NEGATIVE)
        direction = methods.mean_difference(positive, negative)
        self.vector = (direction / np.linalg.norm(direction)).astype(np.float32)
        bootstrap = Bootstrap(
            len(self.emotion.held_out.positive), len(self.emotion.held_out.negative), generator("bootstrap", "joy")
        )
        self.bootstrap = bootstrap
        self.made = layer_figures(self.emotion, 3, self.rows, self.vector, recipe, None, self.random, bootstrap)

    def side(self, split: str, polarity: str) -> np.ndarray:
        """float64 rows of one side, in order of digest, from the examples themselves."""
        own = sorted(text.digest for text in self.emotion.texts if (text.split, text.polarity) == (split, polarity))
        return np.array([self.reader.values[3, RESIDUAL, digest] for digest in own], dtype=np.float64).reshape(-1, HIDDEN)

    def auc(self, direction: np.ndarray, split: str = HELD_OUT) -> float:
        scores = [self.side(split, polarity) @ direction.astype(np.float64) for polarity in (POSITIVE, NEGATIVE)]
        return float(roc_auc_score(np.repeat([1, 0], [len(side) for side in scores]), np.concatenate(scores)))


def test_held_out_figures_against_brute_force() -> None:
    case = Case()
    held_out = case.made["held_out"]
    assert held_out["auc"] == pytest.approx(case.auc(case.vector))
    positive, negative = (case.side(HELD_OUT, side) @ case.vector for side in (POSITIVE, NEGATIVE))
    pooled = np.sqrt(((len(positive) - 1) * positive.var(ddof=1) + (len(negative) - 1) * negative.var(ddof=1)) / 12)
    assert held_out["cohens_d"] == pytest.approx((positive.mean() - negative.mean()) / pooled)
    assert held_out["interval"] == case.bootstrap.interval(positive, negative)
    assert held_out["interval"][0] < held_out["auc"] <= held_out["interval"][1]
    assert case.made["train_auc"] == pytest.approx(case.auc(case.vector, TRAIN))


def test_random_directions_against_brute_force() -> None:
    case = Case()
    expected = [case.auc(direction) for direction in case.random.T]
    null = case.made["random"]
    assert null["mean"] == pytest.approx(np.mean(expected)) and null["sd"] == pytest.approx(np.std(expected, ddof=1))
    assert null["reached"] == np.mean([value >= case.made["held_out"]["auc"] for value in expected])
    assert null["draws"] == 20


@pytest.mark.parametrize("method", ["mean_difference", "paired", "pca", "lda"])
def test_shuffled_labels_and_halves_against_brute_force(method: str) -> None:
    """Vectors trained anew by the method itself on each shuffle's and half's rows."""
    case = Case((9, 9) if method == "paired" else (9, 12), recipe=Recipe(method), scenarios=9 if method == "paired" else 0)
    positive, negative = case.side(TRAIN, POSITIVE), case.side(TRAIN, NEGATIVE)
    if method == "paired":  # a text a scenario: rows in the order of the scenarios
        for side, rows in ((POSITIVE, positive), (NEGATIVE, negative)):
            rows[:] = [case.reader.values[3, RESIDUAL, digest_of(f"train {side} {at}")] for at in range(9)]
    rows, n, m = np.concatenate([positive, negative]), len(positive), len(negative)
    linear = method in figures.LINEAR
    random, train = generator("nulls", "joy", 3), methods.METHODS[method].direction
    aucs = []
    for _ in range(figures.SHUFFLES if linear else figures.SHUFFLES_FITTED):
        of_positive, of_negative = shuffled(n, m, random, method == "paired")
        aucs.append(case.auc(train(rows[of_positive], rows[of_negative])))
    null = case.made["shuffled"]
    assert null["draws"] == len(aucs) and null["mean"] == pytest.approx(np.mean(aucs), abs=1e-6)
    assert null["reached"] == np.mean([value >= case.made["held_out"]["auc"] for value in aucs])
    cosines = []
    for _ in range(figures.SPLITS if linear else figures.SPLITS_FITTED):
        first, second = (train(rows[p], rows[q]) for p, q in halves(n, m, random, method == "paired"))
        cosines.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert case.made["split_half_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_a_planted_separation_lies_beyond_its_nulls() -> None:
    near, far = Case((40, 40), (30, 30), distance=0.0).made, Case((40, 40), (30, 30), distance=4.0).made
    assert far["held_out"]["auc"] > 0.97 and far["shuffled"]["reached"] < 0.05 and far["split_half_cosine"] > 0.8
    assert far["random"]["reached"] < 0.2
    assert abs(near["held_out"]["auc"] - 0.5) < 0.2 and near["shuffled"]["reached"] > 0.05
    assert abs(near["split_half_cosine"]) < 0.4


def test_nulls_depend_on_emotion_and_layer() -> None:
    case = Case()
    positive, negative = case.side(TRAIN, POSITIVE), case.side(TRAIN, NEGATIVE)
    unseen = case.side(HELD_OUT, POSITIVE), case.side(HELD_OUT, NEGATIVE)
    made = [
        nulls_and_halves(case.recipe, positive, negative, None, unseen, 0.7, salt)
        for salt in (("joy", 3), ("joy", 3), ("joy", 4))
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("held_out", [(0, 8), (6, 0), (0, 0)])
def test_nothing_is_measured_without_a_held_out_side(held_out: tuple[int, int]) -> None:
    made = Case(held_out=held_out).made
    assert made["held_out"] == {"auc": None, "interval": None, "cohens_d": None}
    assert made["random"] is None and made["shuffled"] is None
    assert made["train_auc"] > 0.5 and made["split_half_cosine"] is not None


def test_one_text_a_side() -> None:
    made = Case((1, 1), (1, 1)).made
    assert made["held_out"]["auc"] in (0.0, 1.0) and made["held_out"]["cohens_d"] is None
    assert made["split_half_cosine"] is None and set(made["furthest"].values()) == {None}
    assert made["spectrum"]["first_component"] is None and made["spectrum"]["first_component_of_negatives"] is None
    json.dumps(made, allow_nan=False)


def test_paired_without_a_shared_scenario_has_no_nulls() -> None:
    made = Case(recipe=Recipe("paired")).made
    assert made["shuffled"] is None and made["split_half_cosine"] is None and made["held_out"]["auc"] is not None


def test_a_text_without_a_row_counts_nowhere() -> None:
    """As if it were not among the examples; its row is never asked for."""
    short = ("train positive 2", "held_out negative 5")
    case = Case(short=short)
    for name in short:
        assert digest_of(name) not in case.emotion.digests
    assert len(case.rows) == 9 + 12 + 6 + 8 - 2
    assert case.made["held_out"]["auc"] == pytest.approx(case.auc(case.vector))
    assert case.made["train_auc"] == pytest.approx(case.auc(case.vector, TRAIN))


def test_spectrum_of_both_sides_is_of_as_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((5, 12))
    positive, negative = case.side(TRAIN, POSITIVE), case.side(TRAIN, NEGATIVE)[:5]

    def share(rows: np.ndarray) -> float:
        variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
        return float(variances[0] / variances.sum())

    assert case.made["spectrum"]["first_component"] == pytest.approx(share(positive))
    assert case.made["spectrum"]["first_component_of_negatives"] == pytest.approx(share(negative))
    monkeypatch.setattr(figures, "SPECTRUM", 4)
    made = Case((5, 12)).made["spectrum"]
    assert made["texts"] == 4 and made["first_component"] == pytest.approx(share(positive[:4]))
    assert made["first_component_of_negatives"] == pytest.approx(share(negative[:4]))


def test_outliers_against_loops() -> None:
    case = Case()
    positive, centre = case.side(TRAIN, POSITIVE), case.side(TRAIN, NEGATIVE).mean(axis=0)
    cosines = [float((row - centre) @ case.vector / np.linalg.norm(row - centre)) for row in positive]
    assert case.made["mean_cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert case.made["against"] == np.mean([value < 0 for value in cosines])
    lowest = sorted(zip(cosines, case.emotion.train.positive, strict=True))[:2]
    texts = {text.digest: text.text for text in case.emotion.texts}
    assert [(entry["digest"], entry["text"]) for entry in case.made["outliers"]] == [(d, texts[d]) for _, d in lowest]
    assert [entry["cosine"] for entry in case.made["outliers"]] == pytest.approx([value for value, _ in lowest], abs=1e-6)


@pytest.mark.parametrize("side", [POSITIVE, NEGATIVE])
def test_cosine_without_the_furthest_text_is_that_of_really_removing_it(side: str) -> None:
    case = Case()
    rows = {polarity: case.side(TRAIN, polarity) for polarity in (POSITIVE, NEGATIVE)}
    squares = ((rows[side] - rows[side].mean(axis=0)) ** 2).sum(axis=1)
    at = int(squares.argmax())
    whole = rows[POSITIVE].mean(axis=0) - rows[NEGATIVE].mean(axis=0)
    rows[side] = np.delete(rows[side], at, axis=0)
    without = rows[POSITIVE].mean(axis=0) - rows[NEGATIVE].mean(axis=0)
    found = case.made["furthest"][side]
    assert (
        found["digest"]
        == sorted(text.digest for text in case.emotion.texts if (text.split, text.polarity) == (TRAIN, side))[at]
    )
    assert found["cosine_without"] == pytest.approx(whole @ without / np.linalg.norm(whole) / np.linalg.norm(without))
    assert found["share"] == pytest.approx(squares[at] / squares.sum()) and found["texts"] == len(squares)


def test_rows_that_do_not_vary_have_no_furthest_text() -> None:
    assert furthest(examples_of((3, 0), (0, 0)), np.ones((3, 2), np.float32), np.ones(2)) is None


def test_projections_are_of_all_texts() -> None:
    case = Case()
    scores = case.rows.astype(np.float64) @ case.vector
    assert case.made["projection"] == figures.projection_figures(case.emotion.features, scores)
    assert case.made["relative_spread"] == pytest.approx(
        np.median(np.linalg.norm(case.rows - case.rows.mean(axis=0), axis=1)) / np.linalg.norm(case.rows.mean(axis=0)), rel=1e-6
    )


@pytest.mark.parametrize("method", ["mean_difference", "lda"])
def test_denoised_rows_make_the_nulls(method: str) -> None:
    """What neutral texts vary by is out of every vector trained anew: its AUC cannot come from there. lda scales columns, and
    leans on an axis across all of them even where the rows have nothing of it.
    """
    case = Case((30, 30), (20, 20), distance=0.0)
    rows = case.rows.copy()
    label = np.array([text.polarity == POSITIVE for text in case.emotion.texts])
    rows = (rows - 5) * np.linspace(0.2, 3, HIDDEN).astype(np.float32)
    axis = np.ones(HIDDEN) / np.sqrt(HIDDEN)
    rows += np.outer(50 * label, axis).astype(np.float32)  # all signal lies along one axis
    neutral = [digest_of(f"neutral {at}") for at in range(20)]
    case.reader.put(3, RESIDUAL, neutral, np.outer(np.arange(20.0), axis))
    denoiser = Denoiser(case.reader, neutral, 0.5)
    random = np.random.default_rng(0).standard_normal((HIDDEN, 5))
    args = (case.emotion, 3, rows, case.vector, Recipe(method, 0.5))
    plain = layer_figures(*args, None, random, case.bootstrap)
    clean = layer_figures(*args, denoiser, random, case.bootstrap)
    assert plain["split_half_cosine"] > 0.99 and abs(clean["shuffled"]["mean"] - 0.5) < 0.15
    components, draws = axis[None], generator("nulls", "joy", 3)
    train, unseen, unseen_negative = np.split(rows.astype(np.float64), [60, 80])
    cleaned, linear = methods.without(train, components), method in figures.LINEAR

    def trained(ours: np.ndarray, others: np.ndarray) -> np.ndarray:
        return direction_of(Recipe(method, 0.5), cleaned[ours], cleaned[others], components)

    count = figures.SHUFFLES if linear else figures.SHUFFLES_FITTED
    directions = [trained(*shuffled(30, 30, draws, False)) for _ in range(count)]
    aucs = np.array([auc(unseen @ direction, unseen_negative @ direction) for direction in directions], float)
    assert clean["shuffled"]["draws"] == count and clean["shuffled"]["mean"] == pytest.approx(aucs.mean(), abs=0.003)
    pairs = [halves(30, 30, draws, False) for _ in range(figures.SPLITS if linear else figures.SPLITS_FITTED)]
    cosines = np.array([cosine(trained(*first), trained(*second)) for first, second in pairs], float)
    assert clean["split_half_cosine"] == pytest.approx(cosines.mean(), abs=1e-4)


# files


def batch_of(folder: Path, weights: dict[int, Path], short: tuple[str, ...] = ()) -> tuple[dict[str, Any], StubReader]:
    examples = examples_of((9, 12), (6, 8))
    reader, random = StubReader(), np.random.default_rng(4)
    for layer in weights:
        reader.put(layer, RESIDUAL, [text.digest for text in examples], random.standard_normal((len(examples), HIDDEN)))
    reader.short = {digest_of(name) for name in short}
    path = folder / "joy.json"
    path.write_text(json.dumps({"emotion": "joy", "examples": [vars(text) for text in examples]}))
    vectors = {layer: unit_file(folder / f"v{layer}", random.standard_normal(HIDDEN)) for layer in weights}
    outputs = [folder / "texts.json", *(folder / f"layer_{layer}.json" for layer in weights)]
    return {"joy": {"examples": path, "names": ["joy"], "vectors": vectors, "outputs": outputs}}, reader


def test_figure_files(tmp_path: Path) -> None:
    """Only what is missing is made; the neuron is the one that writes most nearly along the vector, of either sign."""
    vector = np.random.default_rng(1).standard_normal(HIDDEN)
    neurons = np.stack([np.eye(HIDDEN)[0], -vector / np.linalg.norm(vector), np.eye(HIDDEN)[1]]).astype(np.float16)
    weights = {3: weights_file(tmp_path / "w3", None, neurons=neurons), 5: weights_file(tmp_path / "w5", None)}
    batch, reader = batch_of(tmp_path, weights, ("train positive 2", "held_out negative 5"))
    unit_file(batch["joy"]["vectors"][3], vector)
    assert figures.make_figures(batch, reader, weights, Recipe("mean_difference"), None) == {"joy": 3}
    texts, of_3, of_5 = (json.loads(path.read_text()) for path in batch["joy"]["outputs"])
    assert texts["without_row"] == 2
    assert texts["counts"] == {"train": {"positive": 9, "negative": 12}, "held_out": {"positive": 6, "negative": 8}}
    assert texts["used"] == {"train": {"positive": 8, "negative": 12}, "held_out": {"positive": 6, "negative": 7}}
    assert of_3["neuron"] == {"index": 1, "cosine": pytest.approx(-1, abs=1e-3), "neurons": 3}
    assert of_5["neuron"] == {"reason": "experts"}
    emotion = Emotion.of("joy", figures.read_examples(batch["joy"]["examples"]), ["joy"], reader)
    rows = reader.rows(5, RESIDUAL, emotion.digests)
    again = layer_figures(
        emotion,
        5,
        rows,
        figures.read_vector(batch["joy"]["vectors"][5]),
        Recipe("mean_difference"),
        None,
        random_directions(HIDDEN, figures.RANDOM, generator("random", 5)),
        Bootstrap(6, 7, generator("bootstrap", "joy")),
    )
    assert of_5 == json.loads(json.dumps({**again, "neuron": {"reason": "experts"}}))
    before = {path: path.read_bytes() for path in batch["joy"]["outputs"]}
    batch["joy"]["outputs"][1].unlink()
    reader.read.clear()
    assert figures.make_figures(batch, reader, weights, Recipe("mean_difference"), None) == {"joy": 1}
    assert {path: path.read_bytes() for path in before} == before and set(reader.read) == {(3, RESIDUAL)}
    assert figures.make_figures(batch, StubReader(), {3: tmp_path / "none", 5: tmp_path / "none"}, Recipe("pca"), None) == {
        "joy": 0
    }


def test_several_vectors_find_their_neurons_together(tmp_path: Path) -> None:
    weights = read_weights(weights_file(tmp_path / "w", None, neurons=np.eye(4, dtype=np.float16)))
    found = figures.neuron_figures(np.array([[0, 0, 3, 4], [0, -2, 1, 0]], dtype=np.float32), weights)
    assert found == [
        {"index": 3, "cosine": pytest.approx(0.8), "neurons": 4},
        {"index": 1, "cosine": pytest.approx(-2 / 5**0.5), "neurons": 4},
    ]
