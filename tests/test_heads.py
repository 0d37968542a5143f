"""Head figures against plain loops."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import heads
from amygdala.errors import UserError
from amygdala.measures import generator, shuffled
from amygdala.segments import HEADS
from stubs import SIDES, StubReader, digests, examples_file, unit_file, weights_file, with_short


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
    layer = heads.layer_heads(positive, negative, {"n_heads": 2, "head_dim": 2}, None, ("joy", 1))
    assert [(line["head"], line["raw_norm"], line["selectivity"]) for line in layer["heads"]] == [
        (0, 5.0, None),
        (1, pytest.approx(math.sqrt(0.5)), pytest.approx(math.sqrt(0.5))),
    ]
    assert layer["heads"][0]["selectivity_z"] is None


def test_heads_are_listed_by_their_raw_norm() -> None:
    positive = np.array([[1, 5, 3, 5]], dtype=np.float32)
    negative = np.array([[1, 0, 0, 0], [-1, 0, 0, 0]], dtype=np.float32)
    layer = heads.layer_heads(positive, negative, {"n_heads": 4, "head_dim": 1}, None, ("joy", 1))
    assert [(line["head"], line["raw_norm"]) for line in layer["heads"]] == [(1, 5.0), (3, 5.0), (2, 3.0), (0, 1.0)]
    assert (layer["n_heads"], layer["head_dim"], layer["k"]) == (4, 1, 4)


# contribution


def loop_contribution(delta: np.ndarray, o_proj: np.ndarray, vector: np.ndarray, n_heads: int) -> list[float]:
    """v . (W_O,h delta_h), one product at a time."""
    width, found = len(delta) // n_heads, []
    for head in range(n_heads):
        total = 0.0
        for row in range(len(vector)):
            written = math.fsum(float(o_proj[row, at]) * float(delta[at]) for at in range(head * width, (head + 1) * width))
            total += float(vector[row]) * written
        found.append(total)
    return found


def rows_of_heads(n_heads: int, head_dim: int, sizes: tuple[int, int] = (7, 5), seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng([n_heads, head_dim, seed])
    return [(random.standard_normal((size, n_heads * head_dim)) + at).astype(np.float32) for at, size in enumerate(sizes)]


@pytest.mark.parametrize(("n_heads", "head_dim", "hidden"), [(1, 6, 4), (4, 3, 5), (9, 2, 18)])
def test_contribution_against_loops(n_heads: int, head_dim: int, hidden: int) -> None:
    """The contributions add up to what the whole difference writes along the vector."""
    positive, negative = rows_of_heads(n_heads, head_dim)
    random = np.random.default_rng(5)
    o_proj, vector = random.standard_normal((hidden, n_heads * head_dim)).astype(np.float32), random.standard_normal(hidden)
    writes = heads.head_writes(o_proj, vector, n_heads)
    found = heads.head_figures(positive, negative, n_heads, writes)["contribution"]
    delta = positive.astype(float).mean(axis=0) - negative.astype(float).mean(axis=0)
    assert found.tolist() == pytest.approx(loop_contribution(delta, o_proj, vector, n_heads), rel=1e-9)
    assert found.sum() == pytest.approx(float(vector @ (o_proj.astype(float) @ delta)), rel=1e-9)


# nulls


@pytest.mark.parametrize("with_weights", [True, False])
def test_nulls_against_figures_on_shuffled_labels(with_weights: bool) -> None:
    """Each shuffle's figures are those of head_figures on the rows under their new labels."""
    positive, negative = rows_of_heads(4, 3, (9, 14))
    writes = np.random.default_rng(1).standard_normal((4, 3)) if with_weights else None
    found = heads.head_nulls(positive, negative, 4, writes, generator("null"))
    assert set(found) == ({"raw_norm", "selectivity", "contribution"} if with_weights else {"raw_norm", "selectivity"})
    rows, random = np.concatenate([positive, negative]), generator("null")
    for number in range(heads.SHUFFLES):
        of_positive, of_negative = shuffled(9, 14, random, paired=False)
        expected = heads.head_figures(rows[of_positive], rows[of_negative], 4, writes)
        for name, values in expected.items():
            assert found[name][number] == pytest.approx(values, rel=1e-5, abs=1e-6)
    assert found["raw_norm"].std(axis=0).min() > 0


