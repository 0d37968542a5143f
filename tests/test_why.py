"""`why`: what of a build is missing, and in words how its key differs from the nearest stored one. No job runs here."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import why
from amygdala import keys
from amygdala.build import Build
from amygdala.products import Graph
from amygdala.reasons import texts_in_words
from amygdala.stamps import using
from amygdala.stored import Store, read_made
from amygdala.tensors import write_tensors
from builds import EMOTIONS, Nodes, first, held_out, make_build, make_config, make_nodes, text_of, write_graph
from stored import fill

Found = dict[str, list[str]]


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A configuration whose readout is stored."""
    settings = make_config(tmp_path, tiny_model, monkeypatch)
    fill(make_build(settings))
    return settings


def told(config: dict[str, Any], **overrides: Any) -> str:
    """What `why` prints."""
    return "\n".join(why.lines(why.find_why(make_build(config, **overrides))))


def reasons(config: dict[str, Any], **overrides: Any) -> Found:
    """{stage, or stage and emotion: reasons in words} of what the readout lacks."""
    found = why.find_why(make_build(config, **overrides)).as_json()
    named = [one for one in found["products"] if "readout" in one["targets"]]
    return {f"{one['stage']} {one['name']}".strip(): [reason["words"] for reason in one["reasons"]] for one in named}


def test_nothing_to_build(config: dict[str, Any]) -> None:
    assert reasons(config) == {}
    lines = told(config).splitlines()
    assert lines[0] == "readout: up to date, nothing to build"
    assert "vectors 6, heads 6, figures 9" in lines[2]


def test_a_first_build_says_so_of_every_stage(config: dict[str, Any]) -> None:
    shutil.rmtree("store")
    shutil.rmtree("results")
    found = reasons(config)
    assert set(found.pop("results readout")) >= {"the release changes"}
    assert {tuple(words) for words in found.values()} == {("first build",)}
    assert len(found) == len(["snapshot", "activations", "weights", "quality", "release", "overview"]) + 4 * len(EMOTIONS)
    assert "examples, vectors, heads, figures of all 3 emotions: first build" in told(config)


def test_texts_are_counted_where_they_enter_and_named_as_the_cause_after(config: dict[str, Any]) -> None:
    gone, edited = first(False, "joy"), first(False, "calm")
    nodes: Nodes = make_nodes()
    replaced = next(word for word in ("odd", "even", "plain", "long") if not held_out(text_of(edited, word)))
    nodes[edited]["text"] = f"{text_of(edited, replaced)}\ncalm:9"
    del nodes[gone]
    write_graph(Path("graph.jsonl"), nodes)
    found = reasons(config)
    for emotion in EMOTIONS:
        assert found[f"examples {emotion}"] == found[f"vectors {emotion}"] == ["1 text added, 2 removed"]
        assert found[f"heads {emotion}"] == ["the vectors change"]
    assert found["activations shard_0"] == ["1 text added, 2 removed"]
    assert found["overview"] == ["the release changes"]
    assert any(re.fullmatch(r"snapshot \w{16} → \w{16}", words) for words in found["release"])
    assert "examples, vectors of all 3 emotions: 1 text added, 2 removed" in told(config)


def test_a_held_out_text_leaves_the_vectors(config: dict[str, Any]) -> None:
    nodes = make_nodes()
    nodes[first(True, "joy")]["text"] = f"{text_of(first(True, 'joy'))}\njoy:3"
    write_graph(Path("graph.jsonl"), nodes)
    found = reasons(config)
    assert found["examples joy"] == ["1 text removed"] and found["figures joy"] == ["the examples change"]
    assert not any(of.startswith(("vectors", "heads")) for of in found)


def test_a_text_that_changes_its_side_is_in_another_role() -> None:
    now = {"a": ("positive", "train"), "b": ("negative", "train"), "c": ("positive", "train")}
    assert texts_in_words(now, {**now, "a": ("positive", "held_out")}) == "1 text in another role"
    assert texts_in_words(now, {"a": now["a"], "d": now["b"]}) == "2 texts added, 1 removed"
    assert texts_in_words(now, now) == ""


