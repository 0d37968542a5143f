"""The whole job, model loading to vectors, against steering-vectors and repeng: same texts, layers, model, number format,
machine.

    python benchmarks/peers.py [--corpus goemotions|sample] [--rounds 2] [--dtype auto|bf16|fp32]

Makes an environment for the peers under benchmarks/.cache at the first run. Contenders run one after the other, in turn,
`rounds` times; a ratio is the median over rounds of (their seconds / amygdala's seconds of the same round). steering-vectors
runs at its default batch size (1) and at the best of several, found on a part of the job; repeng at its default (32).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs import CACHE, CORPORA, HOME, Job, count, embedded_model, has_fast_bf16

BATCHES = (4, 8, 16, 32, 64)


def peers_python() -> str:
    """The interpreter of the peers' environment, which is made where it is missing."""
    wanted = (HOME / "benchmarks" / "peers-requirements.txt").read_text(encoding="utf-8")
    folder, stamp = CACHE / "peers", CACHE / "peers.installed"
    python = folder / "bin" / "python"
    if not (python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        print("installing the peers' environment ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(HOME / "benchmarks" / "peers-requirements.txt")],
            check=True,
        )
        stamp.write_text(wanted, encoding="utf-8")
    return str(python)


def contend(python: str, name: str, job: Path, model: Path, dtype: str, layers: str, batch: int) -> dict[str, Any]:
    command = [python, str(HOME / "benchmarks" / "contender.py"), name, str(job), str(model), dtype, layers, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def part(job: Job, share: int) -> Job:
    """One emotion in `share`, with all its pairs: batches are made within an emotion."""
    return {emotion: job[emotion] for emotion in sorted(job, key=lambda name: (-len(job[name]), name))[::share]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", choices=sorted(CORPORA), default="goemotions")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    options.add_argument("--layers", default="12,15,18,21")
    given = options.parse_args()
    job = CORPORA[given.corpus]()
    dtype = ("bf16" if has_fast_bf16() else "fp32") if given.dtype == "auto" else given.dtype
    python, model = peers_python(), embedded_model(dtype)
    unique, slots = count(job)
    print(
        f"{given.corpus}: {len(job)} emotions, {unique} unique texts in {slots} example slots, layers {given.layers}, {dtype}"
    )
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "job.json", Path(folder) / "part.json"
        whole.write_text(json.dumps(job), encoding="utf-8")
        small.write_text(json.dumps(part(job, 5)), encoding="utf-8")
        trial = {
            size: contend(python, "steering-vectors", small, model, dtype, given.layers, size)["seconds"] for size in BATCHES
        }
        best = min(trial, key=lambda size: trial[size])
        print("steering-vectors, a fifth of the job by batch size: " + ", ".join(f"{s}: {t:.1f} s" for s, t in trial.items()))
        contenders = [
            ("amygdala", sys.executable, "amygdala", 0),
            ("steering-vectors, defaults (batch 1)", python, "steering-vectors", 0),
            (f"steering-vectors, batch {best}", python, "steering-vectors", best),
            ("repeng, defaults (batch 32)", python, "repeng", 0),
        ]
        rounds: dict[str, list[dict[str, Any]]] = {title: [] for title, *_ in contenders}
        for number in range(given.rounds):
            for title, interpreter, name, batch in contenders:
                rounds[title].append(contend(interpreter, name, whole, model, dtype, given.layers, batch))
                print(f"  round {number + 1}: {title}: {rounds[title][-1]['seconds']:.1f} s", flush=True)
    ours = rounds["amygdala"]
    print(f"\n{'contender':38} {'forwards':>9} {'seconds':>9} {'texts/s':>9} {'of it load':>10} {'times amygdala':>15}")
    for title, results in rounds.items():
        seconds = statistics.median(r["seconds"] for r in results)
        ratio = statistics.median(r["seconds"] / mine["seconds"] for r, mine in zip(results, ours, strict=True))
        load = statistics.median(r["load_s"] for r in results)
        print(f"{title:38} {results[0]['forwards']:9} {seconds:9.1f} {slots / seconds:9.1f} {load:10.1f} {ratio:15.1f}")
    print("texts/s: example slots served a second. Forward passes are counted in texts.")


if __name__ == "__main__":
    main()
