"""Capture: each unique text of a shard goes through the model once; the rows go into the store by text digest."""

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala import cluster
from amygdala.batching import Batch, Budget, Texts, Wanted, ahead, batches, shard_texts
from amygdala.errors import UserError
from amygdala.files import check_writable, remember
from amygdala.job import job
from amygdala.keys import text_digest
from amygdala.modelinfo import check_model
from amygdala.progress import Progress
from amygdala.segments import Held, Rows, held_rows, layer_folder, space_of, write_index, write_segment
from amygdala.tokens import Encoder, check_last_tokens

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

    from amygdala.residual import Capture, Captured

FLUSH_ROWS = 1024
FLUSH_BYTES = 128 << 20
FLUSH_S = 120.0
Say = Callable[[str], None]
HeldOf = dict[Wanted, Held]


def lacking(texts: Texts, held: HeldOf) -> list[tuple[list[Wanted], np.ndarray]]:
    """Texts grouped by what the store lacks of them: [((pooling, layer) pairs, positions int64)]; complete texts are absent."""
    wanted = sorted(held)
    lacks = np.stack([held[pair].find(texts.digests) < 0 for pair in wanted], axis=1)
    patterns, group = np.unique(lacks, axis=0, return_inverse=True)
    groups = []
    for number, pattern in enumerate(patterns):
        pairs = [pair for pair, lack in zip(wanted, pattern, strict=True) if lack]
        if pairs:
            groups.append((pairs, np.flatnonzero(group.reshape(-1) == number)))
    return groups


class Buffer:
    """Rows on their way to the store, flushed as one segment a pooling and layer: at `flush_rows` texts, FLUSH_BYTES of rows or
    FLUSH_S seconds, so that a killed run loses little. A thread writes them while the model goes on, one flush at a time. Use
    as a context manager: leaving it waits for the writing. An error of a write is raised by the next flush or wait.
    """

    def __init__(self, spaces: dict[str, Path], texts: Texts, capture: "Capture", flush_rows: int) -> None:
        self.spaces, self.texts, self.capture, self.flush_rows = spaces, texts, capture, flush_rows
        self.bytes = self.rows = 0
        self.flushed = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="segments")
        self._writing: Future[None] | None = None
        self.batches: list[Batch] = []
        self.residual: dict[Wanted, list[np.ndarray]] = {}
        self.heads: dict[Wanted, list[np.ndarray]] = {}

    def add(self, batch: Batch, captured: "Captured") -> None:
        """Append one batch. UserError where a row is not finite (fp16 overflows in some models)."""
        captured.ready()
        kinds = ((captured.residual, self.residual), (captured.heads, self.heads))
        for rows, _ in kinds:
            for (_pooling, layer), values in rows.items():
                bad = np.flatnonzero(~np.isfinite(values.numpy()).all(axis=1))
                if len(bad):
                    raise UserError(
                        f"layer {layer}: the activations of text {self.texts.hex(int(batch.positions[bad[0]]))} are not finite "
                        "numbers; fp16 overflows in some models: set dtype to bf16 or fp32"
                    )
        for rows, into in kinds:
            for pair, values in rows.items():
                into.setdefault(pair, []).append(values.numpy())
                self.bytes += values.numpy().nbytes
        self.batches.append(batch)
        self.rows += len(batch)
        if self.rows >= self.flush_rows or self.bytes >= FLUSH_BYTES or time.monotonic() - self.flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Begin to write what is here, once the flush before is written."""
        self.wait()
        done, self.batches = self.batches, []
        residual, heads = self.residual, self.heads
        self.residual, self.heads, self.bytes, self.rows, self.flushed = {}, {}, 0, 0, time.monotonic()
        if done:
            self._writing = self._writer.submit(self._write, done, residual, heads)

    def wait(self) -> None:
        """Until what was flushed is written. Each file is whole or absent; after an error what was not written is dropped."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "Buffer":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown(wait=True)

    def _write(
        self, done: list[Batch], residual: dict[Wanted, list[np.ndarray]], heads: dict[Wanted, list[np.ndarray]]
    ) -> None:
        digests = [self.texts.hex(position) for batch in done for position in batch.positions]
        tokens = np.concatenate([batch.tokens for batch in done])
        cut = np.concatenate([batch.cut for batch in done])
        counts = [np.count_nonzero(batch.weights, axis=2) for batch in done]
        for pooling, layer in sorted(residual):
            pooled = np.concatenate([count[:, self.capture.poolings.index(pooling)] for count in counts])
            read = heads.pop((pooling, layer), None)
            rows = Rows(
                digests,
                np.concatenate(residual.pop((pooling, layer))),
                None if read is None else np.concatenate(read),
                tokens,
                pooled,
                cut,
            )
            write_segment(self.spaces[pooling], layer, rows, self.capture.layout(layer))


