"""What the vectors can be trusted for: all figures of a release in one quality.json, with those across emotions, and a
triage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.across import correlations, family_figures, head_service, nearest, ridge_on_others, top
from amygdala.batch import by_layer
from amygdala.exampleset import HELD_OUT, read_examples
from amygdala.files import read_json, write_json
from amygdala.job import job
from amygdala.measures import generator, quantiles, ranked
from amygdala.segments import RESIDUAL, Reader
from amygdala.triage import line, triage, verdict
from amygdala.vectorfile import read_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

TOP_HEADS = 10
DIGITS = 6
MOST_TEXTS = 2000  # held-out texts that correlations of projections are taken over
REPLICATES = 1000
SCHEMA_VERSION = 2


def rounded(value: Any) -> Any:
    """Floats to DIGITS significant digits, anywhere in a JSON value: the file is read by people and browsers."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def held_out_texts(examples: Mapping[str, Path], reader: Reader, most: int = MOST_TEXTS) -> list[str]:
    """Digests of the held-out texts of all emotions that have a row: the `most` smallest, each once."""
    found = {text.digest for path in examples.values() for text in read_examples(path) if text.split == HELD_OUT}
    return [digest for digest in sorted(found) if reader.pooled(digest)][:most]


def cross_figures(
    vectors: np.ndarray, names: Sequence[str], rows: np.ndarray | None, families: Mapping[str, Sequence[str]], layer: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """({emotion: nearest, ridge, correlated}, {family: cohesion}) at one layer.

    vectors: float64 [n, hidden], unit length; rows: held-out texts' [texts, hidden], None where nothing is held out. `chance`:
    the R^2 that as many random directions would reach.
    """
    cosines = vectors @ vectors.T
    explained, coefficients = ridge_on_others(cosines)
    chance = min(1.0, (len(names) - 1) / vectors.shape[1])
    close = nearest(cosines, names)
    together = None
    if rows is not None and len(rows) > 2:
        together = correlations(ranked(rows @ vectors.T))
        np.fill_diagonal(together, np.nan)
    found = {}
    for at, name in enumerate(names):
        weights = coefficients[at]
        by = np.where(np.arange(len(names)) == at, -np.inf, np.abs(weights))
        shown = top(weights, names, by)
        found[name] = {
            "nearest": close[at],
            "ridge": {
                "r2": float(explained[at]) if len(names) > 1 else None,
                "chance": chance,
                "coefficients": [entry for entry in shown if entry[0] != name],
            },
            "correlated": []
            if together is None
            else top(together[at], names, np.nan_to_num(np.abs(together[at]), nan=-np.inf)),
        }
    return found, family_figures(cosines, names, families, generator("families", layer))


def macro(values: Sequence[float | None], layer: int) -> dict[str, Any]:
    """Mean AUC over the emotions that have one, with its interval over emotions drawn anew where there are two at least."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return {"mean": None, "interval": None, "emotions": 0}
    interval = None
    if len(known) > 1:
        draws = generator("macro", layer).integers(0, len(known), size=(REPLICATES, len(known)))
        interval = quantiles(known[draws].mean(axis=1))
    return {"mean": float(known.mean()), "interval": interval, "emotions": len(known)}


def best_of(means: Mapping[str, float | None]) -> int | None:
    """The layer with the highest figure; the first of equals; None where none is known."""
    known = [(value, -int(layer)) for layer, value in means.items() if value is not None]
    return -max(known)[1] if known else None


def head_summary(figures: dict[str, Any]) -> dict[str, Any]:
    """The head figures of an emotion and layer with the top heads alone."""
    figures = {name: value for name, value in figures.items() if name != "layer"}
    return {**figures, "heads": figures["heads"][:TOP_HEADS]} if "heads" in figures else figures


def make_quality(
    emotions: Mapping[str, Mapping[str, Any]],
    layers: Sequence[int],
    reader: Reader,
    together: Mapping[str, Sequence[Sequence[Any]]],
    families: Mapping[str, Sequence[str]],
    output: Path,
) -> dict[str, Any]:
    """Write quality.json (schemas/quality.schema.json).

    emotions: {name: {"examples": path, "texts": path, "layers": {layer: path}, "vectors": {layer: path}, "heads": {layer:
    path}}}; together: as in the plan.
    """
    names = list(emotions)
    shares = {emotion: dict(map(tuple, others)) for emotion, others in together.items()}
    report: dict[str, dict[str, Any]] = {}
    for name in names:
        report[name] = {"layers": {}, **read_json(emotions[name]["texts"]), "together": together.get(name, [])}
    digests = held_out_texts({name: emotions[name]["examples"] for name in names}, reader)
    macros, of_families, of_heads, no_heads = {}, {}, {}, {}
    for layer in layers:
        vectors = np.stack([read_vector(emotions[name]["vectors"][layer]) for name in names]).astype(np.float64)
        rows = reader.rows(layer, RESIDUAL, digests).astype(np.float64) if digests else None
        cross, of_families[str(layer)] = cross_figures(vectors, names, rows, families, layer)
        heads = {name: read_json(emotions[name]["heads"][layer]) for name in names}
        if "reason" in reader.layout(layer):
            no_heads[str(layer)] = reader.layout(layer)["reason"]
        of_heads[str(layer)] = head_service(heads)
        for name in names:
            figures = {**read_json(emotions[name]["layers"][layer]), **cross[name], "per_head": head_summary(heads[name])}
            flags = triage(name, report[name], figures, cross[name], shares)
            told = {"verdict": verdict(flags), "triage": line(flags, figures), "flags": [asdict(flag) for flag in flags]}
            report[name]["layers"][str(layer)] = {**figures, **told}
        macros[str(layer)] = macro([report[name]["layers"][str(layer)]["held_out"]["auc"] for name in names], layer)
    for name in names:
        of_layers = report[name]["layers"]
        best = best_of({layer: figures["held_out"]["auc"] for layer, figures in of_layers.items()})
        chosen = of_layers[str(layers[-1] if best is None else best)]
        flags = triage(name, report[name], chosen, chosen, shares, looks=len(layers))
        report[name] |= {"best_layer": best, "verdict": verdict(flags), "triage": line(flags, chosen)}
    quality = rounded(
        {
            "schema_version": SCHEMA_VERSION,
            "layers": list(layers),
            "best_layer": best_of({layer: figures["mean"] for layer, figures in macros.items()}),
            "macro_auc": macros,
            "layers_without_heads": no_heads,
            "families": of_families,
            "head_service": of_heads,
            "emotions": report,
        }
    )
    write_json(output, quality, indent=None)
    return quality


if "snakemake" in globals():
    with job(snakemake) as say:
        params = snakemake.params
        files = {
            name: {
                **{kind: Path(paths[kind]) for kind in ("examples", "texts")},
                **{kind: by_layer(paths[kind]) for kind in ("layers", "vectors", "heads")},
            }
            for name, paths in params.files.items()
        }
        made = make_quality(
            files, params.layers, Reader(snakemake.input.indices), params.together, params.families, Path(snakemake.output[0])
        )
        for layer, value in made["macro_auc"].items():
            say(f"layer {layer}: mean held-out AUC {value['mean']} over {value['emotions']} emotions")
        for name, figures in made["emotions"].items():
            say(f"{name}: {figures['triage']}")
