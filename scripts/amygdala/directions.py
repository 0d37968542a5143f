"""From an emotion's training rows to its direction, as the configuration says: neutral directions out, rows by scenario,
method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from amygdala.batch import with_rows
from amygdala.errors import UserError
from amygdala.exampleset import NEGATIVE, POSITIVE, Example, digests_of, read_examples
from amygdala.methods import METHODS, neutral_components, scenario_means, shared_scenarios, without
from amygdala.segments import RESIDUAL


class NoScenariosError(ValueError):
    """A method that pairs texts by scenario, and no scenario with texts on both sides."""


@dataclass(frozen=True)
class Recipe:
    """How a direction is made: the method's name, and the share of neutral variance that is projected out before, or None."""

    method: str
    denoise: float | None = None


class Rows(Protocol):
    """What rows are read from: segments.Reader."""

    def rows(self, layer: int, kind: str, digests: Sequence[str]) -> np.ndarray: ...
    def pooled(self, digest: str) -> int: ...


class Denoiser:
    """The main directions of neutral texts at each layer, worked out once a layer."""

    def __init__(self, reader: Rows, digests: Sequence[str], share: float) -> None:
        self._reader, self._share = reader, share
        self._digests = [digest for digest in digests if reader.pooled(digest)]
        self._components: dict[int, np.ndarray] = {}

    @classmethod
    def of(cls, reader: Rows, recipe: Recipe, neutral: str | Path | None) -> Denoiser | None:
        """neutral: the stored file of neutral texts, None where nothing is projected out."""
        if recipe.denoise is None or neutral is None:
            return None
        return cls(reader, [text.digest for text in read_examples(neutral)], recipe.denoise)

    def components(self, layer: int) -> np.ndarray:
        """float64 [c, hidden], orthonormal."""
        if layer not in self._components:
            if len(self._digests) < 2:
                raise UserError(
                    f"denoise: {len(self._digests)} of the neutral texts are long enough for the pooling, and two are needed"
                )
            rows = self._reader.rows(layer, RESIDUAL, self._digests)
            self._components[layer] = neutral_components(rows, self._share)
        return self._components[layer]

    def __call__(self, layer: int, rows: np.ndarray) -> np.ndarray:
        return without(rows, self.components(layer))


@dataclass(frozen=True)
class Sides:
    """An emotion's texts of one split that have a row: digests of both sides, sorted, and the scenarios of each."""

    positive: list[str]
    negative: list[str]
    scenarios: dict[str, list[str]]

    @classmethod
    def of(cls, emotion: str, examples: Sequence[Example], split: str, reader: Any, least: int = 0) -> Sides:
        """UserError where fewer than `least` are left on a side that had them."""
        sides = with_rows(emotion, digests_of(examples, split), reader, least)
        return cls(sides[POSITIVE], sides[NEGATIVE], {text.digest: text.scenarios for text in examples})

    @property
    def used(self) -> dict[str, int]:
        return {POSITIVE: len(self.positive), NEGATIVE: len(self.negative)}


def direction_of(recipe: Recipe, positive: np.ndarray, negative: np.ndarray, components: np.ndarray | None) -> np.ndarray:
    """The method's direction, float64 [hidden], from rows as `prepared` gives them; components: what `denoise` took out.

    Taken out of the direction too: methods that scale columns give a normal that leans on what the rows no longer have, and it
    is read out on rows that have it.
    """
    direction = METHODS[recipe.method].direction(positive, negative)
    return direction if components is None else without(direction[None, :], components)[0]


def prepared(
    recipe: Recipe,
    sides: Sides,
    layer: int,
    positive: np.ndarray,
    negative: np.ndarray,
    denoiser: Denoiser | None,
    least: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' rows as the method takes them, in the order of `sides` or by scenario. NoScenariosError where fewer than
    `least` scenarios have texts of both sides.
    """
    if denoiser is not None:
        positive, negative = denoiser(layer, positive), denoiser(layer, negative)
    if not METHODS[recipe.method].by_scenario:
        return positive, negative
    of_positive = [sides.scenarios[digest] for digest in sides.positive]
    of_negative = [sides.scenarios[digest] for digest in sides.negative]
    names = shared_scenarios(of_positive, of_negative)
    if not names:
        raise NoScenariosError("no scenario has texts of both sides")
    if len(names) < least:
        raise NoScenariosError(f"only {len(names)} scenarios have texts of both sides, min_examples is {least}")
    return scenario_means(positive, of_positive, names), scenario_means(negative, of_negative, names)
