"""What goes wrong on a cluster: each run ends in time, says what happened to which job and where its log is, and the next one
goes on from what is stored.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import CLUSTER, HERE, ClusterProject, Lab, Started, out, submissions, until

import tiny
from amygdala.segments import held_rows
from project import Run

pytestmark = [pytest.mark.end_to_end, pytest.mark.slurm]
STORED = re.compile(r"^\S+ (\d+) unique texts, (\d+) in the store, (\d+) to forward$", re.MULTILINE)
TEXTS = 420


def slow(batch_s: float = 0.6) -> dict[str, str]:
    """Environment of a capture of some 60 batches that takes so long for each."""
    return {"PYTHONPATH": str(HERE / "slow"), "SLOW_BATCH_S": str(batch_s)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> ClusterProject:
    """A project in which only the capture is left to do."""
    project = ClusterProject.make(
        tmp_path_factory.mktemp("prepared") / "project",
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


@pytest.fixture(scope="module")
def late(
    lab: Lab, prepared: ClusterProject, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ClusterProject, Started]]:
    """A capture that gets a minute, the least that SLURM knows, and takes longer. It is waited for by the last test."""
    project = prepared.copy(tmp_path_factory.mktemp("late") / "project")
    project.configure(cluster={**CLUSTER, "gpu": {**CLUSTER["gpu"], "runtime": 1}})
    with project.started("activations", "--retries", "0", **slow(4)) as started:
        yield project, started


@pytest.fixture
def project(prepared: ClusterProject, late: object, tmp_path: Path) -> ClusterProject:
    return prepared.copy(tmp_path / "project")


def log_of(project: ClusterProject) -> str:
    """What the capture says, of its latest try; empty before the first."""
    return "".join(path.read_text() for path in project.folder.glob("logs/activations/*.log"))


def begun(lab: Lab, project: ClusterProject, started: Started) -> str:
    """The SLURM id of the run's capture, once that is among its batches."""
    job = started.prints(r"SLURM jobid (\d+)")[1]
    until(lambda: lab.running().get(job) == "RUNNING", 120, "the job does not start")
    until(lambda: f"SLURM job {job} " in log_of(project) and "loading layers" in log_of(project), 120, "it does not get so far")
    time.sleep(3)
    return job


def rows_stored(project: ClusterProject) -> int:
    """Texts that segments of the store hold."""
    spaces = [path.parent for path in project.folder.glob("store/activations/*/layer_*")]
    return len(held_rows(spaces[0], 1).digests) if spaces else 0


def went_on(project: ClusterProject, stored: int) -> None:
    """The latest try found `stored` texts and left them alone."""
    unique, found, forwarded = map(int, STORED.findall(log_of(project))[0])
    assert (unique, found, forwarded) == (TEXTS, stored, TEXTS - stored)


def told(run: Run, state: str) -> str:
    """The line that names the job, its state and its log; the log is there."""
    found = re.search(rf"SLURM-job '(\d+)', .*? ended as {state}\..* Log: (\S+\.log)", run.text)
    assert found, run.text[-5000:]
    assert found[1] in submissions(run) and Path(found[2]).is_file()
    return found[1]


def nothing_left(project: ClusterProject) -> None:
    assert not submissions(project.run("activations").ok())
    assert not list((project.folder / ".snakemake/amygdala.slurm").iterdir())


def test_a_failing_script_is_not_tried_again(lab: Lab, project: ClusterProject) -> None:
    """It fails for a reason of its own: the job has a GPU, and torch none, which is no reason to go on without."""
    project.configure(device="auto")
    run = project.run("activations")
    assert run.status == 1
    assert len(submissions(run)) == 1 and [job.state for job in lab.jobs(run.text)] == ["FAILED"]
    told(run, "FAILED")
    assert "error: device: SLURM gave this job a GPU ('0'), but torch" in run.text  # of the rule's own log, shown
    project.configure(device="cpu")
    assert len(submissions(project.run("activations").ok())) == 1
    went_on(project, 0)


def test_out_of_memory_is_tried_again_with_more(lab: Lab, project: ClusterProject) -> None:
    project.configure(cluster={**CLUSTER, "gpu": {**CLUSTER["gpu"], "mem_mb": 300}})
    run = project.run("activations", "--retries", "4").ok()
    told(run, "OUT_OF_MEMORY")
    assert "It took more memory than it had asked for" in run.text and "mem_mb='300'" in run.text
    jobs = lab.jobs(run.text)
    assert [job.memory for job in jobs] == [f"{300 * (number + 1)}M" for number in range(len(jobs))]
    assert len(jobs) > 1 and jobs[-1].state == "COMPLETED"
    assert len(re.findall("ended as OUT_OF_MEMORY", run.text)) == len(jobs) - 1
    nothing_left(project)


def test_cancelled_then_killed_then_interrupted_then_without_a_controller(lab: Lab, project: ClusterProject) -> None:
    """Each run goes on where the one before was broken off; no text is forwarded twice."""
    with project.started("activations", **slow()) as started:
        job = begun(lab, project, started)
        out("scancel", job)
        run = started.ends(120)
    assert run.status == 1 and told(run, "CANCELLED") == job
    assert submissions(run) == [job]
    first = rows_stored(project)
    assert 0 < first < TEXTS

    with project.started("activations", **slow()) as started:
        job = begun(lab, project, started)
        started.process.kill()
    assert lab.running()[job] == "RUNNING"
    went_on(project, first)

    with project.started("activations", **slow()) as started:
        again = begun(lab, project, started)
        assert f"cancelling jobs '{job}' of a killed run" in started.text
        assert job not in lab.running()
        second = rows_stored(project)
        assert second > first
        went_on(project, second)
        os.kill(started.process.pid, signal.SIGINT)
        run = started.ends(60)
    assert run.status != 0
    until(lambda: again not in lab.running(), 30, "the job goes on")
    assert not list((project.folder / ".snakemake/amygdala.slurm").iterdir())
    third = rows_stored(project)
    assert second < third < TEXTS

    with project.started("activations", **slow()) as started:
        job = begun(lab, project, started)
        lab.kill_controller()
        try:
            time.sleep(30)
            assert started.process.poll() is None
        finally:
            lab.start_again()
        run = started.ends().ok()
    assert "of a killed run" not in run.text and submissions(run) == [job]
    went_on(project, third)
    nothing_left(project)


def test_out_of_time(lab: Lab, late: tuple[ClusterProject, Started]) -> None:
    project, started = late
    run = started.ends()
    assert run.status == 1
    job = told(run, "TIMEOUT")
    assert [(job.id, job.minutes) for job in lab.jobs(run.text)] == [(job, 1)]
    stored = rows_stored(project)
    assert 0 < stored < TEXTS
    assert len(submissions(project.run("activations").ok())) == 1
    went_on(project, stored)


def test_a_node_that_goes_down(lab: Lab, project: ClusterProject) -> None:
    with project.started("activations", **slow()) as started:
        job = begun(lab, project, started)
        node = next(one.node for one in lab.jobs(started.text) if one.id == job)
        out("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        try:
            run = started.ends().ok()
        finally:
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)  # unless it is back
    assert told(run, "NODE_FAIL") == job
    jobs = lab.jobs(run.text)
    assert [one.state for one in jobs] == ["NODE_FAIL", "COMPLETED"] and jobs[0].node != jobs[1].node
    nothing_left(project)
    until(lambda: "down" not in out("sinfo", "-h", "-o", "%T"), 60)
