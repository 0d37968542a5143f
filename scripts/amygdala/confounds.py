"""What else sets an emotion's positives apart from its negatives: length, where texts are from, scenario, first person, the
emotion's own word, or any single word. A vector may have learned that instead.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from amygdala.corpus import Finder, words_of
from amygdala.exampleset import NEGATIVE, POSITIVE, Example
from amygdala.measures import auc, correlation, explained_by_groups, ranked

# English; in other languages the share is 0 everywhere and tells nothing.
FIRST_PERSON = frozenset(["i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"])
NUMERIC = ("length", "first_person", "own_word")
CATEGORICAL = ("source", "scenario")
FOLDS = 5
WORDS_SHOWN = 5
NONE = ""  # the group of texts that have none
EXCERPT = 240


def excerpt(text: str) -> str:
    """The beginning of a text, to show to a person."""
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


class Features:
    """What is known of an emotion's texts beside their rows, in the order of `examples`.

    numeric: {name: float64 [n]}, length as log(1 + characters), first_person a share of words, own_word 0 or 1;
    categorical: {name: int [n]}, numbers of groups, of which `names` holds the names; positive: bool [n].
    """

    def __init__(self, examples: Sequence[Example], own_names: Sequence[str]) -> None:
        """own_names: the emotion's and its aliases'."""
        find = Finder(own_names)
        words = [words_of(example.text) for example in examples]
        self.positive = np.array([example.polarity == POSITIVE for example in examples], dtype=bool)
        self.numeric = {
            "length": np.array([math.log1p(len(example.text)) for example in examples]),
            "first_person": np.array([sum(map(FIRST_PERSON.__contains__, each)) / max(len(each), 1) for each in words]),
            "own_word": np.array([float(bool(find(each))) for each in words]),
        }
        given = {"source": [example.groups for example in examples], "scenario": [example.scenarios for example in examples]}
        self.categorical: dict[str, np.ndarray] = {}
        self.names: dict[str, list[str]] = {}
        for name, groups in given.items():
            labels = [min(group) if group else NONE for group in groups]
            self.names[name] = sorted(set(labels))
            numbers = {label: number for number, label in enumerate(self.names[name])}
            self.categorical[name] = np.array([numbers[label] for label in labels], dtype=np.int64)
        self.words = [frozenset(each) for each in words]
        self.folds = np.array([int(example.digest[:8], 16) % FOLDS for example in examples])


def group_scores(groups: np.ndarray, positive: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """float64 [n]: how much more often the texts of the same group are positives than all are, counted in the other folds
    alone, so that a group of one text says nothing of it (0).

    Less the share of all, since a fold with more positives leaves fewer to the others, and would be told by that.
    """
    scores = np.zeros(len(groups))
    for fold in np.unique(folds):
        held, rest = folds == fold, folds != fold
        size = np.bincount(groups[rest], minlength=int(groups.max()) + 1)
        hits = np.bincount(groups[rest], weights=positive[rest], minlength=int(groups.max()) + 1)
        above = hits / np.maximum(size, 1) - (positive[rest].mean() if rest.any() else 0.0)
        scores[held] = np.where(size > 0, above, 0.0)[groups[held]]
    return scores


def label_aucs(features: Features) -> dict[str, float | None]:
    """AUC with which each feature alone tells positives from negatives; None where it is the same for all texts."""
    found: dict[str, float | None] = {}
    columns = dict(features.numeric)
    for name, groups in features.categorical.items():
        if len(features.names[name]) > 1:
            columns[name] = group_scores(groups, features.positive, features.folds)
    for name in (*NUMERIC, *CATEGORICAL):
        values = columns.get(name)
        varies = values is not None and len(np.unique(values)) > 1
        found[name] = auc(values[features.positive], values[~features.positive]) if varies and values is not None else None
    return found


def telling_words(features: Features, examples: Sequence[Example], count: int = WORDS_SHOWN) -> list[dict[str, Any]]:
    """The words whose presence sets the sides apart most: share of positives and of negatives that have the word, and a
    positive that has it.
    """
    sides = {}
    for side, chosen in ((POSITIVE, features.positive), (NEGATIVE, ~features.positive)):
        counts: Counter[str] = Counter()
        for index in np.flatnonzero(chosen):
            counts.update(features.words[index])
        sides[side] = (counts, max(int(chosen.sum()), 1))
    (positives, n), (negatives, m) = sides[POSITIVE], sides[NEGATIVE]
    ranked = heapq.nsmallest(count, positives, key=lambda word: (-(positives[word] / n - negatives[word] / m), word))
    found = []
    for word in ranked:
        at = next(int(i) for i in np.flatnonzero(features.positive) if word in features.words[i])
        example = excerpt(examples[at].text)
        found.append({"word": word, "positive": positives[word] / n, "negative": negatives[word] / m, "example": example})
    return found


def largest_group(features: Features, name: str) -> dict[str, Any]:
    """Of the positives: how many groups, the largest and its share, and that share among the negatives."""
    groups, names = features.categorical[name], features.names[name]
    own = groups[features.positive]
    counts = np.bincount(own, minlength=len(names))
    if names[:1] == [NONE]:
        named = np.array([name != NONE for name in names])
        counts = np.where(named, counts, 0)
    if not counts.sum():
        return {"groups": 0, "largest": None, "share": None, "negatives": None}
    top = int(np.argmax(counts))
    others = groups[~features.positive]
    return {
        "groups": int((counts > 0).sum()),
        "largest": names[top],
        "share": float(counts[top] / len(own)),
        "negatives": float((others == top).mean()) if len(others) else None,
    }


def _longest(examples: Sequence[Example], side: str) -> str | None:
    texts = [example.text for example in examples if example.polarity == side]
    return excerpt(max(texts, key=len)) if texts else None


def text_figures(features: Features, examples: Sequence[Example]) -> dict[str, Any]:
    """What an emotion's texts alone say, whatever the layer."""
    chars = np.array([len(example.text) for example in examples])
    medians = {
        side: float(np.median(chars[chosen])) if chosen.any() else None
        for side, chosen in ((POSITIVE, features.positive), (NEGATIVE, ~features.positive))
    }
    return {
        "median_chars": medians,
        "longest": {side: _longest(examples, side) for side in (POSITIVE, NEGATIVE)},
        "label_auc": label_aucs(features),
        "words": telling_words(features, examples),
        "sources": largest_group(features, "source"),
        "scenarios": largest_group(features, "scenario"),
    }


def within_sides(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Values [n] less the mean of their own side: what is left when the label is known."""
    result = values.astype(np.float64).copy()
    for side in (positive, ~positive):
        if side.any():
            result[side] -= result[side].mean()
    return result


def projection_figures(features: Features, scores: np.ndarray) -> dict[str, Any]:
    """How far the ranks of projections [n] go with each feature: Pearson's r, over all texts and within the sides; for groups
    the share of the variance within the sides that lies between groups, less chance (measures.explained_by_groups).

    scenarios_of_positives: the same share among the positives that have a scenario: how much of the vector is scene.
    """
    found: dict[str, Any] = {}
    scores = ranked(scores)
    inside = within_sides(scores, features.positive)
    for name, values in features.numeric.items():
        of_rest = within_sides(values, features.positive)
        found[name] = {"r": correlation(values, scores), "r_within": correlation(of_rest, inside)}
    for name, groups in features.categorical.items():
        found[name] = {"explained": explained_by_groups(inside, groups)}
    names = np.array([name != NONE for name in features.names["scenario"]])
    scenes = features.categorical["scenario"]
    chosen = features.positive & names[scenes]
    found["scenarios_of_positives"] = explained_by_groups(scores[chosen], scenes[chosen]) if chosen.any() else None
    return found
