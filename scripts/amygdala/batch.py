"""The emotions of a batch job, and the files that it has to make of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def emotions_of(params: Any) -> Iterator[tuple[str, Path, dict[int, Path]]]:
    """(emotion, its examples, {layer: output}) of a batch job with the parameters `layers` and `files` (rules/common.smk)."""
    for emotion, files in params.files.items():
        yield emotion, Path(files["examples"]), dict(zip(params.layers, map(Path, files["outputs"]), strict=True))


def missing(outputs: dict[int, Path]) -> list[int]:
    """The layers whose file is not there yet, in order. Files that are there are never written again."""
    return [layer for layer, path in sorted(outputs.items()) if not path.exists()]


def missing_of(paths: Iterable[str | Path]) -> list[Path]:
    """The files that are not there."""
    return [path for path in map(Path, paths) if not path.exists()]
