"""Do a few attention heads carry an emotion? Held-out texts go through the model with these heads ablated, and with others."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.batch import by_layer
from amygdala.batching import Budget, Texts, batches
from amygdala.errors import UserError, shown
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN, digests_of, read_examples
from amygdala.files import write_json
from amygdala.job import Say, job
from amygdala.measures import aucs
from amygdala.modelinfo import check_model
from amygdala.modelweights import head_writes
from amygdala.segments import HEADS, RESIDUAL, Reader, as_keys
from amygdala.tokens import Encoder
from amygdala.vectorfile import read_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

    from amygdala.residual import Capture

SCHEMA_VERSION = 2
LEAST_HELD_OUT = 5  # texts a side: fewer give no AUC worth a forward pass
LEAST_SETS = 3
CHANCE = 0.6  # an intact AUC up to here has nothing to lose
CLEAR_Z = 3.0
LARGE_FALL = 0.05
TRIES = 20  # draws for each random set, where there are few different ones
SAME_ROWS = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}  # of a row's length: what another batch or device may change
Head = tuple[int, int]  # layer and head
HeadSet = tuple[Head, ...]  # sorted


def contributions(vector: np.ndarray, o_projs: Mapping[int, np.ndarray], deltas: Mapping[int, np.ndarray]) -> dict[Head, float]:
    """v · (W_O,h Δ_h) of each head: what its difference of means writes along `vector` by itself. Layers after the head's, and
    a norm after attention (Gemma 2, OLMo 2), are not counted: a ranking, which the ablation then tests.

    vector [hidden] at the readout layer; o_projs: {layer: [hidden, n_heads * head_dim]}; deltas: {layer: [n_heads, head_dim]},
    mean of the positives less mean of the negatives.
    """
    found: dict[Head, float] = {}
    for layer, delta in deltas.items():
        along = (head_writes(o_projs[layer], vector, len(delta)) * delta).sum(axis=1)
        found |= {(layer, head): float(value) for head, value in enumerate(along)}
    return found


def ranked(contribution: Mapping[Head, float]) -> list[Head]:
    """Heads by |contribution|, largest first; among equals by layer and head."""
    return sorted(contribution, key=lambda head: (-abs(contribution[head]), head))


def random_sets(top: Sequence[Head], heads: Sequence[Head], count: int, emotion: str, layer: int) -> list[HeadSet]:
    """`count` different random sets of as many heads as `top`, none of them in it, seeded by emotion and layer; fewer where
    there are no more.

    Each set has as many heads of a layer as `top` has, as far as that layer has others; what is lacking comes from all layers.
    Where `heads` has too few others, there are none.
    """
    rest = sorted(set(heads) - set(top))
    if len(rest) < len(top):
        return []
    seed = hashlib.sha256(json.dumps(["ablation", emotion, layer]).encode()).digest()
    random = np.random.default_rng(list(seed))
    sets: dict[HeadSet, None] = {}
    for _ in range(TRIES * count):
        if len(sets) == count:
            break
        chosen: list[Head] = []
        for place, wanted in sorted(Counter(place for place, _ in top).items()):
            here = [head for head in rest if head[0] == place]
            chosen += [here[at] for at in random.permutation(len(here))[:wanted]]
        others = [head for head in rest if head not in chosen]
        chosen += [others[at] for at in random.permutation(len(others))[: len(top) - len(chosen)]]
        sets[tuple(sorted(chosen))] = None
    return list(sets)


def heads_by_layer(heads: Sequence[Head]) -> dict[int, list[int]]:
    """{layer: [head, …]}"""
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return found


def auc(rows: np.ndarray, positive: np.ndarray, vector: np.ndarray) -> float:
    """Area under the ROC curve of rows [n, hidden] along vector [hidden]; positive bool [n] has both values."""
    scores = rows.astype(np.float64) @ vector.astype(np.float64)
    return float(aucs(scores[positive, None], scores[~positive, None])[0])


def judged(intact: float, ablated: float, random: Sequence[float], k: int) -> dict[str, Any]:
    """The figures of one emotion and layer and what they say: fall = intact - ablated, z = (fall - mean fall of the random
    sets) / their standard deviation (None where it is 0 or unknown), p = share of sets, this one included, that fall as far.

    intact, ablated: AUC; random: AUC of each random set; of fewer than LEAST_SETS nothing is said (p could not be below
    1 / LEAST_SETS).
    """
    fall = intact - ablated
    mean, sd, z, p = None, None, None, None
    clear = False
    if len(random) < LEAST_SETS:
        against = f"there are {len(random)} other sets of as many heads to compare with, {LEAST_SETS} are needed"
    else:
        mean, sd = float(np.mean(random)), float(np.std(random, ddof=1))
        z = (mean - ablated) / sd if sd > 0 else None
        p = (1 + sum(value <= ablated for value in random)) / (1 + len(random))
        clear = ablated < min(random) and (z is None or z >= CLEAR_Z)
        against = f"as many random heads {mean:.2f} ± {sd:.2f}"
    change = f"AUC {'falls ' if fall > 0 else ''}{intact:.2f} -> {ablated:.2f}, {against}"
    heads = f"the top {k} heads" if k > 1 else "the top head"
    if intact <= CHANCE:
        outcome, words = "nothing to carry", f"the vector tells little apart: {change}"
    elif mean is None:
        outcome, words = "no comparison", f"{heads} ablated: {change}"
    elif clear and fall >= LARGE_FALL:
        outcome, words = "carried", f"{heads} carr{'y' if k > 1 else 'ies'} it: {change}"
    elif clear:
        outcome, words = "little", f"{heads} matter{'' if k > 1 else 's'} more than others, but little: {change}"
    else:
        outcome, words = "not carried", f"{heads} do{'' if k > 1 else 'es'} not carry it: {change}"
    return {
        "outcome": outcome,
        "words": words,
        "auc": {"intact": intact, "ablated": ablated, "random_mean": mean, "random_sd": sd},
        "fall": fall,
        "random_sets": len(random),
        "z": z,
        "p": p,
    }


@dataclass
class Trial:
    """One emotion at one readout layer: what is ablated, and the figures of it once it is through.

    vector float32 [hidden]; top: the heads ablated; random: the sets compared with.
    """

    emotion: str
    layer: int
    vector: np.ndarray
    report: dict[str, Any]
    top: list[Head] = field(default_factory=list)
    random: list[HeadSet] = field(default_factory=list)

    @property
    def sets(self) -> list[HeadSet]:
        return [tuple(sorted(self.top)), *self.random] if self.top else []


@dataclass
class Emotion:
    """An emotion's held-out texts, sorted by digest (text, whether it is positive), and its training texts by side."""

    held_out: dict[str, tuple[str, bool]]
    train: dict[str, list[str]]

    @property
    def positive(self) -> np.ndarray:
        return np.array([positive for _, positive in self.held_out.values()], bool)


