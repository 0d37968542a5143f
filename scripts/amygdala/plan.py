"""Which emotions get a vector, and which texts are their examples (README.md, "What counts as an example").

Everything here is a pure function of the snapshot's index and the configuration. The Snakefile needs only the Plan: hashes and
counts, small at any size of graph; the examples job works its emotions' lists out again from the index.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from amygdala.corpus import Index, Postings, phrase
from amygdala.errors import UserError, listed, shown
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN, count_examples, digests_of, shard_of
from amygdala.keys import key
from amygdala.tags import emotion_name


@dataclass(frozen=True)
class Rules:
    """The settings that decide what is an example; the names are the configuration's."""

    min_positive_score: float
    max_negative_score: float | None
    max_negative_mentions: int
    min_content_chars: int
    max_examples_per_emotion: int
    min_examples: int
    held_out: float
    seed: int
    select: Literal["data", "curated", "both"]
    min_positives: int
    top: int
    curated: tuple[str, ...]
    exclude: tuple[str, ...]
    aliases: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Rules:
        emotions = config["emotions"]
        settings: dict[str, Any] = {**config, **emotions}
        for side in ("curated", "exclude"):
            settings[side] = tuple(sorted({emotion_name(raw) for raw in emotions[side]}))
        aliases = {emotion_name(str(name)): emotion_name(other) for name, other in emotions.get("aliases", {}).items()}
        settings["aliases"] = dict(sorted(aliases.items()))
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})

    @classmethod
    def from_params(cls, params: Any) -> Rules:
        """The rules out of a job's parameters: what ingredients() gave, its tuples as lists."""
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(params).items()}
        return cls(**settings)

    def names_of(self, emotion: str) -> list[str]:
        """The emotion's own name and its aliases."""
        return [emotion, *(name for name, other in self.aliases.items() if other == emotion)]

    def ingredients(self) -> dict[str, Any]:
        return asdict(self)


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014): uint64 [n] to well-mixed uint64 [n]."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _salted(hashes: np.ndarray, *salt: Any) -> np.ndarray:
    """A pseudo-random uint64 for each text's hash (uint64 [n], the start of its digest), independent between salts."""
    own = hashlib.sha256("\0".join(str(part) for part in salt).encode()).digest()[:8]
    return _mix(hashes ^ np.frombuffer(own, dtype=">u8").astype(np.uint64))


