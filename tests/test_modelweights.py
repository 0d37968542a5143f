"""Files of a layer's weights: what is written is read, damage is told; neurons and heads against loops."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from amygdala.errors import UserError
from amygdala.modelweights import best_neurons, head_writes, read_weights, write_weights
from segmented import flip, span
from test_house import HEAVY, imported_by

RANDOM = np.random.default_rng(5)
O_PROJ = RANDOM.standard_normal((6, 8)).astype(np.float32)
NEURONS = RANDOM.standard_normal((10, 6)).astype(np.float16)
FACTS: dict[str, Any] = {"layer": 3, "n_heads": 4, "head_dim": 2}
NO_HEADS: dict[str, Any] = {"layer": 3, "reason": "no attention (Mixer)"}


def written(folder: Path, o_proj: np.ndarray | None = O_PROJ, neurons: np.ndarray | None = NEURONS, **facts: Any) -> Path:
    path = folder / "layer_003.safetensors"
    write_weights(path, o_proj, neurons, facts or FACTS)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    weights = read_weights(written(tmp_path))
    assert (weights.layer, weights.n_heads) == (3, 4)
    assert {name: value for name, value in weights.facts.items() if name != "tensors"} == FACTS
    assert weights.o_proj is not None and weights.o_proj.dtype == np.float32 and np.array_equal(weights.o_proj, O_PROJ)
    assert weights.neurons is not None and weights.neurons.dtype == np.float16 and np.array_equal(weights.neurons, NEURONS)
    assert set(load_file(weights.path)) == {"o_proj", "neurons"}


def test_a_transposed_view_is_written_as_it_looks(tmp_path: Path) -> None:
    """GPT-2 keeps its projection the other way round."""
    path = written(tmp_path, np.ascontiguousarray(O_PROJ.T).T)
    assert np.array_equal(load_file(path)["o_proj"], O_PROJ)
    assert np.array_equal(read_weights(path).o_proj, O_PROJ)  # type: ignore[arg-type]


def test_a_layer_without_heads_or_neurons_says_why(tmp_path: Path) -> None:
    weights = read_weights(written(tmp_path, None, NEURONS, **NO_HEADS))
    assert weights.o_proj is None and weights.n_heads == 0 and weights.facts["reason"] == NO_HEADS["reason"]
    assert np.array_equal(weights.neurons, NEURONS)  # type: ignore[arg-type]
    weights = read_weights(written(tmp_path, O_PROJ, None, **FACTS, neurons_reason="none"))
    assert weights.neurons is None and weights.facts["neurons_reason"] == "none"
    weights = read_weights(written(tmp_path, None, None, **NO_HEADS, neurons_reason="none"))
    assert weights.o_proj is None and weights.neurons is None


@pytest.mark.parametrize(
    ("o_proj", "neurons", "facts"),
    [
        (None, NEURONS, FACTS),
        (O_PROJ, None, FACTS),
        (O_PROJ, NEURONS, {**FACTS, "reason": "none"}),
        (O_PROJ, NEURONS, {**FACTS, "neurons_reason": "none"}),
        (O_PROJ, NEURONS, {**FACTS, "n_heads": 3}),
        (O_PROJ, NEURONS[:, :5], FACTS),
        (O_PROJ, NEURONS[0], FACTS),
        (O_PROJ[:, :0], NEURONS, {**FACTS, "n_heads": 0}),
    ],
)
def test_what_does_not_fit_is_not_written(o_proj: Any, neurons: Any, facts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_weights(tmp_path / "file", o_proj, neurons, facts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["o_proj", "neurons"])
def test_weights_that_are_no_numbers_are_refused(name: str, value: float, tmp_path: Path) -> None:
    both: dict[str, np.ndarray] = {"o_proj": O_PROJ.copy(), "neurons": np.tile(NEURONS, (500, 1))}
    both[name][-1, -1] = value
    with pytest.raises(UserError, match=rf"^model: layer 3 has weights \({name}\) that are not finite numbers; it is damaged$"):
        write_weights(tmp_path / "file", both["o_proj"], both["neurons"], FACTS)
    assert not list(tmp_path.iterdir())


def read_all(path: Path) -> None:
    weights = read_weights(path)
    assert weights.o_proj is not None and weights.neurons is not None


def test_every_flipped_bit_of_a_file_is_told(tmp_path: Path) -> None:
    """One bit of each byte; the file is named, and what to do. What JSON skips (white space) may change."""
    path = written(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        if whole[position] == ord(" "):
            continue
        flip(path, position, position % 8)
        with pytest.raises(UserError, match=rf"^{path} is damaged \((.|\n)*\): delete it and run snakemake again, it will be"):
            read_all(path)
        path.write_bytes(whole)
    read_all(path)


@pytest.mark.parametrize("size", [0, 7, 100, -1, -60])
def test_a_file_that_was_cut_is_told(size: int, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=f"^{path} is damaged "):
        read_all(path)


def changed_facts(path: Path, change: dict[str, Any], keep_sum: bool) -> None:
    """Another header over the same tensors, with a checksum of its own that fits unless `keep_sum`."""
    import zlib

    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    facts = {**json.loads(header["__metadata__"]["facts"]), **change}
    if not keep_sum:
        rest = {name: value for name, value in facts.items() if name != "crc"}
        facts["crc"] = zlib.crc32(json.dumps(rest, sort_keys=True).encode())
    header["__metadata__"]["facts"] = json.dumps(facts, sort_keys=True)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


def test_facts_are_summed_and_bind_their_tensors(tmp_path: Path) -> None:
    path = written(tmp_path)
    changed_facts(path, {}, keep_sum=True)
    read_all(path)
    changed_facts(path, {"n_heads": 2, "head_dim": 4}, keep_sum=True)
    with pytest.raises(UserError, match="its facts fail their checksum"):
        read_weights(path)
    for missing in ({}, {"o_proj": {"crc": 0, "shape": [6, 8]}}):
        path = written(tmp_path)
        changed_facts(path, {"tensors": missing}, keep_sum=False)
        with pytest.raises(UserError, match="it holds \\['neurons', 'o_proj'\\]"):
            read_weights(path)


def test_a_tensor_is_read_when_it_is_asked_for_and_once(tmp_path: Path) -> None:
    path = written(tmp_path)
    flip(path, span(path, "neurons")[0] + 3)
    weights = read_weights(path)
    first = weights.o_proj
    assert np.array_equal(first, O_PROJ)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="neurons fails its checksum"):
        _ = weights.neurons
    path.unlink()
    assert weights.o_proj is first


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    first = written(tmp_path).read_bytes()
    assert written(tmp_path, O_PROJ, NEURONS, **dict(reversed(FACTS.items()))).read_bytes() == first


def slow_best(vector: np.ndarray, neurons: np.ndarray) -> tuple[int, float]:
    best, cosine = 0, 0.0
    for number, neuron in enumerate(neurons.tolist()):
        dot = math.fsum(a * b for a, b in zip(vector.tolist(), neuron, strict=True))
        lengths = math.sqrt(math.fsum(a * a for a in vector.tolist()) * math.fsum(b * b for b in neuron))
        found = dot / lengths if lengths else 0.0
        if abs(found) > abs(cosine):
            best, cosine = number, found
    return best, cosine


@pytest.mark.parametrize("chunk", [1, 3, 10, 11, 2048])
def test_best_neurons_equal_a_loop(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amygdala.modelweights.CHUNK", chunk)
    vectors = RANDOM.standard_normal((40, 6)).astype(np.float32) * 3
    neurons = RANDOM.standard_normal((11, 6)).astype(np.float16)
    neurons[[2, 9]] = 0
    index, cosine = best_neurons(vectors, neurons)
    assert index.dtype == np.int64 and cosine.dtype == np.float64
    slow = [slow_best(vector, neurons) for vector in vectors]
    assert index.tolist() == [best for best, _ in slow]
    assert np.allclose(cosine, [value for _, value in slow], rtol=0, atol=1e-12)
    assert (cosine < 0).any() and (cosine > 0).any() and len(set(index.tolist())) > 4


@pytest.mark.parametrize("chunk", [1, 2048])
def test_best_neurons_of_planted_ones(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amygdala.modelweights.CHUNK", chunk)
    neurons = np.eye(6, dtype=np.float16)[[0, 1, 1, 3]]
    vectors = np.array([[0, -2, 0, 0, 0, 0], [3, 0, 0, -4, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]], np.float32)
    index, cosine = best_neurons(vectors, neurons)
    assert index.tolist() == [1, 3, 0, 0] and np.allclose(cosine, [-1, -0.8, 0, 0])
    with pytest.raises(ValueError, match="no neurons"):
        best_neurons(vectors, neurons[:0])


@pytest.mark.parametrize("chunk", [1, 4, 2048])
def test_head_writes_give_what_a_loop_over_heads_gives(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amygdala.modelweights.CHUNK", chunk)
    vector, delta = RANDOM.standard_normal(6).astype(np.float32), RANDOM.standard_normal((4, 2))
    writes = head_writes(O_PROJ, vector, 4)
    assert writes.shape == (4, 2) and writes.dtype == np.float64
    for head in range(4):
        contribution = 0.0
        for row in range(6):
            contribution += float(vector[row]) * sum(float(O_PROJ[row, 2 * head + i]) * delta[head, i] for i in range(2))
        assert writes[head] @ delta[head] == pytest.approx(contribution, abs=1e-12)


@pytest.mark.parametrize(("vector", "n_heads"), [(np.zeros(6), 3), (np.zeros(5), 4), (np.zeros((6, 1)), 4), (np.zeros(6), 0)])
def test_head_writes_of_other_sizes_are_refused(vector: np.ndarray, n_heads: int) -> None:
    with pytest.raises(ValueError, match=r"heads$"):
        head_writes(O_PROJ, vector, n_heads)


def test_reading_weights_imports_nothing_heavy() -> None:
    assert not HEAVY & imported_by("import amygdala.modelweights")


def test_a_tensor_of_another_shape_or_type_over_the_same_bytes_is_told(tmp_path: Path) -> None:
    for old, new in ((b'"shape":[6,8]', b'"shape":[8,6]'), (b'"dtype":"F32"', b'"dtype":"I32"')):
        path = written(tmp_path)
        content = path.read_bytes()
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(UserError, match=r" is damaged \(o_proj is "):
            _ = read_weights(path).o_proj
