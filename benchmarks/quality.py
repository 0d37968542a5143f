"""What vectors, head figures and quality figures cost once the activations are stored: wall and CPU seconds, and memory.

    python benchmarks/quality.py [--emotions 200] [--layers 30] [--texts 20000] [--examples 500] [--processes 2]

Makes a store of random rows with a direction planted for each emotion, without a model, and runs the workflow's own functions
on it, a process for each batch of emotions as the rules do. Memory: all processes together, sampled; of it `shared` are pages
of mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME / "scripts"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from amygdala.segments import Reader, Rows, as_keys, held_rows, write_index, write_segment  # noqa: E402

HIDDEN, N_HEADS, HEAD_DIM, NEURONS = 576, 9, 64, 1536
FLUSH = 1024
BATCH = 16  # emotions_per_job of config.yaml
HELD_OUT = 0.2
PLANTED = 0.2  # length of an emotion's direction, where rows are normal with variance 1 / HIDDEN in each dimension
SETTLED = 0.5  # seconds between samples of the memory
METHOD = "mean_difference"


@dataclass(frozen=True)
class Job:
    """The store in `folder`: emotions, layers, and where each stage's files are."""

    folder: Path
    emotions: list[str]
    layers: list[int]

    @property
    def index(self) -> Path:
        return self.folder / "space" / "index" / "shard_0.safetensors"

    @property
    def weights(self) -> dict[int, Path]:
        return {layer: self.folder / "weights" / f"{layer}.safetensors" for layer in self.layers}

    def examples(self, emotion: str) -> Path:
        return self.folder / "examples" / f"{emotion}.json"

    def by_layer(self, stage: str, emotion: str, suffix: str = "json") -> dict[int, Path]:
        return {layer: self.folder / stage / emotion / f"{layer}.{suffix}" for layer in self.layers}

    def vectors(self, emotion: str) -> dict[int, Path]:
        return self.by_layer("vectors", emotion, "safetensors")

    def texts(self, emotion: str) -> Path:
        return self.folder / "figures" / emotion / "texts.json"

    def batch(self, emotions: Sequence[str], outputs: Callable[[str], list[Path]]) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "examples": self.examples(name),
                "vectors": self.vectors(name),
                "names": [name],
                "outputs": outputs(name),
            }
            for name in emotions
        }


def digest_of(number: int) -> str:
    return hashlib.sha256(f"text {number}".encode()).hexdigest()[:32]


