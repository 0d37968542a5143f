"""The build: which keys a change moves and which it leaves."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import amygdala.build
import amygdala.snapshots
import tiny
from amygdala.errors import UserError
from amygdala.graph import RawNode
from amygdala.sources import live_lines, sources_of
from amygdala.textsets import neutral_texts
from builds import (
    ALL_ROWS,
    EMOTIONS,
    Nodes,
    changed,
    first,
    held_out,
    keys_of,
    make_build,
    make_config,
    make_nodes,
    text_of,
    write_graph,
)
from tiny import REPOSITORY


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return make_config(tmp_path, tiny_model, monkeypatch)


def with_nodes(config: dict[str, Any], nodes: Nodes) -> set[str]:
    before = make_build(config)
    write_graph(Path("graph.jsonl"), nodes)
    return changed(before, make_build(config))


def test_the_fixture_covers_each_stage(config: dict[str, Any]) -> None:
    build = make_build(config)
    assert build.emotions == list(EMOTIONS)
    assert build.layers == [1, 2]
    held = sum(held_out(text_of(i)) for i in range(60))
    assert 0 < held < 60
    assert build.plan.graph["near_duplicates"] == {"texts": 0, "groups": 0, "moved_to_train": 0}
    for emotion in EMOTIONS:
        mine = [i for i in range(60) if EMOTIONS[i % 3] == emotion]
        others = [i for i in range(60) if EMOTIONS[i % 3] != emotion]
        counts = {
            split: {
                "positive": sum(held_out(text_of(i)) == (split == "held_out") for i in mine),
                "negative": sum(held_out(text_of(i)) == (split == "held_out") for i in others),
            }
            for split in ("train", "held_out")
        }
        assert build.plan.emotions[emotion]["counts"] == counts
    values = [value for name, value in keys_of(build).items() if name != "index"] + build.index_keys
    assert len(set(values)) == len(values)


def test_the_same_sources_give_the_same_keys(config: dict[str, Any]) -> None:
    before = make_build(config)
    shutil.rmtree(config["store"])
    assert changed(before, make_build(config)) == set()


# A change of the graph


def test_a_node_in_no_example(config: dict[str, Any]) -> None:
    assert with_nodes(config, [*make_nodes(), {"key": "short", "text": "Too short.\njoy:9"}]) == {"snapshot", "release"}


def test_a_node_renamed(config: dict[str, Any]) -> None:
    nodes = make_nodes()
    nodes[7]["key"] = "node/zzz"
    assert with_nodes(config, nodes) == {"snapshot", "release"}


def test_a_node_that_moves_to_another_folder(config: dict[str, Any]) -> None:
    """Where a text is from may confound its emotion: figures look at it, vectors don't."""
    nodes = make_nodes()
    nodes[7]["key"] = "elsewhere/zzz"
    assert with_nodes(config, nodes) == {"snapshot", "examples", "figures", "quality", "release"}


def test_nodes_in_another_order(config: dict[str, Any]) -> None:
    assert with_nodes(config, make_nodes()[::-1]) == {"snapshot", "release"}


@pytest.mark.parametrize("split", [False, True], ids=["train", "held out"])
def test_a_positive_of_one_emotion_added(config: dict[str, Any], split: bool) -> None:
    # the text names the other emotions, so it is no negative of theirs
    texts = (text_of(number, "a calm afternoon without grief, a bright") for number in range(100, 200))
    text = next(text for text in texts if held_out(text) == split)
    moved = with_nodes(config, [*make_nodes(), {"key": "new", "text": f"{text}\njoy:9"}])
    trained = {"figures joy"} | (set() if split else {"vectors joy", "heads joy"})
    assert moved == {"snapshot", "examples joy", "index", "quality", "release"} | trained


def test_a_negative_of_the_other_emotions_added(config: dict[str, Any]) -> None:
    text = next(text_of(number) for number in range(100, 200) if not held_out(text_of(number)))
    moved = with_nodes(config, [*make_nodes(), {"key": "new", "text": f"{text}\njoy:9"}])
    assert moved == {"snapshot", "examples", "index", "vectors", "heads", "figures", "quality", "release"}


