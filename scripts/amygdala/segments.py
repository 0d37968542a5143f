"""Activation rows in the store: immutable segments, one file a layer and flush, and the keyed index over them.

A segment `<space>/layer_012/<id>.safetensors` holds, for N texts: `digests` uint8 [N, 16]; `residual` float32 [N, hidden];
`heads` float32 [N, n_heads * head_dim] where the layer has attention heads; `residual_crc`, `heads_crc` uint32 [N], the CRC-32
of each text's digest and row; `tokens` int32 [N], tokens forwarded; `pooled` int32 [N], tokens that the row is the mean of (0:
the text is too short for the pooling and has no row, the values are 0); `cut` uint8 [N], 1 where the text was cut. Its facts
say n_heads and head_dim, or why there are none, and hold the CRC-32 of all but the rows. Rows are read through a memory map,
and each checksum is compared when its row is read.

The index, a capture job's declared output, maps the sorted digests of a shard to segment and row, one table a layer, and says
how many tokens were pooled. Its facts hold the CRC-32 of all the rest.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amygdala.errors import UserError, kept
from amygdala.keys import key
from amygdala.stamps import MADE_FROM
from amygdala.tensors import write_tensors

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
}
DIGEST_BYTES = 16
MOST_MAPPED = 256  # segments open at a time: systems allow 1,024 files a process, as a rule
RESIDUAL, HEADS = "residual", "heads"
DESCRIBED = ("digests", "tokens", "pooled", "cut")  # of a segment, what its facts' checksum covers; each row has one of its own


class DamagedError(Exception):
    """A stored file that is cut short, unreadable, or whose rows fail their checksum."""


@dataclass
class Rows:
    """Rows of one layer by `digests` [N]: residual [N, hidden], heads [N, n_heads * head_dim] or None; tokens, pooled, cut
    [N].
    """

    digests: list[str]
    residual: np.ndarray
    heads: np.ndarray | None
    tokens: np.ndarray
    pooled: np.ndarray
    cut: np.ndarray


def pack_digests(digests: Sequence[str]) -> np.ndarray:
    """Hex digests to uint8 [N, 16]."""
    return np.frombuffer(bytes.fromhex("".join(digests)), dtype=np.uint8).reshape(len(digests), DIGEST_BYTES)


def row_crc(digest: bytes, row: np.ndarray) -> int:
    """The checksum that binds a row (contiguous, any dtype) to its text."""
    return zlib.crc32(row.data, zlib.crc32(digest))


def _row_crcs(digests: Sequence[str], rows: np.ndarray) -> np.ndarray:
    crcs = (row_crc(bytes.fromhex(digest), row) for digest, row in zip(digests, rows, strict=True))
    return np.fromiter(crcs, dtype=np.uint32, count=len(rows))


def layer_folder(space: str | Path, layer: int) -> Path:
    return Path(space) / f"layer_{layer:03d}"


def space_of(index: str | Path) -> Path:
    """The folder that holds the segments of an index `<space>/index/<name>`."""
    return Path(index).parent.parent


def write_segment(space: str | Path, layer: int, rows: Rows, layout: Mapping[str, Any]) -> Path:
    """Write one segment; `layout` is {"n_heads", "head_dim"} or {"reason"}. Returns its path, named after its digests."""
    described = {
        "digests": pack_digests(rows.digests),
        "tokens": rows.tokens.astype(np.int32),
        "pooled": rows.pooled.astype(np.int32),
        "cut": rows.cut.astype(np.uint8),
    }
    tensors = dict(described)
    for kind, values in ((RESIDUAL, rows.residual), (HEADS, rows.heads)):
        if values is not None:
            tensors[kind] = np.ascontiguousarray(values, dtype=np.float32)
            tensors[f"{kind}_crc"] = _row_crcs(rows.digests, tensors[kind])
    path = layer_folder(space, layer) / f"{key(rows.digests)}.safetensors"
    write_tensors(path, tensors, {**layout, "crc": _sum(described, layout)})
    return path


class Mapped:
    """A safetensors file as arrays over one memory map. DamagedError where it is gone or its header or size is wrong; a file
    that cannot be read for another reason (rights, open files, the network) may be sound: UserError, and nothing is done to it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._arrays: dict[str, np.ndarray] = {}
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
                (length,) = struct.unpack("<Q", file.read(8))
                if length > size - 8:
                    raise ValueError("header longer than the file")
                header = json.loads(file.read(length))
            self.facts: dict[str, Any] = json.loads(header.pop("__metadata__")["facts"])
            self.made_from = self.facts.pop(MADE_FROM, None)
            self._entries: dict[str, dict[str, Any]] = header
            self._start = 8 + length
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if self._start + end != size:
                raise ValueError(f"{size} bytes, {self._start + end} expected")
        except FileNotFoundError:
            raise DamagedError("missing") from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}. It was left as it is") from None
        except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DamagedError(f"unreadable ({type(error).__name__}: {error})") from None

    def array(self, name: str) -> np.ndarray:
        """The tensor `name`, read-only, over the map. It stays readable when the file is set aside or removed."""
        if name in self._arrays:
            return self._arrays[name]
        try:
            entry = self._entries[name]
            shape: tuple[int, ...] = tuple(entry["shape"])
            dtype: np.dtype[Any] = DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            if math.prod(shape) * dtype.itemsize != end - begin:
                raise ValueError(f"{end - begin} bytes for shape {shape}")
            if 0 in shape:
                return np.zeros(shape, dtype)
            values = np.frombuffer(self._map or b"", dtype, count=math.prod(shape), offset=self._start + begin)
            self._arrays[name] = values.reshape(shape)
            return self._arrays[name]
        except (LookupError, TypeError, ValueError) as error:
            raise DamagedError(f"unreadable (tensor {name!r}: {type(error).__name__}: {error})") from None

    def check_sum(self, names: Iterable[str]) -> None:
        """Compare the facts' `crc` with that of the other facts and the tensors `names`; DamagedError where it differs."""
        if _sum({name: self.array(name) for name in names}, self.facts) != self.facts.get("crc"):
            raise DamagedError("its checksum does not fit")

    def names(self) -> list[str]:
        return sorted(self._entries)


