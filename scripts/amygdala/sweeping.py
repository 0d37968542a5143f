"""Which layers to read: chosen by held-out AUC, and kept until the next `snakemake sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amygdala.errors import UserError
from amygdala.files import read_json

LEAST_GAIN = 0.005  # of mean AUC that a further layer must bring


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
    if not isinstance(made_for, dict) or not isinstance(layers, list) or not layers:
        raise NotSweptError(f"target_layers: auto, and {path} holds no choice of layers. {advice}")
    for name, value in facts.items():
        if made_for.get(name) != value:
            raise NotSweptError(f"target_layers: auto, and {path} was made for {name} {made_for.get(name)!r}. {advice}")
    return sorted(int(layer) for layer in layers)


def choose_layers(table: np.ndarray, layers: list[int], count: int) -> list[dict[str, Any]]:
    """Layers worth reading, in the order of choice, each with why.

    table: float64 [n_emotions, n_layers] of held-out AUC, nan where unknown. The first is the layer with the highest mean
    over emotions; each further one raises the mean of every emotion's best chosen layer most, by LEAST_GAIN at least
    (greedy: within 1 - 1/e of the best choice of `count`, Nemhauser et al., 1978, as that mean is submodular).
    """
    known = table[~np.isnan(table).all(axis=1)]
    if not len(known):
        middle = len(layers) * 2 // 3
        return [{"layer": layers[middle], "why": "nothing is held out to measure on: two thirds of the depth"}]
    known = np.nan_to_num(known, nan=0.5)
    chosen: list[int] = []
    found: list[dict[str, Any]] = []
    best = np.zeros(len(known))
    while len(chosen) < min(count, len(layers)):
        means = np.maximum(best[:, None], known).mean(axis=0)
        means[chosen] = -1.0
        column = int(np.argmax(means))
        gain = float(means[column] - best.mean())
        if chosen and gain < LEAST_GAIN:
            break
        if chosen:
            helped = int((known[:, column] > best).sum())
            raised = f"{gain:.3f} to {means[column]:.3f}"
            why = f"raises the mean over each emotion's best layer by {raised}; best for {helped} emotions"
        else:
            why = f"highest mean AUC, {means[column]:.3f} over {len(known)} emotions"
        found.append({"layer": layers[column], "gain": gain if chosen else None, "why": why})
        chosen.append(column)
        best = np.maximum(best, known[:, column])
    return found
