"""Segments and their index: rows come back by digest, and whatever is damaged is named and out of the way."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from amygdala import segments
from amygdala.errors import UserError
from amygdala.segments import HEADS, RESIDUAL, DamagedError, Held, Reader, Rows, as_keys, held_rows, write_index, write_segment

HIDDEN, N_HEADS, HEAD_DIM = 5, 2, 3
LAYOUT = {"n_heads": N_HEADS, "head_dim": HEAD_DIM}
NO_HEADS = {"reason": "no attention output projection"}


def digest_of(number: int) -> str:
    return hashlib.sha256(f"text {number}".encode()).hexdigest()[:32]


def values_of(number: int, layer: int, width: int) -> np.ndarray:
    """The row that text `number` has in these tests."""
    return np.random.default_rng([number, layer, width]).standard_normal(width).astype(np.float32)


def rows_of(numbers: Sequence[int], layer: int, heads: bool = True) -> Rows:
    return Rows(
        [digest_of(number) for number in numbers],
        np.stack([values_of(number, layer, HIDDEN) for number in numbers]),
        np.stack([values_of(number, layer, N_HEADS * HEAD_DIM) for number in numbers]) if heads else None,
        np.array([number + 100 for number in numbers]),
        np.array([number % 5 for number in numbers]),
        np.array([number % 3 == 0 for number in numbers]),
    )


def index_over(space: Path, name: str, numbers: Sequence[int], layers: Sequence[int], **stats: Any) -> Path:
    path = space / "index" / name
    digests = as_keys(sorted(map(digest_of, numbers)))
    write_index(path, digests, {layer: held_rows(space, layer) for layer in layers}, stats)
    return path


def said() -> tuple[list[str], Callable[[str], None]]:
    lines: list[str] = []
    return lines, lines.append


def span(path: Path, name: str) -> tuple[int, int]:
    """Where a tensor's bytes stand in a safetensors file, read by hand."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    begin, end = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    return 8 + length + begin, 8 + length + end


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


@dataclass
class Store:
    """Texts 0 to 8 of shard "a" in segments 0-3, 4-6, 7-8 and 20 to 23 of shard "b" in one; layers 1, 4 (heads), 7 (none)."""

    space: Path
    index_a: Path
    index_b: Path
    paths: dict[tuple[int, int], Path]

    def reader(self) -> Reader:
        return Reader([self.index_a, self.index_b])


FLUSHES = ([0, 1, 2, 3], [4, 5, 6], [7, 8], [20, 21, 22, 23])
LAYERS = (1, 4, 7)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    space = tmp_path / "activations" / "0123456789abcdef"
    paths = {}
    for layer in LAYERS:
        for flush, numbers in enumerate(FLUSHES):
            rows = rows_of(numbers, layer, heads=layer != 7)
            paths[layer, flush] = write_segment(space, layer, rows, NO_HEADS if layer == 7 else LAYOUT)
    index_a = index_over(space, "a", range(9), LAYERS, tokens=11)
    return Store(space, index_a, index_over(space, "b", range(20, 24), LAYERS, tokens=22), paths)


# round trip


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("numbers", [[0], [8, 0, 23, 4, 20, 6], [5, 5, 1], list(range(9)) + list(range(23, 19, -1))])
def test_rows_come_back_in_the_order_asked_for(store: Store, layer: int, numbers: list[int]) -> None:
    reader = store.reader()
    kinds = {RESIDUAL: HIDDEN, HEADS: N_HEADS * HEAD_DIM} if layer != 7 else {RESIDUAL: HIDDEN}
    for kind, width in kinds.items():
        rows = reader.rows(layer, kind, [digest_of(number) for number in numbers])
        assert rows.dtype == np.float32
        assert np.array_equal(rows, np.stack([values_of(number, layer, width) for number in numbers]))


def test_layouts_and_statistics(store: Store) -> None:
    reader = store.reader()
    assert [reader.layout(layer) for layer in LAYERS] == [LAYOUT, LAYOUT, NO_HEADS]
    assert [shard["tokens"] for shard in reader.stats] == [11, 22]


def test_rows_that_were_read_can_be_written_to(store: Store) -> None:
    rows = store.reader().rows(1, RESIDUAL, [digest_of(0), digest_of(1)])
    rows[:] = 0
    assert np.array_equal(store.reader().rows(1, RESIDUAL, [digest_of(0)])[0], values_of(0, 1, HIDDEN))


def test_digests_pack_and_unpack() -> None:
    digests = ["00" * 16, "ff" * 16, digest_of(3)]
    packed = segments.pack_digests(digests)
    assert packed.shape == (3, 16) and packed.dtype == np.uint8
    assert packed.tobytes() == b"".join(map(bytes.fromhex, digests))
    assert segments.unpack_digests(packed) == digests


