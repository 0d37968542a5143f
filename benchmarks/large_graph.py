"""A large graph made on the spot: snapshot to examples, the dry run after it, and what a daily update changes.

    python benchmarks/large_graph.py [--nodes 100000] [--emotions 200] [--folder DIR]

Prints a table: seconds and peak memory of each step, and each as a ratio to a bare `snakemake --version` on the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME / "scripts"))
sys.path.insert(0, str(HOME / "tests"))


def words(rng: random.Random, count: int) -> list[str]:
    """Made-up words of two to four syllables."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    return sorted(
        {"".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.randint(2, 4))) for _ in range(count)}
    )


def make_nodes(count: int, emotions: int, seed: int, start: int = 0) -> Iterator[dict[str, str]]:
    """Nodes of 30 to 90 words drawn by rank (Zipf); 1 to 3 emotions each, one in eight none; one in fifty an edited copy."""
    vocabulary = words(random.Random(1), 30_000)
    names = [f"{word}ness" for word in words(random.Random(2), 4 * emotions)][:emotions]
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(vocabulary) + 1)))
    emotion_weights = [1 / (10 + rank) for rank in range(emotions)]
    before: list[str] = []
    for number in range(start, start + count):
        if before and rng.random() < 0.02:
            text = list(before)
            text[rng.randrange(len(text))] = rng.choice(vocabulary)
        else:
            text = rng.choices(vocabulary, cum_weights=weights, k=rng.randint(30, 90))
        before = text
        tags = dict.fromkeys(rng.choices(names, emotion_weights, k=rng.randint(1, 3))) if rng.random() < 7 / 8 else {}
        line = " ".join(f"{name}:{rng.randint(4, 10)}" for name in tags)
        yield {"key": f"journal/{number:07d}", "text": " ".join(text).capitalize() + "." + ("\n\n" + line if line else "")}


def write(path: Path, nodes: Iterator[dict[str, str]], mode: str = "w") -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(node) + "\n" for node in nodes)


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """(seconds, MB of all its processes together at the worst moment, output) of a command."""
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "NO_COLOR": "1"}
        )
        while process.poll() is None:
            total = 0
            with contextlib.suppress(psutil.Error):
                for member in [process, *process.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        total += member.memory_info().rss
            peak = max(peak, total)
            time.sleep(0.05)
        seconds = time.monotonic() - start
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said[-3000:]}")
    return seconds, peak / 1e6, said


def newest_examples(folder: Path) -> dict[str, dict[str, Any]]:
    """{emotion: examples} of the files that the last build made or kept, by the plan's memo."""
    found: dict[str, tuple[int, Path]] = {}
    for path in (folder / "store/examples").glob("*.json"):
        emotion, stamp = path.name.split(".")[0], path.stat().st_mtime_ns
        found[emotion] = max(found.get(emotion, (0, path)), (stamp, path))
    return {emotion: json.loads(path.read_text()) for emotion, (_, path) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--emotions", type=int, default=200)
    parser.add_argument("--new", type=int, default=1_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="large-graph-"))
    folder.mkdir(parents=True, exist_ok=True)
    import tiny

    tiny.make_model(folder / "model")
    write(folder / "graph.jsonl", make_nodes(given.nodes, given.emotions, seed=0))
    settings = {"graph": "graph.jsonl", "model": "model", "target_layers": [1, 2]}
    (folder / "config.yaml").write_text(json.dumps(settings))
    snakemake = [sys.executable, "-m", "snakemake"]
    build = [*snakemake, "--snakefile", str(HOME / "Snakefile"), "--cores", "2"]
    size = (folder / "graph.jsonl").stat().st_size / 1e6
    print(f"{given.nodes} nodes, {size:.0f} MB, {given.emotions} emotions; {os.cpu_count()} cores; in {folder}")
    rows: list[tuple[str, float, float]] = []

    def step(what: str, command: list[str]) -> str:
        seconds, memory, output = timed(command, folder)
        rows.append((what, seconds, memory))
        return output

    step("snakemake --version", [*snakemake, "--version"])
    step("graph to examples", [*build, "examples"])
    step("dry run of the whole build after it", [*build, "--dry-run"])
    step("examples again: nothing to do", [*build, "examples"])
    step("selection", [*build, "selection"])
    before = newest_examples(folder)
    write(folder / "graph.jsonl", make_nodes(given.new, given.emotions, seed=1, start=given.nodes), "a")
    step(f"graph with {given.new} more nodes to examples", [*build, "examples"])
    after = newest_examples(folder)
    base = rows[0][1]
    print(f"{'step':<48} {'seconds':>8} {'ratio':>7} {'peak MB':>8}")
    for what, seconds, memory in rows:
        print(f"{what:<48} {seconds:8.1f} {seconds / base:7.1f} {memory:8.0f}")
    swapped = []
    for emotion in sorted(set(before) & set(after)):
        sides = [{(e["polarity"], e["digest"]) for e in files[emotion]["examples"]} for files in (before, after)]
        swapped.append(len(sides[1] - sides[0]))
    print(
        f"{given.new} nodes more: of {len(swapped)} emotions with up to 1,000 examples each, {sum(map(bool, swapped))} "
        f"changed, by {sum(swapped) / max(len(swapped), 1):.1f} examples on average and {max(swapped, default=0)} at most"
    )


if __name__ == "__main__":
    main()