def _sum(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> int:
    crc = zlib.crc32(json.dumps({k: v for k, v in facts.items() if k != "crc"}, sort_keys=True).encode())
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def set_aside(path: Path) -> str:
    """Rename a damaged file so that nothing finds it; says what was done. A link is renamed itself: its target is another
    store's, which is not asked for it again (amygdala.tiers). One that leads nowhere is removed.
    """
    aside = path.with_name(path.name + ".damaged")
    try:
        if path.is_symlink() and not path.exists():
            path.unlink()
            return "it is gone"
        os.replace(path, aside)
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        return f"it could not be set aside ({error.strerror}): delete it"
    return f"it was set aside as {aside.name}"


def _remove(index: Path) -> None:
    """Remove an index that is damaged or names a damaged segment. A link is set aside, else it would be made again."""
    if index.is_symlink():
        set_aside(index)
    with contextlib.suppress(OSError):
        index.unlink()


@dataclass
class Held:
    """What the store holds of one layer, by text, sorted by digest.

    digests: S16 [N] (compares as bytes: trailing zeros are padding to numpy, and all digests are of one length); segment: int32
    [N] into `names`; row: int32 [N]; tokens, pooled: int32 [N]; cut: uint8 [N]; layouts: each segment's, by its name.
    """

    digests: np.ndarray
    segment: np.ndarray
    row: np.ndarray
    tokens: np.ndarray
    pooled: np.ndarray
    cut: np.ndarray
    names: list[str]
    layouts: dict[str, dict[str, Any]]

    def find(self, digests: np.ndarray) -> np.ndarray:
        """S16 [n] to int64 [n]: their positions here, -1 where a digest is not held."""
        if not len(self.digests):
            return np.full(len(digests), -1, np.int64)
        positions = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[positions] == digests, positions, -1)


def as_keys(digests: Sequence[str]) -> np.ndarray:
    """Hex digests to S16 [N], in the same order."""
    return pack_digests(digests).view(f"S{DIGEST_BYTES}").reshape(len(digests))


