"""Capture: each unique text of a shard goes through the model once; the rows go into the store by text digest."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.errors import UserError, shown
from amygdala.exampleset import read_examples, shard_of
from amygdala.files import remember
from amygdala.job import job
from amygdala.progress import Progress
from amygdala.segments import Held, Rows, held_rows, space_of, write_index, write_segment

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

    from amygdala.residual import Capture, Tokens

FLUSH_ROWS = 4096
FLUSH_BYTES = 512 << 20
Say = Callable[[str], None]


def shard_texts(example_files: Iterable[str | Path], shard: int, shards: int) -> dict[str, str]:
    """{digest: text} of the unique texts of all emotions that fall to `shard`, sorted by digest."""
    texts: dict[str, str] = {}
    for path in example_files:
        for example in read_examples(path):
            if shard_of(example.digest, shards) == shard:
                texts[example.digest] = example.text
    return dict(sorted(texts.items()))


def missing_layers(digests: Iterable[str], held: dict[int, Held]) -> dict[tuple[int, ...], list[str]]:
    """{layers: digests}: texts grouped by the set of layers that the store lacks of them; complete texts are absent."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for digest in digests:
        packed = bytes.fromhex(digest)
        lacking = tuple(layer for layer in sorted(held) if packed not in held[layer].places)
        if lacking:
            groups.setdefault(lacking, []).append(digest)
    return groups


class Buffer:
    """Rows on their way to the store: flushed as one segment a layer at `flush_rows` texts or FLUSH_BYTES of rows."""

    def __init__(self, space: Path, capture: "Capture", flush_rows: int) -> None:
        self.space, self.capture, self.flush_rows = space, capture, flush_rows
        self.bytes = 0
        self.digests: list[str] = []
        self.tokens: list[Tokens] = []
        self.residual: dict[int, list[np.ndarray]] = {layer: [] for layer in capture.layers}
        self.heads: dict[int, list[np.ndarray]] = {layer: [] for layer in capture.layers}

    def add(self, digests: Sequence[str], tokens: "Sequence[Tokens]", captured: Any) -> None:
        """Append one batch. UserError where a row is not finite (fp16 overflows in some models)."""
        for layer in self.capture.layers:
            for rows, into in ((captured.residual, self.residual), (captured.heads, self.heads)):
                if layer not in rows:
                    continue
                values = rows[layer].to("cpu").numpy()
                bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
                if len(bad):
                    raise UserError(
                        f"layer {layer}: the activations of text {digests[bad[0]]} are not finite numbers; "
                        "fp16 overflows in some models: set dtype to bf16 or fp32"
                    )
                into[layer].append(values)
                self.bytes += values.nbytes
        self.digests.extend(digests)
        self.tokens.extend(tokens)
        if len(self.digests) >= self.flush_rows or self.bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self.digests:
            return
        tokens = np.array([len(text.ids) for text in self.tokens])
        cut = np.array([text.cut for text in self.tokens])
        for layer in self.capture.layers:
            heads = np.concatenate(self.heads[layer]) if self.heads[layer] else None
            rows = Rows(self.digests, np.concatenate(self.residual[layer]), heads, tokens, cut)
            write_segment(self.space, layer, rows, self.capture.layout(layer))
            self.residual[layer], self.heads[layer] = [], []
        self.digests, self.tokens, self.bytes = [], [], 0


def forward(texts: dict[str, str], capture: "Capture", space: Path, settings: Any, say: Say, flush_rows: int) -> dict[str, Any]:
    """Forward each text once in length-sorted batches and store its rows. Returns {"texts", "tokens", "seconds"}."""
    from amygdala import residual

    max_tokens = min(settings["max_tokens"], capture.max_positions or settings["max_tokens"])
    digests = list(texts)
    tokens = residual.tokenize(capture.tokenizer, list(texts.values()), max_tokens)
    for digest, text in zip(digests, tokens, strict=True):
        if not any(text.content):
            raise UserError(
                f"text {digest} ({shown(texts[digest])}) has no content tokens beside the first; raise min_content_chars, "
                "or drop the node"
            )
    lengths = [len(text.ids) for text in tokens]
    budget = settings["batch_tokens"]
    budget = residual.BATCH_TOKENS[capture.device.type] if budget == "auto" else budget
    progress = Progress(len(digests), sum(lengths), say)
    buffer = Buffer(space, capture, flush_rows)
    start = time.monotonic()
    for positions in residual.batches(lengths, budget):
        batch = [tokens[position] for position in positions]
        buffer.add([digests[position] for position in positions], batch, capture(batch))
        progress.add(len(positions), sum(lengths[position] for position in positions))
    buffer.flush()
    return {"texts": len(digests), "tokens": sum(lengths), "seconds": round(time.monotonic() - start, 3)}


