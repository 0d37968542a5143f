"""Capture into a store: each text once a layer, whatever was there before, whatever goes wrong on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import activations
import tiny
from activations import capture_shard, shard_texts
from amygdala import residual
from amygdala.errors import UserError
from amygdala.graph import split_tags
from amygdala.keys import text_digest
from amygdala.modelinfo import describe
from amygdala.residual import Capture, Captured, Tokens
from amygdala.segments import HEADS, RESIDUAL, Reader, held_rows, layer_folder, set_aside

BEGINNINGS = [split_tags(raw)[0][: 50 + 9 * number] for number, raw in enumerate(tiny.sample_texts(18))]
TEXTS = dict(sorted((text_digest(text), text) for text in BEGINNINGS))
DIGESTS = list(TEXTS)


def some(*positions: int | slice) -> dict[str, str]:
    chosen = [d for position in positions for d in (DIGESTS[position] if isinstance(position, slice) else [DIGESTS[position]])]
    return {digest: TEXTS[digest] for digest in sorted(chosen)}


class Watch:
    """What the model was asked to do: layers of each load, and the texts forwarded (as token ids)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loads: list[tuple[int, ...]] = []
        self.forwarded: list[tuple[int, ...]] = []
        real_init, real_forward = Capture.__init__, Capture._forward

        def init(capture: Capture, source: str, revision: str | None, layers: Sequence[int], *rest: Any) -> None:
            self.loads.append(tuple(layers))
            real_init(capture, source, revision, layers, *rest)

        def forward(capture: Capture, texts: Sequence[Tokens]) -> Captured:
            self.forwarded.extend(tuple(text.ids) for text in texts)
            return real_forward(capture, texts)

        monkeypatch.setattr(Capture, "__init__", init)
        monkeypatch.setattr(Capture, "_forward", forward)

    def clear(self) -> None:
        self.loads.clear()
        self.forwarded.clear()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.make_tokenizer()


