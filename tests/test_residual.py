"""Capture: texts to pooled rows, what is left out of them, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from amygdala import residual
from amygdala.architecture import NoHeads, Projection
from amygdala.batching import Batch, Budget, pad
from amygdala.errors import UserError
from amygdala.residual import Capture, Captured
from amygdala.tokens import Encoder

CPU = torch.device("cpu")
ALL = (0, 1, 2, 3)
POOLINGS = ("mean", "last", "from_token:5")
SPECIAL_IDS = {0, 1, 2}  # <pad>, <s>, </s> of tiny's tokenizer
TOLERANCE = 1e-5

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[Any, Path] = {}

    def make(kind: str = "llama", **options: Any) -> Path:
        name = (kind, *options.items())
        if name not in made:
            made[name] = tiny.make_model(tmp_path_factory.mktemp("models") / kind, kind, **options)
        return made[name]

    return make


def texts_of_many_lengths() -> list[str]:
    whole = tiny.sample_texts(12)
    return [
        *whole[:3],
        *(text[:cut] for text, cut in zip(whole[3:], (12, 40, 41, 90, 30), strict=False)),
        "Hm, so.",
        whole[0] * 2,
    ]


TEXTS = texts_of_many_lengths()


def open_capture(source: Path, layers: Sequence[int] = ALL, poolings: Sequence[str] = POOLINGS, dtype: str = "fp32") -> Capture:
    return Capture(str(source), None, layers, dtype, poolings, CPU)


def batch_of(capture: Capture, texts: Sequence[str] = TEXTS, max_tokens: int = 2048) -> Batch:
    return pad(range(len(texts)), Encoder(capture.tokenizer, max_tokens)(texts), capture.poolings)


def capture_all(source: Path, texts: Sequence[str] = TEXTS, layers: Sequence[int] = ALL, **options: Any) -> Captured:
    """All texts in one batch."""
    max_tokens = options.pop("max_tokens", 2048)
    with open_capture(source, layers, **options) as capture:
        return capture(batch_of(capture, texts, max_tokens))


class Whole:
    """The whole model with its vocabulary head, one text at a time; it keeps the states after each block but the last."""

    def __init__(self, source: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    def __call__(self, text: str) -> tuple[list[int], dict[int, torch.Tensor]]:
        ids = self.tokenizer(text)["input_ids"]
        with torch.no_grad():
            result = self.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        return ids, {layer: result.hidden_states[layer + 1][0].double() for layer in ALL[:-1]}


def counted(ids: Sequence[int], until: int | None = None) -> list[int]:
    return [position for position, token in enumerate(ids[:until]) if position and token not in SPECIAL_IDS]


def assert_close(rows: torch.Tensor, expected: Sequence[torch.Tensor], tolerance: float = TOLERANCE) -> None:
    assert rows.dtype == torch.float32
    assert rows.shape == (len(expected), len(expected[0]))
    for row, right in zip(rows.double(), expected, strict=True):
        assert float((row - right).norm()) <= tolerance * float(right.norm())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_several_poolings_in_one_pass(kind: str, folder: Folder) -> None:
    whole = Whole(folder(kind))
    texts = [*TEXTS, TEXTS[3] + "</s>", TEXTS[4] + "</s><pad></s>", TEXTS[5] + "</s>."]
    rows = capture_all(folder(kind), texts)
    assert set(rows.residual) == set(rows.heads) == {(pooling, layer) for pooling in POOLINGS for layer in ALL}
    read = [whole(text) for text in texts]
    assert [len(ids) - 1 - counted(ids)[-1] for ids, _ in read[-3:]] == [1, 3, 0]
    for layer in ALL[:-1]:
        assert_close(rows.residual["mean", layer], [states[layer][counted(ids)].mean(0) for ids, states in read])
        assert_close(rows.residual["last", layer], [states[layer][counted(ids)[-1]] for ids, states in read])
        for (ids, states), row in zip(read, rows.residual["from_token:5", layer], strict=True):
            if len(counted(ids)) < 5:
                assert not row.any()
            else:
                assert_close(row[None], [states[layer][counted(ids)[4:]].mean(0)])
    assert any(len(counted(ids)) < 5 for ids, _ in read)


def test_special_tokens_in_a_text_never_count(folder: Folder) -> None:
    whole = Whole(folder())
    texts = [f"<s>{TEXTS[0]}", TEXTS[1][:30] + "</s>" + TEXTS[1][30:], TEXTS[2] + "<pad><pad>"]
    rows, read = capture_all(folder(), texts), [whole(text) for text in texts]
    for layer in ALL[:-1]:
        assert_close(rows.residual["mean", layer], [states[layer][counted(ids)].mean(0) for ids, states in read])
        with pytest.raises(AssertionError):
            assert_close(rows.residual["mean", layer], [states[layer][1:].mean(0) for _, states in read], 1e-3)


def test_with_bos_the_first_content_token_counts(folder: Folder) -> None:
    whole = Whole(folder(bos=True))
    rows, read = capture_all(folder(bos=True)), [whole(text) for text in TEXTS]
    assert all(ids[0] == 1 for ids, _ in read)
    for layer in ALL[:-1]:
        assert_close(rows.residual["mean", layer], [states[layer][1:].mean(0) for _, states in read])
        for shift in (0, 2):
            with pytest.raises(AssertionError):
                assert_close(rows.residual["mean", layer], [states[layer][shift:].mean(0) for _, states in read], 1e-3)


def test_cut_texts_are_rows_of_their_first_tokens(folder: Folder) -> None:
    whole = Whole(folder())
    rows = capture_all(folder(), max_tokens=20)
    for layer in ALL[:-1]:
        expected = [states[layer][counted(ids, until=20)].mean(0) for ids, states in map(whole, TEXTS)]
        assert_close(rows.residual["mean", layer], expected)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_bfloat16_is_near_float32(kind: str, folder: Folder) -> None:
    exact, rough = capture_all(folder(kind)), capture_all(folder(kind), dtype="bf16")
    for right, rows in ((exact.residual, rough.residual), (exact.heads, rough.heads)):
        for pair in rows:
            assert rows[pair].dtype == torch.float32
            assert not torch.equal(rows[pair], right[pair])
            full = right[pair].norm(dim=1) > 0  # too short a text for from_token has none
            assert float(torch.cosine_similarity(rows[pair], right[pair])[full].min()) > 0.99


def test_layers_may_come_in_any_order(folder: Folder) -> None:
    straight, reverse = capture_all(folder(), layers=[0, 2]), capture_all(folder(), layers=[2, 0])
    assert set(straight.residual) == set(reverse.residual)
    for pair, rows in straight.residual.items():
        assert torch.equal(rows, reverse.residual[pair])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pooling_sums_in_float32(dtype: torch.dtype) -> None:
    states = torch.randn((3, 400, 8), generator=torch.Generator().manual_seed(0)).mul(10).add(100).to(dtype)
    weights = torch.full((3, 2, 400), 1 / 400)
    weights[:, 1] = 0
    weights[:, 1, 7] = 1
    rows = residual.pool(states, weights)
    assert rows.dtype == torch.float32 and rows.shape == (3, 2, 8)
    assert float((rows[:, 0].double() - states.double().mean(1)).abs().max()) < 1e-3
    assert torch.equal(rows[:, 1], states[:, 7].float())


def test_nothing_the_length_of_a_text_is_kept(folder: Folder) -> None:
    rows = capture_all(folder())
    for values in (*rows.residual.values(), *rows.heads.values()):
        assert not values.requires_grad
        width = values.shape[1]
        assert values.untyped_storage().nbytes() <= 4 * len(TEXTS) * len(POOLINGS) * width


def test_a_batch_does_not_touch_the_rows_of_the_one_before(folder: Folder) -> None:
    with open_capture(folder()) as capture:
        first = capture(batch_of(capture, TEXTS[:2]))
        kept = {pair: rows.clone() for pair, rows in first.residual.items()}
        capture(batch_of(capture, TEXTS[2:4]))
    for pair, rows in first.residual.items():
        assert torch.equal(rows, kept[pair])


def runs_of(capture: Capture) -> list[int]:
    """Fills with the numbers of the blocks that run from now on."""
    runs: list[int] = []
    for number, block in enumerate(capture.decoder.layers):
        block.register_forward_pre_hook(lambda module, inputs, number=number: runs.append(number))
    return runs


def test_select_gives_what_is_wanted_and_runs_no_further(folder: Folder) -> None:
    with open_capture(folder()) as capture:
        batch = batch_of(capture)
        everything = capture(batch)
        runs = runs_of(capture)
        for wanted in ([("last", 1), ("mean", 0), ("mean", 1)], [("from_token:5", 2)], [("mean", 3), ("last", 0)]):
            runs.clear()
            capture.select(iter(wanted))
            rows = capture(batch)
            assert runs == list(range(max(layer for _, layer in wanted) + 1))
            assert set(rows.residual) == set(rows.heads) == set(wanted)
            for pair in wanted:
                assert torch.equal(rows.residual[pair], everything.residual[pair])
                assert torch.equal(rows.heads[pair], everything.heads[pair])


def test_start_copy_keeps_the_rows_on_the_cpu(folder: Folder) -> None:
    with open_capture(folder()) as capture:
        rows = capture(batch_of(capture))
        copies = rows.start_copy()
        copies.ready()
    for found, right in ((copies.residual, rows.residual), (copies.heads, rows.heads)):
        assert set(found) == set(right)
        assert all(torch.equal(found[pair], right[pair]) for pair in right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_rows_of_a_gpu_arrive_whole(folder: Folder) -> None:
    with open_capture(folder()) as capture:
        expected = capture(batch_of(capture))
    with Capture(str(folder()), None, ALL, "fp32", POOLINGS, torch.device("cuda")) as capture:
        copies = capture(batch_of(capture)).start_copy()
        copies.ready()
    for found, right in ((copies.residual, expected.residual), (copies.heads, expected.heads)):
        for pair, rows in found.items():
            assert rows.device.type == "cpu"
            assert float((rows - right[pair]).norm() / right[pair].norm()) < 1e-4


class Memory:
    """Runs out in layer 1 above `limit` texts; remembers the shapes of the batches that fitted."""

    def __init__(self, capture: Capture, limit: int, error: Exception | None = None) -> None:
        self.fitted: list[tuple[int, int]] = []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        def check(module: Any, inputs: Any) -> None:
            if len(inputs[0]) > limit:
                raise self.error
            self.fitted.append(tuple(inputs[0].shape[:2]))

        capture.decoder.layers[1].register_forward_pre_hook(check)


def sorted_batch(capture: Capture) -> Batch:
    return batch_of(capture, sorted(TEXTS, key=lambda text: -len(capture.tokenizer(text)["input_ids"])))


@pytest.mark.parametrize(
    ("limit", "parts"), [(10, [10]), (9, [5, 5]), (5, [5, 5]), (3, [2, 3, 2, 3]), (2, [2, 1, 2, 2, 1, 2]), (1, [1] * 10)]
)
def test_out_of_memory_halves_the_batch(folder: Folder, limit: int, parts: list[int]) -> None:
    assert len(TEXTS) == 10
    with open_capture(folder(), [1, 3]) as capture:
        batch = sorted_batch(capture)
        expected = capture(batch)
        memory = Memory(capture, limit)
        budget, said = Budget(100_000), list[str]()
        made = capture.each(batch, budget, said.append)
    assert [len(part) for part, _ in made] == [count for count, _ in memory.fitted] == parts
    assert [int(position) for part, _ in made for position in part.positions] == list(range(10))
    for part, (_, longest) in zip([part for part, _ in made], memory.fitted, strict=True):
        assert longest == part.tokens.max(), "no longer padded than the longest of its own"
    for pair, right in expected.residual.items():
        assert_close(torch.cat([rows.residual[pair] for _, rows in made]), list(right.double()))
        assert_close(torch.cat([rows.heads[pair] for _, rows in made]), list(expected.heads[pair].double()))
    if limit == 10:
        assert budget.tokens == 100_000 and not said
    else:
        assert budget.tokens <= batch.ids.size // 2
        assert said[0] == f"out of memory on a batch of {batch.ids.size} tokens: batches of {batch.ids.size // 2} from here on"


def test_each_has_its_rows_on_their_way(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the device goes on with the next batch."""
    copied: list[Captured] = []
    monkeypatch.setattr(Captured, "start_copy", lambda rows: copied.append(rows) or rows)
    with open_capture(folder(), [1, 3]) as capture:
        batch = sorted_batch(capture)
        Memory(capture, 5)
        made = capture.each(batch, Budget(100_000), lambda line: None)
    assert [id(rows) for _, rows in made] == [id(rows) for rows in copied]


