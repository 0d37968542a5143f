"""Which emotions get a vector, and which texts are their examples (README.md, "What counts as an example").

Everything here is a pure function of the snapshot and the configuration. The Snakefile needs only the Plan: hashes and counts,
small at any size of graph; the examples job works its emotion's list out again from the snapshot.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from amygdala.errors import UserError, listed
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN, Example, count_examples, digests_of, shard_of
from amygdala.graph import Node, emotion_name, folded
from amygdala.keys import key

WORD = re.compile(r"[^\W_]+")


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

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Rules:
        emotions = config["emotions"]
        settings: dict[str, Any] = {**config, **emotions}
        for side in ("curated", "exclude"):
            settings[side] = tuple(sorted({emotion_name(raw) for raw in emotions[side]}))
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})

    def ingredients(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Text:
    """A unique text with the scores of all nodes that hold it (the highest of each emotion)."""

    digest: str
    text: str
    scores: dict[str, float]


def unique_texts(nodes: Iterable[Node], min_content_chars: int) -> list[Text]:
    """Texts of at least `min_content_chars` characters, one a digest, sorted by digest, scores merged by maximum."""
    texts: dict[str, Text] = {}
    for node in nodes:
        if len(node.text) < min_content_chars:
            continue
        digest = node.digest
        scores = dict(texts[digest].scores) if digest in texts else {}
        for emotion, score in node.scores.items():
            scores[emotion] = max(score, scores.get(emotion, 0.0))
        texts[digest] = Text(digest, node.text, scores)
    return [texts[digest] for digest in sorted(texts)]


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014): uint64 [n] to well-mixed uint64 [n]."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _salted(digests: Sequence[str], *salt: Any) -> np.ndarray:
    """A pseudo-random uint64 for each digest, independent between salts."""
    heads = np.array([int(digest[:16], 16) for digest in digests], dtype=np.uint64)
    own = hashlib.sha256("\0".join(str(part) for part in salt).encode()).digest()[:8]
    return _mix(heads ^ np.frombuffer(own, dtype=">u8").astype(np.uint64))


def held_out_mask(digests: Sequence[str], share: float) -> np.ndarray:
    """bool [n]: whether each text is held out, decided by its own digest, for all emotions alike."""
    return _salted(digests, "held out").astype(np.float64) / 2.0**64 < share


def _phrase(emotion: str) -> tuple[str, ...]:
    return tuple(WORD.findall(folded(emotion)))


class Corpus:
    """The unique texts of a snapshot with what all emotions share: words, split, the texts by tag."""

    def __init__(self, nodes: Iterable[Node], rules: Rules) -> None:
        self.rules = rules
        self.texts = unique_texts(nodes, rules.min_content_chars)
        self.digests = [text.digest for text in self.texts]
        self.held_out = held_out_mask(self.digests, rules.held_out)
        self._words = [WORD.findall(folded(text.text)) for text in self.texts]
        self._having: dict[str, list[int]] = {}
        for row, words in enumerate(self._words):
            for word in set(words):
                self._having.setdefault(word, []).append(row)
        self.tagged: dict[str, list[tuple[int, float]]] = {}
        for row, text in enumerate(self.texts):
            for emotion, score in text.scores.items():
                self.tagged.setdefault(emotion, []).append((row, score))

    def positives(self, emotion: str) -> np.ndarray:
        """int [n]: rows of the texts scored at least `min_positive_score`."""
        limit = self.rules.min_positive_score
        return np.array([row for row, score in self.tagged.get(emotion, ()) if score >= limit], dtype=np.int64)

    def mentions(self, emotion: str) -> Counter[int]:
        """How often the emotion's name stands in each text as a whole word (or phrase); texts without it are absent."""
        phrase = _phrase(emotion)
        counts: Counter[int] = Counter()
        for row in self._having.get(phrase[0], ()):
            words = self._words[row]
            count = sum(tuple(words[i : i + len(phrase)]) == phrase for i in range(len(words)))
            if count:
                counts[row] = count
        return counts

    def negatives(self, emotion: str) -> np.ndarray:
        """int [n]: rows of the texts without the emotion that mention it at most `max_negative_mentions` times."""
        limit = self.rules.max_negative_score
        allowed = np.ones(len(self.texts), dtype=bool)
        for row, score in self.tagged.get(emotion, ()):
            allowed[row] = limit is not None and score <= limit and score < self.rules.min_positive_score
        for row, count in self.mentions(emotion).items():
            if count > self.rules.max_negative_mentions:
                allowed[row] = False
        return np.flatnonzero(allowed)

    def _capped(self, rows: np.ndarray, emotion: str) -> np.ndarray:
        """The `max_examples_per_emotion` rows with the smallest hash(seed, emotion, digest), in order of digest."""
        cap = self.rules.max_examples_per_emotion
        if len(rows) > cap:
            order = _salted([self.digests[row] for row in rows], self.rules.seed, emotion)
            rows = rows[np.argsort(order, kind="stable")[:cap]]
        return np.sort(rows)

    def examples(self, emotion: str) -> list[Example]:
        """The emotion's examples: positives, then negatives, each in order of digest."""
        return [
            Example(self.digests[row], polarity, HELD_OUT if self.held_out[row] else TRAIN, self.texts[row].text)
            for polarity, rows in ((POSITIVE, self.positives(emotion)), (NEGATIVE, self.negatives(emotion)))
            for row in self._capped(rows, emotion)
        ]

    def select(self) -> tuple[list[str], dict[str, str]]:
        """Chosen emotions, sorted, and for each one left out the reason (examples are counted later)."""
        rules = self.rules
        counts = {emotion: len(self.positives(emotion)) for emotion in self.tagged}
        ranked = sorted(counts, key=lambda emotion: (-counts[emotion], emotion))
        ranked = [emotion for emotion in ranked if emotion not in rules.exclude]
        chosen: set[str] = set()
        left_out = {emotion: "excluded by the configuration" for emotion in rules.exclude if emotion in counts}
        if rules.select != "curated":
            enough = [emotion for emotion in ranked if counts[emotion] >= rules.min_positives]
            chosen.update(enough[: rules.top])
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
                    left_out[emotion] = "excluded by the configuration"
                elif emotion not in counts:
                    left_out[emotion] = f"curated, but no text of {rules.min_content_chars} characters or more carries this tag"
                else:
                    chosen.add(emotion)
                    left_out.pop(emotion, None)
        return sorted(chosen), left_out


