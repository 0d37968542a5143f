"""One emotion's vector at one layer, as a file of the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from amygdala.errors import UserError
from amygdala.tensors import write_tensors


def write_vector(path: Path, vector: np.ndarray, facts: dict[str, Any]) -> None:
    """Write float32 [hidden] as the tensor `vector`, with `facts`."""
    write_tensors(path, {"vector": vector}, facts)


def read_vector(path: Path) -> np.ndarray:
    """float32 [hidden]. UserError where the file is damaged or its vector is not of unit length; the file is named."""
    try:
        vector = load_file(path)["vector"]
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run snakemake again, it will be rebuilt") from None
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if vector.dtype != np.float32 or vector.ndim != 1 or not abs(length - 1) < 1e-6:
        raise UserError(f"{path} is damaged (length {length}): delete it and run snakemake again, it will be rebuilt")
    return vector


def read_facts(path: Path) -> dict[str, Any]:
    """What the file says of its vector. UserError where it is damaged; the file is named."""
    try:
        with safe_open(path, "np") as file:
            facts = json.loads(file.metadata()["facts"])
        return dict(facts)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run snakemake again, it will be rebuilt") from None