def read_emotion(path: str | Path, reader: Reader) -> Emotion:
    """The texts of an examples file that have a row."""
    examples = [example for example in read_examples(path) if reader.pooled(example.digest)]
    held = {e.digest: (e.text, e.polarity == POSITIVE) for e in examples if e.split == HELD_OUT}
    return Emotion(dict(sorted(held.items())), digests_of(examples, TRAIN))


def head_means(emotion: Emotion, layer: int, n_heads: int, reader: Reader) -> tuple[np.ndarray, np.ndarray]:
    """(Δ, mean) of a layer's head inputs over the training texts, float64 [n_heads, head_dim] each: mean of the positives less
    mean of the negatives, and the mean of all of them alike.
    """
    positive, negative = (reader.rows(layer, HEADS, emotion.train[side]).astype(np.float64) for side in (POSITIVE, NEGATIVE))
    delta = positive.mean(axis=0) - negative.mean(axis=0)
    mean = np.concatenate([positive, negative]).mean(axis=0)
    return delta.reshape(n_heads, -1), mean.reshape(n_heads, -1)


def plan_trial(
    name: str,
    emotion: Emotion,
    layer: int,
    vector: np.ndarray,
    deltas: Mapping[int, np.ndarray],
    o_projs: Mapping[int, np.ndarray],
    k: int,
    random: int,
) -> Trial:
    """What to ablate of one emotion at one readout layer; where that makes no sense, its report says why and nothing is.

    deltas, o_projs: of the captured layers that have heads, up to the readout layer or beyond.
    """
    sides = {POSITIVE: int(emotion.positive.sum()), NEGATIVE: int((~emotion.positive).sum())}
    below = {place: delta for place, delta in deltas.items() if place <= layer}
    n_heads = sum(map(len, below.values()))
    report: dict[str, Any] = {"held_out": sides, "layers": sorted(below), "n_heads": n_heads, "k": k}
    trial = Trial(name, layer, vector, report)

    def refused(outcome: str, words: str) -> Trial:
        report.update(outcome=outcome, words=words)
        return trial

    if min(sides.values()) < LEAST_HELD_OUT:
        texts = f"{sides[POSITIVE]} positive and {sides[NEGATIVE]} negative held-out texts"
        return refused("too few held-out texts", f"not tried: {texts}, {LEAST_HELD_OUT} of each are needed")
    if not all(emotion.train.values()):
        return refused("no training texts", "not tried: no training texts on a side have a row")
    if not n_heads:
        return refused("no heads", f"not tried: no captured layer up to {layer} has heads")
    if k >= n_heads:
        return refused("too few heads", f"not tried: the captured layers up to {layer} have {n_heads} heads, k is {k}")
    contribution = contributions(vector, o_projs, below)
    order = ranked(contribution)
    trial.top = order[:k]
    trial.random = random_sets(trial.top, order, random, name, layer)
    report["heads"] = [[place, head, contribution[place, head]] for place, head in trial.top]
    return trial


