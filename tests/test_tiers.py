"""Stores that are read and never written: which file is linked from which, and which never."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amygdala.build import Build
from amygdala.errors import UserError
from amygdala.segments import Reader, held_rows, set_aside
from amygdala.tiers import Tiers, files_of, model_of, take
from builds import make_build, make_config
from segmented import FLUSHES, LAYERS, digest_of, flip, holds, make_store, span
from tiny import REPOSITORY

NAME = "vectors/joy.0123456789abcdef/layer_001.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("store", "one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(path: Path, text: str = "sound") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def tiers(*paths: str, store: str = "store") -> Tiers:
    return Tiers(store, paths or ("one", "two"))


# Which file


def test_a_missing_file_is_linked_by_an_absolute_path(folder: Path) -> None:
    source = put(folder / "one" / NAME)
    before = source.lstat()
    assert tiers().take([f"store/{NAME}", "store/quality/absent.json"]) == 1
    link = folder / "store" / NAME
    assert link.is_symlink()
    assert link.readlink() == source
    assert not (folder / "store" / "quality").exists()
    assert source.lstat() == before


@pytest.mark.parametrize("store", ["store", "./store", "{folder}/store", "sub/../store"])
def test_the_store_may_be_named_in_any_way(folder: Path, store: str) -> None:
    put(folder / "one" / NAME)
    (folder / "sub").mkdir()
    store = str(Path(store.format(folder=folder)))
    assert tiers(store=store).take([f"{store}/{NAME}"]) == 1
    assert (folder / "store" / NAME).read_text() == "sound"


@pytest.mark.parametrize("given", ["one/", "./one", "sub/../one", "~/one"])
def test_a_store_to_read_may_be_named_in_any_way(folder: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("HOME", str(folder))
    put(folder / "one" / NAME)
    (folder / "sub").mkdir()
    tiers(given).take([f"store/{NAME}"])
    assert Path(f"store/{NAME}").readlink() == folder / "one" / NAME


def test_a_file_of_the_own_store_wins(folder: Path) -> None:
    put(folder / "one" / NAME, "theirs")
    own = put(folder / "store" / NAME, "mine")
    assert tiers().take([f"store/{NAME}"]) == 0
    assert not own.is_symlink()
    assert own.read_text() == "mine"


def test_the_first_store_that_has_a_file_gives_it(folder: Path) -> None:
    put(folder / "two" / NAME, "second")
    assert tiers().take([f"store/{NAME}"]) == 1
    put(folder / "one" / NAME, "first")
    put(folder / "one" / "b", "first")
    put(folder / "two" / "b", "second")
    assert tiers().take([f"store/{NAME}", "store/b"]) == 1  # a link that leads somewhere stays
    assert [Path(f"store/{name}").read_text() for name in (NAME, "b")] == ["second", "first"]


def test_a_link_that_leads_nowhere_is_made_anew(folder: Path) -> None:
    put(folder / "one" / NAME)
    tiers().take([f"store/{NAME}"])
    (folder / "one").rename(folder / "moved")
    assert tiers("two").take([f"store/{NAME}"]) == 0
    assert tiers("moved").take([f"store/{NAME}"]) == 1
    assert Path(f"store/{NAME}").readlink() == folder / "moved" / NAME


def test_a_link_of_another_store_that_leads_nowhere_is_not_taken(folder: Path) -> None:
    (folder / "one" / "a").symlink_to(folder / "gone")
    put(folder / "two" / "a")
    assert tiers("one").take(["store/a"]) == 0
    assert not Path("store/a").is_symlink()
    assert tiers().take(["store/a"]) == 1
    assert Path("store/a").readlink() == folder / "two" / "a"


def test_two_stores_may_read_each_other(folder: Path) -> None:
    put(folder / "one" / "a")
    assert Tiers("store", ["one"]).take(["store/a"]) == 1
    (folder / "one" / "a").unlink()
    assert Tiers("one", ["store"]).take(["one/a"]) == 0


def test_a_damaged_file_is_not_taken_again_from_the_store_that_gave_it(folder: Path) -> None:
    for name in ("one", "two"):
        put(folder / name / NAME, name)
    path = Path("store") / NAME
    tiers().take([str(path)])
    assert set_aside(path) == "it was set aside as layer_001.safetensors.damaged"
    assert tiers("one").take([str(path)]) == 0
    assert tiers().take([str(path)]) == 1
    assert path.read_text() == "two"
    set_aside(path)  # the mark of the first store is overwritten; it is not asked again all the same
    assert tiers().take([str(path)]) == 0
    assert not path.exists()
    assert (folder / "one" / NAME).read_text() == "one"


def test_a_damaged_file_of_the_own_store_may_be_replaced(folder: Path) -> None:
    path = put(folder / "store" / NAME, "damaged")
    put(folder / "one" / NAME)
    set_aside(path)
    assert tiers().take([f"store/{NAME}"]) == 1


def test_a_link_that_leads_nowhere_is_no_damaged_file(folder: Path) -> None:
    put(folder / "one" / "a")
    tiers().take(["store/a"])
    (folder / "one").rename(folder / "away")
    assert set_aside(Path("store/a")) == "it is gone"
    (folder / "away").rename(folder / "one")
    assert tiers().take(["store/a"]) == 1


def test_another_run_may_make_the_same_file_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "one" / "a", "theirs")
    real: Callable[..., None] = Path.symlink_to

    def late(path: Path, target: Path) -> None:
        monkeypatch.setattr(Path, "symlink_to", real)
        put(path, "mine")
        real(path, target)

    monkeypatch.setattr(Path, "symlink_to", late)
    assert tiers().take(["store/a"]) == 0
    assert Path("store/a").read_text() == "mine"


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_folders_follow_the_umask(folder: Path, mask: int) -> None:
    put(folder / "one" / NAME)
    before = os.umask(mask)
    try:
        tiers().take([f"store/{NAME}"])
    finally:
        os.umask(before)
    assert stat.S_IMODE((Path("store") / NAME).parent.stat().st_mode) == 0o777 & ~mask


def test_a_copy_that_follows_links_needs_no_other_store(folder: Path) -> None:
    for name in (NAME, "quality/key.json"):
        put(folder / "one" / name, name)
    tiers().take([f"store/{NAME}", "store/quality/key.json"])
    subprocess.run(["cp", "-rL", "store", "store-of-my-own"], check=True)
    shutil.rmtree("one")
    assert [(Path("store-of-my-own") / name).read_text() for name in (NAME, "quality/key.json")] == [NAME, "quality/key.json"]


# What is wrong


def test_a_store_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"store_read: 'absent' is no folder .*Mount it, or take it out of store_read"):
        tiers("one", "absent")
    put(folder / "file")
    with pytest.raises(UserError, match=r"'file' is no folder"):
        tiers("file")
    with pytest.raises(UserError, match=r"'a\\x1b\[2J' is no folder"):
        tiers("a\x1b[2J")


@pytest.mark.parametrize("given", ["store", "sub/../store", "link"])
def test_the_store_itself(folder: Path, given: str) -> None:
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(folder / "store")
    with pytest.raises(UserError, match=f"store_read: '{given}' is the store itself"):
        tiers(given)


def test_a_store_that_is_not_made_yet(folder: Path) -> None:
    put(folder / "one" / NAME)
    assert tiers(store="new").take([f"new/{NAME}"]) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOSPC])
def test_a_link_that_cannot_be_made(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    put(folder / "one" / "a")

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "symlink_to", fail)
    with pytest.raises(UserError, match=f"store_read: store/a cannot be linked to .*one/a: {os.strerror(number)}"):
        tiers().take(["store/a"])


def test_a_file_that_its_owner_keeps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = put(folder / "one" / "a")
    monkeypatch.setattr(os, "access", lambda path, mode: path != kept)
    with pytest.raises(UserError, match=r"store_read: .*one/a may not be read\. Ask its owner"):
        tiers().take(["store/a"])
    assert not Path("store/a").is_symlink()


def test_a_folder_that_its_owner_keeps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_dir", fail)
    with pytest.raises(UserError, match=r"store_read: .*one/vectors/.*: Permission denied\. Ask its owner"):
        tiers().take([f"store/{NAME}"])


# Segments


def test_segments_of_a_space_are_linked_whatever_their_layer(folder: Path) -> None:
    space = "activations/0123456789abcdef"
    for name in ("layer_001/a", "layer_001/b", "layer_004/a"):
        put(folder / "one" / space / f"{name}.safetensors")
    put(folder / "two" / space / "layer_001" / "c.safetensors")
    for other in (
        "layer_001/x.safetensors.damaged",
        "layer_001/.d.safetensors.1.tmp",
        "index/shard_0.k.safetensors",
        "rate.json",
    ):
        put(folder / "one" / space / other)
    put(folder / "one" / "activations/other/layer_001/a.safetensors")
    own = put(folder / "store" / space / "layer_001" / "b.safetensors", "mine")
    assert tiers().take_segments([f"store/{space}", "store/activations/absent"]) == 3
    linked = sorted(str(path.relative_to(folder / "store" / space)) for path in Path("store").resolve().rglob("*.safetensors"))
    assert linked == [f"layer_00{name}.safetensors" for name in ("1/a", "1/b", "1/c", "4/a")]
    assert own.read_text() == "mine"
    assert tiers().take_segments([f"store/{space}"]) == 0


def test_an_index_that_names_a_damaged_segment_of_another_store_is_not_taken_again(tmp_path: Path) -> None:
    """Else each run would find the index, miss the segment, and stop."""
    theirs, own = make_store(tmp_path / "theirs"), tmp_path / "own"
    flip(theirs.paths[4, 1], span(theirs.paths[4, 1], "residual")[0])
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*.*") if path.is_file()}

    def link(path: Path) -> Path:
        return own / path.relative_to(tmp_path / "theirs")

    def take_all() -> int:
        there = Tiers(str(own), [str(tmp_path / "theirs")])
        indices = [str(link(path)) for path in (theirs.index_a, theirs.index_b) if path.exists()]
        return there.take(indices) + there.take_segments([str(link(theirs.space))])

    assert take_all() == len(LAYERS) * len(FLUSHES) + 2
    reader = Reader([link(theirs.index_a), link(theirs.index_b)])
    with pytest.raises(UserError, match="fails its checksum; it was set aside"):
        reader.rows(4, "residual", [digest_of(number) for number in range(9)])
    assert take_all() == 0
    assert not link(theirs.index_a).exists()
    assert link(theirs.index_b).exists()
    held = held_rows(link(theirs.space), 4)
    assert [number for number in range(9) if not holds(held, number)] == [4, 5, 6]
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_index_of_another_store_is_not_taken_again(tmp_path: Path) -> None:
    theirs, own = make_store(tmp_path / "theirs"), tmp_path / "own"
    theirs.index_a.write_bytes(theirs.index_a.read_bytes()[:-1])
    path = own / theirs.index_a.relative_to(tmp_path / "theirs")
    there = Tiers(str(own), [str(tmp_path / "theirs")])
    assert there.take([str(path)]) == 1
    with pytest.raises(UserError, match="is damaged"):
        Reader([path])
    assert there.take([str(path)]) == 0
    assert theirs.index_a.is_file()


def test_a_layer_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all its texts would go through the model once more."""
    store = make_store(tmp_path)

    def fail(path: Path) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(UserError, match=r"layer_004: Permission denied\. Ask its owner"):
        held_rows(store.space, 4)
    with pytest.raises(UserError, match=r"store_read: .*: Permission denied\. Ask its owner"):
        Tiers("elsewhere", [str(tmp_path)]).take_segments([f"elsewhere/activations/{store.space.name}"])


