"""The tag grammar: where a node's text says its emotions, and what is left for the model to see.

- A tag is `name:score`, with markdown and punctuation around it: warmth:9, **Clarity**:7.5, `joy:10`, {"calm":9}.
- A name is a letter, then letters, marks, digits, "_" or "-", 48 characters at most; compared in Unicode NFKC, case-folded.
- A score is a decimal from 0 to 10.
- A tag line is made of tags between white space, commas, semicolons or bars. A label ("tags:", "emotions:", "mood:" …) may
  stand first, and comment marks (<!-- -->) around it or in lines of their own above and below.
- At the end: the last non-empty lines of a node, as long as they are tag lines; a heading that is a mere label ("## Tags")
  above them belongs to them.
- Inside: the tag lines that end a paragraph (a blank line follows), where they hold two tags or more: what an entry ended in
  before someone wrote on below it. Not in fenced code (between lines that begin with ``` or ~~~, at any indent).

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
BEFORE = "*_`~>#-+•‣◦·–—([{\"'"  # what may stand before a tag
BEHIND = "*_`~)]}\"'."  # and behind it
AROUND_NAME = "*`~\"'"  # and between its name and the colon (an underscore too, where one stands before the name)

_TAG = re.compile(r"(?P<name>[^\s:,;|]+):(?P<score>[+-]?\d+(?:\.\d+)?)")
_SEPARATOR = re.compile(r"[\s,;|]+")
_COMMENT = re.compile(r"<!--|-->")
_FENCE = re.compile(r"\s*(?P<mark>`{3,}(?=[^`]*$)|~{3,})")
_WORDS = re.compile(r"[^\W\d_]+")
_SCORE = re.compile(r":[*_`~]*(?:[ \t][*_`~]*)?[+-]?\d+(?:\.\d+)?(?![^\W_]|[:/])")


def folded(text: str) -> str:
    """Unicode NFKC and case-folded, the same when done again: for comparing, never for the text that a model sees."""
    if text.isascii():
        return text.lower()
    before = ""
    while text != before:
        before, text = text, unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return text


def emotion_name(raw: str) -> str:
    """The canonical form of an emotion's name; ValueError where it is none (it becomes part of file names)."""
    name = folded(raw)
    categories = [unicodedata.category(character) for character in name]
    allowed = all(c[0] in "LMN" or character in "_-" for c, character in zip(categories, name, strict=True))
    if not name or len(name) > NAME_LENGTH or categories[0][0] != "L" or not allowed:
        raise ValueError(
            f"{shown(raw)} is not an emotion name: a letter first, then letters, digits, '_' or '-', {NAME_LENGTH} at most"
        )
    return name


def _bare(token: str) -> str:
    return token.lstrip(BEFORE).rstrip(BEHIND)


def _raw_tags(line: str) -> list[tuple[str, str]]:
    """(name, score) as written of a line made of tags alone; empty where it is not one."""
    if ":" not in line:
        return []
    tokens = [token for token in _SEPARATOR.split(_COMMENT.sub(" ", line)) if _bare(token)]
    label, colon, first = tokens[0].partition(":") if tokens else ("", "", "")
    if colon and _is_label(label) and (":" in first or not _bare(first)):
        tokens[:1] = [first] if _bare(first) else []
    matches = [_TAG.fullmatch(_bare(token)) for token in tokens]
    if not all(matches):
        return []
    pairs = [(_bare_name(token, match["name"]), match["score"]) for token, match in zip(tokens, matches, strict=True) if match]
    return pairs if any(character.isalpha() for name, _ in pairs for character in name) else []


def _bare_name(token: str, name: str) -> str:
    """The name without what stands around it: `**joy**`, `"joy"`, and `_joy_` where the underscores are a pair."""
    name = name.rstrip(AROUND_NAME)
    before = token[: len(token) - len(token.lstrip(BEFORE))].count("_")
    return name[: len(name) - min(before, len(name) - len(name.rstrip("_")))]


def _is_label(line: str) -> bool:
    return folded(line.strip().strip(f" \t{BEFORE}{BEHIND}:")) in LABELS


