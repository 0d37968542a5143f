"""Where a decoder keeps its residual stream and its attention heads, found by structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from amygdala.errors import UserError

PROJECTION_NAMES = ("o_proj", "out_proj", "dense", "c_proj", "wo", "proj")


@dataclass
class Projection:
    """The attention output projection of one layer; its input is [batch, tokens, n_heads * head_dim]."""

    module: nn.Module
    n_heads: int
    head_dim: int


@dataclass
class NoHeads:
    """Why a layer has no attention heads that could be read."""

    reason: str


def text_config(config: Any) -> Any:
    """The configuration of the text decoder (a multimodal model's text tower)."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def decoder_layers(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The model's list of decoder blocks: the outermost ModuleList with `n_layers` entries."""
    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and "vision" not in name and "audio" not in name
    ]
    if not lists:
        raise UserError(f"model: found no list of {n_layers} decoder layers in {type(model).__name__}")
    return min(lists, key=lambda entry: entry[:2])[2]


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Width in and out of a linear module; GPT-2's Conv1D keeps its weight the other way round."""
    if not isinstance(module, nn.Linear | Conv1D):
        return None
    first, second = module.weight.shape
    return (second, first) if isinstance(module, nn.Linear) else (first, second)


def output_projection(layer: nn.Module, hidden: int, n_heads: int | None) -> Projection | NoHeads:
    """The attention output projection of a decoder block, head_dim from its input width (never hidden / n_heads).

    n_heads: None where the model's configuration knows no attention heads.
    """
    if n_heads is None:
        return NoHeads("a model without attention heads")
    found: list[tuple[str, nn.Module, int]] = []
    for name, module in layer.named_modules():
        parent, _, last = name.rpartition(".")
        inside = "attn" in parent.lower() or "attention" in parent.lower()
        widths = _widths(module)
        if inside and last in PROJECTION_NAMES and widths and widths[1] == hidden:
            found.append((name, module, widths[0]))
    if not found:
        return NoHeads("no attention output projection")
    name, module, width = found[0]
    if len(found) > 1 or width % n_heads:
        return NoHeads(f"{len(found)} candidates for the output projection; {name} reads {width} values for {n_heads} heads")
    return Projection(module, n_heads, width // n_heads)
