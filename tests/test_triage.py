"""Each flag on figures written by hand, on both sides of its threshold."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from amygdala.triage import few_examples, line, told_apart, triage, verdict, widened

TEXTS: dict[str, Any] = {
    "used": {"train": {"positive": 20, "negative": 20}, "held_out": {"positive": 10, "negative": 10}},
    "words": [{"word": "sea", "positive": 0.59, "negative": 0.0, "example": "by the sea"}],
    "label_auc": {"length": 0.79, "first_person": 0.21, "own_word": None, "source": 0.79, "scenario": 1.0},
    "longest": {"positive": "a long text", "negative": None},
    "scenarios": {"groups": 2, "largest": "fair", "share": 0.89, "negatives": 0.5},
}
FIGURES: dict[str, Any] = {
    "held_out": {"auc": 0.8, "interval": [0.6, 0.9], "cohens_d": 1.0},
    "train_auc": 0.9,
    "shuffled": {"reached": 0.05, "draws": 40},
    "split_half_cosine": 0.3,
    "spectrum": {"first_component": 0.3, "first_component_of_negatives": 0.3},
    "relative_spread": 0.01,
    "furthest": {"positive": {"share": 0.9, "texts": 20, "cosine_without": 0.9, "text": "an outlier"}, "negative": None},
    "outliers": [{"text": "against it"}],
    "projection": {
        "length": {"r": 0.9, "r_within": 0.49},
        "first_person": {"r": 0.1, "r_within": -0.49},
        "own_word": {"r": None, "r_within": None},
        "source": {"explained": 0.29},
        "scenario": {"explained": 0.9},
        "scenarios_of_positives": 0.49,
    },
    "neuron": {"index": 5, "cosine": -0.6, "neurons": 100},
}
CROSS: dict[str, Any] = {
    "nearest": [["grief", 0.97]],
    "ridge": {"r2": 0.9, "chance": 0.0, "coefficients": [["grief", 0.9]]},
}
TOGETHER = {"joy": {"delight": 0.9}, "delight": {"joy": 0.79}}


def flagged(**changes: Any) -> list[str]:
    """Names of joy's flags once what stands at dotted paths of the four tables is changed."""
    tables = copy.deepcopy({"texts": TEXTS, "figures": FIGURES, "cross": CROSS, "together": TOGETHER})
    for path, value in changes.items():
        table, *rest = path.split("__")
        at: Any = tables[table]
        for part in rest[:-1]:
            at = at[int(part)] if part.isdigit() else at[part]
        at[int(rest[-1]) if rest[-1].isdigit() else rest[-1]] = value
    return [flag.name for flag in triage("joy", tables["texts"], tables["figures"], tables["cross"], tables["together"])]


def test_nothing_is_flagged_short_of_a_threshold() -> None:
    assert flagged() == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"texts__used__train__positive": 19}, "too few examples"),
        ({"texts__used__held_out__negative": 9}, "too few examples"),
        ({"figures__train_auc": 0.49}, "flipped"),
        ({"figures__held_out": {"auc": 0.3, "interval": [0.1, 0.49]}}, "flipped"),
        ({"figures__held_out": {"auc": 0.6, "interval": [0.5, 0.9]}}, "chance"),
        ({"figures__held_out": {"auc": 0.4, "interval": [0.2, 0.5]}}, "chance"),
        ({"figures__held_out": {"auc": None, "interval": None}}, "not measured"),
        ({"figures__shuffled__reached": 0.075}, "unspecific"),
        ({"texts__words__0__positive": 0.6}, "label in the text"),
        ({"texts__scenarios__share": 0.9}, "one scenario"),
        ({"figures__projection__scenarios_of_positives": 0.5}, "confounded (scenario)"),
        ({"texts__label_auc__length": 0.8}, "confounded (length)"),
        ({"texts__label_auc__first_person": 0.2}, "confounded (first person)"),
        ({"texts__label_auc__own_word": 0.8}, "confounded (own word)"),
        ({"texts__label_auc__source": 0.8}, "confounded (source)"),
        ({"figures__projection__length__r_within": -0.5, "texts__label_auc__length": 0.35}, "confounded (length)"),
        ({"figures__projection__length__r_within": 0.5, "texts__label_auc__length": 0.65}, "confounded (length)"),
        ({"figures__projection__length__r_within": -0.5, "texts__label_auc__length": 0.64}, "follows length"),
        ({"figures__projection__own_word__r_within": 0.5}, "follows own word"),
        ({"figures__projection__source__explained": 0.3, "texts__label_auc__source": 0.65}, "confounded (source)"),
        ({"figures__projection__source__explained": 0.3, "texts__label_auc__source": 0.1}, "follows source"),
        ({"together__delight__joy": 0.8}, "same texts"),
        ({"cross__ridge__r2": 0.91}, "redundant"),
        ({"cross__nearest__0__1": 0.98}, "redundant"),
        ({"figures__relative_spread": 0.009}, "rows alike"),
        ({"figures__neuron__cosine": -0.61}, "one-neuron"),
        ({"figures__furthest__positive__cosine_without": 0.89}, "one text"),
        ({"figures__split_half_cosine": 0.29}, "unstable"),
        ({"figures__spectrum__first_component": 0.23}, "fragmented"),
    ],
)
def test_each_flag_at_its_threshold(changes: dict[str, Any], name: str) -> None:
    assert flagged(**changes) == [name]


