"""The index beside a snapshot: everything about its unique texts that a plan asks for, so that no plan reads the texts
themselves.

A text is known by its digest; equal texts of several nodes are one, with the highest score of each emotion. Rows are in order
of digest. Whatever depends on settings (thresholds, caps, who is held out) is worked out from the index; only the names looked
for in the texts (`extra`, for aliases that tag no node) are part of its key.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from amygdala.errors import UserError
from amygdala.graph import Node, Skipped, read_snapshot, snapshot_line
from amygdala.neardup import Signer
from amygdala.stamps import MADE_FROM
from amygdala.tags import folded, left_over, looks_like_tags
from amygdala.tensors import write_tensors

ASCII_WORD = re.compile(r"[a-z0-9]+")
MOST_FOLDERS = 40  # of keys in one source: more are no groups of texts, but names
TEXT_ARRAYS = ("digests", "chars", "offsets", "sizes", "twins")


@functools.cache
def _word() -> re.Pattern[str]:
    """A letter or digit, then letters, digits and combining marks: no word ends at a vowel sign."""
    marks = (character for character in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(character)[0] == "M")
    return re.compile(rf"[^\W_][\w{''.join(marks)}]*")


def words_of(text: str) -> list[str]:
    """The words of a text, folded; an underscore parts words as a hyphen does."""
    text = folded(text)
    return ASCII_WORD.findall(text) if text.isascii() else _word().findall(text.replace("_", " "))


def phrase(name: str) -> tuple[str, ...]:
    """The words of a name: "self_doubt" is looked for as "self doubt"."""
    return tuple(words_of(name))


@dataclass(frozen=True)
class Postings:
    """For each name the rows of texts that have it, ascending, with a value each. rows: int32 [n]; values: float64 [n]."""

    names: dict[str, int]
    bounds: np.ndarray
    rows: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, found: Mapping[str, Mapping[int, float]]) -> Postings:
        names = {name: number for number, name in enumerate(sorted(found))}
        rows = [np.array(sorted(found[name]), dtype=np.int32) for name in names]
        values = [np.array([found[name][row] for row in sorted(found[name])], dtype=np.float64) for name in names]
        bounds = np.concatenate([[0], np.cumsum([len(part) for part in rows])]).astype(np.int64)
        none = [np.empty(0)]
        return cls(
            names, bounds, np.concatenate(rows or none).astype(np.int32), np.concatenate(values or none).astype(np.float64)
        )

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, values) of a name; empty where no text has it."""
        if name not in self.names:
            return self.rows[:0], self.values[:0]
        start, end = self.bounds[self.names[name] : self.names[name] + 2]
        return self.rows[start:end], self.values[start:end]


