"""refresh.refresh: what is written, what is told, and that nothing is written where anything is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import refresh
from amygdala.errors import UserError
from amygdala.graph import RawNode
from amygdala.live import fetch
from amygdala.sources import Source, previous_of, read_live, sources_of
from faulty_server import Fault, Faulty
from fetching import NODES, http, like, mcp, recorded_waits

FIRST = {"source": "http", "name": "first", "url": "http://first/nodes"}
SECOND = {"source": "mcp", "name": "second", "command": ["second"], "preset": "nodes"}


def settings(path: Path, *sources: Any, **changes: Any) -> dict[str, Any]:
    graph = list(sources) if len(sources) != 1 else sources[0]
    return {"graph": graph, "snapshot": str(path), "bad_nodes": "refuse", "max_lost_nodes": 0.5, **changes}


def giving(**texts: dict[str, str]) -> Callable[[Source, Any], list[RawNode]]:
    """A fetch that gives these nodes of each source."""
    return lambda source, say: [RawNode(key, text) for key, text in texts[source.name].items()]


def refreshed(given: dict[str, Any], **texts: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return refresh.refresh(given, said.append, giving(**texts)), said


def many(count: int, start: int = 0) -> dict[str, str]:
    return {f"k{number:03d}": f"Text {number}." for number in range(start, start + count)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot.jsonl"


def test_the_snapshot_by_hand(path: Path) -> None:
    nodes = [RawNode("b", "Text é.\njoy:9", time="2024"), RawNode("a", "Text.", time=None)]
    differences = refresh.refresh(settings(path, FIRST), list[str]().append, lambda *_: nodes)
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    (source,) = sources_of(FIRST)
    facts = {"definition": source.definition, "nodes": 2}
    assert json.loads(header) == {"amygdala_snapshot": 1, "sources": {"first": facts}}
    assert lines == [
        '{"origin": "first", "key": "a", "text": "Text."}',
        '{"origin": "first", "key": "b", "text": "Text é.\\njoy:9", "time": "2024"}',
    ]
    assert differences == {"first": (["a", "b"], [], [])}
    assert [path.name] == [file.name for file in path.parent.iterdir()]


def test_the_same_graph_gives_the_same_bytes_in_whatever_order(path: Path) -> None:
    refreshed(settings(path, FIRST, SECOND), first={"b": "2", "a": "1"}, second={"c": "3"})
    before = path.read_bytes()
    refreshed(settings(path, SECOND, FIRST), first={"a": "1", "b": "2"}, second={"c": "3"})
    assert path.read_bytes() == before
    assert {name: [raw.key for raw in raws] for name, raws in read_live(path).items()} == {"first": ["a", "b"], "second": ["c"]}


def test_differences_are_counted_and_told(path: Path) -> None:
    given = settings(path, FIRST)
    assert refreshed(given, first={"a": "1", "b": "2", "c": "3"})[1] == ["first: 3 nodes; 3 added, 0 changed, 0 removed"]
    differences, said = refreshed(given, first={"d": "4", "e": "5", "b": "two", "c": "3"})
    assert differences == {"first": (["d", "e"], ["b"], ["a"])}
    assert said == ["first: 4 nodes; 2 added, 1 changed, 1 removed"]
    assert refreshed(given, first={"d": "4", "e": "5", "b": "two", "c": "3"})[0] == {"first": ([], [], [])}


def test_a_time_alone_is_no_change_but_is_written(path: Path) -> None:
    given = settings(path, FIRST)
    refresh.refresh(given, list[str]().append, lambda *_: [RawNode("a", "x", time="1")])
    assert refresh.refresh(given, list[str]().append, lambda *_: [RawNode("a", "x", time="2")]) == {"first": ([], [], [])}
    assert read_live(path)["first"][0].time == "2"


def test_sources_are_compared_each_with_itself(path: Path) -> None:
    refreshed(settings(path, FIRST, SECOND), first={"a": "1"}, second={"b": "2"})
    differences, _ = refreshed(settings(path, FIRST, SECOND), first={"a": "1", "b": "2"}, second={"b": "2"})
    assert differences == {"first": (["b"], [], []), "second": ([], [], [])}


def test_local_sources_are_not_fetched(path: Path) -> None:
    local = {"source": "file", "path": "nowhere.jsonl"}
    assert refreshed(settings(path, FIRST, local), first={"a": "1"})[0] == {"first": (["a"], [], [])}
    path.unlink()
    assert refreshed(settings(path, local)) == ({}, [])
    assert refreshed(settings(path, "graph.jsonl")) == ({}, [])
    assert not path.exists()


def test_a_source_that_is_configured_no_more_leaves_the_snapshot(path: Path) -> None:
    refreshed(settings(path, FIRST, SECOND), first={"a": "1"}, second={"b": "2"})
    refreshed(settings(path, FIRST), first={"a": "1"})
    assert set(read_live(path)) == {"first"}


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = {**settings(Path("~/s.jsonl"), FIRST)}
    refreshed(given, first={"a": "1"})
    assert refreshed(given, first={"a": "2"})[0] == {"first": ([], ["a"], [])}, "the old one is found there too"
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["here", "home", "home/s.jsonl", "home/s.jsonl.previous"]


# Nothing is written


@pytest.mark.parametrize("old", [None, b'{"amygdala_snapshot": "whatever lies here"}'])
def test_nothing_is_written_where_the_second_source_fails(path: Path, old: bytes | None) -> None:
    if old is not None:
        path.write_bytes(old)

    def fetching(source: Source, say: Any) -> list[RawNode]:
        if source.name == "second":
            raise UserError("no luck")
        return [RawNode("a", "1")]

    with pytest.raises(UserError, match=r"^no luck$"):
        refresh.refresh(settings(path, FIRST, SECOND), list[str]().append, fetching)
    assert (path.read_bytes() if path.exists() else None) == old
    assert list(path.parent.iterdir()) == ([path] if old is not None else [])


@pytest.mark.parametrize("of", [http, mcp])
@pytest.mark.parametrize("after", [0, 2])
def test_nothing_is_written_where_a_server_fails(monkeypatch: pytest.MonkeyPatch, path: Path, of: Any, after: int) -> None:
    recorded_waits(monkeypatch)
    old = b'{"amygdala_snapshot": "old"}'
    path.write_bytes(old)
    label = "page" if of is http else "list_nodes"
    with Faulty(NODES) as good, Faulty(NODES, Fault("500", label, after)) as bad:
        given = settings(path, http(good, name="good"), of(bad))
        with pytest.raises(UserError, match="HTTP 500 no luck, 3 times"):
            refresh.refresh(given, list[str]().append, fetch)
        assert path.read_bytes() == old
        bad.faults = ()
        refresh.refresh(given, list[str]().append, fetch)
        assert {name: {raw.key: raw.text for raw in raws} for name, raws in read_live(path).items()} == {
            "good": NODES,
            "journal": NODES,
        }


BAD = {"good": "Text.\njoy:9", "bad": "Text.\njoy:11"}


def test_a_bad_node_is_named_before_anything_is_written(path: Path) -> None:
    with pytest.raises(UserError) as caught:
        refreshed(settings(path, FIRST, SECOND), first={"a": "1"}, second=BAD)
    like(str(caught.value), "graph: source 'second', node 'bad': score '11' of emotion 'joy' is outside…")
    assert not path.exists()


def test_bad_nodes_skip_tells_of_them_and_keeps_them(path: Path) -> None:
    """They are in the snapshot: whether they are skipped is the build's concern."""
    _, said = refreshed(settings(path, SECOND, bad_nodes="skip"), second=BAD)
    like(said[0], "warning: second: node 'bad' will be skipped: score '11' of emotion 'joy' is outside…")
    assert said[1:] == ["second: 2 nodes; 2 added, 0 changed, 0 removed"]
    assert [raw.key for raw in read_live(path)["second"]] == ["bad", "good"]


