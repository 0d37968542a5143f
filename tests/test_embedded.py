"""The main job on part of the sample graph with the embedded model, in float32, against a slow and obvious reference."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tiny
from project import Project

pytestmark = [pytest.mark.end_to_end, pytest.mark.embedded, pytest.mark.timeout(3000)]

LAYERS = [12, 21, 29]
SHORT, EVERY = 400, 20  # characters of a short text; of the longer ones only each so-manieth: tokens are what the time goes by
TAG_LINE = re.compile(r"\s*([a-z]+:\d+ ?)+\s*")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Half of the sample graph, its emotions, two middle layers and the model's last."""
    nodes = tiny.sample_nodes()
    long = [node for node in nodes if len(node["text"]) > SHORT]
    project = Project.make(
        tmp_path_factory.mktemp("sample") / "project",
        [node for node in nodes if node not in long] + long[::EVERY],
        emotions={"min_positives": 6},
        min_examples=4,
        dtype="fp32",
        target_layers=LAYERS,
    )
    project.run().ok()
    return project


def test_the_readout_of_the_sample_graph(sample: Project) -> None:
    manifest = sample.manifest()
    tensors = load_file(sample.folder / "results/readout/vectors.safetensors")
    assert len(manifest["concepts"]) >= 16
    assert manifest["concepts"] == sorted(manifest["concepts"])
    assert set(tensors) == {f"layer_{layer}.vectors" for layer in LAYERS}
    for tensor in tensors.values():
        assert tensor.dtype == np.float32 and tensor.shape == (len(manifest["concepts"]), 576)
        assert np.abs(np.linalg.norm(tensor.astype(np.float64), axis=1) - 1).max() < 1e-6
    assert manifest["capture"]["forwarded_texts"] == manifest["capture"]["unique_texts"] == len(all_texts(sample))
    assert manifest["model"]["identity"].startswith("sha256:b179c9523d0e")


def examples(project: Project) -> dict[str, list[dict[str, Any]]]:
    files = sorted(project.folder.glob("store/examples/*.json"))
    return {path.name.split(".")[0]: json.loads(path.read_text())["examples"] for path in files}


def all_texts(project: Project) -> dict[str, str]:
    """{digest: text} of every example of every emotion."""
    return {e["digest"]: e["text"] for side in examples(project).values() for e in side}


def reference_rows(folder: Path, texts: dict[str, str]) -> dict[str, np.ndarray]:
    """{digest: float32 [len(LAYERS), hidden]}: one text at a time, all layers, no hooks but one, no padding.

    hidden_states[0] is the embedding, hidden_states[i + 1] the output of layer i, except that the last one comes after the
    final norm: for the last layer the state before that norm is read at the norm itself.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()  # without the language model's head
    before_norm: list[Any] = []
    model.norm.register_forward_pre_hook(lambda module, inputs: before_norm.append(inputs[0]))
    rows = {}
    for digest, text in texts.items():
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        before_norm.clear()
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        assert len(states) == 31
        by_layer = [before_norm[0] if layer == 29 else states[layer + 1] for layer in LAYERS]
        rows[digest] = np.stack([state[0, 1:].mean(0).numpy() for state in by_layer])
    return rows


def test_vectors_equal_a_slow_reference(sample: Project) -> None:
    """Cosine of at least 0.9999 for every emotion and layer; a neighbouring layer would not pass."""
    texts = all_texts(sample)
    assert not [text for text in texts.values() if TAG_LINE.fullmatch(text.splitlines()[-1])]
    folder = sample.path("store/models/*/config.json").parent
    train = {e["digest"] for side in examples(sample).values() for e in side if e["split"] == "train"}
    rows = reference_rows(folder, {digest: text for digest, text in texts.items() if digest in train})
    tensors = load_file(sample.folder / "results/readout/vectors.safetensors")
    worst, neighbours = 1.0, []
    for number, (_emotion, texts_of) in enumerate(sorted(examples(sample).items())):
        sides = {
            polarity: np.mean(
                [rows[e["digest"]] for e in texts_of if e["polarity"] == polarity and e["split"] == "train"], axis=0
            )
            for polarity in ("positive", "negative")
        }
        difference = sides["positive"] - sides["negative"]
        difference /= np.linalg.norm(difference, axis=1, keepdims=True)
        for position, layer in enumerate(LAYERS):
            vector = tensors[f"layer_{layer}.vectors"][number]
            worst = min(worst, float(vector @ difference[position]))
            neighbours.append(float(vector @ difference[(position + 1) % len(LAYERS)]))
    print(f"worst cosine with the reference: {worst:.8f}")
    assert worst >= 0.9999
    assert max(neighbours) < 0.9999


def test_the_model_reads_emotions_on_held_out_texts(sample: Project) -> None:
    """Sanity of the whole chain: held-out AUC well above chance. Shuffled or misaligned rows would give 0.5."""
    quality = json.loads((sample.folder / "results/quality.json").read_text())
    assert quality["macro_auc"]["21"]["mean"] > 0.65
    assert quality["macro_auc"]["21"]["emotions"] >= 16
