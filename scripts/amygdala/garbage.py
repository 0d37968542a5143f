"""Which files of a store nothing rests on any more: pure functions of what lies in it and of its roots."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from amygdala.errors import UserError, listed
from amygdala.keys import key
from amygdala.layout import KINDS, SET_ASIDE, TEMPORARY, Stored
from amygdala.roots import Root
from amygdala.stamps import KEY, Recipe

DAY_S = 24 * 3600
WRITING_S = 3600  # no file takes as long to write: a younger temporary one may be in use, whatever the grace
# What is made beside a release: {kind of recipe: its ingredients that must all live}
BESIDE = {
    "overview": ("release",),
    "report": ("release",),
    "unseen": ("release",),
    "tokens": ("quality",),
    "ablation": ("vectors",),
    "compare": ("examples", "spaces", "compared"),
    "sweep": ("compared",),
}
BESIDE_KINDS = ("overviews", "reports", "unseen", "tokens", "ablation", "compare")  # of files
FIRST = ("releases", "indices")  # deleted before what they name, and models' markers before their folders
RecipeOf = Callable[[str], Recipe | None]


@dataclass(frozen=True)
class Kept:
    """A release that stays: its key, the results folder that it was built in ("" where no root knows it), and why."""

    release: str
    results: str
    why: str


@dataclass(frozen=True)
class Live:
    """keys: that live; captured: spaces of which every row stays, because an index that would name a kept build's rows is not
    there (its capture is not finished, or nothing has needed it yet); memos: paths below the store.
    """

    keys: frozenset[str]
    captured: frozenset[str] = frozenset()
    memos: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Found:
    """What lies in a store.

    files: of it; recipe_of: the recipe of a key, read from a file that carries it, None where none does; more_of: further keys
    that a release names in its manifest.
    """

    files: Sequence[Stored]
    recipe_of: RecipeOf
    more_of: Callable[[str], Iterable[str]]


@dataclass
class Rows:
    """Rows of segments. in_use: {path: share of its rows that a live index names}; unreadable: paths."""

    in_use: dict[str, float] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)


def keys_in(recipe: Recipe | Iterable[object]) -> set[str]:
    """All that looks like a key in a recipe; a digest among them does no harm."""
    return set(KEY.findall(json.dumps(recipe)))


def named(prefixes: Iterable[str], releases: Iterable[str]) -> dict[str, str]:
    """{release: the name in gc.releases that it goes by}. UserError where a name fits none or several."""
    known = sorted(set(releases))
    found = {}
    for prefix in prefixes:
        fitting = [release for release in known if release.startswith(prefix)]
        if len(fitting) != 1:
            problem = f"several releases of the store: {listed(fitting)}" if fitting else "no release of the store"
            raise UserError(f"gc.releases: '{prefix}' fits {problem}. Nothing was deleted; mend the configuration")
        found[fitting[0]] = prefix
    return found


def kept_releases(roots: Sequence[Root], stored: Collection[str], keep: int, names: Mapping[str, str]) -> list[Kept]:
    """Releases that stay, with the first reason that holds: current, shown, named, or among the last `keep` of its root.

    stored: keys of releases that the store holds; names: see `named`. A planned build whose release is not stored is the last
    build or nothing: it counts among no last ones.
    """
    kept = []
    for root in roots:
        finished = [entry for entry in root.entries if entry.release in stored]
        last = {entry.release for entry in finished[max(len(finished) - keep, 0) :]}
        for entry in root.entries:
            if entry is root.last:
                why = "the last build"
            elif entry.release in root.published:
                why = "shown in results"
            elif entry.release in names:
                why = f"named in gc.releases: {names[entry.release]}"
            elif entry.release in last:
                why = f"among the last {keep}"
            else:
                continue
            kept.append(Kept(entry.release, entry.results, why))
    rooted = {one.release for one in kept}
    shown = {release for root in roots for release in root.published if release in stored}
    kept += [Kept(release, "", "shown in results") for release in sorted(shown - rooted)]
    kept += [Kept(one, "", f"named in gc.releases: {name}") for one, name in names.items() if one not in rooted | shown]
    return kept


def live(roots: Sequence[Root], kept: Iterable[Kept], found: Found) -> Live:
    """What the kept releases rest on, and what was made beside them."""
    wanted = {(one.results, one.release) for one in kept}
    entries = [entry for root in roots for entry in root.entries if (entry.results, entry.release) in wanted]
    keys = set[str]().union(*(entry.keys for entry in entries))
    paths = {one.path for one in found.files}
    captured = {
        path.split("/")[1]
        for entry in entries
        for path in entry.awaits
        if path not in paths and path.startswith("activations/")
    }
    orphans = {release for results, release in wanted if not results} | {one.release for one in entries if not one.keys}
    if orphans:
        rested = closure(orphans, found)
        keys |= rested
        # Their recipes name no index: all of their spaces stay, and so do texts from elsewhere.
        spaces = {one.space for one in found.files if one.space in rested}
        keys |= {one.key for one in found.files if one.space in spaces and one.kind == "indices"}
        keys |= {one.key for one in found.files if one.kind == "texts"}
    keys |= beside(keys, found)
    memos = {path for entry in entries for path in entry.memos}
    return Live(frozenset(keys), frozenset(captured), frozenset(memos))


def closure(keys: Iterable[str], found: Found) -> set[str]:
    """The keys and all that their recipes name, however indirectly; also a snapshot's graph indices."""
    reached: set[str] = set()
    queue = list(keys)
    while queue:
        one = queue.pop()
        if one not in reached:
            reached.add(one)
            queue += [*keys_in(found.recipe_of(one) or {}), *found.more_of(one)]
    indices = (file for file in found.files if file.kind == "snapshots" and file.snapshot in reached)
    return reached | {file.key for file in indices}


