"""Texts on their way to the model: each once, in batches that keep to the budget, made ahead by a thread."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from amygdala import batching
from amygdala.batching import Batch, Budget, Texts, ahead, batches, pad, shard_texts
from amygdala.errors import UserError
from amygdala.keys import text_digest
from amygdala.tokens import Tokens, pool_weights


def digest_of(number: int) -> str:
    return hashlib.sha256(f"text {number}".encode()).hexdigest()[:32]


def tokens_of(length: int, cut: bool = False) -> Tokens:
    """`length` ids from 5 on, all but the first content."""
    return Tokens(np.arange(5, 5 + length, dtype=np.int32), np.arange(length) > 0, cut)


class Encode:
    """As many tokens as a text has characters, or what `length` says; notes how many texts each call brought."""

    def __init__(self, length: Callable[[str], int] = len) -> None:
        self.length = length
        self.calls: list[int] = []

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        self.calls.append(len(texts))
        return [tokens_of(self.length(text)) for text in texts]


def texts_of(lengths: Sequence[int]) -> Texts:
    return Texts((digest_of(number), "x" * length) for number, length in enumerate(lengths))


def lengths_like(seed: int, count: int = 60) -> list[int]:
    return np.random.default_rng(seed).integers(2, 120, size=count).tolist()


def uneven(text: str) -> int:
    """A length in tokens that the characters only hint at."""
    return max(2, len(text) // (3 + len(text) % 4))


def everything(texts: Texts) -> np.ndarray:
    return np.arange(len(texts))


# texts

ODD = ["plain", "", "naïve 🙂", "lone \ud83d surrogate", "two\nlines\r\n", "\0", "x" * 100_000, "\udcff"]


def test_texts_come_back_sorted_by_digest() -> None:
    texts = Texts([(digest_of(number), text) for number, text in enumerate(ODD)] * 2)
    order = sorted(range(len(ODD)), key=digest_of)
    assert len(texts) == len(ODD)
    assert [texts.hex(position) for position in range(len(ODD))] == [digest_of(number) for number in order]
    for _ in range(2):
        assert [texts.text(position) for position in range(len(ODD))] == [ODD[number] for number in order]
    assert texts.text(3) == ODD[order[3]]
    assert texts.chars.tolist() == [len(ODD[number]) for number in order]
    assert (texts.digests.dtype, texts.chars.dtype) == (np.dtype("S16"), np.int64)


def test_of_a_digest_that_comes_twice_the_first_text_is_kept() -> None:
    texts = Texts([(digest_of(0), "first"), (digest_of(1), "other"), (digest_of(0), "second")])
    assert sorted(map(texts.text, range(len(texts)))) == ["first", "other"]


def test_digests_that_end_or_begin_with_zero_bytes() -> None:
    digests = ["00" * 16, "ab" + "00" * 15, "abab" + "00" * 14, "00" * 15 + "ab", "ff" * 15 + "00"]
    texts = Texts((digest, digest) for digest in digests)
    assert [texts.hex(position) for position in range(5)] == [texts.text(position) for position in range(5)] == sorted(digests)


def test_no_texts() -> None:
    texts = Texts([])
    assert (len(texts), texts.digests.dtype, texts.chars.shape) == (0, np.dtype("S16"), (0,))
    assert list(batches(texts, everything(texts), Encode(), ["mean"], Budget(10))) == []


def examples_file(path: Path, texts: Sequence[str]) -> str:
    examples = [{"digest": text_digest(text), "polarity": "positive", "split": "train", "text": text} for text in texts]
    path.write_text(json.dumps({"emotion": path.stem, "examples": examples}))
    return str(path)


def content_of(texts: Texts) -> dict[str, str]:
    return {texts.hex(position): texts.text(position) for position in range(len(texts))}


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 40])
def test_shards_partition_the_texts(tmp_path: Path, shards: int) -> None:
    every = [f"Text {number} 🙂" for number in range(24)]
    files = [examples_file(tmp_path / "joy.json", every[:16]), examples_file(tmp_path / "awe.json", every[8:])]
    parts = [content_of(shard_texts(files, shard, shards)[0]) for shard in range(shards)]
    assert sum(map(len, parts)) == len(every)
    assert {digest: text for part in parts for digest, text in part.items()} == {text_digest(text): text for text in every}
    assert [content_of(shard_texts(files[::-1], shard, shards)[0]) for shard in range(shards)] == parts
    assert all(int(digest[-8:], 16) % shards == shard for shard, part in enumerate(parts) for digest in part)


def test_the_sample_is_of_all_shards_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WINDOW", 40)
    files = [examples_file(tmp_path / "joy.json", [f"Text {number}" for number in range(24)] * 2)]
    samples = [shard_texts(files, shard, 3)[1] for shard in range(3)]
    assert samples == [[f"Text {number}" for number in range(10)]] * 3
    monkeypatch.setattr(batching, "WINDOW", 4000)
    assert shard_texts(files, 0, 3)[1] == [f"Text {number}" for number in range(24)]


# batches


def assert_padded(batch: Batch, texts: Texts, length: Callable[[str], int], poolings: Sequence[str]) -> None:
    lengths = [length(texts.text(int(position))) for position in batch.positions]
    assert batch.tokens.tolist() == lengths == sorted(lengths, reverse=True)
    assert batch.ids.shape == (len(batch), lengths[0])
    assert batch.weights.shape == (len(batch), len(poolings), lengths[0])
    for row, count in enumerate(lengths):
        assert batch.ids[row].tolist() == [*range(5, 5 + count), *[0] * (lengths[0] - count)]


@pytest.mark.parametrize("window", [1, 7, 16, 1024])
@pytest.mark.parametrize("budget", [Budget(1), Budget(64), Budget(300), Budget(10_000), Budget(300, 3), Budget(10_000, 1)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length", [len, uneven])
def test_every_text_is_in_one_batch_that_keeps_to_the_budget(
    window: int, budget: Budget, seed: int, length: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WINDOW", window)
    texts = texts_of(lengths_like(seed))
    encode = Encode(length)
    made = list(batches(texts, everything(texts), encode, ["mean", "last"], budget))
    assert sorted(int(position) for batch in made for position in batch.positions) == list(range(len(texts)))
    for batch in made:
        assert batch.ids.size <= budget.tokens or len(batch) == 1
        assert len(batch) <= (budget.texts or len(texts))
        assert_padded(batch, texts, length, ["mean", "last"])
    assert sum(encode.calls) == len(texts) and max(encode.calls) <= window


@pytest.mark.parametrize("window", [1, 7, 16, 1024])
@pytest.mark.parametrize("budget", [Budget(1), Budget(150), Budget(700), Budget(10_000), Budget(700, 4)])
def test_windows_make_the_same_batches_as_all_texts_at_once(
    window: int, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled from the longest on: none is closed while another text would fit and is nearly as long, or little is in it."""
    monkeypatch.setattr(batching, "WINDOW", window)
    lengths = lengths_like(4)
    texts = texts_of(lengths)
    expected: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        full = (len(expected[-1]) + 1) * expected[-1][0] if expected else budget.tokens + 1
        alike = bool(expected) and (length >= 0.9 * expected[-1][0] or full <= budget.tokens / 8)
        if full <= budget.tokens and alike and len(expected[-1]) != budget.texts:
            expected[-1].append(length)
        else:
            expected.append([length])
    made = batches(texts, everything(texts), Encode(), ["mean"], budget)
    assert [batch.tokens.tolist() for batch in made] == expected


