"""Check every file that the current release rests on. What is damaged is set aside, so that the next run makes it again."""

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.build import Build
from amygdala.corpus import read_index
from amygdala.errors import UserError, listed
from amygdala.files import set_aside, write_json
from amygdala.inspection import (
    CHANGED,
    DAMAGED,
    MISSING,
    SEGMENTS,
    UNREADABLE,
    UNSTAMPED,
    Finding,
    Inspection,
    inspect,
)
from amygdala.inventory import REPORT, Target, paths_of, targets_of, to_repair
from amygdala.job import Say, job
from amygdala.keys import code_memo, key, misremembered
from amygdala.modelinfo import describe, set_model_aside
from amygdala.plan import make_plan
from amygdala.progress import Ticker
from amygdala.recipes import recipe_key
from amygdala.sources import Graph

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

MOST_NAMED = 5  # missing files of a stage that are named one by one


def put_aside(finding: Finding) -> str:
    """Make way for a sound file; says what was done."""
    path = Path(finding.path)
    if finding.stage == "models" and path.with_suffix("").exists():
        return set_model_aside(path)
    return set_aside(path)


def mend(inspection: Inspection, targets: Sequence[Target]) -> dict[str, str]:
    """Set damaged files aside, and forget that changed results are published: {path: what was done}."""
    done = {one.path: put_aside(one) for one in inspection.found if one.what == DAMAGED}
    markers = {shown: Path(target.marker) for target in targets for shown in target.published}
    for one in inspection.found:
        if one.what == CHANGED:
            try:
                markers[one.path].unlink(missing_ok=True)
                done[one.path] = "the next run publishes it again"
            except OSError as error:
                done[one.path] = f"{markers[one.path]} could not be removed ({error.strerror}): delete it"
    return done


def repairs(inspection: Inspection, made: Iterable[Target], asked: Iterable[str]) -> list[str]:
    """The files that the next run is to make: what is gone of the targets that were made, their markers where a published file
    was changed, and what was asked for before.
    """
    gone = {one.path for one in inspection.found if one.what in (DAMAGED, MISSING)}
    changed = {one.path for one in inspection.found if one.what == CHANGED}
    found = set(asked)
    for target in made:
        found |= gone & {*target.published, *(file.path for file in target.stored)}
        found |= {target.marker} if changed & target.published.keys() else set()
    return sorted(found)


def check_memos(build: Build, inspection: Inspection, sheet: str | None) -> list[str]:
    """Remove memos that say what is not so; returns a line for each. All of them can be worked out again."""
    lines = []
    index = read_index(Path(build.current.index_path)) if inspection.sound(build.current.index_path) else None
    if index is None:
        with contextlib.suppress(OSError):  # nothing is made anew in a store that cannot be written
            build.plan_memo.unlink(missing_ok=True)  # so that the next run makes the index anew
    else:
        plan = make_plan(index, build.rules, build.config["shards"], build.current.graph.title)
        if key(asdict(plan)) != key(asdict(build.plan)):
            lines.append(_drop(build.plan_memo, "it is not the plan of the snapshot"))
    if sheet is not None and not _is_sheet(Path(sheet)):
        lines.append(_drop(Path(sheet), "its recipes have other keys"))
    if wrong := misremembered():
        memo = code_memo(Path(build.store) / "memo")
        lines.append(_drop(memo, f"{listed(wrong)} holds something else"))
    base = [Path(), build.home]
    with tempfile.TemporaryDirectory() as empty:  # no memo there: all files are read
        if Graph(build.config, base, Path(empty)).identity != build.current.graph.identity:
            lines += [_drop(memo, "the graph holds something else") for memo in _memos(build, "graph.*.json")]
        if build.model.kind in ("folder", "gguf") and describe(build.config["model"], base, Path(empty)) != build.model:
            lines += [_drop(memo, "the model holds something else") for memo in _memos(build, "model.*.json")]
    return lines


def _memos(build: Build, pattern: str) -> list[Path]:
    return sorted(Path(build.store, "memo").glob(pattern))


