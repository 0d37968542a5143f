"""A memory server that speaks the Model Context Protocol, over streamable HTTP or as a command over stdio."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from typing import IO, Any

import anyio
import httpx2
from mcp import MCPError
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import REQUEST_TIMEOUT
from pydantic import ValidationError

from amygdala.errors import UserError, listed, shown
from amygdala.live import Collected, Page, leaves_of, page_of, pages
from amygdala.patience import FIRST_WAIT_S, MB, Limits, PatientTransport, address, headers, token_of
from amygdala.records import MISSING, Fields, at_path

PRESETS: dict[str, dict[str, Any]] = {
    # @modelcontextprotocol/server-memory: one answer with all entities and their observations
    "knowledge-graph": {"tool": "read_graph", "items": "entities", "key": "name", "text": "observations"},
    # a server that lists keys page by page, and renders one node at a time
    "nodes": {
        "tool": "list_nodes",
        "items": "nodes",
        "key": "key",
        "next": "next_cursor",
        "cursor_argument": "cursor",
        "render_tool": "render_node",
        "render_argument": "key",
        "text": "text",
    },
}
AT_ONCE = 8


def with_preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options over those of their preset; `render_tool: null` takes the texts from the list itself."""
    return {**PRESETS.get(options.get("preset", ""), {}), **options}


class Server:
    """A connected server whose tools are called, with messages for people.

    transport: of a server over HTTP, None over stdio; timeout_s: of a call over stdio (over HTTP the transport keeps it).
    """

    def __init__(
        self, client: Client, what: str, options: Mapping[str, Any], limits: Limits, collected: Collected, transport: Any = None
    ) -> None:
        self.client, self.what, self.options, self.limits, self.collected = client, what, options, limits, collected
        self.transport: PatientTransport | None = transport

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Any:
        """What a tool answers: its structured content, else its text.

        Reading tools may be called again: an event stream that broke off is, up to `tries` times.
        """
        for attempt in range(1, self.limits.tries + 1):
            try:
                timeout = None if self.transport else self.limits.timeout_s
                result = await self.client.call_tool(tool, dict(arguments), read_timeout_seconds=timeout)
                break
            except ValidationError as error:
                said = self.collected.quoted(str(error).splitlines()[0], 200)
                raise UserError(f"{self.what}: tool {shown(tool)}: the answer breaks the protocol: {said}") from None
            except MCPError as error:
                if timeout is not None and error.code == REQUEST_TIMEOUT:
                    raise UserError(f"{self.what}: tool {shown(tool)}: no answer within {timeout:g} s (timeout_s)") from None
                broken = self._broken(error)
                if broken is None:
                    said = self.collected.quoted(error, 300)
                    raise UserError(f"{self.what}: tool {shown(tool)}: {said}{await self._tools(tool)}") from None
                if attempt == self.limits.tries:
                    times = f", {attempt} times" if attempt > 1 else ""
                    raise UserError(f"{self.what}: tool {shown(tool)}: {broken}{times}") from None
                wait = FIRST_WAIT_S * 2 ** (attempt - 1)
                self.collected.say(f"{self.what}: {broken}; try {attempt + 1} of {self.limits.tries} in {wait:g} s")
                await anyio.sleep(wait)
        text = "\n".join(part.text for part in result.content if part.type == "text")
        if result.is_error:
            said = self.collected.quoted(text, 300)
            raise UserError(f"{self.what}: tool {shown(tool)} failed: {said}{await self._tools(tool)}")
        return text if result.structured_content is None else result.structured_content

    def _broken(self, error: MCPError) -> str | None:
        """Why the answer's event stream broke off, None where the error is the server's own word."""
        if self.transport is None or self.transport.problem is not None or "SSE stream" not in str(error):
            return None
        reason, self.transport.broken = self.transport.broken, None
        return reason or "the answer was cut off"

    async def _tools(self, tool: str) -> str:
        """The server's tools, where the one called is not among them."""
        with contextlib.suppress(Exception), anyio.move_on_after(5):
            names = sorted(found.name for found in (await self.client.list_tools()).tools)
            if tool not in names:
                return f". The server's tools: {listed(names)} (`tool`)"
        return ""


def _unwrapped(data: Any, path: str) -> Any:
    """Servers wrap what is no object, a text say, as {"result": …}."""
    if isinstance(data, Mapping) and set(data) == {"result"} and (not path or at_path(data, path) is MISSING):
        return data["result"]
    return data


