"""How well each method reads an emotion at each layer and pooling: held-out AUC with intervals, a file an emotion."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.directions import Denoiser, NoScenariosError, Recipe, Sides, direction_of, prepared
from amygdala.errors import UserError, shown
from amygdala.exampleset import HELD_OUT, TRAIN, Example, read_examples
from amygdala.files import write_json
from amygdala.job import job
from amygdala.measures import Bootstrap, auc, cohens_d, generator
from amygdala.segments import RESIDUAL, Reader
from vectors import unit

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def compare_emotion(
    emotion: str,
    examples: Sequence[Example],
    readers: Mapping[str, Reader],
    layers: Sequence[int],
    recipes: Sequence[Recipe],
    denoisers: Mapping[tuple[str, float], Denoiser],
    min_examples: int,
) -> list[dict[str, Any]]:
    """Held-out AUC, its interval and Cohen's d of each pooling, layer and recipe; "reason" where there is no vector.

    readers: {pooling: reader}; denoisers: {(pooling, share): of that pooling's rows}. Vectors see the training texts alone; all
    that is measured on the same texts shares one bootstrap draw.
    """
    found: list[dict[str, Any]] = []
    for pooling, reader in readers.items():
        try:
            train = Sides.of(emotion, examples, TRAIN, reader, min_examples)
        except UserError as error:
            found.append({"pooling": pooling, "reason": str(error)})
            continue
        unseen = Sides.of(emotion, examples, HELD_OUT, reader)
        bootstrap = Bootstrap(len(unseen.positive), len(unseen.negative), generator("bootstrap", emotion))
        for layer in layers:
            positive, negative = (reader.rows(layer, RESIDUAL, part) for part in (train.positive, train.negative))
            measured = bool(unseen.positive and unseen.negative)
            held_out = [reader.rows(layer, RESIDUAL, part) for part in (unseen.positive, unseen.negative)] if measured else []
            for recipe in recipes:
                line: dict[str, Any] = {"pooling": pooling, "layer": layer, "method": recipe.method, "denoise": recipe.denoise}
                denoiser = denoisers[pooling, recipe.denoise] if recipe.denoise is not None else None
                try:
                    rows = prepared(recipe, train, layer, positive, negative, denoiser, min_examples)
                    components = None if denoiser is None else denoiser.components(layer)
                    vector, _ = unit(direction_of(recipe, *rows, components), f"emotion {shown(emotion)}, layer {layer}")
                except (NoScenariosError, UserError) as error:
                    found.append({**line, "reason": str(error)})
                    continue
                if not measured:
                    found.append({**line, "reason": "no held-out texts on both sides"})
                    continue
                scores = [side.astype("float64") @ vector for side in held_out]
                figures = {"auc": auc(*scores), "interval": bootstrap.interval(*scores), "cohens_d": cohens_d(*scores)}
                found.append({**line, **figures})
    return found


if "snakemake" in globals():
    with job(snakemake) as say:
        params, asked = snakemake.params, snakemake.params.comparison
        readers = {pooling: Reader(params.indices[pooling]) for pooling in asked["poolings"]}
        recipes = [Recipe(method, share) for share in asked["denoise"] for method in asked["methods"]]
        neutral = [text.digest for text in read_examples(params.neutral)] if params.neutral else []
        denoisers = {
            (pooling, share): Denoiser(reader, neutral, share)
            for pooling, reader in readers.items()
            for share in asked["denoise"]
            if share is not None
        }
        for emotion, files in params.files.items():
            output = Path(files["outputs"][0])
            if output.exists():
                continue
            texts = read_examples(files["examples"])
            results = compare_emotion(emotion, texts, readers, asked["layers"], recipes, denoisers, params.min_examples)
            write_json(output, {"emotion": emotion, "results": results}, indent=None)
            say(f"{emotion}: {len(results)} vectors compared")
