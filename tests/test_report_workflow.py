"""`snakemake report` and `snakemake --report` on a tiny model: what is built, what is not built again, and what it shows."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

import tiny
from amygdala.reportfiles import FIGURES, LABELS
from project import Project

pytestmark = pytest.mark.end_to_end

EMOTIONS = ["calm", "joy"]
PUBLISHED = ["report.html", *(f"report/{name}.svg" for name in FIGURES)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """A project whose readout is built: 2 emotions, layers 1 and 2 of the tiny model."""
    project = Project.make(
        tmp_path_factory.mktemp("report") / "project",
        tiny.sample_nodes(),
        model=str(tiny_model),
        emotions={"select": "curated", "curated": EMOTIONS},
        max_examples_per_emotion=30,
        target_layers=[1, 2],
        report_texts=2,
    )
    project.run().ok()
    return project


@pytest.fixture(scope="module")
def reported(built: Project) -> Project:
    """The same with a report."""
    jobs = Counter(["Tokens of the report's texts", "Report", "Publish results/report.html"])
    assert built.build("report").jobs == jobs
    return built


def page_of(project: Project) -> str:
    return (project.folder / "results/report.html").read_text(encoding="utf-8")


def test_the_report_is_published_whole(reported: Project) -> None:
    files = {str(path.relative_to(reported.folder / "results")) for path in (reported.folder / "results").rglob("report*")}
    figures = {str(path.relative_to(reported.folder / "results")) for path in (reported.folder / "results/report").iterdir()}
    assert set(PUBLISHED) <= files | figures
    page = page_of(reported)
    for emotion in EMOTIONS:
        assert f"<bdi>{emotion}</bdi>" in page
    assert reported.manifest()["vectors_sha256"] in page
    for name in FIGURES:
        stored = reported.path(f"store/reports/*/{name}.svg")
        assert (reported.folder / f"results/report/{name}.svg").read_bytes() == stored.read_bytes()


def test_the_tokens_are_those_of_stored_rows(reported: Project) -> None:
    scored = json.loads(reported.path("store/tokens/*.json").read_text())
    assert set(scored["emotions"]) == set(EMOTIONS)
    for one in scored["emotions"].values():
        assert one["split"] == "held_out" and len(one["texts"]) == 2
        for text in one["texts"]:
            assert text["from_tokens"] == pytest.approx(text["projection"], rel=1e-4, abs=1e-4)


def test_a_second_run_does_nothing_and_a_lost_page_is_copied(reported: Project, tmp_path: Path) -> None:
    project = reported.copy(tmp_path / "project")
    assert not project.run("report").ok().jobs
    shutil.rmtree(project.folder / ".snakemake")
    for path in project.folder.rglob("*.json"):
        os.utime(path)
    assert not project.run("report").ok().jobs
    before = page_of(project)
    (project.folder / "results/report.html").unlink()
    assert project.run("report").ok().jobs == Counter(["Publish results/report.html"])
    assert page_of(project) == before


def test_other_settings_make_another_report_and_going_back_costs_a_copy(reported: Project, tmp_path: Path) -> None:
    project = reported.copy(tmp_path / "project")
    before = page_of(project)
    project.configure(report_texts=1)
    assert project.build("report").jobs == Counter(["Tokens of the report's texts", "Report", "Publish results/report.html"])
    assert page_of(project) != before
    assert not project.run().ok().jobs, "the readout is the same"
    project.configure(report_texts=2)
    assert project.run("report").ok().jobs == Counter(["Publish results/report.html"])
    assert page_of(project) == before


def test_a_report_without_texts_runs_no_model(reported: Project, tmp_path: Path) -> None:
    project = reported.copy(tmp_path / "project")
    project.configure(report_texts=0)
    project.run("report").ok()
    assert "report_texts" in page_of(project)
    assert "loading" not in (project.folder / "logs/tokens.log").read_text()


def test_snakemakes_own_report_has_the_figures_with_captions_and_needs_no_network(reported: Project, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # the discard port: whatever is asked for over HTTP fails
    environment = {"http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": ""}
    reported.run("all", "report", "--report", str(tmp_path / "all.html"), **environment).ok()
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    for label in LABELS.values():
        assert label in page, label
    for words in ("optimal leaf ordering", "texts that no vector has seen", "one page that needs nothing else"):
        assert words in page, words
    reported.run("--report", str(tmp_path / "readout.html"), **environment).ok()
    page = (tmp_path / "readout.html").read_text(encoding="utf-8")
    assert "texts that no vector has seen" in page and "optimal leaf ordering" not in page


def test_a_damaged_input_is_named(reported: Project, tmp_path: Path) -> None:
    project = reported.copy(tmp_path / "project")
    shutil.rmtree(project.folder / "store/reports")
    (project.folder / "results/report.html").unlink()
    tokens = project.path("store/tokens/*.json")
    tokens.write_text("{")
    failed = project.run("report")
    assert failed.status and f"{tokens.name} is damaged" in failed.text and "Traceback" not in failed.text
