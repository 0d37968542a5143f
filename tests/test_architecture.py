"""Finding blocks and attention heads by structure, on modules made by hand."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from amygdala import architecture
from amygdala.architecture import Decoder, NoHeads, Projection
from amygdala.errors import UserError

HIDDEN = 12


class Embedded(nn.Module):
    """Tokens to states, through its blocks; the tokens are passed on beside the states of each block."""

    def __init__(self, *blocks: nn.Module, skipped: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, HIDDEN)
        self.layers = nn.ModuleList(blocks)
        self.skipped = skipped

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, use_cache: bool = True) -> torch.Tensor:
        states = self.embed(input_ids)
        for number, layer in enumerate(self.layers):
            if number != self.skipped:
                states = architecture.states_of(layer(states))
        return states


class Tower(nn.Module):
    """Takes pictures."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def linears(count: int, width: int = HIDDEN) -> list[nn.Module]:
    return [nn.Linear(width, width) for _ in range(count)]


def decoder_of(*blocks: nn.Module, **options: Any) -> Decoder:
    module = Embedded(*blocks, **options).eval()
    return Decoder(module, module.layers)


def test_the_decoder_is_what_takes_tokens_and_holds_the_largest_list_of_blocks() -> None:
    model = nn.Module()
    model.vision = Tower(*linears(3, 40))
    model.language = Embedded(*linears(3))
    model.language.layers[0].experts = nn.ModuleList(linears(3, 4))
    model.language.draft = nn.ModuleList(linears(3, 4))
    model.language.buckets = nn.ModuleList(linears(4, 40))
    model.pair = Embedded(*linears(2, 40))
    found = architecture.find_decoder(model, 3)
    assert found.module is model.language
    assert found.layers is model.language.layers
    with pytest.raises(UserError, match="model: found no list of 5 decoder layers in Module"):
        architecture.find_decoder(model, 5)


def test_blocks_may_lie_deeper_than_what_takes_tokens() -> None:
    model = Embedded(*linears(2))
    model.inner = nn.Module()
    model.inner.stack = nn.ModuleList(linears(3))
    found = architecture.find_decoder(model, 3)
    assert found.module is model
    assert found.layers is model.inner.stack


def test_a_tower_that_takes_no_tokens_is_no_decoder() -> None:
    with pytest.raises(UserError, match="found no list of 3 decoder layers in Tower"):
        architecture.find_decoder(Tower(*linears(3)), 3)


def test_cut_leaves_the_first_blocks_and_what_the_decoder_needs() -> None:
    model = nn.Module()
    model.whole = nn.Module()
    model.whole.vision = Tower(*linears(4))
    model.whole.language = Embedded(*linears(4))
    model.whole.language.norm = nn.LayerNorm(HIDDEN)
    model.whole.projector = nn.Linear(HIDDEN, HIDDEN)
    model.head = nn.Linear(HIDDEN, 50)
    kept = list(model.whole.language.layers[:3])
    architecture.cut(model, Decoder(model.whole.language, model.whole.language.layers), 3)
    assert list(model.whole.language.layers) == kept
    names = {name for name, _ in model.named_modules()}
    assert names - {f"whole.language.layers.{number}" for number in range(3)} == {
        *("", "whole", "whole.language", "whole.language.embed", "whole.language.layers", "whole.language.norm")
    }


def test_cut_of_a_decoder_alone_takes_blocks_only() -> None:
    decoder = decoder_of(*linears(4))
    architecture.cut(decoder.module, decoder, 1)
    assert len(decoder.layers) == 1
    assert isinstance(decoder.module, Embedded) and decoder.module.get_input_embeddings() is decoder.module.embed


@pytest.mark.parametrize(("last", "runs"), [(0, [0]), (2, [0, 1, 2]), (-1, [0, 1, 2, 3])])
def test_run_until_goes_no_further(last: int, runs: list[int]) -> None:
    decoder = decoder_of(*linears(4))
    seen: list[int] = []
    for number, layer in enumerate(decoder.layers):
        layer.register_forward_hook(lambda module, inputs, output, number=number: seen.append(number))
    decoder.module.register_forward_hook(lambda *call: seen.append(99))
    architecture.run_until(decoder, torch.tensor([[3, 4]]), last)
    assert seen == runs
    assert [len(layer._forward_hooks) for layer in decoder.layers] == [1] * 4


def test_run_until_lets_other_errors_pass() -> None:
    decoder = decoder_of(*linears(2), nn.Linear(HIDDEN + 1, HIDDEN))
    with pytest.raises(RuntimeError, match="shapes"):
        architecture.run_until(decoder, torch.tensor([[3, 4]]))
    assert not any(layer._forward_hooks for layer in decoder.layers)


class Sum(nn.Module):
    """The sum of a token's state and those before it, and of `later` times those after it; with a tuple around it if wanted."""

    def __init__(self, later: float, as_tuple: bool = False) -> None:
        super().__init__()
        self.later, self.as_tuple = later, as_tuple

    def forward(self, states: torch.Tensor) -> Any:
        tokens = torch.arange(states.shape[1])
        mix = torch.where(tokens[:, None] >= tokens, 1.0, self.later).to(states.dtype)
        out = mix @ states
        return (out, "cache") if self.as_tuple else out


