"""The figures of a report, as SVG: the same release gives the same bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from amygdala.confounds import CATEGORICAL, NUMERIC
from amygdala.reporttext import number, short

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
INK, MUTED, RULE, ACCENT, NULL = "#1c2430", "#687282", "#d5dae1", "#1565c0", "#9aa3af"
# In the page the figures follow the reader's colours.
THEME = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", ACCENT: "var(--accent)"}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "legend.frameon": False,
}
MOST_PANELS = 36  # emotions with a panel of their own; more become rows of one table
MOST_MAPS = 24
NUMBERS_UP_TO = 26  # rows and columns whose cells have numbers
LONGEST = 17.0  # inches


@dataclass(frozen=True)
class Drawn:
    """A figure: `svg` for a file, `inline` for the page, `title` and a `note` that says how to read it; width in CSS pixels."""

    svg: bytes
    inline: str
    title: str
    note: str
    width: int


@dataclass(frozen=True)
class Clusters:
    """Emotions in the order of a clustering: positions in the given order, and scipy's linkage (None for one emotion)."""

    order: list[int]
    linkage: np.ndarray | None


def cluster(cosines: np.ndarray) -> Clusters:
    """Average linkage on 1 - cosine, leaves ordered so that neighbours are alike (Bar-Joseph et al. 2001).

    cosines: float64 [n, n], symmetric but for rounding.
    """
    if len(cosines) < 2:
        return Clusters(list(range(len(cosines))), None)
    apart = np.clip(1 - (cosines + cosines.T) / 2, 0, None)
    np.fill_diagonal(apart, 0)
    distances = squareform(apart, checks=False)
    linkage = hierarchy.optimal_leaf_ordering(hierarchy.average(distances), distances)
    return Clusters([int(leaf) for leaf in hierarchy.leaves_list(linkage)], linkage)


# SVG


def _restyled(element: ElementTree.Element, prefix: str, themed: bool) -> None:
    """Ids of its own for each figure, fonts that any reader has, and the page's colours where `themed`. Attributes alone are
    looked at: names stand in the text.
    """
    if element.tag == f"{{{SVG}}}image":
        element.attrib.pop("id", None)  # made of the pixels: the same for two scales of one kind, and nothing refers to it
    for name, value in list(element.attrib.items()):
        if name == "id":
            value = f"{prefix}-{value}"
        elif name == f"{{{XLINK}}}href" and value.startswith("#"):
            value = f"#{prefix}-{value[1:]}"
        elif name in ("style", "clip-path"):
            value = value.replace("url(#", f"url(#{prefix}-").replace("'DejaVu Sans'", "'DejaVu Sans', system-ui, sans-serif")
            if themed:
                for colour, word in THEME.items():
                    value = value.replace(colour, word)
        element.set(name, value)
    for child in element:
        _restyled(child, prefix, themed)


def finish(figure: Figure, name: str, title: str, note: str) -> Drawn:
    """Save and close a figure."""
    raw = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(raw, format="svg")
    plt.close(figure)
    made = []
    for themed in (False, True):
        root = ElementTree.fromstring(raw.getvalue())
        for metadata in root.findall(f"{{{SVG}}}metadata"):
            root.remove(metadata)  # the date is in it
        _restyled(root, name, themed)
        told = ElementTree.Element(f"{{{SVG}}}title")
        told.text = title
        root.insert(0, told)
        root.set("role", "img")
        root.set("aria-label", title)
        width = round(float(re.sub("[^0-9.]", "", root.get("width", "0"))) * 4 / 3)
        if themed:
            del root.attrib["width"], root.attrib["height"]
        else:
            paper = ElementTree.Element(f"{{{SVG}}}rect", width="100%", height="100%", fill="#ffffff")
            root.insert(1, paper)
        made.append(ElementTree.tostring(root, encoding="unicode"))
    return Drawn(f'<?xml version="1.0" encoding="utf-8"?>\n{made[0]}\n'.encode(), made[1], title, note, width)


