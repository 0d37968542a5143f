"""Sources on this machine's disk: a JSON Lines file, a knowledge-graph server's memory file, a table, a folder of stories."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from amygdala.errors import UserError, shown
from amygdala.graph import RawNode
from amygdala.keys import text_digest
from amygdala.records import Fields
from amygdala.tags import emotion_name

LABEL_SCORE = 10.0
MEMORY_FIELDS = {"key": "name", "text": "observations"}
FOLDERS = "stories/<emotion>.txt, paired/<scenario>/<emotion>.txt, direct/<emotion>.txt, or a neutral text _<name>.txt"

Options = Mapping[str, Any]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of the non-blank lines; UserError where the file cannot be read, or is not UTF-8."""
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None


def record_of(line: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not a line of JSON ({error})") from None


def read_file(path: Path, options: Options) -> Iterator[RawNode]:
    """JSON Lines: a node a line, or the entities of a memory file of @modelcontextprotocol/server-memory."""
    form = options.get("format", "auto")
    found = False
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        try:
            record = record_of(line)
            if form == "auto":
                form = "memory" if isinstance(record, dict) and record.get("type") in ("entity", "relation") else "nodes"
            if form == "memory" and isinstance(record, dict) and record.get("type") == "relation":
                continue
            fields = Fields.of({**(MEMORY_FIELDS if form == "memory" else {}), **options})
            yield from fields.nodes(record, where)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        found = True
    if not found:
        raise UserError(f"{path}: no nodes in it; expected one JSON object with 'key' and 'text' a line")


def _column(path: Path, header: list[str] | None, wanted: str | int, width: int) -> int:
    if isinstance(wanted, int):
        if wanted >= width:
            raise UserError(f"{path}: there is no column {wanted}: the first row has {width}, counted from 0")
        return wanted
    if header is None or wanted not in header:
        known = f"; it has {', '.join(shown(name) for name in header)}" if header else ", and no header (header: false)"
        raise UserError(f"{path}: there is no column {shown(wanted)}{known}")
    if header.count(wanted) > 1:
        raise UserError(f"{path}: there are {header.count(wanted)} columns {shown(wanted)}: name one by its number, from 0")
    return header.index(wanted)


def _rows(path: Path, options: Options) -> Iterator[tuple[int, list[str]]]:
    quoting: Any = csv.QUOTE_MINIMAL if options.get("quotes", True) else csv.QUOTE_NONE
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(
        io.StringIO(_decoded(path), newline=""), delimiter=options.get("delimiter", ","), quoting=quoting, strict=True
    )
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}:{first}: no row of a table ({error}); see `quotes` and `delimiter`") from None
        if row is None:
            return
        if row:
            yield first, row


def _labels(cell: str, options: Options, names: list[str] | None) -> dict[str, float]:
    """Scores of a label cell: several labels parted by `separator`, numbers standing for lines of `label_names`."""
    scores = {}
    for label in filter(None, (part.strip() for part in cell.split(options.get("separator", ",")))):
        if names is not None:
            if not label.isdecimal() or int(label) >= len(names) or not names[int(label)]:
                raise ValueError(f"label {shown(label)} is no line number (from 0) of label_names, which has {len(names)}")
            label = names[int(label)]
        scores[emotion_name(label)] = LABEL_SCORE
    return scores


def _cell_score(cell: str, emotion: str, scale: float) -> float:
    try:
        if "_" in cell:  # Python's own digit separator
            raise ValueError
        score = float(cell) * scale + 0.0
    except ValueError:
        raise ValueError(f"{shown(cell)} is no score of {shown(emotion)}") from None
    if not 0 <= score <= 10:
        raise ValueError(f"score {shown(cell)} of emotion {shown(emotion)} is outside 0-10 (times the scale {scale:g})")
    return score


