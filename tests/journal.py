"""Made journals for tests of capture: graph nodes whose texts are of chosen lengths, and what the store holds of them."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from project import Project
from tiny import sample_texts

EMOTIONS = ("calm", "grief", "joy")


@functools.cache
def vocabulary() -> list[str]:
    """Words of the sample graph, the names of the emotions left out."""
    words = set(re.findall(r"[a-z]{3,}", " ".join(sample_texts(200)).lower()))
    return sorted(words - set(EMOTIONS))


def make_journal(count: int, shortest: int = 10, longest: int = 30, start: int = 0, end: str = "") -> list[dict[str, Any]]:
    """Nodes start, start + 1, … of random words, each a positive of one emotion; no two share a run of words or an ending."""
    nodes = []
    for number in range(start, start + count):
        random = np.random.default_rng(number)
        words = random.choice(vocabulary(), random.integers(shortest, longest + 1))
        text = f"{' '.join(words)} of the day {number}{end}"
        nodes.append({"key": f"journal/{number:05d}", "text": f"{text}\n{EMOTIONS[number % 3]}:9"})
    return nodes


def make_project(folder: Path, model: Path, nodes: list[dict[str, Any]], **config: Any) -> Project:
    """A project on layers 1 and 2; no text is left out of the examples."""
    settings = {"model": str(model), "emotions": {"select": "curated", "curated": list(EMOTIONS)}, "target_layers": [1, 2]}
    return Project.make(folder, nodes, **{**settings, "held_out": 0.2, **config})


def examples_of(project: Project) -> dict[str, list[dict[str, str]]]:
    """{emotion: its examples}; the project must have built its examples once alone."""
    found = {}
    for emotion in EMOTIONS:
        found[emotion] = json.loads(project.path(f"store/examples/{emotion}.*.json").read_text())["examples"]
    return found


def texts_of(project: Project) -> dict[str, str]:
    """{digest: text} of all examples."""
    return {example["digest"]: example["text"] for examples in examples_of(project).values() for example in examples}


def stored(project: Project) -> dict[tuple[str, int], list[str]]:
    """{(space, layer): digests in its segments, one for each row that is there}"""
    found: dict[tuple[str, int], list[str]] = {}
    for path in sorted(project.folder.glob("store/activations/*/layer_*/*.safetensors")):
        where = path.parent.parent.name, int(path.parent.name.removeprefix("layer_"))
        found.setdefault(where, []).extend(row.tobytes().hex() for row in load_file(path)["digests"])
    return found


def row_of(project: Project, space: str, layer: int, digest: str, kind: str = "residual") -> np.ndarray:
    """The stored row of a text, float32 [width], by reading all segments."""
    for path in project.folder.glob(f"store/activations/{space}/layer_{layer:03d}/*.safetensors"):
        tensors = load_file(path)
        for number, packed in enumerate(tensors["digests"]):
            if packed.tobytes().hex() == digest:
                return tensors[kind][number]
    raise AssertionError(f"no row of {digest}")


def vectors_of(project: Project, results: str = "results") -> dict[str, np.ndarray]:
    return load_file(project.folder / results / "readout/vectors.safetensors")


def least_cosine(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The least cosine of two releases' vectors, row by row."""
    assert one.keys() == other.keys()
    rows = [(one[name].astype(np.float64), other[name].astype(np.float64)) for name in one]
    return min(float((a * b).sum(1).min()) for a, b in rows)