def _parsed(answer: Any) -> Any:
    """An answer that is a text, as the JSON that it holds; the text itself where it is none."""
    if isinstance(answer, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(answer)
    return answer


@contextlib.asynccontextmanager
async def _connected(options: Mapping[str, Any], limits: Limits, collected: Collected) -> AsyncIterator[Server]:
    token = token_of(options, collected.what)
    connect = _over_http if "memory_mcp_url" in options else _over_stdio
    async with connect(options, limits, collected, token) as server:
        yield server


@contextlib.asynccontextmanager
async def _over_http(
    options: Mapping[str, Any], limits: Limits, collected: Collected, token: str | None
) -> AsyncIterator[Server]:
    what = f"{collected.what} ({address(options['memory_mcp_url'])})"
    # The SDK opens a GET stream that servers need not have; only what carries calls is tried again.
    transport = PatientTransport(what, limits, collected.say, options, patient=("POST",))
    timeout = httpx2.Timeout(limits.timeout_s)
    try:
        async with httpx2.AsyncClient(transport=transport, headers=headers(token), timeout=timeout) as http:
            size = int(limits.max_page_mb * MB) + 1  # the transport's own limit comes first, and says so
            streams = streamable_http_client(options["memory_mcp_url"], http_client=http, max_sse_event_size=size)
            async with Client(streams, cache=None) as client:
                yield Server(client, what, options, limits, collected, transport)
    except BaseException as error:
        if transport.problem is not None:
            raise transport.problem from None
        said = _protocol_error(error)
        if said is None:
            raise
        reason = transport.broken or f"the MCP handshake failed: {collected.quoted(said, 300)}"
        raise UserError(f"{what}: {reason}") from None


@contextlib.asynccontextmanager
async def _over_stdio(
    options: Mapping[str, Any], limits: Limits, collected: Collected, token: str | None
) -> AsyncIterator[Server]:
    command = options["command"]
    what = f"{collected.what} (command {shown(command[0])})"
    names = [*options.get("environment", []), *([options["token_env"]] if token else [])]
    environment = {name: os.environ[name] for name in names if name in os.environ}
    parameters = StdioServerParameters(command=command[0], args=list(command[1:]), env=environment)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            async with Client(
                stdio_client(parameters, errlog=said), cache=None, read_timeout_seconds=limits.timeout_s
            ) as client:
                yield Server(client, what, options, limits, collected)
        except OSError as error:
            raise UserError(f"{what}: cannot be started: {error.strerror or error}") from None
        except (Exception, BaseExceptionGroup) as error:
            reasons = [str(leaf) for leaf in leaves_of(error)]
            if any("Connection closed" in reason for reason in reasons):
                raise UserError(f"{what}: it ended{_last_words(said, collected)}") from None
            if any(isinstance(leaf, MCPError) and leaf.code == REQUEST_TIMEOUT for leaf in leaves_of(error)):
                raise UserError(f"{what}: no answer within {limits.timeout_s:g} s (timeout_s)") from None
            failed = _protocol_error(error)
            if failed is None:
                raise
            raise UserError(f"{what}: the MCP handshake failed: {collected.quoted(failed, 300)}") from None


def _protocol_error(error: BaseException) -> str | None:
    """What the SDK says of a failed handshake; None where the error is another."""
    leaves = list(leaves_of(error))
    found = [leaf for leaf in leaves if isinstance(leaf, MCPError | ValidationError)]
    return str(found[0]) if found and not any(isinstance(leaf, UserError) for leaf in leaves) else None


def _last_words(said: IO[str], collected: Collected) -> str:
    said.seek(0)
    lines = [line.strip() for line in said.read()[-4000:].splitlines() if line.strip()]
    return f"; the last that it said: {collected.quoted(' / '.join(lines[-3:]), 400)}" if lines else ""


async def collect(options: Mapping[str, Any], limits: Limits, collected: Collected) -> None:
    """Add all nodes of the server to `collected`. UserError where it cannot be reached, a tool fails, or nodes are missing."""
    options = with_preset(options)
    fields = Fields.of(options)
    async with _connected(options, limits, collected) as server:

        async def page(cursor: str | None) -> Page:
            arguments = dict(options.get("arguments", {}))
            if cursor is not None:
                arguments[options.get("cursor_argument", "cursor")] = cursor
            path = options.get("items", "nodes")
            answer = _unwrapped(_parsed(await server.call(options["tool"], arguments)), path)
            return page_of(_parsed(answer), options, server.what)

        rendered = options.get("render_tool")
        listed_keys: dict[str, Any] = {}
        known = (lambda: len(listed_keys)) if rendered else (lambda: len(collected.nodes))
        async for found in pages(page, server.what, known):
            for record in found.items:
                try:
                    if rendered:
                        listed_keys[record if isinstance(record, str) else fields.key_of(record)] = record
                    else:
                        for raw in fields.nodes(record):
                            collected.add(raw)
                except ValueError as error:
                    raise UserError(f"{server.what}: {error} (in {collected.quoted(record)})") from None
            if len(listed_keys) > limits.max_nodes:
                raise UserError(f"{server.what}: more than max_nodes ({limits.max_nodes}) nodes")
        if rendered:
            await _render(server, listed_keys, fields, collected)


async def _render(server: Server, listed_keys: Mapping[str, Any], fields: Fields, collected: Collected) -> None:
    """Add each listed node with the text that the render tool gives, several calls at a time."""
    options = server.options
    waiting = iter(listed_keys.items())

    async def work() -> None:
        for key, record in waiting:
            answer = await server.call(options["render_tool"], {options.get("render_argument", "key"): key})
            answer = _unwrapped(answer, fields.text)
            item = dict(record) if isinstance(record, Mapping) else {}
            # a text that happens to be JSON, a number or a list, is a text all the same
            data = _parsed(answer)
            found = at_path(data, fields.text) if isinstance(data, Mapping) else MISSING
            body = answer if found is MISSING and isinstance(answer, str) else found
            time = at_path(data if at_path(data, fields.time) is not MISSING else item, fields.time)
            flat = Fields(observations=fields.observations)
            try:
                for raw in flat.nodes(
                    {"key": key, "text": None if body is MISSING else body, "time": None if time is MISSING else time}
                ):
                    collected.add(raw)
            except ValueError as error:
                raise UserError(f"{server.what}: node {shown(key)}: {error}") from None

    async with anyio.create_task_group() as group:
        for _ in range(min(options.get("at_once", AT_ONCE), len(listed_keys))):
            group.start_soon(work)
