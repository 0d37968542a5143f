"""What goes wrong on a cluster: each run ends in time, says what happened to which job and where its log is, and the next one
goes on from what is stored.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lab import CLUSTER, HERE, ClusterProject, Lab, out, submissions, until

import tiny
from project import Run

pytestmark = [pytest.mark.end_to_end, pytest.mark.slurm]
SLOW = {"PYTHONPATH": str(HERE / "slow"), "SLOW_BATCH_S": "0.3"}
STORED = re.compile(r"^\S+ (\d+) unique texts, (\d+) in the store, (\d+) to forward$", re.MULTILINE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> ClusterProject:
    """A project in which only the capture is left to do: it takes some 30 batches."""
    folder = tmp_path_factory.mktemp("prepared") / "project"
    project = ClusterProject.make(
        folder,
        tiny.sample_nodes(),
        model=str(tiny_model),
        dtype="fp32",
        device="cpu",
        target_layers=[1],
        batch_size=16,
        cluster={**CLUSTER, "light": {**CLUSTER["light"], "run": "here"}},
    )
    project.run("examples").ok()
    return project


@pytest.fixture
def project(prepared: ClusterProject, tmp_path: Path) -> ClusterProject:
    return prepared.copy(tmp_path / "project")


def capture_log(project: ClusterProject) -> str:
    return project.path("logs/activations/shard_0.*.log").read_text()


def job_runs(lab: Lab, project: ClusterProject, job: str) -> None:
    """Until the capture of this SLURM job is among its batches."""
    until(lambda: lab.running().get(job) == "RUNNING", 120, "the job does not start")
    logs = project.folder / "logs/activations"
    until(lambda: any("texts" in path.read_text() and "loading layers" in path.read_text() for path in logs.glob("*.log")), 120)
    time.sleep(3)


def ends_whole(project: ClusterProject, forwarded_before: int | None = None) -> Run:
    """The next run finishes, with nothing done twice: texts that were stored are not forwarded again."""
    run = project.run("activations").ok()
    assert len(submissions(run)) == 1
    unique, stored, forwarded = map(int, STORED.findall(capture_log(project))[0])
    assert stored + forwarded == unique == 420
    if forwarded_before is not None:
        assert stored == forwarded_before
    assert not submissions(project.run("activations").ok())
    return run


def rows_stored(project: ClusterProject) -> int:
    """Texts that segments of the store hold."""
    from amygdala.segments import held_rows

    spaces = [path.parent for path in project.folder.glob("store/activations/*/layer_*")]
    return len(held_rows(spaces[0], 1).digests) if spaces else 0


def told(run: Run, state: str) -> str:
    """The line that names the job, its state and its log; the log is there."""
    found = re.search(rf"SLURM-job '(\d+)', .*? ended as {state}\..* Log: (\S+\.log)", run.text)
    assert found, run.text[-5000:]
    assert found[1] in submissions(run) and Path(found[2]).is_file()
    return found[1]


def test_a_failing_script_is_not_tried_again(lab: Lab, project: ClusterProject) -> None:
    project.configure(device="cuda")
    run = project.run("activations")
    assert run.status == 1
    assert len(submissions(run)) == 1 and [job.state for job in lab.jobs(run.text)] == ["FAILED"]
    told(run, "FAILED")
    assert "error: device: cuda is not available here" in run.text  # of the rule's own log, shown
    project.configure(device="cpu")
    ends_whole(project, 0)


def test_a_gpu_that_torch_cannot_use_is_no_reason_for_the_cpu(lab: Lab, project: ClusterProject) -> None:
    project.configure(device="auto")
    run = project.run("activations")
    assert run.status == 1 and "SLURM gave this job a GPU ('0'), but torch" in run.text


def test_out_of_memory_is_tried_again_with_more(lab: Lab, project: ClusterProject) -> None:
    project.configure(cluster={**CLUSTER, "gpu": {**CLUSTER["gpu"], "mem_mb": 300}})
    once = project.run("activations", "--retries", "0")
    assert once.status == 1
    told(once, "OUT_OF_MEMORY")
    assert "It took more memory than it had asked for" in once.text and "mem_mb='300'" in once.text
    run = project.run("activations", "--retries", "4").ok()
    jobs = lab.jobs(run.text)
    assert [job.memory for job in jobs] == [f"{300 * (number + 1)}M" for number in range(len(jobs))]
    assert len(jobs) > 1 and jobs[-1].state == "COMPLETED"
    assert len(re.findall("ended as OUT_OF_MEMORY", run.text)) == len(jobs) - 1
    assert not submissions(project.run("activations").ok())


def test_a_cancelled_job(lab: Lab, project: ClusterProject) -> None:
    with project.started("activations", **SLOW) as started:
        job = started.prints(r"SLURM jobid (\d+)")[1]
        job_runs(lab, project, job)
        out("scancel", job)
        run = started.ends()
    assert run.status == 1 and told(run, "CANCELLED") == job
    assert len(submissions(run)) == 1
    stored = rows_stored(project)
    assert 0 < stored < 420
    ends_whole(project, stored)


def test_out_of_time(lab: Lab, project: ClusterProject) -> None:
    """SLURM counts in minutes: the capture gets one and takes longer."""
    project.configure(cluster={**CLUSTER, "gpu": {**CLUSTER["gpu"], "runtime": 1}})
    run = project.run("activations", "--retries", "0", PYTHONPATH=SLOW["PYTHONPATH"], SLOW_BATCH_S="1")
    assert run.status == 1
    job = told(run, "TIMEOUT")
    assert [(job.id, job.minutes) for job in lab.jobs(run.text)] == [(job, 1)]
    stored = rows_stored(project)
    assert 0 < stored < 420
    ends_whole(project, stored)


def test_a_node_that_goes_down(lab: Lab, project: ClusterProject) -> None:
    with project.started("activations", **SLOW) as started:
        job = started.prints(r"SLURM jobid (\d+)")[1]
        job_runs(lab, project, job)
        node = next(one.node for one in lab.jobs(started.text) if one.id == job)
        out("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        try:
            run = started.ends().ok()
        finally:
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)  # unless it is back
    assert told(run, "NODE_FAIL") == job
    jobs = lab.jobs(run.text)
    assert [one.state for one in jobs] == ["NODE_FAIL", "COMPLETED"] and jobs[0].node != jobs[1].node
    assert not submissions(project.run("activations").ok())
    until(lambda: "down" not in out("sinfo", "-h", "-o", "%T"), 60)


def test_a_controller_that_is_away_for_thirty_seconds(lab: Lab, project: ClusterProject) -> None:
    with project.started("activations", **SLOW) as started:
        job = started.prints(r"SLURM jobid (\d+)")[1]
        job_runs(lab, project, job)
        lab.kill_controller()
        try:
            time.sleep(30)
            assert started.process.poll() is None
        finally:
            lab.start_again()
        run = started.ends().ok()
    assert submissions(run) == [job]
    assert not submissions(project.run("activations").ok())


def test_snakemake_killed(lab: Lab, project: ClusterProject) -> None:
    with project.started("activations", **SLOW) as started:
        job = started.prints(r"SLURM jobid (\d+)")[1]
        job_runs(lab, project, job)
        started.process.kill()
    assert lab.running() == {job: "RUNNING"}
    run = project.run("activations").ok()
    assert f"cancelling jobs '{job}' of a killed run" in run.text
    assert [one.state for one in lab.jobs(started.text)] == ["CANCELLED"]
    unique, stored, forwarded = map(int, STORED.findall(capture_log(project))[0])
    assert stored > 0 and stored + forwarded == unique
    assert not submissions(project.run("activations").ok())
    assert not list((project.folder / ".snakemake/amygdala.slurm").iterdir())


def test_interrupted(lab: Lab, project: ClusterProject) -> None:
    with project.started("activations", **SLOW) as started:
        job = started.prints(r"SLURM jobid (\d+)")[1]
        job_runs(lab, project, job)
        os.kill(started.process.pid, signal.SIGINT)
        run = started.ends(60)
    assert run.status != 0
    until(lambda: not lab.running(), 30, "the job goes on")
    assert not list((project.folder / ".snakemake/amygdala.slurm").iterdir())
    stored = rows_stored(project)
    assert 0 < stored < 420
    again = ends_whole(project, stored)
    assert "of a killed run" not in again.text