class Copies(nn.Module):
    """A residual stream of two copies."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.stack([states, states], self.axis)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_causal_models_pass(as_tuple: bool) -> None:
    architecture.check_causal(decoder_of(Sum(0, as_tuple), Sum(0, as_tuple)))


@pytest.mark.parametrize(("later", "dtype"), [(1.0, torch.float32), (0.01, torch.float32), (1.0, torch.bfloat16)])
def test_a_state_that_depends_on_later_tokens_is_refused(later: float, dtype: torch.dtype) -> None:
    decoder = decoder_of(Sum(0), Sum(later))
    decoder.module.to(dtype)
    with pytest.raises(UserError, match=r"model: Embedded is no decoder: a token's state depends on the tokens after it \(by"):
        architecture.check_causal(decoder)
    assert not any(layer._forward_hooks for layer in decoder.layers)


@pytest.mark.parametrize(("axis", "shape"), [(0, r"\[2, 2, 12, 12\]"), (2, r"\[2, 12, 2, 12\]")])
def test_a_stream_of_copies_is_refused(axis: int, shape: str) -> None:
    with pytest.raises(UserError, match=rf"a block of Embedded gives {shape} for \[2, 12\] tokens"):
        architecture.check_causal(decoder_of(Copies(axis)))


def test_a_last_block_that_does_not_run_is_refused() -> None:
    architecture.check_causal(decoder_of(*linears(3), skipped=1))
    with pytest.raises(UserError, match="model: layer 2 of Embedded does not run on text alone"):
        architecture.check_causal(decoder_of(*linears(3), skipped=2))


class Attention(nn.Module):
    """Attention of `n_heads`, with values of `head_dim` and queries of `width`, by transformers' AttentionInterface."""

    gate: nn.Module
    output: nn.Module

    def __init__(self, n_heads: int, head_dim: int, width: int | None = None, calls: int = 1, **parts: nn.Module) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.shape, self.width, self.calls = (n_heads, head_dim), width or head_dim, calls
        self.query, self.key = (nn.Linear(HIDDEN, n_heads * self.width) for _ in range(2))
        self.value = nn.Linear(HIDDEN, n_heads * head_dim)
        for name, module in parts.items():
            self.add_module(name, module)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        n_heads, head_dim = self.shape
        sizes = ((self.query, self.width), (self.key, self.width), (self.value, head_dim))
        parts = [module(states).unflatten(-1, (n_heads, size)).transpose(1, 2) for module, size in sizes]
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        for _ in range(self.calls):
            read, _ = attend(self, *parts, None, is_causal=True)
        read = read.flatten(2)
        if hasattr(self, "gate"):
            read = read * self.gate(states).sigmoid()
        return self.output(read) if hasattr(self, "output") else read[..., :HIDDEN]


