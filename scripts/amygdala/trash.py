"""Deletion in two steps: files move to `<store>/trash/`, where builds do not look, and go when no new build wants them.

`<store>/trash/delete-…/` holds what a gc moved and may still put back; renamed to `….gone` it is given up. A gc that was killed
leaves one or the other: the next puts the first back and removes the second.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from amygdala.errors import UserError, shown
from amygdala.layout import kind_of
from amygdala.roots import FOLDER as ROOTS

FOLDER, GONE = "trash", ".gone"
_NAME = re.compile(r"delete-[0-9a-f]{12}-[0-9a-f]{8}(\.gone)?")
_ROOT = re.compile(rf"{ROOTS}/[0-9a-f]{{16}}/[^/]+\.json")


class Trash:
    """What one gc deletes. store: the folder; token: the name of what was confirmed (garbage.token)."""

    def __init__(self, store: str | Path, token: str) -> None:
        self.store = Path(store)
        self.folder = _checked(self.store) / f"{token}-{secrets.token_hex(4)}"
        self.moved: list[str] = []

    def place(self, path: str) -> Path:
        """Where a path of the store lies now."""
        moved = self.folder / path
        return moved if os.path.lexists(moved) else self.store / path

    def take(self, paths: Iterable[str]) -> None:
        """Move files of the store here. One that is gone is left out; UserError where one cannot be moved, all put back."""
        for path in paths:
            target = self.folder / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                (self.store / path).rename(target)
                self.moved.append(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.put_back(self.moved)
                where = "it is on another file system than the store" if error.errno == errno.EXDEV else error.strerror
                raise UserError(f"{self.store / path} cannot be deleted: {where}. Nothing was deleted") from None

    def put_back(self, paths: Iterable[str]) -> list[str]:
        """Move files back, less those that are there again; returns their paths."""
        back = [path for path in paths if _put_back(self.folder, self.store, path)]
        returned = set(back)
        self.moved = [path for path in self.moved if path not in returned]
        return back

    def empty(self) -> None:
        """Delete what is here, and the folders that it leaves empty. What another gc took out counts as moved no more."""
        self.moved = [path for path in self.moved if os.path.lexists(self.folder / path)]
        for folder in sorted({parent for path in self.moved for parent in list(Path(path).parents)[:-2]}, reverse=True):
            with contextlib.suppress(OSError):
                (self.store / folder).rmdir()
        _give_up(self.folder)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def recover(store: str | Path) -> int:
    """Put back, or remove, what a killed gc left; returns how many files were put back."""
    store = Path(store)
    back = 0
    trash = _checked(store)
    for folder in sorted(trash.iterdir()) if trash.is_dir() else []:
        if not _NAME.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        if folder.name.endswith(GONE):
            shutil.rmtree(folder, ignore_errors=True)
            continue
        back += sum(_put_back(folder, store, path) for path in list(_held(folder, "")))
        if not list(_held(folder, "", strange=True)):
            _give_up(folder)  # what is left is at its place again already
    return back


def _checked(store: Path) -> Path:
    """The trash folder. UserError where it is a link: what lies behind it is none of the store's."""
    trash = store / FOLDER
    if trash.is_symlink():
        raise UserError(f"{trash} is a link, which gc does not follow: remove it")
    return trash


def _put_back(folder: Path, store: Path, path: str) -> bool:
    target = store / path
    if os.path.lexists(target):
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / path).rename(target)
    except FileNotFoundError:  # another gc was quicker
        return False
    except OSError as error:
        raise UserError(f"{folder / path} cannot be put back: {error.strerror}. Move it to {shown(target, 300)}") from None
    return True


def _held(folder: Path, prefix: str, strange: bool = False) -> Iterator[str]:
    """Paths below a folder of the trash that a gc moved there; or those that it did not."""
    try:
        found = sorted((folder / prefix).iterdir())
    except FileNotFoundError:  # the gc that moved it was not killed, and is done
        return
    for one in found:
        path = f"{prefix}{one.name}"
        ours = kind_of(path) is not None or _ROOT.fullmatch(path) is not None
        is_folder = one.is_dir() and not one.is_symlink()
        if is_folder and not (ours and path.startswith("models/")):
            yield from _held(folder, f"{path}/", strange)
        elif ours is not strange:
            yield path


def _give_up(folder: Path) -> None:
    gone = folder.with_name(folder.name + GONE)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