# A build's own


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return make_config(tmp_path, tiny_model, monkeypatch)


def test_no_key_and_no_manifest_knows_the_stores_to_read(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tier").mkdir()
    plain, shared = make_build({**config, "store_read": []}), make_build({**config, "store_read": ["tier"]})
    assert plain.facts() == shared.facts()
    assert list(files_of(plain)) == list(files_of(shared))


def test_jobs_look_into_no_other_store(config: dict[str, Any]) -> None:
    make_build({**config, "store_read": ["absent"]})
    with pytest.raises(UserError, match="absent"):
        Build({**config, "store_read": ["absent"]}, REPOSITORY, share=True)


def test_every_file_that_a_build_names_is_taken(config: dict[str, Any], tmp_path: Path) -> None:
    build = make_build(config)
    named = {path.removeprefix("store/") for path in files_of(build)}
    assert len(named) == len(list(files_of(build)))
    kinds = {name.partition("/")[0] for name in named}
    stages = {"snapshots", "examples", "activations", "texts", "weights", "vectors", "heads", "figures", "quality", "releases"}
    assert kinds == {*stages, "overviews", "compare", "ablation", "unseen", "tokens", "reports"}
    for name in named:
        put(tmp_path / "tier" / name)
    memo = [str(path.relative_to("store")) for path in Path("store/memo").glob("plan.*")]
    index = build.current.index_path.removeprefix("store/")
    for name in (*memo, index):
        put(tmp_path / "tier" / name).write_bytes((Path("store") / name).read_bytes())
    shared = Build({**config, "store": "fresh", "store_read": ["tier"]}, REPOSITORY, share=True)
    assert take(shared) == len(named)
    assert all((Path("fresh") / name).is_symlink() for name in (*named, *memo, index))
    assert take(shared) == 0


def test_a_converted_model_is_taken_with_its_folder_and_a_fetched_one_never(config: dict[str, Any]) -> None:
    """Where a hub's model lies is another machine's affair."""
    embedded = make_build(config, model="embedded")
    assert model_of(embedded) == [f"store/models/{embedded.model_key}", f"store/models/{embedded.model_key}.json"]
    assert model_of(make_build(config)) == []
