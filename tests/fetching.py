"""Fetches in tests: sources of a faulty server, the waits between tries, and messages compared with a pattern."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from amygdala import mcp_source, patience
from amygdala.errors import UserError
from amygdala.graph import RawNode
from amygdala.live import fetch
from amygdala.sources import sources_of
from faulty_server import Faulty

SECRET = "s3cr3t-t0ken-0123456789"
TOKEN_ENV = "FAULTY_TOKEN"
PATIENT = {"timeout_s": 30, "deadline_s": 100, "tries": 3}
NODES = {name: f"The text of {name}." for name in ("a", "b", "c", "d", "e")}


def http(server: Faulty, **options: Any) -> dict[str, Any]:
    return {"source": "http", "name": "journal", "url": server.url, "cursor_parameter": "cursor", **PATIENT, **options}


def mcp(server: Faulty, **options: Any) -> dict[str, Any]:
    return {"source": "mcp", "name": "journal", "memory_mcp_url": server.mcp_url, "preset": "nodes", **PATIENT, **options}


OF = {"http": http, "mcp": mcp}
PAGE = {"http": "page", "mcp": "list_nodes"}  # labels of the requests for a page


def told(kind: str, server: Faulty) -> str:
    """How a message begins."""
    return f"graph: source 'journal' ('http://{server.address}/{'nodes' if kind == 'http' else 'mcp'}'): "


def stdio(fault: str = "", *words: str, **options: Any) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("stdio_server.py")), fault, *words]
    return {"source": "mcp", "name": "journal", "command": command, "preset": "knowledge-graph", **PATIENT, **options}


def fetched(options: dict[str, Any], said: list[str] | None = None) -> list[RawNode]:
    (source,) = sources_of(options)
    return fetch(source, (said if said is not None else []).append)


def texts(options: dict[str, Any], said: list[str] | None = None) -> dict[str, str]:
    return {raw.key: raw.text for raw in fetched(options, said)}


def failure(options: dict[str, Any], said: list[str] | None = None) -> str:
    """The message of a fetch that must fail."""
    with pytest.raises(UserError) as caught:
        fetched(options, said)
    return str(caught.value)


def like(message: str, pattern: str) -> None:
    """The whole message must fit the pattern, in which … stands for anything."""
    assert re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), message, re.DOTALL), message


def recorded_waits(monkeypatch: pytest.MonkeyPatch, now: float | None = None) -> list[float]:
    """Waits between tries are recorded and not waited for; `now` is the time of day."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await anyio.sleep(0)

    class Anyio:
        """anyio, whose names come as they are asked for, with another sleep."""

        def __getattr__(self, name: str) -> Any:
            return sleep if name == "sleep" else getattr(anyio, name)

    for module in (patience, mcp_source):
        monkeypatch.setattr(module, "anyio", Anyio())

    class Time:
        monotonic = staticmethod(patience.time.monotonic)

        @staticmethod
        def time() -> float:
            assert now is not None
            return now

    if now is not None:
        monkeypatch.setattr(patience, "time", Time)
    return waits
