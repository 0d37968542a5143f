"""The weights of blocks of many architectures, by what they do: a neuron is switched, and the MLP's output moves along it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

from amygdala.architecture import Decoder, NoHeads, Projection, find_decoder, find_projections, run_until, text_config
from amygdala.blockweights import block_weights, o_proj_of
from amygdala.errors import UserError
from architectures import HIDDEN, N_LAYERS, VOCABULARY, random_weights, tiny_config
from test_architectures import HEADLESS, KINDS, PROJECTION_OF

# Where the MLP's last linear module lies, and in which kinds.
LINEAR = {
    "mlp.down_proj": """
        afmoe apertus arcee beam bitnet cohere cohere2 deepseek_v2 deepseek_v3 diffllama doge ernie4_5 exaone4 gemma gemma2
        gemma3_text gemma4_text glm glm4 granite helium hunyuan_v1_dense laguna llama ministral3 mistral nemotron olmo olmo2
        olmo3 olmo_hybrid phi3 qwen2 qwen3 qwen3_5_text seed_oss smollm3 stablelm vaultgemma
    """,
    "feed_forward.down_proj": "bamba falcon_h1 jamba",
    "feed_forward.w2": "lfm2 lfm3",
    "fc2": "biogpt opt xglm",
    "mlp.dense_4h_to_h": "bloom falcon gpt_neox persimmon",
    "mlp.fc_out": "codegen gptj",
    "mlp.c_proj": "gpt2 gpt_bigcode gpt_neo starcoder2",
    "mlp.Wo": "modernbert-decoder",
    "mlp.fc2": "phi",
    "ffn.down_proj": "mpt",
    "ffn.proj_down": "xlstm",
    "mlp_block.down_proj": "recurrent_gemma",
    "mixer.down_proj": "nemotron_h",
    "mlp.shared_expert.down_proj": "qwen2_moe qwen3_5_moe_text qwen3_next",
    "feed_forward.shared_expert.down_proj": "llama4_text",
    "shared_mlp.output_linear": "granitemoehybrid",
}
# Fused experts: where their output matrix lies, how its sides stand (experts, then), and which parameter gives neuron j from
# which of its rows: halves j and n + j, or pairs 2j and 2j + 1.
FUSED = {
    ("mlp.experts.down_proj", "hidden first", "gate_up_proj", "halves"): """
        afmoe beam deepseek_v2 deepseek_v3 laguna minimax mixtral olmoe phimoe qwen2_moe qwen3_5_moe_text qwen3_moe qwen3_next
    """,
    ("block_sparse_moe.experts.down_proj", "hidden first", "gate_up_proj", "halves"): "granitemoe granitemoehybrid",
    ("feed_forward.experts.down_proj", "hidden first", "gate_up_proj", "halves"): "jamba",
    ("mlp.experts.down_proj", "hidden last", "gate_up_proj", "pairs"): "gpt_oss",
    ("feed_forward.experts.down_proj", "hidden last", "gate_up_proj", "halves"): "llama4_text",
    ("mlp.output_linear.weight", "hidden first", "mlp.input_linear.weight", "halves"): "jetmoe",
}
# Layers that are not like that: what they have of it.
DENSE_LAYERS = {"afmoe": (0,), "beam": (0, 1, 2), "deepseek_v2": (0,), "deepseek_v3": (0,), "laguna": (0,), "jamba": (0, 2)}
SHARED_BESIDE = {"afmoe": "mlp.shared_experts.down_proj", "laguna": "mlp.shared_experts.down_proj"}
SHARED_BESIDE |= dict.fromkeys(("deepseek_v2", "deepseek_v3"), "mlp.shared_experts.down_proj")
WITHOUT: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "rwkv"), tuple(range(N_LAYERS))),
    "nemotron_h": (0, 1, 3),
}


def linear_of(kind: str, layer: int) -> set[str]:
    found = {path for path, kinds in LINEAR.items() if kind in kinds.split()}
    if kind in DENSE_LAYERS and layer not in DENSE_LAYERS[kind]:
        return {SHARED_BESIDE[kind]} if kind in SHARED_BESIDE else set()
    return set() if layer in WITHOUT.get(kind, ()) else found


def fused_of(kind: str, layer: int) -> tuple[str, str, str, str] | None:
    if layer in DENSE_LAYERS.get(kind, ()):
        return None
    return next((entry for entry, kinds in FUSED.items() if kind in kinds.split()), None)


@dataclass
class Layer:
    number: int
    block: nn.Module
    projection: Projection | NoHeads
    o_proj: np.ndarray | None
    neurons: np.ndarray | None
    facts: dict[str, Any]

    def start_of(self, name: str) -> int:
        """The first neuron of a weight."""
        at = 0
        for other, count in self.facts["neurons_of"]:
            if other == name:
                return at
            at += count
        raise AssertionError(name)


@dataclass
class Case:
    kind: str
    decoder: Decoder
    layers: list[Layer]


def decoder_of(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Decoder:
    torch.manual_seed(0)
    config = tiny_config(kind)
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    random_weights(model)
    return find_decoder(model.to(dtype), N_LAYERS)


def layers_of(decoder: Decoder) -> list[Layer]:
    with torch.inference_mode():
        projections = find_projections(decoder, text_config(decoder.module.config))
    blocks = enumerate(zip(decoder.layers, projections, strict=True))
    return [Layer(n, block, found, *block_weights(decoder, n, found)) for n, (block, found) in blocks]


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    decoder = decoder_of(request.param)
    yield Case(request.param, decoder, layers_of(decoder))
    torch.set_num_threads(before)


def test_o_proj_is_what_the_named_projection_does(case: Case) -> None:
    z = torch.randn(7, 400, generator=torch.Generator().manual_seed(1))
    for layer in case.layers:
        if layer.number in HEADLESS.get(case.kind, ((), ""))[0]:
            assert layer.o_proj is None and layer.facts["reason"] and "n_heads" not in layer.facts
            continue
        assert layer.o_proj is not None and layer.o_proj.dtype == np.float32 and "reason" not in layer.facts
        module = layer.block.get_submodule(PROJECTION_OF[case.kind])
        width = layer.facts["n_heads"] * layer.facts["head_dim"]
        assert layer.o_proj.shape == (HIDDEN, width)
        with torch.no_grad():
            done = module(z[:, :width]) - module(torch.zeros(7, width))
        assert np.allclose(done.numpy(), z[:, :width].numpy() @ layer.o_proj.T, atol=1e-5)


def test_the_neurons_are_those_of_the_named_weights(case: Case) -> None:
    for layer in case.layers:
        fused = fused_of(case.kind, layer.number)
        expected = {f"{name}.weight" for name in linear_of(case.kind, layer.number)} | ({fused[0]} if fused else set())
        if not expected:
            assert layer.neurons is None and "no MLP that works on each token by itself" in layer.facts["neurons_reason"]
            continue
        assert layer.neurons is not None and layer.neurons.dtype == np.float16 and "neurons_reason" not in layer.facts
        assert {name for name, _ in layer.facts["neurons_of"]} == expected
        assert layer.neurons.shape == (sum(count for _, count in layer.facts["neurons_of"]), HIDDEN)
        lengths = np.linalg.norm(layer.neurons[::97].astype(np.float64), axis=1)
        assert np.abs(lengths - 1).max() < 1e-3


def given_by(decoder: Decoder, layer: int, child: nn.Module, prepare: Callable[[], list[Any]]) -> torch.Tensor:
    """What a child of a block gives on 40 tokens, float64 [tokens, hidden], under the hooks that `prepare` sets."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        seen.append(states.detach().reshape(-1, HIDDEN).double())

    hooks = [*prepare(), child.register_forward_hook(keep)]
    ids = torch.randint(3, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(2))
    try:
        with torch.no_grad():
            run_until(decoder, ids, last=layer)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0]


