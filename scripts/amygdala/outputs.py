"""What Snakemake may do to stored files, and whether those that a run has to make can be written.

A stored file is whole, never changed, and may be in use by another build or belong to another user, or to a store that is
read-only here. Snakemake's care for outputs takes none of that into account.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from amygdala.errors import UserError, shown_path
from amygdala.files import FULL

ROOM_BYTES = 1 << 16  # what a run's own log and notes take at the least, a dry run's too


def leave_stored_files_alone() -> None:
    """Have Snakemake neither copy, write back, touch nor refuse outputs that exist. (Rules mark them update(), so that they are
    not removed before a job either.)
    """
    from snakemake.dag import DAG
    from snakemake.jobs import Job
    from snakemake.persistence import FileBackupMixin
    from snakemake.workflow import Workflow

    # A copy is made of each before the job, and after a failed one it is written over the file, in place, while others read, or
    # through a link into a store that is only read.
    FileBackupMixin.backup_output, FileBackupMixin.restore_output = _no_copy, _stays
    # One file of a batch that is another user's would refuse the whole job, which does not write it.
    Job.check_protected_output = _not_protected
    # It could not be touched either. Nothing here depends on times.
    DAG.check_and_touch_output = _without_times(DAG.check_and_touch_output)
    # profiles/default drops the records of jobs. Nothing goes by them, and nobody needs to hear that they are missing.
    Workflow.log_missing_metadata_info = _say_nothing


def _say_nothing(workflow: Any) -> None:
    return None


def _no_copy(persistence: Any, path: Path) -> None:
    return None


def _stays(persistence: Any, path: Path) -> bool:
    """Whether the output of a failed job is to be kept from being removed: true would tell of a restored file for each, and the
    profile keeps all."""
    return path.exists() and not persistence.dag.workflow.execution_settings.keep_incomplete


async def _not_protected(job: Any) -> None:
    return None


def _without_times(check: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Snakemake's check of a job's outputs, less the times. (Done once, however often a process reads the Snakefile.)"""
    if hasattr(check, "without_times"):
        return check

    @functools.wraps(check)
    async def check_existence(*arguments: Any, **options: Any) -> None:
        await check(*arguments, **{**options, "no_touch": True, "check_output_mtime": False})

    check_existence.without_times = True  # type: ignore[attr-defined]
    return check_existence


def check_writable(outputs: Iterable[str | os.PathLike[str]]) -> None:
    """UserError where one of the outputs is missing and its folder, or the one that it would be made in, cannot be written."""
    writable: dict[Path, bool] = {}
    refused = []
    for path in map(Path, outputs):
        if path.exists():
            continue
        folder = path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if folder not in writable:
            writable[folder] = os.access(folder, os.W_OK | os.X_OK)
        if not writable[folder]:
            refused.append((path, folder))
    if refused:
        path, folder = refused[0]
        more = f" and {len(refused) - 1} more files" if len(refused) > 1 else ""
        raise UserError(
            f"cannot write {shown_path(path)}{more}: {shown_path(folder)} is read-only here, or another user's. "
            "Set `store:` and `results:` to folders that you may write, or have this one opened"
        )


def check_room(folder: str | os.PathLike[str]) -> None:
    """UserError where the disk of `folder` (made where it is missing) is full. Other troubles are left to whoever writes."""
    probe = Path(folder) / "amygdala.room"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(ROOM_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in FULL:
            where = shown_path(probe.parent.absolute())
            raise UserError(f"cannot write in {where}: {error.strerror}. Make room; nothing was started") from None
