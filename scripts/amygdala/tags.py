"""The tag grammar: where a node's text says its emotions, and what is left for the model to see.

    tag         decoration* name ":" score decoration*          warmth:9   **Clarity:7.5**   `joy:10`,
    name        a letter, then letters, marks, digits, "_" or "-", 48 characters at most; compared in Unicode NFKC, case-folded
    score       a decimal from 0 to 10
    decoration  markdown and punctuation around a tag: * _ ` ~ > # - + | ( ) [ ] { } " ' and, behind it, a full stop
    tag line    tags between white space, commas, semicolons or bars; a label ("tags:", "emotions:", "mood:" …) may stand first,
                comment marks (<!-- -->) around
    the end     the last non-empty lines of a node, as long as they are tag lines; a heading that is a mere label ("## Tags")
    above
                them belongs to them
    inside      a line of two or more tags that ends a paragraph (a blank line follows), outside fenced code: what an entry
    ended in
                before someone wrote on below it

Tag lines are taken out and their scores kept; of a name given twice the higher score counts. Everything else is the text:
trimmed of white space at both ends, otherwise unchanged. Any other line that looks like tags is text. In a line at the end, a
name or score outside the grammar is an error (a label that the model gets to see would be learned); inside, such a line is
text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal

from amygdala.errors import shown

NAME_LENGTH = 48
LABELS = frozenset(
    {"tags", "tag", "emotions", "emotion", "emotion-tags", "emotion_tags", "feelings", "feeling", "mood", "moods"}
)
BEFORE = "*_`~>#-+|([{\"'"
BEHIND = "*_`~|)]}\"'."
COMMENT = ("<!--", "-->")

_TAG = re.compile(r"(?P<name>[^\s:,;|]+):(?P<score>[+-]?\d+(?:\.\d+)?)")
_SEPARATOR = re.compile(r"[\s,;|]+")
_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_LEFT_OVER = re.compile(r"(?<![\w:/.])(?P<name>[^\W\d_][\w-]{0,47})[*_`]*[ \t]?:[ \t]?[*_`]*\d+(?:\.\d+)?(?![\w:/])")


def folded(text: str) -> str:
    """Unicode NFKC, case-folded: for comparing, never for the text that a model sees."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def emotion_name(raw: str) -> str:
    """The canonical form of an emotion's name; ValueError where it is none (it becomes part of file names)."""
    name = folded(raw)
    categories = [unicodedata.category(character) for character in name]
    allowed = all(c[0] in "LMN" or character in "_-" for c, character in zip(categories, name, strict=True))
    if not name or len(name) > NAME_LENGTH or categories[0][0] != "L" or not allowed:
        raise ValueError(
            f"{shown(raw)} is not an emotion name: a letter first, then letters, digits, '_' or '-', {NAME_LENGTH} at most "
            "(a last line that is text and no tags should not read name:number)"
        )
    return name


def _bare(token: str) -> str:
    return token.lstrip(BEFORE).rstrip(BEHIND)


def _raw_tags(line: str) -> list[tuple[str, str]]:
    """(name, score) as written of a line made of tags alone; empty where it is not one."""
    if ":" not in line:
        return []
    tokens = [token for token in _SEPARATOR.split(line) if token and token not in COMMENT and _bare(token)]
    if tokens and tokens[0].strip(BEFORE + BEHIND).endswith(":") and _is_label(tokens[0]):
        tokens = tokens[1:]
    matches = [_TAG.fullmatch(_bare(token)) for token in tokens]
    pairs = [(match["name"], match["score"]) for match in matches if match]
    if len(pairs) < len(tokens) or not any(character.isalpha() for name, _ in pairs for character in name):
        return []
    return pairs


def _is_label(line: str) -> bool:
    return folded(line.strip(" \t\r\n" + BEFORE + BEHIND).removesuffix(":").rstrip(BEHIND)) in LABELS


def _checked(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Canonical name to the highest score. ValueError on a bad name or score."""
    scores: dict[str, float] = {}
    for raw, given in pairs:
        name, score = emotion_name(raw), float(given)
        if not 0 <= score <= 10:
            raise ValueError(f"score {shown(given)} of emotion {shown(name)} is outside 0-10")
        scores[name] = max(score + 0.0, scores.get(name, 0.0))
    return scores


def _inside(lines: list[str]) -> dict[int, dict[str, float]]:
    """{line number: scores} of the tag lines that end a paragraph inside the text."""
    found: dict[int, dict[str, float]] = {}
    fence = ""
    for number, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
            continue
        if fence or number + 1 == len(lines) or lines[number + 1].strip():
            continue
        pairs = _raw_tags(line)
        if len(pairs) >= 2:
            try:
                found[number] = _checked(pairs)
            except ValueError:
                continue
    return found


def split_tags(text: str) -> tuple[str, dict[str, float]]:
    """The text without its tag lines, and the scores by canonical name. ValueError on a bad name or score at the end."""
    lines = text.splitlines(keepends=True)
    scores: dict[str, float] = {}
    while lines:
        if lines[-1].strip():
            pairs = _raw_tags(lines[-1])
            if not pairs and not (scores and _is_label(lines[-1])):
                break
            for name, score in _checked(pairs).items():
                scores[name] = max(score, scores.get(name, 0.0))
        lines.pop()
    inside = _inside(lines)
    for tags in inside.values():
        for name, score in tags.items():
            scores[name] = max(score, scores.get(name, 0.0))
    body = "".join(line for number, line in enumerate(lines) if number not in inside)
    return body.strip(), dict(sorted(scores.items()))


def left_over(text: str) -> set[str]:
    """Folded names that still stand in a text as `name:number` or `name: number`: labels that the model would see."""
    return {folded(match["name"]) for match in _LEFT_OVER.finditer(text)} if ":" in text else set()


def tag_line(scores: Mapping[str, float]) -> str:
    """The scores as a tag line: `warmth:9 clarity:7.5`. split_tags reads the same scores back."""
    return " ".join(f"{name}:{Decimal(repr(float(score))).normalize():f}" for name, score in scores.items())
