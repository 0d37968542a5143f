"""The lock of a project folder: who holds it, and what becomes of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from amygdala import lock
from amygdala.errors import UserError
from amygdala.keys import SCRIPTS

HOLD = "import sys; from amygdala import lock; lock.take(sys.argv[1], print); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / ".snakemake" / "amygdala.lock"
    yield path
    lock.release(path)


def never(line: str) -> None:
    raise AssertionError(line)


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process, which holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, cwd=SCRIPTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        lock.take(path, never)
    return str(error.value)


def test_a_second_process_is_told_who_holds_it(path: Path) -> None:
    with holder(path) as other:
        message = refused(path)
        assert message.startswith(
            f"another run works in this folder: process {other.pid} on '{socket.gethostname()}', since '20"
        )
        assert str(path) in message and "Wait until it ends" in message
        assert other.stdin
        other.stdin.close()
    lock.take(path, never)


def test_killed_holders_hold_nothing(path: Path) -> None:
    with holder(path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        lock.take(path, never)
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_what_a_holder_started_does_not_hold_it(path: Path) -> None:
    """A killed run's job may go on for hours."""
    lock.take(path, never)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as job:
        lock.release(path)
        with holder(path) as other:
            assert other.stdin
            other.stdin.close()
        job.kill()


def test_the_same_process_may_take_it_twice(path: Path) -> None:
    lock.take(path, never)
    lock.take(path, never)
    lock.release(path)
    with holder(path) as other:
        assert other.stdin
        other.stdin.close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_and_worked_on(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    told: list[str] = []
    lock.take(path, told.append)
    assert told == [f"warning: '{path.parent}' lies on a file system without locks: start no second run in this folder"]


def test_another_trouble_is_no_holder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert refused(path) == f"cannot lock '{path}': Input/output error"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "lock") == f"cannot write '{tmp_path}/file/lock': File exists"


@pytest.mark.parametrize("said", ["", "{", "[]", '{"pid": "x", "host": 1, "since": 2}', '{"pid": 1}'])
def test_a_holder_that_says_nothing_useful(path: Path, said: str) -> None:
    with holder(path) as other:
        path.write_text(said)
        assert "works in this folder: it has not said which process it is." in refused(path)
        assert other.stdin
        other.stdin.close()


def test_what_a_holder_says_reaches_no_terminal_raw(path: Path) -> None:
    with holder(path) as other:
        path.write_text(json.dumps({"pid": 1, "host": "\x1b[2Jhost", "since": "now"}))
        message = refused(path)
        assert "\x1b" not in message and "\\x1b[2Jhost" in message
        assert other.stdin
        other.stdin.close()


def test_a_full_disk_does_not_keep_it_from_being_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    lock.take(path, never)
    command = [sys.executable, "-c", HOLD, str(path)]
    other = subprocess.run(command, cwd=SCRIPTS, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert other.returncode and "another run works in this folder" in other.stderr
