"""What a run of the workflow found in the store and what it made, recorded in the ledger by Snakemake's main process.

A run that has jobs leaves an open record before the first of them (Snakemake's onstart), with the files that are missing; what
became of these is added when it ends. After a kill the next run of the same results folder does that. A run that has nothing to
do calls no handler of Snakemake's: it is recorded when the process ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala import ledger, lock
from amygdala.behind import files_behind
from amygdala.errors import UserError
from amygdala.files import recall
from amygdala.keys import key

if TYPE_CHECKING:
    from amygdala.build import Build

INDEX = "index"  # the folder of a space's indices
Identity = tuple[int, int, int]  # inode, time, size: another one means another file


def project_of(results: str | Path) -> str:
    """What a results folder goes by in the ledger, which others may read: it tells no path."""
    return key(str(Path(results).expanduser().resolve()))


def _identity(path: str) -> Identity | None:
    try:
        stat = os.stat(path)  # noqa: PTH116 (thousands of them: no Path for each)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _kind(path: str, store: str) -> str:
    """The folder of the store that a file lies in."""
    return path.removeprefix(f"{store}/").partition("/")[0]


def _count(paths: Mapping[str, int], store: str, files: str, size: str) -> dict[str, dict[str, int]]:
    """{kind: {files: number, size: bytes}} of {path: bytes}"""
    kinds: dict[str, dict[str, int]] = {}
    for path, taken in paths.items():
        counts = kinds.setdefault(_kind(path, store), {files: 0, size: 0})
        counts[files] += 1
        counts[size] += taken
    return kinds


def _index_stats(path: str) -> Mapping[str, Any]:
    """What the capture behind an index did; empty where the index is gone or damaged."""
    from amygdala.segments import DamagedError, Mapped

    try:
        stats = Mapped(path).facts["stats"]
        return {name: int(stats[name]) for name in ("unique_texts", "tokens", "forwarded_texts", "forwarded_tokens")}
    except (DamagedError, UserError, KeyError, TypeError, ValueError):
        return {}


def _new_segments(spaces: Iterable[str], since_ns: int) -> dict[str, int]:
    """{path: bytes} of segments no older than `since_ns`."""
    found = {}
    for space in spaces:
        for path in Path(space).glob("layer_*/*.safetensors"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                if stat.st_mtime_ns >= since_ns:
                    found[str(path)] = stat.st_size
    return found


def _rows_in(segments: Iterable[str]) -> tuple[int, int]:
    """(texts, their tokens) that have rows in segments of one space, each text once."""
    from amygdala.segments import DamagedError, Mapped

    tokens: dict[bytes, int] = {}
    for path in segments:
        with contextlib.suppress(DamagedError, UserError, KeyError, ValueError):
            mapped = Mapped(path)
            packed = mapped.array("digests")
            tokens |= dict(zip([row.tobytes() for row in packed], mapped.array("tokens").tolist(), strict=True))
    return len(tokens), sum(tokens.values())


def _indices(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if Path(path).parent.name == INDEX]


def outcome(store: str, record: Mapping[str, Any], since_ns: int, again: Iterable[str] = ()) -> dict[str, Any]:
    """What became of a record's missing files: kinds, texts, saved_s. again: files made anew that were there before; since_ns:
    segments are the run's own from then on.

    Texts of an index that this run made count by what its capture told; where a capture got no index done, rows that lie in
    new segments were forwarded.
    """
    made = {path: taken[2] for path in (*record["missing"], *again) if (taken := _identity(path)) is not None}
    first, spaces = record["spaces"][:1], record["spaces"]
    segments = _new_segments(spaces, since_ns) if record["missing"] or again else {}
    texts = dict.fromkeys(ledger.TEXTS, 0)
    own = set(made)
    unfinished = False
    for index in [path for path in record["indices"] if first and path.startswith(f"{first[0]}/")]:
        stats = _index_stats(index)
        if not stats:
            unfinished |= index in record["missing"]
            continue
        forwarded, tokens = (stats["forwarded_texts"], stats["forwarded_tokens"]) if index in own else (0, 0)
        texts["forwarded"] += forwarded
        texts["forwarded_tokens"] += tokens
        texts["found"] += stats["unique_texts"] - forwarded
        texts["found_tokens"] += max(0, stats["tokens"] - tokens)
    if unfinished and segments:
        rows, tokens = _rows_in(path for path in segments if path.startswith(f"{first[0]}/"))
        texts["forwarded"] = max(texts["forwarded"], rows)
        texts["forwarded_tokens"] = max(texts["forwarded_tokens"], tokens)
    kinds = _count(made | segments, store, "made", "made_bytes")
    return {"kinds": kinds, "texts": texts, "saved_s": _saved(first, texts["found_tokens"])}


def _saved(space: Iterable[str], tokens: int) -> dict[str, float]:
    """{device: seconds} that `tokens` would have taken it at the last measured rate; empty where none was measured."""
    for folder in space:
        rate = recall(Path(folder) / "rate.json")
        with contextlib.suppress(TypeError, KeyError, ZeroDivisionError):
            return {str(rate["device"]): round(tokens / rate["tokens_per_s"], 3)} if tokens else {}
    return {}


class RunRecord:
    """The record of one run of Snakemake. `begin` and `end` are for its handlers, `leave` for the end of the process.

    build: None where nothing is built, and nothing recorded. Nothing here ends a run: where the ledger cannot be written, the
    run is not recorded. To be made in the run's folder, which paths are relative to.
    """

    def __init__(self, workflow: Any, build: Build | None) -> None:
        self.workflow = workflow
        self._build = build
        self._record: dict[str, Any] = {}
        self._before: dict[str, Identity] = {}
        self._path: Path | None = None
        self._working = Path.cwd()

    @property
    def build(self) -> Build:
        assert self._build is not None
        return self._build

    @property
    def folder(self) -> Path:
        return Path(self.build.store) / "ledger"

    @property
    def _forced(self) -> bool:
        """Whether files that are there may be made again. (Else an inode tells nothing: Snakemake copies what it updates.)"""
        asked = self.workflow.dag_settings
        return bool(asked.forceall or asked.forcerun or asked.forcetargets)

    def _make(self) -> bool:
        """Look at all files behind the run's targets; whether there are any."""
        dag = self.workflow.dag
        targets = sorted({rule.name for rule in dag.targetrules} | {job.rule.name for job in dag.targetjobs})
        asked = dict.fromkeys(files_behind(self.build, targets))
        asked |= dict.fromkeys(path for path in map(str, dag.targetfiles) if path.startswith(f"{self.build.store}/"))
        if not asked:
            return False
        seen = {path: _identity(path) for path in asked}
        self._before = {path: identity for path, identity in seen.items() if identity is not None}
        self._record = {
            "project": project_of(self.build.results),
            "started": time.time(),
            "targets": targets,
            "kinds": _count({path: one[2] for path, one in self._before.items()}, self.build.store, "hits", "hit_bytes"),
            "missing": [path for path, identity in seen.items() if identity is None],
            "indices": _indices(asked),
            "spaces": self.build.spaces,
        }
        return True

    def begin(self) -> None:
        """The run has jobs and is about to start them."""
        if self._build is None:
            return
        with contextlib.suppress(OSError, UserError):
            if ledger.usable(self.folder) and self._make():
                self._complete_killed()
                self._path = ledger.open_record(self.folder, self._record)

    def end(self, status: str) -> None:
        """The run's jobs have ended. status: done or failed."""
        path, self._path = self._path, None
        if path is None:
            return
        with contextlib.suppress(OSError, UserError):
            again = [name for name, before in self._before.items() if self._forced and _identity(name) not in (before, None)]
            found = outcome(self.build.store, self._record, path.stat().st_mtime_ns, again)
            record = ledger.completed({**self._record, "ended": time.time()}, found, status)
            _take_back(record, {name: self._before[name][2] for name in again}, self.build.store)
            ledger.end_record(path, _short(record))
            ledger.fold(self.folder)

    def leave(self) -> None:
        """The process ends: record a run that had nothing to do, and one that was broken off.

        Snakemake is back in the folder that it was started in by then, which with --directory is another.
        """
        with contextlib.suppress(OSError), contextlib.chdir(self._working):
            self._leave()

    def _leave(self) -> None:
        workflow = self.workflow
        if self._path is not None:
            self.end("failed")
        if self._record or workflow.scheduler is None or workflow.dryrun or workflow.touch or len(workflow.dag):
            return
        with contextlib.suppress(OSError, UserError):
            if ledger.usable(self.folder) and self._make():
                self._complete_killed_alone()
                found = outcome(self.build.store, {**self._record, "missing": []}, 0)
                record = ledger.completed({**self._record, "ended": time.time()}, found, "nothing to do")
                ledger.add_record(self.folder, _short(record))
                ledger.fold(self.folder)

    def _own_open(self) -> list[tuple[Path, ledger.Record]]:
        """The records that runs of this results folder left open."""
        own = self._record["project"]
        return [(path, record) for path, record in ledger.open_records(self.folder) if record.get("project") == own]

    def _complete_killed(self) -> None:
        """End the records that killed runs of this results folder left: this run holds the lock, so they run no more."""
        for path, record in self._own_open():
            with contextlib.suppress(TypeError, KeyError, AttributeError, OSError):
                found = outcome(self.build.store, record, path.stat().st_mtime_ns)
                ledger.end_record(path, _short(ledger.completed(record, found, "killed")))

    def _complete_killed_alone(self) -> None:
        """As _complete_killed, of a run that holds no lock, since it had nothing to do: another may build in its folder."""
        if self._own_open():
            with contextlib.suppress(UserError):
                lock.take(lock.RUN, lambda line: None)
                try:
                    self._complete_killed()
                finally:
                    lock.release(lock.RUN)


def _take_back(record: dict[str, Any], again: Mapping[str, int], store: str) -> None:
    """Files that were made anew are no hits."""
    for kind, counts in _count(again, store, "hits", "hit_bytes").items():
        for name, number in counts.items():
            record["kinds"][kind][name] -= number


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that ended, without what only its end needed."""
    return {name: value for name, value in record.items() if name not in ("missing", "indices", "spaces")}
