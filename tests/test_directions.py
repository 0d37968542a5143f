"""What neutral texts take out of rows before a method sees them."""

from __future__ import annotations

import numpy as np
import pytest

from amygdala.directions import Denoiser
from amygdala.errors import UserError
from amygdala.methods import neutral_components, without
from amygdala.segments import RESIDUAL
from stubs import StubReader, digest_of

NEUTRAL = [digest_of(f"neutral {number}") for number in range(9)]
LAYERS = (3, 5)


def neutral_reader(known: int) -> StubReader:
    """Rows at both layers of the first `known` neutral texts; the others are too short for the pooling and have none."""
    reader = StubReader()
    for layer in LAYERS:
        values = np.random.default_rng(layer).standard_normal((known, 6)) * np.geomspace(1, 9, 6)
        reader.put(layer, RESIDUAL, NEUTRAL[:known], values)
    reader.short = set(NEUTRAL[known:])
    return reader


def test_neutral_texts_without_a_row_are_left_out() -> None:
    """The reader knows no row of a short text: asking for one is a KeyError."""
    reader, rows = neutral_reader(7), np.random.default_rng(1).standard_normal((4, 6))
    denoiser = Denoiser(reader, NEUTRAL, 0.7)
    for layer in LAYERS:
        expected = neutral_components(np.stack([reader.values[layer, RESIDUAL, digest] for digest in NEUTRAL[:7]]), 0.7)
        assert 0 < len(expected) < 6 and np.array_equal(denoiser.components(layer), expected)
        assert np.array_equal(denoiser(layer, rows), without(rows, expected))


def test_a_layer_s_neutral_rows_are_read_once() -> None:
    reader = neutral_reader(9)
    denoiser = Denoiser(reader, NEUTRAL, 0.5)
    for layer in (3, 3, 5, 3):
        denoiser(layer, np.ones((2, 6)))
        denoiser.components(layer)
    assert reader.read == [(3, RESIDUAL), (5, RESIDUAL)]


@pytest.mark.parametrize("known", [0, 1])
def test_too_few_neutral_texts_with_a_row_are_said(known: int) -> None:
    denoiser = Denoiser(neutral_reader(known), NEUTRAL, 0.5)
    message = f"^denoise: {known} of the neutral texts are long enough for the pooling, and two are needed$"
    with pytest.raises(UserError, match=message):
        denoiser.components(3)
    assert len(Denoiser(neutral_reader(2), NEUTRAL, 0.5).components(3)) == 1
