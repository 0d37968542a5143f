"""Attention heads taken out of forward passes: what they hand to the output projection is replaced, at every token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from amygdala.architecture import NoHeads, Projection
from amygdala.batching import Batch, Budget
from amygdala.errors import UserError
from amygdala.residual import Capture


@contextlib.contextmanager
def ablated(
    projections: Mapping[int, Projection | NoHeads],
    heads: Mapping[int, Sequence[int]],
    fill: Mapping[int, np.ndarray] | None = None,
) -> Iterator[None]:
    """Within the context, the value z_h that each of `heads` hands to its layer's output projection is replaced at every token:
    by zero, or by `fill` (mean ablation, Wang et al., 2211.00593). The hooks are removed whatever happens.

    heads: {layer: [head, …]}; fill: {layer: [n_heads, head_dim]} of each layer in `heads`, or None for zero. ValueError where
    there is no such head, or fill has another shape.
    """
    hooks = []
    try:
        for layer, chosen in heads.items():
            projection = projections[layer]
            if isinstance(projection, NoHeads):
                raise ValueError(f"layer {layer} has no heads: {projection.reason}")
            shape = projection.n_heads, projection.head_dim
            if not all(0 <= head < projection.n_heads for head in chosen):
                raise ValueError(f"layer {layer} has heads 0 to {projection.n_heads - 1}, not {list(chosen)}")
            values = np.zeros(shape, np.float32) if fill is None else np.asarray(fill[layer])
            if values.shape != shape:
                raise ValueError(f"layer {layer} has {shape[0]} heads of {shape[1]}, the fill is {values.shape}")
            if len(chosen):
                replace = _replace(sorted(set(chosen)), torch.from_numpy(np.array(values, np.float32)))
                hooks.append(projection.module.register_forward_pre_hook(replace))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _replace(chosen: list[int], values: torch.Tensor) -> Callable[..., Any]:
    """A pre-hook that sets the heads `chosen` in what the projection reads to their rows of values [n_heads, head_dim]."""

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states = inputs[0].unflatten(-1, values.shape).clone()
        states[..., chosen, :] = values[chosen].to(states)
        return (states.flatten(-2), *inputs[1:])

    return hook


def forward_rows(capture: Capture, batches: Sequence[Batch], budget: Budget, say: Callable[[str], None]) -> dict[Any, Any]:
    """{(pooling, layer): float32 [texts, hidden]} of what the capture has selected, in ascending order of the texts' positions.
    UserError where a row is not finite.
    """
    positions: list[np.ndarray] = []
    rows: dict[Any, list[np.ndarray]] = {}
    for whole in batches:
        for batch, captured in capture.each(whole, budget, say):
            captured.ready()
            positions.append(batch.positions)
            for pair, states in captured.residual.items():
                rows.setdefault(pair, []).append(states.numpy())
    order = np.argsort(np.concatenate(positions))
    done = {pair: np.concatenate(parts)[order] for pair, parts in rows.items()}
    for (_, layer), values in done.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"layer {layer}: activations are not finite numbers; fp16 overflows in some models: set dtype to bf16 or fp32"
            )
    return done
