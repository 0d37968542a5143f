"""Stored files that exist are left alone; what cannot be written is told before any job runs."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amygdala.errors import UserError
from amygdala.job import job
from amygdala.outputs import check_room, check_writable, leave_stored_files_alone
from tiny import REPOSITORY

STORED = re.compile(r"build\.(?!results|marker|report_marker|published_report|\w+_key)\w+")


def outputs_of(rules: str) -> list[str]:
    """The `output:` blocks of a rules file, each as its text."""
    found, block, depth = [], "", -1
    for line in rules.splitlines():
        indent = len(line) - len(line.lstrip())
        if depth >= 0 and line.strip() and indent <= depth:
            found.append(block)
            block, depth = "", -1
        if depth >= 0:
            block += line.strip() + "\n"
        elif line.strip() == "output:":
            depth = indent
    return found


def test_every_stored_output_is_to_be_updated() -> None:
    """Else Snakemake removes it before the job, also where another build has made it meanwhile and is reading it."""
    stored = 0
    for path in sorted((REPOSITORY / "rules").glob("*.smk")):
        for block in outputs_of(path.read_text(encoding="utf-8")):
            inside = re.sub(r"update\((?:[^()]|\([^()]*\)|\((?:[^()]|\([^()]*\))*\))*\)", "", block)
            assert not STORED.search(inside), f"{path.name}: {inside}"
            stored += len(STORED.findall(block))
    assert stored >= 15


def test_what_snakemake_does_to_outputs_is_still_done_by_these_functions(tmp_path: Path) -> None:
    """A new Snakemake may have moved them."""
    import snakemake.api  # noqa: F401 - first: its modules import each other
    from snakemake.dag import DAG
    from snakemake.jobs import Job
    from snakemake.persistence.db import DbPersistence
    from snakemake.persistence.file import FilePersistence
    from snakemake.workflow import Workflow

    leave_stored_files_alone()
    leave_stored_files_alone()
    (tmp_path / "file").write_text("whole")
    for persistence, keep in itertools.product((FilePersistence, DbPersistence), (True, False)):
        settings = SimpleNamespace(execution_settings=SimpleNamespace(keep_incomplete=keep))
        held: Any = SimpleNamespace(dag=SimpleNamespace(workflow=settings))
        persistence.backup_output(held, tmp_path / "file")
        assert persistence.restore_output(held, tmp_path / "file") is not keep
        assert persistence.restore_output(held, tmp_path / "none") is False
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    asyncio.run(Job.check_protected_output(SimpleNamespace(output=[])))
    assert {"no_touch", "check_output_mtime"} <= set(DAG.check_and_touch_output.__wrapped__.__annotations__)
    assert not hasattr(DAG.check_and_touch_output.__wrapped__, "without_times")
    assert Workflow.log_missing_metadata_info(SimpleNamespace()) is None


def test_missing_outputs_in_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    (closed / "there").mkdir(parents=True)
    (closed / "file").touch()
    asked: list[Path] = []

    def access(folder: Path, mode: int) -> bool:
        asked.append(folder)
        return folder.name != "closed"

    monkeypatch.setattr(os, "access", access)
    check_writable([closed / "file", tmp_path / "open" / "new" / "file", closed / "there" / "other"])
    missing = [closed / "a" / "b" / str(number) for number in range(5)]
    with pytest.raises(UserError) as error:
        check_writable([*missing, closed / "file"])
    assert str(error.value).startswith(f"cannot write '{missing[0]}' and 4 more files: '{closed}' is read-only here")
    assert asked.count(closed) == 1, "each folder is asked for once"
    with pytest.raises(UserError, match=r"cannot write '[^']*/one': "):
        check_writable([closed / "one"])


def test_room_is_looked_for_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write in '[^']*/new': No space left on device\. Make room"):
        check_room(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_that_cannot_be_written_is_left_to_who_needs_it(tmp_path: Path) -> None:
    """A dry run or a list of the rules needs none."""
    (tmp_path / "file").touch()
    check_room(tmp_path / "file" / "folder")


def run_job(log: str, work: Any) -> None:
    with job(SimpleNamespace(params=SimpleNamespace(), log=[log], input=["input"], output=[])) as say:
        work(say)


def fails(say: Any) -> None:
    raise UserError("the file is bad")


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (fails, "error: the file is bad\n"),
        (lambda say: say("a line"), "error: cannot write /dev/full: No space left on device\n"),
        (lambda say: print("a line of a library"), "error: cannot write /dev/full: No space left on device\n"),
    ],
)
def test_a_job_whose_log_has_no_room_tells_the_terminal(work: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_job("/dev/full", work)
    assert ended.value.code == 1
    assert capsys.readouterr().err == message