def test_bad_nodes_skip_bears_half_a_surrogate_pair(path: Path) -> None:
    refreshed(settings(path, SECOND, bad_nodes="skip"), second={"a": "x", "b": "\ud800"})
    assert "a" in {raw.key for raw in read_live(path)["second"]}


def test_the_same_key_twice_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="node 'a': the key 'a' is given twice"):
        refresh.refresh(settings(path, FIRST), list[str]().append, lambda *_: [RawNode("a", "1"), RawNode("a", "2")])
    assert not path.exists()


@pytest.mark.parametrize(
    ("share", "left", "fits"), [(0.5, 5, True), (0.5, 4, False), (0, 10, True), (0, 9, False), (1, 1, True)]
)
def test_max_lost_nodes(path: Path, share: float, left: int, fits: bool) -> None:
    """New nodes do not make up for lost ones."""
    given = settings(path, FIRST, max_lost_nodes=share)
    refreshed(given, first=many(10))
    before = path.read_bytes()
    new = {**many(left), **many(20, start=500)}
    if fits:
        refreshed(given, first=new)
        assert len(read_live(path)["first"]) == len(new)
        return
    with pytest.raises(UserError) as caught:
        refreshed(given, first=new)
    lost = [f"'k{number:03d}'" for number in range(left, 10)]
    named = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
    assert str(caught.value) == (
        f"graph: source 'first': {len(lost)} of 10 nodes are gone ({named}), more than the share max_lost_nodes ({share:g}). "
        "If the graph did shrink: --config max_lost_nodes=1"
    )
    assert path.read_bytes() == before