def held_out_mask(hashes: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: whether each text would be held out by its own digest, for all emotions alike."""
    return _salted(hashes, "held out").astype(np.float64) / 2.0**64 < share


@dataclass(frozen=True)
class Role:
    """A text's role for an emotion. row: in the index; polarity: positive or negative; split: train or held_out."""

    row: int
    digest: str
    polarity: str
    split: str


class Corpus:
    """The texts of an index under the rules: who is a positive or negative of what, and who is held out."""

    def __init__(self, index: Index, rules: Rules) -> None:
        self.index, self.rules = index, rules
        self.hashes = index.hashes
        self.usable = index.chars >= rules.min_content_chars
        own = held_out_mask(self.hashes, rules.held_out)
        # Near duplicates stay on one side: held out only where all of a group are. So a new text can bring an old one into
        # training, and never takes a text that vectors have seen for an unseen one.
        all_out = np.ones(len(own), dtype=bool)
        np.logical_and.at(all_out, index.twins, own)
        self.held_out = all_out[index.twins]
        self.moved = np.flatnonzero(own & ~self.held_out)

    def _of(self, postings: Postings, emotion: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, values) of an emotion and its aliases: the parts' concatenation, so a row may stand in it more than once."""
        parts = [postings[name] for name in self.rules.names_of(emotion)]
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([values for _, values in parts])

    def scores(self, emotion: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows int [n], scores float64 [n]) of the texts with the emotion; of an alias and its emotion the higher score."""
        rows, scores = self._of(self.index.tags, emotion)
        unique, place = np.unique(rows, return_inverse=True)
        highest = np.zeros(len(unique))
        np.maximum.at(highest, place, scores)
        return unique, highest

    def _scored(self, emotion: str) -> np.ndarray:
        """int [n]: rows of the usable texts scored at least `min_positive_score`."""
        rows, scores = self.scores(emotion)
        return rows[(scores >= self.rules.min_positive_score) & self.usable[rows]]

    def positives(self, emotion: str) -> np.ndarray:
        """int [n]: rows of the texts scored at least `min_positive_score` that don't show their own label."""
        return np.setdiff1d(self._scored(emotion), self._of(self.index.leaks, emotion)[0])

    def labels_shown(self, emotion: str) -> int:
        """How many texts would be positives, but still hold `emotion:number` where the model would see it."""
        return len(np.intersect1d(self._scored(emotion), self._of(self.index.leaks, emotion)[0]))

    def negatives(self, emotion: str) -> np.ndarray:
        """int [n]: rows of the texts without the emotion that mention it at most `max_negative_mentions` times."""
        limit = self.rules.max_negative_score
        allowed = self.usable.copy()
        rows, scores = self.scores(emotion)
        low = np.zeros(len(rows), dtype=bool) if limit is None else (scores <= limit)
        allowed[rows] &= low & (scores < self.rules.min_positive_score)
        mentions = np.zeros(len(allowed))
        spoken = {phrase(name): name for name in self.rules.names_of(emotion)}  # self_doubt and self-doubt are one phrase
        for name in spoken.values():
            named, counts = self.index.mentions[name]
            mentions[named] += counts
        allowed &= mentions <= self.rules.max_negative_mentions
        return np.flatnonzero(allowed)

    def _capped(self, rows: np.ndarray, emotion: str) -> np.ndarray:
        """The `max_examples_per_emotion` rows with the smallest hash(seed, emotion, digest), in order of digest."""
        cap = self.rules.max_examples_per_emotion
        if len(rows) > cap:
            order = _salted(self.hashes[rows], self.rules.seed, emotion)
            smallest = np.argpartition(order, cap - 1)[:cap]
            if np.count_nonzero(order <= order[smallest].max()) > cap:  # equal ones at the border: those that stand first
                smallest = np.argsort(order, kind="stable")[:cap]
            rows = rows[smallest]
        return np.sort(rows)

    def roles(self, emotion: str) -> list[Role]:
        """The emotion's examples: positives, then negatives, each in order of digest."""
        found: list[Role] = []
        for polarity, rows in ((POSITIVE, self.positives(emotion)), (NEGATIVE, self.negatives(emotion))):
            chosen = self._capped(rows, emotion)
            for row, digest in zip(chosen, self.index.hex_digests(chosen), strict=True):
                found.append(Role(int(row), digest, polarity, HELD_OUT if self.held_out[row] else TRAIN))
        return found

    @functools.cached_property
    def scenarios(self) -> dict[int, list[str]]:
        """{row: names} of the texts that belong to scenarios."""
        return _by_row(self.index.scenarios)

    @functools.cached_property
    def groups(self) -> dict[int, list[str]]:
        """{row: where the text is from}"""
        return _by_row(self.index.groups)

    def together(self, emotions: Sequence[str], count: int = 5) -> dict[str, list[list[Any]]]:
        """{emotion: [[other, share of the emotion's positives that are positives of the other]]}, the `count` largest above 0.

        All positives count, also those beyond the cap and those held out.
        """
        member = np.zeros((len(emotions), len(self.usable)), dtype=np.float32)
        for number, emotion in enumerate(emotions):
            member[number, self.positives(emotion)] = 1
        both = member @ member.T
        found: dict[str, list[list[Any]]] = {}
        for number, emotion in enumerate(emotions):
            shares = both[number] / max(both[number, number], 1)
            shares[number] = 0
            order = np.argsort(-shares, kind="stable")[:count]
            found[emotion] = [[emotions[other], round(float(shares[other]), 6)] for other in order if shares[other] > 0]
        return found

    def select(self) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
        """(chosen emotions with the reason, those left out with the reason, positives of each); examples are counted later."""
        rules = self.rules
        tagged = {rules.aliases.get(name, name) for name in self.index.tags.names}
        counts = {emotion: len(self.positives(emotion)) for emotion in tagged}
        ranked = sorted(counts, key=lambda emotion: (-counts[emotion], emotion))
        ranked = [emotion for emotion in ranked if emotion not in rules.exclude]
        chosen: dict[str, str] = {}
        left_out = {emotion: "excluded (emotions.exclude)" for emotion in rules.exclude if emotion in counts}
        for name in self.index.tags.names:
            if name in rules.aliases:
                left_out[name] = f"counts as {rules.aliases[name]} (emotions.aliases)"
        if rules.select != "curated":
            enough = [emotion for emotion in ranked if counts[emotion] >= rules.min_positives]
            for rank, emotion in enumerate(enough[: rules.top], 1):
                chosen[emotion] = f"number {rank} of the most common"
            for emotion in enough[rules.top :]:
                left_out[emotion] = f"not among the {rules.top} most common (emotions.top)"
            for emotion in ranked:
                if counts[emotion] < rules.min_positives:
                    left_out[emotion] = (
                        f"{counts[emotion]} positives, fewer than emotions.min_positives ({rules.min_positives})"
                    )
        else:
            left_out.update(dict.fromkeys(ranked, "not in emotions.curated"))
        if rules.select != "data":
            for emotion in rules.curated:
                if emotion in rules.exclude:
                    left_out[emotion] = "excluded (emotions.exclude)"
                elif emotion in rules.aliases:
                    left_out[emotion] = f"counts as {rules.aliases[emotion]} (emotions.aliases)"
                elif emotion not in counts:
                    left_out[emotion] = f"curated, but no text of {rules.min_content_chars} characters or more carries this tag"
                else:
                    chosen[emotion] = "curated" + (f", {chosen[emotion]}" if emotion in chosen else "")
                    left_out.pop(emotion, None)
        return dict(sorted(chosen.items())), left_out, counts

    def near_duplicates(self) -> dict[str, int]:
        """How many texts have a near duplicate, in how many groups, and how many moved from held-out to training for it."""
        sizes = np.bincount(self.index.twins, minlength=1)
        return {
            "texts": int(sizes[sizes > 1].sum()),
            "groups": int((sizes > 1).sum()),
            "moved_to_train": len(self.moved),
        }


def _by_row(postings: Postings) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name in postings.names:
        for row in postings[name][0].tolist():
            found.setdefault(row, []).append(name)
    return found


@dataclass(frozen=True)
class Plan:
    """What the Snakefile needs to know of a snapshot: a few hundred bytes an emotion.

    emotions: {emotion: {"examples": hash, "training": hash, "scenarios": hash of the training texts' scenarios, "counts": …,
    "together": as Corpus.together}}; selection: {name: {"chosen", "reason", "positives",
    …}} of every emotion in the graph or the configuration; shards: one {"texts": number, "digests": hash} a shard; texts:
    number of texts that go through the model; graph: counts of the snapshot.
    """

    emotions: dict[str, dict[str, Any]]
    selection: dict[str, dict[str, Any]]
    shards: list[dict[str, Any]]
    texts: int
    graph: dict[str, Any]

    @property
    def left_out(self) -> dict[str, str]:
        """{emotion: reason} of those without a vector."""
        return {emotion: facts["reason"] for emotion, facts in self.selection.items() if not facts["chosen"]}


def make_plan(index: Index, rules: Rules, shards: int, name: str) -> Plan:
    """The plan of a snapshot. `name` (the graph's) is for messages; UserError where no emotion has enough examples."""
    corpus = Corpus(index, rules)
    chosen, left_out, positives = corpus.select()
    scenarios, groups = corpus.scenarios, corpus.groups
    emotions: dict[str, dict[str, Any]] = {}
    selection: dict[str, dict[str, Any]] = {}
    forwarded: set[str] = set()
    for emotion, reason in chosen.items():
        roles = corpus.roles(emotion)
        counts = count_examples(roles)
        selection[emotion] = {"chosen": True, "reason": reason, "positives": positives[emotion]}
        selection[emotion] |= {"negatives": len(corpus.negatives(emotion))}
        short = [f"{counts[TRAIN][side]} {side}s" for side in counts[TRAIN] if counts[TRAIN][side] < rules.min_examples]
        if short:
            reason = f"{' and '.join(short)} to train on, fewer than min_examples ({rules.min_examples})"
            selection[emotion] |= {"chosen": False, "reason": reason}
            continue
        forwarded.update(role.digest for role in roles)
        emotions[emotion] = {
            "examples": key(
                [
                    (role.digest, role.polarity, role.split, scenarios.get(role.row, []), groups.get(role.row, []))
                    for role in roles
                ]
            ),
            "training": key(digests_of(roles, TRAIN)),
            "scenarios": key([(role.digest, scenarios.get(role.row, [])) for role in roles if role.split == TRAIN]),
            "counts": counts,
        }
    for emotion, together in corpus.together(list(emotions)).items():
        emotions[emotion]["together"] = together
    for emotion, reason in left_out.items():
        selection[emotion] = {"chosen": False, "reason": reason, "positives": positives.get(emotion, 0)}
    labels_shown = {emotion: corpus.labels_shown(emotion) for emotion in positives}
    for emotion, count in labels_shown.items():
        if count or "negatives" in selection[emotion]:
            selection[emotion]["label_shown"] = count
    if not emotions:
        most = sorted(positives, key=lambda emotion: (-positives[emotion], emotion))[:8]
        found = ", ".join(f"{emotion} {positives[emotion]}" for emotion in most) or "no tags at all"
        unused = sum(labels_shown.values())
        found += f" ({unused} more are not used: their own label stands in the text as name:number)" if unused else ""
        raise UserError(
            f"{name}: no emotion has enough positives. Texts scored at least {rules.min_positive_score:g}: {found}. "
            "Lower emotions.min_positives, min_examples or min_positive_score, or give a larger graph"
        )
    members: list[list[str]] = [[] for _ in range(shards)]
    for digest in sorted(forwarded):
        members[shard_of(digest, shards)].append(digest)
    parts = [{"texts": len(digests), "digests": key(digests)} for digests in members]
    graph = {**index.facts, "unique_texts": len(index.chars), "near_duplicates": corpus.near_duplicates()}
    return Plan(emotions, dict(sorted(selection.items())), parts, len(forwarded), graph)


def warnings_of(plan: Plan, rules: Rules) -> list[str]:
    """What a person should hear of before the run: curated emotions without a vector, skipped nodes, labels left in texts."""
    left_out = plan.left_out
    missing = [emotion for emotion in rules.curated if emotion in left_out and rules.select != "data"]
    lines = [f"emotion {listed([emotion])} gets no vector: {left_out[emotion]}" for emotion in missing]
    if plan.graph["skipped"]:
        _, node, reason = plan.graph["skipped_nodes"][0]
        lines.append(f"{plan.graph['skipped']} nodes were skipped (bad_nodes), the first {shown(node)}: {reason}")
    unmeasured = [
        emotion for emotion, facts in plan.emotions.items() if rules.held_out and not all(facts["counts"][HELD_OUT].values())
    ]
    if unmeasured:
        alike = plan.graph["near_duplicates"]["texts"]
        lines.append(
            f"{len(unmeasured)} emotions have no held-out positives or negatives to be measured on: {listed(unmeasured, 6)}"
            + (f" ({alike} texts have near duplicates, which stay on one side)" if alike else "")
        )
    if plan.graph["unread_labels"]:
        lines.append(
            f"{plan.graph['unread_labels']} texts end in what looks like tags and is none (docs/sources.md#tags), "
            f"the first {shown(plan.graph['unread_label'])}: the model sees these labels"
        )
    shown_labels = {emotion: facts["label_shown"] for emotion, facts in plan.selection.items() if facts.get("label_shown")}
    if shown_labels:
        most = sorted(shown_labels, key=lambda emotion: (-shown_labels[emotion], emotion))
        lines.append(
            f"{sum(shown_labels.values())} positives are not used because their own label stands in the text as name:number "
            f"({', '.join(f'{emotion} {shown_labels[emotion]}' for emotion in most[:8])})"
        )
    return lines
