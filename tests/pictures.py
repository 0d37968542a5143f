"""What matplotlib was told to draw, each number by the names that stand beside it."""

from __future__ import annotations

from typing import Any

import numpy as np


def named(axis: Any) -> dict[int, str]:
    """{position: name} of an axis whose ticks are names."""
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return {round(float(at)): label.get_text() for at, label in pairs}


def cells(axes: Any, rows: Any = None) -> dict[tuple[str, str], float]:
    """{(row, column): value} of coloured cells; rows: the axes with the rows' names, where not these."""
    table = np.ma.filled(axes.images[0].get_array(), np.nan)
    down, along = named((rows or axes).yaxis), named(axes.xaxis)
    return {(down[row], along[column]): float(value) for (row, column), value in np.ndenumerate(table)}


def written(axes: Any, rows: Any = None) -> dict[tuple[str, str], str]:
    """{(row, column): text} of what is written into the cells."""
    down, along = named((rows or axes).yaxis), named(axes.xaxis)
    return {(down[row], along[column]): text.get_text() for text in axes.texts for column, row in [text.get_position()]}


def curve(axes: Any) -> dict[float, float]:
    """{x: y} of the line with the most points."""
    return {float(x): float(y) for x, y in max((one.get_xydata() for one in axes.lines), key=len)}


def band(shape: Any) -> dict[float, tuple[float, float]]:
    """{x: (low, high)} of what fill_between drew; nothing where nothing was known."""
    points = [(float(x), float(y)) for path in shape.get_paths() for x, y in path.vertices]
    return {x: (min(y for at, y in points if at == x), max(y for at, y in points if at == x)) for x, _ in points}
