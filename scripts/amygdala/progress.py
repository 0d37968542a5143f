"""Progress of long work as plain lines: readable on a terminal and in a cluster's log alike."""

from __future__ import annotations

import time
from collections.abc import Callable


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 10 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Says how far the work is, at most every `every_s` seconds; time left is estimated from characters (tokens are not counted
    before their turn).
    """

    def __init__(self, texts: int, chars: int, say: Callable[[str], None], every_s: float = 5.0) -> None:
        self.texts, self.chars, self.say, self.every_s = texts, chars, say, every_s
        self.done_texts = self.done_chars = self.done_tokens = 0
        self.start = self.last = time.monotonic()

    def add(self, texts: int, chars: int, tokens: int) -> None:
        self.done_texts += texts
        self.done_chars += chars
        self.done_tokens += tokens
        now = time.monotonic()
        if now - self.last >= self.every_s or self.done_texts == self.texts:
            self.last = now
            self.say(self.line(now - self.start))

    def line(self, elapsed_s: float) -> str:
        rate = self.done_tokens / max(elapsed_s, 1e-9)
        share = self.done_chars / max(self.chars, 1)
        left = elapsed_s * (1 - share) / max(share, 1e-9)
        return (
            f"{self.done_texts} of {self.texts} texts ({100 * share:.0f} % of the characters), {self.done_tokens} tokens, "
            f"{rate:.0f} tokens/s, {duration(elapsed_s)} so far, about {duration(left)} left"
        )


class Ticker:
    """Says a line at most every `every_s` seconds."""

    def __init__(self, say: Callable[[str], None], every_s: float = 5.0) -> None:
        self.say, self.every_s, self.last = say, every_s, time.monotonic()

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self.last >= self.every_s:
            self.last = now
            self.say(line)
