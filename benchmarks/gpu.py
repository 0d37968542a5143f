"""Capture on a GPU: tokens a second and the share of the machine's own matmul peak, on a random-weight decoder of 7B shape in
bf16.

    python benchmarks/gpu.py [--device cuda] [--shape 7b|tiny] [--layers all|half] [--tokens 512] [--texts 512]

The peak is measured first: square bf16 matrix products of several sizes, the best. The model's work a token is 2 operations a
weight of its blocks, and 4 * hidden * (tokens + 1) / 2 a layer for causal attention. Then recovery: a batch that the device's
memory can't hold is halved until it fits, and its rows are compared with those of small batches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import transformers
from jobs import HOME  # noqa: F401  (puts scripts/ on the path)

from amygdala import residual
from amygdala.architecture import Decoder, find_decoder
from amygdala.batching import Batch, Budget, pad
from amygdala.tokens import Tokens

SHAPES = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 1000},
}
POOLINGS = ["mean", "last"]


def random_decoder(shape: str, device: torch.device) -> Decoder:
    """A Llama of that shape with random bf16 weights, made on the device."""
    config = transformers.LlamaConfig(**SHAPES[shape], max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = transformers.LlamaModel(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
    return find_decoder(model, config.num_hidden_layers)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    work()
    wait(device)
    start = time.perf_counter()
    for _ in range(rounds):
        work()
    wait(device)
    return (time.perf_counter() - start) / rounds


@torch.inference_mode()
def matmul_peak(device: torch.device) -> float:
    """The best rate of square bf16 products, in operations a second."""
    sizes, rounds = ((4096, 8192, 16384), 10) if device.type == "cuda" else ((512, 1024, 2048), 3)
    best = 0.0
    for size in sizes:
        first, second = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        best = max(best, 2 * size**3 / seconds(partial(torch.matmul, first, second), device, rounds))
    return best


def random_texts(count: int, tokens: int, vocabulary: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    content = np.arange(tokens) > 0
    return [Tokens(rng.integers(0, vocabulary, tokens).astype(np.int32), content, False) for _ in range(count)]


def run(capture: residual.Capture, made: list[Batch]) -> None:
    """Batches one after the other as the workflow does: rows are taken once the next batch is on its way."""
    waiting = None
    for batch in made:
        rows = capture(batch).start_copy()
        if waiting is not None:
            waiting.ready()
        waiting = rows
    if waiting is not None:
        waiting.ready()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda")
    options.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    options.add_argument("--layers", choices=["all", "half"], default="all")
    options.add_argument("--tokens", type=int, default=512)
    options.add_argument("--texts", type=int, default=512)
    given = options.parse_args()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = matmul_peak(device)
    print(f"{name}: bf16 matmul peak {peak / 1e12:.3f} Tflop/s (measured)")
    decoder = random_decoder(given.shape, device)
    count = len(decoder.layers)
    layers = list(range(count)) if given.layers == "all" else [count // 2]
    shape = SHAPES[given.shape]
    used = [p.numel() for layer in decoder.layers[: layers[-1] + 1] for p in layer.parameters()]
    work = 2 * sum(used) + (layers[-1] + 1) * 4 * shape["hidden_size"] * (given.tokens + 1) / 2
    texts = random_texts(given.texts, given.tokens, shape["vocab_size"])
    print(f"{sum(used) / 1e9:.2f} billion weights in {layers[-1] + 1} blocks, {work / 1e9:.3f} Gflop a token")
    print(f"\n{'batch tokens':>13} {'tokens/s':>10} {'Tflop/s':>9} {'of the peak':>12}")
    with residual.Capture.of(decoder, layers, POOLINGS, device) as capture:
        for budget in (
            given.tokens,
            4 * given.tokens,
            residual.BATCH_TOKENS[device.type],
            4 * residual.BATCH_TOKENS[device.type],
        ):
            size = max(1, budget // given.tokens)
            made = [
                pad(list(range(s, min(s + size, len(texts)))), texts[s : s + size], POOLINGS)
                for s in range(0, len(texts), size)
            ]
            run(capture, made[:2])
            rate = given.texts * given.tokens / seconds(partial(run, capture, made), device, 1)
            print(f"{made[0].ids.size:13} {rate:10.0f} {rate * work / 1e12:9.3f} {rate * work / peak:12.2f}", flush=True)
        recovery(capture, texts, device)


def recovery(capture: residual.Capture, texts: list[Tokens], device: torch.device) -> None:
    """One batch of far too many tokens, against the same texts in small batches."""
    if device.type != "cuda":
        print("\nno recovery from full memory to show on a CPU")
        return
    few = [capture(pad([number], [text], POOLINGS)).start_copy() for number, text in enumerate(texts[:8])]
    free = torch.cuda.mem_get_info(device)[0]
    held = torch.empty(int(free * 0.9), dtype=torch.uint8, device=device)
    lines: list[str] = []
    budget = Budget(len(texts) * len(texts[0]))
    parts = capture.each(pad(list(range(len(texts))), texts, POOLINGS), budget, lines.append)
    del held
    worst = 0.0
    for batch, rows in parts:
        rows.ready()
        for row, position in enumerate(batch.positions.tolist()):
            if position < len(few):
                few[position].ready()
                for wanted, values in few[position].residual.items():
                    difference = (rows.residual[wanted][row] - values[0]).norm() / values[0].norm()
                    worst = max(worst, float(difference))
    rows_made = sum(len(batch) for batch, _ in parts)
    print(f"\n90 % of the free memory taken away: {len(lines)} halvings to {budget.tokens} tokens, {rows_made} rows")
    print(f"worst difference to single texts, bf16, as a share of the row: {worst:.2e}")


if __name__ == "__main__":
    main()
