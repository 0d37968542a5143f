"""Comparing methods, and choosing layers: against loops, planted winners and noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import compare
import comparison
from amygdala.directions import Denoiser, Recipe, direction_of
from amygdala.errors import UserError
from amygdala.exampleset import Example
from amygdala.measures import Bootstrap, generator
from amygdala.methods import METHODS, neutral_components, without
from amygdala.sweeping import NotSweptError, choose_layers, swept_layers

HIDDEN = 12
PLAIN = [Recipe(name) for name in METHODS if name != "paired"]


class Store:
    """Rows by layer and text, made up as they are asked for; a text's side shifts its row along a direction of the layer.

    Held-out texts, where `lying`, are shifted the other way: a vector that had seen them would show it.
    """

    def __init__(self, shift: dict[int, float], lying: bool = False, short: Sequence[str] = ()) -> None:
        self.shift, self.lying, self.short = shift, lying, set(short)
        self.asked: list[tuple[int, str]] = []

    def pooled(self, digest: str) -> int:
        return 0 if digest in self.short else 5

    def rows(self, layer: int, kind: str, digests: Sequence[str]) -> np.ndarray:
        self.asked += [(layer, digest) for digest in digests]
        return np.stack([self.row(layer, digest) for digest in digests])

    def row(self, layer: int, digest: str) -> np.ndarray:
        row = np.random.default_rng([int(digest[:8], 16), layer]).standard_normal(HIDDEN)
        side = {"a": 1.0, "b": -1.0, "c": 1.0, "d": -1.0}.get(digest[-1], 0.0)
        if self.lying and digest[-1] in "cd":
            side = -side
        row[layer % HIDDEN] += side * self.shift.get(layer, 0.0)
        return row.astype(np.float32)


def examples(train: int = 30, held_out: int = 20) -> list[Example]:
    """Digests end in a and b (training positives and negatives), c and d (held-out ones)."""
    found = []
    for end, polarity, split, count in (
        *(("a", "positive", "train", train), ("b", "negative", "train", train)),
        *(("c", "positive", "held_out", held_out), ("d", "negative", "held_out", held_out)),
    ):
        for number in range(count):
            digest = f"{number * 4 + 'abcd'.index(end):08x}".ljust(31, "0") + end
            found.append(Example(digest, polarity, split, f"text {digest}"))
    return found


def compared(store: Any, layers: Sequence[int], recipes: Sequence[Recipe], **more: Any) -> list[dict[str, Any]]:
    given = {"denoisers": {}, "min_examples": 2, "texts": examples(), **more}
    return compare.compare_emotion(
        "joy", given["texts"], {"mean": store}, layers, recipes, given["denoisers"], given["min_examples"]
    )


def test_each_method_at_each_layer_is_measured_on_the_held_out_texts() -> None:
    store = Store({2: 1.5, 5: 0.0})
    lines = compared(store, [2, 5], PLAIN)
    assert [(line["layer"], line["method"]) for line in lines] == [(at, r.method) for at in (2, 5) for r in PLAIN]
    texts = examples()
    for line in lines:
        rows = {e: np.stack([store.row(line["layer"], t.digest) for t in texts if t.digest[-1] == e]) for e in "abcd"}
        direction = METHODS[line["method"]].direction(rows["a"], rows["b"])
        scores = np.concatenate([rows["c"] @ direction, rows["d"] @ direction])
        assert line["auc"] == pytest.approx(roc_auc_score([1] * 20 + [0] * 20, scores), abs=1e-3)
        unit = (direction / np.linalg.norm(direction)).astype(np.float32)
        unseen = [rows[end].astype(np.float64) @ unit for end in "cd"]
        assert line["interval"] == Bootstrap(20, 20, generator("bootstrap", "joy")).interval(*unseen)
        assert (line["auc"] > 0.85) == (line["layer"] == 2) or line["method"] == "pca"


def test_no_method_sees_a_held_out_text() -> None:
    """Held-out texts lie the other way round: every method points against them, as far as it reads the training texts alone."""
    honest, lying = (compared(Store({2: 2.0}, lying=lie), [2], PLAIN) for lie in (False, True))
    for straight, turned in zip(honest, lying, strict=True):
        assert straight["auc"] > 0.9 and turned["auc"] < 0.1


def test_what_cannot_be_measured_says_why() -> None:
    lines = compared(Store({2: 1.0}), [2], [Recipe("paired"), Recipe("lda")])
    assert "auc" in lines[1] and lines[0]["reason"] == "no scenario has texts of both sides"
    unmeasured = compared(Store({2: 1.0}), [2], [Recipe("lda")], texts=examples(held_out=0))
    assert [line["reason"] for line in unmeasured] == ["no held-out texts on both sides"]
    short = [text.digest for text in examples() if text.digest[-1] == "a"]
    (gone,) = compared(Store({2: 1.0}, short=short), [2], PLAIN)
    assert gone["pooling"] == "mean" and "long enough for the pooling" in gone["reason"] and "layer" not in gone
    same = [Example(f"{n:031x}e", p, s, "") for p in ("positive", "negative") for s in ("train", "held_out") for n in range(3)]
    flat = Store({})
    flat.row = lambda layer, digest: np.ones(HIDDEN, np.float32)  # type: ignore[method-assign]
    (line,) = compared(flat, [2], [Recipe("mean_difference")], texts=same)
    assert "the positives and negatives do not differ" in line["reason"]


def test_denoise_takes_out_what_neutral_texts_vary_by() -> None:
    """Neutral texts vary along the very axis that tells the sides apart: without it nothing is left to tell."""

    class Planted(Store):
        def row(self, layer: int, digest: str) -> np.ndarray:
            if digest[-1] != "f":
                return super().row(layer, digest)
            row = np.zeros(HIDDEN, np.float32)
            row[layer] = int(digest[:8], 16) - 5
            return row

    store = Planted({2: 2.0})
    neutral = Denoiser(store, [f"{n:08x}".ljust(31, "0") + "f" for n in range(10)], 0.999)
    plain, cleaned = compared(store, [2], [Recipe("lda"), Recipe("lda", 0.999)], denoisers={("mean", 0.999): neutral})
    assert plain["auc"] > 0.9 and abs(cleaned["auc"] - 0.5) < 0.25
    assert (plain["denoise"], cleaned["denoise"]) == (None, 0.999)


# The ranking


def of_emotions(table: dict[str, dict[str, float | None]]) -> dict[str, list[dict[str, Any]]]:
    """{emotion: {method: AUC}} as compare.py's lines."""
    basis = {"pooling": "mean", "layer": 3, "denoise": None}
    return {
        emotion: [
            {**basis, "method": name, **({"reason": "no scenes"} if value is None else {"auc": value, "interval": [0, 1]})}
            for name, value in methods.items()
        ]
        for emotion, methods in table.items()
    }


