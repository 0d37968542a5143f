"""What rebuilds when: scenarios of docs/build.md, end to end. Each is held against its row in the table there: the jobs that a
dry run tells and that then run, the texts that `changes` tells and that are then forwarded. The table names tests elsewhere.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from amygdala.keys import text_digest
from journal import EMOTIONS, least_cosine, make_journal, vectors_of
from nodes import own_side
from project import Project
from scenarios import EMOTION_STAGES, ROWS, STAGES, holds
from test_workflow import REPOSITORY_PARTS

end_to_end = pytest.mark.end_to_end
TEXTS = 60
OWN = "journal/own"


def own_node() -> dict[str, Any]:
    """A training text that is an example of calm and of no other emotion: it names the others."""
    texts = (f"Number {n}: neither joy nor grief nor awe, the water lay flat all afternoon." for n in range(99))
    text = next(text for text in texts if own_side(text_digest(text), 0.2) == "train")
    return {"key": OWN, "text": f"{text}\ncalm:9"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """3 emotions at layers 1 and 2, every other text tagged awe, which is not asked for; its own model."""
    nodes = make_journal(TEXTS)
    tagged = [{**node, "text": node["text"] + (" awe:9" if number % 2 else "")} for number, node in enumerate(nodes)]
    project = Project.make(
        tmp_path_factory.mktemp("scenarios") / "project",
        [*tagged, own_node()],
        model="model",
        emotions={"select": "curated", "curated": list(EMOTIONS)},
        target_layers=[1, 2],
    )
    shutil.copytree(tiny_model, project.folder / "model")
    assert project.run().ok().forwarded == TEXTS + 1
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of the built project, to change."""
    return built.copy(tmp_path / "project")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the workflow, to change."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in REPOSITORY_PARTS:
        part = tiny.REPOSITORY / name
        (shutil.copytree if part.is_dir() else shutil.copy)(part, folder / name)
    return folder


def replace(path: Path, old: str, new: str) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{path.name}: {old!r}"
    path.write_text(source.replace(old, new), encoding="utf-8")


# The table


def test_every_row_names_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", tests, re.MULTILINE))
    assert {row.test for row in ROWS.values()} <= defined


def test_rows_of_this_file_are_held_by_their_tests() -> None:
    """Every scenario here is held against a row that names its test."""
    source = Path(__file__).read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for name, body in re.findall(r"^def (test_\w+)\((.*?)(?=^def |^@|\Z)", source, re.MULTILINE | re.DOTALL):
        for change in re.findall(r'holds\(\s*project,\s*"([^"]+)"', body):
            found.setdefault(name, set()).add(change)
    assert found == {
        name: {row.change for row in ROWS.values() if row.test == name}
        for name in {row.test for row in ROWS.values()}
        if f"def {name}(" in source
    }


def test_columns_are_the_stages() -> None:
    assert all(set(row.stages) == set(STAGES) | set(EMOTION_STAGES) for row in ROWS.values())


# Code and libraries


@end_to_end
def test_comments_docstrings_and_layout_rerun_nothing(project: Project, repository: Path) -> None:
    """All scripts as printed from their syntax trees: other comments and layout; and another docstring each."""
    for path in (repository / "scripts").rglob("*.py"):
        tree = ast.parse(path.read_bytes())
        if ast.get_docstring(tree):
            tree.body[0] = ast.Expr(ast.Constant("Another docstring."))
        path.write_text(f"# A comment.\n{ast.unparse(ast.fix_missing_locations(tree))}\n", encoding="utf-8")
    assert "# the widest" not in (repository / "scripts/amygdala/methods.py").read_text(encoding="utf-8")
    holds(project, "a comment or docstring in a script, other layout", EMOTIONS, snakefile=repository / "Snakefile")


@end_to_end
def test_a_function_in_an_imported_module(project: Project, repository: Path) -> None:
    """The body of mean_difference in methods.py, which vectors.py imports; and back."""
    published, before = project.bytes_of("results/readout/*"), vectors_of(project)
    module, snakefile = repository / "scripts/amygdala/methods.py", repository / "Snakefile"
    body = "positive.mean(axis=0) - negative.mean(axis=0)"
    replace(module, body, "np.median(positive, axis=0) - np.median(negative, axis=0)")
    holds(project, "a function that `vectors.py` imports", EMOTIONS, snakefile=snakefile)
    assert least_cosine(before, vectors_of(project)) < 0.999
    replace(module, "np.median(positive, axis=0) - np.median(negative, axis=0)", body)
    holds(project, "code back to what it was", EMOTIONS, snakefile=snakefile)
    assert project.bytes_of("results/readout/*") == published


def installed(folder: Path, **versions: str) -> dict[str, Any]:
    """The environment of a Python to which other versions of these packages are installed (their code is as it was)."""
    for package, version in versions.items():
        info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@end_to_end
def test_another_patch_level_of_libraries_reruns_nothing(project: Project, tmp_path: Path) -> None:
    names = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "matplotlib")
    major_minor = {name: ".".join(importlib.metadata.version(name).split(".")[:2]) for name in names}
    environment = installed(tmp_path / "site", **{name: f"{known}.987" for name, known in major_minor.items()})
    asked = f"import importlib.metadata as m; print(*[m.version(name) for name in {names}])"
    told = subprocess.run([sys.executable, "-c", asked], env={**os.environ, **environment}, capture_output=True, text=True)
    assert told.stdout.split() == [f"{known}.987" for known in major_minor.values()]
    holds(project, "torch or transformers, another patch level", EMOTIONS, **environment)


