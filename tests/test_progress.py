"""Lines of progress: how far, how fast, how long still; at most one every few seconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from amygdala import progress
from amygdala.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (42.4, "42 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (2 * 3600 + 10 * 60 + 59, "2 h 10 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), [(59.6, "1 min 00 s"), (3599.7, "1 h 00 min")])
def test_durations_are_rounded_before_they_are_split(seconds: float, words: str) -> None:
    assert duration(seconds) == words


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 500.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_line_every_few_seconds_and_one_at_the_end(clock: Clock) -> None:
    """Ten batches of 4 texts, 100 characters and 30 tokens, each 2 s."""
    said: list[str] = []
    told = Progress(40, 1000, said.append)
    for _ in range(10):
        clock.now += 2
        told.add(4, 100, 30)
    assert said == [
        "12 of 40 texts (30 % of the characters), 90 tokens, 15 tokens/s, 6 s so far, about 14 s left",
        "24 of 40 texts (60 % of the characters), 180 tokens, 15 tokens/s, 12 s so far, about 8 s left",
        "36 of 40 texts (90 % of the characters), 270 tokens, 15 tokens/s, 18 s so far, about 2 s left",
        "40 of 40 texts (100 % of the characters), 300 tokens, 15 tokens/s, 20 s so far, about 0 s left",
    ]


def test_the_time_left_goes_by_characters_not_texts(clock: Clock) -> None:
    """The longest texts come first: a tenth of them, half of the work."""
    said: list[str] = []
    told = Progress(100, 1000, said.append, every_s=60)
    clock.now += 90
    told.add(10, 500, 900)
    assert said == [
        "10 of 100 texts (50 % of the characters), 900 tokens, 10 tokens/s, 1 min 30 s so far, about 1 min 30 s left"
    ]


def test_no_time_and_no_characters(clock: Clock) -> None:
    said: list[str] = []
    Progress(1, 0, said.append).add(1, 0, 0)
    assert len(said) == 1 and said[0].startswith("1 of 1 texts")
