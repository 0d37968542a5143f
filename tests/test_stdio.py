"""An MCP server that is a program: its faults end in one message, it sees only the variables it is named, and it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fetching import SECRET, TOKEN_ENV, failure, fetched, recorded_waits, stdio, texts

# What the SDK gives every program, and what Python adds by itself
INHERITED = {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LC_CTYPE"}
PYTHON = f"graph: source 'journal' (command '{stdio()['command'][0]}'): "


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setenv(TOKEN_ENV, SECRET)
    return recorded_waits(monkeypatch)


def test_nodes_of_a_program() -> None:
    assert texts(stdio()) == {"a": "Text of a.", "b": "Text of b."}


def test_only_named_variables_reach_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAMED", "value of NAMED")
    monkeypatch.setenv("UNNAMED", "value of UNNAMED")
    monkeypatch.delenv("NOT_SET", raising=False)
    seen = {raw.key: raw.text for raw in fetched(stdio(tool="environment", environment=["NAMED", "NOT_SET"]))}
    assert seen["NAMED"] == "value of NAMED"
    assert set(seen) <= INHERITED | {"NAMED"}


def test_the_token_reaches_the_program_as_a_variable() -> None:
    seen = texts(stdio(tool="environment", token_env=TOKEN_ENV))
    assert seen[TOKEN_ENV] == SECRET
    assert set(seen) <= INHERITED | {TOKEN_ENV}


def test_a_token_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_ENV)
    words = f"graph: source 'journal': the environment variable {TOKEN_ENV} (token_env) is not set"
    assert failure(stdio(token_env=TOKEN_ENV)) == words


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("/no/such/program", "No such file or directory"),
        ("no-such-program", "No such file or directory"),
        ("/", "Permission denied"),
    ],
)
def test_a_program_that_cannot_be_started(command: str, reason: str) -> None:
    words = f"graph: source 'journal' (command '{command}'): cannot be started: {reason}"
    assert failure({**stdio(), "command": [command]}) == words


def test_a_tool_that_fails() -> None:
    assert failure(stdio("", tool="fail")) == PYTHON + "tool 'fail' failed: 'no luck '"


def test_secrets_that_a_tool_repeats_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_SECRET", SECRET + "-and-more")
    options = stdio("", TOKEN_ENV, "OTHER_SECRET", tool="fail", token_env=TOKEN_ENV, environment=["OTHER_SECRET"])
    assert failure(options) == PYTHON + "tool 'fail' failed: 'no luck *** ***'"


def test_a_tool_that_the_program_lacks() -> None:
    tools = "The server's tools: 'environment', 'fail', 'list_nodes', 'read_graph' (`tool`)"
    assert failure(stdio(tool="nope")) == PYTHON + f"tool 'nope' failed: 'Unknown tool: nope'. {tools}"


def test_an_endless_cursor() -> None:
    words = "50 pages in a row brought no new node: the pages would never end"
    assert failure(stdio(preset="nodes")) == PYTHON + words


@pytest.mark.parametrize("fault", ["hang", "garbage"])
def test_silence_ends_after_timeout_s(fault: str) -> None:
    """Garbage is no answer either."""
    words = "tool 'read_graph': no answer within 1 s (timeout_s)"
    assert failure(stdio(f"{fault} at read_graph", timeout_s=1)) == PYTHON + words


@pytest.mark.parametrize("at", ["initialize", "server/discover"])
def test_silence_ends_at_the_deadline(at: str) -> None:
    words = "graph: source 'journal': not done within deadline_s (1 s); 0 nodes had come"
    assert failure(stdio(f"hang at {at}", deadline_s=1)) == words


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    """The program writes its process id first."""
    script = f"import os, sys, pathlib; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); sys.stdin.read()"
    options = stdio(deadline_s=1)
    failure({**options, "command": [options["command"][0], "-c", script]})
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_100_mb_in_one_node_end_at_the_deadline() -> None:
    """The SDK reads lines of any length."""
    words = "graph: source 'journal': not done within deadline_s (2 s); 0 nodes had come"
    assert failure(stdio("huge at read_graph", deadline_s=2)) == words


@pytest.mark.parametrize("at", ["server/discover", "initialize", "read_graph"])
def test_the_last_words_of_a_program_are_told(at: str) -> None:
    words = "it ended; the last that it said: 'first words / no more memory ***'"
    assert failure(stdio(f"exit at {at}", TOKEN_ENV, token_env=TOKEN_ENV)) == PYTHON + words


def test_a_program_that_is_no_server_says_that_it_ended() -> None:
    assert failure({**stdio(), "command": ["true"]}) == "graph: source 'journal' (command 'true'): it ended"


def test_a_program_that_hangs_at_the_handshake_names_command_and_limit() -> None:
    assert failure(stdio("hang at initialize", timeout_s=1)) == PYTHON + "no answer within 1 s (timeout_s)"
