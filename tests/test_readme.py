"""The README's commands work, and its statements of fact hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import tiny
from project import Project
from tiny import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """A folder with the names that the README uses: my-model, my-graph.jsonl, mine.yaml, their-store."""
    project = Project(tmp_path_factory.mktemp("readme"))
    (project.folder / "my-model").symlink_to(tiny_model)
    (project.folder / "their-store").mkdir()
    (project.folder / "my-graph.jsonl").write_text(tiny.SAMPLE.read_text())
    (project.folder / "mine.yaml").write_text("graph: my-graph.jsonl\nemotions:\n  curated: [envy]\n")
    return project


def test_the_two_commands_are_there() -> None:
    assert COMMANDS[:2] == ["make", "make test"]
    targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {"readout", "test"} <= set(targets)


@pytest.mark.end_to_end
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("snakemake")])
def test_each_snakemake_command_plans_a_run(project: Project, command: str) -> None:
    arguments = [word for word in shlex.split(command)[1:] if word not in ("--cores", "1", "all", "--dry-run")]
    arguments = [str(REPOSITORY / word) if word.startswith("profiles/") else word for word in arguments]
    planned = project.run("--dry-run", *arguments).ok()
    assert planned.jobs


@pytest.mark.end_to_end
def test_every_stage_named_is_a_target(project: Project) -> None:
    sentence = re.search(r"\*\*one stage\*\*: (.*?):\n", README, re.DOTALL)
    assert sentence
    stages = re.findall(r"`(\w+)`", sentence[1])
    assert len(stages) == 8
    project.run("--dry-run", *stages).ok()


def test_files_and_links_named_exist() -> None:
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (REPOSITORY / link.partition("#")[0]).exists(), link
    stages = re.search(r"a file a stage: (.*?);", README)
    assert stages
    for stage in stages[1].split(" → "):
        assert (REPOSITORY / "rules" / f"{stage}.smk").exists()


def test_the_sample_of_changes_reads_like_the_real_thing() -> None:
    """Its lines are of the forms that `changes` prints."""
    sample = re.search(r"```\n(snapshot .*?)```", README, re.DOTALL)
    assert sample
    forms = [
        r"snapshot \w{16} follows the last release's \w{16}",
        r"nodes: \d+ added, \d+ changed, \d+ removed \(now \d+, then \d+\)",
    ]
    forms += [r"  [+~-] '[^']+'  [^\[]+ \[\d+ emotions?\]", r"emotions: \d+ of \d+ rebuild"]
    forms += [r"  [\w, ]+: positives [=\d +-]+, negatives [=\d +-]+; because of '.*'"]
    forms += [r"texts: \d+ of \d+ to forward, about \d+ tokens: \d+ s at the last capture's \d+ tokens/s .*"]
    for line in sample[1].splitlines():
        assert any(re.fullmatch(form, line) for form in forms), line
