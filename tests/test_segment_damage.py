"""Segments and indices that are damaged or gone: named, out of the way, and computed anew."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amygdala import segments
from amygdala.errors import UserError
from amygdala.segments import HEADS, RESIDUAL, DamagedError, Reader, held_rows, write_segment
from segmented import (
    FLUSHES,
    HEAD_DIM,
    HIDDEN,
    LAYERS,
    LAYOUT,
    N_HEADS,
    NO_HEADS,
    Store,
    digest_of,
    digests_held,
    flip,
    holds,
    index_over,
    rows_of,
    said,
    span,
    values_of,
)


def assert_lost(store: Store, layer: int, flush: int, message: str, aside: bool = True) -> None:
    """The damaged segment is named, set aside, out of the glob; the indices that name it are gone, others stay."""
    path = store.paths[layer, flush]
    assert str(path) in message
    assert "Run snakemake again" in message
    assert not path.exists()
    assert path.with_name(path.name + ".damaged").exists() is aside
    assert store.index_a.exists() is (flush == 3)
    assert store.index_b.exists() is (flush != 3)
    others = [other for key, other in store.paths.items() if key != (layer, flush)]
    assert all(other.exists() for other in others)


def repair(store: Store) -> Reader:
    """What the next run does: compute the rows that the store lacks, write both indices."""
    for layer in LAYERS:
        held = held_rows(store.space, layer)
        numbers = [number for flush in FLUSHES for number in flush]
        lacking = [number for number in numbers if not holds(held, number)]
        if lacking:
            rows = rows_of(lacking, layer, heads=layer != 7)
            write_segment(store.space, layer, rows, NO_HEADS if layer == 7 else LAYOUT)
    index_over(store.space, "a", range(9), LAYERS, tokens=11)
    index_over(store.space, "b", range(20, 24), LAYERS, tokens=22)
    return store.reader()


@pytest.mark.parametrize("flush", [1, 3])
@pytest.mark.parametrize("kind", [RESIDUAL, HEADS])
@pytest.mark.parametrize("where", ["values", "checksums"])
@pytest.mark.parametrize("bit", [0, 7])
def test_flipped_bit(store: Store, flush: int, kind: str, where: str, bit: int) -> None:
    path = store.paths[4, flush]
    _, end = span(path, kind if where == "values" else f"{kind}_crc")
    flip(path, end - 1, bit)  # in the last row
    *sound, damaged = FLUSHES[flush]
    width = HIDDEN if kind == RESIDUAL else N_HEADS * HEAD_DIM
    rows = store.reader().rows(4, kind, [digest_of(number) for number in sound])
    assert np.array_equal(rows, np.stack([values_of(number, 4, width) for number in sound]))
    with pytest.raises(UserError, match=f"is damaged: the row of text {digest_of(damaged)} fails its checksum") as caught:
        store.reader().rows(4, kind, [digest_of(sound[0]), digest_of(damaged)])
    assert_lost(store, 4, flush, str(caught.value))
    assert "set aside as" in str(caught.value)
    rows = repair(store).rows(4, kind, [digest_of(damaged)])
    assert np.array_equal(rows[0], values_of(damaged, 4, width))


def test_every_single_bit_of_a_row_counts(tmp_path: Path) -> None:
    original = write_segment(tmp_path, 0, rows_of([0, 1], 0), LAYOUT).read_bytes()
    path = next((tmp_path / "layer_000").iterdir())
    begin, end = span(path, RESIDUAL)
    for position in range(begin, begin + (end - begin) // 2):
        for bit in range(8):
            path.write_bytes(original)
            index = index_over(tmp_path, "a", [0, 1], [0])
            flip(path, position, bit)
            with pytest.raises(UserError, match="fails its checksum"):
                Reader([index]).rows(0, RESIDUAL, [digest_of(0)])


CUTS = {"last byte": -1, "half": 0.5, "in the header": 20, "in the length": 5, "empty": 0}


def cut_short(path: Path, where: str) -> None:
    content, cut = path.read_bytes(), CUTS[where]
    path.write_bytes(content[: int(len(content) * cut)] if isinstance(cut, float) else content[:cut])


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("flush", [0, 3])
def test_segment_cut_short(store: Store, where: str, flush: int) -> None:
    reader = store.reader()
    cut_short(store.paths[1, flush], where)
    number = FLUSHES[flush][0]
    with pytest.raises(UserError, match="is damaged: unreadable") as caught:
        reader.rows(1, RESIDUAL, [digest_of(number)])
    assert_lost(store, 1, flush, str(caught.value))
    assert np.array_equal(repair(store).rows(1, RESIDUAL, [digest_of(number)])[0], values_of(number, 1, HIDDEN))


def test_segment_with_bytes_too_many(store: Store) -> None:
    path = store.paths[1, 0]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="is damaged: unreadable") as caught:
        store.reader().rows(1, RESIDUAL, [digest_of(0)])
    assert_lost(store, 1, 0, str(caught.value))


@pytest.mark.parametrize("flush", [2, 3])
def test_missing_segment(store: Store, flush: int) -> None:
    store.paths[7, flush].unlink()
    number = FLUSHES[flush][1]
    with pytest.raises(UserError, match="is damaged: missing; it is gone") as caught:
        store.reader().rows(7, RESIDUAL, [digest_of(number)])
    assert_lost(store, 7, flush, str(caught.value), aside=False)
    assert np.array_equal(repair(store).rows(7, RESIDUAL, [digest_of(number)])[0], values_of(number, 7, HIDDEN))


def with_header(path: Path, header: bytes, length: int | None = None) -> None:
    content = path.read_bytes()
    (old,) = struct.unpack("<Q", content[:8])
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + content[8 + old :])


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "not JSON": lambda header: b"x" + header[1:],
    "not UTF-8": lambda header: header.replace(b"residual", b"resid\xffal"),
    "a list": lambda header: b"[]",
    "no offsets": lambda header: header.replace(b"data_offsets", b"data_offset_"),
    "tensor renamed": lambda header: header.replace(b'"residual"', b'"residuum"'),
    "unknown number format": lambda header: header.replace(b'"F32"', b'"Q32"'),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_damaged_header_of_a_segment(store: Store, damage: str) -> None:
    path = store.paths[1, 0]
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    with_header(path, HEADERS[damage](content[8 : 8 + length]))
    with pytest.raises(UserError, match="is damaged: unreadable") as caught:
        store.reader().rows(1, RESIDUAL, [digest_of(0)])
    assert_lost(store, 1, 0, str(caught.value))
    assert np.array_equal(repair(store).rows(1, RESIDUAL, [digest_of(0)])[0], values_of(0, 1, HIDDEN))


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_wrong_header_length(store: Store, length: int) -> None:
    path = store.paths[1, 0]
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(UserError, match="is damaged: unreadable") as caught:
        store.reader().rows(1, RESIDUAL, [digest_of(0)])
    assert_lost(store, 1, 0, str(caught.value))


def test_segment_that_two_shards_name(store: Store) -> None:
    both = index_over(store.space, "both", [0, 20], LAYERS)
    store.paths[1, 0].unlink()
    with pytest.raises(UserError, match="missing"):
        Reader([store.index_a, store.index_b, both]).rows(1, RESIDUAL, [digest_of(20), digest_of(0)])
    assert not store.index_a.exists() and not both.exists()
    assert store.index_b.exists()


def test_two_readers_of_one_damaged_segment_both_say_so(store: Store) -> None:
    """The first sets it aside and removes the index, while the second has the index open."""
    first, second = store.reader(), store.reader()
    flip(store.paths[1, 0], span(store.paths[1, 0], RESIDUAL)[0])
    for reader, done in ((first, "it was set aside"), (second, "it is gone")):
        with pytest.raises(UserError, match=done):
            reader.rows(1, RESIDUAL, [digest_of(0)])


def test_damage_that_cannot_be_set_aside_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.paths[1, 0]
    cut_short(path, "half")

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"could not be set aside \(Read-only file system\): delete it"):
        store.reader().rows(1, RESIDUAL, [digest_of(0)])


def damage_index(path: Path, damage: str) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if damage in CUTS:
        cut_short(path, damage)
    elif damage == "missing":
        path.unlink()
    elif damage == "not JSON":
        with_header(path, b"x" + content[9 : 8 + length])
    elif damage == "other metadata":
        with_header(path, content[8 : 8 + length].replace(b'"facts"', b'"fakts"'))
    elif damage == "metadata not JSON":
        with_header(path, content[8 : 8 + length].replace(b'"facts":"{', b'"facts":"x'))
    elif damage == "no digests":
        with_header(path, content[8 : 8 + length].replace(b'"digests"', b'"disgusts"'))


@pytest.mark.parametrize(
    "damage", [*CUTS, "missing", "not JSON", "other metadata", "metadata not JSON", "no digests", "bytes too many"]
)
def test_damaged_index(store: Store, damage: str) -> None:
    before = store.index_b.read_bytes()
    if damage == "bytes too many":
        store.index_b.write_bytes(store.index_b.read_bytes() + b"\0")
    damage_index(store.index_b, damage)
    assert not store.index_b.exists() or store.index_b.read_bytes() != before
    with pytest.raises(UserError, match=r"the index .* is damaged: .*; it was removed. Run snakemake again") as caught:
        store.reader()
    assert str(store.index_b) in str(caught.value)
    assert str(store.index_a) not in str(caught.value)
    assert not store.index_b.exists()
    assert store.index_a.exists()
    assert all(path.exists() for path in store.paths.values())
    assert np.array_equal(repair(store).rows(4, RESIDUAL, [digest_of(22)])[0], values_of(22, 4, HIDDEN))


@pytest.mark.parametrize("damage", [*CUTS, "not JSON", "no digests"])
def test_held_rows_sets_damaged_segments_aside(store: Store, damage: str) -> None:
    path = store.paths[1, 1]
    if damage in CUTS:
        cut_short(path, damage)
    else:
        damage_index(path, damage)
    lines, say = said()
    held = held_rows(store.space, 1, say)
    assert len(lines) == 1
    assert str(path) in lines[0] and "damaged" in lines[0] and "computed again" in lines[0]
    assert digests_held(held) == sorted(digest_of(number) for flush in (0, 2, 3) for number in FLUSHES[flush])
    assert len(held.tokens) == len(held.pooled) == len(held.cut) == len(held.digests)
    assert path.name not in held.layouts
    assert not path.exists() and path.with_name(path.name + ".damaged").exists()
    lines.clear()
    assert digests_held(held_rows(store.space, 1, say)) == digests_held(held)
    assert lines == []


def test_held_rows_without_facts_in_the_metadata(store: Store) -> None:
    path = store.paths[1, 1]
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    with_header(path, content[8 : 8 + length].replace(b'"facts"', b'"stcaf"'))
    lines, say = said()
    held = held_rows(store.space, 1, say)
    assert not holds(held, FLUSHES[1][0])
    assert len(lines) == 1 and str(path) in lines[0]


def test_held_rows_passes_over_files_that_are_no_segments(store: Store) -> None:
    folder = store.paths[1, 0].parent
    (folder / ".x.safetensors.1-ab.tmp").write_bytes(b"half")
    (folder / "x.safetensors.damaged").write_bytes(b"bad")
    lines, say = said()
    held = held_rows(store.space, 1, say)
    assert lines == [] and len(held.digests) == sum(map(len, FLUSHES))
    assert (folder / "x.safetensors.damaged").exists()


@pytest.mark.parametrize("name", ["digests", "tokens", "pooled", "cut"])
def test_held_rows_finds_a_flipped_bit_in_what_describes_the_rows(store: Store, name: str) -> None:
    path = store.paths[4, 2]
    begin, end = span(path, name)
    for position in range(begin, end):
        original = path.read_bytes()
        flip(path, position, position % 8)
        lines, say = said()
        held = held_rows(store.space, 4, say)
        assert not holds(held, 7) and not holds(held, 8) and holds(held, 0)
        assert len(lines) == 1 and f"segment {path} is damaged: its checksum does not fit" in lines[0]
        path.write_bytes(original)


def test_flipped_bit_in_the_pooled_counts_of_an_index(store: Store) -> None:
    flip(store.index_b, span(store.index_b, "pooled")[0])
    with pytest.raises(UserError, match=rf"the index {store.index_b} is damaged: its checksum does not fit; it was removed"):
        store.reader()
    assert not store.index_b.exists() and store.index_a.exists()
    assert repair(store).pooled(digest_of(21)) == 1


@pytest.mark.parametrize("name", ["tokens", "pooled", "cut"])
def test_segment_whose_columns_differ_in_length(tmp_path: Path, name: str) -> None:
    rows = rows_of([0, 1], 0)
    setattr(rows, name, getattr(rows, name)[:1])
    path = write_segment(tmp_path, 0, rows, LAYOUT)
    lines, say = said()
    assert not holds(held_rows(tmp_path, 0, say), 0)
    assert len(lines) == 1 and f"segment {path} is damaged: unreadable" in lines[0]


def test_tensor_that_is_not_there(store: Store) -> None:
    mapped = segments.Mapped(store.paths[7, 0])
    assert HEADS not in mapped.names()
    with pytest.raises(DamagedError, match="tensor 'heads'"):
        mapped.array(HEADS)


def test_no_digests_asked_for(store: Store) -> None:
    with pytest.raises(ValueError, match="no digests"):
        store.reader().rows(1, RESIDUAL, [])


# one bit anywhere: named, or without effect


@pytest.mark.parametrize("reads", ["rows", "places"])
def test_no_bit_of_a_segments_header_is_silent(tmp_path: Path, reads: str) -> None:
    path = write_segment(tmp_path, 0, rows_of([0, 1], 0), LAYOUT)
    original, digests = path.read_bytes(), [digest_of(0), digest_of(1)]
    index = index_over(tmp_path, "a", [0, 1], [0])
    kept = index.read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    for position in range(8 + length):
        path.write_bytes(original)
        index.write_bytes(kept)
        flip(path, position, position % 8)
        if reads == "places":
            held = held_rows(tmp_path, 0)
            assert not len(held.digests) or held.layouts[path.name] == LAYOUT
            continue
        try:
            for kind, width in ((RESIDUAL, HIDDEN), (HEADS, N_HEADS * HEAD_DIM)):
                got = Reader([index]).rows(0, kind, digests)
                assert np.array_equal(got, np.stack([values_of(number, 0, width) for number in (0, 1)])), position
        except UserError as error:
            assert str(path) in str(error)


def test_no_bit_of_an_index_is_silent(tmp_path: Path) -> None:
    write_segment(tmp_path, 0, rows_of([0, 1, 2], 0), LAYOUT)
    write_segment(tmp_path, 0, rows_of([3, 4], 0), LAYOUT)
    index = index_over(tmp_path, "a", range(5), [0])
    original = index.read_bytes()
    for position in range(len(original)):
        index.write_bytes(original)
        flip(index, position, position % 8)
        try:
            reader = Reader([index])
        except UserError as error:
            assert str(index) in str(error) and not index.exists()
            continue
        got = reader.rows(0, RESIDUAL, [digest_of(number) for number in range(5)])
        assert reader.layout(0) == LAYOUT
        assert [reader.pooled(digest_of(number)) for number in range(5)] == list(range(5))
        assert np.array_equal(got, np.stack([values_of(number, 0, HIDDEN) for number in range(5)])), position