def test_the_ranking_is_by_mean_and_says_what_cannot_be_told_from_the_best() -> None:
    names = [f"e{n}" for n in range(12)]
    rng = np.random.default_rng(0)
    base = rng.uniform(0.6, 0.9, 12)
    table = {
        name: {"lda": b + 0.05, "logistic": b + 0.05 + d, "pca": b - 0.2, "paired": None}
        for name, b, d in zip(names, base, rng.normal(0, 0.02, 12), strict=True)
    }
    report = comparison.compared(of_emotions(table))
    ranking = report["ranking"]
    means = {method: float(np.mean([table[n][method] for n in names])) for method in ("lda", "logistic", "pca")}
    assert [line["method"] for line in ranking] == sorted(means, key=lambda m: -means[m])
    for line in ranking:
        assert line["mean_auc"] == pytest.approx(means[line["method"]]) and line["emotions"] == 12
    worst = ranking[-1]
    assert worst["method"] == "pca" and worst["behind_interval"][0] > 0.1
    assert worst["behind"] == pytest.approx(ranking[0]["mean_auc"] - worst["mean_auc"])
    assert "1 others cannot be told from it" in report["in_words"] and "pca" not in report["in_words"]
    assert report["not_measured"] == {"no scenes": names}
    for name in names:
        best = max(v for v in table[name].values() if v is not None)
        assert report["best_of_emotion"][name]["auc"] == best == table[name][report["best_of_emotion"][name]["method"]]
    assert len({report["best_of_emotion"][name]["method"] for name in names}) == 2


def test_intervals_are_of_means_over_emotions() -> None:
    """A mean of n emotions, and of n differences, lies within 1.96 standard errors of what is found."""
    rng = np.random.default_rng(2)
    first = rng.normal(0.8, 0.05, 150)
    behind = rng.normal(0.04, 0.03, 150)
    choices: list[comparison.Choice] = [("mean", 1, "lda", None), ("mean", 2, "lda", None)]
    lines = comparison.ranked(choices, np.stack([first, first - behind]))
    assert [line["layer"] for line in lines] == [1, 2]
    found = [(first, lines[0]["interval"]), (first - behind, lines[1]["interval"]), (behind, lines[1]["behind_interval"])]
    for values, (low, high) in found:
        error = values.std() / np.sqrt(150)
        assert [low, high] == pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.3 * error)