@pytest.mark.parametrize("split", [False, True], ids=["train", "held out"])
def test_a_score_crosses_min_positive_score(config: dict[str, Any], split: bool) -> None:
    nodes, number = make_nodes(), first(split, "joy")
    nodes[number]["text"] = nodes[number]["text"].replace("joy:9", "joy:7.9")
    trained = {"figures joy"} | (set() if split else {"vectors joy", "heads joy"})
    # the text stays a negative of the others: its rows are there already
    assert with_nodes(config, nodes) == {"snapshot", "examples joy", "quality", "release"} | trained


def test_a_score_changes_on_its_side_of_min_positive_score(config: dict[str, Any]) -> None:
    nodes = make_nodes()
    nodes[first(False, "joy")]["text"] = nodes[first(False, "joy")]["text"].replace("joy:9", "joy:8")
    assert with_nodes(config, nodes) == {"snapshot", "release"}


def test_the_text_of_a_held_out_node_changes(config: dict[str, Any]) -> None:
    nodes, number = make_nodes(), first(True, "joy")
    text = next(text_of(other) for other in range(100, 200) if held_out(text_of(other)))
    nodes[number]["text"] = f"{text}\njoy:9"
    assert with_nodes(config, nodes) == {"snapshot", "examples", "index", "figures", "quality", "release"}


def test_a_tag_renamed_moves_no_other_emotion(config: dict[str, Any]) -> None:
    nodes = make_nodes()
    for node in nodes:
        node["text"] = node["text"].replace("joy:9", "delight:9")
    before = make_build(config)
    write_graph(Path("graph.jsonl"), nodes)
    after = make_build(config)
    assert after.emotions == ["calm", "delight", "grief"]
    for emotion in ("calm", "grief"):
        assert after.example_keys[emotion] == before.example_keys[emotion]
        assert after.vector_keys[emotion] == before.vector_keys[emotion]
        assert after.head_keys[emotion] == before.head_keys[emotion]
    assert after.vector_keys["delight"] != before.vector_keys["joy"]  # the emotion is part of its key
    assert after.example_keys["delight"] != before.example_keys["joy"]
    assert after.head_keys["delight"] != before.head_keys["joy"]
    assert after.index_keys == before.index_keys


def test_a_tag_renamed_to_an_alias_moves_no_emotion(config: dict[str, Any]) -> None:
    config["emotions"]["aliases"] = {"delight": "joy", "glee": "joy"}
    nodes = make_nodes()
    for number, node in enumerate(nodes):
        if number % 2:
            node["text"] = node["text"].replace("joy:9", "Delight:9")
    assert any("Delight" in node["text"] for node in nodes)
    assert with_nodes(config, nodes) == {"snapshot", "release"}


def test_a_mention_of_an_alias_is_one_of_the_emotion(config: dict[str, Any]) -> None:
    before = make_build(config)
    nodes = make_nodes()
    number = first(False, "calm")
    nodes[number]["text"] = f"{text_of(number, 'a gleeful')}\ncalm:9"
    write_graph(Path("graph.jsonl"), nodes)
    emotions = {**config["emotions"], "aliases": {"gleeful": "joy"}}
    after = make_build(config, emotions=emotions)
    counts = [build.plan.emotions["joy"]["counts"] for build in (before, after)]
    negatives = [sum(sides["negative"] for sides in each.values()) for each in counts]
    assert negatives == [40, 39]


def test_a_near_duplicate_brings_a_held_out_text_into_training(config: dict[str, Any]) -> None:
    number = first(True, "joy")
    twins = (f"{text_of(number)[:-1]}{end}" for end in ("!", "?", "…", "; ", ")", "]", ", ", ":", "-", "'"))
    twin = next(text for text in twins if not held_out(text))
    # it carries all three emotions below their thresholds: an example of none
    moved = with_nodes(config, [*make_nodes(), {"key": "twin", "text": f"{twin}\njoy:1 calm:1 grief:1"}])
    assert moved == {"snapshot", "examples", "vectors", "heads", "figures", "quality", "release"}
    assert make_build(config).facts()["snapshot"]["near_duplicates"] == {"texts": 2, "groups": 1, "moved_to_train": 1}


