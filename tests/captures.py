"""capture_shard in a store of its own, what the model was asked to do, and rows by a slow reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import tiny
from activations import capture_shard
from amygdala.batching import Batch, Texts
from amygdala.graph import split_tags
from amygdala.keys import text_digest
from amygdala.residual import Capture, Captured
from amygdala.segments import HEADS, RESIDUAL, Reader, layer_folder

BEGINNINGS = [split_tags(raw)[0][: 50 + 9 * number] for number, raw in enumerate(tiny.sample_texts(18))]
TEXTS = dict(sorted((text_digest(text), text) for text in BEGINNINGS))
DIGESTS = list(TEXTS)
SPECIAL_IDS = {0, 1, 2}  # <pad>, <s>, </s> of tiny's tokenizer


def some(*positions: int | slice) -> dict[str, str]:
    chosen = [d for position in positions for d in (DIGESTS[position] if isinstance(position, slice) else [DIGESTS[position]])]
    return {digest: TEXTS[digest] for digest in sorted(chosen)}


def ids_of(tokenizer: Any, texts: dict[str, str]) -> list[tuple[int, ...]]:
    return sorted(tuple(tokenizer(text)["input_ids"]) for text in texts.values())


class Watch:
    """What the model was asked to do: layers of each load, the texts forwarded (as token ids), rows and width of each pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loads: list[tuple[int, ...]] = []
        self.forwarded: list[tuple[int, ...]] = []
        self.shapes: list[tuple[int, int]] = []
        self.given: list[set[tuple[str, int]]] = []
        real_init, real_call = Capture.__init__, Capture.__call__

        def init(capture: Capture, source: str, revision: str | None, layers: Sequence[int], *rest: Any) -> None:
            self.loads.append(tuple(layers))
            real_init(capture, source, revision, layers, *rest)

        def call(capture: Capture, batch: Batch) -> Captured:
            captured = real_call(capture, batch)
            rows = zip(batch.ids.tolist(), batch.tokens, strict=True)
            self.forwarded.extend(tuple(ids[:count]) for ids, count in rows)
            self.shapes.append(batch.ids.shape)
            self.given.append(set(captured.residual))
            return captured

        monkeypatch.setattr(Capture, "__init__", init)
        monkeypatch.setattr(Capture, "__call__", call)

    def clear(self) -> None:
        for notes in (self.loads, self.forwarded, self.shapes, self.given):
            notes.clear()


class Run:
    """A store in a folder of its own, and capture_shard with its many arguments."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = {
            "source": str(model),
            "revision": None,
            "dtype": "fp32",
            "template": None,
            "device": "cpu",
            "device_map": None,
            "max_tokens": 2048,
            "batch_tokens": 200,
            "batch_size": None,
            "threads": 1,
        }
        self.lines: list[str] = []

    def space(self, pooling: str = "mean") -> Path:
        return self.folder / pooling.replace(":", "_")

    def index(self, pooling: str = "mean", name: str = "index") -> Path:
        return self.space(pooling) / "index" / name

    def __call__(
        self,
        texts: dict[str, str],
        layers: Sequence[int] = (1, 2),
        name: str = "index",
        flush_rows: int = 4096,
        poolings: Sequence[str] = ("mean",),
        sample: Sequence[str] = (),
        **settings: Any,
    ) -> dict[str, Any]:
        self.lines.clear()
        indices = {pooling: self.index(pooling, name) for pooling in poolings}
        options = {**self.settings, **settings}
        return capture_shard(Texts(texts.items()), layers, indices, options, self.lines.append, flush_rows, sample)

    def reader(self, name: str = "index", pooling: str = "mean") -> Reader:
        return Reader([self.index(pooling, name)])

    def segments(self, layer: int, pooling: str = "mean") -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(layer_folder(self.space(pooling), layer).glob("*"))}

    def stored(self, layer: int, pooling: str = "mean") -> list[str]:
        """Digests in the segments of a layer, read by hand."""
        paths = sorted(layer_folder(self.space(pooling), layer).glob("*.safetensors"))
        return [row.tobytes().hex() for path in paths for row in load_file(path)["digests"]]


class Slow:
    """The whole model with its vocabulary head, one unpadded sequence at a time."""

    def __init__(self, source: str | Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    def states(self, ids: Sequence[int], layer: int) -> dict[str, np.ndarray]:
        """{"residual": [tokens, hidden], "heads": [tokens, n_heads * head_dim] where there are any} of one layer."""
        block = self.model.model.layers[layer]
        seen: dict[str, np.ndarray] = {}

        def keep(module: Any, inputs: Any, output: Any) -> None:
            seen[RESIDUAL] = (output[0] if isinstance(output, tuple) else output)[0].double().numpy()

        def keep_input(module: Any, inputs: Any) -> None:
            seen[HEADS] = inputs[0][0].double().numpy()

        hooks = [block.register_forward_hook(keep)]
        if hasattr(block, "self_attn"):
            hooks.append(block.self_attn.o_proj.register_forward_pre_hook(keep_input))
        with torch.no_grad():
            self.model(torch.tensor([list(ids)]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return seen

    def rows(self, text: str, layer: int, pooling: str = "mean") -> dict[str, np.ndarray]:
        """The rows of a raw text: content is all but the first token and the special ones."""
        ids = self.tokenizer(text)["input_ids"]
        content = [position for position, token in enumerate(ids) if position and token not in SPECIAL_IDS]
        if pooling != "mean":
            content = content[-1:] if pooling == "last" else content[int(pooling.split(":")[1]) - 1 :]
        return {kind: states[content].mean(axis=0) for kind, states in self.states(ids, layer).items()}


def assert_near(stored: np.ndarray, expected: np.ndarray) -> None:
    assert stored.shape == expected.shape
    assert np.linalg.norm(stored - expected) < 1e-5 * np.linalg.norm(expected)


def assert_rows(
    run: Run, texts: dict[str, str], layers: Sequence[int], name: str = "index", poolings: Sequence[str] = ("mean",)
) -> None:
    """The stored rows of each text are those of the slow reference."""
    slow = Slow(run.settings["source"])
    for pooling in poolings:
        reader = run.reader(name, pooling)
        for digest, text in texts.items():
            for layer in layers:
                for kind, expected in slow.rows(text, layer, pooling).items():
                    assert_near(reader.rows(layer, kind, [digest])[0], expected)
