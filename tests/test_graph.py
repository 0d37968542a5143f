"""Canonical nodes and the snapshot: keys and texts checked, messages that name the place, a stored file that reads back."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import snapshot
from amygdala.errors import UserError
from amygdala.graph import Node, RawNode, Skipped, canonical, node_at, read_snapshot, snapshot_line
from amygdala.local import read_file
from amygdala.sources import Graph
from tiny import REPOSITORY, SAMPLE


def lines(*nodes: dict[str, Any]) -> bytes:
    return "".join(json.dumps(node) + "\n" for node in nodes).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Canonical nodes


def test_raw_nodes_become_nodes_of_their_origin_without_tag_lines() -> None:
    raws = [
        RawNode("b", "  Rain.\ncalm:9 JOY:8.5\n", None, "2026-01-06", "kitchen", "f:1"),
        RawNode("a", "Snow."),
        RawNode("c", "Tags: awe:7"),
    ]
    assert canonical("notes", raws) == (
        [
            Node("notes", "a", "Snow.", {}, None, None),
            Node("notes", "b", "Rain.", {"calm": 9.0, "joy": 8.5}, "2026-01-06", "kitchen"),
            Node("notes", "c", "", {"awe": 7.0}, None, None),
        ],
        [],
    )


def test_scores_given_beside_the_text_leave_its_lines_alone() -> None:
    raws = [RawNode("a", " Rain.\ncalm:9\n", {"joy": 8.0, "awe": 1.0}), RawNode("b", "Snow.\ncalm:99", {})]
    (a, b), _ = canonical("t", raws)
    assert (a.text, a.scores, list(a.scores)) == ("Rain.\ncalm:9", {"awe": 1.0, "joy": 8.0}, ["awe", "joy"])
    assert (b.text, b.scores) == ("Snow.\ncalm:99", {})


def test_nodes_are_sorted_by_key_whatever_their_order() -> None:
    chance = random.Random(1)
    keys = ["b", "a/2", "a/10", "a", "B", "é", "z", "😀", "ﬁ"]
    for _ in range(5):
        chance.shuffle(keys)
        nodes, _ = canonical("g", (RawNode(key, f"Of {key}.") for key in keys))
        assert [node.key for node in nodes] == ["B", "a", "a/10", "a/2", "b", "z", "é", "ﬁ", "😀"]
        assert all(node.text == f"Of {node.key}." for node in nodes)


def test_no_nodes_are_no_nodes() -> None:
    assert canonical("g", []) == ([], [])


BAD: list[tuple[RawNode, str]] = [
    (RawNode("", "x"), "the node has an empty key"),
    (RawNode(" \n", "x"), "the node has an empty key"),
    (RawNode("b", "x \ud83d y"), "'text' holds half a surrogate pair, which is no text"),
    (RawNode("b\udc00", "x"), "'key' holds half a surrogate pair, which is no text"),
    (RawNode("b", "x \ud83d y", {}), "'text' holds half a surrogate pair, which is no text"),
    (RawNode("b", "x\njoy:3 calm:11"), "score '11' of emotion 'calm' is outside 0-10"),
    (RawNode("b", "x\njoy:3 ../x:9"), "'../x' is not an emotion name"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_node_is_refused_by_file_and_line_or_by_source_and_key(bad: RawNode, message: str) -> None:
    for where in ("my/graph.jsonl:4", ""):
        raw = RawNode(bad.key, bad.text, bad.scores, None, None, where)
        with pytest.raises(UserError) as caught:
            canonical("notes", [RawNode("a", "x"), raw])
        place = where or f"graph: source 'notes', node {bad.key!r}"
        assert str(caught.value).startswith(f"{place}: {message}")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_node_is_left_out_and_told_where_that_is_wanted(bad: RawNode, message: str) -> None:
    nodes, skipped = canonical("notes", [bad, RawNode("a", "Rain."), RawNode("z", "Snow.\ncalm:9")], skip_bad=True)
    assert nodes == [Node("notes", "a", "Rain."), Node("notes", "z", "Snow.", {"calm": 9.0})]
    assert [(s.origin, s.key) for s in skipped] == [("notes", bad.key.replace("\udc00", "?"))]
    assert skipped[0].reason.startswith(message)
    json.dumps(skipped[0].key, ensure_ascii=False).encode()  # it goes into the manifest


def test_skipped_nodes_come_in_their_order() -> None:
    raws = [RawNode("z", "x\njoy:11"), RawNode("a", "x\njoy:12"), RawNode("m", "x")]
    nodes, skipped = canonical("notes", raws, skip_bad=True)
    assert [node.key for node in nodes] == ["m"]
    assert skipped == [
        Skipped("notes", "z", "score '11' of emotion 'joy' is outside 0-10"),
        Skipped("notes", "a", "score '12' of emotion 'joy' is outside 0-10"),
    ]


@pytest.mark.parametrize("skip", [False, True])
def test_a_key_given_twice_is_refused_and_both_places_are_told(skip: bool) -> None:
    raws = [RawNode("a", "x", where="g.jsonl:2"), RawNode("b", "x", where="g.jsonl:3"), RawNode("a", "y", where="g.jsonl:12")]
    with pytest.raises(UserError, match=r"^g\.jsonl:12: the key 'a' stands in line 2 already; keys must be unique$"):
        canonical("notes", raws, skip)
    with pytest.raises(UserError, match=r"^C:/g:7: the key 'a' stands in line 6 already; keys must be unique$"):
        canonical("notes", [RawNode("a", "x", where="C:/g:6"), RawNode("a", "x", where="C:/g:7")], skip)
    for where in ("", "stories/joy.txt"):
        raws = [RawNode("a", "x", where=where), RawNode("a", "x", where=where)]
        place = where or "graph: source 'notes', node 'a'"
        with pytest.raises(UserError, match=rf"^{place}: the key 'a' is given twice; keys must be unique$"):
            canonical("notes", raws, skip)


def test_a_skipped_node_does_not_take_the_key() -> None:
    nodes, skipped = canonical("notes", [RawNode("a", "x\njoy:11"), RawNode("a", "y")], skip_bad=True)
    assert nodes == [Node("notes", "a", "y")]
    assert len(skipped) == 1


@pytest.mark.parametrize("field", ["time", "scenario"])
def test_half_a_surrogate_pair_in_any_field_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"'{field}' holds half a surrogate pair, which is no text$"):
        canonical("notes", [RawNode("a", "x", **{field: "\ud83d"})])  # type: ignore[arg-type]


def test_whole_surrogate_pairs_are_text(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_bytes(b'{"key": "a", "text": "\\ud83d\\ude00"}')
    assert canonical("g", read_file(path, {}))[0][0].text == "😀"


def test_digest_is_of_the_text_without_its_tag_lines() -> None:
    expected = hashlib.sha256("Café, snow.".encode()).hexdigest()[:32]
    raws = [RawNode("a", "Café, snow."), RawNode("b", " Café, snow.\ncalm:9\n"), RawNode("c", "Café, snow")]
    (a, b, c), _ = canonical("g", raws)
    assert a.digest == b.digest == expected != c.digest


# The sample graph


def sample(store: Path) -> Graph:
    settings = {"graph": "resources/graph.jsonl", "snapshot": "snapshot.jsonl", "bad_nodes": "refuse"}
    return Graph(settings, [REPOSITORY], store)


def test_sample_graph_against_a_plain_reading(tmp_path: Path) -> None:
    """Each text of the sample ends in one tag line or none; read here by hand."""
    raw = {record["key"]: record["text"] for record in map(json.loads, SAMPLE.read_text(encoding="utf-8").splitlines())}
    nodes, skipped = sample(tmp_path).nodes()
    assert skipped == []
    assert [node.key for node in nodes] == sorted(raw)
    for node in nodes:
        above, _, last = raw[node.key].strip().rpartition("\n")
        pairs = [token.split(":") for token in last.split()]
        tagged = all(len(pair) == 2 and pair[0].isalpha() and pair[1].isdigit() for pair in pairs)
        assert node.origin == "file"
        assert node.scores == ({name: float(score) for name, score in pairs} if tagged else {})
        assert node.text == (above if tagged else raw[node.key]).strip()


# The stored snapshot


HOSTILE = [
    {"key": "b", "text": 'Quotes " and \\ and \u2028 and \x85 and \x0b and \u0000.\r\nNext\rline.\ncalm:9\njoy:8.5'},
    {"key": "a", "text": "😀 é e\u0301 ﬁ\ttab\n\ncalm:0", "time": "1\n2"},
    {"key": "c\n", "text": ""},
]


def settings_of(folder: Path, graph: Any = "graph.jsonl", bad_nodes: str = "refuse") -> dict[str, Any]:
    """What the Snakefile gives the snapshot's job; `identity` is that of now."""
    settings = {"graph": graph, "snapshot": str(folder / "snapshot.jsonl"), "bad_nodes": bad_nodes, "home": str(folder)}
    return settings | {"identity": Graph(settings, [Path(), folder], folder / "store").identity}


