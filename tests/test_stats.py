"""The ledger: what runs found and made is counted once each, whatever happens to them; `stats` shows it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import stats as script
import tiny
from amygdala import ledger, lock
from amygdala.files import write_json
from amygdala.recording import RunRecord, project_of
from project import Project

EMOTIONS = ["calm", "hope", "joy"]


def record(number: int, project: str = "here", status: str = "done") -> dict[str, Any]:
    """The record of a run that found `number` vectors and made one."""
    return {
        "project": project,
        "started": 1000.0 + number,
        "ended": 1001.0 + number,
        "targets": ["all"],
        "status": status,
        "runs": {status: 1},
        "kinds": {"vectors": {"hits": number, "hit_bytes": 10 * number, "made": 1, "made_bytes": 10}},
        "texts": {"found": number, "found_tokens": 0, "forwarded": 2, "forwarded_tokens": 20},
        "saved_s": {"cpu": 0.5},
    }


def sums_of(folder: Path, project: str = "here") -> dict[str, Any]:
    return dict(ledger.totals(folder)[project]["sums"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_records_add_up_by_project(folder: Path) -> None:
    for number in range(5):
        ledger.add_record(folder, record(number, "here" if number % 2 else "there"))
    here, there = sums_of(folder), sums_of(folder, "there")
    assert here == {
        "runs": {"done": 2},
        "kinds": {"vectors": {"hits": 4, "hit_bytes": 40, "made": 2, "made_bytes": 20}},
        "texts": {"found": 4, "found_tokens": 0, "forwarded": 4, "forwarded_tokens": 40},
        "saved_s": {"cpu": 1.0},
    }
    assert there["runs"] == {"done": 3} and there["kinds"]["vectors"]["hits"] == 6


def test_many_records_are_added_up_and_nothing_is_lost(folder: Path) -> None:
    for number in range(30):
        ledger.add_record(folder, record(number, "here" if number % 3 else "there", "failed" if number % 2 else "done"))
    before = ledger.totals(folder)
    ledger.fold(folder, at=30, apart=4)
    assert len(names(folder)) == 30, "not more than `at`"
    ledger.fold(folder, at=29, apart=4)
    assert len(names(folder)) == 5 and ledger.totals(folder) == before
    for number in range(30, 40):
        ledger.add_record(folder, record(number))
    before = ledger.totals(folder)
    ledger.fold(folder, at=5, apart=2)
    assert len(names(folder)) == 3 and ledger.totals(folder) == before
    assert before["there"]["last"]["started"] == 1027.0, "the last run of each project is kept"


def test_records_that_only_their_user_may_move_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder with the sticky bit."""
    for number in range(10):
        ledger.add_record(folder, record(number))
    before, move = ledger.totals(folder), Path.rename
    others = set(names(folder)[::2])

    def rename(path: Path, target: Path) -> Path:
        if path.name in others:
            raise PermissionError
        return move(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    for _ in range(2):
        ledger.fold(folder, at=1, apart=0)
        assert len(names(folder)) == 6 and others < set(names(folder))
        assert ledger.totals(folder) == before


def test_processes_that_add_up_at_once_count_each_run_once(folder: Path) -> None:
    for number in range(120):
        ledger.add_record(folder, record(number))
    before = ledger.totals(folder)
    threads = [threading.Thread(target=ledger.fold, args=(folder, 1, 0)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.totals(folder) == before
    assert not [name for name in names(folder) if name.endswith(".folding")]


@pytest.mark.parametrize("moment", ["before the sum", "after the sum"])
def test_a_kill_while_adding_up_loses_nothing_and_counts_nothing_twice(
    folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        ledger.add_record(folder, record(number))
    before = ledger.totals(folder)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((ledger, "write_json") if moment == "before the sum" else (shutil, "rmtree")), killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.fold(folder, at=1, apart=2)
    assert [name for name in names(folder) if name.endswith(".folding")]
    assert ledger.totals(folder) == before
    ledger.add_record(folder, record(20))
    before = ledger.totals(folder)
    ledger.fold(folder, at=1, apart=0)
    assert ledger.totals(folder) == before and before["here"]["sums"]["runs"] == {"done": 21}


def test_damaged_and_strange_records_are_passed_over(folder: Path) -> None:
    ledger.add_record(folder, record(3))
    (folder / "a.json").write_text('{"project": "he')
    (folder / "b.json").write_text("[1, 2]")
    write_json(folder / "c.json", {**record(5), "texts": {"found": "many"}})
    write_json(folder / "d.json", {**record(5), "started": "yesterday"})
    write_json(folder / "e.json", {"runs": {"done": 1}})
    assert sums_of(folder)["runs"] == {"done": 1}
    ledger.fold(folder, at=0, apart=0)
    assert sums_of(folder)["runs"] == {"done": 1}


def test_a_record_is_open_until_its_run_ends(folder: Path) -> None:
    path = ledger.open_record(folder, {"project": "here", "started": 1.0, "missing": ["store/a"]})
    assert [found for found, _ in ledger.open_records(folder)] == [path] and ledger.totals(folder) == {}
    ledger.end_record(path, record(1))
    assert not list(ledger.open_records(folder)) and sums_of(folder)["runs"] == {"done": 1}
    ledger.end_record(path, record(1))  # ended by another already
    assert sums_of(folder)["runs"]["done"] <= 2


class NothingToRun(list[None]):
    """What a RunRecord looks at of a workflow whose targets are there, and its graph of jobs."""

    targetjobs: list[Any]

    def __init__(self, *files: str) -> None:
        super().__init__()
        self.dag, self.scheduler, self.dryrun, self.touch = self, self, False, False
        self.dag_settings = SimpleNamespace(forceall=False, forcerun=[], forcetargets=False)
        self.targetrules, self.targetjobs, self.targetfiles = [SimpleNamespace(name="snapshot")], [], files


BUILD: Any = SimpleNamespace(
    store="store", results="results", snapshot="store/snapshots/a.jsonl", spaces=[], layers=[], selections={}
)
HOLD = "import sys; from amygdala import lock; lock.take(lock.RUN, print); print('held', flush=True); sys.stdin.read()"


def test_a_run_with_nothing_to_do_leaves_the_record_of_one_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    going: dict[str, Any] = {"project": project_of("results"), "started": 1.0, "targets": ["sweep"], "kinds": {}}
    path = ledger.open_record(tmp_path / "store/ledger", {**going, "missing": [], "indices": [], "spaces": []})
    environment = {**os.environ, "PYTHONPATH": str(tiny.REPOSITORY / "scripts")}
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        RunRecord(NothingToRun(), BUILD).leave()
        assert path.exists()
        other.communicate()
    assert sums_of(path.parent, going["project"])["runs"] == {"nothing to do": 1}
    RunRecord(NothingToRun(), BUILD).leave()
    assert sums_of(path.parent, going["project"])["runs"] == {"nothing to do": 2, "killed": 1}
    lock.take(lock.RUN, print)  # it was let go of
    lock.release(lock.RUN)


def test_a_run_that_was_started_elsewhere_is_recorded_in_its_own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store/snapshots").mkdir(parents=True)
    (tmp_path / BUILD.snapshot).write_text("1234")
    (tmp_path / "store/asked").write_text("12")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = RunRecord(NothingToRun("store/asked", "store/asked", BUILD.snapshot, "results/other"), BUILD)
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.leave()
    assert not names(tmp_path / "elsewhere") and Path.cwd() == tmp_path / "elsewhere"
    (found,) = ledger.totals(tmp_path / "store/ledger").values()
    assert over(found["sums"], "hits") == 2 and over(found["sums"], "hit_bytes") == 6


def test_sizes_count_links_as_links(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "vectors" / "joy").mkdir(parents=True)
    (store / "vectors" / "joy" / "a").write_bytes(b"12345")
    (store / "vectors" / "joy" / "b").symlink_to(store / "vectors" / "joy" / "a")
    length = len(str((store / "vectors" / "joy" / "b").readlink()))
    assert script.sizes(store) == {"vectors": {"files": 2, "bytes": 5 + length}}
    assert script.sizes(tmp_path / "nowhere") == {}


def test_the_tables_are_shown_before_any_run_and_with_hostile_names(tmp_path: Path) -> None:
    found = script.collected(tmp_path / "store", "here")
    assert found["last_run"] is None and found["store"] == ledger.empty()
    told = list(script.lines(found, {}, tmp_path / "store"))
    assert told[0] == "no run is recorded for this results folder yet"
    hostile = {**record(1), "targets": ["all\x1b[31m"], "saved_s": {"cpu\x1b": 90.0}}
    told = list(
        script.lines({"last_run": hostile, "results": hostile, "store": hostile}, {"x\x1b": {"files": 1, "bytes": 1}}, tmp_path)
    )
    assert not [line for line in told if "\x1b" in line] and any("1 min 30 s cpu" in line for line in told)


# Through the real Snakefile


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    project = Project.make(
        tmp_path_factory.mktemp("stats") / "project",
        tiny.sample_nodes()[:200],
        model=str(tiny_model),
        emotions={"select": "curated", "curated": EMOTIONS},
        max_examples_per_emotion=40,
        target_layers=[1, 2],
    )
    project.run("--dry-run").ok()
    assert not (project.folder / "store/ledger").exists(), "a dry run leaves nothing"
    project.run().ok()
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy, whose results folder has another path; its record is made that of the copy."""
    copy = built.copy(tmp_path / "project")
    for path in (copy.folder / "store/ledger").iterdir():
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "project": project_of(copy.folder / "results")}))
    return copy


def shown(project: Project) -> dict[str, Any]:
    project.run("stats").ok()
    return dict(json.loads((project.folder / "results/stats.json").read_text()))


def over(sums: dict[str, Any], name: str) -> int:
    return sum(counts.get(name, 0) for counts in sums["kinds"].values())


@pytest.mark.end_to_end
def test_first_run_no_op_and_a_changed_node(project: Project) -> None:
    texts = project.manifest()["capture"]["unique_texts"]
    first = shown(project)["last_run"]
    assert first["status"] == "done" and over(first, "hits") == 0
    assert first["texts"]["forwarded"] == texts and first["texts"]["found"] == 0
    made = {kind: counts["made"] for kind, counts in first["kinds"].items()}
    # one index and a segment a layer; a file of texts and one a layer of figures
    assert made == {
        **{"snapshots": 1, "examples": 3, "activations": 3, "vectors": 6, "weights": 2, "heads": 6, "figures": 9},
        **{"quality": 1, "releases": 2, "overviews": 1},
    }
    for kind, counts in first["kinds"].items():
        there = [data for path, data in project.bytes_of(f"store/{kind}/**/*").items() if not path.endswith("rate.json")]
        there = [data for data in there if kind != "snapshots" or data.startswith(b'{"origin"')]
        assert (counts["made"], counts["made_bytes"]) == (len(there), sum(map(len, there))), kind

    elsewhere = project.folder / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(project.command(), cwd=elsewhere, check=True, capture_output=True)
    assert not names(elsewhere)
    again = shown(project)["last_run"]
    assert again["status"] == "nothing to do" and over(again, "made") == 0
    assert over(again, "hits") == over(first, "made") - 2, "segments are counted as texts"
    assert again["texts"]["found"] == texts and again["texts"]["found_tokens"] == first["texts"]["forwarded_tokens"]
    rate = json.loads(project.path("store/activations/*/rate.json").read_text())
    assert again["saved_s"] == {"cpu": round(again["texts"]["found_tokens"] / rate["tokens_per_s"], 3)}

    node = next(n for n in project.nodes() if "calm:9" in n["text"])
    project.edit(node["key"], lambda text: "This opening is new. " + text)
    before = {stage: set(project.bytes_of(f"store/{stage}/**/*")) for stage in ("examples", "vectors", "heads", "figures")}
    done = project.run().ok()
    found = shown(project)
    for stage, old in before.items():
        new = set(project.bytes_of(f"store/{stage}/**/*")) - old
        counts = found["last_run"]["kinds"][stage]
        assert (counts.get("made", 0), counts.get("hits", 0)) == (len(new), len(old) - len(new)), stage
    assert found["last_run"]["texts"]["forwarded"] == done.forwarded == 1
    assert found["last_run"]["texts"]["found"] == texts - 1

    assert found["results"] == found["store"] and found["results"]["runs"] == {"done": 2, "nothing to do": 1}
    assert over(found["results"], "made") == over(first, "made") + over(found["last_run"], "made")
    assert found["size"]["vectors"]["bytes"] == sum(map(len, project.bytes_of("store/vectors/**/*").values()))
    records = len(list((project.folder / "store/ledger").iterdir()))
    project.run("changes").ok()
    project.run("--dry-run", "--forceall").ok()
    assert len(list((project.folder / "store/ledger").iterdir())) == records


@pytest.mark.end_to_end
def test_forced_failed_and_unwritable(project: Project, tmp_path: Path) -> None:
    project.run("snapshot", "--forceall").ok()
    forced = shown(project)["last_run"]
    assert forced["targets"] == ["snapshot"] and (over(forced, "hits"), over(forced, "made")) == (0, 1)
    second = Project.make(tmp_path / "second", project.nodes())
    (second.folder / "config.yaml").write_text((project.folder / "config.yaml").read_text())
    second.configure(store=str(project.folder / "store"), device="cuda", target_layers=[0, 1])
    assert second.run(CUDA_VISIBLE_DEVICES="").status != 0
    found = shown(second)
    assert found["last_run"]["status"] == "failed" and found["last_run"]["texts"]["forwarded"] == 0
    assert found["results"]["runs"] == {"failed": 1} and sum(found["store"]["runs"].values()) > 1
    assert found["last_run"]["kinds"]["examples"]["hits"] == 3, "another workflow's files"

    shutil.rmtree(project.folder / "store/ledger")
    (project.folder / "store/ledger").write_text("no folder")
    (project.folder / "results/readout/manifest.json").unlink()
    project.run().ok()
    project.run().ok()
    assert shown(project)["last_run"] is None


@pytest.mark.end_to_end
def test_a_killed_run_counts_with_what_it_made(built: Project, tmp_path: Path) -> None:
    project = Project.make(tmp_path / "p", built.nodes())
    (project.folder / "config.yaml").write_text((built.folder / "config.yaml").read_text())
    process = subprocess.Popen(
        project.command(), cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(project.folder.glob("store/vectors/*/*.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    project.run("--unlock").ok()
    texts = json.loads(built.path("results/readout/manifest.json").read_text())["capture"]["unique_texts"]
    found = shown(project)
    assert found["last_run"]["status"] == "running or killed" and found["last_run"]["texts"]["forwarded"] == texts
    vectors = len(list(project.folder.glob("store/vectors/*/*.safetensors")))
    assert found["last_run"]["kinds"]["vectors"]["made"] == vectors
    project.run().ok()
    found = shown(project)
    assert found["results"]["runs"] == {"killed": 1, "done": 1}
    assert found["results"]["texts"]["forwarded"] == texts == found["last_run"]["texts"]["found"]
    assert found["results"]["kinds"]["vectors"]["made"] == 6
    assert not list((project.folder / "store/ledger").glob("*.open.json"))