def test_a_line_says_how_far_a_head_lies_beyond_its_null() -> None:
    positive, negative = rows_of_heads(3, 2, (12, 15))
    positive[:, 2:4] += 6  # head 1 tells the sides apart
    writes = np.ones((3, 2))
    layer = heads.layer_heads(positive, negative, {"n_heads": 3, "head_dim": 2}, writes, ("joy", 4))
    nulls = heads.head_nulls(positive, negative, 3, writes, generator("heads", "joy", 4))
    figures = heads.head_figures(positive, negative, 3, writes)
    assert next(line["head"] for line in layer["heads"]) == 1
    for line in layer["heads"]:
        for name in ("raw_norm", "selectivity", "contribution"):
            null = nulls[name][:, line["head"]].tolist()
            mean = math.fsum(null) / len(null)
            spread = math.sqrt(math.fsum((value - mean) ** 2 for value in null) / (len(null) - 1))
            assert line[name] == pytest.approx(figures[name][line["head"]])
            assert line[f"{name}_z"] == pytest.approx((line[name] - mean) / spread)
    assert layer["heads"][0]["contribution_z"] > 4


def test_concentration_under_shuffled_labels_against_loops() -> None:
    positive, negative = rows_of_heads(14, 2, (12, 15))
    layer = heads.layer_heads(positive, negative, {"n_heads": 14, "head_dim": 2}, None, ("joy", 4))
    norms = heads.head_nulls(positive, negative, 14, None, generator("heads", "joy", 4))["raw_norm"]
    shares = [sum(sorted(row.tolist())[-10:]) / sum(row.tolist()) for row in norms]
    assert layer["head_concentration_null"] == pytest.approx(np.mean(shares)) and layer["shuffles"] == heads.SHUFFLES
    assert 10 / 14 < layer["head_concentration_null"] < 1


def test_nulls_of_a_layer_depend_on_emotion_and_layer_alone() -> None:
    positive, negative = rows_of_heads(3, 2)
    layout = {"n_heads": 3, "head_dim": 2}
    first = heads.layer_heads(positive, negative, layout, None, ("joy", 4))
    assert heads.layer_heads(positive, negative, layout, None, ("joy", 4)) == first
    assert heads.layer_heads(positive, negative, layout, None, ("joy", 5)) != first


def test_a_null_that_does_not_vary_gives_no_z() -> None:
    assert heads.beyond_null(3.0, np.full(20, 2.0)) is None
    assert heads.beyond_null(3.0, np.full(20, np.nan)) is None
    assert heads.beyond_null(3.0, np.array([0.0, 2.0])) == pytest.approx(2 / math.sqrt(2))


# files


def head_batch(
    folder: Path, layers: list[int], n_heads: int = 2, weights: bool = True
) -> tuple[dict[str, Any], dict[int, Path]]:
    """joy's examples, vectors and outputs; each layer's weights, o_proj float32 [5, 3 * n_heads]."""
    random = np.random.default_rng(11)
    vectors = {layer: unit_file(folder / f"v{layer}.safetensors", random.standard_normal(5)) for layer in layers}
    files = {}
    for layer in layers:
        o_proj = random.standard_normal((5, 3 * n_heads)).astype(np.float32) if weights else None
        files[layer] = weights_file(folder / f"w{layer}.safetensors", o_proj, n_heads, np.eye(5, dtype=np.float16))
    examples = examples_file(folder / "joy.json", (4, 6), held_out=(3, 5))
    outputs = [folder / f"layer_{layer}.json" for layer in layers]
    return {"joy": {"examples": examples, "vectors": vectors, "outputs": outputs}}, files


def put_heads(reader: StubReader, layer: int, width: int = 6) -> dict[str, np.ndarray]:
    values = {
        side: np.random.default_rng(count).standard_normal((count, width)).astype(np.float32)
        for side, count in zip(SIDES, (4, 6), strict=True)
    }
    for side, rows in values.items():
        reader.put(layer, HEADS, digests("train", side, len(rows)), rows)
    return values


def norms(figures: dict[str, Any]) -> dict[int, float]:
    return {line["head"]: line["raw_norm"] for line in figures["heads"]}


