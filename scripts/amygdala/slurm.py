"""Snakemake's SLURM executor (snakemake-executor-plugin-slurm 2.8.0) mended where it would lose jobs, wait for ever or waste
GPU hours.

- A status query that fails a few times makes it forget its jobs and wait for ever; a job that SLURM no longer lists does too.
- Each job that failed is tried again `--retries` times, one with a wrong setting too. Here only those are that more memory,
  more time or another node can help.
- Of SLURM's signal that a job's time is up, or that someone cancelled it, the job's script hears nothing.
- A job group asks for the sum of what its jobs ask for, as if they all ran at once.
- Jobs of a killed run go on, and nothing tells of them.
- Of a job group it neither tells what SLURM said nor, where it stumbles over the submission (an account that SLURM does not
  know), that there is anything to tell: it waits for ever.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from amygdala.errors import UserError, listed, shown
from amygdala.files import recall, write_json

PLUGIN = "snakemake_executor_plugin_slurm"
RUNS = Path(".snakemake/amygdala.slurm")  # a file for each run whose jobs may be with SLURM
RETRIED = {"OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED"}
FAILED = {*RETRIED, "CANCELLED", "DEADLINE", "FAILED", "ERROR", "REVOKED"}
STATES = {*FAILED, "COMPLETED", "COMPLETING", "CONFIGURING", "PENDING", "RUNNING", "SUSPENDED"}
STATUS = re.compile(r"SLURM status is: '(\w+)")
AWAY = re.compile(r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|slurm_receive_msg", re.I)
PATIENCE_S = 1800.0  # without an answer from SLURM
UNLISTED_S = 60.0  # a job may be missing from squeue's list
TELL_S = 60.0
MOST_BETWEEN_CHECKS_S = 60.0
LEAST_BETWEEN_CHECKS_S = 40.0  # where the executor has no setting
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "srun")
COMMAND_S = 30.0  # one of SLURM's commands may take
CANCEL_S = 120.0  # jobs may take to end: they store complete rows first
Say = Callable[[str], None]


def command(*words: str, timeout: float = COMMAND_S) -> str | None:
    """What one of SLURM's commands printed; None where it failed, is not there or took too long."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def state_in(told: str) -> str:
    """The bare state of `CANCELLED by 0`, `CANCELLED+` and `OUT_OF_ME+`."""
    word = (told.split() or [""])[0]
    if not word.endswith("+"):
        return word
    return next((state for state in sorted(STATES) if state.startswith(word[:-1])), word[:-1])


def states(job_id: str) -> list[str]:
    """States of a job and its steps by the accounting, the job's first; empty where it knows nothing of it."""
    told = command("sacct", "--jobs", job_id, "--noheader", "--parsable2", "--format=State") or ""
    return [state_in(line) for line in told.splitlines() if line.strip()]


def state_of(job_id: str, told: str) -> str:
    """The state to go by, of a job that failed with the state `told`: a step out of memory may show as a plain failure."""
    return "OUT_OF_MEMORY" if told == "FAILED" and "OUT_OF_MEMORY" in states(job_id) else told


def advice(state: str) -> str:
    """What a person may do about a job that ended so."""
    return {
        "OUT_OF_MEMORY": "It took more memory than it had asked for: cluster.gpu.mem_mb or cluster.light.mem_mb gives more.",
        "TIMEOUT": "It took longer than it had asked for: cluster.gpu.runtime or cluster.light.runtime gives more. "
        "What it finished is stored, and the next try goes on from there.",
        "NODE_FAIL": "Its node went down. What it finished is stored, and the next try goes on from there.",
        "CANCELLED": "Someone cancelled it (scancel). What it finished is stored: run snakemake again to go on from there.",
        "PREEMPTED": "Another job took its place. What it finished is stored, and the next try goes on from there.",
    }.get(state, "Its own log says why.")


class Watch:
    """What one executor knows of SLURM's answers. statuses: of the last query, None where it failed."""

    def __init__(self) -> None:
        self.statuses: dict[str, str] | None = {}
        self.reported: set[int] = set()
        self.unlisted: dict[str, float] = {}
        self.silent_since: float | None = None
        self.told = 0.0
        self.changed = time.monotonic()
        self.cancelled = False
        self.doubtful: set[int] = set()  # jobs whose submission got no answer: SLURM may have them all the same
        self.unsure = False  # whether jobs may go on that this run no longer waits for

    def silence(self, now: float) -> float:
        """Seconds without an answer."""
        if self.statuses is not None:
            self.silent_since = None
            return 0.0
        self.silent_since = self.silent_since or now
        return now - self.silent_since


watch = Watch()  # a process has one executor


