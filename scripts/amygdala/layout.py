"""What lies in a store: each file's kind and the key that it lives by, told from its path. Nothing here follows a link."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_KEY = r"(?P<key>[0-9a-f]{16})"
_LAYER = r"layer_(?P<layer>\d{3,})"
_FILES = {
    "snapshots": [rf"snapshots/{_KEY}\.jsonl", rf"snapshots/(?P<snapshot>[0-9a-f]{{16}})\.{_KEY}\.safetensors"],
    "examples": [rf"examples/[^/]+\.{_KEY}\.json"],
    "texts": [rf"texts/(neutral|unseen)\.{_KEY}\.json"],
    "models": [rf"models/{_KEY}(\.json)?"],
    "indices": [rf"activations/(?P<space>[0-9a-f]{{16}})/index/shard_\d+\.{_KEY}\.safetensors"],
    "segments": [rf"activations/(?P<space>[0-9a-f]{{16}})/{_LAYER}/[0-9a-f]{{16}}\.safetensors"],
    "rates": [rf"activations/{_KEY}/rate\.json"],
    "weights": [rf"weights/{_KEY}/{_LAYER}\.safetensors"],
    "vectors": [rf"vectors/[^/]+\.{_KEY}/{_LAYER}\.safetensors"],
    "heads": [rf"heads/[^/]+\.{_KEY}/{_LAYER}\.json"],
    "figures": [rf"figures/[^/]+\.{_KEY}/(texts|{_LAYER})\.json"],
    "quality": [rf"quality/{_KEY}\.json"],
    "compare": [rf"compare/[^/]+\.{_KEY}\.(json|svg)"],
    "ablation": [rf"ablation/{_KEY}\.json"],
    "unseen": [rf"unseen/{_KEY}\.(json|svg)"],
    "tokens": [rf"tokens/{_KEY}\.json"],
    "reports": [rf"reports/{_KEY}/[^/]+\.(html|svg)"],
    "releases": [rf"releases/{_KEY}/(vectors\.safetensors|manifest\.json)"],
    "overviews": [rf"overviews/{_KEY}\.svg"],
    "plans": [r"memo/(plan|recipes)\.[0-9a-f]{16}\.json"],
    "memos": [r"memo/[^/]+\.json"],
}
KINDS = tuple(_FILES)
TEMPORARY, SET_ASIDE = "temporary", "set aside"
FOLDERS = {pattern.partition("/")[0] for patterns in _FILES.values() for pattern in patterns}
OWN_FOLDERS = {"roots", "trash", "ledger"}  # what the store keeps of its runs
_PATTERNS = [(kind, re.compile(pattern)) for kind, patterns in _FILES.items() for pattern in patterns]
_WRITTEN = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.tmp")  # files.whole
_CONVERTED = re.compile(r"models/\.[0-9a-f]{16}\.[^/]+\.tmp")  # scripts/model.py
_DAMAGED = ".damaged"


@dataclass(frozen=True)
class Stored:
    """A file of the store, or the folder of a converted model.

    path: below the store; kind: of KINDS, TEMPORARY or SET_ASIDE; key: that it lives by, "" for segments, memos and leftovers;
    size: bytes; mtime: seconds since 1970; space, layer: of activations; snapshot: of a graph's index; link: whether it is a
    symbolic link.
    """

    path: str
    kind: str
    key: str
    size: int
    mtime: float
    space: str = ""
    snapshot: str = ""
    layer: int = -1
    link: bool = False


def kind_of(path: str) -> tuple[str, re.Match[str] | None] | None:
    """(kind, what its pattern found) of a path below the store; None for one that amygdala does not write."""
    if not path.isprintable():  # names of ours are
        return None
    if _CONVERTED.fullmatch(path):
        return TEMPORARY, None
    folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
    written = _WRITTEN.fullmatch(name)
    if written and kind_of(f"{folder}/{written['name']}"):
        return TEMPORARY, None
    if name.endswith(_DAMAGED) and kind_of(f"{folder}/{name.removesuffix(_DAMAGED)}"):
        return SET_ASIDE, None
    return next(((kind, found) for kind, pattern in _PATTERNS if (found := pattern.fullmatch(path))), None)


def described(path: str, size: int, mtime: float, link: bool = False) -> Stored | None:
    """A path below the store as a Stored; None for one that amygdala does not write."""
    known = kind_of(path)
    if known is None:
        return None
    kind, found = known
    given = found.groupdict() if found else {}
    of = {name: given.get(name) or "" for name in ("space", "snapshot")}
    return Stored(path, kind, given.get("key") or "", size, mtime, **of, layer=int(given.get("layer") or -1), link=link)


def scan(store: str | Path) -> tuple[list[Stored], list[str]]:
    """(files of the store by path, paths that amygdala did not write). A folder that is a link is no folder of the store's."""
    known: list[Stored] = []
    unknown: list[str] = []
    for top in _listed(Path(store)):
        if top.name in OWN_FOLDERS:
            continue
        if top.name in FOLDERS and top.is_dir(follow_symlinks=False):
            _walk(Path(top.path), top.name, known, unknown)
        else:
            unknown.append(top.name)
    return sorted(known, key=lambda one: one.path), sorted(unknown)


def _walk(folder: Path, prefix: str, known: list[Stored], unknown: list[str]) -> None:
    for one in _listed(folder):
        path = f"{prefix}/{one.name}"
        try:
            stat = one.stat(follow_symlinks=False)
        except FileNotFoundError:  # another run's temporary file
            continue
        is_folder = one.is_dir(follow_symlinks=False)
        size = _size(Path(one.path)) if is_folder and kind_of(path) else stat.st_size
        found = described(path, size, stat.st_mtime, one.is_symlink())
        if found is not None and (not is_folder or path.startswith("models/")):
            known.append(found)
        elif is_folder:
            _walk(Path(one.path), path, known, unknown)
        else:
            unknown.append(path)


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(folder: Path) -> int:
    total = 0
    for one in _files(folder):
        with contextlib.suppress(FileNotFoundError):
            total += one.stat(follow_symlinks=False).st_size
    return total


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    for one in _listed(folder):
        if one.is_dir(follow_symlinks=False):
            yield from _files(Path(one.path))
        else:
            yield one
