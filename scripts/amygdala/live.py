"""Fetching a live source whole: pages and cursors, limits, and one message when it cannot be done."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from amygdala.errors import UserError, shown
from amygdala.graph import RawNode
from amygdala.patience import MB, SAY, Limits
from amygdala.records import MISSING, at_path
from amygdala.sources import Source

EVERY_S = 5.0
IDLE_PAGES = 50
CURSORS = {
    "next",
    "nextcursor",
    "nextpage",
    "nexttoken",
    "nextpagetoken",
    "pagetoken",
    "cursor",
    "continuation",
    "hasmore",
    "more",
}


@dataclass(frozen=True)
class Page:
    """Records of one answer, what leads to the next one (None at the end), and how many the server says there are."""

    items: list[Any]
    cursor: str | None
    total: int | None = None


def page_of(data: Any, options: Mapping[str, Any], what: str, usual_next: str | None = None) -> Page:
    """A page out of an answer by the paths `items`, `next` (else `usual_next`) and `total`. UserError where it is no page."""
    path = options.get("items", "nodes")
    items = at_path(data, path)
    if not isinstance(items, list):
        found = f"it holds {', '.join(shown(name) for name in list(data)[:8])}" if isinstance(data, Mapping) and data else ""
        raise UserError(f"{what}: no list at {shown(path)} in an answer (`items`){'; ' + found if found else ''}")
    leads = options.get("next", usual_next)
    cursor = at_path(data, leads) if leads else None
    at_end = cursor is None or cursor is MISSING or cursor is False or cursor == ""
    if at_end and "next" not in options:
        _check_one_page(data, what)
    total = at_path(data, options["total"]) if "total" in options else None
    if "total" in options and (not isinstance(total, int) or isinstance(total, bool)):
        raise UserError(f"{what}: no number at {shown(options['total'])} in an answer (`total`)")
    return Page(items, None if at_end else str(cursor), total)


def _check_one_page(data: Any, what: str) -> None:
    """UserError where an answer seems to lead to another page, and no `next` says where: the graph would be cut silently."""
    if not isinstance(data, Mapping):
        return
    for outer, value in data.items():
        inner = value.items() if isinstance(value, Mapping) else ()
        for path, found in [(outer, value), *((f"{outer}.{name}", given) for name, given in inner)]:
            name = str(path).rpartition(".")[2].replace("_", "").replace("-", "").lower()
            if name in CURSORS and isinstance(found, str | int) and found not in (False, ""):
                raise UserError(f"{what}: the answer has {shown(path)}, which may lead to more nodes: set `next` to it")


class Collected:
    """Nodes as they come, within the limits."""

    def __init__(self, what: str, limits: Limits, say: SAY, options: Mapping[str, Any]) -> None:
        self.what, self.limits, self.say, self.options = what, limits, say, options
        self.nodes: dict[str, RawNode] = {}
        self.last = self.start = time.monotonic()

    def quoted(self, said: Any, limit: int = 120) -> str:
        """What a server said, for a message: secrets out first, as cutting or escaping would hide half of one."""
        return shown(without_secrets(str(said), self.options), limit)

    def add(self, raw: RawNode) -> None:
        """UserError for a node beyond the limits, or with a key that another text has."""
        size = len(raw.text.encode("utf-8", "replace"))
        if size > self.limits.max_node_mb * MB:
            limit = f"max_node_mb ({self.limits.max_node_mb:g})"
            raise UserError(f"{self.what}: node {shown(raw.key)} has a text of {size / MB:.1f} MB, more than {limit}")
        known = self.nodes.get(raw.key)
        if known is not None and known.text != raw.text:
            raise UserError(f"{self.what}: the key {shown(raw.key)} is given twice, with different texts")
        self.nodes[raw.key] = raw
        if len(self.nodes) > self.limits.max_nodes:
            raise UserError(f"{self.what}: more than max_nodes ({self.limits.max_nodes}) nodes")
        now = time.monotonic()
        if now - self.last >= EVERY_S:
            self.last = now
            self.say(f"{self.what}: {len(self.nodes)} nodes, {len(self.nodes) / (now - self.start):.0f} a second")


async def pages(first: Callable[[str | None], Awaitable[Page]], what: str, known: Callable[[], int]) -> AsyncIterator[Page]:
    """All pages, the cursor of each leading to the next. `known`: how many nodes are collected.

    UserError where a cursor comes back, where pages stop bringing anything new, or where fewer came than the server says there
    are.
    """
    cursor: str | None = None
    seen: set[str] = set()
    idle = 0
    items = 0
    while True:
        before = known()
        page = await first(cursor)
        items += len(page.items)
        yield page
        idle = 0 if known() > before else idle + 1
        if page.cursor is None:
            if page.total is not None and items < page.total:
                raise UserError(f"{what}: {items} nodes came, and the server says there are {page.total}")
            return
        if page.cursor in seen:
            raise UserError(f"{what}: the cursor {shown(page.cursor)} came back: the pages would never end")
        if idle >= IDLE_PAGES:
            raise UserError(f"{what}: {idle} pages in a row brought no new node: the pages would never end")
        seen.add(page.cursor)
        cursor = page.cursor


def leaves_of(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves_of(inner)
    else:
        yield error


def _secrets(options: Mapping[str, Any]) -> list[str]:
    names = [options.get("token_env"), *options.get("environment", [])]
    values = [os.environ.get(name, "").strip() for name in names if name]
    written = {form for value in values if len(value) >= 4 for form in (value, repr(value)[1:-1], json.dumps(value)[1:-1])}
    return sorted(written, key=len, reverse=True)


def without_secrets(text: str, options: Mapping[str, Any]) -> str:
    """The text with every value of the environment variables that the source names replaced."""
    for value in _secrets(options):
        text = text.replace(value, "***")
    return text


def fetch(source: Source, say: SAY) -> list[RawNode]:
    """All nodes of a live source. UserError with one message, in which no token stands, where that cannot be done."""
    from amygdala import http_source, mcp_source

    what = f"graph: source {shown(source.name)}"
    limits = Limits.of(source.options)
    collected = Collected(what, limits, lambda line: say(without_secrets(line, source.options)), source.options)
    module: Any = http_source if source.kind == "http" else mcp_source

    async def within_deadline() -> None:
        with anyio.move_on_after(limits.deadline_s) as scope:
            await module.collect(source.options, limits, collected)
        if scope.cancelled_caught:
            raise UserError(
                f"{what}: not done within deadline_s ({limits.deadline_s:g} s); {len(collected.nodes)} nodes had come"
            )

    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the SDK logs what servers send
    try:
        anyio.run(within_deadline)
    except BaseException as error:
        leaves = list(leaves_of(error))
        known = [leaf for leaf in leaves if isinstance(leaf, UserError)]
        if known:
            raise UserError(without_secrets(str(known[0]), source.options)) from None
        if any(not isinstance(leaf, Exception) for leaf in leaves):
            raise
        reason = "; ".join(f"{type(leaf).__name__}: {str(leaf).strip()}" for leaf in leaves[:3])
        raise UserError(f"{what}: {collected.quoted(reason, 600)}") from None
    finally:
        logging.disable(level)
    if not collected.nodes:
        raise UserError(f"{what}: no nodes in its answer")
    return list(collected.nodes.values())
