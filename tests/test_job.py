"""The tail of an entry script: what a file of another user's says."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amygdala.job import job


def snakemake(tmp_path: Path, *inputs: Path) -> Any:
    paths = {"input": [str(path) for path in inputs], "output": [str(tmp_path / "made")]}
    return SimpleNamespace(log=[str(tmp_path / "log")], params=SimpleNamespace(), **paths)


def test_an_input_that_its_owner_keeps_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors would tell of it as of a file that is not there."""
    open_, kept = tmp_path / "open", tmp_path / "kept"
    for path in (open_, kept):
        path.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != kept)
    with pytest.raises(SystemExit) as caught, job(snakemake(tmp_path, open_, kept)):
        pytest.fail("it ran")
    assert caught.value.code == 1
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert said.startswith(f"error: {kept} may not be read. Ask its owner to change its mode")
    assert said.count("\n") == 1


def test_an_input_that_is_missing_is_left_to_the_script(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), job(snakemake(tmp_path, tmp_path / "gone")):
        (tmp_path / "gone").read_bytes()


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught, job(snakemake(tmp_path), needs_input=False):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "store/quality/key.json")
    assert caught.value.code == 1
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert said.startswith("error: store/quality/key.json: Permission denied. Ask its owner")
    assert said.count("\n") == 1


def test_other_errors_pass_with_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"), job(snakemake(tmp_path), needs_input=False):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "store/quality/key.json")
    assert "Traceback" in (tmp_path / "log").read_text(encoding="utf-8")
