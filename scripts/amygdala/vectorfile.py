"""One emotion's vector at one layer, as a file of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from amygdala.errors import UserError
from amygdala.segments import pack_digests
from amygdala.tensors import UNREADABLE, read_tensors, write_tensors

TEXTS = "texts."  # + polarity: the training examples' digests


def write_vector(
    path: Path, vector: np.ndarray, facts: dict[str, Any], texts: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Write float32 [hidden] as the tensor `vector`, with `facts`; texts: {polarity: digests} of the training examples, which
    become uint8 [n, 16] `texts.<polarity>`."""
    digests = {f"{TEXTS}{polarity}": pack_digests(listed) for polarity, listed in (texts or {}).items()}
    write_tensors(path, {"vector": vector, **digests}, facts)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        tensors, facts, _ = read_tensors(path)
    except UNREADABLE as error:
        _damaged(path, error)
    return tensors, facts


def _damaged(path: Path, problem: object) -> NoReturn:
    raise UserError(f"{path} is damaged ({problem}): delete it and run snakemake again, it will be rebuilt") from None


def read_vector(path: Path) -> np.ndarray:
    """float32 [hidden]. UserError where the file is damaged or its vector is not of unit length; the file is named."""
    vector = _read(path)[0].get("vector")
    if vector is None:
        _damaged(path, "no vector in it")
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if vector.dtype != np.float32 or vector.ndim != 1 or not abs(length - 1) < 1e-6:
        _damaged(path, f"length {length}")
    return vector


def read_facts(path: Path) -> dict[str, Any]:
    """What the file says of its vector. UserError where it is damaged; the file is named."""
    return _read(path)[1]


def read_texts(path: Path) -> dict[str, list[str]]:
    """{polarity: digests of the training examples}, as they were written. UserError where the file is damaged."""
    tensors = _read(path)[0]
    return {
        name.removeprefix(TEXTS): [row.tobytes().hex() for row in tensors[name]]
        for name in sorted(tensors)
        if name.startswith(TEXTS)
    }