def between_checks(quiet_s: float, least_s: float) -> float:
    """Seconds until SLURM is asked again: a tenth of the time since anything ended. (The plugin goes to 180 s.)"""
    return max(least_s, min(quiet_s / 10, MOST_BETWEEN_CHECKS_S))


def asks_for(job: Any) -> str:
    """What a job asked SLURM for, in words."""
    names = ("mem_mb", "runtime", "gpu", "cpus_per_gpu", "cpus_per_task", "slurm_partition")
    told = {name: job.resources.get(name) for name in names}
    return ", ".join(f"{name}={shown(value)}" for name, value in told.items() if value is not None)


def named(job: Any) -> str:
    """A job by what it makes."""
    if job.is_group():
        rules = sorted(job.rules)
        return f"group {job.groupid} ({listed(rules[:3])}{f' and {len(rules) - 3} more' if len(rules) > 3 else ''})"
    return str(job.message or job.rule.name)


def mend(plugin: Any, patience_s: float = PATIENCE_S, unlisted_s: float = UNLISTED_S) -> None:
    """Mend the executor of the plugin's module. (Done once, however often a process reads the Snakefile.)"""
    executor = plugin.Executor
    if hasattr(executor, "mended"):
        return
    executor.mended = True
    plugin.query_job_status = _answering(plugin.query_job_status)
    # squeue at any rate: the accounting says "CANCELLED by 0", which the plugin takes for a job that still runs
    plugin.get_min_job_age = lambda: sys.maxsize
    executor.check_active_jobs = _checking(executor.check_active_jobs, patience_s, unlisted_s)
    executor.report_job_success = _reporting(executor.report_job_success)
    executor.report_job_error = _retrying(_reporting(executor.report_job_error))
    executor.run_job = _waiting(executor.run_job, plugin.get_job_wildcards, patience_s)
    executor.cancel = _cancelling(executor.cancel)


