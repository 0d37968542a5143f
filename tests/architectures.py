"""Tiny random models of many architectures, made on the spot: what a configuration must say to be small and still typical."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

VOCABULARY = 500
HIDDEN = 48
N_LAYERS = 4

# Each configuration takes those that it knows.
COMMON = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), N_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": False,
}
SLIDING = {"sliding_window": 4}  # shorter than most texts of the tests
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
SHARED_EXPERT = {**EXPERTS, "shared_expert_intermediate_size": 32}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA = {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SLIDING_FULL = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
SPECIAL: dict[str, dict[str, Any]] = {
    # gated attention, where the gate reads as many values as the output projection
    **{kind: {"head_dim": 12} for kind in ("afmoe", "beam", "laguna", "lfm3")},
    "bamba": {"attn_layer_indices": [1, 3], **MAMBA},
    "codegen": {"rotary_dim": 8},
    "cohere2": {**SLIDING, "sliding_window_pattern": 2},
    "deepseek_v2": {**LATENT, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**LATENT, "n_group": 2, "topk_group": 1},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "mamba_n_heads": 4},
    "falcon_mamba": {"state_size": 8},
    "gemma2": {**SLIDING, "query_pre_attn_scalar": 16},
    "gemma3_text": {**SLIDING, "sliding_window_pattern": 2},
    "gemma3n_text": {
        **SLIDING,
        "layer_types": SLIDING_FULL,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
    },
    "gemma4_text": {
        **SLIDING,
        "layer_types": SLIDING_FULL,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 32,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "gpt_oss": {**SLIDING, **LOCAL_EXPERTS},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {
        **MAMBA,
        **LOCAL_EXPERTS,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "shared_intermediate_size": 32,
    },
    "helium": {"head_dim": 12, "num_key_value_heads": 4},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {"full_attn_idxs": [1, 3], "block_multiple_of": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 12, "state_size": 8, "n_groups": 2, "chunk_size": 4},
    "mistral": SLIDING,
    "mixtral": {"num_local_experts": 4},
    "nemotron_h": {
        "hybrid_override_pattern": "M*-M",
        "mamba_num_heads": 6,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 4,
    },
    "opt": {"word_embed_proj_dim": HIDDEN},
    "qwen2_moe": SHARED_EXPERT,
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": {**SHARED_EXPERT, **DELTA},
    "qwen3_moe": EXPERTS,
    "qwen3_next": {**SHARED_EXPERT, **DELTA},
    "stablelm": {"partial_rotary_factor": 0.5, "head_dim": None},
}
VISION = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "embed_dim", "projection_dim", "vision_output_dim"), 32),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 2),
    **dict.fromkeys(("num_hidden_layers", "depth"), N_LAYERS),
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": HIDDEN,
    "pixel_shuffle_ratio": 0.5,
    # where llama4 and mllama would be large
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "num_global_layers": 1,
}


def tiny_config(kind: str) -> Any:
    """The configuration of a model of `kind` (a model_type of transformers) with 4 layers and hidden size 48."""
    base = AutoConfig.for_model(kind)
    known = {*inspect.signature(type(base).__init__).parameters, *vars(base), *getattr(base, "attribute_map", {})}
    settings = {**{key: value for key, value in COMMON.items() if key in known}, **SPECIAL.get(kind, {})}
    return AutoConfig.for_model(kind, **{key: value for key, value in settings.items() if value is not None})


def multimodal_config(kind: str) -> Any:
    """The configuration of a model of `kind` with a tiny text tower and a tiny vision tower of as many layers."""
    base = AutoConfig.for_model(kind)
    vision = {key: VISION.get(key, value) for key, value in base.vision_config.to_dict().items()}
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [1]
    return AutoConfig.for_model(kind, text_config=tiny_config(base.text_config.model_type).to_dict(), vision_config=vision)


def random_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Wider than the usual 0.02, so that texts, tokens and layers differ visibly; norms and biases too."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1, generator=noise)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)


def make_causal(kind: str, folder: Path) -> Any:
    """A random model of `kind` with its vocabulary head, in eval mode; its weights and configuration are saved to `folder`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32).eval()
    random_weights(model)
    model.save_pretrained(folder)
    return model


def make_base(config: Any, folder: Path) -> Any:
    """A random model of `config` without a head (an encoder, or with several towers), saved to `folder`."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    random_weights(model)
    model.save_pretrained(folder)
    return model
