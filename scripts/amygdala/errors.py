"""The one error class for what a user can mend, and safe ways to show hostile strings."""

from __future__ import annotations

import os
from typing import Any

PATH_CHARS = 4096  # no system takes longer ones


class UserError(Exception):
    """Bad input or surroundings, told in one message that names the file, line or key and what to do."""


def kept(path: Any, problem: str | None = None) -> UserError:
    """The error for a file or folder that another user keeps to themselves. problem: what the system said of it."""
    why = f": {problem}" if problem else " may not be read"
    return UserError(f"{path}{why}. Ask its owner to change its mode (docs/sharing.md: which umask a shared store wants)")


def shown(value: Any, limit: int = 80) -> str:
    """`value` quoted for a terminal: control characters escaped, cut to `limit` characters."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path quoted as by `shown`, uncut: half a path finds no file."""
    return shown(os.fspath(path), limit=PATH_CHARS)


def listed(names: list[str], limit: int = 12) -> str:
    """Names for a message, quoted, the first `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more
