"""Capture that is killed, short of disk or finds damaged segments, through the real Snakefile: what is kept, what made anew."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from journal import make_journal, make_project, stored
from project import Project, Run
from tiny import REPOSITORY

pytestmark = pytest.mark.end_to_end

COUNT = 400
KILLS = 10
FLUSH_ROWS, BATCH_SIZE = 8, 4
PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "envs", "profiles", "schemas")
TO_FORWARD = re.compile(r"^  (\d+) unique texts, (\d+) in the store, (\d+) to forward$", re.MULTILINE)


@pytest.fixture(scope="module")
def snakefile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository whose capture flushes every 8 rows, and is slow enough to be killed in the middle."""
    folder = tmp_path_factory.mktemp("repository")
    for part in PARTS:
        source = REPOSITORY / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    script = folder / "scripts" / "activations.py"
    text = script.read_text(encoding="utf-8")
    batch = f"{' ' * 20}made = capture.each(batch, budget, say)\n"
    assert text.count("FLUSH_ROWS = 1024\n") == 1 and text.count(batch) == 1
    text = text.replace("FLUSH_ROWS = 1024\n", f"FLUSH_ROWS = {FLUSH_ROWS}\n")
    script.write_text(text.replace(batch, f"{batch}{' ' * 20}time.sleep(0.05)\n"), encoding="utf-8")
    return folder / "Snakefile"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, snakefile: Path) -> Project:
    """A project with two poolings up to its vectors, whose capture ran through."""
    folder = tmp_path_factory.mktemp("undisturbed") / "p"
    nodes = make_journal(COUNT, longest=20)
    project = make_project(folder, tiny_model, nodes, pooling=["mean", "last"], batch_size=BATCH_SIZE)
    assert project.run("vectors", "activations", snakefile=snakefile).ok().forwarded == COUNT
    once_each(project, COUNT)
    assert len(list(project.folder.glob("store/activations/*/layer_001/*"))) == 2 * COUNT // FLUSH_ROWS
    return project


@pytest.fixture
def fresh(undisturbed: Project, tmp_path: Path) -> Project:
    """The same project with examples and without rows and vectors."""
    project = undisturbed.copy(tmp_path / "p")
    for stage in ("activations", "vectors"):
        shutil.rmtree(project.folder / "store" / stage)
    return project


def once_each(project: Project, count: int) -> None:
    """Every text has one row at each layer, in each space."""
    held = stored(project)
    assert len(held) == 4
    for where, digests in held.items():
        assert len(digests) == len(set(digests)) == count, where


def lacking(project: Project) -> int:
    """How many texts lack a row somewhere. No text may have two rows in one place."""
    held = stored(project)
    assert all(len(digests) == len(set(digests)) for digests in held.values())
    everywhere = set.intersection(*map(set, held.values())) if len(held) == 4 else set()
    return COUNT - len(everywhere)


def vectors_of(project: Project) -> dict[str, np.ndarray]:
    files = sorted(project.folder.glob("store/vectors/*/*.safetensors"))
    return {f"{path.parent.name}/{path.name}": load_file(path)["vector"].astype(np.float64) for path in files}


def same_vectors(one: Project, other: Project) -> None:
    a, b = vectors_of(one), vectors_of(other)
    assert a.keys() == b.keys() and len(a) == 6
    assert min(float(a[name] @ b[name]) for name in a) >= 0.99999


def segments(project: Project) -> int:
    return len(list(project.folder.glob("store/activations/*/layer_*/*.safetensors")))


