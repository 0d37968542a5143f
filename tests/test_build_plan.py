"""The build: memos of plan and index, messages, what the manifest says, paths in the store."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import amygdala.build
import amygdala.snapshots
from amygdala.build import Build
from amygdala.corpus import read_index
from amygdala.errors import UserError
from amygdala.graph import RawNode
from amygdala.snapshots import Snapshot, index_beside
from amygdala.sources import Graph, live_lines, sources_of
from builds import EMOTIONS, Nodes, changed, make_build, make_config, make_nodes, write_graph
from nodes import same
from tiny import REPOSITORY

LIBRARIES = ("torch", "transformers", "scikit-learn", "numpy")


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return make_config(tmp_path, tiny_model, monkeypatch)


# The plan's memo


def plan_memo() -> Path:
    (memo,) = Path("store/memo").glob("plan.*.json")
    return memo


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the plan was made again")


def test_the_plan_is_made_once(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_build(config)
    monkeypatch.setattr(amygdala.build, "make_plan", refuse)
    monkeypatch.setattr(Graph, "nodes", refuse)
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
    assert json.loads(plan_memo().read_text(encoding="utf-8")) == json.loads(text)


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


# The index beside the snapshot


def index_file() -> Path:
    (path,) = Path("store/snapshots").glob("*.safetensors")
    return path


def forget_plans() -> None:
    for memo in Path("store/memo").glob("plan.*.json"):
        memo.unlink()


def test_a_plan_under_other_settings_is_made_from_the_index(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the sources nor a snapshot are read for it."""
    before = make_build(config)
    assert Path(before.current.index_path) == index_file()
    monkeypatch.setattr(Graph, "nodes", refuse)
    after = make_build(config, min_positive_score=7, max_negative_score=3, min_content_chars=41, held_out=0.3, seed=5)
    assert after.current.index_path == before.current.index_path
    assert after.plan.emotions.keys() == before.plan.emotions.keys()
    forget_plans()
    assert changed(before, make_build(config)) == set()