def forward(
    texts: Texts,
    groups: Sequence[tuple[list[Wanted], np.ndarray]],
    capture: "Capture",
    encoder: Encoder,
    buffer: Buffer,
    budget: Budget,
    say: Say,
) -> dict[str, Any]:
    """Forward each text once, in length-sorted batches, and store its rows. Returns {"texts", "tokens", "seconds"}.

    A batch's rows are taken from the device only after the next batch was started. Whatever ends the run early, rows that are
    complete are stored first.
    """
    count = sum(len(positions) for _, positions in groups)
    progress = Progress(count, sum(int(texts.chars[positions].sum()) for _, positions in groups), say)
    start = time.monotonic()
    tokens = 0
    waiting: list[tuple[Batch, Captured]] = []

    def add_waiting() -> None:
        while waiting:
            buffer.add(*waiting.pop(0))

    try:
        for wanted, positions in groups:
            capture.select(wanted)
            with contextlib.closing(ahead(batches(texts, positions, encoder, capture.poolings, budget))) as coming:
                for batch in coming:
                    made = capture.each(batch, budget, say)
                    add_waiting()
                    waiting.extend(made)
                    tokens += int(batch.tokens.sum())
                    progress.add(len(batch), int(texts.chars[batch.positions].sum()), int(batch.tokens.sum()))
            add_waiting()
            buffer.flush()
        buffer.wait()
    except BaseException:
        for store in (add_waiting, buffer.flush, buffer.wait):
            with contextlib.suppress(Exception):
                store()
        raise
    return {"texts": count, "tokens": tokens, "seconds": round(time.monotonic() - start, 3)}


def run_model(
    texts: Texts,
    sample: Sequence[str],
    groups: Sequence[tuple[list[Wanted], np.ndarray]],
    spaces: dict[str, Path],
    settings: dict[str, Any],
    say: Say,
    flush_rows: int,
) -> dict[str, Any]:
    """Load the model as far as the groups need it and forward them; returns what forward() does."""
    from amygdala import loading, residual

    device = loading.place(settings)
    encoder, config = loading.open_encoder(settings)
    if "last" in spaces and settings.get("check_last", True):
        known = {text_digest(text) for text in sample}
        rest = (texts.text(position) for position in range(len(texts)) if texts.hex(position) not in known)
        check_last_tokens(encoder, itertools.chain(sample, rest))
    pairs = sorted({pair for wanted, _ in groups for pair in wanted})
    layers, poolings = sorted({layer for _, layer in pairs}), [name for name in spaces if name in {p for p, _ in pairs}]
    if device.type == "cpu":
        loading.keep_few_kernels()
    where = f"{device.type}, spread by device_map {settings['device_map']}" if settings["device_map"] else device.type
    say(
        f"loading layers 0 to {layers[-1]} on {where} in {settings['dtype']} for layers {layers}, pooling {', '.join(poolings)}"
    )
    start = time.monotonic()
    checkpoint = settings["source"], settings["revision"]
    with residual.Capture(
        *checkpoint, layers, settings["dtype"], poolings, device, settings["device_map"], encoder.tokenizer, config
    ) as capture:
        load_s = time.monotonic() - start
        if device.type == "cpu":
            loading.keep_freed_memory()  # not earlier: what loading freed is no use to batches
        for layer in layers:
            if "reason" in capture.layout(layer):
                say(f"layer {layer} has no heads: {capture.layout(layer)['reason']}")
        budget = residual.budget(settings, device, config)
        with Buffer(spaces, texts, capture, flush_rows) as buffer:
            done = forward(texts, groups, capture, encoder, buffer, budget, say)
    chars = sum(int(texts.chars[positions].sum()) for _, positions in groups)
    remember(next(iter(spaces.values())) / "rate.json", rate_of(chars, done, load_s, device.type))
    return done


