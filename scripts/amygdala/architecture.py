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


def _width_in(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return int(module.weight.shape[1])
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0])
    return None


def _width_out(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return int(module.weight.shape[0])
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1])
    return None


def output_projection(layer: nn.Module, hidden: int, n_heads: int) -> Projection | NoHeads:
    """The attention output projection of a decoder block, head_dim from its input width (never hidden / n_heads)."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in layer.named_modules():
        parent, _, last = name.rpartition(".")
        inside = "attn" in parent.lower() or "attention" in parent.lower()
        if inside and last in PROJECTION_NAMES and _width_out(module) == hidden:
            found.append((name, module))
    if not found:
        return NoHeads("no attention output projection")
    name, module = found[0]
    width = _width_in(module)
    if len(found) > 1 or not width or width % n_heads:
        return NoHeads(f"{len(found)} candidates for the output projection; {name} reads {width} values for {n_heads} heads")
    return Projection(module, n_heads, width // n_heads)
