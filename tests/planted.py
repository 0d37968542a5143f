"""Builds of synthetic texts and rows, through the stages' own functions from stored segments to quality.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import figures
import heads
import quality
import vectors
from amygdala.directions import Recipe
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN, Example
from amygdala.keys import text_digest
from amygdala.modelweights import write_weights
from amygdala.segments import Reader, Rows, as_keys, held_rows, write_index, write_segment

HIDDEN, N_HEADS, HEAD_DIM = 64, 12, 4
MEAN = 40.0  # length of the mean of all rows; noise has about 8
STRENGTH = 3.0  # how far positives lie from negatives, in standard deviations of the noise along that direction
WORDS = ["sea", "road", "lamp", "bread", "stone", "river", "window", "garden", "kettle", "ladder", "paper", "engine"]

PLAIN = Recipe("mean_difference")
TextOf = Callable[[np.random.Generator, bool], str]
RowsOf = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def plain_text(random: np.random.Generator, positive: bool) -> str:
    """Of 10 to 59 words, either side alike; the first is a number, so that no two are equal."""
    return f"n{random.integers(10**9)} " + " ".join(random.choice(WORDS, size=random.integers(10, 60)))


def directed(strength: float = STRENGTH) -> RowsOf:
    """Positives lie `strength` away from negatives, along a direction drawn anew: bool [n] to float64 [n, HIDDEN]."""

    def rows(random: np.random.Generator, positive: np.ndarray) -> np.ndarray:
        direction = random.standard_normal(HIDDEN)
        direction *= strength / np.linalg.norm(direction)
        return random.standard_normal((len(positive), HIDDEN)) + positive[:, None] * direction

    return rows


@dataclass
class World:
    """Emotions with their examples, and each text's row by layer. `heads`, `neurons`: whether layers have such."""

    layers: Sequence[int] = (1, 2)
    heads: bool = True
    neurons: bool = True
    examples: dict[str, list[Example]] = field(default_factory=dict)
    rows: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    pooled: dict[str, int] = field(default_factory=dict)

    def centre(self, layer: int) -> np.ndarray:
        mean = np.random.default_rng([0, layer]).standard_normal(HIDDEN)
        return mean * (MEAN / np.linalg.norm(mean))

    def add(
        self,
        emotion: str,
        rows_of: RowsOf | None = None,
        text_of: TextOf = plain_text,
        scenario_of: Callable[[int, bool], list[str]] = lambda at, positive: [],
        train: tuple[int, int] = (60, 60),
        held_out: tuple[int, int] = (25, 25),
    ) -> None:
        """New texts for an emotion, of four sources alike."""
        random = np.random.default_rng(list(emotion.encode()))
        sides = [
            (split, positive)
            for split, counts in ((TRAIN, train), (HELD_OUT, held_out))
            for positive in (True, False)
            for _ in range(counts[0 if positive else 1])
        ]
        made = []
        for at, (split, positive) in enumerate(sides):
            text = text_of(random, positive)
            side = POSITIVE if positive else NEGATIVE
            made.append(Example(text_digest(text), side, split, text, scenario_of(at, positive), [f"file/{at % 4}"]))
        self.examples[emotion] = made
        label = np.array([positive for _, positive in sides])
        by_layer = {layer: (rows_of or directed())(random, label) + self.centre(layer) for layer in self.layers}
        for at, example in enumerate(made):
            self.rows[example.digest] = {layer: rows[at] for layer, rows in by_layer.items()}
            self.pooled[example.digest] = 7

    def together(self) -> dict[str, list[list[Any]]]:
        """As the plan has it: {emotion: [[other, share of the emotion's positives that are the other's too], ...]}"""
        own = {name: {text.digest for text in texts if text.polarity == POSITIVE} for name, texts in self.examples.items()}
        return {
            name: [
                [other, len(own[name] & theirs) / len(own[name])]
                for other, theirs in own.items()
                if other != name and own[name] & theirs
            ]
            for name in own
        }

    def store(self, folder: Path) -> Reader:
        digests = sorted(self.rows)
        space = folder / "space"
        pooled = np.array([self.pooled[digest] for digest in digests])
        layout = {"n_heads": N_HEADS, "head_dim": HEAD_DIM} if self.heads else {"reason": "a gated delta net"}
        for layer in self.layers:
            residual = np.stack([self.rows[digest][layer] for digest in digests]).astype(np.float32)
            mixing = np.random.default_rng([1, layer]).standard_normal((HIDDEN, N_HEADS * HEAD_DIM)).astype(np.float32)
            of_heads = residual @ mixing if self.heads else None
            write_segment(space, layer, Rows(digests, residual, of_heads, pooled, pooled, pooled * 0), layout)
        index = space / "index" / "all"
        write_index(index, as_keys(digests), {layer: held_rows(space, layer) for layer in self.layers}, {})
        return Reader([index])

    def weights(self, folder: Path) -> dict[int, Path]:
        paths = {layer: folder / f"weights_{layer}" for layer in self.layers}
        for layer, path in paths.items():
            random = np.random.default_rng([2, layer])
            o_proj = random.standard_normal((HIDDEN, N_HEADS * HEAD_DIM)).astype(np.float32)
            neurons = random.standard_normal((30, HIDDEN))
            neurons /= np.linalg.norm(neurons, axis=1, keepdims=True)
            of_heads = {"n_heads": N_HEADS, "head_dim": HEAD_DIM} if self.heads else {"reason": "a gated delta net"}
            why = {} if self.neurons else {"neurons_reason": "a layer of experts"}
            write_weights(
                path, o_proj if self.heads else None, neurons if self.neurons else None, {"layer": layer, **of_heads, **why}
            )
        return paths

    def quality(
        self,
        folder: Path,
        recipe: Recipe = PLAIN,
        meddle: Callable[[Mapping[str, Mapping[int, Path]]], None] = lambda vectors: None,
        families: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Any]:
        """quality.json of a build in `folder`; meddle: what is done to the vectors' files before anything reads them."""
        reader, weights = self.store(folder), self.weights(folder)
        files: dict[str, dict[str, Any]] = {}
        for number, (name, examples) in enumerate(self.examples.items()):
            own = folder / str(number)
            own.mkdir()
            path = own / "examples.json"
            path.write_text(json.dumps({"emotion": name, "examples": [asdict(text) for text in examples]}))
            files[name] = {
                "examples": path,
                "names": [name],
                "texts": own / "texts.json",
                **{kind: {layer: own / f"{kind}_{layer}" for layer in self.layers} for kind in ("layers", "vectors", "heads")},
            }
            vectors.make_vectors(name, path, reader, recipe, files[name]["vectors"], 1)
        meddle({name: paths["vectors"] for name, paths in files.items()})
        of_figures = {name: {**paths, "outputs": [paths["texts"], *paths["layers"].values()]} for name, paths in files.items()}
        figures.make_figures(of_figures, reader, weights, recipe, None)
        of_heads = {name: {**paths, "outputs": [*paths["heads"].values()]} for name, paths in files.items()}
        heads.make_heads(of_heads, reader, weights, 1)
        output = folder / "quality.json"
        quality.make_quality(files, self.layers, reader, self.together(), families or {}, output)
        return dict(json.loads(output.read_text(encoding="utf-8")))


def flags(made: Mapping[str, Any], emotion: str) -> dict[str, set[str]]:
    """{layer: names of the emotion's flags}"""
    return {layer: {flag["name"] for flag in own["flags"]} for layer, own in made["emotions"][emotion]["layers"].items()}
