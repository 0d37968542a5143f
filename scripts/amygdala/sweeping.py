"""Which layers to read: chosen by held-out AUC, and kept until the next `snakemake sweep`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amygdala.errors import UserError
from amygdala.files import read_json


class NotSweptError(UserError):
    """There is no choice of layers yet, or one for another model."""


def swept_layers(path: Path, facts: Mapping[str, Any]) -> list[int]:
    """The layers that `sweep` chose. NotSweptError where there is no choice, or it was made for something else than `facts`."""
    advice = "Measure all layers with: snakemake --cores all sweep"
    if not path.is_file():
        raise NotSweptError(f"target_layers: auto, and no layers are chosen yet ({path} is missing). {advice}")
    chosen = read_json(path)
    made_for = chosen.get("for") if isinstance(chosen, dict) else None
    layers = chosen.get("layers") if isinstance(chosen, dict) else None
    whole = isinstance(layers, list) and layers and all(type(layer) is int for layer in layers)
    if not isinstance(made_for, dict) or not isinstance(layers, list) or not whole:
        raise NotSweptError(f"target_layers: auto, and {path} holds no choice of layers. {advice}")
    for name, value in facts.items():
        if made_for.get(name) != value:
            raise NotSweptError(f"target_layers: auto, and {path} was made for {name} {made_for.get(name)!r}. {advice}")
    return sorted(layers)


def choose_layers(
    table: np.ndarray, low: np.ndarray, layers: Sequence[int], emotions: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Layers worth reading, at most `count`, in the order of choice, each with why.

    table: float64 [n_emotions, n_layers] of held-out AUC, nan where unknown; low: what each AUC is at least
    (comparison.beyond). The first is the layer with the highest mean over emotions. Each further one is read for the emotions
    that it reads better than every chosen layer beyond doubt (low above their AUC there), and is the one that these gain most
    by: the highest of many noisy figures would be higher by chance alone.
    """
    measured = ~np.isnan(table).all(axis=1)
    if not measured.any():
        layer = layers[len(layers) * 2 // 3]
        return [{"layer": layer, "emotions": [], "why": "nothing is held out to measure on: two thirds of the depth"}]
    known = np.nan_to_num(table[measured], nan=0.5)
    lowest = np.nan_to_num(low[measured], nan=0.0)
    names = [emotion for emotion, has in zip(emotions, measured, strict=True) if has]
    first = int(np.argmax(known.mean(axis=0)))
    why = f"highest mean AUC, {known[:, first].mean():.3f} over {len(known)} emotions"
    found: list[dict[str, Any]] = [{"layer": layers[first], "emotions": [], "why": why}]
    best = known[:, first].copy()
    while len(found) < count:
        better = lowest > best[:, None]
        gains = np.where(better, known - best[:, None], 0).sum(axis=0)
        column = int(np.argmax(gains))
        if not gains[column] > 0:
            break
        helped = [name for name, is_better in zip(names, better[:, column], strict=True) if is_better]
        why = f"reads {len(helped)} emotions better than the layers before, beyond their intervals"
        found.append({"layer": layers[column], "emotions": helped, "why": why})
        best = np.maximum(best, known[:, column])
    return found