def assert_along(change: torch.Tensor, neuron: np.ndarray) -> None:
    """Every row of change that is not 0 is parallel to the neuron's direction."""
    moved = change[change.norm(dim=1) > 1e-3 * change.norm(dim=1).max()]
    direction = torch.from_numpy(neuron.astype(np.float64))
    cosine = (moved @ direction) / moved.norm(dim=1) / direction.norm()
    assert len(moved) and float(cosine.abs().min()) > 0.9999


def test_a_neuron_that_fires_moves_the_mlp_along_its_direction(case: Case) -> None:
    for layer in case.layers:
        for name in linear_of(case.kind, layer.number):
            assert layer.neurons is not None
            down = layer.block.get_submodule(name)
            child = layer.block.get_submodule(name.split(".")[0])
            for neuron in (0, 13):
                before, after = (
                    given_by(case.decoder, layer.number, child, partial(one_hot, down, neuron, value)) for value in (0.0, 5.0)
                )
                change = after - before
                assert_along(change, layer.neurons[layer.start_of(f"{name}.weight") + neuron])
                assert len(change) == 40 and float(change.norm(dim=1).min()) > 0


def one_hot(down: nn.Module, neuron: int, value: float) -> list[Any]:
    """A hook that makes one neuron fire by `value`, the others not at all: what the down projection reads is replaced."""

    def hook(module: Any, inputs: Any) -> Any:
        states = torch.zeros_like(inputs[0])
        states[..., neuron] = value
        return (states,)

    return [down.register_forward_pre_hook(hook)]