def ablate_emotion(
    name: str,
    emotion: Emotion,
    trial: Trial,
    intact: np.ndarray,
    fill: Mapping[int, np.ndarray] | None,
    capture: "Capture",
    encoder: Encoder,
    budget: Budget,
    say: Say,
) -> int:
    """Forward the held-out texts of one emotion once for each set of heads of its trial, and finish its report.

    intact: rows [texts, hidden] at the readout layer with nothing ablated, in the order of emotion.held_out; fill: {layer:
    [n_heads, head_dim]}, or None for zero. Returns the number of texts forwarded.
    """
    from amygdala.ablating import ablated, forward_rows

    pair = capture.poolings[0], trial.layer
    texts = Texts((digest, text) for digest, (text, _) in emotion.held_out.items())
    made = list(batches(texts, np.arange(len(texts)), encoder, capture.poolings, budget))
    scores = []
    for heads in trial.sets:
        with ablated(capture.projections, heads_by_layer(heads), fill):
            rows = forward_rows(capture, made, budget, say)
        scores.append(auc(rows[pair], emotion.positive, trial.vector))
    top, *random = scores
    trial.report.update(judged(auc(intact, emotion.positive, trial.vector), top, random, len(trial.top)))
    forwarded = len(scores) * len(texts)
    say(f"{shown(name)}: {len(scores)} sets of heads ablated, {forwarded} texts forwarded")
    return forwarded


def check_rows(rows: np.ndarray, stored: np.ndarray, layer: int, dtype: str) -> None:
    """UserError where rows [n, hidden] of this run are not those of the store but for rounding."""
    lengths = np.linalg.norm(stored.astype(np.float64), axis=1)
    apart = float(np.median(np.linalg.norm(rows.astype(np.float64) - stored, axis=1) / np.maximum(lengths, 1e-12)))
    if not apart <= SAME_ROWS[dtype]:
        raise UserError(
            f"layer {layer}: without ablation the model gives other rows than the store has (by {apart:.2g} of their length): "
            "another model, template, max_tokens or library. Run snakemake again; if it stays, the store is of other versions"
        )


