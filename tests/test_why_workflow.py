"""`why` beside the real dry run: the same jobs and the same missing files, in each of the ways in which a build can change."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from project import Project, Run

pytestmark = pytest.mark.end_to_end
EMOTIONS = ["calm", "joy"]
MISSING = re.compile(r"^Reason: .*?Missing output files: ([^;\n]*)", re.MULTILINE)
PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "schemas", "profiles", "envs", "report", "resources")
MEASUREMENTS = ("report", "compare", "sweep", "unseen", "ablation")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    return Project.make(
        tmp_path_factory.mktemp("why") / "project",
        tiny.sample_nodes()[:200],
        model=str(tiny_model),
        emotions={"select": "curated", "curated": EMOTIONS},
        max_examples_per_emotion=30,
        target_layers=[1],
        emotions_per_job=1,
    )


@pytest.fixture(scope="module")
def built(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = fresh.copy(tmp_path_factory.mktemp("why") / "built")
    project.run().ok()
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    return built.copy(tmp_path / "project")


def stored(project: Project) -> set[Path]:
    """Files of the store, less what saves work or tells of runs: memos, the index beside a snapshot, roots, the ledger."""
    files = set(project.folder.glob("store/*/**/*")) - set(project.folder.glob("store/snapshots/*.safetensors"))
    return {path for path in files if path.is_file() and not {"memo", "roots", "ledger"} & set(path.parts)}


def agreed(project: Project, *targets: str, snakefile: Path = tiny.REPOSITORY / "Snakefile") -> dict[str, str]:
    """{stage, or stage and emotion: reasons} of what `why` says that targets (the readout, where none are named; else such as
    share no job) lack, which the dry run must bear out.
    """
    targets = targets or ("readout",)
    before = stored(project)
    run = project.run("why", snakefile=snakefile).ok()
    found = json.loads((project.folder / "results/why.json").read_text())
    assert stored(project) == before, "nothing is built"
    products = [one for one in found["products"] if set(targets) & set(one["targets"])]
    foreseen = project.run("--dry-run", *targets, snakefile=snakefile).ok()
    jobs = "".join(f"Job 0: {job}\n" for target in targets for job in found["targets"][target]["jobs"])
    assert Run(0, jobs).jobs == foreseen.jobs
    missing = [path for files in MISSING.findall(foreseen.text) for path in files.strip().split(", ")]
    made = {path for one in products for path in one["files"]}
    assert set(missing) <= made and all("/index/" in path for path in made - set(missing)), "a capture makes all poolings"
    assert run.text.count("\n") < 60
    return {f"{one['stage']} {one['name']}".strip(): "; ".join(r["words"] for r in one["reasons"]) for one in products}


def joyful(project: Project) -> str:
    return next(n["key"] for n in project.nodes() if re.search(r"\bjoy:(9|10)\b", n["text"]))


def change_node(project: Project) -> None:
    project.edit(joyful(project), lambda text: "That morning began with rain. " + text)


def rename_node(project: Project) -> None:
    """Another key of the same text: no example changes, and the release's snapshot does."""
    project.write_nodes([{**n, "key": f"{n['key']}-renamed"} if n["key"] == joyful(project) else n for n in project.nodes()])


def configured(**settings: Any) -> Callable[[Project], None]:
    return lambda project: project.configure(**settings)


def delete(*patterns: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        for pattern in patterns:
            project.path(pattern).unlink()

    return change


def set_aside(project: Project) -> None:
    path = project.path("store/heads/joy.*/layer_001.json")
    path.rename(f"{path}.damaged")
    delete("store/quality/*.json", "results/.current/readout.*")(project)


CHANGES: dict[str, tuple[Callable[[Project], None], dict[str, str]]] = {
    "nothing": (lambda project: None, {}),
    "a node": (change_node, {"examples joy": "1 text added, 1 removed", "overview": "the release changes"}),
    "a node renamed": (rename_node, {"overview": "the release changes"}),
    "a layer added": (configured(target_layers=[1, 2]), {"vectors joy": "layer 2 is new", "heads calm": "layer 2 is new"}),
    "two poolings, neutral texts, shards": (
        configured(pooling=["mean", "last"], denoise=0.5, shards=2),
        {"vectors joy": "denoise none → 0.5", "heads joy": "the vectors change"},
    ),
    "files deleted that something needs": (
        delete(
            "store/quality/*.json",
            "store/vectors/joy.*/layer_001.safetensors",
            "store/figures/joy.*/texts.json",
            "results/overview.svg",
        ),
        {"quality": "deleted", "vectors joy": "deleted"},
    ),
    "files deleted that nothing needs": (delete("store/quality/*.json", "store/snapshots/*.jsonl"), {}),
    "a file set aside": (set_aside, {"heads joy": "set aside as damaged", "quality": "deleted"}),
    "a result deleted": (delete("results/overview.svg"), {"results readout": "overview.svg is gone from the results"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_says_what_the_dry_run_says(project: Project, change: str) -> None:
    apply, expected = CHANGES[change]
    apply(project)
    found = agreed(project)
    assert bool(found) == bool(expected) and expected.items() <= found.items()


def test_a_first_build(fresh: Project, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project")
    found = agreed(project)
    assert {found[of] for of in ("snapshot", "examples joy", "activations shard_0", "vectors joy", "weights")} == {
        "first build"
    }


def test_the_measurements(project: Project) -> None:
    found = agreed(project, *MEASUREMENTS)
    assert {found[of] for of in ("report", "merged compare", "ablation", "unseen")} == {"first build"}


def test_code_and_method_change_and_going_back_needs_nothing(project: Project, tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    copy.mkdir()
    for part in PARTS:
        source = tiny.REPOSITORY / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
    module = copy / "scripts/amygdala/methods.py"
    text = module.read_text()
    module.write_text(text + "\n# a comment\n")
    assert agreed(project, snakefile=copy / "Snakefile") == {}
    module.write_text(text + "\nUNUSED = 1\n")
    found = agreed(project, snakefile=copy / "Snakefile")
    assert found["vectors joy"] == "amygdala/methods.py changed"
    assert "activations shard_0" not in found and "weights" not in found
    project.configure(method="pca")
    first = project.run().ok()
    assert first.jobs["Vectors of joy"] == 1 and first.forwarded == 0
    project.configure(method="mean_difference")
    (words,) = agreed(project).values()
    assert re.fullmatch(r"\w{16} is shown, not \w{16}", words)
