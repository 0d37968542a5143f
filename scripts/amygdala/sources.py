"""Where the graph comes from: local sources, read as they lie on disk, and live ones, read from the snapshot that `refresh`
fetched.

graph.jsonl                         a JSON Lines file
{source: table, path: notes.csv}    one source
[{…}, {…}]                          several; each node keeps its source's name as its origin
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amygdala.errors import UserError, shown
from amygdala.files import content_identity
from amygdala.graph import Node, RawNode, Skipped, canonical
from amygdala.keys import key
from amygdala.local import READERS, files_of

LIVE = ("mcp", "http")
# Settings that say how to fetch, not what: changing one leaves the snapshot valid.
FETCH_ONLY = (
    "timeout_s",
    "deadline_s",
    "tries",
    "token_env",
    "environment",
    "at_once",
    "max_nodes",
    "max_node_mb",
    "max_page_mb",
)
SNAPSHOT_FORMAT = 1
ADVICE = "Fetch it with: snakemake --cores 1 refresh"


class NotFetchedError(UserError):
    """There is no snapshot of a live source, or one of another definition."""


@dataclass(frozen=True)
class Source:
    """kind: file, table, stories, mcp or http; name: the origin of its nodes; options: its other settings."""

    kind: str
    name: str
    options: dict[str, Any]

    @property
    def live(self) -> bool:
        return self.kind in LIVE

    @property
    def definition(self) -> str:
        """A digest of what is fetched."""
        given = self.options.get("definition")
        return given or key(self.kind, {name: value for name, value in self.options.items() if name not in FETCH_ONLY})

    def for_jobs(self) -> dict[str, Any]:
        """The source as a job's parameters hold it, which Snakemake keeps on disk: of a live one no address or command."""
        options = {"definition": self.definition} if self.live else self.options
        return {"source": self.kind, "name": self.name, **options}

    @property
    def reading(self) -> dict[str, Any]:
        """The options that decide what is read out of a local source's bytes."""
        return {name: value for name, value in self.options.items() if name not in ("path", "label_names")}


def sources_of(graph: Any) -> list[Source]:
    """The sources of a checked `graph:` setting."""
    items = graph if isinstance(graph, list) else [graph]
    found: list[Source] = []
    for item in items:
        options = {"source": "file", "path": item} if isinstance(item, str) else dict(item)
        kind = options.pop("source")
        found.append(Source(kind, options.pop("name", kind), options))
    return found


def find(path: str, base: Iterable[Path], what: str) -> Path:
    """The first folder of `base` that holds the relative `path`; UserError names where it was looked for."""
    tried = [folder / Path(path).expanduser() for folder in base]
    for candidate in tried:
        with contextlib.suppress(OSError):  # a name too long, say
            if candidate.exists():
                return candidate
    places = " or ".join(str(candidate) for candidate in dict.fromkeys(tried))
    raise UserError(f"{what}: no such file: {places}")


def located(source: Source, base: Sequence[Path], what: str = "graph") -> Source:
    """A local source with its paths found; UserError where one is missing or of the wrong kind."""
    options = dict(source.options)
    for name in ("path", "label_names"):
        if name in options:
            found = find(options[name], base, what)
            folder = source.kind == "stories" and name == "path"
            if found.is_dir() != folder:
                raise UserError(f"{what}: cannot read {found}: it is {'no' if folder else 'a'} folder")
            options[name] = str(found)
    if source.kind == "table":  # the suffix says how it is read, and so belongs to the identity
        tabs = Path(options["path"]).suffix.lower() in (".tsv", ".tab")
        options = {"delimiter": "\t" if tabs else ",", "quotes": not tabs, **options}
    return Source(source.kind, source.name, options)


class Graph:
    """The configured sources with the identity of what they hold now.

    identity: for keys; it covers bytes and reading options, neither paths nor times. UserError where a source is missing,
    NotFetchedError where a live one has no snapshot.
    """

    def __init__(self, config: Mapping[str, Any], base: Sequence[Path], store: Path) -> None:
        self.skip_bad = config["bad_nodes"] == "skip"
        self.snapshot = Path(config["snapshot"]).expanduser()
        self.configured = sources_of(config["graph"])
        self.sources = [source if source.live else located(source, base) for source in self.configured]
        self.files = {
            source.name: files_of(source.kind, Path(source.options["path"]), source.options)
            for source in self.sources
            if not source.live
        }
        self._memos = store / "memo"
        live = [source for source in self.sources if source.live]
        self.identity: list[Any] = [self.skip_bad]
        for source in self.sources:
            if source.live:
                continue
            root = Path(source.options["path"])
            self.identity.append([source.kind, source.name, source.reading, self._content(self.files[source.name], root)])
        if live:
            check_fetched(self.snapshot, live)
            self.identity.append(["snapshot", self._content([self.snapshot], self.snapshot), [s.name for s in live]])

    def _content(self, files: list[Path], root: Path) -> list[str]:
        """Identities of the files' bytes; those of a folder are one, with their names in it."""
        found = []
        for group in [files] if root.is_dir() else [[path] for path in files]:
            try:
                found.append(content_identity(group, root if root.is_dir() else group[0], self._memo(group)))
            except OSError as error:
                raise UserError(f"graph: cannot read {error.filename or group[0]}: {error.strerror}") from None
        return found

    def _memo(self, files: list[Path]) -> Path:
        return self._memos / f"graph.{key([str(path.resolve()) for path in files])}.json"

    @property
    def inputs(self) -> list[str]:
        """The files and folders that the graph is made from."""
        paths = [
            str(source.options[name]) for source in self.sources for name in ("path", "label_names") if name in source.options
        ]
        return [*paths, *([str(self.snapshot)] if any(source.live for source in self.sources) else [])]

    @property
    def title(self) -> str:
        """For messages: the path of a lone local source, else the sources' names."""
        lone = self.sources[0]
        if len(self.sources) == 1 and not lone.live:
            return str(lone.options["path"])
        return ", ".join(source.name for source in self.sources)

    def nodes(self) -> tuple[list[Node], list[Skipped]]:
        """The nodes of all sources in order of source name and key, and those left out."""
        nodes: list[Node] = []
        skipped: list[Skipped] = []
        fetched = read_live(self.snapshot) if any(source.live for source in self.sources) else {}
        for source in sorted(self.sources, key=lambda source: source.name):
            if source.live:
                raws: Iterable[RawNode] = fetched[source.name]
            else:
                raws = READERS[source.kind](Path(source.options["path"]), source.options)
            good, bad = canonical(source.name, raws, self.skip_bad)
            nodes += good
            skipped += bad
        if not nodes:
            raise UserError(f"graph: no node of {self.title} can be used ({len(skipped)} were skipped)")
        return nodes, skipped


