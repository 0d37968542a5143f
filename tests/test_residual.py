"""Rows of the residual stream and of the heads, against full runs of one unpadded text at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from amygdala import architecture, residual
from amygdala.architecture import NoHeads, Projection
from amygdala.errors import UserError
from amygdala.residual import Capture, Captured, Tokens

CPU = torch.device("cpu")
KINDS = ("llama", "qwen3", "gpt2")
N_LAYERS = 4
ALL = range(N_LAYERS)
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
    return [*whole[:8], *(text[:cut] for text, cut in zip(whole[8:], (12, 40, 41, 90), strict=True)), "Hm, so.", whole[0] * 2]


TEXTS = texts_of_many_lengths()


@dataclass
class Slow:
    """A text's full states: hidden_states as transformers gives them; each block's output and head input by own hooks."""

    ids: list[int]
    hidden_states: list[torch.Tensor]
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    heads: dict[int, torch.Tensor] = field(default_factory=dict)

    def content(self, until: int | None = None) -> list[int]:
        return [position for position, token in enumerate(self.ids[:until]) if position and token not in SPECIAL_IDS]


class Reference:
    """The full model with its vocabulary head, one text at a time."""

    def __init__(self, source: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        if hasattr(self.model, "transformer"):
            self.blocks = list(self.model.transformer.h)
            self.projections = [block.attn.c_proj for block in self.blocks]
        else:
            self.blocks = list(self.model.model.layers)
            self.projections = [block.self_attn.o_proj for block in self.blocks]

    def __call__(self, text: str) -> Slow:
        ids = self.tokenizer(text)["input_ids"]
        slow = Slow(ids, [])
        hooks = []
        for layer, (block, projection) in enumerate(zip(self.blocks, self.projections, strict=True)):

            def keep(module: Any, inputs: Any, output: Any, layer: int = layer) -> None:
                slow.outputs[layer] = (output[0] if isinstance(output, tuple) else output)[0].double()

            def keep_input(module: Any, inputs: Any, layer: int = layer) -> None:
                slow.heads[layer] = inputs[0][0].double()

            hooks += [block.register_forward_hook(keep), projection.register_forward_pre_hook(keep_input)]
        with torch.no_grad():
            result = self.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        slow.hidden_states = [state[0].double() for state in result.hidden_states]
        return slow


@pytest.fixture(scope="module")
def slow(folder: Folder) -> Callable[..., list[Slow]]:
    made: dict[Any, list[Slow]] = {}

    def run(kind: str, texts: Sequence[str] = TEXTS, **options: Any) -> list[Slow]:
        name = (kind, tuple(texts), *options.items())
        if name not in made:
            reference = Reference(folder(kind, **options))
            made[name] = [reference(text) for text in texts]
        return made[name]

    return run


def capture_all(source: Path, texts: Sequence[str] = TEXTS, layers: Sequence[int] = ALL, **options: Any) -> Captured:
    """All texts in one batch."""
    settings = {"dtype": "fp32", "pooling": "mean", "max_tokens": 2048, **options}
    with Capture(str(source), None, layers, settings["dtype"], settings["pooling"], CPU) as capture:
        return capture(residual.tokenize(capture.tokenizer, texts, settings["max_tokens"]))


def assert_close(rows: torch.Tensor, expected: Sequence[torch.Tensor], tolerance: float = TOLERANCE) -> None:
    assert rows.dtype == torch.float32
    assert rows.shape == (len(expected), len(expected[0]))
    for row, right in zip(rows.double(), expected, strict=True):
        assert float((row - right).norm() / right.norm()) < tolerance


# rows against the slow reference


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_equals_the_full_run(kind: str, folder: Folder, slow: Callable[..., list[Slow]]) -> None:
    rows = capture_all(folder(kind))
    references = slow(kind)
    assert set(rows.residual) == set(rows.heads) == set(ALL)
    for layer in ALL:
        outputs = [reference.outputs[layer][reference.content()].mean(0) for reference in references]
        assert_close(rows.residual[layer], outputs)
        assert_close(rows.heads[layer], [reference.heads[layer][reference.content()].mean(0) for reference in references])
        states = [reference.hidden_states[layer + 1][reference.content()].mean(0) for reference in references]
        if layer < N_LAYERS - 1:
            assert_close(rows.residual[layer], states)
        else:  # transformers gives the last one after the final norm
            with pytest.raises(AssertionError):
                assert_close(rows.residual[layer], states, 1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", ALL)
def test_a_truncated_model_gives_the_rows_of_the_full_one(
    kind: str, layer: int, folder: Folder, slow: Callable[..., list[Slow]]
) -> None:
    rows = capture_all(folder(kind), layers=[layer])
    assert set(rows.residual) == set(rows.heads) == {layer}
    references = slow(kind)
    assert_close(rows.residual[layer], [reference.outputs[layer][reference.content()].mean(0) for reference in references])
    assert_close(rows.heads[layer], [reference.heads[layer][reference.content()].mean(0) for reference in references])


@pytest.mark.parametrize("kind", KINDS)
def test_last_pooling_takes_the_last_content_token(kind: str, folder: Folder, slow: Callable[..., list[Slow]]) -> None:
    texts = [*TEXTS[:4], TEXTS[4] + "</s>", TEXTS[5] + "</s><pad></s>", TEXTS[6] + "</s>."]
    rows = capture_all(folder(kind), texts, pooling="last")
    references = slow(kind, texts)
    assert [len(r.ids) - 1 - r.content()[-1] for r in references] == [0, 0, 0, 0, 1, 3, 0]
    for layer in ALL:
        assert_close(rows.residual[layer], [reference.outputs[layer][reference.content()[-1]] for reference in references])
        assert_close(rows.heads[layer], [reference.heads[layer][reference.content()[-1]] for reference in references])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_batch_equals_single(kind: str, pooling: str, folder: Folder) -> None:
    with Capture(str(folder(kind)), None, ALL, "fp32", pooling, CPU) as capture:
        tokens = residual.tokenize(capture.tokenizer, TEXTS, 2048)
        assert len({len(text.ids) for text in tokens}) > 8
        together, alone = capture(tokens), [capture([text]) for text in tokens]
    for layer in ALL:
        assert_close(together.residual[layer], [one.residual[layer][0].double() for one in alone])
        assert_close(together.heads[layer], [one.heads[layer][0].double() for one in alone])


def test_order_does_not_matter(folder: Folder) -> None:
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(1)).tolist()
    straight = capture_all(folder())
    shuffled = capture_all(folder(), [TEXTS[position] for position in order])
    for layer in ALL:
        assert_close(shuffled.residual[layer], [straight.residual[layer][position].double() for position in order])
        assert_close(shuffled.heads[layer], [straight.heads[layer][position].double() for position in order])


def test_layers_may_come_in_any_order(folder: Folder) -> None:
    straight, reverse = capture_all(folder(), layers=[0, 2]), capture_all(folder(), layers=[2, 0])
    for layer in (0, 2):
        assert torch.equal(straight.residual[layer], reverse.residual[layer])


def test_special_tokens_in_a_text_never_count(folder: Folder, slow: Callable[..., list[Slow]]) -> None:
    texts = [f"<s>{TEXTS[0]}", TEXTS[1][:30] + "</s>" + TEXTS[1][30:], TEXTS[2] + "<pad><pad>"]
    rows, references = capture_all(folder(), texts), slow("llama", texts)
    for reference in references:
        assert SPECIAL_IDS & set(reference.ids)
    for layer in ALL:
        assert_close(rows.residual[layer], [reference.outputs[layer][reference.content()].mean(0) for reference in references])
        with pytest.raises(AssertionError):
            assert_close(rows.residual[layer], [reference.outputs[layer][1:].mean(0) for reference in references], 1e-3)


def test_with_bos_the_first_content_token_counts(folder: Folder, slow: Callable[..., list[Slow]]) -> None:
    rows, references = capture_all(folder(bos=True)), slow("llama", bos=True)
    assert all(reference.ids[0] == 1 for reference in references)
    for layer in ALL:
        assert_close(rows.residual[layer], [reference.outputs[layer][1:].mean(0) for reference in references])
        for shift in (0, 2):
            with pytest.raises(AssertionError):
                assert_close(rows.residual[layer], [reference.outputs[layer][shift:].mean(0) for reference in references], 1e-3)


def test_cut_texts_are_rows_of_their_first_tokens(folder: Folder, slow: Callable[..., list[Slow]]) -> None:
    references = slow("llama")
    rows = capture_all(folder(), max_tokens=20)
    for layer in ALL:
        expected = [reference.outputs[layer][reference.content(until=20)].mean(0) for reference in references]
        assert_close(rows.residual[layer], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind: str, folder: Folder) -> None:
    exact, rough = capture_all(folder(kind)), capture_all(folder(kind), dtype="bf16")
    for layer in ALL:
        for right, rows in ((exact.residual, rough.residual), (exact.heads, rough.heads)):
            assert rows[layer].dtype == torch.float32
            assert not torch.equal(rows[layer], right[layer])
            assert float(torch.cosine_similarity(rows[layer], right[layer]).min()) > 0.99


# tokens


@pytest.mark.parametrize("bos", [False, True])
def test_tokens_without_a_limit(bos: bool) -> None:
    tokenizer = tiny.make_tokenizer(bos)
    (text,) = residual.tokenize(tokenizer, ["A warm</s> light"], 2048)
    assert text.ids == tokenizer("A warm</s> light")["input_ids"]
    assert text.ids[0] == (1 if bos else tokenizer.convert_tokens_to_ids("A"))
    assert text.content == [position > 0 and token not in SPECIAL_IDS for position, token in enumerate(text.ids)]
    assert text.content[:2] == [False, True]
    assert text.content.count(False) == 2
    assert not text.cut


@pytest.mark.parametrize("bos", [False, True])
def test_longer_texts_are_cut_at_the_end_and_marked(bos: bool) -> None:
    tokenizer = tiny.make_tokenizer(bos)
    full = residual.tokenize(tokenizer, [TEXTS[0]], 10_000)[0]
    length = len(full.ids)
    for limit in (length + 1, length, length - 1, 7, 2, 1):
        (text,) = residual.tokenize(tokenizer, [TEXTS[0]], limit)
        assert text.ids == full.ids[:limit]
        assert text.content == full.content[:limit]
        assert text.cut is (limit < length)


class StubTokenizer:
    """Token 7 is one that the template adds but that is not listed as special; 3 is the unknown token, listed as special."""

    all_special_ids: tuple[int, ...] = (0, 1, 2, 3)
    unk_token_id = 3

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        assert options["return_special_tokens_mask"] and options["add_special_tokens"]
        ids = [[int(token) for token in text.split()] for text in texts]
        return {"input_ids": ids, "special_tokens_mask": [[int(token in (1, 7)) for token in row] for row in ids]}


@pytest.mark.parametrize(
    ("ids", "content"),
    [
        ("1 5 6 7", "-xx-"),
        ("5 6 3 2 6", "-xx-x"),
        ("3 3", "-x"),
        ("7 5", "-x"),
        ("1 2 7", "---"),
        ("5", "-"),
        ("", ""),
    ],
)
def test_which_tokens_are_content(ids: str, content: str) -> None:
    (text,) = residual.tokenize(StubTokenizer(), [ids], 2048)
    assert "".join("x" if flag else "-" for flag in text.content) == content


# batches and pooling


@pytest.mark.parametrize("budget", [1, 7, 64, 300, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_batches(budget: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 120, size=60).tolist()
    made = residual.batches(lengths, budget)
    flat = [position for batch in made for position in batch]
    assert sorted(flat) == list(range(60))
    assert [lengths[position] for position in flat] == sorted(lengths, reverse=True)
    padded = [len(batch) * max(lengths[position] for position in batch) for batch in made]
    assert all(size <= budget or len(batch) == 1 for size, batch in zip(padded, made, strict=True))
    for batch in made[:-1]:  # none is closed while another text would fit
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_batches_of_no_texts_and_of_equal_ones() -> None:
    assert residual.batches([], 100) == []
    assert residual.batches([10] * 7, 30) == [[0, 1, 2], [3, 4, 5], [6]]


def random_content(seed: int) -> torch.Tensor:
    content = torch.rand((6, 11), generator=torch.Generator().manual_seed(seed)) > 0.6
    content[torch.arange(6), torch.arange(6)] = True  # one a row at least
    content[0] = torch.arange(11) == 0
    content[1] = True
    return content


@pytest.mark.parametrize("seed", range(3))
def test_mean_weights(seed: int) -> None:
    content = random_content(seed)
    weights = residual.pool_weights(content, "mean")
    assert weights.dtype == torch.float32
    for row, flags in zip(weights.tolist(), content.tolist(), strict=True):
        assert abs(sum(row) - 1) < 1e-6
        assert row == pytest.approx([flag / sum(flags) for flag in flags], abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_last_weights(seed: int) -> None:
    content = random_content(seed)
    for row, flags in zip(residual.pool_weights(content, "last").tolist(), content.tolist(), strict=True):
        last = max(position for position, flag in enumerate(flags) if flag)
        assert row == [float(position == last) for position in range(len(flags))]


def test_unknown_pooling() -> None:
    with pytest.raises(ValueError, match="median"):
        residual.pool_weights(random_content(0), "median")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pooling_sums_in_float32(dtype: torch.dtype) -> None:
    states = torch.randn((3, 400, 8), generator=torch.Generator().manual_seed(0)).mul(10).add(100).to(dtype)
    weights = residual.pool_weights(torch.ones((3, 400), dtype=torch.bool), "mean")
    rows = residual.pool(states, weights)
    assert rows.dtype == torch.float32
    assert float((rows.double() - states.double().mean(1)).abs().max()) < 1e-3


# out of memory


class Memory:
    """Stands in for Capture._forward: out of memory above `limit` texts; remembers the sizes that went through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.sizes: list[int] = []
        real = Capture._forward

        def forward(capture: Capture, texts: Sequence[Tokens]) -> Captured:
            if len(texts) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.sizes.append(len(texts))
            return real(capture, texts)

        monkeypatch.setattr(Capture, "_forward", forward)