def test_spellings_of_a_template_share_their_rows(config: dict[str, Any]) -> None:
    one, other = (make_build(config, template={"role": "user", **more}) for more in ({}, {"system": None}))
    assert one.space_keys == other.space_keys and one.vector_keys == other.vector_keys
    assert one.capture_settings() == other.capture_settings()


def test_the_order_of_poolings_asks_for_no_capture(config: dict[str, Any]) -> None:
    one, other = (make_build(config, pooling=poolings) for poolings in (["mean", "last"], ["last", "mean"]))
    assert set(one.all_indices) == set(other.all_indices) and one.indices != other.indices


def test_going_back_gives_the_first_keys_again(config: dict[str, Any]) -> None:
    before = make_build(config)
    write_graph(Path("graph.jsonl"), make_nodes()[:-9])
    assert changed(before, make_build(config))
    write_graph(Path("graph.jsonl"), make_nodes())
    assert changed(before, make_build(config)) == set()


# A change of the configuration


def with_cluster(**changes: Any) -> dict[str, Any]:
    """`cluster` with other values; those of `gpu` and `light` key by key."""
    given: dict[str, Any] = copy.deepcopy(yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))["cluster"])
    for name, value in changes.items():
        given[name] = {**given[name], **value} if isinstance(value, dict) else value
    return given


# What jobs ask a cluster for is no part of what they make.
OTHERS: dict[str, dict[str, Any]] = {
    "": {"account": "lab", "partition": "main", "qos": "high", "constraint": "fast"},
    "gpu": {
        **{"partition": "gpu", "qos": "high", "constraint": "a100", "count": 4, "model": "a100"},
        **{"cpus": 9, "mem_mb": 9000, "runtime": 9},
    },
    "light": {"run": "here", "cpus": 9, "mem_mb": 9000, "runtime": 9},
}
CLUSTERS = [
    with_cluster(**({section: {key: value}} if section else {key: value}))
    for section, values in OTHERS.items()
    for key, value in values.items()
]


