"""Activations to vectors, a file an emotion and layer: float32 [hidden], unit length."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.batch import emotions_of, missing
from amygdala.directions import Denoiser, NoScenariosError, Recipe, Sides, direction_of, prepared
from amygdala.errors import UserError, shown
from amygdala.exampleset import TRAIN, digests_of, read_examples
from amygdala.job import job
from amygdala.methods import METHODS
from amygdala.segments import RESIDUAL, Reader
from amygdala.vectorfile import write_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def unit(direction: np.ndarray, what: str) -> tuple[np.ndarray, float]:
    """The direction at length 1 as float32 [hidden], and its length before. UserError where it has none."""
    length = float(np.linalg.norm(direction))
    if not np.isfinite(length) or length == 0.0:
        raise UserError(f"{what}: the positives and negatives do not differ (length {length}); there is no direction")
    return (direction / length).astype(np.float32), length


def make_vectors(
    emotion: str,
    examples: str | Path,
    reader: Reader,
    recipe: Recipe,
    outputs: dict[int, Path],
    min_examples: int,
    denoiser: Denoiser | None = None,
) -> list[int]:
    """Write the vectors of those layers whose file is missing; returns these layers."""
    todo = missing(outputs)
    if not todo:
        return todo
    chosen = read_examples(examples)
    sides, texts = Sides.of(emotion, chosen, TRAIN, reader, min_examples), digests_of(chosen, TRAIN)
    for layer in todo:
        what = f"emotion {shown(emotion)}, layer {layer}"
        rows = [reader.rows(layer, RESIDUAL, digests) for digests in (sides.positive, sides.negative)]
        try:
            positive, negative = prepared(recipe, sides, layer, rows[0], rows[1], denoiser, min_examples)
        except NoScenariosError as error:
            raise UserError(
                f"emotion {shown(emotion)}: method {recipe.method}: {error}; exclude the emotion or choose another method"
            ) from None
        components = None if denoiser is None else denoiser.components(layer)
        vector, length = unit(direction_of(recipe, positive, negative, components), what)
        facts: dict[str, Any] = {
            "emotion": emotion,
            "layer": layer,
            "method": recipe.method,
            "length": length,
            "used": sides.used,
        }
        if components is not None:
            facts["denoised"] = len(components)
        if METHODS[recipe.method].by_scenario:
            facts["scenarios"] = len(positive)
        write_vector(outputs[layer], vector, facts, texts)
    return todo


if "snakemake" in globals():
    with job(snakemake) as say:
        params, reader = snakemake.params, Reader(snakemake.input.indices)
        recipe = Recipe(params.method, params.denoise)
        denoiser = Denoiser.of(reader, recipe, params.neutral)
        for emotion, examples, outputs in emotions_of(params):
            done = make_vectors(emotion, examples, reader, recipe, outputs, params.min_examples, denoiser)
            if done:
                say(f"{emotion}: layers {done}")
