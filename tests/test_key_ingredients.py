"""Each ingredient of each key: a change of what it stands for moves the key, and would not if the key left it out."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import amygdala.build
import amygdala.recipes
import amygdala.snapshots
from amygdala.build import Build
from amygdala.plan import Plan
from amygdala.recipes import recipe_key
from builds import make_build, make_config, make_nodes, write_graph

EMOTION = "joy"
NEUTRAL = [
    "The bus leaves the old station at six in the morning.",
    "Onions and rice stand on the second shelf of the cupboard.",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = make_config(tmp_path_factory.mktemp("ingredients"), tiny_model, monkeypatch)
        for number in range(2):
            lines = [json.dumps({"key": str(n), "text": f"{text} {number * n}"}) for n, text in enumerate(NEUTRAL)]
            Path(f"neutral{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
            Path(f"unseen{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        yield {**made, "unseen": unseen(0)}


def unseen(number: int) -> list[dict[str, str]]:
    return [{"source": "file", "name": "elsewhere", "path": f"unseen{number}.jsonl"}]


# Where the keys of a build are; a release is told by its target


def compared_key(build: Build, name: str) -> str:
    return build.compared(name, EMOTION).rpartition(".")[0].rpartition(".")[2]


KEYS: dict[str, Callable[[Build], str]] = {
    "snapshot": lambda build: build.current.key,
    "graph index": lambda build: recipe_key_of(build, "graph index"),
    "model": lambda build: build.model_key,
    "space": lambda build: build.space_key,
    "weights": lambda build: build.weights_key,
    "neutral texts": lambda build: build.texts_keys["neutral"],
    "unseen texts": lambda build: build.texts_keys["unseen"],
    "examples": lambda build: build.example_keys[EMOTION],
    "vectors": lambda build: build.vector_keys[EMOTION],
    "heads": lambda build: build.head_keys[EMOTION],
    "figures": lambda build: build.figure_keys[EMOTION],
    "quality": lambda build: build.quality_key,
    "index": lambda build: build.index_keys[0],
    "unseen index": lambda build: build.unseen_index_key,
    "release": lambda build: build.selections["readout"].key,
    "overview": lambda build: build.overview_key,
    "tokens": lambda build: build.token_key,
    "report": lambda build: build.report_key,
    "compare": lambda build: compared_key(build, "compare"),
    "all compared": lambda build: build.compared_key("compare"),
    "sweep": lambda build: build.compared_key("sweep"),
    "ablation": lambda build: build.ablation_key,
    "unseen": lambda build: build.unseen_key,
}
KIND = {"neutral texts": "texts", "unseen texts": "texts", "unseen index": "index", "all compared": "compare"}


def recipe_key_of(build: Build, kind: str) -> str:
    return next(key for key, recipe in build.recipes.items() if recipe["kind"] == kind)


def all_keys(build: Build) -> dict[str, str]:
    """All keys; asking for them makes the recipes of those that are made late."""
    return {name: of(build) for name, of in KEYS.items()}


# What changes


@dataclass(frozen=True)
class Change:
    """base: settings of both builds; then: what the second has besides; code, library: whose code or version is another in the
    second; plan: {part of an emotion's plan: value} of the second."""

    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    then: dict[str, Any] = dataclasses.field(default_factory=dict)
    code: str = ""
    library: str = ""
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)
    shards: str = ""
    graph: bool = False
    weights: bool = False


def setting(**then: Any) -> Change:
    return Change(then=then)


def code(entry: str, **base: Any) -> Change:
    return Change(code=entry, base=base)


def library(name: str, **base: Any) -> Change:
    return Change(library=name, base=base)


def planned(base: dict[str, Any] | None = None, **plan: Any) -> Change:
    return Change(base=base or {}, plan=plan)


NEUTRAL_0, NEUTRAL_1 = ({"denoise": 0.5, "neutral": f"neutral{number}.jsonl"} for number in range(2))
ABLATION = {"emotions": [EMOTION], "layer": 2, "heads": 1, "fill": "mean", "random": 3}
DELIGHT = {"select": "both", "min_positives": 5, "top": 200, "curated": [], "exclude": [], "aliases": {"delight": EMOTION}}


def ablation(**changed: Any) -> Change:
    return Change({"ablation": ABLATION}, {"ablation": {**ABLATION, **changed}})


