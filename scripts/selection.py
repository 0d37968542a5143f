"""Why each emotion gets a vector or none, and near-duplicate texts: told on the terminal and written to selection.json."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from amygdala.corpus import Index
from amygdala.errors import shown
from amygdala.files import write_json
from amygdala.graph import node_at
from amygdala.job import job
from amygdala.plan import Corpus, Rules
from amygdala.snapshots import index_beside

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

LEFT_OUT_SHOWN, GROUPS_SHOWN = 40, 10


def lines(selection: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Any]) -> Iterator[str]:
    """The emotions as a table: those with a vector by number of positives, then those without."""
    order = sorted(selection, key=lambda name: (-selection[name]["positives"], name))
    chosen = [name for name in order if selection[name]["chosen"]]
    left_out = [name for name in order if not selection[name]["chosen"]]
    width = max(map(len, order), default=0)
    yield f"{len(chosen)} emotions get a vector (texts: positives/negatives in training, held out)"
    for name in chosen:
        used = "  ".join(f"{sides['positive']:>4}/{sides['negative']:<4}" for sides in counts[name].values())
        yield f"  {name:<{width}}  {used}  {selection[name]['positives']} positives in the graph; {selection[name]['reason']}"
    yield f"{len(left_out)} get none"
    for name in left_out[:LEFT_OUT_SHOWN]:
        yield f"  {name:<{width}}  {selection[name]['reason']}"
    if len(left_out) > LEFT_OUT_SHOWN:
        yield f"  … and {len(left_out) - LEFT_OUT_SHOWN} more"


def near_duplicates(index: Index, corpus: Corpus, snapshot: BinaryIO) -> list[dict[str, Any]]:
    """Groups of near-duplicate texts: their nodes ("origin/key"), and whether they were kept on one side against their own
    draw.
    """
    moved = set(corpus.moved.tolist())
    members: dict[int, list[int]] = {}
    sizes = np.bincount(index.twins, minlength=1)
    for row in np.flatnonzero(sizes[index.twins] > 1):
        members.setdefault(int(index.twins[row]), []).append(int(row))
    found = []
    for rows in members.values():
        nodes = [node_at(snapshot, int(index.offsets[row]), int(index.sizes[row])) for row in rows]
        split = "held_out" if corpus.held_out[rows[0]] else "train"
        names = [f"{node.origin}/{node.key}" for node in nodes]
        found.append({"nodes": names, "split": split, "would_straddle": any(row in moved for row in rows)})
    return sorted(found, key=lambda group: (not group["would_straddle"], -len(group["nodes"]), group["nodes"]))


def group_lines(groups: list[dict[str, Any]]) -> Iterator[str]:
    """Near duplicates for a terminal; those that the draw would have parted come first."""
    straddling = sum(group["would_straddle"] for group in groups)
    texts = sum(len(group["nodes"]) for group in groups)
    yield f"{texts} texts have near duplicates, in {len(groups)} groups; {straddling} would lie across and are kept in training"
    for group in groups[:GROUPS_SHOWN]:
        names = ", ".join(shown(name, 48) for name in group["nodes"][:4])
        more = f" and {len(group['nodes']) - 4} more" if len(group["nodes"]) > 4 else ""
        yield f"  {group['split']}{', would lie across' if group['would_straddle'] else ''}: {names}{more}"
    if len(groups) > GROUPS_SHOWN:
        yield f"  … and {len(groups) - GROUPS_SHOWN} more"


if "snakemake" in globals():
    with job(snakemake, aloud=True) as say:
        params, beside = snakemake.params, snakemake.params.index
        for line in lines(params.selection, params.counts):
            say(line)
        known = index_beside(beside["path"], snakemake.input[0], beside["facts"], beside["looked_for"])
        with open(snakemake.input[0], "rb") as stored:
            alike = near_duplicates(known, Corpus(known, Rules.from_params(params.rules)), stored)
        for line in group_lines(alike):
            say(line)
        write_json(Path(params.output), {"selection": params.selection, "counts": params.counts, "near_duplicates": alike})
        say(f"all of it: {params.output}")
