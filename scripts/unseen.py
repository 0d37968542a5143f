"""A release on texts from elsewhere: held-out sets that have nothing to do with the graph, scored with the released vectors."""

import dataclasses
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.confounds import excerpt
from amygdala.contract import Readout, load_readout
from amygdala.exampleset import TRAIN, read_examples
from amygdala.files import read_json, write_json
from amygdala.job import job
from amygdala.measures import Bootstrap, auc, cohens_d, generator
from amygdala.segments import RESIDUAL, Reader
from amygdala.textsets import Text, read_stored

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

BINS = 20
SHOWN = 3
MOST = 2000  # texts a side that an interval is drawn from, the first by digest: time and memory go with their product
FEW = 10  # positives or negatives; with fewer the interval says little


def histogram(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """Counts of positives and negatives (bool [n]) by projection: `edges` [bins + 1] over all texts' scores [n]."""
    edges = np.histogram_bin_edges(scores, bins=bins)
    sides = {"positive": positive, "negative": negative}
    counts = {side: np.histogram(scores[chosen], bins=edges)[0].tolist() for side, chosen in sides.items()}
    return {"edges": edges.tolist(), **counts}


def extremes(texts: Sequence[Text], scores: np.ndarray, emotion: str, count: int = SHOWN) -> dict[str, list[dict[str, Any]]]:
    """The texts with the highest and the lowest projection, with what their set scored them."""
    order = np.argsort(-scores, kind="stable")

    def told(rows: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "key": texts[row].key,
                "text": excerpt(texts[row].text),
                "projection": float(scores[row]),
                "score": texts[row].scores.get(emotion),
            }
            for row in rows
        ]

    return {"highest": told(order[:count]), "lowest": told(order[::-1][:count])}