def _checked(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Canonical name to the highest score. ValueError on a bad name or score."""
    scores: dict[str, float] = {}
    for raw, given in pairs:
        try:
            name, score = emotion_name(raw), float(given)
        except ValueError as error:
            raise ValueError(f"{error} (a last line that is text and no tags should not read name:number)") from None
        if not 0 <= score <= 10:
            raise ValueError(f"score {shown(given)} of emotion {shown(name)} is outside 0-10")
        scores[name] = max(score + 0.0, scores.get(name, 0.0))
    return scores


def _fenced(lines: list[str]) -> list[bool]:
    """Whether each line belongs to fenced code, the fences themselves included."""
    inside: list[bool] = []
    mark = ""
    for line in lines:
        opening = _FENCE.match(line) if not mark else None
        closing = bool(mark) and len(line.strip()) >= len(mark) and not line.strip().strip(mark[0])
        inside.append(bool(mark or opening))
        mark = opening["mark"] if opening else "" if closing else mark
    return inside


def _inside(lines: list[str]) -> dict[int, dict[str, float]]:
    """{line number: scores} of the tag lines that end a paragraph inside the text."""
    found: dict[int, dict[str, float]] = {}
    code = _fenced(lines)
    for last in range(len(lines) - 1):
        if lines[last + 1].strip():
            continue
        block: dict[int, dict[str, float]] = {}
        count = 0
        for number in range(last, -1, -1):
            pairs = [] if code[number] else _raw_tags(lines[number])
            try:
                scores = _checked(pairs)
            except ValueError:
                break
            if not scores:
                break
            block[number] = scores
            count += len(pairs)
        if count >= 2:
            found |= block
    return found


def split_tags(text: str) -> tuple[str, dict[str, float]]:
    """The text without its tag lines, and the scores by canonical name. ValueError on a bad name or score at the end."""
    whole = text.splitlines(keepends=True)
    lines = list(whole)
    scores: dict[str, float] = {}
    while lines:
        if _COMMENT.sub("", lines[-1]).strip():
            pairs = _raw_tags(lines[-1])
            if not pairs and not (scores and _is_label(lines[-1])):
                break
            for name, score in _checked(pairs).items():
                scores[name] = max(score, scores.get(name, 0.0))
        lines.pop()
    if not scores:
        lines = whole  # comment marks alone are text
    inside = _inside(lines)
    for tags in inside.values():
        for name, score in tags.items():
            scores[name] = max(score, scores.get(name, 0.0))
    body = "".join(line for number, line in enumerate(lines) if number not in inside)
    return body.strip(), dict(sorted(scores.items()))


def left_over(text: str) -> set[str]:
    """Folded names that still stand in a text as `name:number` or `name: number`: labels that the model would see.

    Not in paths and addresses (`host/name:80`, `file.name:12`).
    """
    found = set()
    for match in _SCORE.finditer(text) if ":" in text else ():
        before = text[max(0, match.start() - 2 * NAME_LENGTH) : match.start()].rstrip(" \t").rstrip(AROUND_NAME)
        start = len(before)
        while start and (before[start - 1] in "_-" or unicodedata.category(before[start - 1])[0] in "LMN"):
            start -= 1
        name = before[start:].lstrip("_-").rstrip("_")
        is_name = len(name) <= NAME_LENGTH and name[:1].isalpha()
        if is_name and before[start - 1 : start] not in ("/", ".", "@"):
            found.add(folded(name))
    return found


def looks_like_tags(line: str) -> bool:
    """Whether a line is mostly `name:number`, though it may be no tag line: `joy: 9`, `joy:9/10 and calm:8`."""
    line = re.sub(r"/10\b", "", line)
    return len(_WORDS.findall(line)) < 2 * len(left_over(line))


def tag_line(scores: Mapping[str, float]) -> str:
    """The scores as a tag line: `warmth:9 clarity:7.5`. split_tags reads the same scores back."""
    return " ".join(f"{name}:{Decimal(repr(float(score))).normalize():f}" for name, score in scores.items())
