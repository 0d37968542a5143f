"""All emotions of a comparison together: which method, layer and pooling reads out best; or which layers to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

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


def ranked(choices: Sequence[Choice], table: np.ndarray) -> list[dict[str, Any]]:
    """The choices by mean AUC over the emotions that all of them could measure, best first, each with the interval of its mean
    and of how far it lies behind the best one (emotions drawn anew, the same draw for all: they are compared emotion by
    emotion).

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
        draws = generator("comparison", len(own)).integers(0, len(own), size=(REPLICATES, len(own)))
        pooling, layer, method, share = choices[row]
        line: dict[str, Any] = {"pooling": pooling, "layer": layer, "method": method, "denoise": share}
        line |= {"mean_auc": float(own.mean()), "interval": quantiles(own[draws].mean(axis=1)), "emotions": len(own)}
        if both.any():
            behind = best[both] - table[row][both]
            draws = generator("behind", len(behind)).integers(0, len(behind), size=(REPLICATES, len(behind)))
            line |= {"behind": float(behind.mean()), "behind_interval": quantiles(behind[draws].mean(axis=1))}
        found.append(line)
    return found


def named(line: Mapping[str, Any]) -> str:
    """A choice in words."""
    share = f", denoise {line['denoise']:g}" if line["denoise"] is not None else ""
    return f"{line['method']}{share}, pooling {line['pooling']}, layer {line['layer']}"


def in_words(lines: Sequence[Mapping[str, Any]]) -> str:
    """Which choice reads out best, and which cannot be told from it."""
    if not lines:
        return "nothing is held out: no choice can be measured"
    best = lines[0]
    low, high = best["interval"]
    count = best["emotions"]
    said = f"best: {named(best)}: mean held-out AUC {best['mean_auc']:.3f} ({low:.3f} to {high:.3f}) over {count} emotions"
    alike = [line for line in lines[1:] if line.get("behind_interval") and line["behind_interval"][0] <= 0]
    methods = sorted({line["method"] for line in alike} - {best["method"]})
    same = f"; {len(alike)} others cannot be told from it" if alike else "; all others are behind it"
    return said + same + (f" (among them {', '.join(methods)})" if methods else "")


def text_table(lines: Sequence[Mapping[str, Any]], count: int = SHOWN) -> list[str]:
    """The first lines of the ranking, for a terminal."""
    told = []
    for line in lines[:count]:
        low, high = line["interval"]
        told.append(f"{line['mean_auc']:.3f} ({low:.3f} to {high:.3f}), {line['emotions']} emotions: {named(line)}")
    return told


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
    layers = [layer for _, layer, _, _ in choices]
    low = np.full_like(table, np.nan)
    for column, lines in enumerate(results.values()):
        for line in lines:
            if line.get("interval"):
                sd = (line["interval"][1] - line["interval"][0]) / (2 * NormalDist().inv_cdf((1 + LEVEL) / 2))
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

    from amygdala.files import whole

    layers = [int(layer) for layer in report["macro_auc"]]
    with matplotlib.rc_context({"svg.hashsalt": "amygdala", "font.size": 8, "text.parse_math": False}):
        figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
        for values in report["emotions"].values():
            known = {int(layer): value for layer, value in values.items() if value is not None}
            axis.plot(list(known), list(known.values()), color="#8894a0", linewidth=0.6, alpha=0.6)
        if layers:
            told = list(report["macro_auc"].values())
            low, high = zip(*(line["interval"] for line in told), strict=True)
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
        with whole(output) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
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
