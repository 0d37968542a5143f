"""Show a release under results/, and say which one it is."""

import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from amygdala.checks import DamagedFileError, check_stored, made_from
from amygdala.errors import UserError
from amygdala.files import whole, write_json, write_text
from amygdala.job import job
from amygdala.releases import HISTORY_KEPT, TARGET, history_path, read_history

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def publish(copies: Mapping[Path, Path], marker: Path, prefix: str) -> None:
    """Copy each {target: stored file} whole, in order, then leave `marker` as the only file of its folder named `prefix`….

    The marker goes first, so that a run killed halfway publishes again. UserError where a stored file is damaged; nothing is
    published then.
    """
    for stored in filter(Path.exists, copies.values()):
        check_stored(stored)
    for stale in marker.parent.glob(f"{prefix}*"):
        stale.unlink()
    for target, stored in copies.items():
        with whole(target) as temporary:
            shutil.copyfile(stored, temporary)
    write_text(marker, "".join(f"{target.name} {stored}\n" for target, stored in copies.items()))


def check(stored: Iterable[Path]) -> None:
    """UserError where the checksum of a stored file does not fit, or it has none: what is not built anew is looked at."""
    for path in stored:
        try:
            if made_from(path) is None:
                raise DamagedFileError("it does not say what it is made from")
        except DamagedFileError as error:
            raise UserError(f"{path} is damaged ({error}), nothing was published: set `release: null`, and delete it") from None


def note(results: Path, key: str) -> None:
    """Add the release to the history of a results folder, unless it is the last one there."""
    history = read_history(results)
    if not history or history[-1]["key"] != key:
        history.append({"key": key, "time": round(time.time(), 3)})
        write_json(history_path(results), history[-HISTORY_KEPT:])


if "snakemake" in globals():
    with job(snakemake) as say:
        targets, stored = ([Path(path) for path in paths] for paths in (snakemake.output[1:], snakemake.input))
        marker, params = Path(snakemake.output[0]), snakemake.params
        if getattr(params, "check", False):
            check(stored)
        publish(dict(zip(targets, stored, strict=True)), marker, params.prefix)
        if params.prefix == f"{TARGET}.":
            note(marker.parent.parent, params.release)
        say(f"{', '.join(str(target) for target in targets)} from {params.release}")
