"""Vectors, heads and quality against closed forms and plain loops."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import heads
import quality
import vectors
from amygdala.errors import UserError
from amygdala.segments import HEADS, RESIDUAL
from amygdala.vectorfile import read_facts, read_vector, write_vector

SIDES = ("positive", "negative")


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


class StubReader:
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


# vectors


def test_mean_difference_in_closed_form() -> None:
    positive = np.array([[1, 2, 3], [3, 2, 1]], dtype=np.float32)
    negative = np.array([[0, 0, 0], [3, 0, 0], [0, 3, -3]], dtype=np.float32)
    difference = vectors.mean_difference(positive, negative)
    assert difference.dtype == np.float64
    assert difference.tolist() == [2 - 1, 2 - 1, 2 + 1]


@pytest.mark.parametrize("sizes", [(3, 4), (50, 7), (1, 1)])
def test_mean_difference_against_exact_sums(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    positive, negative = (random.standard_normal((size, 9)).astype(np.float32) for size in sizes)
    expected = [math.fsum(positive[:, j].tolist()) / sizes[0] - math.fsum(negative[:, j].tolist()) / sizes[1] for j in range(9)]
    assert vectors.mean_difference(positive, negative).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_sums_are_in_float64() -> None:
    """Activations just below 2^24: the true difference is (2, 0), but the sums need 36 bits and float32 has 24."""
    base = 2.0**24 - 5
    positive = np.tile(np.array([[base + 2, base]], dtype=np.float32), (3001, 1))
    negative = np.tile(np.array([[base, base]], dtype=np.float32), (2003, 1))
    naive = positive.mean(axis=0) - negative.mean(axis=0)
    assert naive.dtype == np.float32 and naive.tolist() != [2.0, 0.0]
    assert vectors.mean_difference(positive, negative).tolist() == [2.0, 0.0]


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
    return means[0] - means[1]


def test_only_training_rows_are_read(tmp_path: Path) -> None:
    """The reader knows no held-out digest: asking for one is a KeyError."""
    examples = examples_file(tmp_path / "joy.json", (4, 6), held_out=(3, 5))
    reader = vector_reader([2, 5])
    outputs = {5: tmp_path / "joy" / "layer_005.safetensors", 2: tmp_path / "joy" / "layer_002.safetensors"}
    assert list(vectors.make_vectors("joy", examples, reader, "mean_difference", outputs, 2)) == [2, 5]
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
    assert list(vectors.make_vectors("joy", examples, reader, "mean_difference", {2: kept, 5: made}, 2)) == [5]
    assert kept.read_bytes() == b"as it was"
    assert kept.stat().st_mtime_ns == 2_000_000_000
    assert made.exists() and {layer for layer, _ in reader.read} == {5}
    before = made.read_bytes(), made.stat().st_mtime_ns
    assert list(vectors.make_vectors("joy", examples, StubReader(), "mean_difference", {2: kept, 5: made}, 2)) == []
    assert (made.read_bytes(), made.stat().st_mtime_ns) == before


def test_identical_sides_have_no_vector(tmp_path: Path) -> None:
    examples = examples_file(tmp_path / "joy.json", (2, 2))
    reader = StubReader()
    for side in SIDES:
        reader.put(3, RESIDUAL, digests("train", side, 2), np.array([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(UserError, match="emotion 'joy', layer 3: the positives and negatives do not differ"):
        vectors.make_vectors("joy", examples, reader, "mean_difference", {3: tmp_path / "v"}, 2)
    assert not (tmp_path / "v").exists()


SHORT = {"positive": [1, 3], "negative": [0]}  # of 4 and 6 training texts


def with_short(reader: StubReader, layer: int, kind: str) -> None:
    """Texts too short for the pooling: asking for their rows is a KeyError."""
    for side, numbers in SHORT.items():
        for number in numbers:
            digest = digests("train", side, 6)[number]
            reader.short.add(digest)
            reader.values.pop((layer, kind, digest))


def test_texts_without_a_row_count_in_no_vector(tmp_path: Path) -> None:
    examples, reader = examples_file(tmp_path / "joy.json", (4, 6)), vector_reader([2])
    means = []
    for side, numbers in (("positive", (0, 2)), ("negative", (1, 2, 3, 4, 5))):
        rows = [reader.values[2, RESIDUAL, digest_of(f"train {side} {n}")].astype(np.float64) for n in numbers]
        means.append(sum(rows) / len(rows))
    with_short(reader, 2, RESIDUAL)
    assert vectors.make_vectors("joy", examples, reader, "mean_difference", {2: tmp_path / "v"}, 2) == [2]
    difference = means[0] - means[1]
    assert np.allclose(read_vector(tmp_path / "v"), difference / math.hypot(*difference.tolist()), atol=1e-7)
    assert read_facts(tmp_path / "v")["used"] == {"positive": 2, "negative": 5}


def test_too_few_texts_with_a_row_name_the_emotion(tmp_path: Path) -> None:
    examples, reader = examples_file(tmp_path / "joy.json", (4, 6)), vector_reader([2])
    with_short(reader, 2, RESIDUAL)
    message = (
        "^emotion 'joy': only 2 of 4 positive training texts are long enough for the pooling, min_examples is 3: choose a "
        "smaller from_token, or exclude the emotion$"
    )
    with pytest.raises(UserError, match=message):
        vectors.make_vectors("joy", examples, reader, "mean_difference", {2: tmp_path / "v"}, 3)
    with pytest.raises(UserError, match=message):
        heads.make_heads("joy", examples, reader, {2: tmp_path / "h"}, 3)
    assert not (tmp_path / "v").exists() and not (tmp_path / "h").exists()


# heads


def loop_figures(positive: np.ndarray, negative: np.ndarray, n_heads: int) -> tuple[list[float], list[float]]:
    """raw_norm and selectivity of each head, one number at a time."""
    width = positive.shape[1] // n_heads
    raw_norms, selectivities = [], []
    for head in range(n_heads):
        squares, spread = 0.0, 0.0
        for dimension in range(head * width, (head + 1) * width):
            mean_positive = math.fsum(float(row[dimension]) for row in positive) / len(positive)
            mean_negative = math.fsum(float(row[dimension]) for row in negative) / len(negative)
            squares += (mean_positive - mean_negative) ** 2
            spread += math.fsum((float(row[dimension]) - mean_negative) ** 2 for row in negative) / len(negative)
        raw_norms.append(math.sqrt(squares))
        selectivities.append(math.sqrt(squares) / math.sqrt(spread))
    return raw_norms, selectivities


@pytest.mark.parametrize(("n_heads", "head_dim"), [(1, 6), (4, 3), (9, 2), (12, 4)])
def test_head_figures_against_loops(n_heads: int, head_dim: int) -> None:
    random = np.random.default_rng(n_heads)
    positive = (random.standard_normal((7, n_heads * head_dim)) + random.standard_normal(n_heads * head_dim)).astype(np.float32)
    negative = (random.standard_normal((5, n_heads * head_dim)) * 3).astype(np.float32)
    figures = heads.head_figures(positive, negative, n_heads)
    raw_norms, selectivities = loop_figures(positive, negative, n_heads)
    assert figures["raw_norm"].tolist() == pytest.approx(raw_norms, rel=1e-12)
    assert figures["selectivity"].tolist() == pytest.approx(selectivities, rel=1e-12)


def test_head_sums_are_in_float64() -> None:
    base = 2.0**24 - 5
    positive = np.tile(np.array([[base + 2, base]], dtype=np.float32), (3001, 1))
    negative = np.tile(np.array([[base, base]], dtype=np.float32), (2004, 1))
    negative[::2] += 2
    negative[1::2] -= 2
    naive = positive.mean(axis=0) - negative.mean(axis=0)
    assert naive.dtype == np.float32 and naive.tolist() != [2.0, 0.0]
    figures = heads.head_figures(positive, negative, 2)
    assert figures["raw_norm"].tolist() == [2.0, 0.0]
    assert figures["selectivity"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("n_heads", [1, 4, 10, 11, 16, 40])
def test_concentration_against_loops(n_heads: int) -> None:
    norms = np.random.default_rng(n_heads).exponential(size=n_heads)
    figures = heads.concentration(norms)
    k = 10 if n_heads > 10 else n_heads
    largest = sorted(norms.tolist())[-k:]
    share = math.fsum(largest) / math.fsum(norms.tolist())
    assert (figures["n_heads"], figures["k"]) == (n_heads, k)
    assert figures["even_share"] == pytest.approx(k / n_heads)
    assert figures["head_concentration"] == pytest.approx(share, rel=1e-12)
    assert figures["excess"] == pytest.approx(share - k / n_heads, abs=1e-12)
    if n_heads <= 10:
        assert figures["head_concentration"] == pytest.approx(1)
        assert figures["excess"] == pytest.approx(0, abs=1e-12)
    else:
        assert 0 < figures["excess"] < 1 - k / n_heads


def test_concentration_of_even_single_and_no_heads() -> None:
    even = heads.concentration(np.full(40, 0.3))
    assert even["head_concentration"] == pytest.approx(0.25) and even["excess"] == pytest.approx(0, abs=1e-12)
    one = heads.concentration(np.eye(40)[7])
    assert one["head_concentration"] == 1.0 and one["excess"] == pytest.approx(0.75)
    nothing = heads.concentration(np.zeros(40))
    assert nothing["head_concentration"] is None and nothing["excess"] is None


def test_head_whose_negatives_do_not_vary() -> None:
    positive = np.array([[3, 4, 1, 0], [3, 4, 0, 1]], dtype=np.float32)
    negative = np.array([[0, 0, 1, 0], [0, 0, -1, 0]], dtype=np.float32)
    figures = heads.head_figures(positive, negative, 2)
    assert figures["raw_norm"][0] == 5.0 and np.isnan(figures["selectivity"][0])
    layer = heads.layer_heads(positive, negative, {"n_heads": 2, "head_dim": 2})
    assert layer["heads"] == [[0, 5.0, None], [1, pytest.approx(math.sqrt(0.5)), pytest.approx(math.sqrt(0.5))]]


def test_heads_are_listed_by_their_raw_norm() -> None:
    positive = np.array([[1, 5, 3, 5]], dtype=np.float32)
    negative = np.array([[1, 0, 0, 0], [-1, 0, 0, 0]], dtype=np.float32)
    layer = heads.layer_heads(positive, negative, {"n_heads": 4, "head_dim": 1})
    assert [entry[:2] for entry in layer["heads"]] == [[1, 5.0], [3, 5.0], [2, 3.0], [0, 1.0]]
    assert (layer["n_heads"], layer["head_dim"], layer["k"]) == (4, 1, 4)


def test_head_files(tmp_path: Path) -> None:
    examples = examples_file(tmp_path / "joy.json", (4, 6), held_out=(3, 5))
    reader = StubReader(
        {1: {"n_heads": 2, "head_dim": 3}, 2: {"reason": "a gated delta net"}, 4: {"n_heads": 2, "head_dim": 3}}
    )
    values = {
        side: np.random.default_rng(count).standard_normal((count, 6)) for side, count in (("positive", 4), ("negative", 6))
    }
    for side, rows in values.items():
        reader.put(1, HEADS, digests("train", side, len(rows)), rows)
    outputs = {layer: tmp_path / f"layer_{layer}.json" for layer in (4, 2, 1)}
    outputs[4].write_bytes(b"as it was")
    os.utime(outputs[4], ns=(1_000_000_000, 2_000_000_000))
    assert heads.make_heads("joy", examples, reader, outputs, 2) == [1, 2]
    assert outputs[4].read_bytes() == b"as it was" and outputs[4].stat().st_mtime_ns == 2_000_000_000
    assert json.loads(outputs[2].read_text()) == {"layer": 2, "no_heads": "a gated delta net"}
    made = json.loads(outputs[1].read_text())
    raw_norms, selectivities = loop_figures(values["positive"].astype(np.float32), values["negative"].astype(np.float32), 2)
    assert made["layer"] == 1 and made["head_dim"] == 3
    assert {head: (norm, selectivity) for head, norm, selectivity in made["heads"]} == {
        head: (pytest.approx(raw_norms[head]), pytest.approx(selectivities[head])) for head in (0, 1)
    }
    assert set(reader.read) == {(1, HEADS)}


def test_texts_without_a_row_count_in_no_head(tmp_path: Path) -> None:
    examples, reader = examples_file(tmp_path / "joy.json", (4, 6)), StubReader({1: {"n_heads": 2, "head_dim": 3}})
    random = np.random.default_rng(3)
    values = {side: random.standard_normal((count, 6)).astype(np.float32) for side, count in zip(SIDES, (4, 6), strict=True)}
    for side, rows in values.items():
        reader.put(1, HEADS, digests("train", side, len(rows)), rows)
    with_short(reader, 1, HEADS)
    assert heads.make_heads("joy", examples, reader, {1: tmp_path / "h"}, 2) == [1]
    raw_norms, _ = loop_figures(values["positive"][[0, 2]], values["negative"][1:], 2)
    made = json.loads((tmp_path / "h").read_text())
    assert {head: norm for head, norm, _ in made["heads"]} == {0: pytest.approx(raw_norms[0]), 1: pytest.approx(raw_norms[1])}


# quality


def counted_auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The share of pairs in the right order, ties half."""
    right = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative)
    return right / (len(positive) * len(negative))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_counts_pairs(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.integers(0, levels, size=random.integers(1, 30)) + levels // 5
    negative = random.integers(0, levels, size=random.integers(1, 30))
    found = quality.auc(positive / 7, negative / 7)
    assert found == pytest.approx(counted_auc((positive / 7).tolist(), (negative / 7).tolist()), abs=1e-12)


@pytest.mark.parametrize(("positive", "negative", "expected"), [([2], [1], 1.0), ([1], [2], 0.0), ([1, 1], [1], 0.5)])
def test_auc_at_its_ends(positive: list[float], negative: list[float], expected: float) -> None:
    assert quality.auc(np.array(positive), np.array(negative)) == expected


@pytest.mark.parametrize(("positives", "negatives"), [(0, 3), (3, 0), (0, 0)])
def test_auc_of_an_empty_side(positives: int, negatives: int) -> None:
    assert quality.auc(np.ones(positives), np.zeros(negatives)) is None


def random_units(count: int, width: int = 6) -> np.ndarray:
    rows = np.random.default_rng(count).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 7, 30])
