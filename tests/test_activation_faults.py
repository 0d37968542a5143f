"""Captures that go wrong on the way: what was complete is kept, what is left is done by the next run."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import activations
from amygdala import batching, files
from amygdala.batching import Batch
from amygdala.errors import UserError
from amygdala.keys import text_digest
from amygdala.residual import Capture, Captured
from amygdala.segments import HEADS, RESIDUAL, layer_folder
from captures import DIGESTS, TEXTS, Run, Watch, assert_rows, ids_of, some

Call = Callable[[Capture, Batch], Captured]
REAL: Call = Capture.__call__


def longest_first(tokenizer: Any, texts: dict[str, str] = TEXTS) -> list[str]:
    """Digests in the order in which a batch size of 1 forwards them."""
    return sorted(texts, key=lambda digest: (-len(tokenizer(texts[digest])["input_ids"]), digest))


# flushes


@pytest.mark.parametrize("writes", [2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_killed_run_goes_on_where_it_was(
    run: Run, watch: Watch, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, writes: int, error: type[BaseException]
) -> None:
    """Killed after `writes` segments: 2 are one flush of two layers, 3 leave the second flush without its layer 2."""
    real = activations.write_segment
    left: Iterator[int] = iter(range(writes))

    def write(*arguments: Any) -> Path:
        if next(left, None) is None:
            raise error
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(activations, "write_segment", write)
        run(TEXTS, flush_rows=4)
    assert not run.index().exists()
    assert not list(run.space().rglob("*.tmp"))
    kept = {layer: run.segments(layer) for layer in (1, 2)}
    assert [len(kept[1]), len(kept[2])] == [(writes + 1) // 2, writes // 2]
    there = set(run.stored(1)) & set(run.stored(2))
    assert 0 < len(there) < len(TEXTS)
    watch.clear()
    stats = run(TEXTS, flush_rows=4)
    rest = {digest: text for digest, text in TEXTS.items() if digest not in there}
    assert sorted(watch.forwarded) == ids_of(tokenizer, rest)
    assert stats["forwarded_texts"] == len(rest)
    assert all(kept[layer].items() < run.segments(layer).items() for layer in (1, 2))
    assert sorted(run.stored(1)) == sorted(run.stored(2)) == DIGESTS
    assert_rows(run, TEXTS, (1, 2))


def test_a_write_that_fails_once_ends_the_run_and_loses_its_rows_alone(
    run: Run, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the first flush comes up at the second, whose rows are complete."""
    real = activations.write_segment
    failing = iter([UserError("cannot write for now")])

    def write(*arguments: Any) -> Path:
        for error in failing:
            raise error
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot write for now"):
        patch.setattr(activations, "write_segment", write)
        run(TEXTS, flush_rows=4, batch_size=1)
    assert not run.index().exists()
    assert set(run.stored(1)) == set(run.stored(2)) == set(longest_first(tokenizer)[4:8])


def test_many_bytes_are_flushed_before_many_rows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "FLUSH_BYTES", 4 * (48 + 64) * 3)  # three rows of one layer
    run(some(slice(0, 7)), layers=[1], batch_size=1)
    assert len(run.segments(1)) == 3


