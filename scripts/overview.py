"""A release at a glance: held-out AUC of every emotion and layer, and how the directions of one layer lie to each other."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.backends.backend_svg import FigureCanvasSVG

from amygdala.contract import Readout, load_readout
from amygdala.files import read_json, write_bytes
from amygdala.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

ROW_INCHES = 0.24
NUMBERS_UP_TO = 60  # rows; more are drawn without a number in each cell, and each cell as one pixel of an enlarged image


def auc_table(quality: dict[str, Any], concepts: list[str], layers: list[int]) -> np.ndarray:
    """float64 [n_concepts, n_layers] of held-out AUC, nan where a side had no held-out text."""
    figures = quality["emotions"]
    rows = [[figures[concept]["layers"][str(layer)]["held_out"]["auc"] for layer in layers] for concept in concepts]
    return np.array(rows, dtype=np.float64)


def draw(readout: Readout, quality: dict[str, Any], output: Path) -> None:
    """Write the picture as SVG; the same readout and quality give the same bytes."""
    table = auc_table(quality, readout.concepts, readout.layers)
    order = np.argsort(-np.nan_to_num(table.mean(axis=1), nan=-1.0), kind="stable")
    names = [readout.concepts[row] for row in order]
    layer = readout.layers[-1] if quality["best_layer"] is None else quality["best_layer"]
    vectors = readout.vectors[layer][order].astype(np.float64)
    size = max(3.0, ROW_INCHES * len(names))
    cells = None if len(names) <= NUMBERS_UP_TO else "none"  # else matplotlib samples them to thousands of pixels a side
    with matplotlib.rc_context({"svg.hashsalt": "amygdala", "font.size": 8, "text.parse_math": False}):
        figure, (left, right) = plt.subplots(
            1,
            2,
            figsize=(2.6 + 0.5 * len(readout.layers) + size, 1.2 + size),
            layout="constrained",
            width_ratios=[max(1.2, 0.5 * len(readout.layers)), size],
        )
        auc = left.imshow(table[order], vmin=0.0, vmax=1.0, cmap="RdYlGn", aspect="auto", interpolation=cells)
        if len(names) <= NUMBERS_UP_TO:
            for row, column in np.ndindex(table.shape):
                value = table[order][row, column]
                left.text(column, row, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=7)
        left.set_xticks(range(len(readout.layers)), [str(index) for index in readout.layers])
        left.set_yticks(range(len(names)), names)
        left.set_xlabel("layer")
        left.set_title("held-out AUC")
        cosine = right.imshow(vectors @ vectors.T, vmin=-1.0, vmax=1.0, cmap="RdBu_r", interpolation=cells)
        right.set_xticks(range(len(names)), names, rotation=90)
        right.set_yticks([])
        right.set_title(f"cosine between vectors, layer {layer}")
        figure.colorbar(auc, ax=left, location="left", shrink=0.5)
        figure.colorbar(cosine, ax=right, shrink=0.5)
        picture = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(picture, metadata={"Date": None})  # savefig would lay out and draw twice
        write_bytes(output, picture.getvalue())
        plt.close(figure)


if "snakemake" in globals():
    with job(snakemake) as say:
        draw(
            load_readout(snakemake.input.vectors[0], snakemake.input.manifest[0]),
            read_json(snakemake.input.quality[0]),
            Path(snakemake.output[0]),
        )