def capture_shard(
    texts: Texts,
    layers: Sequence[int],
    indices: dict[str, Path],
    settings: dict[str, Any],
    say: Say,
    flush_rows: int = FLUSH_ROWS,
    sample: Sequence[str] = (),
) -> dict[str, Any]:
    """Bring the rows of `texts` at `layers` into the store and write an index over them; returns what was done.

    indices: {pooling: path of its index}, each in the space of its pooling. settings: source, revision, dtype, template,
    device, device_map, max_tokens, batch_tokens, batch_size, threads. check_last: False where texts may all
    end in the same token (default True). sample: texts of the other shards, for that check of `last`. The model is loaded only
    if a row is missing, once, and only up to the last layer that is missing.
    """
    spaces = {pooling: space_of(index) for pooling, index in indices.items()}

    def look(pairs: Iterable[Wanted]) -> HeldOf:
        return {(pooling, layer): held_rows(spaces[pooling], layer, say) for pooling, layer in pairs}

    held = look((pooling, layer) for pooling in spaces for layer in layers)
    groups = lacking(texts, held)
    missing = sum(len(positions) for _, positions in groups)
    say(f"{len(texts)} unique texts, {len(texts) - missing} in the store, {missing} to forward")
    done = {"texts": 0, "tokens": 0, "seconds": 0.0}
    if groups:
        for pooling, layer in held:
            check_writable(layer_folder(spaces[pooling], layer))
        done = run_model(texts, sample, groups, spaces, settings, say, flush_rows)
        held |= look(sorted({pair for wanted, _ in groups for pair in wanted}))
    stats: dict[str, Any] = {"unique_texts": len(texts), "forwarded_texts": done["texts"], "forwarded_tokens": done["tokens"]}
    stats["seconds"] = done["seconds"]
    for pooling, index in indices.items():
        first = held[pooling, layers[0]]
        places = first.find(texts.digests)
        own = {
            **stats,
            "tokens": int(first.tokens[places].sum()),
            "cut_texts": int(first.cut[places].sum()),
            "short_texts": int((first.pooled[places] == 0).sum()),
        }
        write_index(index, texts.digests, {layer: held[pooling, layer] for layer in layers}, own)
        if own["short_texts"]:
            say(f"warning: {own['short_texts']} texts are too short for pooling {pooling} and have no row")
    say(f"forwarded {done['texts']} of {len(texts)} unique texts, {done['tokens']} tokens")
    if own["cut_texts"]:
        say(f"warning: {own['cut_texts']} texts were cut to max_tokens")
    return own


def rate_of(chars: int, done: dict[str, Any], load_s: float, device: str) -> dict[str, Any]:
    """What an estimate of a later capture goes by: characters a token, tokens a second, seconds to load the model."""
    return {
        "chars_per_token": chars / max(done["tokens"], 1),
        "tokens_per_s": done["tokens"] / max(done["seconds"], 1e-3),
        "load_s": round(load_s, 3),
        "device": device,
    }


def stop_on_terminate(say: Say) -> None:
    """Make SIGTERM (a cluster's time limit, scancel) end the job like Ctrl-C, so that complete rows are stored first. Another
    one does not break that off: SLURM may send it to all processes, and Snakemake passes on its own.
    """

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(RuntimeError):  # it came in the midst of another line
            say(f"{signal.Signals(number).name} stops this job (a time limit, or someone): complete rows are being stored")
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)


if "snakemake" in globals():
    with job(snakemake, aloud=True) as say:
        stop_on_terminate(say)
        if placed := cluster.placed():
            say(placed)
        params = snakemake.params
        indices = {pooling: Path(path) for pooling, path in zip(params.poolings, snakemake.output, strict=True)}
        check_model(params.model, params.settings["source"], space_of(snakemake.output[0]).parent.parent)
        texts, sample = shard_texts(snakemake.input.examples, params.shard, params.shards)
        settings = {**params.settings, "threads": snakemake.threads, "shard": params.shard}
        capture_shard(texts, params.layers, indices, settings, say, sample=sample)
