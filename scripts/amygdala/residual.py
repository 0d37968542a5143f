"""Texts to rows: the residual stream after chosen decoder layers, and the input of their attention output projections, pooled
over the content tokens inside forward hooks, so that nothing of size [batch, tokens, hidden] outlives its layer.

The residual of layer i is that layer's *output* (0-based): `hidden_states[i + 1]` of a full run, except for the model's last
layer, where transformers gives the state after the final norm and this gives the state before it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from amygdala.architecture import NoHeads, Projection, decoder_layers, output_projection, text_config
from amygdala.errors import UserError, shown

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BATCH_TOKENS = {"cpu": 2048, "mps": 4096, "cuda": 16384}


def pick_device(wanted: str) -> torch.device:
    """The device for `auto`, `cuda`, `cpu` or `mps`; UserError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        raise UserError(f"device: {wanted} is not available here; set `device: auto` or another")
    return torch.device(wanted)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No load report: the layers after the last target are left out on purpose, and missing ones are checked below."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def truncated_config(source: str, revision: str | None, n_layers: int) -> Any:
    """The model's configuration with only its first `n_layers` decoder layers, lists of one entry a layer cut alike."""
    config = transformers.AutoConfig.from_pretrained(source, revision=revision, local_files_only=True)
    inner = text_config(config)
    full = inner.num_hidden_layers
    for name, value in list(vars(inner).items()):
        if isinstance(value, list) and len(value) == full:
            setattr(inner, name, value[:n_layers])
    inner.num_hidden_layers = n_layers
    return config


def load_model(source: str, revision: str | None, n_layers: int, dtype: str, device: torch.device) -> torch.nn.Module:
    """The decoder without its vocabulary head, its first `n_layers` layers only, in eval mode on `device`.

    Weights come from safetensors alone. UserError where the folder lacks weights that these layers need (transformers
    would fill them with random numbers).
    """
    with _quiet():
        try:
            model, info = transformers.AutoModel.from_pretrained(
                source,
                revision=revision,
                config=truncated_config(source, revision, n_layers),
                dtype=TORCH_DTYPES[dtype],
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"model: {source} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        problem = f"lacks {len(missing)} weights, {shown(missing[0])} first" if missing else "has weights of other shapes"
        raise UserError(f"model: {source} {problem}; it does not fit its config.json")
    return model.eval().to(device)


def load_tokenizer(source: str, revision: str | None) -> Any:
    with _quiet():
        try:
            return transformers.AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"model: {source} has no usable tokenizer: {str(error).strip().splitlines()[0]}") from None


@dataclass(frozen=True)
class Tokens:
    """A tokenized text: ids [T], content [T] (which tokens count), whether it was cut to `max_tokens`."""

    ids: list[int]
    content: list[bool]
    cut: bool


def tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[Tokens]:
    """Tokens of each text, with the tokenizer's own special tokens.

    Content tokens are all but the first token of the sequence, whose activation is an outlier in most decoders
    (Xiao et al., 2309.17453), and the special ones. Longer texts are cut at the end.
    """
    encoded = tokenizer(list(texts), add_special_tokens=True, return_special_tokens_mask=True, verbose=False)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    result = []
    for ids, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        cut = len(ids) > max_tokens
        ids, mask = ids[:max_tokens], mask[:max_tokens]
        flags = zip(ids, mask, strict=True)
        content = [position > 0 and not marked and token not in special for position, (token, marked) in enumerate(flags)]
        result.append(Tokens(ids, content, cut))
    return result


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped into batches of at most `batch_tokens` padded tokens (one text at least), longest texts first."""
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    result: list[list[int]] = []
    for position in order:
        if result and (len(result[-1]) + 1) * lengths[result[-1][0]] <= batch_tokens:
            result[-1].append(position)
        else:
            result.append([position])
    return result


def pool_weights(content: torch.Tensor, pooling: str) -> torch.Tensor:
    """bool [batch, tokens] of content tokens to float32 weights of the same shape that sum to 1 a row: `mean` or `last`."""
    if pooling == "mean":
        weights = content.float()
        return weights / weights.sum(1, keepdim=True)
    if pooling == "last":
        positions = torch.arange(content.shape[1], device=content.device)
        last = torch.where(content, positions, -1).amax(1, keepdim=True)
        return (positions == last).float()
    raise ValueError(f"unknown pooling {pooling!r}")


def pool(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, width] of any float dtype, weights float32 [batch, tokens], to float32 [batch, width]."""
    return torch.bmm(weights.unsqueeze(1), states.float()).squeeze(1)


