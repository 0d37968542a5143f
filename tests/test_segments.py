"""Segments and their index: rows come back by digest, as they were written."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from amygdala import segments
from amygdala.segments import HEADS, RESIDUAL, Held, Reader, as_keys, held_rows, write_index, write_segment
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
    index_over,
    rows_of,
    said,
    values_of,
)


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


def test_digests_are_packed() -> None:
    digests = ["00" * 16, "ff" * 16, digest_of(3)]
    packed = segments.pack_digests(digests)
    assert packed.shape == (3, 16) and packed.dtype == np.uint8
    assert packed.tobytes() == b"".join(map(bytes.fromhex, digests))


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
    made = {bytes(draw.choice([0, 1, 127, 128, 255], size=16).tolist()).hex() for _ in range(count)}
    made |= {
        bytes([*draw.integers(0, 3, size=length).tolist(), *[0] * (16 - length)]).hex()
        for length in range(17)
        for _ in range(3)
    }
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
    assert held.find(as_keys([])).tolist() == []
    assert held_of([]).find(as_keys(every)).tolist() == [-1] * len(every)


def test_digests_with_zero_bytes_at_the_end_go_through_the_store(tmp_path: Path) -> None:
    digests = awkward_digests(9, 20)
    rows = rows_of(range(len(digests)), 0)
    rows.digests = digests[::-1]
    write_segment(tmp_path, 0, rows, LAYOUT)
    index = tmp_path / "index" / "a"
    held = held_rows(tmp_path, 0)
    assert digests_held(held) == digests
    assert as_keys(digests).tobytes().hex() == "".join(digests)
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
