"""What a live source makes of well-formed answers: pages, cursors, limits, fields of records."""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from amygdala import live
from amygdala.graph import RawNode
from amygdala.patience import Limits
from faulty_server import Faulty
from fetching import NODES, SECRET, TOKEN_ENV, failure, fetched, http, like, mcp, recorded_waits, texts

KINDS = pytest.mark.parametrize("of", [http, mcp], ids=["http", "mcp"])


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setenv(TOKEN_ENV, SECRET)
    return recorded_waits(monkeypatch)


def listing(server: Faulty, **options: Any) -> dict[str, Any]:
    """A listing whose cursors are URLs."""
    options = http(server, **options)
    del options["cursor_parameter"]
    return options


def paths(server: Faulty) -> list[str]:
    return [seen.path for seen in server.seen]


# Pages


@pytest.mark.parametrize("size", [1, 2, 4, 5, 9])
@KINDS
def test_all_pages_are_read(of: Any, size: int) -> None:
    with Faulty(NODES, size=size) as server:
        assert texts(of(server)) == NODES
        assert len(server.labels("page", "list_nodes")) == -(-len(NODES) // size)


def test_the_cursor_is_a_parameter_beside_those_of_the_url() -> None:
    with Faulty() as server:
        server.pages = lambda given: {"nodes": [{"key": given, "text": "x"}], "next": "a&b" if given == "old" else None}
        assert texts(http(server, url=server.url + "?kind=k&cursor=old")) == {"old": "x", "a&b": "x"}
        assert paths(server) == ["/nodes?kind=k&cursor=old", "/nodes?kind=k&cursor=a%26b"]


@pytest.mark.parametrize("cursor", ["/nodes?cursor=1", "?cursor=1", "nodes?cursor=1", "http://{address}/nodes?cursor=1"])
def test_the_next_page_may_be_a_url(cursor: str) -> None:
    with Faulty() as server:
        following = cursor.format(address=server.address)
        server.pages = lambda given: {
            "nodes": [{"key": "b" if given else "a", "text": "x"}],
            "next": None if given else following,
        }
        assert texts(listing(server, url=server.url + "?kind=k", token_env=TOKEN_ENV)) == {"a": "x", "b": "x"}
        assert paths(server) == ["/nodes?kind=k", "/nodes?cursor=1"]
        assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {SECRET}"}


def test_a_next_page_on_another_server_is_never_asked() -> None:
    with Faulty(NODES) as other, Faulty() as server:
        port = server.server_address[1]
        for address in (
            f"http://user:pass@{other.address}/nodes?cursor=1",  # another port
            f"//{other.address}/nodes",
            f"http://localhost:{port}/nodes",  # another host
            f"https://127.0.0.1:{port}/nodes",  # another scheme
        ):
            server.seen.clear()
            server.pages = partial(lambda address, _: {"nodes": [{"key": "a", "text": "x"}], "next": address}, address)
            shown = address.replace("user:pass@", "").partition("?")[0]
            shown = shown if "://" in shown else f"http:{shown}"
            words = f"the next page lies on another server ('{shown}'): not followed"
            assert failure(listing(server, token_env=TOKEN_ENV)) == f"graph: source 'journal' ('{server.url}'): {words}"
            assert len(server.seen) == 1
        assert not other.seen


@pytest.mark.parametrize("cursor", ["http://a:b:c/", "\0", "x" * 70_000])
def test_a_cursor_that_is_no_url_suggests_cursor_parameter(cursor: str) -> None:
    with Faulty(pages=lambda _: {"nodes": [{"key": "a", "text": "x"}], "next": cursor}) as server:
        like(failure(listing(server)), f"graph: source 'journal' ('{server.url}'): …is no URL; set cursor_parameter?")


@pytest.mark.parametrize("end", [{}, {"next": None}, {"next": ""}, {"next": False}])
def test_pages_end_without_a_cursor(end: dict[str, Any]) -> None:
    with Faulty(pages=lambda _: {"nodes": [{"key": "a", "text": "x"}], **end}) as server:
        assert texts(http(server)) == {"a": "x"}
        assert len(server.seen) == 1


def test_numbers_are_cursors() -> None:
    with Faulty() as server:
        server.pages = lambda given: {"nodes": [{"key": given or "0", "text": "x"}], "next": 7 if given is None else None}
        assert texts(http(server)) == {"0": "x", "7": "x"}
        assert paths(server) == ["/nodes", "/nodes?cursor=7"]


@KINDS
def test_a_cursor_that_comes_back(of: Any) -> None:
    """0, 1, 2, then 1 again, though each page has a new node."""
    count = iter(range(100))

    def page(_: str | None) -> Any:
        number = next(count)
        return {"nodes": [{"key": str(number), "text": "x"}], "next": ["p1", "p2", "p1"][number]}

    with Faulty(pages=page) as server:
        like(failure(of(server)), "graph: source 'journal' (…): the cursor 'p1' came back: the pages would never end")
        assert len(server.labels("page", "list_nodes")) == 3


@KINDS
def test_endless_pages_without_a_new_node(of: Any) -> None:
    with Faulty(pages=lambda given: {"nodes": [{"key": "a", "text": "x"}], "next": str(int(given or 0) + 1)}) as server:
        like(
            failure(of(server)), "graph: source 'journal' (…): 50 pages in a row brought no new node: the pages would never end"
        )
        assert len(server.labels("page", "list_nodes")) == 51


@KINDS
def test_some_pages_without_a_new_node_are_borne(of: Any) -> None:
    """49 empty pages, a node, 49 empty pages, a node."""

    def page(given: str | None) -> Any:
        number = int(given or 0) + 1
        nodes = [{"key": str(number), "text": "x"}] if number % 50 == 0 else []
        return {"nodes": nodes, "next": str(number) if number < 100 else None}

    with Faulty(pages=page) as server:
        server.nodes = {"50": "x", "100": "x"}
        assert texts(of(server)) == {"50": "x", "100": "x"}


def test_fewer_nodes_than_the_server_says() -> None:
    with Faulty(pages=lambda _: {"nodes": [{"key": "a", "text": "x"}], "count": {"all": 2}}) as server:
        words = "1 nodes came, and the server says there are 2"
        assert failure(http(server, total="count.all")) == f"graph: source 'journal' ('{server.url}'): {words}"
        assert texts(http(server)) == {"a": "x"}


def test_as_many_nodes_as_the_server_says() -> None:
    with Faulty(NODES) as server:
        assert texts(http(server, total="total")) == NODES


@pytest.mark.parametrize("total", ["2", None, True, 1.0])
def test_a_total_that_is_no_number(total: Any) -> None:
    with Faulty(pages=lambda _: {"nodes": [{"key": "a", "text": "x"}], "total": total}) as server:
        words = "no number at 'total' in an answer (`total`)"
        assert failure(http(server, total="total")) == f"graph: source 'journal' ('{server.url}'): {words}"


@KINDS
def test_a_server_without_nodes(of: Any) -> None:
    with Faulty() as server:
        assert failure(of(server)) == "graph: source 'journal': no nodes in its answer"


FURTHER: list[tuple[dict[str, Any], str]] = [
    ({"next_cursor": "2"}, "next_cursor"),
    ({"nextCursor": "2"}, "nextCursor"),
    ({"next-page": 2}, "next-page"),
    ({"NEXT_PAGE_TOKEN": "t"}, "NEXT_PAGE_TOKEN"),
    ({"continuation": "c"}, "continuation"),
    ({"has_more": True}, "has_more"),
    ({"links": {"self": "/nodes", "next": "/nodes?page=2"}}, "links.next"),
    ({"meta": {"count": 2, "hasMore": True}}, "meta.hasMore"),
]


def entities(server: Faulty, **options: Any) -> dict[str, Any]:
    """A tool without a preset, whose answers hold the texts themselves."""
    options = mcp(server, tool="list_all", **options)
    del options["preset"]
    return options


@pytest.mark.parametrize("shape", ["http", "structured", "text", "result"])
@pytest.mark.parametrize(("more", "path"), FURTHER)
def test_an_answer_that_leads_to_more_than_the_configuration_follows_is_refused(
    shape: str, more: dict[str, Any], path: str
) -> None:
    """Else the graph would be cut after its first page, and nobody would hear of it."""
    answer = {"nodes": [{"key": "a", "text": "x"}], **more}
    given = "structured" if shape == "http" else shape
    with Faulty(pages=lambda _: answer, tools={"list_all": lambda _: answer}, shape=given) as server:
        source = http(server) if shape == "http" else entities(server)
        url = server.url if shape == "http" else server.mcp_url
        words = f"the answer has '{path}', which may lead to more nodes: set `next` to it"
        assert failure(source) == f"graph: source 'journal' ('{url}'): {words}"
        assert len(server.labels("page", "list_all")) == 1


def test_a_knowledge_graph_in_pages_is_refused() -> None:
    answer = {"entities": [{"name": "a", "observations": ["x"]}], "next_cursor": "2"}
    with Faulty(tools={"read_graph": lambda _: answer}) as server:
        words = "the answer has 'next_cursor', which may lead to more nodes: set `next` to it"
        source = mcp(server, preset="knowledge-graph")
        assert failure(source) == f"graph: source 'journal' ('{server.mcp_url}'): {words}"


def test_a_last_page_that_leads_on_by_another_name_is_refused() -> None:
    """The usual `next` is followed without being set; what stands beside it is not."""
    pages: dict[str | None, dict[str, Any]] = {None: {"next": "p2"}, "p2": {"next": None, "next_cursor": "p3"}}
    with Faulty(pages=lambda given: {"nodes": [{"key": str(given), "text": "x"}], **pages[given]}) as server:
        assert failure(http(server)).endswith(": the answer has 'next_cursor', which may lead to more nodes: set `next` to it")
        assert paths(server) == ["/nodes", "/nodes?cursor=p2"]


@pytest.mark.parametrize(
    "end",
    [
        {"next_cursor": None, "has_more": False, "meta": {"next": "", "more": False}},
        {"next_cursor": [], "links": {"next": {}}, "cursors": "c", "moreover": "x"},
        {"nodes_of": ["next"], "meta": {"about": "next_cursor"}},
    ],
    ids=["no more", "no cursors", "mere words"],
)
@pytest.mark.parametrize("of", [http, entities])
def test_what_leads_nowhere_is_no_other_page(of: Any, end: dict[str, Any]) -> None:
    answer = {"nodes": [{"key": "a", "text": "x"}], **end}
    with Faulty(pages=lambda _: answer, tools={"list_all": lambda _: answer}) as server:
        assert texts(of(server)) == {"a": "x"}


@pytest.mark.parametrize("of", [http, entities])
def test_where_next_is_set_nothing_else_leads_on(of: Any) -> None:
    answer = {"nodes": [{"key": "a", "text": "x"}], "has_more": True, "after": None}
    with Faulty(pages=lambda _: answer, tools={"list_all": lambda _: answer}) as server:
        assert texts(of(server, next="after")) == {"a": "x"}


# Limits


def test_max_nodes() -> None:
    with Faulty(NODES) as server:
        assert len(texts(http(server, max_nodes=5))) == 5
        assert failure(http(server, max_nodes=4)) == "graph: source 'journal': more than max_nodes (4) nodes"


def test_max_nodes_of_a_rendered_list_stops_the_listing() -> None:
    with Faulty(NODES, size=1) as server:
        assert len(texts(mcp(server, max_nodes=5))) == 5
        server.seen.clear()
        words = f"graph: source 'journal' ('{server.mcp_url}'): more than max_nodes (3) nodes"
        assert failure(mcp(server, max_nodes=3)) == words
        assert server.labels("list_nodes", "render_node") == ["list_nodes"] * 4


@KINDS
@pytest.mark.parametrize(("text", "size"), [("x" * 2001, "0.0"), ("é" * 1001, "0.0"), ("x" * 1_260_000, "1.3")])
def test_max_node_mb(of: Any, text: str, size: str) -> None:
    with Faulty({"a": "short", "b": text}) as server:
        words = f"graph: source 'journal': node 'b' has a text of {size} MB, more than max_node_mb (0.002)"
        assert failure(of(server, max_node_mb=0.002)) == words


@KINDS
@pytest.mark.parametrize("text", ["x" * 2000, "é" * 1000])
def test_max_node_mb_is_not_exceeded_by_so_many_bytes(of: Any, text: str) -> None:
    with Faulty({"a": text}) as server:
        assert texts(of(server, max_node_mb=0.002)) == {"a": text}


@pytest.mark.parametrize(("size", "fits"), [(5000, True), (5001, False)])
def test_max_page_mb(size: int, fits: bool) -> None:
    def page(_: str | None) -> Any:
        bare = {"nodes": [{"key": "a", "text": "x"}], "filling": ""}
        return {**bare, "filling": "x" * (size - len(json.dumps(bare)))}

    with Faulty(pages=page) as server:
        if fits:
            assert texts(http(server, max_page_mb=0.005)) == {"a": "x"}
        else:
            words = "an answer is larger than max_page_mb (0.005 MB)"
            assert failure(http(server, max_page_mb=0.005)) == f"graph: source 'journal' ('{server.url}'): {words}"


def test_100_mb_in_one_node_are_refused_whatever_the_page_limit() -> None:
    def page(_: str | None) -> Any:
        return {"nodes": [{"key": "a", "text": "x" * 100_000_000}]}

    with Faulty(pages=page) as server:
        words = "graph: source 'journal': node 'a' has a text of 100.0 MB, more than max_node_mb (1)"
        assert failure(http(server, max_page_mb=200)) == words


# Records


def nodes_of(records: Any, **options: Any) -> list[tuple[str, str, str | None]]:
    with Faulty(pages=lambda _: {"nodes": records}) as server:
        return [(raw.key, raw.text, raw.time) for raw in fetched(http(server, **options))]


def test_fields_are_paths() -> None:
    record = {"id": {"short": 7}, "versions": [{"body": "old"}, {"body": "new"}], "at": 1700000000}
    assert nodes_of([record], key="id.short", text="versions.1.body", time="at") == [("7", "new", "1700000000")]


def test_observations() -> None:
    record = {"key": "e", "text": ["one", "two", "one"], "time": None}
    digests = {text: hashlib.sha256(text.encode()).hexdigest()[:12] for text in ("one", "two")}
    assert nodes_of([record]) == [("e", "one\ntwo\none", None)]
    apart = [(f"e#{digests['one']}", "one", None), (f"e#{digests['two']}", "two", None)]
    assert nodes_of([record], observations="apart") == apart


def test_the_same_node_twice_is_one() -> None:
    assert nodes_of([{"key": "a", "text": "x"}, {"key": "a", "text": "x"}]) == [("a", "x", None)]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"key": "a", "text": "x"}, {"key": "a", "text": "y"}], "…: the key 'a' is given twice, with different texts"),
        ([{"key": "a"}], "… ('…/nodes'): the node has no 'text' (in \"{'key': 'a'}\")"),
        ([{"text": "a"}], "… ('…/nodes'): the node has no 'key' (in \"{'text': 'a'}\")"),
        ([{"key": None, "text": "x"}], "… ('…/nodes'): the node needs a string as 'key' (in …)"),
        ([{"key": "a", "text": {"a": 1}}], "… ('…/nodes'): the node needs a string as 'text' (in …)"),
        (["a"], "… ('…/nodes'): a node must be a JSON object with the fields 'key' and 'text' (in 'a')"),
        ({"a": 1}, "… ('…/nodes'): no list at 'nodes' in an answer (`items`); it holds 'nodes'"),
        ([{"key": "a" * 500}], "… ('…/nodes'): the node has no 'text' (in \"{'key': '" + "a" * 110 + '…")'),
    ],
)
def test_records_that_are_no_nodes(records: Any, words: str) -> None:
    with Faulty(pages=lambda _: {"nodes": records}) as server:
        like(failure(http(server)), "graph: source 'journal'" + words)