def test_each_setting_of_the_cluster_has_another_value() -> None:
    default = with_cluster()
    assert all(given != default for given in CLUSTERS)
    assert {*OTHERS[""], "gpu", "light"} == set(default)
    assert set(OTHERS["gpu"]) == set(default["gpu"]) and set(OTHERS["light"]) == set(default["light"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"target_layers": [1, 2, 3]}, {"index", "quality", "release"}),
        ({"target_layers": [1]}, {"index", "quality", "release"}),
        ({"target_layers": ["1", "2"]}, set()),  # as the command line gives them
        ({"pooling": "last"}, ALL_ROWS),
        ({"pooling": ["last", "mean"]}, ALL_ROWS),
        ({"pooling": ["mean"]}, {"release"}),  # the manifest repeats the setting
        ({"pooling": ["mean", "last"]}, {"index", "release"}),
        ({"pooling": ["mean", "from_token:9", "last"]}, {"index", "release"}),
        ({"template": {"role": "user"}}, ALL_ROWS),
        ({"template": {"role": "user", "system": None}}, ALL_ROWS),
        ({"target_layers": "all"}, {"index", "quality", "release"}),
        ({"device_map": "auto"}, set()),
        ({"batch_size": 3}, set()),
        ({"max_tokens": 1024}, ALL_ROWS),
        ({"dtype": "bf16"}, ALL_ROWS | {"model", "weights"}),
        ({"dtype": "fp32"}, {"release"}),  # what auto stands for; the manifest repeats the setting
        ({"results": "elsewhere/results"}, set()),
        ({"results": "results/"}, set()),
        ({"store": "elsewhere/store"}, set()),
        ({"store": "store/"}, set()),
        ({"batch_tokens": 64}, set()),
        ({"device": "cpu"}, set()),
        ({"emotions_per_job": 1}, set()),
        ({"shards": 3}, {"index"}),
        *(({"cluster": given}, set()) for given in CLUSTERS),
        ({"method": "lda"}, {"vectors", "heads", "figures", "quality", "release"}),
        ({"method": "paired"}, {"vectors", "heads", "figures", "quality", "release"}),
        ({"denoise": 0.5}, {"index", "vectors", "heads", "figures", "quality", "release"}),
        ({"neutral": "elsewhere.jsonl"}, set()),  # no neutral texts are asked for
        ({"families": {}}, {"quality", "release"}),
        ({"sweep_layers": 2}, set()),
        ({"unseen": []}, set()),
        ({"report_texts": 1}, set()),
        ({"ablation": {"emotions": ["joy"], "layer": 1, "heads": 1, "fill": "zero", "random": 3}}, set()),
        ({"seed": 1}, {"release"}),  # no emotion has more examples than the cap
        ({"min_positive_score": 9}, {"release"}),
        ({"snapshot": "elsewhere.jsonl"}, set()),  # no live source is built from it
        ({"max_lost_nodes": 0.1}, set()),
        ({"bad_nodes": "skip"}, {"snapshot", "release"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_setting_changes(config: dict[str, Any], overrides: dict[str, Any], expected: set[str]) -> None:
    assert changed(make_build(config), make_build(config, **overrides)) == expected


def test_vectors_are_made_from_the_first_pooling(config: dict[str, Any]) -> None:
    spaces = {name: make_build(config, pooling=name).space_key for name in ("mean", "last", "from_token:9")}
    assert len(set(spaces.values())) == 3
    for order in itertools.permutations(spaces):
        build = make_build(config, pooling=list(order))
        assert build.poolings == list(order)
        assert build.space_keys == [spaces[name] for name in order], "each has the space that it has alone"
        assert build.spaces == [f"store/activations/{spaces[name]}" for name in order]
        assert build.vector_keys == make_build(config, pooling=order[0]).vector_keys
        assert build.head_keys == make_build(config, pooling=order[0]).head_keys
        assert build.indices == build.captured(build.index_keys[0])[:1] and spaces[order[0]] in build.indices[0]
        assert [Path(path).parent.parent.name for path in build.all_indices] == build.space_keys
        assert build.facts()["pooling"] == order[0]
        assert build.facts()["keys"]["activations"] == spaces[order[0]]


@pytest.mark.parametrize("spelling", ["from_token: 9", {"from_token": 9}, ["from_token:9", {"from_token": 9}]], ids=str)
def test_a_pooling_is_one_in_every_spelling(config: dict[str, Any], spelling: Any) -> None:
    before = make_build(config, pooling="from_token:9")
    after = make_build(config, pooling=spelling)
    assert changed(before, after) == {"release"}
    assert after.facts()["pooling"] == "from_token:9"


def test_another_token_another_role_and_another_prompt_are_other_rows(config: dict[str, Any]) -> None:
    given: list[dict[str, Any]] = [
        {"pooling": "from_token:9"},
        {"pooling": "from_token:10"},
        {"template": {"role": "user"}},
        {"template": {"role": "assistant"}},
        {"template": {"role": "user", "system": "You keep a journal."}},
        {"template": {"role": "user", "system": "You keep a diary."}},
    ]
    assert len({make_build(config, **each).space_key for each in given}) == len(given)


def test_facts_say_the_template(config: dict[str, Any]) -> None:
    template = {"role": "assistant", "system": "You keep a journal."}
    facts = make_build(config, template=template).facts()
    assert facts["template"] == facts["config"]["template"] == template


def test_shards_share_the_texts(config: dict[str, Any]) -> None:
    build = make_build(config, shards=3)
    assert len(build.index_keys) == len(set(build.index_keys)) == 3
    assert sum(part["texts"] for part in build.plan.shards) == 60
    assert build.selections == make_build(config).selections


def test_a_shard_without_texts_has_no_index(config: dict[str, Any]) -> None:
    build = make_build(config, shards=300)
    filled = [shard for shard, part in enumerate(build.plan.shards) if part["texts"]]
    assert 0 < len(filled) <= 60
    assert build.indices == [build.captured(build.index_keys[shard])[0] for shard in filled] == build.all_indices
    both = make_build(config, shards=300, pooling=["last", "mean"])
    assert both.indices == [both.captured(both.index_keys[shard])[0] for shard in filled]
    assert both.all_indices == [path for shard in filled for path in both.captured(both.index_keys[shard])]


@pytest.mark.parametrize(
    "emotions",
    [
        {"exclude": ["grief"]},
        {"select": "curated", "curated": ["joy", "calm"]},
        {"select": "curated", "curated": ["Calm", "JOY"]},
    ],
    ids=["excluded", "curated", "curated in capitals"],
)
def test_other_emotions_keep_their_keys(config: dict[str, Any], emotions: dict[str, Any]) -> None:
    before = make_build(config)
    after = make_build(config, emotions={**config["emotions"], **emotions})
    assert after.emotions == ["calm", "joy"]
    assert changed(before, after) == {"examples grief", "vectors grief", "heads grief", "figures grief", "quality", "release"}
    assert "emotion_grief" not in after.selections


def test_a_curated_emotion_added(config: dict[str, Any]) -> None:
    nodes = make_nodes()
    for node in nodes[:4]:
        node["text"] += " awe:9"
    write_graph(Path("graph.jsonl"), nodes)
    before, after = make_build(config), make_build(config, emotions={**config["emotions"], "curated": ["awe"]})
    assert set(after.emotions) - set(before.emotions) == {"awe"}
    assert changed(before, after) == {"examples awe", "vectors awe", "heads awe", "figures awe", "quality", "release"}


# A change of the model


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_byte_of_the_weights_changes(config: dict[str, Any]) -> None:
    before = make_build(config)
    flip_last_byte(Path("model/model.safetensors"))
    assert changed(before, make_build(config)) == ALL_ROWS | {"model", "weights"}


def test_a_byte_of_the_tokenizer_changes(config: dict[str, Any]) -> None:
    before = make_build(config)
    path = Path("model/tokenizer.json")
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert changed(before, make_build(config)) == ALL_ROWS | {"model", "weights"}


def test_the_same_model_elsewhere(config: dict[str, Any]) -> None:
    before = make_build(config)
    shutil.copytree("model", "other/place/model")
    assert changed(before, make_build(config, model="other/place/model")) == set()
    assert changed(before, make_build(config, model=str(Path("other/place/model").resolve()))) == set()


def test_the_same_model_under_another_name_moves_the_manifest_alone(config: dict[str, Any]) -> None:
    before = make_build(config)
    shutil.copytree("model", "renamed")
    assert changed(before, make_build(config, model="renamed")) == {"release"}


def test_the_same_graph_elsewhere(config: dict[str, Any]) -> None:
    before = make_build(config)
    Path("other").mkdir()
    write_graph(Path("other/mine.jsonl"), make_nodes())
    assert changed(before, make_build(config, graph="other/mine.jsonl")) == set()


# A change of the sources


def test_a_path_and_a_file_source_are_one(config: dict[str, Any]) -> None:
    before = make_build(config)
    source = {"source": "file", "path": "graph.jsonl"}
    for graph in (source, [source], ["graph.jsonl"], {**source, "name": "file"}):
        assert changed(before, make_build(config, graph=graph)) == set()
    assert changed(before, make_build(config, graph={**source, "name": "notes"})) == {"snapshot", "release"}
    assert changed(before, make_build(config, graph={**source, "time": "when"})) == {"snapshot", "release"}


def test_several_sources_are_one_graph(config: dict[str, Any]) -> None:
    before = make_build(config)
    write_graph(Path("a.jsonl"), make_nodes()[:31])
    write_graph(Path("b.jsonl"), make_nodes()[31:])
    a, b = ({"source": "file", "name": name, "path": f"{name}.jsonl"} for name in "ab")
    after = make_build(config, graph=[a, b])
    assert changed(before, after) == {"snapshot", "examples", "figures", "quality", "release"}  # texts have a source to tell by
    assert after.facts()["snapshot"]["sources"] == {"a": 31, "b": 29}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"timeout_s": 5}, set()),
        ({"token_env": "TOKEN"}, set()),
        ({"max_nodes": 70}, set()),
        ({"name": "web"}, None),
        ({"url": "https://example.org/other"}, None),
    ],
    ids=str,
)
def test_a_live_source_is_built_from_its_snapshot(
    config: dict[str, Any], change: dict[str, Any], expected: set[str] | None
) -> None:
    """What says how to fetch moves nothing; another definition asks for another snapshot."""
    source = {"source": "http", "url": "https://example.org/nodes"}
    fetched = {"http": (sources_of(source)[0], [RawNode(each["key"], each["text"]) for each in make_nodes()])}
    config["snapshot"] = "fetched.jsonl"
    Path("fetched.jsonl").write_text(live_lines(fetched), encoding="utf-8")
    local, before = make_build(config), make_build(config, graph=source)
    assert changed(local, before) == {"snapshot", "release"}
    if expected is None:
        with pytest.raises(UserError, match="snakemake --cores 1 refresh"):
            make_build(config, graph={**source, **change})
    else:
        assert changed(before, make_build(config, graph={**source, **change})) == expected
    shutil.copy("fetched.jsonl", "moved.jsonl")
    assert changed(before, make_build(config, graph=source, snapshot="moved.jsonl")) == set()
    node = RawNode("short", "Too short.\njoy:9")
    Path("fetched.jsonl").write_text(live_lines({"http": (fetched["http"][0], [*fetched["http"][1], node])}), encoding="utf-8")
    assert changed(before, make_build(config, graph=source)) == {"snapshot", "release"}


