"""SLURM's executor, mended: it loses no jobs, tries again what that can help, and says what became of a job."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from amygdala import slurm
from amygdala.errors import UserError
from fakeslurm import Clock, FakeSlurm, StubJob, ask, executor_of, fresh_plugin, group_of, info, workflow_of
from tiny import REPOSITORY

PATIENCE_S, UNLISTED_S = 600.0, 60.0


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake", monkeypatch)
    fake.tell("sacctmgr", out="lab\n")
    return fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of the mends alone; what they know of SLURM begins anew."""
    clock = Clock()
    monkeypatch.setattr(slurm, "time", clock)
    monkeypatch.setattr(slurm, "watch", slurm.Watch())
    return clock


@pytest.fixture
def plugin(cluster: FakeSlurm, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = fresh_plugin(monkeypatch)
    slurm.mend(module, PATIENCE_S, UNLISTED_S)
    return module


@pytest.fixture
def executor(plugin: ModuleType, cluster: FakeSlurm, tmp_path: Path) -> Any:
    made = executor_of(plugin, tmp_path)
    cluster.calls()
    return made


def seen(executor: Any) -> tuple[int, int]:
    """(jobs that were reported as done, as failed)"""
    scheduler = executor.workflow.scheduler
    return len(scheduler.done), len(scheduler.failed)


# What is asked, and how often


def test_a_module_is_mended_once(plugin: ModuleType) -> None:
    before = {name: getattr(plugin.Executor, name) for name in ("check_active_jobs", "run_job", "cancel", "report_job_error")}
    query = plugin.query_job_status
    slurm.mend(plugin)
    assert {name: getattr(plugin.Executor, name) for name in before} == before and plugin.query_job_status is query


def test_the_plugin_that_snakemake_uses_is_left_alone_here() -> None:
    import snakemake_executor_plugin_slurm as used

    assert not hasattr(used.Executor, "mended")


@pytest.mark.parametrize(
    ("quiet", "least", "seconds"), [(0, 10, 10), (100, 10, 10), (200, 10, 20), (600, 10, 60), (9e9, 10, 60), (9e9, 90, 90)]
)
def test_seconds_between_checks(quiet: float, least: float, seconds: float) -> None:
    assert slurm.between_checks(quiet, least) == seconds


def test_the_checks_grow_rarer_until_a_job_ends(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    jobs = [info(StubJob(), "7"), info(StubJob(), "8")]
    cluster.tell("squeue", "7|RUNNING\n8|PENDING\n")
    ask(executor, [])
    waits = []
    for _ in range(5):
        assert ask(executor, jobs) == jobs
        waits.append(executor.next_seconds_between_status_checks)
        clock.sleep(200)
    assert waits == [1, 20, 40, 60, 60]
    cluster.tell("squeue", "7|COMPLETED\n8|RUNNING\n")
    assert ask(executor, jobs) == jobs[1:] and executor.next_seconds_between_status_checks == 1
    assert seen(executor) == (1, 0)


def test_squeue_is_asked_also_where_the_accounting_might_be(executor: Any, cluster: FakeSlurm) -> None:
    """The plugin falls back to sacct where MinJobAge is short."""
    cluster.tell("scontrol", "MinJobAge = 2 sec\n")
    cluster.tell("squeue", "7|RUNNING\n")
    assert len(ask(executor, [info(StubJob())])) == 1
    calls = cluster.calls()
    assert len(calls) == 1 and calls[0].startswith(f"squeue --format=%i|%T --states=all --noheader --name {executor.run_uuid}")


def test_without_a_setting_of_the_first_wait(plugin: ModuleType, cluster: FakeSlurm, tmp_path: Path) -> None:
    executor = executor_of(plugin, tmp_path)
    executor.workflow.executor_settings.init_seconds_before_status_checks = None
    assert ask(executor, []) == []
    assert executor.next_seconds_between_status_checks == slurm.LEAST_BETWEEN_CHECKS_S


# SLURM does not answer


def test_while_slurm_is_silent_all_jobs_are_kept_and_one_line_a_minute_says_so(
    executor: Any, cluster: FakeSlurm, clock: Clock
) -> None:
    jobs = [info(StubJob(), "7"), info(StubJob(), "8")]
    cluster.fails("squeue")
    for _ in range(20):
        assert ask(executor, jobs) == jobs
        clock.sleep(25)
    warnings = executor.logger.of("warning")
    assert warnings[0] == "SLURM does not answer since 25 s. Jobs '7', '8' go on by themselves; asked again"
    assert [int(line.split("since ")[1].split()[0]) for line in warnings] == [25, 100, 175, 250, 325, 400, 475]
    assert seen(executor) == (0, 0) and not slurm.watch.unsure

    # It answers: the time starts anew with the next silence.
    cluster.tell("squeue", "7|RUNNING\n8|RUNNING\n")
    assert ask(executor, jobs) == jobs
    cluster.fails("squeue")
    for _ in range(3):
        clock.sleep(PATIENCE_S / 3)
        assert ask(executor, jobs) == jobs


def test_after_long_silence_each_job_ends_with_a_message(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    jobs = [info(StubJob(), "7", "logs/7.log"), info(StubJob(), "8", "logs/8.log")]
    cluster.fails("squeue")
    assert ask(executor, jobs) == jobs
    clock.sleep(PATIENCE_S + 1)
    assert ask(executor, jobs) == []
    assert seen(executor) == (0, 2) and slurm.watch.unsure
    for job, number in zip(jobs, "78", strict=True):
        (message,) = job.job.errors
        assert message.startswith(
            f"SLURM has not answered for 10 minutes. SLURM-job '{number}' may still run, and stores what it finishes. "
            "Once SLURM answers, run snakemake again: it ends that job and goes on from there. "
        )
        assert not job.job.tried_again


def test_without_the_mends_jobs_are_forgotten(cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither kept nor reported: Snakemake waits for ever. Where this fails, the plugin has mended itself."""
    executor = executor_of(fresh_plugin(monkeypatch), tmp_path)
    cluster.fails("squeue", "sacct")
    assert ask(executor, [info(StubJob())]) == [] and seen(executor) == (0, 0)


def test_without_the_mends_an_unlisted_job_is_waited_for_for_ever(
    cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.tell("scontrol", "MinJobAge = 300 sec\n")
    executor = executor_of(fresh_plugin(monkeypatch), tmp_path)
    cluster.tell("squeue", "1|RUNNING\n")
    cluster.calls()
    for _ in range(5):
        assert len(ask(executor, [info(StubJob())])) == 1 and seen(executor) == (0, 0)
    assert not cluster.calls("sacct")


def test_a_query_that_succeeds_at_the_second_try_is_no_silence(executor: Any, cluster: FakeSlurm) -> None:
    count = f"echo >> {cluster.folder}/count; [ $(wc -l < {cluster.folder}/count) -gt 1 ] || exit 1"
    cluster.tell("squeue", "7|COMPLETED\n", do=count)
    assert ask(executor, [info(StubJob())]) == [] and seen(executor) == (1, 0)


def test_an_error_of_the_check_itself_leaves_the_run_on_record(
    executor: Any, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It ends the run (the executor's thread is gone) and cancels nothing."""
    cluster.tell("squeue", "7|FAILED\n")
    slurm.begin_run("amygdala_1", tmp_path / "runs")
    with pytest.raises(AttributeError):
        ask(executor, [info(None)])
    slurm.end_run_surely("amygdala_1", tmp_path / "runs")
    assert slurm.left_behind(tmp_path / "runs") == ["amygdala_1"]


def test_a_silence_is_over_where_no_job_is_left_to_ask_for(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    jobs = [info(StubJob())]
    cluster.fails("squeue")
    assert ask(executor, jobs) == jobs and ask(executor, []) == []
    clock.sleep(PATIENCE_S + 1)
    assert ask(executor, jobs) == jobs and seen(executor) == (0, 0)


# How jobs end


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ("CANCELLED by 0", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("CANCELLED", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
        ("NODE_FAIL", "NODE_FAIL"),
        ("RUNNING", "RUNNING"),
        ("COMPLETED", "COMPLETED"),
        ("SOMETHING+", "SOMETHING"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_states_as_slurm_writes_them(told: str, state: str) -> None:
    assert slurm.state_in(told) == state


@pytest.mark.parametrize(
    ("told", "state", "again"),
    [
        ("FAILED", "FAILED", False),
        ("CANCELLED by 0", "CANCELLED", False),
        ("CANCELLED+", "CANCELLED", False),
        ("DEADLINE", "DEADLINE", False),
        ("OUT_OF_MEMORY", "OUT_OF_MEMORY", True),
        ("OUT_OF_ME+", "OUT_OF_MEMORY", True),
        ("TIMEOUT", "TIMEOUT", True),
        ("NODE_FAIL", "NODE_FAIL", True),
        ("BOOT_FAIL", "BOOT_FAIL", True),
    ],
)
@pytest.mark.parametrize("kind", ["job", "group"])
def test_which_jobs_are_tried_again(executor: Any, cluster: FakeSlurm, told: str, state: str, again: bool, kind: str) -> None:
    one = StubJob(message="Capture of shard 0", mem_mb=300, gpu=1)
    job = one if kind == "job" else group_of(one, StubJob("vectors"))
    cluster.tell("squeue", f"7|{told}\n")
    assert ask(executor, [info(job)]) == [] and executor.workflow.scheduler.failed == [job]
    assert (job.restart_times > job.attempt - 1) == again
    # Of a group Snakemake prints the jobs, and not what it was told of them.
    message = one.errors[0] if kind == "job" else executor.logger.of("error")[0]
    name = "Capture of shard 0" if kind == "job" else "group vectors ('activations', 'vectors')"
    assert message.startswith(f"SLURM-job '7', {name}, ended as {state}. ")
    assert "It had asked for mem_mb='300', runtime='" in message and "gpu='1'" in message
    assert " Log: logs/7.log" in message
    assert executor.logger.of("error") == ([] if kind == "job" else [message])


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ("OUT_OF_MEMORY", "cluster.gpu.mem_mb or cluster.light.mem_mb gives more"),
        ("TIMEOUT", "cluster.gpu.runtime or cluster.light.runtime gives more"),
        ("NODE_FAIL", "Its node went down"),
        ("CANCELLED", "run snakemake again to go on from there"),
        ("PREEMPTED", "Another job took its place"),
        ("FAILED", "Its own log says why"),
        ("REVOKED", "Its own log says why"),
    ],
)
def test_advice(state: str, advice: str) -> None:
    assert advice in slurm.advice(state)


def test_a_step_out_of_memory_that_shows_as_a_failure_is_tried_again(executor: Any, cluster: FakeSlurm) -> None:
    job = StubJob()
    cluster.tell("squeue", "7|FAILED\n")
    cluster.tell("sacct", "FAILED\nFAILED\nOUT_OF_MEMORY\n")
    ask(executor, [info(job)])
    assert "ended as OUT_OF_MEMORY. It took more memory" in job.errors[0] and job.tried_again
    assert cluster.calls("sacct")[-1] == "sacct --jobs 7 --noheader --parsable2 --format=State"


@pytest.mark.parametrize("status", [1, None])
def test_without_an_accounting_a_failure_is_one(executor: Any, cluster: FakeSlurm, status: int | None) -> None:
    """It fails, or hangs."""
    job = StubJob()
    cluster.tell("squeue", "7|FAILED\n")
    if status:
        cluster.tell("sacct", "OUT_OF_MEMORY\n", status=status)
    else:
        cluster.tell("sacct", "RUNNING\n")
    ask(executor, [info(job)])
    assert "ended as FAILED. Its own log says why." in job.errors[0] and not job.tried_again


def test_commands_that_are_not_there_or_hang_have_no_answer(cluster: FakeSlurm) -> None:
    assert slurm.command("no-such-command-at-all") is None
    cluster.tell("sacct", "FAILED\n", do="sleep 5")
    assert slurm.command("sacct", timeout=0.1) is None
    cluster.tell("sacct", "FAILED\n")
    assert slurm.command("sacct") == "FAILED\n"


def test_a_preempted_job_that_slurm_puts_back_is_waited_for(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    jobs = [info(StubJob())]
    for state in ("PREEMPTED", "PENDING", "RUNNING", "PREEMPTED", "PENDING"):
        cluster.tell("squeue", f"7|{state}\n")
        assert ask(executor, jobs) == jobs
        clock.sleep(100)
    assert seen(executor) == (0, 0)


# Jobs that SLURM no longer lists


def unlisted(executor: Any, cluster: FakeSlurm, clock: Clock, job: Any, job_id: str = "7") -> list[Any]:
    """A job that squeue does not list, for longer than it may."""
    jobs = [info(job, job_id)]
    cluster.tell("squeue", "1|RUNNING\n")
    for _ in range(2):
        assert ask(executor, jobs) == jobs
        assert seen(executor) == (0, 0) and not cluster.calls("sacct")
        clock.sleep(UNLISTED_S / 2)
    clock.sleep(1)
    return ask(executor, jobs)


def test_an_unlisted_job_that_the_accounting_has_as_completed(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    cluster.tell("sacct", "COMPLETED\nCOMPLETED\n")
    assert unlisted(executor, cluster, clock, StubJob(output=[Path("not/there")])) == []
    assert seen(executor) == (1, 0) and not slurm.watch.unlisted


@pytest.mark.parametrize(("told", "again"), [("FAILED", False), ("CANCELLED by 0", False), ("NODE_FAIL", True)])
def test_an_unlisted_job_that_the_accounting_has_as_failed(
    executor: Any, cluster: FakeSlurm, clock: Clock, tmp_path: Path, told: str, again: bool
) -> None:
    cluster.tell("sacct", f"{told}\n")
    job = StubJob(output=[tmp_path])  # what is there does not make it a success
    assert unlisted(executor, cluster, clock, job) == []
    assert seen(executor) == (0, 1) and f"ended as {told.split()[0]}. " in job.errors[0] and job.tried_again == again


@pytest.mark.parametrize("told", ["PENDING", "RUNNING", "COMPLETING"])
def test_an_unlisted_job_that_the_accounting_has_as_going_on(
    executor: Any, cluster: FakeSlurm, clock: Clock, told: str
) -> None:
    cluster.tell("sacct", f"{told}\n")
    assert len(unlisted(executor, cluster, clock, StubJob())) == 1 and seen(executor) == (0, 0)


@pytest.mark.parametrize("accounting", ["knows nothing", "fails"])
@pytest.mark.parametrize("there", [True, False])
def test_an_unlisted_job_that_nobody_knows_goes_by_its_files(
    executor: Any, cluster: FakeSlurm, clock: Clock, tmp_path: Path, accounting: str, there: bool
) -> None:
    if accounting == "fails":
        cluster.tell("sacct", "COMPLETED\n", status=1)
    (tmp_path / "one").touch()
    job = StubJob(output=[tmp_path / "one", *([] if there else [tmp_path / "two"])])
    assert unlisted(executor, cluster, clock, job) == []
    assert seen(executor) == ((1, 0) if there else (0, 1))
    if not there:
        assert "SLURM does not know it any more, and not all of its files are there." in job.errors[0] and job.tried_again


def test_a_job_that_is_listed_again_has_its_time_anew(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    jobs = [info(StubJob(output=[Path("not/there")]))]
    for listed in ("", "7|RUNNING\n", "", "silent", ""):
        if listed == "silent":
            cluster.fails("squeue")
        else:
            cluster.tell("squeue", listed)
        assert ask(executor, jobs) == jobs
        clock.sleep(UNLISTED_S + 1)
    assert ask(executor, jobs) == [] and seen(executor) == (0, 1)


def test_tasks_of_an_array_that_wait_are_listed_together(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    jobs = [info(StubJob(), "7_3"), info(StubJob(), "7_4")]
    cluster.tell("squeue", "7_3|RUNNING\n7_[4-9]|PENDING\n")
    for _ in range(3):
        assert ask(executor, jobs) == jobs
        clock.sleep(UNLISTED_S + 1)
    assert not cluster.calls("sacct") and seen(executor) == (0, 0)
    assert not slurm._lists(["17_[1-5]", "70", "7_30"], "7_3") and not slurm._lists(["7_[1-5]"], "7")


# Submission


def test_a_job_is_submitted_once_the_controller_answers(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    done = cluster.folder / "asked"
    cluster.tell("scontrol", do=f"echo >> {done}; [ $(wc -l < {done}) -gt 3 ] || exit 1")
    cluster.tell("sbatch", "77\n")
    executor.run_job(StubJob(message="Capture of shard 0"))
    assert [job.external_jobid for job in executor.active_jobs] == ["77"]
    calls = cluster.calls()
    assert calls[:4] == ["scontrol ping"] * 4 and clock.now == 1006
    (submitted,) = [line for line in calls if line.startswith("sbatch")]
    assert f"--job-name {executor.run_uuid}" in submitted and "-A lab" in submitted and "-t 5" in submitted
    assert executor.logger.of("warning") == ["SLURM does not answer: Capture of shard 0 is submitted once it does"]


def test_patience_with_a_controller_ends(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    """Then sbatch says so itself, and another try may help."""
    job = StubJob()
    clock.pace = 20
    cluster.fails("scontrol", "sbatch")
    executor.run_job(job)
    assert clock.now >= 1000 + PATIENCE_S and seen(executor) == (0, 1)
    assert "Unable to contact slurm controller" in job.errors[0] and job.tried_again


@pytest.mark.parametrize(
    ("told", "again"),
    [
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Zero Bytes were transmitted or received", True),
        ("slurm_receive_msg: Insane message length", True),
        ("invalid partition specified: nope", False),
        ("Batch job submission failed: Invalid account or account/partition combination specified", False),
        ("Batch job submission failed: Requested node configuration is not available", False),
    ],
)
@pytest.mark.parametrize("kind", ["job", "group"])
def test_which_submissions_are_tried_again(executor: Any, cluster: FakeSlurm, told: str, again: bool, kind: str) -> None:
    one = StubJob()
    job = one if kind == "job" else group_of(one, StubJob("vectors"))
    cluster.tell("sbatch", err=f"sbatch: error: {told}\n", status=1)
    executor.run_job(job)
    assert executor.workflow.scheduler.failed == [job] and not executor.active_jobs
    assert (job.restart_times > job.attempt - 1) == again
    message = one.errors[0] if kind == "job" else executor.logger.of("error")[0]
    assert message.startswith("SLURM sbatch failed. ") and told in message
    assert not cluster.calls("sacct")  # there is no job to ask for


@pytest.mark.parametrize("kind", ["job", "group"])
def test_what_slurm_took_without_an_answer_is_not_run_twice(executor: Any, cluster: FakeSlurm, kind: str) -> None:
    one = StubJob()
    job = one if kind == "job" else group_of(one, StubJob("vectors"))
    cluster.tell("sbatch", err="Batch job submission failed: Socket timed out on send/recv operation", status=1)
    executor.run_job(job)
    assert not cluster.calls("scancel")
    cluster.tell("sbatch", out="8")
    cluster.tell("squeue", out=f"7 rule_{job.name}\n6 rule_{job.name}_wildcards_0\n5 (null)\n4\n")
    executor.run_job(job)
    assert cluster.calls("scancel") == ["scancel 7"]
    assert "as '7' without an answer: cancelled and submitted anew" in executor.logger.of("warning")[-1]
    assert [info.external_jobid for info in executor.active_jobs] == ["8"]
    executor.run_job(StubJob("other"))  # of whose submission there was no doubt
    assert not cluster.calls("scancel")


@pytest.mark.parametrize("kind", ["job", "group"])
def test_an_account_that_slurm_does_not_know_is_told(executor: Any, cluster: FakeSlurm, kind: str) -> None:
    one = StubJob()
    job = one if kind == "job" else group_of(one, StubJob("vectors"))
    cluster.tell("sacctmgr", "another\n")
    executor.run_job(job)
    assert executor.workflow.scheduler.failed == [job] and job.restart_times <= job.attempt - 1
    message = one.errors[0] if kind == "job" else executor.logger.of("error")[-1]
    assert message.startswith("Job submission failed with exception: The given account lab appears to be invalid.")


def test_without_the_mends_a_group_with_a_wrong_account_is_waited_for_for_ever(
    cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error handler stumbles over the group, in a thread that nobody looks after."""
    executor = executor_of(fresh_plugin(monkeypatch), tmp_path)
    cluster.tell("sacctmgr", "another\n")
    with pytest.raises(AttributeError):
        executor.run_job(group_of(StubJob()))
    assert seen(executor) == (0, 0)


# Cancelling


def test_cancelling_ends_what_was_being_submitted_too(executor: Any, cluster: FakeSlurm) -> None:
    executor.active_jobs.append(info(StubJob(), "7"))
    executor.cancel()
    assert cluster.calls("scancel") == ["scancel 7", f"scancel --name {executor.run_uuid}"]
    assert slurm.watch.cancelled and not slurm.watch.unsure
    executor.run_job(StubJob())
    assert not cluster.calls("sbatch") and len(executor.active_jobs) == 1


def test_waiting_for_a_controller_ends_with_the_run(executor: Any, cluster: FakeSlurm, clock: Clock) -> None:
    cluster.fails("scontrol")
    sleep = clock.sleep

    def cancelled(seconds: float) -> None:
        sleep(seconds)
        slurm.watch.cancelled = True

    clock.sleep = cancelled  # type: ignore[method-assign]
    executor.run_job(StubJob())
    assert clock.now == 1002 and not cluster.calls("sbatch") and seen(executor) == (0, 0)


def test_a_cancelling_that_fails_leaves_the_run_on_record(executor: Any, cluster: FakeSlurm, tmp_path: Path) -> None:
    from snakemake_interface_common.exceptions import WorkflowError

    slurm.begin_run(executor.run_uuid, tmp_path / "runs")
    executor.active_jobs.append(info(StubJob(), "7"))
    cluster.fails("scancel")
    with pytest.raises(WorkflowError, match="Unable to cancel jobs"):
        executor.cancel()
    assert slurm.watch.unsure
    (line,) = executor.logger.of("warning")
    assert f"`scancel --name {executor.run_uuid}`, or run snakemake again" in line
    slurm.end_run_surely(executor.run_uuid, tmp_path / "runs")
    assert slurm.left_behind(tmp_path / "runs") == [executor.run_uuid]


# All of it, with the executor's own thread


def test_a_job_from_submission_through_a_silence_to_its_end(
    cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "watch", slurm.Watch())
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    plugin = fresh_plugin(monkeypatch)
    slurm.mend(plugin)
    cluster.tell("sbatch", "77\n")
    cluster.fails("squeue")
    workflow = workflow_of(plugin, tmp_path, status_attempts=1)
    executor = plugin.Executor(workflow, executor_of(plugin, tmp_path).logger)
    executor.format_job_exec = lambda job: "true"
    job = StubJob()

    def until(true: Any) -> None:
        end = time.monotonic() + 20
        while not true():
            assert time.monotonic() < end and not workflow.scheduler.broken, workflow.scheduler.broken
            time.sleep(0.02)

    try:
        executor.run_jobs([job])
        until(lambda: workflow.scheduler.submitted)
        until(lambda: slurm.watch.silent_since)
        cluster.tell("squeue", "77|COMPLETED\n")
        until(lambda: workflow.scheduler.done)
    finally:
        executor.shutdown()
    assert workflow.scheduler.done == [job] and not workflow.scheduler.failed and not workflow.scheduler.broken
    assert slurm.watch.silent_since is None and not slurm.watch.unsure


# Job groups


def group_resources(*jobs: StubJob) -> dict[str, Any]:
    resources = group_of(*jobs).resources
    return {name: resources.get(name) for name in ("_cores", "cpus_per_task", "mem_mb", "runtime", "mem", "slurm_partition")}


def test_a_group_asks_for_what_its_largest_job_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from snakemake.jobs import GroupJob

    small: dict[str, Any] = {"cpus_per_task": 4, "mem_mb": 8000, "runtime": 60, "_cores": 4, "slurm_partition": "main"}
    jobs = [StubJob(**small), StubJob(**{**small, "mem_mb": 9000}), StubJob(**{**small, "runtime": 90})]
    assert group_resources(*jobs)["runtime"] == 210  # what Snakemake makes of it
    monkeypatch.setattr(GroupJob, "resources", GroupJob.resources)
    monkeypatch.setattr(GroupJob, "shared", None, raising=False)
    del GroupJob.shared
    slurm.share_what_groups_ask_for()
    patched = GroupJob.resources
    slurm.share_what_groups_ask_for()
    assert GroupJob.resources is patched
    assert group_resources(*jobs) == {
        "_cores": 4,
        "cpus_per_task": 4,
        "mem_mb": 9000,
        "runtime": 90,
        "mem": None,
        "slurm_partition": "main",
    }

    # Another try asks for what its jobs then do.
    group = group_of(*jobs)
    assert group.resources.mem_mb == 9000
    for job in jobs:
        job.resources.mem_mb *= 2
    assert group.resources.mem_mb == 9000
    group.attempt = 2
    assert group.resources.mem_mb == 18000


# Before a run


def test_commands_that_are_not_on_this_machine_are_named(cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cluster.bin))
    with pytest.raises(UserError, match=r"^SLURM's srun cannot be found on this machine: type this on a login node"):
        slurm.check_commands()
    (cluster.bin / "srun").symlink_to(cluster.bin / "squeue")
    slurm.check_commands()
    (cluster.bin / "squeue").rename(cluster.bin / "gone")
    with pytest.raises(UserError, match=r"^SLURM's squeue, srun cannot be found"):
        slurm.check_commands()


# Jobs that a killed run left behind


@pytest.fixture
def runs(tmp_path: Path, clock: Clock) -> Path:
    """The folder of a project in which two runs were killed."""
    folder = tmp_path / ".snakemake" / "runs"
    for run in ("amygdala_2", "amygdala_1"):
        slurm.begin_run(run, folder)
    return folder


def deal(runs: Path, cancels: bool = True) -> list[str]:
    said: list[str] = []
    slurm.deal_with_left_behind(said.append, cancels, runs)
    return said


def test_a_run_is_on_record_until_it_ends(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "runs"
    assert slurm.left_behind(folder) == []
    slurm.begin_run("amygdala_1", folder)
    assert slurm.left_behind(folder) == ["amygdala_1"]
    slurm.end_run_surely("amygdala_1", folder)
    assert slurm.left_behind(folder) == [] and not list(folder.iterdir())
    slurm.end_run("amygdala_1", folder)  # twice is no error


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '"amygdala_3"', '{"run": "other"}', '{"run": 3}', "\x00\xff"])
def test_damaged_records_are_no_runs(runs: Path, content: str) -> None:
    (runs / "amygdala_3.json").write_text(content)
    (runs / "other.txt").write_text("{}")
    assert slurm.left_behind(runs) == ["amygdala_1", "amygdala_2"]


def test_where_no_run_was_killed_slurm_is_not_asked(cluster: FakeSlurm, tmp_path: Path, clock: Clock) -> None:
    cluster.fails("squeue")
    assert deal(tmp_path / "none") == [] and not cluster.calls()


@pytest.mark.parametrize("cancels", [True, False])
def test_killed_runs_without_jobs_are_forgotten(cluster: FakeSlurm, runs: Path, cancels: bool) -> None:
    assert deal(runs, cancels) == [] and not list(runs.iterdir())
    assert cluster.calls() == ["squeue --noheader --name amygdala_1,amygdala_2 --format=%i %T"]


def test_jobs_of_killed_runs_are_cancelled_and_waited_for(cluster: FakeSlurm, runs: Path, clock: Clock) -> None:
    """They store what is complete; now and then SLURM does not answer."""
    told = cluster.folder
    cluster.tell("squeue", do=f"[ -f {told}/left ] || exit 0; echo '9 RUNNING'; echo '10 PENDING'")
    (told / "left").touch()
    cluster.tell("scancel", do=f"echo 'rm {told}/left {told}/squeue.do; exit 1' > {told}/next; mv {told}/next {told}/squeue.do")
    assert deal(runs) == ["cancelling jobs '10', '9' of a killed run; what they finished is stored"]
    assert not list(runs.iterdir()) and clock.now == 1001
    assert [line.split()[0] for line in cluster.calls()] == ["squeue", "scancel", "squeue", "squeue"]


def test_silence_about_jobs_of_killed_runs_is_an_error(cluster: FakeSlurm, runs: Path) -> None:
    cluster.fails("squeue")
    with pytest.raises(UserError, match="SLURM does not answer, and jobs of a killed run may still be with it"):
        deal(runs)
    assert len(list(runs.iterdir())) == 2 and not cluster.calls("scancel")


def test_silence_after_they_were_cancelled_is_an_error(cluster: FakeSlurm, runs: Path, clock: Clock) -> None:
    told = cluster.folder
    clock.pace = 20
    cluster.tell("squeue", "9 RUNNING\n")
    cluster.tell("scancel", do=f"echo 1 > {told}/squeue.status")
    with pytest.raises(UserError, match="SLURM does not answer, and jobs of a killed run may still be with it"):
        deal(runs)
    assert len(list(runs.iterdir())) == 2 and clock.now > 1000 + slurm.CANCEL_S


def test_jobs_of_killed_runs_that_do_not_end_are_an_error(cluster: FakeSlurm, runs: Path, clock: Clock) -> None:
    clock.pace = 20
    cluster.tell("squeue", "9 COMPLETING\n")
    with pytest.raises(UserError, match=r"jobs '9' of a killed run do not end\. See `squeue --name amygdala_1,amygdala_2`"):
        deal(runs)
    assert len(list(runs.iterdir())) == 2 and clock.now > 1000 + slurm.CANCEL_S


def test_a_run_on_this_machine_only_tells_of_them(cluster: FakeSlurm, runs: Path) -> None:
    cluster.tell("squeue", "9 RUNNING\n")
    assert deal(runs, cancels=False) == [
        "jobs '9' of a killed run are still with SLURM (`scancel --name amygdala_1,amygdala_2` ends them)"
    ]
    cluster.fails("squeue")
    assert deal(runs, cancels=False) == []
    assert len(list(runs.iterdir())) == 2 and not cluster.calls("scancel")


def test_a_run_on_a_machine_without_slurm_goes_on(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert deal(runs, cancels=False) == [] and len(list(runs.iterdir())) == 2
    with pytest.raises(UserError, match="SLURM does not answer"):
        deal(runs)


# SIGTERM

PARENT = """
import signal, subprocess, sys, threading
from snakemake.scheduling.job_scheduler import JobScheduler
from amygdala import slurm

if {mended}:
    slurm.pass_on_terminate()
    slurm.pass_on_terminate()
scheduler = object.__new__(JobScheduler)
scheduler._lock, scheduler._open_jobs, scheduler._user_kill = threading.Lock(), threading.Semaphore(0), None
signal.signal(signal.SIGTERM, scheduler.exit_gracefully)
script = subprocess.Popen(["sh", "-c", sys.executable + " child.py; echo shell $?"])
if {locked}:
    scheduler._lock.acquire()
script.wait()
print("parent", scheduler._user_kill)
"""
CHILD = """
import signal, sys, time
def stop(*_):
    print("script told", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("locked", [False, True])
def test_sigterm_reaches_the_script(tmp_path: Path, locked: bool) -> None:
    """The shell between them stays, and Snakemake learns of it; also while its main thread holds the lock that its own handler
    waits for.
    """
    (tmp_path / "child.py").write_text(CHILD)
    code = PARENT.format(mended=True, locked=locked)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == "ready\n"
            parent.send_signal(signal.SIGTERM)
            assert parent.stdout.readline() == "script told\n"
            assert parent.stdout.readline() == "shell 5\n"
            if not locked:
                assert parent.stdout.readline() == "parent graceful\n" and parent.wait(10) == 0
        finally:
            parent.kill()


def test_names_of_jobs() -> None:
    assert slurm.named(StubJob("vectors")) == "vectors"
    assert slurm.named(StubJob("vectors", "Vectors of joy")) == "Vectors of joy"
    many = group_of(*(StubJob(f"rule{number}") for number in range(5)))
    assert slurm.named(many) == "group vectors ('rule0', 'rule1', 'rule2' and 2 more)"
    assert re.fullmatch(r"mem_mb='100', runtime='5', slurm_partition='main'", slurm.asks_for(StubJob()))