def make_store(job: Job, texts: int, examples: int) -> None:
    """Segments, index, weights and examples files; a text is a positive of one emotion or more."""
    from amygdala.files import write_json
    from amygdala.modelweights import write_weights

    random = np.random.default_rng(0)
    words = [f"word{number}" for number in range(3000)]
    digests = [digest_of(number) for number in range(texts)]
    written = [" ".join(words[at] for at in random.zipf(1.3, size=size) % len(words)) for size in random.integers(8, 60, texts)]
    member = np.zeros((texts, len(job.emotions)), dtype=bool)
    for column, emotion in enumerate(job.emotions):
        count = min(examples, texts // 2)
        chosen = random.permutation(texts)[: 2 * count]
        member[chosen[:count], column] = True
        entries = [
            {
                "digest": digests[at],
                "polarity": "positive" if order < count else "negative",
                "split": "held_out" if int(digests[at][:8], 16) % 1000 < 1000 * HELD_OUT else "train",
                "text": written[at],
                "scenarios": [f"scenario {at % 40}"] if at % 2 else [],
                "groups": [f"file/{at % 5}"],
            }
            for order, at in enumerate(chosen)
        ]
        write_json(job.examples(emotion), {"emotion": emotion, "examples": entries}, indent=None)
    for layer in job.layers:
        of_layer = np.random.default_rng([1, layer])
        directions = of_layer.standard_normal((len(job.emotions), HIDDEN), dtype=np.float32) / np.float32(HIDDEN**0.5)
        planted = (member.astype(np.float32) @ directions) * np.float32(PLANTED)
        for start in range(0, texts, FLUSH):
            size = min(FLUSH, texts - start)
            residual = of_layer.standard_normal((size, HIDDEN), dtype=np.float32) / np.float32(HIDDEN**0.5)
            heads = of_layer.standard_normal((size, N_HEADS * HEAD_DIM), dtype=np.float32)
            each = np.full(size, 20)
            rows = Rows(digests[start : start + size], residual + planted[start : start + size], heads, each, each, each * 0)
            write_segment(job.folder / "space", layer, rows, {"n_heads": N_HEADS, "head_dim": HEAD_DIM})
        o_proj = of_layer.standard_normal((HIDDEN, N_HEADS * HEAD_DIM), dtype=np.float32)
        neurons = of_layer.standard_normal((NEURONS, HIDDEN), dtype=np.float32)
        neurons = (neurons / np.linalg.norm(neurons, axis=1, keepdims=True)).astype(np.float16)
        write_weights(job.weights[layer], o_proj, neurons, {"layer": layer, "n_heads": N_HEADS, "head_dim": HEAD_DIM})
    held = {layer: held_rows(job.folder / "space", layer) for layer in job.layers}
    write_index(job.index, as_keys(sorted(digests)), held, {"tokens": 20 * texts})


def vectors_job(job: Job, emotions: Sequence[str]) -> None:
    from amygdala.directions import Recipe
    from vectors import make_vectors

    reader = Reader([job.index])
    for emotion in emotions:
        make_vectors(emotion, job.examples(emotion), reader, Recipe(METHOD), job.vectors(emotion), 20)


def heads_job(job: Job, emotions: Sequence[str]) -> None:
    from heads import make_heads

    make_heads(job.batch(emotions, lambda name: [*job.by_layer("heads", name).values()]), Reader([job.index]), job.weights, 20)


def figures_job(job: Job, emotions: Sequence[str]) -> None:
    from amygdala.directions import Recipe
    from figures import make_figures

    batch = job.batch(emotions, lambda name: [job.texts(name), *job.by_layer("figures", name).values()])
    make_figures(batch, Reader([job.index]), job.weights, Recipe(METHOD), None)


def quality_job(job: Job, emotions: Sequence[str]) -> None:
    # scripts/quality.py, and not this file, which stands first in the path and has the same name
    import importlib.util

    found = importlib.util.spec_from_file_location("scripts_quality", HOME / "scripts" / "quality.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    files = {
        name: {
            "examples": job.examples(name),
            "texts": job.texts(name),
            "layers": job.by_layer("figures", name),
            "vectors": job.vectors(name),
            "heads": job.by_layer("heads", name),
        }
        for name in emotions
    }
    families = {f"family {number}": list(emotions[number::10]) for number in range(10)}
    module.make_quality(files, job.layers, Reader([job.index]), {}, families, job.folder / "quality.json")


STAGES = {"vectors": vectors_job, "heads": heads_job, "figures": figures_job, "quality": quality_job}


def timed(stage: str, job: Job, emotions: Sequence[str]) -> tuple[float, float]:
    """Run a batch of a stage; (CPU seconds in user mode, peak MB) of this process."""
    STAGES[stage](job, emotions)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_maxrss / 1024


class Memory:
    """The most memory, in MB, that this process's children held together: all of it, and less the pages of mapped files."""

    def __init__(self) -> None:
        self.most, self.own = 0.0, 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stop,))
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()

    def _watch(self, stop: threading.Event) -> None:
        import psutil

        while not stop.wait(SETTLED / 5):
            whole, own = 0, 0
            for child in psutil.Process().children(recursive=True):
                try:
                    held = child.memory_info()
                except psutil.Error:
                    continue
                whole, own = whole + held.rss, own + held.rss - held.shared
            self.most, self.own = max(self.most, whole / 2**20), max(self.own, own / 2**20)


def snakemake_seconds() -> float:
    """What a bare `snakemake --version` takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "snakemake", "--version"], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--emotions", type=int, default=200)
    options.add_argument("--layers", type=int, default=30)
    options.add_argument("--texts", type=int, default=20_000)
    options.add_argument("--examples", type=int, default=500, help="texts a side of an emotion, held-out ones among them")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--folder", type=Path, help="keep the store here, and take the one that is there")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        job = Job(folder, [f"emotion_{number:03d}" for number in range(given.emotions)], list(range(given.layers)))
        start = time.perf_counter()
        if not job.index.exists():
            make_store(job, given.texts, given.examples)
        print(f"store of {given.texts} texts at {given.layers} layers: {time.perf_counter() - start:.1f} s\n")
        bare = snakemake_seconds()
        batches = [job.emotions[at : at + BATCH] for at in range(0, len(job.emotions), BATCH)]
        print(f"{'stage':10} {'seconds':>8} {'CPU s':>7} {'ms each':>8} {'x bare':>7} {'MB':>6} {'not shared':>11}")
        for stage in STAGES:
            parts = [job.emotions] if stage == "quality" else batches
            memory, start = Memory(), time.perf_counter()
            spawn = multiprocessing.get_context("spawn")
            with memory.watched(), ProcessPoolExecutor(given.processes, mp_context=spawn, max_tasks_per_child=1) as pool:
                used = list(pool.map(timed, [stage] * len(parts), [job] * len(parts), parts))
            wall, cpu = time.perf_counter() - start, sum(seconds for seconds, _ in used)
            each = 1000 * cpu / (given.emotions * given.layers)
            print(
                f"{stage:10} {wall:8.1f} {cpu:7.1f} {each:8.2f} {wall / bare:7.1f} {memory.most:6.0f} {memory.own:11.0f}",
                flush=True,
            )
        written = job.folder / "quality.json"
        made = json.loads(written.read_text(encoding="utf-8"))
        print(f"\nquality.json: {written.stat().st_size / 2**20:.1f} MB, {len(made['emotions'])} emotions")
        print(f"a bare snakemake --version: {bare:.2f} s; CPU seconds are of user mode, ms each of an emotion and layer")


if __name__ == "__main__":
    main()
