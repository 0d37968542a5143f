# What jobs ask a cluster for, and which of them go there together. Nothing of it is there for a run on this machine.
import atexit

from amygdala import slurm
from amygdala.cluster import (
    conversion_mb,
    cores_given,
    gpu_resources,
    gpus,
    light_resources,
    memory_mb,
    runtime_min,
    weights_bytes,
)
from amygdala.estimate import Estimate

# A job of a cluster reads these rules as well, twice: before it is given its cores, and to run.
submits = workflow.resource_settings.nodes is not None or not workflow.is_main_process
estimate = None if build is None else Estimate(build)

if submits:
    slurm.share_what_groups_ask_for()
    if slurm.PLUGIN in sys.modules:
        slurm.mend(sys.modules[slurm.PLUGIN])
    if not workflow.is_main_process:
        slurm.pass_on_terminate()
        if cores_given():
            workflow.global_resources["_cores"] = cores_given()


def get_group(name):
    """The group of a job that runs no model; None where it is a job of its own."""
    together = submits and build.config["cluster"]["light"]["run"] == "cluster"
    return name if together else None


def runs_here():
    """Whether jobs that run no model stay on the machine where snakemake runs."""
    return submits and build.config["cluster"]["light"]["run"] == "here"


def get_gpu_count():
    return gpus(build.config["cluster"], build.config["device"], build.config["device_map"])


def get_model_memory():
    weights = weights_bytes(build.model, build.model_ready)
    return memory_mb(build.config["cluster"]["gpu"]["mem_mb"], weights)


def get_capture_runtime(wildcards):
    asked = build.config["cluster"]["gpu"]["runtime"]
    unknown = asked != "auto" or not workflow.is_main_process
    return runtime_min(asked, None if unknown else estimate.seconds(wildcards.key))


def get_model_runtime(wildcards):
    return runtime_min(build.config["cluster"]["gpu"]["runtime"], None)


def get_gpu_resources(runtime):
    """Resources of a job that runs the model. runtime(wildcards): its minutes."""
    if not submits:
        return {}
    try:
        count = get_gpu_count()
    except UserError as error:
        raise WorkflowError(str(error)) from None
    return gpu_resources(build.config["cluster"], count, get_model_memory, runtime)


def get_light_resources():
    return light_resources(build.config["cluster"]) if submits else {}


def get_conversion_memory():
    return conversion_mb(weights_bytes(build.model, build.model_ready))


def get_conversion_resources():
    return light_resources(build.config["cluster"], get_conversion_memory) if submits else {}


def submit_with_care():
    """Before the first job is submitted: what a killed run left with SLURM is ended, and this run remembered until it ends."""
    run_id = getattr(workflow.scheduler._executor, "run_uuid", None)
    if run_id is not None:
        slurm.check_commands()
        # Another try of a job on this machine would fail the same way.
        for one in filter(workflow.is_local, workflow.rules):
            one.restart_times = 0
    slurm.deal_with_left_behind(logger.warning, cancels=run_id is not None)
    if run_id is not None:
        folder = slurm.RUNS.absolute()
        slurm.begin_run(run_id, folder)
        atexit.register(slurm.end_run_surely, run_id, folder)


def get_planned_gpus(wildcards):
    try:
        return get_gpu_count()
    except UserError as error:
        raise WorkflowError(str(error)) from None


def get_planned_weights(wildcards):
    return weights_bytes(build.model, build.model_ready)


def get_planned_files(wildcards):
    """What a build of the readout has converted by a job, makes before the captures, by each of them, and after them."""
    texts = [build.texts("neutral")] if build.neutral else []
    shards = {f"shard {n}": build.captured(key) for n, key in enumerate(build.index_keys)}
    made = [path for emotion in build.emotions for path in build.vectors(emotion)]
    made += [path for emotion in build.emotions for path in build.heads(emotion)]
    made += [path for emotion in build.emotions for path in build.figures(emotion)]
    return {
        "model": [build.model_ready] if build.model.kind == "gguf" else [],
        "before": [*texts, *(build.examples(emotion) for emotion in build.emotions)],
        **shards,
        "after": [*made, *build.weights(), *get_stored("readout")],
    }
