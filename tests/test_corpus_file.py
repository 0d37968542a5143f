"""The index's file: whatever is wrong with it, it is made again."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amygdala import snapshots
from amygdala.corpus import Index, make_index, read_index, write_index
from amygdala.graph import Node, Skipped, read_snapshot
from amygdala.snapshots import index_beside, index_path, names_looked_for
from nodes import node, same, written


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Index]:
    """A snapshot, the file of its index, and the index."""
    folder = tmp_path_factory.mktemp("stored")
    nodes = [
        node("It rained, and joy came late to all of us, joy:3 at most.", "a", "storm", joy=9, self_doubt=2),
        node("Nothing of note: self doubt, bread, a walk.", "b", "letter", "notes", awe=8.5),
        node("", "c", joy=1),
        node("Third and last of them all.", "d"),
    ]
    snapshot = written(folder / "snapshot.jsonl", nodes)
    index = make_index(nodes, [Skipped("file", "bad", "score '11' is outside 0-10")], ["joyful"])
    path = folder / "index.safetensors"
    write_index(path, index)
    return snapshot, path, index


def test_an_index_is_read_back_as_it_was(stored: tuple[Path, Path, Index]) -> None:
    _, path, index = stored
    read = read_index(path)
    assert read is not None and same(read, index)
    assert read.mentions.names.keys() == {"joy", "self_doubt"}
    assert [len(part) for part in read.tags["unheard_of"]] == [0, 0]
    assert path.read_bytes().isascii() is False  # digests are bytes


def test_the_same_index_is_the_same_bytes(stored: tuple[Path, Path, Index], tmp_path: Path) -> None:
    _, path, index = stored
    write_index(tmp_path / "again", index)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_any_flipped_bit_is_seen(stored: tuple[Path, Path, Index], tmp_path: Path) -> None:
    """One bit of every byte, and all eight of every seventh."""
    content = stored[1].read_bytes()
    damaged = tmp_path / "index"
    missed = []
    for place in range(len(content)):
        for bit in range(8) if place % 7 == 0 else [place * 5 % 8]:
            damaged.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            if read_index(damaged) is not None:
                missed.append((place, bit))
    assert missed == []


def test_any_cut_and_anything_behind_is_seen(stored: tuple[Path, Path, Index], tmp_path: Path) -> None:
    content = stored[1].read_bytes()
    damaged = tmp_path / "index"
    kept = [content[:length] for length in (*range(0, len(content), 3), len(content) - 1)]
    for data in [*kept, content + b"\0", content + content, content[8:], bytes(len(content)), b"\xff" * 64, b"{}"]:
        damaged.write_bytes(data)
        assert read_index(damaged) is None, len(data)


def test_a_well_formed_file_with_another_sum_is_seen(stored: tuple[Path, Path, Index], tmp_path: Path) -> None:
    """What a flipped bit can't make: whole values changed, arrays renamed, left out or of another shape."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    arrays = load_file(stored[1])
    with safe_open(stored[1], "np") as file:
        facts = json.loads(file.metadata()["facts"])
    unlike = [
        (arrays, {**facts, "facts": {**facts["facts"], "nodes": 5}}),
        (arrays, {**facts, "tags": facts["tags"][::-1]}),
        (arrays, {name: value for name, value in facts.items() if name != "sum"}),
        (arrays, [facts]),
        ({**arrays, "chars": arrays["chars"].astype(np.int64)}, facts),
        ({**arrays, "chars": arrays["chars"].view(np.uint32)}, facts),
        ({**arrays, "digests": arrays["digests"].reshape(-1, 8)}, facts),
        ({**arrays, "offsets": arrays["sizes"], "sizes": arrays["offsets"]}, facts),
        ({name: array for name, array in arrays.items() if name != "twins"}, facts),
    ]
    path = tmp_path / "index"
    for tensors, header in unlike:
        save_file(tensors, path, {"facts": json.dumps(header)})
        assert read_index(path) is None
    save_file(arrays, path)
    assert read_index(path) is None
    save_file(arrays, path, {"facts": json.dumps(facts)})
    assert read_index(path) is not None


