"""The page of a report: what the release's files say, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from amygdala.confounds import CATEGORICAL, NUMERIC
from amygdala.reportfigures import Drawn
from amygdala.reportfiles import PARTS, TEMPLATES
from amygdala.reporttext import NONE, number, percent, span, visible
from amygdala.triage import CLEAN

PAGE_TOKENS = 60_000  # shown at most: a page of 10 MB is too heavy for a phone
LEAST_TOKENS = 40  # of each text
# |z| at which a token's colour changes
STEPS = (1, 2, 3, 4, 6)
SOFT = ("not measured", "too few examples")


def level(z: float | None) -> str:
    """The class of a token: x (does not count), 0, p1 … p5, n1 … n5."""
    if z is None:
        return "x"
    step = sum(abs(z) >= at for at in STEPS)
    return f"{'p' if z > 0 else 'n'}{step}" if step else "0"


def budget(lengths: Sequence[int], total: int = PAGE_TOKENS) -> int:
    """How many tokens of each text may be shown, so that all texts together have at most `total` (but LEAST_TOKENS each).

    >>> budget([10, 100, 100], 110)
    50
    """
    left, among = total, len(lengths)
    for length in sorted(lengths):
        if length * among > left:
            return max(LEAST_TOKENS, left // among)
        left, among = left - length, among - 1
    return max([LEAST_TOKENS, *lengths])


def token_lines(tokens: Sequence[Sequence[Any]], most: int) -> list[dict[str, str]]:
    """{"text", "level", "told"} of the first `most` tokens; neighbours of no colour stay apart, so that each can be asked."""
    return [
        {"text": visible(text, kept="\n\t"), "level": level(z), "told": number(z, 1, sign=True)} for text, z in tokens[:most]
    ]


def texts_of(tokens: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The example texts of each emotion that has some, in the order of `names`."""
    every = [len(text["tokens"]) for one in tokens["emotions"].values() for text in one["texts"]]
    most = budget(every)
    found = []
    for at, name in enumerate(names):
        if name not in tokens["emotions"]:
            continue
        one = tokens["emotions"][name]
        places = {one["positives"]: "Lowest", 1: "Highest"}
        texts = [
            {
                "place": f"{places.get(text['rank'], text['rank'])} of {one['positives']}",
                "projection": number(text["projection"]),
                "digest": text["digest"][:8],
                "cut": text["cut"],
                "all": len(text["tokens"]),
                "shown": min(most, len(text["tokens"])),
                "tokens": token_lines(text["tokens"], most),
            }
            for text in one["texts"]
        ]
        split = "held-out" if one["split"] == "held_out" else "training"
        found.append(
            {"name": visible(name), "at": at, "layer": one["layer"], "split": split, "of": one["positives"], "texts": texts}
        )
    return found


def chosen_layer(quality: Mapping[str, Any], name: str) -> int:
    """The layer that an emotion's row is about: its best, the last where none could be measured."""
    best = quality["emotions"][name]["best_layer"]
    return quality["layers"][-1] if best is None else best


def state_of(verdict: str) -> str:
    """good, soft (nothing to say against it but too little is known) or bad."""
    return "good" if verdict == CLEAN else "soft" if verdict in SOFT else "bad"


def where(value: float | None) -> str:
    """An AUC's place on a track from 0.3 to 1, in percent."""
    return f"{100 * (min(max(value, 0.3), 1.0) - 0.3) / 0.7:.1f}" if value is not None else ""


def cell(value: Any, text: str, note: str = "") -> dict[str, Any]:
    """A cell of a table that sorts by number: what it sorts by ("" comes last), and what is shown."""
    return {"by": "" if value is None else f"{value:.6g}", "text": text, "note": note}


