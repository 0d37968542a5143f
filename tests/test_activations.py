"""Capture into a store: each text once a layer and pooling, whatever was there before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import activations
import tiny
from amygdala import fetch, loading, residual
from amygdala.batching import Texts
from amygdala.errors import UserError
from amygdala.keys import text_digest
from amygdala.modelinfo import check_model, describe
from amygdala.segments import HEADS, RESIDUAL, Held, Reader, held_rows, layer_folder, set_aside
from captures import DIGESTS, TEXTS, Run, Watch, assert_rows, ids_of, some

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
    assert stats["short_texts"] == 0
    rate = json.loads((run.space() / "rate.json").read_text())
    assert rate["chars_per_token"] == sum(map(len, TEXTS.values())) / tokens
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
    times = {path: path.stat().st_mtime_ns for path in run.space().rglob("layer_*/*")}
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
    assert watch.loads == [(1, 2)]
    assert sorted(watch.forwarded) == ids_of(tokenizer, some(slice(0, 9)))
    assert stats["forwarded_texts"] == 9
    assert sorted(run.stored(1)) == sorted(run.stored(2)) == DIGESTS[:9]
    assert_rows(run, some(slice(0, 9)), (1, 2))


def test_the_configuration_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = loading.read_config

    def count(source: str, revision: str | None) -> Any:
        read.append(source)
        return real(source, revision)

    monkeypatch.setattr(loading, "read_config", count)
    run(some(0, 1))
    assert read == [run.settings["source"]]


def test_only_what_was_forwarded_is_looked_up_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(TEXTS, layers=[1, 2])
    looked: list[int] = []

    def look(space: Path, layer: int, say: Any) -> Held:
        looked.append(layer)
        return held_rows(space, layer, say)

    monkeypatch.setattr(activations, "held_rows", look)
    run(TEXTS, layers=[0, 1, 2, 3])
    assert looked == [0, 1, 2, 3, 0, 3]
    looked.clear()
    run(TEXTS, layers=[0, 1, 2, 3], name="again")
    assert looked == [0, 1, 2, 3]


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
    lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS.values()]
    for layer in (1, 2):
        held = held_rows(run.space(), layer)
        assert held.tokens.tolist() == lengths and held.pooled.tolist() == [length - 1 for length in lengths]
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
    run(TEXTS, layers=[1], flush_rows=3, batch_size=1)
    assert sizes == [3] * (len(TEXTS) // 3) + ([len(TEXTS) % 3] if len(TEXTS) % 3 else [])


def test_damaged_segment_is_captured_again(run: Run, watch: Watch, tokenizer: Any) -> None:
    run(TEXTS, flush_rows=4)
    path = sorted(layer_folder(run.space(), 2).glob("*"))[0]
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
    path = sorted(layer_folder(run.space(), 1).glob("*"))[0]
    lost = len(load_file(path)["digests"])
    set_aside(path)
    watch.clear()
    assert run(TEXTS)["forwarded_texts"] == lost
    assert watch.loads == [(1,)]


# what is counted


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
    assert few["tokens"] == min(lengths[DIGESTS[0]], limit)


def test_texts_longer_than_the_model_allows_are_cut(run: Run, watch: Watch) -> None:
    text = " ".join(TEXTS.values())
    while len(tiny.make_tokenizer()(text)["input_ids"]) <= 1024:
        text *= 2
    stats = run({text_digest(text): text}, layers=[0], max_tokens=100_000)
    assert [len(ids) for ids in watch.forwarded] == [1024]
    assert stats["cut_texts"] == 1


def test_a_shard_reads_rows_that_another_wrote(run: Run, watch: Watch) -> None:
    run(some(slice(0, 9)), name="a")
    run(some(slice(9, None)), name="b")
    reader = Reader([run.index(name="a"), run.index(name="b")])
    assert reader.rows(1, RESIDUAL, DIGESTS).shape == (len(DIGESTS), 48)
    watch.clear()
    assert run(TEXTS, name="c")["forwarded_texts"] == 0


def test_model_folder_that_changed_meanwhile(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    identity = describe(str(folder), [Path()], tmp_path / "store").identity
    model = {"kind": "folder", "source": str(folder), "identity": identity}
    check_model(model, model["source"], tmp_path / "store")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.125}))
    with pytest.raises(UserError, match=r"model: .* changed while snakemake was running. Run snakemake again"):
        check_model(model, model["source"], tmp_path / "store")


@pytest.mark.parametrize("cached", [True, False])
def test_a_hub_s_model_that_another_machine_made_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    """The marker in a shared store says that it was fetched, not where."""
    fetched: list[tuple[str, str]] = []
    monkeypatch.setattr(fetch, "hub_cached", lambda repository, commit: cached)
    monkeypatch.setattr(fetch, "hub_download", lambda repository, commit: fetched.append((repository, commit)))
    offline: list[bool] = []
    monkeypatch.setattr(fetch, "stay_offline", lambda: offline.append(True))
    check_model({"kind": "hub", "source": "org/name", "identity": "commit:0123"}, "org/name", tmp_path / "store")
    assert fetched == ([] if cached else [("org/name", "0123")])
    assert offline


def test_batches_keep_to_budget_and_cap(run: Run, watch: Watch, tokenizer: Any) -> None:
    assert 300 < sum(len(ids) for ids in ids_of(tokenizer, TEXTS)) < 2048
    run(TEXTS, batch_tokens=300)
    assert all(rows * width <= 300 or rows == 1 for rows, width in watch.shapes)
    assert 1 < len(watch.shapes) < len(TEXTS)
    run(TEXTS, layers=[0], batch_tokens="auto")
    watch.clear()
    run(TEXTS, layers=[3], batch_tokens="auto", batch_size=4)
    assert 1 < max(rows for rows, _ in watch.shapes) <= 4
    assert len(watch.shapes) >= -(-len(TEXTS) // 4)


def test_one_percent_new_texts_cost_one_percent_of_the_passes(run: Run, watch: Watch) -> None:
    texts = {text_digest(text): text for text in (f"Text number {number}, warm." for number in range(202))}
    old = dict(list(texts.items())[:200])
    run(old, layers=[0], batch_size=4, batch_tokens="auto")
    assert (len(watch.forwarded), len(watch.shapes)) == (200, 50)
    watch.clear()
    assert run(texts, layers=[0], batch_size=4, batch_tokens="auto")["forwarded_texts"] == 2
    assert (len(watch.forwarded), len(watch.shapes)) == (2, 1)


# poolings


POOLINGS = ("from_token:30", "last", "mean")


def test_several_poolings_in_one_pass(run: Run, watch: Watch, tokenizer: Any) -> None:
    texts = {digest: text for digest, text in TEXTS.items() if len(tokenizer(text)["input_ids"]) > 30}
    assert len(texts) > 5
    stats = run(texts, poolings=POOLINGS)
    assert watch.loads == [(1, 2)]
    assert sorted(watch.forwarded) == ids_of(tokenizer, texts)
    assert stats["forwarded_texts"] == len(texts)
    assert_rows(run, texts, (1, 2), poolings=POOLINGS)
    lengths = [len(tokenizer(text)["input_ids"]) - 1 for text in texts.values()]
    for pooling, counts in (("mean", lengths), ("last", [1] * len(lengths)), ("from_token:30", [n - 29 for n in lengths])):
        assert [run.reader(pooling=pooling).pooled(digest) for digest in texts] == counts


@pytest.mark.parametrize("order", [1, -1])
def test_a_pooling_that_comes_later_is_forwarded_for_alone(run: Run, watch: Watch, tokenizer: Any, order: int) -> None:
    run(TEXTS)
    before = {layer: run.segments(layer) for layer in (1, 2)}
    times = {path: path.stat().st_mtime_ns for path in run.space().rglob("layer_*/*")}
    watch.clear()
    stats = run(TEXTS, poolings=("mean", "last")[::order], name="both")
    assert watch.loads == [(1, 2)]
    assert sorted(watch.forwarded) == ids_of(tokenizer, TEXTS)
    assert all(given == {("last", 1), ("last", 2)} for given in watch.given)
    assert stats["forwarded_texts"] == len(TEXTS)
    assert {layer: run.segments(layer) for layer in (1, 2)} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert_rows(run, TEXTS, (1, 2), "both", ("mean", "last"))


def test_layers_and_poolings_partly_missing(run: Run, watch: Watch, tokenizer: Any) -> None:
    """Each text goes through once, for what it lacks: the first three the lot but mean 1, and so on."""
    run(some(slice(0, 3)), layers=[1])
    run(some(slice(2, 6)), layers=[2], poolings=["last"], sample=list(TEXTS.values()))
    run(some(5, 6), layers=[1, 2], poolings=["mean", "last"], sample=list(TEXTS.values()))
    watch.clear()
    both = ("mean", "last")
    every = {(pooling, layer) for pooling in both for layer in (1, 2)}
    stats = run(some(slice(0, 8)), poolings=both, batch_size=1)
    assert watch.loads == [(1, 2)]
    lacks = dict.fromkeys((0, 1), every - {("mean", 1)}) | {2: every - {("mean", 1), ("last", 2)}}
    lacks |= dict.fromkeys((3, 4), every - {("last", 2)}) | {7: every}
    expected = {ids_of(tokenizer, some(position))[0]: pairs for position, pairs in lacks.items()}
    assert dict(zip(watch.forwarded, watch.given, strict=True)) == expected
    assert len(watch.forwarded) == len(expected) == stats["forwarded_texts"]
    for pooling in both:
        for layer in (1, 2):
            assert sorted(run.stored(layer, pooling)) == DIGESTS[:8]
    assert_rows(run, some(slice(0, 8)), (1, 2), poolings=both)


def test_only_layers_that_are_missing_are_run(run: Run, watch: Watch) -> None:
    run(some(0, 1), layers=[3])
    watch.clear()
    run(some(0, 1), layers=[0, 3])
    assert watch.loads == [(0,)]
    assert "loading layers 0 to 0 on cpu in fp32 for layers [0], pooling mean" in run.lines


def test_texts_too_short_for_a_pooling_have_no_row(run: Run, watch: Watch, tokenizer: Any) -> None:
    lengths = {digest: len(tokenizer(text)["input_ids"]) for digest, text in TEXTS.items()}
    first = sorted(lengths.values())[6]  # content is one less: six texts, and those of just that length, fall short
    pooling = f"from_token:{first}"
    short = [digest for digest, length in lengths.items() if length - 1 < first]
    assert 6 < len(short) < len(TEXTS)
    stats = run(TEXTS, poolings=[pooling])
    assert stats["short_texts"] == len(short)
    assert f"warning: {len(short)} texts are too short for pooling {pooling} and have no row" in run.lines
    assert run({short[0]: TEXTS[short[0]]}, poolings=[pooling], name="few")["short_texts"] == 1
    reader = run.reader(pooling=pooling)
    for digest, length in lengths.items():
        assert reader.pooled(digest) == max(0, length - first)
        assert bool(reader.rows(1, RESIDUAL, [digest]).any()) is bool(reader.rows(2, HEADS, [digest]).any())
        assert bool(reader.rows(1, RESIDUAL, [digest]).any()) is (digest not in short)
    assert_rows(run, {digest: text for digest, text in TEXTS.items() if digest not in short}, (1, 2), poolings=[pooling])
    watch.clear()
    again = run(TEXTS, poolings=[pooling], name="again")
    assert (watch.loads, again["forwarded_texts"], again["short_texts"]) == ([], 0, len(short))
    assert run(TEXTS, poolings=[pooling, "mean"])["short_texts"] == 0
    assert run.reader(pooling=pooling).stats[0]["short_texts"] == len(short)


def test_what_texts_lack(run: Run) -> None:
    run(some(0, 1), layers=[1])
    run(some(1, 2), layers=[2])
    held = {("mean", layer): held_rows(run.space(), layer) for layer in (2, 1)}
    groups = activations.lacking(Texts(some(slice(0, 4)).items()), held)
    assert {tuple(pairs): positions.tolist() for pairs, positions in groups} == {
        (("mean", 2),): [0],
        (("mean", 1),): [2],
        (("mean", 1), ("mean", 2)): [3],
    }
    assert activations.lacking(Texts(some(1).items()), held) == []