def capture_shard(
    texts: dict[str, str],
    layers: Sequence[int],
    index: Path,
    settings: dict[str, Any],
    say: Say,
    flush_rows: int = FLUSH_ROWS,
) -> dict[str, Any]:
    """Bring the rows of `texts` at `layers` into the store and write `index` over them; returns what was done.

    settings: source, revision, dtype, pooling, device, max_tokens, batch_tokens, threads. The model is loaded only if a row is
    missing, and only up to the last layer that is missing.
    """
    space = space_of(index)
    held = {layer: held_rows(space, layer, say) for layer in layers}
    groups = missing_layers(texts, held)
    missing = sum(len(digests) for digests in groups.values())
    say(f"{len(texts)} unique texts, {len(texts) - missing} in the store, {missing} to forward")
    stats: dict[str, Any] = {"unique_texts": len(texts), "forwarded_texts": 0, "forwarded_tokens": 0, "seconds": 0.0}
    for lacking, digests in sorted(groups.items()):
        from amygdala import residual

        residual.set_threads(settings["threads"])
        device = residual.pick_device(settings["device"])
        say(f"loading layers 0 to {lacking[-1]} on {device.type} in {settings['dtype']} for layers {list(lacking)}")
        chosen = {digest: texts[digest] for digest in digests}
        start = time.monotonic()
        with residual.Capture(
            settings["source"], settings["revision"], lacking, settings["dtype"], settings["pooling"], device
        ) as capture:
            load_s = time.monotonic() - start
            done = forward(chosen, capture, space, settings, say, flush_rows)
        chars = sum(map(len, chosen.values()))
        remember(space / "rate.json", rate_of(chars, done, load_s, device.type))
        stats["forwarded_texts"] += done["texts"]
        stats["forwarded_tokens"] += done["tokens"]
        stats["seconds"] += done["seconds"]
    if groups:
        held = {layer: held_rows(space, layer, say) for layer in layers}
    first = held[layers[0]]
    packed = [bytes.fromhex(digest) for digest in texts]
    stats["tokens"] = sum(first.tokens[digest] for digest in packed)
    stats["cut_texts"] = sum(first.cut[digest] for digest in packed)
    write_index(index, list(texts), held, stats)
    say(f"forwarded {stats['forwarded_texts']} of {len(texts)} unique texts, {stats['forwarded_tokens']} tokens")
    if stats["cut_texts"]:
        say(f"warning: {stats['cut_texts']} texts were cut to max_tokens")
    return stats


def rate_of(chars: int, done: dict[str, Any], load_s: float, device: str) -> dict[str, Any]:
    """What an estimate of a later capture goes by: characters a token, tokens a second, seconds to load the model."""
    return {
        "chars_per_token": chars / max(done["tokens"], 1),
        "tokens_per_s": done["tokens"] / max(done["seconds"], 1e-3),
        "load_s": round(load_s, 3),
        "device": device,
    }


def check_model(model: dict[str, Any], source: str, store: Path) -> None:
    """UserError where a model folder is no longer what the keys were made from, or a converted one is gone."""
    from amygdala.modelinfo import describe

    if model["kind"] == "folder" and describe(model["source"], [Path()], store).identity != model["identity"]:
        raise UserError(f"model: {model['source']} changed while snakemake was running. Run snakemake again")
    if model["kind"] in ("embedded", "gguf") and not Path(source, "config.json").is_file():
        Path(f"{source}.json").unlink(missing_ok=True)
        raise UserError(f"model: the converted model {source} is gone. Run snakemake again: it is converted anew")


if "snakemake" in globals():
    with job(snakemake, aloud=True) as say:
        params = snakemake.params
        index = Path(snakemake.output[0])
        check_model(params.model, params.settings["source"], space_of(index).parent.parent)
        texts = shard_texts(snakemake.input.examples, params.shard, params.shards)
        settings = {**params.settings, "threads": snakemake.threads}
        capture_shard(texts, params.layers, index, settings, say)