def test_a_snapshot_line_by_hand() -> None:
    node = Node("notes", "k/é", 'Rain\n\u2028\t"x".', {"awe": 0.5, "calm": 9.0}, "2026", "kitchen")
    digest = hashlib.sha256('Rain\n\u2028\t"x".'.encode()).hexdigest()[:32]
    expected = (
        f'{{"origin": "notes", "key": "k/é", "digest": "{digest}", "scores": {{"awe": 0.5, "calm": 9.0}}, '
        '"time": "2026", "scenario": "kitchen", "text": "Rain\\n\u2028\\t\\"x\\"."}\n'
    )
    assert snapshot_line(node) == expected.encode()
    bare = json.loads(snapshot_line(Node("notes", "k", "Rain.")))
    assert sorted(bare) == ["digest", "key", "origin", "scores", "text"]
    assert json.loads(snapshot_line(Node("notes", "k", "Rain.", {}, "", "")))["time"] == ""


def test_snapshot_round_trip(tmp_path: Path) -> None:
    graph, output = tmp_path / "graph.jsonl", tmp_path / "store" / "snapshots" / "1.jsonl"
    graph.write_bytes(lines(*HOSTILE))
    assert snapshot.make_snapshot(settings_of(tmp_path), tmp_path / "store", output) == 3
    nodes = list(read_snapshot(output))
    assert nodes == canonical("file", read_file(graph, {}))[0]
    assert [node.key for node in nodes] == ["a", "b", "c\n"]
    assert [node.time for node in nodes] == ["1\n2", None, None]

    content = output.read_bytes()
    records = [json.loads(line) for line in content.decode().split("\n")[:-1]]
    assert [record["digest"] for record in records] == [sha256(record["text"].encode())[:32] for record in records]
    assert records[1]["scores"] == {"calm": 9.0, "joy": 8.5}
    assert content == b"".join(map(snapshot_line, nodes))


