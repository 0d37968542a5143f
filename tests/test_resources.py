"""What ships under resources/ keeps its promises: the sample graph, the neutral texts, the conversations."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from typing import Any

import pytest

from amygdala.graph import Node
from amygdala.tags import split_tags
from nodes import sample_nodes
from tiny import REPOSITORY, SAMPLE

NEUTRAL, CONVERSATIONS = (REPOSITORY / "resources" / name for name in ("neutral.jsonl", "conversations.jsonl"))


def records(path: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


@pytest.fixture(scope="module")
def nodes() -> list[Node]:
    return sample_nodes()


@pytest.fixture(scope="module")
def positives(nodes: list[Node]) -> dict[str, list[Node]]:
    """Emotion to its nodes scored at least 8, for every emotion in the tags."""
    found: dict[str, list[Node]] = {emotion: [] for node in nodes for emotion in node.scores}
    for node in nodes:
        for emotion, score in node.scores.items():
            if score >= 8:
                found[emotion].append(node)
    return found


def test_size_keys_and_lengths(nodes: list[Node]) -> None:
    raw = [record["key"] for record in records(SAMPLE)]
    assert len(nodes) == len(raw) == len(set(raw)) >= 300
    assert [node.key for node in nodes if not 40 <= len(node.text) <= 1500] == []


def test_no_text_stands_twice(nodes: list[Node]) -> None:
    assert len({node.digest for node in nodes}) == len(nodes)


def test_common_and_rare_emotions(positives: dict[str, list[Node]]) -> None:
    counts = {emotion: len(found) for emotion, found in positives.items()}
    assert sum(count >= 20 for count in counts.values()) >= 16
    assert sum(0 < count < 20 for count in counts.values()) >= 3


def test_some_nodes_have_no_tags_and_some_scores_are_between(nodes: list[Node]) -> None:
    assert 10 <= sum(not node.scores for node in nodes) <= len(nodes) / 2
    assert any(2 < score < 8 for node in nodes for score in node.scores.values())


@pytest.mark.parametrize("pair", [("warmth", "love"), ("frustration", "tiredness")])
def test_emotions_that_go_together(nodes: list[Node], pair: tuple[str, str]) -> None:
    assert sum(all(emotion in node.scores for emotion in pair) for node in nodes) >= 3


def test_no_near_duplicates(nodes: list[Node]) -> None:
    shingles = []
    for node in nodes:
        found = words(node.text)
        shingles.append((node.key, set(zip(found, found[1:], found[2:], strict=False))))
    close = [(a, b) for (a, one), (b, two) in itertools.combinations(shingles, 2) if len(one & two) >= 0.2 * len(one | two)]
    assert close == []


def test_no_two_nodes_open_alike(nodes: list[Node]) -> None:
    openings = Counter(tuple(words(node.text)[:4]) for node in nodes)
    assert [opening for opening, count in openings.items() if count > 1] == []


def test_positives_seldom_name_their_emotion(positives: dict[str, list[Node]]) -> None:
    for emotion, found in positives.items():
        naming = [node.key for node in found if emotion in words(node.text)]
        assert len(naming) <= len(found) / 3, emotion


def test_neutral_texts(nodes: list[Node]) -> None:
    neutral = records(NEUTRAL)
    assert len(neutral) == len({record["key"] for record in neutral}) == len({record["text"] for record in neutral}) >= 60
    for record in neutral:
        body, scores = split_tags(record["text"])
        assert scores == {}
        assert body == record["text"]
        assert not re.search(r"\w:\d+\s*$", body)
    assert not {record["text"] for record in neutral} & {node.text for node in nodes}


def test_conversations_take_turns(nodes: list[Node]) -> None:
    conversations = records(CONVERSATIONS)
    assert len(conversations) == len({conversation["key"] for conversation in conversations}) == 10
    emotions = {emotion for node in nodes for emotion in node.scores}
    for conversation in conversations:
        turns = conversation["turns"]
        assert [turn["role"] for turn in turns] == list(itertools.islice(itertools.cycle(["user", "assistant"]), len(turns)))
        assert len(turns) >= 4
        assert all(turn["text"].strip() and split_tags(turn["text"])[1] == {} for turn in turns)
        # readouts are compared with these: they must be emotions that the graph knows
        assert conversation["emotions"]
        assert conversation["emotions"].keys() <= emotions
        assert all(0 <= score <= 10 for score in conversation["emotions"].values())
