"""Whether a stored file is what its name promises: its checksum, its key, and what it holds.

Each check takes a path and what is known of the file, and ends in DamagedFileError with the reason in a few words.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from amygdala.contract import NORM_TOLERANCE, tensor_name
from amygdala.corpus import Index, read_index
from amygdala.errors import UserError
from amygdala.exampleset import TRAIN, Example, count_examples, digests_of
from amygdala.files import sha256_file
from amygdala.graph import node_at, read_snapshot
from amygdala.keys import key, text_digest
from amygdala.modelweights import NEURONS, O_PROJ, read_weights
from amygdala.recipes import recipe_key
from amygdala.stamps import COMMENTED, LAST_LINE, MADE_FROM, Made, StampError, split, tail
from amygdala.tensors import UNREADABLE, read_tensors
from amygdala.vectorfile import TEXTS

ENDS = {".svg": b"</svg>", ".html": b"</html>"}
STAMP_WORDS = (b'"made_with":', b'"recipe":', b'"sha256":')
NEURON_TOLERANCE = 1e-2  # lengths of float16 rows of up to some ten thousand numbers


class DamagedFileError(Exception):
    """A stored file that is not what its name promises."""


def check_made(made: Mapping[str, Any], expected: str) -> None:
    """What a file says that it is made from, against the key in its name."""
    if made.get("key") != expected or recipe_key(made["recipe"]) != expected:
        raise DamagedFileError(f"it was made under the key {made.get('key')}, and stands under {expected}")
    for name, recipe in made.get("behind", {}).items():
        if recipe_key(recipe) != name:
            raise DamagedFileError(f"its recipe behind {name} has another key")
    for digest, modules in made.get("code", {}).items():
        if key(modules) != digest:
            raise DamagedFileError(f"its modules behind {digest} have another digest")


def read_stamped(path: str | Path) -> tuple[bytes, Made | None]:
    """(content, what it is made from or None where it does not say) of a JSON, SVG or HTML file."""
    suffix, data = Path(path).suffix, Path(path).read_bytes()
    try:
        content, made = split(suffix, data)
    except StampError as error:
        raise DamagedFileError(str(error)) from None
    if made is None:
        last = data[data.rstrip(b"\n").rfind(b"\n") + 1 :]
        if sum(word in last for word in STAMP_WORDS) > 1:
            raise DamagedFileError("its last line was changed")
    elif not data.endswith(tail(suffix, made)):
        raise DamagedFileError("its last line was changed")
    if suffix in COMMENTED and not content.rstrip().endswith(ENDS[suffix]):
        raise DamagedFileError("it is cut short")
    return content, made


def read_object(path: str | Path) -> tuple[dict[str, Any], Made | None]:
    """(value, what it is made from) of a JSON file that holds an object."""
    content, made = read_stamped(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"it is no JSON ({type(error).__name__})") from None
    if not isinstance(value, dict) or MADE_FROM in value:
        raise DamagedFileError("its end was changed" if isinstance(value, dict) else "it holds no object")
    return value, made


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any], Made | None]:
    """tensors.read_tensors, and that the header says its facts as they are written."""
    try:
        tensors, facts, made = read_tensors(path)
        told = facts if made is None else {**facts, MADE_FROM: made}
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        if header["__metadata__"] != {"facts": json.dumps(told, sort_keys=True)}:
            raise DamagedFileError("its header was changed")
    except (*UNREADABLE, SafetensorError, struct.error) as error:
        raise DamagedFileError(_reason(error)) from None
    if made is None and any(isinstance(value, dict) and {"recipe", "sha256"} <= value.keys() for value in facts.values()):
        raise DamagedFileError("its header was changed")
    return tensors, facts, made


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, StampError) else f"unreadable ({type(error).__name__}: {error})"


def made_from(path: str | Path) -> Made | None:
    """What a file of any kind is made from, None where it does not say. DamagedFileError where its checksum does not fit."""
    return read_arrays(path)[2] if Path(path).suffix == ".safetensors" else read_stamped(path)[1]


def check_stored(path: str | Path) -> None:
    """The checksum alone, of a file of any kind. UserError where it does not fit: before a stored file is copied."""
    try:
        made_from(path)
    except DamagedFileError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run snakemake again, it will be rebuilt") from None


def check_snapshot(path: str | Path, nodes: int) -> Made | None:
    """A snapshot of so many nodes."""
    made: Made | None = None
    try:
        count = sum(1 for _ in read_snapshot(path))
    except UserError as error:
        raise DamagedFileError(str(error).partition(": delete")[0].removeprefix(str(path))) from None
    with open(path, "rb") as file:
        line = next(iter(deque(file, maxlen=1)), b"")
    if line.startswith(LAST_LINE):
        made = json.loads(line)[MADE_FROM]
        if tail(".jsonl", made) != line:
            raise DamagedFileError("its last line was changed")
    if count != nodes:
        raise DamagedFileError(f"it has {count} nodes, {nodes} expected")
    return made


def check_graph_index(path: str | Path, snapshot: str | Path | None) -> tuple[Index, Made | None]:
    """A snapshot's index; snapshot: the sound snapshot, whose texts must stand where the index says."""
    _, _, made = read_arrays(path)
    index = read_index(Path(path))
    if index is None:
        raise DamagedFileError("its checksum does not fit")
    if snapshot is not None:
        digests = index.hex_digests(range(len(index.digests)))
        with open(snapshot, "rb") as file:
            for digest, offset, size in zip(digests, index.offsets.tolist(), index.sizes.tolist(), strict=True):
                try:
                    found = node_at(file, offset, size).digest
                except (ValueError, KeyError):
                    found = ""
                if found != digest:
                    raise DamagedFileError(f"the snapshot has no text {digest} where it says")
    return index, made