def test_texts_of_one_length_go_by_their_order() -> None:
    texts = texts_of([10] * 7)
    made = batches(texts, everything(texts), Encode(), ["mean"], Budget(30))
    assert [batch.positions.tolist() for batch in made] == [[0, 1, 2], [3, 4, 5], [6]]


def test_batches_of_some_texts_alone() -> None:
    texts = texts_of(lengths_like(5))
    chosen = np.array([3, 50, 17, 4])
    made = list(batches(texts, chosen, Encode(), ["mean"], Budget(100)))
    assert sorted(int(position) for batch in made for position in batch.positions) == [3, 4, 17, 50]


@pytest.mark.parametrize("window", [64, 1024])
def test_little_padding(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that follow the characters loosely: under a tenth of what is forwarded is padding, in arrival order a third."""
    monkeypatch.setattr(batching, "WINDOW", window)
    lengths = np.random.default_rng(0).lognormal(5, 0.6, size=1500).astype(int) + 10
    texts = texts_of(lengths.tolist())
    made = list(
        batches(texts, everything(texts), Encode(lambda text: max(2, len(text) // (4 + len(text) % 2))), ["mean"], Budget(2048))
    )
    padded, real = sum(batch.ids.size for batch in made), sum(int(batch.tokens.sum()) for batch in made)
    assert real / padded > 0.9


def test_texts_are_tokenized_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WINDOW", 10)
    texts, encode = texts_of([20] * 60), Encode()
    made = batches(texts, everything(texts), encode, ["mean"], Budget(60))
    calls = []
    for _ in made:
        calls.append(len(encode.calls))
    assert calls[:4] == [1, 1, 1, 2] and calls[-1] == len(encode.calls) == 6


def test_a_halved_budget_holds_for_the_batches_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WINDOW", 16)
    texts, budget = texts_of(lengths_like(6, 90)), Budget(800)
    seen: list[int] = []
    sizes: list[int] = []
    for number, batch in enumerate(batches(texts, everything(texts), Encode(), ["mean"], budget)):
        seen.extend(batch.positions.tolist())
        sizes.append(batch.ids.size)
        if number == 1:
            budget.halve(batch.ids.size)
            assert budget.tokens <= 400
    assert sorted(seen) == list(range(90))
    assert min(sizes[:2]) > 400 and max(sizes[2:]) <= 400


@pytest.mark.parametrize(("tokens", "failed", "left"), [(100, 100, 50), (100, 90, 45), (100, 3, 1), (1, 1, 1), (50, 100, 50)])
def test_halving(tokens: int, failed: int, left: int) -> None:
    """A batch that was made before the last halving, and so is as large as what failed then, halves no further."""
    budget = Budget(tokens, 7)
    budget.halve(failed)
    assert (budget.tokens, budget.texts) == (left, 7)


@pytest.mark.parametrize(
    ("budget", "count", "longest", "fits"),
    [
        (Budget(100), 4, 25, True),
        (Budget(100), 4, 26, False),
        (Budget(100, 3), 3, 1, True),
        (Budget(100, 3), 4, 1, False),
    ],
)
def test_what_fits(budget: Budget, count: int, longest: int, fits: bool) -> None:
    assert budget.fits(count, longest, longest) is fits


@pytest.mark.parametrize(
    ("count", "longest", "shortest", "fits"),
    [(6, 20, 18, True), (6, 20, 17, False), (5, 20, 1, True), (4, 25, 1, True), (4, 26, 23, False), (4, 26, 24, True)],
)
def test_texts_of_a_batch_are_alike_in_length_once_it_is_an_eighth_full(
    count: int, longest: int, shortest: int, fits: bool
) -> None:
    assert Budget(800).fits(count, longest, shortest) is fits


def test_text_without_content_tokens() -> None:
    texts = Texts([(digest_of(0), "x" * 40), (digest_of(1), "a\n\x1b[31m")])

    def encode(read: Sequence[str]) -> list[Tokens]:
        return [tokens_of(len(text) if text[0] == "x" else 0) for text in read]

    with pytest.raises(UserError) as caught:
        list(batches(texts, everything(texts), encode, ["mean"], Budget(10)))
    assert str(caught.value) == (
        f"text {digest_of(1)} ('a\\n\\x1b[31m') has no content tokens beside the first; "
        "raise min_content_chars, or drop the node"
    )


def test_padding_and_weights_of_a_batch() -> None:
    poolings = ["from_token:3", "mean", "last"]
    encoded = [tokens_of(6), tokens_of(3, cut=True), tokens_of(2)]
    batch = pad([9, 4, 7], encoded, poolings)
    assert batch.positions.tolist() == [9, 4, 7]
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 10], [5, 6, 7, 0, 0, 0], [5, 6, 0, 0, 0, 0]]
    assert (batch.tokens.tolist(), batch.cut.tolist()) == ([6, 3, 2], [False, True, False])
    for row, text in enumerate(encoded):
        for number, pooling in enumerate(poolings):
            weights = pool_weights(text.content, pooling).tolist()
            assert batch.weights[row, number].tolist() == weights + [0.0] * (6 - len(text))
    part = batch[1:]
    assert part.positions.tolist() == [4, 7]
    assert part.ids.tolist() == [[5, 6, 7], [5, 6, 0]]
    assert part.weights.tolist() == batch.weights[1:, :, :3].tolist()
    assert (part.tokens.tolist(), part.cut.tolist()) == ([3, 2], [True, False])


# made ahead


class Made:
    """Ten batches, one a number; remembers how many were made, and in which threads."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.count = 0
        self.threads: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:
        for number in range(10):
            if number == self.fails_at:
                raise UserError("no more")
            self.count += 1
            self.threads.add(threading.current_thread().name)
            yield pad([number], [tokens_of(3)], ["mean"])


def settle(made: Made, count: int) -> None:
    """Wait until `count` batches were made."""
    deadline = time.monotonic() + 20
    while made.count < count and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 3, 30])
