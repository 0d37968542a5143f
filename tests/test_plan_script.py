"""What a build will cost on a cluster: what it submits, asks for and forwards, in lines and as JSON."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import plan
import tiny
from amygdala.changes import Forward
from project import Project
from tiny import REPOSITORY

CLUSTER: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))["cluster"]
RATE = {"chars_per_token": 4.0, "tokens_per_s": 100.0, "load_s": 30.0, "device": "cuda"}
LIGHT_ASKS = {"cpus_per_task": 4, "mem_mb": 8000, "runtime": 60}


def cluster(**changes: Any) -> dict[str, Any]:
    found = copy.deepcopy(CLUSTER)
    for name, value in changes.items():
        found[name] = {**found[name], **value} if isinstance(value, dict) else value
    return found


def files(folder: Path, missing: list[str], shards: int = 2) -> dict[str, list[str]]:
    """Two files of each stage; of those that are missing, one is not there."""
    found: dict[str, list[str]] = {}
    for stage in ("model", "before", *(f"shard {shard}" for shard in range(shards)), "after"):
        paths = [folder / f"{stage}.{number}" for number in range(2)]
        for path in paths[: 1 if stage in missing else 2]:
            path.touch()
        found[stage] = [str(path) for path in paths]
    return found


ALL = ["before", "shard 0", "shard 1", "after"]


def forward(texts: int = 100, chars: int = 48000, rate: dict[str, Any] | None = RATE, unique: int = 500) -> Forward:
    """With this rate 12,000 tokens: 120 s, and 30 s to load the model."""
    return Forward(texts, unique, chars, rate)


def planned(folder: Path, missing: list[str], each: list[Forward], gpus: int = 1, **changes: Any) -> list[plan.Submission]:
    return plan.submissions(cluster(**changes), gpus, 3 << 20, files(folder, missing, len(each)), each)


def test_nothing_to_submit(tmp_path: Path) -> None:
    found = planned(tmp_path, [], [forward(0, 0)])
    assert found == [] and list(plan.lines(found)) == ["nothing to submit: all of the readout is stored"]
    assert plan.report(found) == {"submissions": []}


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        (["model"], ["the model, converted"]),
        (["before"], ["snapshot, texts and examples"]),
        (["after"], ["vectors, heads, quality and the release"]),
        (["shard 1"], ["capture of shard 1"]),
        (["shard 0", "after"], ["capture of shard 0", "vectors, heads, quality and the release"]),
    ],
)
def test_only_what_lacks_a_file_is_submitted(tmp_path: Path, missing: list[str], what: list[str]) -> None:
    assert [one.what for one in planned(tmp_path, missing, [forward(), forward()])] == what


def test_a_model_that_a_job_converts_has_memory_for_it(tmp_path: Path) -> None:
    (found,) = planned(tmp_path, ["model"], [forward()], light={"run": "here"})
    assert (found.asks, found.here) == ({**LIGHT_ASKS, "mem_mb": 8000 + 3 * 3}, False)  # weights of 3 MiB


def test_without_a_rate(tmp_path: Path) -> None:
    each = [forward(rate=None), forward(40, rate=None)]
    found = planned(tmp_path, ALL, each, account="lab", gpu={"partition": "gpu", "model": "a100"}, partition="main")
    assert [one.gpu_seconds for one in found] == [0.0, None, None, 0.0]
    gpu_asks = "slurm_account='lab', slurm_partition='gpu', gpu=1, cpus_per_gpu=4, gpu_model='a100', mem_mb=4006, runtime=240"
    light = "slurm_account='lab', slurm_partition='main', cpus_per_task=4, mem_mb=8000, runtime=60"
    none = "no earlier capture with these settings to estimate the time from"
    assert list(plan.lines(found)) == [
        "4 submissions, 2 of them with GPUs",
        f"  snapshot, texts and examples: {light}",
        f"  capture of shard 0: {gpu_asks}",
        f"    texts: 100 of 500 to forward; {none}",
        f"  capture of shard 1: {gpu_asks}",
        f"    texts: 40 of 500 to forward; {none}",
        f"  vectors, heads, quality and the release: {light}",
        f"texts: 140 of 1000 to forward; {none}",
        "GPU time asked for: 480 minutes at most",
    ]


def test_with_a_rate(tmp_path: Path) -> None:
    """Shard 0: 12,000 tokens, 150 s; shard 1: nothing to forward; 2 GPUs each."""
    found = planned(tmp_path, ALL, [forward(), forward(0, 0)], gpus=2)
    assert [one.gpu_seconds for one in found] == [0.0, 300.0, 0.0, 0.0]
    assert [one.asks["runtime"] for one in found] == [60, 28, 20, 60]
    assert [one.gpu_minutes_asked for one in found] == [0, 56, 40, 0]
    lines = list(plan.lines(found))
    assert lines[0] == "4 submissions, 2 of them with GPUs"
    assert lines[3] == (
        "    texts: 100 of 500 to forward, about 12000 tokens: 2 min 30 s at the last capture's 100 tokens/s (cuda); "
        "loading the model took 30 s"
    )
    assert lines[5] == "    texts: 0 of 500 to forward; the model is not loaded"
    assert lines[-3:] == [
        "texts: 100 of 1000 to forward, about 12000 tokens; the model is loaded 1 times: "
        "about 2 min 30 s at the last capture's 100 tokens/s (cuda)",
        "GPU time expected: 5 min 00 s",
        "GPU time asked for: 96 minutes at most",
    ]


def test_rows_that_are_there_need_an_index_alone(tmp_path: Path) -> None:
    lines = list(plan.lines(planned(tmp_path, ["shard 0"], [forward(0, 0)])))
    assert lines[0] == "1 submissions, 1 of them with GPUs"
    assert lines[-3:] == [
        "texts: 0 of 500 to forward, about 0 tokens; the model is loaded 0 times",
        "GPU time expected: 0 s",
        "GPU time asked for: 20 minutes at most",
    ]


def test_without_a_gpu(tmp_path: Path) -> None:
    found = planned(tmp_path, ["shard 0"], [forward()], gpus=0, gpu={"model": "a100", "cpus": 9})
    assert found[0].asks == {"cpus_per_task": 9, "mem_mb": 4006, "runtime": 28}
    lines = list(plan.lines(found))
    assert lines[0] == "1 submissions, 0 of them with GPUs" and not any("GPU time" in line for line in lines)


def test_light_jobs_that_stay_here(tmp_path: Path) -> None:
    found = planned(tmp_path, ["before", "shard 0", "after"], [forward()], light={"run": "here"})
    assert [one.here for one in found] == [True, False, True]
    lines = list(plan.lines(found))
    assert lines[:2] == [
        "1 submissions, 1 of them with GPUs",
        "  snapshot, texts and examples: here, where snakemake runs",
    ]
    assert "  vectors, heads, quality and the release: here, where snakemake runs" in lines


def test_no_text_is_forwarded_where_no_capture_is_missing(tmp_path: Path) -> None:
    lines = list(plan.lines(planned(tmp_path, ["after"], [forward(0, 0)])))
    assert lines[0] == "1 submissions, 0 of them with GPUs" and lines[2:] == [
        "no text is forwarded, and the model is not loaded"
    ]


@pytest.mark.parametrize(("shards", "more"), [(8, None), (9, 1), (30, 22)])
def test_of_many_shards_the_first_are_shown_and_all_counted(tmp_path: Path, shards: int, more: int | None) -> None:
    missing = [f"shard {shard}" for shard in range(shards)] + ["after"]
    lines = list(plan.lines(planned(tmp_path, missing, [forward()] * shards)))
    assert lines[0] == f"{shards + 1} submissions, {shards} of them with GPUs"
    assert sum(line.startswith("  capture of shard") for line in lines) == 8
    assert [line for line in lines if "…" in line] == ([] if more is None else [f"  … and {more} captures more"])
    assert sum(line.startswith("  vectors") for line in lines) == 1
    assert f"texts: {100 * shards} of {500 * shards} to forward, about {12000 * shards} tokens" in lines[-3]
    assert f"the model is loaded {shards} times: about {plan.duration(150 * shards)} at" in lines[-3]
    assert lines[-1] == f"GPU time asked for: {28 * shards} minutes at most"


def test_hostile_names_are_shown_quoted(tmp_path: Path) -> None:
    found = planned(tmp_path, ALL, [forward(), forward()], partition="\x1b[2J\n$(rm)", account="x" * 200)
    lines = list(plan.lines(found))
    assert all(line.isprintable() for line in lines)
    assert r"slurm_partition='\x1b[2J\n$(rm)'" in lines[1] and "x" * 81 not in lines[1]


def test_the_report_is_json_with_the_figures(tmp_path: Path) -> None:
    found = planned(tmp_path, ["before", "shard 0"], [forward()])
    report = json.loads(json.dumps(plan.report(found), allow_nan=False))
    before, capture = report["submissions"]
    assert before == {
        "what": "snapshot, texts and examples",
        "asks": LIGHT_ASKS,
        "forward": None,
        "here": False,
        "gpu_seconds": 0.0,
    }
    assert capture["gpu_seconds"] == 150.0
    assert capture["asks"] == {"gpu": 1, "cpus_per_gpu": 4, "mem_mb": 4006, "runtime": 28}
    assert capture["forward"] == {"texts": 100, "unique": 500, "chars": 48000, "rate": RATE, "tokens": 12000, "seconds": 150.0}
    unknown = plan.report(planned(tmp_path, ["shard 0"], [forward(rate=None)]))["submissions"]
    assert unknown[-1]["gpu_seconds"] is unknown[-1]["forward"]["seconds"] is None


# Through the real Snakefile


@pytest.mark.end_to_end
def test_before_a_build_after_it_and_after_a_change(tmp_path: Path, tiny_model: Path) -> None:
    project = Project.make(
        tmp_path / "project",
        tiny.sample_nodes()[:200],
        model=str(tiny_model),
        device="cpu",
        emotions={"select": "curated", "curated": ["calm", "joy"]},
        min_examples=4,
        target_layers=[1],
        shards=2,
    )

    def told() -> tuple[list[str], list[dict[str, Any]]]:
        run = project.run("--cores", "1", "plan").ok()
        written = json.loads((project.folder / "results/plan.json").read_text())
        return [line[2:] for line in run.text.splitlines() if line.startswith("  ")], written["submissions"]

    lines, found = told()
    assert lines[0] == "4 submissions, 0 of them with GPUs" and len(found) == 4
    unique = [one["forward"]["unique"] for one in found if one["forward"]]
    assert [one["forward"]["texts"] for one in found if one["forward"]] == unique and all(unique)
    assert f"texts: {sum(unique)} of {sum(unique)} to forward; no earlier capture" in "\n".join(lines)

    assert project.run().ok().forwarded == sum(unique) == project.manifest()["capture"]["unique_texts"]
    lines, found = told()
    assert lines[0] == "nothing to submit: all of the readout is stored" and not found

    joyful = next(node["key"] for node in project.nodes() if re.search(r"\bjoy:(9|10)\b", node["text"]))
    project.edit(joyful, lambda text: "That morning began with rain. " + text)
    lines, found = told()
    # The shard of the old text, if it is another, gets an index without it.
    texts = [one["forward"]["texts"] for one in found if one["forward"]]
    assert sorted(texts) in ([1], [0, 1]) and len(found) == 2 + len(texts)
    assert re.search(
        r"^texts: 1 of \d+ to forward, about \d+ tokens; the model is loaded 1 times: about .* \(cpu\)$", "\n".join(lines), re.M
    )
    assert project.run().ok().forwarded == 1