@dataclass
class Captured:
    """Pooled rows of one batch by layer: residual float32 [batch, hidden], heads float32 [batch, n_heads * head_dim]."""

    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    heads: dict[int, torch.Tensor] = field(default_factory=dict)


class Capture:
    """A truncated decoder with hooks on `layers`; call it with tokenized texts. Use as a context manager: it removes its hooks.

    >>> with Capture(source, None, layers=[12, 18], dtype="fp32", pooling="mean", device=torch.device("cpu")) as capture:
    ...     rows = capture(tokenize(capture.tokenizer, ["A text."], 2048))
    ...     rows.residual[12].shape
    torch.Size([1, 576])
    """

    def __init__(
        self, source: str, revision: str | None, layers: Sequence[int], dtype: str, pooling: str, device: torch.device
    ) -> None:
        self.layers, self.pooling, self.device = sorted(layers), pooling, device
        self.tokenizer = load_tokenizer(source, revision)
        self.model = load_model(source, revision, self.layers[-1] + 1, dtype, device)
        config = text_config(self.model.config)
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        blocks = decoder_layers(self.model, self.layers[-1] + 1)
        n_heads = getattr(config, "num_attention_heads", None)
        self.projections = {layer: output_projection(blocks[layer], config.hidden_size, n_heads) for layer in self.layers}
        self._weights: torch.Tensor | None = None
        self._captured = Captured()
        self._hooks = []
        for layer in self.layers:
            self._hooks.append(blocks[layer].register_forward_hook(self._residual_hook(layer)))
            projection = self.projections[layer]
            if isinstance(projection, Projection):
                self._hooks.append(projection.module.register_forward_pre_hook(self._heads_hook(layer)))

    def layout(self, layer: int) -> dict[str, Any]:
        """{"n_heads", "head_dim"} of a layer, or {"reason"}: why it has no heads."""
        projection = self.projections[layer]
        if isinstance(projection, NoHeads):
            return {"reason": projection.reason}
        return {"n_heads": projection.n_heads, "head_dim": projection.head_dim}

    def _residual_hook(self, layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            self._captured.residual[layer] = pool(states, self._weights)  # type: ignore[arg-type]

        return hook

    def _heads_hook(self, layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any) -> None:
            self._captured.heads[layer] = pool(inputs[0], self._weights)  # type: ignore[arg-type]

        return hook

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Tokens]) -> Captured:
        """Forward one batch, padded on the right (causal attention never looks there), and pool.

        Out of GPU memory: the batch is forwarded in two halves.
        """
        try:
            return self._forward(texts)
        except torch.OutOfMemoryError:
            if len(texts) == 1:
                raise UserError(
                    f"out of memory on a single text of {len(texts[0].ids)} tokens: lower max_tokens, or use a larger device"
                ) from None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(texts) // 2
        first, second = self(texts[:half]), self(texts[half:])
        joined = Captured()
        for layer in self.layers:
            joined.residual[layer] = torch.cat([first.residual[layer], second.residual[layer]])
            if layer in first.heads:
                joined.heads[layer] = torch.cat([first.heads[layer], second.heads[layer]])
        return joined

    def _forward(self, texts: Sequence[Tokens]) -> Captured:
        longest = max(len(text.ids) for text in texts)
        ids = torch.zeros((len(texts), longest), dtype=torch.long)
        attended = torch.zeros((len(texts), longest), dtype=torch.long)
        content = torch.zeros((len(texts), longest), dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            attended[row, : len(text.ids)] = 1
            content[row, : len(text.ids)] = torch.tensor(text.content)
        self._captured = Captured()
        self._weights = pool_weights(content, self.pooling).to(self.device)
        self.model(input_ids=ids.to(self.device), attention_mask=attended.to(self.device), use_cache=False)
        return self._captured

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def set_threads(threads: int) -> None:
    """Follow Snakemake's `threads`, and keep tokenizers from forking warnings."""
    torch.set_num_threads(max(1, threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
