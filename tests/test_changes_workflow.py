"""`changes` and `selection` through the real Snakefile: what they foretell is what the build then does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tiny
from project import Project, Run

pytestmark = pytest.mark.end_to_end
EMOTIONS = ["calm", "hope", "joy"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    nodes = tiny.sample_nodes()
    project = Project.make(
        tmp_path_factory.mktemp("changes") / "project",
        nodes[:400],
        model=str(tiny_model),
        emotions={"select": "curated", "curated": EMOTIONS},
        max_examples_per_emotion=40,
        target_layers=[1],
    )
    project.run("changes").ok()
    assert json.loads((project.folder / "results/changes.json").read_text())["since"] is None
    project.run().ok()
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    return built.copy(tmp_path / "project")


def told(run: Run) -> list[str]:
    return [line[2:] for line in run.ok().text.splitlines() if line.startswith("  ")]


def found(project: Project) -> tuple[list[str], dict[str, Any]]:
    """What `changes` prints and writes."""
    lines = told(project.run("changes"))
    return lines, json.loads((project.folder / "results/changes.json").read_text())


def test_nothing_changed(project: Project) -> None:
    lines, report = found(project)
    assert lines[1:4] == [
        "nodes: 0 added, 0 changed, 0 removed (now 400, then 400)",
        "emotions: 0 of 3 rebuild",
        f"texts: 0 of {project.manifest()['capture']['unique_texts']} to forward; the model is not loaded",
    ]
    assert (report["nodes"], report["emotions"], report["rebuild"], report["settings"]) == ([], [], [], [])


def test_what_is_foretold_is_what_runs(project: Project) -> None:
    nodes = project.nodes()
    joyful = [n["key"] for n in nodes if re.search(r"\bjoy:(9|10)\b", n["text"])]
    project.edit(joyful[0], lambda text: "That morning began with rain. " + text)
    project.edit(joyful[1], lambda text: re.sub(r"\bjoy:\d+", "joy:3", text))
    project.write_nodes(
        [
            *project.nodes()[1:],
            {"key": "new\x1b[31m", "text": "A letter came, and it was the good kind, from the coast.\njoy:9"},
        ]
    )
    published = (project.folder / "results/readout/manifest.json").read_bytes()
    lines, report = found(project)
    kinds = {(change["key"], change["kind"]) for change in report["nodes"]}
    assert kinds == {("new\x1b[31m", "added"), (joyful[0], "changed"), (joyful[1], "changed"), (nodes[0]["key"], "removed")}
    assert "  + 'new\\x1b[31m'  joy:9" in "\n".join(lines) and not any("\x1b" in line for line in lines)
    joy = next(change for change in report["emotions"] if change["emotion"] == "joy")
    assert joy["state"] == "changed" and {cause.partition("/")[2] for cause in joy["causes"]} <= {key for key, _ in kinds}
    assert re.search(
        r"texts: \d+ of \d+ to forward, about \d+ tokens: .* at the last capture's \d+ tokens/s \(cpu\)", "\n".join(lines)
    )
    assert (project.folder / "results/readout/manifest.json").read_bytes() == published, "it builds nothing"
    done = project.run().ok()
    assert {job.removeprefix("Vectors of ") for job in done.jobs if job.startswith("Vectors of ")} == set(report["rebuild"])
    assert done.forwarded == report["forward"]["texts"] > 0
    assert found(project)[1]["nodes"] == []


def test_a_setting_is_named_and_going_back_rebuilds_nothing(project: Project) -> None:
    project.configure(min_positive_score=9)
    lines, report = found(project)
    assert "setting min_positive_score: '8' → '9'" in lines
    assert report["nodes"] == [] and report["rebuild"] and all(change["causes"] == [] for change in report["emotions"])
    project.run().ok()
    project.configure(min_positive_score=8)
    lines, report = found(project)
    assert report["rebuild"] == [] and "emotions: 0 of 3 rebuild" in lines
    assert any("in the store already" in line for line in lines)


def test_a_snapshot_that_is_gone_is_said(project: Project) -> None:
    stored = project.path("store/snapshots/*.jsonl")
    project.edit(project.nodes()[0]["key"], lambda text: "Again. " + text)
    stored.unlink()
    lines, report = found(project)
    assert any("is not in the store" in line for line in lines)
    assert report["nodes"] == [] and report["since"] == project.manifest()["snapshot"]["key"]


def test_selection_tells_why_and_what_is_nearly_the_same(project: Project) -> None:
    nodes = project.nodes()
    twin = {"key": "journal/twin", "text": nodes[5]["text"].replace(". ", "; ", 1) + "\nawe:2"}
    project.write_nodes([*nodes, twin])
    lines = told(project.run("selection"))
    written = json.loads((project.folder / "results/selection.json").read_text())
    assert lines[0].startswith("3 emotions get a vector")
    assert any(re.match(r"  joy +\d+/\d+ +\d+/\d+ +\d+ positives in the graph; curated$", line) for line in lines)
    assert any(re.match(r"  warmth +not in emotions.curated$", line) for line in lines)
    assert written["selection"]["joy"]["chosen"] and not written["selection"]["warmth"]["chosen"]
    alike = [sorted(group["nodes"]) for group in written["near_duplicates"]]
    assert alike == [sorted([f"file/{nodes[5]['key']}", "file/journal/twin"])]
    project.run().ok()
    manifest = project.manifest()
    assert manifest["selection"] == written["selection"]
    assert manifest["snapshot"]["near_duplicates"]["texts"] == 2
    assert manifest["snapshot"]["sources"] == {"file": 401}


def test_bad_nodes_are_skipped_and_counted_where_that_is_wanted(project: Project) -> None:
    project.write_nodes([*project.nodes(), {"key": "bad", "text": "A text that ends in a score beyond the scale.\njoy:11"}])
    refused = project.run("--dry-run")
    assert refused.status != 0 and "graph.jsonl:401: score '11' of emotion 'joy' is outside 0-10" in refused.text
    project.configure(bad_nodes="skip")
    done = project.run().ok()
    assert "1 nodes were skipped (bad_nodes), the first 'bad': score '11'" in done.text
    assert project.manifest()["snapshot"]["skipped_nodes"] == 1 and project.manifest()["snapshot"]["nodes"] == 400
