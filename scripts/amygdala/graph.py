"""A memory graph as a file: JSON Lines of nodes, read into canonical nodes.

The tag grammar
  A node's text may end in tag lines: its last non-empty line, and those directly above it, as long as each token of the line
  (split at white space, commas and semicolons) is `name:score` and at least one name holds a letter. Names are compared
  in Unicode NFKC, case-folded; they begin with a letter and go on with letters, marks, digits, `_` or `-`, at most 48
  characters. Scores are decimals from 0 to 10. Of a name given twice the higher score counts. Everything above the
  tag lines is the text, trimmed of white space at both ends, otherwise unchanged.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from amygdala.errors import UserError, shown
from amygdala.keys import text_digest

TAG = re.compile(r"(?P<name>[^\s:,;]+):(?P<score>[+-]?\d+(?:\.\d+)?)")
SEPARATOR = re.compile(r"[\s,;]+")
NAME_LENGTH = 48


@dataclass(frozen=True)
class Node:
    """A canonical node: its key, its text without tag lines, its emotion scores (0-10)."""

    key: str
    text: str
    scores: dict[str, float]

    @property
    def digest(self) -> str:
        return text_digest(self.text)


def folded(text: str) -> str:
    """Unicode NFKC, case-folded: for comparing, never for the text that a model sees."""
    return unicodedata.normalize("NFKC", text).casefold()


def emotion_name(raw: str) -> str:
    """The canonical form of an emotion's name; ValueError where it is none (it becomes part of file names)."""
    name = folded(raw)
    categories = [unicodedata.category(character) for character in name]
    allowed = all(c[0] in "LMN" or character in "_-" for c, character in zip(categories, name, strict=True))
    if not name or len(name) > NAME_LENGTH or categories[0][0] != "L" or not allowed:
        raise ValueError(
            f"{shown(raw)} is not an emotion name: a letter first, then letters, digits, '_' or '-', {NAME_LENGTH} at most "
            "(a last line that is text and no tags should not read name:number)"
        )
    return name


def _tags(line: str) -> dict[str, str] | None:
    """Raw name to score of a tag line, None where the line is not one."""
    tokens = [token for token in SEPARATOR.split(line) if token]
    matches = [TAG.fullmatch(token) for token in tokens]
    if not tokens or not all(matches):
        return None
    pairs = [(m["name"], m["score"]) for m in matches if m]
    if not any(character.isalpha() for name, _ in pairs for character in name):
        return None
    best: dict[str, str] = {}
    for name, score in pairs:
        if name not in best or float(score) > float(best[name]):
            best[name] = score
    return best


def split_tags(text: str) -> tuple[str, dict[str, float]]:
    """The text without its tag lines, and the scores. ValueError on a bad emotion name or score."""
    lines = text.splitlines(keepends=True)
    scores: dict[str, float] = {}
    while lines:
        if not lines[-1].strip():
            lines.pop()
            continue
        tags = _tags(lines[-1])
        if tags is None:
            break
        for raw, given in tags.items():
            name, score = emotion_name(raw), float(given)
            if not 0 <= score <= 10:
                raise ValueError(f"score {shown(given)} of emotion {shown(name)} is outside 0-10")
            scores[name] = max(score + 0.0, scores.get(name, 0.0))
        lines.pop()
    return "".join(lines).strip(), dict(sorted(scores.items()))


def _node(line: str) -> Node:
    try:
        raw = json.loads(line)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not a line of JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ValueError("a node must be a JSON object with the fields 'key' and 'text'")
    for field in ("key", "text"):
        if not isinstance(raw.get(field), str) or (field == "key" and not raw[field].strip()):
            what = "has no" if field not in raw else "needs a string as"
            raise ValueError(f"the node {what} '{field}'")
        try:
            raw[field].encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"'{field}' holds half a surrogate pair, which is no text") from None
    body, scores = split_tags(raw["text"])
    return Node(raw["key"], body, scores)


def read_nodes(data: bytes, name: str) -> list[Node]:
    """The nodes of a JSON Lines file, sorted by key. `name` is for messages: UserError names it and the line."""
    nodes: dict[str, Node] = {}
    seen: dict[str, int] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            node = _node(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{name}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None
        except ValueError as error:
            raise UserError(f"{name}:{number}: {error}") from None
        if node.key in seen:
            raise UserError(
                f"{name}:{number}: the key {shown(node.key)} stands in line {seen[node.key]} already; keys must be unique"
            )
        nodes[node.key], seen[node.key] = node, number
    if not nodes:
        raise UserError(f"{name}: no nodes in it; expected one JSON object with 'key' and 'text' a line")
    return [nodes[node_key] for node_key in sorted(nodes)]


def read_graph(path: str | Path) -> tuple[bytes, str]:
    """Bytes of the graph file and its sha256. UserError where it is missing."""
    import hashlib

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"graph: cannot read {path}: {error.strerror}. Set `graph:` to a JSON Lines file") from None
    return data, hashlib.sha256(data).hexdigest()


def snapshot_lines(nodes: Iterable[Node]) -> Iterable[str]:
    """The canonical form: one JSON object a line, sorted by key, with the text's digest."""
    for node in nodes:
        record = {"key": node.key, "digest": node.digest, "scores": node.scores, "text": node.text}
        yield json.dumps(record, ensure_ascii=False) + "\n"


def read_snapshot(path: str | Path) -> list[Node]:
    """The nodes of a stored snapshot."""
    with open(path, encoding="utf-8", newline="\n") as file:
        records = [json.loads(line) for line in file]
    return [Node(record["key"], record["text"], record["scores"]) for record in records]