def read_table(path: Path, options: Options) -> Iterator[RawNode]:
    """CSV or TSV: a text column, and a label column or score columns; with neither, the texts' own tag lines count.

    Without a key column a row goes by its text's digest, so that a row put in between renames no other.
    """
    rows = _rows(path, options)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: no rows in it")
    header = first[1] if options.get("header", True) else None
    width = len(first[1])

    def column(name: str) -> int | None:
        return _column(path, header, options[name], width) if name in options else None

    text_at, label_at, key_at = column("text"), column("label"), column("key")
    time_at, scenario_at = column("time"), column("scenario")
    wanted = options.get("scores", {})
    wanted = wanted if isinstance(wanted, Mapping) else {name: name for name in wanted}
    try:
        score_at = [(emotion_name(str(to)), _column(path, header, name, width)) for name, to in wanted.items()]
    except ValueError as error:
        raise UserError(f"{path}: scores: {error}") from None
    names = _label_names(options)
    tagged = label_at is None and not score_at
    seen: Counter[str] = Counter()
    for number, row in rows if header is not None else _chain(first, rows):
        where = f"{path}:{number}"
        needed = [at for at in (text_at, label_at, key_at, time_at, scenario_at, *(at for _, at in score_at)) if at is not None]
        if any(cell.strip() for cell in row[width:]):
            hint = "is a text with the delimiter in it not quoted?"
            raise UserError(f"{where}: the row has {len(row)} columns, and the first row {width}; {hint}")
        if max(needed) >= len(row):
            raise UserError(f"{where}: the row has {len(row)} columns, and column {max(needed)} (from 0) is needed")
        assert text_at is not None
        text = row[text_at]
        try:
            scores = _labels(row[label_at], options, names) if label_at is not None else {}
            for emotion, at in score_at:
                if row[at].strip():
                    scores[emotion] = max(_cell_score(row[at], emotion, options.get("scale", 1)), scores.get(emotion, 0.0))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        key = row[key_at] if key_at is not None else text_digest(text)[:16]
        if key_at is None:
            seen[key] += 1
            key += f".{seen[key]}" if seen[key] > 1 else ""
        time = row[time_at] if time_at is not None else None
        scenario = row[scenario_at] if scenario_at is not None and row[scenario_at].strip() else None
        yield RawNode(key, text, None if tagged else scores, time, scenario, where)


def _label_names(options: Options) -> list[str] | None:
    if "label_names" not in options:
        return None
    return [line.strip() for line in _decoded(Path(options["label_names"])).rstrip().split("\n")]


def _chain(first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rest


def story_files(folder: Path) -> list[Path]:
    """The .txt files of a stories folder, sorted; UserError for one that lies where none belongs."""
    below = [path for name in ("stories", "paired", "direct") for path in (folder / name).rglob("*") if path.is_file()]
    strange = sorted(path for path in below if path.suffix != ".txt" and not path.name.startswith("."))
    if strange:
        raise UserError(f"{_plain(strange[0])}: in a stories folder a text's name ends in .txt")
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    for path in files:
        parts = path.relative_to(folder).parts
        depth = {"stories": 2, "direct": 2, "paired": 3}.get(parts[0])
        if len(parts) != depth and not (path.name.startswith("_") and len(parts) == 1):
            raise UserError(f"{_plain(path)}: in a stories folder a text is {FOLDERS}")
    if not files:
        raise UserError(f"{folder}: no texts in it; expected {FOLDERS}")
    return files


def _story_text(path: Path) -> str:
    text = "\n".join(line.rstrip("\r") for line in _decoded(path).split("\n")).strip()
    if not text:
        raise UserError(f"{_plain(path)}: the text is empty")
    return text


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{_plain(path)}:{line}: not UTF-8 ({error.reason})") from None


def _plain(path: Path) -> str:
    """A path for messages: names in a folder of stories may hold anything."""
    return shown(str(path), 4096)[1:-1]


def read_stories(folder: Path, options: Options) -> Iterator[RawNode]:
    """A folder of texts whose names say the emotion. `_*.txt` and `baseline.txt` carry none: negatives of every emotion."""
    files = story_files(folder)
    known = set(files)
    for scene in sorted({path.parent for path in files if path.relative_to(folder).parts[0] == "paired"}):
        if scene / "baseline.txt" not in known:
            raise UserError(f"{_plain(scene)}: a paired scenario needs a baseline.txt beside its emotions")
    for path in files:
        relative = path.relative_to(folder)
        kind = relative.parts[0]
        paired = kind == "paired"
        neutral = path.name.startswith("_") or path.name == "baseline.txt"
        try:
            scores = {} if neutral else {emotion_name(path.stem): LABEL_SCORE}
        except ValueError as error:
            raise UserError(f"{_plain(path)}: the file's name: {error}") from None
        text, scenario = _story_text(path), relative.parts[1] if paired else None
        if kind != "direct":
            yield RawNode(relative.as_posix(), text, scores, None, scenario, _plain(path))
            continue
        for example in dict.fromkeys(part.strip() for part in re.split(r"\n[ \t]*\n", text)):
            if example:
                yield RawNode(f"{relative.as_posix()}#{text_digest(example)[:12]}", example, scores, None, None, _plain(path))


READERS: dict[str, Callable[[Path, Options], Iterator[RawNode]]] = {
    "file": read_file,
    "table": read_table,
    "stories": read_stories,
}


def files_of(kind: str, path: Path, options: Options) -> list[Path]:
    """The files whose bytes a local source is made from."""
    if kind == "stories":
        return story_files(path)
    return [path, *([Path(options["label_names"])] if "label_names" in options else [])]
