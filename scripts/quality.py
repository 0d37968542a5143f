"""What the vectors can be trusted for: held-out figures of every emotion and layer, in one quality.json a release."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, count_examples, digests_of, read_examples
from amygdala.files import read_json, write_json
from amygdala.job import job
from amygdala.segments import RESIDUAL, Reader
from amygdala.vectorfile import read_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

NEAREST = 5
TOP_HEADS = 10
SCHEMA_VERSION = 1


def auc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """Area under the ROC curve of projections, positive [n] against negative [m]; None where a side is empty."""
    if not len(positive) or not len(negative):
        return None
    labels = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))


def nearest(vectors: np.ndarray, emotions: Sequence[str], count: int = NEAREST) -> dict[str, list[list[Any]]]:
    """For each emotion the `count` others with the largest cosine, as [emotion, cosine]; vectors [n, hidden] of unit length."""
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(cosines, -np.inf)
    result = {}
    for row, emotion in enumerate(emotions):
        order = np.argsort(-cosines[row], kind="stable")[: min(count, len(emotions) - 1)]
        result[emotion] = [[emotions[other], float(cosines[row, other])] for other in order]
    return result


def emotion_quality(
    examples: Path, vectors: Mapping[int, np.ndarray], heads: Mapping[int, Path], reader: Reader
) -> dict[str, Any]:
    """Counts by split and side, held-out AUC by layer, the top heads by layer of one emotion."""
    texts = read_examples(examples)
    sides = digests_of((text for text in texts if reader.pooled(text.digest)), HELD_OUT)
    report: dict[str, Any] = {
        "counts": count_examples(texts),
        "without_row": sum(not reader.pooled(t.digest) for t in texts),
        "held_out_auc": {},
        "per_head": {},
    }
    for layer, vector in vectors.items():
        scores = {
            side: reader.rows(layer, RESIDUAL, digests).astype(np.float64) @ vector if digests else np.zeros(0)
            for side, digests in sides.items()
        }
        report["held_out_auc"][str(layer)] = auc(scores[POSITIVE], scores[NEGATIVE])
        figures = read_json(heads[layer])
        figures.pop("layer")
        if "heads" in figures:
            figures["heads"] = figures["heads"][:TOP_HEADS]
        report["per_head"][str(layer)] = figures
    return report


def make_quality(emotions: Mapping[str, dict[str, Any]], layers: Sequence[int], reader: Reader, output: Path) -> dict[str, Any]:
    """Write quality.json. emotions: {name: {"examples": path, "vectors": {layer: path}, "heads": {layer: path}}}."""
    names = list(emotions)
    vectors = {name: {layer: read_vector(emotions[name]["vectors"][layer]) for layer in layers} for name in names}
    report = {
        name: emotion_quality(emotions[name]["examples"], vectors[name], emotions[name]["heads"], reader) for name in names
    }
    for name in names:
        report[name]["nearest"] = {}
    for layer in layers:
        for name, others in nearest(np.stack([vectors[name][layer] for name in names]), names).items():
            report[name]["nearest"][str(layer)] = others
    no_heads = {str(layer): reader.layout(layer)["reason"] for layer in layers if "reason" in reader.layout(layer)}
    mean_auc = {}
    for layer in layers:
        known = [a for a in (report[name]["held_out_auc"][str(layer)] for name in names) if a is not None]
        mean_auc[str(layer)] = {"mean": float(np.mean(known)) if known else None, "emotions": len(known)}
    quality = {
        "schema_version": SCHEMA_VERSION,
        "layers": list(layers),
        "macro_auc": mean_auc,
        "layers_without_heads": no_heads,
        "emotions": report,
    }
    write_json(output, quality)
    return quality


if "snakemake" in globals():
    with job(snakemake) as say:
        params = snakemake.params
        files = {
            name: {
                "examples": Path(paths["examples"]),
                "vectors": {int(layer): Path(path) for layer, path in paths["vectors"].items()},
                "heads": {int(layer): Path(path) for layer, path in paths["heads"].items()},
            }
            for name, paths in params.files.items()
        }
        made = make_quality(files, params.layers, Reader(snakemake.input.indices), Path(snakemake.output[0]))
        for layer, value in made["macro_auc"].items():
            say(f"layer {layer}: mean held-out AUC {value['mean']} over {value['emotions']} emotions")
