"""The last release against the current snapshot and configuration, told on the terminal and written to changes.json."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala import changes
from amygdala.batch import missing_of
from amygdala.corpus import Index, make_index, read_index
from amygdala.errors import UserError
from amygdala.estimate import to_forward
from amygdala.files import recall, write_json
from amygdala.graph import canonical, read_snapshot
from amygdala.job import job
from amygdala.plan import Corpus, Rules
from amygdala.snapshots import index_beside, index_path, names_looked_for
from amygdala.sources import previous_of, read_live

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


@dataclass(frozen=True)
class Before:
    """What the current snapshot is compared with. since: the last release's snapshot key, or "refresh" for the snapshot before
    the last refresh; nodes: None where they are no longer to be had.
    """

    since: str
    count: int
    rules: Rules
    concepts: Sequence[str]
    nodes: dict[tuple[str, str], changes.Version] | None
    index: Index | None


def before_release(manifest: Mapping[str, Any], store: str) -> Before:
    """The last release, its snapshot out of the store."""
    key, config = manifest["snapshot"]["key"], manifest["config"]
    rules, count = Rules.of(config), manifest["snapshot"]["nodes"]
    snapshot = Path(store, "snapshots", f"{key}.jsonl")
    if not snapshot.exists():
        return Before(key, count, rules, manifest["concepts"], None, None)
    looked_for = names_looked_for({"emotions": {"aliases": {}, **config["emotions"]}})
    index = read_index(Path(index_path(store, key, looked_for)))
    if index is None:  # not stored: it would not know of skipped nodes
        index = make_index(read_snapshot(snapshot), extra=looked_for)
    return Before(key, count, rules, manifest["concepts"], versions_of(snapshot, count), index)


def versions_of(snapshot: str | Path, count: int) -> dict[tuple[str, str], changes.Version]:
    """The nodes of a stored snapshot; UserError where it does not hold `count` of them."""
    found = changes.versions(read_snapshot(snapshot))
    if len(found) != count:
        raise UserError(
            f"{snapshot} is damaged ({len(found)} nodes, {count} expected): delete it; snakemake rebuilds the current one"
        )
    return found


def released_in(path: Path) -> dict[str, Any]:
    """The last release's manifest, empty before the first. UserError where it is damaged."""
    if not path.exists():
        return {}
    manifest = recall(path)
    try:
        known = all(name in manifest for name in ("concepts", "config")) and manifest["config"]["emotions"]
        if known and all(name in manifest["snapshot"] for name in ("key", "nodes")):
            return dict(manifest)
    except (TypeError, KeyError):
        pass
    raise UserError(f"{path} is damaged: delete it and run snakemake, which publishes it again")


def before_refresh(previous: Path, current: Mapping[str, Any], rules: Rules) -> Before | None:
    """The live sources as they were before the last refresh, beside local ones as they are; None where that is not known."""
    try:
        old = read_live(previous)
    except (UserError, OSError):
        return None
    kept = [node for node in read_snapshot(current["snapshot"]) if node.origin not in old]
    nodes = kept + [node for name, raws in old.items() for node in canonical(name, raws, skip_bad=True)[0]]
    nodes.sort(key=lambda node: (node.origin, node.key))
    index = make_index(nodes, extra=current["index"]["looked_for"])
    corpus = Corpus(index, rules)
    concepts = sorted(set(corpus.select()[0]) & set(current["emotions"]))
    return Before("refresh", len(nodes), rules, concepts, changes.versions(nodes), index)


def make_report(
    before: Before | None,
    facts: Mapping[str, Any],
    current: Mapping[str, Any],
    files: Mapping[str, Iterable[str]],
    rules: Rules,
) -> changes.Report:
    """The current snapshot against `before`.

    facts: of the last release's manifest, empty without one; current: see Build.change_settings; files: {emotion: what is built
    for it}.
    """
    beside = current["index"]
    index = index_beside(beside["path"], current["snapshot"], beside["facts"], beside["looked_for"])
    rebuild = sorted(emotion for emotion, paths in files.items() if missing_of(paths))
    spaces = [Path(space) for space in current["spaces"]]
    forward = to_forward(index, Corpus(index, rules), files, current["layers"], spaces, current["neutral"])
    settings = changes.setting_changes(facts, current["facts"]) if facts else []
    nodes: list[changes.NodeChange] = []
    emotions: list[changes.EmotionChange] = []
    if before is not None and before.nodes is not None and before.index is not None:
        nodes = changes.node_changes(before.nodes, versions_of(current["snapshot"], current["nodes"]))
        emotions = changes.emotion_changes((before.index, before.rules, before.concepts), (index, rules, files), nodes)
    since, count = (before.since, before.count) if before is not None else (None, 0)
    return changes.Report(
        since,
        current["snapshot_key"],
        (count, current["nodes"]),
        nodes,
        emotions,
        settings,
        rebuild,
        len(files),
        forward,
        comparable=before is None or before.nodes is not None,
    )


if "snakemake" in globals():
    with job(snakemake, aloud=True, needs_input=False) as say:
        params = snakemake.params
        rules = Rules.from_params(params.rules)
        released = released_in(Path(params.manifest))
        last: Before | None
        if released:
            last = before_release(released, params.current["store"])
        else:
            last = before_refresh(previous_of(params.fetched), {**params.current, "emotions": list(params.files)}, rules)
        report = make_report(last, released, params.current, params.files, rules)
        for line in changes.lines(report):
            say(line)
        write_json(params.output, report.as_json())
        say(f"all of it: {params.output}")