def _answering(query: Callable[..., Any]) -> Callable[..., Any]:
    """A query that remembers its answer, and reads states as they are written."""

    @functools.wraps(query)
    async def answer(line: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        statuses, duration = await query(line, logger)
        if statuses is not None:
            statuses = {job: state_in(state) for job, state in statuses.items()}
        watch.statuses = statuses
        return statuses, duration

    return answer


def _reporting(report: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(report)
    def note(self: Any, job_info: Any, *arguments: Any, **options: Any) -> None:
        watch.reported.add(id(job_info))
        report(self, job_info, *arguments, **options)

    return note


def _checking(check: Callable[..., Any], patience_s: float, unlisted_s: float) -> Callable[..., Any]:
    async def look(self: Any, active_jobs: list[Any]) -> list[Any]:
        """The jobs that go on; the others are reported."""
        watch.reported.clear()
        watch.statuses = {} if not active_jobs else None
        still = [job async for job in check(self, active_jobs)]
        kept = {id(job) for job in still} | watch.reported
        still += [job for job in active_jobs if id(job) not in kept]
        now = time.monotonic()
        silence = watch.silence(now)
        if silence > patience_s:
            watch.unsure = True
            for job in still:
                self.report_job_error(job, msg=_silent(job, silence), aux_logs=_logs(job))
            return []
        if silence and now - watch.told > TELL_S:
            watch.told = now
            jobs = listed([str(job.external_jobid) for job in still])
            self.logger.warning(f"SLURM does not answer since {silence:.0f} s. Jobs {jobs} go on by themselves; asked again")
        going = []
        for job in still:
            if watch.statuses is None or _lists(watch.statuses, job.external_jobid):
                watch.unlisted.pop(job.external_jobid, None)
            elif now - watch.unlisted.setdefault(job.external_jobid, now) > unlisted_s and _end_unlisted(self, job):
                del watch.unlisted[job.external_jobid]
                continue
            going.append(job)
        if watch.reported or not active_jobs:
            watch.changed = now
        least = self.workflow.executor_settings.init_seconds_before_status_checks or LEAST_BETWEEN_CHECKS_S
        self.next_seconds_between_status_checks = between_checks(now - watch.changed, least)
        return going

    @functools.wraps(check)
    async def check_all(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        try:
            going = await look(self, active_jobs)
        except Exception:  # it ends the run, and nothing cancels its jobs
            watch.unsure = True
            raise
        for job in going:
            yield job

    return check_all


def _lists(statuses: Iterable[str], job_id: str) -> bool:
    """Whether SLURM lists a job; tasks of an array that wait are listed together, as 12_[3-5]."""
    together = f"{job_id.partition('_')[0]}_["
    return any(one == job_id or ("_" in job_id and one.startswith(together)) for one in statuses)


def _logs(job_info: Any) -> list[str]:
    log = (job_info.aux or {}).get("slurm_logfile")
    return [str(log)] if log else []


def _silent(job_info: Any, silence: float) -> str:
    return (
        f"SLURM has not answered for {silence / 60:.0f} minutes. SLURM-job '{job_info.external_jobid}' may still run, and "
        "stores what it finishes. Once SLURM answers, run snakemake again: it ends that job and goes on from there. "
    )


def _end_unlisted(executor: Any, job_info: Any) -> bool:
    """Report a job that SLURM no longer lists, by its accounting or else by its files; False where it still runs."""
    job_id = job_info.external_jobid
    told = next(iter(states(job_id)), "")
    if told and told not in FAILED and told != "COMPLETED":
        return False
    done = told == "COMPLETED" or (not told and all(Path(path).exists() for path in job_info.job.output))
    if done:
        executor.report_job_success(job_info)
    else:
        why = f"SLURM status is: '{told}'." if told else "SLURM does not know it any more, and not all of its files are there."
        executor.report_job_error(job_info, msg=f"SLURM-job '{job_id}' failed, {why} ", aux_logs=_logs(job_info))
    return True


def _retrying(report: Callable[..., None]) -> Callable[..., None]:
    """Say what a person can do, and have only those tried again that another try can help."""

    @functools.wraps(report)
    def report_error(self: Any, job_info: Any, msg: str | None = None, **options: Any) -> None:
        job, msg = job_info.job, msg or ""
        found = STATUS.search(msg)
        again = bool(AWAY.search(msg)) or "does not know it any more" in msg
        if found and job_info.external_jobid:
            state = state_of(job_info.external_jobid, found[1])
            again = state in RETRIED
            logs = "".join(f" Log: {log}" for log in _logs(job_info))
            head = f"SLURM-job '{job_info.external_jobid}', {named(job)}, ended as {state}. {advice(state)}"
            msg = f"{head} It had asked for {asks_for(job)}.{logs} "
        if job.is_group():  # Snakemake prints no message of a group
            self.logger.error(msg.strip())
        if again and not job_info.external_jobid:
            watch.doubtful.add(id(job))
        if not again:
            job.attempt = max(job.attempt, job.restart_times + 1)
        report(self, job_info, msg=msg, **options)

    return report_error


def _waiting(run: Callable[..., None], wildcards_of: Callable[[Any], str], patience_s: float) -> Callable[..., None]:
    """Submit once the controller answers, and only once."""

    @functools.wraps(run)
    def run_job(self: Any, job: Any) -> None:
        start = time.monotonic()
        told = False
        while not watch.cancelled and time.monotonic() - start < patience_s and command("scontrol", "ping") is None:
            if not told:
                self.logger.warning(f"SLURM does not answer: {named(job)} is submitted once it does")
                told = True
            time.sleep(2)
        if watch.cancelled:
            return
        if id(job) in watch.doubtful:
            watch.doubtful.discard(id(job))
            _cancel_doubles(self, job, wildcards_of(job))
        try:
            run(self, job)
        except Exception as error:  # of a thread that nobody looks after
            why = error.__context__ or error  # the plugin's own handler stumbles over a group
            info = _submitted(job)
            self.report_job_error(info, msg=f"Job submission failed with exception: {why}. ")

    return run_job


def _cancel_doubles(executor: Any, job: Any, wildcards: str) -> None:
    """Cancel what SLURM took of a job though its answer to the submission was lost. (The plugin's comments tell a run's jobs
    apart.)
    """
    comment = f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
    told = command("squeue", "--noheader", "--name", executor.run_uuid, "--format=%i %k") or ""
    listings = [line.strip().partition(" ") for line in told.splitlines()]
    doubles = [job_id for job_id, _, its in listings if its.strip() == comment]
    if doubles and command("scancel", *doubles) is not None:
        executor.logger.warning(
            f"SLURM had taken {named(job)} as {listed(doubles)} without an answer: cancelled and submitted anew"
        )


def _submitted(job: Any) -> Any:
    from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

    return SubmittedJobInfo(job)


def _cancelling(cancel: Callable[..., None]) -> Callable[..., None]:
    """Cancel what was being submitted at that moment too."""

    @functools.wraps(cancel)
    def cancel_all(self: Any) -> None:
        watch.cancelled = True
        try:
            cancel(self)
        finally:
            if command("scancel", "--name", self.run_uuid) is None:
                watch.unsure = True
                self.logger.warning(
                    f"SLURM could not be asked to cancel the jobs of this run: `scancel --name {self.run_uuid}`, "
                    "or run snakemake again, which does it"
                )

    return cancel_all


def share_what_groups_ask_for() -> None:
    """Have a job group ask for as much as the largest of its jobs, which take turns on its cores."""
    from snakemake.iocontainers import ResourceList
    from snakemake.jobs import GroupJob

    if hasattr(GroupJob, "shared"):
        return
    summed = GroupJob.resources.fget

    def resources(self: Any) -> Any:
        if self._resources is None:
            found = dict(summed(self).items())
            for name in ("_cores", "cpus_per_task", "mem_mb", "runtime"):
                values = [job.resources.get(name) for job in self.jobs]
                numbers = [value for value in values if isinstance(value, int)]
                if numbers:
                    found[name] = max(numbers)
            found.pop("mem", None)
            self._resources = found
        return ResourceList(fromdict=self._resources)

    GroupJob.resources = property(resources)
    GroupJob.shared = True


def pass_on_terminate() -> None:
    """Have SIGTERM reach the scripts that this process runs. SLURM sends it to the first process of a job step alone, a while
    before it kills all; a capture needs it to store the rows that are complete.
    """
    from snakemake.scheduling.job_scheduler import JobScheduler

    if hasattr(JobScheduler, "passes_on"):
        return
    JobScheduler.passes_on = True
    exit_gracefully = JobScheduler.exit_gracefully

    def terminate_scripts(self: Any, *arguments: Any) -> None:
        # First of all: Snakemake's own waits for a lock that the main thread, which this has interrupted, may hold.
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if not process.children():  # not the shell, whose end would count as the script's
                    process.terminate()
        exit_gracefully(self, *arguments)

    JobScheduler.exit_gracefully = terminate_scripts


# Runs whose jobs may be with SLURM


def check_commands() -> None:
    """UserError where this machine lacks one of SLURM's commands."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"SLURM's {', '.join(missing)} cannot be found on this machine: type this on a login node of the cluster, or leave "
            "out the profile to build here"
        )


def begin_run(run_id: str, folder: Path = RUNS) -> None:
    """Remember that jobs of this name are being submitted from here."""
    write_json(folder / f"{run_id}.json", {"run": run_id, "pid": os.getpid(), "host": socket.gethostname()})


def end_run(run_id: str, folder: Path = RUNS) -> None:
    """Forget a run whose jobs have ended: it waited for them or cancelled them."""
    with contextlib.suppress(OSError):
        (folder / f"{run_id}.json").unlink(missing_ok=True)


def end_run_surely(run_id: str, folder: Path = RUNS) -> None:
    """end_run, unless jobs of it may still go on."""
    if not watch.unsure:
        end_run(run_id, folder)


def left_behind(folder: Path = RUNS) -> list[str]:
    """Names of runs that were killed. To be asked for under the folder's lock, before this run begins."""
    known = {path.stem: recall(path) for path in folder.glob("*.json")}
    return sorted(run for run, facts in known.items() if isinstance(facts, dict) and facts.get("run") == run)


def jobs_of(runs: Iterable[str]) -> dict[str, str] | None:
    """{job id: state} of the jobs of these runs that are not over; None where SLURM does not answer."""
    told = command("squeue", "--noheader", "--name", ",".join(runs), "--format=%i %T")
    return None if told is None else dict(line.split()[:2] for line in told.splitlines() if len(line.split()) > 1)


def deal_with_left_behind(say: Say, cancels: bool, folder: Path = RUNS, wait_s: float = CANCEL_S) -> None:
    """Cancel the jobs of killed runs and wait until they have ended (they store what is complete). cancels: False only tells.

    UserError where SLURM cannot say whether there are any, or where they do not end.
    """
    runs = left_behind(folder)
    if not runs:
        return
    running = jobs_of(runs)
    names = listed(runs)
    silent = UserError(
        f"SLURM does not answer, and jobs of a killed run may still be with it ({names}). Run snakemake again once it does"
    )
    if running is None and cancels:
        raise silent
    if running and not cancels:
        say(
            f"jobs {listed(sorted(running))} of a killed run are still with SLURM (`scancel --name {','.join(runs)}` ends them)"
        )
        return
    if running:
        say(f"cancelling jobs {listed(sorted(running))} of a killed run; what they finished is stored")
        command("scancel", "--name", ",".join(runs))
        start = time.monotonic()
        while (running := jobs_of(runs)) != {}:
            if time.monotonic() - start > wait_s:
                if running is None:
                    raise silent
                raise UserError(
                    f"jobs {listed(sorted(running))} of a killed run do not end. See `squeue --name {','.join(runs)}`"
                )
            time.sleep(1)
    if running is not None:
        for run in runs:
            end_run(run, folder)