@pytest.mark.parametrize(("limit", "sizes"), [(13, [7, 7]), (6, [3, 4, 3, 4]), (1, [1] * 14)])
def test_out_of_memory_halves_the_batch(folder: Folder, monkeypatch: pytest.MonkeyPatch, limit: int, sizes: list[int]) -> None:
    assert len(TEXTS) == 14
    expected = capture_all(folder(), layers=[1, 3])
    memory = Memory(monkeypatch, limit)
    rows = capture_all(folder(), layers=[1, 3])
    assert memory.sizes == sizes
    for layer in (1, 3):
        assert_close(rows.residual[layer], list(expected.residual[layer].double()))
        assert_close(rows.heads[layer], list(expected.heads[layer].double()))


def test_out_of_memory_on_a_single_text(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, 0)
    length = len(tiny.make_tokenizer()(TEXTS[0])["input_ids"])
    with pytest.raises(UserError, match=f"out of memory on a single text of {length} tokens: lower max_tokens"):
        capture_all(folder(), TEXTS[:1])


# loading


def altered(source: Path, target: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    """A copy of a model folder with changed weights."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),
    ],
)
def test_missing_weights_of_a_needed_layer_are_refused(folder: Folder, tmp_path: Path, kind: str, weight: str) -> None:
    broken = altered(folder(kind), tmp_path / "broken", lambda tensors: tensors.pop(weight))
    short = weight.partition(".")[2]
    with pytest.raises(UserError, match=rf"model: .*broken lacks 1 weights, .*{short}.* does not fit its config\.json"):
        Capture(str(broken), None, [1], "fp32", "mean", CPU)


def test_missing_weights_beyond_the_last_target_do_not_matter(folder: Folder, tmp_path: Path) -> None:
    def cut(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith(("model.layers.2.", "model.layers.3.", "lm_head"))]:
            del tensors[name]

    rows = capture_all(altered(folder(), tmp_path / "cut", cut), layers=[1])
    assert torch.equal(rows.residual[1], capture_all(folder(), layers=[1]).residual[1])


def test_folder_without_weights_config_or_tokenizer(folder: Folder, tmp_path: Path) -> None:
    for name, pattern in (("weights", "model.safetensors"), ("config", "config.json"), ("tokenizer", "tokenizer*")):
        broken = tmp_path / f"without_{name}"
        shutil.copytree(folder(), broken)
        for path in broken.glob(pattern):
            path.unlink()
        with pytest.raises(UserError, match=f"model: .*without_{name}"):
            Capture(str(broken), None, [1], "fp32", "mean", CPU)


def test_pickled_weights_are_not_loaded(folder: Folder, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(folder(), pickled)
    tensors = {name: torch.from_numpy(values) for name, values in load_file(pickled / "model.safetensors").items()}
    torch.save(tensors, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model: .*pickled"):
        Capture(str(pickled), None, [1], "fp32", "mean", CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [0, 2])
def test_layers_beyond_the_last_target_are_not_loaded(kind: str, last: int, folder: Folder) -> None:
    with Capture(str(folder(kind)), None, [0, last] if last else [0], "fp32", "mean", CPU) as capture:
        names = [name for name, _ in capture.model.named_parameters()]
        prefix = "h" if kind == "gpt2" else "layers"
        loaded = {int(name.split(".")[1]) for name in names if name.startswith(f"{prefix}.")}
        assert loaded == set(range(last + 1))
        assert not [name for name in names if "lm_head" in name]
        assert not capture.model.training


def test_lists_of_one_entry_a_layer_are_cut_alike(folder: Folder) -> None:
    full = json.loads((folder("qwen3") / "config.json").read_text())["layer_types"]
    config = residual.truncated_config(str(folder("qwen3")), None, 3)
    assert config.num_hidden_layers == 3
    assert len(full) == N_LAYERS and config.layer_types == full[:3]


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_number_format_of_the_weights(folder: Folder, dtype: str, expected: torch.dtype) -> None:
    with Capture(str(folder()), None, [0], dtype, "mean", CPU) as capture:
        assert {parameter.dtype for parameter in capture.model.parameters()} == {expected}


def test_what_a_capture_knows_of_its_model(folder: Folder) -> None:
    with Capture(str(folder("qwen3")), None, [0, 2], "fp32", "mean", CPU) as capture:
        assert capture.layers == [0, 2]
        assert capture.max_positions == 1024
        assert capture.layout(0) == capture.layout(2) == {"n_heads": 4, "head_dim": 16}
    with Capture(str(folder("gpt2")), None, [1], "fp32", "mean", CPU) as capture:
        assert capture.max_positions == 1024
        assert capture.layout(1) == {"n_heads": 4, "head_dim": 12}


# hooks


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_gone_after_the_context_manager(folder: Folder, fails: bool) -> None:
    capture = Capture(str(folder()), None, [0, 2, 3], "fp32", "mean", CPU)
    assert hooks_of(capture.model) == 6
    try:
        with capture:
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert hooks_of(capture.model) == 0


def test_nothing_is_kept_for_the_gradient(folder: Folder) -> None:
    rows = capture_all(folder(), TEXTS[:2])
    assert not any(values.requires_grad for values in [*rows.residual.values(), *rows.heads.values()])


def test_layer_without_heads(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = residual.output_projection
    calls: Iterator[int] = iter(range(9))

    def second_has_none(*arguments: Any) -> Projection | NoHeads:
        return NoHeads("a gated delta net") if next(calls) == 1 else real(*arguments)

    monkeypatch.setattr(residual, "output_projection", second_has_none)
    Memory(monkeypatch, 3)
    with Capture(str(folder()), None, [1, 2, 3], "fp32", "mean", CPU) as capture:
        rows = capture(residual.tokenize(capture.tokenizer, TEXTS, 2048))
        assert capture.layout(2) == {"reason": "a gated delta net"}
        assert capture.layout(3) == {"n_heads": 4, "head_dim": 16}
    assert set(rows.residual) == {1, 2, 3}
    assert set(rows.heads) == {1, 3}


# device


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_device_auto(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert residual.pick_device("auto").type == chosen
    assert residual.pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device: {wanted} is not available here; set `device: auto`"):
        residual.pick_device(wanted)


# architecture


def block(**attention: nn.Module) -> nn.Module:
    """A decoder block of hidden size 12: attention with the given modules, and an MLP that ends in c_proj."""
    layer = nn.Module()
    layer.self_attn = nn.Module()
    for name, module in attention.items():
        layer.self_attn.add_module(name, module)
    layer.mlp = nn.Module()
    layer.mlp.c_proj = nn.Linear(48, 12)
    return layer


@pytest.mark.parametrize("name", ["o_proj", "out_proj", "dense", "c_proj", "wo"])
@pytest.mark.parametrize("conv", [False, True])
def test_head_dim_comes_from_the_input_width_of_the_projection(name: str, conv: bool) -> None:
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(12, 20) if conv else nn.Linear(20, 12)
    found = architecture.output_projection(block(q_proj=nn.Linear(12, 12), **{name: module}), 12, 4)
    assert isinstance(found, Projection)
    assert found.module is module
    assert (found.n_heads, found.head_dim) == (4, 5)


@pytest.mark.parametrize(
    ("modules", "n_heads", "reason"),
    [
        ({}, 4, "no attention output projection"),
        ({"q_proj": nn.Linear(12, 12)}, 4, "no attention output projection"),
        ({"o_proj": nn.Linear(12, 20)}, 4, "no attention output projection"),
        ({"o_proj": nn.Linear(20, 12)}, 3, "o_proj reads 20 values for 3 heads"),
        ({"o_proj": nn.Linear(20, 12), "out_proj": nn.Linear(20, 12)}, 4, "2 candidates"),
    ],
)
def test_blocks_whose_heads_cannot_be_read(modules: dict[str, nn.Module], n_heads: int, reason: str) -> None:
    found = architecture.output_projection(block(**modules), 12, n_heads)
    assert isinstance(found, NoHeads)
    assert reason in found.reason


def blocks(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(1, 1) for _ in range(count))


def test_decoder_layers_are_the_outermost_list_of_that_length() -> None:
    model = nn.Module()
    model.vision_tower, model.audio_tower, model.language = nn.Module(), nn.Module(), nn.Module()
    model.vision_blocks = blocks(3)
    model.vision_tower.layers, model.audio_tower.layers = blocks(3), blocks(3)
    model.language.layers = blocks(3)
    model.language.layers[0].experts = blocks(3)
    model.heads = blocks(2)
    assert architecture.decoder_layers(model, 3) is model.language.layers
    with pytest.raises(UserError, match="found no list of 5 decoder layers in Module"):
        architecture.decoder_layers(model, 5)


def test_text_configuration() -> None:
    plain = SimpleNamespace(hidden_size=3)
    assert architecture.text_config(plain) is plain
    multimodal = SimpleNamespace(get_text_config=lambda decoder: ("text", decoder))
    assert architecture.text_config(multimodal) == ("text", True)


def test_weights_of_another_shape_or_cut_short_are_refused(folder: Folder, tmp_path: Path) -> None:
    def narrow(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:-1].copy()

    with pytest.raises(UserError, match=r"model: .*narrow has weights of other shapes; it does not fit its config\.json"):
        Capture(str(altered(folder(), tmp_path / "narrow", narrow)), None, [1], "fp32", "mean", CPU)
    short = altered(folder(), tmp_path / "short", lambda tensors: None)
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model: .*short cannot be loaded"):
        Capture(str(short), None, [1], "fp32", "mean", CPU)


def test_a_model_without_attention_gives_residuals_and_no_heads(folder: Folder) -> None:
    """Batched and truncated against the whole model, one text at a time; hooked: Mamba's hidden_states lack the embedding."""
    source = folder("mamba")
    texts = ["A short text.", "A longer text, with a good many more tokens than the other one has in it."]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = residual.load_tokenizer(str(source), None)
    for layer in (0, 2):
        captured = capture_all(source, texts, layers=[layer])
        assert not captured.heads
        for row, text in zip(captured.residual[layer], texts, strict=True):
            with torch.no_grad():
                seen: list[torch.Tensor] = []
                hook = model.backbone.layers[layer].register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
                model(**tokenizer(text, return_tensors="pt"))
                hook.remove()
            expected = seen[0][0, 1:].mean(0)
            assert float((row - expected).norm() / expected.norm()) < TOLERANCE
    with Capture(str(source), None, [0, 2], "fp32", "mean", CPU) as capture:
        assert capture.layout(2) == {"reason": "a model without attention heads"}
