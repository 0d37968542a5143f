"""Which attention heads carry an emotion: figures per head from the input of the output projection, a file a layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.batch import by_layer, missing, with_layers
from amygdala.directions import Sides
from amygdala.exampleset import TRAIN, read_examples
from amygdala.files import write_json
from amygdala.job import job
from amygdala.measures import generator, shuffled, weights
from amygdala.modelweights import head_writes, read_weights
from amygdala.segments import HEADS, Reader
from amygdala.vectorfile import read_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

TOP = 10
SHUFFLES = 20
FIGURES = ("raw_norm", "selectivity", "contribution")


def head_figures(
    positive: np.ndarray, negative: np.ndarray, n_heads: int, writes: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Per head: raw_norm = |delta|, selectivity = raw_norm / sqrt(mean |z - mean negative|^2), contribution = v . (W_O,h
    delta), with delta = mean positive - mean negative.

    positive [n, n_heads * head_dim], negative [m, n_heads * head_dim], writes float64 [n_heads, head_dim] = W_O,h^T v, to
    float64 [n_heads] each; no contribution without writes. A head whose negatives do not vary has no selectivity (nan).
    """
    z_positive = positive.reshape(len(positive), n_heads, -1).astype(np.float64)
    z_negative = negative.reshape(len(negative), n_heads, -1).astype(np.float64)
    centre = z_negative.mean(axis=0)
    delta = z_positive.mean(axis=0) - centre
    raw_norm = np.linalg.norm(delta, axis=1)
    spread = np.sqrt(((z_negative - centre) ** 2).sum(axis=2).mean(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        selectivity = np.where(spread > 0, raw_norm / spread, np.nan)
    figures = {"raw_norm": raw_norm, "selectivity": selectivity}
    return figures if writes is None else {**figures, "contribution": (writes * delta).sum(axis=1)}


def head_nulls(
    positive: np.ndarray, negative: np.ndarray, n_heads: int, writes: np.ndarray | None, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """The same figures with SHUFFLES shuffles of the labels: {name: float64 [SHUFFLES, n_heads]}.

    The spread of a shuffle's negatives follows from sums over all rows, so that no shuffle copies them.
    """
    rows = np.concatenate([positive, negative]).astype(np.float64)
    n, m = len(positive), len(negative)
    groups = [shuffled(n, m, random, paired=False) for _ in range(SHUFFLES)]
    delta = (weights(groups, n + m).astype(np.float64) @ rows).reshape(SHUFFLES, n_heads, -1)
    raw_norm = np.linalg.norm(delta, axis=2)
    table = np.zeros((SHUFFLES, n + m))
    for number, (_, of_negative) in enumerate(groups):
        table[number, of_negative] = 1 / m
    squares = (rows**2).reshape(n + m, n_heads, -1).sum(axis=2)
    means = (table @ rows).reshape(SHUFFLES, n_heads, -1)
    spread = np.sqrt(np.clip(table @ squares - (means**2).sum(axis=2), 0, None))
    with np.errstate(divide="ignore", invalid="ignore"):
        selectivity = np.where(spread > 0, raw_norm / spread, np.nan)
    found = {"raw_norm": raw_norm, "selectivity": selectivity}
    return found if writes is None else {**found, "contribution": (delta * writes).sum(axis=2)}


def concentration(raw_norm: np.ndarray, top: int = TOP) -> dict[str, Any]:
    """Share of the k = min(top, n_heads) largest raw norms in the sum of all; k / n_heads is what an even spread would give."""
    n_heads = len(raw_norm)
    k = min(top, n_heads)
    total = float(raw_norm.sum())
    share = float(np.sort(raw_norm)[::-1][:k].sum()) / total if total else None
    even = k / n_heads
    return {
        "n_heads": n_heads,
        "k": k,
        "even_share": even,
        "head_concentration": share,
        "excess": None if share is None else share - even,
    }


def beyond_null(value: float, null: np.ndarray) -> float | None:
    """How many standard deviations of its null a figure lies from the null's mean; None where that does not vary."""
    spread = float(null.std(ddof=1))
    return (value - float(null.mean())) / spread if np.isfinite(spread) and spread > 0 else None


def layer_heads(
    positive: np.ndarray, negative: np.ndarray, layout: dict[str, Any], writes: np.ndarray | None, salt: tuple[Any, ...]
) -> dict[str, Any]:
    """What a layer's file holds: concentration with its null, and a line a head, largest raw norm first.

    A head's line: head, raw_norm, selectivity, contribution (None without the model's weights), and of each figure how many
    standard deviations of the shuffled labels' it lies beyond their mean (z).
    """
    n_heads = layout["n_heads"]
    figures = head_figures(positive, negative, n_heads, writes)
    nulls = head_nulls(positive, negative, n_heads, writes, generator("heads", *salt))
    shares = [concentration(null)["head_concentration"] for null in nulls["raw_norm"]]
    known = [share for share in shares if share is not None]
    lines = []
    for head in np.argsort(-figures["raw_norm"], kind="stable"):
        line: dict[str, Any] = {"head": int(head)}
        for name in FIGURES:
            value = float(figures[name][head]) if name in figures else float("nan")
            line[name] = value if np.isfinite(value) else None
            line[f"{name}_z"] = beyond_null(value, nulls[name][:, head]) if np.isfinite(value) else None
        lines.append(line)
    null = {"head_concentration_null": float(np.mean(known)) if known else None, "shuffles": SHUFFLES}
    return {**layout, **concentration(figures["raw_norm"]), **null, "heads": lines}


def make_heads(
    batch: Mapping[str, Mapping[str, Any]], reader: Reader, weights_files: Mapping[int, Path], min_examples: int
) -> dict[str, list[int]]:
    """Write the head figures that are missing; a layer without heads says why. Returns {emotion: layers}.

    batch: {emotion: {"examples": path, "vectors": {layer: path}, "outputs": paths in the order of vectors}}; weights_files:
    {layer: path} of the model's own weights. Layers go outermost, so that a layer's weights are read once.
    """
    outputs = {name: dict(zip(weights_files, files["outputs"], strict=True)) for name, files in batch.items()}
    todo = {name: missing(paths) for name, paths in outputs.items()}
    sides = {
        name: Sides.of(name, read_examples(batch[name]["examples"]), TRAIN, reader, min_examples)
        for name, layers in todo.items()
        if layers
    }
    for layer, weights_file in weights_files.items():
        layout, o_proj = reader.layout(layer), None
        for name in (name for name, layers in todo.items() if layer in layers):
            output = outputs[name][layer]
            if "reason" in layout:
                write_json(output, {"layer": layer, "no_heads": layout["reason"]})
                continue
            o_proj = read_weights(weights_file).o_proj if o_proj is None else o_proj
            vector = read_vector(batch[name]["vectors"][layer])
            writes = None if o_proj is None else head_writes(o_proj, vector, layout["n_heads"])
            positive, negative = (reader.rows(layer, HEADS, d) for d in (sides[name].positive, sides[name].negative))
            figures = layer_heads(positive, negative, layout, writes, (name, layer))
            write_json(output, {"layer": layer, **figures}, indent=None)
    return todo


if "snakemake" in globals():
    with job(snakemake) as say:
        params, reader = snakemake.params, Reader(snakemake.input.indices)
        files = {name: with_layers(given) for name, given in params.files.items()}
        for name, layers in make_heads(files, reader, by_layer(params.weights), params.min_examples).items():
            say(f"{name}: layers {layers}")
