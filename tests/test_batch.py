"""Which texts of an emotion count where some are too short for the pooling."""

from __future__ import annotations

import pytest

from amygdala.batch import with_rows
from amygdala.errors import UserError

SIDES = ("positive", "negative")


class StubPooled:
    """Rows that are means of so many tokens."""

    def __init__(self, tokens: dict[str, int]) -> None:
        self.tokens = tokens

    def pooled(self, digest: str) -> int:
        return self.tokens[digest]


def test_with_rows_keeps_order_and_sides() -> None:
    reader = StubPooled({"a": 1, "b": 0, "c": 9, "d": 0, "e": 2, "f": 3})
    sides = {"positive": ["c", "b", "a"], "negative": ["f", "e", "d"]}
    assert with_rows("joy", sides, reader, 2) == {"positive": ["c", "a"], "negative": ["f", "e"]}
    assert sides == {"positive": ["c", "b", "a"], "negative": ["f", "e", "d"]}


@pytest.mark.parametrize(
    ("kept", "all_of", "least", "enough"),
    [
        ((3, 3), (3, 3), 3, True),
        ((2, 3), (3, 3), 3, False),
        ((3, 2), (3, 3), 3, False),
        ((3, 3), (5, 5), 3, True),
        ((2, 2), (2, 2), 3, True),  # it had no more: that min_examples lets the emotion through is the plan's business
        ((0, 3), (0, 3), 3, True),
        ((0, 3), (1, 3), 1, False),
        ((1, 3), (2, 3), 3, False),
    ],
)
def test_how_many_must_have_a_row(kept: tuple[int, int], all_of: tuple[int, int], least: int, enough: bool) -> None:
    sides = {side: [f"{side} {number}" for number in range(count)] for side, count in zip(SIDES, all_of, strict=True)}
    reader = StubPooled(
        {digest: int(n < few) for (_, each), few in zip(sides.items(), kept, strict=True) for n, digest in enumerate(each)}
    )
    if enough:
        assert [len(each) for each in with_rows("joy", sides, reader, least).values()] == list(kept)
        return
    wrong = next(n for n in range(2) if kept[n] < all_of[n])
    with pytest.raises(UserError, match=f"only {kept[wrong]} of {all_of[wrong]} {SIDES[wrong]} .* min_examples is {least}:"):
        with_rows("joy", sides, reader, least)
