"""The house: what is pinned agrees everywhere, and light jobs stay light."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from amygdala import keys
from amygdala.keys import SCRIPTS, modules_of
from tiny import REPOSITORY

PINNED = dict(
    line.split("==") for line in (REPOSITORY / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
)


def test_every_requirement_is_pinned_and_what_the_code_imports_is_there() -> None:
    assert all(re.fullmatch(r"[\w.]+", version) for version in PINNED.values())
    assert {"snakemake", "torch", "transformers", "safetensors", "numpy", "pyyaml"} <= set(PINNED)


@pytest.mark.parametrize("name", ["light", "model"])
def test_environments_agree_with_the_requirements(name: str) -> None:
    environment = yaml.safe_load((REPOSITORY / "envs" / f"{name}.yaml").read_text())
    packages = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert packages
    for package in packages:
        requirement, version = package.split("==")
        assert PINNED[requirement] == version
    assert ("torch" in str(packages)) == (name == "model")


def imported_distributions(source: Path) -> set[str]:
    """What a module imports anywhere of others' packages, less what is for type checkers alone."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {node for guard in guards for node in ast.walk(guard)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in skipped:
            names |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node not in skipped:
            names.add((node.module or "").partition(".")[0])
    return {found.lower() for name in names for found in DISTRIBUTIONS.get(name, ())}


DISTRIBUTIONS = importlib.metadata.packages_distributions()
# What comes with others (mcp, transformers), and what only Snakemake's own process needs of it.
BROUGHT_ALONG = {"mcp-types", "pydantic", "huggingface_hub", "snakemake"}
JOBS = [
    (path.stem, *found.groups())
    for path in sorted((REPOSITORY / "rules").glob("*.smk"))
    for rule in re.split(r"(?m)^\s*rule\b", path.read_text(encoding="utf-8"))
    if (found := re.search(r'conda:\s+"../envs/(\w+).yaml".*script:\s+"../scripts/(\w+).py"', rule, re.DOTALL))
]


@pytest.mark.parametrize(("rules", "environment", "script"), sorted(set(JOBS)))
def test_an_environment_holds_what_its_jobs_import(
    monkeypatch: pytest.MonkeyPatch, rules: str, environment: str, script: str
) -> None:
    """With `--software-deployment-method conda` a job has nothing else."""
    monkeypatch.setattr(keys, "NUMBER_FREE", set())  # all modules, not only those that keys cover
    packages = yaml.safe_load((REPOSITORY / "envs" / f"{environment}.yaml").read_text())["dependencies"][-1]["pip"]
    held = {package.partition("==")[0].lower() for package in packages}
    needed = set().union(*map(imported_distributions, modules_of(script).values()))
    assert not needed - BROUGHT_ALONG - held
    assert ("torch" in needed) == (script in ("activations", "weights", "ablation", "token_scores", "model"))


def imported_by(statement: str) -> set[str]:
    """Top-level packages that a fresh Python holds after `statement`, with scripts/ on its path."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True).stdout.split()
    )


HEAVY = {"torch", "transformers", "sklearn", "matplotlib", "scipy", "huggingface_hub", "mcp", "httpx2", "anyio"}


@pytest.mark.parametrize(
    "script",
    [
        *("snapshot", "examples", "vectors", "heads", "figures", "quality", "readout", "publish", "activations", "changes"),
        *("selection", "refresh", "texts", "weights", "compare", "comparison", "unseen", "garbage", "plan"),
    ],
)
def test_jobs_that_run_no_model_import_no_torch(script: str) -> None:
    """`activations` too: it loads torch only once a row is missing."""
    assert not HEAVY & imported_by(f"import {script}")


def test_reading_the_snakefile_imports_nothing_heavy() -> None:
    assert not HEAVY & imported_by("from amygdala.build import Build; from amygdala.plan import warnings_of")


def test_continuous_integration_runs_the_tests_and_checks() -> None:
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.search(r"^test: check", makefile, re.MULTILINE)
    for check in ("ruff check", "ruff format --check", "mypy", "snakefmt --check", "snakemake --lint", "pytest"):
        assert f"$(VENV)/bin/{check}" in makefile