def test_rows_are_flushed_when_the_last_flush_is_long_ago(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still but for 50 s with each batch."""
    now = [1000.0]
    monkeypatch.setattr(activations, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(activations, "FLUSH_S", 100.0)

    def call(capture: Capture, batch: Batch) -> Captured:
        now[0] += 50
        return REAL(capture, batch)

    monkeypatch.setattr(Capture, "__call__", call)
    sizes: list[int] = []
    real = activations.write_segment

    def write(space: Path, layer: int, rows: Any, layout: Any) -> Path:
        sizes.append(len(rows.digests))
        return real(space, layer, rows, layout)

    monkeypatch.setattr(activations, "write_segment", write)
    run(some(slice(0, 7)), layers=[1], batch_size=1)
    assert sum(sizes) == 7 and max(sizes) == 2
    assert sorted(run.stored(1)) == DIGESTS[:7]


@pytest.mark.parametrize("text", ["a", "", "<s>", "a</s></s>"])
def test_text_without_content_tokens(run: Run, text: str) -> None:
    digest = text_digest(text)
    with pytest.raises(UserError, match=f"text {digest} .*has no content tokens.*min_content_chars") as caught:
        run({**some(0, 1), digest: text})
    assert repr(text) in str(caught.value)
    assert not run.segments(1)
    assert not run.index().exists()


def test_a_template_that_leaves_no_room_for_the_text(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """The message names max_tokens: no longer text would help."""
    folder = shutil.copytree(tiny_model, tmp_path / "chatty")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}once upon a time there was {{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match="no content tokens within max_tokens; raise it"):
        run(some(0), source=str(folder), template={"role": "user"}, max_tokens=3)
    run(some(0), source=str(folder), template={"role": "user"}, max_tokens=60)


def test_a_single_text_may_end_as_it_likes(run: Run) -> None:
    """It is in the sample too, and is not counted twice."""
    run(some(0), poolings=("last",), sample=list(some(0).values()))


def test_an_error_midway_keeps_the_rows_that_are_complete(
    run: Run, watch: Watch, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text without content is the shortest: all before it went through, the last of them just now."""
    monkeypatch.setattr(batching, "WINDOW", 4)
    texts = {**TEXTS, text_digest("a"): "a"}
    with pytest.raises(UserError, match="has no content tokens"):
        run(texts, batch_size=1)
    assert len(watch.forwarded) > 8
    forwarded = {digest for digest, text in TEXTS.items() if tuple(tokenizer(text)["input_ids"]) in watch.forwarded}
    assert set(run.stored(1)) == set(run.stored(2)) == forwarded
    assert not run.index().exists()
    watch.clear()
    run(TEXTS)
    assert sorted(watch.forwarded) == ids_of(tokenizer, {d: text for d, text in TEXTS.items() if d not in forwarded})
    assert_rows(run, TEXTS, (1, 2))


@pytest.mark.parametrize("log_works", [True, False])
def test_a_time_limit_of_the_cluster_keeps_the_rows_that_are_complete(
    run: Run, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, log_works: bool
) -> None:
    """SIGTERM in the sixth pass and again while rows are stored; without the handler it would end this process. The log says so
    where it can: a file refuses a line that comes while it writes another.
    """
    said: list[str] = []

    def say(line: str) -> None:
        if not log_works:
            raise RuntimeError("reentrant call inside a buffered writer")
        said.append(line)

    calls: Iterator[int] = iter(range(5))

    def call(capture: Capture, batch: Batch) -> Captured:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return REAL(capture, batch)

    def flush(buffer: activations.Buffer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        store(buffer)

    store = activations.Buffer.flush
    before = signal.getsignal(signal.SIGTERM)
    try:
        activations.stop_on_terminate(say)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
            patch.setattr(Capture, "__call__", call)
            patch.setattr(activations.Buffer, "flush", flush)
            run(TEXTS, batch_size=1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 128 + signal.SIGTERM
    assert [line.startswith("SIGTERM stops this job") for line in said] == [True] * log_works
    assert sorted(run.stored(1)) == sorted(run.stored(2)) == sorted(longest_first(tokenizer)[:5])
    run(TEXTS)
    assert_rows(run, TEXTS, (1, 2))


@pytest.mark.parametrize("error", [RuntimeError("device-side assert"), KeyboardInterrupt()])
def test_an_error_of_the_model_keeps_the_rows_that_are_complete(
    run: Run, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    calls: Iterator[int] = iter(range(5))

    def call(capture: Capture, batch: Batch) -> Captured:
        if next(calls, None) is None:
            raise error
        return REAL(capture, batch)

    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        patch.setattr(Capture, "__call__", call)
        run(TEXTS, batch_size=1)
    assert caught.value is error
    assert sorted(run.stored(1)) == sorted(run.stored(2)) == sorted(longest_first(tokenizer)[:5])
    run(TEXTS)
    assert_rows(run, TEXTS, (1, 2))


def test_an_error_of_the_model_is_told_even_where_nothing_can_be_stored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Iterator[int] = iter(range(5))

    def call(capture: Capture, batch: Batch) -> Captured:
        if next(calls, None) is None:
            raise RuntimeError("device-side assert")
        return REAL(capture, batch)

    def write(*_: Any) -> Path:
        raise UserError("cannot write")

    monkeypatch.setattr(Capture, "__call__", call)
    monkeypatch.setattr(activations, "write_segment", write)
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(TEXTS, batch_size=1)


@pytest.mark.parametrize("kind", [RESIDUAL, HEADS])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_rows_that_are_not_finite(run: Run, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, kind: str, bad: float) -> None:
    order = longest_first(tokenizer, some(slice(0, 6)))
    target = list(tokenizer(TEXTS[order[3]])["input_ids"])

    def call(capture: Capture, batch: Batch) -> Captured:
        captured = REAL(capture, batch)
        if batch.ids[0].tolist() == target:
            rows = getattr(captured, kind)
            rows["mean", 2] = rows["mean", 2].clone()
            rows["mean", 2][0, 5] = bad
        return captured

    monkeypatch.setattr(Capture, "__call__", call)
    with pytest.raises(UserError, match=f"layer 2: the activations of text {order[3]} are not finite") as caught:
        run(some(slice(0, 6)), batch_size=1)
    assert "set dtype to bf16 or fp32" in str(caught.value)
    assert not run.index().exists()
    stored = run.stored(1)
    assert sorted(stored) == sorted(run.stored(2)) and len(set(stored)) == len(stored)
    assert set(order[:3]) <= set(stored) and order[3] not in stored


# memory


class Memory:
    """Stands in for Capture.__call__: out of memory above `limit` padded tokens; the sizes asked for, and what went through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        self.asked: list[int] = []
        self.forwarded: list[tuple[int, ...]] = []

        def call(capture: Capture, batch: Batch) -> Captured:
            self.asked.append(batch.ids.size)
            if batch.ids.size > limit:
                raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.forwarded.extend(tuple(ids[:count]) for ids, count in zip(batch.ids.tolist(), batch.tokens, strict=True))
            return REAL(capture, batch)

        monkeypatch.setattr(Capture, "__call__", call)


def parts_of(run: Run, texts: dict[str, str]) -> list[np.ndarray]:
    return [run.reader().rows(layer, kind, list(texts)) for layer in (1, 2) for kind in (RESIDUAL, HEADS)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_midway(
    run: Run, tokenizer: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: type[RuntimeError]
) -> None:
    texts = {text_digest(text): text for n in range(4) for text in (f"{n} {text}" for text in TEXTS.values())}
    whole = Run(tmp_path / "whole", tiny_model)
    whole(texts)
    longest = max(map(len, ids_of(tokenizer, texts)))
    limit, asked = 3 * longest, 8 * longest
    memory = Memory(monkeypatch, limit, error)
    run(texts, batch_tokens=asked)
    assert sorted(memory.forwarded) == ids_of(tokenizer, texts)
    for rows, expected in zip(parts_of(run, texts), parts_of(whole, texts), strict=True):
        assert np.abs(rows - expected).max() < 1e-5 * np.abs(expected).max()
    failed = [size for size in memory.asked if size > limit]
    said = [line for line in run.lines if line.startswith("out of memory")]
    assert said[0].startswith(f"out of memory on a batch of {failed[0]} tokens: batches of {failed[0] // 2} from here on")
    assert len(said) == len(failed)
    budget = int(said[-1].split(": batches of ")[1].split()[0])
    assert limit / 2 - 1 <= budget <= limit
    last = memory.asked.index(failed[-1])
    assert max(memory.asked[last + 1 :]) <= limit
    assert len(failed) <= 3 * 4  # the first batch and the three made ahead, each twice too large or more


def test_out_of_memory_on_a_single_text(run: Run, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch that is halved down to it; texts that fitted before are kept."""
    lengths = sorted((len(ids) for ids in ids_of(tokenizer, TEXTS)), reverse=True)
    Memory(monkeypatch, lengths[0] - 1)
    with pytest.raises(UserError, match=f"^out of memory on a single text of {lengths[0]} tokens: lower max_tokens, or use a"):
        run(TEXTS, batch_tokens=4 * lengths[0])
    assert not run.index().exists()


def test_other_errors_are_not_taken_for_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def call(capture: Capture, batch: Batch) -> Captured:
        calls.append(len(batch))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Capture, "__call__", call)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(TEXTS)
    assert len(calls) == 1


# disk


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("full_after", [0, 1, 2, 3])
def test_disk_full_while_flushing(
    run: Run, watch: Watch, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, reason: int, full_after: int
) -> None:
    real, written = os.replace, list[str]()

    def replace(source: Path, target: Path) -> None:
        if "layer_" in str(target):
            if len(written) >= full_after:
                raise OSError(reason, os.strerror(reason))
            written.append(str(target))
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(files.os, "replace", replace)
        run(TEXTS, flush_rows=4)
    message = str(caught.value)
    assert message.startswith(f"cannot write {run.space()}/layer_00")
    assert message.endswith(f": {os.strerror(reason)}. Nothing was left half written.")
    assert not run.index().exists()
    present = sorted(str(path) for path in run.space().rglob("*") if path.is_file())
    assert present == sorted(written)
    kept = {layer: run.segments(layer) for layer in (1, 2)}
    there = set(run.stored(1)) & set(run.stored(2))
    assert len(there) == 0 if full_after < 2 else 0 < len(there) < len(TEXTS)
    watch.clear()
    run(TEXTS, flush_rows=4)
    assert sorted(watch.forwarded) == ids_of(tokenizer, {d: text for d, text in TEXTS.items() if d not in there})
    assert not [line for line in run.lines if "damaged" in line]
    assert all(kept[layer].items() <= run.segments(layer).items() for layer in (1, 2))
    assert_rows(run, TEXTS, (1, 2))


def test_disk_full_while_a_segment_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def write(path: Path, data: bytes) -> int:
        real(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"No space left on device\. Nothing was left half written"),
    ):
        patch.setattr(Path, "write_bytes", write)
        run(some(0, 1))
    assert not [path for path in run.space().rglob("*") if path.is_file()]
    run(some(0, 1))
    assert_rows(run, some(0, 1), (1, 2))


# the same last token


def test_last_pooling_of_texts_that_end_alike_is_refused_before_any_pass(run: Run, watch: Watch) -> None:
    texts = {text_digest(text): text for text in (f"Text number {number}." for number in range(300))}
    with pytest.raises(UserError, match=r"pooling: last: all texts end in the same token '\.'"):
        run(texts, poolings=["mean", "last"])
    assert (watch.loads, watch.forwarded) == ([], [])
    assert not [path for path in run.folder.rglob("*") if path.is_file()]


def test_texts_of_other_shards_count_for_how_texts_end(run: Run) -> None:
    texts = {text_digest(text): text for text in (f"Text number {number}." for number in range(4))}
    run(texts, poolings=["last"], sample=["A text of another shard!"])
    assert_rows(run, texts, (1, 2), poolings=["last"])


def test_mean_pooling_of_texts_that_end_alike(run: Run) -> None:
    texts = {text_digest(text): text for text in (f"Text number {number}." for number in range(4))}
    assert run(texts)["forwarded_texts"] == 4


def test_a_layer_that_cannot_be_written_is_told_before_the_model_is_loaded(
    run: Run, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(some(0))
    watch.clear()
    kept = layer_folder(run.space(), 2)
    monkeypatch.setattr(os, "access", lambda path, mode: path != kept)
    with pytest.raises(UserError, match=f"cannot write into {kept}: Permission denied"):
        run(some(0, 1))
    assert watch.loads == []
