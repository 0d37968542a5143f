"""What of the store nothing rests on any more: listed, and deleted when that list was confirmed."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amygdala import garbage, layout
from amygdala.errors import UserError, shown
from amygdala.files import write_json
from amygdala.garbage import DAY_S, Found, Kept, Live, Rows
from amygdala.job import job
from amygdala.layout import Stored
from amygdala.roots import Root, read_entry, read_roots
from amygdala.segments import DIGEST_BYTES, DamagedError, Mapped
from amygdala.stamps import Recipe, StampError, split
from amygdala.trash import FOLDER, Trash, recover

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

Place = Callable[[str], Path]
RELEASES_SHOWN, UNKNOWN_SHOWN = 20, 5
UNITS = ("B", "kB", "MB", "GB", "TB")


class Reader:
    """What stored files say of themselves, wherever they lie at the time."""

    def __init__(self, files: Sequence[Stored], place: Place) -> None:
        self.place = place
        self._paths: dict[str, list[str]] = {}
        for one in files:
            if one.key and one.kind != "models":
                self._paths.setdefault(one.key, []).append(one.path)
        self._recipes: dict[str, Recipe | None] = {}

    def recipe_of(self, key: str) -> Recipe | None:
        """The recipe of a key, by a stored file that carries it; None where none does."""
        if key not in self._recipes:
            found = (self._read(path) for path in self._paths.get(key, ()))
            self._recipes[key] = next((recipe for recipe in found if recipe is not None), None)
        return self._recipes[key]

    def _read(self, path: str) -> Recipe | None:
        try:
            if path.endswith(".safetensors"):
                made = Mapped(self.place(path)).made_from
            else:
                made = split(Path(path).suffix, self.place(path).read_bytes())[1]
            return dict(made["recipe"]) if made else None
        except (OSError, UserError, DamagedError, StampError, KeyError, TypeError, ValueError):
            return None

    def more_of(self, key: str) -> list[str]:
        """Keys that a release's manifest names: its snapshot, and the space of its activations.

        UserError where it cannot be read: no other file tells them.
        """
        path = f"releases/{key}/manifest.json"
        if path not in self._paths.get(key, ()):
            return []
        try:
            manifest = json.loads(self.place(path).read_bytes())
            return sorted(garbage.keys_in([manifest.get("keys"), (manifest.get("snapshot") or {}).get("key")]))
        except (OSError, ValueError, AttributeError, RecursionError):
            raise UserError(
                f"{self.place(path)} cannot be read, and what its release rests on is not known. Nothing was deleted: build "
                "that release again, or take it from results/ and gc.releases"
            ) from None


def rows_in_use(files: Sequence[Stored], what_lives: Live, place: Place) -> Rows:
    """How much of each segment the live indices of its space name. Segments that are alive or dead anyway are not read."""
    rows = Rows()
    spaces = what_lives.keys - what_lives.captured
    wanted: dict[tuple[str, int], list[np.ndarray]] = {}
    unreadable: set[str] = set()
    for one in files:
        if one.kind == "indices" and one.key in what_lives.keys and one.space in spaces:
            try:
                mapped = Mapped(place(one.path))
                digests = _digests(mapped)
                layers = [int(name.removeprefix("layer_")) for name in mapped.names() if name.startswith("layer_")]
            except (DamagedError, UserError, ValueError):
                unreadable.add(one.space)
                continue
            for layer in layers:
                wanted.setdefault((one.space, layer), []).append(digests)
    together = {place_: np.unique(np.concatenate(parts)) for place_, parts in wanted.items()}
    for one in files:
        if one.kind != "segments" or one.space not in spaces:
            continue
        if one.space in unreadable:
            rows.unreadable.add(one.path)
            continue
        try:
            held = _digests(Mapped(place(one.path)))
        except (DamagedError, UserError):
            if not one.link:  # a link that leads nowhere holds no rows
                rows.unreadable.add(one.path)
            continue
        named = together.get((one.space, one.layer))
        rows.in_use[one.path] = 0.0 if named is None else _share(held, named)
    return rows


def _share(held: np.ndarray, named: np.ndarray) -> float:
    """The share of `held` that is among the sorted `named`, which are not sorted anew for each of thousands of segments."""
    if not len(held) or not len(named):
        return 0.0
    places = np.minimum(np.searchsorted(named, held), len(named) - 1)
    return float((named[places] == held).mean())


def _digests(mapped: Mapped) -> np.ndarray:
    """S16 [n]: the texts of a segment or index."""
    packed = np.ascontiguousarray(mapped.array("digests"))
    if packed.ndim != 2 or packed.shape[1] != DIGEST_BYTES:
        raise DamagedError("unreadable (digests)")
    return packed.view(f"S{DIGEST_BYTES}").reshape(len(packed))


class Collection:
    """One look at a store: what is kept and why, and what is dead. `settings`: `gc` of the configuration."""

    def __init__(self, store: str, settings: Mapping[str, Any], own_root: str) -> None:
        self.store, self.settings, self.own_root = store, settings, own_root
        self.files, self.unknown = layout.scan(store)
        self.now = time.time()
        self.place: Place = lambda path: Path(store) / path
        reader = Reader(self.files, lambda path: self.place(path))
        self.found = Found(self.files, reader.recipe_of, reader.more_of)
        self.released = {one.key for one in self.files if one.path.endswith("/manifest.json") and one.kind == "releases"}
        self.live = self._what_lives()
        self.rows = rows_in_use(self.files, self.live, self.place)
        self.dead = self._dead(self.files, self.live, self.rows)

    def _what_lives(self) -> Live:
        self.roots = read_roots(self.store)
        if not any(root.id == self.own_root for root in self.roots):
            raise UserError(f"{self.store} cannot be written, so that nothing in it can be deleted")
        names = garbage.named(self.settings["releases"], self.released)
        self.kept = garbage.kept_releases(self.roots, self.released, self.settings["keep"], names)
        return garbage.live(self.roots, self.kept, self.found)

    def _dead(self, files: Iterable[Stored], lives: Live, rows: Rows) -> list[Stored]:
        return garbage.dead(files, lives, rows, self.now, self.settings["grace_days"] * DAY_S)

    def still_dead(self) -> list[str]:
        """Paths of what was dead at the first look and is dead by the roots as they are now.

        It takes milliseconds, while the first look reads each segment: where more lives than then, no segment of a living space
        counts as dead.
        """
        lives = self._what_lives()
        rows = self.rows if lives.keys <= self.live.keys else Rows(unreadable={one.path for one in self.files})
        return [one.path for one in self._dead(self.dead, lives, rows)]

    @property
    def stale_entries(self) -> dict[str, float]:
        """{file below the store: time of its build} of entries whose builds are not kept, by the last look at the roots."""
        kept = {(one.results, one.release) for one in self.kept}
        entries = [(root, entry) for root in self.roots for entry in root.entries]
        gone = [(root, entry) for root, entry in entries if (entry.results, entry.release) not in kept]
        return {str(Path("roots", root.id, f"{entry.release}.json")): entry.time for root, entry in gone}

    def delete(self, token: str, say: Callable[[str], None] = lambda line: None) -> list[Stored]:
        """Delete what is dead; returns what was deleted. A build that was planned meanwhile keeps or gets back its files."""
        trash = Trash(self.store, token)
        self.place = trash.place
        paths = self.still_dead()
        times = self.stale_entries  # of the same look: an entry that is written again after it has another time
        trash.take([*paths, *times])
        trash.put_back([path for path, planned in times.items() if _time_of(trash.place(path)) != planned])
        still = set(self.still_dead())
        trash.put_back([one.path for one in self.dead if one.path not in still])
        trash.empty()
        moved = set(trash.moved)
        deleted = [one for one in self.dead if one.path in moved]
        if len(deleted) < len(self.dead):
            left = len(self.dead) - len(deleted)
            say(f"{left} files stay: a build that began meanwhile rests on them, or another gc took them")
        return deleted


def _time_of(path: Path) -> float | None:
    try:
        return read_entry(path).time
    except UserError:
        return None


def size_of(count: float) -> str:
    """Bytes for people."""
    unit = 0
    while count >= 999.5 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {UNITS[unit]}" if unit == 0 or count >= 99.5 else f"{count:.1f} {UNITS[unit]}"


def table(files: Iterable[Stored], dead: Iterable[Stored]) -> list[str]:
    """A line a kind: files, their size, and those to delete."""
    all_of, dead_of = garbage.by_kind(files), garbage.by_kind(dead)
    rows = [(kind, *all_of[kind], *dead_of.get(kind, (0, 0))) for kind in all_of]
    sums = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)] or [0, 0, 0, 0]
    rows.append(("all", sums[0], sums[1], sums[2], sums[3]))
    head = f"{'kind':<12}{'files':>8}{'size':>10}{'to delete':>12}{'size':>10}"
    lines = [f"{kind:<12}{n:>8}{size_of(size):>10}{m:>12}{size_of(gone):>10}" for kind, n, size, m, gone in rows]
    return [head, *lines]


def release_lines(kept: Sequence[Kept], roots: Sequence[Root], released: Iterable[str]) -> list[str]:
    """Releases kept, the last first, and how many are not."""
    times = {(entry.results, entry.release): entry.time for root in roots for entry in root.entries}
    ordered = sorted(kept, key=lambda one: (-times.get((one.results, one.release), 0), one.release))
    lines = [f"{len(ordered)} build{'s' if len(ordered) != 1 else ''} kept"]
    for one in ordered[:RELEASES_SHOWN]:
        when = times.get((one.results, one.release))
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) if when else "no root knows it"
        lines.append(f"  {one.release:<16}  {date:<16}  {shown(one.results, 60) if one.results else ''}  {one.why}")
    if len(ordered) > RELEASES_SHOWN:
        lines.append(f"  … and {len(ordered) - RELEASES_SHOWN} more")
    return lines


def lines_of(found: Collection) -> list[str]:
    """What a look at the store found, for a terminal."""
    lines = release_lines(found.kept, found.roots, found.released)
    lines += table(found.files, found.dead)
    if partly := dead_bytes(found):
        lines.append(f"{size_of(partly)} more are rows of no kept release in segments that hold others: they stay")
    if found.unknown:
        more = f" and {len(found.unknown) - UNKNOWN_SHOWN} more" if len(found.unknown) > UNKNOWN_SHOWN else ""
        names = ", ".join(map(shown, found.unknown[:UNKNOWN_SHOWN]))
        lines.append(f"{len(found.unknown)} files and folders that amygdala did not write stay: {names}{more}")
    return lines


def dead_bytes(found: Collection) -> int:
    """Bytes of rows that no live index names, in segments that stay for other rows."""
    gone = {one.path for one in found.dead}
    shares = ((one, found.rows.in_use.get(one.path)) for one in found.files if one.path not in gone)
    return sum(round(one.size * (1 - share)) for one, share in shares if share is not None)


def as_json(found: Collection, token: str, deleted: Sequence[Stored] | None) -> dict[str, Any]:
    """All of it; deleted: None where nothing was confirmed."""
    all_of, dead_of = garbage.by_kind(found.files), garbage.by_kind(found.dead)
    return {
        "token": token,
        "deleted": None if deleted is None else [one.path for one in deleted],
        "kept": [vars(one) for one in found.kept],
        "roots": [{"id": root.id, "results": root.last.results, "host": root.last.host} for root in found.roots],
        "kinds": {kind: {"all": all_of[kind], "dead": dead_of.get(kind, (0, 0))} for kind in all_of},
        "dead": [one.path for one in found.dead],
        "dead_bytes_in_live_segments": dead_bytes(found),
        "unknown": [shown(path, 300) for path in found.unknown],
    }


def collect(
    store: str, settings: Mapping[str, Any], own_root: str, confirmed: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """List what is dead, and delete it where `confirmed` is the token of that list; returns what gc.json holds."""
    if back := recover(store):
        say(f"{back} files of {Path(store, FOLDER)} were put back: a gc before was stopped halfway")
    found = Collection(store, settings, own_root)
    for line in lines_of(found):
        say(line)
    token = garbage.token(found.dead)
    report = as_json(found, token, None)
    if not found.dead:
        say("nothing to delete")
    elif confirmed != token:
        if confirmed is not None:
            say(f"gc_confirm={shown(confirmed)} confirms another list: the store has changed since, or another gc deleted it")
        say(f"nothing was deleted. To delete these {len(found.dead)} files: snakemake --cores 1 gc --config gc_confirm={token}")
    else:
        deleted = found.delete(token, say)
        report["deleted"] = [one.path for one in deleted]
        say(f"deleted {len(deleted)} files, {size_of(sum(one.size for one in deleted))}")
    return report


if "snakemake" in globals():
    with job(snakemake, aloud=True, needs_input=False) as say:
        params = snakemake.params
        report = collect(params.store, params.settings, params.root, params.confirmed, say)
        write_json(params.output, report)
        say(f"all of it: {params.output}")
