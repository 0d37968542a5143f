"""What an update changes: nodes, the emotions they move, texts to forward, time; short at any size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import changes as script
from amygdala import changes
from amygdala.changes import EmotionChange, Forward, NodeChange, Report, Version, emotion_changes, node_changes, versions
from amygdala.corpus import index_of_snapshot, make_index, write_index
from amygdala.errors import UserError
from amygdala.graph import Node
from amygdala.plan import Rules
from amygdala.segments import Rows, write_segment
from amygdala.snapshots import index_path, names_looked_for
from nodes import corpus_of, digest_of, node, rules, same, written
from tiny import REPOSITORY

RATE = {"chars_per_token": 4.0, "tokens_per_s": 50.0, "load_s": 3.0, "device": "cpu"}


def text(number: int) -> str:
    """Texts that share no three words, so that none is near another."""
    return f"alpha{number} beta{number} gamma{number} delta{number}"


def graph(count: int, **tags: Sequence[int]) -> list[Node]:
    """Nodes n0, n1, …: those named by an emotion carry it with 9."""
    return [node(text(n), f"n{n}", **{emotion: 9 for emotion, of in tags.items() if n in of}) for n in range(count)]


def compared(
    old: list[Node],
    new: list[Node],
    emotions: Sequence[str] = ("awe", "joy"),
    before: Rules | None = None,
    now: Rules | None = None,
) -> tuple[list[NodeChange], list[EmotionChange]]:
    found = node_changes(versions(old), versions(new))
    ends = [(make_index(nodes), given or rules(), emotions) for nodes, given in ((old, before), (new, now))]
    return found, emotion_changes(ends[0], ends[1], found)


def test_nodes_added_changed_and_removed() -> None:
    old = [node("one", "a", joy=9), node("two", "b", joy=9), node("three", "c"), node("four", "d", awe=3.5), node("five", "e")]
    new = [node("one", "a", joy=9), node("2", "b", joy=9), node("three", "c", joy=7), node("six", "f", joy=8, awe=1)]
    found = node_changes(versions(old), versions(new))
    assert [(change.kind, change.key, change.what()) for change in found] == [
        ("added", "f", "joy:8 awe:1"),
        ("changed", "b", "text"),
        ("changed", "c", "joy none → 7"),
        ("removed", "d", "awe:3.5"),
        ("removed", "e", "no tags"),
    ]
    both = node_changes(versions([node("x", "a", joy=9, awe=2)]), versions([node("y", "a", awe=3)]))
    assert both[0].what() == "text, awe 2 → 3, joy 9 → none"


def test_one_key_in_two_sources_is_two_nodes() -> None:
    found = node_changes(versions([node("x", "a", None, "one")]), versions([node("x", "a", None, "two")]))
    assert [(change.kind, change.origin) for change in found] == [("added", "two"), ("removed", "one")]


def test_an_emotion_changes_because_of_the_nodes_behind_its_examples() -> None:
    old = graph(12, joy=[0, 1, 2], awe=[3, 4])
    new = [*old[:11], node(text(99), "new", joy=9)]  # n11 gone
    new[0] = node(text(0), "n0", joy=3)  # no positive any more, and no negative
    nodes, found = compared(old, new, now=rules(held_out=0), before=rules(held_out=0))
    joy = next(change for change in found if change.emotion == "joy")
    assert joy == EmotionChange("joy", "changed", (1, 1), (0, 1), 0, ["file/n0", "file/n11", "file/new"])
    awe = next(change for change in found if change.emotion == "awe")
    assert awe == EmotionChange("awe", "changed", (0, 0), (1, 1), 0, ["file/n11", "file/new"])
    assert {change.key: change.moves for change in nodes} == {"n0": ["joy"], "n11": ["awe", "joy"], "new": ["awe", "joy"]}
    assert [change.emotion for change in found] == ["joy", "awe"], "the most changed first"


def test_a_text_that_changed_goes_and_comes_for_one_node() -> None:
    old = graph(12, joy=[0, 1, 2])
    given = rules(held_out=0)
    _, found = compared(old, [node(text(99), "n0", joy=9), *old[1:]], ["joy"], given, given)
    assert found == [EmotionChange("joy", "changed", (1, 1), (0, 0), 0, ["file/n0"])]


def test_a_near_duplicate_that_draws_a_text_into_training_is_behind_it() -> None:
    """The text was held out; with a near duplicate that is not, both are for training."""
    given = rules(held_out=0.5)
    words = " ".join(f"word{n}" for n in range(60))
    pairs = [(node(f"{n} {words}", "a", joy=9), node(f"{n} {words} more", "b", joy=9)) for n in range(40)]
    splits = [[corpus_of([one], given).held_out[0] for one in pair] for pair in pairs]
    first, second = pairs[splits.index([True, False])]
    old = [*graph(12, joy=[1]), first]
    nodes, found = compared(old, [*old, second], ["joy"], given, given)
    assert found == [EmotionChange("joy", "changed", (2, 1), (0, 0), 1, ["file/b"])]
    assert nodes[0].moves == ["joy"]


def test_nothing_changed() -> None:
    assert compared(graph(9, joy=[1]), graph(9, joy=[1])) == ([], [])


def test_examples_that_the_cap_moves_have_no_node_behind_them() -> None:
    """A new node that takes a place pushes out one that did not change."""
    old = graph(60, joy=range(30))
    capped = rules(max_examples_per_emotion=10, held_out=0)
    for number in range(100, 200):
        new = [*old, node(text(number), "new", joy=9)]
        nodes, found = compared(old, new, ["joy"], capped, capped)
        sides = [{role.digest for role in corpus_of(graph, capped).roles("joy")} for graph in (old, new)]
        entered = digest_of(text(number)) in sides[1]
        assert found == ([EmotionChange("joy", "changed", (1, 1), (0, 0), 1, ["file/new"])] if entered else [])
        assert nodes[0].moves == (["joy"] if entered else [])


def test_against_brute_force() -> None:
    rng = np.random.default_rng(5)
    old = [
        node(text(n), f"n{n}", **{e: int(rng.integers(11)) for e in ("awe", "joy") if rng.random() < 0.5}) for n in range(80)
    ]
    new = [n if rng.random() < 0.8 else dataclasses.replace(n, scores={"joy": int(rng.integers(11))}) for n in old[:75]]
    given = rules(max_examples_per_emotion=12, max_negative_score=2)
    _, found = compared(old, new, ["awe", "joy"], given, given)
    corpora = [corpus_of(nodes, given) for nodes in (old, new)]
    for emotion in ("awe", "joy"):
        sets = [{(r.polarity, r.digest, r.split) for r in corpus.roles(emotion)} for corpus in corpora]
        change = next((change for change in found if change.emotion == emotion), None)
        came, went = sets[1] - sets[0], sets[0] - sets[1]
        assert (change is None) == (not came and not went)
        if change is not None:
            for polarity, counts in (("positive", change.positives), ("negative", change.negatives)):
                assert counts == (sum(p == polarity for p, _, _ in came), sum(p == polarity for p, _, _ in went))


def test_new_gone_and_held_out_alone() -> None:
    old, new = graph(9, joy=[1], awe=[2]), graph(9, joy=[1], awe=[2])
    ends = [(make_index(old), rules(), ["joy"]), (make_index(new), rules(), ["awe"])]
    assert [(change.emotion, change.state) for change in emotion_changes(ends[0], ends[1], [])] == [
        ("awe", "new"),
        ("joy", "gone"),
    ]
    given = rules(held_out=0.5)
    corpus = corpus_of(graph(40, joy=range(20)), given)
    out = next(role for role in corpus.roles("joy") if role.split == "held_out")
    base = graph(40, joy=range(20))
    fewer = [each for each in base if each.digest != out.digest]
    _, found = compared(base, fewer, ["joy"], given, given)
    assert [change.state for change in found] == ["held out"]


def test_settings_model_and_versions_that_differ() -> None:
    old = {
        "config": {"seed": 0, "dtype": "auto", "emotions": {"top": 3}},
        "model": {"dtype": "bf16"},
        "versions": {"torch": "2.13"},
    }
    new = {
        "config": {"seed": 1, "emotions": {"top": 3}, "method": "pca"},
        "model": {"dtype": "fp32"},
        "versions": {"torch": "2.14"},
    }
    assert changes.setting_changes(old, new) == [
        "dtype: 'auto' → 'not set'",
        "method: 'not set' → 'pca'",
        "model.dtype: 'bf16' → 'fp32'",
        "seed: '0' → '1'",
        "version of torch: '2.13' → '2.14'",
    ]
    assert changes.setting_changes(old, old) == []


@pytest.mark.parametrize(
    ("forward", "tokens", "seconds", "line"),
    [
        (Forward(0, 8, 0, RATE), 0, 0.0, "texts: 0 of 8 to forward; the model is not loaded"),
        (Forward(0, 8, 0, None), None, 0.0, "texts: 0 of 8 to forward; the model is not loaded"),
        (
            Forward(5, 8, 8000, RATE),
            2000,
            43.0,
            "texts: 5 of 8 to forward, about 2000 tokens: 43 s at the last capture's 50 tokens/s (cpu); "
            "loading the model took 3 s",
        ),
        (
            Forward(5, 8, 8000, None),
            None,
            None,
            "texts: 5 of 8 to forward; no earlier capture with these settings to estimate the time from",
        ),
    ],
)
def test_the_estimate(forward: Forward, tokens: int | None, seconds: float | None, line: str) -> None:
    assert (forward.tokens, forward.seconds, forward.line()) == (tokens, seconds, line)


def test_texts_that_lack_a_row_at_any_layer_are_forwarded(tmp_path: Path) -> None:
    nodes = graph(20, joy=range(6))
    corpus = corpus_of(nodes, rules())
    held = {1: [digest_of(text(n)) for n in range(12)], 2: [digest_of(text(n)) for n in range(10)]}
    none = np.zeros(12)
    for layer, digests in held.items():
        rows = np.zeros((len(digests), 4), dtype=np.float32)
        write_segment(tmp_path, layer, Rows(digests, rows, None, *(none[: len(digests)],) * 3), {"reason": "none"})
    (tmp_path / "rate.json").write_text(json.dumps(RATE))
    found = script.to_forward(corpus.index, corpus, ["joy"], [1, 2], [tmp_path], {})
    assert found == Forward(10, 20, sum(len(text(n)) for n in range(10, 20)), RATE)
    assert script.to_forward(corpus.index, corpus, ["joy"], [1], [tmp_path], {}).texts == 8
    assert script.to_forward(corpus.index, corpus, ["joy"], [1], [tmp_path / "none"], {}) == Forward(
        20, 20, found.chars + sum(len(text(n)) for n in range(10)), None
    )


def test_neutral_texts_are_forwarded_too(tmp_path: Path) -> None:
    """A text that is both an example and a neutral one goes through the model once."""
    corpus = corpus_of(graph(20, joy=range(6)), rules())
    neutral = {digest_of("The bus leaves at six."): 22, digest_of(text(0)): len(text(0))}
    plain = script.to_forward(corpus.index, corpus, ["joy"], [1], [tmp_path], {})
    found = script.to_forward(corpus.index, corpus, ["joy"], [1], [tmp_path], neutral)
    assert (found.texts, found.unique, found.chars) == (plain.texts + 1, plain.unique + 1, plain.chars + 22)


def test_texts_that_lack_a_row_in_any_space_are_forwarded(tmp_path: Path) -> None:
    """Two poolings: the estimate goes by the first one's last capture."""
    corpus = corpus_of(graph(20, joy=range(6)), rules())
    held = {"one": range(12), "two": range(4, 16)}
    for space, numbers in held.items():
        digests = [digest_of(text(n)) for n in numbers]
        rows = np.zeros((len(digests), 4), dtype=np.float32)
        write_segment(tmp_path / space, 1, Rows(digests, rows, None, *(np.zeros(len(digests)),) * 3), {"reason": "none"})
    (tmp_path / "one" / "rate.json").write_text(json.dumps(RATE))
    spaces = [tmp_path / "one", tmp_path / "two"]
    lacking = sorted(set(range(20)) - (set(held["one"]) & set(held["two"])))
    assert script.to_forward(corpus.index, corpus, ["joy"], [1], spaces, {}) == Forward(
        len(lacking), 20, sum(len(text(n)) for n in lacking), RATE
    )
    assert script.to_forward(corpus.index, corpus, ["joy"], [1], spaces[1:], {}) == Forward(
        8, 20, sum(len(text(n)) for n in range(20) if n not in held["two"]), None
    )