@pytest.mark.parametrize("change", ["graph", "aliases", "code"])
def test_another_graph_other_names_and_other_code_have_an_index_of_their_own(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = make_build(config)
    if change == "graph":
        write_graph(Path("graph.jsonl"), make_nodes()[:-1])
    elif change == "aliases":
        config["emotions"]["aliases"] = {"gleeful": "joy"}
    else:
        original = amygdala.snapshots.code
        monkeypatch.setattr(amygdala.snapshots, "code", lambda name: "x" if name == "amygdala.corpus" else original(name))
        forget_plans()
    after = make_build(config)
    assert after.current.index_path != before.current.index_path
    assert sorted(Path("store/snapshots").iterdir()) == sorted(Path(build.current.index_path) for build in (before, after))


def test_a_person_hears_of_an_index_being_made_and_of_nothing_else(config: dict[str, Any]) -> None:
    said: list[str] = []
    for _ in range(2):
        Build(config, REPOSITORY, (), said.append)
        forget_plans()
    assert said == ["indexing graph.jsonl"]


@pytest.mark.parametrize("state", ["missing", "damaged", "cut"])
def test_a_missing_or_damaged_index_is_made_again(config: dict[str, Any], state: str) -> None:
    before = make_build(config)
    forget_plans()
    content = index_file().read_bytes()
    place = index_file()
    if state == "missing":
        place.unlink()
    else:
        place.write_bytes(content[:-1] if state == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    assert changed(before, make_build(config)) == set()
    assert place.read_bytes() == content


HTTP = {"source": "http", "name": "web", "url": "http://host/nodes?api_key=hidden"}


def write_live(nodes: Nodes) -> None:
    """The snapshot that a refresh of HTTP would write."""
    (source,) = sources_of(HTTP)
    raws = [RawNode(node["key"], node["text"]) for node in nodes]
    Path("snapshot.jsonl").write_text(live_lines({source.name: (source, raws)}), encoding="utf-8")


WRITERS: dict[str, tuple[Any, Callable[[Nodes], Any]]] = {
    "file": ("graph.jsonl", lambda nodes: write_graph(Path("graph.jsonl"), nodes)),
    "live": (HTTP, write_live),
    "several": (["graph.jsonl", HTTP], write_live),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_no_index_of_a_graph_that_changes_while_it_is_read_is_stored(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    """It would stand under the first graph's key for ever, and its plan with it."""
    setting, write = WRITERS[kind]
    config["graph"] = setting
    write_live(make_nodes())
    read = Graph.nodes
    other = make_nodes()[:-1]

    def change(self: Graph) -> Any:
        if when == "before":
            write(other)
        found = read(self)
        write(other)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Graph, "nodes", change)
        title = {"file": r"graph\.jsonl", "live": "web", "several": "file, web"}[kind]
        with pytest.raises(UserError, match=rf"^{title} changed while it was read\. Run snakemake again$"):
            make_build(config)
    assert not [*Path("store").rglob("*.safetensors"), *Path("store").rglob("plan.*")]
    assert make_build(config).plan.graph["nodes"] == (119 if kind == "several" else 59), "the next run goes on"


def test_jobs_get_the_definition_of_a_live_source_and_not_its_url(config: dict[str, Any]) -> None:
    from snapshot import make_snapshot

    config["graph"] = ["graph.jsonl", {**HTTP, "token_env": "TOKEN"}]
    write_live(make_nodes()[:10])
    build = make_build(config)
    given = build.graph_settings()
    assert given["graph"][1] == {"source": "http", "name": "web", "definition": sources_of(HTTP)[0].definition}
    assert make_snapshot(json.loads(json.dumps(given)), build.store, build.snapshot) == 70
    told = (given, build.index_settings(), build.change_settings(), build.capture_settings(), build.facts())
    assert not [word for word in ("host", "hidden", "TOKEN") if word in json.dumps(told)]


def test_jobs_get_what_makes_snapshot_and_index_again(config: dict[str, Any], tmp_path: Path) -> None:
    from snapshot import make_snapshot

    config["emotions"]["aliases"] = {"gleeful": "joy"}
    write_graph(Path("graph.jsonl"), [*make_nodes(), {"key": "bad", "text": "A text.\njoy:11"}])
    build = make_build(config, bad_nodes="skip")
    assert isinstance(build.current, Snapshot) and build.snapshot == build.current.path
    assert build.graph_settings() == {
        "graph": [{"source": "file", "name": "file", "path": "graph.jsonl"}],
        "snapshot": "snapshot.jsonl",
        "bad_nodes": "skip",
        "store": "store",
        "home": str(REPOSITORY),
        "identity": build.current.graph.identity,
    }
    assert json.loads(json.dumps(build.graph_settings())) == build.graph_settings()
    settings = build.index_settings()
    assert settings == {
        "path": build.current.index_path,
        "facts": {"nodes": 60, "skipped": 1, "skipped_nodes": [["file", "bad", "score '11' of emotion 'joy' is outside 0-10"]]},
        "looked_for": ["gleeful", "joy"],
    }
    assert make_snapshot(build.graph_settings(), build.store, build.snapshot) == 60
    stored = read_index(index_file())
    index_file().unlink()
    again = index_beside(settings["path"], build.snapshot, settings["facts"], settings["looked_for"])
    assert stored is not None and same(again, stored)


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
    with pytest.raises(UserError, match=r"^graph: cannot read model: it is a folder$"):
        make_build(config, graph="model")


def test_the_graph_of_the_working_folder_goes_first(config: dict[str, Any]) -> None:
    Path("resources").mkdir()
    write_graph(Path("resources/graph.jsonl"), make_nodes())
    assert make_build(config, graph="resources/graph.jsonl").plan.graph["nodes"] == 60
    Path("resources/graph.jsonl").unlink()
    assert make_build(config, graph="resources/graph.jsonl").plan.graph["nodes"] > 60


def test_the_line_of_a_damaged_graph_is_named(config: dict[str, Any]) -> None:
    Path("graph.jsonl").write_text('{"key": "a", "text": "b"}\n{"key": \n', encoding="utf-8")
    with pytest.raises(UserError, match=r"graph\.jsonl:2: not a line of JSON"):
        make_build(config)


def test_a_wrong_setting_is_told_with_its_key(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"'pooling'.*'median'"):
        make_build(config, pooling="median")
    with pytest.raises(UserError, match=r"unknown key 'poling'.*Did you mean 'pooling'"):
        make_build(config, poling="mean")
    Path("mine.yaml").write_text("seed: 0\npooling: median\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^mine\.yaml:2: 'pooling'"):
        Build({**config, "pooling": "median"}, REPOSITORY, ["mine.yaml"])


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
    defaults = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    run_only = {"graph", "snapshot", "max_lost_nodes", "store", "store_read", "results", "model", "shards", "emotions_per_job"}
    run_only |= {"device", "device_map", "batch_tokens", "batch_size", "cluster"}
    run_only |= {
        "sweep_layers",
        "neutral",
        "families",
        "ablation",
        "unseen",
        "report_texts",
        "key_versions",
        "release",
        "gc",
        "gc_confirm",
    }
    assert build.facts()["config"].keys() == defaults.keys() - run_only
    assert "/" not in facts


def test_facts_say_where_the_numbers_come_from(config: dict[str, Any]) -> None:
    nodes = [*make_nodes(), {"key": "bad", "text": "A text.\njoy:11"}]
    write_graph(Path("graph.jsonl"), nodes)
    build = make_build(config, bad_nodes="skip", emotions={**config["emotions"], "exclude": ["grief"], "curated": ["awe"]})
    facts = build.facts()
    assert facts["model"] == {"kind": "folder", "name": "model", "identity": build.model.identity, "dtype": "fp32"}
    assert facts["snapshot"] == {
        "key": build.current.key,
        "nodes": 60,
        "sources": {"file": 60},
        "skipped_nodes": 1,
        "unread_labels": 0,
        "near_duplicates": {"texts": 0, "groups": 0, "moved_to_train": 0},
    }
    found = {"positives": 20, "negatives": 40, "label_shown": 0}
    assert facts["selection"] == {
        "awe": {
            "chosen": False,
            "reason": "curated, but no text of 40 characters or more carries this tag",
            "positives": 0,
        },
        "calm": {"chosen": True, "reason": "number 1 of the most common", **found},
        "grief": {"chosen": False, "reason": "excluded (emotions.exclude)", "positives": 20},
        "joy": {"chosen": True, "reason": "number 2 of the most common", **found},
    }
    assert facts["config"]["target_layers"] == [1, 2]
    assert facts["config"]["bad_nodes"] == "skip"
    assert facts["keys"] == {"activations": build.space_key, "quality": build.quality_key}
    assert set(facts["versions"]) == set(LIBRARIES)
    assert (facts["pooling"], facts["template"], facts["method"]) == ("mean", None, "mean_difference")


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
    build = make_build(config, store="shared/store/", results="out/")
    vector, head, example = build.vector_keys["joy"], build.head_keys["joy"], build.example_keys["joy"]
    assert build.snapshot == f"shared/store/snapshots/{build.current.key}.jsonl"
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
    assert build.marker(chosen) == f"out/.current/readout.{chosen.key}"
    assert build.quality == f"shared/store/quality/{build.quality_key}.json"
    assert build.model_ready == f"shared/store/models/{build.model_key}.json"


def test_a_tilde_is_the_home_folder(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_live(make_nodes())
    (tmp_path / "home").mkdir()
    Path("snapshot.jsonl").rename(tmp_path / "home/s.jsonl")
    build = make_build(config, graph=HTTP, store="~/stored", results="~/made", snapshot="~/s.jsonl")
    assert (build.store, build.results) == (str(tmp_path / "home/stored"), str(tmp_path / "home/made"))
    assert build.current.graph.inputs == [str(tmp_path / "home/s.jsonl")]
    assert Path(build.current.index_path).is_file() and build.snapshot.startswith(f"{tmp_path}/home/stored/")
    places = [build.quality, build.overview, *build.spaces, build.model_ready, *build.indices, *build.examples("joy").split()]
    places += [*build.vectors("joy"), *build.heads("joy"), *build.release(build.selections["readout"])]
    assert all(place.startswith(f"{tmp_path}/home/stored/") for place in places)
    assert build.marker(build.selections["readout"]).startswith(f"{tmp_path}/home/made/.current/")
    assert build.change_settings()["store"] == build.graph_settings()["store"] == build.store
    assert not Path("~").exists()


@pytest.mark.parametrize("number", [1, 2, 15, 16, 17, 31, 32, 33, 200, 1000])
def test_batches_hold_each_emotion_once_in_few_even_lists(number: int) -> None:
    emotions = [f"e{n:04d}" for n in range(number)]
    made = amygdala.build.batches(emotions, 16)
    assert [emotion for batch in made for emotion in batch] == emotions
    assert len(made) == math.ceil(number / 16)
    sizes = {len(batch) for batch in made}
    assert max(sizes) <= 16 and max(sizes) - min(sizes) <= 1


def test_what_the_capture_loads(config: dict[str, Any], tmp_path: Path) -> None:
    template = {"role": "user", "system": "Listen."}
    settings = {"device": "cpu", "device_map": "auto", "batch_tokens": 64, "batch_size": 3, "template": template}
    build = make_build(config, **settings)
    assert build.capture_settings() == {
        "source": str(tmp_path / "model"),
        "revision": None,
        "dtype": "fp32",
        "max_tokens": 2048,
        **settings,
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


# Whether a graph that cannot be built may be fetched
