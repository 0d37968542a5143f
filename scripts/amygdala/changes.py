"""What a new snapshot or configuration changes against the last release: nodes, emotions, texts to forward, time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from amygdala.corpus import Index
from amygdala.errors import shown
from amygdala.graph import Node
from amygdala.plan import Corpus, Role, Rules
from amygdala.progress import duration
from amygdala.tags import tag_line

NODES_SHOWN, GROUPS_SHOWN, NAMES_SHOWN, CAUSES_SHOWN = 30, 25, 8, 4
SIGNS = {"added": "+", "changed": "~", "removed": "-"}


@dataclass(frozen=True)
class Version:
    """A node in one snapshot: its text's digest and its scores."""

    digest: str
    scores: dict[str, float]


@dataclass
class NodeChange:
    """A node that is new, gone, or other than it was. moves: the emotions whose examples it enters or leaves."""

    origin: str
    key: str
    kind: str
    old: Version | None
    new: Version | None
    moves: list[str] = field(default_factory=list)

    @property
    def digests(self) -> set[str]:
        return {version.digest for version in (self.old, self.new) if version is not None}

    def what(self) -> str:
        """In words: the tags of a new node, which of text and tags changed."""
        if self.old is None or self.new is None:
            return tag_line((self.new or self.old or Version("", {})).scores) or "no tags"
        parts = ["text"] if self.old.digest != self.new.digest else []
        for emotion in sorted(set(self.old.scores) | set(self.new.scores)):
            before, after = self.old.scores.get(emotion), self.new.scores.get(emotion)
            if before != after:
                parts.append(
                    f"{emotion} {'none' if before is None else f'{before:g}'} → {'none' if after is None else f'{after:g}'}"
                )
        return ", ".join(parts)


@dataclass
class EmotionChange:
    """An emotion whose examples differ. state: new, gone, changed, or held out (training examples as they were).

    positives, negatives: (examples that came, that went); causes: nodes ("origin/key") behind them. Examples that came or went
    with no node of their own changing were moved by the cap, or by a threshold.
    """

    emotion: str
    state: str
    positives: tuple[int, int]
    negatives: tuple[int, int]
    moved: int
    causes: list[str]


def versions(nodes: Iterable[Node]) -> dict[tuple[str, str], Version]:
    return {(node.origin, node.key): Version(node.digest, node.scores) for node in nodes}


def node_changes(old: Mapping[tuple[str, str], Version], new: Mapping[tuple[str, str], Version]) -> list[NodeChange]:
    """Nodes added, changed (text or scores) and removed, each kind in order of source and key."""
    found = [NodeChange(*name, "added", None, new[name]) for name in sorted(set(new) - set(old))]
    both = sorted(name for name in set(new) & set(old) if new[name] != old[name])
    found += [NodeChange(*name, "changed", old[name], new[name]) for name in both]
    return found + [NodeChange(*name, "removed", old[name], None) for name in sorted(set(old) - set(new))]


Sides = dict[tuple[str, str], str]


def _sides(roles: Sequence[Role]) -> Sides:
    """{(polarity, digest): split}"""
    return {(role.polarity, role.digest): role.split for role in roles}


def _emotion_change(
    emotion: str, old: Sides | None, new: Sides | None, nodes: Mapping[str, list[NodeChange]]
) -> EmotionChange | None:
    before, after = old or {}, new or {}
    if before == after and (old is None) == (new is None):
        return None
    came = {name for name in after if before.get(name) != after[name]}
    went = {name for name in before if after.get(name) != before[name]}

    def counts(polarity: str) -> tuple[int, int]:
        return sum(side == polarity for side, _ in came), sum(side == polarity for side, _ in went)

    causes: dict[str, NodeChange] = {}
    moved = 0
    for _, digest in came | went:
        behind = nodes.get(digest, [])
        moved += not behind
        causes |= {f"{change.origin}/{change.key}": change for change in behind}
    if old is not None and new is not None:
        for change in causes.values():
            change.moves.append(emotion)
    training = [{name for name, split in sides.items() if split == "train"} for sides in (before, after)]
    state = "new" if old is None else "gone" if new is None else "changed" if training[0] != training[1] else "held out"
    return EmotionChange(emotion, state, counts("positive"), counts("negative"), moved, sorted(causes))


