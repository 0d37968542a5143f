"""An emotion's own quality figures: of its texts, and of its vector at each layer. Those across emotions are quality.py's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala.batch import by_layer, missing_of, with_layers
from amygdala.confounds import Features, excerpt, projection_figures, text_figures
from amygdala.directions import Denoiser, NoScenariosError, Recipe, Sides, direction_of, prepared
from amygdala.exampleset import HELD_OUT, TRAIN, Example, count_examples, read_examples
from amygdala.files import write_json
from amygdala.job import job
from amygdala.measures import (
    Bootstrap,
    auc,
    aucs,
    cohens_d,
    cosine,
    first_component,
    generator,
    halves,
    random_directions,
    relative_spread,
    shuffled,
    spectrum,
    spread_of,
    weights,
)
from amygdala.methods import METHODS
from amygdala.modelweights import LayerWeights, best_neurons, read_weights
from amygdala.segments import RESIDUAL, Reader
from amygdala.vectorfile import read_vector

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

RANDOM = 100
# Trainings on shuffled labels, and splits in halves: many where a matrix product makes them all, few for other methods.
SHUFFLES, SPLITS = 40, 10
SHUFFLES_FITTED, SPLITS_FITTED = 3, 2
LINEAR = ("mean_difference", "paired")
# Texts a side that a spectrum is of: shares of components depend on how many there are, and the time on their cube.
SPECTRUM = 256


@dataclass
class Emotion:
    """An emotion's texts that have a row, in the order of `rows`: training positives, training negatives, held-out ones
    alike.
    """

    name: str
    train: Sides
    held_out: Sides
    texts: list[Example]
    features: Features

    @classmethod
    def of(cls, name: str, examples: Sequence[Example], own_names: Sequence[str], reader: Any) -> "Emotion":
        train, held_out = (Sides.of(name, examples, split, reader) for split in (TRAIN, HELD_OUT))
        by_digest = {example.digest: example for example in examples}
        digests = [*train.positive, *train.negative, *held_out.positive, *held_out.negative]
        texts = [by_digest[digest] for digest in digests]
        return cls(name, train, held_out, texts, Features(texts, own_names))

    @property
    def digests(self) -> list[str]:
        return [text.digest for text in self.texts]

    def bounds(self) -> list[int]:
        """Where the four parts of `texts` end."""
        sizes = [len(side) for sides in (self.train, self.held_out) for side in (sides.positive, sides.negative)]
        return np.cumsum(sizes).tolist()


def resampled(
    recipe: Recipe,
    positive: np.ndarray,
    negative: np.ndarray,
    components: np.ndarray | None,
    groups: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """The method on other labels of the same rows: float [groups, hidden]; rows as `prepared` gives them."""
    rows = np.concatenate([positive, negative])
    if recipe.method in LINEAR:
        return weights(groups, len(rows)) @ rows
    return np.stack([direction_of(recipe, rows[ours], rows[others], components) for ours, others in groups])


def nulls_and_halves(
    recipe: Recipe,
    positive: np.ndarray,
    negative: np.ndarray,
    components: np.ndarray | None,
    held_out: tuple[np.ndarray, np.ndarray],
    reached: float | None,
    salt: Sequence[Any],
) -> dict[str, Any]:
    """Held-out AUC of vectors trained on shuffled labels, and the cosine of vectors from two halves of the training texts.

    positive, negative: training rows as the method takes them; held_out: both sides' rows; reached: the vector's own AUC.
    """
    paired, linear = METHODS[recipe.method].by_scenario, recipe.method in LINEAR
    n, m = len(positive), len(negative)
    random = generator("nulls", *salt)
    shuffles = [shuffled(n, m, random, paired) for _ in range(SHUFFLES if linear else SHUFFLES_FITTED)]
    directions = resampled(recipe, positive, negative, components, shuffles)
    found: dict[str, Any] = {"shuffled": None, "split_half_cosine": None}
    if reached is not None:
        found["shuffled"] = spread_of(aucs(held_out[0] @ directions.T, held_out[1] @ directions.T), reached)
    if min(n, m) >= 2:
        pairs = [halves(n, m, random, paired) for _ in range(SPLITS if linear else SPLITS_FITTED)]
        parts = resampled(recipe, positive, negative, components, [half for pair in pairs for half in pair])
        cosines = [cosine(parts[i].astype(np.float64), parts[i + 1].astype(np.float64)) for i in range(0, len(parts), 2)]
        known = [value for value in cosines if value is not None]
        found["split_half_cosine"] = float(np.mean(known)) if known else None
    return found


def outliers(emotion: Emotion, positive: np.ndarray, centre: np.ndarray, vector: np.ndarray, count: int = 2) -> dict[str, Any]:
    """Cosine of each training positive's deviation from the negatives' mean with the vector: mean, share below 0, the
    lowest.
    """
    deviations = positive - centre
    lengths = np.linalg.norm(deviations, axis=1)
    cosines = (deviations @ vector) / np.where(lengths > 0, lengths, 1)
    order = np.argsort(cosines, kind="stable")[:count]
    lowest = [
        {"digest": emotion.texts[at].digest, "text": excerpt(emotion.texts[at].text), "cosine": float(cosines[at])}
        for at in order
    ]
    return {"mean_cosine": float(cosines.mean()), "against": float((cosines < 0).mean()), "outliers": lowest}


def furthest(texts: Sequence[Example], rows: np.ndarray, difference: np.ndarray) -> dict[str, Any] | None:
    """The text furthest from the mean of its side, and its share of the side's variance: near 1 / n, unless one text has an
    activation out of all proportion (Sun et al., 2402.17762). cosine_without: of the difference of means with what it would
    be without that text. None where nothing varies.

    rows [n, hidden]: one side's, n of texts; difference: this side's mean less the other's.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    squares = (centred**2).sum(axis=1)
    if not squares.sum() > 0:
        return None
    at = int(np.argmax(squares))
    without = difference - centred[at] / (len(rows) - 1)
    return {
        "digest": texts[at].digest,
        "text": excerpt(texts[at].text),
        "share": float(squares[at] / squares.sum()),
        "texts": len(rows),
        "cosine_without": cosine(difference, without),
    }


