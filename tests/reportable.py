"""A small release as the report reads it, made up on the spot: quality figures, head figures, token scores, a readout."""

from __future__ import annotations

from typing import Any

import numpy as np

from amygdala.contract import Readout

ALERT = "<script>alert(1)</script>"
HOSTILE = (
    "</p></script><img src=x onerror=\"alert(2)\"><b>bold</b> & 'quoted' \u202eturned \x1b[31mred $x^2$ "
    f"{ALERT} &lt; {{{{ 7 * 7 }}}}"
)
NAMES = ["calm", ALERT, "q\"uo'te & $co", "喜び", "turned\u202e\x1b[1m"]


def verdict_of(at: int) -> tuple[str, list[dict[str, Any]]]:
    if at % 3 == 0:
        return "clean", []
    if at % 3 == 1:
        return "chance", [{"name": "chance", "why": HOSTILE, "serious": True, "texts": [HOSTILE]}]
    return "too few examples", [{"name": "too few examples", "why": "only 3 texts", "serious": True, "texts": []}]


def layer_figures(random: np.random.Generator, names: list[str], at: int, heads: dict[str, Any]) -> dict[str, Any]:
    verdict, flags = verdict_of(at)
    auc = float(random.uniform(0.55, 0.95))
    shuffled = {"reached": 0.05, "mean": 0.5, "sd": 0.06, "interval": [0.4, 0.6], "draws": 40}
    others = [[name, round(0.9 - 0.1 * rank, 3)] for rank, name in enumerate(name for name in names if name != names[at])][:5]
    numeric = enumerate(("length", "first_person", "own_word"))
    follows = {name: {"r": 0.1, "r_within": round(auc / 2 - 0.3 * place, 3)} for place, name in numeric}
    return {
        "held_out": {"auc": auc, "interval": [auc - 0.1, min(1.0, auc + 0.1)], "cohens_d": 1.25},
        "random": {"reached": 0.075, "mean": 0.48, "sd": 0.1, "interval": [0.28, 0.72], "draws": 40},
        "shuffled": shuffled,
        "split_half_cosine": 0.75,
        "spectrum": {
            "first_component": 0.31,
            "components_90": 5,
            "participation_ratio": 4.0,
            "first_component_of_negatives": 0.2,
        },
        "projection": {
            **follows,
            "source": {"explained": round(auc / 10, 3)},
            "scenario": {"explained": None},
            "scenarios_of_positives": None,
        },
        "neuron": {"index": 17, "cosine": -0.2, "neurons": 96},
        "nearest": others,
        "ridge": {"r2": 0.4, "chance": 0.1, "coefficients": others[:2]},
        "per_head": {name: value for name, value in heads.items() if name != "layer"},
        "verdict": verdict,
        "triage": verdict if not flags else f"{verdict}: {flags[0]['why']}",
        "flags": flags,
    }


def head_figures(random: np.random.Generator, layer: int, n_heads: int) -> dict[str, Any]:
    lines = [
        {
            "head": head,
            **{
                f"{name}{z}": float(random.normal()) for name in ("raw_norm", "selectivity", "contribution") for z in ("", "_z")
            },
        }
        for head in range(n_heads)
    ]
    for line in lines:
        line["raw_norm"] = abs(line["raw_norm"])
    return {"layer": layer, "n_heads": n_heads, "head_dim": 16, "heads": lines}


def make_release(
    names: list[str] = NAMES,
    layers: tuple[int, ...] = (3, 5, 8),
    n_heads: int = 4,
    without_heads: dict[int, str] | None = None,
    tokens: int = 12,
) -> tuple[Readout, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(readout, quality, token scores, head figures) in the form of the files that scripts/report.py reads."""
    random = np.random.default_rng(7)
    reasons = without_heads or {}
    rows = random.normal(size=(len(layers), len(names), 24)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    heads: dict[str, Any] = {
        name: {
            layer: {"layer": layer, "no_heads": reasons[layer]} if layer in reasons else head_figures(random, layer, n_heads)
            for layer in layers
        }
        for name in names
    }
    emotions = {}
    for at, name in enumerate(names):
        share = at / len(names)
        by_layer = {str(layer): layer_figures(random, names, at, heads[name][layer]) for layer in layers}
        best = max(layers, key=lambda layer: by_layer[str(layer)]["held_out"]["auc"])
        emotions[name] = {
            "used": {"train": {"positive": 30, "negative": 90}, "held_out": {"positive": 11, "negative": 22}},
            "counts": {"train": {"positive": 30, "negative": 90}, "held_out": {"positive": 11, "negative": 22}},
            "median_chars": {"positive": 90.0 + 15 * at, "negative": 115.0 - at / 4},
            "longest": {"positive": HOSTILE, "negative": HOSTILE},
            "label_auc": {
                "length": 0.6 + share / 3,
                "first_person": 0.5 - share / 4,
                "own_word": None,
                "source": 0.52 + share / 5,
                "scenario": None,
            },
            "words": [{"word": "<b>sun</b>", "positive": 0.5, "negative": 0.1, "example": HOSTILE}],
            "layers": by_layer,
            "best_layer": best,
            "verdict": by_layer[str(best)]["verdict"],
            "triage": by_layer[str(best)]["triage"],
        }
    family = {"cohesion": 0.2, "random": {"mean": 0.0, "sd": 0.1, "draws": 200}, "emotions": names[:2]}
    service = {"k": 1, "n_heads": n_heads, "expected": 1.0, "heads": [[head, 1] for head in range(n_heads)], "general": [0]}
    quality = {
        "schema_version": 2,
        "layers": list(layers),
        "best_layer": layers[-1],
        "macro_auc": {str(layer): {"mean": 0.75, "interval": [0.7, 0.8], "emotions": len(names)} for layer in layers},
        "layers_without_heads": {str(layer): reason for layer, reason in reasons.items()},
        "families": {str(layer): {"<i>kin</i>": family} if len(names) > 1 else {} for layer in layers},
        "head_service": {str(layer): None if layer in reasons else {**service, "only": {"2": names[-1]}} for layer in layers},
        "emotions": emotions,
    }
    manifest = {
        "concepts": names,
        "layers": list(layers),
        "hidden_size": 24,
        "model": {"kind": "folder", "name": f"model {ALERT}", "identity": "sha256:0123", "dtype": "fp32"},
        "pooling": "mean",
        "method": "mean_difference",
        "selection": {"dread": {"chosen": False, "reason": HOSTILE, "positives": 3}},
        "config": {"seed": 0, "emotions": {"curated": [ALERT]}},
        "capture": {"unique_texts": 99, "tokens": 1234},
        "versions": {"torch": "2.13"},
        "vectors_sha256": "ab" * 32,
    }
    words = [[HOSTILE, 3.3], ["First", None], ["\n", 0.1], [" low", -7.5], *([" word", 1.5] for _ in range(tokens - 4))]
    texts = [
        {
            "digest": f"{rank:032x}",
            "rank": rank,
            "projection": -rank / 4,
            "from_tokens": -rank / 4,
            "cut": False,
            "tokens": words,
        }
        for rank in (1, 6, 11)
    ]
    one = {"layer": layers[-1], "split": "held_out", "positives": 11, "median": 0.0, "spread": 1.0, "texts": texts}
    scored = {"pooling": "mean", "texts": 3, "tokens": 3 * tokens, "offsets": True, "emotions": dict.fromkeys(names, one)}
    return Readout(list(names), list(layers), dict(zip(layers, rows, strict=True)), manifest), quality, scored, heads
