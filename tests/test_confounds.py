"""What else tells an emotion's sides apart, on texts and projections in which it is planted."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from amygdala import confounds
from amygdala.confounds import Features
from amygdala.exampleset import NEGATIVE, POSITIVE, Example


def example(number: int, positive: bool, text: str, **more: Any) -> Example:
    digest = hashlib.sha256(f"{number} {text}".encode()).hexdigest()[:32]
    return Example(digest, POSITIVE if positive else NEGATIVE, "train", text, **more)


def features_of(examples: list[Example], names: tuple[str, ...] = ("joy",)) -> Features:
    return Features(examples, names)


# features


def test_features_of_texts() -> None:
    examples = [
        example(0, True, "My joy, our JOYS: I said so myself.", scenarios=["b", "a"], groups=["file/x"]),
        example(1, False, "Self_doubt is imminent.", groups=["file/y"]),
        example(2, False, "…", scenarios=["b"]),
    ]
    found = features_of(examples, ("joy", "self doubt"))
    assert found.positive.tolist() == [True, False, False]
    assert found.numeric["length"] == pytest.approx([math.log1p(len(text.text)) for text in examples])
    assert found.numeric["first_person"] == pytest.approx([4 / 8, 0, 0]), "my, our, I, myself; not the I of imminent"
    assert found.numeric["own_word"].tolist() == [1, 1, 0]
    assert found.names == {"source": ["", "file/x", "file/y"], "scenario": ["", "a", "b"]}
    assert found.categorical["source"].tolist() == [1, 2, 0]
    assert found.categorical["scenario"].tolist() == [1, 0, 2], "a text of several is counted for the first by name"


def test_no_texts_have_no_figures() -> None:
    found = confounds.text_figures(features_of([]), [])
    assert found["median_chars"] == {POSITIVE: None, NEGATIVE: None} == found["longest"]
    assert set(found["label_auc"].values()) == {None}
    assert found["words"] == [] and found["sources"]["groups"] == 0


def test_an_excerpt_is_the_beginning() -> None:
    assert confounds.excerpt("a" * 240) == "a" * 240
    assert confounds.excerpt("a" * 241) == "a" * 239 + "…"


# groups


def test_group_scores_count_other_folds_alone() -> None:
    random = np.random.default_rng(1)
    groups, positive, folds = random.integers(0, 6, 80), random.random(80) < 0.4, random.integers(0, 5, 80)
    groups[:2] = [6, 7]  # of one text each
    found = confounds.group_scores(groups, positive, folds)
    for at in range(80):
        others = [other for other in range(80) if folds[other] != folds[at]]
        same = [positive[other] for other in others if groups[other] == groups[at]]
        expected = np.mean(same) - np.mean(positive[others]) if same else 0.0
        assert found[at] == pytest.approx(expected, abs=1e-12)
    for at in range(80):  # a text's own label, and those of its fold, say nothing of its score
        flipped = positive.copy()
        flipped[folds == folds[at]] ^= True
        assert confounds.group_scores(groups, flipped, folds)[at] == found[at]


def test_groups_of_few_texts_tell_no_label() -> None:
    """Counted on the texts themselves, groups of one or two would tell nearly all."""
    aucs, counted = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        groups, positive = random.integers(0, 70, 100), random.random(100) < 0.5
        aucs.append(roc_auc_score(positive, confounds.group_scores(groups, positive, random.integers(0, 5, 100))))
        counted.append(roc_auc_score(positive, [positive[groups == group].mean() for group in groups]))
    assert np.mean(counted) > 0.85
    assert 0.45 < np.mean(aucs) < 0.56 and max(aucs) < 0.8


def test_one_fold_alone_tells_nothing() -> None:
    assert confounds.group_scores(np.array([0, 1]), np.array([True, False]), np.array([2, 2])).tolist() == [0, 0]


# what tells the label


def planted(count: int = 60, **by_side: Any) -> list[Example]:
    """Positives and negatives alike but for what `by_side` gives each."""
    return [
        example(
            at,
            at % 2 == 0,
            by_side.get("text", lambda at, positive: "some text " * (1 + at % 7))(at, at % 2 == 0),
            **{name: by_side[name](at, at % 2 == 0) for name in ("scenarios", "groups") if name in by_side},
        )
        for at in range(count)
    ]


def label_aucs(examples: list[Example]) -> dict[str, float | None]:
    return confounds.label_aucs(features_of(examples))


def test_label_aucs_against_scikit_learn() -> None:
    random = np.random.default_rng(2)
    sizes, own, first = random.integers(1, 30, 60), random.random(60) < 0.3, random.integers(0, 4, 60)
    texts = ["word " * int(sizes[at]) + "joy " * int(own[at]) + "I " * int(first[at]) for at in range(60)]
    examples = planted(text=lambda at, positive: texts[at])
    label = [text.polarity == POSITIVE for text in examples]
    found = label_aucs(examples)
    assert found["length"] == pytest.approx(roc_auc_score(label, [len(text) for text in texts]))
    assert found["own_word"] == pytest.approx(roc_auc_score(label, own))
    shares = [first[at] / (sizes[at] + own[at] + first[at]) for at in range(60)]
    assert found["first_person"] == pytest.approx(roc_auc_score(label, shares))
    assert found["source"] is None and found["scenario"] is None


@pytest.mark.parametrize(
    ("feature", "side"),
    [
        ("length", {"text": lambda at, positive: "a text " * (20 + at if positive else 1 + at % 7)}),
        ("first_person", {"text": lambda at, positive: "word " * (5 + at % 7) + ("I" if positive else "he")}),
        ("own_word", {"text": lambda at, positive: "word " * (5 + at % 7) + ("joy" if positive else "tea")}),
        ("source", {"groups": lambda at, positive: [f"file/{positive}{at % 3}"]}),
        ("scenario", {"scenarios": lambda at, positive: ["fair"] if positive else [f"road {at % 4}"]}),
    ],
)
def test_each_planted_feature_alone_tells_the_label(feature: str, side: dict[str, Any]) -> None:
    found = label_aucs(planted(**side))
    assert (found[feature] or 0) > 0.99
    assert all(value is None or abs(value - 0.5) < 0.1 for name, value in found.items() if name != feature)


def test_telling_words() -> None:
    examples = planted(
        text=lambda at, positive: f"the sea {'signed bob bob' if positive and at % 4 == 0 else ''} {'kept' if positive else ''}"
    )
    found = confounds.telling_words(features_of(examples), examples)
    assert [(entry["word"], entry["positive"], entry["negative"]) for entry in found[:3]] == [
        ("kept", 1, 0),
        ("bob", 0.5, 0),  # a text counts once, however often the word stands in it
        ("signed", 0.5, 0),
    ]
    assert found[1]["example"] == examples[0].text and found[0]["example"] == examples[0].text
    assert found[3]["positive"] == found[3]["negative"] == 1


def test_largest_group() -> None:
    examples = planted(scenarios=lambda at, positive: ["fair"] if positive and at < 40 else ["road"] if at > 50 else [])
    features = features_of(examples)
    found = confounds.largest_group(features, "scenario")
    assert found == {"groups": 2, "largest": "fair", "share": pytest.approx(20 / 30), "negatives": 0}
    assert confounds.largest_group(features, "source") == {"groups": 0, "largest": None, "share": None, "negatives": None}


def test_text_figures() -> None:
    examples = [example(at, at < 3, "a" * size) for at, size in enumerate([10, 20, 300, 5, 7])]
    found = confounds.text_figures(features_of(examples), examples)
    assert found["median_chars"] == {POSITIVE: 20, NEGATIVE: 6}
    assert found["longest"] == {POSITIVE: "a" * 239 + "…", NEGATIVE: "a" * 7}
    assert found["label_auc"]["length"] == 1.0


# projections


def test_within_sides_takes_the_label_away() -> None:
    values, positive = np.array([1.0, 3, 10, 20, 30]), np.array([True, True, False, False, False])
    assert confounds.within_sides(values, positive).tolist() == [-1, 1, -10, 0, 10]
    assert confounds.within_sides(np.array([1, 3]), np.array([True, True])).tolist() == [-1, 1]


def test_r_over_all_texts_and_within_the_sides_in_closed_form() -> None:
    """Lengths are log 2 times 1 to 3 and 4 to 6, ranks 3, 5, 4 and 0, 1, 2: squares sum to 17.5 over all texts, to 2 a side."""
    examples = [example(at, at < 3, "a" * (2 ** (at + 1) - 1)) for at in range(6)]
    found = confounds.projection_figures(features_of(examples), np.array([30.0, 90, 40, -7, 1, 2]))["length"]
    assert found == {"r": pytest.approx(-10.5 / 17.5), "r_within": pytest.approx((1 + 2) / 4)}


def test_projections_that_follow_the_length_within_the_sides() -> None:
    random = np.random.default_rng(3)
    sizes = random.integers(1, 60, 400)
    examples = planted(400, text=lambda at, positive: "a" * (20 + 10 * sizes[at]))
    features = features_of(examples)
    side = np.where(features.positive, 5.0, 0.0)
    noise = random.standard_normal(400)
    length = features.numeric["length"]
    follows = confounds.projection_figures(features, 2 * (length - length.mean()) / length.std() + noise + side)
    assert follows["length"]["r_within"] > 0.8
    free = confounds.projection_figures(features, noise + side)
    assert abs(free["length"]["r_within"]) < 0.15 and abs(free["length"]["r"]) < 0.15


def test_a_label_that_goes_with_the_length_is_not_the_projection_following_it() -> None:
    """Positives are longer, the projection is the label: r is high over all texts, and near 0 within the sides."""
    random = np.random.default_rng(4)
    examples = planted(400, text=lambda at, positive: "a" * int(random.integers(20, 60) * (4 if positive else 1)))
    features = features_of(examples)
    found = confounds.projection_figures(features, features.positive * 5 + random.standard_normal(400))
    assert found["length"]["r"] > 0.7 and abs(found["length"]["r_within"]) < 0.15


def test_one_outlying_projection_decides_nothing() -> None:
    random = np.random.default_rng(5)
    examples = planted(100, text=lambda at, positive: "a" * int(20 + random.integers(1, 500)))
    features = features_of(examples)
    scores = features.numeric["length"] + 0.1 * random.standard_normal(100)
    scores[17] = -1e4
    found = confounds.projection_figures(features, scores)["length"]["r"]
    assert found > 0.8 > abs(np.corrcoef(features.numeric["length"], scores)[0, 1])
    assert found == pytest.approx(spearmanr(scores, features.numeric["length"]).statistic, abs=0.1)


def test_projections_that_follow_sources_and_scenarios() -> None:
    random = np.random.default_rng(6)
    examples = planted(
        400,
        groups=lambda at, positive: [f"file/{at // 2 % 4}"],
        scenarios=lambda at, positive: [f"scene {at // 8 % 6}"] if positive else [],
    )
    features, noise = features_of(examples), random.standard_normal(400)
    of_source = confounds.projection_figures(features, 3 * features.categorical["source"] + noise + 9 * features.positive)
    assert of_source["source"]["explained"] > 0.8 and of_source["scenarios_of_positives"] < 0.2
    of_scene = confounds.projection_figures(features, 3 * features.categorical["scenario"] * features.positive + noise)
    assert of_scene["scenarios_of_positives"] > 0.8 and of_scene["source"]["explained"] < 0.1
    of_neither = confounds.projection_figures(features, noise + 9 * features.positive)
    assert of_neither["source"]["explained"] < 0.05 and of_neither["scenarios_of_positives"] < 0.1


def test_positives_without_a_scenario_are_no_scene() -> None:
    """They lie far from all others, whose scenes are alike."""
    random = np.random.default_rng(7)
    examples = planted(400, scenarios=lambda at, positive: [f"scene {at // 8 % 4}"] if positive and at % 4 == 0 else [])
    scores = random.standard_normal(400) + 9 * np.array([text.polarity == POSITIVE and not text.scenarios for text in examples])
    found = confounds.projection_figures(features_of(examples), scores)
    assert found["scenarios_of_positives"] < 0.1


def test_projections_without_scenarios() -> None:
    features = features_of(planted())
    found = confounds.projection_figures(features, np.arange(60.0))
    assert found["scenarios_of_positives"] is None and found["scenario"] == {"explained": None}
    assert found["own_word"] == {"r": None, "r_within": None}
