"""Graph sources to snapshot: canonical nodes (source, key, digest, scores, text without its tag lines), sorted by source and
key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.errors import UserError
from amygdala.files import whole
from amygdala.graph import snapshot_line
from amygdala.job import job
from amygdala.sources import Graph
from amygdala.stamps import seal_lines

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def make_snapshot(settings: Mapping[str, Any], store: str | Path, output: str | Path) -> int:
    """Write the snapshot of the sources; returns the number of nodes.

    settings: graph, snapshot and bad_nodes of the configuration; home: amygdala's folder; identity: what the plan was made
    from. UserError where the sources' bytes are no longer those: a file under a key that promises other content would be a
    silent mistake for ever.
    """
    base = [Path(), Path(settings["home"])]
    graph = Graph(settings, base, Path(store))
    nodes, _ = graph.nodes()
    for state in (graph, Graph(settings, base, Path(store))):  # before and after reading
        if state.identity != settings["identity"]:
            raise UserError(f"{graph.title} changed while snakemake was running; nothing was written. Run snakemake again")
    with whole(output) as temporary:
        with open(temporary, "wb") as file:
            file.writelines(map(snapshot_line, nodes))
        seal_lines(output, temporary)
    return len(nodes)


if "snakemake" in globals():
    with job(snakemake) as say:
        settings = snakemake.params.settings
        count = make_snapshot(settings, settings["store"], snakemake.output[0])
        say(f"{count} nodes")
