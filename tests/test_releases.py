"""Releases: what differs between two, the way back to one, and making one again from what its manifest says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import publish
import releases as script
import tiny
from amygdala.contract import load_readout
from amygdala.errors import UserError
from amygdala.files import write_json
from amygdala.recipes import recipe_key
from amygdala.releases import (
    current_of,
    difference,
    history_path,
    list_releases,
    node_counts,
    read_history,
    read_release,
    resolve,
)
from amygdala.stamps import Sheet, using
from amygdala.tiers import Tiers
from project import Project, Run

EMOTIONS = ["calm", "hope", "joy"]
SNAPSHOT = '{{"origin": "file", "key": "{}", "digest": "{}", "scores": {{}}, "text": ""}}\n'


class Shelf:
    """A store with releases of made-up recipes."""

    def __init__(self, folder: Path) -> None:
        self.store, self.results = folder / "store", folder / "results"

    def add(self, target: str = "readout", made: float = 0.0, files: bool = True, **told: Any) -> str:
        recipe: dict[str, Any] = {"kind": "release", "target": target, "quality": "q1"}
        recipe |= {"vectors": {"joy": "a", "calm": "b"}, "layers": [1, 2]}
        recipe |= {name: told.pop(name) for name in ("vectors", "layers", "quality") if name in told}
        manifest = {"concepts": sorted(recipe["vectors"]), "layers": recipe["layers"], "snapshot": {"key": "s1", "nodes": 2}}
        manifest |= {"config": {"seed": 0, "emotions": {}}, "model": {"name": "m"}, "versions": {"torch": "2.12"}, **told}
        recipe["facts"] = recipe_key(manifest)
        key = recipe_key(recipe)
        folder = self.store / "releases" / key
        with using(Sheet({key: recipe}, {})):
            write_json(folder / "manifest.json", manifest)
        os.utime(folder / "manifest.json", (made, made))
        if files:
            (folder / "vectors.safetensors").write_bytes(b"")
            write_json(self.store / "quality" / f"{recipe['quality']}.json", {})
            overview = recipe_key({"kind": "overview", "release": key})
            write_json(self.store / "overviews" / f"{overview}.svg", {})
        return key

    def snapshot(self, key: str, **nodes: str) -> None:
        folder = self.store / "snapshots"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [SNAPSHOT.format(name, digest) for name, digest in nodes.items()]
        (folder / f"{key}.jsonl").write_text("".join(lines) + f'{{"made_from":{{"key":"{key}"}}}}\n')

    def differs(self, **told: Any) -> list[str]:
        """What a release with `told` differs in from one without."""
        keys = self.add(), self.add(**told)
        old, new = (read_release(self.store, key) for key in keys)
        assert old is not None and new is not None
        return difference(self.store, old, new)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"vectors": {"joy": "x", "calm": "b"}}, ["other vectors: 'joy'"]),
        ({"vectors": {"joy": "x", "calm": "y"}}, ["other vectors: all 2"]),
        ({"vectors": {"joy": "a", "awe": "c"}}, ["new: 'awe'", "gone: 'calm'"]),
        ({"layers": [2, 5]}, ["layers new: 5", "layers gone: 1"]),
        ({"quality": "q2"}, ["the same vectors", "other quality figures"]),
        ({"quality": "q2", "layers": [1]}, ["layers gone: 2"]),
        ({"config": {"seed": 1, "emotions": {}}}, ["the same vectors", "setting seed: '0' → '1'"]),
        ({"versions": {"torch": "2.13"}}, ["the same vectors", "setting version of torch: '2.12' → '2.13'"]),
        ({"snapshot": {"key": "s2", "nodes": 3}}, ["the same vectors", "nodes: another snapshot"]),
        ({"code": {"vectors": "1"}, "installed": {"torch": "2.13.1"}}, ["the same vectors"]),
    ],
)
def test_what_differs_is_said_in_words(shelf: Shelf, told: dict[str, Any], words: list[str]) -> None:
    assert shelf.differs(**told) == words


def test_code_and_installed_versions_that_differ_are_named(shelf: Shelf) -> None:
    keys = [
        shelf.add(code={"vectors": "1", "heads": "1"}, installed={"torch": "2.13.1", "numpy": "2.4"}),
        shelf.add(code={"vectors": "2", "heads": "1"}, installed={"torch": "2.13.2\x1b[31m", "numpy": "2.4"}),
    ]
    old, new = (read_release(shelf.store, key) for key in keys)
    assert old is not None and new is not None
    told = difference(shelf.store, old, new)
    assert told == ["the same vectors", "code of: vectors", "installed torch 2.13.1 → 2.13.2\\x1b[31m"]


def test_nodes_are_counted_by_key_not_by_place(shelf: Shelf) -> None:
    shelf.snapshot("s1", a="1", b="2", c="3")
    shelf.snapshot("s2", a="1", b="9", d="4", e="5")
    assert shelf.differs(snapshot={"key": "s2", "nodes": 4})[1] == "nodes: 2 added, 1 changed, 1 removed"
    (shelf.store / "snapshots/s2.jsonl").write_text("{damaged\n")
    old, new = sorted((read_release(shelf.store, key.name) for key in (shelf.store / "releases").iterdir()), key=str)
    assert old is not None and new is not None and node_counts(shelf.store, old, new) is None


def test_a_release_is_found_by_the_beginning_of_its_key(shelf: Shelf) -> None:
    keys = [shelf.add(made=made, seed=made) for made in range(40)]
    for key in (keys[0], keys[0][:12]):
        assert resolve(shelf.store, key).key == keys[0]
    alike = next(short for key in keys for short in [key[:1]] if sum(one.startswith(short) for one in keys) > 1)
    with pytest.raises(UserError, match=f"'{alike}' begins '.*', '.*: give more of the key"):
        resolve(shelf.store, alike)
    with pytest.raises(UserError, match=r"no release in .*releases begins with 'nothing'"):
        resolve(shelf.store, "nothing")
    with pytest.raises(UserError, match=r"no release in .*releases begins with"):
        resolve(shelf.store / "nowhere", keys[0])


def test_a_release_of_another_store_is_linked_whole(shelf: Shelf, tmp_path: Path) -> None:
    key = shelf.add()
    other = shelf.add(seed=1)
    own = tmp_path / "own"
    found = resolve(own, key[:8], Tiers(str(own), [str(shelf.store)]))
    assert found.key == key and not found.missing
    assert all(path.is_symlink() and path.is_relative_to(own) for path in found.files.values())
    assert not (own / "releases" / other).exists()


@pytest.mark.parametrize("name", ["vectors.safetensors", "quality.json", "overview.svg"])
def test_a_release_that_is_not_whole_is_refused_and_named(shelf: Shelf, name: str) -> None:
    key = shelf.add()
    path = resolve(shelf.store, key).files[name]
    path.unlink()
    with pytest.raises(UserError, match=f"{key} is not whole, {re.escape(str(path))} is gone"):
        resolve(shelf.store, key)


def test_what_is_no_release_of_the_readout_is_passed_over(shelf: Shelf) -> None:
    whole, part, damaged = shelf.add(), shelf.add(target="emotion_joy"), shelf.add(seed=1)
    manifest = shelf.store / "releases" / damaged / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"seed": 1', b'"seed": 2'))
    copied = "0123456789abcdef"
    shutil.copytree(manifest.parent.parent / whole, manifest.parent.parent / copied)
    assert [release.key for release in list_releases(shelf.store, shelf.results)] == [whole]
    for key in (part, damaged, copied):
        with pytest.raises(UserError, match="is no sound release of the whole readout"):
            resolve(shelf.store, key)


def test_releases_are_listed_by_age_with_what_changed_against_the_one_before(shelf: Shelf) -> None:
    late, early = shelf.add(made=200.0, vectors={"joy": "x"}), shelf.add(made=100.0)
    copied = shelf.add(made=300.0, layers=[2])  # published here before the store was copied
    publish.note(shelf.results, copied)
    write_json(history_path(shelf.results), [{"key": copied, "time": 50.0}, "damaged", {"key": late, "time": "never"}])
    (shelf.results / ".current" / f"readout.{late}").touch()
    found = script.facts_of(shelf.store, shelf.results)
    assert [one["key"] for one in found] == [copied, early, late]
    assert [one["current"] for one in found] == [False, False, True] and current_of(shelf.results) == late
    assert [one["published"] for one in found] == [[50.0], [], []]
    assert [one["changes"] for one in found] == [[], ["layers new: 1"], ["gone: 'calm'", "other vectors: 'joy'"]]
    told = list(script.lines(found, shelf.store, 2))
    assert told[0].startswith("3 releases of the readout in")
    assert re.match(rf"  {copied}  \S+ \S+  2 emotions, layers 2, 2 nodes$", told[1])
    assert any(line.startswith(f"* {late}") and line.endswith("; not published here") for line in told)
    assert "2 more are of one emotion" in told[-2] and early in told[-1]


def test_the_history_holds_each_publication_once(shelf: Shelf) -> None:
    for key in ("a", "a", "b", "a"):
        publish.note(shelf.results, key)
    assert [one["key"] for one in read_history(shelf.results)] == ["a", "b", "a"]
    history_path(shelf.results).write_text('{"key"')
    assert read_history(shelf.results) == []
    publish.note(shelf.results, "c")
    assert [one["key"] for one in read_history(shelf.results)] == ["c"]


# Through the real Snakefile


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """Two releases: of the first 200 nodes, then with one emotion more and one layer less."""
    folder = tmp_path_factory.mktemp("releases")
    shutil.copytree(tiny_model, folder / "project" / "model")
    project = Project.make(
        folder / "project",
        tiny.sample_nodes()[:200],
        model="model",
        emotions={"select": "curated", "curated": EMOTIONS[:2]},
        max_examples_per_emotion=40,
        target_layers=[1, 2],
    )
    project.run().ok()
    (folder / "first").mkdir()
    for name in ("readout/vectors.safetensors", "readout/manifest.json", "quality.json", "overview.svg"):
        shutil.copy(project.folder / "results" / name, folder / "first")
    project.configure(emotions={"select": "curated", "curated": EMOTIONS}, target_layers=[1])
    project.run().ok()
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    return built.copy(tmp_path / "project")


def shown(project: Project) -> dict[str, bytes]:
    files = [project.folder / "results" / name for name in ("quality.json", "overview.svg")]
    return {path.name: path.read_bytes() for path in [*files, *(project.folder / "results/readout").iterdir()]}


def listed(project: Project) -> tuple[Run, list[dict[str, Any]]]:
    done = project.run("releases").ok()
    return done, json.loads((project.folder / "results/releases.json").read_text())["releases"]


def use(project: Project, key: str | None) -> None:
    project.configure(release=key)


@pytest.mark.end_to_end
def test_back_to_a_stored_release_needs_no_graph_and_no_model(project: Project, built: Project) -> None:
    done, found = listed(project)
    assert [one["current"] for one in found] == [False, True] and all(one["published"] for one in found)
    changes = ["new: 'joy'", "layers gone: 2"]
    assert found[1]["changes"][:2] == changes and any("emotions.curated" in line for line in found[1]["changes"])
    assert all(f"      {line}" in done.text for line in changes)
    latest = shown(project)
    first = {path.name: path.read_bytes() for path in (built.folder.parent / "first").iterdir()}
    assert latest.keys() == first.keys() and latest != first

    (project.folder / "graph.jsonl").rename(project.folder / "graph.gone")
    (project.folder / "model").rename(project.folder / "model.gone")
    use(project, found[0]["key"][:10])
    back = project.build()
    assert back.jobs == Counter([f"Publish release {found[0]['key']}"])
    assert shown(project) == first
    assert not project.run("readout").ok().jobs
    assert [one["current"] for one in listed(project)[1]] == [True, False]

    for target in ("emotion_calm", "layer_1", "changes", "why", "verify", "gc"):
        refused = project.run(target)
        assert refused.status != 0 and f"release: {found[0]['key']} is set" in refused.text
    use(project, None)
    assert "graph: no such file" in project.run().text
    assert [one["key"] for one in listed(project)[1]] == [one["key"] for one in found], "the list needs no graph"
    (project.folder / "graph.gone").rename(project.folder / "graph.jsonl")
    (project.folder / "model.gone").rename(project.folder / "model")
    assert project.run().ok().jobs == Counter(["Publish readout in results/readout"])
    assert shown(project) == latest


@pytest.mark.end_to_end
def test_a_release_that_cannot_be_shown_leaves_results_as_they_are(project: Project) -> None:
    found = listed(project)[1]
    before = shown(project)
    use(project, "0123456789abcdef")
    absent = project.run()
    assert absent.status != 0 and "begins with '0123456789abcdef'" in absent.text and "Traceback" not in absent.text
    quality = project.folder / f"store/quality/{_quality_of(project, found[0]['key'])}.json"
    whole = quality.read_bytes()
    quality.write_bytes(whole.replace(b"0.5", b"0.6", 1))
    use(project, found[0]["key"])
    damaged = project.run()
    assert damaged.status != 0 and f"store/quality/{quality.name} is damaged" in damaged.text
    quality.unlink()
    assert f"is not whole, store/quality/{quality.name} is gone" in project.run().text
    number = project.run("--config", "release=1234")
    assert number.status != 0 and "in quotes where it reads as a number" in number.text
    assert shown(project) == before


def _quality_of(project: Project, key: str) -> str:
    release = read_release(project.folder / "store", key)
    assert release is not None
    return str(release.recipe["quality"])


@pytest.mark.end_to_end
def test_a_release_is_made_again_from_what_its_manifest_says(project: Project, tmp_path: Path) -> None:
    """The command of docs/releases.md, in an empty folder with the graph and the model that the manifest names."""
    page = (tiny.REPOSITORY / "docs/releases.md").read_text()
    command = re.search(r"^(python -c .*)$", page, re.MULTILINE)
    assert command
    again = Project(tmp_path / "again")
    shutil.copytree(project.folder / "results/readout", again.folder / "results/readout")
    subprocess.run(command[1], shell=True, cwd=again.folder, check=True, env=_with_python())
    shutil.rmtree(again.folder / "results")
    given = ["graph=graph.jsonl", "model=model", "emotions_per_job=1"]
    shutil.copy(project.folder / "graph.jsonl", again.folder)
    shutil.copytree(project.folder / "model", again.folder / "model")
    again.run("--configfile", "release.json", "--config", *given).ok()
    one, two = project.manifest(), again.manifest()
    assert two["keys"] == one["keys"] and two["code"] == one["code"] and two["reproduce"] == one["reproduce"]
    assert again.path("results/.current/readout.*").name == project.path("results/.current/readout.*").name
    assert {name for name in one if one[name] != two[name]} <= {"capture", "vectors_sha256", "made_from"}
    assert two["made_from"]["recipe"] == one["made_from"]["recipe"]
    folders = [made.folder / "results/readout" for made in (project, again)]
    old, new = (load_readout(folder / "vectors.safetensors", folder / "manifest.json") for folder in folders)
    for layer in old.layers:  # their texts went through the model in other batches
        assert (old.vectors[layer] * new.vectors[layer]).sum(1).min() > 1 - 1e-6


def _with_python() -> dict[str, str]:
    import sys

    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.end_to_end
def test_the_manifest_says_what_making_it_again_takes(built: Project) -> None:
    manifest = built.manifest()
    folders = {path.name for path in (built.folder / "store/vectors").iterdir()}
    assert {f"{emotion}.{key}" for emotion, key in manifest["keys"]["vectors"].items()} <= folders
    assert manifest["keys"]["vectors"].keys() == set(EMOTIONS)
    stages = {"snapshot", "examples", "activations", "weights", "vectors", "heads", "figures", "quality", "readout", "overview"}
    assert manifest["code"].keys() == stages
    assert manifest["installed"]["torch"].startswith(manifest["versions"]["torch"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["installed"]["python"])
    identity = manifest["reproduce"]["graph"]["identity"]
    assert re.search(r"sha256:[0-9a-f]{64}", json.dumps(identity))
    assert manifest["reproduce"].keys() == {"graph", "neutral_texts", "families", "key_versions"}
    assert str(built.folder) not in json.dumps(manifest) and "graph.jsonl" not in json.dumps(manifest)
    for key in manifest["keys"]["vectors"].values():
        assert re.fullmatch(r"[0-9a-f]{16}", key)


@pytest.mark.end_to_end
def test_the_commands_of_the_page_plan(project: Project) -> None:
    page = (tiny.REPOSITORY / "docs/releases.md").read_text().partition("## Releases\n")[2]
    sections = "".join(re.split(r"^## ", page, flags=re.MULTILINE)[:1]) + page.partition("## What the store saved\n")[2]
    commands = [line for block in re.findall(r"```sh\n(.*?)```", sections, re.DOTALL) for line in block.splitlines()]
    key = listed(project)[1][0]["key"]
    (project.folder / "release.json").write_text("{}")
    planned = []
    for command in commands:
        words = [word for word in shlex.split(command) if word not in ("--cores", "1", "all")]
        words = [
            {"graph=my-graph.jsonl": "graph=graph.jsonl", "model=my-model": "model=model"}.get(word, word) for word in words
        ]
        words = [re.sub(r'release="\w+"', f'release="{key}"', word) for word in words]
        if words[0] == "snakemake":
            planned.append(project.run("--dry-run", *words[1:]).ok().jobs)
    assert [len(jobs) for jobs in planned] == [1, 1, 0, 1]
    assert planned[1] == Counter([f"Publish release {key}"])