# {(key, ingredient): a change that moves this ingredient of the key's recipe and no other}
ROWS: dict[tuple[str, str], Change] = {
    ("snapshot", "sources"): Change(graph=True),
    ("snapshot", "code"): code("snapshot"),
    ("graph index", "snapshot"): Change(graph=True),
    ("graph index", "looked_for"): setting(emotions=DELIGHT),
    ("graph index", "code"): code("amygdala.corpus"),
    ("model", "model"): Change(weights=True),
    ("model", "dtype"): setting(dtype="bf16"),
    ("model", "versions"): library("torch"),
    ("model", "code"): code("amygdala.convert"),
    ("space", "pooling"): setting(pooling="last"),
    ("space", "model"): Change(weights=True),
    ("space", "dtype"): setting(dtype="bf16"),
    ("space", "converted"): code("amygdala.convert", model="embedded"),
    ("space", "max_tokens"): setting(max_tokens=77),
    ("space", "template"): setting(template={"role": "user"}),
    ("space", "versions"): library("transformers"),
    ("space", "code"): code("activations"),
    ("weights", "model"): Change(weights=True),
    ("weights", "dtype"): setting(dtype="bf16"),
    ("weights", "converted"): code("amygdala.convert", model="embedded"),
    ("weights", "versions"): library("torch"),
    ("weights", "code"): code("weights"),
    ("neutral texts", "texts"): Change(NEUTRAL_0, NEUTRAL_1),
    ("neutral texts", "code"): code("texts"),
    ("unseen texts", "sets"): setting(unseen=unseen(1)),
    ("unseen texts", "min_content_chars"): setting(min_content_chars=41),
    ("unseen texts", "code"): code("texts"),
    ("examples", "examples"): planned(examples="other"),
    ("examples", "code"): code("examples"),
    ("vectors", "space"): setting(pooling="last"),
    ("vectors", "training"): planned(training="other"),
    ("vectors", "scenarios"): planned({"method": "paired"}, scenarios="other"),
    ("vectors", "method"): Change({"method": "lda"}, {"method": "logistic"}),
    ("vectors", "denoise"): Change(NEUTRAL_0, {"denoise": 0.4}),
    ("vectors", "versions"): library("scipy", method="lda"),
    ("vectors", "code"): code("vectors"),
    ("heads", "vectors"): code("vectors"),
    ("heads", "weights"): code("weights"),
    ("heads", "code"): code("heads"),
    ("figures", "examples"): code("examples"),
    ("figures", "vectors"): code("vectors"),
    ("figures", "weights"): code("weights"),
    ("figures", "names"): setting(emotions=DELIGHT),
    ("figures", "versions"): library("scipy"),
    ("figures", "code"): code("figures"),
    ("quality", "figures"): code("figures"),
    ("quality", "heads"): code("heads"),
    ("quality", "layers"): setting(target_layers=[1, 3]),
    ("quality", "together"): planned(together=[["calm", 0.5]]),
    ("quality", "families"): setting(families={"bright": [EMOTION]}),
    ("quality", "code"): code("quality"),
    ("index", "spaces"): setting(pooling=["mean", "last"]),
    ("index", "texts"): Change(shards="other"),
    ("index", "neutral"): Change(NEUTRAL_0, NEUTRAL_1),
    ("index", "layers"): setting(target_layers=[1, 3]),
    ("unseen index", "texts"): setting(unseen=unseen(1)),
    ("release", "counts"): planned(counts={"train": {}, "held_out": {}}),
    ("release", "facts"): setting(seed=1),
    ("release", "versions"): library("matplotlib"),
    ("release", "picture"): code("overview"),
    ("release", "code"): code("readout"),
    ("overview", "release"): code("readout"),
    ("tokens", "quality"): code("quality"),
    ("tokens", "report_texts"): setting(report_texts=1),
    ("tokens", "code"): code("token_scores"),
    ("report", "release"): code("readout"),
    ("report", "tokens"): code("token_scores"),
    ("report", "versions"): library("jinja2"),
    ("report", "code"): code("report"),
    ("compare", "examples"): code("examples"),
    ("compare", "spaces"): code("activations"),
    ("compare", "layers"): setting(target_layers=[1, 3]),
    ("compare", "neutral"): Change(NEUTRAL_0, NEUTRAL_1),
    ("compare", "denoise"): Change(NEUTRAL_0, {"denoise": 0.4}),
    ("compare", "min_examples"): setting(min_examples=3),
    ("compare", "versions"): library("scipy"),
    ("compare", "code"): code("compare"),
    ("all compared", "compared"): code("compare"),
    ("all compared", "code"): code("comparison"),
    ("sweep", "compared"): code("compare"),
    ("sweep", "sweep_layers"): setting(sweep_layers=2),
    ("sweep", "versions"): library("matplotlib"),
    ("sweep", "code"): code("comparison"),
    ("ablation", "examples"): code("examples"),
    ("ablation", "vectors"): code("vectors"),
    ("ablation", "weights"): code("weights"),
    ("ablation", "heads"): ablation(heads=2),
    ("ablation", "fill"): ablation(fill="zero"),
    ("ablation", "random"): ablation(random=4),
    ("ablation", "layers"): Change({"ablation": ABLATION}, {"target_layers": [0, 1, 2]}),
    ("ablation", "code"): code("ablation"),
    ("unseen", "release"): code("readout"),
    ("unseen", "texts"): setting(unseen=unseen(1)),
    ("unseen", "code"): code("unseen"),
}
# Ingredients that no change moves alone: another ingredient of the same recipe covers them, and they stand there to be read.
COVERED = {
    ("heads", "emotion"): "vectors",
    ("figures", "emotion"): "vectors",
    ("release", "vectors"): "the quality key among the facts",
    ("release", "quality"): "the facts",
    ("release", "layers"): "the quality key among the facts",
    ("report", "heads"): "release",
    ("report", "templates"): "files of amygdala: changed in test_templates_are_in_the_key_of_the_report",
    ("tokens", "space"): "quality",
    ("compare", "poolings"): "spaces",
    ("compare", "methods"): "the code",
    ("compare", "emotion"): "examples",
    ("examples", "emotion"): "changed in test_two_emotions_of_the_same_examples",
    ("vectors", "emotion"): "changed in test_two_emotions_of_the_same_examples",
    ("release", "target"): "changed in test_targets_have_keys_of_their_own",
    ("sweep", "chosen_for"): "the spaces of what is compared",
    ("ablation", "layer"): "layers",
    ("unseen", "min_positive_score"): "the facts of the release",
    ("unseen", "aliases"): "the facts of the release",
    ("unseen", "versions"): "the facts of the release",
    ("unseen index", "spaces"): "as of an index",
    ("unseen index", "layers"): "as of an index",
    ("unseen index", "neutral"): "always none",
    ("neutral texts", "sets"): "not of neutral texts",
}


