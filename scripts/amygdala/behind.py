"""The stored files that a target rests on, whether they are there or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amygdala.build import Build

PUBLISHED = {"all": "readout"}  # targets by another name


def _model(build: Build) -> list[str]:
    return [] if build.model.kind == "folder" else [build.model_ready]


def _examples(build: Build) -> list[str]:
    return [build.snapshot, *(build.examples(emotion) for emotion in build.emotions)]


def _texts(build: Build) -> list[str]:
    neutral = [build.texts("neutral")] if build.neutral else []
    return [*_examples(build), *neutral, *_model(build)]


def _activations(build: Build) -> list[str]:
    return [*_texts(build), *build.all_indices]


def _vectors(build: Build, emotions: Iterable[str] | None = None, layers: Iterable[int] | None = None) -> list[str]:
    asked = build.emotions if emotions is None else emotions
    return [*_texts(build), *build.indices, *(path for emotion in asked for path in build.vectors(emotion, layers))]


def _weights(build: Build) -> list[str]:
    return [*_model(build), *build.weights()]


def _heads(build: Build) -> list[str]:
    return [*_vectors(build), *_weights(build), *(path for emotion in build.emotions for path in build.heads(emotion))]


def _quality(build: Build) -> list[str]:
    return [*_heads(build), *(path for emotion in build.emotions for path in build.figures(emotion)), build.quality]


def _readout(build: Build) -> list[str]:
    return [*_quality(build), *build.release(build.selections["readout"]), build.overview]


def _report(build: Build) -> list[str]:
    return [*_readout(build), build.token_scores, *build.report]


def _comparison(name: str) -> Callable[[Build], list[str]]:
    def files(build: Build) -> list[str]:
        indices = [path for paths in build.comparison_indices(name).values() for path in paths]
        measured = [build.compared(name, emotion) for emotion in build.emotions]
        return [*_texts(build), *indices, *measured, *build.compared_all(name)]

    return files


def _ablation(build: Build) -> list[str]:
    return [] if build.no_ablation else [*_vectors(build), *_weights(build), build.ablation]


def _unseen(build: Build) -> list[str]:
    if build.no_unseen:
        return []
    return [*_readout(build), build.texts("unseen"), *build.captured(build.unseen_index_key), *build.unseen_report]


STAGES: dict[str, Callable[[Build], list[str]]] = {
    "snapshot": lambda build: [build.snapshot],
    "examples": _examples,
    "model": _model,
    "sweep": _comparison("sweep"),
}
LAYERED: dict[str, Callable[[Build], list[str]]] = {  # nothing where the layers are not chosen yet
    "activations": _activations,
    "weights": _weights,
    "vectors": _vectors,
    "heads": _heads,
    "quality": _quality,
    "readout": _readout,
    "report": _report,
    "compare": _comparison("compare"),
    "ablation": _ablation,
    "unseen": _unseen,
}


def files_behind(build: Build, targets: Iterable[str]) -> list[str]:
    """The stored files of all `targets` (rule names), each once; targets that are no stage of the build have none."""
    found: dict[str, None] = {}
    for target in targets:
        name = PUBLISHED.get(target, target)
        if name in STAGES:
            found |= dict.fromkeys(STAGES[name](build))
        elif build.layers and name in LAYERED:
            found |= dict.fromkeys(LAYERED[name](build))
        elif name in build.selections:
            chosen = build.selections[name]
            found |= dict.fromkeys([*_vectors(build, chosen.emotions, chosen.layers), *build.release(chosen)])
    return list(found)
