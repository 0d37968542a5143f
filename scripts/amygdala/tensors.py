"""Safetensors files of the store: written whole, the same bytes each time, with facts as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from amygdala.files import whole


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write `tensors`, and `facts` as the one metadata entry `facts`.

    Not save_file: it makes a file of mode 0600 under a name of its own, and tells a full disk as an error of its own. One
    metadata entry: several are written in an order that differs from run to run.
    """
    data = save(dict(tensors), {"facts": json.dumps(dict(facts), sort_keys=True)})
    with whole(path) as temporary:
        temporary.write_bytes(data)
