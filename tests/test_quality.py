"""quality.json: what is put together from the emotions' files, and that it is what its schema says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import figures
import quality
from amygdala.directions import Recipe
from amygdala.errors import UserError
from amygdala.exampleset import HELD_OUT
from amygdala.measures import auc, ranked
from amygdala.vectorfile import read_vector
from planted import HIDDEN, World, directed, flags
from stubs import StubReader
from tiny import REPOSITORY

SCHEMA: dict[str, Any] = json.loads((REPOSITORY / "schemas" / "quality.schema.json").read_text(encoding="utf-8"))


# pieces


def test_numbers_have_six_digits_at_any_depth() -> None:
    value = {"a": [1 / 3, {"b": 123456789.0, "c": True, "d": 7, "e": None, "f": "0.123456789"}], "g": -1e-12 / 3}
    assert quality.rounded(value) == {
        "a": [0.333333, {"b": 123457000.0, "c": True, "d": 7, "e": None, "f": "0.123456789"}],
        "g": -3.33333e-13,
    }
    assert json.dumps(quality.rounded({"n": 12345678})) == '{"n": 12345678}', "counts stay as they are"


def test_macro_is_over_the_emotions_that_have_an_auc() -> None:
    found = quality.macro([0.0, None, 0.6, 0.9], 3)
    assert found["mean"] == pytest.approx(0.5) and found["emotions"] == 3
    assert found["interval"] == pytest.approx([0, 0.9]), "one draw of 27 is thrice the same emotion, more than a fortieth"
    assert quality.macro([0.0, None, 0.6, 0.9], 3) == found
    assert quality.macro([None], 3) == {"mean": None, "interval": None, "emotions": 0}
    assert quality.macro([0.7], 3) == {"mean": 0.7, "interval": None, "emotions": 1}


def test_each_layer_s_macro_draws_emotions_anew() -> None:
    values = np.random.default_rng(0).random(30).tolist()
    assert len({tuple(quality.macro(values, layer)["interval"]) for layer in range(5)}) == 5


def test_intervals_of_the_macro_cover_the_mean() -> None:
    random = np.random.default_rng(0)
    inside = [quality.macro((0.7 + 0.1 * random.standard_normal(40)).tolist(), trial)["interval"] for trial in range(200)]
    assert 0.88 < np.mean([low <= 0.7 <= high for low, high in inside]) < 0.985


@pytest.mark.parametrize(
    ("means", "best"),
    [({"2": 0.7, "10": 0.8, "9": 0.8}, 9), ({"2": None, "3": 0.0}, 3), ({"2": None}, None), ({}, None)],
)
def test_the_best_layer_is_the_first_of_equals(means: dict[str, float | None], best: int | None) -> None:
    assert quality.best_of(means) == best


def test_only_the_largest_heads_are_listed() -> None:
    figures = {"layer": 3, "n_heads": 14, "heads": [{"head": head} for head in range(14)]}
    assert quality.head_summary(figures) == {"n_heads": 14, "heads": [{"head": head} for head in range(10)]}
    assert quality.head_summary({"layer": 3, "no_heads": "a reason"}) == {"no_heads": "a reason"}


def test_held_out_texts_are_those_with_a_row_each_once(tmp_path: Path) -> None:
    texts = [{"digest": f"{at:032x}", "polarity": "positive", "split": "held_out", "text": "t"} for at in range(9)]
    texts[3]["split"] = "train"
    for name, own in (("joy", texts[:7]), ("calm", texts[5:])):
        (tmp_path / name).write_text(json.dumps({"emotion": name, "examples": own}))
    reader = StubReader()
    reader.short = {texts[1]["digest"]}
    paths = {"joy": tmp_path / "joy", "calm": tmp_path / "calm"}
    expected = [texts[at]["digest"] for at in (0, 2, 4, 5, 6, 7, 8)]
    assert quality.held_out_texts(paths, reader) == expected
    assert quality.held_out_texts(paths, reader, most=4) == expected[:4]


def test_figures_across_emotions() -> None:
    random = np.random.default_rng(3)
    vectors = random.standard_normal((4, 9))
    vectors[3] = -vectors[0] + 0.1 * vectors[1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names, rows = ["a", "b", "c", "d"], random.standard_normal((60, 9))
    rows[5] *= 1e4  # a text out of all proportion decides nothing
    found, families = quality.cross_figures(vectors, names, rows, {"f": ["a", "d"]}, 2)
    assert found["a"]["nearest"][-1] == ["d", pytest.approx(float(vectors[0] @ vectors[3]))]
    assert found["a"]["ridge"]["coefficients"][0][0] == "d" and found["a"]["ridge"]["coefficients"][0][1] < -0.8
    assert found["a"]["ridge"]["chance"] == pytest.approx(3 / 9)
    expected = np.corrcoef(ranked(rows @ vectors.T), rowvar=False)
    assert found["a"]["correlated"][0] == ["d", pytest.approx(expected[0, 3])]
    assert {name for name, _ in found["a"]["correlated"]} == {"b", "c", "d"}
    assert families["f"]["cohesion"] < -0.5
    without, _ = quality.cross_figures(vectors, names, None, {}, 2)
    assert {name: own["correlated"] for name, own in without.items()} == {name: [] for name in names}
    alone, none = quality.cross_figures(vectors[:1], ["a"], rows, {"f": ["a"]}, 2)
    assert alone == {"a": {"nearest": [], "ridge": {"r2": None, "chance": 0, "coefficients": []}, "correlated": []}}
    assert none == {}


# the file against its schema


def problems(made: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(made)]


def parts(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All sub-schemas with where they stand."""
    if isinstance(schema, dict):
        yield path, schema
        for name, part in schema.items():
            yield from parts(part, f"{path}/{name}")
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from parts(part, f"{path}/{number}")