def test_a_node_is_read_at_its_place(tmp_path: Path) -> None:
    nodes = [
        Node("n", "a", "Rain 😀.", {"calm": 9.0}, None, "kitchen"),
        Node("n", "b", "é\u2028\n", {}, "t"),
        Node("n", "c", ""),
    ]
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"".join(map(snapshot_line, nodes)))
    sizes = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    with path.open("rb") as file:
        for number in (2, 0, 1, 0):
            assert node_at(file, sum(sizes[:number]), sizes[number]) == nodes[number]


DAMAGE: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "cut in the last line": (3, lambda content: content[:-9]),
    "cut in the first line": (1, lambda content: content[:20]),
    "a garbage line": (2, lambda content: content.replace(b"\n", b"\n<html>\n", 1)),
    "an empty line": (4, lambda content: content + b"\n"),
    "two lines in one": (1, lambda content: content.replace(b"\n", b"", 1)),
    "a line that is a list": (4, lambda content: content + b"[]\n"),
    "a line that is a number": (4, lambda content: content + b"5\n"),
    "zeros": (3, lambda content: content[:-30] + bytes(30)),
    "not UTF-8": (2, lambda content: content.replace(b"Snow", b"Sn\xffw")),
    "a text lost": (2, lambda content: content.replace(b'"text": "Snow', b'"test": "Snow')),
    "scores lost": (1, lambda content: content.replace(b'"scores"', b'"scares"', 1)),
    "a live snapshot": (1, lambda _: b'{"amygdala_snapshot": 1, "sources": {}}\n'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_line_of_a_stored_snapshot_is_named(tmp_path: Path, kind: str) -> None:
    """After the nodes before it."""
    nodes = [
        Node("n", "a", "Rain.", {"calm": 9.0}),
        Node("n", "b", "Snow."),
        Node("n", "c", "A long text about sleet and hail."),
    ]
    whole = b"".join(map(snapshot_line, nodes))
    number, change = DAMAGE[kind]
    path = tmp_path / "s.jsonl"
    path.write_bytes(change(whole))
    assert path.read_bytes() != whole
    reading = read_snapshot(path)
    assert [next(reading) for _ in range(number - 1)] == nodes[: number - 1]
    with pytest.raises(UserError, match=rf"^{path}:{number}: damaged \(\w+\): delete the file; snakemake rebuilds it$"):
        next(reading)


def test_snapshot_depends_on_the_nodes_and_not_on_their_order(tmp_path: Path) -> None:
    found = []
    for number, records in enumerate((HOSTILE, HOSTILE[::-1])):
        (tmp_path / "graph.jsonl").write_bytes(lines(*records))
        snapshot.make_snapshot(settings_of(tmp_path), tmp_path / "store", tmp_path / f"{number}.jsonl")
        found.append((tmp_path / f"{number}.jsonl").read_bytes())
    assert found[0] == found[1]
    assert found[0].count(b"\n") == 3


def test_snapshot_of_the_sample_graph(tmp_path: Path) -> None:
    output = tmp_path / "s.jsonl"
    assert snapshot.make_snapshot(settings_of(tmp_path, str(SAMPLE)), tmp_path, output) == len(SAMPLE.read_bytes().splitlines())
    assert list(read_snapshot(output)) == sample(tmp_path).nodes()[0]


def test_skipped_nodes_are_not_in_the_snapshot(tmp_path: Path) -> None:
    output = tmp_path / "s.jsonl"
    (tmp_path / "graph.jsonl").write_bytes(lines({"key": "a", "text": "x\njoy:11"}, {"key": "b", "text": "Rain."}))
    assert snapshot.make_snapshot(settings_of(tmp_path, bad_nodes="skip"), tmp_path, output) == 1
    assert list(read_snapshot(output)) == [Node("file", "b", "Rain.")]


@pytest.mark.parametrize("change", [b'{"key": "n", "text": "new"}\n', b" ", b"\n"])
def test_graph_that_changed_since_the_plan_is_refused_and_nothing_written(tmp_path: Path, change: bytes) -> None:
    graph, output = tmp_path / "graph.jsonl", tmp_path / "out" / "1.jsonl"
    graph.write_bytes(lines({"key": "a", "text": "Rain."}))
    planned = settings_of(tmp_path)
    graph.write_bytes(graph.read_bytes() + change)
    with pytest.raises(UserError, match=r"graph\.jsonl changed while snakemake was running; nothing was written.*again"):
        snapshot.make_snapshot(planned, tmp_path / "store", output)
    assert not output.parent.exists()


@pytest.mark.parametrize("texts", [("Rain.", "Rain.", "Snow."), ("Rain.", "Snow.", "Rain.")])
def test_graph_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: tuple[str, str, str]
) -> None:
    graph, output = tmp_path / "graph.jsonl", tmp_path / "out" / "1.jsonl"
    planned, read, left = (lines({"key": "a", "text": text}) for text in texts)
    graph.write_bytes(planned)
    settings = settings_of(tmp_path)
    graph.write_bytes(read)
    nodes = Graph.nodes

    def read_and_change(self: Graph) -> Any:
        found = nodes(self)
        graph.write_bytes(left)
        return found

    monkeypatch.setattr(Graph, "nodes", read_and_change)
    with pytest.raises(UserError, match=r"graph\.jsonl changed while snakemake was running; nothing was written"):
        snapshot.make_snapshot(settings, tmp_path / "store", output)
    assert not output.parent.exists()