@pytest.mark.parametrize(
    ("answer", "holds"), [({"data": 1, "next": 2}, "; it holds 'data', 'next'"), ({}, ""), ([], ""), (3, "")]
)
def test_answers_without_a_list(answer: Any, holds: str) -> None:
    with Faulty(pages=lambda _: answer) as server:
        words = f"no list at 'nodes' in an answer (`items`){holds}"
        assert failure(http(server)) == f"graph: source 'journal' ('{server.url}'): {words}"


def test_items_may_be_the_answer_itself_or_deep_within() -> None:
    records = [{"key": "a", "text": "x"}]
    for path, answer in (("", records), ("data.0.nodes", {"data": [{"nodes": records}]})):
        with Faulty(pages=partial(lambda answer, _: answer, answer)) as server:
            assert texts(http(server, items=path)) == {"a": "x"}


def test_progress_is_told_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by 2 s with each node."""
    clock = itertools.count(0, 2)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    said: list[str] = []
    collected = live.Collected("journal", Limits(), said.append, {})
    for number in range(8):
        collected.add(RawNode(f"{number}", "x"))
    assert said == ["journal: 3 nodes, 0 a second", "journal: 6 nodes, 0 a second"]
    collected.nodes |= {f"more {number}": RawNode("", "") for number in range(91)}
    collected.add(RawNode("last", "x"))
    assert said[2:] == ["journal: 100 nodes, 6 a second"]  # in 18 s
