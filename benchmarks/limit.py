"""Capture against its own limit: the bare forward of the same truncated model over the same batches.

    python benchmarks/limit.py [--corpus goemotions|sample] [--rounds 5] [--dtype auto|bf16|fp32]

Capture is the whole of it: tokenizing, forward, pooling of residual and heads, rows written to a store on disk. The bare
forward gets the batches ready-made and keeps nothing. They take turns in one process; the ratio is the median over rounds.
Further rows show what one pass for many layers and poolings costs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from jobs import CORPORA, embedded_model, has_fast_bf16, texts_of

import activations
from amygdala import loading, residual
from amygdala.architecture import Decoder
from amygdala.batching import Batch, Budget, Texts, batches
from amygdala.keys import text_digest
from amygdala.tokens import Encoder


def bare_seconds(decoder: Decoder, made: list[Batch]) -> float:
    """The truncated model as transformers runs it, without a hook."""
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in made:
            decoder.module(input_ids=torch.from_numpy(batch.ids), use_cache=False)
    return time.perf_counter() - start


def capture_seconds(capture: residual.Capture, texts: Texts, encoder: Encoder, budget: Budget) -> float:
    wanted = [(pooling, layer) for pooling in capture.poolings for layer in capture.layers]
    with tempfile.TemporaryDirectory() as folder:
        spaces = {pooling: Path(folder) / pooling for pooling in capture.poolings}
        with activations.Buffer(spaces, texts, capture, activations.FLUSH_ROWS) as buffer:
            start = time.perf_counter()
            activations.forward(texts, [(wanted, np.arange(len(texts)))], capture, encoder, buffer, budget, lambda line: None)
            return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", choices=sorted(CORPORA), default="goemotions")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    given = options.parse_args()
    dtype = ("bf16" if has_fast_bf16() else "fp32") if given.dtype == "auto" else given.dtype
    model = str(embedded_model(dtype))
    texts = Texts((text_digest(text), text) for text in texts_of(CORPORA[given.corpus]()))
    loading.set_threads(os.cpu_count() or 1)
    device = loading.pick_device("cpu")
    loading.keep_freed_memory()
    cases = [
        ("layers 12, 15, 18, 21; mean", [12, 15, 18, 21], ["mean"]),
        ("all layers to 21; mean", list(range(22)), ["mean"]),
        ("all layers to 21; mean, last, from_token:5", list(range(22)), ["mean", "last", "from_token:5"]),
    ]
    print(f"{given.corpus}: {len(texts)} unique texts, {dtype}, {os.cpu_count()} threads, {given.rounds} rounds\n")
    print(f"{'one pass':44} {'tokens':>8} {'padding':>8} {'bare tok/s':>11} {'capture tok/s':>14} {'share of bare':>14}")
    for title, layers, poolings in cases:
        with residual.Capture(model, None, layers, dtype, poolings, device) as capture:
            encoder = Encoder(capture.tokenizer, 2048)
            budget = Budget(residual.BATCH_TOKENS["cpu"])
            bare = loading.load_decoder(model, None, layers[-1] + 1, dtype, device)
            made = list(batches(texts, np.arange(len(texts)), encoder, poolings, budget))
            bare_seconds(bare, made[:2])
            pairs = [(bare_seconds(bare, made), capture_seconds(capture, texts, encoder, budget)) for _ in range(given.rounds)]
        tokens, padded = sum(int(b.tokens.sum()) for b in made), sum(b.ids.size for b in made)
        rates = [tokens / statistics.median(pair[side] for pair in pairs) for side in (0, 1)]
        share = statistics.median(one / ours for one, ours in pairs)
        print(f"{title:44} {tokens:8} {padded / tokens - 1:8.1%} {rates[0]:11.0f} {rates[1]:14.0f} {share:14.3f}", flush=True)


if __name__ == "__main__":
    main()