def null_cell(figures: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = figures.get(name)
    if not found:
        return cell(None, NONE)
    return cell(
        found["mean"], number(found["mean"]), f"{round(found['reached'] * found['draws'])} of {found['draws']} reach it"
    )


def row_of(quality: Mapping[str, Any], name: str, at: int) -> dict[str, Any]:
    """A line of the triage table."""
    emotion = quality["emotions"][name]
    layer = chosen_layer(quality, name)
    figures = emotion["layers"][str(layer)]
    held_out, share, neuron, used = figures["held_out"], figures["spectrum"], figures["neuron"], emotion["used"]
    low, high = held_out["interval"] or (None, None)
    close = figures["nearest"][0] if figures["nearest"] else None
    cells = [
        {
            **cell(held_out["auc"], number(held_out["auc"]), span(held_out["interval"])),
            "track": None if low is None else {"left": where(low), "right": where(high), "at": where(held_out["auc"])},
        },
        cell(layer, str(layer)),
        null_cell(figures, "shuffled"),
        null_cell(figures, "random"),
        cell(held_out["cohens_d"], number(held_out["cohens_d"])),
        cell(figures["split_half_cosine"], number(figures["split_half_cosine"])),
        cell(share["first_component"], percent(share["first_component"])),
        cell(neuron.get("cosine"), number(neuron.get("cosine")), f"neuron {neuron['index']}" if "index" in neuron else ""),
        cell(figures["ridge"]["r2"], number(figures["ridge"]["r2"]), f"chance {number(figures['ridge']['chance'])}"),
        cell(close[1] if close else None, visible(close[0]) if close else NONE, number(close[1]) if close else ""),
        cell(
            used["train"]["positive"],
            f"{used['train']['positive']} / {used['train']['negative']}",
            f"held out {used['held_out']['positive']} / {used['held_out']['negative']}",
        ),
    ]
    return {
        "at": at,
        "name": visible(name),
        "verdict": visible(emotion["verdict"]),
        "state": state_of(emotion["verdict"]),
        "cells": cells,
        "line": visible(emotion["triage"]),
        "flags": [
            {
                "name": visible(flag["name"]),
                "why": visible(flag["why"]),
                "serious": flag["serious"],
                "texts": [visible(text, kept="\n\t") for text in flag["texts"]],
            }
            for flag in figures["flags"]
        ],
    }


COLUMNS = [
    ("Emotion", "text", "The vector's name in the readout."),
    ("Verdict", "text", "The gravest fault at the best layer, or clean; allowed for that it is the best of several."),
    ("AUC", "number", "Held-out AUC with its 95 % bootstrap interval. Track from 0.3 to 1; the tick is 0.5, chance."),
    ("Layer", "number", "Where held-out texts are told apart best."),
    ("Shuffled", "number", "Mean held-out AUC of vectors trained on shuffled labels, and how many of them reach this one's."),
    ("Random", "number", "The same of random directions."),
    ("d", "number", "Cohen's d of the projections, held-out positives against negatives."),
    ("Halves", "number", "Cosine of vectors from two halves of the training texts."),
    ("1st comp.", "number", "Share of the positives' variance in their first principal component."),
    ("Neuron", "number", "Largest cosine with what a single MLP neuron writes."),
    ("Ridge R²", "number", "How much of the vector all other vectors make up."),
    ("Nearest", "number", "The emotion with the largest cosine."),
    ("Texts", "number", "Training positives / negatives; held-out ones below."),
    ("Why", "text", "The triage in one line."),
]


def confound_rows(quality: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """A line an emotion: AUC of each feature, how far the projection follows it, the words that tell, median lengths."""
    rows = []
    for name in names:
        emotion = quality["emotions"][name]
        projection = emotion["layers"][str(chosen_layer(quality, name))]["projection"]
        cells = []
        for feature in (*NUMERIC, *CATEGORICAL):
            value, found = emotion["label_auc"].get(feature), projection.get(feature) or {}
            follows = found.get("r_within", found.get("explained"))
            symbol = "share" if feature in CATEGORICAL else "r"
            cells.append(
                cell(value, number(value), "" if follows is None else f"{symbol} {number(follows, sign=symbol == 'r')}")
            )
        words = ", ".join(
            f"{visible(w['word'])} ({percent(w['positive'])} / {percent(w['negative'])})" for w in emotion["words"][:3]
        )
        chars = emotion["median_chars"]
        lengths = f"{number(chars['positive'], 0)} / {number(chars['negative'], 0)}"
        rows.append(
            {"name": visible(name), "cells": cells, "words": words or NONE, "lengths": cell(chars["positive"], lengths)}
        )
    return rows


def head_rows(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line a layer: the heads that serve many emotions, and those that serve one alone; or why it has none."""
    rows = []
    for layer in quality["layers"]:
        reason, found = quality["layers_without_heads"].get(str(layer)), quality["head_service"].get(str(layer))
        if reason or not found:
            rows.append({"layer": layer, "reason": visible(reason or "no heads")})
            continue
        counts = dict(map(tuple, found["heads"]))
        rows.append(
            {
                "layer": layer,
                "k": found["k"],
                "n_heads": found["n_heads"],
                "expected": number(found["expected"], 1),
                "general": [f"{head} ({counts[head]})" for head in found["general"]],
                "only": [f"{head}: {visible(name)}" for head, name in found["only"].items()],
            }
        )
    return rows


def family_rows(quality: Mapping[str, Any], layer: int) -> list[dict[str, Any]]:
    """A line a family at one layer."""
    rows = []
    for family, found in quality["families"][str(layer)].items():
        sd, mean = found["random"]["sd"], found["random"]["mean"]
        rows.append(
            {
                "name": visible(family),
                "members": ", ".join(visible(name) for name in found["emotions"]),
                "cohesion": number(found["cohesion"]),
                "random": f"{number(mean)} ± {number(sd)}",
                "z": number((found["cohesion"] - mean) / sd, 1, sign=True) if sd else NONE,
            }
        )
    return rows


def plain(value: Any) -> str:
    """A setting in one spelling, whatever it is."""
    return visible(value) if isinstance(value, str) else visible(json.dumps(value, ensure_ascii=False))


def made_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """How the release was made, from its manifest alone: lines of (name, value), settings, versions, who was left out."""
    model, snapshot, capture = (manifest.get(name) or {} for name in ("model", "snapshot", "capture"))
    lines = [
        ("Model", f"{model.get('name')} ({model.get('kind')})"),
        ("Model's content", model.get("identity")),
        ("Arithmetic", model.get("dtype")),
        ("Residual", manifest.get("residual")),
        ("Layers", ", ".join(map(str, manifest["layers"]))),
        ("Hidden size", manifest.get("hidden_size")),
        ("Pooling", manifest.get("pooling")),
        ("Template", manifest.get("template")),
        ("Method", manifest.get("method")),
        ("Denoising", manifest.get("denoise")),
        ("Snapshot", snapshot.get("key")),
        ("Nodes", snapshot.get("nodes")),
        ("From", snapshot.get("sources")),
        ("Nodes skipped", snapshot.get("skipped_nodes")),
        ("Labels unread", snapshot.get("unread_labels")),
        ("Near duplicates", snapshot.get("near_duplicates")),
        *((name.replace("_", " ").capitalize(), value) for name, value in capture.items()),
        ("Vectors, sha256", manifest.get("vectors_sha256")),
        *((f"Key of {name}", value) for name, value in (manifest.get("keys") or {}).items()),
    ]
    selection = manifest.get("selection") or {}
    out = [(visible(name), visible(why["reason"])) for name, why in selection.items() if not why["chosen"]]
    return {
        "lines": [(name, "none" if value is None else plain(value)) for name, value in lines],
        "settings": [(visible(name), plain(value)) for name, value in (manifest.get("config") or {}).items()],
        "versions": [(visible(name), visible(str(value))) for name, value in (manifest.get("versions") or {}).items()],
        "left_out": out,
    }


def overview(quality: Mapping[str, Any], manifest: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The header: a sentence and the numbers that matter."""
    best = quality["best_layer"]
    macro = quality["macro_auc"][str(quality["layers"][-1] if best is None else best)]
    states = [row["state"] for row in rows]
    model = manifest.get("model") or {}
    return {
        "emotions": len(rows),
        "clean": states.count("good"),
        "soft": states.count("soft"),
        "bad": states.count("bad"),
        "best_layer": best,
        "macro": number(macro["mean"]),
        "interval": span(macro["interval"]),
        "measured": macro["emotions"],
        "model": visible(str(model.get("name"))),
        "dtype": visible(str(model.get("dtype"))),
        "hidden": manifest.get("hidden_size"),
        "layers": quality["layers"],
        "method": visible(str(manifest.get("method"))).replace("_", " "),
        "pooling": visible(str(manifest.get("pooling"))),
        "template": manifest.get("template") is not None,
        "denoise": manifest.get("denoise") is not None,
        "texts": (manifest.get("capture") or {}).get("unique_texts"),
        "sha": str(manifest.get("vectors_sha256"))[:12],
        "macro_rows": [
            {
                "layer": layer,
                "mean": number(quality["macro_auc"][str(layer)]["mean"]),
                "interval": span(quality["macro_auc"][str(layer)]["interval"]),
                "best": layer == best,
            }
            for layer in quality["layers"]
        ],
    }


def hashed(script: str) -> str:
    """The source expression by which a Content-Security-Policy lets exactly this script run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def render(
    quality: Mapping[str, Any],
    manifest: Mapping[str, Any],
    tokens: Mapping[str, Any],
    figures: Mapping[str, Drawn],
    layer: int,
) -> str:
    """The page; layer: the one whose cosines are drawn."""
    page, style, code = PARTS
    script, css = ((TEMPLATES / name).read_text(encoding="utf-8") for name in (code, style))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = sorted(manifest["concepts"])
    rows = [row_of(quality, name, at) for at, name in enumerate(names)]
    examples = texts_of(tokens, names)
    return environment.get_template(page).render(
        css=Markup(css),
        script=Markup(script),
        script_hash=hashed(script),
        figures={name: {"svg": Markup(one.inline), "drawn": one} for name, one in figures.items()},
        top=overview(quality, manifest, rows),
        columns=COLUMNS,
        rows=rows,
        flagged=[row for row in rows if row["flags"]],
        layer=layer,
        families=family_rows(quality, layer),
        heads=head_rows(quality),
        examples=examples,
        with_texts={example["at"] for example in examples},
        steps=STEPS,
        scored=tokens,
        features=[name.replace("_", " ") for name in (*NUMERIC, *CATEGORICAL)],
        confounds=confound_rows(quality, names),
        made=made_of(manifest),
    )
