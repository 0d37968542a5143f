"""The memory graph as canonical nodes, and the snapshot file that holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from amygdala.errors import UserError, shown
from amygdala.keys import text_digest
from amygdala.stamps import LAST_LINE, last_line
from amygdala.tags import split_tags


@dataclass(frozen=True)
class RawNode:
    """A node as a source gives it.

    key: unique in its source; text: tag lines included, unless the source gives the scores beside it (`scores`, canonical
    names); time: as written, None where the source has none; scenario: the scene that a paired story belongs to; where: file
    and line, for messages.
    """

    key: str
    text: str
    scores: dict[str, float] | None = None
    time: str | None = None
    scenario: str | None = None
    where: str = ""


@dataclass(frozen=True)
class Node:
    """A canonical node: its source, its key there, its text without tag lines, its emotion scores (0-10)."""

    origin: str
    key: str
    text: str
    scores: dict[str, float] = field(default_factory=dict)
    time: str | None = None
    scenario: str | None = None

    @property
    def digest(self) -> str:
        return text_digest(self.text)


@dataclass(frozen=True)
class Skipped:
    """A node that was left out (bad_nodes: skip), and why."""

    origin: str
    key: str
    reason: str


def _canonical(origin: str, raw: RawNode) -> Node:
    if not raw.key.strip():
        raise ValueError("the node has an empty key")
    for name, value in (("key", raw.key), ("text", raw.text), ("time", raw.time), ("scenario", raw.scenario)):
        try:
            (value or "").encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"'{name}' holds half a surrogate pair, which is no text") from None
    text, scores = split_tags(raw.text) if raw.scores is None else (raw.text.strip(), dict(sorted(raw.scores.items())))
    return Node(origin, raw.key, text, scores, raw.time, raw.scenario)


def canonical(origin: str, raws: Iterable[RawNode], skip_bad: bool = False) -> tuple[list[Node], list[Skipped]]:
    """The nodes of one source sorted by key, and those left out.

    UserError names the node where its tags or text are wrong (unless `skip_bad`), and where two nodes have one key.
    """
    nodes: dict[str, Node] = {}
    places: dict[str, str] = {}
    skipped: list[Skipped] = []
    for raw in raws:
        where = raw.where or f"graph: source {shown(origin)}, node {shown(raw.key)}"
        try:
            node = _canonical(origin, raw)
        except ValueError as error:
            if not skip_bad:
                raise UserError(f"{where}: {error}") from None
            skipped.append(Skipped(origin, raw.key.encode("utf-8", "replace").decode(), str(error)))
            continue
        if node.key in nodes:
            line = places[node.key].rpartition(":")[2]
            first = f"stands in line {line} already" if line.isdecimal() else "is given twice"
            raise UserError(f"{where}: the key {shown(node.key)} {first}; keys must be unique")
        nodes[node.key], places[node.key] = node, where
    return [nodes[key] for key in sorted(nodes)], skipped


def snapshot_line(node: Node) -> bytes:
    """A node's line in the snapshot: JSON with the text's digest; time and scenario where it has them."""
    record: dict[str, Any] = {"origin": node.origin, "key": node.key, "digest": node.digest, "scores": node.scores}
    record |= {name: value for name, value in (("time", node.time), ("scenario", node.scenario)) if value is not None}
    return json.dumps({**record, "text": node.text}, ensure_ascii=False).encode() + b"\n"


def _node_of(line: bytes) -> Node:
    record = json.loads(line)
    node = Node(record["origin"], record["key"], record["text"], record["scores"], record.get("time"), record.get("scenario"))
    if record["digest"] != node.digest:
        raise ValueError("its text has another digest")
    return node


def read_snapshot(path: str | Path) -> Iterator[Node]:
    """The nodes of a stored snapshot, one at a time. UserError where it is damaged; that its checksum does not fit is told
    after the last node.
    """
    content = hashlib.sha256()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.startswith(LAST_LINE):
                    last_line(line, content)
                    break
                content.update(line)
                yield _node_of(line)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                problem = f"{path}:{number}: damaged ({type(error).__name__})"
                raise UserError(f"{problem}: delete the file; snakemake rebuilds it") from None


def node_at(file: BinaryIO, offset: int, size: int) -> Node:
    """The node whose line of `size` bytes begins at `offset` of an open snapshot."""
    file.seek(offset)
    return _node_of(file.read(size))
