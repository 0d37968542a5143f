"""The benchmarks start, the one for GPUs runs on a CPU too, and the jobs that they measure on are what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tiny

FOLDER = tiny.REPOSITORY / "benchmarks"
sys.path.append(str(FOLDER))

import jobs  # noqa: E402

STAGES = ["vectors", "heads", "figures", "quality"]
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py") if path.stem not in ("jobs", "contender"))


def run(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=tiny.REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_these_are_the_benchmarks() -> None:
    assert PROGRAMS == ["gpu.py", "growth.py", "large_graph.py", "limit.py", "peers.py", "quality.py"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_tells_how_it_is_run(program: str) -> None:
    assert f"python benchmarks/{program}" in run(FOLDER / program, "--help")


def test_the_gpu_benchmark_on_a_cpu() -> None:
    printed = run(FOLDER / "gpu.py", "--device", "cpu", "--shape", "tiny", "--tokens", "16", "--texts", "16")
    rows = [line.split() for line in printed.splitlines() if line[:1] == " " and line.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == [16, 64, 256, 256]
    assert all(float(row[1]) > 0 for row in rows)
    # 4 blocks of 4 * 64 * 64 for attention, 3 * 64 * 128 for the MLP and two norms of 64
    assert "0.00 billion weights in 4 blocks" in printed


def test_the_quality_benchmark_on_a_small_store() -> None:
    printed = run(FOLDER / "quality.py", "--emotions", "3", "--layers", "2", "--texts", "300", "--examples", "60")
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] and line.split()[0] in STAGES]
    assert [row[0] for row in rows] == STAGES
    assert all(float(value) > 0 for row in rows for value in row[1:])
    assert "3 emotions" in printed


def test_pairs_are_positives_and_as_many_texts_without_the_label() -> None:
    labelled = {f"text {n}": {"joy"} if n % 3 == 0 else {"calm", "grief"} if n % 3 == 1 else set() for n in range(60)}
    job = jobs.paired(labelled, seed=0, at_most=12)
    assert set(job) == {"joy", "calm", "grief"}
    for emotion, pairs in job.items():
        positives, negatives = zip(*pairs, strict=True)
        assert len(pairs) == 12 == len(set(positives)) == len(set(negatives))
        assert all(emotion in labelled[text] for text in positives)
        assert not any(emotion in labelled[text] for text in negatives)
    assert job == jobs.paired(dict(reversed(labelled.items())), seed=0, at_most=12)
    assert job != jobs.paired(labelled, seed=1, at_most=12)
    assert jobs.paired(labelled, seed=0, at_most=12, at_least=21) == {}
    unique, slots = jobs.count(job)
    assert slots == 72 and unique == len(jobs.texts_of(job)) <= 60


def test_the_goemotions_job() -> None:
    if not jobs.GOEMOTIONS.is_dir():
        pytest.skip("the GoEmotions corpus is not beside this checkout")
    job = jobs.goemotions()
    assert len(job) == 23 and "neutral" not in job
    assert max(map(len, job.values())) == 60
    assert jobs.goemotions(seed=0) == job != jobs.goemotions(seed=1)


def test_the_sample_graph_s_job() -> None:
    job = jobs.sample_graph()
    assert len(job) >= 16
    assert not [text for text in jobs.texts_of(job) if text.rstrip().split()[-1][-2:] in (":8", ":9")]
