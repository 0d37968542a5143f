"""Faults that only an MCP server has: its handshake, failing tools, event streams that break off."""

from __future__ import annotations

from typing import Any

import pytest

from faulty_server import Fault, Faulty
from fetching import NODES, failure, like, mcp, recorded_waits, texts, told

HALFWAY = pytest.mark.parametrize("after", [0, 1], ids=["at first", "halfway"])


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return recorded_waits(monkeypatch)


@pytest.mark.parametrize("label", ["server/discover", "initialize", "notifications/initialized", "list_nodes", "render_node"])
@pytest.mark.parametrize(("fault", "words"), [("500", "HTTP 500 no luck, 3 times"), ("401", "HTTP 401 no luck: …")])
@pytest.mark.parametrize("stream", [False, True])
def test_refused_at_any_step(label: str, fault: str, words: str, stream: bool) -> None:
    with Faulty(NODES, Fault(fault, label), stream=stream) as server:
        like(failure(mcp(server, at_once=1)), told("mcp", server) + words)
        assert server.labels(label) == [label] * (3 if fault == "500" else 1)


@HALFWAY
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "words"), [("tool error", " failed: 'no luck'"), ("rpc error", ": 'no luck'")])
@pytest.mark.parametrize("tool", ["list_nodes", "render_node"])
def test_failing_tools(waits: list[float], after: int, stream: bool, fault: str, words: str, tool: str) -> None:
    with Faulty(NODES, Fault(fault, tool, after), stream=stream) as server:
        assert failure(mcp(server, at_once=1)) == told("mcp", server) + f"tool '{tool}'{words}"
        assert server.labels(tool) == [tool] * (after + 1)
    assert waits == []


def test_a_tool_that_the_server_lacks() -> None:
    with Faulty(NODES) as server:
        tools = "The server's tools: 'list_nodes', 'read_graph', 'render_node' (`tool`)"
        words = f"tool 'list_node' failed: 'Unknown tool: list_node'. {tools}"
        assert failure(mcp(server, tool="list_node")) == told("mcp", server) + words


def test_tools_that_cannot_be_listed_hide_no_error() -> None:
    faults = Fault("rpc error", "list_nodes"), Fault("rpc error", "tools/list")
    with Faulty(NODES, *faults) as server:
        assert failure(mcp(server)) == told("mcp", server) + "tool 'list_nodes': 'no luck'"


@pytest.mark.parametrize("status", [400, 404, 500])
def test_rpc_errors_with_a_status_are_the_servers_word(waits: list[float], status: int) -> None:
    """A server may flag a JSON-RPC error with HTTP 500: that is its answer, and not tried again."""
    with Faulty(NODES, Fault("rpc error", "list_nodes", status=status)) as server:
        assert failure(mcp(server)) == told("mcp", server) + "tool 'list_nodes': 'no luck'"
        assert server.labels("list_nodes") == ["list_nodes"]
    assert waits == []


@pytest.mark.parametrize(
    ("label", "fault"),
    [("server/discover", "404"), ("server/discover", "rpc error"), ("stream", "500"), ("stream", "hang"), ("end", "500")],
)
def test_what_servers_need_not_have_is_no_fault(waits: list[float], label: str, fault: str) -> None:
    with Faulty(NODES, Fault(fault, label)) as server:
        assert texts(mcp(server)) == NODES
    assert waits == []


@pytest.mark.parametrize("fault", ["404", "rpc error", "garbage"])
def test_a_failed_handshake_names_the_address(fault: str) -> None:
    with Faulty(NODES, Fault(fault, "initialize")) as server:
        like(failure(mcp(server)), told("mcp", server) + "…")


@pytest.mark.parametrize(
    ("fault", "words", "tries"),
    [
        ("stall", "tool 'list_nodes': no answer within 0.5 s (timeout_s), 3 times", 3),
        ("cut", "tool 'list_nodes': the answer was cut off (…), 3 times", 3),
        ("huge", "an answer is larger than max_page_mb (64 MB)", 1),
    ],
)
def test_event_streams_that_break_off(waits: list[float], fault: str, words: str, tries: int) -> None:
    said: list[str] = []
    with Faulty(NODES, Fault(fault, "list_nodes", after=1), stream=True) as server:
        like(failure(mcp(server, timeout_s=0.5), said), told("mcp", server) + words)
        assert server.labels("list_nodes") == ["list_nodes"] * (1 + tries)
    assert waits == [0.5, 1.0][: tries - 1]
    assert len(said) == tries - 1
    for number, line in enumerate(said, 2):
        like(line, told("mcp", server) + f"…; try {number} of 3 in {['0.5', '1'][number - 2]} s")


def test_a_broken_event_stream_is_outlived(waits: list[float]) -> None:
    with Faulty(NODES, Fault("cut", "list_nodes", times=3), stream=True) as server:
        assert texts(mcp(server, tries=4)) == NODES
        assert server.labels("list_nodes") == ["list_nodes"] * 6
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("fault", "words"), [("stall", "no answer within 0.5 s (timeout_s)"), ("cut", "the answer was cut off (…)")]
)
def test_event_streams_that_break_off_in_the_handshake(fault: str, words: str) -> None:
    with Faulty(NODES, Fault(fault, "initialize"), stream=True) as server:
        like(failure(mcp(server, timeout_s=0.5)), told("mcp", server) + words)


def test_a_single_try_of_a_stream_is_not_counted_in_words() -> None:
    with Faulty(NODES, Fault("cut", "list_nodes"), stream=True) as server:
        like(failure(mcp(server, tries=1)), told("mcp", server) + "tool 'list_nodes': the answer was cut off (…)")


def test_a_break_that_was_outlived_is_not_blamed_on_a_later_call(waits: list[float]) -> None:
    faults = Fault("cut", "server/discover"), Fault("rpc error", "list_nodes")
    with Faulty(NODES, *faults, stream=True) as server:
        assert failure(mcp(server)) == told("mcp", server) + "tool 'list_nodes': 'no luck'"
        assert server.labels("list_nodes") == ["list_nodes"]
    assert waits == []


@pytest.mark.parametrize(
    "result", [{"content": "nonsense"}, {"content": [], "structuredContent": [1]}, {"content": [{"type": "?"}]}]
)
def test_results_against_the_protocol_name_the_tool(result: dict[str, Any]) -> None:
    with Faulty(tools={"list_nodes": lambda _: result}, shape="raw") as server:
        message = failure(mcp(server))
    assert "handshake" not in message
    like(message, told("mcp", server) + "tool 'list_nodes'…")
