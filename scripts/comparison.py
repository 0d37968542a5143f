"""All emotions of a comparison together: which method, layer and pooling reads out best; or which layers to read."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.errors import UserError
from amygdala.files import read_json, write_json
from amygdala.job import job
from amygdala.measures import LEVEL, generator, quantiles
from amygdala.sweeping import choose_layers

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

REPLICATES = 2000
SHOWN = 12
Choice = tuple[str, int, str, float | None]  # pooling, layer, method, share of denoise


def table_of(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[Choice], np.ndarray]:
    """(choices, AUC float64 [choices, emotions], nan where there is none) of {emotion: lines of compare.py}."""
    choices: dict[Choice, int] = {}
    cells = []
    for column, lines in enumerate(results.values()):
        for line in lines:
            if "layer" not in line:
                continue
            choice = (line["pooling"], line["layer"], line["method"], line["denoise"])
            cells.append((choices.setdefault(choice, len(choices)), column, line.get("auc")))
    table = np.full((len(choices), len(results)), np.nan)
    for row, column, value in cells:
        if value is not None:
            table[row, column] = value
    return list(choices), table


def over_emotions(what: str, values: np.ndarray) -> list[float] | None:
    """The interval of the mean of values [emotions], by drawing emotions anew; None of fewer than two."""
    if len(values) < 2:
        return None
    draws = generator(what, len(values)).integers(0, len(values), size=(REPLICATES, len(values)))
    return quantiles(values[draws].mean(axis=1))


def ranked(choices: Sequence[Choice], table: np.ndarray) -> list[dict[str, Any]]:
    """The choices by mean AUC over the emotions that they could measure, those with the most emotions first, each with the
    interval of its mean and of how far it lies behind the first one on the emotions that both have (emotions drawn anew, the
    same draw for both). An interval over fewer than two emotions is None.

    A choice that has no vector for an emotion that others have (`paired` without scenarios) is ranked on its own emotions, and
    says how many these are.
    """
    counts = (~np.isnan(table)).sum(axis=1)
    if not len(table) or not counts.max():
        return []
    means = np.where(counts > 0, np.nansum(table, axis=1) / np.maximum(counts, 1), -np.inf)
    full = counts == counts.max()
    order = sorted(range(len(table)), key=lambda row: (not full[row], -means[row], row))
    best = table[order[0]]
    found = []
    for row in order:
        if not counts[row]:
            continue
        both = ~np.isnan(table[row]) & ~np.isnan(best)
        own = table[row][~np.isnan(table[row])]
        pooling, layer, method, share = choices[row]
        line: dict[str, Any] = {"pooling": pooling, "layer": layer, "method": method, "denoise": share}
        line |= {"mean_auc": float(own.mean()), "interval": over_emotions("comparison", own), "emotions": len(own)}
        if both.any():
            behind = best[both] - table[row][both]
            line |= {"behind": float(behind.mean()), "behind_interval": over_emotions("behind", behind)}
        found.append(line)
    return found


def named(line: Mapping[str, Any]) -> str:
    """A choice in words."""
    share = f", denoise {line['denoise']:g}" if line["denoise"] is not None else ""
    return f"{line['method']}{share}, pooling {line['pooling']}, layer {line['layer']}"


def measured(line: Mapping[str, Any]) -> str:
    """A mean with its interval and its number of emotions in words."""
    within = "" if line["interval"] is None else " ({:.3f} to {:.3f})".format(*line["interval"])
    return f"{line['mean_auc']:.3f}{within} over {line['emotions']} emotion{'s' if line['emotions'] > 1 else ''}"


def in_words(lines: Sequence[Mapping[str, Any]]) -> str:
    """Which choice reads out best, and which cannot be told from it."""
    if not lines:
        return "nothing is held out: no choice can be measured"
    best = lines[0]
    said = f"best: {named(best)}: mean held-out AUC {measured(best)}"
    alike = [line for line in lines[1:] if not line.get("behind_interval") or line["behind_interval"][0] <= 0]
    methods = sorted({line["method"] for line in alike} - {best["method"]})
    same = f"; {len(alike)} others cannot be told from it" if alike else "; all others are behind it"
    return said + same + (f" (among them {', '.join(methods)})" if methods else "")


def text_table(lines: Sequence[Mapping[str, Any]], count: int = SHOWN) -> list[str]:
    """The first lines of the ranking, for a terminal."""
    return [f"{measured(line)}: {named(line)}" for line in lines[:count]]


def compared(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """What compare.json holds: the ranking, in words, the best choice of each emotion, and what could not be measured."""
    choices, table = table_of(results)
    lines = ranked(choices, table)
    best: dict[str, Any] = {}
    reasons: dict[str, list[str]] = {}
    for column, (emotion, of_emotion) in enumerate(results.items()):
        known = table[:, column] if len(table) else np.zeros(0)
        if len(known) and not np.isnan(known).all():
            row = int(np.nanargmax(known))
            pooling, layer, method, share = choices[row]
            best[emotion] = {"pooling": pooling, "layer": layer, "method": method, "denoise": share, "auc": float(known[row])}
        for line in of_emotion:
            if "reason" in line and emotion not in reasons.setdefault(line["reason"], []):
                reasons[line["reason"]].append(emotion)
    return {"in_words": in_words(lines), "ranking": lines, "best_of_emotion": best, "not_measured": reasons}


def beyond(looks: int) -> float:
    """By how many standard deviations of one AUC another must lie above it, for a difference that is there at LEVEL among so
    many looks (Bonferroni; as if the two were independent, though they are of the same texts: rather too far than too near).
    """
    return float(np.sqrt(2)) * NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * max(looks, 1)))


def swept(results: Mapping[str, Sequence[Mapping[str, Any]]], chosen_for: Mapping[str, Any], count: int) -> dict[str, Any]:
    """What sweep.json holds: the chosen layers and why, mean AUC by layer with intervals, and the AUC of each emotion."""
    choices, table = table_of(results)
    if not choices:
        why = next(line["reason"] for lines in results.values() for line in lines)
        raise UserError(f"sweep: no layer of any emotion could be measured: {why}")
    layers = [layer for _, layer, _, _ in choices]
    low = np.full_like(table, np.nan)
    for column, lines in enumerate(results.values()):
        # An emotion's widest interval at all layers: where few texts are told apart without a fault it has no width.
        widths = [line["interval"][1] - line["interval"][0] for line in lines if line.get("interval")]
        sd = max(widths, default=0.0) / (2 * NormalDist().inv_cdf((1 + LEVEL) / 2))
        for line in lines:
            if line.get("interval"):
                low[layers.index(line["layer"]), column] = line["auc"] - beyond(table.size) * sd
    choice = choose_layers(table.T, low.T, layers, list(results), count)
    macro = {str(line["layer"]): {k: line[k] for k in ("mean_auc", "interval", "emotions")} for line in ranked(choices, table)}
    by_emotion = {
        emotion: {str(layer): None if np.isnan(value) else float(value) for layer, value in zip(layers, column, strict=True)}
        for emotion, column in zip(results, table.T, strict=True)
    }
    return {
        "for": dict(chosen_for),
        "layers": sorted(entry["layer"] for entry in choice),
        "choice": choice,
        "note": "chosen on the held-out texts: their AUC at these layers is a little too good by the choice",
        "macro_auc": {str(layer): macro[str(layer)] for layer in layers if str(layer) in macro},
        "emotions": by_emotion,
    }


def draw(report: Mapping[str, Any], output: Path) -> None:
    """AUC over layers as SVG: each emotion, the mean with its interval, and the chosen layers; the same bytes each time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from amygdala.files import write_bytes

    layers = [int(layer) for layer in report["macro_auc"]]
    with matplotlib.rc_context({"svg.hashsalt": "amygdala", "font.size": 8, "text.parse_math": False}):
        figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
        for values in report["emotions"].values():
            known = {int(layer): value for layer, value in values.items() if value is not None}
            axis.plot(list(known), list(known.values()), color="#8894a0", linewidth=0.6, alpha=0.6)
        if layers:
            told = list(report["macro_auc"].values())
            low, high = zip(*(line["interval"] or (np.nan, np.nan) for line in told), strict=True)
            axis.fill_between(layers, low, high, color="#c2410c", alpha=0.15, linewidth=0)
            axis.plot(layers, [line["mean_auc"] for line in told], color="#c2410c", label="mean, and its interval")
            axis.legend(loc="lower right")
        for entry in report["choice"]:
            axis.axvline(entry["layer"], color="#1f2937", linewidth=0.8, linestyle=":")
            axis.text(entry["layer"], 1.0, f" {entry['layer']}", va="top")
        axis.axhline(0.5, color="#1f2937", linewidth=0.5)
        axis.set_ylim(None, 1.0)
        axis.set_xlabel("layer (dotted: chosen)")
        axis.set_ylabel("held-out AUC, a line an emotion")
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
        write_bytes(output, picture.getvalue())
        plt.close(figure)


if "snakemake" in globals():
    with job(snakemake, aloud=True) as say:
        files = [read_json(Path(path)) for path in snakemake.input]
        of_emotions = {content["emotion"]: content["results"] for content in files}
        if snakemake.params.chosen_for is None:
            report = compared(of_emotions)
            for told in [*text_table(report["ranking"]), report["in_words"]]:
                say(told)
        else:
            report = swept(of_emotions, snakemake.params.chosen_for, snakemake.params.most)
            for entry in report["choice"]:
                say(f"layer {entry['layer']}: {entry['why']}")
            draw(report, Path(snakemake.output[1]))
        write_json(snakemake.output[0], report)
