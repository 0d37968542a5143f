"""What the store saved: hits, files made, forward passes; told on the terminal and written to stats.json."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala import ledger
from amygdala.errors import shown
from amygdala.files import write_json
from amygdala.job import job
from amygdala.progress import duration
from amygdala.recording import outcome, project_of

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

RUNNING = "running or killed"


def sizes(store: Path) -> dict[str, dict[str, int]]:
    """{folder of the store: {"files", "bytes"}}; a link to a file counts as a link."""
    found: dict[str, dict[str, int]] = {}
    for kind in sorted(path for path in store.iterdir() if path.is_dir()) if store.is_dir() else []:
        counts = found.setdefault(kind.name, {"files": 0, "bytes": 0})
        for folder, _, names in os.walk(kind):
            for name in names:
                with contextlib.suppress(OSError):
                    counts["bytes"] += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118
                    counts["files"] += 1
    return found


def collected(store: Path, project: str) -> dict[str, Any]:
    """{"last_run": record or None, "results": sums of this results folder, "store": sums of all}. Runs that go on or were
    killed count with what they have made by now.
    """
    folder = store / "ledger"
    projects = ledger.totals(folder)
    for path, record in ledger.open_records(folder):
        with contextlib.suppress(TypeError, KeyError, AttributeError, ValueError, OSError):
            found = outcome(str(store), record, path.stat().st_mtime_ns)
            record = ledger.completed(record, found, RUNNING)
            own = projects.setdefault(record["project"], {"sums": ledger.empty(), "last": record})
            own["sums"] = ledger.add(own["sums"], record)
            own["last"] = max(own["last"], record, key=lambda one: float(one["started"]))
    everything = ledger.empty()
    for part in projects.values():
        everything = ledger.add(everything, part["sums"])
    own = projects.get(project, {"sums": ledger.empty(), "last": None})
    last = own["last"] and {name: own["last"].get(name) for name in (*ledger.empty(), "started", "ended", "targets", "status")}
    return {"last_run": last, "results": own["sums"], "store": everything}


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _row(sums: Mapping[str, Any]) -> list[str]:
    def over(name: str) -> int:
        return sum(counts.get(name, 0) for counts in sums["kinds"].values())

    texts = sums["texts"]
    saved = ", ".join(f"{duration(seconds)} {shown(device)[1:-1]}" for device, seconds in sorted(sums["saved_s"].items()))
    return [
        str(sum(sums["runs"].values())),
        f"{over('hits'):,}",
        _size(over("hit_bytes")),
        f"{over('made'):,}",
        _size(over("made_bytes")),
        f"{texts['forwarded']:,}",
        f"{texts['forwarded_tokens']:,}",
        f"{texts['found']:,}",
        f"{texts['found_tokens']:,}",
        saved or "-",
    ]


ROWS = (
    *("runs", "hits: files", "  bytes", "made: files", "  bytes"),
    *("texts forwarded", "  tokens", "passes saved", "  tokens", "  time"),
)


def lines(found: Mapping[str, Any], stored: Mapping[str, Mapping[str, int]], store: Path) -> Iterator[str]:
    """Both as tables for a terminal."""
    last = found["last_run"]
    if last is None:
        yield "no run is recorded for this results folder yet"
    else:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(last["started"]))
        taken = f" in {duration(last['ended'] - last['started'])}" if last.get("ended") else ""
        yield f"last run: {started}, {shown(', '.join(last['targets'] or []))[1:-1]}: {last['status']}{taken}"
    columns = [ledger.empty() if last is None else last, found["results"], found["store"]]
    table = list(zip(ROWS, *map(_row, columns), strict=True))
    yield f"  {'':<16}  {'last run':>14}  {'these results':>14}  {'whole store':>14}"
    for name, *values in table:
        yield f"  {name:<16}  " + "  ".join(f"{value:>14}" for value in values)
    yield f"the store {shown(str(store))[1:-1]} holds"
    width = max((len(kind) for kind in stored), default=0)
    for kind, counts in sorted(stored.items(), key=lambda item: -item[1]["bytes"]):
        yield f"  {shown(kind)[1:-1]:<{width}}  {counts['files']:>9,} files  {_size(counts['bytes']):>8}"
    total = [sum(counts[name] for counts in stored.values()) for name in ("files", "bytes")]
    yield f"  {'in all':<{width}}  {total[0]:>9,} files  {_size(total[1]):>8}"


if "snakemake" in globals():
    with job(snakemake, aloud=True, needs_input=False) as say:
        store, results = (Path(snakemake.params[name]).expanduser() for name in ("store", "results"))
        found, stored = collected(store, project_of(results)), sizes(store)
        for line in lines(found, stored, store):
            say(line)
        write_json(results / "stats.json", {**found, "size": stored})
        say(f"all of it: {results / 'stats.json'}")
