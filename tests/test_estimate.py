"""What captures have to forward, by shard, against each text counted by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from amygdala.changes import Forward
from amygdala.estimate import Estimate, forward_by_shard, to_forward
from amygdala.exampleset import shard_of
from amygdala.segments import write_segment
from segmented import LAYOUT, Store, digest_of, rows_of

RATE = {"chars_per_token": 4.0, "tokens_per_s": 100.0, "load_s": 5.0, "device": "cuda"}


def by_hand(
    texts: dict[str, int], held: dict[tuple[Path, int], set[str]], layers: list[int], spaces: list[Path], shards: int
) -> list[tuple[int, int, int]]:
    """(texts to forward, texts, characters to forward) of each shard."""
    found = []
    for shard in range(shards):
        own = [digest for digest in texts if shard_of(digest, shards) == shard]
        lacking = [
            one for one in own if any(one not in held.get((space, layer), set()) for space in spaces for layer in layers)
        ]
        found.append((len(lacking), len(own), sum(texts[one] for one in lacking)))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shards", [1, 2, 7, 64])
def test_against_each_text_by_hand(tmp_path: Path, seed: int, shards: int) -> None:
    rng = random.Random(seed)
    layers, spaces = [1, 4], [tmp_path / "activations" / name for name in ("0123456789abcdef", "fedcba9876543210")]
    held: dict[tuple[Path, int], set[str]] = {}
    for space in spaces[: rng.choice([1, 2])]:
        for layer in layers:
            numbers = rng.sample(range(40), rng.randint(1, 39))
            write_segment(space, layer, rows_of(numbers, layer), LAYOUT)
            held[space, layer] = {digest_of(number) for number in numbers}
    texts = {digest_of(number): rng.randint(1, 500) for number in rng.sample(range(40), 30)}
    for some in ([1], [4], layers):
        found = forward_by_shard(texts, some, spaces, shards)
        counted = [(one.texts, one.unique, one.chars) for one in found]
        assert counted == by_hand(texts, held, some, spaces, shards)
        (whole,) = forward_by_shard(texts, some, spaces, 1)
        assert tuple(np.sum(counted, axis=0)) == (whole.texts, whole.unique, whole.chars)
        assert all(type(value) is int for one in found for value in (one.texts, one.unique, one.chars))  # goes into JSON


def test_without_texts(tmp_path: Path) -> None:
    assert forward_by_shard({}, [1], [tmp_path], 2) == [Forward(0, 0, 0, None)] * 2


def test_the_rate_is_that_of_the_first_space(tmp_path: Path) -> None:
    for name, rate in (("one", RATE), ("two", {**RATE, "load_s": 99.0})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rate.json").write_text(json.dumps(rate))
    texts = {digest_of(0): 400, digest_of(1): 800}
    (found,) = forward_by_shard(texts, [1], [tmp_path / "one", tmp_path / "two"], 1)
    assert (found.tokens, found.seconds) == (300, 8.0)


class StubBuild:
    """A build of these texts, as far as an estimate looks at it."""

    def __init__(self, store: Store, texts: dict[str, int], shards: int) -> None:
        self.texts_of, self.looked = texts, 0
        self.spaces = [str(store.space)]
        self.config = {"shards": shards}
        self.emotions = ["joy"]
        self.neutral = [SimpleNamespace(digest=digest_of(50), text="x" * 70)]
        self.rules = None
        self.current = self
        parts = {f"key {shard}": shard for shard in range(shards)}
        self.captures: dict[str, Any] = {
            key: SimpleNamespace(shard=shard, layers=(1, 4), check_last=True) for key, shard in parts.items()
        }
        self.captures["swept"] = SimpleNamespace(shard=0, layers=(1, 2), check_last=True)
        self.captures["unseen"] = SimpleNamespace(shard=0, layers=(1, 4), check_last=False)

    def index(self) -> Any:
        self.looked += 1
        return SimpleNamespace(chars=list(self.texts_of.values()))

    def corpus(self, index: Any, rules: Any) -> Any:
        return SimpleNamespace(
            roles=lambda emotion: [SimpleNamespace(digest=digest, row=row) for row, digest in enumerate(self.texts_of)]
        )


def test_seconds_of_each_capture(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts 0 to 8 are stored at layers 1 and 4, 9 to 11 are not, nor is the neutral one."""
    texts = {digest_of(number): 100 * (number + 1) for number in range(12)}
    build = StubBuild(store, texts, 3)
    monkeypatch.setattr("amygdala.estimate.Corpus", build.corpus)
    estimate = Estimate(build)  # type: ignore[arg-type]
    assert build.looked == 0
    idle = [forward.texts == 0 for forward in estimate.shards((1, 4))]
    assert [estimate.seconds(f"key {shard}") for shard in range(3)] == [0.0 if nothing else None for nothing in idle]
    (store.space / "rate.json").write_text(json.dumps(RATE))

    estimate = Estimate(build)  # type: ignore[arg-type]
    build.looked = 0
    chars = [0, 0, 0]
    for number, size in ((9, 1000), (10, 1100), (11, 1200), (50, 70)):
        chars[shard_of(digest_of(number), 3)] += size
    expected = [5 + round(part / 4) / 100 if part else 0.0 for part in chars]
    assert [estimate.seconds(f"key {shard}") for shard in range(3)] == pytest.approx(expected)
    assert build.looked == 1
    # Layer 2 is not stored at all.
    own = sum(size for digest, size in texts.items() if shard_of(digest, 3) == 0) + (
        70 if not shard_of(digest_of(50), 3) else 0
    )
    assert estimate.seconds("swept") == pytest.approx(5 + round(own / 4) / 100)
    assert estimate.seconds("unseen") is None
    assert build.looked == 1


def test_all_shards_as_one(store: Store) -> None:
    texts = {digest_of(number): 10 for number in (0, 1, 9)}
    build = StubBuild(store, texts, 1)
    found = to_forward(build.index(), build.corpus(None, None), ["joy"], [1], [store.space], {digest_of(50): 7})
    assert (found.texts, found.unique, found.chars) == (2, 4, 17)