def test_nearest_against_loops(count: int) -> None:
    rows = random_units(count)
    names = [f"emotion_{number}" for number in range(count)]
    found = quality.nearest(rows, names)
    assert list(found) == names
    for number, name in enumerate(names):
        cosines = [
            (sum(float(a) * float(b) for a, b in zip(rows[number], rows[other], strict=True)), names[other])
            for other in range(count)
            if other != number
        ]
        best = sorted(cosines, reverse=True)[:5]
        assert len(found[name]) == min(5, count - 1)
        assert [other for other, _ in found[name]] == [other for _, other in best]
        assert [cosine for _, cosine in found[name]] == pytest.approx([cosine for cosine, _ in best], abs=1e-9)


def test_nearest_of_equal_and_opposite_vectors() -> None:
    rows = np.array([[1, 0], [1, 0], [-1, 0]], dtype=np.float32)
    assert quality.nearest(rows, ["a", "b", "c"]) == {
        "a": [["b", 1.0], ["c", -1.0]],
        "b": [["a", 1.0], ["c", -1.0]],
        "c": [["a", -1.0], ["b", -1.0]],
    }


def quality_files(folder: Path, name: str, held_out: tuple[int, int], layers: Sequence[int]) -> dict[str, Any]:
    """Examples, unit vectors and head files of one emotion."""
    files: dict[str, Any] = {"examples": examples_file(folder / f"{name}.json", (4, 6), held_out), "vectors": {}, "heads": {}}
    for layer in layers:
        files["vectors"][layer] = folder / f"{name}.{layer}.safetensors"
        direction = np.random.default_rng([layer, len(name)]).standard_normal(5)
        write_vector(files["vectors"][layer], (direction / np.linalg.norm(direction)).astype(np.float32), {})
        files["heads"][layer] = folder / f"{name}.{layer}.heads.json"
        heads_of_layer = {"layer": layer, "k": 10, "heads": [[head, 30.0 - head, None] for head in range(14)]}
        no_heads = {"layer": layer, "no_heads": "a gated delta net"}
        files["heads"][layer].write_text(json.dumps(no_heads if layer == 2 else heads_of_layer))
    return files


