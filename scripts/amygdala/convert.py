"""GGUF to a Hugging Face model folder."""

from __future__ import annotations

from pathlib import Path

from amygdala.errors import UserError, shown


def convert_gguf(gguf_file: Path, folder: Path, dtype: str) -> None:
    """Dequantize a GGUF file into a Hugging Face model folder (safetensors in `dtype`, tokenizer, configuration)."""
    import torch
    import transformers

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    where = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            **where,
            dtype=dtypes[dtype],
            quantization_config=transformers.GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    except Exception as error:  # whatever the libraries make of a wrong file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model: {gguf_file} cannot be converted: {reason}") from None
    missing = sorted([*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])])
    if missing:  # they would be random numbers
        raise UserError(f"model: {gguf_file} lacks {len(missing)} weights, {shown(missing[0])} first")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
