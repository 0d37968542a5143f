"""Safetensors files of the store: written whole, the same bytes each time, with facts as JSON in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from amygdala.files import whole
from amygdala.stamps import MADE_FROM, Made, StampError, canonical, checksum, made_from


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write `tensors`, and `facts` with what the file is made from (stamps.py) as the one metadata entry `facts`.

    Not save_file: it makes a file of mode 0600 under a name of its own, and tells a full disk as an error of its own. One
    metadata entry: several are written in an order that differs from run to run.
    """
    told = dict(facts)
    made = made_from(path)
    if made is not None:
        told[MADE_FROM] = {**made, "sha256": checksum(total_of(tensors, facts), made)}
    data = save(dict(tensors), {"facts": json.dumps(told, sort_keys=True)})
    with whole(path) as temporary:
        temporary.write_bytes(data)


def total_of(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Any:
    """A hash that has taken in tensors and facts."""
    total = hashlib.sha256(canonical(facts))
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name])
        total.update(canonical([name, str(values.dtype), list(values.shape)]))
        total.update(values.data if values.size else b"")
    return total


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any], Made | None]:
    """(tensors, facts, what the file is made from, None where it does not say).

    StampError where its checksum does not fit; one of UNREADABLE, or OSError, where it is no such file.
    """
    with safe_open(path, "np") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    made = facts.pop(MADE_FROM, None)
    if made is not None and checksum(total_of(tensors, facts), made) != made.get("sha256"):
        raise StampError("its checksum does not fit")
    return tensors, facts, made


UNREADABLE = (SafetensorError, KeyError, TypeError, AttributeError, ValueError)  # what read_tensors raises, but OSError