def _segments_in(folder: Path) -> list[Path]:
    """Sorted segments of a layer. UserError where they cannot be listed: all their texts would be forwarded once more."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise kept(folder, error.strerror) from None


def held_rows(space: str | Path, layer: int, say: Any = lambda line: None) -> Held:
    """Look through a layer's segments. Damaged ones are set aside and named through `say`; their rows count as missing."""
    names: list[str] = []
    layouts: dict[str, dict[str, Any]] = {}
    parts: list[list[np.ndarray]] = []
    for path in _segments_in(layer_folder(space, layer)):
        try:
            mapped = Mapped(path)
            packed, *counts = (np.array(mapped.array(name)) for name in DESCRIBED)
            if packed.shape != (len(packed), DIGEST_BYTES) or any(count.shape != (len(packed),) for count in counts):
                raise DamagedError("unreadable (digests, tokens, pooled and cut differ in length)")
            mapped.check_sum(DESCRIBED)
        except DamagedError as error:
            say(f"warning: segment {path} is damaged: {error}; {set_aside(path)}; its rows are computed again")
            continue
        rows = np.arange(len(packed), dtype=np.int32)
        parts.append([packed.view(f"S{DIGEST_BYTES}").reshape(len(packed)), np.full_like(rows, len(names)), rows, *counts])
        names.append(path.name)
        layouts[path.name] = {name: value for name, value in mapped.facts.items() if name != "crc"}
    empty = [np.zeros(0, f"S{DIGEST_BYTES}"), *(np.zeros(0, np.int32) for _ in range(4)), np.zeros(0, np.uint8)]
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)] if parts else empty
    digests, first = np.unique(joined[0], return_index=True)
    segment, row, tokens, pooled, cut = (column[first] for column in joined[1:])
    return Held(digests, segment, row, tokens, pooled, cut, names, layouts)


def write_index(path: str | Path, digests: np.ndarray, layers: Mapping[int, Held], stats: Mapping[str, Any]) -> None:
    """Write the index of sorted `digests` (S16 [n]) over `layers`; every digest must be held in every layer (KeyError)."""
    packed = np.frombuffer(digests.tobytes(), np.uint8).reshape(len(digests), DIGEST_BYTES)
    tensors: dict[str, np.ndarray] = {"digests": packed}
    names: dict[str, list[str]] = {}
    layouts: dict[str, dict[str, Any]] = {}
    for layer, held in layers.items():
        places = held.find(digests)
        if (places < 0).any():
            raise KeyError(f"layer {layer}: {int((places < 0).sum())} texts have no row")
        used, ordinal = np.unique(held.segment[places], return_inverse=True)
        table = np.stack([ordinal.reshape(-1), held.row[places]], axis=1)
        tensors[f"layer_{layer:03d}"] = np.ascontiguousarray(table, dtype=np.int32)
        names[str(layer)] = [held.names[number] for number in used]
        for name in names[str(layer)]:
            first = layouts.setdefault(str(layer), held.layouts[name])
            if held.layouts[name] != first:
                folder, other = layer_folder(space_of(path), layer), names[str(layer)][0]
                raise UserError(
                    f"the segments {other} and {name} in {folder} disagree on the layer's heads "
                    f"({first}, {held.layouts[name]}): delete the wrong one and run snakemake again, its rows are captured anew"
                )
    tensors["pooled"] = held.pooled[places].astype(np.int32)  # of any layer: a text's tokens are the same in all
    facts = {"segments": names, "layouts": layouts, "stats": dict(stats)}
    write_tensors(Path(path), tensors, {**facts, "crc": _sum(tensors, facts)})