# A change of the code and of the libraries


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("snapshot", {"snapshot", "release"}),
        ("amygdala.plan", set()),
        ("amygdala.corpus", set()),  # the index is made anew under another name
        ("examples", {"examples", "figures", "quality", "release"}),
        ("amygdala.convert", {"model"}),  # a folder is not converted
        ("activations", ALL_ROWS),
        ("vectors", {"vectors", "heads", "figures", "quality", "release"}),
        ("weights", {"weights", "heads", "figures", "quality", "release"}),
        ("heads", {"heads", "quality", "release"}),
        ("figures", {"figures", "quality", "release"}),
        ("texts", set()),
        ("compare", set()),
        ("comparison", set()),
        ("unseen", set()),
        ("quality", {"quality", "release"}),
        ("readout", {"release"}),
        ("overview", {"release"}),
        ("publish", set()),
    ],
)
def test_the_code_of_a_stage_changes(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, entry: str, expected: set[str]
) -> None:
    before, original = make_build(config), amygdala.build.code
    for module in (amygdala.build, amygdala.snapshots):
        monkeypatch.setattr(module, "code", lambda name: "other" if name == entry else original(name))
    assert changed(before, make_build(config)) == expected


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("torch", ALL_ROWS | {"model", "weights"}),
        ("transformers", ALL_ROWS | {"model", "weights"}),
        ("scikit-learn", {"release"}),  # mean_difference is numpy's alone; the manifest repeats the version
        ("scipy", {"figures", "quality", "release"}),
        ("numpy", {"release"}),
        ("matplotlib", {"release"}),
    ],
)
def test_the_version_of_a_library_changes(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, library: str, expected: set[str]
) -> None:
    before, original = make_build(config), amygdala.build.version
    monkeypatch.setattr(amygdala.build, "version", lambda name, *_: "0.1" if name == library else original(name))
    assert changed(before, make_build(config)) == expected


