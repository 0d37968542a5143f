"""A fetch from a faulty server: each fault ends in one message with the source, the address and the reason, and no token."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

import pytest

from amygdala import http_source, live
from amygdala.sources import sources_of
from faulty_server import Fault, Faulty, ToolError, closed_port
from fetching import NODES, OF, PAGE, SECRET, TOKEN_ENV, failure, fetched, http, like, mcp, recorded_waits, texts, told

KINDS = pytest.mark.parametrize("kind", ["http", "mcp"])
HALFWAY = pytest.mark.parametrize("after", [0, 1], ids=["at first", "halfway"])


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setenv(TOKEN_ENV, SECRET)
    return recorded_waits(monkeypatch)


def test_the_server_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    with Faulty(NODES, Fault("hang", "page", after=1)) as server:
        failure(http(server, timeout_s=0.3, tries=1))
        address = server.server_address
    assert set(threading.enumerate()) == before
    with socket.socket() as knock:
        assert knock.connect_ex(address) != 0


# Each fault, at the first request and halfway


@KINDS
@HALFWAY
@pytest.mark.parametrize(
    ("fault", "words", "tries"),
    [
        ("500", "HTTP 500 no luck, 3 times", 3),
        ("502", "HTTP 502 no luck, 3 times", 3),
        ("429", "HTTP 429 no luck, 3 times", 3),
        ("cut", "the answer was cut off (…), 3 times", 3),
        ("401", f"HTTP 401 no luck: the token in {TOKEN_ENV} was not accepted", 1),
        ("403", f"HTTP 403 no luck: the token in {TOKEN_ENV} was not accepted", 1),
        ("huge", "an answer is larger than max_page_mb (64 MB)", 1),
    ],
)
def test_faults(waits: list[float], kind: str, after: int, fault: str, words: str, tries: int) -> None:
    said: list[str] = []
    with Faulty(NODES, Fault(fault, PAGE[kind], after)) as server:
        message = failure(OF[kind](server, token_env=TOKEN_ENV), said)
        like(message, told(kind, server) + words)
        assert server.labels(PAGE[kind]) == [PAGE[kind]] * (after + tries)
    assert waits == [0.5, 1.0][: tries - 1]
    reason = words.removesuffix(", 3 times")
    assert len(said) == tries - 1
    for number, line in enumerate(said, 2):
        like(line, told(kind, server) + f"{reason}; try {number} of 3 in {['0.5', '1'][number - 2]} s")


@KINDS
@HALFWAY
def test_silence_ends_after_timeout_s(waits: list[float], kind: str, after: int) -> None:
    with Faulty(NODES, Fault("hang", PAGE[kind], after)) as server:
        message = failure(OF[kind](server, timeout_s=1, tries=2))
        assert message == told(kind, server) + "no answer within 1 s (timeout_s), 2 times"
        assert server.labels(PAGE[kind]) == [PAGE[kind]] * (after + 2)
    assert waits == [0.5]


@KINDS
def test_nobody_listens(waits: list[float], kind: str) -> None:
    port = closed_port()
    address = {"url" if kind == "http" else "memory_mcp_url": f"http://user:pass@127.0.0.1:{port}/x?api_key=q#here"}
    with Faulty() as server:
        options = {**OF[kind](server), **address}
    like(failure(options), f"graph: source 'journal' ('http://127.0.0.1:{port}/x'): cannot connect (…), 3 times")
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize(("kind", "label"), [("http", "page"), ("mcp", "initialize"), ("mcp", "list_nodes")])
def test_server_that_goes_away_halfway(waits: list[float], kind: str, label: str) -> None:
    with Faulty(NODES, Fault("refused", label)) as server:
        like(failure(OF[kind](server)), told(kind, server) + "cannot connect (…), 3 times")
        assert server.labels(label) == [label]
    assert waits == [0.5, 1.0]


@KINDS
def test_a_single_try_is_not_counted_in_words(waits: list[float], kind: str) -> None:
    with Faulty(NODES, Fault("500", PAGE[kind])) as server:
        assert failure(OF[kind](server, tries=1)) == told(kind, server) + "HTTP 500 no luck"
    assert waits == []


@HALFWAY
def test_invalid_json_of_a_listing(waits: list[float], after: int) -> None:
    with Faulty(NODES, Fault("garbage", "page", after)) as server:
        like(failure(http(server)), told("http", server) + "the answer is not JSON, or not all of it ('Expecting value: …')")
        assert len(server.seen) == after + 1
    assert waits == []


@HALFWAY
@pytest.mark.parametrize("stream", [False, True])
def test_invalid_json_of_a_tool(waits: list[float], after: int, stream: bool) -> None:
    with Faulty(NODES, Fault("garbage", "list_nodes", after), stream=stream) as server:
        like(failure(mcp(server)), told("mcp", server) + "tool 'list_nodes': …JSON…")
        assert server.labels("list_nodes") == ["list_nodes"] * (after + 1)
    assert waits == []


@pytest.mark.parametrize(
    ("status", "words"), [("404", "HTTP 404 no luck"), ("418", "HTTP 418 no luck"), ("204", "HTTP 204 no luck")]
)
def test_other_statuses_of_a_listing(waits: list[float], status: str, words: str) -> None:
    with Faulty(NODES, Fault(status)) as server:
        assert failure(http(server)) == told("http", server) + words
        assert len(server.seen) == 1
    assert waits == []


@KINDS
@pytest.mark.parametrize("status", ["401", "403"])
def test_refusal_without_a_token_asks_for_one(kind: str, status: str) -> None:
    with Faulty(NODES, Fault(status)) as server:
        words = f"HTTP {status} no luck: it wants a token: name its variable in token_env"
        assert failure(OF[kind](server)) == told(kind, server) + words
        assert len(server.seen) == 1


def test_redirects_are_not_followed() -> None:
    with Faulty(NODES) as other, Faulty(NODES, Fault("302", headers={"Location": f"http://{other.address}/x"})) as server:
        expected = f"redirects to 'http://{other.address}/x': set `url` to where the endpoint lives"
        assert failure(http(server)) == told("http", server) + expected
        assert not other.seen


@pytest.mark.parametrize("label", ["server/discover", "list_nodes"])
def test_redirects_of_mcp_servers_are_not_followed(label: str) -> None:
    with Faulty(NODES) as other:
        location = {"Location": f"http://{other.address}/mcp"}
        at = "" if label == "server/discover" else label
        with Faulty(NODES, Fault("307", at, headers=location)) as server:
            like(failure(mcp(server)), f"graph: source 'journal'…Redirect to http://{other.address}/mcp not followed…")
        assert not other.seen


def test_a_redirect_shows_no_password() -> None:
    with Faulty(NODES, Fault("302", headers={"Location": "http://user:pass@elsewhere/x?api_key=q"})) as server:
        message = failure(http(server))
        assert "http://elsewhere/x" in message
        assert "pass" not in message and "api_key" not in message


def test_a_listing_called_an_event_stream_is_limited_too() -> None:
    with Faulty(NODES, Fault("huge", "page", headers={"Content-Type": "text/event-stream"})) as server:
        assert "max_page_mb" in failure(http(server))


def test_a_listing_called_an_event_stream_is_tried_again_too(waits: list[float]) -> None:
    with Faulty(NODES, Fault("stall", "page", times=1)) as server:
        assert texts(http(server, timeout_s=1)) == NODES
    assert waits == [0.5]


# Patience


@KINDS
@pytest.mark.parametrize("fault", ["500", "cut", "429"])
def test_transient_faults_are_outlived(waits: list[float], kind: str, fault: str) -> None:
    with Faulty(NODES, Fault(fault, PAGE[kind], after=1, times=2)) as server:
        assert texts(OF[kind](server)) == NODES
        assert server.labels(PAGE[kind]) == [PAGE[kind]] * 5
    assert waits == [0.5, 1.0]


@KINDS
def test_waits_double_for_each_request_anew(waits: list[float], kind: str) -> None:
    faults = Fault("500", PAGE[kind], times=2), Fault("503", PAGE[kind], after=3, times=3)
    with Faulty(NODES, *faults) as server:
        assert texts(OF[kind](server, tries=5)) == NODES
    assert waits == [0.5, 1.0, 0.5, 1.0, 2.0]


@KINDS
@pytest.mark.parametrize("status", ["429", "503"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [("7", [7.0, 7.0]), (" 7 ", [7.0, 7.0]), ("0", [0.5, 1.0]), ("soon", [0.5, 1.0]), ("-3", [0.5, 1.0]), ("", [0.5, 1.0])],
)
def test_retry_after_is_waited_for(waits: list[float], kind: str, status: str, given: str, expected: list[float]) -> None:
    with Faulty(NODES, Fault(status, PAGE[kind], headers={"Retry-After": given})) as server:
        assert failure(OF[kind](server)) == told(kind, server) + f"HTTP {status} no luck, 3 times"
    assert waits == expected


@pytest.mark.parametrize(
    ("date", "expected"),
    [("Wed, 21 Oct 2015 07:28:09 GMT", 9.0), ("Wed, 21 Oct 2015 07:27:00 GMT", 0.5), ("Wed, 99 Oct 2015", 0.5)],
)
def test_retry_after_may_be_a_date(monkeypatch: pytest.MonkeyPatch, date: str, expected: float) -> None:
    waits = recorded_waits(monkeypatch, now=1445412480.0)  # 07:28:00 that day
    with Faulty(NODES, Fault("429", "page", times=1, headers={"Retry-After": date})) as server:
        assert texts(http(server)) == NODES
    assert waits == [expected]


@KINDS
@pytest.mark.parametrize("given", ["100", "9" * 400])
def test_retry_after_beyond_the_deadline_gives_up_at_once(waits: list[float], kind: str, given: str) -> None:
    with Faulty(NODES, Fault("429", PAGE[kind], headers={"Retry-After": given})) as server:
        seconds = "100" if given == "100" else "inf"
        words = f"HTTP 429 no luck; another try in {seconds} s would end after the deadline_s of 100 s"
        assert failure(OF[kind](server)) == told(kind, server) + words
        assert server.labels(PAGE[kind]) == [PAGE[kind]]
    assert waits == []


@KINDS
def test_an_answer_without_end_ends_at_the_deadline(kind: str) -> None:
    """Every byte comes in time, the answer never."""
    with Faulty(NODES, Fault("drip", PAGE[kind], after=1)) as server:
        had = 2 if kind == "http" else 0
        words = f"graph: source 'journal': not done within deadline_s (0.7 s); {had} nodes had come"
        assert failure(OF[kind](server, deadline_s=0.7)) == words


def test_the_deadline_is_that_of_the_whole_source() -> None:
    """Pages without end, each in time."""
    pages = {"n": 0}

    def page(cursor: str | None) -> Any:
        pages["n"] += 1
        return {"nodes": [{"key": str(pages["n"]), "text": "x"}], "next": str(pages["n"])}

    with Faulty(pages=page) as server:
        like(
            failure(http(server, deadline_s=0.5)),
            "graph: source 'journal': not done within deadline_s (0.5 s); … nodes had come",
        )


# Tokens


@KINDS
def test_the_token_is_sent_with_every_request(kind: str) -> None:
    with Faulty(NODES) as server:
        assert texts(OF[kind](server, token_env=TOKEN_ENV)) == NODES
        assert {seen.headers.get("authorization") for seen in server.seen} == {f"Bearer {SECRET}"}
        assert {seen.headers.get("accept-encoding") for seen in server.seen} == {"identity"}


@KINDS
def test_without_token_env_none_is_sent(kind: str) -> None:
    with Faulty(NODES) as server:
        assert texts(OF[kind](server)) == NODES
        assert not any("authorization" in seen.headers for seen in server.seen)


def test_space_around_the_token_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_ENV, f" {SECRET}\n")
    with Faulty(NODES) as server:
        fetched(http(server, token_env=TOKEN_ENV))
        assert server.seen[0].headers["authorization"] == f"Bearer {SECRET}"


@KINDS
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_token_that_is_not_set(monkeypatch: pytest.MonkeyPatch, kind: str, value: str | None) -> None:
    monkeypatch.delenv(TOKEN_ENV) if value is None else monkeypatch.setenv(TOKEN_ENV, value)
    with Faulty(NODES) as server:
        words = f"graph: source 'journal': the environment variable {TOKEN_ENV} (token_env) is not set"
        assert failure(OF[kind](server, token_env=TOKEN_ENV)) == words
        assert not server.seen


@KINDS
@pytest.mark.parametrize("value", ["caf\u00e9-au-lait", "two\nlines", "bell\a-bell"])
def test_a_token_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch, kind: str, value: str) -> None:
    monkeypatch.setenv(TOKEN_ENV, value)
    with Faulty(NODES) as server:
        words = f"graph: source 'journal': the token in {TOKEN_ENV} holds characters that no HTTP header can carry"
        assert failure(OF[kind](server, token_env=TOKEN_ENV)) == words
        assert not server.seen


@pytest.mark.parametrize("fault", ["500", "401", "404", "garbage"])
@pytest.mark.parametrize(("kind", "label"), [("http", "page"), ("mcp", "initialize"), ("mcp", "list_nodes")])
def test_a_token_that_the_server_repeats_is_hidden(kind: str, label: str, fault: str) -> None:
    said: list[str] = []
    with Faulty(NODES, Fault(fault, label, echo=True)) as server:
        message = failure(OF[kind](server, token_env=TOKEN_ENV), said)
    everything = "\n".join([message, *said])
    assert SECRET not in everything
    assert everything.count("no luck Bearer ***") >= {"500": 3, "401": 1}.get(fault, 0)


@pytest.mark.parametrize("fault", ["tool error", "rpc error"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_a_tool_repeats_is_hidden(fault: str, stream: bool) -> None:
    with Faulty(NODES, Fault(fault, "list_nodes", echo=True), stream=stream) as server:
        like(failure(mcp(server, token_env=TOKEN_ENV)), told("mcp", server) + "tool 'list_nodes'…: 'no luck Bearer ***'")


def test_a_token_is_hidden_where_the_message_is_cut_too() -> None:
    def fail(_: dict[str, Any]) -> Any:
        raise ToolError("x" * 285 + SECRET)

    with Faulty(NODES, tools={"list_nodes": fail}) as server:
        assert SECRET[:6] not in failure(mcp(server, token_env=TOKEN_ENV))


def test_a_token_with_a_backslash_is_hidden_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_ENV, "s3cr3t\\t0ken")
    with Faulty(NODES, Fault("tool error", "list_nodes", echo=True)) as server:
        assert "t0ken" not in failure(mcp(server, token_env=TOKEN_ENV))


def test_what_the_source_does_not_name_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMLESS", "luck")
    with Faulty(NODES, Fault("500", "page")) as server:
        assert "no luck" in failure(http(server, token_env=TOKEN_ENV))


# Whatever happens


def test_an_unforeseen_error_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async def collect(*_: Any) -> None:
        raise ExceptionGroup("group", [ValueError(f"odd {SECRET}"), ExceptionGroup("inner", [KeyError("k")])])

    monkeypatch.setattr(http_source, "collect", collect)
    with Faulty(NODES) as server:
        message = failure(http(server, token_env=TOKEN_ENV))
    assert message == "graph: source 'journal': \"ValueError: odd ***; KeyError: 'k'\""


def test_an_interrupt_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async def collect(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(http_source, "collect", collect)
    with Faulty(NODES) as server, pytest.raises(KeyboardInterrupt):
        fetched(http(server))


@pytest.mark.parametrize("fault", [(), (Fault("500"),)])
def test_what_libraries_log_is_silenced_during_the_fetch_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: tuple[Fault, ...]
) -> None:
    inside = []
    collect = http_source.collect

    async def watched(*arguments: Any) -> None:
        inside.append(logging.root.manager.disable)
        await collect(*arguments)

    monkeypatch.setattr(http_source, "collect", watched)
    with Faulty(NODES, *fault) as server:
        (source,) = sources_of(http(server))
        try:
            live.fetch(source, lambda _: None)
        except live.UserError:
            assert fault
    assert inside == [logging.CRITICAL] and logging.root.manager.disable == logging.NOTSET
    assert not caplog.records