def test_a_neuron_of_fused_experts_moves_the_mlp_along_its_direction(case: Case) -> None:
    """What neuron j of an expert computes is switched off at its input weights; where a token meets that expert, the output
    moves along that neuron.
    """
    for layer in case.layers:
        entry = fused_of(case.kind, layer.number)
        if entry is None:
            continue
        assert layer.neurons is not None
        name, sides, up_name, rows = entry
        down = layer.block.get_parameter(name)
        up = layer.block.get_parameter(up_name if "." in up_name else f"{name.rpartition('.')[0]}.{up_name}")
        child = layer.block.get_submodule(name.split(".")[0])
        count = down.shape[2] if sides == "hidden first" else down.shape[1]
        before = given_by(case.decoder, layer.number, child, list)
        met = 0
        for expert in range(min(len(down), 8)):
            j = (5 * expert + 3) % count
            which = [j, count + j] if rows == "halves" else [2 * j, 2 * j + 1]
            kept = up.data[expert].clone()
            (up.data[expert] if sides == "hidden first" else up.data[expert].T)[which] *= 3
            change = given_by(case.decoder, layer.number, child, list) - before
            up.data[expert] = kept
            if float(change.norm(dim=1).max()) > 1e-3:
                met += 1
                assert_along(change, layer.neurons[layer.start_of(name) + expert * count + j])
        assert met, "no token met one of these experts"


def test_neurons_of_length_zero_stay_zero_and_others_are_the_columns() -> None:
    decoder = decoder_of("llama")
    weight = decoder.layers[1].get_parameter("mlp.down_proj.weight")
    weight.data[:, 5] = 0
    _, neurons, _ = block_weights(decoder, 1, NoHeads("not asked for"))
    assert neurons is not None and not neurons[5].any() and np.isfinite(neurons).all()
    for j in (0, 4, 6, 63):
        column = weight.data[:, j].double().numpy()
        assert np.abs(neurons[j] - column / np.linalg.norm(column)).max() < 5e-4


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "gpt_oss", "jamba", "mpt", "qwen3_next", "nemotron_h", "opt"])
def test_half_precision_finds_the_same(kind: str) -> None:
    whole = layers_of(decoder_of(kind))
    for layer, half in zip(whole, layers_of(decoder_of(kind, torch.bfloat16)), strict=True):
        assert layer.facts == half.facts
        for exact, rounded in ((layer.o_proj, half.o_proj), (layer.neurons, half.neurons)):
            assert (exact is None) == (rounded is None)
            if exact is not None and rounded is not None:
                assert exact.dtype == rounded.dtype
                assert np.abs(exact.astype(np.float64) - rounded).max() < 5e-3


@pytest.mark.parametrize(("kind", "size"), [("llama", HIDDEN), ("mixtral", HIDDEN), ("mixtral", HIDDEN // 2), ("opt", HIDDEN)])
def test_square_matrices_are_told_apart_by_what_they_do(kind: str, size: int) -> None:
    """As many neurons as the hidden size, and a fused gate and up projection that is as wide: shapes tell nothing."""
    names = {"llama": "mlp.down_proj.weight", "mixtral": "mlp.experts.down_proj", "opt": "fc2.weight"}
    name = names[kind]
    decoder = decoder_of(kind, torch.float32, **{"ffn_dim" if kind == "opt" else "intermediate_size": size})
    for layer in layers_of(decoder):
        weight = layer.block.get_parameter(name).detach()
        assert layer.facts["neurons_of"] == [[name, size if kind != "mixtral" else 4 * size]]
        first = weight[0] if kind == "mixtral" else weight
        expected = first.T / first.norm(dim=0)[:, None]
        assert layer.neurons is not None and np.abs(layer.neurons[:size] - expected.numpy()).max() < 5e-4


class Experts(nn.Module):
    """Experts in a list, as models had them before transformers 5; the router sends each token to one."""

    def __init__(self, out: int = HIDDEN) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, 6)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(HIDDEN, 20), nn.GELU(), nn.Linear(20, out)) for _ in range(6))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        flat = states.reshape(-1, states.shape[-1])
        chosen = self.router(flat).argmax(dim=1)
        done = torch.stack([self.experts[int(e)](row) for e, row in zip(chosen, flat, strict=True)])
        return done.reshape(*states.shape[:-1], -1)


