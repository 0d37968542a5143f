"""The ledger: what each run found in the store and what it made, one small file a run in <store>/ledger.

    <time>-<id>.open.json   a run that goes on, or was killed: what it found, and what it is to make (`missing`)
    <time>-<id>.json        a run that ended
    <id>.sum.json           many that ended, added up
    <id>.folding/           records that one process alone adds up now, or was killed over: they count as they are

No locks: records are written whole by one run, and a record is moved into a folder of its own before it is added up. The move
succeeds for one process alone, so that whatever happens, each run counts once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from amygdala.errors import UserError
from amygdala.files import recall, write_json

OPEN, SUM, FOLDING = ".open.json", ".sum.json", ".folding"
FOLD_AT, KEPT_APART = 256, 64  # records that ended: when they are added up, and how many of the newest stay apart
RETRIES = 5  # readings of a ledger that another process is adding up just then
COUNTS = ("hits", "hit_bytes", "made", "made_bytes")
TEXTS = ("found", "found_tokens", "forwarded", "forwarded_tokens")

Record = dict[str, Any]
Sums = dict[str, Any]


def empty() -> Sums:
    """runs by how they ended; kinds: {folder of the store: COUNTS}; texts: TEXTS; saved_s: {device: seconds}."""
    return {"runs": {}, "kinds": {}, "texts": dict.fromkeys(TEXTS, 0), "saved_s": {}}


def _add_into(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def add(total: Sums, more: Mapping[str, Any]) -> Sums:
    """`total` with `more` (sums, or a record) added, as a new one. What is malformed raises TypeError or AttributeError."""
    result: Sums = {
        "runs": dict(total["runs"]),
        "kinds": {kind: dict(counts) for kind, counts in total["kinds"].items()},
        "texts": dict(total["texts"]),
        "saved_s": dict(total["saved_s"]),
    }
    for kind, counts in more.get("kinds", {}).items():
        _add_into(result["kinds"].setdefault(kind, dict.fromkeys(COUNTS, 0)), counts)
    for name in ("runs", "texts", "saved_s"):
        _add_into(result[name], more.get(name, {}))
    return result


def new_name(now: float) -> str:
    """A record's name without its ending: sorts by time, differs between runs of one moment."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}.{int(now % 1 * 1e6):06d}-{secrets.token_hex(4)}"


def _named(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))


def _ended(folder: Path) -> list[Path]:
    return [path for path in _named(folder, ".json") if not path.name.endswith((OPEN, SUM))]


def open_record(folder: Path, record: Record) -> Path:
    """Leave the record of a run that begins; returns its path."""
    path = folder / f"{new_name(record['started'])}{OPEN}"
    write_json(path, record, indent=None)
    return path


def end_record(path: Path, record: Record) -> None:
    """Put the whole record of a run in the place of what open_record left at `path`."""
    write_json(path, record, indent=None)
    with contextlib.suppress(FileNotFoundError):  # ended by another already
        os.replace(path, path.with_name(path.name.removesuffix(OPEN) + ".json"))


def add_record(folder: Path, record: Record) -> None:
    """Leave the record of a run that ended as soon as it began."""
    write_json(folder / f"{new_name(record['started'])}.json", record, indent=None)


def open_records(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Runs that go on, or were killed."""
    for path in _named(folder, OPEN):
        record = recall(path)
        if isinstance(record, dict):
            yield path, record


def completed(record: Record, found: Mapping[str, Any], status: str) -> Record:
    """The record of a run without its list of missing files. found: kinds, texts, saved_s as they are told in the record."""
    known = {name: value for name, value in record.items() if name != "missing"}
    done = add({**empty(), "kinds": known.get("kinds", {})}, found)
    return {**known, **done, "runs": {status: 1}, "status": status}


def _sum_of(records: Iterable[Record]) -> dict[str, Any]:
    """{"projects": {project: {"sums", "last": its last record}}} of records and of earlier sums."""
    projects: dict[str, Any] = {}
    for record in records:
        parts = record["projects"] if "projects" in record else {record["project"]: {"sums": record, "last": record}}
        for project, part in parts.items():
            known = projects.setdefault(project, {"sums": empty(), "last": part["last"]})
            known["sums"] = add(known["sums"], part["sums"])
            known["last"] = max(known["last"], part["last"], key=lambda one: float(one["started"]))
    return {"projects": projects}


def _readable(paths: Iterable[Path]) -> Iterator[Record]:
    """The records at `paths`; a damaged one counts for nothing."""
    for path in paths:
        record = recall(path)
        try:
            _sum_of([record])
        except (TypeError, KeyError, AttributeError, ValueError):
            continue
        yield record


def fold(folder: Path, at: int = FOLD_AT, apart: int = KEPT_APART) -> None:
    """Add up all records that ended but the newest `apart` ones, and earlier sums, where there are more than `at` of them."""
    ended = _ended(folder)
    if len(ended) <= at:
        return
    name = secrets.token_hex(8)
    own = folder / f"{name}{FOLDING}"
    own.mkdir()
    for path in (*ended[: len(ended) - apart], *_settled_sums(folder)):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # another process adds it up; another user's to move
            path.rename(own / path.name)
    total = _sum_of(_readable(sorted(own.iterdir())))
    if total["projects"]:
        write_json(folder / f"{name}{SUM}", total, indent=None)
    shutil.rmtree(own, ignore_errors=True)


def _settled_sums(folder: Path) -> Iterator[Path]:
    """Sums whose records are gone: without its sum beside it, what is left of them would count again."""
    for path in _named(folder, SUM):
        left = path.with_name(path.name.removesuffix(SUM) + FOLDING)
        shutil.rmtree(left, ignore_errors=True)
        if not left.exists():
            yield path


def _paths(folder: Path) -> list[Path]:
    """All files that count. A folder of records that are added up counts until their sum is there, or has been added up too."""
    sums = _named(folder, SUM)
    summed = {path.name.removesuffix(SUM) for path in sums}
    parts = [path for path in _named(folder, FOLDING) if path.name.removesuffix(FOLDING) not in summed]
    return [*sums, *_ended(folder), *(path for part in parts for path in sorted(part.glob("*.json")))]


def totals(folder: Path) -> dict[str, Any]:
    """{project: {"sums", "last"}} of all runs that ended."""
    paths = _paths(folder)
    for _ in range(RETRIES):
        found = _sum_of(_readable(paths))
        again = _paths(folder)
        if again == paths:
            break
        paths = again
    return dict(found["projects"])


def usable(folder: Path) -> bool:
    """Whether records can be left there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError):
        return False
    return os.access(folder, os.W_OK)
