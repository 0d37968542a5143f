"""The recipes of a build: of each key, what it is the hash of. Jobs write them into the files that they make (stamps.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amygdala.errors import UserError
from amygdala.files import remember
from amygdala.keys import code_modules, key
from amygdala.stamps import Recipe, Sheet


def recipe_key(recipe: Recipe) -> str:
    """The key of what is made by this recipe."""
    return key(recipe)


class Recipes(dict[str, Recipe]):
    """{key: recipe}; each recipe has its `kind` and its ingredients by name."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[str, str] = {}  # {digest of code: the entry module that it is the code of}

    def add(self, kind: str, **ingredients: Any) -> str:
        """Take in a recipe; returns its key."""
        recipe = {"kind": kind, **ingredients}
        made = recipe_key(recipe)
        self[made] = recipe
        return made

    def sheet(self) -> Sheet:
        return Sheet(dict(self), {digest: code_modules(entry) for digest, entry in self.entries.items()})

    def path(self, folder: str | Path) -> Path:
        """Where `save` leaves them: the name covers all keys."""
        return Path(folder) / f"recipes.{key(sorted(self))}.json"

    def save(self, folder: str | Path) -> str:
        """Leave the recipes for jobs, as a memo; returns its path."""
        path = self.path(folder)
        if not path.exists():
            sheet = self.sheet()
            remember(path, {"recipes": sheet.recipes, "code": sheet.code}, indent=None)
        return str(path)


def read_sheet(path: str | Path | None) -> Sheet | None:
    """What Recipes.save left; None without a path. UserError where it is gone or damaged."""
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_bytes())
        return Sheet(found["recipes"], found["code"])
    except FileNotFoundError:
        raise UserError(
            f"{path} could not be written when the run was planned, or is gone: see that there is room, and run snakemake again"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: delete it and run snakemake again, it will be written anew") from None


def versions_of(names: Iterable[str], settings: Mapping[str, Any], version: Any) -> dict[str, str]:
    """{library: version} as keys take them: `settings` is `key_versions` of the configuration, version(name, precision)."""
    pinned = settings["pinned"]
    return {name: pinned.get(name) or version(name, settings["precision"]) for name in names}
