"""Activations to vectors, a file an emotion and layer: float32 [hidden], unit length."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amygdala.batch import emotions_of, missing, with_rows
from amygdala.errors import UserError, shown
from amygdala.exampleset import NEGATIVE, POSITIVE, TRAIN, digests_of, read_examples
from amygdala.job import job
from amygdala.segments import RESIDUAL, Reader
from amygdala.vectorfile import write_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_difference(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """mean(positive) - mean(negative), sums in float64: Contrastive Activation Addition (Rimsky et al., 2312.06681).

    positive float32 [n, hidden], negative float32 [m, hidden] to float64 [hidden].
    """
    return positive.mean(axis=0, dtype=np.float64) - negative.mean(axis=0, dtype=np.float64)


METHODS: dict[str, Method] = {"mean_difference": mean_difference}


def unit(direction: np.ndarray, what: str) -> tuple[np.ndarray, float]:
    """The direction at length 1 as float32 [hidden], and its length before. UserError where it has none."""
    length = float(np.linalg.norm(direction))
    if not np.isfinite(length) or length == 0.0:
        raise UserError(f"{what}: the positives and negatives do not differ (length {length}); there is no direction")
    return (direction / length).astype(np.float32), length


def make_vectors(
    emotion: str, examples: str | Path, reader: Reader, method: str, outputs: dict[int, Path], min_examples: int
) -> list[int]:
    """Write the vectors of those layers whose file is missing; returns these layers."""
    todo = missing(outputs)
    sides = with_rows(emotion, digests_of(read_examples(examples), TRAIN), reader, min_examples) if todo else {}
    for layer in todo:
        positive = reader.rows(layer, RESIDUAL, sides[POSITIVE])
        negative = reader.rows(layer, RESIDUAL, sides[NEGATIVE])
        vector, length = unit(METHODS[method](positive, negative), f"emotion {shown(emotion)}, layer {layer}")
        used = {side: len(digests) for side, digests in sides.items()}
        facts = {"emotion": emotion, "layer": layer, "method": method, "length": length, "used": used}
        write_vector(outputs[layer], vector, facts)
    return todo


if "snakemake" in globals():
    with job(snakemake) as say:
        params, reader = snakemake.params, Reader(snakemake.input.indices)
        for emotion, examples, outputs in emotions_of(params):
            done = make_vectors(emotion, examples, reader, params.method, outputs, params.min_examples)
            if done:
                say(f"{emotion}: layers {done}")
