"""How strongly each token of a few example texts projects on its emotion's vector, for the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.batch import by_layer
from amygdala.batching import Batch
from amygdala.errors import UserError
from amygdala.exampleset import HELD_OUT, POSITIVE, TRAIN, Example, read_examples
from amygdala.files import read_json, write_json
from amygdala.job import Say, job
from amygdala.modelinfo import check_model
from amygdala.segments import RESIDUAL, Reader
from amygdala.tokens import Encoder, Tokens, pool_weights
from amygdala.vectorfile import read_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

    from amygdala.residual import Capture

DIGITS = 4
NORMAL = 1.4826  # standard deviations of a normal distribution in a median absolute deviation


@dataclass(frozen=True)
class Chosen:
    """The texts that show an emotion: at which layer, of which split, of how many positives there, and (example, its place from
    the highest projection on, the projection of its stored row) of each.
    """

    layer: int
    split: str
    positives: int
    texts: list[tuple[Example, int, float]]


def spread_of(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(median, 1.4826 times the median absolute deviation from it) of each column of scores [tokens, n], float64 [n] each.

    A few tokens of a text, as a rule its first and those like it, have activations hundreds of times larger than all others
    (Sun et al., 2402.17762). A mean and a standard deviation would be theirs; these two are the other tokens' (Iglewicz and
    Hoaglin 1993), and for normal numbers the same.
    """
    middle = np.median(scores, axis=0)
    return middle, NORMAL * np.median(np.abs(scores - middle), axis=0)


def spaced(count: int, wanted: int) -> list[int]:
    """`wanted` places of 0 … count - 1, the first, the last and evenly between; all where there are no more.

    >>> spaced(9, 3)
    [0, 4, 8]
    """
    if wanted <= 1:
        return list(range(min(count, wanted)))
    return sorted({round(place * (count - 1) / (wanted - 1)) for place in range(wanted)}) if count else []


def choose(examples: Sequence[Example], reader: Reader, layer: int, vector: np.ndarray, wanted: int) -> Chosen:
    """The held-out positives with the highest, the lowest and evenly spaced projections (stored row times vector) between;
    training ones where nothing is held out. Texts without a row are none.
    """
    for split in (HELD_OUT, TRAIN):
        found = [e for e in examples if e.split == split and e.polarity == POSITIVE and reader.pooled(e.digest)]
        if found:
            break
    if not found or not wanted:
        return Chosen(layer, split, len(found), [])
    rows = reader.rows(layer, RESIDUAL, [example.digest for example in found]).astype(np.float64)
    projections = rows @ vector.astype(np.float64)
    order = sorted(range(len(found)), key=lambda at: (-projections[at], found[at].digest))
    places = spaced(len(found), wanted)
    return Chosen(layer, split, len(found), [(found[order[at]], at + 1, float(projections[order[at]])) for at in places])


def pieces(encoder: Encoder, text: str, tokens: Tokens) -> list[str]:
    """The part of `text` that each token stands for, so that together they are the text up to the last token; "" for a token of
    a template, and for one that holds only a part of a character whose whole is given to the token before.

    Where the tokenizer tells no offsets (a slow one), each token decoded by itself.
    """
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast:
        return [tokenizer.decode([int(token)]) for token in tokens.ids]
    chat, start, _ = encoder.place(text) if encoder.place else (text, 0, len(text))
    encoded = tokenizer(chat, add_special_tokens=encoder.place is None, return_offsets_mapping=True, verbose=False)
    if list(encoded["input_ids"][: len(tokens)]) != tokens.ids.tolist():
        raise AssertionError("the same text gave other tokens")
    found, position = [], start
    for _, after in encoded["offset_mapping"][: len(tokens)]:
        upto = max(after, position)  # the last token is one of the text, so that nothing behind it is reached
        found.append(chat[position:upto])
        position = upto
    return found


def token_rows(capture: "Capture", tokens: Tokens, layers: Sequence[int]) -> dict[int, np.ndarray]:
    """{layer: float32 [content tokens, hidden]}, the layer's output at each content token of one text, forwarded once.

    The rows come from the hooks that pool: with weights that are 1 at one token and 0 elsewhere, a pooled row is that token's.
    """
    content = np.flatnonzero(tokens.content)
    names = [f"token {position}" for position in content]
    weights = np.zeros((1, len(content), len(tokens)), np.float32)
    weights[0, np.arange(len(content)), content] = 1
    capture.poolings = names
    capture.select((name, layer) for name in names for layer in layers)
    one = Batch(
        np.zeros(1, np.int64), tokens.ids[None].astype(np.int64), weights, np.array([len(tokens)]), np.array([tokens.cut])
    )
    captured = capture(one).start_copy()
    captured.ready()
    return {layer: np.concatenate([captured.residual[name, layer].numpy() for name in names]) for layer in layers}


