"""The releases of the whole readout in the store: which there are, what changed from one to the next, going back to one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amygdala.changes import setting_changes
from amygdala.errors import UserError, listed, shown
from amygdala.files import recall
from amygdala.recipes import recipe_key
from amygdala.stamps import KEY, LAST_LINE, Made, StampError, split
from amygdala.tiers import Tiers

TARGET = "readout"  # the target whose releases these are: the others show a part of one
VECTORS, MANIFEST, QUALITY, OVERVIEW = PARTS = ("vectors.safetensors", "manifest.json", "quality.json", "overview.svg")
HISTORY_KEPT = 1000  # publications that a results folder remembers


@dataclass(frozen=True)
class Release:
    """A release in the store. recipe: that of its key; files: {name under results: stored file}; made: when, in seconds."""

    key: str
    manifest: Mapping[str, Any]
    recipe: Mapping[str, Any]
    files: Mapping[str, Path]
    made: float

    @property
    def missing(self) -> list[Path]:
        return [path for path in self.files.values() if not path.is_file()]


def _made_from(manifest: Path) -> tuple[dict[str, Any], Made] | None:
    try:
        body, made = split(".json", manifest.read_bytes())
        told = json.loads(body)
    except (OSError, ValueError, RecursionError, StampError):
        return None
    return (told, made) if made is not None and isinstance(told, dict) else None


def read_release(store: str | Path, key: str) -> Release | None:
    """The release under `key`; None where it is of an emotion or a layer, is damaged, or does not say what it is made from."""
    folder = Path(store) / "releases" / key
    found = _made_from(folder / MANIFEST)
    if found is None:
        return None
    manifest, made = found
    recipe = made.get("recipe")
    if not isinstance(recipe, dict) or recipe.get("target") != TARGET or recipe_key(recipe) != key:
        return None
    overview = recipe_key({"kind": "overview", "release": key})
    paths = (
        folder / VECTORS,
        folder / MANIFEST,
        Path(store, "quality", f"{recipe['quality']}.json"),
        Path(store, "overviews", f"{overview}.svg"),
    )
    return Release(key, manifest, recipe, dict(zip(PARTS, paths, strict=True)), (folder / MANIFEST).stat().st_mtime)


def stored_keys(store: str | Path) -> list[str]:
    """The keys of all releases, those of emotions and layers too."""
    folder = Path(store) / "releases"
    try:
        return sorted(path.name for path in folder.iterdir() if KEY.fullmatch(path.name))
    except OSError:
        return []


def resolve(store: str | Path, asked: str, tiers: Tiers | None = None) -> Release:
    """The whole release whose key is `asked`, or begins so; what the store lacks of it is linked from `tiers`. UserError where
    there is none, or several, or a file is gone.
    """
    known = {key for place in (store, *(tiers.paths if tiers else ())) for key in stored_keys(place)}
    fit = sorted(key for key in known if key.startswith(asked))
    if tiers:
        tiers.take(f"{store}/releases/{key}/{name}" for key in fit for name in (VECTORS, MANIFEST))
    found = [release for release in (read_release(store, key) for key in fit) if release is not None]
    if len(found) > 1:
        raise UserError(f"release: {shown(asked)} begins {listed([one.key for one in found])}: give more of the key")
    if not found:
        if fit:
            raise UserError(
                f"release: {Path(store, 'releases', fit[0])} is no sound release of the whole readout; "
                "`snakemake --cores 1 releases` lists those that are"
            )
        raise UserError(
            f"release: no release in {Path(store, 'releases')} begins with {shown(asked)}; "
            "`snakemake --cores 1 releases --config release=null` lists them"
        )
    if tiers:
        tiers.take(map(str, found[0].files.values()))
    if missing := found[0].missing:
        raise UserError(
            f"release: {found[0].key} is not whole, {missing[0]} is gone; set `release: null` and build it again from what its "
            f"manifest names ({found[0].files[MANIFEST]})"
        )
    return found[0]


def read_history(results: str | Path) -> list[dict[str, Any]]:
    """[{"key", "time"}] of the releases published in a results folder, oldest first; an unreadable history is empty."""
    found = recall(history_path(results))
    if not isinstance(found, list):
        return []
    return [
        one
        for one in found
        if isinstance(one, dict) and isinstance(one.get("key"), str) and isinstance(one.get("time"), int | float)
    ]


def history_path(results: str | Path) -> Path:
    return Path(results).expanduser() / ".current" / "history.json"


def current_of(results: str | Path) -> str | None:
    """The key of the release that a results folder shows."""
    found = sorted((Path(results).expanduser() / ".current").glob(f"{TARGET}.*"))
    return found[0].name.removeprefix(f"{TARGET}.") if found else None


def list_releases(store: str | Path, results: str | Path) -> list[Release]:
    """All releases by when they were made, the newest last. Published here before the time of its file, a release is as old as
    that: files of a store that was copied are younger than what they hold.
    """
    published: dict[str, float] = {}
    for one in read_history(results):
        published.setdefault(one["key"], one["time"])
    releases = [release for release in (read_release(store, key) for key in stored_keys(store)) if release is not None]
    found = [replace(one, made=min(one.made, published.get(one.key, one.made))) for one in releases]
    return sorted(found, key=lambda release: (release.made, release.key))


# What changed


def _snapshot_lines(store: str | Path, release: Release) -> set[bytes] | None:
    path = Path(store, "snapshots", f"{release.manifest['snapshot']['key']}.jsonl")
    try:
        return {line for line in path.read_bytes().splitlines() if not line.startswith(LAST_LINE)}
    except OSError:
        return None


def _nodes(lines: Iterable[bytes]) -> set[tuple[str, str]]:
    records = [json.loads(line) for line in lines]
    return {(record["origin"], record["key"]) for record in records}


def node_counts(store: str | Path, old: Release, new: Release) -> dict[str, int] | None:
    """Nodes added, changed and removed between the snapshots of two releases; None where one is gone or damaged."""
    before, after = _snapshot_lines(store, old), _snapshot_lines(store, new)
    if before is None or after is None:
        return None
    try:
        went, came = _nodes(before - after), _nodes(after - before)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return {"added": len(came - went), "changed": len(came & went), "removed": len(went - came)}


def _vector_changes(old: Release, new: Release) -> Iterator[str]:
    before, after = old.recipe["vectors"], new.recipe["vectors"]
    if came := sorted(set(after) - set(before)):
        yield f"new: {listed(came)}"
    if went := sorted(set(before) - set(after)):
        yield f"gone: {listed(went)}"
    both = sorted(set(before) & set(after))
    changed = [emotion for emotion in both if before[emotion] != after[emotion]]
    if changed:
        whole = len(changed) == len(both) > 1
        yield f"other vectors: {f'all {len(both)}' if whole else listed(changed)}"


def _layer_changes(old: Sequence[int], new: Sequence[int]) -> Iterator[str]:
    for what, layers in (("new", set(new) - set(old)), ("gone", set(old) - set(new))):
        if layers:
            yield f"layers {what}: {', '.join(map(str, sorted(layers)))}"


def _differing(what: str, old: Any, new: Any) -> Iterator[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):  # the older one does not tell
        return
    if names := sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
        yield f"{what}: {', '.join(shown(name)[1:-1] for name in names)}"


def _installed(old: Any, new: Any) -> Iterator[str]:
    before, after = (value if isinstance(value, dict) else {} for value in (old, new))
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield f"installed {name} {shown(before[name])[1:-1]} → {shown(after[name])[1:-1]}"


def difference(store: str | Path, old: Release, new: Release) -> list[str]:
    """What changed from one release to the next, in words. TypeError, KeyError where a manifest is not of this form."""
    before, after = old.manifest, new.manifest
    found = [*_vector_changes(old, new), *_layer_changes(old.recipe["layers"], new.recipe["layers"])]
    same = not found
    if same:
        found = ["the same vectors"]
    if before["snapshot"]["key"] != after["snapshot"]["key"]:
        counts = node_counts(store, old, new)
        told = "another snapshot" if counts is None else ", ".join(f"{count} {kind}" for kind, count in counts.items())
        found.append(f"nodes: {told}")
    found += [f"setting {line}" for line in setting_changes(before, after)]
    found += _differing("code of", before.get("code"), after.get("code"))
    found += _installed(before.get("installed"), after.get("installed"))
    if same and old.recipe["quality"] != new.recipe["quality"]:
        found.append("other quality figures")
    return found
