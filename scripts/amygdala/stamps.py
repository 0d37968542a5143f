"""What a stored file says of itself: `made_from`, the recipe behind its key, and a checksum over all the rest of it.

    key       the key in the file's name: the hash of `recipe` (keys.py)
    recipe    {"kind": …, ingredient: value}; an ingredient that is a file of the store is told by that file's key
    behind    {key: recipe} of ingredients that no single file stands for (the space of activations)
    code      {module: digest} behind the recipe's `code`
    made_with {library: version} installed when the file was made: numpy, and the libraries that the recipe names
    sha256    over the file's content and all of the above

In a safetensors file it is an entry of the facts; in JSON the last member, on a line of its own; in SVG and HTML a comment
after the end; in JSON Lines the last line. Whatever a job writes below the store gets it (tensors.py, files.py), where the
job knows the recipe: `job` opens the sheet of all recipes that the build left for its jobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MADE_FROM = "made_from"
KEY = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{16}(?![0-9A-Za-z])")
FILELESS = ("space",)  # kinds of recipes that no single file of the store carries
COMMENTED, LINED = (".svg", ".html"), (".jsonl",)
COMMENT, LAST_LINE, MEMBER = b"<!-- made_from ", b'{"made_from":', b'"made_from":'  # how the last line begins

Recipe = dict[str, Any]
Made = dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """recipes: {key: recipe}; code: {digest: {module: digest}}."""

    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def key_of(self, path: str | Path) -> str | None:
        """The innermost key in a path of the store that has a recipe here."""
        return next((key for key in reversed(KEY.findall(str(path))) if key in self.recipes), None)

    def made_from(self, path: str | Path) -> Made | None:
        """What the file at `path` is to say of itself, less the checksum; None where the recipe is not known."""
        key = self.key_of(path)
        if key is None:
            return None
        recipe = self.recipes[key]
        made: Made = {"key": key, "recipe": recipe}
        behind = {name: self.recipes[name] for name in sorted(_named(recipe)) if name in self.recipes}
        if behind := {name: one for name, one in behind.items() if one["kind"] in FILELESS}:
            made["behind"] = behind
        digests = sorted(set().union(*map(_named, (recipe, *behind.values()))))
        made["code"] = {digest: self.code[digest] for digest in digests if digest in self.code}
        made["made_with"] = {name: importlib.metadata.version(name) for name in ("numpy", *recipe.get("versions", {}))}
        return made


def _named(value: Any) -> set[str]:
    """All strings in a recipe that look like keys."""
    if isinstance(value, str):
        return {value} if KEY.fullmatch(value) else set()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return set().union(*map(_named, items))


# One a process, not a ContextVar: a capture writes its segments in a thread of its own, which has another context.
_in_use: list[Sheet | None] = [None]


@contextlib.contextmanager
def using(sheet: Sheet | None) -> Iterator[None]:
    """Files written inside get what the sheet knows of them."""
    _in_use.append(sheet)
    try:
        yield
    finally:
        _in_use.pop()


def made_from(path: str | Path) -> Made | None:
    """Sheet.made_from of the sheet in use."""
    sheet = _in_use[-1]
    return None if sheet is None else sheet.made_from(path)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def checksum(content: Any, made: Made) -> str:
    """Hex sha256 over `content` (a hashlib object that has taken it in, or bytes) and `made` less its checksum."""
    total = content.copy() if hasattr(content, "copy") else hashlib.sha256(content)
    total.update(canonical({name: value for name, value in made.items() if name != "sha256"}))
    return total.hexdigest()


def tail(suffix: str, made: Made) -> bytes:
    """The last line of a file of this suffix, as `made` is told there."""
    told = canonical(made)
    if suffix in COMMENTED:
        return COMMENT + told.replace(b"--", b"-\\u002d") + b" -->\n"
    if suffix in LINED:
        return LAST_LINE + told + b"}\n"
    return MEMBER + told + b"}\n"


def sealed(path: str | Path, content: bytes) -> bytes:
    """`content` of a JSON object, SVG, HTML or JSON Lines file with what it is made from; unchanged where that is not known."""
    made = made_from(path)
    if made is None:
        return content
    suffix = Path(path).suffix
    body = content if content.endswith(b"\n") else content + b"\n"
    if suffix == ".json":
        body = content.rstrip().removesuffix(b"}").rstrip() + b",\n"
    made["sha256"] = checksum(body, made)
    return body + tail(suffix, made)


def seal_lines(path: str | Path, written: Path) -> None:
    """As `sealed`, for a JSON Lines file that was written as `written` and goes to `path`; it is not held in memory."""
    made = made_from(path)
    if made is None:
        return
    with open(written, "rb") as file:
        made["sha256"] = checksum(hashlib.file_digest(file, "sha256"), made)
    with open(written, "ab") as file:
        file.write(tail(Path(path).suffix, made))


class StampError(ValueError):
    """A file whose checksum does not fit what it holds."""


def last_line(line: bytes, content: Any) -> Made:
    """What the last line of a JSON Lines file says that it is made from; content: a hashlib object that has taken in all lines
    before. StampError where they do not fit.
    """
    return _fitting(line.strip().removeprefix(LAST_LINE).removesuffix(b"}"), content)


def _fitting(told: bytes, content: Any) -> Made:
    try:
        made = json.loads(told)
        if made["sha256"] == checksum(content, made):
            return dict(made)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise StampError("its checksum does not fit")


def split(suffix: str, data: bytes) -> tuple[bytes, Made | None]:
    """The reverse of `sealed`: (content, what it is made from if it says so). StampError where they do not fit."""
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    line = data[start:].strip()
    begins, ends = (COMMENT, b" -->") if suffix in COMMENTED else (LAST_LINE if suffix in LINED else MEMBER, b"}")
    if not line.startswith(begins) or not line.endswith(ends):
        return data, None
    body = data[:start]
    made = _fitting(line.removeprefix(begins).removesuffix(ends), body)
    if suffix == ".json":
        body = body.rstrip().removesuffix(b",") + b"}"
    return body, made