@dataclass(frozen=True)
class Plan:
    """What the Snakefile needs to know of a snapshot: a few hundred bytes an emotion.

    emotions: {emotion: {"examples": hash, "training": hash, "counts": …}}; left_out: {emotion: reason};
    shards: one {"texts": number, "digests": hash} a shard; nodes, texts: numbers.
    """

    emotions: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    shards: list[dict[str, Any]]
    nodes: int
    texts: int


def make_plan(nodes: Sequence[Node], rules: Rules, shards: int, name: str) -> Plan:
    """The plan of a snapshot. `name` (the graph's) is for messages; UserError where no emotion has enough examples."""
    corpus = Corpus(nodes, rules)
    chosen, left_out = corpus.select()
    emotions: dict[str, dict[str, Any]] = {}
    forwarded: set[str] = set()
    for emotion in chosen:
        examples = corpus.examples(emotion)
        counts = count_examples(examples)
        short = [f"{counts[TRAIN][side]} {side}s" for side in counts[TRAIN] if counts[TRAIN][side] < rules.min_examples]
        if short:
            left_out[emotion] = f"{' and '.join(short)} to train on, fewer than min_examples ({rules.min_examples})"
            continue
        forwarded.update(example.digest for example in examples)
        emotions[emotion] = {
            "examples": key([(e.digest, e.polarity, e.split) for e in examples]),
            "training": key(digests_of(examples, TRAIN)),
            "counts": counts,
        }
    if not emotions:
        most = sorted(corpus.tagged, key=lambda emotion: (-len(corpus.positives(emotion)), emotion))[:8]
        found = ", ".join(f"{emotion} {len(corpus.positives(emotion))}" for emotion in most) or "no tags at all"
        raise UserError(
            f"{name}: no emotion has enough positives. Texts scored at least {rules.min_positive_score:g}: {found}. "
            "Lower emotions.min_positives, min_examples or min_positive_score, or give a larger graph"
        )
    members: list[list[str]] = [[] for _ in range(shards)]
    for digest in sorted(forwarded):
        members[shard_of(digest, shards)].append(digest)
    parts = [{"texts": len(digests), "digests": key(digests)} for digests in members]
    return Plan(emotions, dict(sorted(left_out.items())), parts, len(nodes), len(forwarded))


def warnings_of(plan: Plan, rules: Rules) -> list[str]:
    """What a person should hear of before the run: curated emotions that get no vector."""
    missing = [emotion for emotion in rules.curated if emotion in plan.left_out and rules.select != "data"]
    return [f"emotion {listed([emotion])} gets no vector: {plan.left_out[emotion]}" for emotion in missing]