def check_texts(examples: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Each text against its digest."""
    try:
        found = [Example(**example) for example in examples]
    except TypeError as error:
        raise DamagedFileError(f"it holds no examples ({error})") from None
    for example in found:
        if text_digest(example.text) != example.digest:
            raise DamagedFileError(f"the text {example.digest} has another digest")
    return found


def check_examples(value: Mapping[str, Any], emotion: str, expected: str) -> list[Example]:
    """An emotion's examples against the hash `examples` of their recipe (plan.make_plan)."""
    found = check_texts(value.get("examples", []))
    told = [(one.digest, one.polarity, one.split, one.scenarios, one.groups) for one in found]
    if value.get("emotion") != emotion or key(told) != expected:
        raise DamagedFileError("its examples are not those of its key")
    if value.get("counts") != count_examples(found):
        raise DamagedFileError("its counts are not those of its examples")
    return found


def check_vector(
    tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any], emotion: str, layer: int, training: str
) -> np.ndarray:
    """float32 [hidden] of an emotion and layer: unit length, its texts those of the recipe's `training`."""
    vector = tensors.get("vector")
    if vector is None or vector.dtype != np.float32 or vector.ndim != 1:
        raise DamagedFileError("it holds no float32 vector")
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not abs(length - 1) < NORM_TOLERANCE:
        raise DamagedFileError(f"its vector has length {length:g}")
    if (facts.get("emotion"), facts.get("layer")) != (emotion, layer):
        raise DamagedFileError("it is of another emotion or layer")
    texts = {
        name.removeprefix(TEXTS): sorted(row.tobytes().hex() for row in rows)
        for name, rows in tensors.items()
        if name.startswith(TEXTS)
    }
    if texts and key(texts) != training:
        raise DamagedFileError("its training texts are not those of its key")
    return vector


def training_of(examples: Sequence[Example]) -> str:
    """The hash `training` of a vector's recipe."""
    return key(digests_of(examples, TRAIN))


def check_weights(path: str | Path, layer: int) -> None:
    """A layer's weights: checksums, finite numbers, neurons of length 1 or 0."""
    try:
        weights = read_weights(Path(path))
        o_proj, neurons = weights.o_proj, weights.neurons
        if weights.layer != layer:
            raise DamagedFileError(f"it is of layer {weights.layer}")
    except UserError as error:
        raise DamagedFileError(str(error).partition("(")[2].partition("): delete")[0]) from None
    for name, values in ((O_PROJ, o_proj), (NEURONS, neurons)):
        if values is not None and not np.isfinite(values).all():
            raise DamagedFileError(f"{name} holds numbers that are not finite")
    if neurons is not None:
        lengths = np.linalg.norm(neurons.astype(np.float32), axis=1)
        if not np.all((np.abs(lengths - 1) < NEURON_TOLERANCE) | (lengths == 0)):
            raise DamagedFileError("a neuron's direction is not of length 1")


def check_heads(value: Mapping[str, Any], layer: int) -> None:
    """An emotion's head figures at a layer: a line for each head, or why there are none."""
    heads = value.get("heads")
    lines = "no_heads" in value or (
        isinstance(heads, list) and sorted(line["head"] for line in heads) == list(range(value["n_heads"]))
    )
    if value.get("layer") != layer or not lines:
        raise DamagedFileError("its heads are not those of its layer")


def check_manifest(manifest: Mapping[str, Any], vectors: str | Path, emotions: Sequence[str], layers: Sequence[int]) -> None:
    """A release's manifest against what it is of, and against the file of vectors beside it."""
    if (manifest.get("concepts"), manifest.get("layers")) != (list(emotions), list(layers)):
        raise DamagedFileError("its concepts or layers are not those of its key")
    if Path(vectors).exists() and manifest.get("vectors_sha256") != sha256_file(vectors):
        raise DamagedFileError("it tells another sha256 of the vectors")


def check_release(
    tensors: Mapping[str, np.ndarray],
    emotions: Sequence[str],
    layers: Sequence[int],
    vectors: Mapping[tuple[str, int], np.ndarray],
) -> None:
    """A release's vectors, row for row those of the vectors' own files (as far as these are known)."""
    if set(tensors) != {tensor_name(layer) for layer in layers}:
        raise DamagedFileError(f"it holds {sorted(tensors)}")
    for layer in layers:
        rows = tensors[tensor_name(layer)]
        if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(emotions):
            raise DamagedFileError(f"{tensor_name(layer)} is {rows.dtype} {rows.shape}")
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        if not np.all(np.abs(lengths - 1) < NORM_TOLERANCE):
            raise DamagedFileError(f"{tensor_name(layer)} has rows that are not of length 1")
        for row, emotion in zip(rows, emotions, strict=True):
            own = vectors.get((emotion, layer))
            if own is not None and own.tobytes() != row.tobytes():
                raise DamagedFileError(f"its row of {emotion} at layer {layer} is not the stored vector")
