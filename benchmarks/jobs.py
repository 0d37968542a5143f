"""What the benchmarks measure on: labelled texts as pairs of positives and negatives by emotion, and the embedded model's
folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
CACHE = HOME / "benchmarks" / ".cache"
GOEMOTIONS = HOME.parent / "shared" / "data" / "goemotions"
sys.path.insert(0, str(HOME / "scripts"))

Job = dict[str, list[tuple[str, str]]]


def paired(labelled: dict[str, set[str]], seed: int, at_most: int, at_least: int = 10) -> Job:
    """{emotion: (positive, negative) texts}: up to `at_most` positives by hash, and as many texts without the label."""

    def rank(emotion: str, text: str) -> bytes:
        return hashlib.sha256(f"{seed}|{emotion}|{text}".encode()).digest()

    job: Job = {}
    for emotion in sorted({label for labels in labelled.values() for label in labels}):
        positives = sorted((t for t, labels in labelled.items() if emotion in labels), key=lambda t: rank(emotion, t))[:at_most]
        negatives = sorted((t for t, labels in labelled.items() if emotion not in labels), key=lambda t: rank(emotion, t))
        if len(positives) >= at_least:
            job[emotion] = list(zip(positives, negatives, strict=False))
    return job


def goemotions_labels() -> dict[str, set[str]]:
    """{text: labels} of GoEmotions' training texts. Ends the program with a word where the corpus is absent."""
    if not GOEMOTIONS.is_dir():
        raise SystemExit(f"the GoEmotions corpus is not here ({GOEMOTIONS}): nothing to measure on; try --corpus sample")
    names = (GOEMOTIONS / "labels.txt").read_text(encoding="utf-8").split()
    with (GOEMOTIONS / "train.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) == 3]
    return {text: {names[int(number)] for number in labels.split(",")} for text, labels, _ in rows}


def goemotions_texts() -> list[str]:
    """The unique texts, sorted."""
    return sorted(goemotions_labels())


def goemotions(texts: int = 1500, emotions: int = 23, at_most: int = 60, seed: int = 0) -> Job:
    """The `emotions` most common of GoEmotions (`neutral` left out) in `texts` training texts drawn by seed."""
    unique = goemotions_labels()
    names = set().union(*unique.values())
    chosen = random.Random(seed).sample(sorted(unique), texts)
    labelled = {text: unique[text] for text in chosen}
    common = sorted(names - {"neutral"}, key=lambda name: (-sum(name in labels for labels in labelled.values()), name))
    kept = set(common[:emotions])
    return paired({text: labels & kept for text, labels in labelled.items()}, seed, at_most, at_least=1)


def sample_graph(at_most: int = 60, seed: int = 0) -> Job:
    """The emotions of the sample graph, scored at least 8."""
    from amygdala.tags import split_tags

    labelled: dict[str, set[str]] = {}
    for line in (HOME / "resources" / "graph.jsonl").read_text(encoding="utf-8").splitlines():
        text, scores = split_tags(json.loads(line)["text"])
        labelled[text] = {name for name, score in scores.items() if score >= 8}
    return paired(labelled, seed, at_most)


CORPORA: dict[str, Callable[[], Job]] = {"goemotions": goemotions, "sample": sample_graph}


def texts_of(job: Job) -> list[str]:
    """The unique texts of a job, sorted."""
    return sorted({text for pairs in job.values() for pair in pairs for text in pair})


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def count(job: Job) -> tuple[int, int]:
    """(unique texts, example slots) of a job."""
    slots = [text for pairs in job.values() for pair in pairs for text in pair]
    return len(set(slots)), len(slots)


def embedded_model(dtype: str) -> Path:
    """The folder of the embedded model in `dtype`, converted once under benchmarks/.cache by the workflow itself."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all", "--directory", str(CACHE), "-s"]
    settings = ["--config", f"dtype={dtype}", f"graph={HOME / 'resources' / 'graph.jsonl'}"]
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, str(HOME / "Snakefile"), "model", *settings], check=True, cwd=HOME)
    folders = [path.parent for path in CACHE.glob("store/models/*/config.json")]
    wanted = {"bf16": "bfloat16", "fp32": "float32"}[dtype]
    for folder in sorted(folders, key=lambda path: -path.stat().st_mtime):
        if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype") == wanted:
            return folder
    raise SystemExit(f"the embedded model was not converted to {dtype} under {CACHE}")