def _drop(memo: Path, why: str) -> str:
    try:
        memo.unlink(missing_ok=True)
        return f"memo {memo}: {why}; it was removed"
    except OSError as error:
        return f"memo {memo}: {why}; it could not be removed ({error.strerror}): delete it"


def _is_sheet(path: Path) -> bool:
    try:
        told = json.loads(path.read_bytes())
        recipes = all(recipe_key(recipe) == name for name, recipe in told["recipes"].items())
        return recipes and all(key(modules) == digest for digest, modules in told["code"].items())
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def lines_of(inspection: Inspection, done: dict[str, str], asked: Sequence[str], made: bool) -> list[str]:
    """A line a file, of missing ones at most MOST_NAMED a stage; made: whether the readout is published."""
    lines = []
    for one in inspection.found:
        if one.what in (DAMAGED, CHANGED, UNREADABLE):
            lines.append(f"{one.what}: {one.path}: {'; '.join(filter(None, (one.why, done.get(one.path))))}")
    missing = [one for one in inspection.found if one.what == MISSING and (made or one.path in asked or one.stage == SEGMENTS)]
    for stage, count in Counter(one.stage for one in missing).items():
        named = [one.path for one in missing if one.stage == stage]
        lines += [f"missing: {path}: the next run makes it" for path in named[:MOST_NAMED]]
        if count > MOST_NAMED:
            lines.append(f"missing: {count - MOST_NAMED} more of {stage}: the next run makes them")
    unstamped = [one.path for one in inspection.found if one.what == UNSTAMPED]
    if unstamped:
        lines.append(
            f"{len(unstamped)} files do not say what they are made from, as an older amygdala made them: their keys were not "
            f"checked, only what they hold; the first is {unstamped[0]}"
        )
    return lines


def advice(inspection: Inspection) -> str:
    """What to do. A file that could not be read or set aside is still there, so that no run makes it anew."""
    left = sum(one.what == UNREADABLE or (one.what == DAMAGED and os.path.lexists(one.path)) for one in inspection.found)
    if not left:
        return "Run snakemake again: it makes them anew"
    return (
        f"{left} of them could not be read or set aside, and stay as they are: see to these; the next run makes the others anew"
    )


def verify(build: Build, sheet: str | None, say: Say) -> None:
    """Check, set aside, tell, and write results/verify.json. UserError where anything is not as it should be."""
    targets, asked = targets_of(build), to_repair(build)
    published = [target for target in targets if target.made]
    made = targets[0] in published
    inspection = inspect(build, targets, Ticker(say))
    done = mend(inspection, targets)
    wanted = sorted(set(repairs(inspection, published, asked)) & paths_of(targets))
    memos = check_memos(build, inspection, sheet)
    for line in [*lines_of(inspection, done, asked, made), *memos]:
        say(line)
    if not made:
        say("the readout of this configuration and graph is not published: what is missing is not told")
    counted = {"files": inspection.files, "bytes": inspection.bytes, "rows": inspection.rows}
    found = [{**asdict(one), "done": done.get(one.path, "")} for one in inspection.found]
    report = f"{build.results}/{REPORT}"
    write_json(report, {"checked": counted, "found": found, "memos": memos, "repair": wanted})
    amount = f"{inspection.files} files, {inspection.bytes / 1e6:.1f} MB, {inspection.rows} rows of activations"
    bad = Counter(one.what for one in inspection.found if one.what != UNSTAMPED and (one.what != MISSING or made))
    if bad or memos or wanted:
        counts = [f"{count} {what}" for what, count in bad.items()] + ([f"{len(memos)} memos wrong"] if memos else [])
        raise UserError(
            f"of {amount}: {', '.join(counts) or f'{len(wanted)} still missing'}. {advice(inspection)} (all of it: {report})"
        )
    say(f"checked {amount}: all sound")


if "snakemake" in globals():
    with job(snakemake, aloud=True, needs_input=False) as say:
        params: Any = snakemake.params
        verify(Build(snakemake.config, Path(params.home)), params.sheet, say)