@pytest.mark.parametrize(
    "changes",
    [
        {"figures__shuffled": {"reached": 0.5, "draws": 3}},  # of a method that is costly to fit
        {"figures__shuffled": None, "figures__split_half_cosine": None},
        {"texts__words__0__positive": 1.0, "texts__words__0__negative": 0.11},
        {"texts__label_auc__source": 0.1},  # counted in other folds: below a half is chance
        {"cross__ridge": {"r2": 0.93, "chance": 0.4, "coefficients": []}},  # less chance 0.88
        {"cross__ridge": {"r2": 1.0, "chance": 1.0, "coefficients": []}},  # as many emotions as dimensions
        {"cross__nearest": [], "cross__ridge": {"r2": None, "chance": 0.0, "coefficients": []}},  # one emotion alone
        {"figures__neuron": {"reason": "experts"}},
        {"figures__relative_spread": None},
        {"figures__spectrum": {"first_component": 0.41, "first_component_of_negatives": 0.9}},
        {"figures__spectrum": {"first_component": None, "first_component_of_negatives": None}},
        {"texts__scenarios": {"groups": 0, "largest": None, "share": None, "negatives": None}},
    ],
)
def test_what_is_not_flagged(changes: dict[str, Any]) -> None:
    assert flagged(**changes) == []


def test_grave_flags_come_first_and_give_the_verdict() -> None:
    changed = {**FIGURES, "relative_spread": 0.001, "shuffled": {"reached": 0.2, "draws": 40}}
    flags = triage("joy", TEXTS, changed, CROSS, {})
    assert [flag.name for flag in flags] == ["rows alike", "unspecific"] and verdict(flags) == "rows alike"
    assert line(flags, changed).startswith("rows alike: half of the rows lie within 0.10% of their mean's length from it")
    assert verdict(flags[1:]) == "clean"
    assert line(flags[1:], changed) == (
        "clean (held-out AUC 0.80, 0.60 to 0.90); unspecific: 20% of 40 vectors trained on shuffled labels reach 0.80 too"
    )
    assert line([], {"held_out": {"auc": None, "interval": None}}) == "clean"


def test_what_makes_a_vector_redundant_is_named() -> None:
    """The three with the largest coefficients, as the ridge lists them."""
    ridge = {"r2": 0.93, "chance": 0.0, "coefficients": [["grief", 0.904], ["joy", -0.3], ["awe", 0.2], ["calm", 0.1]]}
    (flag,) = triage("joy", TEXTS, FIGURES, {**CROSS, "ridge": ridge}, {})
    assert flag.why == "the other vectors make up 93% of it ('grief' +0.90, 'joy' -0.30, 'awe' +0.20)"


def test_texts_that_are_there_show_a_label_told_by_length() -> None:
    """A side without texts has no longest one."""
    texts = {**TEXTS, "label_auc": {**TEXTS["label_auc"], "length": 0.9}}
    (flag,) = triage("joy", texts, FIGURES, CROSS, {})
    assert flag.name == "confounded (length)" and flag.texts == ["a long text"]


def test_too_few_examples_names_each_side() -> None:
    (flag,) = few_examples({"train": {"positive": 1, "negative": 20}, "held_out": {"positive": 0, "negative": 9}})
    assert flag.why == "only 1 train positives, 0 held-out positives, 9 held-out negatives: every figure is rough"


def test_hostile_names_and_words_are_escaped() -> None:
    texts = copy.deepcopy(TEXTS)
    texts["words"][0] |= {"word": "\x1b[31m", "positive": 1.0}
    texts["scenarios"] |= {"largest": "a\nb\x1b", "share": 1.0}
    cross = {"nearest": [["\x1b]0;x\x07", 0.99]], "ridge": {"r2": 0.95, "chance": 0.0, "coefficients": [["\x1b]0;x\x07", 1.0]]}}
    flags = triage("joy", texts, FIGURES, cross, {"joy": {"\x07": 1.0}, "\x07": {"joy": 1.0}})
    told = line(flags, FIGURES)
    assert len(flags) == 4 and not any(character in told for character in "\x1b\x07\n")


def test_the_best_of_many_layers_is_judged_as_such() -> None:
    """Of one layer's AUC 0.62, an interval from 0.52 on excludes chance; of the best of 30 it does not."""
    assert widened(0.62, 0.52, 1) == pytest.approx(0.52)
    quantile = 3.1439  # of 1 - 0.05 / 2 / 30, from a table of the normal distribution
    assert widened(0.62, 0.52, 30) == pytest.approx(0.62 - 0.1 * quantile / 1.95996, abs=1e-4)
    figures = {"held_out": {"auc": 0.62, "interval": [0.52, 0.72]}, "train_auc": 0.9, "shuffled": None}
    assert told_apart(figures) == []
    (flag,) = told_apart(figures, looks=30)
    assert flag.name == "chance" and "the best of 30 layers" in flag.why
    far = {**figures, "held_out": {"auc": 0.9, "interval": [0.8, 0.97]}}
    assert told_apart(far, looks=64) == []