def report(nodes: list[NodeChange], emotions: list[EmotionChange], rebuild: list[str], **more: Any) -> Report:
    given: dict[str, Any] = {"since": "aaaa", "snapshot": "bbbb", "count": (9, 10), "settings": [], "all_emotions": 200}
    return Report(**{**given, **more}, nodes=nodes, emotions=emotions, rebuild=rebuild, forward=Forward(5, 8, 8000, RATE))


def added(key: str, origin: str = "file") -> NodeChange:
    return NodeChange(origin, key, "added", None, Version("d", {"joy": 9.0}), ["joy"])


def test_two_hundred_emotions_and_a_thousand_nodes_fit_a_screen() -> None:
    names = [f"emotion{n:03d}" for n in range(200)]
    causes = [f"file/node-{n}" for n in range(1000)]
    emotions = [EmotionChange(name, "changed", (3, 2), (n // 2, 1), 2, causes) for n, name in enumerate(names)]
    told = list(changes.lines(report([added(f"node-{n}") for n in range(1000)], emotions, names)))
    assert len(told) <= 70 and max(map(len, told)) <= 200
    assert "nodes: 1000 added, 0 changed, 0 removed (now 10, then 9)" in told
    assert "emotions: 200 of 200 rebuild" in told
    assert "  … and 970 more" in told and "  … and 150 more" in told
    because = "because of 'node-0', 'node-1', 'node-2', 'node-3' and 996 more"
    assert f"  emotion004, emotion005: positives +3 -2, negatives +2 -1; {because}" in told


def test_emotions_that_changed_alike_share_a_line() -> None:
    names = [f"emotion{n}" for n in range(20)]
    emotions = [EmotionChange(name, "changed", (0, 0), (1, 1), 1, ["file/n1"]) for name in names]
    told = list(changes.lines(report([added("n1")], emotions, names)))
    assert [line for line in told if "negatives" in line] == [
        f"  {', '.join(names[:8])} and 12 more: positives =, negatives +1 -1; because of 'n1'"
    ]


def test_lines_of_a_small_report() -> None:
    nodes = [added("n1"), NodeChange("web", "n2", "removed", Version("d", {}), None)]
    emotions = [
        EmotionChange("awe", "changed", (1, 0), (0, 0), 0, ["file/n1"]),
        EmotionChange("calm", "changed", (0, 1), (0, 0), 0, ["web/n2"]),
        EmotionChange("hope", "held out", (0, 0), (0, 1), 1, []),
        EmotionChange("joy", "new", (5, 0), (5, 0), 10, []),
        EmotionChange("love", "gone", (0, 5), (0, 5), 10, []),
    ]
    told = list(changes.lines(report(nodes, emotions, ["awe", "joy", "pride"], settings=["seed: '0' → '1'"])))
    assert told == [
        "snapshot bbbb follows the last release's aaaa",
        "nodes: 1 added, 0 changed, 1 removed (now 10, then 9)",
        "  + 'file/n1'  joy:9 [1 emotion]",
        "  - 'web/n2'  no tags",
        "setting seed: '0' → '1'",
        "emotions: 3 of 200 rebuild",
        "  awe: positives +1, negatives =; because of 'file/n1'",
        "  calm: positives -1, negatives =, in the store already; because of 'web/n2'",
        "  hope: positives =, negatives -1, held-out texts alone: the vector stays; by cap or settings",
        "  joy: new",
        "  love: gone",
        "  with the same examples, for another setting, model or code: pride",
        report([], [], []).forward.line(),
    ]


def test_the_first_lines_say_what_is_compared() -> None:
    def first(**more: Any) -> str:
        return next(iter(changes.lines(report([], [], ["joy"], **more))))

    assert first(since=None) == "no release yet: snapshot bbbb with 10 nodes is the first"
    assert first(since="refresh") == "no release yet: snapshot bbbb against the one before the last refresh"
    assert first(since="bbbb") == "snapshot bbbb is the last release's"


def test_where_the_nodes_of_then_are_gone_that_is_said_and_nothing_made_up() -> None:
    """Which emotions have the same examples is not known either."""
    given = report([], [], ["awe", "joy"], comparable=False, settings=["seed: '0' → '1'"])
    assert list(changes.lines(given)) == [
        "snapshot bbbb follows the last release's aaaa",
        "nodes: now 10, then 9; which ones changed is not known, as the last release's snapshot aaaa is not in the store",
        "setting seed: '0' → '1'",
        "emotions: 2 of 200 rebuild",
        given.forward.line(),
    ]
    assert given.as_json()["comparable"] is False
    known = list(changes.lines(report([], [], ["awe", "joy"])))
    assert "  with the same examples, for another setting, model or code: awe, joy" in known


def test_hostile_keys_are_shown_as_text_and_kept_in_the_file() -> None:
    key = "evil\x1b[2J\n<script>"
    emotions = [EmotionChange("joy", "changed", (1, 0), (0, 0), 0, [f"file/{key}"])]
    found = report([added(key)], emotions, ["joy"])
    told = list(changes.lines(found))
    assert not [line for line in told if not line.isprintable()]
    assert json.loads(json.dumps(found.as_json()))["nodes"][0]["key"] == key


def test_the_file_has_all_of_it() -> None:
    given = report([added("n1")], [EmotionChange("joy", "changed", (1, 0), (0, 0), 0, ["file/n1"])], ["joy"]).as_json()
    assert given["nodes"][0]["what"] == "joy:9" and given["emotions"][0]["causes"] == ["file/n1"]
    assert (given["forward"]["tokens"], given["forward"]["seconds"]) == (2000, 43.0)


# The last release

ALIASES = {"gleeful": "joy"}


def manifest_of(nodes: Sequence[Node]) -> dict[str, Any]:
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    config["emotions"]["aliases"] = ALIASES
    return {"concepts": ["joy"], "config": config, "snapshot": {"key": "0123456789abcdef", "nodes": len(nodes)}}


def released(store: Path, nodes: Sequence[Node]) -> tuple[dict[str, Any], Path]:
    """The manifest of a release, and its snapshot in the store."""
    manifest = manifest_of(nodes)
    path = store / "snapshots" / f"{manifest['snapshot']['key']}.jsonl"
    path.parent.mkdir(parents=True)
    return manifest, written(path, nodes)


def test_an_index_that_does_not_know_of_skipped_nodes_is_not_stored(tmp_path: Path) -> None:
    """The stored snapshot doesn't tell which nodes were left out; an index without them would be that of a later build."""
    nodes = [*graph(11, joy=[1, 2]), node("A gleeful text without a tag.", "z")]
    manifest, snapshot = released(tmp_path, nodes)
    before = script.before_release(manifest, str(tmp_path))
    assert list(tmp_path.rglob("*.*")) == [snapshot]
    assert (before.since, before.count, before.concepts) == ("0123456789abcdef", 12, ["joy"])
    assert before.rules == Rules.of(manifest["config"]) and before.nodes == versions(nodes)
    assert before.index is not None and same(before.index, make_index(nodes, (), ["gleeful", "joy"]))
    assert "gleeful" in before.index.mentions.names


def test_a_stored_index_of_the_last_release_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, snapshot = released(tmp_path, graph(12, joy=[1, 2]))
    facts = {"skipped": 1, "skipped_nodes": [["file", "bad", "no score"]]}
    names = names_looked_for(manifest["config"])
    stored = index_of_snapshot(snapshot, facts, names)
    write_index(Path(index_path(str(tmp_path), manifest["snapshot"]["key"], names)), stored)
    monkeypatch.setattr(script, "make_index", None)
    before = script.before_release(manifest, str(tmp_path))
    assert before.index is not None and same(before.index, stored) and before.index.facts["skipped"] == 1


def test_a_release_whose_snapshot_is_gone_is_known_by_its_manifest(tmp_path: Path) -> None:
    manifest = manifest_of(graph(12))
    before = script.before_release(manifest, str(tmp_path))
    assert before == script.Before("0123456789abcdef", 12, Rules.of(manifest["config"]), ["joy"], None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 1, 11])
def test_a_stored_snapshot_that_lost_whole_lines_is_refused(tmp_path: Path, kept: int) -> None:
    manifest, path = released(tmp_path, graph(12))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    words = rf"^{path} is damaged \({kept} nodes, 12 expected\): delete it; snakemake rebuilds the current one$"
    with pytest.raises(UserError, match=words):
        script.versions_of(path, 12)
    with pytest.raises(UserError, match=words):
        script.before_release(manifest, str(tmp_path))
    assert list(tmp_path.rglob("*.*")) == [path], "no index of it is stored"


def test_a_stored_snapshot_with_a_node_twice_or_one_too_many_is_refused(tmp_path: Path) -> None:
    nodes = graph(3)
    for damaged, count in (([*nodes[:2], nodes[1]], 2), (graph(4), 4)):
        path = written(tmp_path / "s.jsonl", damaged)
        with pytest.raises(UserError, match=rf"^{path} is damaged \({count} nodes, 3 expected\)"):
            script.versions_of(path, 3)
    assert script.versions_of(written(path, nodes), 3) == versions(nodes)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_stored_snapshot_cut_in_a_line_is_refused(tmp_path: Path, indexed: bool) -> None:
    nodes = graph(3)
    manifest, path = released(tmp_path, nodes)
    if indexed:
        names = names_looked_for(manifest["config"])
        write_index(Path(index_path(str(tmp_path), "0123456789abcdef", names)), make_index(nodes, (), names))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"^{path}:3: damaged \(JSONDecodeError\): delete the file; snakemake rebuilds it$"):
        script.before_release(manifest, str(tmp_path))


def test_there_is_no_manifest_before_the_first_release(tmp_path: Path) -> None:
    assert script.released_in(tmp_path / "manifest.json") == {}


def test_a_sound_manifest_is_read(tmp_path: Path) -> None:
    path, manifest = tmp_path / "manifest.json", manifest_of(graph(2))
    path.write_text(json.dumps(manifest))
    assert script.released_in(path) == manifest


SOUND = json.dumps(manifest_of(graph(2)))
UNSOUND: dict[str, str] = {
    "empty": "",
    "cut": SOUND[:-9],
    "garbage": "<html>",
    "bytes": "\0" * 64,
    "null": "null",
    "a number": "3",
    "a list": '["concepts", "config", "snapshot"]',
    "a text": '"concepts config snapshot"',
    "an object without anything": "{}",
    "a config that is null": json.dumps({**json.loads(SOUND), "config": None}),
    "a config without emotions": json.dumps({**json.loads(SOUND), "config": {}}),
    **{f"no {name}": json.dumps({k: v for k, v in json.loads(SOUND).items() if k != name}) for name in json.loads(SOUND)},
}


@pytest.mark.parametrize("how", UNSOUND)
def test_a_damaged_manifest_is_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(UNSOUND[how])
    with pytest.raises(UserError, match=rf"^{path} is damaged: delete it and run snakemake, which publishes it again$"):
        script.released_in(path)


def test_a_folder_in_the_manifests_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path} is damaged"):
        script.released_in(tmp_path)
