"""The report: its numbers are those of the files, its figures are all there, and what is hostile stands there as text."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import report
from amygdala import reportfigures
from amygdala.confounds import CATEGORICAL, NUMERIC
from amygdala.errors import UserError
from amygdala.reportfigures import Drawn, HeadMap, auc_of, cluster, head_map, mean_map
from amygdala.reportfiles import FIGURES, LABELS, PAGE
from amygdala.reportpage import budget, level
from amygdala.reporttext import number, short, span, visible
from pictures import band, cells, curve, named, written
from reportable import ALERT, HOSTILE, NAMES, make_release
from tiny import REPOSITORY

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Elements with their attributes, and the text of each, as a browser reads them."""

    VOID = frozenset(["meta", "link", "input", "br", "img"])

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in self.VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self.elements[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for at in self._open:
            self.texts[at] += data

    def of(self, tag: str, **wanted: str) -> list[str]:
        found = zip(self.elements, self.texts, strict=True)
        return [text for (name, given), text in found if name == tag and wanted.items() <= given.items()]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [given for name, given in self.elements if name == tag]

    def table(self, column: str) -> list[dict[str, tuple[dict[str, str | None], str]]]:
        """The lines of the table that has such a column: {heading: (attributes, text)}."""
        rows: list[list[tuple[dict[str, str | None], str]]] = []
        for (tag, given), text in zip(self.elements, self.texts, strict=True):
            if tag == "table" and rows and column in [heading for _, heading in rows[0]]:
                break
            if tag == "table":
                rows = []
            elif tag == "tr":
                rows.append([])
            elif tag in ("th", "td"):
                rows[-1].append((given, text.strip()))
        headings = [heading for _, heading in rows[0]]
        assert column in headings, f"no table with a column {column}"
        return [dict(zip(headings, cells, strict=True)) for cells in rows[1:]]

    def row(self, name: str) -> list[str]:
        """The cells of the triage table's line of an emotion."""
        lines = [[text for _, text in line.values()] for line in self.table("Verdict")]
        return next(cells for cells in lines if cells[0] == name)


def made(folder: Path, *release: Any, **options: Any) -> tuple[str, Page]:
    readout, quality, tokens, heads = release or make_release(**options)
    report.make_report(readout, quality, tokens, heads, folder)
    text = (folder / PAGE).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return made(tmp_path_factory.mktemp("report"))


# What is shown


def test_all_figures_are_in_the_page_and_beside_it(tmp_path: Path) -> None:
    _, page = made(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {PAGE, *(f"{name}.svg" for name in FIGURES)}
    figures = [given["id"] for given in page.attributes("figure")]
    assert figures == [f"figure-{name}" for name in FIGURES]
    assert len(page.attributes("svg")) == len(FIGURES)
    for name in FIGURES:
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert root.tag == f"{SVG}svg" and len(list(root.iter())) > 30, name


def test_ids_are_unique_and_what_is_referred_to_is_there(page: tuple[str, Page]) -> None:
    text, parsed = page
    ids = [given["id"] for _, given in parsed.elements if given.get("id")]
    assert len(ids) == len(set(ids)) > 100
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert used and set(used) <= set(ids)


def test_a_line_shows_the_numbers_of_the_best_layer(tmp_path: Path) -> None:
    readout, quality, tokens, heads = make_release()
    quality["emotions"]["calm"]["best_layer"] = 5
    quality["emotions"]["calm"]["layers"]["5"] |= {
        "held_out": {"auc": 0.8125, "interval": [0.71, 0.93], "cohens_d": -1.5},
        "shuffled": {"reached": 0.025, "mean": 0.487, "sd": 0.1, "interval": [0.3, 0.7], "draws": 40},
        "random": {"reached": 0.04, "mean": 0.512, "sd": 0.1, "interval": [0.3, 0.7], "draws": 100},
        "split_half_cosine": 0.625,
        "spectrum": {"first_component": 0.47, "first_component_of_negatives": 0.1},
        "neuron": {"index": 4321, "cosine": -0.44, "neurons": 9999},
        "ridge": {"r2": 0.33, "chance": 0.07, "coefficients": []},
        "nearest": [["喜び", 0.66]],
    }
    quality["emotions"]["calm"]["triage"] = "all is well"
    _, page = made(tmp_path, readout, quality, tokens, heads)
    assert page.row("calm") == [
        *("calm", "clean", "0.810.71 to 0.93", "5", "0.491 of 40 reach it", "0.514 of 100 reach it", "−1.50", "0.62", "47 %"),
        *("−0.44neuron 4321", "0.33chance 0.07", "喜び0.66", "30 / 90held out 11 / 22", "all is well"),
    ]


def test_the_cells_sort_by_the_numbers_themselves(page: tuple[str, Page]) -> None:
    _, parsed = page
    _, quality, _, _ = make_release()
    found = [given["data-by"] for given in parsed.attributes("td") if given.get("class") == "num auc"]
    best = {name: quality["emotions"][name]["best_layer"] for name in NAMES}
    wanted = {name: quality["emotions"][name]["layers"][str(best[name])]["held_out"]["auc"] for name in NAMES}
    assert sorted(map(float, filter(None, found))) == pytest.approx(sorted(wanted.values()), rel=1e-5)


def test_tokens_stand_as_in_the_text_with_their_numbers(page: tuple[str, Page]) -> None:
    _, parsed = page
    first = parsed.of("p", **{"class": "tokens"})[0]
    assert first == visible(HOSTILE, kept="\n\t") + "First\n low" + 8 * " word"
    shown = [given for given in parsed.attributes("i") if "title" in given][:5]
    assert [given["title"] for given in shown] == ["+3.3", "does not count", "+0.1", "−7.5", "+1.5"]
    assert [given.get("class") for given in shown] == ["p3", "x", None, "n5", "p1"]


def test_how_it_was_made_comes_from_the_manifest(page: tuple[str, Page]) -> None:
    _, parsed = page
    cells = parsed.of("td")
    for wanted in ("sha256:0123", "ab" * 32, "1234", "2.13", f'{{"curated": ["{ALERT}"]}}'):
        assert wanted in cells, wanted
    assert "ab" * 6 in parsed.of("code")


def test_layers_without_heads_say_why(tmp_path: Path) -> None:
    _, page = made(tmp_path, without_heads={5: "a gated delta net <b>"})
    assert "no heads: a gated delta net <b>" in page.of("td")


# What is hostile


def test_names_and_texts_are_text(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert len(parsed.attributes("script")) == 1
    assert not {"img", "iframe", "object", "base", "form"} & {tag for tag, _ in parsed.elements}
    assert not [name for _, given in parsed.elements for name in given if name.startswith("on")]
    assert ALERT not in text and 'onerror="' not in text
    assert ALERT in parsed.of("bdi") and visible(HOSTILE, kept="\n\t") in parsed.of("blockquote")
    assert "{{ 7 * 7 }}" in text and "49" not in parsed.of("bdi")


def test_nothing_unseen_reaches_the_page_or_the_figures(tmp_path: Path) -> None:
    made(tmp_path)
    for path in tmp_path.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text), path.name


def test_names_are_in_the_figures_as_text(tmp_path: Path) -> None:
    made(tmp_path)
    for name in ("emotions", "cosines", "dendrogram", "confounds"):
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        labels = {"".join(element.itertext()).split("  ")[0] for element in root.iter(f"{SVG}text")}
        assert {"calm", "喜び", "q\"uo'te & $co"} <= labels, name
        assert any(label.startswith("<script>alert") for label in labels), name


def test_the_policy_lets_this_script_run_and_nothing_else(page: tuple[str, Page]) -> None:
    _, parsed = page
    (policy,) = [given["content"] for given in parsed.attributes("meta") if given.get("http-equiv")]
    (script,) = parsed.of("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_nothing_comes_from_outside(page: tuple[str, Page]) -> None:
    _, parsed = page
    for tag, given in parsed.elements:
        for name, value in given.items():
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                assert str(value).startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", html.unescape("".join(parsed.of("style"))))


# Under whose name a number stands

FOUR = ["calm", "fear", "joy", "awe"]
FEATURES = [*NUMERIC, *CATEGORICAL]


def four() -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Four emotions in neither alphabetical order nor that of their directions, which lie at 0, 100, 20 and 150 degrees at the
    best layer, 5, and elsewhere as they come.
    """
    readout, quality, tokens, heads = make_release(names=FOUR)
    quality["best_layer"] = 5
    angles = np.radians([0.0, 100.0, 20.0, 150.0])
    readout.vectors[5] = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return readout, quality, tokens, heads


def pictures(monkeypatch: pytest.MonkeyPatch, folder: Path, *release: Any) -> dict[str, Any]:
    """{name: figure} of a report, as matplotlib has them before they become SVG."""
    kept = {}

    def keep(figure: Any, name: str, title: str, note: str) -> Drawn:
        kept[name] = figure
        reportfigures.plt.close(figure)
        return Drawn(b"", "", title, note, 600)

    monkeypatch.setattr(reportfigures, "finish", keep)
    readout, quality, tokens, heads = release
    report.make_report(readout, quality, tokens, heads, folder)
    return kept


def bare_page(monkeypatch: pytest.MonkeyPatch, folder: Path, *release: Any) -> Page:
    """The page without its pictures, which take most of the time."""
    pictures(monkeypatch, folder, *release)
    return Page((folder / PAGE).read_text(encoding="utf-8"))


def at_layers(quality: dict[str, Any], name: str, *path: str) -> dict[float, Any]:
    """{layer: a figure of an emotion}, found along `path`."""
    found = {float(layer): figures for layer, figures in quality["emotions"][name]["layers"].items()}
    for step in path:
        found = {layer: figures[step] for layer, figures in found.items()}
    return found


def test_each_cosine_is_that_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readout, quality, tokens, heads = four()
    axes = pictures(monkeypatch, tmp_path, readout, quality, tokens, heads)["cosines"].axes[0]
    rows = dict(zip(FOUR, readout.vectors[5].astype(float), strict=True))
    wanted = {(one, other): float(rows[one] @ rows[other]) for one in FOUR for other in FOUR}
    assert cells(axes) == pytest.approx(wanted, abs=1e-6)
    assert written(axes) == {at: number(value) for at, value in wanted.items()}
    assert list(named(axes.yaxis).values()) in (["calm", "joy", "fear", "awe"], ["awe", "fear", "joy", "calm"])


def test_the_dendrogram_joins_the_names_that_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = pictures(monkeypatch, tmp_path, *four())["dendrogram"].axes[0]
    names = named(axes.yaxis)
    joined = {}
    for bracket in axes.collections[0].get_segments():
        ends = [names[round(across)] for along, across in (bracket[0], bracket[-1]) if along == 0]
        joined[frozenset(ends)] = max(bracket[:, 0])
    apart = [1 - np.cos(np.radians(angle)) for angle in (20, 50, 100, 80, 150, 130)]
    wanted = {frozenset(["calm", "joy"]): apart[0], frozenset(["fear", "awe"]): apart[1], frozenset(): np.mean(apart[2:])}
    assert joined == pytest.approx(wanted, abs=1e-6)


def test_the_figures_have_the_emotions_in_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pictures(monkeypatch, tmp_path, *four())
    orders = [list(named(found[name].axes[0].yaxis).values()) for name in ("cosines", "dendrogram", "confounds")]
    orders.append([axes.get_title(loc="left").split("  ")[0] for axes in found["emotions"].axes])
    assert orders == 4 * [orders[0]] and orders[0] not in (FOUR, sorted(FOUR))


def test_the_null_is_that_of_shuffled_labels_or_none() -> None:
    """Random directions are another question: their interval never stands in."""
    _, quality, _, _ = four()
    figures = quality["emotions"]["joy"]["layers"]["5"]
    figures |= {
        "held_out": {"auc": 0.8, "interval": [0.7, 0.9], "cohens_d": 1.0},
        "shuffled": {"interval": [0.41, 0.59]},
        "random": {"interval": [0.1, 0.2]},
    }
    assert auc_of(quality, "joy", 5) == {"auc": 0.8, "low": 0.7, "high": 0.9, "null_low": 0.41, "null_high": 0.59}
    for none in ({"mean": 0.5, "interval": None}, {"mean": 0.5}, None):
        figures["shuffled"] = none
        found = auc_of(quality, "joy", 5)
        assert np.isnan([found["null_low"], found["null_high"]]).all(), none
    figures["held_out"] = {"auc": None, "interval": None, "cohens_d": None}
    assert np.isnan(list(auc_of(quality, "joy", 5).values())).all()


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_without_an_interval_of_shuffled_labels_no_band_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "shuffled labels, 95 %"
    release = four()
    found = pictures(monkeypatch, tmp_path, *release)
    bands = {shape.get_label(): band(shape) for shape in found["layers"].axes[0].collections}
    assert told in legend(found["layers"])
    assert bands[told] == dict.fromkeys((3, 5, 8), pytest.approx((0.4, 0.6)))
    for emotion in release[1]["emotions"].values():
        for figures in emotion["layers"].values():
            figures["shuffled"] = {**figures["shuffled"], "interval": None}
    found = pictures(monkeypatch, tmp_path, *release)
    assert told not in [*legend(found["layers"]), *(shape.get_label() for shape in found["layers"].axes[0].collections)]
    assert "95 % interval of the mean" in legend(found["layers"])
    for axes in found["emotions"].axes:
        null, own = axes.collections
        assert not band(null) and band(own)


def test_the_layers_have_each_emotion_and_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names at the right end are those of the highest and the lowest there."""
    release = four()
    quality = release[1]
    for at, macro in enumerate(quality["macro_auc"].values()):
        macro |= {"mean": 0.7 + at / 100, "interval": [0.6 + at / 100, 0.9 - at / 100]}
    axes = pictures(monkeypatch, tmp_path, *release)["layers"].axes[0]
    drawn = [dict(one.get_xydata().tolist()) for one in axes.lines]
    for name in FOUR:
        assert pytest.approx(at_layers(quality, name, "held_out", "auc")) in drawn, name
    labelled = {one.get_label(): dict(one.get_xydata().tolist()) for one in axes.lines}
    assert labelled["mean over emotions"] == pytest.approx({3: 0.7, 5: 0.71, 8: 0.72})
    bands = {shape.get_label(): band(shape) for shape in axes.collections}
    wanted = {3: (0.6, 0.9), 5: (0.61, 0.89), 8: (0.62, 0.88)}
    ends = bands["95 % interval of the mean"]
    assert {x: pytest.approx(pair) for x, pair in wanted.items()} == ends
    last = {name: at_layers(quality, name, "held_out", "auc")[8] for name in FOUR}
    wanted_ends = {(name, last[name]) for name in (max(last, key=last.__getitem__), min(last, key=last.__getitem__))}
    assert {(text.get_text(), text.xy[1]) for text in axes.texts} == {("layer 5: 0.71", 1.0), *wanted_ends}


def test_each_panel_is_that_of_its_emotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = four()
    quality = release[1]
    for at, name in enumerate(FOUR):
        for figures in quality["emotions"][name]["layers"].values():
            figures["shuffled"] = {**figures["shuffled"], "interval": [0.4 - at / 100, 0.6 + at / 100]}
    panels = pictures(monkeypatch, tmp_path, *release)["emotions"].axes
    by_name = {axes.get_title(loc="left").split("  ")[0]: axes for axes in panels}
    assert set(by_name) == set(FOUR) and len(panels) == len(FOUR)
    for at, (name, axes) in enumerate((name, by_name[name]) for name in FOUR):
        aucs = at_layers(quality, name, "held_out", "auc")
        assert curve(axes) == pytest.approx(aucs), name
        best = quality["emotions"][name]["best_layer"]
        assert axes.get_title(loc="left") == f"{name}  {number(aucs[best])}"
        null, own = map(band, axes.collections)
        for layer, interval in at_layers(quality, name, "held_out", "interval").items():
            assert own[layer] == pytest.approx(tuple(interval)), name
            assert null[layer] == pytest.approx((0.4 - at / 100, 0.6 + at / 100)), name


@pytest.mark.parametrize("interval", [None, [0.05, 0.18]])
def test_low_aucs_are_inside_their_panels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: list[float] | None
) -> None:
    release = four()
    for figures in release[1]["emotions"]["fear"]["layers"].values():
        figures["held_out"] |= {"auc": 0.1, "interval": interval}
    found = pictures(monkeypatch, tmp_path, *release)
    assert found["layers"].axes[0].get_ylim()[0] <= 0.1
    for axes in found["emotions"].axes:
        assert axes.get_ylim()[0] <= min([0.1, *(interval or [])])


def test_a_table_of_many_emotions_has_each_ones_aucs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"emotion{at}" for at in range(reportfigures.MOST_PANELS + 1)]
    release = make_release(names=names, layers=(0, 4))
    axes = pictures(monkeypatch, tmp_path, *release)["emotions"].axes[0]
    aucs = {name: at_layers(release[1], name, "held_out", "auc") for name in names}
    wanted = {(name, f"{layer:.0f}"): auc for name in names for layer, auc in aucs[name].items()}
    assert cells(axes) == pytest.approx(wanted)
    assert list(named(axes.yaxis).values()) == sorted(names, key=lambda name: -sum(aucs[name].values()))


def test_each_family_has_its_own_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = four()
    for at, layer in enumerate((3, 5, 8)):
        release[1]["families"][str(layer)] = {
            name: {
                "cohesion": 0.1 * place + at / 100,
                "random": {"mean": place / 50, "sd": 0.03 + at / 100},
                "emotions": FOUR[:2],
            }
            for place, name in enumerate(("warm", "dark"), start=1)
        }
    panels = {axes.get_title(loc="left"): axes for axes in pictures(monkeypatch, tmp_path, *release)["families"].axes}
    assert set(panels) == {"warm", "dark"}
    for place, name in enumerate(("warm", "dark"), start=1):
        assert curve(panels[name]) == pytest.approx({3: 0.1 * place, 5: 0.1 * place + 0.01, 8: 0.1 * place + 0.02})
        for at, layer in enumerate((3, 5, 8)):
            half = 2 * (0.03 + at / 100)
            assert band(panels[name].collections[0])[layer] == pytest.approx((place / 50 - half, place / 50 + half))


def test_each_map_of_heads_is_that_of_its_emotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = four()
    found = pictures(monkeypatch, tmp_path, *release)
    maps = {name: one for name in FOUR if (one := head_map(release[3][name], [3, 5, 8])) is not None}
    shown = {axes.get_title(loc="left"): axes.images[0].get_array() for axes in found["head_maps"].axes if axes.images}
    assert set(shown) == set(maps) == set(FOUR)
    for name, one in maps.items():
        np.testing.assert_allclose(shown[name], 100 * one.share)
    share, z = (axes.images[0].get_array() for axes in found["heads"].axes[:2])
    np.testing.assert_allclose(share, 100 * np.mean([one.share for one in maps.values()], axis=0))
    np.testing.assert_allclose(z, np.mean([one.z for one in maps.values()], axis=0))


def test_each_half_of_the_confounds_has_its_own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left what the feature alone tells, right what the projection has of it, at the emotion's own best layer."""
    release = four()
    for name, layer in zip(FOUR, (3, 5, 8, 5), strict=True):
        release[1]["emotions"][name]["best_layer"] = layer
    left, right = pictures(monkeypatch, tmp_path, *release)["confounds"].axes[:2]
    told, follows = {}, {}
    for name in FOUR:
        emotion = release[1]["emotions"][name]
        projection = emotion["layers"][str(emotion["best_layer"])]["projection"]
        for feature in FEATURES:
            at = (name, feature.replace("_", " "))
            told[at] = emotion["label_auc"][feature]
            follows[at] = projection[feature]["r_within" if feature in NUMERIC else "explained"]
    for axes, table, sign in ((left, told, False), (right, follows, True)):
        values = {at: np.nan if value is None else value for at, value in table.items()}
        assert cells(axes, rows=left) == pytest.approx(values, nan_ok=True)
        assert written(axes, rows=left) == {at: number(value, sign=sign) for at, value in table.items()}
    assert left.get_title(loc="left") == "AUC of the feature alone"
    assert right.get_title(loc="left") == "projection follows it"


def test_the_confounds_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large the AUC, which is what the column sorts by; small r, or a share; lengths sort by the positives' median."""
    release = four()
    page = bare_page(monkeypatch, tmp_path, *release)
    kinds = {text: given.get("data-kind") for given, text in zip(page.attributes("th"), page.of("th"), strict=True)}
    lines = {line["Emotion"][1]: line for line in page.table("Median length")}
    assert set(lines) == set(FOUR)
    for name, line in lines.items():
        emotion = release[1]["emotions"][name]
        projection = emotion["layers"][str(emotion["best_layer"])]["projection"]
        for feature in FEATURES:
            heading = feature.replace("_", " ").capitalize()
            given, text = line[heading]
            auc = emotion["label_auc"][feature]
            r, explained = (projection[feature].get(kind) for kind in ("r_within", "explained"))
            note = f"r {number(r, sign=True)}" if r is not None else f"share {number(explained)}" if explained else ""
            assert text == f"{number(auc)}{note}", (name, feature)
            assert given["data-by"] == ("" if auc is None else f"{auc:.6g}"), (name, feature)
            assert kinds[heading] == "number"
        given, text = line["Median length"]
        positive, negative = emotion["median_chars"]["positive"], emotion["median_chars"]["negative"]
        assert text == f"{number(positive, 0)} / {number(negative, 0)}"
        assert float(str(given["data-by"])) == positive
    assert kinds["Median length"] == "number"


def test_a_familys_z_in_closed_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = four()
    family = {"cohesion": 0.2, "random": {"mean": 0.05, "sd": 0.1, "draws": 200}, "emotions": ["calm", "joy"]}
    alone = {"cohesion": -0.3, "random": {"mean": -0.1, "sd": 0.0, "draws": 200}, "emotions": ["fear", "awe"]}
    release[1]["families"]["5"] = {"warm": family, "dark": alone}
    page = bare_page(monkeypatch, tmp_path, *release)
    lines = [[text for _, text in line.values()] for line in page.table("Cohesion")]
    assert lines == [["warm", "0.20", "0.05 ± 0.10", "+1.5", "calm, joy"], ["dark", "−0.30", "−0.10 ± 0.00", "–", "fear, awe"]]


def test_the_track_runs_from_low_to_high(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands for 0.3 to 1: what lies beyond is drawn at its end."""
    release = four()
    figures = {"awe": (0.65, [0.44, 0.86]), "calm": (0.2, [0.1, 0.475]), "fear": (0.9, None), "joy": (0.825, [0.65, 1.0])}
    for name, (auc, interval) in figures.items():
        for layer in release[1]["emotions"][name]["layers"].values():
            layer["held_out"] |= {"auc": auc, "interval": interval}
    page = bare_page(monkeypatch, tmp_path, *release)
    lines = [line["AUC"][1] for line in page.table("Verdict")]
    assert lines == ["0.650.44 to 0.86", "0.200.10 to 0.47", "0.90–", f"{number(0.825)}0.65 to 1.00"]
    marks = [(given["class"], given["style"]) for given in page.attributes("i") if "style" in given]
    wanted = [("20.0", "80.0", "50.0"), ("0.0", "25.0", "0.0"), ("50.0", "100.0", "75.0")]
    assert marks == [
        mark
        for left, right, at in wanted
        for mark in (("range", f"left:{left}%;right:calc(100% - {right}%)"), ("at", f"left:{at}%"))
    ]


@pytest.mark.parametrize(
    ("positives", "ranks", "wanted"),
    [
        (11, (1, 6, 11), ["Highest of 11", "6 of 11", "Lowest of 11"]),
        (2, (1, 2), ["Highest of 2", "Lowest of 2"]),
        (1, (1,), ["Highest of 1"]),
    ],
)
def test_the_place_of_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positives: int, ranks: tuple[int, ...], wanted: list[str]
) -> None:
    readout, quality, tokens, heads = four()
    one = tokens["emotions"]["calm"]
    texts = [{**one["texts"][0], "rank": rank} for rank in ranks]
    tokens["emotions"] = {"calm": {**one, "positives": positives, "texts": texts}}
    page = bare_page(monkeypatch, tmp_path, readout, quality, tokens, heads)
    assert [text.split(" projection")[0] for text in page.of("h4")] == wanted


def test_emotions_are_in_alphabetical_order_and_links_lead_to_their_own_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readout, quality, tokens, heads = four()
    one = tokens["emotions"]["calm"]
    own = {name: {**one, "positives": 20 + at} for at, name in enumerate(FOUR)}
    del own["calm"]
    page = bare_page(monkeypatch, tmp_path, readout, quality, {**tokens, "emotions": own}, heads)
    ordered = ["awe", "calm", "fear", "joy"]
    for column in ("Verdict", "Median length"):
        assert [line["Emotion"][1] for line in page.table(column)] == ordered
    links = {text: given["href"] for (tag, given), text in zip(page.elements, page.texts, strict=True) if tag == "a"}
    places = {given.get("id"): at for at, (tag, given) in enumerate(page.elements) if tag == "details"}
    shown = [page.texts[at].split() for name, at in places.items() if str(name).startswith("text-")]
    assert [words[0] for words in shown] == ["awe", "fear", "joy"]
    for name in ("awe", "fear", "joy"):
        words = page.texts[places[str(links[name]).removeprefix("#")]].split()
        assert words[0] == name and str(20 + FOUR.index(name)) in words
    assert "calm" not in links
    assert page.of("option") == ["awe", "fear", "joy"]


# Corners


@pytest.mark.parametrize(
    "options",
    [
        {"names": ["calm"]},
        {"names": ["calm", "joy"], "layers": (4,)},
        {"without_heads": dict.fromkeys((3, 5, 8), "Mamba")},
        {"names": [f"emotion{number}" for number in range(40)], "layers": (0, 1)},
        {"n_heads": 40},
    ],
    ids=str,
)
def test_odd_releases(tmp_path: Path, options: dict[str, Any]) -> None:
    _, page = made(tmp_path, **options)
    assert len(page.attributes("svg")) == len(FIGURES)


def test_nothing_held_out(tmp_path: Path) -> None:
    readout, quality, tokens, heads = make_release()
    quality["best_layer"] = None
    for emotion in quality["emotions"].values():
        emotion["best_layer"] = None
        for figures in emotion["layers"].values():
            figures |= {"held_out": {"auc": None, "interval": None, "cohens_d": None}, "shuffled": None, "random": None}
    for macro in quality["macro_auc"].values():
        macro |= {"mean": None, "interval": None, "emotions": 0}
    _, page = made(tmp_path, readout, quality, {**tokens, "emotions": {}}, heads)
    assert page.row("calm")[2:5] == ["––", "8", "–"]
    assert "No text was held out" in page.of("header")[0]
    assert len(page.attributes("svg")) == len(FIGURES)


def test_the_same_release_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        made(tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_other_figures_are_refused(tmp_path: Path) -> None:
    readout, quality, tokens, heads = make_release()
    with pytest.raises(UserError, match="schema_version 1"):
        report.make_report(readout, {**quality, "schema_version": 1}, tokens, heads, tmp_path)
    other = copy.deepcopy(quality)
    other["layers"] = [3, 5]
    with pytest.raises(UserError, match="different releases"):
        report.make_report(readout, other, tokens, heads, tmp_path)
    del (other := copy.deepcopy(quality))["emotions"]["calm"]
    with pytest.raises(UserError, match="different releases"):
        report.make_report(readout, other, tokens, heads, tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_hundred_emotions_and_sixty_four_layers_stay_light(tmp_path: Path) -> None:
    names = [f"emotion{number:03d}" for number in range(200)]
    release = make_release(names=names, layers=tuple(range(64)), n_heads=8, tokens=400)
    _, page = made(tmp_path, *release)
    assert (tmp_path / PAGE).stat().st_size < 10e6
    for name in FIGURES:
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        width, height = (float(str(root.get(side)).removesuffix("pt")) for side in ("width", "height"))
        assert max(width, height) < 20 * 72, name
    assert "emotion199" in page.of("bdi")


# Arithmetic


def test_average_linkage_in_closed_form() -> None:
    cosines = np.array([[1.0, -0.5, 0.9, 0.1], [-0.5, 1.0, -0.3, 0.6], [0.9, -0.3, 1.0, 0.0], [0.1, 0.6, 0.0, 1.0]])
    found = cluster(cosines)
    assert found.linkage is not None
    pairs = np.mean([1.5, 0.9, 1.3, 1.0])  # of {0, 2} with {1, 3}
    assert found.linkage[:, 2] == pytest.approx([0.1, 0.4, pairs])
    # of the orders that the tree allows, the one whose neighbours are nearest: 2 and 3 (1.0) apart rather than 0 and 3 (0.9)
    assert found.order in ([2, 0, 3, 1], [1, 3, 0, 2])


def test_vectors_that_are_one_cluster_without_complaint() -> None:
    found = cluster(np.ones((3, 3)) + 1e-16)
    assert found.linkage is not None and found.linkage[:, 2] == pytest.approx([0, 0])
    assert cluster(np.ones((1, 1))).order == [0]


def line(head: int, contribution: float | None, z: float | None, raw_norm: float = 1.0) -> dict[str, Any]:
    return {"head": head, "contribution": contribution, "contribution_z": z, "raw_norm": raw_norm, "raw_norm_z": 2.0}


def test_a_head_map_holds_shares_of_its_layer() -> None:
    figures: dict[int, dict[str, Any]] = {
        2: {"n_heads": 2, "heads": [line(1, -3.0, -4.0), line(0, 1.0, None)]},
        4: {"no_heads": "Mamba"},
        6: {"n_heads": 3, "heads": [line(2, 2.0, 1.0), line(0, 0.0, 0.5), line(1, -2.0, -1.5)]},
    }
    found = head_map(figures, [2, 4, 6])
    assert found is not None and found.by == "contribution"
    np.testing.assert_allclose(found.share, [[0.25, 0.75, np.nan], 3 * [np.nan], [0, 0.5, 0.5]])
    np.testing.assert_allclose(found.z, [[np.nan, 4, np.nan], 3 * [np.nan], [0.5, 1.5, 1]])


def test_without_the_models_weights_a_head_map_goes_by_raw_norm() -> None:
    found = head_map({0: {"n_heads": 2, "heads": [line(0, None, None, 3.0), line(1, None, None, 1.0)]}}, [0])
    assert found is not None and found.by == "raw_norm"
    np.testing.assert_allclose(found.share, [[0.75, 0.25]])
    assert head_map({0: {"no_heads": "Mamba"}}, [0]) is None


def test_the_mean_map_is_over_what_is_known() -> None:
    one = HeadMap(np.array([[0.2, np.nan]]), np.array([[1.0, np.nan]]), "contribution")
    other = HeadMap(np.array([[0.6, np.nan]]), np.array([[np.nan, 3.0]]), "contribution")
    found = mean_map([one, other])
    np.testing.assert_allclose(found.share, [[0.4, np.nan]])
    np.testing.assert_allclose(found.z, [[1, 3]])


def test_the_budget_gives_short_texts_whole_and_shares_the_rest() -> None:
    assert budget([10, 100, 100], 110) == 50
    assert budget([10, 20], 1000) == 40  # all fit
    assert budget([300] * 1000, 60_000) == 60
    assert budget([300] * 10_000, 60_000) == 40  # the least
    assert budget([]) == 40


@pytest.mark.parametrize(
    ("z", "wanted"),
    [(None, "x"), (0.99, "0"), (-0.99, "0"), (1, "p1"), (-1, "n1"), (2, "p2"), (-3.5, "n3"), (4, "p4"), (99, "p5")],
)
def test_levels(z: float | None, wanted: str) -> None:
    assert level(z) == wanted


def test_numbers_and_words() -> None:
    assert [number(value) for value in (0.125, -0.004, -1.5, None)] == ["0.12", "0.00", "−1.50", "–"]
    assert number(0.0, sign=True) == "0.00" and number(2, 0, sign=True) == "+2"
    assert span([-0.1, 0.25]) == "−0.10 to 0.25" and span(None) == "–"
    assert visible("a\x1b[1m\nb\u202e\ud800\uffff👩\u200d🚀") == "a⟨U+001B⟩[1m⟨U+000A⟩b⟨U+202E⟩⟨U+D800⟩⟨U+FFFF⟩👩\u200d🚀"
    assert short("x" * 30, 5) == "xxxx…" and short("ab\x00") == "ab⟨U+0000⟩"


def test_every_figure_has_a_caption() -> None:
    captions = {path.stem for path in (REPOSITORY / "report").glob("*.rst")}
    assert captions == {"workflow", "overview", *LABELS}