class Run:
    """A store in a folder of its own, and capture_shard with its many arguments."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.space = folder / "space"
        self.settings: dict[str, Any] = {
            "source": str(model),
            "revision": None,
            "dtype": "fp32",
            "pooling": "mean",
            "device": "cpu",
            "max_tokens": 2048,
            "batch_tokens": 200,
            "threads": 1,
        }
        self.lines: list[str] = []

    def __call__(
        self,
        texts: dict[str, str],
        layers: Sequence[int] = (1, 2),
        name: str = "index",
        flush_rows: int = 4096,
        **settings: Any,
    ) -> dict[str, Any]:
        self.lines.clear()
        options = {**self.settings, **settings}
        return capture_shard(texts, layers, self.space / "index" / name, options, self.lines.append, flush_rows)

    def reader(self, name: str = "index") -> Reader:
        return Reader([self.space / "index" / name])

    def segments(self, layer: int) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(layer_folder(self.space, layer).glob("*"))}

    def stored(self, layer: int) -> list[str]:
        """Digests in the segments of a layer, read by hand."""
        paths = sorted(layer_folder(self.space, layer).glob("*.safetensors"))
        return [row.tobytes().hex() for path in paths for row in load_file(path)["digests"]]


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Run:
    return Run(tmp_path, tiny_model)


def ids_of(tokenizer: Any, texts: dict[str, str]) -> list[tuple[int, ...]]:
    return sorted(tuple(tokenizer(text)["input_ids"]) for text in texts.values())


def assert_rows(run: Run, texts: dict[str, str], layers: Sequence[int], name: str = "index") -> None:
    """The stored rows are those of a capture of each text alone."""
    reader = run.reader(name)
    with Capture(run.settings["source"], None, layers, "fp32", "mean", torch.device("cpu")) as capture:
        for digest, text in texts.items():
            alone = capture(residual.tokenize(capture.tokenizer, [text], 2048))
            for layer in layers:
                for kind, rows in ((RESIDUAL, alone.residual), (HEADS, alone.heads)):
                    stored = reader.rows(layer, kind, [digest])[0]
                    expected = rows[layer][0].numpy()
                    assert np.linalg.norm(stored - expected) < 1e-5 * np.linalg.norm(expected)


# what is forwarded


def test_each_unique_text_is_forwarded_once(run: Run, watch: Watch, tokenizer: Any) -> None:
    stats = run(TEXTS)
    assert sorted(watch.forwarded) == ids_of(tokenizer, TEXTS)
    assert watch.loads == [(1, 2)]
    tokens = sum(len(ids) for ids in ids_of(tokenizer, TEXTS))
    assert stats["unique_texts"] == stats["forwarded_texts"] == len(TEXTS)
    assert stats["tokens"] == stats["forwarded_tokens"] == tokens
    assert stats["cut_texts"] == 0
    assert run.lines[0] == f"{len(TEXTS)} unique texts, 0 in the store, {len(TEXTS)} to forward"
    assert run.reader().stats == [stats]
    assert run.reader().layout(1) == {"n_heads": 4, "head_dim": 16}
    assert_rows(run, TEXTS, (1, 2))


def test_a_second_call_forwards_none_and_loads_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(TEXTS)
    before = run.segments(1), run.segments(2)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(residual, "Capture", fail)
    again = run(TEXTS, name="other")
    assert (again["forwarded_texts"], again["forwarded_tokens"]) == (0, 0)
    assert (again["unique_texts"], again["tokens"]) == (first["unique_texts"], first["tokens"])
    assert (run.segments(1), run.segments(2)) == before
    few = run(some(3, 5), layers=[2], name="few")
    assert (few["unique_texts"], few["forwarded_texts"]) == (2, 0)
    assert run.reader("few").rows(2, RESIDUAL, [DIGESTS[5]]).shape == (1, 48)


def test_new_texts_forward_only_themselves(run: Run, watch: Watch, tokenizer: Any) -> None:
    run(some(slice(0, 10)))
    before = run.segments(1)
    watch.clear()
    stats = run(TEXTS)
    assert sorted(watch.forwarded) == ids_of(tokenizer, some(slice(10, None)))
    assert stats["forwarded_texts"] == len(TEXTS) - 10
    assert stats["unique_texts"] == len(TEXTS)
    assert before.items() < run.segments(1).items()
    assert_rows(run, TEXTS, (1, 2))


def test_a_new_layer_captures_that_layer_alone(run: Run, watch: Watch, tokenizer: Any) -> None:
    run(TEXTS)
    before = {layer: run.segments(layer) for layer in (1, 2)}
    times = {path: path.stat().st_mtime_ns for path in run.space.rglob("layer_*/*")}
    watch.clear()
    stats = run(TEXTS, layers=[0, 1, 2])
    assert watch.loads == [(0,)]
    assert sorted(watch.forwarded) == ids_of(tokenizer, TEXTS)
    assert stats["forwarded_texts"] == len(TEXTS)
    assert {layer: run.segments(layer) for layer in (1, 2)} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(run.segments(0)) == 1
    assert_rows(run, TEXTS, (0, 1, 2))


def test_new_texts_and_a_new_layer_together(run: Run, watch: Watch, tokenizer: Any) -> None:
    run(some(slice(0, 6)), layers=[1])
    watch.clear()
    stats = run(some(slice(0, 9)), layers=[1, 2])
    assert sorted(watch.loads) == [(1, 2), (2,)]
    assert sorted(watch.forwarded) == ids_of(tokenizer, some(slice(0, 9)))
    assert stats["forwarded_texts"] == 9
    assert sorted(run.stored(1)) == sorted(run.stored(2)) == DIGESTS[:9]
    assert_rows(run, some(slice(0, 9)), (1, 2))


def test_fewer_texts_cost_nothing(run: Run, watch: Watch) -> None:
    run(TEXTS)
    watch.clear()
    assert run(some(2, 7), name="few")["forwarded_texts"] == 0
    assert watch.loads == []


def test_layers_in_any_order(run: Run) -> None:
    run(some(0, 1), layers=[3, 0])
    assert_rows(run, some(0, 1), (0, 3))


def test_shard_without_texts(run: Run, watch: Watch) -> None:
    stats = run({})
    assert stats["unique_texts"] == stats["forwarded_texts"] == stats["tokens"] == stats["cut_texts"] == 0
    assert watch.loads == []
    assert run.reader().stats == [stats]


# flushes


def test_small_flushes_give_several_segments_and_the_same_rows(
    run: Run, tokenizer: Any, tmp_path: Path, tiny_model: Path
) -> None:
    run(TEXTS, flush_rows=4)
    assert len(run.segments(1)) == len(run.segments(2)) >= 3
    assert sorted(run.stored(1)) == sorted(run.stored(2)) == DIGESTS
    lengths = {bytes.fromhex(digest): len(tokenizer(text)["input_ids"]) for digest, text in TEXTS.items()}
    assert held_rows(run.space, 1).tokens == held_rows(run.space, 2).tokens == lengths
    whole = Run(tmp_path / "whole", tiny_model)
    whole(TEXTS)
    assert len(whole.segments(1)) == 1
    for layer in (1, 2):
        for kind in (RESIDUAL, HEADS):
            assert np.array_equal(run.reader().rows(layer, kind, DIGESTS), whole.reader().rows(layer, kind, DIGESTS))


def test_a_flush_comes_as_soon_as_there_are_enough_rows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = activations.write_segment

    def write(space: Path, layer: int, rows: Any, layout: Any) -> Path:
        sizes.append(len(rows.digests))
        return real(space, layer, rows, layout)

    monkeypatch.setattr(activations, "write_segment", write)
    run(TEXTS, layers=[1], flush_rows=3, batch_tokens=1)  # batches of one text
    assert sizes == [3] * (len(TEXTS) // 3) + ([len(TEXTS) % 3] if len(TEXTS) % 3 else [])


@pytest.mark.parametrize("writes", [2, 3])
def test_killed_run_goes_on_where_it_was(
    run: Run, watch: Watch, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Killed after `writes` segments: 2 are one flush of two layers, 3 leave the second flush without its layer 2."""
    real = activations.write_segment
    left: Iterator[int] = iter(range(writes))

    def write(*arguments: Any) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(activations, "write_segment", write)
        run(TEXTS, flush_rows=4)
    assert not (run.space / "index" / "index").exists()
    assert not list(run.space.rglob("*.tmp"))
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