def score_emotion(
    name: str,
    emotion: str,
    texts: Sequence[Text],
    projections: Mapping[int, np.ndarray],
    best_layer: int,
    positive: np.ndarray,
    negative: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """One emotion's figures on one set: AUC with interval and Cohen's d by layer; histogram and extremes at its best layer.

    projections: {layer: float64 [texts]}; positive, negative: bool [texts].
    """
    layers = {}
    for layer, scores in projections.items():
        sides = scores[positive], scores[negative]
        drawn = [side[:MOST] for side in sides]
        layers[str(layer)] = {"auc": auc(*sides), "interval": bootstrap.interval(*drawn), "cohens_d": cohens_d(*sides)}
    counts = {"positive": int(positive.sum()), "negative": int(negative.sum())}
    scores = projections[best_layer]
    return {
        **counts,
        "few": min(counts.values()) < FEW,
        "best_layer": best_layer,
        "layers": layers,
        "histogram": histogram(scores, positive, negative),
        **extremes(texts, scores, emotion),
    }


def with_aliases(texts: Sequence[Text], aliases: Mapping[str, str]) -> list[Text]:
    """The texts with scores by the names that emotions have in the build; of an alias and its emotion the higher score."""
    found = []
    for text in texts:
        scores: dict[str, float] = {}
        for emotion, score in text.scores.items():
            name = aliases.get(emotion, emotion)
            scores[name] = max(score, scores.get(name, 0.0))
        found.append(dataclasses.replace(text, scores=scores))
    return found


def sides_of(emotion: str, texts: Sequence[Text], min_positive_score: float) -> tuple[np.ndarray, np.ndarray]:
    """(positives: scored at least `min_positive_score`; negatives: without the emotion) of a set's texts, bool [texts] each."""
    given = [text.scores.get(emotion) for text in texts]
    positive = np.array([score is not None and score >= min_positive_score for score in given], dtype=bool)
    return positive, np.array([score is None or score <= 0 for score in given], dtype=bool)


def score_set(
    name: str,
    texts: Sequence[Text],
    reader: Reader,
    readout: Readout,
    best_layers: Mapping[str, int],
    min_positive_score: float,
    trained: Collection[str] = (),
) -> dict[str, Any]:
    """All emotions of a release on one set. best_layers: of each emotion, on the graph's own held-out texts.

    trained: digests of the texts that vectors were made from; they are counted, and left out. Emotions that the set labels
    and the release lacks are named; texts without a row (too short for the pooling) are counted.
    """
    fresh = [text for text in texts if text.digest not in trained]
    used = [text for text in fresh if reader.pooled(text.digest)]
    labels = {emotion for text in texts for emotion, score in text.scores.items() if score >= min_positive_score}
    result: dict[str, Any] = {
        "texts": len(texts),
        "trained_on": len(texts) - len(fresh),
        "without_row": len(fresh) - len(used),
        "not_in_release": sorted(labels - set(readout.concepts)),
        "emotions": {},
    }
    if not used:
        return result
    digests = [text.digest for text in used]
    by_layer = {
        layer: reader.rows(layer, RESIDUAL, digests).astype(np.float64) @ readout.vectors[layer].T for layer in readout.layers
    }
    for number, emotion in enumerate(readout.concepts):
        positive, negative = sides_of(emotion, used, min_positive_score)
        n, m = (min(int(side.sum()), MOST) for side in (positive, negative))
        bootstrap = Bootstrap(n, m, generator("unseen", name, emotion))
        projections = {layer: values[:, number] for layer, values in by_layer.items()}
        result["emotions"][emotion] = score_emotion(
            name, emotion, used, projections, best_layers[emotion], positive, negative, bootstrap
        )
    return result


def macro_of(emotions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean AUC at each emotion's best layer over those with enough texts, and over all that have any."""
    found = {}
    for name, chosen in (("enough", [f for f in emotions.values() if not f["few"]]), ("any", list(emotions.values()))):
        values = [f["layers"][str(f["best_layer"])]["auc"] for f in chosen]
        known = [value for value in values if value is not None]
        found[name] = {"mean_auc": float(np.mean(known)) if known else None, "emotions": len(known)}
    return found


def draw(report: Mapping[str, Any], output: Path, most: int = 24) -> None:
    """Histograms of projections as SVG: of each set the emotions with the most positives, `most` at most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from amygdala.files import write_bytes

    panels = []
    for name, figures in report["sets"].items():
        ranked = sorted(figures["emotions"], key=lambda emotion: (-figures["emotions"][emotion]["positive"], emotion))
        panels += [(name, emotion, figures["emotions"][emotion]) for emotion in ranked[:most]]
    columns = min(4, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    with matplotlib.rc_context({"svg.hashsalt": "amygdala", "font.size": 7, "text.parse_math": False}):
        figure, axes = plt.subplots(lines, columns, figsize=(2.4 * columns, 1.7 * lines), layout="constrained", squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, (name, emotion, told) in zip(axes.flat, panels, strict=False):
            edges = np.array(told["histogram"]["edges"])
            for side, colour in (("negative", "#8894a0"), ("positive", "#c2410c")):
                counts = np.array(told["histogram"][side], dtype=np.float64)
                axis.stairs(counts / max(counts.sum(), 1), edges, fill=True, alpha=0.55, color=colour, label=side)
            value = told["layers"][str(told["best_layer"])]["auc"]
            measured = "no AUC" if value is None else f"AUC {value:.2f}"
            axis.set_title(
                f"{emotion}, layer {told['best_layer']}\n{name}: {measured}, {told['positive']} positives", fontsize=7
            )
            axis.set_yticks([])
        if panels:
            axes.flat[0].legend(fontsize=6)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
        write_bytes(output, picture.getvalue())
        plt.close(figure)


if "snakemake" in globals():
    with job(snakemake, aloud=True) as say:
        params = snakemake.params
        texts, too_short = read_stored(snakemake.input.texts[0])
        readout = load_readout(snakemake.input.release[0], snakemake.input.release[1])
        quality = read_json(snakemake.input.quality[0])
        reader = Reader(snakemake.input.index)
        trained = {
            example.digest for path in snakemake.input.examples for example in read_examples(path) if example.split == TRAIN
        }
        best = {
            emotion: readout.layers[-1] if figures["best_layer"] is None else figures["best_layer"]
            for emotion, figures in quality["emotions"].items()
        }
        sets: dict[str, Any] = {}
        for name in sorted({text.set for text in texts}):
            chosen = with_aliases([text for text in texts if text.set == name], params.aliases)
            scored = score_set(name, chosen, reader, readout, best, params.min_positive_score, trained)
            if scored["trained_on"]:
                say(f"warning: {name}: {scored['trained_on']} texts are left out: vectors were made from them")
            if too_short[name]:
                say(f"warning: {name}: {too_short[name]} texts are shorter than min_content_chars and left out")
            sets[name] = {"macro": macro_of(scored["emotions"]), "too_short": too_short[name], **scored}
            told = sets[name]["macro"]["any"]
            mean = "no AUC" if told["mean_auc"] is None else f"mean AUC {told['mean_auc']:.3f} over {told['emotions']} emotions"
            say(f"{name}: {scored['texts']} texts, {mean}")
            for emotion, figures in scored["emotions"].items():
                at = figures["layers"][str(figures["best_layer"])]
                if at["auc"] is not None:
                    within = "" if at["interval"] is None else " ({:.2f} to {:.2f})".format(*at["interval"])
                    few = ", too few to tell" if figures["few"] else ""
                    counts = f"{figures['positive']} positives, {figures['negative']} negatives"
                    say(f"  {emotion}: AUC {at['auc']:.2f}{within}, {counts}{few}")
        report = {"release": params.release, "sets": sets}
        write_json(snakemake.output.figures, report)
        draw(report, Path(snakemake.output.picture))