def nothing(name: str, title: str, why: str) -> Drawn:
    """A figure that says why there is none."""
    figure = Figure(figsize=(6, 0.7))
    figure.text(0.01, 0.5, why, va="center", color=MUTED)
    return finish(figure, name, title, why)


def _size(count: int, inches: float, least: float) -> tuple[float, float]:
    """(length of an axis with `count` names, font size that fits them)"""
    length = min(LONGEST, max(least, inches * count))
    return length, min(8.5, max(3.5, 0.78 * 72 * length / max(count, 1)))


def _panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of that many inches on shared axes, at most so many in a row; the rest of the last row is
    empty.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(3.2, width * columns), 0.7 + height * rows),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes in grid.ravel()[count:]:
        axes.set_visible(False)
    return figure, list(grid.ravel()[:count])


def _some(values: Sequence[Any], most: int) -> list[int]:
    """Positions of at most `most` tick labels, evenly spaced, the first among them."""
    return list(range(0, len(values), -(-len(values) // most)))


def _layer_ticks(axes: Axes, layers: Sequence[int], most: int) -> None:
    at = _some(layers, most)
    axes.set_xticks([layers[i] for i in at], [str(layers[i]) for i in at])


def _bare(axes: Axes) -> None:
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _dark(colour: Any) -> bool:
    return bool(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.5)


def _cells(
    axes: Axes,
    table: np.ndarray,
    limits: tuple[float, float],
    colours: str,
    numbers: bool,
    font: float = 7,
    digits: int = 2,
    sign: bool = False,
) -> Any:
    """A table [rows, columns] as coloured cells, with numbers where asked; nan stays empty, with a dash among numbers."""
    palette = matplotlib.colormaps[colours].with_extremes(bad=(0.5, 0.5, 0.5, 0.18))
    shown = axes.imshow(
        np.ma.masked_invalid(table), vmin=limits[0], vmax=limits[1], cmap=palette, aspect="auto", interpolation="none"
    )
    for row, column in np.ndindex(table.shape) if numbers else ():
        value = table[row, column]
        colour = palette(shown.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
        ink = MUTED if not np.isfinite(value) else "#ffffff" if _dark(colour) else "#111111"
        text = number(float(value) if np.isfinite(value) else None, digits, sign)
        axes.text(column, row, text, ha="center", va="center", fontsize=font, color=ink)
    _bare(axes)
    return shown


def _bar(figure: Figure, shown: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(shown, ax=axes, label=label, pad=0.02, shrink=min(0.9, 3 / figure.get_figheight()))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.yaxis.label.set_color(MUTED)


# What is drawn


def auc_of(quality: Mapping[str, Any], name: str, layer: int) -> dict[str, Any]:
    """{"auc", "low", "high", "null_low", "null_high"} of an emotion at a layer, floats, nan where not measured. The null is the
    interval of vectors trained on shuffled labels (none where a slow method has a few draws).
    """
    figures = quality["emotions"][name]["layers"][str(layer)]
    held_out = figures["held_out"]
    null = (figures["shuffled"] or {}).get("interval") or [None, None]
    interval = held_out["interval"] or [None, None]
    values = (held_out["auc"], *interval, *null)
    names = ("auc", "low", "high", "null_low", "null_high")
    return {key: np.nan if value is None else float(value) for key, value in zip(names, values, strict=True)}


def curves(quality: Mapping[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """{"auc", "low", …}: float64 [emotions, layers] each."""
    found = [[auc_of(quality, name, layer) for layer in quality["layers"]] for name in names]
    return {part: np.array([[one[part] for one in row] for row in found]) for part in found[0][0]}


def _mean(table: np.ndarray) -> np.ndarray:
    """Mean of each column over what is known; nan where nothing is."""
    known = np.isfinite(table)
    with np.errstate(invalid="ignore"):
        return np.where(known.any(axis=0), np.nansum(table, axis=0) / np.maximum(known.sum(axis=0), 1), np.nan)


def _over_emotions(table: np.ndarray, percentile: float) -> np.ndarray:
    """A percentile of each column over what is known; nan where nothing is."""
    columns = [column[np.isfinite(column)] for column in table.T]
    return np.array([np.percentile(column, percentile) if len(column) else np.nan for column in columns])


def draw_layers(quality: Mapping[str, Any], names: Sequence[str]) -> Drawn:
    title = "Held-out AUC by layer"
    layers = quality["layers"]
    found = curves(quality, names)
    if not np.isfinite(found["auc"]).any():
        return nothing("layers", title, "No text was held out: nothing to measure on.")
    macro = [quality["macro_auc"][str(layer)] for layer in layers]
    middle = np.array([np.nan if one["mean"] is None else one["mean"] for one in macro])
    ends = np.array([one["interval"] or [np.nan, np.nan] for one in macro], dtype=np.float64)
    figure, axes = plt.subplots(figsize=(8.2, 4.0), layout="constrained")
    null = [_mean(found["null_low"]), _mean(found["null_high"])]
    lone = "o" if len(layers) < 12 else ""
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    if len(layers) == 1:
        axes.errorbar(layers, middle, yerr=np.abs(ends.T - middle), color=ACCENT, capsize=4, linewidth=2)
        axes.set_xlim(layers[0] - 1, layers[0] + 1)
    if np.isfinite(null).any():
        axes.fill_between(layers, *null, color=NULL, alpha=0.28, linewidth=0, label="shuffled labels, 95 %")
    if len(names) > MOST_PANELS:
        tenth, last = (_over_emotions(found["auc"], share) for share in (10, 90))
        told = f"80 % of {len(names)} emotions"
        axes.fill_between(layers, tenth, last, facecolor="none", edgecolor=MUTED, linewidth=0.8, linestyle=":", label=told)
    else:
        for row in found["auc"]:
            axes.plot(layers, row, color=NULL, linewidth=0.8, alpha=0.75, marker="." if lone else "", markersize=3)
        axes.plot([], [], color=NULL, linewidth=0.8, label=f"each of {len(names)} emotions")
    axes.fill_between(layers, ends[:, 0], ends[:, 1], color=ACCENT, alpha=0.18, linewidth=0, label="95 % interval of the mean")
    axes.plot(layers, middle, color=ACCENT, linewidth=2.2, marker=lone, markersize=5, label="mean over emotions")
    best = quality["best_layer"]
    if best is not None:
        axes.axvline(best, color=ACCENT, linewidth=0.8, linestyle=(0, (1, 2)))
        told = f"layer {best}: {number(middle[layers.index(best)])}"
        side = "right" if best == layers[-1] and len(layers) > 1 else "center"
        axes.annotate(told, (best, 1.0), xycoords=("data", "axes fraction"), ha=side, va="bottom", color=ACCENT, weight="bold")
    ends_at = found["auc"][:, -1]
    if np.isfinite(ends_at).any() and len(names) <= MOST_PANELS:
        for at in {int(np.nanargmax(ends_at)), int(np.nanargmin(ends_at))}:
            where = (layers[-1], ends_at[at])
            axes.annotate(
                short(names[at]), where, textcoords="offset points", xytext=(6, 0), va="center", color=MUTED, fontsize=7.5
            )
    low = min(float(np.nanmin(table)) for table in (found["auc"], np.append(null[0], 0.45)) if np.isfinite(table).any())
    axes.set_ylim(max(0, low - 0.02), 1.01)
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    _layer_ticks(axes, layers, 24)
    axes.set_xlabel("decoder layer, counted from 0")
    axes.set_ylabel("AUC on held-out texts")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=1.6, columnspacing=1.4)
    note = (
        "How well each vector tells its own held-out texts from others: 0.5 (dashed) is chance, 1 is perfect. The band around "
        "the mean is a bootstrap over emotions; a grey one what vectors trained on shuffled labels reach "
        "(the mean of the emotions' 95 % intervals; methods with few draws have none)."
    )
    return finish(figure, "layers", title, note)


def draw_emotions(quality: Mapping[str, Any], names: Sequence[str]) -> Drawn:
    """A panel an emotion; a table of emotions by layers where there are too many."""
    layers, found = quality["layers"], curves(quality, names)
    title = "Each emotion by layer"
    if len(names) > MOST_PANELS:
        best = np.argsort(-np.nan_to_num(_mean(found["auc"].T), nan=-1), kind="stable")
        height, font = _size(len(names), 0.15, 3)
        figure, axes = plt.subplots(figsize=(min(11, 2.6 + 0.3 * len(layers)), height + 0.8), layout="constrained")
        shown = _cells(axes, found["auc"][best], (0, 1), "BrBG", False)
        axes.set_yticks(range(len(names)), [short(names[at]) for at in best], fontsize=font)
        ticks = _some(layers, 24)
        axes.set_xticks(ticks, [str(layers[i]) for i in ticks])
        axes.set_xlabel("decoder layer")
        _bar(figure, shown, axes, "held-out AUC")
        return finish(
            figure, "emotions", title, "Held-out AUC of every emotion (highest mean first) at every layer; 0.5 is chance."
        )
    figure, panels = _panels(len(names), 6, 1.75, 1.25)
    low = np.nanmin([*found["low"].ravel(), *found["auc"].ravel(), 0.4])
    for at, axes in enumerate(panels):
        part = {name: table[at] for name, table in found.items()}
        axes.fill_between(layers, part["null_low"], part["null_high"], color=NULL, alpha=0.28, linewidth=0)
        axes.fill_between(layers, part["low"], part["high"], color=ACCENT, alpha=0.2, linewidth=0)
        axes.plot(layers, part["auc"], color=ACCENT, linewidth=1.6, marker="o" if len(layers) < 12 else "", markersize=3)
        axes.axhline(0.5, color=MUTED, linewidth=0.6, linestyle=(0, (4, 3)))
        best_layer = quality["emotions"][names[at]]["best_layer"]
        top = "" if best_layer is None else f"  {number(part['auc'][layers.index(best_layer)])}"
        axes.set_title(f"{short(names[at], 14)}{top}", fontsize=8)
        axes.set_ylim(max(0, low), 1.02)
        _layer_ticks(axes, layers, 5)
        axes.tick_params(labelsize=7, length=2)
        axes.set_yticks([0.5, 1.0])
    figure.supxlabel("decoder layer", fontsize=8, color=MUTED)
    figure.supylabel("held-out AUC", fontsize=8, color=MUTED)
    note = (
        "Line and blue band: held-out AUC with its 95 % bootstrap interval over texts; grey band: shuffled labels "
        "(methods with few draws have none). The number "
        "is the AUC at the emotion's best layer."
    )
    return finish(figure, "emotions", title, note)


def draw_cosines(cosines: np.ndarray, names: Sequence[str], clusters: Clusters, layer: int) -> Drawn:
    title = f"Cosines between vectors at layer {layer}"
    order = clusters.order
    side, font = _size(len(names), 0.34 if len(names) <= NUMBERS_UP_TO else 0.2, 2.4)
    figure, axes = plt.subplots(figsize=(side + 2.2, side + 1.0), layout="constrained")
    table = cosines[np.ix_(order, order)]
    shown = _cells(axes, table, (-1, 1), "RdBu_r", len(names) <= NUMBERS_UP_TO, font=6.3, digits=1 if len(names) > 12 else 2)
    labels = [short(names[at]) for at in order]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=font)
    axes.set_yticks(range(len(names)), labels, fontsize=font)
    axes.set_aspect("equal")
    _bar(figure, shown, axes, "cosine")
    note = "Ordered so that like directions stand together. Red: alike; blue: opposed; white: unrelated."
    return finish(figure, "cosines", title, note)


def draw_dendrogram(names: Sequence[str], clusters: Clusters, layer: int) -> Drawn:
    title = f"Which emotions share a direction at layer {layer}"
    if clusters.linkage is None:
        return nothing("dendrogram", title, "One emotion: nothing to cluster.")
    height, font = _size(len(names), 0.21, 1.6)
    figure, axes = plt.subplots(figsize=(7.2, height + 0.8), layout="constrained")
    with np.errstate(all="ignore"):
        tree = hierarchy.dendrogram(clusters.linkage, no_plot=True, color_threshold=0)
    lines = [list(zip(along, across, strict=True)) for along, across in zip(tree["dcoord"], tree["icoord"], strict=True)]
    axes.add_collection(LineCollection(lines, colors=ACCENT, linewidths=1.3))
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    far = max(1.05, float(clusters.linkage[:, 2].max()) * 1.04)
    axes.set_xlim(0, far)
    axes.set_ylim(10 * len(names), 0)
    axes.set_yticks([10 * at + 5 for at in range(len(names))], [short(names[at]) for at in clusters.order], fontsize=font)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("1 \u2212 cosine, mean over the pairs of two groups (average linkage); dashed: unrelated")
    note = "Groups that join further to the left are more alike; beyond the dashed line, they point away from each other."
    return finish(figure, "dendrogram", title, note)


def draw_families(quality: Mapping[str, Any]) -> Drawn:
    title = "Families of emotions"
    layers = quality["layers"]
    families = sorted({family for layer in layers for family in quality["families"][str(layer)]})[:12]
    if not families:
        return nothing("families", title, "No family has two emotions here.")
    figure, panels = _panels(len(families), 4, 2.1, 1.5)
    for at, axes in enumerate(panels):
        found = [quality["families"][str(layer)].get(families[at]) for layer in layers]
        value, mean, sd = (
            np.array([np.nan if one is None else pick(one) for one in found], dtype=np.float64)
            for pick in (lambda one: one["cohesion"], lambda one: one["random"]["mean"], lambda one: one["random"]["sd"])
        )
        mark = "o" if len(layers) < 12 else ""
        axes.fill_between(layers, mean - 2 * sd, mean + 2 * sd, color=NULL, alpha=0.28, linewidth=0)
        axes.axhline(0, color=MUTED, linewidth=0.6, linestyle=(0, (4, 3)))
        axes.plot(layers, value, color=ACCENT, linewidth=1.6, marker=mark, markersize=3)
        if len(layers) == 1:
            axes.errorbar(layers, mean, yerr=2 * sd, color=NULL, capsize=4)
        axes.set_title(short(families[at], 20), fontsize=8)
        axes.tick_params(labelsize=7, length=2)
        _layer_ticks(axes, layers, 5)
    figure.supxlabel("decoder layer", fontsize=8, color=MUTED)
    figure.supylabel("cohesion", fontsize=8, color=MUTED)
    note = (
        "Cohesion: mean cosine within the family less that to all others. Grey band: as many emotions drawn at random "
        "(mean ± 2 sd); above it, the family is one in the model, too."
    )
    return finish(figure, "families", title, note)


@dataclass(frozen=True)
class HeadMap:
    """float64 [layers, heads] each, nan where a layer has no such head. share: of the sum over heads of |contribution| (of
    raw_norm where the model's weights are not known: `by`); z: |contribution_z| likewise.
    """

    share: np.ndarray
    z: np.ndarray
    by: str


def head_map(by_layer: Mapping[int, Mapping[str, Any]], layers: Sequence[int]) -> HeadMap | None:
    """The map of one emotion from its head figures (scripts/heads.py); None where no layer has heads."""
    known = {layer: by_layer[layer] for layer in layers if "heads" in by_layer[layer]}
    if not known:
        return None
    by = "contribution"
    if any(line[by] is None for figures in known.values() for line in figures["heads"]):
        by = "raw_norm"
    width = max(figures["n_heads"] for figures in known.values())
    share, z = np.full((2, len(layers), width), np.nan)
    for layer, figures in known.items():
        row = layers.index(layer)
        total = sum(abs(line[by]) for line in figures["heads"])
        for line in figures["heads"]:
            share[row, line["head"]] = abs(line[by]) / total if total else np.nan
            z[row, line["head"]] = np.nan if line[f"{by}_z"] is None else abs(line[f"{by}_z"])
    return HeadMap(share, z, by)


def mean_map(maps: Sequence[HeadMap]) -> HeadMap:
    """The mean over emotions of what is known."""
    shape = maps[0].share.shape
    share, z = (
        _mean(np.stack([table.ravel() for table in tables])).reshape(shape)
        for tables in ([one.share for one in maps], [one.z for one in maps])
    )
    return HeadMap(share, z, maps[0].by)


def _name_heads(axes: Axes, layers: Sequence[int], width: int, most: tuple[int, int]) -> None:
    axes.invert_yaxis()
    at = _some(layers, most[0])
    axes.set_yticks(at, [str(layers[i]) for i in at])
    heads = _some(range(width), most[1])
    axes.set_xticks(heads, [str(head) for head in heads])


def draw_heads(maps: Mapping[str, HeadMap], layers: Sequence[int]) -> Drawn:
    title = "Which attention heads write the emotions"
    if not maps:
        return nothing("heads", title, "No layer here has attention heads.")
    whole = mean_map(list(maps.values()))
    width = whole.share.shape[1]
    wide = min(5.6, max(2.6, 0.3 * width))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(2 * wide + 2.4, min(12, max(2.4, 0.34 * len(layers) + 1.0))), layout="constrained"
    )
    numbers = width <= 16 and len(layers) <= 16
    top = float(np.nanmax(whole.share)) if np.isfinite(whole.share).any() else 1.0
    shown = _cells(left, 100 * whole.share, (0, 100 * top), "Blues", numbers, digits=0)
    left.set_title(f"share of |{whole.by.replace('_', ' ')}|")
    _bar(figure, shown, left, "% of the layer")
    most = float(np.nanmax(whole.z)) if np.isfinite(whole.z).any() else 1.0
    shown = _cells(right, whole.z, (0, most), "Oranges", numbers, digits=1)
    right.set_title("beyond shuffled labels")
    _bar(figure, shown, right, "|z|")
    for axes in (left, right):
        _name_heads(axes, layers, width, (32, 32))
        axes.set_xlabel("head")
        axes.set_ylabel("decoder layer")
    told = (
        "|contribution|: how much of what a head writes differently for the emotion goes along its vector"
        if whole.by == "contribution"
        else "raw norm: how much a head's output differs for the emotion"
    )
    note = (
        f"Left: {told}, as a share of its layer. Right: how many standard deviations that lies beyond shuffled labels. "
        f"Means over {len(maps)} emotions. Grey: no such head."
    )
    return finish(figure, "heads", title, note)


def draw_head_maps(maps: Mapping[str, HeadMap], layers: Sequence[int], chosen: Sequence[str]) -> Drawn:
    """A small map an emotion; `chosen` are at most MOST_MAPS."""
    title = "Heads of single emotions"
    if not maps:
        return nothing("head_maps", title, "No layer here has attention heads.")
    columns = min(6, len(chosen))
    rows = -(-len(chosen) // columns)
    width = next(iter(maps.values())).share.shape[1]
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(3.4, 1.75 * columns) + 0.8, 0.6 + rows * min(2.6, max(1.05, 0.35 + 0.13 * len(layers)))),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    top = 100 * max(float(np.nanmax(maps[name].share, initial=0)) for name in chosen) or 1.0
    for at, axes in enumerate(grid.ravel()):
        if at >= len(chosen):
            axes.set_visible(False)
            continue
        shown = _cells(axes, 100 * maps[chosen[at]].share, (0, top), "Blues", False)
        axes.set_title(short(chosen[at], 16), fontsize=8)
    _name_heads(grid[0, 0], layers, width, (6, 6))
    for axes in grid.ravel():
        axes.tick_params(labelsize=7)
    figure.supxlabel("head", fontsize=8, color=MUTED)
    figure.supylabel("decoder layer", fontsize=8, color=MUTED)
    _bar(figure, shown, list(grid.ravel()), "% of the layer")
    return finish(
        figure,
        "head_maps",
        title,
        "The same share, one emotion each: what stands out here and not in the mean is the emotion's own.",
    )


def draw_confounds(quality: Mapping[str, Any], names: Sequence[str], layer_of: Mapping[str, int]) -> Drawn:
    """Left how well each feature alone tells the label, right how far the projection follows it within the sides."""
    title = "What else tells the positives apart"
    features = [*NUMERIC, *CATEGORICAL]
    told = np.array([[_float(quality["emotions"][name]["label_auc"].get(f)) for f in features] for name in names])
    follows = np.full_like(told, np.nan)
    for row, name in enumerate(names):
        projection = quality["emotions"][name]["layers"][str(layer_of[name])]["projection"]
        for column, feature in enumerate(features):
            found = projection.get(feature) or {}
            follows[row, column] = _float(found.get("r_within", found.get("explained")))
    height, font = _size(len(names), 0.22 if len(names) <= NUMBERS_UP_TO else 0.15, 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.0, height + 1.1), layout="constrained", sharey=True)
    numbers = len(names) <= 60
    shown = _cells(left, told, (0, 1), "PuOr_r", numbers, font=min(7, font))
    _bar(figure, shown, left, "AUC")
    left.set_title("AUC of the feature alone")
    shown = _cells(right, follows, (-1, 1), "PuOr_r", numbers, font=min(7, font), sign=True)
    _bar(figure, shown, right, "r, or share of variance")
    right.set_title("projection follows it")
    left.set_yticks(range(len(names)), [short(name) for name in names], fontsize=font)
    for axes in (left, right):
        axes.set_xticks(range(len(features)), [name.replace("_", " ") for name in features], rotation=25, ha="right")
    note = (
        "Left: 0.5 says nothing, 0 or 1 gives the label away. Right: within positives and within negatives, so that the "
        "emotion itself does not count: Pearson's r with length, first person and own word; share of variance between "
        "sources and scenarios."
    )
    return finish(figure, "confounds", title, note)


def _float(value: Any) -> float:
    return np.nan if value is None else float(value)


def draw_all(
    quality: Mapping[str, Any],
    names: Sequence[str],
    cosines: np.ndarray,
    layer: int,
    heads: Mapping[str, Mapping[int, Mapping[str, Any]]],
    layer_of: Mapping[str, int],
) -> dict[str, Drawn]:
    """{name: figure} of reportfiles.FIGURES, and the clustering.

    names: [n] in the order of cosines [n, n], which are those at `layer`; heads: {emotion: {layer: figures}}; layer_of: each
    emotion's best layer.
    """
    layers = list(quality["layers"])
    clusters = cluster(cosines)
    ordered = [names[at] for at in clusters.order]
    found = {name: head_map(heads[name], layers) for name in names}
    maps = {name: one for name, one in found.items() if one is not None}
    table = curves(quality, ordered)["auc"]
    best = sorted(range(len(ordered)), key=lambda at: -np.max(np.nan_to_num(table[at], nan=-1)))[:MOST_MAPS]
    chosen = [ordered[at] for at in sorted(best) if ordered[at] in maps]
    drawing: dict[str, Callable[[], Drawn]] = {
        "layers": lambda: draw_layers(quality, ordered),
        "emotions": lambda: draw_emotions(quality, ordered),
        "cosines": lambda: draw_cosines(cosines, names, clusters, layer),
        "dendrogram": lambda: draw_dendrogram(names, clusters, layer),
        "families": lambda: draw_families(quality),
        "heads": lambda: draw_heads(maps, layers),
        "head_maps": lambda: draw_head_maps(maps, layers, chosen),
        "confounds": lambda: draw_confounds(quality, ordered, layer_of),
    }
    drawn = {}
    for name, make in drawing.items():
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"amygdala {name}"}):
            drawn[name] = make()
    return drawn


ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)
