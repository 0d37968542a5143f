"""Show a release under results/, and say which one it is."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from amygdala.checks import check_stored
from amygdala.files import whole, write_text
from amygdala.job import job

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


if "snakemake" in globals():
    with job(snakemake) as say:
        targets = [Path(path) for path in snakemake.output[1:]]
        publish(
            dict(zip(targets, [Path(path) for path in snakemake.input], strict=True)),
            Path(snakemake.output[0]),
            snakemake.params.prefix,
        )
        say(f"{', '.join(str(target) for target in targets)} from {snakemake.params.release}")
