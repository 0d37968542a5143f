"""How time and memory of a capture grow with the number of texts, and what 1 % of new texts costs.

    python benchmarks/growth.py [--sizes 1000,2000,4000,8000,16000] [--dtype auto|bf16|fp32]

Each size is captured by a process of its own into an empty store: seconds of forwarding, seconds a token against the smallest
size's, and the process's peak memory. Then 1 % as many new texts again into the largest store. Texts: GoEmotions where it is
there, else sentences of the sample graph shuffled together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs import GOEMOTIONS, HOME, embedded_model, goemotions_texts, has_fast_bf16

import activations
from amygdala.batching import Texts
from amygdala.keys import text_digest

MOST = 20_000
MIN_CHARS = 40  # as min_content_chars of config.yaml
LAYERS = [12, 15, 18, 21]


def many_texts(count: int) -> list[str]:
    """`count` different texts, in an order drawn by seed, so that every part of them is as long on average as every other."""
    rng = random.Random(0)
    if GOEMOTIONS.is_dir():
        return rng.sample([text for text in goemotions_texts() if len(text) >= MIN_CHARS], count)
    graph = [json.loads(line)["text"] for line in (HOME / "resources" / "graph.jsonl").read_text().splitlines()]
    sentences = sorted({s for text in graph for s in re.split(r"(?<=[.!?])\s+", text) if len(s) > 30})
    return sorted({" ".join(rng.sample(sentences, 2)) for _ in range(2 * count)}, key=lambda _: rng.random())[:count]


def one(count: int, new: int, folder: Path, model: str, dtype: str) -> dict[str, Any]:
    """Capture `count` texts and `new` ones into the store in `folder`."""
    texts = Texts((text_digest(text), text) for text in many_texts(MOST)[: count + new])
    settings = {
        **{"source": model, "revision": None, "dtype": dtype, "template": None, "device": "cpu", "device_map": None},
        **{"max_tokens": 2048, "batch_tokens": "auto", "batch_size": None, "threads": os.cpu_count() or 1},
    }
    start = time.perf_counter()
    index = folder / "space" / "index" / f"shard_0.{count}.{new}.safetensors"
    done = activations.capture_shard(texts, LAYERS, {"mean": index}, settings, lambda line: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    load_s = json.loads((folder / "space" / "rate.json").read_text(encoding="utf-8"))["load_s"]
    return {**done, "work_s": time.perf_counter() - start - load_s, "peak_mb": peak}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", default="1000,2000,4000,8000,16000")
    options.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    options.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        count, new, folder, model, dtype = given.one
        print(json.dumps(one(int(count), int(new), Path(folder), model, dtype)))
        return
    dtype = ("bf16" if has_fast_bf16() else "fp32") if given.dtype == "auto" else given.dtype
    model = str(embedded_model(dtype))

    def run(count: int, new: int, folder: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--one", str(count), str(new), folder, model, dtype]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    print(f"{dtype}, {os.cpu_count()} threads, layers {LAYERS}\n")
    head = f"{'texts':>8} {'forwarded':>10} {'tokens':>9} {'seconds':>9} {'tok/s':>7} {'s/token, ratio':>15}"
    print(f"{head} {'peak MB':>9} {'more MB':>8}")
    first: dict[str, Any] = {}
    for size in [int(size) for size in given.sizes.split(",")]:
        with tempfile.TemporaryDirectory() as folder:
            result = run(size, 0, folder)
            each = result["seconds"] / result["forwarded_tokens"]
            first = first or {"each": each, "peak_mb": result["peak_mb"]}
            print(
                f"{size:8} {result['forwarded_texts']:10} {result['forwarded_tokens']:9} "
                f"{result['seconds']:9.1f} {1 / each:7.0f} "
                f"{each / first['each']:15.3f} {result['peak_mb']:9.0f} {result['peak_mb'] - first['peak_mb']:8.0f}",
                flush=True,
            )
            if size == int(given.sizes.split(",")[-1]):
                more = run(size, size // 100, folder)
    share, passes = more["work_s"] / result["work_s"], more["forwarded_texts"] / size
    print(f"\n1 % new texts beside {size}: {more['forwarded_texts']} forwarded ({passes:.2%} of the passes);")
    print(f"{more['work_s']:.2f} s with lookups and index, {share:.2%} of the full run's, model load aside in both")
    print(f"(forwarding alone {more['seconds']:.2f} s)")


if __name__ == "__main__":
    main()
