"""Which attention heads carry an emotion: figures per head from the input of the output projection, a file a layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.batch import emotions_of, missing, with_rows
from amygdala.exampleset import NEGATIVE, POSITIVE, TRAIN, digests_of, read_examples
from amygdala.files import write_json
from amygdala.job import job
from amygdala.segments import HEADS, Reader

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

TOP = 10


def head_figures(positive: np.ndarray, negative: np.ndarray, n_heads: int) -> dict[str, np.ndarray]:
    """Per head: raw_norm = |mean positive - mean negative|, and selectivity = raw_norm / sqrt(mean |z - mean negative|^2).

    positive [n, n_heads * head_dim], negative [m, n_heads * head_dim] to float64 [n_heads] each. A head whose negatives do
    not vary at all has no selectivity (nan).
    """
    z_positive = positive.reshape(len(positive), n_heads, -1).astype(np.float64)
    z_negative = negative.reshape(len(negative), n_heads, -1).astype(np.float64)
    centre = z_negative.mean(axis=0)
    raw_norm = np.linalg.norm(z_positive.mean(axis=0) - centre, axis=1)
    spread = np.sqrt(((z_negative - centre) ** 2).sum(axis=2).mean(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        selectivity = np.where(spread > 0, raw_norm / spread, np.nan)
    return {"raw_norm": raw_norm, "selectivity": selectivity}


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


def layer_heads(positive: np.ndarray, negative: np.ndarray, layout: dict[str, Any]) -> dict[str, Any]:
    """What a layer's file holds: concentration, and all heads as [head, raw_norm, selectivity], largest raw norm first."""
    figures = head_figures(positive, negative, layout["n_heads"])
    order = np.argsort(-figures["raw_norm"], kind="stable")
    selectivity = [None if np.isnan(value) else float(value) for value in figures["selectivity"]]
    heads = [[int(head), float(figures["raw_norm"][head]), selectivity[head]] for head in order]
    return {**layout, **concentration(figures["raw_norm"]), "heads": heads}


def make_heads(emotion: str, examples: str | Path, reader: Reader, outputs: dict[int, Path], min_examples: int) -> list[int]:
    """Write the head figures of those layers whose file is missing; a layer without heads says why. Returns these layers."""
    todo = missing(outputs)
    sides = with_rows(emotion, digests_of(read_examples(examples), TRAIN), reader, min_examples) if todo else {}
    for layer in todo:
        layout = reader.layout(layer)
        if "reason" in layout:
            write_json(outputs[layer], {"layer": layer, "no_heads": layout["reason"]})
            continue
        positive = reader.rows(layer, HEADS, sides[POSITIVE])
        negative = reader.rows(layer, HEADS, sides[NEGATIVE])
        write_json(outputs[layer], {"layer": layer, **layer_heads(positive, negative, layout)}, indent=None)
    return todo


if "snakemake" in globals():
    with job(snakemake) as say:
        params, reader = snakemake.params, Reader(snakemake.input.indices)
        for emotion, examples, outputs in emotions_of(params):
            done = make_heads(emotion, examples, reader, outputs, params.min_examples)
            if done:
                say(f"{emotion}: layers {done}")