def projected(
    capture: "Capture", texts: Mapping[str, Tokens], layers: Sequence[int], vectors: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """(digest, float64 [content tokens, emotions]) of each text: every content token on every emotion's vector, each at its own
    layer. layers: of each emotion; vectors: [emotions, hidden]. UserError where a number is not finite.
    """
    for digest, tokens in texts.items():
        rows = token_rows(capture, tokens, sorted(set(layers)))
        scores = np.empty((int(tokens.content.sum()), len(layers)))
        for layer, values in rows.items():
            at = [number for number, other in enumerate(layers) if other == layer]
            scores[:, at] = values.astype(np.float64) @ vectors[at].astype(np.float64).T
        if not np.isfinite(scores).all():
            raise UserError(
                f"the activations of text {digest} are not finite numbers; fp16 overflows in some models: set dtype to bf16 or "
                "fp32"
            )
        yield digest, scores


def open_capture(settings: Mapping[str, Any], layers: Sequence[int], say: Say) -> tuple["Capture", Encoder]:
    """The model up to the last of `layers` and an encoder, as a capture with the same settings takes them."""
    from amygdala import loading, residual

    device = loading.place(settings)
    encoder, config = loading.open_encoder(settings)
    say(f"loading layers 0 to {max(layers)} in {settings['dtype']} for the tokens of the report's texts")
    where, spread = (settings["source"], settings["revision"]), settings["device_map"]
    return residual.Capture(*where, layers, settings["dtype"], [], device, spread, encoder.tokenizer, config), encoder


def shown_tokens(strings: Sequence[str], content: np.ndarray, scores: np.ndarray) -> list[list[Any]]:
    """[string, z or None] of each token; a token that is only a part of a character is joined with the one before it, and their
    z is the mean. content: bool [tokens]; scores: z of the content tokens.
    """
    values = iter(scores.tolist())
    groups: list[tuple[str, list[float]]] = []
    for string, counts in zip(strings, content, strict=True):
        if string or not groups:
            groups.append((string, []))
        if counts:
            groups[-1][1].append(next(values))
    return [[string, round(float(np.mean(z)), DIGITS) if z else None] for string, z in groups if string]


def score(
    chosen: Mapping[str, Chosen], vectors: Mapping[str, np.ndarray], pooling: str, settings: Mapping[str, Any], say: Say
) -> dict[str, Any]:
    """What the report shows of the chosen texts. Each unique text goes through the model once, however many emotions show it.

    z of a token: its projection less the median of the projections of all content tokens of all texts here on the same vector,
    over their spread (spread_of). Tokens that do not count (the first, special ones) have none. `projection` is that of the
    stored row; `from_tokens` that of the tokens weighted as the pooling does, the same but for rounding.
    """
    texts = {example.digest: example.text for one in chosen.values() for example, _, _ in one.texts}
    if not texts:
        return {"pooling": pooling, "texts": 0, "tokens": 0, "offsets": True, "emotions": {}}
    names = [name for name, one in chosen.items() if one.texts]
    layers = [chosen[name].layer for name in names]
    capture, encoder = open_capture(settings, sorted(set(layers)), say)
    with capture:
        encoded = dict(zip(texts, encoder(list(texts.values())), strict=True))
        every = dict(projected(capture, encoded, layers, np.stack([vectors[name] for name in names])))
    middles, spreads = spread_of(np.concatenate(list(every.values())))
    found: dict[str, Any] = {}
    for number, name in enumerate(names):
        one, middle, spread = chosen[name], float(middles[number]), float(spreads[number])
        lines = []
        for example, rank, projection in one.texts:
            tokens, values = encoded[example.digest], every[example.digest][:, number]
            pooled = pool_weights(tokens.content, pooling)[tokens.content].astype(np.float64)
            z = (values - middle) / spread if spread > 0 else np.zeros_like(values)
            strings = pieces(encoder, example.text, tokens)
            lines.append(
                {
                    "digest": example.digest,
                    "rank": rank,
                    "projection": projection,
                    "from_tokens": float(pooled @ values),
                    "cut": tokens.cut,
                    "tokens": shown_tokens(strings, tokens.content, z),
                }
            )
        found[name] = {
            "layer": one.layer,
            "split": one.split,
            "positives": one.positives,
            "median": middle,
            "spread": spread,
            "texts": lines,
        }
    count = sum(len(values) for values in every.values())
    say(f"{count} tokens of {len(texts)} texts on {len(names)} vectors")
    return {
        "pooling": pooling,
        "texts": len(texts),
        "tokens": count,
        "offsets": bool(encoder.tokenizer.is_fast),
        "emotions": found,
    }


def choose_all(
    files: Mapping[str, Mapping[str, Any]], quality: Mapping[str, Any], reader: Reader, wanted: int
) -> tuple[dict[str, Chosen], dict[str, np.ndarray]]:
    """({emotion: its texts}, {emotion: its vector at its best layer}); files: {emotion: {"examples": path, "vectors": {layer:
    path}}}. Where no layer could be measured the last one is taken, as the triage does.
    """
    chosen, vectors = {}, {}
    for name, paths in files.items():
        best = quality["emotions"][name]["best_layer"]
        layer = quality["layers"][-1] if best is None else best
        vectors[name] = read_vector(by_layer(paths["vectors"])[layer])
        chosen[name] = choose(read_examples(paths["examples"]), reader, layer, vectors[name], wanted)
    return chosen, vectors


if "snakemake" in globals():
    with job(snakemake) as say:
        params, given = snakemake.params, snakemake.input
        check_model(params.model, params.settings["source"], Path(snakemake.output[0]).parent.parent)
        some, directions = choose_all(params.files, read_json(given.quality[0]), Reader(given.indices), params.texts)
        options = {**params.settings, "threads": snakemake.threads}
        write_json(snakemake.output[0], score(some, directions, params.pooling, options, say), indent=None)
