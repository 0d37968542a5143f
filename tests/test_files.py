"""Files of the store: whole or not at all, with the umask's mode, and with errors that name the file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amygdala import files
from amygdala.errors import UserError

ROOM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM]


@pytest.fixture
def umask() -> Iterator[Any]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def raising(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_success_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "value.txt"
    with files.whole(target) as temporary:
        assert temporary.parent == target.parent  # a rename within a folder is atomic, one across devices is not
        temporary.write_bytes(b"all of it")
        assert not target.exists()
    assert target.read_bytes() == b"all of it"
    assert names(target.parent) == ["value.txt"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "value"
    target.write_bytes(b"old")
    with files.whole(target) as temporary:
        temporary.write_bytes(b"new, hal")
        assert target.read_bytes() == b"old"
        temporary.write_bytes(b"new, whole")
    assert target.read_bytes() == b"new, whole"


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"old"])
def test_failure_leaves_nothing_new(tmp_path: Path, raised: type[BaseException], before: bytes | None) -> None:
    target = tmp_path / "value"
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(raised), files.whole(target) as temporary:
        temporary.write_bytes(b"half of")
        raise raised
    assert names(tmp_path) == ([] if before is None else ["value"])
    assert before is None or target.read_bytes() == before


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.whole(tmp_path / "value"):
        pass
    assert names(tmp_path) == []


def test_temporary_names_differ_and_match_no_pattern_of_the_store(tmp_path: Path) -> None:
    target = tmp_path / "segment.safetensors"
    with files.whole(target) as first, files.whole(target) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        assert list(tmp_path.glob("*.safetensors")) == []
    assert names(tmp_path) == ["segment.safetensors"]
    assert target.read_bytes() == b"first"  # the outer one is renamed last


def test_bytes_are_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, Any]] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(number: int) -> None:
        done.append(("sync", os.fstat(number).st_ino))
        real_sync(number)

    def replace(source: Path, target: Path) -> None:
        done.append(("rename", source.stat().st_ino))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_text(tmp_path / "value", "text")
    inode = (tmp_path / "value").stat().st_ino
    assert done[:2] == [("sync", inode), ("rename", inode)]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
def test_mode_follows_the_umask(tmp_path: Path, umask: Any, mask: int, mode: int) -> None:
    umask(mask)
    files.write_text(tmp_path / "value", "text")
    assert stat.S_IMODE((tmp_path / "value").stat().st_mode) == mode


@pytest.mark.parametrize("number", ROOM)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_or_closed_disk_after_the_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    target = tmp_path / "value"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, call, raising(number))
    with pytest.raises(UserError) as caught:
        files.write_text(target, "new")
    assert str(target) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert names(tmp_path) == ["value"]
    assert target.read_bytes() == b"old"


def test_disk_full_halfway_through_the_body(tmp_path: Path) -> None:
    target = tmp_path / "value"
    with pytest.raises(UserError, match="value: No space left on device"), files.whole(target) as temporary:
        temporary.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(Path, "mkdir", raising(number))
    with pytest.raises(UserError, match=f"cannot write .*value: {os.strerror(number)}"):
        files.write_text(tmp_path / "folder" / "value", "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match=r"cannot write .*value: Permission denied"):
            files.write_text(tmp_path / "value", "text")
    finally:
        tmp_path.chmod(0o755)


def keeping(monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    """One path that another user keeps to themselves, also to root, who runs tests in a container."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != kept)


def test_a_folder_of_the_store_that_its_owner_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.check_readable(tmp_path / "absent")
    for name in ("examples", "vectors"):
        (tmp_path / name).mkdir()
    files.check_readable(tmp_path)
    for kept in (tmp_path, tmp_path / "vectors"):
        keeping(monkeypatch, kept)
        with pytest.raises(UserError, match=f"store: {kept}: Permission denied. Ask its owner .*docs/sharing.md"):
            files.check_readable(tmp_path)


def test_a_folder_that_files_cannot_be_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping(monkeypatch, tmp_path)
    files.check_writable(tmp_path / "absent")
    with pytest.raises(UserError, match=f"cannot write into {tmp_path}: Permission denied. Ask its owner"):
        files.check_writable(tmp_path)


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(errno.EIO))
    with pytest.raises(OSError, match="Input/output error") as caught:
        files.write_text(tmp_path / "value", "text")
    assert caught.value.errno == errno.EIO
    assert names(tmp_path) == []


@pytest.mark.parametrize("value", [{"ß": [1, 2.5, None, "\u2028 — 😀"]}, [], "text", 0, {"b": 1, "a": 2}])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_round_trip(tmp_path: Path, value: Any, indent: int | None) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, value, indent)
    assert files.read_json(path) == value
    assert json.loads(path.read_bytes().decode("utf-8")) == value
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": object()}, {"a": b"bytes"}])
def test_what_is_no_json_is_refused_and_leaves_nothing(tmp_path: Path, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        files.write_json(tmp_path / "value.json", value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b'{"a": 1}}', b"\xff\xfe\x00", b'{"a": "\xe4"}', b"null null"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.json is damaged .*: delete it and run snakemake again") as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("size", [0, 1, 64, 1_000_003])
def test_sha256_of_a_file(tmp_path: Path, size: int) -> None:
    content = bytes(number * 7 % 256 for number in range(size))
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_memo_round_trip(tmp_path: Path) -> None:
    files.remember(tmp_path / "memo" / "a.json", {"answer": [1, "two"]})
    assert files.recall(tmp_path / "memo" / "a.json") == {"answer": [1, "two"]}


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_memo_that_is_missing_or_damaged_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert files.recall(tmp_path / "a.json") is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_memo_in_a_store_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "replace", raising(number))
    files.remember(tmp_path / "a.json", 1)
    assert names(tmp_path) == []
    assert files.recall(tmp_path / "a.json") is None