def ablate_emotions(
    files: Mapping[str, Mapping[str, Any]],
    layer: int,
    reader: Reader,
    capture: "Capture",
    encoder: Encoder,
    budget: Budget,
    options: Mapping[str, Any],
    say: Say,
) -> dict[str, Any]:
    """The report on all emotions: {"schema_version", "layer", "k", "random", "fill", "pooling", "forwarded_texts",
    "layers_without_heads", "emotions": {emotion: figures}}.

    files: {emotion: {"examples": path, "vectors": {layer: path}}}; layer: the readout layer; capture: on all captured layers up
    to it, with the one pooling of the reader's rows; options: "k" heads, "random" sets, "fill" mean or zero, "dtype". The
    intact texts of all emotions share one pass.
    """
    from amygdala.ablating import forward_rows
    from amygdala.architecture import Projection
    from amygdala.blockweights import o_proj_of

    found = {at: projection for at, projection in capture.projections.items() if isinstance(projection, Projection)}
    for at, projection in found.items():
        if reader.layout(at) != {"n_heads": projection.n_heads, "head_dim": projection.head_dim}:
            raise UserError(f"layer {at}: the store has other heads than the model; it is of another version of transformers")
    o_projs = {at: o_proj_of(projection) for at, projection in found.items()}
    emotions = {name: read_emotion(paths["examples"], reader) for name, paths in files.items()}
    trials: dict[str, Trial] = {}
    fills: dict[str, dict[int, np.ndarray] | None] = {}
    for name, emotion in emotions.items():
        trained = all(emotion.train.values())
        both = {at: head_means(emotion, at, p.n_heads, reader) for at, p in found.items()} if trained else {}
        deltas = {at: delta for at, (delta, _) in both.items()}
        fills[name] = {at: mean for at, (_, mean) in both.items()} if options["fill"] == "mean" else None
        vector = read_vector(files[name]["vectors"][layer])
        trials[name] = plan_trial(name, emotion, layer, vector, deltas, o_projs, options["k"], options["random"])
    tried = {name: emotion for name, emotion in emotions.items() if trials[name].top}
    texts = Texts((digest, text) for emotion in tried.values() for digest, (text, _) in emotion.held_out.items())
    ablations = sum(len(trials[name].sets) * len(emotion.held_out) for name, emotion in tried.items())
    say(f"{len(texts)} held-out texts to forward intact, {ablations} with heads ablated")
    forwarded = len(texts)
    pooling = capture.poolings[0]
    if tried:
        capture.select([(pooling, layer)])
        made = list(batches(texts, np.arange(len(texts)), encoder, capture.poolings, budget))
        rows = forward_rows(capture, made, budget, say)[pooling, layer]
        stored = reader.rows(layer, RESIDUAL, [texts.hex(position) for position in range(len(texts))])
        check_rows(rows, stored, layer, options["dtype"])
    for name, emotion in tried.items():
        trial = trials[name]
        places = np.searchsorted(texts.digests, as_keys(list(emotion.held_out)))
        forwarded += ablate_emotion(name, emotion, trial, rows[places], fills[name], capture, encoder, budget, say)
        trial.report["auc"]["stored"] = auc(stored[places], emotion.positive, trial.vector)
    for name, trial in trials.items():
        say(f"{shown(name)}, layer {layer}: {trial.report['words']}")
    return {
        "schema_version": SCHEMA_VERSION,
        "layer": layer,
        **{name: options[name] for name in ("k", "random", "fill")},
        "pooling": pooling,
        "forwarded_texts": forwarded,
        "layers_without_heads": {str(at): capture.layout(at)["reason"] for at in capture.layers if at not in found},
        "emotions": {name: trial.report for name, trial in trials.items()},
    }


def make_ablation(
    files: Mapping[str, Mapping[str, Any]],
    layer: int,
    captured: Sequence[int],
    indices: Sequence[str | Path],
    pooling: str,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    output: Path,
    say: Say,
) -> dict[str, Any]:
    """Load the model up to the readout layer, ablate, and write the report as JSON; returns it.

    captured: layers in the store, `layer` among them; settings: as capture_shard takes them; options: k, random, fill.
    """
    from amygdala import loading, residual

    device = loading.place(settings)
    encoder, config = loading.open_encoder(settings)
    budget = residual.budget(settings, device, config)
    below = [at for at in captured if at <= layer]
    say(f"loading layers 0 to {below[-1]} in {settings['dtype']}")
    where, spread = (settings["source"], settings["revision"]), settings["device_map"]
    with residual.Capture(*where, below, settings["dtype"], [pooling], device, spread, encoder.tokenizer, config) as capture:
        chosen = {**options, "dtype": settings["dtype"]}
        report = ablate_emotions(files, layer, Reader(indices), capture, encoder, budget, chosen, say)
    write_json(output, report)
    say(f"forwarded {report['forwarded_texts']} texts")
    return report


if "snakemake" in globals():
    with job(snakemake, aloud=True) as say:
        params = snakemake.params
        check_model(params.model, params.settings["source"], Path(snakemake.output[0]).parents[1])
        paths = {
            name: {"examples": files["examples"], "vectors": by_layer(files["vectors"])} for name, files in params.files.items()
        }
        make_ablation(
            paths,
            params.layer,
            params.captured,
            snakemake.input.indices,
            params.pooling,
            {**params.settings, "threads": snakemake.threads},
            {"k": params.k, "random": params.random, "fill": params.fill},
            Path(snakemake.output[0]),
            say,
        )
