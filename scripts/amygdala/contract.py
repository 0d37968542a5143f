"""The contract with the inference server: vectors.safetensors and manifest.json, and the check of one against the other.

`layer_<idx>.vectors` is float32 [n_concepts, hidden_size], rows of unit length in the manifest's concept order, for each
0-based decoder layer that the manifest lists; a vector lives in that layer's output, the residual stream after the block and
before the final norm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from amygdala.errors import UserError, listed, shown
from amygdala.files import sha256_file
from amygdala.stamps import split

NORM_TOLERANCE = 1e-6


def tensor_name(layer: int) -> str:
    return f"layer_{layer}.vectors"


@dataclass(frozen=True)
class Readout:
    """concepts [n]; layers [l]; vectors {layer: float32 [n, hidden]}; the whole manifest."""

    concepts: list[str]
    layers: list[int]
    vectors: dict[int, np.ndarray]
    manifest: dict[str, Any]


def load_readout(vectors: str | Path, manifest: str | Path) -> Readout:
    """Load both files and refuse (UserError) whatever does not fit: layers, shapes, dtype, unit length, sha256.

    >>> readout = load_readout("results/readout/vectors.safetensors", "results/readout/manifest.json")
    >>> readout.vectors[18][readout.concepts.index("joy")].shape
    (576,)
    """
    try:
        told = json.loads(split(".json", Path(manifest).read_bytes())[0])
    except (OSError, ValueError) as error:
        raise UserError(f"{manifest}: not a readable manifest ({error})") from None
    concepts, layers = _concepts(told, manifest), _layers(told, manifest)
    if not Path(vectors).is_file():
        raise UserError(f"{vectors}: no such file")
    if "vectors_sha256" in told and sha256_file(vectors) != told["vectors_sha256"]:
        raise UserError(f"{vectors} is not the file that {manifest} describes: its sha256 differs")
    try:
        tensors = load_file(vectors)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:  # dtypes that numpy has no name for
        raise UserError(f"{vectors}: not a readable safetensors file ({error})") from None
    if set(tensors) != {tensor_name(layer) for layer in layers}:
        raise UserError(f"{vectors} holds {listed(sorted(tensors))}, but {manifest} lists the layers {layers}")
    width = told.get("hidden_size", (*next(iter(tensors.values())).shape, 0, 0)[1])
    for layer in layers:
        _check_tensor(tensors[tensor_name(layer)], (len(concepts), width), f"{vectors}: {tensor_name(layer)}")
    return Readout(concepts, layers, {layer: tensors[tensor_name(layer)] for layer in layers}, told)


def _concepts(told: Any, manifest: str | Path) -> list[str]:
    concepts = told.get("concepts") if isinstance(told, dict) else None
    if not isinstance(concepts, list) or not concepts or not all(isinstance(c, str) for c in concepts):
        raise UserError(f"{manifest}: 'concepts' must be a list of names")
    if len(set(concepts)) != len(concepts):
        raise UserError(f"{manifest}: a concept stands twice in 'concepts'")
    return concepts


def _layers(told: Any, manifest: str | Path) -> list[int]:
    layers = told.get("layers")
    if not isinstance(layers, list) or not layers or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise UserError(f"{manifest}: 'layers' must be a list of layer indices")
    if len(set(layers)) != len(layers):
        raise UserError(f"{manifest}: a layer stands twice in 'layers'")
    return layers


def _check_tensor(tensor: np.ndarray, shape: tuple[int, int], what: str) -> None:
    if tensor.dtype != np.float32 or tensor.shape != shape:
        raise UserError(f"{what} is {tensor.dtype} {tensor.shape}, but float32 {shape} is expected")
    lengths = np.linalg.norm(tensor.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= NORM_TOLERANCE))
    if len(wrong):
        raise UserError(f"{what}: row {wrong[0]} has length {shown(float(lengths[wrong[0]]))}, not 1")
