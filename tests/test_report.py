"""The report: its numbers are those of the files, its figures are all there, and what is hostile stands there as text."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import report
from amygdala.errors import UserError
from amygdala.reportfigures import HeadMap, cluster, head_map, mean_map
from amygdala.reportfiles import FIGURES, LABELS, PAGE
from amygdala.reportpage import budget, level
from amygdala.reporttext import number, short, span, visible
from releases import ALERT, HOSTILE, NAMES, make_release
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

    def row(self, name: str) -> list[str]:
        """The cells of the triage table's line of an emotion."""
        table = next(at for at, (tag, given) in enumerate(self.elements) if given.get("id") == "table")
        starts = [at for at, (tag, _) in enumerate(self.elements) if tag == "tr" and at > table]
        for start, end in itertools.pairwise(starts):
            cells = [self.texts[at].strip() for at in range(start + 1, end) if self.elements[at][0] in ("th", "td")]
            if cells[0] == name:
                return cells
        raise AssertionError(f"no line of {name}")


def made(folder: Path, *release: Any, **options: Any) -> tuple[str, Page]:
    report.make_report(*(release or make_release(**options)), folder)
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
    figures = {
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