def processes_in(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder and "State:\tZ" not in (entry / "status").read_text():
                found.append(entry.name)
        except OSError:
            continue
    return found


def wait_until(check: object, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not check():  # type: ignore[operator]
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def killed(project: Project, snakefile: Path, more_segments: int, delay_s: float, output: Path) -> str:
    """Start the capture, kill -9 all of it some time after it stored so many more segments; returns what it printed."""
    before = segments(project)
    with output.open("wb") as file:
        process = subprocess.Popen(
            project.command("--nolock", "activations", snakefile=snakefile),
            cwd=project.folder,
            env={**os.environ, "NO_COLOR": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(lambda: "loading layers" in output.read_text(), process)
            wait_until(lambda: segments(project) >= before + more_segments, process)
            time.sleep(delay_s)
            assert process.poll() is None, "the run ended before it could be killed"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    deadline = time.monotonic() + 20
    while processes_in(project.folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes_in(project.folder), "part of the run outlived the kill"
    return output.read_text()


def test_killed_at_ten_moments_and_run_again(fresh: Project, undisturbed: Project, snakefile: Path, tmp_path: Path) -> None:
    """Each run goes on where the last one was killed; at the end the store is as if nothing had happened."""
    random = np.random.default_rng(4)
    left, lefts = COUNT, []
    for number in range(KILLS):
        more, delay_s = int(random.integers(0, 13)), float(random.uniform(0, 0.15))
        text = killed(fresh, snakefile, more, delay_s, tmp_path / f"{number}.txt")
        assert TO_FORWARD.findall(text) == [(str(COUNT), str(COUNT - left), str(left))], "only what was not flushed"
        left = lacking(fresh)
        lefts.append(left)
    assert lefts == sorted(lefts, reverse=True) and lefts[-1] > 0
    assert len(set(lefts)) > KILLS / 2, "the kills fell at different moments"
    last = fresh.run("--nolock", "activations", "vectors", snakefile=snakefile).ok()
    assert last.forwarded == left == int(TO_FORWARD.findall(last.text)[0][2])
    once_each(fresh, COUNT)
    same_vectors(fresh, undisturbed)
    assert not fresh.run("--nolock", "activations", "vectors", snakefile=snakefile).ok().jobs


def damage(path: Path, how: str) -> int:
    """Spoil a segment; returns how many rows it held."""
    tensors, whole = load_file(path), path.read_bytes()
    if how == "flip":
        place = whole.index(tensors["residual"].tobytes()) + 4 * 48 + 17  # in the second row
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.unlink()
    return len(tensors["digests"])


def vectors_space(project: Project) -> Path:
    """The space of `mean`: in that of `last`, the row of a text is that of one token."""
    pooled = {
        path: load_file(next((path / "layer_002").iterdir()))["pooled"].max()
        for path in project.folder.glob("store/activations/*")
    }
    return max(pooled, key=lambda path: pooled[path])


@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
def test_of_a_damaged_segment_only_the_lost_rows_are_forwarded(
    undisturbed: Project, snakefile: Path, tmp_path: Path, how: str
) -> None:
    project = undisturbed.copy(tmp_path / "p")
    shutil.rmtree(project.folder / "store/vectors")
    segment = sorted((vectors_space(project) / "layer_002").glob("*.safetensors"))[7]
    lost = damage(segment, how)
    assert lost == FLUSH_ROWS
    others = project.bytes_of("store/activations/*/layer_*/*")
    failed = project.run("vectors", snakefile=snakefile)
    assert failed.status != 0 and "Traceback" not in failed.text
    assert f"segment {segment.relative_to(project.folder)} is damaged: " in failed.text
    assert "Run snakemake again: it computes the lost rows anew" in failed.text
    assert not segment.exists()
    mended = project.run("vectors", "activations", snakefile=snakefile).ok()
    assert mended.forwarded == lost
    once_each(project, COUNT)
    after = project.bytes_of("store/activations/*/layer_*/*.safetensors")
    name = str(segment.relative_to(project.folder))
    assert {path: after[path] for path in others if path != name} == {p: d for p, d in others.items() if p != name}
    new = after.keys() - others.keys() | (after.keys() & {name})
    assert [Path(path).parent.parent.name for path in new] == [segment.parent.parent.name] and "/layer_002/" in min(new)
    same_vectors(project, undisturbed)
    assert not project.run("vectors", snakefile=snakefile).ok().jobs


def is_whole(path: Path) -> bool:
    """Whether each row fits its checksum, the CRC-32 of digest and row."""
    tensors = load_file(path)
    rows = zip(tensors["digests"], tensors["residual"], tensors["residual_crc"], strict=True)
    return all(zlib.crc32(row.tobytes(), zlib.crc32(digest.tobytes())) == int(crc) for digest, row, crc in rows)


def on_small_disk(project: Project, snakefile: Path, kilobytes: int, targets: Sequence[str]) -> Run:
    """Run with the store on a file system with so much room, gone with the processes; the store is then what was left on it."""
    script = (
        f"mount -t tmpfs -o size={kilobytes}k tmpfs store || exit 77; cp -a kept/. store/ || exit 78; "
        '"$@"; status=$?; cp -a store/. left/; exit $status'
    )
    folder = project.folder
    (folder / "store").rename(folder / "kept")
    (folder / "store").mkdir()
    (folder / "left").mkdir()
    try:
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "--map-root-user",
                "sh",
                "-c",
                script,
                "sh",
                *project.command(*targets, snakefile=snakefile),
            ],
            cwd=folder,
            env={**os.environ, "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if done.returncode == 77 or done.stdout.startswith("unshare:"):
        pytest.skip(f"no file system may be mounted here: {done.stdout.strip()}")
    assert done.returncode != 78, done.stdout
    (folder / "store").rmdir()
    (folder / "left").rename(folder / "store")
    shutil.rmtree(folder / "kept")
    return Run(done.returncode, done.stdout)


def test_a_full_disk_while_flushing_leaves_whole_segments(fresh: Project, undisturbed: Project, snakefile: Path) -> None:
    used = int(subprocess.check_output(["du", "-sk", fresh.folder / "store"]).split()[0])
    full = on_small_disk(fresh, snakefile, used + 600, ["activations"])
    assert full.status != 0 and "Traceback" not in full.text
    assert re.search(
        r"error: cannot write store/activations/\S+: No space left on device\. Nothing was left half written\.", full.text
    )
    assert not [path for path in fresh.folder.glob("store/activations/**/*") if path.name.endswith(".tmp")]
    left = lacking(fresh)
    assert 0 < left < COUNT
    kept = fresh.bytes_of("store/activations/*/layer_*/*")
    assert all(is_whole(fresh.folder / path) for path in kept)
    assert not list(fresh.folder.glob("store/activations/*/index/*"))
    again = fresh.run("activations", "vectors", snakefile=snakefile).ok()
    assert again.forwarded == left
    assert {path: data for path, data in fresh.bytes_of("store/activations/*/layer_*/*").items() if path in kept} == kept
    once_each(fresh, COUNT)
    same_vectors(fresh, undisturbed)
