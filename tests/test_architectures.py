"""Rows of many architectures against whole models that read one text at a time, and head inputs against a table of names."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from amygdala.batching import pad
from amygdala.errors import UserError
from amygdala.residual import Capture, Captured
from amygdala.tokens import Tokens
from architectures import HIDDEN, N_LAYERS, VOCABULARY, make_base, make_causal, multimodal_config, tiny_config

TOLERANCE = 1e-5
CPU = torch.device("cpu")
ALL = tuple(range(N_LAYERS))
POOLINGS = ("mean", "last")

# Where the blocks keep their attention output projection, and in which kinds.
PROJECTIONS = {
    "self_attn.o_proj": """
        llama qwen2 qwen3 qwen3_moe qwen3_next qwen3_5_text gemma2 gemma3_text gemma4_text mistral phi3 gpt_oss olmo2 jamba
        falcon_h1 bamba granitemoehybrid deepseek_v3 cohere2 stablelm smollm3 apertus arcee bitnet cohere deepseek_v2 doge
        ernie4_5 exaone4 gemma glm glm4 granite granitemoe helium hunyuan_v1_dense llama4_text minimax ministral3 mixtral
        nemotron olmo olmo3 olmo_hybrid olmoe phimoe qwen2_moe qwen3_5_moe_text seed_oss starcoder2 vaultgemma
        afmoe beam laguna lfm3
    """,
    "self_attn.out_proj": "biogpt lfm2 opt xglm",
    "self_attn.dense": "phi persimmon",
    "self_attention.dense": "bloom falcon",
    "attn.out_proj": "codegen gptj mpt",
    "attn.c_proj": "gpt2 gpt_bigcode",
    "attn.attention.out_proj": "gpt_neo",
    "attention.dense": "gpt_neox",
    "attn.Wo": "modernbert-decoder",
    "mixer.o_proj": "nemotron_h",
    "temporal_block.o_proj": "recurrent_gemma",
}
PROJECTION_OF = {kind: path for path, kinds in PROJECTIONS.items() for kind in kinds.split()}
# Layers without heads that could be read, and what the reason names.
HEADLESS: dict[str, tuple[Sequence[int], str]] = {
    "bamba": ((0, 2), "no attention (BambaMLP, BambaMixer)"),
    "diffllama": (ALL, "2 attentions in one layer"),
    "falcon_mamba": (ALL, "a model without attention heads"),
    "granitemoehybrid": ((0, 2), "GraniteMoeHybridMambaLayer"),
    "jamba": ((0, 2), "no attention (JambaMambaMixer, JambaMLP)"),
    "jetmoe": (ALL, "nothing in JetMoeAttention reads what its attention returns"),
    "lfm2": ((0, 2), "no attention (Lfm2ShortConv, Lfm2MLP)"),
    "lfm3": ((0, 1, 3), "no attention (Lfm3ShortConv, Lfm3MLP)"),
    "mamba": (ALL, "a model without attention heads"),
    "mamba2": (ALL, "a model without attention heads"),
    "minimax": ((1, 3), "no attention (MiniMaxLightningAttention, "),
    "nemotron_h": ((0, 2, 3), "no attention (NemotronH"),
    "olmo_hybrid": ((0, 1, 2), "OlmoHybridGatedDeltaNet"),
    "qwen3_5_moe_text": ((0, 1, 2), "no attention (Qwen3_5MoeGatedDeltaNet, "),
    "qwen3_5_text": ((0, 1, 2), "no attention (Qwen3_5GatedDeltaNet, "),
    "qwen3_next": ((0, 1, 2), "no attention (Qwen3NextGatedDeltaNet, "),
    "recurrent_gemma": ((0, 1, 3), "no attention (RecurrentGemmaRecurrentBlock, "),
    "rwkv": (ALL, "a model without attention heads"),
    "xlstm": (ALL, "a model without attention heads"),
}
KINDS = sorted({*PROJECTION_OF, *HEADLESS})
# Their hidden_states[i] is the state after layer i, without the embedding in front.
WITHOUT_EMBEDDING = ("falcon_mamba", "mamba", "mamba2", "rwkv")
NO_LEFT_PADDING = {
    "recurrent_gemma": "its recurrent blocks take no attention mask",
    "rwkv": "takes no attention mask",
    "xlstm": "takes no attention mask",
}
BODIES = ("model.decoder", "model", "transformer", "backbone", "gpt_neox", "biogpt", "rwkv")
BLOCKS = ("layers", "h", "blocks")
FINAL_NORMS = (
    *("norm", "ln_f", "norm_f", "final_norm", "final_layernorm", "final_layer_norm"),
    *("embedding_norm", "layer_norm", "ln_out", "out_norm"),
)


def body_of(model: nn.Module) -> nn.Module:
    """What holds the blocks of a model with a head."""
    for path in BODIES:
        try:
            body = model.get_submodule(path)
        except AttributeError:
            continue
        if any(hasattr(body, name) for name in BLOCKS):
            return body
    raise AssertionError(f"where are the blocks of {type(model).__name__}?")


def blocks_of(model: nn.Module) -> nn.ModuleList:
    body = body_of(model)
    return next(getattr(body, name) for name in BLOCKS if hasattr(body, name))


def random_text(length: int, seed: int, special: Sequence[int] = ()) -> Tokens:
    """Tokens whose first one does not count, nor those at the positions `special`."""
    content = np.ones(length, bool)
    content[[0, *special]] = False
    return Tokens(np.random.default_rng(seed).integers(3, VOCABULARY, length, dtype=np.int32), content, False)


TEXTS = [random_text(9, 0, [4]), random_text(14, 1), random_text(3, 2), random_text(6, 3, [1, 2])]


@dataclasses.dataclass
class Case:
    """A model of one kind, saved to a folder, without its final norm in memory; what each text gives in it, alone.

    hidden: [embedding, after layer 0, …] of each text, [tokens, hidden] float64; heads: {layer: [tokens, heads * head_dim]}.
    """

    kind: str
    folder: Path
    model: Any
    n_parameters: int
    hidden: list[list[torch.Tensor]]
    heads: list[dict[int, torch.Tensor]]

    def expected(self, layer: int, pooling: str) -> list[torch.Tensor]:
        return [pooled(states[layer + 1], text, pooling) for states, text in zip(self.hidden, TEXTS, strict=True)]

    def expected_heads(self, layer: int, pooling: str) -> list[torch.Tensor]:
        return [pooled(states[layer], text, pooling) for states, text in zip(self.heads, TEXTS, strict=True)]


def pooled(states: torch.Tensor, text: Tokens, pooling: str) -> torch.Tensor:
    counted = [position for position, counts in enumerate(text.content) if counts]
    return states[counted[-1]] if pooling == "last" else states[counted].mean(0)


def hidden_states(model: Any, kind: str, ids: torch.Tensor, **more: Any) -> list[torch.Tensor]:
    """[embedding, after layer 0, …], each [batch, tokens, hidden] float64; the model's final norm must be gone."""
    with torch.no_grad():
        found = model(input_ids=ids, output_hidden_states=True, use_cache=False, **more).hidden_states
    states = [state.double() for state in found]
    if kind in WITHOUT_EMBEDDING:
        states = [torch.full_like(states[0], torch.nan), *states[:N_LAYERS]]
    assert len(states) == N_LAYERS + 1
    return states