@pytest.mark.parametrize("order", [1, -1])
def test_index_of_a_shard_without_texts(store: Store, order: int) -> None:
    empty = index_over(store.space, "empty", [], LAYERS, tokens=0)
    reader = Reader([empty, store.index_a][::order])
    assert np.array_equal(reader.rows(4, RESIDUAL, [digest_of(7)])[0], values_of(7, 4, HIDDEN))
    assert reader.layout(7) == NO_HEADS


def test_index_names_only_the_segments_that_it_needs(store: Store) -> None:
    index = index_over(store.space, "few", [4, 8], [1])
    names = sorted(segments.Mapped(index).facts["segments"]["1"])
    assert names == sorted([store.paths[1, 1].name, store.paths[1, 2].name])


def test_index_of_the_same_rows_has_the_same_bytes(store: Store) -> None:
    made = {index_over(store.space, f"{number}", range(9), LAYERS, tokens=1, texts=2).read_bytes() for number in range(8)}
    assert len(made) == 1


def test_index_over_a_text_that_is_not_held(store: Store) -> None:
    with pytest.raises(KeyError):
        index_over(store.space, "wrong", [0, 99], [1])
    assert not (store.space / "index" / "wrong").exists()


def digests_held(held: Held) -> list[str]:
    return [digest.tobytes().hex() for digest in held.digests]


def test_held_rows_reports_places_tokens_and_cuts(store: Store) -> None:
    lines, say = said()
    held = held_rows(store.space, 4, say)
    assert lines == []
    numbers = [number for flush in FLUSHES for number in flush]
    assert digests_held(held) == sorted(map(digest_of, numbers))
    assert sorted(held.names) == sorted(store.paths[4, flush].name for flush in range(len(FLUSHES)))
    for flush, members in enumerate(FLUSHES):
        for row, number in enumerate(members):
            position = int(held.find(as_keys([digest_of(number)]))[0])
            assert digests_held(held)[position] == digest_of(number)
            assert (held.names[held.segment[position]], held.row[position]) == (store.paths[4, flush].name, row)
            assert (held.tokens[position], held.pooled[position]) == (number + 100, number % 5)
            assert held.cut[position] == (number % 3 == 0)
    assert held.layouts == {store.paths[4, flush].name: LAYOUT for flush in range(len(FLUSHES))}


def held_of(digests: Sequence[str]) -> Held:
    """What a store holds of `digests`, in sorted order: row number i is the ith's."""
    keys = as_keys(sorted(digests))
    rows = np.arange(len(keys), dtype=np.int32)
    return Held(keys, np.zeros_like(rows), rows, rows, rows, np.zeros(len(keys), np.uint8), ["a"], {"a": LAYOUT})


def awkward_digests(seed: int, count: int) -> list[str]:
    """Digests of few different bytes, zeros at either end among them, some a prefix of others."""
    draw = np.random.default_rng(seed)
    made = {bytes(draw.choice([0, 1, 127, 128, 255], size=16)).hex() for _ in range(count)}
    made |= {bytes([*draw.integers(0, 3, size=length), *[0] * (16 - length)]).hex() for length in range(17) for _ in range(3)}
    return sorted(made)


@pytest.mark.parametrize("seed", range(4))
def test_finding_digests(seed: int) -> None:
    every = awkward_digests(seed, 40)
    inside = every[::2]
    held = held_of(inside)
    asked = [*every, *reversed(every), every[0]]
    expected = [inside.index(digest) if digest in inside else -1 for digest in asked]
    found = held.find(as_keys(asked))
    assert found.dtype == np.int64 and found.tolist() == expected
    assert [held.has(digest) for digest in every] == [digest in inside for digest in every]
    assert held.find(as_keys([])).tolist() == []
    assert held_of([]).find(as_keys(every)).tolist() == [-1] * len(every)


def test_digests_with_zero_bytes_at_the_end_go_through_the_store(tmp_path: Path) -> None:
    digests = awkward_digests(9, 20)
    rows = rows_of(range(len(digests)), 0)
    rows.digests = digests[::-1]
    write_segment(tmp_path, 0, rows, LAYOUT)
    index = tmp_path / "index" / "a"
    held = held_rows(tmp_path, 0)
    assert digests_held(held) == [digest.tobytes().hex() for digest in as_keys(digests)] == digests
    write_index(index, held.digests, {0: held}, {})
    reader = Reader([index])
    numbers = range(len(digests) - 1, -1, -1)
    assert np.array_equal(reader.rows(0, RESIDUAL, digests), np.stack([values_of(n, 0, HIDDEN) for n in numbers]))
    assert [reader.pooled(digest) for digest in digests] == [number % 5 for number in numbers]


def test_a_hundred_thousand_digests_are_found() -> None:
    draw = np.random.default_rng(0)
    every = np.unique(draw.integers(0, 256, size=(100_000, 16), dtype=np.uint8), axis=0)
    keys = every.view("S16").reshape(-1)
    held = held_of([])
    held.digests = np.sort(keys[::2])
    place = {digest.tobytes(): position for position, digest in enumerate(held.digests)}
    order = draw.permutation(len(keys))
    assert held.find(keys[order]).tolist() == [place.get(digest.tobytes(), -1) for digest in keys[order]]


