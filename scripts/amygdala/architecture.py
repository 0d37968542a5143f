"""Where a decoder keeps its residual stream and its attention heads, found by structure: by the list of blocks below what takes
`input_ids`, and by watching which module reads what attention returns.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from amygdala.errors import UserError

# Only for attention that does not go through transformers' AttentionInterface and so cannot be watched (Falcon, GPT-J, …).
PROJECTION_NAMES = ("o_proj", "out_proj", "dense", "c_proj", "wo", "proj")
PROBE = "amygdala_probe"
CAUSAL_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}


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


@dataclass
class Decoder:
    """The part of a model that takes `input_ids`, and its blocks in order."""

    module: nn.Module
    layers: nn.ModuleList


def text_config(config: Any) -> Any:
    """The configuration of the text decoder (a multimodal model's text tower)."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def count_layers(config: Any) -> int:
    """Number of decoder layers by the text decoder's configuration."""
    return int(text_config(config).num_hidden_layers)


def _takes_tokens(module: nn.Module) -> bool:
    return "input_ids" in inspect.signature(module.forward).parameters


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def find_decoder(model: nn.Module, n_layers: int) -> Decoder:
    """The decoder of `model`, which has `n_layers` blocks: the largest list of so many modules below what takes `input_ids`.

    Lists of experts lie inside a block and are smaller than the blocks together; image and sound towers take no
    `input_ids`. UserError where there is none.
    """
    found: list[tuple[int, nn.Module, nn.ModuleList]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
            continue
        path = name.split(".")
        above = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path) - 1, -1, -1)]
        owner = next((parent for parent in above if _takes_tokens(parent)), None)
        if owner is not None:
            found.append((_size(module), owner, module))
    if not found:
        raise UserError(f"model: found no list of {n_layers} decoder layers in {type(model).__name__}")
    _, owner, layers = max(found, key=lambda entry: entry[0])
    return Decoder(owner, layers)


def cut(model: nn.Module, decoder: Decoder, n_layers: int) -> None:
    """Remove the blocks from `n_layers` on, and whatever lies outside the decoder (vision and audio towers, projectors)."""
    del decoder.layers[n_layers:]
    inside = set(decoder.module.modules())
    for name, module in list(model.named_modules()):
        if name and module not in inside and not any(child is decoder.module for child in module.modules()):
            parent, _, last = name.rpartition(".")
            with contextlib.suppress(AttributeError):  # the parent went before
                delattr(model.get_submodule(parent), last)


class ReachedError(Exception):
    """The last layer wanted has run: nothing after it is computed."""


def run_until(decoder: Decoder, ids: torch.Tensor, last: int = -1, **more: Any) -> None:
    """Forward `ids` int64 [batch, tokens] through the blocks up to `last`, and no further; `more` goes to the model.

    Stopping by an exception from the last block serves every model alike: also those that count to the number of layers of
    their configuration, and those that do more than a norm afterwards.
    """

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        raise ReachedError

    hook = decoder.layers[last].register_forward_hook(stop)
    try:
        with contextlib.suppress(ReachedError):
            decoder.module(input_ids=ids, use_cache=False, **more)
    finally:
        hook.remove()


def states_of(output: Any) -> torch.Tensor:
    """The residual stream [batch, tokens, hidden] in a block's output, which may be a tuple or a list."""
    return output[0] if isinstance(output, tuple | list) else output


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device (CUDA, MPS or the CPU's allocator) said that its memory is used up."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def embeddings_of(decoder: Decoder) -> torch.Tensor:
    """The token embeddings [vocabulary, width], or the decoder's first weight where it does not tell them."""
    try:
        return decoder.module.get_input_embeddings().weight  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return next(decoder.module.parameters())


def _probe_ids(decoder: Decoder, batch: int, tokens: int) -> torch.Tensor:
    weight = embeddings_of(decoder)
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    return (torch.arange(batch * tokens, device=device).reshape(batch, tokens) * 7 + 3) % int(weight.shape[0])


def not_run(decoder: Decoder, layer: int) -> UserError:
    """What to say where a text passes by a block, as it does by cross-attention to images."""
    return UserError(f"model: layer {layer} of {type(decoder.module).__name__} does not run on text alone; choose other layers")


def check_causal(decoder: Decoder) -> None:
    """UserError where a token's residual depends on later tokens (an encoder, or a model that is not run as a decoder).

    Two sequences with the same beginning: their residuals there must agree after the last block.
    """
    tokens, shared = 12, 6
    ids = _probe_ids(decoder, 2, tokens)
    ids[1, :shared] = ids[0, :shared]
    seen: list[torch.Tensor] = []
    hook = decoder.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(states_of(output)))
    try:
        run_until(decoder, ids)
    finally:
        hook.remove()
    if not seen:
        raise not_run(decoder, len(decoder.layers) - 1)
    states = seen[0]
    if states.ndim != 3 or states.shape[:2] != ids.shape:
        raise UserError(
            f"model: a block of {type(decoder.module).__name__} gives {list(states.shape)} for {list(ids.shape)} tokens; "
            "its residual stream cannot be read"
        )
    # without the first token, whose state is so long in some models that it would hide what the others do
    first, second = (states[row, 1:shared].float().cpu().double() for row in (0, 1))
    difference = float(((first - second).norm(dim=1) / first.norm(dim=1).clamp_min(1e-12)).median())
    if difference > CAUSAL_TOLERANCE.get(states.dtype, 2e-2):
        raise UserError(
            f"model: {type(decoder.module).__name__} is no decoder: a token's state depends on the tokens after it "
            f"(by {difference:.2g} of its length), as in an encoder such as BERT. Choose a causal language model"
        )