Recipes = dict[str, dict[str, Any]]
Of = Callable[[Change, bool], Recipes]


@pytest.fixture(scope="module")
def recipes_by_name(config: dict[str, Any]) -> Of:
    """recipes_by_name(change, changed): {name of a key: its recipe} of a build before or after the change."""
    own_code, own_version, own_plan = amygdala.build.code, amygdala.build.version, Build._plan
    known: dict[str, Recipes] = {}

    def altered(change: Change, build: Build, say: Any) -> Plan:
        plan = own_plan(build, say)
        emotions = {**plan.emotions, EMOTION: {**plan.emotions[EMOTION], **change.plan}}
        shards = [{**part, "digests": change.shards or part["digests"]} for part in plan.shards]
        return dataclasses.replace(plan, emotions=emotions, shards=shards)

    def make(base: dict[str, Any], after: Change) -> Recipes:
        weights = next(Path("model").glob("*.safetensors"))
        whole = weights.read_bytes()
        write_graph(Path("graph.jsonl"), make_nodes()[: 59 if after.graph else 60])
        with pytest.MonkeyPatch.context() as patched:
            for module in (amygdala.build, amygdala.snapshots):
                patched.setattr(module, "code", lambda entry: "other" if entry == after.code else own_code(entry))
            patched.setattr(
                amygdala.build, "version", lambda name, *how: "0" if name == after.library else own_version(name, *how)
            )
            patched.setattr(Build, "_plan", lambda build, say: altered(after, build, say))
            try:
                if after.weights:
                    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
                build = make_build({**config, **base}, **after.then)
                return {name: build.recipes[key] for name, key in all_keys(build).items()}
            finally:
                weights.write_bytes(whole)

    def of(change: Change, changed: bool) -> Recipes:
        if changed:
            return make(change.base, change)
        name = repr(change.base)
        if name not in known:
            known[name] = make(change.base, Change())
        return known[name]

    return of


def check(recipes_by_name: Of, row: tuple[str, str], key_of: Callable[[dict[str, Any]], str]) -> None:
    name, ingredient = row
    before, after = (key_of(recipes_by_name(ROWS[row], changed)[name]) for changed in (False, True))
    assert before != after, f"the key of {name} does not cover {ingredient}"


