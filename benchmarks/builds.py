"""What the build itself costs: everything but the model's passes, of many emotions and layers, by whole commands.

    python benchmarks/builds.py [--emotions 200] [--layers 8] [--nodes 20000] [--folder DIR]
    python benchmarks/builds.py --emotions 1000 --first-only

Makes a graph and a tiny model with random weights, captures the activations, and then times, with these stored: the first build
of all else, a no-op, a score that takes one emotion a positive, and a changed text, which is an example of many emotions; the
dry run before each. `--first-only` leaves out the two changes. Wall clock, its ratio to a bare `snakemake --version`, and the
processor time of all processes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME / "scripts"))
sys.path.insert(0, str(HOME / "tests"))

from large_graph import make_nodes, write  # noqa: E402

KEPT = ("activations", "memo", "models")
POSITIVE, BELOW = 10, 5  # scores, of a positive for certain and of none (config.yaml, min_positive_score)
CORES = "2"

Node = dict[str, str]


def settings(layers: int) -> dict[str, Any]:
    """Few examples are enough: of 1,000 emotions in 20,000 nodes the rarest have a handful."""
    emotions = {"top": 1_000_000, "min_positives": 2}
    return {
        "graph": "graph.jsonl",
        "model": "model",
        "target_layers": list(range(layers)),
        "emotions": emotions,
        "min_examples": 2,
    }


def make_project(folder: Path, nodes: int, emotions: int, layers: int) -> None:
    """A graph, a model and a configuration in `folder`."""
    import tiny

    tiny.CONFIGS["llama"]["num_hidden_layers"] = layers
    tiny.make_model(folder / "model")
    write(folder / "graph.jsonl", make_nodes(nodes, emotions, seed=0))
    (folder / "config.yaml").write_text(json.dumps(settings(layers)))


def forget(folder: Path) -> None:
    """All that was built but the activations."""
    for path in (folder / "store").iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path)
    shutil.rmtree(folder / "results")


def lower(node: Node) -> Node | None:
    """The node with a positive's score lowered, so that one emotion has one positive fewer; None where it has no such score."""
    text = re.sub(rf":{POSITIVE}\b", f":{BELOW}", node["text"], count=1)
    return None if text == node["text"] else {**node, "text": text}


def reword(node: Node) -> Node | None:
    """The node with another text; None where it has no tags."""
    return {**node, "text": "Suddenly another morning came. " + node["text"]} if "\n\n" in node["text"] else None


def change(folder: Path, how: Callable[[Node], Node | None]) -> None:
    """Change the first node of the graph that can be."""
    path = folder / "graph.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if changed := how(json.loads(line)):
            lines[number] = json.dumps(changed)
            break
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """(seconds, processor seconds of all its processes, output) of a command; ends the program where it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def made(said: str) -> str:
    """How many emotions had vectors made, and how many jobs ran, of what Snakemake said."""
    emotions = sum(len(names.split(", ")) for names in re.findall(r"^Job \d+: Vectors of (.+)$", said, re.MULTILINE))
    return f"{len(re.findall(r'^Job [0-9]+: ', said, re.MULTILINE))} jobs, vectors of {emotions} emotions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emotions", type=int, default=200)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--first-only", action="store_true")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="builds-"))
    folder.mkdir(parents=True, exist_ok=True)
    made_of, asked = folder / "size.json", {name: getattr(given, name) for name in ("nodes", "emotions", "layers")}
    if not made_of.exists():
        make_project(folder, **asked)
        made_of.write_text(json.dumps(asked))
    elif (there := json.loads(made_of.read_text())) != asked:
        raise SystemExit(f"{folder} holds a project of {there}, not of {asked}: give another --folder")
    snakemake = [sys.executable, "-m", "snakemake"]
    build = [*snakemake, "--snakefile", str(HOME / "Snakefile"), "--cores", CORES]
    size = f"{given.emotions} emotions, {given.layers} layers, {given.nodes} nodes"
    print(f"{size}; {CORES} of {os.cpu_count()} cores; in {folder}", flush=True)
    bare = 0.0

    def step(what: str, *arguments: str, command: list[str] = build) -> str:
        nonlocal bare
        seconds, processor, said = timed([*command, *arguments], folder)
        bare = bare or seconds
        ran = "" if command is not build or arguments else made(said)
        print(f"{what:<42}{seconds:8.1f} s{seconds / bare:7.1f} x{processor:8.1f} s of processor  {ran}".rstrip(), flush=True)
        return said

    step("snakemake --version", "--version", command=snakemake)
    step("everything, activations too")
    forget(folder)
    step("dry run of the first build of all else", "--dry-run")
    step("first build of all else")
    step("no-op")
    step("dry run of nothing", "--dry-run")
    if given.first_only:
        return
    for what, how in (("a lower score", lower), ("another text", reword)):
        change(folder, how)
        step(f"dry run of {what}", "--dry-run")
        step(what)


if __name__ == "__main__":
    main()