@pytest.mark.parametrize(("looks", "quantile"), [(0, 1.95996), (1, 1.95996), (30, 3.1439)])
def test_a_difference_of_two_aucs_has_twice_the_variance_of_one(looks: int, quantile: float) -> None:
    """quantile: of 1 - 0.05 / 2 / looks, from a table of the normal distribution."""
    assert comparison.beyond(looks) == pytest.approx(2**0.5 * quantile, abs=2e-4)


def test_a_choice_with_fewer_emotions_comes_after_those_that_measure_all() -> None:
    """Its mean is over easier emotions, say: it is no better for that."""
    report = comparison.compared(of_emotions({"a": {"lda": 0.6, "paired": None}, "b": {"lda": 0.9, "paired": 0.95}}))
    assert [(line["method"], line["emotions"]) for line in report["ranking"]] == [("lda", 2), ("paired", 1)]
    assert report["ranking"][1]["behind"] == pytest.approx(-0.05)


def test_nothing_measured_is_said() -> None:
    results: dict[str, Any]
    for results in ({}, {"joy": []}, of_emotions({"joy": {"lda": None}})):
        report = comparison.compared(results)
        assert report["ranking"] == [] and report["in_words"] == "nothing is held out: no choice can be measured"
        assert report["best_of_emotion"] == {}


# Layers


def test_the_first_layer_has_the_highest_mean_and_noise_adds_none() -> None:
    rng = np.random.default_rng(1)
    true = np.array([0.6, 0.7, 0.8, 0.75])
    table = true + rng.normal(0, 0.05, (20, 4))
    names = [f"e{n}" for n in range(20)]
    choice = choose_layers(table, table - 0.1, [0, 4, 8, 12], names, 4)
    assert [entry["layer"] for entry in choice] == [8]
    assert "highest mean AUC" in choice[0]["why"] and "over 20 emotions" in choice[0]["why"]


def test_a_layer_that_reads_some_emotions_better_beyond_doubt_is_added_and_names_them() -> None:
    table = np.full((10, 3), 0.6)
    table[:, 1] = 0.8
    table[2:5, 2] = 0.99
    low = table - 0.05
    choice = choose_layers(table, low, [5, 6, 7], [f"e{n}" for n in range(10)], 3)
    assert [(entry["layer"], entry["emotions"]) for entry in choice] == [(6, []), (7, ["e2", "e3", "e4"])]
    assert [entry["layer"] for entry in choose_layers(table, low, [5, 6, 7], [f"e{n}" for n in range(10)], 1)] == [6]
    assert len(choose_layers(table, table - 0.3, [5, 6, 7], [f"e{n}" for n in range(10)], 3)) == 1


def test_emotions_that_were_not_measured_choose_nothing() -> None:
    table = np.array([[np.nan, np.nan], [0.7, 0.9]])
    assert [e["layer"] for e in choose_layers(table, table - 0.01, [3, 9], ["a", "b"], 2)] == [9]
    nothing = choose_layers(np.full((2, 6), np.nan), np.full((2, 6), np.nan), [0, 1, 2, 3, 4, 5], ["a", "b"], 3)
    assert [e["layer"] for e in nothing] == [4] and "nothing is held out" in nothing[0]["why"]


