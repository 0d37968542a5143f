"""The overview picture: every emotion and layer in it, the same bytes each time, and a word where nothing was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import overview
from amygdala.contract import Readout
from pictures import cells, named, written


def quality(aucs: dict[str, list[float | None]], layers: list[int]) -> dict[str, Any]:
    means = {layer: np.nanmean([v[at] for v in aucs.values() if v[at] is not None] or [-1]) for at, layer in enumerate(layers)}
    return {
        "best_layer": None if max(means.values()) < 0 else max(means, key=lambda layer: means[layer]),
        "emotions": {
            name: {"layers": {str(layer): {"held_out": {"auc": auc}} for layer, auc in zip(layers, values, strict=True)}}
            for name, values in aucs.items()
        },
    }


def readout(names: list[str], layers: list[int]) -> Readout:
    rows = np.random.default_rng(0).normal(size=(len(layers), len(names), 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    return Readout(names, layers, dict(zip(layers, rows, strict=True)), {})


def drawn(path: Path) -> str:
    """The text that matplotlib notes beside each label it draws as shapes; the file must be XML."""
    ElementTree.parse(path)
    return path.read_text(encoding="utf-8")


def test_names_layers_and_figures_are_drawn(tmp_path: Path) -> None:
    report = quality({"joy": [0.61, 0.92], "self_doubt": [0.5, None], "été": [0.7, 0.8]}, [3, 11])
    overview.draw(readout(["joy", "self_doubt", "été"], [3, 11]), report, tmp_path / "a.svg")
    text = drawn(tmp_path / "a.svg")
    for label in ("joy", "self_doubt", "été", "11", "0.61", "0.92", "–"):
        assert f"<!-- {label} -->" in text, label
    overview.draw(readout(["joy", "self_doubt", "été"], [3, 11]), report, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()


def test_many_emotions_get_no_numbers_but_their_names(tmp_path: Path) -> None:
    names = [f"emotion{number:03d}" for number in range(70)]
    overview.draw(readout(names, [0]), quality({name: [0.81] for name in names}, [0]), tmp_path / "a.svg")
    text = drawn(tmp_path / "a.svg")
    assert "<!-- emotion069 -->" in text and "<!-- 0.81 -->" not in text


def test_nothing_held_out_is_drawn_all_the_same(tmp_path: Path) -> None:
    overview.draw(readout(["joy"], [2]), quality({"joy": [None]}, [2]), tmp_path / "a.svg")
    assert "<!-- – -->" in drawn(tmp_path / "a.svg")


def axes_of(monkeypatch: pytest.MonkeyPatch, folder: Path, given: Readout, report: dict[str, Any]) -> list[Any]:
    """The two halves of the picture."""
    kept: list[Any] = []
    close = overview.plt.close
    monkeypatch.setattr(overview.plt, "close", lambda figure: (kept.append(figure), close(figure)))
    overview.draw(given, report, folder / "a.svg")
    return kept[0].axes[:2]


AUCS: dict[str, list[float | None]] = {"joy": [0.61, 0.55], "fear": [0.92, 0.71], "calm": [None, 0.43], "awe": [0.77, 0.83]}


def test_every_number_stands_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The highest mean comes first, what was not measured everywhere last: no emotion stays in its place."""
    left, _ = axes_of(monkeypatch, tmp_path, readout(list(AUCS), [3, 11]), quality(AUCS, [3, 11]))
    wanted = {(name, layer): auc for name, values in AUCS.items() for layer, auc in zip(("3", "11"), values, strict=True)}
    assert cells(left) == pytest.approx({at: np.nan if auc is None else auc for at, auc in wanted.items()}, nan_ok=True)
    assert written(left) == {at: "–" if auc is None else f"{auc:.2f}" for at, auc in wanted.items()}
    assert list(named(left.yaxis).values()) == ["fear", "awe", "joy", "calm"]


@pytest.mark.parametrize(("best", "drawn"), [(3, 3), (11, 11), (None, 11)])
def test_every_cosine_is_that_of_its_names_at_the_best_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int | None, drawn: int
) -> None:
    given = readout(list(AUCS), [3, 11])
    left, right = axes_of(monkeypatch, tmp_path, given, {**quality(AUCS, [3, 11]), "best_layer": best})
    rows = dict(zip(AUCS, given.vectors[drawn], strict=True))
    wanted = {(one, other): float(rows[one] @ rows[other]) for one in AUCS for other in AUCS}
    assert cells(right, rows=left) == pytest.approx(wanted, abs=1e-6)
    assert right.get_title() == f"cosine between vectors, layer {drawn}"