def with_mlp(mlp: nn.Module) -> tuple[Decoder, Any]:
    decoder = decoder_of("llama")
    random_weights(mlp, seed=3)
    decoder.layers[2].mlp = mlp
    return decoder, block_weights(decoder, 2, NoHeads("not asked for"))


def test_experts_in_a_list_are_found_also_where_no_token_meets_them() -> None:
    mlp = Experts()
    _, (_, neurons, facts) = with_mlp(mlp)
    assert facts["neurons_of"] == [[f"mlp.experts.{expert}.2.weight", 20] for expert in range(6)]
    columns = torch.cat([expert.get_parameter("2.weight").detach().T for expert in mlp.experts])
    assert np.abs(neurons - (columns / columns.norm(dim=1, keepdim=True)).numpy()).max() < 5e-4


class Latent(nn.Module):
    """Experts that work in a narrower space, which one matrix leads back: its columns are no neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.back = nn.Linear(HIDDEN, 12), nn.Linear(12, HIDDEN)
        self.up, self.down = nn.Parameter(torch.empty(3, 12, 20)), nn.Parameter(torch.empty(3, 20, 12))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = torch.einsum("bti,eij->beti", self.narrow(states), torch.einsum("eij,ejk->eik", self.up, self.down))
        return self.back(inner.relu().sum(dim=1)[..., :12])


class Closing(nn.Module):
    """An MLP with a norm after its last matrix: no row of it moves one coordinate alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(HIDDEN, 20), nn.Linear(20, HIDDEN), nn.LayerNorm(HIDDEN)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.down(self.up(states).relu()))


class Broken(nn.Module):
    """It runs in the block alone: called again, it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.calls = nn.Linear(HIDDEN, HIDDEN), 0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("once")
        return self.down(states)


class Dead(nn.Module):
    """Its neurons never fire."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 20), nn.Linear(20, HIDDEN)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(states) * 0)


@pytest.mark.parametrize(
    ("mlp", "reason"),
    [
        (Latent, r"^mlp: its experts \(down, up\) do not write to the residual stream$"),
        (Closing, r"^no MLP that works on each token by itself \(LlamaAttention, Closing\)$"),
        (Broken, r"^mlp cannot be run by itself \(RuntimeError\)$"),
        (Dead, r"^mlp: what down.weight writes cannot be told on 4 tokens$"),
    ],
)
def test_what_cannot_be_told_is_said(mlp: type[nn.Module], reason: str) -> None:
    _, (_, neurons, facts) = with_mlp(mlp())
    assert neurons is None and re.search(reason, facts["neurons_reason"]), facts


def test_weights_that_are_offloaded_are_refused() -> None:
    """accelerate leaves such weights without memory between passes."""
    decoder = decoder_of("llama")
    with torch.inference_mode():
        projection = find_projections(decoder, text_config(decoder.module.config))[1]
    assert isinstance(projection, Projection)
    told = pytest.raises(
        UserError, match=r"^device_map: the model does not fit the devices and part of it is offloaded; choose"
    )
    decoder.layers[1].mlp.to("meta")
    with told:
        block_weights(decoder, 1, projection)
    projection.module.to("meta")
    with told:
        o_proj_of(projection)


def test_nothing_is_left_behind() -> None:
    decoder = decoder_of("qwen2_moe")
    before = {name: values.clone() for name, values in decoder.module.state_dict().items()}
    layers_of(decoder)
    assert all(torch.equal(values, before[name]) for name, values in decoder.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in decoder.module.modules())
