"""The report of a release: one HTML page that needs nothing else, and its figures as SVG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.batch import by_layer
from amygdala.contract import Readout, load_readout
from amygdala.errors import UserError
from amygdala.files import read_json, write_bytes, write_text
from amygdala.job import job
from amygdala.reportfigures import draw_all
from amygdala.reportfiles import FIGURES, PAGE
from amygdala.reportpage import chosen_layer, render

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

KNOWN_SCHEMA = 2


def make_report(
    readout: Readout,
    quality: Mapping[str, Any],
    tokens: Mapping[str, Any],
    heads: Mapping[str, Mapping[int, Mapping[str, Any]]],
    folder: Path,
) -> None:
    """Write report.html and the figures into `folder`; the same files give the same bytes.

    quality, tokens: as scripts/quality.py and scripts/token_scores.py write them; heads: {emotion: {layer: head figures}}.
    UserError where the quality figures are of another version, or not of this readout.
    """
    if quality.get("schema_version") != KNOWN_SCHEMA:
        raise UserError(
            f"quality.json has schema_version {quality.get('schema_version')}, the report reads {KNOWN_SCHEMA}: run snakemake "
            "again"
        )
    names = readout.concepts
    if set(quality["emotions"]) != set(names) or list(quality["layers"]) != readout.layers:
        raise UserError("quality.json and the manifest are of different releases: run snakemake again")
    layer = readout.layers[-1] if quality["best_layer"] is None else quality["best_layer"]
    vectors = readout.vectors[layer].astype(np.float64)
    layer_of = {name: chosen_layer(quality, name) for name in names}
    figures = draw_all(quality, names, vectors @ vectors.T, layer, heads, layer_of)
    for name in FIGURES:
        write_bytes(folder / f"{name}.svg", figures[name].svg)
    write_text(folder / PAGE, render(quality, readout.manifest, tokens, figures, layer))


if "snakemake" in globals():
    with job(snakemake) as say:
        given = snakemake.input
        figures_of = {
            name: {layer: read_json(path) for layer, path in by_layer(paths).items()}
            for name, paths in snakemake.params.heads.items()
        }
        make_report(
            load_readout(*given.release),
            read_json(given.quality[0]),
            read_json(given.tokens[0]),
            figures_of,
            Path(snakemake.output[0]).parent,
        )
        say(f"{snakemake.output[0]}: {Path(snakemake.output[0]).stat().st_size / 1e6:.1f} MB")
