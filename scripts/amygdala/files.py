"""Files of the store: written whole or not at all, readable by the group as the umask says."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amygdala.errors import UserError, kept
from amygdala.stamps import MADE_FROM, sealed, split

FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or a user's share of it
SETTLED_S = 2.0  # a file younger than this may still change within one tick of its mtime: its memo is not kept


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success its file is synced and renamed to `path`, else removed.

    A plain open() makes the file, so its mode follows the umask (mkstemp's 0600 would hide it from others).
    Raises UserError where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (*FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise UserError(f"cannot write {path}: {os.strerror(error.errno)}. Nothing was left half written.") from None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_readable(store: Path) -> None:
    """UserError where the store or one of its folders may not be looked into: what lies there would count as missing."""
    try:
        folders = [store, *(path for path in store.iterdir() if path.is_dir())]
    except FileNotFoundError:
        return
    except OSError as error:
        raise kept(f"store: {store}", error.strerror) from None
    for folder in folders:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise kept(f"store: {folder}", os.strerror(errno.EACCES))


def check_writable(folder: Path) -> None:
    """UserError where files cannot be added to a folder that is there, for what takes long before it writes."""
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise kept(f"cannot write into {folder}", os.strerror(errno.EACCES))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write the file whole; a JSON, SVG or HTML file of the store says what it is made from (stamps.py)."""
    with whole(path) as temporary:
        temporary.write_bytes(sealed(os.fspath(path), content))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The parsed file without its `made_from`. UserError names a damaged one, also where a checksum does not fit."""
    try:
        content, _ = split(".json", Path(path).read_bytes())
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run snakemake again, it will be rebuilt") from None
    if isinstance(value, dict) and MADE_FROM in value:
        raise UserError(f"{path} is damaged (its end was changed): delete it and run snakemake again, it will be rebuilt")
    return value


def set_aside(path: Path) -> str:
    """Rename a damaged file so that nothing finds it; says what was done. A link is renamed itself: its target is another
    store's, which is not asked for it again (amygdala.tiers). One that leads nowhere is removed.
    """
    aside = path.with_name(path.name + ".damaged")
    try:
        if path.is_symlink() and not path.exists():
            path.unlink()
            return "it is gone"
        os.replace(path, aside)
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        return f"it could not be set aside ({error.strerror}): delete it"
    return f"it was set aside as {aside.name}"


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remember(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a memo (a value that can be worked out again); a store that cannot be written is no error."""
    with contextlib.suppress(UserError, OSError):
        write_json(path, value, indent)


def recall(path: Path) -> Any:
    """A memo, or None where it is missing or unreadable."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def stamp_of(path: Path) -> list[int]:
    """[size, mtime, ctime]: a copy that keeps times (rsync, a container's layer, a store with all times at 1) may put other
    bytes of the same size and mtime in place, but no program sets the ctime.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def is_settled(stamp: list[int]) -> bool:
    """Whether a file of this stamp cannot have changed again within one tick of its mtime."""
    return time.time() - stamp[1] / 1e9 > SETTLED_S


def content_identity(paths: list[Path], root: Path, memo: Path) -> str:
    """`sha256:…` over names (relative to `root`) and bytes of files; remembered in `memo` against path, size and times."""
    stamps = [stamp_of(path) for path in paths]
    stamp = [[str(path), *one] for path, one in zip(paths, stamps, strict=True)]
    known = recall(memo)
    if isinstance(known, dict) and known.get("files") == stamp and isinstance(known.get("identity"), str):
        identity = known["identity"]
        if known.get("sum") == _sum_of(stamp, identity):
            return identity
    if len(paths) == 1 and paths[0] == root:
        identity = f"sha256:{sha256_file(root)}"
    else:
        identity = identity_of_sums({str(path.relative_to(root)): sha256_file(path) for path in paths})
    if all(map(is_settled, stamps)):
        remember(memo, {"files": stamp, "identity": identity, "sum": _sum_of(stamp, identity)})
    return identity


def identity_of_sums(sums: Mapping[str, str]) -> str:
    """`sha256:…` of several files, from {name: hex sha256} in order."""
    return f"sha256:{hashlib.sha256(json.dumps(list(sums.items())).encode()).hexdigest()}"


def _sum_of(stamp: list[list[Any]], identity: str) -> str:
    """A memo's own checksum: a wrong identity would give every key another name."""
    return hashlib.sha256(json.dumps([stamp, identity]).encode()).hexdigest()
