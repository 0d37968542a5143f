"""Snapshot to examples, a file an emotion: polarity, split, digest, text, the scenarios of paired stories, and where it is
from.
"""

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from amygdala.errors import UserError
from amygdala.exampleset import Example, count_examples
from amygdala.files import write_json
from amygdala.graph import node_at
from amygdala.job import job
from amygdala.plan import Corpus, Rules
from amygdala.snapshots import index_beside

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def examples_of(corpus: Corpus, emotion: str, snapshot: BinaryIO) -> list[Example]:
    """The emotion's examples: positives, then negatives, each in order of digest, their texts read from the open snapshot.

    UserError where a text is not the one that the index knows.
    """
    index, scenarios, groups = corpus.index, corpus.scenarios, corpus.groups
    found = []
    for role in corpus.roles(emotion):
        try:
            node = node_at(snapshot, int(index.offsets[role.row]), int(index.sizes[role.row]))
            digest = node.digest
        except (ValueError, KeyError):
            digest = ""
        if digest != role.digest:
            raise UserError(f"{snapshot.name} is damaged: delete it and run snakemake again, it will be rebuilt")
        where = scenarios.get(role.row, []), groups.get(role.row, [])
        found.append(Example(role.digest, role.polarity, role.split, node.text, *where))
    return found


def make_examples(corpus: Corpus, emotion: str, snapshot: BinaryIO, output: str | Path) -> dict[str, dict[str, int]]:
    """Write the examples of `emotion`; returns their counts {split: {polarity: number}}."""
    examples = examples_of(corpus, emotion, snapshot)
    counts = count_examples(examples)
    write_json(output, {"emotion": emotion, "counts": counts, "examples": [vars(example) for example in examples]})
    return counts


if "snakemake" in globals():
    with job(snakemake) as say:
        beside = snakemake.params.index
        index = index_beside(beside["path"], snakemake.input[0], beside["facts"], beside["looked_for"])
        corpus = Corpus(index, Rules.from_params(snakemake.params.rules))
        with open(snakemake.input[0], "rb") as snapshot:
            for emotion, files in snakemake.params.files.items():
                if not Path(files["outputs"][0]).exists():
                    say(f"{emotion}: {make_examples(corpus, emotion, snapshot, files['outputs'][0])}")