def test_names_of_any_script_come_back_or_the_index_is_none(tmp_path: Path) -> None:
    """A hex digit of an escaped letter may change its case and say the same."""
    index = make_index([Node("file", "k", "Ein Élan, 猫 und स्नेह", {"élan": 9.0, "猫": 8.0, "स्नेह": 1.0}, None, "scène")])
    path = tmp_path / "index"
    write_index(path, index)
    content = path.read_bytes()
    for place in range(0, len(content), 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :])
        read = read_index(path)
        assert read is None or same(read, index)
    path.write_bytes(content)
    read = read_index(path)
    assert read is not None and same(read, index)


@pytest.mark.parametrize("kind", ["missing", "a folder", "unreadable folder"])
def test_an_index_that_is_no_file_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "index"
    if kind == "a folder":
        path.mkdir()
    elif kind == "unreadable folder":
        path.touch()
        path = path / "index"
    assert read_index(path) is None


def unread(*_: Any, **__: Any) -> Any:
    raise AssertionError("the snapshot was read")


def test_a_sound_index_is_used_without_the_snapshot(stored: tuple[Path, Path, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "index_of_snapshot", unread)
    assert same(index_beside(stored[1], "nowhere.jsonl", {}, []), stored[2])


@pytest.mark.parametrize("state", ["missing", "damaged", "empty", "a folder"])
def test_a_missing_or_damaged_index_is_made_again_from_the_snapshot(
    stored: tuple[Path, Path, Index], tmp_path: Path, state: str
) -> None:
    """The same as the first, with what only the first reading could know: the nodes that were skipped."""
    snapshot, whole, index = stored
    path = tmp_path / "store" / "index"
    if state != "missing":
        path.parent.mkdir()
    if state == "damaged":
        content = bytearray(whole.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif state == "empty":
        path.touch()
    elif state == "a folder":
        path.mkdir()
    facts = {name: index.facts[name] for name in ("skipped", "skipped_nodes")}
    again = index_beside(path, snapshot, facts, ["joyful"])
    assert same(again, index)
    if state != "a folder":
        assert path.read_bytes() == whole.read_bytes(), "stored for the next job"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_an_index_that_cannot_be_stored_is_no_error(
    stored: tuple[Path, Path, Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    snapshot, _, index = stored

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    facts = {name: index.facts[name] for name in ("skipped", "skipped_nodes")}
    assert same(index_beside(tmp_path / "index", snapshot, facts, ["joyful"]), index)
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_the_snapshot_moves_places_alone(stored: tuple[Path, Path, Index]) -> None:
    nodes = list(read_snapshot(stored[0]))
    expected = make_index(nodes)
    random.Random(1).shuffle(nodes)
    shuffled = make_index(nodes)
    assert not np.array_equal(shuffled.offsets, expected.offsets)
    assert same(dataclasses.replace(shuffled, offsets=expected.offsets), expected)


# The name of the file


def test_names_looked_for_are_aliases_and_what_they_stand_for() -> None:
    assert names_looked_for({"emotions": {"aliases": {}}}) == []
    assert names_looked_for({"emotions": {"aliases": {"Joyful": "JOY", "glee": "joy", "ＦＥＡＲ": "dread"}}}) == [
        *("dread", "fear", "glee", "joy", "joyful")
    ]


def test_the_index_path_names_the_snapshot_what_is_looked_for_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    path = index_path("store", "0123456789abcdef", ["joy"])
    assert path.startswith("store/snapshots/0123456789abcdef.") and path.endswith(".safetensors")
    others = [index_path("store", "0123456789abcdef", []), index_path("store", "0123456789abcdee", ["joy"])]
    others.append(index_path("store", "0123456789abcdef", ["joy", "joyful"]))
    monkeypatch.setattr(snapshots, "code", lambda entry: "other" if entry == "amygdala.corpus" else "same")
    others.append(index_path("store", "0123456789abcdef", ["joy"]))
    assert len({path, *others}) == 5
