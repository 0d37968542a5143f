"""Nodes out of JSON records, wherever these come from: which field holds key, text and time is configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from amygdala.errors import shown
from amygdala.graph import RawNode
from amygdala.keys import text_digest

MISSING = object()


def at_path(value: Any, path: str) -> Any:
    """The value at a dotted path ("data.nodes", "pages.0"); an empty path is the value itself; MISSING where there is none."""
    for part in path.split(".") if path else ():
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


@dataclass(frozen=True)
class Fields:
    """Dotted paths of a record's key, text and time.

    A text that is a list of strings (the observations of a knowledge graph's entity) is one text, a line each, or with
    `observations: apart` a node each, whose key ends in the start of its text's digest.
    """

    key: str = "key"
    text: str = "text"
    time: str = "time"
    observations: Literal["joined", "apart"] = "joined"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Fields:
        return cls(**{name: options[name] for name in cls.__dataclass_fields__ if name in options})

    def key_of(self, record: Any) -> str:
        if not isinstance(record, Mapping):
            raise ValueError(f"a node must be a JSON object with the fields {shown(self.key)} and {shown(self.text)}")
        return _string(record, self.key)

    def nodes(self, record: Any, where: str = "") -> Iterator[RawNode]:
        """ValueError tells which field is wrong."""
        key = self.key_of(record)
        time = at_path(record, self.time)
        time = None if time is MISSING or time is None else str(time)
        text = at_path(record, self.text)
        if isinstance(text, list) and all(isinstance(line, str) for line in text):
            if self.observations == "apart":
                for line in dict.fromkeys(text):
                    yield RawNode(f"{key}#{_short_digest(line)}", line, None, time, None, where)
                return
            text = "\n".join(text)
        elif not isinstance(text, str):
            text = _string(record, self.text)
        yield RawNode(key, text, None, time, None, where)


def _short_digest(text: str) -> str:
    return text_digest(text.encode("utf-8", "replace").decode())[:12]


def _string(record: Mapping[str, Any], path: str) -> str:
    value = at_path(record, path)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"the node {'has no' if value is MISSING else 'needs a string as'} '{path}'")
    return value