class Block(nn.Module):
    """A mixer and, after it, an MLP whose input is as wide as that of a projection might be."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer, self.mlp, self.norm = mixer, nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.norm(states + self.mlp(self.mixer(states)))


class Recurrent(nn.GRU):
    """A mixer without attention."""

    def __init__(self) -> None:
        super().__init__(HIDDEN, HIDDEN, batch_first=True)

    def forward(self, states: Any, _: Any = None) -> Any:
        return super().forward(states)[0]


CONFIG = SimpleNamespace(num_attention_heads=7, hidden_size=HIDDEN)


def projections(*mixers: nn.Module) -> list[Projection | NoHeads]:
    return architecture.find_projections(decoder_of(*map(Block, mixers)), CONFIG)


@pytest.mark.parametrize(
    ("n_heads", "head_dim", "width"), [(3, 4, None), (4, 3, None), (3, 5, None), (2, 6, 10), (3, 5, 4), (1, 12, None)]
)
@pytest.mark.parametrize("conv", [False, True])
def test_heads_come_from_the_call_and_the_projection_from_what_reads_it(
    n_heads: int, head_dim: int, width: int | None, conv: bool
) -> None:
    output = Conv1D(HIDDEN, n_heads * head_dim) if conv else nn.Linear(n_heads * head_dim, HIDDEN)
    attention = Attention(n_heads, head_dim, width, output=output)
    (found,) = projections(attention)
    assert isinstance(found, Projection)
    assert found.module is output
    assert (found.n_heads, found.head_dim) == (n_heads, head_dim)


@pytest.mark.parametrize(("n_heads", "head_dim"), [(3, 4), (3, 5)])
def test_a_gate_that_reads_the_states_after_attention_is_not_the_projection(n_heads: int, head_dim: int) -> None:
    """The first shape is the one where both read as many values."""
    width = n_heads * head_dim
    outputs = [nn.Sequential(nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, HIDDEN)) for _ in range(2)]
    gates = [nn.Linear(HIDDEN, width), nn.Sequential(nn.Linear(HIDDEN, 2), nn.Linear(2, width))]
    found = projections(
        *(Attention(n_heads, head_dim, gate=gate, output=output) for gate, output in zip(gates, outputs, strict=True))
    )
    for one, output in zip(found, outputs, strict=True):
        assert isinstance(one, Projection)
        assert one.module is output[0]


def test_each_layer_for_itself() -> None:
    found = projections(
        Attention(3, 4, output=nn.Linear(12, HIDDEN)), nn.Linear(HIDDEN, HIDDEN), Attention(2, 5, output=nn.Linear(10, HIDDEN))
    )
    assert [(one.n_heads, one.head_dim) if isinstance(one, Projection) else one.reason for one in found] == [
        (3, 4),
        "no attention (Linear)",
        (2, 5),
    ]


@pytest.mark.parametrize(
    ("mixer", "reason"),
    [
        (Attention(3, 4), "nothing in Attention reads what its attention returns"),
        (Attention(3, 4, calls=2, output=nn.Linear(12, HIDDEN)), "2 attentions in one layer"),
        (Recurrent(), "no attention (Recurrent, Linear)"),
        (nn.Linear(HIDDEN + 1, HIDDEN), "its attention could not be watched (RuntimeError)"),
        (nn.Identity(), "no attention (Linear)"),
    ],
)
def test_why_a_layer_has_no_heads(mixer: nn.Module, reason: str) -> None:
    (found,) = projections(mixer)
    assert isinstance(found, NoHeads)
    assert found.reason == reason


def test_the_probe_leaves_no_traces() -> None:
    attention = Attention(3, 4, output=nn.Linear(12, HIDDEN))
    decoder = decoder_of(Block(attention))
    before = decoder.module(torch.tensor([[3, 4, 5]]))
    architecture.find_projections(decoder, CONFIG)
    assert attention.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in decoder.module.modules())
    assert torch.equal(decoder.module(torch.tensor([[3, 4, 5]])), before)


def test_attention_that_cannot_be_watched_is_looked_through_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "of_its_own", types.ModuleType("of_its_own"))

    class Own(Embedded):
        __module__ = "of_its_own"

    named = nn.Sequential()
    named.add_module("self_attention", nn.Sequential())
    named.get_submodule("self_attention").add_module("dense", nn.Linear(14, HIDDEN))
    model = Own(named, nn.Linear(HIDDEN, HIDDEN))
    found = architecture.find_projections(Decoder(model, model.layers), CONFIG)
    assert isinstance(found[0], Projection)
    assert found[0].module is named.get_submodule("self_attention.dense")
    assert (found[0].n_heads, found[0].head_dim) == (7, 2)
    assert isinstance(found[1], NoHeads)


def block(**attention: nn.Module) -> nn.Module:
    """A decoder block of hidden size 12: attention with the given modules, and an MLP that ends in c_proj."""
    layer = nn.Module()
    layer.self_attn = nn.Module()
    for name, module in attention.items():
        layer.self_attn.add_module(name, module)
    layer.mlp = nn.Module()
    layer.mlp.c_proj = nn.Linear(48, HIDDEN)
    return layer


@pytest.mark.parametrize("name", ["o_proj", "out_proj", "dense", "c_proj", "wo", "proj"])
@pytest.mark.parametrize("conv", [False, True])
def test_by_name_head_dim_comes_from_the_input_width(name: str, conv: bool) -> None:
    module = Conv1D(HIDDEN, 20) if conv else nn.Linear(20, HIDDEN)
    found = architecture.projection_by_name(block(q_proj=nn.Linear(HIDDEN, HIDDEN), **{name: module}), HIDDEN, 4)
    assert isinstance(found, Projection)
    assert found.module is module
    assert (found.n_heads, found.head_dim) == (4, 5)


@pytest.mark.parametrize(
    ("modules", "n_heads", "reason"),
    [
        ({}, 4, "no attention (Module)"),
        ({"q_proj": nn.Linear(12, 12)}, 4, "no attention (Module)"),
        ({"o_proj": nn.Linear(12, 20)}, 4, "no attention (Module)"),
        ({"o_proj": nn.Linear(20, 12)}, 3, "o_proj reads 20 values for 3 heads"),
        ({"o_proj": nn.Linear(20, 12), "out_proj": nn.Linear(20, 12)}, 4, "2 candidates"),
        ({"o_proj": nn.Linear(20, 12)}, None, "a model without attention heads"),
    ],
)
def test_by_name_blocks_whose_heads_cannot_be_read(modules: dict[str, nn.Module], n_heads: int | None, reason: str) -> None:
    found = architecture.projection_by_name(block(**modules), HIDDEN, n_heads)
    assert isinstance(found, NoHeads)
    assert reason in found.reason


def test_text_configuration() -> None:
    plain = SimpleNamespace(hidden_size=3, num_hidden_layers=5)
    assert architecture.text_config(plain) is plain
    assert architecture.count_layers(plain) == 5
    multimodal = SimpleNamespace(get_text_config=lambda decoder: plain if decoder else None, num_hidden_layers=2)
    assert architecture.text_config(multimodal) is plain
    assert architecture.count_layers(multimodal) == 5
