"""GGUF to a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path

from amygdala.errors import UserError


def convert_gguf(gguf_file: Path, folder: Path, dtype: str) -> None:
    """Dequantize a GGUF file into a Hugging Face model folder (safetensors in `dtype`, tokenizer, configuration)."""
    import torch
    import transformers

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    where = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtypes[dtype], quantization_config=transformers.GgufConfig(dequantize=True)
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"model: {gguf_file} cannot be converted: {str(error).strip().splitlines()[0]}") from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