def emotion_changes(
    old: tuple[Index, Rules, Iterable[str]], new: tuple[Index, Rules, Iterable[str]], nodes: Sequence[NodeChange]
) -> list[EmotionChange]:
    """Emotions whose examples differ between two (index, rules, emotions with a vector), the most changed first.

    Also fills in each node's `moves`.
    """
    by_digest: dict[str, list[NodeChange]] = {}
    for change in nodes:
        for digest in change.digests:
            by_digest.setdefault(digest, []).append(change)
    corpora = [Corpus(index, rules) for index, rules, _ in (old, new)]
    had, has = set(old[2]), set(new[2])
    found: list[EmotionChange] = []
    for emotion in sorted(had | has):
        old_sides, new_sides = [
            _sides(corpus.roles(emotion)) if emotion in emotions else None
            for corpus, emotions in zip(corpora, (had, has), strict=True)
        ]
        moved = _emotion_change(emotion, old_sides, new_sides, by_digest)
        if moved is not None:
            found.append(moved)
    return sorted(found, key=lambda moved: (-sum(moved.positives + moved.negatives), moved.emotion))


def setting_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Facts of two manifests (settings, model, versions) that differ, in words."""
    flat = []
    for facts in (old, new):
        config = dict(facts.get("config", {}))
        config |= {f"emotions.{name}": value for name, value in config.pop("emotions", {}).items()}
        config |= {f"model.{name}": value for name, value in facts.get("model", {}).items()}
        flat.append(config | {f"version of {name}": value for name, value in facts.get("versions", {}).items()})
    before, after = flat
    return [
        f"{name}: {shown(before.get(name, 'not set'))} → {shown(after.get(name, 'not set'))}"
        for name in sorted(set(before) | set(after))
        if before.get(name, "not set") != after.get(name, "not set")
    ]


@dataclass(frozen=True)
class Forward:
    """Texts that the store lacks rows of. texts: of the `unique` ones; chars: of these texts, unknown without a snapshot; rate:
    what the last capture with these activations measured, None where there was none: chars_per_token, tokens_per_s, load_s,
    device.
    """

    texts: int
    unique: int
    chars: int
    rate: Mapping[str, Any] | None

    @property
    def tokens(self) -> int | None:
        return round(self.chars / self.rate["chars_per_token"]) if self.rate else None

    @property
    def seconds(self) -> float | None:
        if not self.texts:
            return 0.0
        return self.rate["load_s"] + (self.tokens or 0) / self.rate["tokens_per_s"] if self.rate else None

    def line(self) -> str:
        head = f"texts: {self.texts} of {self.unique} to forward"
        if not self.texts:
            return f"{head}; the model is not loaded"
        if not self.rate:
            return f"{head}; no earlier capture with these settings to estimate the time from"
        rate = f"the last capture's {self.rate['tokens_per_s']:.0f} tokens/s ({self.rate['device']})"
        loading = f"loading the model took {self.rate['load_s']:.0f} s"
        return f"{head}, about {self.tokens} tokens: {duration(self.seconds or 0)} at {rate}; {loading}"


@dataclass(frozen=True)
class Report:
    """since: key of the last release's snapshot, "refresh" where there is none yet and the snapshot before the last refresh is
    compared, None where there is neither; count: nodes then and now; rebuild: emotions with a missing file;
    comparable: whether the nodes of then are still to be had."""

    since: str | None
    snapshot: str
    count: tuple[int, int]
    nodes: list[NodeChange]
    emotions: list[EmotionChange]
    settings: list[str]
    rebuild: list[str]
    all_emotions: int
    forward: Forward
    comparable: bool = True

    def as_json(self) -> dict[str, Any]:
        facts = asdict(self)
        facts["nodes"] = [{**asdict(change), "what": change.what()} for change in self.nodes]
        facts["forward"] |= {"tokens": self.forward.tokens, "seconds": self.forward.seconds}
        return facts


def _named(change: NodeChange, several: bool) -> str:
    return shown(f"{change.origin}/{change.key}" if several else change.key, 48)


def _node_lines(report: Report) -> Iterator[str]:
    if not report.comparable:
        yield (
            f"nodes: now {report.count[1]}, then {report.count[0]}; which ones changed is not known, "
            f"as the last release's snapshot {report.since} is not in the store"
        )
        return
    kinds = {kind: sum(change.kind == kind for change in report.nodes) for kind in SIGNS}
    yield (
        "nodes: "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        + f" (now {report.count[1]}, then {report.count[0]})"
    )
    several = len({change.origin for change in report.nodes}) > 1
    for change in report.nodes[:NODES_SHOWN]:
        touched = f" [{len(change.moves)} emotion{'s' * (len(change.moves) != 1)}]" if change.moves else ""
        yield f"  {SIGNS[change.kind]} {_named(change, several)}  {shown(change.what(), 90)[1:-1]}{touched}"
    if len(report.nodes) > NODES_SHOWN:
        yield f"  … and {len(report.nodes) - NODES_SHOWN} more"


def _sign(counts: tuple[int, int]) -> str:
    return " ".join(f"{sign}{count}" for sign, count in zip("+-", counts, strict=True) if count) or "="


def _what(change: EmotionChange, rebuilds: bool, several: bool) -> str:
    """What happened to an emotion, and because of which nodes."""
    if change.state in ("new", "gone"):
        return change.state
    state = f"positives {_sign(change.positives)}, negatives {_sign(change.negatives)}"
    if change.state == "held out":
        state += ", held-out texts alone: the vector stays"
    elif not rebuilds:
        state += ", in the store already"
    names = [cause if several else cause.partition("/")[2] for cause in change.causes]
    if not names:
        return f"{state}; by cap or settings"
    more = f" and {len(names) - CAUSES_SHOWN} more" if len(names) > CAUSES_SHOWN else ""
    return f"{state}; because of {', '.join(shown(name, 40) for name in names[:CAUSES_SHOWN])}{more}"


def _emotion_lines(report: Report) -> Iterator[str]:
    told = {change.emotion for change in report.emotions}
    others = [emotion for emotion in report.rebuild if emotion not in told]
    yield f"emotions: {len(report.rebuild)} of {report.all_emotions} rebuild"
    several = len({cause.partition("/")[0] for change in report.emotions for cause in change.causes}) > 1
    alike: dict[str, list[str]] = {}
    for change in report.emotions:
        alike.setdefault(_what(change, change.emotion in report.rebuild, several), []).append(change.emotion)
    for what, names in list(alike.items())[:GROUPS_SHOWN]:
        yield f"  {_some(names)}: {what}"
    rest = list(alike.values())[GROUPS_SHOWN:]
    if rest:
        yield f"  … and {sum(map(len, rest))} more"
    if others and report.since is not None and report.comparable:
        yield f"  with the same examples, for another setting, model or code: {_some(others)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def lines(report: Report) -> Iterator[str]:
    """The report for a terminal: short at any number of nodes and emotions."""
    if report.since is None:
        yield f"no release yet: snapshot {report.snapshot} with {report.count[1]} nodes is the first"
        yield f"emotions: {len(report.rebuild)} of {report.all_emotions} to build"
    else:
        if report.since == "refresh":
            yield f"no release yet: snapshot {report.snapshot} against the one before the last refresh"
        else:
            same = "is the last release's" if report.since == report.snapshot else f"follows the last release's {report.since}"
            yield f"snapshot {report.snapshot} {same}"
        yield from _node_lines(report)
        for line in report.settings:
            yield f"setting {line}"
        yield from _emotion_lines(report)
    yield report.forward.line()