def test_a_choice_holds_for_what_it_was_made_for(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    facts = {"model": "sha256:1", "pooling": "mean", "template": None}
    with pytest.raises(NotSweptError, match=r"sweep\.json is missing\). Measure all layers with: snakemake --cores all sweep"):
        swept_layers(path, facts)
    path.write_text(json.dumps({"for": facts, "layers": [9, 3]}))
    assert swept_layers(path, facts) == [3, 9]
    for name in facts:
        with pytest.raises(NotSweptError, match=f"was made for {name} "):
            swept_layers(path, {**facts, name: "other"})
    wrong = ["[]", "{}", '{"for": {}, "layers": []}', '{"layers": [1]}']
    for content in (*wrong, *(f'{{"for": {{}}, "layers": [{layer}]}}' for layer in ('"3"', "null", "[1]", "1.7", "true"))):
        path.write_text(content)
        with pytest.raises(NotSweptError, match="holds no choice of layers"):
            swept_layers(path, facts)
    path.write_text("{")
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        swept_layers(path, facts)


def test_sweep_tells_the_auc_of_each_emotion_and_layer() -> None:
    lines = {
        emotion: [
            {
                "pooling": "mean",
                "layer": layer,
                "method": "lda",
                "denoise": None,
                "auc": value,
                "interval": [value - 0.01, value + 0.01],
            }
            for layer, value in ((0, 0.5), (1, first), (2, second))
        ]
        for emotion, first, second in (("joy", 0.9, 0.6), ("awe", 0.8, 0.95))
    }
    lines["calm"] = [{"pooling": "mean", "layer": n, "method": "lda", "denoise": None, "reason": "none"} for n in range(3)]
    report = comparison.swept(lines, {"model": "m"}, 4)
    assert report["for"] == {"model": "m"} and report["layers"] == [1, 2]
    assert report["choice"][1]["emotions"] == ["awe"]
    assert report["emotions"]["awe"] == {"0": 0.5, "1": 0.8, "2": 0.95} and set(report["emotions"]["calm"].values()) == {None}
    assert report["macro_auc"]["1"]["mean_auc"] == pytest.approx(0.85) and report["macro_auc"]["1"]["emotions"] == 2


def test_an_auc_of_one_of_few_texts_chooses_no_layer() -> None:
    """A bootstrap of texts told apart without a fault has no width; the emotion's other layers say how much to trust it."""
    aucs = {"joy": (0.875, 1.0, 0.75), "awe": (0.9, 0.75, 1.0), "calm": (1.0, 0.9, 0.875)}
    lines = {
        emotion: [
            {"pooling": "mean", "layer": n, "method": "lda", "denoise": None, "auc": auc}
            | {"interval": [1.0, 1.0] if auc == 1 else [auc - 0.3, 1.0]}
            for n, auc in enumerate(values)
        ]
        for emotion, values in aucs.items()
    }
    assert len(comparison.swept(lines, {}, 4)["layers"]) == 1


def test_a_sweep_of_texts_too_short_says_so() -> None:
    lines = {"joy": [{"pooling": "from_token:50", "reason": "only 2 of 9 positive training texts are long enough"}]}
    with pytest.raises(UserError, match=r"^sweep: no layer of any emotion could be measured: only 2 of 9 positive"):
        comparison.swept(lines, {}, 4)


def test_one_emotion_gives_no_interval_and_no_certainty() -> None:
    choices: list[comparison.Choice] = [("mean", 1, "lda", None), ("mean", 1, "pca", None)]
    lines = comparison.ranked(choices, np.array([[0.8], [0.799]]))
    assert [line["interval"] for line in lines] == [None, None] and lines[1]["behind_interval"] is None
    told = comparison.in_words(lines)
    assert "0.800 over 1 emotion; 1 others cannot be told from it" in told
    assert comparison.text_table(lines)[0] == "0.800 over 1 emotion: lda, pooling mean, layer 1"


def test_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    lines = {
        "joy": [
            {"pooling": "mean", "layer": n, "method": "lda", "denoise": None, "auc": 0.5 + n / 10, "interval": [0.4, 1]}
            for n in range(4)
        ]
    }
    report = comparison.swept(lines, {}, 2)
    for name in ("a.svg", "b.svg"):
        comparison.draw(report, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<!-- layer (dotted: chosen) -->" in (tmp_path / "a.svg").read_text()
    unmeasured = {"joy": [{"pooling": "mean", "layer": 1, "method": "lda", "denoise": None, "reason": "nothing held out"}]}
    comparison.draw(comparison.swept(unmeasured, {}, 2), tmp_path / "none.svg")


@pytest.mark.parametrize("name", ["lda", "logistic", "mean_difference", "pca"])
def test_a_denoised_vector_has_nothing_of_what_was_taken_out(name: str) -> None:
    """Neutral texts vary along a direction across all columns, very widely: a normal on scaled columns leans on it."""
    loud = np.ones(HIDDEN) / np.sqrt(HIDDEN)

    class Loud(Store):
        def row(self, layer: int, digest: str) -> np.ndarray:
            own = np.random.default_rng([int(digest[:8], 16), 7])
            scale = np.linspace(0.2, 3, HIDDEN)
            row = super().row(layer, digest) * scale if digest[-1] != "f" else np.zeros(HIDDEN)
            return (row + own.normal(0, 60) * loud).astype(np.float32)

    store = Loud({2: 2.0})
    neutral = Denoiser(store, [f"{n:08x}".ljust(31, "0") + "f" for n in range(30)], 0.9)
    (line,) = compared(store, [2], [Recipe(name, 0.9)], denoisers={("mean", 0.9): neutral})
    texts = examples()
    sides = [np.stack([store.row(2, t.digest) for t in texts if t.digest[-1] == end]) for end in "ab"]
    components = neutral.components(2)
    positive, negative = (neutral(2, side) for side in sides)
    direction = direction_of(Recipe(name, 0.9), positive, negative, components)
    assert np.abs(components @ direction).max() < 1e-9 * np.linalg.norm(direction)
    if name != "pca":  # which goes by what the texts vary by most, planted or not
        assert line["auc"] > 0.75, "read out on rows that have the loud direction still"


def test_each_pooling_and_share_has_its_own_neutral_directions() -> None:
    """Against vectors made by hand: neutral directions of the pooling's own rows and the recipe's own share are out of the rows
    that the method sees, and out of the direction.
    """

    class Wide(Store):
        """Columns vary the wider the further they stand from where the store's pooling begins."""

        def __init__(self, begin: int) -> None:
            super().__init__({2: 2.0})
            self.scale = np.roll(np.geomspace(1, 9, HIDDEN), begin)

        def row(self, layer: int, digest: str) -> np.ndarray:
            return (super().row(layer, digest) * self.scale).astype(np.float32)

    stores: dict[str, Any] = {"mean": Wide(0), "last": Wide(5)}
    neutral = [f"{n:08x}".ljust(31, "0") + "f" for n in range(500, 540)]
    recipes = [Recipe(method, share) for share in (0.3, 0.8) for method in ("mean_difference", "lda")]
    denoisers = {(name, share): Denoiser(store, neutral, share) for name, store in stores.items() for share in (0.3, 0.8)}
    lines = compare.compare_emotion("joy", examples(), stores, [2], recipes, denoisers, 2)
    asked = [(pooling, recipe.method, recipe.denoise) for pooling in stores for recipe in recipes]
    assert [(line["pooling"], line["method"], line["denoise"]) for line in lines] == asked
    for line in lines:
        store, recipe = stores[line["pooling"]], Recipe(line["method"], line["denoise"])
        components = neutral_components(store.rows(2, "", neutral), line["denoise"])
        a, b, c, d = (np.stack([store.row(2, t.digest) for t in examples() if t.digest[-1] == end]) for end in "abcd")
        direction = direction_of(recipe, without(a, components), without(b, components), components)
        scores = c @ direction, d @ direction
        assert line["auc"] == pytest.approx(roc_auc_score([1] * 20 + [0] * 20, np.concatenate(scores)), abs=1e-9)
        pooled = np.sqrt((scores[0].var(ddof=1) + scores[1].var(ddof=1)) / 2)
        assert line["cohens_d"] == pytest.approx((scores[0].mean() - scores[1].mean()) / pooled, abs=1e-4)


def test_few_scenarios_are_no_pair(tmp_path: Path) -> None:
    texts = [
        Example(text.digest, text.polarity, text.split, text.text, [f"scene {int(text.digest[:8], 16) // 4 % 3}"])
        for text in examples()
    ]
    (line,) = compared(Store({2: 1.0}), [2], [Recipe("paired")], texts=texts, min_examples=4)
    assert line["reason"] == "only 3 scenarios have texts of both sides, min_examples is 4"
    (line,) = compared(Store({2: 1.0}), [2], [Recipe("paired")], texts=texts, min_examples=3)
    assert "auc" in line


def test_a_sweep_of_layers_alike_chooses_one() -> None:
    """30 layers that differ by noise alone, half of it their own: the highest of many noisy figures is no better layer."""
    chosen = []
    for run in range(8):
        rng = np.random.default_rng(run)
        sd = 0.07
        shared = rng.normal(0, sd * np.sqrt(0.5), (28, 1))
        table = np.clip(0.75 + shared + rng.normal(0, sd * np.sqrt(0.5), (28, 30)), 0, 1)
        lines = {
            f"e{n}": [
                {
                    **{"pooling": "mean", "layer": layer, "method": "lda", "denoise": None, "auc": float(value)},
                    "interval": [float(value) - 1.96 * sd, float(value) + 1.96 * sd],
                }
                for layer, value in enumerate(row)
            ]
            for n, row in enumerate(table)
        }
        chosen.append(len(comparison.swept(lines, {}, 4)["layers"]))
    assert sum(chosen) <= len(chosen) + 1
