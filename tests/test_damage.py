"""Damage to every kind of stored file: `verify` names it, and the next run repairs it and no more than that."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import tiny
from amygdala.build import Build
from amygdala.inspection import DAMAGED, MISSING, Inspection
from amygdala.inventory import paths_of, targets_of
from amygdala.progress import Ticker
from project import Project
from test_model_script import write_gguf

pytestmark = pytest.mark.end_to_end

EMOTIONS = ["calm", "joy"]
TARGETS = ["readout", "report", "compare", "ablation", "unseen", "emotion_joy"]
SEED = 6
FLIPS = 25  # bits of a file of each kind, one at a time
HISTORY = ("forwarded_texts", "forwarded_tokens")  # of a manifest: what the captures behind it had to forward
MEMO = re.compile(r"store/(memo|roots|ledger)/|activations/\w+/rate.json")  # no release rests on these


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with all that can be made of it: a converted model, neutral texts, a report, measurements."""
    folder = tmp_path_factory.mktemp("damage") / "project"
    folder.mkdir()
    write_gguf(folder / "tiny.gguf")
    project = Project.make(
        folder,
        tiny.sample_nodes()[:220],
        model="tiny.gguf",
        emotions={"select": "curated", "curated": EMOTIONS},
        min_examples=4,
        max_examples_per_emotion=30,
        target_layers=[1],
        denoise=0.5,
    )
    project.run(*TARGETS).ok()
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    return built.copy(tmp_path / "project")


def kinds_of(project: Project) -> dict[str, list[str]]:
    """{kind: stored files}; a kind is a path with its keys, emotions and layers left out. Memos are none."""
    found: dict[str, list[str]] = {}
    for path in sorted((project.folder / "store").rglob("*")):
        name = str(path.relative_to(project.folder))
        if path.is_file() and not MEMO.search(name):
            kind = re.sub(r"[0-9a-f]{16}", "KEY", name)
            kind = re.sub(rf"\b({'|'.join(EMOTIONS)})\b", "EMOTION", re.sub(r"layer_\d+", "LAYER", kind))
            found.setdefault(kind, []).append(name)
    return found


def one_of_each(project: Project) -> dict[str, str]:
    draw = random.Random(SEED)
    return {kind: draw.choice(paths) for kind, paths in sorted(kinds_of(project).items())}


def named_as(path: str) -> str:
    """The file that `verify` names for damage to this one: a converted model goes by its marker."""
    model = re.match(r"store/models/\w{16}(?=/)", path)
    return f"{model[0]}.json" if model else path


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, random.Random(f"{SEED} {path.name}").randrange(path.stat().st_size))


def flip(path: Path) -> None:
    flip_bit(path, random.Random(f"{SEED} {path.name}").randrange(8 * path.stat().st_size))


def flip_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def findings(project: Project) -> dict[str, str]:
    """{path: what is wrong with it} of the last `verify`."""
    told = json.loads((project.folder / "results/verify.json").read_text())
    return {one["path"]: one["what"] for one in told["found"]}


def shown(project: Project) -> dict[str, object]:
    """What is published, a manifest without what depends on which rows were there already."""
    found: dict[str, object] = {}
    for name, content in project.bytes_of("results/**/*").items():
        if name.endswith("manifest.json"):
            manifest = json.loads(content)
            for fact in HISTORY:
                manifest["capture"].pop(fact)
            manifest.pop("made_from")
            found[name] = manifest
        elif not name.endswith(("verify.json", ".html")) and "/.current/" not in name:
            found[name] = content
    return found


@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_damage_to_every_kind_of_file(project: Project, damage: Callable[[Path], None]) -> None:
    before, chosen = shown(project), one_of_each(project)
    assert len({path.split("/")[1] for path in chosen.values()}) == 17, sorted(chosen)
    for path in chosen.values():
        damage(project.folder / path)
    failed = project.run("verify")
    assert failed.status and "Traceback" not in failed.text
    found = findings(project)
    assert {named_as(path) for path in chosen.values()} <= found.keys()
    whats = {found[path] for path in chosen.values() if not path.startswith("store/models/")}
    assert whats <= ({MISSING, DAMAGED} if damage is delete else {DAMAGED})
    assert all(
        f"{found[named_as(path)]}: {named_as(path)}: " in failed.text for path in chosen.values() if damage is not delete
    )
    repaired = project.build()
    for what in ("Examples", "Vectors", "Heads", "Figures"):
        spoiled = {path.split("/")[2].split(".")[0] for path in chosen.values() if path.startswith(f"store/{what.lower()}/")}
        assert {job for job in repaired.jobs if job.startswith(what) and " of " in job} == {f"{what} of {e}" for e in spoiled}
    assert all((project.folder / path).exists() for path in chosen.values())
    assert shown(project) == before
    sound = project.run("verify").ok()
    assert "all sound" in sound.text and not findings(project)
    assert "Nothing to be done" in project.run(*TARGETS).ok().text