def layer_figures(
    emotion: Emotion,
    layer: int,
    rows: np.ndarray,
    vector: np.ndarray,
    recipe: Recipe,
    denoiser: Denoiser | None,
    random: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Figures of one vector. rows: float32 [n, hidden] of emotion.texts; vector: float32 [hidden]; random: [hidden, k]."""
    ends = emotion.bounds()
    positive, negative, unseen, unseen_negative = np.split(rows, ends[:-1])
    scores = rows.astype(np.float64) @ vector
    of_positive, of_negative = scores[ends[1] : ends[2]], scores[ends[2] :]
    reached = auc(of_positive, of_negative)
    figures: dict[str, Any] = {
        "held_out": {
            "auc": reached,
            "interval": None if reached is None else bootstrap.interval(of_positive, of_negative),
            "cohens_d": None if reached is None else cohens_d(of_positive, of_negative),
        },
        "train_auc": auc(scores[: ends[0]], scores[ends[0] : ends[1]]),
        "random": None if reached is None else spread_of(aucs(unseen @ random, unseen_negative @ random), reached),
    }
    try:
        sides = prepared(recipe, emotion.train, layer, positive, negative, denoiser)
        components = None if denoiser is None else denoiser.components(layer)
        salt = (emotion.name, layer)
        figures |= nulls_and_halves(recipe, *sides, components, (unseen, unseen_negative), reached, salt)
    except NoScenariosError:  # the vector could not have been made then
        figures |= {"shuffled": None, "split_half_cosine": None}
    alike = min(len(positive), len(negative), SPECTRUM)
    of_negatives = first_component(negative[:alike])
    figures["spectrum"] = {**spectrum(positive[:alike]), "first_component_of_negatives": of_negatives, "texts": alike}
    figures["relative_spread"] = relative_spread(rows)
    train = emotion.texts[: ends[0]], emotion.texts[ends[0] : ends[1]]
    centre = negative.mean(axis=0, dtype=np.float64)
    difference = positive.mean(axis=0, dtype=np.float64) - centre
    figures["furthest"] = {
        "positive": furthest(train[0], positive, difference),
        "negative": furthest(train[1], negative, -difference),
    }
    figures |= outliers(emotion, positive, centre, vector.astype(np.float64))
    figures["projection"] = projection_figures(emotion.features, scores)
    return figures


def neuron_figures(vectors: np.ndarray, of_layer: LayerWeights) -> list[dict[str, Any]]:
    """For each vector [n, hidden] the MLP neuron that writes most nearly along it, or why none is known."""
    neurons = of_layer.neurons
    if neurons is None or not len(neurons):
        return [{"reason": of_layer.facts.get("neurons_reason", "no neurons")}] * len(vectors)
    index, value = best_neurons(vectors, neurons)
    return [{"index": int(i), "cosine": float(v), "neurons": len(neurons)} for i, v in zip(index, value, strict=True)]


def make_figures(
    batch: Mapping[str, Mapping[str, Any]],
    reader: Reader,
    weights_files: Mapping[int, Path],
    recipe: Recipe,
    denoiser: Denoiser | None,
) -> dict[str, int]:
    """Write the files that are missing, of each emotion's texts and of its layers; returns how many of each emotion.

    batch: {emotion: {"examples": path, "names": its own and its aliases', "vectors": {layer: path}, "outputs": paths, of the
    texts first, then of the layers in the order of vectors}}; weights_files: {layer: path}. Layers go outermost, so that a
    layer's weights are read once.
    """
    todo = {name: missing_of(files["outputs"]) for name, files in batch.items()}
    emotions, bootstraps = {}, {}
    for name, missing in todo.items():
        if not missing:
            continue
        files = batch[name]
        examples = read_examples(files["examples"])
        emotion = emotions[name] = Emotion.of(name, examples, files["names"], reader)
        bootstraps[name] = Bootstrap(
            len(emotion.held_out.positive), len(emotion.held_out.negative), generator("bootstrap", name)
        )
        of_texts = Path(files["outputs"][0])
        if of_texts in missing:
            used = {TRAIN: emotion.train.used, HELD_OUT: emotion.held_out.used}
            without_row = len(examples) - len(emotion.texts)
            counts = {"counts": count_examples(examples), "used": used, "without_row": without_row}
            write_json(of_texts, {**counts, **text_figures(emotion.features, emotion.texts)}, indent=None)
    for number, layer in enumerate(weights_files, 1):
        outputs = {name: Path(batch[name]["outputs"][number]) for name in emotions}
        wanted = {name: path for name, path in outputs.items() if path in todo[name]}
        if not wanted:
            continue
        vectors = np.stack([read_vector(batch[name]["vectors"][layer]) for name in wanted])
        random = random_directions(vectors.shape[1], RANDOM, generator("random", layer))
        neurons = neuron_figures(vectors, read_weights(weights_files[layer]))
        for (name, output), vector, neuron in zip(wanted.items(), vectors, neurons, strict=True):
            emotion = emotions[name]
            rows = reader.rows(layer, RESIDUAL, emotion.digests)
            figures = layer_figures(emotion, layer, rows, vector, recipe, denoiser, random, bootstraps[name])
            write_json(output, {**figures, "neuron": neuron}, indent=None)
    return {name: len(missing) for name, missing in todo.items()}


if "snakemake" in globals():
    with job(snakemake) as say:
        params, reader = snakemake.params, Reader(snakemake.input.indices)
        recipe = Recipe(params.method, params.denoise)
        denoiser = Denoiser.of(reader, recipe, params.neutral)
        files = {name: with_layers(given) for name, given in params.files.items()}
        for name, count in make_figures(files, reader, by_layer(params.weights), recipe, denoiser).items():
            say(f"{name}: {count} files")