def test_quality_report(tmp_path: Path) -> None:
    layers = [1, 2]
    reader = StubReader({1: {"n_heads": 14, "head_dim": 2}, 2: {"reason": "a gated delta net"}})
    for layer in layers:  # held-out rows alone: reading a training row would be a KeyError
        for side, count in (("positive", 5), ("negative", 9)):
            rows = np.random.default_rng([layer, count]).standard_normal((count, 5)) + (side == "positive") * 0.4
            reader.put(layer, RESIDUAL, digests("held_out", side, count), rows)
    emotions = {
        "joy": quality_files(tmp_path, "joy", (5, 9), layers),
        "sadness": quality_files(tmp_path, "sadness", (5, 9), layers),
        "awe": quality_files(tmp_path, "wonder", (0, 9), layers),
    }
    made = quality.make_quality(emotions, layers, reader, tmp_path / "quality.json")
    assert json.loads((tmp_path / "quality.json").read_text()) == made
    assert made["layers"] == layers and made["layers_without_heads"] == {"2": "a gated delta net"}
    for layer in layers:
        aucs = []
        for name in ("joy", "sadness"):
            vector = load_file(emotions[name]["vectors"][layer])["vector"].tolist()
            scores = {
                side: [
                    sum(a * b for a, b in zip(reader.values[layer, RESIDUAL, digest].tolist(), vector, strict=True))
                    for digest in digests("held_out", side, count)
                ]
                for side, count in (("positive", 5), ("negative", 9))
            }
            aucs.append(counted_auc(scores["positive"], scores["negative"]))
            assert made["emotions"][name]["held_out_auc"][str(layer)] == pytest.approx(aucs[-1], abs=1e-12)
        assert made["emotions"]["awe"]["held_out_auc"][str(layer)] is None
        assert made["macro_auc"][str(layer)] == {"mean": pytest.approx(sum(aucs) / 2), "emotions": 2}
        assert {other for other, _ in made["emotions"]["joy"]["nearest"][str(layer)]} == {"sadness", "awe"}
    joy = made["emotions"]["joy"]
    assert joy["without_row"] == 0
    assert joy["counts"] == {"train": {"positive": 4, "negative": 6}, "held_out": {"positive": 5, "negative": 9}}
    assert joy["per_head"]["1"] == {"k": 10, "heads": [[head, 30.0 - head, None] for head in range(10)]}
    assert joy["per_head"]["2"] == {"no_heads": "a gated delta net"}


