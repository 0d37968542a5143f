"""Roots: what in the store the builds of each results folder rest on, so that nothing of it is taken for garbage.

A root is a folder `<store>/roots/<id>/` with a file a release, an Entry as JSON. Each run that is not a dry one writes its own
before Snakemake looks at any stored file: whoever reads the roots afterwards knows of that build, and whoever had read them
before has moved what it deletes by the time that the build looks, or puts it back (trash.py).
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.errors import UserError, kept, shown
from amygdala.files import remember
from amygdala.keys import key
from amygdala.stamps import KEY

if TYPE_CHECKING:
    from amygdala.build import Build

FOLDER = "roots"
UNSWEPT = "unswept"  # the name of a build that has no layers yet, and so no release
CURRENT = re.compile(r"readout\.([0-9a-f]{16})")  # the marker of a published readout, in results/.current


@dataclass(frozen=True)
class Entry:
    """A planned build.

    results: its results folder; host: the machine; time: of its last plan, seconds since 1970; release: key of its readout;
    keys: of all that it names, none where only its stored files tell; awaits: the indices of activations that it makes or has;
    memos: that it uses; both as paths below the store.
    """

    results: str
    host: str
    time: float
    release: str
    keys: frozenset[str]
    awaits: tuple[str, ...] = ()
    memos: tuple[str, ...] = ()


@dataclass(frozen=True)
class Root:
    """The builds of one results folder, the last one last. published: keys of the readouts that it shows."""

    id: str
    entries: tuple[Entry, ...]
    published: frozenset[str] = frozenset()

    @property
    def last(self) -> Entry:
        return self.entries[-1]


def root_id(results: str | Path) -> str:
    """The name of a results folder's root. The machine is part of it: folders of two machines may have the same path."""
    return key(platform.node(), os.path.abspath(results))


def path_of(store: str | Path, entry: Entry) -> Path:
    return Path(store, FOLDER, root_id(entry.results), f"{entry.release}.json")


def entry_of(build: Build) -> Entry:
    """What a build rests on. To be asked for when all rules are read: some keys are worked out by rules."""
    awaited = build.all_indices if build.layers else [path for one in build.sweep_index_keys for path in build.captured(one)]
    release = build.selections["readout"].key if build.layers else UNSWEPT
    memos = (Path(build.plan_memo), build.recipes.path(Path(build.store) / "memo"))
    return Entry(
        results=os.path.abspath(build.results),
        host=platform.node(),
        time=time.time(),
        release=release,
        keys=frozenset(build.recipes),
        awaits=tuple(os.path.relpath(path, build.store) for path in awaited),
        memos=tuple(f"memo/{path.name}" for path in memos),
    )


def entry_of_release(store: str | Path, results: str | Path, release: str) -> Entry:
    """A stored release that a results folder shows without a build. What it rests on is in its build's entry; where another
    folder built it, its files tell.
    """
    shown = Entry(os.path.abspath(results), platform.node(), time.time(), release, frozenset())
    try:
        return replace(read_entry(path_of(store, shown)), time=shown.time)
    except UserError:  # none, or a damaged one
        return shown


def save(store: str | Path, entry: Entry) -> None:
    """Write an entry; that a store cannot be written is no error."""
    told = {**vars(entry), "keys": sorted(entry.keys)}
    remember(path_of(store, entry), told, indent=None)


def read_entry(path: Path) -> Entry:
    """UserError where the file is damaged, gone, or another user's own: what it stood for is not known."""
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        texts = [told["results"], told["host"], told["release"], *told["keys"], *told["awaits"], *told["memos"]]
        if not all(isinstance(text, str) for text in texts) or not all(map(KEY.fullmatch, told["keys"])):
            raise ValueError
        if told["release"] != path.stem:  # else an entry could name any other file as its own
            raise ValueError
        return Entry(
            results=told["results"],
            host=told["host"],
            time=float(told["time"]),
            release=told["release"],
            keys=frozenset(told["keys"]),
            awaits=tuple(told["awaits"]),
            memos=tuple(told["memos"]),
        )
    except PermissionError as error:
        raise kept(shown(path, 300), error.strerror) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{shown(path, 300)} is damaged, and what it kept is not known. Delete it, then build once where it comes from: a "
            "build writes its own anew"
        ) from None


def published_in(results: str | Path) -> frozenset[str]:
    """The keys of the readouts that a results folder shows; none where it is not on this machine."""
    try:
        names = [path.name for path in Path(results, ".current").iterdir()]
    except (OSError, ValueError):
        return frozenset()
    return frozenset(found[1] for found in map(CURRENT.fullmatch, names) if found)


def _folders(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda one: one.name)
    except FileNotFoundError:
        return []


def _read_listed(path: Path) -> Entry | None:
    """read_entry; None where another gc has let go of that build since it was listed."""
    try:
        return read_entry(path)
    except UserError:
        if path.exists():
            raise
        return None


def read_roots(store: str | Path) -> list[Root]:
    """All roots of a store, by their last build. Files of other names are left alone, and no link is followed."""
    roots = []
    for folder in _folders(Path(store, FOLDER)):
        if not KEY.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
            continue
        names = [one for one in _folders(Path(folder.path)) if one.name.endswith(".json") and not one.name.startswith(".")]
        found = (_read_listed(Path(one.path)) for one in names if one.is_file(follow_symlinks=False))
        entries = [entry for entry in found if entry is not None]
        if entries:
            entries.sort(key=lambda entry: (entry.time, entry.release))
            published = frozenset[str]().union(*(published_in(results) for results in {entry.results for entry in entries}))
            roots.append(Root(folder.name, tuple(entries), published))
    return sorted(roots, key=lambda root: (root.last.time, root.id))
