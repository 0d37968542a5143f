# What happens while rules are read, and when a run starts: the configuration is checked, and the build worked out.
import atexit
import logging
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

sys.path.append(str(Path(workflow.basedir) / "scripts"))

from amygdala import lock
from amygdala.build import Build, check
from amygdala.errors import UserError
from amygdala.outputs import check_room, check_writable, leave_stored_files_alone
from amygdala.plan import warnings_of
from amygdala.recording import RunRecord
from amygdala.releases import resolve
from amygdala.tiers import Tiers, take

leave_stored_files_alone()


def tell(line):
    if workflow.is_main_process:
        logger.info(line)


# Fetching needs no build: the graph may not be there yet, or not to be built from. What else was asked for would be planned from
# the old snapshot. (Targets are known to the command line alone while rules are read; a job names its target with a colon behind.)
asked = {word.rstrip(":") for word in sys.argv[1:]}
only_looks = bool(asked & {"releases", "stats"})  # at the store: these need neither graph nor model
settings = {}
build = None
pinned = None  # the stored release that `release:` names
no_build = "run `refresh` alone, then build: other targets would be planned from the old snapshot"
try:
    if workflow.is_main_process:
        # A log line that cannot be written is no reason for a traceback.
        logging.raiseExceptions = False
        check_room(".snakemake")
    if "refresh" in asked or config["release"] is not None:
        settings = check(config, Path(workflow.basedir), workflow.configfiles)
    if "refresh" not in asked and settings.get("release") is not None:
        store = str(Path(settings["store"]).expanduser())
        tiers = Tiers(store, settings["store_read"] if workflow.is_main_process else [])
        pinned = resolve(store, settings["release"], tiers)
        no_build = f"release: {pinned.key} is set, which `readout` shows under results; other targets need `release: null`"
    elif "refresh" not in asked:
        build = Build(
            config,
            Path(workflow.basedir),
            workflow.configfiles,
            tell,
            share=workflow.is_main_process,
        )
        settings = build.config
        if taken := take(build):
            tell(f"store_read: linked {taken} files")
except UserError as error:
    no_build = str(error)
    try:
        if not only_looks:
            raise
        settings = check(config, Path(workflow.basedir), workflow.configfiles)
    except UserError as error:
        raise WorkflowError(str(error)) from None


if build is not None and workflow.is_main_process:
    for line in warnings_of(build.plan, build.rules):
        logger.warning(f"warning: {line}")


run_record = RunRecord(workflow, build)
if build is not None and workflow.is_main_process:
    atexit.register(run_record.leave)


def prepare_run():
    """One run a folder; what is to be made can be written. Jobs that are ready are looked for as soon as one ends."""
    try:
        lock.take(lock.RUN, logger.warning)
        check_writable(path for job in workflow.dag.needrun_jobs() for path in job.output)
        submit_with_care()
    except UserError as error:
        raise WorkflowError(str(error)) from None
    if workflow.local_exec:
        # With the limit each look at the ready jobs plans another a second later: after n jobs n looks a second, each at all
        # inputs of the ready jobs. On one machine there is nothing to submit slowly.
        workflow.scheduler.job_rate_limiter = None
    run_record.begin()
