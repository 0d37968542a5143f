"""What the store holds of each kind of file, and what these files say that they are made from: their headers alone are read."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amygdala.keys import key
from amygdala.recipes import recipe_key
from amygdala.stamps import COMMENT, COMMENTED, LAST_LINE, LINED, MADE_FROM, MEMBER, Made, Recipe

KEYED = re.compile(r"(?:(?P<name>.+)\.)?(?P<key>[0-9a-f]{16})(?:\.(?:json|jsonl|svg|safetensors))?")
SUFFIXES = (".json", ".jsonl", ".safetensors", *COMMENTED)
LONGEST_HEADER = 100_000_000  # safetensors' own limit
TAIL = 1 << 16
FOLDERS = {
    "snapshot": "snapshots",
    "examples": "examples",
    "texts": "texts",
    "model": "models",
    "weights": "weights",
    "vectors": "vectors",
    "heads": "heads",
    "figures": "figures",
    "quality": "quality",
    "release": "releases",
    "overview": "overviews",
    "tokens": "tokens",
    "report": "reports",
    "compare": "compare",
    "sweep": "compare",
    "ablation": "ablation",
    "unseen": "unseen",
}
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)


@dataclass(frozen=True)
class Stored:
    """A stored file, or a folder of files of one key. path: of the file whose header was read; made: what it says."""

    path: Path
    mtime: float
    made: Made

    @property
    def recipe(self) -> Recipe:
        return dict(self.made["recipe"])


def read_made(path: Path) -> Made:
    """What a stored file says that it is made from, without a look at the rest of it. UNREADABLE where it does not say."""
    with open(path, "rb") as file:
        if path.suffix == ".safetensors":
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
            return dict(json.loads(header["__metadata__"]["facts"])[MADE_FROM])
        line = _last_line(file)
    begins, ends = (COMMENT, b" -->") if path.suffix in COMMENTED else (LAST_LINE if path.suffix in LINED else MEMBER, b"}")
    if not line.startswith(begins):
        raise ValueError("it does not say what it is made from")
    return dict(json.loads(line.removeprefix(begins).removesuffix(ends)))


def _last_line(file: Any) -> bytes:
    size, length = file.seek(0, os.SEEK_END), TAIL
    while True:
        file.seek(max(0, size - length))
        end = file.read(length).rstrip(b"\n")
        start = end.rfind(b"\n")
        if start >= 0 or length >= size:
            return bytes(end[start + 1 :]).strip()
        length *= 4


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The ingredients in which two recipes differ."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


class Store:
    """The store by kind of recipe: each folder is listed once, each header read once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[Path, Stored | None] = {}

    def holds(self, kind: str, name: str | None = None) -> bool:
        """Whether any file of the kind is there, of this name where one is given."""
        return any(listing if name is None else listing.get(name) for listing in self._listings(kind))

    def nearest(self, recipe: Recipe, name: str, elsewhere: bool = False) -> Stored | None:
        """The stored file whose recipe, of the same kind, differs in fewest ingredients, the newest of several.

        name: that of the emotion or shard; a file that does not tell its recipe, or tells one that is not its key's, is passed
        over. elsewhere: whether it is an index of texts from elsewhere; those of examples are far from it, whatever differs.
        """
        found: list[tuple[bool, int, float, str, Stored]] = []
        for listing in self._listings(recipe["kind"]):
            for path in listing.get(name, {}).values():
                stored = self._stored(path)
                if stored is None or stored.recipe.get("kind") != recipe["kind"]:
                    continue
                if recipe.get("target") == stored.recipe.get("target"):  # of releases: those of one target
                    other = self._of_elsewhere(stored.recipe) != elsewhere
                    found.append((other, len(differing(recipe, stored.recipe)), -stored.mtime, str(path), stored))
        return min(found, default=(False, 0, 0.0, "", None), key=lambda one: one[:4])[4]

    def _of_elsewhere(self, recipe: Recipe) -> bool:
        """Whether an index is of stored texts from elsewhere: these go by a key, the examples of a shard by their digests."""
        return recipe["kind"] == "index" and any(
            recipe.get("texts") in one.get("unseen", {}) for one in self._listings("texts")
        )

    def keyed(self, kind: str, name: str, wanted: str) -> Stored | None:
        """The stored file of this key, None where there is none to be read."""
        for listing in self._listings(kind):
            if path := listing.get(name, {}).get(wanted):
                return self._stored(path)
        return None

    @functools.cache  # noqa: B019  one object a process
    def _listing(self, folder: Path) -> dict[str, dict[str, Path]]:
        """{name: {key: path}} of a folder; the name is empty where files are named after their key alone."""
        found: dict[str, dict[str, Path]] = {}
        for entry in sorted(_entries(folder), key=lambda entry: entry.is_dir()):  # a model's marker before its folder
            if match := KEYED.fullmatch(entry.name):
                found.setdefault(match["name"] or "", {}).setdefault(match["key"], folder / entry.name)
        return found

    def _listings(self, kind: str) -> list[dict[str, dict[str, Path]]]:
        if kind != "index":
            return [self._listing(self.folder / FOLDERS[kind])] if kind in FOLDERS else []
        return [self._listing(self.folder / "activations" / space / "index") for space in self._spaces]

    @functools.cached_property
    def _spaces(self) -> list[str]:
        return sorted(entry.name for entry in _entries(self.folder / "activations"))

    def _stored(self, path: Path) -> Stored | None:
        if path not in self._read:
            self._read[path] = self._look(path)
        return self._read[path]

    def _look(self, path: Path) -> Stored | None:
        files = [path]
        if path.is_dir():
            names = sorted(entry.name for entry in _entries(path))
            files = [path / name for name in names if Path(name).suffix in SUFFIXES and not name.startswith(".")]
        for file in files:
            with contextlib.suppress(*UNREADABLE):
                made = read_made(file)
                if recipe_key(made["recipe"]) == made["key"] == _key_of(path) and _proves(made):
                    return Stored(file, file.stat().st_mtime, made)
        return None


def _key_of(path: Path) -> str:
    match = KEYED.fullmatch(path.name)
    return match["key"] if match else ""


def _proves(made: Made) -> bool:
    """Whether recipes behind and lists of modules are those of their keys: a damaged header tells nothing."""
    behind, modules = made.get("behind", {}), made.get("code", {})
    return all(recipe_key(recipe) == name for name, recipe in behind.items()) and all(
        key(digests) == name for name, digests in modules.items()
    )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from entries
