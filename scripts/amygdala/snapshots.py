"""The current snapshot: its key, its place in the store, and the index beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amygdala.corpus import Index, index_of_snapshot, make_index, read_index, write_index
from amygdala.errors import UserError
from amygdala.keys import code, code_modules
from amygdala.recipes import recipe_key
from amygdala.sources import Graph
from amygdala.stamps import Recipe, Sheet, using
from amygdala.tags import emotion_name

Say = Any


def names_looked_for(config: Mapping[str, Any]) -> list[str]:
    """Names that count as mentions of an emotion though they may tag no node: aliases, and what they stand for."""
    aliases = config["emotions"]["aliases"]
    return sorted({emotion_name(str(name)) for pair in aliases.items() for name in pair})


def index_recipe(snapshot_key: str, looked_for: Sequence[str]) -> Recipe:
    """The recipe of the index of a stored snapshot: it covers the code that makes it."""
    names = list(looked_for)
    return {"kind": "graph index", "snapshot": snapshot_key, "looked_for": names, "code": code("amygdala.corpus")}


def index_path(store: str, snapshot_key: str, looked_for: Sequence[str]) -> str:
    """Where the index of a stored snapshot lies."""
    return f"{store}/snapshots/{snapshot_key}.{recipe_key(index_recipe(snapshot_key, looked_for))}.safetensors"


class Snapshot:
    """The snapshot that the configured sources make now. UserError where a source is missing or not fetched yet.

    config: the checked configuration; base: folders that relative paths are looked for in.
    """

    def __init__(self, config: Mapping[str, Any], base: Sequence[Path], store: str) -> None:
        self._sources = (config, base, Path(store))
        self.graph = Graph(*self._sources)
        self.recipe: Recipe = {"kind": "snapshot", "sources": self.graph.identity, "code": code("snapshot")}
        self.key = recipe_key(self.recipe)
        self.path = f"{store}/snapshots/{self.key}.jsonl"
        self.looked_for = names_looked_for(config)
        self.index_recipe = index_recipe(self.key, self.looked_for)
        self.index_path = index_path(store, self.key, self.looked_for)
        self.entries = {self.recipe["code"]: "snapshot", self.index_recipe["code"]: "amygdala.corpus"}

    def index(self, say: Say = None) -> Index:
        """The stored index; where there is none, it is made from the sources and stored (a store that cannot be written is no
        error). `say` hears of it, as it takes a while for a large graph."""
        known = read_index(Path(self.index_path))
        if known is not None:
            return known
        if say is not None:
            say(f"indexing {self.graph.title}")
        nodes, skipped = self.graph.nodes()
        if (
            Graph(*self._sources).identity != self.graph.identity
        ):  # else another graph's index would stand under this key for ever
            raise UserError(f"{self.graph.title} changed while it was read. Run snakemake again")
        return remember_index(self.index_path, make_index(nodes, skipped, self.looked_for), self.index_recipe)


def remember_index(path: str | Path, index: Index, recipe: Recipe) -> Index:
    """Store an index, if that is possible."""
    sheet = Sheet({recipe_key(recipe): recipe}, {recipe["code"]: code_modules("amygdala.corpus")})
    with contextlib.suppress(UserError, OSError), using(sheet):
        write_index(Path(path), index)
    return index


def index_beside(path: str | Path, snapshot: str | Path, facts: Mapping[str, Any], looked_for: Iterable[str]) -> Index:
    """The index at `path`; where it is missing or damaged, made again from the stored snapshot."""
    known = read_index(Path(path))
    if known is not None:
        return known
    recipe = index_recipe(Path(path).name.partition(".")[0], sorted(looked_for))
    return remember_index(path, index_of_snapshot(snapshot, facts, looked_for), recipe)
