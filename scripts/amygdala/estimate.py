"""What captures will have to do, and how long that takes, before any of them starts."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amygdala.changes import Forward
from amygdala.corpus import Index
from amygdala.exampleset import shard_of
from amygdala.files import recall
from amygdala.plan import Corpus
from amygdala.segments import as_keys, held_rows

if TYPE_CHECKING:
    from amygdala.build import Build

RATE = "rate.json"  # in each space: what its last capture measured


def forward_by_shard(texts: Mapping[str, int], layers: Sequence[int], spaces: Sequence[Path], shards: int) -> list[Forward]:
    """For each shard its texts, of {digest: characters}, and those of which the store lacks a row at one of the layers in one
    of the spaces.
    """
    digests, chars = as_keys(list(texts)), np.array(list(texts.values()), dtype=np.int64)
    owners = np.array([shard_of(digest, shards) for digest in texts], dtype=np.int64)
    lacks = np.zeros(len(texts), dtype=bool)
    for space in spaces:
        for layer in layers:
            lacks |= held_rows(space, layer).find(digests) < 0
    rate = recall(spaces[0] / RATE)
    parts = [owners == shard for shard in range(shards)]
    return [Forward(int((lacks & part).sum()), int(part.sum()), int(chars[lacks & part].sum()), rate) for part in parts]


def example_texts(index: Index, corpus: Corpus, emotions: Iterable[str], neutral: Mapping[str, int]) -> dict[str, int]:
    """{digest: characters} of the texts of all examples and the neutral ones."""
    texts = {role.digest: int(index.chars[role.row]) for emotion in emotions for role in corpus.roles(emotion)}
    return texts | dict(neutral)


def to_forward(
    index: Index,
    corpus: Corpus,
    emotions: Iterable[str],
    layers: Sequence[int],
    spaces: Sequence[Path],
    neutral: Mapping[str, int],
) -> Forward:
    """forward_by_shard of all examples and the neutral texts, as one shard."""
    return forward_by_shard(example_texts(index, corpus, emotions, neutral), layers, spaces, 1)[0]


class Estimate:
    """What the captures of a build will do. It is worked out when it is first asked for, which takes a look at all examples."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self._known: dict[tuple[int, ...], list[Forward]] = {}

    @functools.cached_property
    def texts(self) -> dict[str, int]:
        """{digest: characters} of the texts behind the vectors."""
        build = self.build
        index = build.current.index()
        neutral = {text.digest: len(text.text) for text in build.neutral}
        return example_texts(index, Corpus(index, build.rules), build.emotions, neutral)

    def shards(self, layers: Sequence[int]) -> list[Forward]:
        """What each shard has to forward for the rows of the build's examples at `layers`."""
        known = tuple(layers)
        if known not in self._known:
            spaces = [Path(space) for space in self.build.spaces]
            self._known[known] = forward_by_shard(self.texts, layers, spaces, self.build.config["shards"])
        return self._known[known]

    def seconds(self, capture_key: str) -> float | None:
        """How long the capture of an index with this key takes by the last measured rate; None where there is none."""
        capture = self.build.captures[capture_key]
        if not capture.check_last:  # texts from elsewhere
            return None
        return self.shards(capture.layers)[capture.shard].seconds