@dataclass(frozen=True)
class Index:
    """The unique, non-empty texts of a snapshot, in order of digest.

    digests: uint8 [n, 16]; chars: int32 [n], characters; offsets, sizes: int64 [n], bytes of the line of the snapshot that
    holds the text; twins: int32 [n], the first row of the text's group of near duplicates; tags: scores by emotion; mentions:
    how often a name stands in the text; leaks: names that stand in it as `name:number`; scenarios; groups: where the text is
    from, as its source and the first folder of its key; facts: counts of the snapshot.
    """

    digests: np.ndarray
    chars: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    twins: np.ndarray
    tags: Postings
    mentions: Postings
    leaks: Postings
    scenarios: Postings
    groups: Postings
    facts: dict[str, Any]

    @property
    def hashes(self) -> np.ndarray:
        """uint64 [n]: the first 8 bytes of each digest, which all choices by hash go by."""
        return np.ascontiguousarray(self.digests[:, :8]).view(">u8").ravel().astype(np.uint64)

    def hex_digests(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        return [self.digests[row].tobytes().hex() for row in rows]


@dataclass
class _Text:
    """A unique text on its way into the index."""

    text: str
    offset: int
    size: int
    scores: dict[str, float]
    scenarios: set[str]
    places: set[tuple[str, str]]


def _group_names(texts: Iterable[_Text]) -> dict[tuple[str, str], str]:
    """{(source, folder): the group's name}: "memories/journal"; a lone source goes unnamed ("journal"), and a source whose keys
    have more than MOST_FOLDERS folders has none. "" is no group.
    """
    folders: dict[str, set[str]] = {}
    for origin, folder in {place for text in texts for place in text.places}:
        folders.setdefault(origin, set()).add(folder)
    names = {}
    for origin, of_origin in folders.items():
        for folder in of_origin:
            parts = [origin if len(folders) > 1 else "", folder if len(of_origin) <= MOST_FOLDERS else ""]
            names[origin, folder] = "/".join(filter(None, parts))
    return names


class Finder:
    """How often names stand in a text as whole words, or as phrases."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for name in names:
            words = phrase(name)
            if words:
                self._by_first.setdefault(words[0], []).append((name, words))

    def __call__(self, words: Sequence[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for word in self._by_first.keys() & set(words):
            places = [place for place, other in enumerate(words) if other == word]
            for name, wanted in self._by_first[word]:
                count = sum(tuple(words[place : place + len(wanted)]) == wanted for place in places)
                if count:
                    counts[name] = count
        return counts


def make_index(nodes: Iterable[Node], skipped: Sequence[Skipped] = (), extra: Iterable[str] = ()) -> Index:
    """The index of a snapshot's nodes, given in its order. `extra`: names to look for in the texts beside the tags' own."""
    texts: dict[str, _Text] = {}
    origins: dict[str, int] = {}
    names = set(extra)
    offset = count = empty = unread = 0
    first_unread = ""
    for node in nodes:
        size = len(snapshot_line(node))
        count += 1
        origins[node.origin] = origins.get(node.origin, 0) + 1
        names.update(node.scores)
        if node.text:
            _add(texts, node, offset, size)
            if not node.scores and looks_like_tags(node.text.rpartition("\n")[2]):
                unread += 1
                first_unread = first_unread or node.key
        else:
            empty += 1
        offset += size
    order = sorted(texts)
    find, signer = Finder(names), Signer()
    tags: dict[str, dict[int, float]] = {}
    mentions: dict[str, dict[int, float]] = {}
    leaks: dict[str, dict[int, float]] = {}
    scenarios: dict[str, dict[int, float]] = {}
    groups: dict[str, dict[int, float]] = {}
    named = _group_names(texts.values())
    for row, digest in enumerate(order):
        text = texts[digest]
        words = words_of(text.text)
        signer.add(words)
        for into, found in (
            (tags, text.scores),
            (mentions, find(words)),
            (leaks, dict.fromkeys(left_over(text.text) & names, 1)),
            (scenarios, dict.fromkeys(text.scenarios, 1)),
            (groups, dict.fromkeys(filter(None, (named[place] for place in text.places)), 1)),
        ):
            for name, value in found.items():
                into.setdefault(name, {})[row] = value
    kept = [texts[digest] for digest in order]
    facts = {
        "nodes": count,
        "empty": empty,
        "origins": dict(sorted(origins.items())),
        "unread_labels": unread,
        "unread_label": first_unread,
        "skipped": len(skipped),
        "skipped_nodes": [[bad.origin, bad.key, bad.reason] for bad in skipped[:100]],
    }
    return Index(
        digests=np.frombuffer(bytes.fromhex("".join(order)), dtype=np.uint8).reshape(-1, 16),
        chars=np.array([len(text.text) for text in kept], dtype=np.int32),
        offsets=np.array([text.offset for text in kept], dtype=np.int64),
        sizes=np.array([text.size for text in kept], dtype=np.int64),
        twins=signer.groups(),
        tags=Postings.of(tags),
        mentions=Postings.of(mentions),
        leaks=Postings.of(leaks),
        scenarios=Postings.of(scenarios),
        groups=Postings.of(groups),
        facts=facts,
    )


def _add(texts: dict[str, _Text], node: Node, offset: int, size: int) -> None:
    digest = node.digest
    known = texts.get(digest)
    if known is None:
        known = texts[digest] = _Text(node.text, offset, size, {}, set(), set())
    for emotion, score in node.scores.items():
        known.scores[emotion] = max(score, known.scores.get(emotion, 0.0))
    if node.scenario is not None:
        known.scenarios.add(node.scenario)
    folder, slash, _ = node.key.partition("/")
    known.places.add((node.origin, folder if slash else ""))


def index_of_snapshot(snapshot: str | Path, facts: Mapping[str, Any], extra: Iterable[str] = ()) -> Index:
    """The index made anew from a stored snapshot; `facts` are the old one's (they know of skipped nodes). UserError where the
    snapshot is damaged.
    """
    index = make_index(read_snapshot(snapshot), extra=extra)
    if index.facts["nodes"] != facts.get("nodes", index.facts["nodes"]):
        held = f"{snapshot} is damaged ({index.facts['nodes']} nodes, {facts['nodes']} expected)"
        raise UserError(f"{held}: delete it and run snakemake again, it will be rebuilt")
    index.facts.update({name: facts[name] for name in ("skipped", "skipped_nodes")})
    return index


POSTINGS = ("tags", "mentions", "leaks", "scenarios", "groups")


def _sum(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        total.update(np.ascontiguousarray(arrays[name]).data)
    return total.hexdigest()


def write_index(path: Path, index: Index) -> None:
    """The index as one safetensors file; names, counts and a checksum over all of it are in its header."""
    arrays = {name: getattr(index, name) for name in TEXT_ARRAYS}
    facts: dict[str, Any] = {"facts": index.facts}
    for name in POSTINGS:
        postings: Postings = getattr(index, name)
        facts[name] = list(postings.names)
        arrays |= {f"{name}.{part}": getattr(postings, part) for part in ("bounds", "rows", "values")}
    write_tensors(path, arrays, {**facts, "sum": _sum(arrays, facts)})


def read_index(path: Path) -> Index | None:
    """A stored index; None where it is missing or damaged: it can be made again."""
    try:
        with safe_open(path, "np") as file:
            header = json.loads(file.metadata()["facts"])
            header.pop(MADE_FROM, None)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.pop("sum") != _sum(arrays, header):
            return None
        postings = {
            name: Postings(
                {given: number for number, given in enumerate(header[name])},
                *(arrays[f"{name}.{part}"] for part in ("bounds", "rows", "values")),
            )
            for name in POSTINGS
        }
        fields: dict[str, Any] = {name: arrays[name] for name in TEXT_ARRAYS} | postings
        return Index(**fields, facts=header["facts"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
