"""Merge vectors into a release: vectors.safetensors and manifest.json, as an inference server loads them."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.contract import load_readout, tensor_name
from amygdala.files import sha256_file, write_json
from amygdala.job import job
from amygdala.segments import Reader
from amygdala.tensors import write_tensors
from amygdala.vectorfile import read_facts, read_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

LIBRARIES = ("numpy", "torch", "transformers", "safetensors", "scikit-learn", "scipy", "matplotlib", "snakemake")
FORWARDED = ("unique_texts", "forwarded_texts", "tokens", "forwarded_tokens", "cut_texts", "short_texts")


def installed() -> dict[str, str]:
    """{library: exact version} of this environment, Python's too; libraries that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def make_release(
    vectors: Mapping[str, Mapping[int, Path]],
    layers: Sequence[int],
    stats: Sequence[Mapping[str, Any]],
    counts: Mapping[str, Any],
    facts: Mapping[str, Any],
    outputs: Mapping[str, Path],
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write vectors and manifest of a release, and load them back as a server would.

    vectors: {emotion: {layer: path}}, whose order is the concept order; stats: one dict a shard of what its capture did;
    counts: examples by emotion, split and polarity, of which `used` in the manifest counts the training texts with a row;
    facts: what the manifest says beside; outputs: paths for "vectors" and "manifest"; origin: what it takes to make the release
    again beside what `facts` says: `vectors` {concept: key}, `code` {stage: digest}, `reproduce`.
    """
    concepts, told = list(vectors), origin or {}
    used = {concept: read_facts(next(iter(vectors[concept].values())))["used"] for concept in concepts}
    tensors = {tensor_name(layer): np.stack([read_vector(vectors[c][layer]) for c in concepts]) for layer in layers}
    write_tensors(outputs["vectors"], tensors, {"concepts": concepts, "layers": list(layers)})
    manifest = {
        "concepts": concepts,
        "layers": list(layers),
        "hidden_size": int(next(iter(tensors.values())).shape[1]),
        **facts,
        "keys": {**facts.get("keys", {}), "vectors": dict(told.get("vectors", {}))},
        "code": dict(told.get("code", {})),
        "installed": installed(),
        "reproduce": dict(told.get("reproduce", {})),
        "counts": dict(counts),
        "used": used,
        "capture": {name: sum(shard[name] for shard in stats) for name in FORWARDED},
        "vectors_sha256": sha256_file(outputs["vectors"]),
    }
    write_json(outputs["manifest"], manifest)
    load_readout(outputs["vectors"], outputs["manifest"])


if "snakemake" in globals():
    with job(snakemake) as say:
        params = snakemake.params
        paths = {name: {int(layer): Path(path) for layer, path in files.items()} for name, files in params.vectors.items()}
        done = Reader(snakemake.input.indices).stats
        out = {name: Path(snakemake.output[name]) for name in ("vectors", "manifest")}
        make_release(paths, params.layers, done, params.counts, params.facts, out, params.origin)
        say(f"{len(paths)} concepts, layers {params.layers}")
