"""An emotion's examples as the stages pass them on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from amygdala.files import read_json

POSITIVE, NEGATIVE = "positive", "negative"
TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Example:
    """A text's role for one emotion: polarity positive or negative, split train or held_out, the paired scenarios it is of, and
    where it is from.
    """

    digest: str
    polarity: str
    split: str
    text: str
    scenarios: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


class Membership(Protocol):
    """What counting asks of a text's role: an Example, or a plan's Role, which has no text yet."""

    @property
    def digest(self) -> str: ...
    @property
    def polarity(self) -> str: ...
    @property
    def split(self) -> str: ...


def read_examples(path: str | Path) -> list[Example]:
    """The examples in an examples file."""
    return [Example(**example) for example in read_json(path)["examples"]]


def digests_of(examples: Iterable[Membership], split: str) -> dict[str, list[str]]:
    """{polarity: sorted digests} of one split. Vectors and heads see `train` alone."""
    sides: dict[str, list[str]] = {POSITIVE: [], NEGATIVE: []}
    for example in examples:
        if example.split == split:
            sides[example.polarity].append(example.digest)
    return {polarity: sorted(digests) for polarity, digests in sides.items()}


def count_examples(examples: Iterable[Membership]) -> dict[str, dict[str, int]]:
    """{split: {polarity: number}}"""
    counts = {split: {POSITIVE: 0, NEGATIVE: 0} for split in (TRAIN, HELD_OUT)}
    for example in examples:
        counts[example.split][example.polarity] += 1
    return counts


def shard_of(digest: str, shards: int) -> int:
    """The shard, 0 to shards - 1, that captures a text: its digest mod `shards`."""
    return int(digest[-8:], 16) % shards
