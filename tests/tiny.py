"""Tiny models with random weights, made on the spot: folders that transformers loads, with a tokenizer of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "resources" / "graph.jsonl"


def sample_texts(count: int) -> list[str]:
    """The first texts of the sample graph, tag lines and all."""
    with SAMPLE.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(count), strict=False)]


def sample_nodes() -> list[dict[str, Any]]:
    """All nodes of the sample graph."""
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


def make_tokenizer(bos: bool = False) -> Any:
    """A byte-level BPE of 500 tokens, trained on the sample graph; with `bos`, it puts <s> before each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(120), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


CONFIGS: dict[str, dict[str, Any]] = {
    # head_dim * n_heads (64) is not the hidden size (48), as in Qwen3
    "llama": {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
    },
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
    },
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8, "conv_kernel": 4},
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 1024},
}


def make_model(folder: Path, kind: str = "llama", seed: int = 0, bos: bool = False, dtype: str = "float32") -> Path:
    """Save a random model of `kind` (a key of CONFIGS) with its tokenizer to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = dict(CONFIGS[kind])
    config = AutoConfig.for_model(settings.pop("model_type"), vocab_size=500, bos_token_id=1, eos_token_id=2, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln" not in name:
            # wider than the usual 0.02, so that texts and layers differ visibly
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    make_tokenizer(bos).save_pretrained(folder)
    return folder