def test_damaged_segment_is_captured_again(run: Run, watch: Watch, tokenizer: Any) -> None:
    run(TEXTS, flush_rows=4)
    path = sorted(layer_folder(run.space, 2).glob("*"))[0]
    lost = [row.tobytes().hex() for row in load_file(path)["digests"]]
    path.write_bytes(path.read_bytes()[:-1])
    watch.clear()
    stats = run(TEXTS)
    assert watch.loads == [(2,)]
    assert sorted(watch.forwarded) == ids_of(tokenizer, {digest: TEXTS[digest] for digest in lost})
    assert stats["forwarded_texts"] == len(lost)
    assert any("damaged" in line and str(path) in line for line in run.lines)
    assert_rows(run, TEXTS, (1, 2))


def test_segment_that_a_reader_set_aside_is_captured_again(run: Run, watch: Watch) -> None:
    run(TEXTS, flush_rows=4)
    path = sorted(layer_folder(run.space, 1).glob("*"))[0]
    lost = len(load_file(path)["digests"])
    set_aside(path)
    watch.clear()
    assert run(TEXTS)["forwarded_texts"] == lost
    assert watch.loads == [(1,)]


# what is refused, and what is counted


@pytest.mark.parametrize("text", ["a", "", "<s>", "a</s></s>"])
def test_text_without_content_tokens(run: Run, text: str) -> None:
    digest = text_digest(text)
    with pytest.raises(UserError, match=f"text {digest} .*has no content tokens.*min_content_chars") as caught:
        run({**some(0, 1), digest: text})
    assert repr(text) in str(caught.value)
    assert not run.segments(1)
    assert not (run.space / "index" / "index").exists()


@pytest.mark.parametrize("kind", [RESIDUAL, HEADS])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_rows_that_are_not_finite(run: Run, monkeypatch: pytest.MonkeyPatch, kind: str, bad: float) -> None:
    texts = some(slice(0, 6))
    target = tuple(tiny.make_tokenizer()(texts[DIGESTS[3]])["input_ids"])
    real = Capture._forward

    def forward(capture: Capture, batch: Sequence[Tokens]) -> Captured:
        captured = real(capture, batch)
        for row, tokens in enumerate(batch):
            if tuple(tokens.ids) == target:
                getattr(captured, kind)[2][row, 5] = bad
        return captured

    monkeypatch.setattr(Capture, "_forward", forward)
    with pytest.raises(UserError, match=f"layer 2: the activations of text {DIGESTS[3]} are not finite") as caught:
        run(texts)
    assert "set dtype to bf16 or fp32" in str(caught.value)
    assert not (run.space / "index" / "index").exists()
    assert DIGESTS[3] not in run.stored(1) + run.stored(2)