@pytest.mark.parametrize("change", ["code", "torch"])
def test_the_rows_of_a_converted_model_depend_on_its_conversion(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    config = {**config, "model": "embedded"}
    before, code, version = make_build(config), amygdala.build.code, amygdala.build.version
    if change == "code":
        monkeypatch.setattr(amygdala.build, "code", lambda name: "other" if name == "amygdala.convert" else code(name))
    else:
        monkeypatch.setattr(amygdala.build, "version", lambda name, *_: "0.1" if name == "torch" else version(name))
    assert changed(before, make_build(config)) == ALL_ROWS | {"model", "weights"}


def test_neutral_texts_of_shards_without_examples_have_an_index_each(config: dict[str, Any]) -> None:
    build = make_build(config, shards=300, denoise=0.5)
    assert len(set(build.index_keys)) == 300
    assert {build.captures[key].shard for key in build.index_keys} == set(range(300))
    assert len(build.indices) == 300


def test_families_are_by_the_names_of_the_build(config: dict[str, Any]) -> None:
    config["emotions"]["aliases"] = {"delight": "joy"}
    build = make_build(config, families={"bright": ["Delight", "JOY", "calm"], "none": []})
    assert build.families() == {"bright": ["calm", "joy"], "none": []}


def test_a_missing_set_of_texts_from_elsewhere_stops_nobody_else(config: dict[str, Any]) -> None:
    missing = [{"source": "file", "name": "gone", "path": "nowhere.jsonl"}]
    build = make_build(config, unseen=missing)
    assert build.no_unseen.startswith("unseen: no such file") and build.selections == make_build(config).selections
    assert make_build(config).no_unseen == ""


def test_ablation_takes_an_alias_for_its_emotion(config: dict[str, Any]) -> None:
    config["emotions"]["aliases"] = {"delight": "joy"}
    ablation = {**config["ablation"], "emotions": ["Delight"]}
    build = make_build(config, ablation=ablation)
    assert build.ablated()[0] == ["joy"] and build.no_ablation == ""


def test_neutral_texts_want_a_readable_file(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"neutral: cannot read .*: it is a folder"):
        make_build(config, denoise=0.5, neutral=str(tmp_path))

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"^cannot read .*neutral\.jsonl: Permission denied$"):
        neutral_texts(tiny.REPOSITORY / "resources" / "neutral.jsonl", 1)