def head_inputs(model: Any, kind: str, ids: torch.Tensor, **more: Any) -> dict[int, torch.Tensor]:
    """{layer: input of the projection that the table names, [batch, tokens, heads * head_dim] float64}."""
    found: dict[int, torch.Tensor] = {}
    hooks = []
    for layer, block in enumerate(blocks_of(model)):
        if layer not in HEADLESS.get(kind, ((), ""))[0]:

            def keep(module: Any, inputs: Any, layer: int = layer) -> None:
                found[layer] = inputs[0].double().reshape(*ids.shape, -1)

            hooks.append(block.get_submodule(PROJECTION_OF[kind]).register_forward_pre_hook(keep))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False, **more)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


def make_case(kind: str, folder: Path) -> Case:
    model = make_causal(kind, folder)
    body = body_of(model)
    n_parameters = sum(parameter.numel() for parameter in body.parameters())
    (norm,) = [name for name in FINAL_NORMS if hasattr(body, name)]
    setattr(body, norm, nn.Identity())
    alone = [torch.tensor([text.ids.tolist()]) for text in TEXTS]
    hidden = [[state[0] for state in hidden_states(model, kind, ids)] for ids in alone]
    heads = [{layer: values[0] for layer, values in head_inputs(model, kind, ids).items()} for ids in alone]
    return Case(kind, folder, model, n_parameters, hidden, heads)


def open_capture(folder: Path, layers: Sequence[int], poolings: Sequence[str] = POOLINGS) -> Capture:
    return Capture(str(folder), None, layers, "fp32", poolings, CPU, tokenizer=object())


def rows_of(capture: Capture, texts: Sequence[Tokens] = TEXTS) -> Captured:
    return capture(pad(range(len(texts)), texts, capture.poolings))


