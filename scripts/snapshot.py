"""Graph file to snapshot: canonical nodes (key, digest, scores, text without its tag lines), sorted by key."""

from pathlib import Path
from typing import TYPE_CHECKING

from amygdala.errors import UserError
from amygdala.files import write_text
from amygdala.graph import read_graph, read_nodes, snapshot_lines
from amygdala.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def make_snapshot(graph: str | Path, expected_sha256: str, output: str | Path) -> int:
    """Write the snapshot of `graph`; returns the number of nodes.

    UserError where the graph's bytes are no longer those that the plan was made from: a file under a key that promises
    other content would be a silent mistake for ever.
    """
    data, sha256 = read_graph(graph)
    if sha256 != expected_sha256:
        raise UserError(f"{graph} changed while snakemake was running; nothing was written. Run snakemake again")
    nodes = read_nodes(data, str(graph))
    write_text(output, "".join(snapshot_lines(nodes)))
    return len(nodes)


if "snakemake" in globals():
    with job(snakemake) as say:
        count = make_snapshot(snakemake.input[0], snakemake.params.sha256, snakemake.output[0])
        say(f"{count} nodes")
