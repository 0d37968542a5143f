"""Faults: killed, interrupted, a full disk, a store that is read-only or another user's, two builds at once.

What is run next always ends with the release of a build that nothing befell. The project is as small as a build can be.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from amygdala.layout import OWN_FOLDERS
from journal import make_journal
from project import Project, Run

pytestmark = pytest.mark.end_to_end

KILLS, SEED = 20, 6
DRAW = random.Random(SEED)
MOMENTS = [(part + DRAW.random()) / KILLS for part in range(KILLS)]  # one in each twentieth, of the run's time
PATIENCE_S = 300.0  # no run here takes so long: a test that waits longer waits for something that hangs
SMALL_DISK = 8 << 20
TEMPORARY = re.compile(r"\.[^/]+\.\d+-[0-9a-f]{8}\.tmp$")
LOCK = ".snakemake/amygdala.lock"
CAPTURE_LOG = "logs/activations/*.log"  # there once the capture runs


@dataclass
class Bench:
    """started: a project whose store holds the model's weights and nothing else (making them loads torch once more); built: a
    copy of it after a whole run, which took `seconds`.
    """

    started: Project
    built: Project
    seconds: float


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    """Two emotions at one layer, 40 short texts."""
    folder = tmp_path_factory.mktemp("faults")
    started = Project.make(
        folder / "started",
        [node for node in make_journal(60, 8, 14) if not node["text"].endswith("grief:9")],
        model=str(tiny_model),
        emotions={"select": "curated", "curated": ["calm", "joy"]},
        min_examples=4,
        target_layers=[0],
    )
    started.run("weights").ok()
    shutil.rmtree(started.folder / ".snakemake")  # with the lock that tests wait for
    built = started.copy(folder / "built")
    start = time.monotonic()
    with Running(built) as run:  # as those that are killed
        run.end().ok()
    return Bench(started, built, time.monotonic() - start)


@pytest.fixture
def project(bench: Bench, tmp_path: Path) -> Project:
    return bench.started.copy(tmp_path / "p")


class Running:
    """A run in its own process group, which a test signals; what is left of the group is killed in the end."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self.project = project
        self.output = project.folder.with_name(f"{project.folder.name}.out")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                project.command(*arguments),
                cwd=project.folder,
                env={**os.environ, "NO_COLOR": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, pattern: str) -> None:
        """Wait for a file of the project."""
        deadline = time.monotonic() + PATIENCE_S
        while not list(self.project.folder.glob(pattern)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)

    def signal(self, number: int, whole_group: bool = True) -> None:
        if whole_group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def end(self) -> Run:
        return Run(self.process.wait(PATIENCE_S), self.output.read_text())

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGKILL, signal.SIGCONT):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
        self.process.wait(PATIENCE_S)


def stored(folder: Path) -> dict[str, Path]:
    """{path below the store: file} of what is made there: less memos and rates, which hold paths and times, and what the store
    keeps of its runs.
    """
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    kept = {*OWN_FOLDERS, "memo"}
    return {name: path for name, path in files.items() if name.split("/")[0] not in kept and not name.endswith("/rate.json")}


