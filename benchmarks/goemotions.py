"""How well vectors read out emotions in texts that they were not made from: every method, pooling and layer, with and without
`denoise`, on GoEmotions.

    python benchmarks/goemotions.py [--layers every_third|all|12,15,18] [--poolings mean,last,from_token:5] [--output FILE]

Vectors are made from 4,000 training texts drawn by seed, an emotion's from all with the label and all without (--cap 500 takes
500 of each by hash, the workflow's default), and scored on the whole dev set, less texts that are among the 4,000 too. A figure
is the area under the ROC curve of the texts' projections on the vector, averaged over the emotions with at least 20 training
and 10 unseen texts; `neutral` is no emotion. Texts without a row (too short for a pooling) are left out for that pooling.
`paired` needs scenarios, which the corpus has none of. Denoise projects out the principal components of the training texts
labelled neutral alone, up to half of their variance.

The best of a table was chosen on what it was measured on. --folds 5 is for choosing: it leaves the dev set alone and scores
each fifth of the training texts with vectors from the others.

Rows stay under benchmarks/.cache: a second run forwards no text.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jobs import CACHE, GOEMOTIONS, embedded_model
from scipy.stats import rankdata

import activations
from amygdala.batching import Texts
from amygdala.errors import UserError
from amygdala.files import write_json
from amygdala.keys import key, text_digest
from amygdala.methods import METHODS, neutral_components, without
from amygdala.modelinfo import describe
from amygdala.segments import RESIDUAL, Reader
from amygdala.tokens import Encoder
from vectors import unit

NEUTRAL = "neutral"
MAX_TOKENS = 2048  # as max_tokens of config.yaml
SHARE = 0.5  # of the neutral texts' variance, for denoise
LEAST_TRAINING, LEAST_UNSEEN = 20, 10
BARS = {"mean_difference": 0.75, "best method": 0.86}
Labelled = dict[str, set[str]]
Row = dict[str, Any]


def labelled_texts(folder: Path, part: str) -> Labelled:
    """{text: labels} of train or dev; a text that comes twice has the labels of both. SystemExit where the corpus is absent."""
    path = folder / f"{part}.tsv"
    if not path.is_file():
        raise SystemExit(f"the GoEmotions corpus is not here ({path}): nothing to measure on; say where it is with --corpus")
    names = (folder / "labels.txt").read_text(encoding="utf-8").split()
    found: Labelled = {}
    with path.open(encoding="utf-8", newline="") as file:
        for text, labels, _ in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            found.setdefault(text, set()).update(names[int(number)] for number in labels.split(","))
    return found


def split(folder: Path, count: int, seed: int) -> tuple[Labelled, Labelled]:
    """`count` training texts drawn by seed, and the dev texts that are not among them."""
    everything = labelled_texts(folder, "train")
    training = {text: everything[text] for text in random.Random(seed).sample(sorted(everything), min(count, len(everything)))}
    return training, {text: labels for text, labels in labelled_texts(folder, "dev").items() if text not in training}


def examples(labelled: Labelled, emotion: str, cap: int, seed: int) -> tuple[list[str], list[str]]:
    """(positive, negative) texts: with and without the label, on each side the `cap` with the smallest hash."""

    def rank(text: str) -> bytes:
        return hashlib.sha256(f"{seed}|{emotion}|{text_digest(text)}".encode()).digest()

    ordered = sorted(labelled, key=rank)
    sides = ([text for text in ordered if (emotion in labelled[text]) is wanted][:cap] for wanted in (True, False))
    return next(sides), next(sides)


def scored_emotions(training: Labelled, unseen: Labelled) -> list[str]:
    """The emotions with enough texts of both, sorted."""
    train, test = (Counter(label for labels in part.values() for label in labels) for part in (training, unseen))
    return sorted(name for name in train if name != NEUTRAL and train[name] >= LEAST_TRAINING and test[name] >= LEAST_UNSEEN)


def with_content(labelled: Labelled, model: Path) -> Labelled:
    """The texts with a token beside the first, which never counts: capture refuses the others."""
    from amygdala.loading import load_tokenizer

    encode = Encoder(load_tokenizer(str(model), None), MAX_TOKENS)
    return {
        text: labels for (text, labels), tokens in zip(labelled.items(), encode(list(labelled)), strict=True) if len(tokens)
    }


def capture(
    texts: Iterable[str], poolings: Sequence[str], layers: Sequence[int], model: Path, dtype: str, store: Path
) -> dict[str, Reader]:
    """{pooling: reader of the rows of all texts}; rows that `store` keeps from an earlier run are not computed again."""
    pairs = sorted((text_digest(text), text) for text in texts)
    identity = describe(str(model), [Path()], store).identity
    name = f"shard_0.{key([digest for digest, _ in pairs], list(layers))}.safetensors"
    indices = {pooling: store / key(identity, dtype, pooling) / "index" / name for pooling in poolings}
    settings = {
        **{"source": str(model), "revision": None, "dtype": dtype, "template": None, "device": "auto", "device_map": None},
        **{"max_tokens": MAX_TOKENS, "batch_tokens": "auto", "batch_size": None, "threads": os.cpu_count() or 1},
    }
    activations.capture_shard(Texts(pairs), layers, indices, settings, lambda line: print(line, file=sys.stderr, flush=True))
    return {pooling: Reader([index]) for pooling, index in indices.items()}


def aucs(scores: np.ndarray, member: np.ndarray) -> np.ndarray:
    """The area under the ROC curve of each column, [e], by ranks (ties count half): scores [n, e], member bool [n, e]."""
    ranks = rankdata(scores, axis=0)
    inside = member.sum(axis=0)
    return ((ranks * member).sum(axis=0) - inside * (inside + 1) / 2) / (inside * (len(member) - inside))


def table(
    training: Labelled, unseen: Labelled, reader: Reader, layers: Sequence[int], methods: Sequence[str], cap: int, seed: int
) -> list[Row]:
    """One row a layer, denoise and method: macro AUC on the unseen texts, and that of each emotion. Texts without a row are
    left out.
    """
    digests = {text: text_digest(text) for text in (*training, *unseen)}
    training, unseen = ({t: names for t, names in part.items() if reader.pooled(digests[t])} for part in (training, unseen))
    names = scored_emotions(training, unseen)
    if not names:
        return []
    place = {text: number for number, text in enumerate(training)}
    sides = {name: [[place[text] for text in side] for side in examples(training, name, cap, seed)] for name in names}
    neutral = [place[text] for text, labels in training.items() if labels == {NEUTRAL}]
    member = np.array([[name in labels for name in names] for labels in unseen.values()])
    facts = {"emotions": len(names), "training": len(training), "unseen": len(unseen)}
    found = []
    for layer in layers:
        plain = [reader.rows(layer, RESIDUAL, [digests[text] for text in part]) for part in (training, unseen)]
        components = neutral_components(plain[0][neutral], SHARE)
        for denoise in (False, True):
            seen, new = [without(rows, components) for rows in plain] if denoise else plain
            for method in methods:
                start = time.perf_counter()
                vectors = []
                for name in names:
                    direction = METHODS[method].direction(*(seen[side] for side in sides[name]))
                    vectors.append(unit(direction, f"{method}, {name}, layer {layer}")[0])
                seconds = time.perf_counter() - start
                each = aucs(new.astype(np.float64) @ np.stack(vectors, axis=1).astype(np.float64), member)
                found.append(
                    {
                        **{"layer": layer, "denoise": denoise, "components": len(components) if denoise else 0},
                        **{"method": method, "auc": float(each.mean()), "seconds_a_vector": seconds / len(names), **facts},
                        "by_emotion": dict(zip(names, map(float, each), strict=True)),
                    }
                )
    return found


def folded(training: Labelled, folds: int, *rest: Any) -> list[Row]:
    """The table with each fold of the training texts as unseen in turn, the figures averaged over folds."""
    texts = sorted(training, key=text_digest)
    parts = []
    for number in range(folds):
        left_out = set(texts[number::folds])
        fold = [{text: training[text] for text in texts if (text in left_out) is out} for out in (False, True)]
        parts.append(table(fold[0], fold[1], *rest))
    return [
        {**same[0], "auc": float(np.mean([row["auc"] for row in same])), "by_emotion": {}} for same in zip(*parts, strict=True)
    ]


def best_of(rows: Iterable[Row]) -> Row:
    return max(rows, key=lambda row: row["auc"])


def printed(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[str]:
    """The table, the best row of each pooling and method, and the figures beside the bars."""
    kinds = sorted({(row["pooling"], row["denoise"]) for row in rows})
    for pooling, denoise in kinds:
        own = [row for row in rows if (row["pooling"], row["denoise"]) == (pooling, denoise)]
        first = own[0]
        yield (
            f"\npooling {pooling}, {'with' if denoise else 'without'} denoise: {first['emotions']} emotions, "
            f"{first['training']} training texts, {first['unseen']} unseen"
        )
        yield f"{'layer':>5} " + " ".join(f"{method:>15}" for method in methods)
        for layer in sorted({row["layer"] for row in own}):
            figures = {row["method"]: row["auc"] for row in own if row["layer"] == layer}
            yield f"{layer:5} " + " ".join(f"{figures[method]:15.3f}" for method in methods)
    yield f"\n{'best of':15} {'pooling':>14} {'layer':>5} {'denoise':>7} {'AUC':>6}"
    for method in methods:
        for pooling in sorted({pooling for pooling, _ in kinds}):
            row = best_of(row for row in rows if (row["method"], row["pooling"]) == (method, pooling))
            yield f"{method:15} {pooling:>14} {row['layer']:5} {'yes' if row['denoise'] else 'no':>7} {row['auc']:6.3f}"
    yield ""
    for name, bar in BARS.items():
        among = [row for row in rows if name in (row["method"], "best method")]
        if among:
            row = best_of(among)
            yield f"{name}: {row['auc']:.4f} ({row['method']}), {'at or above' if row['auc'] >= bar else 'BELOW'} {bar}"


def chosen_layers(given: str, n_layers: int) -> list[int]:
    """all, every_third, or numbers from 0 parted by commas. UserError for anything else."""
    steps = {"all": 1, "every_third": 3}
    if given in steps:
        return list(range(0, n_layers, steps[given]))
    try:
        layers = sorted({int(layer) for layer in given.split(",")})
    except ValueError:
        raise UserError(f"--layers {given}: all, every_third or numbers from 0 parted by commas") from None
    if layers[0] < 0 or layers[-1] >= n_layers:
        raise UserError(f"--layers {given}: the model has layers 0 to {n_layers - 1}")
    return layers


def main(arguments: Sequence[str] | None = None) -> None:
    methods = [name for name, method in METHODS.items() if not method.by_scenario]
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, default=GOEMOTIONS, help="the folder of train.tsv, dev.tsv and labels.txt")
    options.add_argument("--layers", default="every_third")
    options.add_argument("--poolings", default="mean,last,from_token:5")
    options.add_argument("--methods", default=",".join(methods))
    options.add_argument("--texts", type=int, default=4000, help="training texts")
    options.add_argument("--cap", type=int, default=4000, help="positives and negatives of an emotion at most")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--folds", type=int, default=0, help="score on folds of the training texts, not on the dev set")
    options.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    options.add_argument("--model", type=Path, help="a model's folder; the embedded model where it is not given")
    options.add_argument("--store", type=Path, default=CACHE / "goemotions", help="where rows are kept")
    options.add_argument("--output", type=Path, help="write the table as JSON, too")
    given = options.parse_args(arguments)
    unknown = sorted(set(given.methods.split(",")) - set(methods))
    if unknown:
        options.error(f"--methods {unknown[0]}: choose among {', '.join(methods)}")
    training, unseen = split(given.corpus, given.texts, given.seed)
    wanted = given.methods.split(",")
    try:
        model = given.model or embedded_model("fp32" if given.dtype == "fp32" else "bf16")
        described = describe(str(model), [Path()], given.store)
        layers = chosen_layers(given.layers, described.n_layers)
        dtype = described.dtype if given.dtype == "auto" else given.dtype
        drawn = len(training) + len(unseen)
        training, unseen = with_content(training, model), with_content(unseen, model)
        texts = training if given.folds else {**training, **unseen}
        readers = capture(texts, given.poolings.split(","), layers, model, dtype, given.store)
        rows = []
        for pooling, reader in readers.items():
            rest = (reader, layers, wanted, given.cap, given.seed)
            made = folded(training, given.folds, *rest) if given.folds else table(training, unseen, *rest)
            if not made:
                raise SystemExit(f"pooling {pooling}: no emotion has {LEAST_TRAINING} training and {LEAST_UNSEEN} unseen texts")
            rows += [{"pooling": pooling, **row} for row in made]
    except UserError as error:
        raise SystemExit(str(error)) from None
    print(f"GoEmotions, {len(training)} training texts by seed {given.seed}, at most {given.cap} a side, {dtype}, ", end="")
    print(f"{given.folds} folds of them as unseen" if given.folds else f"{len(unseen)} dev texts as unseen")
    print(f"({drawn - len(training) - len(unseen)} of the texts have a single token, so no row: left out)")
    print("\n".join(printed(rows, wanted)))
    if given.output:
        facts = {"texts": given.texts, "seed": given.seed, "cap": given.cap, "folds": given.folds, "dtype": dtype}
        write_json(given.output, {**facts, "model": described.identity, "rows": rows})


if __name__ == "__main__":
    main()