def test_the_schema_is_one_and_describes_every_figure() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for path, part in parts(SCHEMA):
        for name, figure in part.get("properties", {}).items() if part.get("type") == "object" else ():
            common = SCHEMA["$defs"].get(figure.get("$ref", "").rpartition("/")[2], {})
            described = figure.get("description") or common.get("description") or figure.get("properties")
            assert described, f"{path}/{name} is not described"
        if part.get("type") == "object" and "properties" in part:
            assert part["additionalProperties"] is False and set(part["required"]) == set(part["properties"]), path


def test_the_schema_s_version_is_the_file_s() -> None:
    assert SCHEMA["properties"]["schema_version"]["const"] == quality.SCHEMA_VERSION


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[str, Any], Path]:
    world = World()
    for emotion in ("calm", "joy", "awe"):
        world.add(emotion, scenario_of=lambda at, positive: [f"scene {at % 5}"])
    world.examples["awe"][3:9] = world.examples["joy"][3:9]
    for text in world.examples["joy"][-3:]:
        world.pooled[text.digest] = 0
    folder = tmp_path_factory.mktemp("ordinary")
    return world, world.quality(folder, families={"warm": ["joy", "awe"], "cold": ["calm"]}), folder


def test_an_ordinary_build_fits_the_schema(ordinary: tuple[World, dict[str, Any], Path]) -> None:
    assert problems(ordinary[1]) == []


def test_what_is_put_together(ordinary: tuple[World, dict[str, Any], Path]) -> None:
    """AUC from the examples, rows and vectors themselves; texts without a row count in `counts` alone."""
    world, made, folder = ordinary
    assert (made["schema_version"], made["layers"], made["layers_without_heads"]) == (2, [1, 2], {})
    assert made["emotions"]["joy"]["without_row"] == 3
    assert made["emotions"]["joy"]["counts"]["held_out"] == {"positive": 25, "negative": 25}
    assert dict(map(tuple, made["emotions"]["awe"]["together"]))["joy"] == pytest.approx(6 / 85, abs=1e-6)
    for layer in (1, 2):
        aucs = {}
        for number, (name, examples) in enumerate(world.examples.items()):
            vector = read_vector(folder / str(number) / f"vectors_{layer}").astype(float)
            scores: dict[str, list[float]] = {"positive": [], "negative": []}
            for text in examples:
                if text.split == HELD_OUT and world.pooled[text.digest]:
                    row = world.rows[text.digest][layer].astype(np.float32).astype(float)
                    scores[text.polarity].append(math.fsum((row * vector).tolist()))
            aucs[name] = auc(np.array(scores["positive"]), np.array(scores["negative"]))
            own = made["emotions"][name]["layers"][str(layer)]
            assert own["held_out"]["auc"] == pytest.approx(aucs[name], abs=1e-6)
            assert {other for other, _ in own["nearest"]} == set(world.examples) - {name}
        assert made["macro_auc"][str(layer)]["mean"] == pytest.approx(np.mean(list(aucs.values())), abs=1e-6)
        assert list(made["families"][str(layer)]) == ["warm"]
    for name, own in made["emotions"].items():
        best = max((1, 2), key=lambda layer: own["layers"][str(layer)]["held_out"]["auc"])
        assert own["best_layer"] == best and own["triage"] == own["layers"][str(best)]["triage"], name


def test_the_best_of_two_layers_is_judged_as_the_best_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each layer alone the interval excludes 0.5 by little; of the higher of two figures it says less."""
    monkeypatch.setattr(figures.Bootstrap, "interval", lambda bootstrap, positive, negative: [0.51, 1.0])
    world = World()
    world.add("joy")
    joy = world.quality(tmp_path)["emotions"]["joy"]
    assert [own["verdict"] for own in joy["layers"].values()] == ["clean", "clean"]
    assert joy["verdict"] == "chance" and "the best of 2 layers" in joy["triage"]


def test_without_held_out_texts_the_last_layer_is_judged(tmp_path: Path) -> None:
    """Only the first layer's vector is of noise."""
    world, random = World(), np.random.default_rng(0)
    world.add("joy", held_out=(0, 0))
    for by_layer in world.rows.values():
        by_layer[1] = world.centre(1) + random.standard_normal(HIDDEN)
    joy = world.quality(tmp_path)["emotions"]["joy"]
    assert joy["best_layer"] is None
    assert "unstable" in joy["layers"]["1"]["triage"] and "unstable" not in joy["layers"]["2"]["triage"]
    assert joy["triage"] == joy["layers"]["2"]["triage"]


