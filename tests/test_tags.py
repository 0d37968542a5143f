"""The tag grammar by hand: what is a tag line, what is text, what is an error."""

from __future__ import annotations

import math
import re

import pytest

from amygdala.tags import LABELS, emotion_name, left_over, split_tags, tag_line

GRAMMAR: list[tuple[str, str, dict[str, float]]] = [
    # one line, several lines, empty lines between and after
    ("Rain on the roof.\ncalm:9 warmth:8", "Rain on the roof.", {"calm": 9, "warmth": 8}),
    ("Rain.\ncalm:9\nwarmth:8\njoy:0", "Rain.", {"calm": 9, "warmth": 8, "joy": 0}),
    ("Rain.\n\ncalm:9\n\n \t\nwarmth:8\n\n\n", "Rain.", {"calm": 9, "warmth": 8}),
    ("Rain.\ncalm:9\n", "Rain.", {"calm": 9}),
    ("Rain.\r\ncalm:9\r\n", "Rain.", {"calm": 9}),
    ("Rain.\rcalm:9\r", "Rain.", {"calm": 9}),
    ("Rain.\u2028calm:9", "Rain.", {"calm": 9}),
    ("calm:9", "", {"calm": 9}),
    ("", "", {}),
    (" \n\n", "", {}),
    # separators
    ("Rain.\ncalm:9,warmth:8;joy:7|awe:6", "Rain.", {"calm": 9, "warmth": 8, "joy": 7, "awe": 6}),
    ("Rain.\n  calm:9 ,  warmth:8;\t", "Rain.", {"calm": 9, "warmth": 8}),
    ("Rain.\n,calm:9,,", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:9\u00a0warmth:8", "Rain.", {"calm": 9, "warmth": 8}),
    # names: case, compatibility forms, digits, marks
    ("Rain.\nCalm:9 WARMTH:8", "Rain.", {"calm": 9, "warmth": 8}),
    ("Rain.\nself_doubt:9 well-being:8 joy2:1", "Rain.", {"self_doubt": 9, "well-being": 8, "joy2": 1}),
    ("Rain.\nＣalm:9", "Rain.", {"calm": 9}),
    ("Rain.\nSTRAßE:9", "Rain.", {"strasse": 9}),
    ("Rain.\ncafe\u0301:9 caf\u00e9:3", "Rain.", {"caf\u00e9": 9}),
    ("Rain.\nरुचि:7 чувство:3", "Rain.", {"रुचि": 7, "чувство": 3}),
    # scores
    ("Rain.\ncalm:8.5 joy:0.25 awe:10.0", "Rain.", {"calm": 8.5, "joy": 0.25, "awe": 10}),
    ("Rain.\npride:10 hope:0 love:+3 awe:-0 joy:007", "Rain.", {"pride": 10, "hope": 0, "love": 3, "awe": 0, "joy": 7}),
    ("Rain.\ncalm:٣", "Rain.", {"calm": 3}),
    # a name given twice: the higher score, in a line, between lines, between cases, as numbers and not as strings
    ("Rain.\ncalm:3 calm:9 calm:5", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:9\ncalm:3", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:3\ncalm:9", "Rain.", {"calm": 9}),
    ("Rain.\nCALM:3 calm:9 Calm:5", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:10 calm:9", "Rain.", {"calm": 10}),
    # the text: trimmed at both ends, otherwise unchanged
    ("\n  Rain.\n\n  Two  spaces;\ttab.  \n\ncalm:9\n", "Rain.\n\n  Two  spaces;\ttab.", {"calm": 9}),
    ("Ｒain ﬁne.\r\nCafe\u0301.\ncalm:9", "Ｒain ﬁne.\r\nCafe\u0301.", {"calm": 9}),
    ("One.\x0bTwo.\x85Three.\ncalm:9", "One.\x0bTwo.\x85Three.", {"calm": 9}),
]

MARKDOWN: list[tuple[str, str, dict[str, float]]] = [
    ("Rain.\n- calm:9\n- joy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n* calm:9\n  + joy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n-calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n**calm:9** *joy:8* _awe:7_ ~~love:6~~", "Rain.", {"calm": 9, "joy": 8, "awe": 7, "love": 6}),
    ("Rain.\n***calm:9, joy:8***", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n`calm:9` `joy:8`", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n`calm:9 joy:8`", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n\"calm:9\" 'joy:8'", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n[calm:9] (joy:8) {awe:7}", "Rain.", {"calm": 9, "joy": 8, "awe": 7}),
    ("Rain.\n[calm:9, joy:8]", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n#calm:9 #joy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n> calm:9\n>> joy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n>calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n| calm:9 | joy:8 |", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n|calm:9|joy:8|", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n<!-- calm:9 joy:8 -->", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n<!-- Tags: calm:9 -->", "Rain.", {"calm": 9}),
    ("Rain.\n<!--calm:9-->", "Rain.", {"calm": 9}),
    ("Rain.\n<!-- calm:9--> <!--joy:8 -->", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n<!--Tags: calm:9-->", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:9<!--joy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\ncalm:9, joy:8.", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\ncalm:8.5.", "Rain.", {"calm": 8.5}),
    ("Rain.\n- [ ] calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n• calm:9\n‣ joy:8\n◦awe:7\n· love:6", "Rain.", {"calm": 9, "joy": 8, "awe": 7, "love": 6}),
    ("Rain.\n– calm:9\n—joy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\ncalm:9 — joy:8", "Rain.", {"calm": 9, "joy": 8}),
    # markup and quotes around the name alone
    ("Rain.\n**calm**:9 *joy*:8, `awe`:7 ~~love~~:6", "Rain.", {"calm": 9, "joy": 8, "awe": 7, "love": 6}),
    ("Rain.\n\"calm\":9 'joy':8", "Rain.", {"calm": 9, "joy": 8}),
    ('Rain.\n{"calm":9}', "Rain.", {"calm": 9}),
    ('Rain.\n{"calm":9,"joy":8.5}', "Rain.", {"calm": 9, "joy": 8.5}),
    ("Rain.\nself_doubt:9 well-:8", "Rain.", {"self_doubt": 9, "well-": 8}),
    # labels, in the line or above it
    ("Rain.\nTags: calm:9 joy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n**Tags:** calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n**Tags**: calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n> *Mood:* calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n- FEELINGS: `calm:9`, `joy:8`", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n## Tags: calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n(emotions: calm:9)", "Rain.", {"calm": 9}),
    ("Rain.\nTags:calm:9", "Rain.", {"calm": 9}),
    ("Rain.\nTags:calm:9,joy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n**Mood**:**calm**:9", "Rain.", {"calm": 9}),
    ("Rain.\nTags:mood:9", "Rain.", {"mood": 9}),
    ("Rain.\nTags:**", "Rain.\nTags:**", {}),
    ("Rain.\n## Tags\n\ncalm:9", "Rain.", {"calm": 9}),
    ("Rain.\n\n### **Emotions:** ###\n\n- calm:9\n- joy:8\n", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\r\n## Tags\r\ncalm:9\r\n", "Rain.", {"calm": 9}),
    ("Rain.\nMood\ncalm:9", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:9\n\nFeelings:\njoy:8", "Rain.", {"calm": 9, "joy": 8}),
    ("Rain.\n## Tags\ncalm:0", "Rain.", {"calm": 0}),
    ("Rain.\n## Tags\u2028calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n## Tags\x85calm:9", "Rain.", {"calm": 9}),
    ("Rain.\n## Tags\x0bcalm:9", "Rain.", {"calm": 9}),
    ("Rain.\n\u00a0## Tags\u00a0\ncalm:9", "Rain.", {"calm": 9}),
    ("Rain.\n**Tags**:\ncalm:9", "Rain.", {"calm": 9}),
    # a label as a name is a name
    ("Rain.\nmood:8 tags:3", "Rain.", {"mood": 8, "tags": 3}),
    # a heading or a label that is none, or that nothing follows, is text
    ("Rain.\n## Tags", "Rain.\n## Tags", {}),
    ("Rain.\nTags:", "Rain.\nTags:", {}),
    ("Rain.\n## Tags of today\ncalm:9", "Rain.\n## Tags of today", {"calm": 9}),
    ("Rain.\n## Weather\ncalm:9", "Rain.\n## Weather", {"calm": 9}),
    ("Rain.\nWeather: calm:9", "Rain.\nWeather: calm:9", {}),
    ("Rain.\nTags calm:9", "Rain.\nTags calm:9", {}),
    ("Rain.\ncalm:9 tags:", "Rain.\ncalm:9 tags:", {}),
    ("Rain.\nTags: mood: calm:9", "Rain.\nTags: mood: calm:9", {}),
    ("Rain.\nWeather:calm:9", "Rain.\nWeather:calm:9", {}),
    ("Rain.\nmood:14:30", "Rain.\nmood:14:30", {}),
    ("Rain.\njoy:8 Tags:calm:9", "Rain.\njoy:8 Tags:calm:9", {}),
    ("## Tags\nRain.\ncalm:9", "## Tags\nRain.", {"calm": 9}),
    # a rule above the tags is text
    ("Rain.\n\n---\ncalm:9", "Rain.\n\n---", {"calm": 9}),
]

TEXT_AT_THE_END = [
    "calm:9\nThen it rained.",
    "calm:9 joy:8\nThen it rained.",
    "feeling calm:9",
    "self doubt:9",
    "calm: 9",
    "calm :9",
    "calm:.5",
    "calm:9/10",
    "calm:9%",
    "calm:9!",
    "calm:1e1",
    "calm:9.5.1",
    "calm:high",
    "calm:",
    ":9",
    "score:: 9::1",
    ",;",
    "- - -",
    "ratio 3:1",
    "3:1",
    "The train goes at\n14:30",
    "Trains:\n14:30 15:30, 16:30",
    "See http://localhost:8080",
    "http://localhost:8080",
    "https://example.org:443/path",
    "- http://[::1]:80",
    "1. calm:9",
    "#calm:9#",
    "-calm:9-",
    "+calm:9+",
    ">calm:9>",
    "calm:9 •!",
    "calm-:high",
    "<!-- calm: 9 -->",
    "```\ncalm:9 joy:8\n```",
    "| calm:9 | joy:8 |\n|---|---|",
]


@pytest.mark.parametrize(("text", "body", "scores"), GRAMMAR + MARKDOWN)
def test_tag_grammar(text: str, body: str, scores: dict[str, float]) -> None:
    got_body, got = split_tags(text)
    assert got_body == body
    assert got == scores
    assert list(got) == sorted(got)
    assert all(type(score) is float and math.copysign(1, score) == 1 for score in got.values())


@pytest.mark.parametrize("text", TEXT_AT_THE_END)
def test_a_last_line_that_is_no_tag_line_is_text(text: str) -> None:
    assert split_tags(f"Rain.\n{text}") == (f"Rain.\n{text}", {})


@pytest.mark.parametrize("text", [text for text in TEXT_AT_THE_END if ":" in text])
def test_tags_below_text_that_looks_like_tags_leave_it_alone(text: str) -> None:
    assert split_tags(f"Rain.\n{text}\nSo.\n\nawe:7") == (f"Rain.\n{text}\nSo.", {"awe": 7})


INSIDE: list[tuple[str, str, dict[str, float]]] = [
    ("Rain.\ncalm:9 joy:8\n\nSun.", "Rain.\n\nSun.", {"calm": 9, "joy": 8}),
    ("Rain.\r\ncalm:9 joy:8\r\n\r\nSun.", "Rain.\r\n\r\nSun.", {"calm": 9, "joy": 8}),
    ("Rain.\ncalm:9 joy:8\n \t\nSun.", "Rain.\n \t\nSun.", {"calm": 9, "joy": 8}),
    ("calm:9 joy:8\n\nSun.", "Sun.", {"calm": 9, "joy": 8}),
    ("Rain.\n\ncalm:9 joy:8\n\nSun.", "Rain.\n\n\nSun.", {"calm": 9, "joy": 8}),
    ("Rain.\n**Tags:** calm:9, joy:8\n\nSun.", "Rain.\n\nSun.", {"calm": 9, "joy": 8}),
    ("A.\ncalm:9 joy:8\n\nB.\nawe:7 joy:9\n\nC.", "A.\n\nB.\n\nC.", {"awe": 7, "calm": 9, "joy": 9}),
    # the higher score counts, wherever it stands
    ("A.\ncalm:9 joy:2\n\nB.\ncalm:3 joy:5", "A.\n\nB.", {"calm": 9, "joy": 5}),
    ("A.\ncalm:9 calm:2\n\nB.", "A.\n\nB.", {"calm": 9}),
    # several tag lines that end a paragraph go together where they hold two tags
    ("A.\ncalm:9 joy:8\nawe:7 love:6\n\nB.", "A.\n\nB.", {"awe": 7, "calm": 9, "joy": 8, "love": 6}),
    ("A.\ncalm:9\njoy:8\n\nB.", "A.\n\nB.", {"calm": 9, "joy": 8}),
    ("A.\n- calm:9\n- joy:8\n- awe:7\n\nB.", "A.\n\nB.", {"awe": 7, "calm": 9, "joy": 8}),
    ("A.\ncalm:9 joy:8\nawe:7\n\nB.", "A.\n\nB.", {"awe": 7, "calm": 9, "joy": 8}),
    ("calm:9\njoy:8\n\nB.", "B.", {"calm": 9, "joy": 8}),
    ("A.\ncalm:2\ncalm:9\n\nB.", "A.\n\nB.", {"calm": 9}),
    ("A.\n```\nx\n```\ncalm:9\njoy:8\n\nB.", "A.\n```\nx\n```\n\nB.", {"calm": 9, "joy": 8}),
    # but not over a blank line, text or a bad tag between them, and the heading above them stays
    ("A.\ncalm:9\n\njoy:8\n\nB.", "A.\ncalm:9\n\njoy:8\n\nB.", {}),
    ("A.\ncalm:9\nHm.\njoy:8\n\nB.", "A.\ncalm:9\nHm.\njoy:8\n\nB.", {}),
    ("A.\ncalm:9 love:11\nawe:7\njoy:8\n\nB.", "A.\ncalm:9 love:11\n\nB.", {"awe": 7, "joy": 8}),
    ("A.\ncalm:9 joy:8\nlove:11\n\nB.", "A.\ncalm:9 joy:8\nlove:11\n\nB.", {}),
    ("A.\n## Tags\ncalm:9 joy:8\n\nB.", "A.\n## Tags\n\nB.", {"calm": 9, "joy": 8}),
    # a lone tag inside is text; so is a line within a paragraph, at its start, and one before a heading
    ("Rain.\ncalm:9\n\nSun.", "Rain.\ncalm:9\n\nSun.", {}),
    ("Rain.\nTags: calm:9\n\nSun.", "Rain.\nTags: calm:9\n\nSun.", {}),
    ("Rain.\ncalm:9 joy:8\nSun.", "Rain.\ncalm:9 joy:8\nSun.", {}),
    ("Rain.\n\ncalm:9 joy:8\nSun.", "Rain.\n\ncalm:9 joy:8\nSun.", {}),
    ("Rain.\n\n14:30 15:30\n\nSun.", "Rain.\n\n14:30 15:30\n\nSun.", {}),
    # inside, what breaks the grammar is text, and only that line
    ("A.\ncalm:9 joy:11\n\nB.\nawe:7 love:8\n\nC.", "A.\ncalm:9 joy:11\n\nB.\n\nC.", {"awe": 7, "love": 8}),
    ("A.\ncalm:9 joy:-1\n\nB.", "A.\ncalm:9 joy:-1\n\nB.", {}),
    ("A.\nlocalhost:8080 db:5\n\nB.", "A.\nlocalhost:8080 db:5\n\nB.", {}),
    ("A.\n14:30 calm:9\n\nB.", "A.\n14:30 calm:9\n\nB.", {}),
    # fenced code stays; a fence ends with its own mark, and one that is never closed reaches to the end
    ("A.\n```\ncalm:9 joy:8\n\n```\nB.", "A.\n```\ncalm:9 joy:8\n\n```\nB.", {}),
    ("A.\n~~~ text\ncalm:9 joy:8\n\n~~~\nB.", "A.\n~~~ text\ncalm:9 joy:8\n\n~~~\nB.", {}),
    ("A.\n   ```\n~~~\ncalm:9 joy:8\n\nB.", "A.\n   ```\n~~~\ncalm:9 joy:8\n\nB.", {}),
    ("A.\n```\nx = 1\n```\ncalm:9 joy:8\n\nB.", "A.\n```\nx = 1\n```\n\nB.", {"calm": 9, "joy": 8}),
    ("A.\n~~~\nx\n~~~\n```\nx\n```\ncalm:9 joy:8\n\nB.", "A.\n~~~\nx\n~~~\n```\nx\n```\n\nB.", {"calm": 9, "joy": 8}),
    ("A.\n    ```\ncalm:9 joy:8\n\nB.", "A.\n    ```\ncalm:9 joy:8\n\nB.", {}),
    ("A.\n   ```\ncalm:9 joy:8\n\n   ```\nB.", "A.\n   ```\ncalm:9 joy:8\n\n   ```\nB.", {}),
    ("A.\n``\ncalm:9 joy:8\n\nB.", "A.\n``\n\nB.", {"calm": 9, "joy": 8}),
    ("A ``` b.\ncalm:9 joy:8\n\nB.", "A ``` b.\n\nB.", {"calm": 9, "joy": 8}),
    # a fence is closed by a bare mark of its own kind, as long as itself or longer; inline code is none
    ("A.\n````\n```\ncalm:9 joy:8\n\n````\nB.", "A.\n````\n```\ncalm:9 joy:8\n\n````\nB.", {}),
    ("A.\n```\nx\n`````  \ncalm:9 joy:8\n\nB.", "A.\n```\nx\n`````  \n\nB.", {"calm": 9, "joy": 8}),
    ("A.\n~~~\nx\n   ~~~\ncalm:9 joy:8\n\nB.", "A.\n~~~\nx\n   ~~~\n\nB.", {"calm": 9, "joy": 8}),
    ("A.\n```\nx\n``` y\ncalm:9 joy:8\n\n```\nB.", "A.\n```\nx\n``` y\ncalm:9 joy:8\n\n```\nB.", {}),
    ("A.\n~~~ `x`\ncalm:9 joy:8\n\n~~~\nB.", "A.\n~~~ `x`\ncalm:9 joy:8\n\n~~~\nB.", {}),
    ("```x``` is code.\ncalm:9 joy:8\n\nB.", "```x``` is code.\n\nB.", {"calm": 9, "joy": 8}),
    ("A.\n\t```\ncalm:9 joy:8\n\nB.", "A.\n\t```\ncalm:9 joy:8\n\nB.", {}),
    # the tags at the end are no part of the text that "inside" looks at
    ("A.\ncalm:9 joy:8\n\nB.\n\nawe:7\n", "A.\n\nB.", {"awe": 7, "calm": 9, "joy": 8}),
    ("```\nA.\n\nawe:7", "```\nA.", {"awe": 7}),
]


@pytest.mark.parametrize(("text", "body", "scores"), INSIDE)
def test_tags_inside_the_text(text: str, body: str, scores: dict[str, float]) -> None:
    assert split_tags(text) == (body, scores)


@pytest.mark.parametrize("line", ["#calm:9#", "-calm:9-", "+calm:9+", ">calm:9>"])
def test_decoration_that_stands_only_before_a_tag_makes_text_behind_it_which_is_seen(line: str) -> None:
    body, scores = split_tags(f"Rain.\n{line}")
    assert (body, scores) == (f"Rain.\n{line}", {})
    assert left_over(body) == {"calm"}


@pytest.mark.parametrize("line", ["_calm_:9", "__calm__:9"])
def test_emphasis_by_underscores_is_no_part_of_the_name(line: str) -> None:
    assert split_tags(f"Rain.\n{line}") == ("Rain.", {"calm": 9})


def test_a_fence_counts_at_any_indent() -> None:
    """As in a list's item; and trimming a text moves no fence."""
    text = "A.\n```\nx\n    ```\ncalm:9 joy:8\n\n```\nB."
    assert split_tags(text) == ("A.\n```\nx\n    ```\n\n```\nB.", {"calm": 9, "joy": 8})


@pytest.mark.parametrize("text", ["    ```\n```\na:1 b:2\n\nB.", "\t~~~\n~~~\na:1 b:2\n\nB."])
def test_trimming_turns_no_code_into_text(text: str) -> None:
    body, _ = split_tags(text)
    assert split_tags(body) == (body, {})


@pytest.mark.parametrize("label", sorted(LABELS))
def test_every_label_stands_before_tags_or_above_them(label: str) -> None:
    for written in (label, label.title(), label.upper()):
        assert split_tags(f"Rain.\n{written}: calm:9") == ("Rain.", {"calm": 9})
        assert split_tags(f"Rain.\n## {written}\ncalm:9") == ("Rain.", {"calm": 9})


@pytest.mark.parametrize("given", ["10.01", "11", "-1", "-0.5", "100", "9" * 400])
def test_score_outside_the_range_at_the_end_is_refused_by_name(given: str) -> None:
    with pytest.raises(ValueError, match=r"^score '.*' of emotion 'calm' is outside 0-10"):
        split_tags(f"Rain.\njoy:3 CALM:{given}")


@pytest.mark.parametrize(
    "line",
    [
        "calm:9 14:30",
        "14:30 calm:9",
        "localhost:8080",
        "**a.b**:9",
        '{"9calm":9}',
        "a.b:9",
        "../../x:9",
        "<b>:9",
        "x" * 49 + ":9",
        "\u200bcalm:9",
    ],
)
def test_a_bad_name_at_the_end_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"is not an emotion name|is outside 0-10") as caught:
        split_tags(f"Rain.\n{line}")
    assert str(caught.value).isprintable()


def test_a_bad_name_may_be_text_and_the_message_says_so() -> None:
    hint = " (a last line that is text and no tags should not read name:number)"
    for line in ("localhost:8080", "a.b:9"):
        with pytest.raises(ValueError, match=r"is not an emotion name|is outside 0-10") as caught:
            split_tags(f"Rain.\n{line}")
        assert str(caught.value).endswith(hint) == (line == "a.b:9")  # "localhost" is a name
    with pytest.raises(ValueError, match=r"48 at most$"):
        emotion_name("a.b")


def test_a_bad_tag_above_good_ones_at_the_end_is_refused_too() -> None:
    with pytest.raises(ValueError, match="score '11' of emotion 'calm'"):
        split_tags("Rain.\ncalm:11\njoy:9")


# Tag lines written, and long ones


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        ({}, ""),
        ({"warmth": 9, "clarity": 7.5}, "warmth:9 clarity:7.5"),
        ({"b": 10.0, "a": 0.0}, "b:10 a:0"),
        ({"a": 1e-7, "b": 0.1 + 0.2}, "a:0.0000001 b:0.30000000000000004"),
    ],
)
def test_tag_line_by_hand(scores: dict[str, float], line: str) -> None:
    assert tag_line(scores) == line
    assert split_tags(f"Rain.\n{line}") == ("Rain.", scores)


def test_a_long_line_of_tags_is_read_whole() -> None:
    names = [f"e{number}" for number in range(5000)]
    body, scores = split_tags("Rain.\n" + ", ".join(f"{name}:{number % 11}" for number, name in enumerate(names)))
    assert body == "Rain."
    assert scores == {name: number % 11 for number, name in enumerate(names)}


def test_names_shown_in_messages_are_cut() -> None:
    with pytest.raises(ValueError, match=re.escape("…")) as caught:
        split_tags(f"Rain.\n{'x' * 10_000}:9")
    assert len(str(caught.value)) < 300