def beside(keys: Collection[str], found: Found) -> set[str]:
    """Keys of reports, comparisons and the like, all whose ingredients live."""
    candidates = {one.key for one in found.files if one.kind in BESIDE_KINDS and one.key not in keys}
    alive: set[str] = set()
    while candidates:
        new = set()
        for one in candidates:
            recipe = found.recipe_of(one) or {}
            ingredients = [recipe[name] for name in BESIDE.get(recipe.get("kind", ""), ()) if name in recipe]
            needed = keys_in(ingredients)
            if needed and all(other in keys or other in alive for other in needed):
                new.add(one)
        if not new:
            break
        alive |= new
        candidates -= new
    return alive


def is_dead(one: Stored, what_lives: Live, rows: Rows, now: float, grace_s: float) -> bool:
    """Whether nothing rests on a file that is older than the grace."""
    age = now - one.mtime
    if age < grace_s:
        return False
    if one.kind == TEMPORARY:
        return age >= WRITING_S
    if one.kind == SET_ASIDE:
        return not one.link  # a link tells which read-only store gave the damaged file
    if one.kind == "memos":
        return False
    if one.kind == "plans":
        return one.path not in what_lives.memos
    if one.kind == "segments" and one.space in what_lives.keys:
        return one.space not in what_lives.captured and one.path not in rows.unreadable and not rows.in_use.get(one.path, 0)
    if one.kind == "segments":
        return True
    return one.key not in what_lives.keys


def order(one: Stored) -> tuple[bool, bool, str]:
    """Sort key: what names others comes before them, so that a deletion cut short leaves no name of a file that is gone."""
    return one.kind not in FIRST, one.kind == "models" and not one.path.endswith(".json"), one.path


def dead(files: Iterable[Stored], what_lives: Live, rows: Rows, now: float, grace_s: float) -> list[Stored]:
    """The files to delete, in the order of their deletion."""
    return sorted((one for one in files if is_dead(one, what_lives, rows, now, grace_s)), key=order)


def token(files: Iterable[Stored]) -> str:
    """What confirms the deletion of exactly these files. (Begins with a letter that is no digit: YAML reads it as a string.)"""
    return f"delete-{key(sorted((one.path, one.size) for one in files))[:12]}"


def by_kind(files: Iterable[Stored]) -> dict[str, tuple[int, int]]:
    """{kind: (files, bytes)}, in the order of the stages."""
    totals: dict[str, tuple[int, int]] = {}
    for one in files:
        count, size = totals.get(one.kind, (0, 0))
        totals[one.kind] = count + 1, size + one.size
    return {kind: totals[kind] for kind in (*KINDS, SET_ASIDE, TEMPORARY) if kind in totals}
