"""The releases in the store with what changed between them, told on the terminal and written to releases.json."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.errors import shown
from amygdala.files import write_json
from amygdala.job import job
from amygdala.releases import Release, current_of, difference, list_releases, read_history, stored_keys

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

RELEASES_SHOWN, CHANGES_SHOWN = 20, 8


def facts_of(store: Path, results: Path) -> list[dict[str, Any]]:
    """One entry a release, the newest last: key, times, whether it is the current one and was published here, what is in it,
    what is missing of it, what changed against the one before it, and what it takes to make it again.
    """
    current, history = current_of(results), read_history(results)
    found: list[dict[str, Any]] = []
    before: Release | None = None
    for release in list_releases(store, results):
        manifest = release.manifest
        published = [one["time"] for one in history if one["key"] == release.key]
        try:
            changed = [] if before is None else difference(store, before, release)
        except (TypeError, KeyError):
            changed = ["its manifest cannot be compared"]
        found.append(
            {
                "key": release.key,
                "current": release.key == current,
                "made": release.made,
                "published": published,
                "concepts": manifest.get("concepts", []),
                "layers": manifest.get("layers", []),
                "changes": changed,
                "missing": [str(path) for path in release.missing],
                **{name: manifest.get(name) for name in ("snapshot", "model", "config", "code", "versions", "installed")},
            }
        )
        before = release
    return found


def _head(one: Mapping[str, Any]) -> str:
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["made"]))
    layers = " ".join(map(str, one["layers"]))
    nodes = (one["snapshot"] or {}).get("nodes", "?")
    where = "" if one["published"] else "; not published here"
    whole = f"; not whole, {shown(one['missing'][0])[1:-1]} is gone" if one["missing"] else ""
    mark = "*" if one["current"] else " "
    return f"{mark} {one['key']}  {made}  {len(one['concepts'])} emotions, layers {layers}, {nodes} nodes{where}{whole}"


def lines(found: Sequence[Mapping[str, Any]], store: Path, unread: int) -> Iterator[str]:
    """The releases for a terminal, the newest last. unread: how many releases in the store cannot be listed."""
    yield f"{len(found)} releases of the readout in {shown(str(store))[1:-1]}, the newest last; * is the one under results"
    if len(found) > RELEASES_SHOWN:
        yield f"  … {len(found) - RELEASES_SHOWN} older ones"
    for one in found[-RELEASES_SHOWN:]:
        yield _head(one)
        for change in one["changes"][:CHANGES_SHOWN]:
            yield f"      {change}"
        if len(one["changes"]) > CHANGES_SHOWN:
            yield f"      … and {len(one['changes']) - CHANGES_SHOWN} more"
    if unread:
        yield f"{unread} more are of one emotion or layer, damaged, or made before releases said what they are made from"
    others = [one for one in found if not one["current"] and not one["missing"]]
    if others:
        yield f"back to one: snakemake --cores 1 --config 'release=\"{others[-1]['key']}\"', or `release:` in a config file"


if "snakemake" in globals():
    with job(snakemake, aloud=True, needs_input=False) as say:
        store, results = (Path(snakemake.params[name]).expanduser() for name in ("store", "results"))
        found = facts_of(store, results)
        for line in lines(found, store, len(stored_keys(store)) - len(found)):
            say(line)
        write_json(results / "releases.json", {"releases": found})
        say(f"all of it: {results / 'releases.json'}")
