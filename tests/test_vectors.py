"""Vectors against closed forms."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import vectors
from amygdala.directions import Denoiser, Recipe, direction_of
from amygdala.errors import UserError
from amygdala.methods import mean_difference, neutral_components, without
from amygdala.segments import RESIDUAL
from amygdala.vectorfile import read_facts, read_vector, write_vector
from stubs import SIDES, StubReader, digest_of, digests, examples_file, with_short

PLAIN = Recipe("mean_difference")


def test_mean_difference_in_closed_form() -> None:
    positive = np.array([[1, 2, 3], [3, 2, 1]], dtype=np.float32)
    negative = np.array([[0, 0, 0], [3, 0, 0], [0, 3, -3]], dtype=np.float32)
    difference = mean_difference(positive, negative)
    assert difference.dtype == np.float64
    assert difference.tolist() == [2 - 1, 2 - 1, 2 + 1]


@pytest.mark.parametrize("sizes", [(3, 4), (50, 7), (1, 1)])
def test_mean_difference_against_exact_sums(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    positive, negative = (random.standard_normal((size, 9)).astype(np.float32) for size in sizes)
    expected = [math.fsum(positive[:, j].tolist()) / sizes[0] - math.fsum(negative[:, j].tolist()) / sizes[1] for j in range(9)]
    assert mean_difference(positive, negative).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_sums_are_in_float64() -> None:
    """Activations just below 2^24: the true difference is (2, 0), but the sums need 36 bits and float32 has 24."""
    base = 2.0**24 - 5
    positive = np.tile(np.array([[base + 2, base]], dtype=np.float32), (3001, 1))
    negative = np.tile(np.array([[base, base]], dtype=np.float32), (2003, 1))
    naive = positive.mean(axis=0) - negative.mean(axis=0)
    assert naive.dtype == np.float32 and naive.tolist() != [2.0, 0.0]
    assert mean_difference(positive, negative).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("width", [1, 2, 576, 8192])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e30])
def test_unit_length(width: int, scale: float) -> None:
    direction = np.random.default_rng(width).standard_normal(width) * scale
    vector, length = vectors.unit(direction, "joy")
    assert vector.dtype == np.float32
    assert abs(math.sqrt(math.fsum(float(value) ** 2 for value in vector)) - 1) < 1e-6
    assert length == pytest.approx(math.hypot(*direction.tolist()), rel=1e-12)
    assert np.allclose(vector * length, direction, rtol=1e-6, atol=1e-7 * length)


@pytest.mark.parametrize("direction", [np.zeros(4), np.array([np.nan, 1]), np.array([np.inf, 1])])
def test_no_direction(direction: np.ndarray) -> None:
    with pytest.raises(UserError, match="emotion 'joy', layer 3: the positives and negatives do not differ"):
        vectors.unit(direction, "emotion 'joy', layer 3")


def vector_reader(layers: Sequence[int], train: tuple[int, int] = (4, 6), width: int = 5) -> StubReader:
    reader = StubReader()
    for layer in layers:
        for side, count in zip(SIDES, train, strict=True):
            values = np.random.default_rng([layer, count]).standard_normal((count, width)) + (side == "positive")
            reader.put(layer, RESIDUAL, digests("train", side, count), values)
    return reader


def expected_difference(reader: StubReader, layer: int, train: tuple[int, int] = (4, 6)) -> np.ndarray:
    means = []
    for side, count in zip(SIDES, train, strict=True):
        rows = [reader.values[layer, RESIDUAL, digest].astype(np.float64) for digest in digests("train", side, count)]
        means.append(sum(rows) / count)
    return np.asarray(means[0] - means[1])


def test_only_training_rows_are_read(tmp_path: Path) -> None:
    """The reader knows no held-out digest: asking for one is a KeyError."""
    examples = examples_file(tmp_path / "joy.json", (4, 6), held_out=(3, 5))
    reader = vector_reader([2, 5])
    outputs = {5: tmp_path / "joy" / "layer_005.safetensors", 2: tmp_path / "joy" / "layer_002.safetensors"}
    assert list(vectors.make_vectors("joy", examples, reader, PLAIN, outputs, 2)) == [2, 5]
    for layer, path in outputs.items():
        vector = load_file(path)["vector"]
        assert vector.dtype == np.float32 and vector.shape == (5,)
        difference = expected_difference(reader, layer)
        length = math.hypot(*difference.tolist())
        assert np.allclose(vector, difference / length, atol=1e-7)
        assert np.array_equal(read_vector(path), vector)
        with safe_open(path, "np") as file:
            facts = json.loads(file.metadata()["facts"])
        assert (facts["emotion"], int(facts["layer"]), facts["method"]) == ("joy", layer, "mean_difference")
        assert facts["used"] == {"positive": 4, "negative": 6}
        assert float(facts["length"]) == pytest.approx(length)


def test_only_missing_layers_are_written(tmp_path: Path) -> None:
    examples = examples_file(tmp_path / "joy.json", (4, 6))
    reader = vector_reader([5])  # reading layer 2 would be a KeyError
    kept, made = tmp_path / "layer_002.safetensors", tmp_path / "layer_005.safetensors"
    kept.write_bytes(b"as it was")
    os.utime(kept, ns=(1_000_000_000, 2_000_000_000))
    assert list(vectors.make_vectors("joy", examples, reader, PLAIN, {2: kept, 5: made}, 2)) == [5]
    assert kept.read_bytes() == b"as it was"
    assert kept.stat().st_mtime_ns == 2_000_000_000
    assert made.exists() and {layer for layer, _ in reader.read} == {5}
    before = made.read_bytes(), made.stat().st_mtime_ns
    assert list(vectors.make_vectors("joy", examples, StubReader(), PLAIN, {2: kept, 5: made}, 2)) == []
    assert (made.read_bytes(), made.stat().st_mtime_ns) == before


def test_identical_sides_have_no_vector(tmp_path: Path) -> None:
    examples = examples_file(tmp_path / "joy.json", (2, 2))
    reader = StubReader()
    for side in SIDES:
        reader.put(3, RESIDUAL, digests("train", side, 2), np.array([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(UserError, match="emotion 'joy', layer 3: the positives and negatives do not differ"):
        vectors.make_vectors("joy", examples, reader, PLAIN, {3: tmp_path / "v"}, 2)
    assert not (tmp_path / "v").exists()


def test_texts_without_a_row_count_in_no_vector(tmp_path: Path) -> None:
    examples, reader = examples_file(tmp_path / "joy.json", (4, 6)), vector_reader([2])
    means = []
    for side, numbers in (("positive", (0, 2)), ("negative", (1, 2, 3, 4, 5))):
        rows = [reader.values[2, RESIDUAL, digest_of(f"train {side} {n}")].astype(np.float64) for n in numbers]
        means.append(sum(rows) / len(rows))
    with_short(reader, 2, RESIDUAL)
    assert vectors.make_vectors("joy", examples, reader, PLAIN, {2: tmp_path / "v"}, 2) == [2]
    difference = np.asarray(means[0] - means[1])
    assert np.allclose(read_vector(tmp_path / "v"), difference / math.hypot(*difference.tolist()), atol=1e-7)
    assert read_facts(tmp_path / "v")["used"] == {"positive": 2, "negative": 5}


def test_neutral_directions_are_out_of_rows_and_vector(tmp_path: Path) -> None:
    """lda scales columns: without either of the two it would be another direction. A short neutral text has no row."""
    examples, reader = examples_file(tmp_path / "joy.json", (8, 9)), vector_reader([2], (8, 9))
    neutral = [digest_of(f"neutral {number}") for number in range(7)]
    values = np.random.default_rng(3).standard_normal((6, 5)) * np.array([3, 1, 2, 1, 4])
    reader.put(2, RESIDUAL, neutral[1:], values)
    reader.short = {neutral[0]}
    recipe = Recipe("lda", 0.9)
    outputs = {2: tmp_path / "v"}
    assert vectors.make_vectors("joy", examples, reader, recipe, outputs, 2, Denoiser(reader, neutral, 0.9)) == [2]
    components = neutral_components(values.astype(np.float32), 0.9)
    sides = [
        np.stack([reader.values[2, RESIDUAL, digest] for digest in sorted(digests("train", side, count))])
        for side, count in zip(SIDES, (8, 9), strict=True)
    ]
    direction = direction_of(recipe, without(sides[0], components), without(sides[1], components), components)
    assert np.allclose(read_vector(tmp_path / "v"), direction / np.linalg.norm(direction), atol=1e-6)
    assert read_facts(tmp_path / "v")["denoised"] == len(components) > 0


def test_too_few_texts_with_a_row_name_the_emotion(tmp_path: Path) -> None:
    examples, reader = examples_file(tmp_path / "joy.json", (4, 6)), vector_reader([2])
    with_short(reader, 2, RESIDUAL)
    message = (
        "^emotion 'joy': only 2 of 4 positive training texts are long enough for the pooling, min_examples is 3: choose a "
        "smaller from_token, or exclude the emotion$"
    )
    with pytest.raises(UserError, match=message):
        vectors.make_vectors("joy", examples, reader, PLAIN, {2: tmp_path / "v"}, 3)
    assert not (tmp_path / "v").exists()


def test_a_vector_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_vector(tmp_path / "v.safetensors", np.array([1.0], np.float32), {})
    finally:
        os.umask(before)
    assert (tmp_path / "v.safetensors").stat().st_mode & 0o777 == 0o640