@pytest.mark.parametrize("number", [0, 1, 5, 8, 23])
def test_how_many_tokens_a_row_is_the_mean_of(store: Store, number: int) -> None:
    reader = store.reader()
    assert reader.pooled(digest_of(number)) == number % 5
    with pytest.raises(KeyError):
        reader.pooled(digest_of(99))


def test_layer_that_the_store_does_not_know(tmp_path: Path) -> None:
    held = held_rows(tmp_path, 3)
    assert (len(held.digests), held.names, held.layouts) == (0, [], {})
    assert held.find(as_keys([digest_of(1)])).tolist() == [-1]


def test_text_in_two_segments_is_read_from_one(tmp_path: Path) -> None:
    write_segment(tmp_path, 0, rows_of([1, 2], 0), LAYOUT)
    write_segment(tmp_path, 0, rows_of([2, 3], 0), LAYOUT)
    index = index_over(tmp_path, "a", [1, 2, 3], [0])
    rows = Reader([index]).rows(0, RESIDUAL, [digest_of(n) for n in (1, 2, 3)])
    assert np.array_equal(rows, np.stack([values_of(n, 0, HIDDEN) for n in (1, 2, 3)]))


# what a segment holds


@pytest.mark.parametrize("kind", [RESIDUAL, HEADS])
@pytest.mark.parametrize("shape", ["plain", "float64", "fortran", "strided"])
def test_checksums_are_over_exactly_digest_and_stored_bytes(tmp_path: Path, kind: str, shape: str) -> None:
    rows = rows_of([0, 1, 2, 3], 1)
    values = getattr(rows, kind)
    given = {
        "plain": values,
        "float64": values.astype(np.float64),
        "fortran": np.asfortranarray(values),
        "strided": np.repeat(values, 2, axis=1)[:, ::2],
    }[shape]
    setattr(rows, kind, given)
    stored = load_file(write_segment(tmp_path, 1, rows, LAYOUT))
    assert stored[kind].dtype == np.float32
    assert np.array_equal(stored[kind], values)
    texts = [bytes.fromhex(digest_of(number)) for number in range(4)]
    pack = f"<{values.shape[1]}f"
    expected = [zlib.crc32(text + struct.pack(pack, *row.tolist())) for text, row in zip(texts, values, strict=True)]
    assert stored[f"{kind}_crc"].dtype == np.uint32
    assert stored[f"{kind}_crc"].tolist() == expected


def test_tensors_of_a_segment(tmp_path: Path) -> None:
    path = write_segment(tmp_path, 12, rows_of([0, 1], 12), LAYOUT)
    assert path.parent == tmp_path / "layer_012"
    stored = load_file(path)
    assert stored["digests"].tolist() == [list(bytes.fromhex(digest_of(0))), list(bytes.fromhex(digest_of(1)))]
    assert (stored["tokens"].dtype, stored["tokens"].tolist()) == (np.dtype(np.int32), [100, 101])
    assert (stored["pooled"].dtype, stored["pooled"].tolist()) == (np.dtype(np.int32), [0, 1])
    assert (stored["cut"].dtype, stored["cut"].tolist()) == (np.dtype(np.uint8), [1, 0])
    bare = load_file(write_segment(tmp_path, 13, rows_of([0, 1], 13, heads=False), NO_HEADS))
    assert set(bare) == {"digests", "tokens", "pooled", "cut", "residual", "residual_crc"}


def test_segment_is_named_after_its_texts(tmp_path: Path) -> None:
    first = write_segment(tmp_path, 1, rows_of([0, 1], 1), LAYOUT)
    assert write_segment(tmp_path, 1, rows_of([0, 2], 1), LAYOUT) != first
    assert write_segment(tmp_path, 2, rows_of([0, 1], 2), LAYOUT).name == first.name
    again = first.read_bytes()
    assert write_segment(tmp_path, 1, rows_of([0, 1], 1), LAYOUT) == first
    assert first.read_bytes() == again


def test_maps_agree_with_the_library(store: Store) -> None:
    for path in [*store.paths.values(), store.index_a]:
        mapped = segments.Mapped(path)
        for name, expected in load_file(path).items():
            array = mapped.array(name)
            assert name in mapped.names()
            assert array.dtype == expected.dtype and np.array_equal(array, expected)
            assert not array.flags.writeable


# damage


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
        lacking = [number for number in numbers if not held.has(digest_of(number))]
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
    assert not held.has(digest_of(FLUSHES[1][0]))
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
    for position in (begin, end - 1):
        original = path.read_bytes()
        flip(path, position)
        lines, say = said()
        held = held_rows(store.space, 4, say)
        assert not held.has(digest_of(7)) and not held.has(digest_of(8)) and held.has(digest_of(0))
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
    assert not held_rows(tmp_path, 0, say).has(digest_of(0))
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
