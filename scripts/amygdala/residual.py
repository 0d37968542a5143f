"""Texts to rows: the residual stream after chosen decoder layers, and the input of their attention output projections, pooled
over the content tokens inside forward hooks, so that nothing of size [batch, tokens, hidden] outlives its layer.

The residual of layer i is that layer's *output* (0-based): `hidden_states[i + 1]` of a full run, except for the model's last
layer, where transformers gives the state after the final norm and this gives the state before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from amygdala.architecture import (
    Decoder,
    NoHeads,
    Projection,
    embeddings_of,
    find_projections,
    is_out_of_memory,
    not_run,
    run_until,
    states_of,
    text_config,
)
from amygdala.batching import Batch, Budget, Wanted
from amygdala.errors import UserError
from amygdala.loading import load_decoder, load_tokenizer, rope_border

BATCH_TOKENS = {"cpu": 2048, "mps": 4096, "cuda": 16384}


def budget(settings: Mapping[str, Any], device: torch.device, config: Any) -> Budget:
    """What goes into a batch, by the settings batch_tokens (`auto`: as many as suit the device) and batch_size and by the
    model's configuration.
    """
    wanted = settings["batch_tokens"]
    tokens = BATCH_TOKENS[device.type] if wanted == "auto" else wanted
    return Budget(tokens, settings["batch_size"], rope_border(config))


def pool(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, width] of any float dtype, weights float32 [batch, poolings, tokens], to float32 [batch, poolings,
    width]. What overflows fp16 at a token that no pooling counts does not reach the rows.
    """
    if states.dtype == torch.float16:
        states = states.masked_fill(~weights.any(dim=1).unsqueeze(2), 0)
    return torch.bmm(weights, states.float())


@dataclass
class Captured:
    """Pooled rows of one batch by (pooling, layer): residual float32 [batch, hidden], heads float32 [batch, n_heads *
    head_dim].

    `ready` waits for the rows to arrive on the CPU (nothing to wait for unless they come from a GPU).
    """

    residual: dict[Wanted, torch.Tensor] = field(default_factory=dict)
    heads: dict[Wanted, torch.Tensor] = field(default_factory=dict)
    ready: Callable[[], None] = lambda: None

    def start_copy(self) -> Captured:
        """The same rows on the CPU, on their way: the GPU goes on with the next batch meanwhile."""
        copies = Captured()
        devices: set[torch.device] = set()
        for rows, into in ((self.residual, copies.residual), (self.heads, copies.heads)):
            for wanted, values in rows.items():
                if values.device.type == "cuda":
                    target = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                    into[wanted] = target.copy_(values, non_blocking=True)
                    devices.add(values.device)
                else:
                    into[wanted] = values.to("cpu")
        events = [torch.cuda.current_stream(device).record_event() for device in devices]

        def ready() -> None:
            for event in events:
                event.synchronize()

        copies.ready = ready
        return copies


