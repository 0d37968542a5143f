"""A small graph, a configuration over it, and which keys of its build a change moves."""

from __future__ import annotations

import copy
import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from amygdala.build import Build
from nodes import own_side
from tiny import REPOSITORY

EMOTIONS = ("calm", "grief", "joy")
Nodes = list[dict[str, str]]


def text_of(number: int, word: str = "an ordinary") -> str:
    """No three words in a row stand in two of these texts: none are near duplicates."""
    return f"Entry{number} tells{number} of{number} {word} afternoon{number} at{number} sea{number}."


def held_out(text: str) -> bool:
    return own_side(sha256(text.encode()).hexdigest()[:32], 0.2) == "held_out"


def make_nodes() -> Nodes:
    """60 nodes: 20 positives of each emotion, which are negatives of the two others."""
    return [{"key": f"node/{i:02d}", "text": f"{text_of(i)}\n{EMOTIONS[i % 3]}:9"} for i in range(60)]


def first(split: bool, emotion: str) -> int:
    """The first node tagged with the emotion whose text is held out, or is not."""
    return next(i for i in range(60) if EMOTIONS[i % 3] == emotion and held_out(text_of(i)) == split)


def write_graph(path: Path, nodes: Nodes) -> Path:
    path.write_text("".join(json.dumps(node) + "\n" for node in nodes), encoding="utf-8")
    return path


def make_config(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The repository's configuration with a small graph and a copy of the model, in a folder that becomes the working one."""
    monkeypatch.chdir(folder)
    settings: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    settings["emotions"]["min_positives"] = 5
    write_graph(folder / "graph.jsonl", make_nodes())
    shutil.copytree(model, folder / "model")
    return {**settings, "graph": "graph.jsonl", "model": "model", "min_examples": 2, "target_layers": [1, 2]}


def make_build(config: dict[str, Any], **overrides: Any) -> Build:
    return Build(copy.deepcopy({**config, **overrides}), REPOSITORY)


def keys_of(build: Build) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "snapshot": build.current.key,
        "model": build.model_key,
        "space": build.space_key,
        "index": build.index_keys,
        "weights": build.weights_key,
        "quality": build.quality_key,
        "release": build.selections["readout"].key,
    }
    for stage, by_emotion in (
        ("examples", build.example_keys),
        ("vectors", build.vector_keys),
        ("heads", build.head_keys),
        ("figures", build.figure_keys),
    ):
        keys.update({f"{stage} {emotion}": value for emotion, value in by_emotion.items()})
    return keys


def changed(before: Build, after: Build) -> set[str]:
    """The names of the keys that differ, a stage alone where all its emotions do."""
    one, two = keys_of(before), keys_of(after)
    names = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    for stage in ("examples", "vectors", "heads", "figures"):
        every = {f"{stage} {emotion}" for emotion in EMOTIONS}
        if every <= names:
            names = names - every | {stage}
    return names


ALL_ROWS = {"space", "index", "vectors", "heads", "figures", "quality", "release"}