SETTINGS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"target_layers": [1, 3]}, "vectors joy", ["layer 3 is new"]),
    ({"target_layers": [1, 3]}, "weights", ["layer 3 is new"]),
    ({"target_layers": [1, 3]}, "activations shard_0", ["layer 3 is new", "layer 2 is gone"]),
    ({"target_layers": [1]}, "quality", ["layer 2 is gone"]),
    ({"pooling": "last"}, "vectors joy", ["pooling mean → last"]),
    ({"pooling": ["mean", "last"]}, "activations shard_0", ["pooling last is new"]),
    ({"dtype": "bf16"}, "activations shard_0", ["dtype fp32 → bf16"]),
    ({"max_tokens": 77}, "vectors joy", ["max_tokens 2048 → 77"]),
    ({"denoise": 0.5}, "vectors joy", ["denoise none → 0.5"]),
    ({"denoise": 0.5}, "neutral texts", ["first build"]),
    ({"method": "pca"}, "vectors joy", ["method mean_difference → pca", "scikit-learn counts now", "scipy counts now"]),
    ({"method": "pca"}, "heads joy", ["the vectors change"]),
    ({"families": {"one": ["joy"]}}, "quality", []),
]


@pytest.mark.parametrize(("change", "of", "words"), SETTINGS, ids=[f"{next(iter(one[0]))} {one[1]}" for one in SETTINGS])
def test_a_setting_is_named(config: dict[str, Any], change: dict[str, Any], of: str, words: list[str]) -> None:
    found = reasons(config, **change)[of]
    assert found == words or ("families" in change and "families: one none → joy" in found)


def test_another_model_is_told_by_its_content(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model/generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "top_k": 7}))
    os.utime(path, ns=(1, 1))
    for of in ("activations shard_0", "weights", "vectors joy"):
        (words,) = reasons(config)[of]
        assert re.fullmatch(r"model changed \(sha256:\w{8}… → sha256:\w{8}…\)", words)


def test_versions_of_libraries(config: dict[str, Any]) -> None:
    found = reasons(config, key_versions={"precision": "minor", "pinned": {"torch": "9.1"}})
    assert re.fullmatch(r"torch \S+ → 9\.1", found["activations shard_0"][0])
    assert found["vectors joy"] == found["activations shard_0"] == found["weights"]


