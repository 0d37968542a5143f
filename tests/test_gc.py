"""`gc` through the real Snakefile: three releases of one workflow and one of another on the same store."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import garbage as script
import tiny
from amygdala.files import recall
from amygdala.roots import root_id
from project import Project, Run

pytestmark = pytest.mark.end_to_end
ONLY_ONE = {"keep": 1, "releases": [], "grace_days": 0}


class Shared:
    """Two project folders beside one store. releases: of `first`, the oldest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first, self.second = Project(folder / "first"), Project(folder / "second")
        self.releases: list[str] = []

    def files(self) -> dict[str, bytes]:
        """{path: bytes} of the store, less roots and memos, which each run may write."""
        store = self.folder / "store"
        files = {path.relative_to(store).as_posix(): path for path in sorted(store.rglob("*")) if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items() if not name.startswith(("roots/", "memo/"))}


CURATED = {"select": "curated", "curated": ["calm", "joy"]}


def release_of(project: Project) -> str:
    return project.path("results/.current/readout.*").name.removeprefix("readout.")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Shared:
    shared = Shared(tmp_path_factory.mktemp("gc"))
    nodes = tiny.sample_nodes()[:400]
    given: dict[str, Any] = {
        "model": str(tiny_model),
        "max_examples_per_emotion": 30,
        "store": "../store",
        "target_layers": [1],
    }
    Project.make(shared.second.folder, nodes, emotions={**CURATED, "curated": ["calm"]}, gc=ONLY_ONE, **given)
    Project.make(shared.first.folder, nodes, emotions=CURATED, gc=ONLY_ONE, **given)
    first = shared.first
    first.run().ok()
    shared.releases.append(release_of(first))
    assert not shared.second.run().ok().forwarded
    joy = next(n["key"] for n in nodes if re.search(r"\bjoy:(9|10)", n["text"]) and len(n["text"]) > 60)
    first.edit(joy, lambda text: "This opening is new. " + text)
    first.run().ok()
    shared.releases.append(release_of(first))
    first.configure(emotions={**CURATED, "curated": ["calm"]})
    first.run().ok()
    shared.releases.append(release_of(first))
    assert len(set(shared.releases)) == 3
    return shared


def token_of(run: Run) -> str:
    found = re.search(
        r"nothing was deleted\. To delete these \d+ files: snakemake --cores 1 gc --config gc_confirm=(\S+)", run.text
    )
    assert found, run.text
    return found[1]


def test_a_dry_run_leaves_no_root(built: Shared) -> None:
    before = sorted((built.folder / "store/roots").rglob("*"))
    built.first.run("--dry-run", "--config", "results=others").ok()
    assert sorted((built.folder / "store/roots").rglob("*")) == before and len(before) == 2 + 3 + 1


def test_shown_confirmed_deleted_and_built_again_beside_another_gc(built: Shared) -> None:
    first, second, before = built.first, built.second, built.files()
    shown = first.run("gc").ok()
    assert built.files() == before
    token = token_of(shown)
    report = recall(first.folder / "results/gc.json")
    assert report["token"] == token and report["deleted"] is None
    assert {(one["release"], one["why"]) for one in report["kept"]} == {
        (built.releases[2], "the last build"),
        (release_of(second), "the last build"),
    }
    wrong = first.run("gc", "--config", "gc_confirm=delete-0123456789ab").ok()
    assert "confirms another list" in wrong.text and token_of(wrong) == token
    assert built.files() == before

    done = first.run("gc", "--config", f"gc_confirm={token}").ok()
    assert f"deleted {len(report['dead'])} files" in done.text
    after = built.files()
    assert set(before) - set(after) == {path for path in report["dead"] if not path.startswith("memo/")}
    assert all(before[path] == content for path, content in after.items())
    gone = {path.split("/")[1] for path in report["dead"] if path.startswith("releases/")}
    assert gone == set(built.releases[:2])
    assert not any(path.startswith(("examples/joy.", "vectors/joy.")) for path in after)
    again = first.run("gc").ok()
    assert "nothing to delete" in again.text

    assert not first.run().ok().jobs and not second.run().ok().jobs

    # Back to the first release: what is gone is made again, while the other workflow's gc runs all the time.
    first.configure(emotions=CURATED)
    nodes = tiny.sample_nodes()[:400]
    first.write_nodes(nodes)
    foreseen = first.run("--dry-run").ok().jobs
    assert foreseen["Vectors of joy"] == foreseen["Activations of shard 0 at layers 1"] == 1
    store, own = str(built.folder / "store"), root_id(second.folder / "results")
    with subprocess.Popen(
        first.command(), cwd=first.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as build:
        collected = 0
        while build.poll() is None:
            found = script.collect(store, {**ONLY_ONE, "keep": 0}, own, None, lambda line: None)
            done_beside = script.collect(store, {**ONLY_ONE, "keep": 0}, own, found["token"], lambda line: None)
            collected += len(done_beside["deleted"] or ())
        assert build.stdout is not None
        text = build.stdout.read()
    assert build.returncode == 0, text[-6000:]
    assert Run(0, text).jobs == foreseen
    assert release_of(first) == built.releases[0]
    rebuilt = built.files()
    stable = ("vectors/", "examples/", "heads/")
    of_first = {
        path for path in before if path.startswith(stable) or path == f"releases/{built.releases[0]}/vectors.safetensors"
    }
    of_first &= set(rebuilt)
    assert any(built.releases[0] in path for path in of_first)
    assert [path for path in of_first if rebuilt[path] != before[path]] == []
    assert not first.run().ok().jobs and not second.run().ok().jobs


def test_a_name_that_fits_no_release_stops_it(built: Shared) -> None:
    before = built.files()
    refused = built.first.run("gc", "--configfile", str(named(built.folder / "named.yaml", "ffffffff")))
    assert refused.status != 0 and "gc.releases: 'ffffffff' fits no release of the store" in refused.text
    assert built.files() == before


def named(path: Path, release: str) -> Path:
    path.write_text(f"gc:\n  releases: ['{release}']\n")
    return path
