"""The tag grammar whatever the text: scores come back, nothing but whole tag lines goes, nothing but ValueError is raised."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from amygdala.tags import emotion_name, left_over, split_tags, tag_line

often = settings(deadline=None, derandomize=True, max_examples=400)

Pairs = Sequence[tuple[str, str]]

# Canonical names that their own upper case folds back to
NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,47}", fullmatch=True) | st.sampled_from(["чувство", "café", "愛", "mood", "tags"])
NUMBERS = st.decimals(0, 10, places=3).map(lambda number: f"{number:f}") | st.integers(0, 10).map(str) | st.just("+7.50")
PAIRS = st.dictionaries(NAMES, NUMBERS, min_size=1, max_size=6).map(lambda scores: list(scores.items()))

PIECES = [
    *[
        "joy:9",
        "a:1 b:2",
        "c:3, d:4",
        "joy:99",
        "é:3",
        "ß:1",
        "14:30",
        "http://x:80",
        "joy",
        "9",
        ":",
        "Tags:",
        "## Tags",
        "mood",
        "**calm**:4",
        '{"e":5}',
        "Tags:f:6",
        "• ",
        "—",
    ],
    *["\n", "\n", "\n\n", "\r\n", "\r", "\u2028", "\x85", "\x0b", "\x1f", "\x00", " ", "\t", "\u00a0", "\u200b", "\u0301"],
    *[
        "```",
        "````",
        "~~~",
        "<!--",
        "-->",
        "**",
        "`",
        "|",
        ",",
        ";",
        "> ",
        "- ",
        "#",
        "[",
        "]",
        ".",
        "_",
        "-",
        "+",
        "9" * 400,
        "٣",
        "½",
    ],
    *["\ud800", "\udfff", "\x1b[1m", "Rain.", "\n14:30\n", "\ncalm:9\n\n"],
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(st.characters(), max_size=60)
LAST = "That was all."


def joined(pairs: Pairs, between: str, around: str = "{}") -> str:
    return between.join(around.format(f"{name}:{number}") for name, number in pairs)


SHAPES: dict[str, Callable[[Pairs], str]] = {
    "plain": lambda pairs: joined(pairs, " "),
    "trailing newlines": lambda pairs: joined(pairs, " ") + "\n\n \n",
    "commas": lambda pairs: joined(pairs, ", "),
    "commas alone": lambda pairs: joined(pairs, ",") + ",",
    "semicolons": lambda pairs: joined(pairs, ";"),
    "full stop": lambda pairs: joined(pairs, ", ") + ".",
    "upper case": lambda pairs: joined(pairs, " ").upper(),
    "title case": lambda pairs: joined([(name[0].upper() + name[1:], number) for name, number in pairs], " "),
    "a line each": lambda pairs: joined(pairs, "\n"),
    "blank lines between": lambda pairs: "\n" + joined(pairs, "\n\n"),
    "carriage returns": lambda pairs: joined(pairs, "\r\n") + "\r\n",
    "indented": lambda pairs: joined(pairs, "\n", "    {}"),
    "hyphens": lambda pairs: joined(pairs, "\n", "- {}"),
    "asterisks": lambda pairs: joined(pairs, "\n", "* {}"),
    "plus signs": lambda pairs: joined(pairs, "\n", "+ {}"),
    "bold": lambda pairs: joined(pairs, " ", "**{}**"),
    "bold as one": lambda pairs: f"**{joined(pairs, ' ')}**",
    "italic": lambda pairs: joined(pairs, " ", "_{}_"),
    "struck": lambda pairs: joined(pairs, " ", "~~{}~~"),
    "code": lambda pairs: joined(pairs, " ", "`{}`"),
    "double quotes": lambda pairs: joined(pairs, ", ", '"{}"'),
    "single quotes": lambda pairs: joined(pairs, ", ", "'{}'"),
    "brackets": lambda pairs: f"[{joined(pairs, ', ')}]",
    "parentheses": lambda pairs: f"({joined(pairs, ' ')})",
    "braces": lambda pairs: joined(pairs, " ", "{{{}}}"),
    "bold names": lambda pairs: ", ".join(f"**{name}**:{number}" for name, number in pairs),
    "quoted names": lambda pairs: " ".join(f"'{name}':{number}" for name, number in pairs),
    "one JSON object": lambda pairs: "{" + ",".join(f'"{name}":{number}' for name, number in pairs) + "}",
    "round bullets": lambda pairs: joined(pairs, "\n", "• {}"),
    "dashes between": lambda pairs: joined(pairs, " – "),
    "dashes before": lambda pairs: joined(pairs, "\n", "—{}"),
    "hashtags": lambda pairs: joined(pairs, " ", "#{}"),
    "quotation": lambda pairs: joined(pairs, "\n", "> {}"),
    "table row": lambda pairs: f"| {joined(pairs, ' | ')} |",
    "narrow table row": lambda pairs: f"|{joined(pairs, '|')}|",
    "comment": lambda pairs: f"<!-- {joined(pairs, ' ')} -->",
    "tight comment": lambda pairs: f"<!--{joined(pairs, ' ')}-->",
    "comments": lambda pairs: joined(pairs, " ", "<!--{}-->"),
    "tight label": lambda pairs: f"Tags:{joined(pairs, ', ')}",
    "tight bold label": lambda pairs: f"**Tags:**{joined(pairs, ' ', '*{}*')}",
    "label": lambda pairs: f"Tags: {joined(pairs, ' ')}",
    "bold label": lambda pairs: f"**Emotions:** {joined(pairs, ', ')}",
    "heading with label": lambda pairs: f"## mood: {joined(pairs, ' ')}",
    "comment with label": lambda pairs: f"<!-- tags: {joined(pairs, ' ')} -->",
    "under a heading": lambda pairs: f"\n## Tags\n\n{joined(pairs, ' ')}\n",
    "bullets under a label": lambda pairs: "**Feelings:**\n" + joined(pairs, "\n", "- `{}`"),
}


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, derandomize=True, max_examples=30)
@given(text=st.text(st.characters(exclude_characters=":"), max_size=80), pairs=PAIRS)
def test_scores_in_every_shape_come_back_and_the_text_with_them(shape: str, text: str, pairs: Pairs) -> None:
    # no colon, so no tags; the last line makes sure that no mere label stands above the tags
    assume(shape != "italic" or not any(name.endswith("_") for name, _ in pairs))  # whose underscore is it?
    text = f"{text}\n{LAST}"
    assert split_tags(f"{text}\n{SHAPES[shape](pairs)}") == (text.strip(), {name: float(number) for name, number in pairs})


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, derandomize=True, max_examples=30)
@given(text=TEXTS, pairs=PAIRS)
def test_tags_at_the_end_add_to_those_inside_and_change_no_text(shape: str, text: str, pairs: Pairs) -> None:
    assume(shape != "italic" or not any(name.endswith("_") for name, _ in pairs))  # whose underscore is it?
    text = f"{text}\n{LAST}"
    body, inside = split_tags(text)
    added = {name: float(number) for name, number in pairs}
    both = {name: max(scores[name] for scores in (inside, added) if name in scores) for name in inside | added}
    assert split_tags(f"{text}\n{SHAPES[shape](pairs)}") == (body, both)


@often
@given(st.dictionaries(NAMES, st.floats(0, 10), max_size=6))
def test_a_written_tag_line_reads_back_the_same(scores: dict[str, float]) -> None:
    body, got = split_tags(f"{LAST}\n{tag_line(scores)}")
    assert body == LAST
    assert got == scores  # every bit of every float
    assert list(got) == sorted(scores)


def might_be_tags(line: str) -> bool:
    """No narrower than the grammar: name:number tokens alone, but for punctuation, comment marks and a label with its colon."""
    line = re.sub(r"<!--|-->|[,;|]", " ", line)
    tokens = [token.strip("*_`~>#-+()[]{}\"'.•—") for token in line.split()]
    tokens = [re.sub(r"(?i)^(tags|mood)\W*:(?=.*:)", "", token) for token in tokens if not token.endswith(":")]
    return all(token.count(":") == 1 and token[-1].isdecimal() for token in tokens if token)


def is_label(line: str) -> bool:
    return line.strip().strip("*_ `~>#-+|()[]{}\"'.:•—").lower() in ("tags", "mood")  # those in PIECES


@often
@given(TEXTS)
def test_only_whole_lines_of_tags_go(text: str) -> None:
    try:
        body, scores = split_tags(text)
    except ValueError:
        return
    lines, kept = text.splitlines(keepends=True), body.splitlines(keepends=True)
    # the body's lines are lines of the text in the same order; only its two ends are trimmed
    rest = iter(lines)
    for number, line in enumerate(kept):
        ends = number in (0, len(kept) - 1)
        assert any((other.strip() == line.strip()) if ends else (other == line) for other in rest)
    # what cannot be tags or a label stands in it, all of it
    sure = [line.strip() for line in lines if not might_be_tags(line) and not is_label(line)]
    assert [line.strip() for line in kept if not might_be_tags(line) and not is_label(line)] == sure
    # nothing goes for nothing
    if not scores:
        assert body == text.strip()


@often
@given(TEXTS)
def test_scores_are_safe_whatever_the_text(text: str) -> None:
    try:
        body, scores = split_tags(text)
    except ValueError:
        return
    assert body == body.strip()
    assert list(scores) == sorted(scores)
    for name, score in scores.items():
        assert 1 <= len(name) <= 48
        assert name[0].isalpha()
        assert name.isprintable()
        assert not set(name) & set("/\\.:<>{}\"' \n\ud800")
        assert type(score) is float
        assert 0 <= score <= 10


@often
@given(st.one_of(TEXTS, st.sampled_from(PIECES).map(lambda piece: piece * 5000)))
def test_no_string_raises_anything_but_a_value_error(text: str) -> None:
    for read in (split_tags, emotion_name):
        try:
            read(text)
        except ValueError as error:
            assert type(error) is ValueError
            assert str(error).isprintable()
    assert all(isinstance(name, str) for name in left_over(text))


@often
@given(TEXTS)
def test_a_body_split_again_stays_as_it_is_and_has_no_scores(text: str) -> None:
    try:
        body, _ = split_tags(text)
    except ValueError:
        return
    assume(not body.startswith(("```", "~~~")))  # a fence that trimming makes: test_tags.py
    assert split_tags(body) == (body, {})


@often
@given(st.lists(st.sampled_from(["a:1", "b:2 c:3", "d:11 e:1", "Tags:", "Rain.", "", "", "```", "~~~", "    ```", "```x```"])))
def test_lines_split_again_stay_as_they_are(chosen: list[str]) -> None:
    body, _ = split_tags("\n".join([LAST, *chosen, LAST]))
    assert split_tags(body) == (body, {})


# line to its scores; "bad": tags that break the grammar
LINES: dict[str, dict[str, float] | str] = {
    "calm:9": {"calm": 9},
    "- **Joy:3.5**": {"joy": 3.5},
    "• 'pride':7": {"pride": 7},
    "calm:2, awe:8 ": {"calm": 2, "awe": 8},
    "Tags:joy:1 awe:10.": {"joy": 1, "awe": 10},
    "<!--love:0 | calm:5-->": {"love": 0, "calm": 5},
    "calm:11 awe:2": "bad",
    "2nd:5 awe:2": "bad",
    "calm:-1": "bad",
    "## Tags": "label",
    "Mood:": "label",
    "Rain fell.": "text",
    "14:30 15:30": "text",
    "so calm:9": "text",
    "calm:9 !": "text",
    "```x``` is code": "text",
    "": "blank",
    " \t ": "blank",
    "```": "fence",
    "  ````": "fence",
    "```python": "fence",
    "~~~": "fence",
    "  ~~~ x": "fence",
}
CLOSERS = {"```": ["```", "  ````"], "```python": ["```", "  ````"], "  ````": ["  ````"], "~~~": ["~~~"], "  ~~~ x": ["~~~"]}


def expected(chosen: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Body and scores by the docstring's rules on lines of known kinds; ValueError where the end is bad."""
    scores: dict[str, float] = {}

    def add(more: dict[str, float]) -> None:
        scores.update({name: max(score, scores.get(name, score)) for name, score in more.items()})

    lines = list(chosen)
    while lines:
        kind = LINES[lines[-1]]
        if kind == "bad":
            raise ValueError
        if isinstance(kind, dict):
            add(kind)
        elif kind != "blank" and not (kind == "label" and scores):
            break
        lines.pop()
    kept: list[str] = []
    block: list[str] = []  # tag lines that no other line followed yet
    fence = None
    for line in lines:
        kind = LINES[line]
        tags = [LINES[tag] for tag in block]
        if isinstance(kind, dict) and fence is None:
            block.append(line)
            continue
        if kind == "blank" and sum(map(len, tags)) > 1:
            for each in tags:
                assert isinstance(each, dict)
                add(each)
        else:
            kept += block
        block = []
        kept.append(line)
        if fence is not None:
            fence = None if line in CLOSERS[fence] else fence
        elif kind == "fence":
            fence = line
    return "\n".join(kept).strip(), scores


@settings(deadline=None, derandomize=True, max_examples=3000)
@given(st.lists(st.sampled_from(list(LINES)), max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_texts_put_together_from_lines_of_every_kind(chosen: list[str], end: str) -> None:
    text = end.join(chosen)
    try:
        body, scores = expected(chosen)
    except ValueError:
        with pytest.raises(ValueError, match=r"is not an emotion name|is outside 0-10"):
            split_tags(text)
        return
    assert split_tags(text) == (body.replace("\n", end), scores)
