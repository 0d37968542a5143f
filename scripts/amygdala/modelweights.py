"""What a decoder layer's own weights can write into the residual stream: a file a layer, for jobs that do not load torch.

`o_proj` float32 [hidden, n_heads * head_dim] is the attention output projection W_O (what it reads is stored as `heads`), and
`neurons` float16 [n_neurons, hidden] are the columns of the MLP's W_down at length 1: the direction that each neuron writes
(Geva et al., 2203.14680). The facts hold each tensor's CRC-32 and shape, and their own CRC-32.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

from amygdala.errors import UserError
from amygdala.stamps import MADE_FROM
from amygdala.tensors import write_tensors

O_PROJ, NEURONS = "o_proj", "neurons"
DTYPES: dict[str, np.dtype[Any]] = {O_PROJ: np.dtype(np.float32), NEURONS: np.dtype(np.float16)}
CHUNK = 2048  # neurons, or rows of o_proj, that are worked on in float64 at a time


def _sums(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({name: value for name, value in facts.items() if name != "crc"}, sort_keys=True).encode())


def write_weights(path: Path, o_proj: np.ndarray | None, neurons: np.ndarray | None, facts: Mapping[str, Any]) -> None:
    """Write a layer's weights.

    o_proj: float32 [hidden, n_heads * head_dim], None where facts has the `reason`; neurons: float16 [n_neurons, hidden], rows
    of length 1 or 0, None where facts has `neurons_reason`. facts: "layer", then "n_heads" and "head_dim", or "reason";
    "neurons_reason". UserError where a weight is not a finite number, ValueError where the facts do not fit.
    """
    tensors = {}
    for name, values, reason in ((O_PROJ, o_proj, "reason"), (NEURONS, neurons, "neurons_reason")):
        if (values is None) != bool(facts.get(reason)):
            raise ValueError(f"{name} or a {reason}, one of them")
        if values is not None:
            tensors[name] = np.ascontiguousarray(values, dtype=DTYPES[name])
            if not all(np.isfinite(tensors[name][at : at + CHUNK]).all() for at in range(0, len(values), CHUNK)):
                raise UserError(
                    f"model: layer {facts['layer']} has weights ({name}) that are not finite numbers; it is damaged"
                )
    described = {name: {"crc": zlib.crc32(values.data), "shape": list(values.shape)} for name, values in tensors.items()}
    whole = {**facts, "tensors": described}
    if problem := _misfit(whole):
        raise ValueError(problem)
    write_tensors(path, tensors, {**whole, "crc": _sums(whole)})


def _misfit(facts: Mapping[str, Any]) -> str | None:
    """What is wrong with the shapes that the facts tell."""
    shapes = {name: entry["shape"] for name, entry in facts["tensors"].items()}
    if any(len(shape) != 2 or not shape[1] for shape in shapes.values()):
        return f"shapes {shapes}"
    if O_PROJ in shapes and shapes[O_PROJ][1] != facts["n_heads"] * facts["head_dim"]:
        return f"o_proj {shapes[O_PROJ]} of {facts['n_heads']} heads of {facts['head_dim']}"
    if len(shapes) == 2 and shapes[O_PROJ][0] != shapes[NEURONS][1]:
        return f"o_proj {shapes[O_PROJ]} and neurons {shapes[NEURONS]} differ in the hidden size"
    return None


def _damaged(path: Path, problem: object) -> NoReturn:
    raise UserError(f"{path} is damaged ({problem}): delete it and run snakemake again, it will be rebuilt")


@dataclass
class LayerWeights:
    """A layer's weights; each tensor is read, and compared with its checksum, when it is first asked for."""

    path: Path
    facts: dict[str, Any]
    _read: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def layer(self) -> int:
        return int(self.facts["layer"])

    @property
    def n_heads(self) -> int:
        """0 where the layer has no heads (`reason` in the facts)."""
        return int(self.facts.get("n_heads", 0))

    @property
    def o_proj(self) -> np.ndarray | None:
        """float32 [hidden, n_heads * head_dim], or None. UserError where the file is damaged."""
        return self._tensor(O_PROJ)

    @property
    def neurons(self) -> np.ndarray | None:
        """float16 [n_neurons, hidden], or None. UserError where the file is damaged."""
        return self._tensor(NEURONS)

    def _tensor(self, name: str) -> np.ndarray | None:
        told = self.facts["tensors"].get(name)
        if told is None:
            return None
        if name not in self._read:
            try:
                with safe_open(self.path, "np") as file:
                    values = file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                _damaged(self.path, error)
            if values.dtype != DTYPES[name] or list(values.shape) != told["shape"]:
                _damaged(self.path, f"{name} is {values.dtype} {list(values.shape)}")
            if zlib.crc32(np.ascontiguousarray(values).data) != told["crc"]:
                _damaged(self.path, f"{name} fails its checksum")
            self._read[name] = values
        return self._read[name]


def read_weights(path: Path) -> LayerWeights:
    """What write_weights wrote; the tensors are left on disk until they are asked for. UserError where the file is damaged."""
    try:
        with safe_open(path, "np") as file:
            facts, names = dict(json.loads(file.metadata()["facts"])), set(file.keys())
        facts.pop(MADE_FROM, None)
        if _sums(facts) != facts["crc"]:
            raise ValueError("its facts fail their checksum")
        if names != set(facts["tensors"]):
            raise ValueError(f"it holds {sorted(names)}")
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        _damaged(path, error)
    del facts["crc"]
    return LayerWeights(Path(path), facts)


def best_neurons(vectors: np.ndarray, neurons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each vector the neuron whose direction has the largest |cosine| with it, and that cosine with its sign.

    vectors [n, hidden], neurons [n_neurons, hidden], of any length and float dtype, to int64 [n] and float64 [n]. Among equals
    the first; a direction of length zero has cosine 0. ValueError where there is no neuron.
    """
    if not len(neurons):
        raise ValueError("no neurons")
    unit = _units(vectors)
    best, cosine = np.zeros(len(unit), np.int64), np.zeros(len(unit))
    for start in range(0, len(neurons), CHUNK):
        found = unit @ _units(neurons[start : start + CHUNK]).T
        first = np.abs(found).argmax(axis=1)
        value = found[np.arange(len(unit)), first]
        better = np.abs(value) > np.abs(cosine)
        best[better], cosine[better] = first[better] + start, value[better]
    return best, cosine


def _units(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def head_writes(o_proj: np.ndarray, vector: np.ndarray, n_heads: int) -> np.ndarray:
    """W_O,h^T v of each head: what a unit of each of its values writes along `vector`; times Δ_h it is the head's contribution
    v · (W_O,h Δ_h) (direct attribution to a direction, Elhage et al. 2021).

    o_proj [hidden, n_heads * head_dim], vector [hidden], to float64 [n_heads, head_dim]. ValueError where sizes do not fit.
    """
    hidden, width = o_proj.shape
    if vector.shape != (hidden,) or n_heads < 1 or width % n_heads:
        raise ValueError(f"o_proj {o_proj.shape}, vector {vector.shape}, {n_heads} heads")
    written = np.zeros(width)
    for start in range(0, hidden, CHUNK):
        rows = slice(start, start + CHUNK)
        written += vector[rows].astype(np.float64) @ o_proj[rows].astype(np.float64)
    return written.reshape(n_heads, -1)
