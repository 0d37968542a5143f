"""A small store of segments whose every row is known."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amygdala.segments import Held, Reader, Rows, as_keys, held_rows, write_index, write_segment

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


def make_store(folder: Path) -> Store:
    space = folder / "activations" / "0123456789abcdef"
    paths = {}
    for layer in LAYERS:
        for flush, numbers in enumerate(FLUSHES):
            rows = rows_of(numbers, layer, heads=layer != 7)
            paths[layer, flush] = write_segment(space, layer, rows, NO_HEADS if layer == 7 else LAYOUT)
    index_a = index_over(space, "a", range(9), LAYERS, tokens=11)
    return Store(space, index_a, index_over(space, "b", range(20, 24), LAYERS, tokens=22), paths)


def unpacked(packed: np.ndarray) -> list[str]:
    """uint8 [N, 16] to hex digests."""
    return [row.tobytes().hex() for row in packed]


def digests_held(held: Held) -> list[str]:
    return unpacked(held.digests.view(np.uint8).reshape(-1, 16))


def holds(held: Held, number: int) -> bool:
    """Whether text `number` is held."""
    return bool(held.find(as_keys([digest_of(number)]))[0] >= 0)
