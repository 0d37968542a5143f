"""Limits of a fetch, and an HTTP transport that keeps to them: retries with waits, Retry-After, sizes, one clear message."""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2

from amygdala.errors import UserError, shown

FIRST_WAIT_S = 0.5
MB = 1_000_000
REFUSED = (401, 403)
SAY = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """timeout_s: without a sign of the server; deadline_s: for the whole source; tries: of a request; max_nodes; max_node_mb:
    of a node's text; max_page_mb: of an answer (megabytes of 10^6 bytes).
    """

    timeout_s: float = 30
    deadline_s: float = 600
    tries: int = 4
    max_nodes: int = 1_000_000
    max_node_mb: float = 1
    max_page_mb: float = 64

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Limits:
        return cls(**{name: options[name] for name in cls.__dataclass_fields__ if name in options})


def address(url: str) -> str:
    """The URL without user, password, query and fragment, for messages."""
    parsed = httpx2.URL(url)
    port = f":{parsed.port}" if parsed.port else ""
    return shown(f"{parsed.scheme}://{parsed.host}{port}{parsed.path}")


def token_of(options: Mapping[str, Any], what: str) -> str | None:
    """The bearer token out of the environment; UserError where the variable that the configuration names is not set."""
    name = options.get("token_env")
    if name is None:
        return None
    token = os.environ.get(name, "").strip()
    if not token:
        raise UserError(f"{what}: the environment variable {name} (token_env) is not set")
    if not token.isascii() or not token.isprintable():
        raise UserError(f"{what}: the token in {name} holds characters that no HTTP header can carry")
    return token


def headers(token: str | None) -> dict[str, str]:
    """Uncompressed answers, so that max_page_mb bounds what is in memory."""
    return {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})}


def _retry_after_s(response: httpx2.Response) -> float:
    """Seconds that Retry-After asks for (RFC 9110, 10.2.3: a number or a date), 0 without one."""
    given = response.headers.get("retry-after", "").strip()
    if given.isdecimal():
        return float(given)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _reason(error: httpx2.TransportError, timeout_s: float) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer within {timeout_s:g} s (timeout_s)"
    detail = (str(error).strip().splitlines() or [""])[0]
    said = f" ({shown(detail)})" if detail else ""
    if isinstance(error, httpx2.ConnectError):
        return f"cannot connect{said}"
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return f"the answer was cut off{said}"
    return f"{type(error).__name__}{said}"


class PatientTransport(httpx2.AsyncBaseTransport):
    """Sends a request up to `tries` times, as long as the deadline allows.

    Tried again: no connection, time-outs, answers cut off, HTTP 429 and 5xx. An answer is read whole here, up to max_page_mb;
    event streams, which may have no end, are passed on as they come. What stays wrong is raised as UserError and kept in
    `problem`, as the MCP SDK wraps or swallows what a transport raises. Methods not in `patient` are passed on as they are.
    """

    def __init__(
        self,
        what: str,
        limits: Limits,
        say: SAY,
        options: Mapping[str, Any],
        patient: tuple[str, ...] = ("GET", "POST"),
        streams: bool = True,
    ) -> None:
        self.what, self.limits, self.say, self.patient, self.streams = what, limits, say, patient, streams
        self.token_env = options.get("token_env")
        self.ends = time.monotonic() + limits.deadline_s
        self.problem: UserError | None = None
        self.broken: str | None = None  # why the last event stream broke off; the caller may ask again
        self.inner = httpx2.AsyncHTTPTransport()

    def _give_up(self, reason: str) -> UserError:
        self.problem = self.problem or UserError(f"{self.what}: {reason}")
        return self.problem

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method not in self.patient:
            return await self.inner.handle_async_request(request)
        for attempt in range(1, self.limits.tries + 1):
            wait = FIRST_WAIT_S * 2 ** (attempt - 1)
            try:
                response = await self._answer(request)
            except httpx2.TransportError as error:
                reason = _reason(error, self.limits.timeout_s)
            else:
                if response.status_code != 429 and (response.status_code < 500 or _is_rpc(response)):
                    return response
                reason = f"HTTP {response.status_code} {response.reason_phrase}".strip()
                wait = max(wait, _retry_after_s(response))
                await response.aclose()
            if attempt == self.limits.tries:
                raise self._give_up(f"{reason}, {attempt} times" if attempt > 1 else reason)
            if time.monotonic() + wait > self.ends:
                raise self._give_up(
                    f"{reason}; another try in {wait:g} s would end after the deadline_s of {self.limits.deadline_s:g} s"
                )
            self.say(f"{self.what}: {reason}; try {attempt + 1} of {self.limits.tries} in {wait:g} s")
            await anyio.sleep(wait)
        raise AssertionError("unreachable")

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        response = await self.inner.handle_async_request(request)
        try:
            if response.status_code in REFUSED:
                has = (
                    f"the token in {self.token_env} was not accepted"
                    if self.token_env
                    else "it wants a token: name its variable in token_env"
                )
                raise self._give_up(f"HTTP {response.status_code} {response.reason_phrase}: {has}")
            if self.streams and response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                response.stream = _Watched(response.stream, self)
                return response
            parts: list[bytes] = []
            size = 0
            async for part in response.stream:  # type: ignore[union-attr]
                size += len(part)
                self.check_size(size)
                parts.append(part)
        except BaseException:
            await response.aclose()
            raise
        await response.aclose()
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=httpx2.ByteStream(b"".join(parts)),
            extensions=response.extensions,
            request=request,
        )

    def check_size(self, size: int) -> None:
        """UserError where an answer of `size` bytes is beyond max_page_mb."""
        if size > self.limits.max_page_mb * MB:
            raise self._give_up(f"an answer is larger than max_page_mb ({self.limits.max_page_mb:g} MB)")

    async def aclose(self) -> None:
        await self.inner.aclose()


class _Watched(httpx2.AsyncByteStream):
    """An event stream on its way to the SDK: its size is limited, and why it broke off is kept, which the SDK does not tell."""

    def __init__(self, inner: Any, transport: PatientTransport) -> None:
        self.inner, self.transport = inner, transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for part in self.inner:
                size += len(part)
                self.transport.check_size(size)
                yield part
        except httpx2.TransportError as error:
            self.transport.broken = _reason(error, self.transport.limits.timeout_s)
            raise

    async def aclose(self) -> None:
        await self.inner.aclose()


def _is_rpc(response: httpx2.Response) -> bool:
    """Whether the body is a JSON-RPC answer: then the status is the server's way to flag it, and the SDK reads it."""
    if not response.headers.get("content-type", "").lower().startswith("application/json"):
        return False
    return b'"jsonrpc"' in getattr(response.stream, "_stream", b"")
