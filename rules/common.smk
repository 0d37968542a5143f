import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

sys.path.append(str(Path(workflow.basedir) / "scripts"))

from amygdala.build import Build
from amygdala.errors import UserError
from amygdala.plan import warnings_of

try:
    build = Build(config, Path(workflow.basedir), workflow.configfiles)
except UserError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:
    for line in warnings_of(build.plan, build.rules):
        logger.warning(f"warning: {line}")


wildcard_constraints:
    emotion=r"[^\W\d_][^\s/.]*",
    key="[0-9a-f]{16}",
    shard="[0-9]+",


def unless_stored(outputs, inputs):
    """The inputs of a job, or none where all its outputs exist.

    Existence is validity. A finished job that named an input under a new key (the snapshot, an index) would be run again by
    Snakemake, because that input is made in the same run, and ancient() covers existing files alone.
    """
    if all(Path(path).exists() for path in outputs):
        return []
    return [ancient(path) for path in inputs]


def refuse_other_key(emotion, key, keys):
    """Raise where a file is asked for by a key that is not the current one."""
    try:
        build.expect(emotion, key, keys)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def get_results(target):
    """Stable paths under results/ that a target publishes."""
    folder = f"{build.results}/{build.selections[target].folder}"
    files = [f"{folder}/vectors.safetensors", f"{folder}/manifest.json"]
    return files + ([f"{build.results}/quality.json"] if target == "readout" else [])


def get_stored(target):
    """The stored files behind get_results, in the same order."""
    files = build.release(build.selections[target])
    return files + ([build.quality] if target == "readout" else [])


def get_published(target):
    """What a target rule asks for: the marker of its release, and the results themselves."""
    return [build.marker(build.selections[target]), *get_results(target)]
