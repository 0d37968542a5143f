"""The emotions of a batch job, and the files that it has to make of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from amygdala.errors import UserError, shown


def emotions_of(params: Any) -> Iterator[tuple[str, Path, dict[int, Path]]]:
    """(emotion, its examples, {layer: output}) of a batch job with the parameters `layers` and `files` (rules/common.smk)."""
    for emotion, files in params.files.items():
        yield emotion, Path(files["examples"]), dict(zip(params.layers, map(Path, files["outputs"]), strict=True))


def by_layer(paths: Mapping[Any, str]) -> dict[int, Path]:
    """{layer: path} as a job's parameters hold it: JSON has made the layers strings."""
    return {int(layer): Path(path) for layer, path in paths.items()}


def with_layers(files: Mapping[str, Any]) -> dict[str, Any]:
    """An emotion's files as a job's parameters hold them (get_batch_vectors in rules/common.smk), as paths."""
    return {**files, "vectors": by_layer(files["vectors"]), "outputs": [Path(path) for path in files["outputs"]]}


def missing(outputs: dict[int, Path]) -> list[int]:
    """The layers whose file is not there yet, in order. Files that are there are never written again."""
    return [layer for layer, path in sorted(outputs.items()) if not path.exists()]


def missing_of(paths: Iterable[str | Path]) -> list[Path]:
    """The files that are not there."""
    return [path for path in map(Path, paths) if not path.exists()]


class Pooled(Protocol):
    """What tells how many tokens the row of a text is the mean of: segments.Reader."""

    def pooled(self, digest: str) -> int: ...


def with_rows(emotion: str, sides: dict[str, list[str]], reader: Pooled, least: int) -> dict[str, list[str]]:
    """{polarity: digests} less the texts that are too short for the pooling and have no row.

    UserError where fewer than `least` (min_examples) are left on a side that had them.
    """
    kept = {side: [digest for digest in digests if reader.pooled(digest)] for side, digests in sides.items()}
    for side, digests in kept.items():
        if len(digests) < min(least, len(sides[side])):
            raise UserError(
                f"emotion {shown(emotion)}: only {len(digests)} of {len(sides[side])} {side} training texts are long enough "
                f"for the pooling, min_examples is {least}: choose a smaller from_token, or exclude the emotion"
            )
    return kept
