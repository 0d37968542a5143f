"""One contender's whole job in a process of its own: model loading to vectors. Prints one line of JSON.

    python benchmarks/contender.py NAME JOB.json MODEL DTYPE LAYERS BATCH

NAME: amygdala, steering-vectors or repeng; LAYERS: 12,15,18,21; BATCH: the peers' batch size, 0 for the library's default.
Runs in the environment of the contender: nothing of the others is imported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Pairs = dict[str, list[tuple[str, str]]]


def amygdala(job: Pairs, model: str, dtype: str, layers: list[int], batch: int) -> dict[str, Any]:
    """The workflow's own functions: capture into a store on disk, then vectors from its rows, one file an emotion and layer."""
    home = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(home / "scripts"))
    import torch  # noqa: F401  (imported before the clock starts, like everybody's)
    import transformers  # noqa: F401

    import activations
    from amygdala import residual  # noqa: F401
    from amygdala.batching import Texts
    from amygdala.keys import text_digest
    from amygdala.methods import mean_difference
    from amygdala.segments import RESIDUAL, Reader
    from amygdala.vectorfile import write_vector
    from vectors import unit

    settings = {
        **{"source": model, "revision": None, "dtype": dtype, "template": None, "device": "cpu", "device_map": None},
        **{"max_tokens": 2048, "batch_tokens": "auto", "batch_size": batch or None, "threads": os.cpu_count() or 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        digests = {text: text_digest(text) for pairs in job.values() for pair in pairs for text in pair}
        index = Path(folder) / "space" / "index" / "shard_0.safetensors"
        texts = Texts((digest, text) for text, digest in digests.items())
        done = activations.capture_shard(texts, layers, {"mean": index}, settings, lambda line: None)
        captured = time.perf_counter()
        reader = Reader([index])
        for emotion, pairs in job.items():
            sides = [sorted({digests[pair[side]] for pair in pairs}) for side in (0, 1)]
            for layer in layers:
                rows = [reader.rows(layer, RESIDUAL, side) for side in sides]
                vector, _ = unit(mean_difference(*rows), emotion)
                write_vector(Path(folder) / emotion / f"layer_{layer}.safetensors", vector, {})
        end = time.perf_counter()
    forward_s = done["seconds"]
    return {"seconds": end - start, "load_s": captured - start - forward_s, "forwards": done["forwarded_texts"]}


def peer_model(model: str, dtype: str) -> tuple[Any, Any, float]:
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    start = time.perf_counter()
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, torch_dtype=kind).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(Path(model) / "tokenizer.json"))
    tokenizer.pad_token = tokenizer.pad_token or "<|im_end|>"
    return loaded, tokenizer, time.perf_counter() - start


def steering_vectors(job: Pairs, model: str, dtype: str, layers: list[int], batch: int) -> dict[str, Any]:
    from steering_vectors import train_steering_vector

    loaded, tokenizer, load_s = peer_model(model, dtype)
    options = {"batch_size": batch} if batch else {}
    start = time.perf_counter()
    for pairs in job.values():
        train_steering_vector(loaded, tokenizer, [tuple(pair) for pair in pairs], layers=layers, **options)
    seconds = time.perf_counter() - start + load_s
    return {"seconds": seconds, "load_s": load_s, "forwards": 2 * sum(map(len, job.values()))}


def repeng(job: Pairs, model: str, dtype: str, layers: list[int], batch: int) -> dict[str, Any]:
    import repeng
    from repeng.control import ControlModel  # noqa: F401

    loaded, tokenizer, load_s = peer_model(model, dtype)
    options = {"batch_size": batch} if batch else {}
    start = time.perf_counter()
    for pairs in job.values():
        data = [repeng.DatasetEntry(positive=positive, negative=negative) for positive, negative in pairs]
        repeng.ControlVector.train(loaded, tokenizer, data, hidden_layers=layers, **options)
    seconds = time.perf_counter() - start + load_s
    return {"seconds": seconds, "load_s": load_s, "forwards": 2 * sum(map(len, job.values()))}


if __name__ == "__main__":
    name, job_file, model, dtype, layer_list, batch_size = sys.argv[1:]
    read = json.loads(Path(job_file).read_text(encoding="utf-8"))
    contenders = {"amygdala": amygdala, "steering-vectors": steering_vectors, "repeng": repeng}
    result = contenders[name](read, model, dtype, [int(layer) for layer in layer_list.split(",")], int(batch_size))
    print(json.dumps(result))