@end_to_end
def test_another_minor_version_of_torch(project: Project, tmp_path: Path) -> None:
    environment = installed(tmp_path / "site", torch="2.987.0")
    project.run("changes", **environment).ok()
    told = json.loads((project.folder / "results/changes.json").read_text(encoding="utf-8"))
    how = {"foretold": told["forward"]["texts"], "until": "activations", **environment}
    holds(project, "torch or transformers, another minor version", EMOTIONS, **how)


# The graph


@end_to_end
def test_a_node_removed(project: Project) -> None:
    project.write_nodes([node for node in project.nodes() if node["key"] != OWN])
    holds(project, "a node removed", EMOTIONS, ["calm"])
    assert project.manifest()["capture"]["unique_texts"] == TEXTS


@end_to_end
def test_a_node_renamed(project: Project) -> None:
    vectors = vectors_of(project)
    project.write_nodes([{**node, "key": node["key"].replace(OWN, "journal/other")} for node in project.nodes()])
    holds(project, "a node renamed (its `key`)", EMOTIONS)
    assert all((vectors_of(project)[layer] == rows).all() for layer, rows in vectors.items())


@end_to_end
def test_a_score_crosses_the_threshold(project: Project) -> None:
    project.edit(OWN, lambda text: text.replace("calm:9", "calm:7"))
    holds(project, "a score crosses `min_positive_score`", EMOTIONS, ["calm"])


@end_to_end
def test_a_score_changes_on_its_side_of_the_threshold(project: Project) -> None:
    project.edit(OWN, lambda text: text.replace("calm:9", "calm:8"))
    holds(project, "a score changes on its side of it", EMOTIONS)


# Emotions, layers and settings


@end_to_end
def test_an_emotion_added(project: Project) -> None:
    project.configure(emotions={"select": "curated", "curated": [*EMOTIONS, "awe"]})
    holds(project, "an emotion added", [*EMOTIONS, "awe"], ["awe"])
    assert project.manifest()["concepts"] == ["awe", *EMOTIONS]


@end_to_end
def test_an_emotion_dropped(project: Project) -> None:
    project.configure(emotions={"select": "curated", "curated": list(EMOTIONS), "exclude": ["grief"]})
    holds(project, "an emotion dropped", EMOTIONS)
    assert project.manifest()["concepts"] == ["calm", "joy"]


@end_to_end
def test_an_emotion_aliased(project: Project) -> None:
    positives = project.manifest()["counts"]["calm"]["train"]["positive"]
    project.configure(emotions={"select": "curated", "curated": list(EMOTIONS), "aliases": {"awe": "calm"}})
    holds(project, "a tag that becomes an emotion's alias", EMOTIONS, ["calm"])
    assert project.manifest()["counts"]["calm"]["train"]["positive"] > positives


@end_to_end
def test_a_layer_dropped(project: Project) -> None:
    project.configure(target_layers=[1])
    holds(project, "a layer dropped", EMOTIONS)
    assert project.manifest()["layers"] == [1]


@end_to_end
def test_another_method_and_back(project: Project) -> None:
    published = project.bytes_of("results/readout/*")
    project.configure(method="lda")
    holds(project, "`method`", EMOTIONS)
    assert project.bytes_of("results/readout/*") != published
    project.configure(method="mean_difference")
    holds(project, "a setting back to what it was", EMOTIONS)
    assert project.bytes_of("results/readout/*") == published


@end_to_end
def test_another_pooling(project: Project) -> None:
    project.configure(pooling="last")
    holds(project, "`pooling`", EMOTIONS)
    assert project.manifest()["pooling"] == "last"


@end_to_end
def test_another_dtype(project: Project) -> None:
    project.configure(dtype="bf16")
    holds(project, "`dtype`", EMOTIONS, until="heads")


# The model and the store


@end_to_end
def test_other_weights_in_the_model_folder(project: Project, tmp_path: Path) -> None:
    """Put there by a copy that keeps times: other bytes of the same size and modification time."""
    weights, before = project.folder / "model/model.safetensors", vectors_of(project)
    assert not project.run("--dry-run").ok().jobs
    assert list(project.folder.glob("store/memo/model.*.json"))
    times = weights.stat()
    other = tiny.make_model(tmp_path / "other", seed=1) / "model.safetensors"
    assert other.stat().st_size == times.st_size
    shutil.copyfile(other, weights)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.rmtree(project.folder / ".snakemake")
    holds(project, "other weights in the model's folder, `.snakemake` deleted", EMOTIONS)
    assert least_cosine(before, vectors_of(project)) < 0.9


@end_to_end
def test_the_store_moved(project: Project) -> None:
    (project.folder / "elsewhere").mkdir()
    (project.folder / "store").rename(project.folder / "elsewhere/shared")
    project.configure(store="elsewhere/shared")
    holds(project, "the store moved, `store:` with it", EMOTIONS)