def test_quality_without_any_held_out_text(tmp_path: Path) -> None:
    emotions = {"joy": quality_files(tmp_path, "joy", (0, 0), [1])}
    made = quality.make_quality(emotions, [1], StubReader({1: {"n_heads": 14, "head_dim": 2}}), tmp_path / "quality.json")
    assert made["macro_auc"] == {"1": {"mean": None, "emotions": 0}}
    assert made["emotions"]["joy"]["nearest"] == {"1": []}


def test_quality_leaves_out_texts_without_a_row(tmp_path: Path) -> None:
    """The reader would raise on their rows. Training texts without one are counted too."""
    emotions = {"joy": quality_files(tmp_path, "joy", (5, 4), [1])}
    vector = read_vector(emotions["joy"]["vectors"][1]).tolist()
    reader = StubReader({1: {"n_heads": 14, "head_dim": 2}})
    scores: dict[str, list[float]] = {}
    for side, count, short in (("positive", 5, (0, 4)), ("negative", 4, (2,))):
        rows = np.random.default_rng(count).standard_normal((count, 5)).astype(np.float32)
        kept = [n for n in range(count) if n not in short]
        reader.put(1, RESIDUAL, [digests("held_out", side, count)[n] for n in kept], rows[kept])
        reader.short |= {digests("held_out", side, count)[n] for n in short}
        scores[side] = [sum(a * b for a, b in zip(rows[n].tolist(), vector, strict=True)) for n in kept]
    reader.short.add(digests("train", "negative", 6)[5])
    joy = quality.make_quality(emotions, [1], reader, tmp_path / "quality.json")["emotions"]["joy"]
    assert joy["held_out_auc"]["1"] == pytest.approx(counted_auc(scores["positive"], scores["negative"]), abs=1e-12)
    assert joy["without_row"] == 4
    assert joy["counts"]["held_out"] == {"positive": 5, "negative": 4}, "counts are of the examples"


