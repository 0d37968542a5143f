"""What jobs ask a SLURM cluster for, by the `cluster` section of the configuration (docs/slurm.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amygdala.errors import UserError
from amygdala.modelinfo import Model

WEIGHTS_SPARE_MB = 4000  # Python, torch and the texts, beside the model
WEIGHTS_TIMES = 2  # weights in bf16 that are read into memory as fp32
CONVERSION_TIMES = 3
RUNTIME_SPARE_MIN = 20  # a start, a slow file system, the model's load
RUNTIME_TIMES = 3
RUNTIME_FIRST_MIN = 240  # before the first capture nothing tells how fast it will be
NAMED = {"partition": "slurm_partition", "qos": "qos", "constraint": "constraint"}
GPU_VARIABLES = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
Resource = int | str | Callable[..., int]


def gpus(cluster: Mapping[str, Any], device: str, device_map: str | None) -> int:
    """GPUs of a job that runs the model. UserError where a model is to be spread over all, and it is not said how many."""
    count = cluster["gpu"]["count"]
    if count != "auto":
        return int(count)
    if device_map:
        raise UserError(f"cluster.gpu.count: device_map: {device_map} spreads the model over all GPUs of a job; say how many")
    return 0 if device in ("cpu", "mps") else 1


def weights_bytes(model: Model, ready: str | os.PathLike[str]) -> int:
    """Size of a model's weights as far as they are on this machine, 0 where they are not. ready: the marker that stands beside
    the folder of a converted model.
    """
    if model.kind == "hub":
        from amygdala.fetch import hub_folder

        place = hub_folder(model.source, model.identity.removeprefix("commit:"))
    else:
        place = Path(model.source) if model.kind == "folder" else Path(ready).with_suffix("")
    if not place.is_dir() and model.kind == "gguf":
        place = Path(model.source)
    files = [place] if place.is_file() else place.glob("*.safetensors")
    return sum(path.stat().st_size for path in files if path.is_file())


def memory_mb(asked: int | str, weights: int) -> int:
    """Memory of a job that runs the model, of `weights` bytes, in MB."""
    return int(asked) if asked != "auto" else WEIGHTS_SPARE_MB + WEIGHTS_TIMES * -(-weights // 2**20)


def conversion_mb(weights: int) -> int:
    """Memory for converting a model of `weights` bytes, in MB: it is there as it was and, in wider numbers, as it becomes."""
    return CONVERSION_TIMES * (weights >> 20)


def runtime_min(asked: int | str, seconds: float | None) -> int:
    """Time limit of a job in minutes; seconds: what it is expected to take, None where nothing was measured yet."""
    if asked != "auto":
        return int(asked)
    if seconds is None:
        return RUNTIME_FIRST_MIN
    return RUNTIME_SPARE_MIN + -(-int(RUNTIME_TIMES * seconds) // 60)


def places(cluster: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Snakemake's resources that say where a job goes; what is null is left out. kind: gpu or light."""
    found = {"slurm_account": cluster["account"]}
    for name, resource in NAMED.items():
        own = cluster["gpu"][name] if kind == "gpu" else None
        found[resource] = own if own is not None else cluster[name]
    return {resource: value for resource, value in found.items() if value is not None}


def gpu_resources(
    cluster: Mapping[str, Any], count: int, mem_mb: Callable[[], int], runtime: Callable[..., int]
) -> dict[str, Resource]:
    """Snakemake's resources of a job that runs the model on `count` GPUs. The first try gets mem_mb() and runtime(wildcards),
    each further one as much more.
    """
    gpu = cluster["gpu"]

    def get_memory(wildcards: Any, attempt: int) -> int:
        return attempt * mem_mb()

    def get_runtime(wildcards: Any, attempt: int) -> int:
        return attempt * runtime(wildcards)

    found: dict[str, Resource] = {**places(cluster, "gpu")}
    found |= {"gpu": count, "cpus_per_gpu": gpu["cpus"]} if count else {"cpus_per_task": gpu["cpus"]}
    if count and gpu["model"]:
        found["gpu_model"] = gpu["model"]
    return {**found, "mem_mb": get_memory, "runtime": get_runtime}


def light_resources(cluster: Mapping[str, Any], extra_mb: Callable[[], int] = lambda: 0) -> dict[str, Resource]:
    """Snakemake's resources of a job that runs no model, alone or with others (amygdala/slurm.py: jobs of one submission share
    what each asks for). extra_mb(): memory beyond cluster.light.mem_mb.
    """
    light = cluster["light"]

    def get_memory(wildcards: Any, attempt: int) -> int:
        return int(attempt * (light["mem_mb"] + extra_mb()))

    def get_runtime(wildcards: Any, attempt: int) -> int:
        return int(attempt * light["runtime"])

    return {**places(cluster, "light"), "cpus_per_task": light["cpus"], "mem_mb": get_memory, "runtime": get_runtime}


def first_asked(resources: Mapping[str, Resource]) -> dict[str, int | str]:
    """What a job's first try asks for, of resources that do not depend on its wildcards."""
    return {name: value(None, attempt=1) if callable(value) else value for name, value in resources.items()}


def cores_given() -> int | None:
    """CPU cores that SLURM gave this process's job; None outside of one."""
    given = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or ""
    return int(given) if given.isdigit() and int(given) else None


def gpu_given() -> str | None:
    """What SLURM calls the GPUs of this process's job, or how many there are; None where it gave none."""
    count = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return next((os.environ[name] for name in GPU_VARIABLES if os.environ.get(name)), None if count in ("", "0") else count)


def placed() -> str | None:
    """Where SLURM runs this process's job, in words; None outside of one."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        return None
    node, devices = os.environ.get("SLURMD_NODENAME", "?"), os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"SLURM job {job_id} on {node}, {cores_given()} cores, " + (f"GPU {devices}" if devices else "no GPU")