def test_the_loss_of_one_source_counts_by_itself(path: Path) -> None:
    given = settings(path, FIRST, SECOND)
    refreshed(given, first=many(100), second=many(2))
    with pytest.raises(UserError, match="source 'second': 2 of 2 nodes are gone"):
        refreshed(given, first=many(100), second={"new": "x"})


# A snapshot that cannot be read


def damaged(before: bytes) -> dict[str, bytes]:
    head, *lines = before.splitlines(keepends=True)
    return {
        "empty": b"",
        "no json": b"{" + before,
        "another format": before.replace(b'"amygdala_snapshot": 1', b'"amygdala_snapshot": 2'),
        "header of another kind": b'["amygdala_snapshot"]\n' + b"".join(lines),
        "cut": b"".join([head, *lines[:-1]]),
        "cut in a line": before[:-9],
        "a line of another kind": head + b"[]\n",
        "a list as origin": before.replace(b'"origin": "first"', b'"origin": ["first"]'),
        "a line of another source": before.replace(b'"origin": "first"', b'"origin": "third"'),
    }


@pytest.mark.parametrize("how", list(damaged(b"{}\n{}\n")))
def test_a_damaged_snapshot_is_replaced(path: Path, how: str) -> None:
    """And nothing counts as lost."""
    given = settings(path, FIRST)
    refreshed(given, first=many(3))
    path.write_bytes(damaged(path.read_bytes())[how])
    assert refreshed(given, first={"a": "1"})[0] == {"first": (["a"], [], [])}
    assert [raw.key for raw in read_live(path)["first"]] == ["a"]


HEAD = '{"amygdala_snapshot": 1, "sources": {"first": {"nodes": 1}}}\n'


@pytest.mark.parametrize(
    "content",
    [
        HEAD.encode() + b'{"origin": "first", "key": "a", "text": "\xff"}\n',
        HEAD.encode() + b'{"origin": "first", "key": ["a"], "text": "x"}\n',
        HEAD.replace('{"nodes": 1}', "{}").encode(),
        HEAD.replace('{"nodes": 1}', "1").encode(),
    ],
    ids=["no utf-8", "list as key", "no count", "no facts"],
)
def test_a_snapshot_damaged_within_is_replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refreshed(settings(path, FIRST), first={"a": "1"})[0] == {"first": (["a"], [], [])}


# The snapshot before


def test_the_snapshot_before_is_kept(path: Path) -> None:
    """Until there is another difference: fetching the same twice does not push it out."""
    given = settings(path, FIRST)
    previous = previous_of(path)
    refreshed(given, first={"a": "1"})
    assert not previous.exists()
    one = path.read_bytes()
    refreshed(given, first={"a": "2"})
    assert previous.read_bytes() == one
    two = path.read_bytes()
    refreshed(given, first={"a": "2"})
    assert (path.read_bytes(), previous.read_bytes()) == (two, one)
    with pytest.raises(UserError):
        refreshed(given, first=BAD)
    assert (path.read_bytes(), previous.read_bytes()) == (two, one)
    refreshed(given, first={"a": "3"})
    assert previous.read_bytes() == two
    assert sorted(path.parent.iterdir()) == sorted([path, previous])


@pytest.mark.parametrize("content", [b'{"key": "mine", "text": "A journal."}\n', b"notes"])
def test_a_file_that_is_no_snapshot_is_never_overwritten(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no snapshot of amygdala's and is not overwritten"):
        refreshed(settings(path, FIRST), first={"a": "1"})
    assert path.read_bytes() == content and not previous_of(path).exists()


def test_another_server_is_not_taken_for_a_loss(path: Path) -> None:
    """Nodes of a source that is defined differently now are no measure of what was lost."""
    refreshed(settings(path, FIRST), first={f"old {n}": "x" for n in range(9)})
    other = {**FIRST, "url": "http://elsewhere.invalid/nodes"}
    done, _ = refreshed(settings(path, other), first={"a": "1"})
    assert done == {"first": (["a"], [], [])}


def test_many_bad_nodes_are_told_in_a_few_lines(path: Path) -> None:
    bad = {f"bad {n:02d}": "x\njoy:11" for n in range(40)} | {"good": "x"}
    _, said = refreshed(settings(path, FIRST, bad_nodes="skip"), first=bad)
    assert len(said) == 12 and said[10] == "warning: first: 30 more nodes will be skipped"