def test_an_auc_of_zero_counts_in_the_mean(tmp_path: Path) -> None:
    emotions = {"joy": quality_files(tmp_path, "joy", (1, 1), [1])}
    vector = read_vector(emotions["joy"]["vectors"][1])
    reader = StubReader({1: {"n_heads": 14, "head_dim": 2}})
    reader.put(1, RESIDUAL, digests("held_out", "positive", 1), -vector[None])
    reader.put(1, RESIDUAL, digests("held_out", "negative", 1), vector[None])
    made = quality.make_quality(emotions, [1], reader, tmp_path / "quality.json")
    assert made["macro_auc"] == {"1": {"mean": 0.0, "emotions": 1}}


def test_damaged_head_file_is_named(tmp_path: Path) -> None:
    emotions = {"joy": quality_files(tmp_path, "joy", (0, 0), [1])}
    emotions["joy"]["heads"][1].write_bytes(b"{")
    with pytest.raises(UserError, match=r"joy\.1\.heads\.json is damaged"):
        quality.make_quality(emotions, [1], StubReader({1: {"n_heads": 14}}), tmp_path / "quality.json")
    assert not (tmp_path / "quality.json").exists()


def test_a_vector_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_vector(tmp_path / "v.safetensors", np.array([1.0], np.float32), {})
    finally:
        os.umask(before)
    assert (tmp_path / "v.safetensors").stat().st_mode & 0o777 == 0o640
