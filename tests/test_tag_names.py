"""Emotion names in their one canonical form, and the labels that a text still shows."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amygdala.tags import NAME_LENGTH, emotion_name, folded, left_over

HARMFUL = [
    "../../x",
    "<b>",
    "/etc/passwd",
    "a.b",
    "a/b",
    "_calm",
    "-calm",
    "9calm",
    "c\u0000m",
    "ca\x1b[1m",
    "x" * 49,
    "a\ud800",
]


@pytest.mark.parametrize("raw", HARMFUL)
def test_emotion_names_that_would_harm_a_file_name_are_refused(raw: str) -> None:
    with pytest.raises(ValueError, match="is not an emotion name: a letter first, then letters, digits") as caught:
        emotion_name(raw)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("raw", ["", " ", "calm down", "calm\n", "9", "²", "e\u202ecalm", "\u0301calm", "½", "ﬁ" * 25, "♥"])
def test_other_strings_that_are_no_emotion_names(raw: str) -> None:
    with pytest.raises(ValueError, match="is not an emotion name"):
        emotion_name(raw)


def test_emotion_name_is_folded_once_and_for_all() -> None:
    assert NAME_LENGTH == 48
    assert emotion_name("x" * 48) == "x" * 48
    assert emotion_name("ﬁ" * 24) == "fi" * 24
    for raw in ("Calm", "ＣＡＬＭ", "STRAßE", "Ἀγάπη", "ŉ", "ﬁ", "ΐ", "Self_Doubt-2", "İyi", "a²", "aⅧ"):
        name = emotion_name(raw)
        assert name == emotion_name(name)
        assert name == emotion_name(raw.lower())


def test_names_of_one_letter_are_folded_once_and_for_all() -> None:
    letters = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "L"]
    assert len(letters) > 100_000
    for letter in letters:
        try:
            name = emotion_name(letter)
        except ValueError:
            continue
        assert emotion_name(name) == name


@pytest.mark.parametrize(
    ("raw", "name"),
    [("aß\u0301", "as\u015b"), ("a\u03aa\u0301", "a\u0390"), ("\u03b0", "\u03b0"), ("a\u0345\u0301", "\u00e1\u03b9")],
)
def test_a_folded_name_is_in_nfkc(raw: str, name: str) -> None:
    assert emotion_name(raw) == emotion_name(name) == name
    assert unicodedata.is_normalized("NFKC", name)


MARKED = st.characters(exclude_categories=["Cs"]) | st.sampled_from("ßİΐŰΪ\u0345\u0301\u0308\u0313ΰῤ")


@settings(deadline=None, derandomize=True, max_examples=1000)
@given(st.text(MARKED, max_size=6))
def test_folding_again_changes_nothing(text: str) -> None:
    once = folded(text)
    assert folded(once) == once
    assert unicodedata.is_normalized("NFKC", once)
    assert folded(unicodedata.normalize("NFD", text)) == folded(unicodedata.normalize("NFC", text)) == once


def test_folding_is_for_comparing() -> None:
    assert folded("Straße ＡＢ ﬁ İ") == "strasse ab fi i\u0307"
    assert folded("CALM-9_x") == "calm-9_x"


# Labels that a text still shows

LEFT_OVER: list[tuple[str, set[str]]] = [
    ("Rain.", set()),
    ("no colon 9", set()),
    ("Rain, calm:9 it was.", {"calm"}),
    ("Calm: 9, JOY :8.5; awe : 7.", {"calm", "joy", "awe"}),
    ("**calm**: 9 and joy: **8** and `awe:7`", {"calm", "joy", "awe"}),
    ("Ｃalm:9", {"calm"}),
    ("(self_doubt:3) x-joy:9 joy2:1", {"self_doubt", "x-joy", "joy2"}),
    ("calm:9%", {"calm"}),
    ("calm:9\njoy:8\n", {"calm", "joy"}),
    ("calm:99", {"calm"}),
    ("x" * 48 + ":9", {"x" * 48}),
    # names with combining marks, emphasis closed behind the colon, quotes, a label before the name
    ("so रुचि:7 it was", {"रुचि"}),
    ("so cafe\u0301:9 it was", {"caf\u00e9"}),
    ("It was **calm:** 9 to me, *joy:*8.", {"calm", "joy"}),
    ("{\"calm\": 9, 'joy':8} ~~awe~~: 7", {"calm", "joy", "awe"}),
    ("so Tags:calm:9 it was", {"calm"}),
    ("so calm_: 9 it was", {"calm"}),
    ("#calm:9# -joy:8- +awe:7+ >love:6>", {"calm", "joy", "awe", "love"}),
    ("**calm:**  9", set()),
    # times, ratios, addresses, paths, fractions, names that are none
    ("at 10:30", set()),
    ("calm:10:30", set()),
    ("ratio 3:1", set()),
    ("http://localhost:8080", set()),
    ("https://example.org:443/x", set()),
    ("calm:9/10", set()),
    ("calm:9th", set()),
    ("calm:\n9", set()),
    ("calm:high", set()),
    ("2calm:9", set()),
    ("x" * 49 + ":9", set()),
]


@pytest.mark.parametrize(("text", "names"), LEFT_OVER)
def test_labels_that_a_text_still_shows(text: str, names: set[str]) -> None:
    assert left_over(text) == names


BEHIND_PUNCTUATION: list[tuple[str, set[str]]] = [
    ("rain(calm:9)", {"calm"}),
    ("today[calm:9]", {"calm"}),
    ("so—calm:9", {"calm"}),
    ("今天。calm:9", {"calm"}),
    ("Tags：calm:9", {"calm"}),
    ("score=calm:9", {"calm"}),
    ("disk/calm:9", set()),
    ("x.calm:9", set()),
    ("https://user@example.org:443", set()),
]


@pytest.mark.parametrize(("text", "names"), BEHIND_PUNCTUATION)
def test_a_name_begins_behind_punctuation(text: str, names: set[str]) -> None:
    assert left_over(text) == names


@pytest.mark.parametrize("text", ["so _calm:9_ it was", "so _calm_:9 it was", "so __calm__: 9 it was"])
def test_a_label_in_underscores_is_seen(text: str) -> None:
    assert left_over(text) == {"calm"}


def test_a_label_with_a_signed_score_is_seen() -> None:
    assert left_over("so calm:+9 it was") == {"calm"}
