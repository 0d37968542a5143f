"""The build: which keys a change moves and which it leaves, paths in the store, the plan's memo, messages."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import amygdala.build
from amygdala.build import Build
from amygdala.errors import UserError
from amygdala.plan import held_out_mask
from tiny import REPOSITORY

EMOTIONS = ("calm", "grief", "joy")
LIBRARIES = ("torch", "transformers", "scikit-learn", "numpy")
Nodes = list[dict[str, str]]


def text_of(number: int, word: str = "an ordinary") -> str:
    return f"Entry {number} of the journal tells of {word} afternoon by the sea."


def held_out(text: str) -> bool:
    from hashlib import sha256

    return bool(held_out_mask([sha256(text.encode()).hexdigest()[:32]], 0.2)[0])


def make_nodes() -> Nodes:
    """60 nodes: 20 positives of each emotion, which are negatives of the two others."""
    return [{"key": f"node/{i:02d}", "text": f"{text_of(i)}\n{EMOTIONS[i % 3]}:9"} for i in range(60)]


def first(split: bool, emotion: str) -> int:
    """The first node tagged with the emotion whose text is held out, or is not."""
    return next(i for i in range(60) if EMOTIONS[i % 3] == emotion and held_out(text_of(i)) == split)


def write_graph(path: Path, nodes: Nodes) -> Path:
    path.write_text("".join(json.dumps(node) + "\n" for node in nodes), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The repository's configuration with a small graph and a copy of the tiny model, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    settings["emotions"]["min_positives"] = 5
    write_graph(tmp_path / "graph.jsonl", make_nodes())
    shutil.copytree(tiny_model, tmp_path / "model")
    return {**settings, "graph": "graph.jsonl", "model": "model", "min_examples": 2, "target_layers": [1, 2]}


def make_build(config: dict[str, Any], **overrides: Any) -> Build:
    return Build(copy.deepcopy({**config, **overrides}), REPOSITORY)


def keys_of(build: Build) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "snapshot": build.snapshot_key,
        "model": build.model_key,
        "space": build.space_key,
        "index": build.index_keys,
        "quality": build.quality_key,
        "release": build.selections["readout"].key,
    }
    for stage, by_emotion in (("examples", build.example_keys), ("vectors", build.vector_keys), ("heads", build.head_keys)):
        keys.update({f"{stage} {emotion}": value for emotion, value in by_emotion.items()})
    return keys


def changed(before: Build, after: Build) -> set[str]:
    """The names of the keys that differ, a stage alone where all its emotions do."""
    one, two = keys_of(before), keys_of(after)
    names = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    for stage in ("examples", "vectors", "heads"):
        every = {f"{stage} {emotion}" for emotion in EMOTIONS}
        if every <= names:
            names = names - every | {stage}
    return names


ALL_ROWS = {"space", "index", "vectors", "heads", "quality", "release"}


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
    nodes[7]["key"] = "zzz"
    assert with_nodes(config, nodes) == {"snapshot", "release"}


def test_nodes_in_another_order(config: dict[str, Any]) -> None:
    assert with_nodes(config, make_nodes()[::-1]) == {"snapshot", "release"}


@pytest.mark.parametrize("split", [False, True], ids=["train", "held out"])
def test_a_positive_of_one_emotion_added(config: dict[str, Any], split: bool) -> None:
    # the text names the other emotions, so it is no negative of theirs
    texts = (text_of(number, "a calm afternoon without grief, a bright") for number in range(100, 200))
    text = next(text for text in texts if held_out(text) == split)
    moved = with_nodes(config, [*make_nodes(), {"key": "new", "text": f"{text}\njoy:9"}])
    trained = set() if split else {"vectors joy", "heads joy"}
    assert moved == {"snapshot", "examples joy", "index", "quality", "release"} | trained


def test_a_negative_of_the_other_emotions_added(config: dict[str, Any]) -> None:
    text = next(text_of(number) for number in range(100, 200) if not held_out(text_of(number)))
    moved = with_nodes(config, [*make_nodes(), {"key": "new", "text": f"{text}\njoy:9"}])
    assert moved == {"snapshot", "examples", "index", "vectors", "heads", "quality", "release"}


@pytest.mark.parametrize("split", [False, True], ids=["train", "held out"])
def test_a_score_crosses_min_positive_score(config: dict[str, Any], split: bool) -> None:
    nodes, number = make_nodes(), first(split, "joy")
    nodes[number]["text"] = nodes[number]["text"].replace("joy:9", "joy:7.9")
    trained = set() if split else {"vectors joy", "heads joy"}
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
    assert with_nodes(config, nodes) == {"snapshot", "examples", "index", "quality", "release"}


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


def test_going_back_gives_the_first_keys_again(config: dict[str, Any]) -> None:
    before = make_build(config)
    write_graph(Path("graph.jsonl"), make_nodes()[:-9])
    assert changed(before, make_build(config))
    write_graph(Path("graph.jsonl"), make_nodes())
    assert changed(before, make_build(config)) == set()


# A change of the configuration


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"target_layers": [1, 2, 3]}, {"index", "quality", "release"}),
        ({"target_layers": [1]}, {"index", "quality", "release"}),
        ({"pooling": "last"}, ALL_ROWS),
        ({"max_tokens": 1024}, ALL_ROWS),
        ({"dtype": "bf16"}, ALL_ROWS | {"model"}),
        ({"dtype": "fp32"}, {"release"}),  # what auto stands for; the manifest repeats the setting
        ({"results": "elsewhere/results"}, set()),
        ({"results": "results/"}, set()),
        ({"store": "elsewhere/store"}, set()),
        ({"store": "store/"}, set()),
        ({"batch_tokens": 64}, set()),
        ({"device": "cpu"}, set()),
        ({"emotions_per_job": 1}, set()),
        ({"shards": 3}, {"index"}),
        ({"seed": 1}, {"release"}),  # no emotion has more examples than the cap
        ({"min_positive_score": 9}, {"release"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_setting_changes(config: dict[str, Any], overrides: dict[str, Any], expected: set[str]) -> None:
    assert changed(make_build(config), make_build(config, **overrides)) == expected


def test_shards_share_the_texts(config: dict[str, Any]) -> None:
    build = make_build(config, shards=3)
    assert len(build.index_keys) == len(set(build.index_keys)) == 3
    assert sum(part["texts"] for part in build.plan.shards) == 60
    assert build.selections == make_build(config).selections


def test_a_shard_without_texts_has_no_index(config: dict[str, Any]) -> None:
    build = make_build(config, shards=300)
    filled = [shard for shard, part in enumerate(build.plan.shards) if part["texts"]]
    assert 0 < len(filled) <= 60
    assert build.indices == [build.index(shard) for shard in filled]


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
    assert changed(before, after) == {"examples grief", "vectors grief", "heads grief", "quality", "release"}
    assert "emotion_grief" not in after.selections


def test_a_curated_emotion_added(config: dict[str, Any]) -> None:
    nodes = make_nodes()
    for node in nodes[:4]:
        node["text"] += " awe:9"
    write_graph(Path("graph.jsonl"), nodes)
    before, after = make_build(config), make_build(config, emotions={**config["emotions"], "curated": ["awe"]})
    assert set(after.emotions) - set(before.emotions) == {"awe"}
    assert changed(before, after) == {"examples awe", "vectors awe", "heads awe", "quality", "release"}


# A change of the model


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_byte_of_the_weights_changes(config: dict[str, Any]) -> None:
    before = make_build(config)
    flip_last_byte(Path("model/model.safetensors"))
    assert changed(before, make_build(config)) == ALL_ROWS | {"model"}


def test_a_byte_of_the_tokenizer_changes(config: dict[str, Any]) -> None:
    before = make_build(config)
    path = Path("model/tokenizer.json")
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert changed(before, make_build(config)) == ALL_ROWS | {"model"}


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


# A change of the code and of the libraries


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("snapshot", {"snapshot", "release"}),
        ("amygdala.plan", set()),
        ("examples", {"examples", "quality", "release"}),
        ("amygdala.convert", {"model"}),  # a folder is not converted
        ("activations", ALL_ROWS),
        ("vectors", {"vectors", "quality", "release"}),
        ("heads", {"heads", "quality", "release"}),
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
    monkeypatch.setattr(amygdala.build, "code", lambda name: "other" if name == entry else original(name))
    assert changed(before, make_build(config)) == expected


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("torch", ALL_ROWS | {"model"}),
        ("transformers", ALL_ROWS | {"model"}),
        ("scikit-learn", {"quality", "release"}),
        ("numpy", {"release"}),
        ("matplotlib", {"release"}),
    ],
)
def test_the_version_of_a_library_changes(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, library: str, expected: set[str]
) -> None:
    before, original = make_build(config), amygdala.build.version
    monkeypatch.setattr(amygdala.build, "version", lambda name: "0.1" if name == library else original(name))
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
        monkeypatch.setattr(amygdala.build, "version", lambda name: "0.1" if name == "torch" else version(name))
    assert changed(before, make_build(config)) == ALL_ROWS | {"model"}


# The plan's memo


def plan_memo() -> Path:
    (memo,) = Path("store/memo").glob("plan.*.json")
    return memo


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the plan was made again")


def test_the_plan_is_made_once(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_build(config)
    monkeypatch.setattr(amygdala.build, "make_plan", refuse)
    monkeypatch.setattr(amygdala.build, "read_nodes", refuse)
    after = make_build(config)
    assert changed(before, after) == set()
    assert after.plan == before.plan
    assert after.releases == before.releases
    assert after.facts() == before.facts()


@pytest.mark.parametrize(
    "change", [{"min_positive_score": 7}, {"shards": 2}, {"seed": 5}, {"min_content_chars": 41}, {"held_out": 0.3}], ids=str
)
def test_the_plan_is_made_again_for_other_settings(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    make_build(config)
    monkeypatch.setattr(amygdala.build, "make_plan", refuse)
    with pytest.raises(AssertionError, match="made again"):
        make_build(config, **change)


@pytest.mark.parametrize("change", ["graph", "code"])
def test_the_plan_is_made_again_for_another_graph_or_code(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    make_build(config)
    original = amygdala.build.code
    if change == "graph":
        write_graph(Path("graph.jsonl"), make_nodes()[:-1])
    else:
        monkeypatch.setattr(amygdala.build, "code", lambda name: "other" if name == "amygdala.plan" else original(name))
    monkeypatch.setattr(amygdala.build, "make_plan", refuse)
    with pytest.raises(AssertionError, match="made again"):
        make_build(config)


def drop_a_field(text: str) -> str:
    plan = json.loads(text)
    del plan["plan"]["shards"]
    return json.dumps(plan)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: "\x00" * 64,
        drop_a_field,
        lambda text: text.replace('"texts"', '"more"'),
    ],
    ids=["empty", "half", "list", "null", "object", "zeros", "field missing", "field renamed"],
)
def test_a_damaged_memo_is_made_again(config: dict[str, Any], damage: Callable[[str], str]) -> None:
    before = make_build(config)
    text = plan_memo().read_text(encoding="utf-8")
    plan_memo().write_text(damage(text), encoding="utf-8")
    assert changed(before, make_build(config)) == set()
    assert plan_memo().read_text(encoding="utf-8") == text


def test_a_memo_that_is_a_folder_is_no_error(config: dict[str, Any]) -> None:
    before = make_build(config)
    memo = plan_memo()
    memo.unlink()
    memo.mkdir()
    assert changed(before, make_build(config)) == set()


def test_a_store_that_cannot_be_written_is_no_error(config: dict[str, Any]) -> None:
    before = make_build(config)
    Path("file").touch()
    after = make_build(config, store="file/store")
    assert changed(before, after) == set()
    assert after.snapshot.startswith("file/store/snapshots/")


def test_a_store_on_a_read_only_disk_is_no_error(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    make_build(config)
    assert list(Path("store").rglob("*.*")) == []  # nothing half written is left


# Messages


@pytest.mark.parametrize(("layers", "wrong"), [([4], 4), ([0, 1, 17], 17), ([0.5, 4], 4)])
def test_a_layer_beyond_the_model(config: dict[str, Any], layers: list[int | float], wrong: int) -> None:
    with pytest.raises(UserError, match=rf"target_layers: layer {wrong} is beyond the model, which has layers 0 to 3"):
        make_build(config, target_layers=layers)


def test_depths_and_indices_become_layers(config: dict[str, Any]) -> None:
    assert make_build(config, target_layers=[0.0, 0.5, 1.0, 2]).layers == [0, 2, 3]
    assert changed(make_build(config, target_layers=[2, 1]), make_build(config)) == {"release"}


def test_a_missing_graph(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make_build(config, graph="nowhere.jsonl")
    assert str(caught.value) == f"graph: no such file: nowhere.jsonl or {REPOSITORY / 'nowhere.jsonl'}"
    with pytest.raises(UserError) as caught:
        make_build(config, graph=str(tmp_path / "nowhere.jsonl"))
    assert str(caught.value) == f"graph: no such file: {tmp_path / 'nowhere.jsonl'}"


def test_a_graph_that_is_a_folder(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"graph: cannot read model: Is a directory.*`graph:`"):
        make_build(config, graph="model")


def test_the_graph_of_the_working_folder_goes_first(config: dict[str, Any]) -> None:
    Path("resources").mkdir()
    write_graph(Path("resources/graph.jsonl"), make_nodes())
    assert make_build(config, graph="resources/graph.jsonl").plan.nodes == 60
    Path("resources/graph.jsonl").unlink()
    assert make_build(config, graph="resources/graph.jsonl").plan.nodes > 60


def test_the_line_of_a_damaged_graph_is_named(config: dict[str, Any]) -> None:
    Path("graph.jsonl").write_text('{"key": "a", "text": "b"}\n{"key": \n', encoding="utf-8")
    with pytest.raises(UserError, match=r"graph\.jsonl:2: not a line of JSON"):
        make_build(config)


def test_a_wrong_setting_is_told_with_its_key(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"'pooling'.*'median'"):
        make_build(config, pooling="median")
    with pytest.raises(UserError, match=r"unknown key 'poling'.*Did you mean 'pooling'"):
        make_build(config, poling="mean")


# What the manifest says, and paths


def test_facts_hold_no_path_and_no_environment(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_test")
    monkeypatch.setenv("USER", "somebody_of_the_test")
    build = make_build(
        config, graph=str(tmp_path / "graph.jsonl"), store=str(tmp_path / "store"), model=str(tmp_path / "model")
    )
    facts = json.dumps(build.facts())
    for private in (str(tmp_path), str(tmp_path.parent), str(REPOSITORY), "hf_secret_of_the_test", "somebody_of_the_test"):
        assert private not in facts
    assert "graph.jsonl" not in facts
    assert not build.facts()["config"].keys() & {"graph", "store", "results", "model", "device", "batch_tokens", "shards"}
    assert "/" not in facts


def test_facts_say_where_the_numbers_come_from(config: dict[str, Any]) -> None:
    from hashlib import sha256

    build = make_build(config, emotions={**config["emotions"], "exclude": ["grief"]})
    facts = build.facts()
    assert facts["model"] == {"kind": "folder", "name": "model", "identity": build.model.identity, "dtype": "fp32"}
    assert facts["snapshot"]["graph_sha256"] == sha256(Path("graph.jsonl").read_bytes()).hexdigest()
    assert facts["snapshot"]["nodes"] == 60
    assert facts["emotions_left_out"] == {"grief": "excluded by the configuration"}
    assert facts["config"]["target_layers"] == [1, 2]
    assert facts["keys"] == {"activations": build.space_key, "quality": build.quality_key}
    assert set(facts["versions"]) == set(LIBRARIES)


def test_selections(config: dict[str, Any]) -> None:
    build = make_build(config)
    found = {target: (chosen.folder, chosen.emotions, chosen.layers) for target, chosen in build.selections.items()}
    assert found == {
        "readout": ("readout", EMOTIONS, (1, 2)),
        **{f"emotion_{emotion}": (f"emotions/{emotion}", (emotion,), (1, 2)) for emotion in EMOTIONS},
        **{f"layer_{layer}": (f"layers/{layer}", EMOTIONS, (layer,)) for layer in (1, 2)},
    }
    assert len({chosen.key for chosen in build.selections.values()}) == 6
    assert build.releases == {chosen.key: chosen for chosen in build.selections.values()}


def test_paths_carry_the_keys(config: dict[str, Any]) -> None:
    build = make_build(config, store="shared/store/")
    vector, head, example = build.vector_keys["joy"], build.head_keys["joy"], build.example_keys["joy"]
    assert build.snapshot == f"shared/store/snapshots/{build.snapshot_key}.jsonl"
    assert build.examples("joy") == f"shared/store/examples/joy.{example}.json"
    folder = f"shared/store/vectors/joy.{vector}"
    assert build.vectors("joy") == [f"{folder}/layer_001.safetensors", f"{folder}/layer_002.safetensors"]
    assert build.vectors("joy", [2]) == [f"{folder}/layer_002.safetensors"]
    assert build.heads("joy") == [f"shared/store/heads/joy.{head}/layer_00{layer}.json" for layer in (1, 2)]
    assert build.indices == [f"shared/store/activations/{build.space_key}/index/shard_0.{build.index_keys[0]}.safetensors"]
    chosen = build.selections["readout"]
    assert build.release(chosen) == [
        f"shared/store/releases/{chosen.key}/vectors.safetensors",
        f"shared/store/releases/{chosen.key}/manifest.json",
    ]
    assert build.marker(chosen) == f"results/.current/readout.{chosen.key}"
    assert build.quality == f"shared/store/quality/{build.quality_key}.json"
    assert build.model_ready == f"shared/store/models/{build.model_key}.json"


@pytest.mark.parametrize("number", [1, 2, 15, 16, 17, 31, 32, 33, 200, 1000])
def test_batches_hold_each_emotion_once_in_few_even_lists(number: int) -> None:
    emotions = [f"e{n:04d}" for n in range(number)]
    made = amygdala.build.batches(emotions, 16)
    assert [emotion for batch in made for emotion in batch] == emotions
    assert len(made) == math.ceil(number / 16)
    sizes = {len(batch) for batch in made}
    assert max(sizes) <= 16 and max(sizes) - min(sizes) <= 1


def test_what_the_capture_loads(config: dict[str, Any], tmp_path: Path) -> None:
    build = make_build(config, batch_tokens=64, device="cpu")
    assert build.capture_settings() == {
        "source": str(tmp_path / "model"),
        "revision": None,
        "dtype": "fp32",
        "pooling": "mean",
        "max_tokens": 2048,
        "batch_tokens": 64,
        "device": "cpu",
    }
    embedded = make_build(config, model="embedded")
    assert embedded.model_source() == (f"store/models/{embedded.model_key}", None)
    assert embedded.dtype == "bf16"


def test_a_hub_model_is_loaded_at_its_commit(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "amygdala.fetch.hub_commit_and_config", lambda repository, revision: ("f" * 40, {"num_hidden_layers": 4})
    )
    build = make_build(config, model="org/name")
    assert build.model_source() == ("org/name", "f" * 40)
    assert build.facts()["model"]["name"] == "org/name"