def test_a_plan_made_from_another_graph_is_refused_though_nothing_changed(tmp_path: Path) -> None:
    (tmp_path / "graph.jsonl").write_bytes(lines({"key": "a", "text": "Rain."}))
    planned = settings_of(tmp_path)
    for other in ({"identity": [True, *planned["identity"][1:]]}, {"bad_nodes": "skip"}):
        with pytest.raises(UserError, match="changed while snakemake was running"):
            snapshot.make_snapshot(planned | other, tmp_path / "store", tmp_path / "1.jsonl")
    assert not (tmp_path / "1.jsonl").exists()


def test_broken_graph_leaves_no_snapshot(tmp_path: Path) -> None:
    graph, output = tmp_path / "graph.jsonl", tmp_path / "out" / "1.jsonl"
    graph.write_bytes(lines({"key": "a", "text": "Rain."}) + b"{")
    with pytest.raises(UserError, match=r"graph\.jsonl:2: not a line of JSON"):
        snapshot.make_snapshot(settings_of(tmp_path), tmp_path / "store", output)
    assert not output.parent.exists()


def test_paths_are_looked_for_where_snakemake_runs_and_then_in_amygdalas_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder, text in ((home, "Snow."), (here, "Rain.")):
        folder.mkdir()
        (folder / "graph.jsonl").write_bytes(lines({"key": "a", "text": text}))
    monkeypatch.chdir(here)
    for text in ("Rain.", "Snow."):
        snapshot.make_snapshot(settings_of(home), tmp_path / "store", tmp_path / "1.jsonl")
        assert [node.text for node in read_snapshot(tmp_path / "1.jsonl")] == [text]
        (here / "graph.jsonl").unlink(missing_ok=True)
