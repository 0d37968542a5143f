"""The snapshot of live sources: it reads back as it was, and a missing, cut, foreign or outdated one says what to run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amygdala.errors import UserError
from amygdala.graph import Node, RawNode
from amygdala.sources import Graph, NotFetchedError, Source, check_fetched, live_lines, read_live, sources_of

REFRESH = r"Fetch it with: snakemake --cores 1 refresh$"
MEMORY = {"source": "mcp", "name": "mem", "command": ["server"], "preset": "nodes"}
(MEM,) = sources_of(MEMORY)
(WEB,) = sources_of({"source": "http", "name": "web", "url": "http://host/nodes"})
RAWS = [RawNode("b", "Rain.\ncalm:9"), RawNode("a", "Snöw.", None, "noon")]


def stored(folder: Path, fetched: dict[str, tuple[Source, list[RawNode]]]) -> Path:
    path = folder / "s.jsonl"
    path.write_bytes(live_lines(fetched).encode())
    return path


def test_the_snapshot_by_hand() -> None:
    raws = [*RAWS, RawNode("c", 'q"\u2028\n', {"joy": 1.0}, "", "scene", "where")]
    found = live_lines({"web": (WEB, []), "mem": (MEM, raws)})
    header = {"mem": {"definition": MEM.definition, "nodes": 3}, "web": {"definition": WEB.definition, "nodes": 0}}
    assert found == (
        json.dumps({"amygdala_snapshot": 1, "sources": header}) + "\n"
        '{"origin": "mem", "key": "a", "text": "Snöw.", "time": "noon"}\n'
        '{"origin": "mem", "key": "b", "text": "Rain.\\ncalm:9"}\n'
        '{"origin": "mem", "key": "c", "text": "q\\"\u2028\\n", "time": ""}\n'
    )


def test_the_snapshot_does_not_depend_on_the_order_of_sources_or_nodes() -> None:
    one = live_lines({"web": (WEB, RAWS), "mem": (MEM, RAWS)})
    assert live_lines({"mem": (MEM, RAWS[::-1]), "web": (WEB, RAWS)}) == one


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NODES = st.dictionaries(TEXTS, st.tuples(TEXTS, st.none() | TEXTS), max_size=5)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(mem=NODES, web=NODES)
def test_fetched_nodes_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, mem: dict[str, Any], web: dict[str, Any]
) -> None:
    fetched = {
        source.name: (source, [RawNode(key, text, None, time, None, "fetched") for key, (text, time) in nodes.items()])
        for source, nodes in ((MEM, mem), (WEB, web))
    }
    path = stored(tmp_path_factory.mktemp("live"), fetched)
    place = (f"{path}:{number}" for number in range(2, 20))
    assert read_live(path) == {
        name: [RawNode(key, nodes[key][0], None, nodes[key][1], None, next(place)) for key in sorted(nodes)]
        for name, nodes in (("mem", mem), ("web", web))
    }
    check_fetched(path, [WEB, MEM])


@pytest.mark.parametrize("field", ["key", "text", "time"])
def test_what_is_no_text_can_be_stored_all_the_same(tmp_path: Path, field: str) -> None:
    # bad_nodes: skip lets such nodes through; the build then leaves them out
    raw = RawNode(**{"key": "a", "text": "é", "time": "t", field: "\ud83d"})  # type: ignore[arg-type]
    plain = RawNode("b", "é")
    path = stored(tmp_path, {"mem": (MEM, [raw, plain])})
    assert {getattr(each, field) for each in read_live(path)["mem"]} == {"\ud83d", getattr(plain, field)}
    assert '\n{"origin": "mem", "key": "b", "text": "é"}\n'.encode() in path.read_bytes()  # the others as people read them


# What is wrong with a snapshot


def test_a_missing_snapshot_says_what_to_run(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with pytest.raises(NotFetchedError, match=rf"^graph: there is no snapshot of 'mem', 'web' yet \({path}\).*{REFRESH}"):
        check_fetched(path, [MEM, WEB])
    with pytest.raises(NotFetchedError, match=REFRESH):
        Graph({"graph": MEMORY, "snapshot": str(path), "bad_nodes": "refuse"}, [tmp_path], tmp_path)


def test_a_source_that_was_not_fetched_or_is_now_another_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path, {"mem": (MEM, RAWS)})
    check_fetched(path, [MEM])
    with pytest.raises(
        NotFetchedError, match=rf"^graph: source 'web' is not among the sources when {path} was fetched.*{REFRESH}"
    ):
        check_fetched(path, [MEM, WEB])
    (other,) = sources_of(MEMORY | {"tool": "list_everything"})
    with pytest.raises(
        NotFetchedError, match=rf"^graph: source 'mem' is defined differently than when {path} was fetched.*{REFRESH}"
    ):
        check_fetched(path, [other])
    (patient,) = sources_of(MEMORY | {"timeout_s": 1, "tries": 9})
    check_fetched(path, [patient])


def test_a_source_that_is_no_longer_configured_is_left_in_the_snapshot(tmp_path: Path) -> None:
    path = stored(tmp_path, {"mem": (MEM, RAWS), "web": (WEB, RAWS)})
    graph = Graph({"graph": MEMORY, "snapshot": str(path), "bad_nodes": "refuse"}, [tmp_path], tmp_path)
    assert graph.nodes() == ([Node("mem", "a", "Snöw.", {}, "noon"), Node("mem", "b", "Rain.", {"calm": 9.0})], [])


def of_header(**changed: Any) -> bytes:
    return json.dumps(
        {"amygdala_snapshot": 1, "sources": {"mem": {"definition": MEM.definition, "nodes": 0}}} | changed
    ).encode()


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"hello\n",
    "a graph": b'{"key": "a", "text": "x"}\n',
    "a list": b"[1, 2]\n",
    "null": b"null\n",
    "another format": of_header(amygdala_snapshot=2) + b"\n",
    "no sources": of_header(sources=None) + b"\n",
    "a source that is a number": of_header(sources={"mem": 5}) + b"\n",
    "no definition": of_header(sources={"mem": {"nodes": 0}}) + b"\n",
    "a definition that is a number": of_header(sources={"mem": {"definition": 5, "nodes": 0}}) + b"\n",
    "no count": of_header(sources={"mem": {"definition": MEM.definition}}) + b"\n",
    "a count that is a string": of_header(sources={"mem": {"definition": MEM.definition, "nodes": "0"}}) + b"\n",
    "nested too deeply": b"[" * 100_000 + b"\n",
    "not UTF-8": b"\xff\xfe\n",
    "a line end lost": of_header() + b'{"origin": "mem"}\n',
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_snapshot_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(FOREIGN[kind])
    for read in (lambda: check_fetched(path, [MEM]), lambda: read_live(path)):
        with pytest.raises(NotFetchedError, match=rf"^{path}:1: not a snapshot of amygdala's \(.*\)\. {REFRESH}"):
            read()


def damaged(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    path = stored(folder, {"mem": (MEM, RAWS)})
    content = path.read_bytes()
    path.write_bytes(change(content))
    assert path.read_bytes() != content
    return path


LINES: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "cut within a line": (3, lambda content: content[:-8]),
    "cut within the first node": (2, lambda content: content[: content.index(b"noon")]),
    "a key lost": (2, lambda content: content.replace(b'"key"', b'"kay"', 1)),
    "a text lost": (3, lambda content: content.replace(b'"text": "Rain', b'"test": "Rain')),
    "an origin lost": (2, lambda content: content.replace(b'"origin"', b'"oregin"', 1)),
    "an unknown origin": (2, lambda content: content.replace(b'"origin": "mem"', b'"origin": "mam"', 1)),
    "an origin that is a list": (2, lambda content: content.replace(b'"origin": "mem"', b'"origin": ["m"]', 1)),
    "a line that is a list": (4, lambda content: content + b"[]\n"),
    "not UTF-8": (3, lambda content: content.replace(b"Rain", b"Ra\xffn")),
    "a key that is a number": (3, lambda content: content.replace(b'"key": "b"', b'"key": 5')),
    "a text that is a number": (3, lambda content: content.replace(b'"text": "Rain.\\ncalm:9"', b'"text": 5')),
    "a text that is null": (3, lambda content: content.replace(b'"text": "Rain.\\ncalm:9"', b'"text": null')),
    "a time that is a list": (2, lambda content: content.replace(b'"time": "noon"', b'"time": ["noon"]')),
    "a line nested too deeply": (4, lambda content: content + b"[" * 100_000),
    "an empty line": (4, lambda content: content + b"\n"),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_line_is_named(tmp_path: Path, kind: str) -> None:
    number, change = LINES[kind]
    path = damaged(tmp_path, change)
    with pytest.raises(UserError, match=rf"^{path}:{number}: damaged \(.*{REFRESH}"):
        read_live(path)


@pytest.mark.parametrize(
    ("count", "change"),
    [
        (0, lambda content: content[: content.index(b"\n") + 1]),
        (0, lambda content: content[: content.index(b"\n")]),
        (1, lambda content: content[: content.index(b'{"origin": "mem", "key": "b"')]),
        (3, lambda content: content + b'{"origin": "mem", "key": "c", "text": "x"}\n'),
    ],
    ids=["header alone", "header without its line end", "a node lost", "a node too many"],
)
def test_a_snapshot_with_other_nodes_than_its_header_says_is_refused(
    tmp_path: Path, count: int, change: Callable[[bytes], bytes]
) -> None:
    path = damaged(tmp_path, change)
    check_fetched(path, [MEM])  # its header is whole
    with pytest.raises(UserError, match=rf"^{path}: {count} nodes of 'mem', and its header says 2: it was cut\. {REFRESH}"):
        read_live(path)


@pytest.mark.parametrize("change", [lambda content: content + b"[]\n", lambda content: content[: content.index(b"\n") + 1]])
def test_a_graph_tells_of_a_damaged_snapshot(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = damaged(tmp_path, change)
    with pytest.raises(UserError, match=rf"^{path}:.*{REFRESH}"):
        Graph({"graph": MEMORY, "snapshot": str(path), "bad_nodes": "refuse"}, [tmp_path], tmp_path).nodes()


@pytest.mark.parametrize("time", [b"0", b"false", b"[]", b"{}"])
def test_a_time_that_is_no_string_is_damage_though_it_is_empty(tmp_path: Path, time: bytes) -> None:
    path = damaged(tmp_path, lambda content: content.replace(b'"noon"', time))
    with pytest.raises(UserError, match=rf"^{path}:2: damaged"):
        read_live(path)


def test_a_time_of_null_is_no_time(tmp_path: Path) -> None:
    path = damaged(tmp_path, lambda content: content.replace(b'"noon"', b"null"))
    assert [raw.time for raw in read_live(path)["mem"]] == [None, None]


def test_a_folder_in_the_snapshots_place_is_named(tmp_path: Path) -> None:
    for read in (lambda: check_fetched(tmp_path, [MEM]), lambda: read_live(tmp_path)):
        with pytest.raises(NotFetchedError, match=rf"^graph: cannot read {tmp_path}: Is a directory\. {REFRESH}"):
            read()
