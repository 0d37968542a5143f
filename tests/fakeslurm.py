"""SLURM's commands as scripts that answer what a test tells them, and an executor of the real plugin that asks them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from snakemake.iocontainers import ResourceList
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from amygdala import slurm

COMMANDS = ("squeue", "sacct", "scontrol", "scancel", "sbatch", "sacctmgr", "sinfo", "sshare")
SCRIPT = """#!/bin/sh
told={folder}/{name}
printf '%s\\n' "{name} $*" >> {folder}/calls
if [ -f "$told.do" ]; then . "$told.do"; fi
if [ -f "$told.out" ]; then cat "$told.out"; fi
if [ -f "$told.err" ]; then cat "$told.err" >&2; fi
if [ -f "$told.status" ]; then exit "$(cat "$told.status")"; fi
"""


class FakeSlurm:
    """The commands, first on PATH. Without an answer they print nothing and succeed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.bin = folder / "told", folder / "bin"
        self.folder.mkdir(parents=True)
        self.bin.mkdir()
        for name in COMMANDS:
            script = self.bin / name
            script.write_text(SCRIPT.format(folder=self.folder, name=name))
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}{os.environ['PATH']}")

    def tell(self, name: str, out: str = "", err: str = "", status: int = 0, do: str = "") -> None:
        """What a command prints, and its exit status; do: lines of shell that it runs before."""
        for suffix, content in (("out", out), ("err", err), ("status", str(status)), ("do", do)):
            path = self.folder / f"{name}.{suffix}"
            path.unlink(missing_ok=True)
            if content:
                path.write_text(content)

    def fails(self, *names: str) -> None:
        """As where the controller cannot be reached."""
        for name in names:
            self.tell(name, err="slurm_load: Unable to contact slurm controller (connect failure)", status=1)

    def calls(self, name: str = "") -> list[str]:
        """Command lines since the last look."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return [line for line in lines if line.startswith(f"{name} " if name else "")]


class Clock:
    """Time that passes when a test says so, or something sleeps: so many seconds for each."""

    def __init__(self) -> None:
        self.now, self.pace = 1000.0, 1.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds * self.pace


class Heard:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda line, *_, **__: self.lines.append((level, line))

    def of(self, level: str) -> list[str]:
        return [line for one, line in self.lines if one == level]


class StubScheduler:
    """What the executor reports to."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.failed: list[Any] = []
        self.submitted: list[Any] = []
        self.broken: list[BaseException] = []
        self.finish_callback, self.error_callback = self.done.append, self.failed.append
        self.submit_callback, self.executor_error_callback = self.submitted.append, self.broken.append


class StubJob:
    """A job as far as the executor and a job group look at it."""

    pipe_group = None
    is_local = False
    threads = 1
    jobid = 3

    def __init__(self, rule: str = "activations", message: str = "", output: Sequence[Path] = (), **resources: Any) -> None:
        self.rule, self.name, self.message = SimpleNamespace(name=rule, restart_times=2), rule, message
        self.input: list[str] = []
        self.output = [str(path) for path in output]
        asked = {"slurm_account": "lab", "slurm_partition": "main", "mem_mb": 100, "runtime": 5, "_cores": 1}
        self.resources = ResourceList(fromdict={**asked, **resources})
        self.attempt, self.restart_times = 1, 2
        self.wildcards: list[str] = []
        self.errors: list[str] = []
        execution = SimpleNamespace(attempt=1)
        self.dag = SimpleNamespace(workflow=SimpleNamespace(local_exec=False, execution_settings=execution))

    def is_group(self) -> bool:
        return False

    def log_info(self, indent: bool = False) -> None: ...

    def log_error(self, msg: str = "", **_: Any) -> None:
        self.errors.append(msg)

    def get_log_error_info(self, **_: Any) -> dict[str, Any]:
        return {}

    def register(self, external_jobid: str) -> None: ...

    @property
    def tried_again(self) -> bool:
        """What Snakemake's scheduler asks of a job that failed."""
        return self.restart_times > self.attempt - 1


def group_of(*jobs: StubJob) -> Any:
    """A real job group of these jobs, one after the other."""
    from snakemake.jobs import GroupJob
    from snakemake.resources import Resources

    group = GroupJob("vectors", frozenset(jobs), Resources())
    group.toposorted = [[job] for job in jobs]
    group._jobid = "group-1"
    return group


def fresh_plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin's module once more, under another name: mending it leaves the one that Snakemake uses as it is."""
    spec = importlib.util.find_spec(slurm.PLUGIN)
    assert spec is not None and spec.origin is not None
    name = "fresh_slurm_plugin"
    again = importlib.util.spec_from_file_location(
        name, spec.origin, submodule_search_locations=[str(Path(spec.origin).parent)]
    )
    assert again is not None and again.loader is not None
    module = importlib.util.module_from_spec(again)
    monkeypatch.setitem(sys.modules, name, module)
    again.loader.exec_module(module)
    return module


def workflow_of(plugin: ModuleType, folder: Path, **settings: Any) -> Any:
    """As much of a workflow as an executor needs."""
    given = {"status_command": "squeue", "status_attempts": 2, "init_seconds_before_status_checks": 1, **settings}
    return SimpleNamespace(
        executor_settings=plugin.ExecutorSettings(logdir=folder / "slurm", delete_logfiles_older_than=0, **given),
        executor_plugin=SimpleNamespace(common_settings=SimpleNamespace(init_seconds_before_status_checks=0)),
        remote_execution_settings=SimpleNamespace(
            seconds_between_status_checks=1,
            max_status_checks_per_second=100,
            jobname="job.{jobid}",
            jobscript=None,
            immediate_submit=False,
        ),
        storage_settings=SimpleNamespace(shared_fs_usage=[]),
        main_snakefile=str(folder / "Snakefile"),
        workdir_init=str(folder),
        scheduler=StubScheduler(),
        dag=None,
    )


def executor_of(plugin: ModuleType, folder: Path, **settings: Any) -> Any:
    """The plugin's executor without the thread that asks for jobs: a test asks."""
    executor = object.__new__(plugin.Executor)
    executor.workflow, executor.logger = workflow_of(plugin, folder, **settings), Heard()
    executor.active_jobs, executor.lock = [], threading.Lock()
    executor.status_rate_limiter = contextlib.nullcontext()
    executor._next_seconds_between_status_checks = None
    executor.shutdown = lambda: None
    executor.format_job_exec = lambda job: "true"
    executor.__post_init__()
    return executor


def info(job: Any, job_id: str | None = "7", log: str = "logs/7.log") -> SubmittedJobInfo:
    return SubmittedJobInfo(job, external_jobid=job_id, aux={"slurm_logfile": Path(log)})


def ask(executor: Any, jobs: list[SubmittedJobInfo]) -> list[SubmittedJobInfo]:
    """One round: the jobs that go on."""

    async def still() -> list[SubmittedJobInfo]:
        return [job async for job in executor.check_active_jobs(jobs)]

    return asyncio.run(still())
