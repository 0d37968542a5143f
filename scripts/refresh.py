"""Live sources to the snapshot file that builds start from. What cannot be fetched whole leaves the old snapshot as it is."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.errors import UserError, listed, shown
from amygdala.files import whole, write_text
from amygdala.graph import RawNode, canonical
from amygdala.job import job
from amygdala.sources import Source, check_replaceable, definition_in, live_lines, previous_of, read_live, sources_of

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

Say = Callable[[str], None]
KEPT = "The snapshot is as it was."
BAD_SHOWN = 10


def difference(old: Mapping[str, RawNode], new: Mapping[str, RawNode]) -> tuple[list[str], list[str], list[str]]:
    """Sorted keys (added, changed, removed); a node whose time alone differs is unchanged."""
    added = sorted(set(new) - set(old))
    changed = sorted(key for key in set(new) & set(old) if new[key].text != old[key].text)
    return added, changed, sorted(set(old) - set(new))


def check_loss(source: Source, old: Mapping[str, RawNode], removed: list[str], max_lost: float) -> None:
    """UserError where more than the share `max_lost` of the old nodes is gone: the server may have answered in part."""
    if len(removed) > max_lost * len(old):
        raise UserError(
            f"graph: source {shown(source.name)}: {len(removed)} of {len(old)} nodes are gone ({listed(removed, 4)}), "
            f"more than the share max_lost_nodes ({max_lost:g}). If the graph did shrink: --config max_lost_nodes=1"
        )


def old_nodes(path: Path, live: Sequence[Source]) -> dict[str, dict[str, RawNode]]:
    """{source: {key: node}} of the snapshot that is there, of sources that are defined as they were.

    Nothing where it is missing or damaged: it will be replaced. UserError where the file is no snapshot: it is somebody's.
    """
    check_replaceable(path)
    try:
        same = {source.name for source in live if definition_in(path, source.name) == source.definition}
        return {name: {raw.key: raw for raw in raws} for name, raws in read_live(path).items() if name in same}
    except (UserError, OSError):
        return {}


def refresh(
    settings: Mapping[str, Any], say: Say, fetch: Callable[[Source, Say], list[RawNode]]
) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """Fetch every live source and write the snapshot; returns {source: keys (added, changed, removed)}.

    settings: graph, snapshot, bad_nodes and max_lost_nodes of the configuration; fetch: amygdala.live.fetch, or a test's.
    UserError where a source cannot be fetched whole or a node is bad; nothing is written then.
    """
    path = Path(settings["snapshot"]).expanduser()
    live = [source for source in sources_of(settings["graph"]) if source.live]
    old = old_nodes(path, live) if live else {}
    fetched: dict[str, tuple[Source, list[RawNode]]] = {}
    differences: dict[str, tuple[list[str], list[str], list[str]]] = {}
    for source in live:
        raws = fetch(source, say)
        _, skipped = canonical(source.name, raws, settings["bad_nodes"] == "skip")
        for bad in skipped[:BAD_SHOWN]:
            say(f"warning: {source.name}: node {shown(bad.key)} will be skipped: {bad.reason}")
        if len(skipped) > BAD_SHOWN:
            say(f"warning: {source.name}: {len(skipped) - BAD_SHOWN} more nodes will be skipped")
        before = old.get(source.name, {})
        found = difference(before, {raw.key: raw for raw in raws})
        check_loss(source, before, found[2], settings["max_lost_nodes"])
        fetched[source.name] = (source, raws)
        differences[source.name] = found
        added, changed, removed = map(len, found)
        say(f"{source.name}: {len(raws)} nodes; {added} added, {changed} changed, {removed} removed")
    if live:
        lines = live_lines(fetched)
        if path.exists() and path.read_bytes() != lines.encode():
            with whole(previous_of(path)) as temporary:
                shutil.copyfile(path, temporary)
        write_text(path, lines)
    return differences


if "snakemake" in globals():
    with job(snakemake, aloud=True, needs_input=False) as say:
        from amygdala.live import fetch

        settings = snakemake.params.settings
        try:
            done = refresh(settings, say, fetch)
        except UserError as error:
            kept = KEPT if Path(settings["snapshot"]).expanduser().exists() else "There is no snapshot yet."
            raise UserError(f"{error}. {kept}") from None
        if not done:
            say("every source lies on this machine and is read as it is: there is nothing to fetch")
        else:
            say(f"{settings['snapshot']} is new. See what follows from it: snakemake --cores 1 changes")