@pytest.fixture(scope="module")
def whole(case: Case) -> Iterator[Capture]:
    with open_capture(case.folder, ALL) as capture:
        yield capture


def difference(row: torch.Tensor, right: torch.Tensor) -> float:
    return float((row.double() - right).norm() / right.norm())


def assert_rows(rows: torch.Tensor, expected: Sequence[torch.Tensor]) -> None:
    assert rows.dtype == torch.float32 and rows.shape == (len(expected), len(expected[0]))
    worst = max(difference(row, right) for row, right in zip(rows, expected, strict=True))
    assert worst < TOLERANCE, worst


def assert_equal_rows(found: Captured, expected: Captured, order: Sequence[int]) -> None:
    for rows, right in ((found.residual, expected.residual), (found.heads, expected.heads)):
        assert set(rows) == set(right)
        for pair, values in rows.items():
            assert_rows(values, list(right[pair][list(order)].double()))


def heads_by_configuration(case: Case, layer: int) -> tuple[int, int]:
    config = case.model.config
    n_heads = config.num_attention_heads
    if case.kind.startswith("deepseek"):
        return n_heads, config.v_head_dim
    if case.kind == "gemma4_text":
        return n_heads, 32 if config.layer_types[layer] == "full_attention" else 16
    return n_heads, getattr(config, "head_dim", None) or HIDDEN // n_heads


def test_enough_architectures_of_all_sorts() -> None:
    assert len(KINDS) >= 50
    wide = [kind for kind, (layers, _) in HEADLESS.items() if len(layers) < N_LAYERS]
    assert len(wide) >= 8, "hybrids"


def test_every_row_equals_the_whole_model_reading_one_text(case: Case, whole: Capture) -> None:
    rows = rows_of(whole)
    assert set(rows.residual) == {(pooling, layer) for pooling in POOLINGS for layer in ALL}
    for pooling, layer in rows.residual:
        assert_rows(rows.residual[pooling, layer], case.expected(layer, pooling))


def test_every_head_input_equals_that_of_the_named_projection(case: Case, whole: Capture) -> None:
    rows = rows_of(whole)
    headless, reason = HEADLESS.get(case.kind, ((), ""))
    assert set(rows.heads) == {(pooling, layer) for pooling in POOLINGS for layer in ALL if layer not in headless}
    for layer in ALL:
        if layer in headless:
            assert set(whole.layout(layer)) == {"reason"}
            assert reason in whole.layout(layer)["reason"]
            continue
        n_heads, head_dim = heads_by_configuration(case, layer)
        assert whole.layout(layer) == {"n_heads": n_heads, "head_dim": head_dim}
        for pooling in POOLINGS:
            assert rows.heads[pooling, layer].shape == (len(TEXTS), n_heads * head_dim)
            assert_rows(rows.heads[pooling, layer], case.expected_heads(layer, pooling))


def test_a_truncated_model_gives_the_rows_of_the_whole_one(case: Case) -> None:
    after = list(blocks_of(case.model))
    for layers in ([0], [2], [1, 3]):
        with open_capture(case.folder, layers) as capture:
            rows = rows_of(capture)
            module = capture.decoder.module
            assert len(capture.decoder.layers) == layers[-1] + 1
        assert set(rows.residual) == {(pooling, layer) for pooling in POOLINGS for layer in layers}
        for pooling, layer in rows.residual:
            assert_rows(rows.residual[pooling, layer], case.expected(layer, pooling))
        for pooling, layer in rows.heads:
            assert_rows(rows.heads[pooling, layer], case.expected_heads(layer, pooling))
        left_out = sum(parameter.numel() for block in after[layers[-1] + 1 :] for parameter in block.parameters())
        assert sum(parameter.numel() for parameter in module.parameters()) == case.n_parameters - left_out
        assert not [part for part in module.modules() if isinstance(part, nn.Linear) and part.out_features == VOCABULARY]


def test_batched_equals_single_and_order_does_not_matter(case: Case, whole: Capture) -> None:
    together = rows_of(whole)
    for position, text in enumerate(TEXTS):
        assert_equal_rows(rows_of(whole, [text]), together, [position])
    order = [2, 0, 3, 1]
    assert_equal_rows(rows_of(whole, [TEXTS[position] for position in order]), together, order)


