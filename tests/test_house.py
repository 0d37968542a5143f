"""The house: what is pinned agrees everywhere, and light jobs stay light."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from amygdala.keys import SCRIPTS
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
