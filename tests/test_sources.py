"""Sources of a graph: where they are found, what their identity covers, several at once, nodes left out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amygdala import sources
from amygdala.errors import UserError
from amygdala.graph import Node, RawNode
from amygdala.sources import Graph, NotFetchedError, Source, find, live_lines, previous_of, sources_of

TABLE = {"source": "table", "path": "t.csv", "text": "text"}
HTTP = {"source": "http", "url": "http://host/nodes"}
MCP = {"source": "mcp", "command": ["server", "--now"], "preset": "nodes"}


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def graph_of(folder: Path, graph: Any, bad_nodes: str = "refuse", snapshot: str = "s.jsonl") -> Graph:
    config = {"graph": graph, "snapshot": str(folder / snapshot), "bad_nodes": bad_nodes}
    return Graph(config, [folder], folder / "store")


def fetched(folder: Path, graph: Any, *raws: RawNode, snapshot: str = "s.jsonl") -> None:
    """Put the snapshot in place that a refresh of these live sources would write, each with the same nodes."""
    live = {source.name: (source, list(raws)) for source in sources_of(graph) if source.live}
    write(folder, {snapshot: live_lines(live)})


# What the setting says


def test_the_sources_of_a_setting() -> None:
    assert sources_of("a/g.jsonl") == [Source("file", "file", {"path": "a/g.jsonl"})]
    assert sources_of(TABLE) == [Source("table", "table", {"path": "t.csv", "text": "text"})]
    assert sources_of([TABLE | {"name": "notes"}, "g.jsonl", HTTP]) == [
        Source("table", "notes", {"path": "t.csv", "text": "text"}),
        Source("file", "file", {"path": "g.jsonl"}),
        Source("http", "http", {"url": "http://host/nodes"}),
    ]


def test_the_setting_itself_is_left_as_it_was() -> None:
    setting = [dict(TABLE, name="notes"), dict(HTTP)]
    sources_of(setting)
    assert setting == [TABLE | {"name": "notes"}, HTTP]


def test_only_what_is_fetched_is_live() -> None:
    kinds = {
        source.kind: source.live for source in sources_of(["g.jsonl", TABLE, HTTP, MCP, {"source": "stories", "path": "s"}])
    }
    assert kinds == {"file": False, "table": False, "stories": False, "http": True, "mcp": True}


def test_a_definition_covers_what_is_fetched_and_not_how() -> None:
    (plain,) = sources_of(HTTP)
    how = {"timeout_s": 5, "deadline_s": 60, "tries": 2, "token_env": "TOKEN", "environment": ["HOME"], "at_once": 4}
    how |= {"max_nodes": 10, "max_node_mb": 1, "max_page_mb": 2}
    for name, value in (how | {"name": "other"}).items():
        assert sources_of(HTTP | {name: value})[0].definition == plain.definition, name
    what = {"url": "http://host/other", "items": "data", "key": "id", "text": "body", "time": "at", "observations": "apart"}
    what |= {"next": "next", "cursor_parameter": "after", "total": "count", "source": "mcp"}
    others = {sources_of(HTTP | {name: value})[0].definition for name, value in what.items()}
    assert len(others | {plain.definition}) == len(what) + 1


@pytest.mark.parametrize(
    "setting", [HTTP | {"token_env": "TOKEN"}, MCP, MCP | {"environment": ["SECRET"], "arguments": {"k": "v"}}]
)
def test_jobs_get_a_live_source_without_its_address_and_it_is_the_same_source_to_them(setting: dict[str, Any]) -> None:
    (source,) = sources_of(setting)
    given = source.for_jobs()
    assert given == {"source": source.kind, "name": source.name, "definition": source.definition}
    (again,) = sources_of(json.loads(json.dumps(given)))
    assert again.live and again.definition == source.definition and again.for_jobs() == given
    assert sources_of(setting | {"name": "notes"})[0].for_jobs() == given | {"name": "notes"}


@pytest.mark.parametrize("setting", [TABLE, TABLE | {"name": "notes"}, {"source": "file", "path": "g.jsonl", "key": "id"}])
def test_jobs_get_a_local_source_as_it_is(setting: dict[str, Any]) -> None:
    assert sources_of(setting)[0].for_jobs() == {"name": setting["source"], **setting}


# Where files are


def test_the_first_folder_that_holds_a_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, home = (write(tmp_path / name, {f"{name}.txt": "", "all.txt": ""}) for name in ("one", "two", "home"))
    monkeypatch.setenv("HOME", str(home))
    assert find("all.txt", [one, two], "graph") == one / "all.txt"
    assert find("all.txt", [two, one], "graph") == two / "all.txt"
    assert find("two.txt", [one, two], "graph") == two / "two.txt"
    assert find("~/home.txt", [one, two], "graph") == home / "home.txt"
    assert find(str(two / "two.txt"), [one], "graph") == two / "two.txt"
    with pytest.raises(UserError, match=rf"^graph: no such file: {one}/x or {two}/x$"):
        find("x", [one, two, one], "graph")
    with pytest.raises(UserError, match=r"^graph: no such file: /no/x$"):
        find("/no/x", [one, two], "graph")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("none.jsonl", "graph: no such file: {folder}/none.jsonl"),
        ("texts", "graph: cannot read {folder}/texts: it is a folder"),
        (TABLE | {"path": "texts"}, "graph: cannot read {folder}/texts: it is a folder"),
        ({"source": "stories", "path": "g.jsonl"}, "graph: cannot read {folder}/g.jsonl: it is no folder"),
        (TABLE | {"label": "l", "label_names": "none"}, "graph: no such file: {folder}/none"),
        (TABLE | {"label": "l", "label_names": "texts"}, "graph: cannot read {folder}/texts: it is a folder"),
    ],
)
def test_a_missing_file_or_a_folder_in_its_place_is_named(tmp_path: Path, setting: Any, message: str) -> None:
    write(tmp_path, {"g.jsonl": "", "t.csv": "text,l\n", "texts/stories/joy.txt": "x"})
    with pytest.raises(UserError) as caught:
        graph_of(tmp_path, setting)
    assert str(caught.value) == message.format(folder=tmp_path)
    assert not isinstance(caught.value, NotFetchedError)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"g.jsonl": lines({"key": "a", "text": "x"})})

    def refuse(*_: Any) -> str:
        raise PermissionError(13, "Permission denied", "the/file")

    monkeypatch.setattr(sources, "content_identity", refuse)
    with pytest.raises(UserError, match=r"^graph: cannot read the/file: Permission denied$"):
        graph_of(tmp_path, "g.jsonl")


def test_a_file_that_breaks_off_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"g.jsonl": lines({"key": "a", "text": "x"})})

    def break_off(*_: Any) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sources, "content_identity", break_off)
    with pytest.raises(UserError, match=rf"^graph: cannot read {tmp_path}/g\.jsonl: Input/output error$"):
        graph_of(tmp_path, "g.jsonl")


def test_what_a_graph_is_made_from(tmp_path: Path) -> None:
    write(tmp_path, {"g.jsonl": "", "t.csv": "text,l\n", "names": "joy\n", "texts/stories/joy.txt": "x", "texts/_x.txt": "y"})
    table, stories = TABLE | {"label": "l", "label_names": "names"}, {"source": "stories", "path": "texts"}
    local = graph_of(tmp_path, ["g.jsonl", table, stories])
    assert local.inputs == [str(tmp_path / name) for name in ("g.jsonl", "t.csv", "names", "texts")]
    assert local.files == {
        "file": [tmp_path / "g.jsonl"],
        "table": [tmp_path / "t.csv", tmp_path / "names"],
        "stories": [tmp_path / "texts/_x.txt", tmp_path / "texts/stories/joy.txt"],
    }
    assert local.title == "file, table, stories"
    assert graph_of(tmp_path, "g.jsonl").title == graph_of(tmp_path, ["g.jsonl"]).title == str(tmp_path / "g.jsonl")
    mixed = ["g.jsonl", HTTP, MCP | {"name": "mem"}]
    fetched(tmp_path, mixed)
    assert graph_of(tmp_path, mixed).inputs == [str(tmp_path / "g.jsonl"), str(tmp_path / "s.jsonl")]
    assert graph_of(tmp_path, mixed).files == {"file": [tmp_path / "g.jsonl"]}
    fetched(tmp_path, HTTP)
    assert graph_of(tmp_path, HTTP).title == "http"
    assert previous_of(tmp_path / "s.jsonl") == tmp_path / "s.jsonl.previous"


# Identity


FILES = {
    "g.jsonl": lines({"key": "a", "text": "Rain."}),
    "t.csv": "id,text,mood,joy\n1,Rain.,0,5\n",
    "names": "joy\nanger\n",
    "texts/stories/joy.txt": "Rain.",
    "texts/_plain.txt": "Snow.",
}
LABELLED = TABLE | {"label": "mood", "label_names": "names"}
STORIES = {"source": "stories", "path": "texts"}
SETTINGS: list[Any] = ["g.jsonl", LABELLED, STORIES, ["g.jsonl", LABELLED, STORIES]]


def identity(folder: Path, setting: Any, **more: Any) -> Any:
    return graph_of(folder, setting, **more).identity


@pytest.mark.parametrize("setting", SETTINGS)
def test_identity_does_not_depend_on_folders_times_or_what_was_read_before(tmp_path: Path, setting: Any) -> None:
    one, two = write(tmp_path / "one", FILES), write(tmp_path / "two", FILES)
    first = identity(one, setting)
    assert identity(two, setting) == first
    for name in FILES:
        os.utime(one / name, (10**9, 10**9))
    assert identity(one, setting) == first  # remembers the files now
    assert (one / "store" / "memo").is_dir()
    assert identity(one, setting) == first  # and goes by what it remembers
    assert json.loads(json.dumps(first)) == first
    assert str(tmp_path) not in json.dumps(first)


def test_identity_does_not_depend_on_the_names_of_single_files(tmp_path: Path) -> None:
    write(tmp_path, FILES | {"h.jsonl": FILES["g.jsonl"], "u.csv": FILES["t.csv"], "other/names.txt": FILES["names"]})
    write(tmp_path / "moved", {name: text for name, text in FILES.items() if name.startswith("texts")})
    assert identity(tmp_path, "h.jsonl") == identity(tmp_path, "g.jsonl")
    assert identity(tmp_path, LABELLED | {"path": "u.csv"}) == identity(tmp_path, LABELLED)
    assert identity(tmp_path, LABELLED | {"label_names": "other/names.txt"}) == identity(tmp_path, LABELLED)
    assert identity(tmp_path, STORIES | {"path": "moved/texts"}) == identity(tmp_path, STORIES)
    assert identity(tmp_path, {"source": "file", "path": "g.jsonl"}) == identity(tmp_path, ["g.jsonl"])
    assert identity(tmp_path, "g.jsonl", snapshot="other.jsonl") == identity(tmp_path, "g.jsonl")


SUFFIXES: list[tuple[str, dict[str, Any], str]] = [
    ("t.csv", {}, "a\tb"),
    ("t.txt", {}, "a\tb"),
    ("t", {}, "a\tb"),
    ("t.tsv", {}, '"a'),
    ("t.TSV", {}, '"a'),
    ("t.tab", {}, '"a'),
    ("t.csv", {"quotes": False}, '"a\tb"'),
    ("t.csv", {"delimiter": "\t"}, "a\tb"),
    ("t.csv", {"delimiter": "\t", "quotes": False}, '"a'),
    ("t.tsv", {"quotes": True}, "a\tb"),
    ("t.tsv", {"delimiter": ","}, '"a\tb"'),
    ("t.tsv", {"delimiter": ",", "quotes": True}, "a\tb"),
]


def test_the_suffix_of_a_table_says_delimiter_and_quotes_unless_the_setting_does(tmp_path: Path) -> None:
    for number, (name, options, text) in enumerate(SUFFIXES):
        header = "text\tmore" if text == '"a' else "text"
        write(tmp_path / str(number), {name: f'{header}\n"a\tb"\n'})
        graph = graph_of(tmp_path / str(number), TABLE | {"path": name} | options)
        assert [node.text for node in graph.nodes()[0]] == [text], (name, options)


def test_identity_of_a_table_covers_what_its_suffix_says_and_the_suffix_no_further(tmp_path: Path) -> None:
    write(tmp_path, {name: 'text\n"a\tb"\n' for name, _, _ in SUFFIXES})
    plain = identity(tmp_path, TABLE)
    tabs = identity(tmp_path, TABLE | {"path": "t.tsv"})
    assert plain != tabs
    assert identity(tmp_path, TABLE | {"path": "t.txt"}) == identity(tmp_path, TABLE | {"path": "t"}) == plain
    assert identity(tmp_path, TABLE | {"path": "t.TSV"}) == identity(tmp_path, TABLE | {"path": "t.tab"}) == tabs
    comma, tab = {"delimiter": ",", "quotes": True}, {"delimiter": "\t", "quotes": False}
    for name in ("t.csv", "t.tsv"):
        assert identity(tmp_path, TABLE | {"path": name} | comma) == plain
        assert identity(tmp_path, TABLE | {"path": name} | tab) == tabs
        assert identity(tmp_path, TABLE | {"path": name} | comma | {"quotes": False}) not in (plain, tabs)


CHANGES: list[tuple[Any, dict[str, str]]] = [
    ("g.jsonl", {"g.jsonl": FILES["g.jsonl"] + "\n"}),
    ("g.jsonl", {"g.jsonl": FILES["g.jsonl"].replace("Rain", "Snow")}),
    (LABELLED, {"t.csv": FILES["t.csv"].replace("Rain", "Snow")}),
    (LABELLED, {"names": "anger\njoy\n"}),
    (STORIES, {"texts/stories/joy.txt": "Sun."}),
    (STORIES, {"texts/stories/awe.txt": "Rain."}),
    (["g.jsonl", LABELLED, STORIES], {"names": "joy\nfear\n"}),
]


@pytest.mark.parametrize(("setting", "change"), CHANGES)
def test_identity_changes_with_every_byte(tmp_path: Path, setting: Any, change: dict[str, str]) -> None:
    before = identity(write(tmp_path / "before", FILES), setting)
    assert identity(write(tmp_path / "after", FILES | change), setting) != before


def test_identity_of_a_folder_covers_the_names_of_its_texts_alone(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    before = identity(tmp_path, STORIES)
    write(tmp_path, {"texts/README.md": "x"})
    assert identity(tmp_path, STORIES) == before
    (tmp_path / "texts/stories/joy.txt").rename(tmp_path / "texts/stories/awe.txt")
    after = identity(tmp_path, STORIES)
    assert after != before
    (tmp_path / "texts/stories/awe.txt").unlink()
    assert identity(tmp_path, STORIES) not in (before, after)


def test_identity_changes_with_everything_that_decides_how_bytes_are_read(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    options: dict[str, Any] = {"name": "other", "header": False, "delimiter": ";", "quotes": False, "text": "id", "key": "id"}
    options |= {"time": "id", "scenario": "id", "label": "mood", "separator": ";", "scores": ["joy"], "scale": 2}
    found = [identity(tmp_path, TABLE | {name: value}) for name, value in options.items()]
    found += [identity(tmp_path, TABLE | {"scores": {"joy": "awe"}}), identity(tmp_path, TABLE | {"scores": {"joy": "fear"}})]
    options = {"name": "other", "format": "nodes", "key": "text", "text": "key", "time": "key", "observations": "apart"}
    found += [identity(tmp_path, {"source": "file", "path": "g.jsonl", name: value}) for name, value in options.items()]
    found += [identity(tmp_path, TABLE), identity(tmp_path, "g.jsonl"), identity(tmp_path, TABLE | {"path": "g.jsonl"})]
    found += [identity(tmp_path, TABLE | {"path": "g.jsonl", "name": "x", "source": kind}) for kind in ("file", "table")]
    found += [identity(tmp_path, "g.jsonl", bad_nodes="skip"), identity(tmp_path, ["g.jsonl", TABLE])]
    assert len({json.dumps(each) for each in found}) == len(found)


def test_identity_of_live_sources_covers_the_snapshot_and_their_names(tmp_path: Path) -> None:
    setting = [HTTP, MCP]
    fetched(tmp_path, setting, RawNode("a", "Rain."))
    fetched(tmp_path, setting, RawNode("a", "Rain."), snapshot="again.jsonl")
    fetched(tmp_path, setting, RawNode("a", "Snow."), snapshot="other.jsonl")
    before = identity(tmp_path, setting)
    assert identity(tmp_path, setting, snapshot="again.jsonl") == before
    assert identity(tmp_path, [HTTP | {"tries": 9, "token_env": "TOKEN"}, MCP]) == before
    others = [identity(tmp_path, setting, snapshot="other.jsonl"), identity(tmp_path, HTTP), identity(tmp_path, MCP)]
    others += [identity(tmp_path, setting, bad_nodes="skip")]
    assert len({json.dumps(each) for each in [before, *others]}) == 5
    assert json.loads(json.dumps(before)) == before


# Nodes


def test_nodes_of_several_sources_keep_their_origin(tmp_path: Path) -> None:
    """Sorted by source, then by key, whatever the order of the setting; one key may stand in two sources."""
    files = {"g.jsonl": lines({"key": "b", "text": "Rain.\ncalm:9"}, {"key": "a", "text": "Snow."})}
    write(tmp_path, files | {"t.csv": "id,text,mood\na,Sun.,Joy\n", "texts/stories/awe.txt": "Sea."})
    table = TABLE | {"name": "ant", "key": "id", "label": "mood"}
    setting = [table, MCP | {"name": "mem"}, {"source": "file", "path": "g.jsonl", "name": "zoo"}, STORIES]
    fetched(tmp_path, setting, RawNode("a", "Wind.\nJoy:3", time="noon"))
    expected = [
        Node("ant", "a", "Sun.", {"joy": 10.0}),
        Node("mem", "a", "Wind.", {"joy": 3.0}, "noon"),
        Node("stories", "stories/awe.txt", "Sea.", {"awe": 10.0}),
        Node("zoo", "a", "Snow."),
        Node("zoo", "b", "Rain.", {"calm": 9.0}),
    ]
    for order in (setting, setting[::-1]):
        assert graph_of(tmp_path, order).nodes() == (expected, [])


BAD = {
    "file": ("g.jsonl", "{folder}/g.jsonl:2: score '11' of emotion 'joy' is outside 0-10"),
    "table": (TABLE | {"key": "id"}, "{folder}/t.csv:4: score '11' of emotion 'joy' is outside 0-10"),
    "http": (HTTP, "{folder}/s.jsonl:3: score '11' of emotion 'joy' is outside 0-10"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_nodes_are_refused_or_skipped(tmp_path: Path, kind: str) -> None:
    setting, message = BAD[kind]
    nodes = [{"key": "a", "text": "Rain.\ncalm:9"}, {"key": "b", "text": "Snow.\njoy:11"}]
    write(tmp_path, {"g.jsonl": lines(*nodes), "t.csv": 'id,text\na,"Rain.\ncalm:9"\nb,"Snow.\njoy:11"\n'})
    fetched(tmp_path, HTTP, *(RawNode(node["key"], node["text"]) for node in nodes))
    with pytest.raises(UserError) as caught:
        graph_of(tmp_path, setting).nodes()
    assert str(caught.value) == message.format(folder=tmp_path)
    good, skipped = graph_of(tmp_path, setting, bad_nodes="skip").nodes()
    assert good == [Node(kind, "a", "Rain.", {"calm": 9.0})]
    assert [(bad.origin, bad.key, bad.reason) for bad in skipped] == [(kind, "b", message.partition(": ")[2])]


BROKEN: list[Callable[[Path], Any]] = [
    lambda folder: write(folder, {"g.jsonl": '{"key": "a", "text": "x"}\n{\n'}),
    lambda folder: write(folder, {"g.jsonl": lines({"key": "a", "text": "x"}, {"key": "b"})}),
    lambda folder: write(folder, {"g.jsonl": lines({"key": "a", "text": "x"}, {"key": "a", "text": "y"})}),
    lambda folder: (folder / "g.jsonl").write_bytes(b'{"key": "a", "text": "x"}\n{"key": "b", "text": "\xff"}\n'),
]


@pytest.mark.parametrize("make", BROKEN)
def test_a_broken_file_is_refused_even_where_bad_nodes_are_skipped(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=r"g\.jsonl:2: "):
        graph_of(tmp_path, "g.jsonl", bad_nodes="skip").nodes()


def test_a_graph_without_a_usable_node_is_refused(tmp_path: Path) -> None:
    bad = lines({"key": "a", "text": "x\njoy:11"}, {"key": "b", "text": "x\njoy:12"})
    write(tmp_path, {"g.jsonl": bad, "t.csv": "text\n"})
    with pytest.raises(UserError, match=rf"^graph: no node of {tmp_path}/g\.jsonl can be used \(2 were skipped\)$"):
        graph_of(tmp_path, "g.jsonl", bad_nodes="skip").nodes()
    with pytest.raises(UserError, match=r"^graph: no node of file, table can be used \(2 were skipped\)$"):
        graph_of(tmp_path, ["g.jsonl", TABLE], bad_nodes="skip").nodes()
    with pytest.raises(UserError, match=rf"^graph: no node of {tmp_path}/t\.csv can be used \(0 were skipped\)$"):
        graph_of(tmp_path, TABLE).nodes()