def without(kind: str, ingredient: str) -> Callable[[dict[str, Any]], str]:
    """recipe_key that leaves an ingredient of one kind of recipe out."""

    def mutated(recipe: dict[str, Any]) -> str:
        return recipe_key({n: v for n, v in recipe.items() if (recipe["kind"], n) != (kind, ingredient)})

    return mutated


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_a_change_moves_the_key_and_would_not_without_the_ingredient(recipes_by_name: Of, row: tuple[str, str]) -> None:
    check(recipes_by_name, row, recipe_key)
    with pytest.raises(AssertionError, match="does not cover"):
        check(recipes_by_name, row, without(KIND.get(row[0], row[0]), row[1]))


@functools.cache
def _settings() -> list[dict[str, Any]]:
    return [{}, NEUTRAL_0, {"method": "lda"}, {"method": "paired"}, {"pooling": ["mean", "last"]}, {"ablation": ABLATION}]


def recipes_of(config: dict[str, Any]) -> Recipes:
    found: Recipes = {}
    for settings in _settings():
        build = make_build(config, **settings)
        all_keys(build)
        found |= build.recipes
    return found


def moved_by_every_ingredient(recipes: Recipes, key_of: Callable[[dict[str, Any]], str]) -> None:
    """Whatever the value: each ingredient of each recipe is in its key, also those that another covers today."""
    for key, recipe in recipes.items():
        for name in recipe:
            assert key_of({**recipe, name: "another value"}) != key, (recipe["kind"], name)


def test_each_ingredient_of_each_recipe_is_in_its_key(config: dict[str, Any]) -> None:
    recipes = recipes_of(config)
    assert all(recipe_key(recipe) == key for key, recipe in recipes.items())
    moved_by_every_ingredient(recipes, recipe_key)
    for kind, name in sorted({(recipe["kind"], name) for recipe in recipes.values() for name in recipe if name != "kind"}):
        mutated = without(kind, name)
        rekeyed = {mutated(recipe): recipe for recipe in recipes.values() if recipe["kind"] == kind}
        with pytest.raises(AssertionError, match=name):
            moved_by_every_ingredient(rekeyed, mutated)


def test_each_ingredient_has_a_row(config: dict[str, Any]) -> None:
    """An ingredient that is added needs a change that moves it; one that is taken away takes its row."""
    have = {(KIND.get(name, name), ingredient) for name, ingredient in (*ROWS, *COVERED)}
    recipes = recipes_of(config).values()
    found = {(recipe["kind"], name) for recipe in recipes for name in recipe if name != "kind"}
    assert found - have == set()
    assert have - found == set()


def test_two_emotions_of_the_same_examples_have_keys_of_their_own(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Build._plan

    def alike(build: Build, say: Any) -> Plan:
        plan = own(build, say)
        return dataclasses.replace(plan, emotions=dict.fromkeys(plan.emotions, plan.emotions[EMOTION]))

    monkeypatch.setattr(Build, "_plan", alike)

    def count() -> list[int]:
        build = make_build(config)
        return [len(set(keys.values())) for keys in (build.example_keys, build.vector_keys)]

    assert count() == [3, 3]
    for kind, left in (("examples", [1, 3]), ("vectors", [3, 1])):
        with monkeypatch.context() as inner:
            inner.setattr(amygdala.recipes, "recipe_key", without(kind, "emotion"))
            assert count() == left


def test_targets_have_keys_of_their_own(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One emotion at one layer is the same selection as a layer of one emotion, and published elsewhere."""
    alone = {"emotions": {**DELIGHT, "aliases": {}, "select": "curated", "curated": [EMOTION]}, "target_layers": [1]}

    def keys() -> set[str]:
        selections = make_build(config, **alone).selections
        return {selections[target].key for target in (f"emotion_{EMOTION}", "layer_1")}

    assert len(keys()) == 2
    monkeypatch.setattr(amygdala.recipes, "recipe_key", without("release", "target"))
    assert len(keys()) == 1


def test_templates_are_in_the_key_of_the_report(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def report() -> str:
        return make_build(config).report_key

    before = report()
    monkeypatch.setattr(amygdala.build, "sha256_file", lambda path: "other")
    assert report() != before
    monkeypatch.setattr(amygdala.recipes, "recipe_key", without("report", "templates"))
    after = report()
    monkeypatch.undo()
    monkeypatch.setattr(amygdala.recipes, "recipe_key", without("report", "templates"))
    assert report() == after
