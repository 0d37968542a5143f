"""Snapshot to the examples of one emotion: polarity, split, digest and text."""

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


def make_examples(snapshot: str | Path, emotion: str, rules: Rules, output: str | Path) -> dict[str, dict[str, int]]:
    """Write the examples of `emotion`; returns their counts {split: {polarity: number}}."""
    examples = Corpus(read_snapshot(snapshot), rules).examples(emotion)
    counts = count_examples(examples)
    write_json(output, {"emotion": emotion, "counts": counts, "examples": [dataclasses.asdict(e) for e in examples]})
    return counts


def rules_from(params: Any) -> Rules:
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(params).items()}
    return Rules(**settings)


if "snakemake" in globals():
    with job(snakemake) as say:
        counts = make_examples(
            snakemake.input[0], snakemake.wildcards.emotion, rules_from(snakemake.params.rules), snakemake.output[0]
        )
        say(f"{snakemake.wildcards.emotion}: {counts}")