def test_out_of_memory_on_a_single_text(folder: Folder) -> None:
    with open_capture(folder(), [1, 3]) as capture:
        batch = batch_of(capture, TEXTS[:1])
        Memory(capture, 0)
        with pytest.raises(UserError, match=f"out of memory on a single text of {batch.ids.size} tokens: lower max_tokens"):
            capture.each(batch, Budget(100), lambda line: None)


def test_other_errors_of_the_model_are_not_taken_for_memory(folder: Folder) -> None:
    with open_capture(folder(), [1, 3]) as capture:
        Memory(capture, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            capture.each(batch_of(capture), Budget(100), lambda line: None)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("anything"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert residual.is_out_of_memory(error) is memory


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_gone_after_the_context_manager(folder: Folder, fails: bool) -> None:
    capture = open_capture(folder(), [0, 2, 3])
    module = capture.decoder.module
    assert hooks_of(module) == 6
    try:
        with capture:
            capture(batch_of(capture, TEXTS[:1]))
            assert hooks_of(module) == 6
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert hooks_of(module) == 0


def test_what_a_capture_knows_of_its_model(folder: Folder) -> None:
    with open_capture(folder("qwen3"), [2, 0]) as capture:
        assert capture.layers == [0, 2]
        assert capture.layout(0) == capture.layout(2) == {"n_heads": 4, "head_dim": 16}
    with open_capture(folder("gpt2"), [1]) as capture:
        assert capture.layout(1) == {"n_heads": 4, "head_dim": 12}


def test_a_layer_without_heads_gives_a_residual_and_a_reason(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = residual.find_projections

    def second_has_none(*arguments: Any) -> list[Projection | NoHeads]:
        found: Iterator[Projection | NoHeads] = iter(real(*arguments))
        return [NoHeads("a gated delta net") if layer == 2 else one for layer, one in enumerate(found)]

    monkeypatch.setattr(residual, "find_projections", second_has_none)
    with open_capture(folder(), [1, 2, 3], ["mean"]) as capture:
        rows = capture(batch_of(capture))
        assert capture.layout(2) == {"reason": "a gated delta net"}
        assert capture.layout(3) == {"n_heads": 4, "head_dim": 16}
    assert set(rows.residual) == {("mean", 1), ("mean", 2), ("mean", 3)}
    assert set(rows.heads) == {("mean", 1), ("mean", 3)}
