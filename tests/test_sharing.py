"""Stores that several workflows share: what a store that is only read gives, and that nothing ever changes it."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from amygdala.build import check
from project import Project

pytestmark = pytest.mark.end_to_end

EMOTIONS = ["calm", "joy"]
PUBLISH = "Publish readout in results/readout"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    yield
    os.umask(before)


def state(store: Path) -> dict[str, Any]:
    """{path: bytes, mode, times} of all that lies in a store, links as such."""
    found: dict[str, Any] = {}
    for path in sorted(store.rglob("*")):
        facts = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(store))] = (content, facts.st_mode, facts.st_mtime_ns, facts.st_ino)
    return found


def modes(store: Path, known: dict[str, Any] | None = None) -> dict[str, set[str]]:
    """{octal mode: suffixes of the files and folders with it} less those in `known`."""
    found: dict[str, set[str]] = {"files": set(), "folders": set()}
    for path in store.rglob("*"):
        if str(path.relative_to(store)) not in (known or {}) and not path.is_symlink():
            found["folders" if path.is_dir() else "files"].add(f"{stat.S_IMODE(path.stat().st_mode):o}")
    return found


def links(store: Path) -> list[Path]:
    return [path for path in store.rglob("*") if path.is_symlink() and not path.name.endswith(".damaged")]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """The project of another user, built with a umask that lets a group write."""
    project = Project.make(
        tmp_path_factory.mktemp("first") / "project",
        tiny.sample_nodes()[:200],
        model=str(tiny_model),
        emotions={"select": "curated", "curated": EMOTIONS},
        max_examples_per_emotion=40,
        min_examples=4,
        target_layers=[1, 2],
    )
    with umask(0o002):
        assert project.build().forwarded > 20
    return project


@pytest.fixture
def tier(first: Project, tmp_path: Path) -> Path:
    """A copy of its store, which a test may damage."""
    return first.copy(tmp_path / "first").folder / "store"


@pytest.fixture
def second(first: Project, tier: Path, tmp_path: Path) -> Project:
    """A project elsewhere with the same graph and configuration, and an empty store behind which that store is read."""
    project = Project.make(tmp_path / "elsewhere" / "second", first.nodes())
    (project.folder / "config.yaml").write_text((first.folder / "config.yaml").read_text())
    project.configure(store_read=[str(tier)])
    return project


def test_the_page_s_configuration_is_valid() -> None:
    page = (tiny.REPOSITORY / "docs/sharing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    defaults = yaml.safe_load((tiny.REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    for block in blocks:
        check({**defaults, **yaml.safe_load(block)}, tiny.REPOSITORY)


def test_a_shared_store_has_the_modes_that_the_umask_says(first: Project) -> None:
    assert modes(first.folder / "store") == {"files": {"664"}, "folders": {"775"}}


def test_stored_files_name_no_folder_of_their_maker(first: Project, tiny_model: Path) -> None:
    """So that they are the same bytes whoever makes them, and a store can be moved. (Memos and roots are of one
    machine.)
    """
    mine = [str(part).encode() for part in (first.folder.parent, tiny_model.parent, tiny.REPOSITORY, Path.home())]
    for path in (first.folder / "store").rglob("*"):
        if path.is_file() and path.relative_to(first.folder / "store").parts[0] not in ("memo", "roots"):
            content = path.read_bytes()
            assert not [part for part in mine if part in content], path


def test_another_user_finds_everything_in_a_store_that_is_read(
    first: Project, second: Project, tier: Path, tmp_path: Path
) -> None:
    before = state(tier)
    other = {"HOME": str(tmp_path), "PYTHONHASHSEED": "1", "LC_ALL": "C", "LANG": "C", "TZ": "Asia/Tokyo", "USER": "second"}
    with umask(0o027):
        foreseen = second.run("--dry-run", **other).ok()
        done = second.run(**other).ok()
    assert foreseen.jobs == done.jobs == Counter([PUBLISH])
    assert second.bytes_of("results/readout/*") == first.bytes_of("results/readout/*")
    assert modes(second.folder / "store") == {"files": {"640"}, "folders": {"750"}}  # the model's memo and links
    second.run("--touch", "--forceall").ok()
    assert state(tier) == before


def test_only_what_no_store_holds_is_made(second: Project, tier: Path) -> None:
    before = state(tier)
    nodes = second.nodes()
    new = {"key": "journal/new", "text": "The kettle sang and for once nobody wanted anything of me at all, all day.\ncalm:9"}
    second.write_nodes([*nodes, new])
    with umask(0o027):
        done = second.run().ok()
    assert done.forwarded == 1
    assert "Output projections and neurons of layers 1 2" not in done.jobs
    assert modes(second.folder / "store") == {"files": {"640"}, "folders": {"750"}}
    second.write_nodes(nodes)  # the other user's graph again
    assert second.run().ok().jobs == Counter([PUBLISH])
    assert state(tier) == before


def test_a_failed_job_writes_nothing_through_a_link(second: Project, tier: Path) -> None:
    """Snakemake copies outputs that a job may update aside, and back in place after it failed."""
    lost = next((tier / "vectors").glob("joy.*"))
    for path in lost.iterdir():
        path.unlink()
    before = state(tier)
    second.run("--dry-run").ok()
    examples = second.path("store/examples/joy.*")
    examples.unlink()
    examples.write_text("[")
    failed = second.run("vectors")
    assert failed.status != 0
    assert "Vectors of joy" in failed.jobs
    assert "is damaged" in failed.text
    assert state(tier) == before
    calm = second.path("store/vectors/calm.*/layer_001.safetensors")
    assert calm.is_symlink()
    assert calm.exists()


def test_a_damaged_segment_of_another_store_is_not_taken_again(second: Project, tier: Path) -> None:
    for made in ("vectors", "heads", "figures", "quality", "releases"):
        shutil.rmtree(tier / made)
    segment = next((tier / "activations").glob("*/layer_002/*.safetensors"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    before = state(tier)
    failed = second.run()
    assert failed.status != 0
    assert f"{segment.name} is damaged" in failed.text
    mended = second.run().ok()
    assert mended.forwarded > 20
    assert mended.jobs["Snapshot of graph.jsonl"] == mended.jobs["Examples of joy"] == 0
    assert state(tier) == before


def test_a_store_that_went_away(second: Project, tier: Path) -> None:
    foreseen = second.run("--dry-run").ok()
    gone = tier.rename(tier.with_name("gone"))
    refused = second.run("--dry-run")
    assert refused.status != 0
    assert f"store_read: '{tier}' is no folder" in refused.text
    second.configure(store_read=[str(gone)])  # where it went: each link leads there now
    assert second.run("--dry-run").ok().jobs == foreseen.jobs == Counter([PUBLISH])
    assert {path.readlink().is_relative_to(gone) for path in links(second.folder / "store")} == {True}
    gone.rename(gone.with_name("far"))
    second.configure(store_read=[])
    known = state(second.folder / "store")
    with umask(0o077):
        done = second.run().ok()
    assert done.forwarded > 20
    assert done.jobs["Vectors of joy"] == done.jobs["Snapshot of graph.jsonl"] == 1
    assert modes(second.folder / "store", known) == {"files": {"600"}, "folders": {"700"}}, "a root's folder"