def test_it_is_the_same_again(ordinary: tuple[World, dict[str, Any], Path], tmp_path: Path) -> None:
    world, _, folder = ordinary
    world.quality(tmp_path, families={"warm": ["joy", "awe"], "cold": ["calm"]})
    assert (tmp_path / "quality.json").read_bytes() == (folder / "quality.json").read_bytes()


def wrong(made: dict[str, Any], kind: str) -> dict[str, Any]:
    made = json.loads(json.dumps(made))
    layer = made["emotions"]["joy"]["layers"]["1"]
    if kind == "version":
        made["schema_version"] = 1
    elif kind == "more":
        layer["surprise"] = 1
    elif kind == "less":
        del layer["train_auc"]
    elif kind == "range":
        layer["held_out"]["auc"] = 1.2
    elif kind == "head":
        layer["per_head"]["heads"][0]["raw_norm"] = "much"
    elif kind == "layer":
        made["emotions"]["joy"]["layers"]["first"] = layer
    return made


@pytest.mark.parametrize("kind", ["version", "more", "less", "range", "head", "layer"])
def test_the_schema_refuses(ordinary: tuple[World, dict[str, Any], Path], kind: str) -> None:
    assert problems(wrong(ordinary[1], kind))


@pytest.mark.parametrize(
    ("options", "added", "recipe"),
    [
        ({"heads": False, "neurons": False}, {}, "mean_difference"),
        ({}, {"held_out": (0, 0)}, "mean_difference"),
        ({}, {"train": (1, 1), "held_out": (1, 1)}, "mean_difference"),
        ({"layers": (3,)}, {"train": (2, 2), "held_out": (0, 3)}, "pca"),
        ({"layers": (3,)}, {"scenario_of": lambda at, positive: [f"s{at % 3}"]}, "paired"),
        ({"layers": (3,)}, {}, "lda"),
    ],
)
@pytest.mark.parametrize("emotions", [["joy"], ["joy", "calm"]])
def test_degenerate_builds_fit_the_schema(
    tmp_path: Path, options: dict[str, Any], added: dict[str, Any], recipe: str, emotions: list[str]
) -> None:
    world = World(**options)
    for emotion in emotions:
        world.add(emotion, **added)
    made = world.quality(tmp_path, Recipe(recipe), families={"both": emotions})
    assert problems(made) == []
    if not options.get("heads", True):
        assert made["layers_without_heads"] == dict.fromkeys("12", "a gated delta net")
        assert made["head_service"] == {"1": None, "2": None}
        assert made["emotions"]["joy"]["layers"]["1"]["per_head"] == {"no_heads": "a gated delta net"}
        assert made["emotions"]["joy"]["layers"]["1"]["neuron"] == {"reason": "a layer of experts"}
    if added.get("held_out") == (0, 0):
        assert made["macro_auc"]["1"] == {"mean": None, "interval": None, "emotions": 0} and made["best_layer"] is None
        assert made["emotions"]["joy"]["best_layer"] is None
        assert "not measured" in made["emotions"]["joy"]["triage"]


def test_hostile_names_fit_the_schema(tmp_path: Path) -> None:
    world = World(layers=(1,))
    names = ['<img src=x onerror="alert(1)">', "\x1b[31mred", "../../joy", "жар"]
    for name in names:
        world.add(name, text_of=lambda random, positive: f"{random.integers(10**9)} <b>\x1b]0;own\x07</b>")
    made = world.quality(tmp_path)
    assert problems(made) == [] and list(made["emotions"]) == names
    assert not any("\x1b" in own["triage"] for own in made["emotions"].values())


def test_an_auc_of_zero_counts_in_the_mean(tmp_path: Path) -> None:
    world = World(layers=(1,))
    world.add("joy", directed(50.0))
    for text in world.examples["joy"]:
        if text.split == HELD_OUT:
            world.rows[text.digest][1] = 2 * world.centre(1) - world.rows[text.digest][1]
    made = world.quality(tmp_path)
    assert made["macro_auc"]["1"] == {"mean": 0.0, "interval": None, "emotions": 1}
    assert flags(made, "joy")["1"] >= {"flipped"} and HIDDEN == 64


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    world = World(layers=(1,))
    world.add("joy")

    def damage(vectors: Any) -> None:
        path = next(iter(vectors["joy"].values())).with_name("heads_1")
        path.write_bytes(b"{")

    with pytest.raises(UserError, match=r"heads_1 is damaged"):
        world.quality(tmp_path, meddle=damage)
    assert not (tmp_path / "quality.json").exists()