def test_keys_cover_the_neutral_texts_and_not_the_code_that_reads_them(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["The bus leaves at six from the old station.", *(f"{'Onions and rice, ' * 4}page {n}." for n in range(3))]
    Path("short.jsonl").write_text("".join(json.dumps({"key": str(n), "text": t}) + "\n" for n, t in enumerate(texts)))
    assert [len(make_build(config, denoise=0.5, neutral="short.jsonl", min_content_chars=n).neutral) for n in (40, 48)] == [
        4,
        3,
    ]
    one = make_build(config, denoise=0.5)
    before, original = [one.compared(name, "joy") for name in ("compare", "sweep")], amygdala.build.code
    monkeypatch.setattr(amygdala.build, "code", lambda name: "other" if name == "texts" else original(name))
    other = make_build(config, denoise=0.5)
    assert other.texts("neutral") != one.texts("neutral") and changed(one, other) == set()
    assert [other.compared(name, "joy") for name in ("compare", "sweep")] == before


def test_a_sweep_depends_on_the_pooling_that_it_reads(config: dict[str, Any]) -> None:
    one, two, three = (make_build(config, pooling=given) for given in ("mean", ["mean", "last"], "last"))
    assert one.compared("sweep", "joy") == two.compared("sweep", "joy") != three.compared("sweep", "joy")
    assert one.compared("compare", "joy") != two.compared("compare", "joy")


def test_what_a_sweep_chose_is_for_its_own_settings(config: dict[str, Any]) -> None:
    given = make_build(config).swept()
    for change in ({"pooling": "last"}, {"method": "lda"}, {"denoise": 0.5}, {"max_tokens": 99}, {"dtype": "bf16"}):
        assert make_build(config, **change).swept() != given


def test_comparisons_depend_on_min_examples(config: dict[str, Any]) -> None:
    """Too few rows are written down as the reason of no vector."""
    one, other = (make_build(config, min_examples=least).compared("compare", "joy") for least in (2, 3))
    assert one != other


@pytest.mark.parametrize("library", ["scikit-learn", "scipy"])
@pytest.mark.parametrize("method", ["pca", "logistic", "lda"])
def test_other_methods_than_means_depend_on_what_fits_them(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, method: str, library: str
) -> None:
    before, original = make_build(config, method=method), amygdala.build.version
    compared = before.compared("compare", "joy")  # worked out when asked for: before the version changes
    monkeypatch.setattr(amygdala.build, "version", lambda name, *_: "0.1" if name == library else original(name))
    after = make_build(config, method=method)
    assert changed(before, after) == {"vectors", "heads", "figures", "quality", "release"}
    assert compared != after.compared("compare", "joy")
