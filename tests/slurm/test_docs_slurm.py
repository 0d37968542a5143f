"""docs/slurm.md: its commands plan, its settings are settings, each of its faults has a test."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from lab import HERE, ClusterProject

import plan
import tiny
from amygdala.build import check
from amygdala.changes import Forward
from tiny import REPOSITORY

PAGE = (REPOSITORY / "docs/slurm.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def faults_in(name: str) -> set[str]:
    tree = ast.parse((HERE / name).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_each_fault_has_a_test() -> None:
    table = PAGE.partition("## When something goes wrong")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 8
    named = set(re.findall(r"`(test_\w+)`", "".join(row.split("|")[-2] for row in rows)))
    assert named == faults_in("test_cluster_faults.py")
    assert all("`test_" in row.split("|")[-2] or row.split("|")[-2].strip() == "the same" for row in rows)


def test_the_block_of_settings_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    given = yaml.safe_load(block)
    default = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    cluster = {**default["cluster"], **given["cluster"], "gpu": {**default["cluster"]["gpu"], **given["cluster"]["gpu"]}}
    checked = check({**default, **given, "cluster": cluster}, REPOSITORY)
    assert checked["cluster"]["gpu"]["model"] == "a100"


@pytest.mark.end_to_end
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_plans_a_run(tmp_path: Path, tiny_model: Path, command: str) -> None:
    project = ClusterProject.make(tmp_path / "project", tiny.sample_nodes(), model=str(tiny_model), target_layers=[1])
    words = shlex.split(command)
    assert words[0] == "snakemake"
    if "--profile" not in words:
        words.remove("--cores")
    known = ("--profile", "profiles/slurm", "1", "--dry-run", "snakemake")
    planned = project.run("--dry-run", *(word for word in words if word not in known)).ok()
    assert planned.jobs or words[-1] == "model"  # a folder is used where it lies


def test_the_sample_of_a_plan_reads_like_the_real_thing() -> None:
    (sample,) = re.findall(r"```\n(\d+ submissions.*?)```", PAGE, re.DOTALL)
    rate = {"chars_per_token": 4.0, "tokens_per_s": 600.0, "load_s": 5.0, "device": "cpu"}
    settings = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))["cluster"]
    missing: dict[str, list[str]] = {"model": []} | {name: ["none"] for name in ("before", "shard 0", "shard 1", "after")}
    forward = [Forward(30, 200, 1000, rate)] * 2
    cluster = {**settings, "account": "lab", "gpu": {**settings["gpu"], "partition": "gpu"}}
    printed = list(plan.lines(plan.submissions(cluster, 1, 2**28, missing, forward)))

    def form(line: str) -> str:
        return re.sub(r"\d+( min \d+)?( s)?", "#", line)

    assert [form(line) for line in sample.splitlines()] == [form(line) for line in printed]
