"""Nodes for tests of the graph stage, and its rules (README.md, "What counts as an example") once more, one text at a time."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from amygdala.corpus import Index, make_index
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN
from amygdala.graph import Node, snapshot_line
from amygdala.plan import Corpus, Plan, Rules, make_plan
from amygdala.sources import Graph
from tiny import REPOSITORY, SAMPLE

Member = tuple[str, str, str]  # digest, polarity, split
DEFAULTS = Rules.of(yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8")))
# small texts and counts are enough for made nodes
SMALL = dataclasses.replace(DEFAULTS, min_content_chars=1, min_positives=1, min_examples=1, held_out=0.25)
MASK = 2**64 - 1
POSTINGS = ("tags", "mentions", "leaks", "scenarios", "groups")
ARRAYS = ("digests", "chars", "offsets", "sizes", "twins")


def rules(**changes: Any) -> Rules:
    return dataclasses.replace(SMALL, **changes)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def node(text: str, key: str = "", scenario: str | None = None, origin: str = "file", /, **scores: float) -> Node:
    return Node(origin, key or text, text, scores, None, scenario)


def sample_nodes() -> list[Node]:
    settings = {"graph": str(SAMPLE), "snapshot": "none", "bad_nodes": "refuse"}
    return Graph(settings, [Path()], Path(os.devnull) / "store").nodes()[0]  # a store that takes no memo


def written(path: Path, nodes: Iterable[Node]) -> Path:
    """The snapshot of the nodes."""
    path.write_bytes(b"".join(map(snapshot_line, nodes)))
    return path


def looked_for(rules: Rules) -> set[str]:
    return {*rules.aliases, *rules.aliases.values()}


def corpus_of(nodes: Iterable[Node], rules: Rules) -> Corpus:
    return Corpus(make_index(nodes, (), looked_for(rules)), rules)


def plan_of(nodes: Iterable[Node], rules: Rules, shards: int = 1, name: str = "g") -> Plan:
    return make_plan(make_index(nodes, (), looked_for(rules)), rules, shards, name)


def members(corpus: Corpus, emotion: str) -> list[Member]:
    return [(role.digest, role.polarity, role.split) for role in corpus.roles(emotion)]


def sides(corpus: Corpus, nodes: Iterable[Node], emotion: str) -> dict[str, str]:
    """{text: polarity} of an emotion's examples."""
    texts = {digest_of(each.text): each.text for each in nodes}
    return {texts[role.digest]: role.polarity for role in corpus.roles(emotion)}


def canonical_key(*ingredients: Any) -> str:
    text = json.dumps(ingredients, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def same(one: Index, other: Index) -> bool:
    """Equal in every value and type."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in ARRAYS]
    for name in POSTINGS:
        a, b = getattr(one, name), getattr(other, name)
        if list(a.names.items()) != list(b.names.items()):
            return False
        pairs += [(getattr(a, part), getattr(b, part)) for part in ("bounds", "rows", "values")]
    return one.facts == other.facts and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


# Choices by hash


def splitmix64(value: int) -> int:
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def salted(digest: str, salt: str) -> int:
    return splitmix64(int(digest, 16) >> 64 ^ int(hashlib.sha256(salt.encode()).hexdigest(), 16) >> 192)


def own_side(digest: str, share: float) -> str:
    """Where a text without near duplicates goes."""
    return HELD_OUT if salted(digest, "held out") < share * 2**64 else TRAIN


# Words, mentions, near duplicates


def words_of(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return ["".join(run) for word, run in itertools.groupby(folded, str.isalnum) if word]


def mentioned(text: str, name: str) -> int:
    words, wanted = words_of(text), words_of(name)
    return sum(words[place : place + len(wanted)] == wanted for place in range(len(words)))


def shows(text: str, names: Iterable[str]) -> bool:
    """Whether a token of the text is one of the names, a colon and a number."""
    tokens = unicodedata.normalize("NFKC", text).casefold().split()
    return any(re.fullmatch(rf"{re.escape(name)}:\d+", token) for token in tokens for name in names)


def shingles(text: str) -> set[tuple[str, ...]]:
    """The text's runs of three words; of a shorter one the whole."""
    words = words_of(text)
    return {tuple(words[place : place + 3]) for place in range(max(len(words) - 2, 1))} if words else set()


def jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other)


@functools.cache
def near_groups(texts: tuple[str, ...]) -> list[set[str]]:
    """Groups of near duplicates by digest. Texts must be very like each other (Jaccard >= 0.9) or not at all (<= 0.4)."""
    of_text = {text: shingles(text) for text in texts}
    holders: dict[Any, list[str]] = {}
    for text, parts in of_text.items():
        for part in parts:
            holders.setdefault(part, []).append(text)
    group = {text: {text} for text in of_text}
    for pair in {pair for those in holders.values() for pair in itertools.combinations(those, 2)}:
        likeness = jaccard(*(of_text[text] for text in pair))
        assert likeness <= 0.4 or likeness >= 0.9, "too near the threshold for a test"
        if likeness >= 0.9 and group[pair[0]] is not group[pair[1]]:
            joined = group[pair[0]] | group[pair[1]]
            group.update(dict.fromkeys(joined, joined))
    return [set(map(digest_of, those)) for those in {id(those): those for those in group.values()}.values()]


def split_of(texts: Iterable[str], share: float) -> dict[str, str]:
    """{digest: split}: a group is held out where all of it would be."""
    found = {}
    for group in near_groups(tuple(texts)):
        out = all(own_side(digest, share) == HELD_OUT for digest in group)
        found.update(dict.fromkeys(group, HELD_OUT if out else TRAIN))
    return found


def brute_force(nodes: Iterable[Node], rules: Rules, emotion: str) -> list[Member]:
    """The examples of an emotion: positives, then negatives, each in order of digest."""
    names = [emotion, *(name for name, other in rules.aliases.items() if other == emotion)]
    scores: dict[str, list[float]] = {}
    for each in nodes:
        if each.text:
            scores.setdefault(each.text, []).extend(each.scores[name] for name in names if name in each.scores)
    split = split_of(scores, rules.held_out)
    found: dict[str, list[str]] = {POSITIVE: [], NEGATIVE: []}
    for text, given in scores.items():
        if len(text) < rules.min_content_chars:
            continue
        if given and max(given) >= rules.min_positive_score:
            if not shows(text, names):
                found[POSITIVE].append(digest_of(text))
        elif given and (rules.max_negative_score is None or max(given) > rules.max_negative_score):
            continue
        elif sum(mentioned(text, name) for name in names) <= rules.max_negative_mentions:
            found[NEGATIVE].append(digest_of(text))
    chosen: list[Member] = []
    for polarity, digests in found.items():
        first = sorted(digests, key=lambda digest: salted(digest, f"{rules.seed}\0{emotion}"))[: rules.max_examples_per_emotion]
        chosen += [(digest, polarity, split[digest]) for digest in sorted(first)]
    return chosen
