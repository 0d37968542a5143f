"""Stores that are read and never written (`store_read`): what a build names and its own store lacks is linked from them.

A link is absolute and leads to the file under the tier's path as it is configured. A file or link of the own store that leads
anywhere wins. A link that leads nowhere any more, because its tier went away, counts as missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amygdala.errors import UserError, kept, shown_path

if TYPE_CHECKING:
    from amygdala.build import Build

DAMAGED = ".damaged"  # what a damaged file's name ends in once it was set aside
SEGMENT = ".safetensors"


def files_of(build: Build) -> Iterator[str]:
    """The stored files that the build and its targets name, less those of a model's conversion and segments of activations."""
    yield build.snapshot
    for name, given in (("neutral", build.neutral), ("unseen", build.unseen)):
        if given:
            yield build.texts(name)
    for emotion in build.emotions:
        yield build.examples(emotion)
    for index_key in build.captures:
        yield from build.captured(index_key)
    for name in ("sweep", *(["compare"] if build.layers else [])):
        yield from (build.compared(name, emotion) for emotion in build.emotions)
        yield from build.compared_all(name)
    if not build.layers:
        return
    yield from build.weights()
    for emotion in build.emotions:
        yield from (*build.vectors(emotion), *build.heads(emotion), *build.figures(emotion))
    for chosen in build.selections.values():
        yield from build.release(chosen)
    yield from (build.quality, build.overview, build.token_scores, *build.report)
    if not build.no_ablation:
        yield build.ablation
    if not build.no_unseen:
        yield from build.unseen_report


def model_of(build: Build) -> list[str]:
    """The folder of a converted model and its marker. The marker of a hub's model says what another user's cache holds."""
    return [build.model_ready.removesuffix(".json"), build.model_ready] if build.model.converted else []


class Tiers:
    """The stores `paths`, in order, behind the own store `store`. UserError where one is no folder or is the own store."""

    def __init__(self, store: str, paths: Sequence[str]) -> None:
        self.store = store
        self.paths = [Path(os.path.abspath(Path(path).expanduser())) for path in paths]
        self._folders: dict[Path, bool] = {}
        for given, path in zip(paths, self.paths, strict=True):
            if not os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises where a folder above may not be read)
                raise UserError(
                    f"store_read: {shown_path(given)} is no folder that can be read. Mount it, or take it out of store_read: "
                    "what it holds would be computed again"
                )
            if Path(store).exists() and path.samefile(store):
                raise UserError(f"store_read: {shown_path(given)} is the store itself (`store:`): take it out of store_read")

    def take(self, paths: Iterable[str]) -> int:
        """Link each path of the own store that is missing and that a tier has; returns how many were linked.

        UserError where a link cannot be made, or the tier's file may not be read.
        """
        try:
            return sum(self._take(path) for path in map(Path, paths) if not path.exists()) if self.paths else 0
        except PermissionError as error:
            raise kept(f"store_read: {error.filename}", error.strerror) from None

    def take_segments(self, spaces: Iterable[str]) -> int:
        """Link the tiers' segments of activations in these folders of the own store, of all layers; returns how many.

        All of them: which segments hold a text is known from the tier's own indices alone, and the build's may be others.
        """
        return sum(self.take(self._segments(space)) for space in spaces) if self.paths else 0

    def _segments(self, space: str) -> list[str]:
        """Paths in the own store of the tiers' segments of a space."""
        found: set[str] = set()
        for root in (self._in(tier, Path(space)) for tier in self.paths):
            for layer in _names(root):
                if layer.startswith("layer_"):
                    names = (name for name in _names(root / layer) if name.endswith(SEGMENT))
                    found.update(f"{space}/{layer}/{name}" for name in names)
        return sorted(found)

    def _take(self, path: Path) -> bool:
        source = self._source(path)
        if source is None:
            return False
        try:
            _link(path, source)
        except FileExistsError:
            return False  # another run was quicker
        except OSError as error:
            raise UserError(f"store_read: {path} cannot be linked to {source}: {error.strerror}") from None
        return True

    def _source(self, path: Path) -> Path | None:
        """The first tier's file for a path of the own store, less tiers whose file was set aside as damaged."""
        for tier in self.paths[self._refused(path) :]:
            source = self._in(tier, path)
            if not self._is_folder(source.parent):
                continue
            if os.access(source, os.R_OK):
                return source
            if source.exists():
                raise kept(f"store_read: {source}")
        return None

    def _refused(self, path: Path) -> int:
        """How many tiers, from the first, are not asked: up to the one whose damaged file was set aside."""
        try:
            target = path.with_name(path.name + DAMAGED).readlink()
        except OSError:
            return 0
        return next((number for number, tier in enumerate(self.paths, 1) if target == self._in(tier, path)), 0)

    def _in(self, tier: Path, path: Path) -> Path:
        """Where a path of the own store lies in a tier."""
        return tier / path.relative_to(self.store)

    def _is_folder(self, folder: Path) -> bool:
        """Whether a tier has the folder: an emotion's files of all layers lie in one, which is asked for once."""
        if folder not in self._folders:
            self._folders[folder] = folder.is_dir()
        return self._folders[folder]


def _link(path: Path, source: Path) -> None:
    """FileExistsError where something is there that leads anywhere. (Thousands are linked at a time: the rare comes last.)"""
    try:
        path.symlink_to(source)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)
    except FileExistsError:
        if path.exists():
            raise
        path.unlink(missing_ok=True)
        path.symlink_to(source)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise kept(f"store_read: {folder}", error.strerror) from None


def take(build: Build) -> int:
    """Link what the build names, its own store lacks and its `store_read` has; returns how many files."""
    if not build.tiers.paths:  # the keys of what is measured on request take a while to work out
        return 0
    return build.tiers.take([*model_of(build), *files_of(build)]) + build.tiers.take_segments(build.spaces)
