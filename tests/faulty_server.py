"""A server of nodes on this machine, as a JSON listing and as an MCP endpoint, that misbehaves as it is told to."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Pages = Callable[[str | None], Any]
HUGE_BYTES = 100_000_000
PROTOCOL = "2025-06-18"


@dataclass
class Fault:
    """What goes wrong, and where.

    kind: a status ("500"), or or `hang`, `cut`, `garbage`, `huge`, `stall` (an event stream without events), `drip` (a
    body without end, slowly), `refused`, `tool error`, `rpc error`.
    at: the label of the requests that it befalls ("page", a JSON-RPC method, a tool's name), any where empty.
    after: so many of these are answered well first; times: then so many go wrong. (`refused` answers one and is gone.)
    """

    kind: str
    at: str = ""
    after: int = 0
    times: float = math.inf
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200  # of an `rpc error`
    echo: bool = False  # says the Authorization header in its words

    def befalls(self, label: str) -> bool:
        if self.at not in ("", label):
            return False
        self.after -= 1
        if self.after >= 0:
            return False
        self.times -= 1
        return self.times >= 0


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    label: str
    path: str
    headers: dict[str, str]
    body: Any


def paged(nodes: Mapping[str, str], size: int) -> Pages:
    """Pages of `size` nodes, the cursor of each the number of the next."""

    def page(cursor: str | None) -> Any:
        start = int(cursor or 0) * size
        records = [{"key": key, "text": text} for key, text in list(nodes.items())[start : start + size]]
        more = {"next": str(int(cursor or 0) + 1)} if start + size < len(nodes) else {}
        return {"nodes": records, "total": len(nodes), **more}

    return page


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Faulty(ThreadingHTTPServer):
    """Serve `nodes` at url (GET, pages of `size`) and mcp_url (read_graph, list_nodes and render_node) within a `with` block.

    shape: of tools' answers: "structured", "text" (JSON), "result" (structured, wrapped as FastMCP does), "plain" (text),
    "raw" (what the tool gives is the result). stream: MCP answers are event streams. tools and pages replace what is served;
    they may raise.
    """

    daemon_threads = False
    block_on_close = True
    allow_reuse_address = False

    def __init__(
        self,
        nodes: dict[str, str] | None = None,
        *faults: Fault,
        size: int = 2,
        pages: Pages | None = None,
        tools: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
        shape: str = "structured",
        stream: bool = False,
        session: bool = True,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.nodes = nodes or {}
        self.faults, self.shape, self.stream, self.session = faults, shape, stream, session
        self.pages = pages or paged(self.nodes, size)
        self.tools = (
            {"read_graph": self._read_graph, "list_nodes": self._list_nodes, "render_node": self._render}
            if tools is None
            else tools
        )
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.loop = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.url, self.mcp_url = f"http://{self.address}/nodes", f"http://{self.address}/mcp"

    def __enter__(self) -> Faulty:
        self.loop.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
        self.loop.join()

    def labels(self, *kinds: str) -> list[str]:
        """Labels of the requests in order; of those named alone, where any are."""
        return [seen.label for seen in self.seen if not kinds or seen.label in kinds]

    def arguments(self, tool: str) -> list[dict[str, Any]]:
        return [seen.body["params"].get("arguments", {}) for seen in self.seen if seen.label == tool]

    def vanish(self) -> None:
        """Nobody listens any more; what is open may end."""
        self.shutdown()
        self.socket.close()

    def handle_error(self, *_: Any) -> None:
        """Clients that leave early are part of the tests."""

    def _read_graph(self, _: dict[str, Any]) -> Any:
        return {"entities": [{"name": key, "observations": [text]} for key, text in self.nodes.items()], "relations": []}

    def _list_nodes(self, arguments: dict[str, Any]) -> Any:
        page = dict(self.pages(arguments.get("cursor")))
        return {"nodes": [{"key": node["key"]} for node in page["nodes"]], "next_cursor": page.get("next")}

    def _render(self, arguments: dict[str, Any]) -> Any:
        return {"text": self.nodes[arguments["key"]]}


class ToolError(Exception):
    """What a tool says as it fails."""


def called(tools: Mapping[str, Callable[[dict[str, Any]], Any]], params: dict[str, Any], shape: str) -> dict[str, Any]:
    """The result of tools/call."""
    name = params["name"]
    try:
        if name not in tools:
            raise ToolError(f"Unknown tool: {name}")
        value = tools[name](params.get("arguments", {}))
    except ToolError as error:
        return {"content": [{"type": "text", "text": str(error)}], "isError": True}
    if shape == "raw":
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    content = {"content": [{"type": "text", "text": text}]}
    if shape == "plain" and isinstance(value, dict) and set(value) == {"text"}:
        return {"content": [{"type": "text", "text": value["text"]}]}
    if shape == "structured" and isinstance(value, dict):
        return {**content, "structuredContent": value}
    if shape == "result":
        return {**content, "structuredContent": {"result": value}}
    return content


def reply_to(message: dict[str, Any], tools: Mapping[str, Callable[[dict[str, Any]], Any]], shape: str) -> dict[str, Any]:
    """The JSON-RPC answer to a request of an MCP client."""
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
    params = message.get("params", {})
    if message["method"] == "initialize":
        about = {"protocolVersion": PROTOCOL, "capabilities": {"tools": {}}, "serverInfo": {"name": "faulty", "version": "1"}}
        return {**answer, "result": about}
    if message["method"] == "tools/list":
        return {**answer, "result": {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in tools]}}
    if message["method"] == "tools/call":
        return {**answer, "result": called(tools, params, shape)}
    return {**answer, "error": {"code": -32601, "message": f"Method not found: {message['method']}"}}


def huge_node(before: str, after: str, size: int = HUGE_BYTES) -> Iterator[bytes]:
    """A body with a long text in it, a megabyte at a time."""
    yield before.encode()
    for _ in range(size // 1_000_000):
        yield b"x" * 1_000_000
    yield after.encode()


class Handler(BaseHTTPRequestHandler):
    server: Faulty

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/mcp"):
            self._serve("stream", None, lambda: self._send(405, b""))
        else:
            query = parse_qs(urlsplit(self.path).query)
            self._serve("page", None, lambda: self._json(self.server.pages(query["cursor"][0] if "cursor" in query else None)))

    def do_DELETE(self) -> None:
        self._serve("end", None, lambda: self._send(200, b""))

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        label = message["params"]["name"] if message["method"] == "tools/call" else message["method"]
        if "id" not in message:
            self._serve(label, message, lambda: self._send(202, b""))
            return
        self._serve(label, message, lambda: self._json(reply_to(message, self.server.tools, self.server.shape), message))

    def _serve(self, label: str, message: Any, well: Callable[[], None]) -> None:
        with self.server.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.seen.append(Seen(label, self.path, headers, message))
            faults = [fault for fault in self.server.faults if fault.befalls(label)]
        with contextlib.suppress(ConnectionError):
            if faults:
                self._fail(faults[0], label, message, well)
            else:
                well()

    def _fail(self, fault: Fault, label: str, message: Any, well: Callable[[], None]) -> None:
        words = f"no luck {self.headers.get('Authorization')}" if fault.echo else "no luck"
        if fault.kind.isdecimal():
            self._send(int(fault.kind), words.encode(), {"Content-Type": "text/plain", **fault.headers}, words)
        elif fault.kind == "hang":
            self.server.stopped.wait()
        elif fault.kind == "cut":
            kind = "text/event-stream" if self.server.stream and message else "application/json"
            self._send(200, b'{"nodes": [{"key": "a"', {"Content-Length": "1000", "Content-Type": kind})
        elif fault.kind == "garbage":
            self._send(200, f"<html>{words}</html>".encode(), {"Content-Type": "application/json"})
        elif fault.kind == "stall":
            self._begin("text/event-stream")
            self.wfile.flush()
            self.server.stopped.wait()
        elif fault.kind == "drip":
            self._begin("application/json")
            while not self.server.stopped.wait(0.05):
                self.wfile.write(b" ")
        elif fault.kind == "refused":
            self.server.vanish()
            well()
        elif fault.kind == "huge":
            self._huge(label, message, fault.headers)
        elif fault.kind == "tool error":
            content = [{"type": "text", "text": words}]
            self._json({"jsonrpc": "2.0", "id": message["id"], "result": {"content": content, "isError": True}}, message)
        elif fault.kind == "rpc error":
            self._json(
                {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32000, "message": words}}, message, fault.status
            )
        else:
            raise AssertionError(fault.kind)

    def _huge(self, label: str, message: Any, headers: Mapping[str, str]) -> None:
        """An answer of 100 MB, most of them the text of one node."""
        if label == "page":
            whole: dict[str, Any] = {"nodes": [{"key": "big", "text": "…"}]}
        else:
            content = {"text": "…"} if label == "render_node" else {"entities": [{"name": "big", "observations": ["…"]}]}
            whole = {"jsonrpc": "2.0", "id": message["id"], "result": {"content": [], "structuredContent": content}}
        before, after = json.dumps(whole, ensure_ascii=False).split("…")
        streamed = self.server.stream and message is not None
        frame = ("event: message\ndata: ", "\n\n") if streamed else ("", "")
        self._begin(headers.get("Content-Type", "text/event-stream" if streamed else "application/json"))
        for part in huge_node(frame[0] + before, after + frame[1]):
            if self.server.stopped.is_set():
                return
            self.wfile.write(part)

    def _begin(self, kind: str) -> None:
        """A head without a length: the body ends where the connection does."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()

    def _json(self, value: Any, message: Any = None, status: int = 200) -> None:
        body = json.dumps(value).encode()
        named = {"Mcp-Session-Id": "s1"} if self.server.session and message and message["method"] == "initialize" else {}
        if self.server.stream and message is not None:
            self._send(status, b"event: message\ndata: " + body + b"\n\n", {"Content-Type": "text/event-stream", **named})
        else:
            self._send(status, body, {"Content-Type": "application/json", **named})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, reason: str | None = None) -> None:
        self.send_response(status, reason)
        given = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