def test_left_padding_equals_right_padding(case: Case, whole: Capture) -> None:
    longest = max(map(len, TEXTS))
    ids, mask = torch.zeros((2, len(TEXTS), longest), dtype=torch.int64)
    moved = []
    for row, text in enumerate(TEXTS):
        ids[row, longest - len(text) :] = torch.from_numpy(text.ids)
        mask[row, longest - len(text) :] = 1
        none = np.zeros(longest - len(text), bool)
        moved.append(dataclasses.replace(text, content=np.concatenate([none, text.content])))
    more = {"attention_mask": mask}
    if "position_ids" in inspect.signature(case.model.forward).parameters:
        more["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    states = hidden_states(case.model, case.kind, ids, **more)
    heads = head_inputs(case.model, case.kind, ids, **more)
    rows = rows_of(whole)
    for found, right in ((rows.residual, dict(enumerate(states[1:]))), (rows.heads, heads)):
        for pooling, layer in found:
            expected = [pooled(right[layer][row], text, pooling) for row, text in enumerate(moved)]
            if case.kind in NO_LEFT_PADDING:
                with pytest.raises(AssertionError):
                    assert_rows(found[pooling, layer], expected)
            else:
                assert_rows(found[pooling, layer], expected)


Attention = Callable[[Any, torch.Tensor, Any], torch.Tensor]


def turned(states: torch.Tensor, theta: float, pairs: str = "halves") -> torch.Tensor:
    """Rotary positions of [heads, tokens, width]: the plane i is (i, width / 2 + i), or (2i, 2i + 1) where `interleaved`."""
    tokens, width = states.shape[1:]
    out = torch.empty_like(states)
    for i in range(width // 2):
        first, second = (i, width // 2 + i) if pairs == "halves" else (2 * i, 2 * i + 1)
        angle = torch.arange(tokens, dtype=torch.float64) * theta ** (-2 * i / width)
        x, y = states[..., first], states[..., second]
        out[..., first] = x * angle.cos() - y * angle.sin()
        out[..., second] = y * angle.cos() + x * angle.sin()
    return out


def rms_norm(states: torch.Tensor, norm: Any) -> torch.Tensor:
    eps = norm.variance_epsilon
    return norm.weight.double() * states / (states.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def linear(states: torch.Tensor, module: Any) -> torch.Tensor:
    done = states @ module.weight.double().T
    return done if module.bias is None else done + module.bias.double()


def heads_of(states: torch.Tensor, n_heads: int) -> torch.Tensor:
    """[tokens, heads * width] to [heads, tokens, width]."""
    return states.reshape(len(states), n_heads, -1).transpose(0, 1)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention, one head and one token at a time: [tokens, heads * width of a value]; key heads may be fewer."""
    n_heads, tokens, width = query.shape
    rows = []
    for token in range(tokens):
        row = []
        for head in range(n_heads):
            shared = head * len(key) // n_heads
            weights = ((key[shared, : token + 1] @ query[head, token]) / width**0.5).exp()
            row.append((weights / weights.sum()) @ value[shared, : token + 1])
        rows.append(torch.cat(row))
    return torch.stack(rows)


def llama_attention(block: Any, states: torch.Tensor, config: Any) -> torch.Tensor:
    attention, normed = block.self_attn, rms_norm(states, block.input_layernorm)
    query, key, value = (
        heads_of(linear(normed, module), n_heads)
        for module, n_heads in ((attention.q_proj, 4), (attention.k_proj, 2), (attention.v_proj, 2))
    )
    if hasattr(attention, "q_norm"):  # qwen3
        query, key = rms_norm(query, attention.q_norm), rms_norm(key, attention.k_norm)
    theta = config.rope_parameters["rope_theta"]
    return attend(turned(query, theta), turned(key, theta), value)


def gpt2_attention(block: Any, states: torch.Tensor, config: Any) -> torch.Tensor:
    norm, fused = block.ln_1, block.attn.c_attn
    centred = states - states.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    both = (normed * norm.weight.double() + norm.bias.double()) @ fused.weight.double() + fused.bias.double()
    return attend(*(heads_of(part, 4) for part in both.split(HIDDEN, dim=-1)))


def deepseek_attention(block: Any, states: torch.Tensor, config: Any) -> torch.Tensor:
    """Latent attention: queries and keys of 8 plain and 8 turned values, the turned part of a key shared; values of 12."""
    attention, normed = block.self_attn, rms_norm(states, block.input_layernorm)
    query = heads_of(linear(rms_norm(linear(normed, attention.q_a_proj), attention.q_a_layernorm), attention.q_b_proj), 4)
    latent, shared = linear(normed, attention.kv_a_proj_with_mqa).split([16, 8], dim=-1)
    key_value = heads_of(linear(rms_norm(latent, attention.kv_a_layernorm), attention.kv_b_proj), 4)
    theta = config.rope_parameters["rope_theta"]
    turned_key = turned(shared[None], theta, "interleaved").expand(4, -1, -1)
    query = torch.cat([query[..., :8], turned(query[..., 8:], theta, "interleaved")], dim=-1)
    return attend(query, torch.cat([key_value[..., :8], turned_key], dim=-1), key_value[..., 8:])


@pytest.mark.parametrize(
    ("kind", "attention", "width"),
    [
        ("llama", llama_attention, 64),
        ("qwen3", llama_attention, 64),
        ("gpt2", gpt2_attention, 48),
        ("deepseek_v3", deepseek_attention, 48),
    ],
)
def test_head_inputs_equal_attention_worked_out_by_hand(kind: str, attention: Attention, width: int, tmp_path: Path) -> None:
    case = make_case(kind, tmp_path)
    with open_capture(tmp_path, ALL) as capture:
        rows = rows_of(capture)
    for layer, block in enumerate(blocks_of(case.model)):
        by_hand = [attention(block, states[layer], case.model.config).detach() for states in case.hidden]
        assert by_hand[0].shape == (9, width)
        for pooling in POOLINGS:
            expected = [pooled(states, text, pooling) for states, text in zip(by_hand, TEXTS, strict=True)]
            assert_rows(rows.heads[pooling, layer], expected)


# Where the text tower's weights lie.
TOWERS = {
    "language_model": "aya_vision gemma3 internvl llama4 llava mistral3 mllama qwen3_5 qwen3_vl",
    "text_model": "idefics3",
}
TOWER_OF = {kind: path for path, kinds in TOWERS.items() for kind in kinds.split()}


@pytest.mark.parametrize("kind", sorted(TOWER_OF))
def test_the_text_tower_of_a_multimodal_model_is_found_and_loaded_alone(kind: str, tmp_path: Path) -> None:
    """The vision tower has as many blocks; its weights, and whatever else is not text, are taken out of the file."""
    model = make_base(multimodal_config(kind), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    text = {name: values for name, values in weights.items() if TOWER_OF[kind] in name}
    assert 0 < len(text) < len(weights)
    save_file(text, tmp_path / "model.safetensors", {"format": "pt"})
    with open_capture(tmp_path, [0, 1]) as capture:
        rows = rows_of(capture)
        assert len(capture.decoder.layers) == 2
    for position, tokens in enumerate(TEXTS):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([tokens.ids.tolist()]), output_hidden_states=True, use_cache=False)
        for pooling, layer in rows.residual:
            right = pooled(states.hidden_states[layer + 1][0].double(), tokens, pooling)
            assert difference(rows.residual[pooling, layer][position], right) < TOLERANCE


@pytest.mark.parametrize(("cross", "layers"), [(3, [3]), (1, [0, 1, 2])])
def test_a_layer_that_text_does_not_pass_is_refused(cross: int, layers: list[int], tmp_path: Path) -> None:
    """Mllama's cross-attention to images is skipped where there are none; layers beside it can be read."""
    config = multimodal_config("mllama")
    config.text_config.cross_attention_layers = [cross]
    make_base(config, tmp_path)
    with pytest.raises(UserError, match=f"model: layer {cross} of MllamaTextModel does not run on text alone; choose other"):
        rows_of(open_capture(tmp_path, layers))
    with open_capture(tmp_path, [layer for layer in ALL[: layers[-1] + 1] if layer != cross]) as capture:
        assert len(rows_of(capture).residual) == len(POOLINGS) * layers[-1]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_are_refused(kind: str, tmp_path: Path) -> None:
    make_base(tiny_config(kind), tmp_path)
    with pytest.raises(UserError, match=r"Model is no decoder: a token's state depends on the tokens after it .* causal"):
        open_capture(tmp_path, [1])


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_models_with_an_encoder_and_a_decoder_are_refused(kind: str, tmp_path: Path) -> None:
    make_base(tiny_config(kind), tmp_path)
    with pytest.raises(UserError, match=f"model: '{kind}' has an encoder and a decoder; amygdala reads causal language models"):
        open_capture(tmp_path, [1])


def test_a_residual_stream_of_several_copies_is_refused(tmp_path: Path) -> None:
    make_causal("gemma3n_text", tmp_path)
    with pytest.raises(UserError, match=r"a block of Gemma3nTextModel gives \[4, 2, 12, 48\] .* cannot be read"):
        open_capture(tmp_path, [1])
