"""MCP servers whose answers are well formed: presets and what overrides them, shapes of answers, rendering."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from faulty_server import Faulty
from fetching import NODES, failure, fetched, mcp, texts


def graph(server: Faulty, **options: Any) -> dict[str, Any]:
    return mcp(server, **{"preset": "knowledge-graph", **options})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("shape", ["structured", "text", "result", "plain"])
@pytest.mark.parametrize("of", [graph, mcp])
def test_presets(of: Any, shape: str, session: bool, stream: bool) -> None:
    with Faulty(NODES, shape=shape, session=session, stream=stream) as server:
        assert texts(of(server)) == NODES


def test_the_preset_of_nodes_lists_and_then_renders() -> None:
    with Faulty(NODES) as server:
        texts(mcp(server, at_once=1))
        assert server.arguments("list_nodes") == [{}, {"cursor": "1"}, {"cursor": "2"}]
        assert server.arguments("render_node") == [{"key": key} for key in NODES]
        assert "read_graph" not in server.labels()


def test_the_preset_of_a_knowledge_graph_asks_once() -> None:
    with Faulty(NODES) as server:
        texts(graph(server))
        assert server.arguments("read_graph") == [{}]
        assert not server.arguments("list_nodes") + server.arguments("render_node")


def test_every_setting_of_a_preset_gives_way() -> None:
    pages = {"0": {"found": {"pages": [{"id": "first"}]}, "more": "1"}, "1": {"found": {"pages": [{"id": "last"}]}}}
    tools = {
        "all": lambda given: pages[given["after"]],
        "show": lambda given: {"body": {"text": f"Text of {given['id']}."}},
    }
    options = {
        "tool": "all",
        "arguments": {"kind": "k", "after": "0"},
        "items": "found.pages",
        "key": "id",
        "next": "more",
        "cursor_argument": "after",
        "render_tool": "show",
        "render_argument": "id",
        "text": "body.text",
    }
    with Faulty(tools=tools) as server:
        assert texts(mcp(server, at_once=1, **options)) == {"first": "Text of first.", "last": "Text of last."}
        assert server.arguments("all") == [{"kind": "k", "after": "0"}, {"kind": "k", "after": "1"}]
        assert server.arguments("show") == [{"id": "first"}, {"id": "last"}]


def test_without_a_preset_all_is_told() -> None:
    with Faulty(NODES) as server:
        options = mcp(server, tool="read_graph", items="entities", key="name", text="observations")
        del options["preset"]
        assert texts(options) == NODES


def test_render_tool_null_takes_the_texts_from_the_list() -> None:
    tools = {"list_nodes": lambda _: {"nodes": [{"key": "a", "text": "x", "time": "t"}]}}
    with Faulty(tools=tools) as server:
        (raw,) = fetched(mcp(server, render_tool=None))
        assert (raw.key, raw.text, raw.time) == ("a", "x", "t")


def test_keys_may_be_listed_bare() -> None:
    tools = {"list_nodes": lambda _: {"nodes": ["a", "b"]}, "render_node": lambda given: f"# {given['key']}"}
    with Faulty(tools=tools) as server:
        assert texts(mcp(server)) == {"a": "# a", "b": "# b"}


def test_a_node_without_text_is_named() -> None:
    tools = {"list_nodes": lambda _: {"nodes": ["a"]}, "render_node": lambda _: {"body": "x"}}
    with Faulty(tools=tools) as server:
        words = f"graph: source 'journal' ('{server.mcp_url}'): node 'a': the node needs a string as 'text'"
        assert failure(mcp(server)) == words


def test_an_entity_without_observations_is_named() -> None:
    with Faulty(tools={"read_graph": lambda _: {"entities": [{"name": "a"}]}}) as server:
        words = f"graph: source 'journal' ('{server.mcp_url}'): the node has no 'observations' (in \"{{'name': 'a'}}\")"
        assert failure(graph(server)) == words


def test_a_rendered_time_wins_over_a_listed_one() -> None:
    listed = {"nodes": [{"key": "a", "time": "listed"}, {"key": "b", "time": "listed"}, {"key": "c"}]}
    rendered = {"a": {"text": "x", "time": "rendered"}, "b": {"text": "x"}, "c": {"text": "x"}}
    with Faulty(tools={"list_nodes": lambda _: listed, "render_node": lambda given: rendered[given["key"]]}) as server:
        times = {raw.key: raw.time for raw in fetched(mcp(server))}
        assert times == {"a": "rendered", "b": "listed", "c": None}


def test_rendered_observations_may_be_apart() -> None:
    tools = {"list_nodes": lambda _: {"nodes": ["a"]}, "render_node": lambda _: {"text": ["one", "two"]}}
    with Faulty(tools=tools) as server:
        assert sorted(texts(mcp(server, observations="apart")).values()) == ["one", "two"]
        assert texts(mcp(server)) == {"a": "one\ntwo"}


@pytest.mark.parametrize(("options", "at_once"), [({"at_once": 1}, 1), ({"at_once": 3}, 3), ({}, 6), ({"at_once": 64}, 6)])
def test_at_once_is_how_many_nodes_are_rendered_at_a_time(options: dict[str, int], at_once: int) -> None:
    """Calls wait for each other in groups of `at_once`: more of them, or fewer, and somebody waits in vain."""
    together = threading.Barrier(at_once)
    now, most, lock = [0], [0], threading.Lock()

    def render(_: dict[str, Any]) -> Any:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(20)
        with lock:
            now[0] -= 1
        return {"text": "x"}

    tools = {"list_nodes": lambda _: {"nodes": ["a", "b", "c", "d", "e", "f"]}, "render_node": render}
    with Faulty(tools=tools) as server:
        assert len(texts(mcp(server, **options))) == 6
    assert most[0] == at_once


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        ("structured", {"entities": [{"name": "a", "observations": ["x"]}]}),
        ("text", {"entities": [{"name": "a", "observations": ["x"]}]}),
        ("result", {"entities": [{"name": "a", "observations": ["x"]}]}),
        ("result", '{"entities": [{"name": "a", "observations": ["x"]}]}'),
    ],
)
def test_shapes_of_an_answer(shape: str, value: Any) -> None:
    with Faulty(tools={"read_graph": lambda _: value}, shape=shape) as server:
        assert texts(graph(server)) == {"a": "x"}


def test_a_field_called_result_is_not_unwrapped_where_it_is_meant() -> None:
    with Faulty(tools={"read_graph": lambda _: [{"name": "a", "observations": ["x"]}]}, shape="result") as server:
        assert texts(graph(server, items="result")) == {"a": "x"}


@pytest.mark.parametrize("shape", ["plain", "result"])
@pytest.mark.parametrize("written", ["42", "3.10", "[1, 2]", '{"a": 1}', '"quoted"', "null", "[" * 5_000])
def test_a_rendered_text_that_happens_to_be_json_is_a_text(shape: str, written: str) -> None:
    tools = {"list_nodes": lambda _: {"nodes": ["a"]}, "render_node": lambda _: written}
    with Faulty(tools=tools, shape=shape) as server:
        assert texts(mcp(server)) == {"a": written}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("Here are your nodes: a, b", "no list at 'entities' in an answer (`items`)"),
        ("[" * 100_000, "no list at 'entities' in an answer (`items`)"),
        ({"nodes": []}, "no list at 'entities' in an answer (`items`); it holds 'nodes'"),
    ],
)
def test_answers_of_a_tool_without_nodes(value: Any, words: str) -> None:
    with Faulty(tools={"read_graph": lambda _: value}) as server:
        assert failure(graph(server)) == f"graph: source 'journal' ('{server.mcp_url}'): {words}"


def test_total_of_a_tool() -> None:
    with Faulty(tools={"read_graph": lambda _: {"entities": [{"name": "a", "observations": ["x"]}], "all": 2}}) as server:
        words = f"graph: source 'journal' ('{server.mcp_url}'): 1 nodes came, and the server says there are 2"
        assert failure(graph(server, total="all")) == words


def test_total_of_a_rendered_list() -> None:
    tools = {"list_nodes": lambda _: {"nodes": ["a"], "all": 2}, "render_node": lambda _: "x"}
    with Faulty(tools=tools) as server:
        words = f"graph: source 'journal' ('{server.mcp_url}'): 1 nodes came, and the server says there are 2"
        assert failure(mcp(server, total="all")) == words
        assert not server.arguments("render_node")