class Capture:
    """A truncated decoder with hooks on `layers`; call it with batches. Use as a context manager: it removes its hooks.

    layers: 0-based; poolings: as pool_weights takes them, in the order of a batch's weights; tokenizer, config: the model's,
    where they were loaded before.

    >>> with Capture(source, None, [12, 18], "fp32", ["mean"], torch.device("cpu")) as capture:
    ...     encode = Encoder(capture.tokenizer, 2048)
    ...     rows = capture(pad([0], encode(["A text."]), ["mean"]))
    ...     rows.residual["mean", 12].shape
    torch.Size([1, 576])
    """

    def __init__(
        self,
        source: str,
        revision: str | None,
        layers: Sequence[int],
        dtype: str,
        poolings: Sequence[str],
        device: torch.device,
        device_map: str | None = None,
        tokenizer: Any = None,
        config: Any = None,
    ) -> None:
        self.tokenizer = tokenizer or load_tokenizer(source, revision)
        decoder = load_decoder(source, revision, max(layers) + 1, dtype, device, device_map, config)
        self._attach(decoder, layers, poolings, device)

    @classmethod
    def of(cls, decoder: Decoder, layers: Sequence[int], poolings: Sequence[str], device: torch.device) -> Capture:
        """A capture from a decoder that is in memory already; it has no tokenizer."""
        capture = cls.__new__(cls)
        capture.tokenizer = None
        capture._attach(decoder, layers, poolings, device)
        return capture

    def _attach(self, decoder: Decoder, layers: Sequence[int], poolings: Sequence[str], device: torch.device) -> None:
        torch.set_float32_matmul_precision("highest")  # fp32 is fp32: no TF32 on GPUs, whatever the container says
        self.decoder, self.layers, self.poolings, self.device = decoder, sorted(layers), list(poolings), device
        placed = embeddings_of(self.decoder).device
        self.input_device = device if placed.type == "meta" else placed
        self.vocabulary = embeddings_of(decoder).shape[0]
        config = text_config(self.decoder.module.config)
        with torch.inference_mode():
            found = find_projections(self.decoder, config)
        self.projections = {layer: found[layer] for layer in self.layers}
        self.select((pooling, layer) for pooling in poolings for layer in layers)
        self._weights: dict[torch.device, torch.Tensor] = {}
        self._captured = Captured()
        self._hooks = []
        for layer in self.layers:
            self._hooks.append(self.decoder.layers[layer].register_forward_hook(self._residual_hook(layer)))
            projection = self.projections[layer]
            if isinstance(projection, Projection):
                self._hooks.append(projection.module.register_forward_pre_hook(self._heads_hook(layer)))

    def select(self, wanted: Iterable[Wanted]) -> None:
        """Which (pooling, layer) pairs the next batches give; the model runs to the last of these layers."""
        self.wanted: dict[int, list[str]] = {}
        for pooling, layer in wanted:
            self.wanted.setdefault(layer, []).append(pooling)

    def layout(self, layer: int) -> dict[str, Any]:
        """{"n_heads", "head_dim"} of a layer, or {"reason"}: why it has no heads."""
        projection = self.projections[layer]
        if isinstance(projection, NoHeads):
            return {"reason": projection.reason}
        return {"n_heads": projection.n_heads, "head_dim": projection.head_dim}

    def _keep(self, layer: int, states: torch.Tensor, into: dict[Wanted, torch.Tensor]) -> None:
        if layer not in self.wanted:
            return
        if states.device not in self._weights:
            self._weights[states.device] = next(iter(self._weights.values())).to(states.device)
        pooled = pool(states, self._weights[states.device])
        for pooling in self.wanted[layer]:
            into[pooling, layer] = pooled[:, self.poolings.index(pooling)]

    def _residual_hook(self, layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            self._keep(layer, states_of(output), self._captured.residual)

        return hook

    def _heads_hook(self, layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any) -> None:
            self._keep(layer, inputs[0], self._captured.heads)

        return hook

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Captured:
        """Forward one batch to the last layer wanted, and pool. Raises what the device raises when memory is out."""
        if int(batch.ids.max()) >= self.vocabulary:
            raise UserError(
                f"model: the tokenizer gives token {int(batch.ids.max())}, the embeddings have {self.vocabulary}: "
                "tokenizer and weights are not of the same model"
            )
        self._captured = Captured()
        self._weights = {self.input_device: self._sent(batch.weights)}
        run_until(self.decoder, self._sent(batch.ids), last=max(self.wanted))
        if lost := self.wanted.keys() - {layer for _, layer in self._captured.residual}:
            raise not_run(self.decoder, min(lost))
        return self._captured

    def _sent(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self.input_device.type == "cuda":
            return tensor.pin_memory().to(self.input_device, non_blocking=True)
        return tensor.to(self.input_device)

    def each(self, batch: Batch, budget: Budget, say: Callable[[str], None]) -> list[tuple[Batch, Captured]]:
        """Forward a batch, in halves where memory runs out; `budget` is halved then for the batches to come.

        UserError where a single text does not fit.
        """
        try:
            return [(batch, self(batch).start_copy())]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise UserError(
                    f"out of memory on a single text of {batch.tokens[0]} tokens: lower max_tokens, or use a larger device"
                ) from None
        self._captured = Captured()
        if self.input_device.type == "cuda":
            torch.cuda.empty_cache()
        budget.halve(batch.ids.size)
        say(f"out of memory on a batch of {batch.ids.size} tokens: batches of {budget.tokens} from here on")
        half = len(batch) // 2
        return self.each(batch[:half], budget, say) + self.each(batch[half:], budget, say)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