class Reader:
    """Rows by layer and digest, through the indices of all shards.

    A damaged segment or index ends in UserError, after the segment is set aside and the indices that name it are removed, so
    that the next run captures the lost rows again.
    """

    def __init__(self, indices: Iterable[str | Path]) -> None:
        self.stats: list[dict[str, Any]] = []
        self._indices = [Path(path) for path in indices]
        self.space = space_of(self._indices[0])
        self._tables: list[tuple[Mapped, dict[str, list[str]]]] = []
        self._layouts: dict[str, dict[str, Any]] = {}
        self._shard: dict[bytes, tuple[int, int]] = {}
        self._pooled: list[np.ndarray] = []
        self._mapped: OrderedDict[tuple[int, str], Mapped] = OrderedDict()
        for number, path in enumerate(self._indices):
            try:
                mapped = Mapped(path)
                mapped.check_sum(mapped.names())
                names, layouts, stats = (mapped.facts[name] for name in ("segments", "layouts", "stats"))
                packed = mapped.array("digests").tobytes()
                self._pooled.append(np.array(mapped.array("pooled")))
            except (DamagedError, KeyError) as error:
                self._give_up(path, f"the index {path} is damaged: {error}")
            self.stats.append(stats)
            self._tables.append((mapped, names))
            self._layouts.update(layouts)
            for row in range(len(packed) // DIGEST_BYTES):
                self._shard[packed[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES]] = (number, row)

    def layout(self, layer: int) -> dict[str, Any]:
        """{"n_heads", "head_dim"} of a layer, or {"reason"} where it has no heads."""
        return self._layouts[str(layer)]

    def pooled(self, digest: str) -> int:
        """How many tokens the row of a text is the mean of; 0: it is too short for the pooling, and has no row."""
        shard, row = self._shard[bytes.fromhex(digest)]
        return int(self._pooled[shard][row])

    def rows(self, layer: int, kind: str, digests: Sequence[str]) -> np.ndarray:
        """float32 [n, width]: the rows of `digests` in their order, each compared with its checksum."""
        if not len(digests):
            raise ValueError("no digests asked for")
        packed = [bytes.fromhex(digest) for digest in digests]
        places = np.array([self._shard[digest] for digest in packed], dtype=np.int64)
        out: np.ndarray | None = None
        for shard in np.unique(places[:, 0]):
            mapped, names = self._tables[shard]
            of_shard = np.flatnonzero(places[:, 0] == shard)
            ordinals, rows = mapped.array(f"layer_{layer:03d}")[places[of_shard, 1]].T
            for ordinal in np.unique(ordinals):
                chosen = ordinals == ordinal
                name = names[str(layer)][ordinal]
                values, crcs = self._open(layer, kind, name)
                if out is None:
                    out = np.empty((len(digests), values.shape[1]), dtype=np.float32)
                self._take(layer, name, values, crcs, rows[chosen], of_shard[chosen], packed, out)
        assert out is not None
        return out

    def _take(
        self,
        layer: int,
        name: str,
        values: np.ndarray,
        crcs: np.ndarray,
        rows: np.ndarray,
        positions: np.ndarray,
        packed: list[bytes],
        out: np.ndarray,
    ) -> None:
        """Copy `rows` of one segment to `positions` of `out`, and compare each copy with its checksum."""
        there = min(len(values), len(crcs))
        if values.shape[1] != out.shape[1] or (rows >= there).any():
            self._lost(layer, name, f"it has no row {rows[rows >= there][0] if (rows >= there).any() else rows[0]}")
        out[positions] = values[rows]
        for position, crc in zip(positions.tolist(), crcs[rows].tolist(), strict=True):
            if row_crc(packed[position], out[position]) != crc:
                self._lost(layer, name, f"the row of text {packed[position].hex()} fails its checksum")

    def _open(self, layer: int, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            if (layer, name) not in self._mapped:
                self._mapped[layer, name] = Mapped(layer_folder(self.space, layer) / name)
                if len(self._mapped) > MOST_MAPPED:
                    self._mapped.popitem(last=False)
            mapped = self._mapped[layer, name]
            self._mapped.move_to_end((layer, name))
            if f"{kind}_crc" not in mapped.names() and "reason" in mapped.facts:
                raise ValueError(f"layer {layer} has no {kind}: {mapped.facts['reason']}")
            values, crcs = mapped.array(kind), mapped.array(f"{kind}_crc")
            if values.ndim != 2 or crcs.ndim != 1:
                raise DamagedError(f"unreadable ({kind} is no table)")
            return values, crcs
        except DamagedError as error:
            self._lost(layer, name, str(error))
        raise AssertionError("unreachable")

    def _lost(self, layer: int, name: str, problem: str) -> None:
        path = layer_folder(self.space, layer) / name
        done = set_aside(path)
        for index, (_, names) in zip(self._indices, self._tables, strict=True):
            if name in names.get(str(layer), ()):
                _remove(index)
        raise UserError(f"segment {path} is damaged: {problem}; {done}. Run snakemake again: it computes the lost rows anew")

    def _give_up(self, index: Path, problem: str) -> None:
        _remove(index)
        raise UserError(f"{problem}; it was removed. Run snakemake again: it is rebuilt")