def test_head_files(tmp_path: Path) -> None:
    """Only what is missing is written, from training rows alone; layers without heads say why."""
    batch, weights = head_batch(tmp_path, [1, 2, 4])
    reader = StubReader(
        {1: {"n_heads": 2, "head_dim": 3}, 2: {"reason": "a gated delta net"}, 4: {"n_heads": 2, "head_dim": 3}}
    )
    values = put_heads(reader, 1)
    outputs = batch["joy"]["outputs"]
    outputs[2].write_bytes(b"as it was")
    os.utime(outputs[2], ns=(1_000_000_000, 2_000_000_000))
    assert heads.make_heads(batch, reader, weights, 2) == {"joy": [1, 2]}
    assert outputs[2].read_bytes() == b"as it was" and outputs[2].stat().st_mtime_ns == 2_000_000_000
    assert json.loads(outputs[1].read_text()) == {"layer": 2, "no_heads": "a gated delta net"}
    made = json.loads(outputs[0].read_text())
    raw_norms, selectivities = loop_figures(values["positive"], values["negative"], 2)
    assert made["layer"] == 1 and made["head_dim"] == 3
    o_proj = heads.read_weights(weights[1]).o_proj
    vector = heads.read_vector(batch["joy"]["vectors"][1])
    delta = values["positive"].astype(float).mean(axis=0) - values["negative"].astype(float).mean(axis=0)
    assert o_proj is not None
    contributions = loop_contribution(delta, o_proj, vector, 2)
    writes = heads.head_writes(o_proj, vector, 2)
    sides = [rows[np.argsort(digests("train", side, len(rows)))] for side, rows in values.items()]
    again = heads.layer_heads(sides[0], sides[1], reader.layout(1), writes, ("joy", 1))
    assert made == json.loads(json.dumps({"layer": 1, **again}))
    for line in made["heads"]:
        assert line["raw_norm"] == pytest.approx(raw_norms[line["head"]])
        assert line["selectivity"] == pytest.approx(selectivities[line["head"]])
        assert line["contribution"] == pytest.approx(contributions[line["head"]])
    assert set(reader.read) == {(1, HEADS)}


def test_a_layer_s_weights_are_read_once_for_all_emotions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, weights = head_batch(tmp_path, [1, 4])
    for name in ("awe", "calm"):
        outputs = [tmp_path / f"{name}_{path.name}" for path in batch["joy"]["outputs"]]
        batch[name] = {**batch["joy"], "outputs": outputs}
    layout = {"n_heads": 2, "head_dim": 3}
    reader, read = StubReader({1: layout, 4: layout}), []
    for layer in (1, 4):
        put_heads(reader, layer)
    real = heads.read_weights
    monkeypatch.setattr(heads, "read_weights", lambda path: read.append(path) or real(path))
    assert heads.make_heads(batch, reader, weights, 2) == {"joy": [1, 4], "awe": [1, 4], "calm": [1, 4]}
    assert read == [weights[1], weights[4]]


def test_no_weights_no_contribution(tmp_path: Path) -> None:
    batch, weights = head_batch(tmp_path, [1], weights=False)
    reader = StubReader({1: {"n_heads": 2, "head_dim": 3}})
    put_heads(reader, 1)
    heads.make_heads(batch, reader, weights, 2)
    for line in json.loads(batch["joy"]["outputs"][0].read_text())["heads"]:
        assert line["contribution"] is None and line["contribution_z"] is None and line["raw_norm_z"] is not None


def test_texts_without_a_row_count_in_no_head(tmp_path: Path) -> None:
    batch, weights = head_batch(tmp_path, [1])
    reader = StubReader({1: {"n_heads": 2, "head_dim": 3}})
    values = put_heads(reader, 1)
    with_short(reader, 1, HEADS)
    assert heads.make_heads(batch, reader, weights, 2) == {"joy": [1]}
    raw_norms, _ = loop_figures(values["positive"][[0, 2]], values["negative"][1:], 2)
    made = json.loads(batch["joy"]["outputs"][0].read_text())
    assert norms(made) == {0: pytest.approx(raw_norms[0]), 1: pytest.approx(raw_norms[1])}


def test_too_few_texts_with_a_row_name_the_emotion(tmp_path: Path) -> None:
    batch, weights = head_batch(tmp_path, [1])
    reader = StubReader({1: {"n_heads": 2, "head_dim": 3}})
    put_heads(reader, 1)
    with_short(reader, 1, HEADS)
    with pytest.raises(UserError, match=r"^emotion 'joy': only 2 of 4 positive training texts are long enough"):
        heads.make_heads(batch, reader, weights, 3)
    assert not batch["joy"]["outputs"][0].exists()