def test_ahead_gives_the_same_batches(depth: int) -> None:
    made = Made()
    assert [int(batch.positions[0]) for batch in ahead(iter(made), depth)] == list(range(10))
    assert all(name.startswith("tokenizer") for name in made.threads)


def test_ahead_of_nothing() -> None:
    assert list(ahead(iter([]))) == []


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_more_than_depth_batches_are_made_ahead(depth: int) -> None:
    made = Made()
    for number, _ in enumerate(ahead(iter(made), depth), 1):
        settle(made, min(number + depth, 10))
        time.sleep(0.01)
        assert made.count == min(number + depth, 10)


@pytest.mark.parametrize("fails_at", [0, 1, 5, 9])
def test_an_error_comes_through_after_the_batches_before_it(fails_at: int) -> None:
    seen = []
    with pytest.raises(UserError, match="no more"):
        for batch in ahead(iter(Made(fails_at))):
            seen.append(int(batch.positions[0]))
    assert seen == list(range(fails_at))


def tokenizer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tokenizer")]


def test_a_consumer_that_stops_early_ends_the_thread() -> None:
    made = Made()
    coming = ahead(iter(made), 2)
    next(coming)
    assert tokenizer_threads()
    coming.close()
    assert not tokenizer_threads()
    assert made.count <= 3


def test_batches_that_nobody_waits_for_are_not_made() -> None:
    gate = threading.Event()
    made = Made()

    def gated() -> Iterator[Batch]:
        for number, batch in enumerate(made):
            yield batch
            if not number:
                gate.wait(20)

    coming = ahead(gated(), 9)
    next(coming)
    threading.Timer(0.3, gate.set).start()
    coming.close()
    assert made.count <= 2


def test_a_consumer_that_fails_ends_the_thread() -> None:
    with pytest.raises(RuntimeError, match="the model failed"):
        for _ in ahead(iter(Made())):
            raise RuntimeError("the model failed")
    assert not tokenizer_threads()
