"""A block's own weights, found by structure and by trial: the attention output projection, and the MLP's down projections.

What is an MLP: a child of the block that works on each token by itself (attention, Mamba, convolutions look back). What is a
down projection W_down: a weight in it, of a linear module or of fused experts, of which a row alone, all else of it 0, moves
what the MLP gives in that one coordinate and in no other. Both are tried on four tokens; nothing goes by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from amygdala.architecture import (
    Decoder,
    NoHeads,
    Projection,
    embeddings_of,
    is_out_of_memory,
    mixer_of,
    not_run,
    run_until,
    states_of,
)
from amygdala.errors import UserError

TOKENS = 4
OWN_TOKEN = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}  # of the state's length: what rounding may move
OTHER_COORDINATES = 1e-3  # of the moved coordinate
CHUNK = 1 << 22  # values converted at a time


@dataclass
class Call:
    """One call of a block's child: its arguments, and the states [tokens, hidden] that it gave."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    given: torch.Tensor


@dataclass
class Down:
    """A weight whose columns are neurons. `name` within the block; `matrices` gives [hidden, n_neurons] of each expert."""

    name: str
    weight: torch.Tensor
    transposed: bool

    def matrices(self) -> Iterator[torch.Tensor]:
        """The [hidden, n_neurons] matrices, one or one an expert."""
        stacked = self.weight if self.weight.ndim == 3 else self.weight.unsqueeze(0)
        for matrix in stacked:
            yield matrix.T if self.transposed else matrix


def o_proj_of(projection: Projection) -> np.ndarray:
    """float32 [hidden, n_heads * head_dim]: projection(z) = o_proj @ z + bias. GPT-2's Conv1D keeps it the other way round."""
    weight = projection.module.get_parameter("weight").detach()
    _check_resident(weight)
    return (weight.T if isinstance(projection.module, Conv1D) else weight).float().cpu().contiguous().numpy()


def _check_resident(weight: torch.Tensor) -> None:
    """UserError where accelerate keeps a weight off the devices until it is wanted."""
    if weight.is_meta:
        raise UserError(
            "device_map: the model does not fit the devices and part of it is offloaded; choose device: cpu, device_map: null"
        )


@torch.no_grad()
def block_weights(
    decoder: Decoder, layer: int, projection: Projection | NoHeads
) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, Any]]:
    """What layer `layer` writes with: (o_proj float32 [hidden, n_heads * head_dim] or None, neurons float16 [n_neurons, hidden]
    or None, facts as modelweights.write_weights takes them, with `neurons_of`: [[weight's name in the block, neurons], …]).

    The neurons are the columns of all down projections at length 1 (those of length 0 stay so), in the order of the block's
    modules, experts one after the other. Runs the decoder on four tokens. UserError where it does not run on text.
    """
    for weight in decoder.layers[layer].parameters():
        _check_resident(weight)
    facts: dict[str, Any] = {"layer": layer}
    o_proj = None
    if isinstance(projection, NoHeads):
        facts["reason"] = projection.reason
    else:
        facts |= {"n_heads": projection.n_heads, "head_dim": projection.head_dim}
        o_proj = o_proj_of(projection)
    found = down_projections(decoder, layer, projection)
    if isinstance(found, str):
        return o_proj, None, {**facts, "neurons_reason": found}
    sizes = [(down.name, sum(matrix.shape[1] for matrix in down.matrices())) for down in found]
    return o_proj, _unit_columns(found), {**facts, "neurons_of": [[name, count] for name, count in sizes]}


