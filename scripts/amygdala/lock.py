"""One run at a time in a project folder: an advisory lock that the kernel lets go of when its holder ends, however it ends.

Snakemake's own lock is files, which a killed run leaves behind, so that the next one asks for `--unlock`; profiles/default
turns it off. Jobs of a killed run that still go on hold no lock and do no harm: they write stored files whole, under names that
say what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amygdala.errors import UserError, shown, shown_path

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems without flock answer
HOLDER_BYTES = 1000  # read of what a holder said of itself
RUN = Path(".snakemake/amygdala.lock")  # what a run with jobs holds, in its folder

_held: dict[Path, int] = {}


def take(path: str | os.PathLike[str], say: Callable[[str], None]) -> None:
    """Lock `path` until this process ends. The folder is made where it is missing.

    UserError where another process holds it (naming that one), or where the file cannot be made. Where the file system has no
    such locks, `say` hears of it and nothing is locked.
    """
    path = Path(path).absolute()
    if path in _held:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
    except OSError as error:
        raise UserError(f"cannot write {shown_path(path)}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(descriptor)
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f"another run works in this folder: {holder}. Wait until it ends, or end it; nothing is left to unlock then. "
                f"A run in another folder may use the same store at the same time. (The lock is {shown_path(path)}.)"
            ) from None
        if error.errno not in WITHOUT_LOCKS:
            raise UserError(f"cannot lock {shown_path(path)}: {error.strerror}") from None
        say(f"warning: {shown_path(path.parent)} lies on a file system without locks: start no second run in this folder")
        return
    _held[path] = descriptor
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # a full disk: the lock holds without
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)


def release(path: str | os.PathLike[str]) -> None:
    """Let go before the process ends. The file stays: removing it would let two runs hold two files of one name."""
    descriptor = _held.pop(Path(path).absolute(), None)
    if descriptor is not None:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words."""
    try:
        about: Any = json.loads(os.pread(descriptor, HOLDER_BYTES, 0))
        pid, host, since = int(about["pid"]), shown(about["host"]), shown(about["since"])
    except (OSError, ValueError, LookupError, TypeError):
        return "it has not said which process it is"
    return f"process {pid} on {host}, since {since}"