def test_cut_texts_are_counted(run: Run, watch: Watch, tokenizer: Any) -> None:
    lengths = {digest: len(tokenizer(text)["input_ids"]) for digest, text in TEXTS.items()}
    limit = sorted(lengths.values())[len(lengths) // 2]
    stats = run(TEXTS, max_tokens=limit)
    longer = sum(length > limit for length in lengths.values())
    assert 0 < longer < len(TEXTS)
    assert stats["cut_texts"] == longer
    assert stats["tokens"] == stats["forwarded_tokens"] == sum(min(length, limit) for length in lengths.values())
    assert max(map(len, watch.forwarded)) == limit
    assert run.lines[-1] == f"warning: {longer} texts were cut to max_tokens"
    again = run(TEXTS, max_tokens=limit, name="again")
    assert (again["forwarded_texts"], again["cut_texts"], again["tokens"]) == (0, longer, stats["tokens"])
    few = run(some(0), max_tokens=limit, name="few")
    assert few["cut_texts"] == int(lengths[DIGESTS[0]] > limit)


def test_texts_longer_than_the_model_allows_are_cut(run: Run, watch: Watch) -> None:
    text = " ".join(TEXTS.values())
    while len(tiny.make_tokenizer()(text)["input_ids"]) <= 1024:
        text *= 2
    stats = run({text_digest(text): text}, layers=[0], max_tokens=100_000)
    assert [len(ids) for ids in watch.forwarded] == [1024]
    assert stats["cut_texts"] == 1


def test_batches_keep_to_the_budget(run: Run, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 300 < len(TEXTS) * max(len(ids) for ids in ids_of(tokenizer, TEXTS)) < 2048
    shapes: list[tuple[int, int]] = []
    real = Capture._forward

    def forward(capture: Capture, batch: Sequence[Tokens]) -> Captured:
        shapes.append((len(batch), max(len(text.ids) for text in batch)))
        return real(capture, batch)

    monkeypatch.setattr(Capture, "_forward", forward)
    run(TEXTS, batch_tokens=300)
    assert all(rows * width <= 300 or rows == 1 for rows, width in shapes)
    assert len(shapes) < len(TEXTS)
    shapes.clear()
    run(TEXTS, batch_tokens="auto", layers=[0])
    assert len(shapes) == len(
        residual.batches([len(tiny.make_tokenizer()(text)["input_ids"]) for text in TEXTS.values()], 2048)
    )


def test_a_shard_reads_rows_that_another_wrote(run: Run, watch: Watch) -> None:
    run(some(slice(0, 9)), name="a")
    run(some(slice(9, None)), name="b")
    reader = Reader([run.space / "index" / "a", run.space / "index" / "b"])
    assert reader.rows(1, RESIDUAL, DIGESTS).shape == (len(DIGESTS), 48)
    watch.clear()
    assert run(TEXTS, name="c")["forwarded_texts"] == 0


# shards and examples


def examples_file(path: Path, texts: dict[str, str]) -> Path:
    examples = [{"digest": d, "polarity": "positive", "split": "train", "text": text} for d, text in texts.items()]
    path.write_text(json.dumps({"emotion": path.stem, "examples": examples}))
    return path


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 40])
def test_shards_partition_the_texts(tmp_path: Path, shards: int) -> None:
    joy, awe = some(slice(0, 12)), some(slice(6, None))
    files = [examples_file(tmp_path / "joy.json", joy), examples_file(tmp_path / "awe.json", awe)]
    parts = [shard_texts(files, shard, shards) for shard in range(shards)]
    assert sum(map(len, parts)) == len(TEXTS)
    assert {digest: text for part in parts for digest, text in part.items()} == TEXTS
    reverse = [shard_texts(files[::-1], shard, shards) for shard in range(shards)]
    assert parts == reverse
    assert all(list(part) == sorted(part) for part in parts + reverse)
    if shards in (2, 3):
        assert all(parts)


def test_missing_layers_groups_texts_by_what_they_lack(run: Run) -> None:
    run(some(0, 1), layers=[1])
    run(some(1, 2), layers=[2])
    held = {layer: held_rows(run.space, layer) for layer in (2, 1)}
    groups = activations.missing_layers(DIGESTS[:4], held)
    assert groups == {(2,): [DIGESTS[0]], (1,): [DIGESTS[2]], (1, 2): [DIGESTS[3]]}


def test_model_folder_that_changed_meanwhile(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    identity = describe(str(folder), [Path()], tmp_path / "store").identity
    model = {"kind": "folder", "source": str(folder), "identity": identity}
    activations.check_model(model, model["source"], tmp_path / "store")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.125}))
    with pytest.raises(UserError, match=r"model: .* changed while snakemake was running. Run snakemake again"):
        activations.check_model(model, model["source"], tmp_path / "store")
    activations.check_model({**model, "kind": "hub"}, "org/name", tmp_path / "store")


def test_many_bytes_are_flushed_before_many_rows(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "FLUSH_BYTES", 4 * (48 + 64) * 3)
    texts = {text_digest(f"Text number {n} with some words"): f"Text number {n} with some words" for n in range(7)}
    index = tmp_path / "space" / "index" / "a.safetensors"
    settings = {"source": str(tiny_model), "revision": None, "dtype": "fp32", "pooling": "mean", "device": "cpu"}
    settings = {**settings, "max_tokens": 64, "batch_tokens": 1, "threads": 1}
    activations.capture_shard(dict(sorted(texts.items())), [1], index, settings, lambda line: None)
    assert len(list((tmp_path / "space" / "layer_001").glob("*.safetensors"))) == 3