def _unit_columns(found: list[Down]) -> np.ndarray:
    """float16 [n_neurons, hidden]."""
    matrices = [matrix for down in found for matrix in down.matrices()]
    hidden = matrices[0].shape[0]
    neurons = np.empty((sum(matrix.shape[1] for matrix in matrices), hidden), np.float16)
    at = 0
    for matrix in matrices:
        for columns in matrix.detach().split(max(1, CHUNK // hidden), dim=1):
            rows = columns.T.float().cpu()
            length = rows.norm(dim=1, keepdim=True)
            neurons[at : at + len(rows)] = torch.where(length > 0, rows / length, torch.zeros_like(rows)).half().numpy()
            at += len(rows)
    return neurons


def down_projections(decoder: Decoder, layer: int, projection: Projection | NoHeads) -> list[Down] | str:
    """The down projections of a block, or why it has none that could be told."""
    block = decoder.layers[layer]
    attention = projection.module if isinstance(projection, Projection) else None
    calls, order, hidden = _watch(decoder, layer)
    found: list[Down] = []
    unclear: list[str] = []
    for name, child in block.named_children():
        if attention is not None and any(module is attention for module in child.modules()):
            continue
        if isinstance(child, nn.Linear | Conv1D) or not _writers(child, hidden):
            continue
        if child not in calls:
            unclear.append(f"{name} was not called with states of {hidden}")
            continue
        try:
            if _own_token_alone(child, calls[child]):
                found += [
                    Down(f"{name}.{down.name}", down.weight, down.transposed) for down in _tried(child, calls[child], hidden)
                ]
        except UserError as error:
            unclear.append(f"{name}: {error}")
        except Exception as error:  # a module of any model, called in an unusual way
            if is_out_of_memory(error):
                raise
            unclear.append(f"{name} cannot be run by itself ({type(error).__name__})")
    if unclear:
        return "; ".join(unclear)
    return found or _direct(block, order, attention, hidden) or f"no MLP that works on each token by itself ({mixer_of(block)})"


def _watch(decoder: Decoder, layer: int) -> tuple[dict[nn.Module, Call], list[tuple[nn.Module, int]], int]:
    """Run the block on four tokens: the calls of its children that give states; its own linear modules as (module, address of
    what it read) in the order of their calls; the hidden size.
    """
    block, embeddings = decoder.layers[layer], embeddings_of(decoder)
    ids = (torch.arange(TOKENS) * 7 + 3) % embeddings.shape[0]
    if embeddings.device.type != "meta":  # as it is where accelerate brings weights in when they are wanted
        ids = ids.to(embeddings.device)
    calls: dict[nn.Module, Call] = {}
    order: list[tuple[nn.Module, int]] = []
    kept: list[torch.Tensor] = []  # what was read, so that no address is used twice
    widths: list[int] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        given = states_of(output)
        if isinstance(given, torch.Tensor) and module not in calls:
            calls[module] = Call(_copied(arguments), _copied(named), given.detach().clone())
        if isinstance(module, nn.Linear | Conv1D):
            read = next(value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor))
            order.append((module, read.data_ptr()))
            kept.append(read)

    def width(module: nn.Module, inputs: Any, output: Any) -> None:
        widths.append(states_of(output).shape[-1])

    hooks = [child.register_forward_hook(keep, with_kwargs=True) for child in block.children()]
    hooks.append(block.register_forward_hook(width))
    try:
        run_until(decoder, ids.reshape(1, TOKENS), last=layer)
    finally:
        for hook in hooks:
            hook.remove()
    if not widths:
        raise not_run(decoder, layer)
    hidden = widths[0]
    return {module: call for module, call in calls.items() if call.given.shape[-1] == hidden}, order, hidden


def _copied(values: Any) -> Any:
    """Tensors in tuples, lists and dicts cloned: the block may go on to change them in place."""
    if isinstance(values, torch.Tensor):
        return values.detach().clone()
    if isinstance(values, dict):
        return {name: _copied(value) for name, value in values.items()}
    if type(values) in (tuple, list):
        return type(values)(_copied(value) for value in values)
    return values


def _writers(child: nn.Module, hidden: int) -> list[tuple[str, torch.Tensor, bool]]:
    """Weights of a child that may write to the residual stream, with each orientation that they allow: (name of the parameter,
    it, whether it is [inputs, hidden]).
    """
    found = []
    for name, module in child.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            path = f"{name}.{own}" if name else own
            if isinstance(module, nn.Linear | Conv1D) and own == "weight":
                sides = [isinstance(module, Conv1D)]
            elif weight.ndim == 3:
                sides = [False, True]
            else:
                continue
            found += [(path, weight, transposed) for transposed in sides if weight.shape[-1 if transposed else -2] == hidden]
    return found


def _run(child: nn.Module, call: Call, replaced: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the child gives, float64 [tokens, hidden], with some of its parameters replaced."""
    output = functional_call(child, replaced, _copied(call.arguments), _copied(call.named))
    given = states_of(output)
    return given.reshape(-1, given.shape[-1]).double().cpu()


def _own_token_alone(child: nn.Module, call: Call) -> bool:
    """Whether the last token's state stays as it is when all tokens before it change."""
    hidden = call.given.shape[-1]

    def changed(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() == TOKENS * hidden:
            rows = value.detach().clone().reshape(TOKENS, hidden)
            rows[:-1] = -rows[:-1].roll(1, dims=1)
            return rows.reshape(value.shape)
        return value

    other = Call(tuple(map(changed, call.arguments)), {name: changed(value) for name, value in call.named.items()}, call.given)
    before, after = _run(child, call, {})[-1], _run(child, other, {})[-1]
    return float((after - before).norm()) <= OWN_TOKEN.get(call.given.dtype, 2e-2) * float(before.norm())


def _tried(child: nn.Module, call: Call, hidden: int) -> list[Down]:
    """The weights of an MLP that write to the residual stream. UserError (a reason) where that cannot be told.

    What is true of one expert of a list is true of all: the router sends four tokens to few of them.
    """
    roles: dict[tuple[str, ...], dict[bool, list[Down]]] = {}
    for name, weight, transposed in _writers(child, hidden):
        role = tuple("*" if part.isdigit() else part for part in name.split("."))
        roles.setdefault(role, {}).setdefault(transposed, []).append(Down(name, weight, transposed))
    found: list[Down] = []
    for ways in roles.values():
        moved = {way: {_moves(child, call, down) for down in downs} - {None} for way, downs in ways.items()}
        writing = [way for way, how in moved.items() if how == {1}]
        if len(writing) == 1:
            found += ways[writing[0]]
        elif writing or not all(moved.values()):
            name = next(iter(ways.values()))[0].name
            raise UserError(f"what {name} writes cannot be told on {TOKENS} tokens")
    names = [down.name for down in found]
    fused = {name for name, weight in child.named_parameters() if weight.ndim == 3 and min(weight.shape) > 1}
    if fused and not fused & set(names):
        raise UserError(f"its experts ({', '.join(sorted(fused))}) do not write to the residual stream")
    places = [name for name, _ in child.named_parameters()]
    return sorted(found, key=lambda down: places.index(down.name))


def _moves(child: nn.Module, call: Call, down: Down) -> int | None:
    """How much of what the child gives is moved by one row of a weight towards the residual stream, the others being 0: 1 where
    its own coordinate alone, 2 where others too, None where nothing.
    """
    side = down.weight.ndim - (1 if down.transposed else 2)
    hidden = down.weight.shape[side]
    coordinate = hidden // 3
    shape = [hidden if axis == side else 1 for axis in range(down.weight.ndim)]

    def row(size: float) -> torch.Tensor:
        values = torch.zeros(hidden, dtype=down.weight.dtype, device=down.weight.device)
        values[coordinate] = size
        return values.reshape(shape)

    def given(weight: torch.Tensor) -> torch.Tensor:
        try:
            return _run(child, call, {down.name: weight})
        except RuntimeError as error:  # kernels that want a weight as it lies in memory
            if is_out_of_memory(error) or weight.is_contiguous():
                raise
            return _run(child, call, {down.name: weight.contiguous()})

    without = given(row(0).expand(down.weight.shape))
    for size in (1.0, 1 / 64, 64.0):  # what neither overflows nor is lost in what else the child gives
        if how := _spread(given(row(size).expand(down.weight.shape)) - without, coordinate):
            return how
    # a gate alone opens to nothing: the other rows as they are, this one larger
    return _spread(given(down.weight.detach() * (1 + row(2))) - _run(child, call, {}), coordinate)


def _spread(change: torch.Tensor, coordinate: int) -> int | None:
    """1 where `change` [tokens, hidden] lies in the one coordinate, 2 where in others too, None where it is 0 or not finite."""
    moved = change.abs().amax(dim=0)
    if not bool(moved.isfinite().all()) or not bool(moved.any()):
        return None
    own = float(moved[coordinate])
    moved[coordinate] = 0
    return 1 if float(moved.max()) <= OTHER_COORDINATES * own else 2


def _direct(
    block: nn.Module, order: list[tuple[nn.Module, int]], attention: nn.Module | None, hidden: int
) -> list[Down] | str | None:
    """The down projection of an MLP whose linear modules are the block's own children (OPT's fc1 and fc2), the reason where it
    is not clear, None where there is none: it writes the hidden size and reads as much as (or, gated, half of what) a linear
    module before it gives, which reads the hidden size from elsewhere.
    """
    own = [(module, address) for module, address in order if module is not attention]
    names = {module: name for name, module in block.named_children()}
    found = []
    for place, (module, address) in enumerate(own):
        reads, writes = _widths_of(module)
        before = [(_widths_of(up), read) for up, read in own[:place]]
        fits = any(
            width_in == hidden and width_out in (reads, 2 * reads) and read != address for (width_in, width_out), read in before
        )
        if writes == hidden and fits:
            found.append(Down(f"{names[module]}.weight", module.get_parameter("weight"), isinstance(module, Conv1D)))
    if len(found) > 1:
        return f"{len(found)} candidates for the down projection: {', '.join(down.name for down in found)}"
    return found or None


def _widths_of(module: nn.Module) -> tuple[int, int]:
    first, second = module.get_parameter("weight").shape
    return (first, second) if isinstance(module, Conv1D) else (second, first)
