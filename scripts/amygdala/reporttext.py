"""Words and numbers as a report shows them: nothing invisible, nothing that turns a line around, numbers of one form."""

from __future__ import annotations

import unicodedata
from typing import Any

NONE = "–"
MINUS = "\u2212"
# What turns the direction of writing (Boucher and Anderson, 2111.00169) or breaks lines unseen.
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff")


def visible(text: str, kept: str = "") -> str:
    """`text` with control characters, lone surrogates, what XML has no place for, and what turns the direction of writing told
    as ⟨U+001B⟩; `kept`: control characters to leave.

    >>> visible("a\\x1b[31m")
    'a⟨U+001B⟩[31m'
    """

    def told(character: str) -> bool:
        if character in kept:
            return False
        point = ord(character)
        return unicodedata.category(character) in ("Cc", "Cs") or character in TURNING or point & 0xFFFE == 0xFFFE

    return "".join(f"⟨U+{ord(character):04X}⟩" if told(character) else character for character in text)


def short(name: str, most: int = 24) -> str:
    """A name for an axis: visible, at most `most` characters."""
    text = visible(name)
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: Any, digits: int = 2, sign: bool = False) -> str:
    """A number with so many decimals and a real minus sign; a dash for None.

    >>> number(-0.5), number(0.25, 1, sign=True), number(None)
    ('−0.50', '+0.2', '–')
    """
    if value is None:
        return NONE
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    text = text.lstrip("-+") if float(text) == 0 else text
    return text.replace("-", MINUS)


def span(interval: Any, digits: int = 2) -> str:
    """An interval in words: 0.64 to 0.96."""
    return NONE if interval is None else f"{number(interval[0], digits)} to {number(interval[1], digits)}"


def percent(value: Any) -> str:
    """A share as whole percent."""
    return NONE if value is None else f"{100 * value:.0f} %"
