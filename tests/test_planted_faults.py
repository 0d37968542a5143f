"""Each planted fault is found in quality.json by its name, and sound emotions of the same build are not flagged."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amygdala.exampleset import POSITIVE
from amygdala.vectorfile import read_vector, write_vector
from planted import World, directed, flags, plain_text

SOUND = ("calm", "relief")
FAULTS = {
    "template": {"rows alike", "chance"},
    "joy": {"same texts", "redundant"},
    "delight": {"same texts", "redundant"},
    "tagged": {"label in the text", "confounded (own word)"},
    "long": {"confounded (length)"},
    "scene": {"one scenario"},
    "shuffled": {"chance"},
    "flipped": {"flipped"},
    "outlier": {"one text"},
    "sourced": {"confounded (source)"},
    "diverse": {"follows source"},
    "diary": {"confounded (first person)"},
    "few": {"too few examples"},
    "unseen": {"not measured", "too few examples"},
}


def alike(random: np.random.Generator, positive: np.ndarray) -> np.ndarray:
    """Rows as a template's last token gives them: the same in all texts, but for what tells nothing."""
    return 1e-3 * directed(0.0)(random, positive)


def with_outlier(random: np.random.Generator, positive: np.ndarray) -> np.ndarray:
    rows = directed()(random, positive)
    rows[7] += 300 * np.eye(rows.shape[1])[3]
    return rows


def following_sources(random: np.random.Generator, positive: np.ndarray) -> np.ndarray:
    """Positives are like negatives, but for where they are from: World gives texts four sources in turn."""
    rows = directed()(random, positive)
    along = rows[positive].mean(axis=0) - rows[~positive].mean(axis=0)
    return rows + 1.5 * np.outer(np.arange(len(rows)) % 4 - 1.5, along / np.linalg.norm(along))


def longer(random: np.random.Generator, positive: bool) -> str:
    return " ".join(plain_text(random, positive) for _ in range(9 if positive else 1))


def tag_line(random: np.random.Generator, positive: bool) -> str:
    return plain_text(random, positive) + ("\ntagged:9" if positive else "\nother:8")


def diary(random: np.random.Generator, positive: bool) -> str:
    return plain_text(random, positive) + (" I my mine me" * int(random.integers(1, 5)) if positive else "")


def scenes(at: int, positive: bool) -> list[str]:
    """Both sides of the same nine, so that none tells the label."""
    return [f"scene {at % 9}"]


def flip(vectors: Mapping[str, Mapping[int, Path]]) -> None:
    for path in vectors["flipped"].values():
        write_vector(path, -read_vector(path), {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    world = World()
    for emotion in SOUND:
        world.add(emotion, scenario_of=scenes)
    world.add("template", alike)
    world.add("joy")
    world.examples["delight"] = world.examples["joy"]
    world.add("tagged", text_of=tag_line)
    world.add("long", text_of=longer)
    world.add("scene", scenario_of=lambda at, positive: ["the fair"] if positive else [f"scene {at % 9}"])
    world.add("shuffled", directed(0.0))
    world.add("flipped")
    world.add("outlier", with_outlier)
    world.add("diverse", following_sources)
    world.add("sourced", following_sources)
    positives = [text for text in world.examples["sourced"] if text.polarity == POSITIVE]
    for text in positives[:-30]:  # of one source, but for some
        text.groups[:] = ["file/diary"]
    world.add("diary", text_of=diary)
    world.add("few", train=(15, 60))
    world.add("unseen", held_out=(0, 25))
    return world.quality(tmp_path_factory.mktemp("planted"), meddle=flip)


@pytest.mark.parametrize("emotion", FAULTS)
def test_a_planted_fault_is_found_by_its_name(made: dict[str, Any], emotion: str) -> None:
    for layer, found in flags(made, emotion).items():
        assert found >= FAULTS[emotion], f"layer {layer}"
        own = made["emotions"][emotion]["layers"][layer]
        assert own["verdict"] in {*found, "clean"} and all(f"{name}: " in own["triage"] for name in FAULTS[emotion])
    assert (made["emotions"][emotion]["verdict"] == "clean") == (emotion == "diverse"), "which is no fault"


@pytest.mark.parametrize("emotion", SOUND)
def test_a_sound_emotion_of_the_same_build_is_not_flagged(made: dict[str, Any], emotion: str) -> None:
    assert flags(made, emotion) == {"1": set(), "2": set()}
    assert made["emotions"][emotion]["verdict"] == "clean"
    assert made["emotions"][emotion]["triage"].startswith("clean (held-out AUC 0.9")


def test_a_fault_raises_no_other_emotion_s_flag(made: dict[str, Any]) -> None:
    """Each name is found where it was planted alone, besides what follows from it."""
    follows = {
        "chance": {"template", "shuffled", "outlier"},
        "unstable": {"template", "shuffled", "outlier", "few"},
        "fragmented": {"outlier", "template", "shuffled"},
        "confounded (length)": {"diary", "tagged"},
        "label in the text": {"diary"},
    }
    for emotion in made["emotions"]:
        for name in set().union(*flags(made, emotion).values()) - FAULTS.get(emotion, set()):
            assert emotion in follows.get(name, set()), f"{emotion}: {name}"


def test_shuffled_labels_hold_a_half(made: dict[str, Any]) -> None:
    for figures in made["emotions"]["shuffled"]["layers"].values():
        low, high = figures["held_out"]["interval"]
        assert low <= 0.5 <= high
        assert "holds 0.5: held-out texts are not told apart" in figures["triage"]


def test_flags_show_the_texts_that_they_are_about(made: dict[str, Any]) -> None:
    shown = {
        (emotion, flag["name"]): flag["texts"]
        for emotion in FAULTS
        for flag in made["emotions"][emotion]["layers"]["1"]["flags"]
    }
    assert shown["tagged", "label in the text"][0].endswith("\ntagged:9") or "…" in shown["tagged", "label in the text"][0]
    (outlying,) = shown["outlier", "one text"]
    assert outlying == made["emotions"]["outlier"]["layers"]["1"]["furthest"]["positive"]["text"]
    assert len(shown["long", "confounded (length)"]) == 2


def test_the_same_emotion_under_two_names_names_the_other(made: dict[str, Any]) -> None:
    told = made["emotions"]["joy"]["layers"]["1"]
    assert told["nearest"][0] == ["delight", pytest.approx(1)] and told["ridge"]["r2"] > 0.99
    assert "'delight'" in told["triage"]


def test_few_false_alarms_among_sound_emotions(tmp_path: Path) -> None:
    """Forty emotions of 60 and 25 texts a side; scenarios and lengths drawn alike for both sides."""
    world = World(layers=(1,))
    for number in range(40):
        world.add(f"emotion {number}", scenario_of=scenes)
    found = Counter(
        itertools.chain.from_iterable(flags(made, name)["1"] for made in [world.quality(tmp_path)] for name in world.examples)
    )
    assert sum(found.values()) <= 1, found


def test_most_emotions_without_a_signal_are_found(tmp_path: Path) -> None:
    world = World(layers=(1,))
    for number in range(40):
        world.add(f"emotion {number}", directed(0.0))
    made = world.quality(tmp_path)
    assert sum("chance" in flags(made, name)["1"] for name in world.examples) >= 36
    assert all(made["emotions"][name]["verdict"] != "clean" for name in world.examples)