@dataclass
class _Seen:
    """What a probe saw of one layer: what its linear modules read before attention, attention calls as (module, heads, width of
    a head), and what read their result.
    """

    before: list[torch.Tensor] = field(default_factory=list)
    calls: list[tuple[nn.Module, int, int]] = field(default_factory=list)
    readers: list[nn.Module] = field(default_factory=list)


@contextlib.contextmanager
def _watched(decoder: Decoder, answer: Callable[..., Any]) -> Iterator[None]:
    """The decoder with its attention function replaced by `answer`."""
    configs = {id(config): config for config in (getattr(m, "config", None) for m in decoder.module.modules()) if config}
    before = {number: config._attn_implementation for number, config in configs.items()}
    AttentionInterface.register(PROBE, answer)
    try:
        for config in configs.values():
            config._attn_implementation = PROBE
        yield
    finally:
        for number, config in configs.items():
            config._attn_implementation = before[number]


def find_projections(decoder: Decoder, config: Any) -> list[Projection | NoHeads]:
    """The attention output projection of each block, found by running two tokens with an attention that takes notes.

    Heads and their width come from the query and value tensors that attention is called with (never from hidden / n_heads),
    the projection is the first linear module of that attention that then reads n_heads * head_dim values, and not what queries
    were made from (a gate does). Blocks that call no
    attention have no heads (Mamba, gated delta nets, linear attention). Models that transformers implements without its
    AttentionInterface cannot be watched so, and their blocks are looked through by name.
    """
    seen = [_Seen() for _ in decoder.layers]
    home = {module: number for number, layer in enumerate(decoder.layers) for module in layer.modules()}

    def answer(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        batch, n_heads, tokens, _width = query.shape
        if module in home:
            seen[home[module]].calls.append((module, n_heads, value.shape[-1]))
        return value.new_zeros(batch, tokens, n_heads, value.shape[-1]), None

    def reads(module: nn.Module, inputs: Any) -> None:
        notes = seen[home[module]]
        if notes.readers or not inputs or not isinstance(inputs[0], torch.Tensor):
            return
        if not notes.calls:
            notes.before.append(inputs[0])
            return
        if any(inputs[0].data_ptr() == earlier.data_ptr() for earlier in notes.before):
            return
        attention, n_heads, head_dim = notes.calls[-1]
        widths = _widths(module)
        if widths and widths[0] == n_heads * head_dim == inputs[0].shape[-1] and module in set(attention.modules()):
            notes.readers.append(module)

    hooks = [module.register_forward_pre_hook(reads) for module in home if _widths(module)]
    failed = ""
    try:
        with _watched(decoder, answer):
            run_until(decoder, _probe_ids(decoder, 1, 2))
    except Exception as error:  # a model that cannot be run so: names are what is left
        if is_out_of_memory(error):
            raise
        failed = type(error).__name__
        seen = [_Seen() for _ in decoder.layers]
    finally:
        for hook in hooks:
            hook.remove()
    n_heads = getattr(config, "num_attention_heads", None)
    by_name = not hasattr(sys.modules[type(decoder.module).__module__], "ALL_ATTENTION_FUNCTIONS")
    found: list[Projection | NoHeads] = []
    for layer, notes in zip(decoder.layers, seen, strict=True):
        if len(notes.calls) == 1 and notes.readers:
            _, heads, head_dim = notes.calls[0]
            found.append(Projection(notes.readers[0], heads, head_dim))
        elif by_name:
            found.append(projection_by_name(layer, config.hidden_size, n_heads))
        elif failed:
            found.append(NoHeads(f"its attention could not be watched ({failed})"))
        elif len(notes.calls) > 1:
            found.append(NoHeads(f"{len(notes.calls)} attentions in one layer"))
        elif notes.calls:
            found.append(NoHeads(f"nothing in {type(notes.calls[0][0]).__name__} reads what its attention returns"))
        else:
            found.append(NoHeads(f"no attention ({mixer_of(layer)})"))
    return found


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Width in and out of a linear module; GPT-2's Conv1D keeps its weight the other way round."""
    if not isinstance(module, nn.Linear | Conv1D):
        return None
    first, second = module.weight.shape
    return (second, first) if isinstance(module, nn.Linear) else (first, second)


def mixer_of(layer: nn.Module) -> str:
    """The class names of a block's parts that have weights, norms left out: what stands where attention would."""
    names = [type(child).__name__ for child in layer.children() if _size(child)]
    return ", ".join(dict.fromkeys(name for name in names if "Norm" not in name)) or type(layer).__name__


def projection_by_name(layer: nn.Module, hidden: int, n_heads: int | None) -> Projection | NoHeads:
    """The attention output projection of a block by its usual names, head_dim from its input width (never hidden / n_heads).

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
        return NoHeads(f"no attention ({mixer_of(layer)})")
    name, module, width = found[0]
    if len(found) > 1 or width % n_heads:
        return NoHeads(f"{len(found)} candidates for the output projection; {name} reads {width} values for {n_heads} heads")
    return Projection(module, n_heads, width // n_heads)