def test_a_sound_project_has_nothing_to_repair(built: Project, project: Project) -> None:
    """Every kind of file in the store is one that the check knows."""
    told = project.run("verify").ok()
    assert "all sound" in told.text and not findings(project)
    names = {path for paths in kinds_of(built).values() for path in paths}
    known = {str(path) for path in in_folder(built, lambda build: paths_of(targets_of(build)) | {build.current.index_path})}
    left = {path for path in names - known if not re.match(r"store/(models/\w+/|activations/\w+/layer_)", path)}
    assert not left


def in_folder(project: Project, what: Callable[[Build], set[str]]) -> set[str]:
    old = Path.cwd()
    os.chdir(project.folder)
    try:
        return what(build_of(project))
    finally:
        os.chdir(old)


def build_of(project: Project) -> Build:
    settings = yaml.safe_load((tiny.REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((project.folder / "config.yaml").read_text(encoding="utf-8"))
    emotions = {**settings["emotions"], **own["emotions"]}
    return Build({**settings, **own, "emotions": emotions}, tiny.REPOSITORY)


@pytest.fixture
def build(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    monkeypatch.chdir(project.folder)
    yield build_of(project)


def inspected(build: Build, only: str = "") -> dict[str, str]:
    """{path: what is wrong} of the files whose path holds `only`."""
    inspection = Inspection(build, Ticker(lambda line: None))
    for target in targets_of(build):
        for file in target.stored:
            if only in file.path and Path(file.path).exists():
                inspection.stored(file)
    return {one.path: one.what for one in inspection.found}


def test_no_flipped_bit_goes_unseen(build: Build, project: Project) -> None:
    draw = random.Random(SEED)
    assert not inspected(build)
    for kind, name in one_of_each(project).items():
        path = project.folder / name
        sound, looked_at = path.read_bytes(), named_as(name)
        if name.startswith("store/activations"):
            looked_at = "/index/"
        for bit in draw.sample(range(8 * len(sound)), FLIPS):
            flip_bit(path, bit)
            found = inspected(build, looked_at)
            assert found.get(named_as(name)) == DAMAGED, (kind, bit, sound[max(0, bit // 8 - 20) : bit // 8 + 20])
            path.write_bytes(sound)


def test_a_file_under_another_key_is_named(build: Build) -> None:
    """A whole file of another emotion, and of another key of the same emotion, in the place of the right one."""
    pairs = [
        (build.examples("calm"), build.examples("joy")),
        (build.vectors("calm")[0], build.vectors("joy")[0]),
        (build.heads("calm")[0], build.heads("joy")[0]),
        (build.figures("calm")[0], build.figures("joy")[0]),
        (build.quality, build.token_scores),
        (build.overview, build.report[1]),
        (build.all_indices[0], build.captured(build.unseen_index_key)[0]),
        (build.release(build.selections["readout"])[1], build.release(build.selections["emotion_joy"])[1]),
    ]
    for other, place in pairs:
        sound = Path(place).read_bytes()
        Path(place).write_bytes(Path(other).read_bytes())
        assert inspected(build, place) == {place: DAMAGED}
        Path(place).write_bytes(sound)


def test_a_published_file_that_was_edited_is_published_again(project: Project) -> None:
    before = shown(project) | project.bytes_of("results/**/manifest.json")
    for name in ("quality.json", "report/heads.svg", "emotions/joy/manifest.json"):
        with open(project.folder / "results" / name, "a") as file:
            file.write(" ")
    failed = project.run("verify")
    assert failed.status and "changed: results/quality.json: it is not store/quality/" in failed.text
    assert sorted(findings(project)) == [
        "results/emotions/joy/manifest.json",
        "results/quality.json",
        "results/report/heads.svg",
    ]
    jobs = project.build().jobs
    assert len(jobs) == 3 and all(job.startswith("Publish ") for job in jobs)
    assert shown(project) | project.bytes_of("results/**/manifest.json") == before


def test_a_store_that_cannot_be_written_says_so(build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from verify import verify

    place = Path(build.heads("joy")[0])
    flip(place)
    rename = os.replace

    def refuse(source: str, target: str) -> None:
        if str(target).endswith(".damaged"):
            raise OSError(30, "Read-only file system")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    said: list[str] = []
    with pytest.raises(Exception, match="1 damaged"):
        verify(build, None, said.append)
    assert any("could not be set aside (Read-only file system): delete it" in line and str(place) in line for line in said)
