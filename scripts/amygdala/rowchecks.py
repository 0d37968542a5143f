"""Whether stored activations are what their index promises: each row against its text and checksum."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amygdala.checks import DamagedFileError, check_made
from amygdala.keys import key
from amygdala.segments import DESCRIBED, DIGEST_BYTES, HEADS, RESIDUAL, DamagedError, Mapped, row_crc
from amygdala.stamps import MADE_FROM, checksum
from amygdala.tensors import total_of


def open_mapped(path: str | Path) -> Mapped:
    """The file with its checksum compared, where it has one; nothing is copied."""
    try:
        mapped = Mapped(path)
        arrays = {name: mapped.array(name) for name in mapped.names()}
        made, told = mapped.made_from, dict(mapped.facts)
        if made is not None:
            if checksum(total_of(arrays, told), made) != made.get("sha256"):
                raise DamagedError("its checksum does not fit")
            told[MADE_FROM] = made
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if json.loads(file.read(length))["__metadata__"] != {"facts": json.dumps(told, sort_keys=True)}:
                raise DamagedError("its header was changed")
    except DamagedError as error:
        raise DamagedFileError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"unreadable ({type(error).__name__}: {error})") from None
    return mapped


def check_segment(path: str | Path, space_key: str) -> Mapped:
    """All rows of a segment: checksums, finite numbers, one digest a row. Returns it open."""
    mapped = open_mapped(path)
    if mapped.made_from is not None:
        check_made(mapped.made_from, space_key)
    try:
        digests, *counts = (mapped.array(name) for name in DESCRIBED)
        if digests.shape != (len(digests), DIGEST_BYTES) or any(count.shape != (len(digests),) for count in counts):
            raise DamagedError("digests, tokens, pooled and cut differ in length")
        mapped.check_sum(DESCRIBED)
        if Path(path).name.split(".")[0] != key([row.tobytes().hex() for row in digests]):
            raise DamagedError("its texts are not those of its name")
        for kind in (RESIDUAL, HEADS):
            if kind == RESIDUAL or "reason" not in mapped.facts:
                _check_rows(digests, mapped.array(kind), mapped.array(f"{kind}_crc"), kind)
    except DamagedError as error:
        raise DamagedFileError(str(error)) from None
    return mapped


def _check_rows(digests: np.ndarray, rows: np.ndarray, crcs: np.ndarray, kind: str) -> None:
    if rows.ndim != 2 or rows.dtype != np.float32 or len(rows) != len(digests) or crcs.shape != (len(digests),):
        raise DamagedError(f"{kind} is {rows.dtype} {rows.shape} for {len(digests)} texts")
    for digest, row, crc in zip(digests, rows, crcs.tolist(), strict=True):
        if row_crc(digest.tobytes(), row) != crc:
            raise DamagedError(f"the row of text {digest.tobytes().hex()} fails its checksum")
    if not np.isfinite(rows).all():
        raise DamagedError(f"{kind} holds numbers that are not finite")


def check_index(path: str | Path, recipe: Mapping[str, Any], texts: set[str] | None) -> Mapped:
    """An index by itself: checksums, the layers of its recipe, its texts (None: these are not known). Returns it open."""
    mapped = open_mapped(path)
    try:
        mapped.check_sum(mapped.names())
        digests = [row.tobytes().hex() for row in mapped.array("digests")]
        layers = {int(layer) for layer in mapped.facts["segments"]}
        tables = {name for name in mapped.names() if name.startswith("layer_")}
        if layers != set(recipe["layers"]) or tables != {f"layer_{layer:03d}" for layer in layers}:
            raise DamagedFileError("its layers are not those of its key")
        if sorted(set(digests)) != digests or (texts is not None and set(digests) != texts):
            raise DamagedFileError("its texts are not those of its key")
    except DamagedError as error:
        raise DamagedFileError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"unreadable ({type(error).__name__}: {error})") from None
    return mapped


def check_places(index: Mapped, layer: int, segments: Mapping[str, Mapped]) -> None:
    """That each text of an index has the row that the index tells, in those of its segments that are given."""
    names: Sequence[str] = index.facts["segments"][str(layer)]
    table, digests = index.array(f"layer_{layer:03d}"), index.array("digests")
    if table.shape != (len(digests), 2) or not len(names) > int(table[:, 0].max(initial=-1)):
        raise DamagedFileError(f"its table of layer {layer} has the wrong shape")
    for ordinal, name in enumerate(names):
        chosen = table[:, 0] == ordinal
        rows = table[chosen, 1]
        if name not in segments:
            continue
        held = segments[name].array("digests")
        if (rows >= len(held)).any() or (rows < 0).any() or not np.array_equal(held[rows], digests[chosen]):
            raise DamagedFileError(f"its rows in {name} are of other texts")