def assert_whole(folder: Path, bench: Bench) -> None:
    """Every file under a valid name is one that the undisturbed build made, with its content."""
    expected = stored(bench.built.folder / "store")
    for name, path in stored(folder).items():
        if TEMPORARY.search(name):
            continue
        assert name in expected
        if "/index/" in name:  # holds seconds
            with safe_open(path, "np") as file, safe_open(expected[name], "np") as other:
                assert set(file.keys()) == set(other.keys())
                assert all((file.get_tensor(key) == other.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118
        elif name.endswith("manifest.json"):
            assert facts(path) == facts(expected[name])
        else:
            assert path.read_bytes() == expected[name].read_bytes(), name


def facts(manifest: Path) -> dict[str, Any]:
    """A manifest less how many texts its own run forwarded (a rerun finds rows that the killed run stored) and its checksum."""
    found = json.loads(manifest.read_text())
    del found["made_from"]["sha256"]
    return {**found, "capture": {name: n for name, n in found["capture"].items() if not name.startswith("forwarded")}}


def assert_same_release(project: Project, bench: Bench, store: Path | None = None, results: str = "results") -> None:
    """The project publishes the undisturbed build's release, and its store holds all of it."""
    store = store or project.folder / "store"
    markers = [path.name for path in (project.folder / results / ".current").iterdir()]
    assert markers == [path.name for path in (bench.built.folder / "results/.current").iterdir()]
    for name in ("readout/vectors.safetensors", "quality.json", "overview.svg"):
        assert (project.folder / results / name).read_bytes() == (bench.built.folder / "results" / name).read_bytes()
    assert facts(project.folder / results / "readout/manifest.json") == facts(
        bench.built.folder / "results/readout/manifest.json"
    )
    assert stored(bench.built.folder / "store").keys() <= stored(store).keys()
    assert_whole(store, bench)


@pytest.mark.parametrize("moment", MOMENTS, ids="{:.3f}".format)
def test_killed_at_any_moment(project: Project, bench: Bench, moment: float) -> None:
    """`moment`: the share of an undisturbed run's time. Nothing has to be unlocked or removed."""
    with Running(project):
        time.sleep(moment * bench.seconds)
    assert_whole(project.folder / "store", bench)
    project.run().ok()
    assert_same_release(project, bench)


def test_killed_alone_while_its_job_goes_on(project: Project, bench: Bench) -> None:
    """The rerun makes what the orphaned job is making too."""
    with Running(project) as run:
        run.until(CAPTURE_LOG)
        run.signal(signal.SIGKILL, whole_group=False)
        assert run.process.wait(PATIENCE_S) == -signal.SIGKILL
        project.run().ok()
    assert_same_release(project, bench)


@pytest.mark.parametrize("whole_group", [True, False], ids=["as a terminal does", "the main process alone"])
def test_interrupted(project: Project, bench: Bench, whole_group: bool) -> None:
    with Running(project) as run:
        run.until(CAPTURE_LOG)
        run.signal(signal.SIGINT, whole_group)
        ended = run.end()
    assert ended.status not in (0, None)
    assert not (project.folder / "results").exists()
    assert_whole(project.folder / "store", bench)
    project.run().ok()
    assert_same_release(project, bench)


def test_a_second_run_in_the_folder_is_told_who_works_there(project: Project, bench: Bench) -> None:
    """What runs no job is not held up; a run in the folder that ends leaves nothing behind."""
    with Running(project) as run:
        run.until(CAPTURE_LOG)
        run.signal(signal.SIGSTOP)
        second = project.run()
        assert second.status != 0 and not second.jobs
        assert second.text.count(f"another run works in this folder: process {run.process.pid} on ") == 1
        assert "Traceback" not in second.text
        assert project.run("--dry-run").ok().jobs
        project.run("--summary").ok()
        run.signal(signal.SIGCONT)
        assert run.end().status == 0, run.output.read_text()
    assert_same_release(project, bench)
    assert not project.run().ok().jobs


def test_two_builds_at_once_on_one_store(bench: Bench, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(bench.started.folder / "store", store)
    projects = [bench.started.copy(tmp_path / name) for name in ("one", "two")]
    for project in projects:
        project.configure(store=str(store))
    with Running(projects[0]) as one, Running(projects[1]) as two:
        one.end().ok()
        two.end().ok()
    for project in projects:
        assert_same_release(project, bench, store)
    assert not [name for name in stored(store) if TEMPORARY.search(name)]


def test_a_run_takes_nothing_away_that_another_made_after_it_was_planned(project: Project, bench: Bench) -> None:
    """Another build that has read a name in the store may go on reading it."""
    with Running(project) as run:
        run.until(LOCK)
        run.signal(signal.SIGSTOP)
        shutil.copytree(bench.built.folder / "store", project.folder / "store", dirs_exist_ok=True)
        missed: set[Path] = set()
        watched = list(stored(bench.built.folder / "store"))
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                missed.update(path for path in (project.folder / "store" / name for name in watched) if not path.exists())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            run.signal(signal.SIGCONT)
            assert "Quality figures" in run.end().ok().jobs, "planned before the files were there"
        finally:
            done.set()
            watcher.join()
    assert not missed
    assert_same_release(project, bench)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, room: int = 0) -> Callable[[], None]:
    """Leave `room` bytes at most; returns what makes room again."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            file.truncate(max(filler.stat().st_size - room, 0))
    return filler.unlink


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_under_the_store(project: Project, bench: Bench, disk: Path) -> None:
    """Full from the start (memos cannot be kept), then with half the room that the build takes."""
    store = disk / "store"
    shutil.move(project.folder / "store", store)
    project.configure(store=str(store))
    make_room = fill(disk)
    assert project.run("--dry-run").ok().jobs
    make_room()
    make_room = fill(disk, (size_of(bench.built.folder / "store") - size_of(store)) // 2)
    full = project.run()
    assert full.status != 0 and "Traceback" not in full.text
    told = re.findall(
        r"^error: cannot write (\S+): No space left on device\. Nothing was left half written\.$", full.text, re.M
    )
    assert len(told) == 1 and Path(told[0]).is_relative_to(store)
    assert not [name for name in stored(store) if TEMPORARY.search(name)]
    assert_whole(store, bench)
    make_room()
    project.run().ok()
    assert_same_release(project, bench, store)


def test_a_full_disk_under_the_results(bench: Bench, tmp_path: Path, disk: Path) -> None:
    project = bench.built.copy(tmp_path / "p")
    make_room = fill(disk)
    arguments = ("--config", f"results={disk}/shown")
    full = project.run(*arguments)
    assert full.status != 0 and "Traceback" not in full.text
    assert full.text.count(f"error: cannot write {disk}/shown/readout/vectors.safetensors: No space left on device") == 1
    assert not [path for path in (disk / "shown").rglob("*") if path.is_file()]
    make_room()
    project.run(*arguments).ok()
    assert_same_release(project, bench, results=f"{disk}/shown")


def test_a_full_disk_under_the_project(bench: Bench, tmp_path: Path, disk: Path) -> None:
    """Neither Snakemake's own files nor the jobs' logs find room: no job is started."""
    project = bench.built.copy(disk / "p")
    store = tmp_path / "store"
    shutil.move(project.folder / "store", store)
    shutil.rmtree(project.folder / "results")
    project.configure(store=str(store))
    make_room = fill(disk)
    for arguments in ([], ["--dry-run"]):  # Snakemake writes in a dry run too
        full = project.run(*arguments)
        assert full.status != 0 and not full.jobs
        assert full.text.count(f"cannot write in '{project.folder}/.snakemake': No space left on device") == 1
        assert len(full.text.strip().splitlines()) <= 6, full.text
    make_room()
    project.run().ok()
    assert_same_release(project, bench, store)


def test_a_read_only_store(bench: Bench, tmp_path: Path, disk: Path) -> None:
    project = bench.built.copy(tmp_path / "p")
    store = disk / "store"
    shutil.move(project.folder / "store", store)
    project.configure(store=str(store))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert not project.run().ok().jobs
    assert project.run("--config", "results=elsewhere").ok().jobs == {"Publish readout in elsewhere/readout": 1}
    assert_same_release(project, bench, store, results="elsewhere")
    project.configure(target_layers=[0, 1])
    refused = project.run()
    assert refused.status != 0 and not refused.jobs and "Traceback" not in refused.text
    assert (
        len(re.findall(rf"cannot write '{store}/\S+' and \d+ more files: '{store}/\S+' is read-only here", refused.text)) == 1
    )


def test_files_of_another_user_in_the_store(bench: Bench, tmp_path: Path) -> None:
    """They can be read, their folders written: a batch that lacks one file is made, and the others are left as they are."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root, and setpriv to go without its powers")
    project = bench.built.copy(tmp_path / "p")
    [lost] = project.folder.glob("store/figures/joy.*/layer_000.json")
    expected = lost.read_bytes()
    lost.unlink()
    for path in (project.folder / "store").rglob("*"):
        os.chown(path, 12345, 12345)
        path.chmod(0o777 if path.is_dir() else 0o644)
    before = {path: path.stat().st_mtime_ns for path in stored(project.folder / "store").values()}
    (project.folder / "graph.jsonl").touch()
    powers = "--bounding-set=-dac_override,-dac_read_search,-fowner"
    done = subprocess.run(
        ["setpriv", powers, "--inh-caps=-all", *project.command(str(lost.relative_to(project.folder)))],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert lost.read_bytes() == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before
