"""Builds on a real SLURM cluster: the same release as on one machine, in few submissions, with what they asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lab import CLUSTER, ClusterProject, Lab, submissions
from safetensors.numpy import load_file

import tiny
from builds import text_of
from project import Project

pytestmark = [pytest.mark.end_to_end, pytest.mark.slurm]
SETTINGS = {"target_layers": [1, 2], "dtype": "fp32", "device": "cpu"}


def vectors_of(project: Project) -> dict[str, np.ndarray]:
    return load_file(project.folder / "results/readout/vectors.safetensors")


def release_of(project: Project) -> str:
    return project.path("results/.current/readout.*").name


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """The sample graph built on this machine."""
    folder = tmp_path_factory.mktemp("here") / "project"
    project = Project.make(folder, tiny.sample_nodes(), model=str(tiny_model), **SETTINGS)
    project.run().ok()
    return project


def test_the_sample_graph_in_two_shards_on_two_nodes(lab: Lab, here: Project, tmp_path: Path, tiny_model: Path) -> None:
    cluster = {
        **CLUSTER,
        "qos": "normal",
        "gpu": {**CLUSTER["gpu"], "partition": "gpu", "constraint": "pretend", "runtime": 7},
        "light": {**CLUSTER["light"], "mem_mb": 1900},
    }
    project = ClusterProject.make(
        tmp_path / "project", tiny.sample_nodes(), model=str(tiny_model), shards=2, cluster=cluster, **SETTINGS
    )
    built = project.build()
    assert release_of(project) == release_of(here)
    for layer, expected in vectors_of(here).items():
        np.testing.assert_allclose(vectors_of(project)[layer], expected, atol=1e-6)

    jobs = lab.jobs(built.text)
    before, *captures, after = jobs
    assert [job.state for job in jobs] == ["COMPLETED"] * 4 and [job.id for job in jobs] == submissions(built)
    assert {job.node for job in captures} == {"n1", "n2"}
    assert min(job.end for job in captures) >= max(job.start for job in captures)  # side by side
    asked = {(job.memory, job.minutes, job.partition, job.account, job.qos) for job in captures}
    assert asked == {("1500M", 7, "gpu", "root", "normal")}
    assert all("gres/gpu=1" in job.tres and "cpu=1" in job.tres for job in captures)
    for job in (before, after):
        assert (job.memory, job.minutes, job.partition, job.qos) == ("1900M", 5, "main", "normal")
        assert "gpu" not in job.tres and "cpu=2" in job.tres
    for shard, log in enumerate(sorted((project.folder / "logs/activations").glob("*.log"))):
        told = log.read_text()
        assert log.name.startswith(f"shard_{shard}.")
        assert any(f"SLURM job {job.id} on {job.node}, 1 cores, GPU 0" in told for job in captures), told

    # Nothing to do is nothing to submit.
    again = project.build()
    assert not lab.jobs(again.text) and not again.jobs

    # One changed node: one submission with a GPU, and one text through the model.
    key = next(node["key"] for node in project.nodes() if "joy:9" in node["text"])
    project.edit(key, lambda text: "This opening is new. " + text)
    changed = project.build()
    jobs = lab.jobs(changed.text)
    assert ["gres/gpu" in job.tres for job in jobs] == [False, True, False]
    log = max((project.folder / "logs/activations").glob("*.log"), key=lambda path: path.stat().st_mtime)
    assert "forwarded 1 of" in log.read_text()


def test_light_jobs_may_stay_where_snakemake_runs(lab: Lab, here: Project, tmp_path: Path, tiny_model: Path) -> None:
    cluster = {**CLUSTER, "light": {**CLUSTER["light"], "run": "here"}, "gpu": {**CLUSTER["gpu"], "count": "auto"}}
    project = ClusterProject.make(tmp_path / "project", tiny.sample_nodes(), model=str(tiny_model), cluster=cluster, **SETTINGS)
    built = project.run("vectors").ok()
    (capture,) = lab.jobs(built.text)
    assert "gpu" not in capture.tres  # `device: cpu` needs none
    stored = here.bytes_of("store/vectors/*/*.safetensors")
    assert stored
    for path in stored:
        np.testing.assert_allclose(
            load_file(project.folder / path)["vector"], load_file(here.folder / path)["vector"], atol=1e-6
        )


def test_two_hundred_emotions_in_at_most_twenty_submissions_and_a_third_gpu_job_waits(
    lab: Lab, tmp_path: Path, tiny_model: Path
) -> None:
    nodes = [{"key": f"node/{i:04d}", "text": f"{text_of(i)}\nemotion{i % 200:03d}:9"} for i in range(2400)]
    project = ClusterProject.make(
        tmp_path / "project",
        nodes,
        model=str(tiny_model),
        shards=3,
        cluster={**CLUSTER, "light": {**CLUSTER["light"], "cpus": 4}},
        emotions={"select": "data", "min_positives": 10, "top": 200},
        min_examples=4,
        max_examples_per_emotion=12,
        **{**SETTINGS, "target_layers": [0, 1, 2, 3]},
    )
    built = project.run().ok()
    assert len(project.manifest()["concepts"]) == 200 and len(project.manifest()["layers"]) == 4
    jobs = lab.jobs(built.text)
    assert len(jobs) == 5 <= 20
    captures = [job for job in jobs if "gres/gpu" in job.tres]
    assert len(captures) == 3
    first_end = min(job.end for job in captures)
    assert sorted(job.start >= first_end for job in captures) == [False, False, True]
