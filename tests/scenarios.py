"""The table in docs/build.md, "What rebuilds when": its rows, and a project's run held against one of them."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import changes
from amygdala.build import Build
from amygdala.plan import Corpus
from project import Project, Run
from tiny import REPOSITORY

PAGE = (REPOSITORY / "docs/build.md").read_text(encoding="utf-8")
STAGES = {
    "snapshot": ["Snapshot of graph.jsonl"],
    "activations": ["Activations of shard 0"],
    "weights": ["Output projections and neurons"],
    "quality": ["Quality figures"],
    "release": ["Release", "Overview picture", "Publish readout"],
}
EMOTION_STAGES = {"examples": ["Examples"], "vectors, heads": ["Vectors", "Heads"], "figures": ["Figures"]}
JOB_DETAILS = re.compile(
    r"(Release) \w{16}|(Activations of shard \d+|Output projections and neurons) (?:at|of) layers .*|(Publish readout) in .*"
)


@dataclass(frozen=True)
class Row:
    """A row of the table. stages: {stage: its, all, yes, published or empty}; forwarded: which texts; test: the test's name."""

    change: str
    stages: dict[str, str]
    forwarded: str
    test: str


SECTION = PAGE.partition("\n## ")[0]  # "What rebuilds when"


def rows() -> dict[str, Row]:
    """{change: row}"""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in SECTION.splitlines() if line.startswith("|")]
    names, _, *table = lines
    found = {}
    for cells in table:
        named = dict(zip(names, cells, strict=True))
        change, forwarded, test = (named.pop(name) for name in (names[0], "texts forwarded", "test"))
        found[change] = Row(change, named, forwarded, test.strip("`"))
    assert len(found) == len(table), "two rows of the same change"
    return found


ROWS = rows()


def kinds(run: Run) -> Counter[str]:
    """The run's jobs without a release's key, layers and folders."""
    named = Counter[str]()
    for job, times in run.jobs.items():
        match = JOB_DETAILS.fullmatch(job)
        named[match[match.lastindex or 0] if match else job] += times
    return named


def expected(row: Row, every: Iterable[str], its: Iterable[str]) -> Counter[str]:
    """The jobs that the row tells, in a project of the emotions `every`, of which the change concerns `its`."""
    jobs = Counter[str]()
    for stage, cell in row.stages.items():
        if stage in EMOTION_STAGES:
            who = {"all": every, "its": its, "": ()}[cell]
            jobs.update(f"{what} of {emotion}" for what in EMOTION_STAGES[stage] for emotion in who)
        elif cell == "published":
            jobs.update(STAGES[stage][-1:])
        else:
            jobs.update({"yes": STAGES[stage], "": []}[cell])
    return jobs


def build_of(project: Project) -> Build:
    """The project's build as the Snakefile works it out."""
    settings: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((project.folder / "config.yaml").read_text(encoding="utf-8"))
    merged = {**settings, **own, "emotions": {**settings["emotions"], **own.get("emotions", {})}}
    with contextlib.chdir(project.folder):
        return Build(merged, REPOSITORY)


def texts_to_forward(project: Project) -> int:
    """The texts that `changes` says will be forwarded, by its own function: a process would cost as much as the dry run."""
    build = build_of(project)
    with contextlib.chdir(project.folder):
        index = build.current.index()
        spaces = [Path(space) for space in build.spaces]
        return changes.to_forward(index, Corpus(index, build.rules), build.emotions, build.layers, spaces, {}).texts


def holds(
    project: Project,
    change: str,
    every: Iterable[str],
    its: Iterable[str] = (),
    snakefile: Path = REPOSITORY / "Snakefile",
    foretold: int | None = None,
    until: str | None = None,
    **environment: str,
) -> Run:
    """Dry run, then run: both do what the table tells of the change, and the texts forwarded are those foretold.

    foretold: the texts that `changes` tells, where it is not the repository's own code or libraries that would tell them.
    until: a target to run no further than, as what follows costs most and is of no interest here.
    """
    row = ROWS[change]
    jobs = expected(row, every, its)
    foreseen = project.run("--dry-run", snakefile=snakefile, **environment).ok()
    assert kinds(foreseen) == jobs, foreseen.text
    to_forward = texts_to_forward(project) if foretold is None else foretold
    done = project.run(*([until] if until else []), snakefile=snakefile, **environment).ok()
    assert done.jobs <= foreseen.jobs if until else done.jobs == foreseen.jobs
    assert done.forwarded == to_forward
    texts = project.manifest()["capture"]["unique_texts"]
    assert done.forwarded == {"none": 0, "that one": 1}.get(row.forwarded, texts)
    return done
