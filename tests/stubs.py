"""Rows and examples that tests of the later stages read, without a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amygdala.modelweights import write_weights
from amygdala.segments import Reader
from amygdala.vectorfile import write_vector

SIDES = ("positive", "negative")


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


class StubReader(Reader):
    """Rows by digest; refuses digests, layers and kinds that it was not given, and remembers what was read."""

    def __init__(self, layouts: dict[int, dict[str, Any]] | None = None) -> None:
        self.values: dict[tuple[int, str, str], np.ndarray] = {}
        self.layouts = layouts or {}
        self.read: list[tuple[int, str]] = []
        self.short: set[str] = set()

    def put(self, layer: int, kind: str, digests: Sequence[str], values: np.ndarray) -> None:
        for digest, row in zip(digests, values.astype(np.float32), strict=True):
            self.values[layer, kind, digest] = row

    def rows(self, layer: int, kind: str, digests: Sequence[str]) -> np.ndarray:
        if not digests:
            raise ValueError("no digests asked for")
        self.read.append((layer, kind))
        return np.stack([self.values[layer, kind, digest] for digest in digests])

    def layout(self, layer: int) -> dict[str, Any]:
        return self.layouts[layer]

    def pooled(self, digest: str) -> int:
        """Texts in `short` have no row."""
        return 0 if digest in self.short else 7


def digests(split: str, side: str, count: int) -> list[str]:
    return [digest_of(f"{split} {side} {number}") for number in range(count)]


def examples_file(path: Path, train: tuple[int, int], held_out: tuple[int, int] = (0, 0)) -> Path:
    """Examples by split: (positives, negatives)."""
    examples = [
        {"digest": digest, "polarity": side, "split": split, "text": f"text {digest}"}
        for split, counts in (("train", train), ("held_out", held_out))
        for side, count in zip(SIDES, counts, strict=True)
        for digest in digests(split, side, count)
    ]
    path.write_text(json.dumps({"emotion": path.stem, "examples": examples}))
    return path


SHORT = {"positive": [1, 3], "negative": [0]}  # of 4 and 6 training texts


def with_short(reader: StubReader, layer: int, kind: str) -> None:
    """Texts too short for the pooling: asking for their rows is a KeyError."""
    for side, numbers in SHORT.items():
        for number in numbers:
            digest = digests("train", side, 6)[number]
            reader.short.add(digest)
            reader.values.pop((layer, kind, digest))


def unit_file(path: Path, direction: np.ndarray) -> Path:
    """A vector's file with `direction` at length 1."""
    write_vector(path, (direction / np.linalg.norm(direction)).astype(np.float32), {})
    return path


def weights_file(path: Path, o_proj: np.ndarray | None, n_heads: int = 0, neurons: np.ndarray | None = None) -> Path:
    """A layer's weights file; what is None has a reason."""
    heads = {"reason": "no such layout"} if o_proj is None else {"n_heads": n_heads, "head_dim": o_proj.shape[1] // n_heads}
    why = {"neurons_reason": "experts"} if neurons is None else {}
    write_weights(path, o_proj, neurons, {"layer": 1, **heads, **why})
    return path
