"""Snapshot to examples, a file an emotion: polarity, split, digest and text."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.exampleset import count_examples
from amygdala.files import write_json
from amygdala.graph import read_snapshot
from amygdala.job import job
from amygdala.plan import Corpus, Rules

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def make_examples(corpus: Corpus, emotion: str, output: str | Path) -> dict[str, dict[str, int]]:
    """Write the examples of `emotion`; returns their counts {split: {polarity: number}}."""
    examples = corpus.examples(emotion)
    counts = count_examples(examples)
    write_json(output, {"emotion": emotion, "counts": counts, "examples": [dataclasses.asdict(e) for e in examples]})
    return counts


def rules_from(params: Any) -> Rules:
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(params).items()}
    return Rules(**settings)


if "snakemake" in globals():
    with job(snakemake) as say:
        corpus = Corpus(read_snapshot(snakemake.input[0]), rules_from(snakemake.params.rules))
        for emotion, files in snakemake.params.files.items():
            if not Path(files["outputs"][0]).exists():
                say(f"{emotion}: {make_examples(corpus, emotion, files['outputs'][0])}")