def test_the_module_that_changed_is_named(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    own = keys._module

    def module(path: Path) -> Any:
        return dataclasses.replace(own(path), digest="f" * 16) if path.name == "methods.py" else own(path)

    monkeypatch.setattr(keys, "_module", module)
    keys.code_modules.cache_clear()
    try:
        found = reasons(config)
    finally:
        keys.code_modules.cache_clear()
    assert found["vectors joy"] == ["amygdala/methods.py changed"]
    assert found["figures joy"] == ["amygdala/methods.py changed", "the vectors change"]
    assert "activations shard_0" not in found


def test_an_emotion_that_is_new_and_one_that_is_gone(config: dict[str, Any]) -> None:
    emotions = {**config["emotions"], "exclude": ["grief"]}
    found = reasons(config, emotions=emotions)
    assert "vectors joy" not in found and "gone: grief" in found["quality"]
    shutil.rmtree("store")
    shutil.rmtree("results")
    fill(make_build(config, emotions=emotions))
    found = reasons(config)
    assert found["vectors grief"] == ["nothing stored of grief yet"] and "new: grief" in found["quality"]
    assert "vectors joy" not in found


def test_back_to_what_was_needs_publishing_alone(config: dict[str, Any]) -> None:
    before = make_build(config).selections["readout"].key
    after = make_build(config, method="pca")
    fill(after)
    found = why.find_why(make_build(config))
    assert [run.message for run in found.targets["readout"].runs] == ["Publish readout in results/readout"]
    assert reasons(config) == {"results readout": [f"{after.selections['readout'].key} is shown, not {before}"]}


def test_what_is_gone_or_set_aside_is_told_from_what_is_new(config: dict[str, Any]) -> None:
    build = make_build(config)
    Path(build.vectors("joy")[0]).unlink()
    Path(build.heads("joy")[1]).unlink()
    aside = Path(build.figures("joy")[0])
    aside.rename(f"{aside}.damaged")
    Path(build.quality).unlink()
    assert reasons(config) == {}, "the results are there"
    assert "not built, as what is made of them is there: 4 missing files (store/vectors/joy." in told(config)
    Path(build.marker(build.selections["readout"])).unlink()
    assert reasons(config) == {
        "vectors joy": ["deleted"],
        "heads joy": ["missing beside others of its key: an earlier run stopped, or it was deleted"],
        "figures joy": ["set aside as damaged"],
        "quality": ["deleted"],
        "results readout": ["the quality changes"],
    }
    runs = why.find_why(make_build(config)).targets["readout"].runs
    made = ["Vectors of joy", "Heads of joy", "Figures of joy", "Quality figures", "Publish readout in results/readout"]
    assert [run.message for run in runs] == made, "the picture is there: it is not drawn again"


def test_texts_by_number_become_a_range_where_there_are_many() -> None:
    reasons = {f"{number} text{'s' * (number > 1)} removed": [f"e{number}"] for number in (3, 1, 7, 5, 9)} | {
        "deleted": ["joy"]
    }
    assert why._ranged(reasons) == {"1 to 9 texts removed": ["e1", "e3", "e5", "e7", "e9"], "deleted": ["joy"]}
    few = {"1 text removed": ["a"], "2 texts removed": ["b"]}
    assert why._ranged(few) == few


def test_results_that_are_gone_are_published(config: dict[str, Any]) -> None:
    Path("results/overview.svg").unlink()
    assert reasons(config) == {"results readout": ["overview.svg is gone from the results"]}


def test_a_damaged_nearest_file_is_passed_over(config: dict[str, Any]) -> None:
    sound, nearest = make_build(config), make_build(config, method="lda")
    fill(nearest)
    for path in nearest.vectors("joy"):
        Path(path).write_bytes(Path(path).read_bytes().replace(b"lda", b"ldA"))
    Path(nearest.vectors("calm")[0]).write_bytes(b"")
    found = why.find_why(make_build(config, method="pca")).as_json()["products"]
    vectors = {one["name"]: one for one in found if one["stage"] == "vectors"}
    assert vectors["joy"]["nearest"] == sound.vectors("joy")[0]
    assert vectors["calm"]["nearest"] == nearest.vectors("calm")[1], "of one key, the next sound file tells as much"
    assert [reason["words"] for reason in vectors["calm"]["reasons"]] == ["method lda → pca"]


def test_hostile_names_in_the_store_are_shown_safely(config: dict[str, Any]) -> None:
    build = make_build(config)
    for name in ("\x1b[31m", "joy.nokey", "0" * 16, "joy.\x07.json"):
        (Path("store/vectors") / name).mkdir()
    recipe = {**build.recipes[build.vector_keys["joy"]], "method": "\x1b[31mred", "denoise": "\x07"}
    shutil.rmtree(Path(build.vectors("joy")[0]).parent)
    build.recipes.add(recipe.pop("kind"), **recipe)
    (made,) = [name for name, one in build.recipes.items() if one.get("method") == "\x1b[31mred"]
    with using(build.recipes.sheet()):
        write_tensors(Path(f"store/vectors/joy.{made}/layer_001.safetensors"), {}, {})
    text = told(config, method="pca")
    assert "\\x1b[31mred → pca" in text and not re.search(r"[\x00-\x09\x0b-\x1f]", text)


def test_the_nearest_differs_in_fewest_ingredients_and_is_the_newest(config: dict[str, Any]) -> None:
    near, far = make_build(config, method="pca"), make_build(config, method="lda", pooling="last")
    fill(near)
    fill(far)

    def nearest(build: Build) -> str:
        found = Store("store").nearest(build.recipes[build.vector_keys["joy"]], "joy")
        assert found is not None
        return str(found.path)

    assert nearest(make_build(config, method="pca", max_tokens=99)) == near.vectors("joy")[0]
    alike = make_build(config, method="lda")  # one ingredient from `near` (its method), one from `far` (its space)
    for newest in (near, far, near):
        os.utime(newest.vectors("joy")[0], ns=(time.time_ns(), time.time_ns()))
        assert nearest(alike) == newest.vectors("joy")[0]


@pytest.mark.parametrize("pattern", ["vectors/*/*", "heads/*/*", "overviews/*", "snapshots/*.jsonl", "activations/*/index/*"])
def test_headers_are_read_without_the_rest(config: dict[str, Any], pattern: str) -> None:
    path = next(Path("store").glob(pattern))
    assert read_made(path)["key"] in str(path)


def test_a_long_recipe_is_read_whole(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amygdala.stored.TAIL", 16)
    path = next(Path("store/quality").iterdir())
    assert read_made(path)["recipe"]["kind"] == "quality"


def test_targets_that_are_not_asked_for_or_cannot_be_made(config: dict[str, Any]) -> None:
    lines = told(config, ablation={**config["ablation"], "emotions": ["envy"]}).splitlines()
    assert "ablation: cannot be made: ablation.emotions: this build makes no vector of 'envy'" in lines
    assert any(line.startswith("compare: not asked for, ") for line in lines)
    unswept = told(config, target_layers="auto").splitlines()
    assert any(
        line.startswith("readout, report, compare, unseen, ablation: cannot be made: target_layers: auto") for line in unswept
    )
    measured = ["compare", "report", "sweep", "ablation", "unseen"]
    fill(make_build(config), measured)
    assert {f"{name}: up to date, nothing to build" for name in ("readout", *measured)} <= set(told(config).splitlines())


def test_texts_from_elsewhere_are_not_what_the_examples_were(config: dict[str, Any]) -> None:
    """Both have an index of shard 0; that of the texts from elsewhere is the newer one."""
    fill(make_build(config), ["unseen"])
    (shard,) = make_build(config).indices
    assert Path(shard).exists()
    for path in Path(shard).parent.iterdir():
        later = time.time_ns() + 10**10 * (path.name != Path(shard).name)
        os.utime(path, ns=(later, later))
    nodes = [*make_nodes(), {"key": "new", "text": f"{text_of(77)}\njoy:9"}]
    write_graph(Path("graph.jsonl"), nodes)
    assert reasons(config)["activations shard_0"] == ["1 text added"]


def test_emotions_without_a_vector_are_grouped_by_reason(config: dict[str, Any]) -> None:
    nodes = [*make_nodes(), {"key": "one", "text": "A text of its own about nothing that stands elsewhere.\nenvy:9 pride:9"}]
    nodes.append({"key": "two", "text": "Quite another text, which tells of boats and of bread.\nenvy:9"})
    write_graph(Path("graph.jsonl"), nodes)
    assert "  envy, pride: 1 to 2 positives, fewer than emotions.min_positives (5)" in told(config)


def test_the_graph_names_every_file_once(config: dict[str, Any]) -> None:
    graph = Graph(make_build(config, pooling=["mean", "last"], denoise=0.5, shards=2))
    files = [path for product in graph.products() for path in product.files]
    assert len(files) == len(set(files))
    known = set(graph.products())
    assert all(one in known for product in known for one in product.inputs)


def test_a_sweep_over_the_target_layers_shares_their_capture(config: dict[str, Any]) -> None:
    build: Build = make_build(config, target_layers="all")
    assert sum(job.rule == "capture" for job in Graph(build).jobs) == 2, "the examples and the texts from elsewhere"