def live_lines(fetched: Mapping[str, tuple[Source, list[RawNode]]]) -> str:
    """The snapshot of live sources: a header, then a raw node a line, in order of source and key."""
    heads = {name: {"definition": source.definition, "nodes": len(raws)} for name, (source, raws) in sorted(fetched.items())}
    lines = [json.dumps({"amygdala_snapshot": SNAPSHOT_FORMAT, "sources": heads})]
    for name, (_, raws) in sorted(fetched.items()):
        for raw in sorted(raws, key=lambda raw: raw.key):
            record = {"origin": name, "key": raw.key, "text": raw.text}
            lines.append(_dumped(record | ({"time": raw.time} if raw.time is not None else {})))
    return "\n".join(lines) + "\n"


def previous_of(snapshot: str | Path) -> Path:
    """Where `refresh` keeps the snapshot that it replaced: what `changes` goes by before the first release."""
    path = Path(snapshot)
    return path.with_name(f"{path.name}.previous")


def _header(path: Path) -> dict[str, Any]:
    """{source name: {"definition", "nodes"}}; NotFetchedError where the file is no snapshot of live sources."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline())
        sources = dict(header["sources"])
        if header["amygdala_snapshot"] != SNAPSHOT_FORMAT:
            raise ValueError("another format")
        for facts in sources.values():
            if not isinstance(facts["definition"], str) or not isinstance(facts["nodes"], int):
                raise TypeError("its header is damaged")
    except OSError as error:
        raise NotFetchedError(f"graph: cannot read {path}: {error.strerror}. {ADVICE}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotFetchedError(f"{path}:1: not a snapshot of amygdala's ({error}). {ADVICE}") from None
    return sources


def _dumped(record: dict[str, Any]) -> str:
    """JSON as people read it; escaped where it holds half a surrogate pair (a bad node, which builds refuse or skip)."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(record)
    return line


def definition_in(path: Path, name: str) -> str | None:
    """The definition that a source had when the snapshot was fetched."""
    definition = _header(path).get(name, {}).get("definition")
    return definition if isinstance(definition, str) else None


def check_replaceable(path: Path) -> None:
    """UserError where something stands at `path` that `refresh` did not write: it would be lost."""
    if not path.exists():
        return
    start = path.read_bytes()[:64] if path.is_file() else b"a folder"
    if start.strip() and b'"amygdala_snapshot"' not in start:
        raise UserError(f"snapshot: {path} is no snapshot of amygdala's and is not overwritten; give another path")


def check_fetched(path: Path, live: Sequence[Source]) -> None:
    """NotFetchedError where the snapshot is missing, or holds a source that is now defined differently."""
    if not path.exists():
        names = ", ".join(shown(source.name) for source in live)
        raise NotFetchedError(f"graph: there is no snapshot of {names} yet ({path}). {ADVICE}")
    header = _header(path)
    for source in live:
        if header.get(source.name, {}).get("definition") != source.definition:
            what = "is defined differently than" if source.name in header else "is not among the sources"
            raise NotFetchedError(f"graph: source {shown(source.name)} {what} when {path} was fetched. {ADVICE}")


def _raw(line: bytes, where: str) -> tuple[str, RawNode]:
    """(source name, node) of a snapshot's line; ValueError, KeyError, TypeError or RecursionError where it is damaged."""
    record = json.loads(line)
    given = [record["origin"], record["key"], record["text"]]
    given += [record["time"]] if record.get("time") is not None else []
    if not all(isinstance(value, str) for value in given):
        raise TypeError("a field is no string")
    return record["origin"], RawNode(record["key"], record["text"], None, record.get("time"), None, where)


def read_live(path: Path) -> dict[str, list[RawNode]]:
    """{source name: raw nodes} of a snapshot of live sources. UserError where it is damaged."""
    header = _header(path)
    found: dict[str, list[RawNode]] = {name: [] for name in header}
    with open(path, "rb") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            try:
                name, raw = _raw(line, f"{path}:{number}")
                found[name].append(raw)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{path}:{number}: damaged ({error}). {ADVICE}") from None
    for name, facts in header.items():
        count = len(found[name])
        if count != facts["nodes"]:
            raise UserError(
                f"{path}: {count} nodes of {shown(name)}, and its header says {facts['nodes']}: it was cut. {ADVICE}"
            )
    return found
