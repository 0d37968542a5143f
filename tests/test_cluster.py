"""What jobs ask a cluster for, and what a job sees of the one it runs on."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from amygdala import cluster
from amygdala.config import check, with_numbers
from amygdala.errors import UserError
from amygdala.modelinfo import Model
from tiny import REPOSITORY

CONFIG, SCHEMA = REPOSITORY / "config.yaml", REPOSITORY / "schemas" / "config.schema.yaml"
DEFAULTS: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
MB = 2**20


def settings(**changes: Any) -> dict[str, Any]:
    """The defaults of `cluster`; `gpu` and `light` key by key, as Snakemake merges them."""
    found = copy.deepcopy(DEFAULTS["cluster"])
    for name, value in changes.items():
        found[name] = {**found[name], **value} if isinstance(value, dict) else value
    return found


# GPUs, memory and time


@pytest.mark.parametrize(
    ("count", "device", "device_map", "expected"),
    [
        ("auto", "auto", None, 1),
        ("auto", "cuda", None, 1),
        ("auto", "cpu", None, 0),
        ("auto", "mps", None, 0),
        (4, "auto", "balanced", 4),
        (2, "cpu", None, 2),  # who says so gets it
        (0, "cuda", None, 0),
        (0, "auto", "auto", 0),
    ],
)
def test_gpus(count: int | str, device: str, device_map: str | None, expected: int) -> None:
    assert cluster.gpus(settings(gpu={"count": count}), device, device_map) == expected


def test_a_model_that_is_spread_needs_a_number_of_gpus() -> None:
    with pytest.raises(UserError, match=r"cluster\.gpu\.count: device_map: balanced spreads .* say how many"):
        cluster.gpus(settings(), "auto", "balanced")


@pytest.mark.parametrize(
    ("asked", "weights", "expected"),
    [
        ("auto", 0, 4000),
        ("auto", 1, 4002),
        ("auto", MB, 4002),
        ("auto", MB + 1, 4004),
        ("auto", 15 * 1024 * MB, 34720),
        (9, MB, 9),
    ],
)
def test_memory(asked: int | str, weights: int, expected: int) -> None:
    assert cluster.memory_mb(asked, weights) == expected


@pytest.mark.parametrize(
    ("asked", "seconds", "expected"),
    [
        ("auto", None, 240),
        ("auto", 0.0, 20),
        ("auto", 0.2, 20),
        ("auto", 1.0, 21),
        ("auto", 20.0, 21),
        ("auto", 20.5, 22),
        ("auto", 3600.0, 200),
        (5, None, 5),
        (5, 9e9, 5),
    ],
)
def test_runtime(asked: int | str, seconds: float | None, expected: int) -> None:
    assert cluster.runtime_min(asked, seconds) == expected


def model(kind: str, source: Path | str, identity: str = "sha256:1") -> Model:
    return Model(kind, str(source), identity, 4, "bf16")


def weights_in(folder: Path, *sizes: int) -> Path:
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        (folder / f"model-{number}.safetensors").write_bytes(bytes(size))
    (folder / "config.json").write_bytes(bytes(1000))
    return folder


def test_weights_of_a_folder(tmp_path: Path) -> None:
    folder = weights_in(tmp_path / "model", 10, 5)
    assert cluster.weights_bytes(model("folder", folder), tmp_path / "none.json") == 15
    assert cluster.weights_bytes(model("folder", tmp_path / "gone"), tmp_path / "none.json") == 0


@pytest.mark.parametrize("kind", ["gguf", "embedded"])
def test_weights_of_a_converted_model(tmp_path: Path, kind: str) -> None:
    """The file before it is converted, if it is a file of the user's; then the folder beside its marker."""
    source, ready = tmp_path / "model.gguf", tmp_path / "store" / "0123.json"
    assert cluster.weights_bytes(model(kind, source), ready) == 0
    source.write_bytes(bytes(7))
    assert cluster.weights_bytes(model(kind, source), ready) == (7 if kind == "gguf" else 0)
    weights_in(ready.with_suffix(""), 30)
    assert cluster.weights_bytes(model(kind, source), ready) == 30


def test_weights_of_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    wanted = model("hub", "owner/name", "commit:abc")
    ready = tmp_path / "ready.json"
    assert cluster.weights_bytes(wanted, ready) == 0
    kept = weights_in(tmp_path / "models--owner--name" / "snapshots" / "abc", 20)
    weights_in(tmp_path / "models--owner--name" / "snapshots" / "def", 99)
    assert cluster.weights_bytes(wanted, ready) == 20
    # The cache holds links; one that leads nowhere is not there yet.
    (tmp_path / "blob").write_bytes(bytes(6))
    (kept / "model-1.safetensors").symlink_to(tmp_path / "blob")
    (kept / "model-2.safetensors").symlink_to(tmp_path / "nowhere")
    assert cluster.weights_bytes(wanted, ready) == 26


# Snakemake's resources


def test_nothing_is_asked_of_a_place_that_is_not_configured() -> None:
    assert cluster.places(settings(), "gpu") == cluster.places(settings(), "light") == {}


def test_places() -> None:
    given = settings(
        account="lab",
        partition="main",
        qos="normal",
        constraint="fast",
        gpu={"partition": "gpu", "constraint": "a100|h100"},
    )
    assert cluster.places(given, "light") == {
        "slurm_account": "lab",
        "slurm_partition": "main",
        "qos": "normal",
        "constraint": "fast",
    }
    assert cluster.places(given, "gpu") == {
        "slurm_account": "lab",
        "slurm_partition": "gpu",
        "qos": "normal",
        "constraint": "a100|h100",
    }


def asked(resources: dict[str, Any], attempt: int) -> dict[str, Any]:
    return {name: value(None, attempt=attempt) if callable(value) else value for name, value in resources.items()}


def test_resources_of_jobs_with_gpus() -> None:
    given = settings(account="lab", gpu={"partition": "gpu", "model": "a100", "cpus": 6})
    seen: list[Any] = []

    def runtime(wildcards: Any) -> int:
        seen.append(wildcards)
        return 30

    found = cluster.gpu_resources(given, 2, lambda: 500, runtime)
    places = {"slurm_account": "lab", "slurm_partition": "gpu"}
    for attempt in (1, 2, 3):
        assert asked(found, attempt) == {
            **places,
            "mem_mb": 500 * attempt,
            "runtime": 30 * attempt,
            "gpu": 2,
            "cpus_per_gpu": 6,
            "gpu_model": "a100",
        }
    get_runtime = found["runtime"]
    assert callable(get_runtime)
    get_runtime("wildcards", attempt=1)
    assert seen[-1] == "wildcards"
    assert "gpu_model" not in cluster.gpu_resources(settings(), 1, lambda: 1, runtime)


def test_resources_of_jobs_that_run_the_model_without_a_gpu() -> None:
    given = settings(gpu={"cpus": 6, "model": "a100"})
    found = cluster.gpu_resources(given, 0, lambda: 500, lambda wildcards: 30)
    assert asked(found, 2) == {"mem_mb": 1000, "runtime": 60, "cpus_per_task": 6}


def test_resources_of_light_jobs() -> None:
    given = settings(partition="main", gpu={"partition": "gpu"}, light={"cpus": 3, "mem_mb": 100, "runtime": 7})
    found = cluster.light_resources(given)
    for attempt in (1, 3):
        places = {"slurm_partition": "main", "cpus_per_task": 3}
        assert asked(found, attempt) == {**places, "mem_mb": 100 * attempt, "runtime": 7 * attempt}
    assert asked(cluster.light_resources(given, lambda: 50), 2)["mem_mb"] == 300


# What a job sees

VARIABLES = (
    *("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"),
    *("SLURM_JOB_ID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"),
)


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("task", "node", "expected"),
    [
        (None, None, None),
        ("3", None, 3),
        (None, "8", 8),
        ("3", "8", 3),
        ("", "8", 8),
        ("0", None, None),
        ("many", None, None),
        (None, "8(x2)", None),
        ("-1", None, None),
    ],
)
def test_cores_given(outside: pytest.MonkeyPatch, task: str | None, node: str | None, expected: int | None) -> None:
    for name, value in (("SLURM_CPUS_PER_TASK", task), ("SLURM_CPUS_ON_NODE", node)):
        if value is not None:
            outside.setenv(name, value)
    assert cluster.cores_given() == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_STEP_GPUS": "1", "SLURM_JOB_GPUS": "0,1"}, "1"),
        ({"SLURM_JOB_GPUS": "0"}, "0"),  # its number
        ({"SLURM_GPUS_ON_NODE": "0"}, None),  # a count
        ({"SLURM_GPUS_ON_NODE": "2"}, "2"),
        ({"SLURM_GPUS_ON_NODE": "0", "SLURM_JOB_GPUS": "0"}, "0"),
        ({"SLURM_JOB_GPUS": ""}, None),
    ],
)
def test_gpu_given(outside: pytest.MonkeyPatch, variables: dict[str, str], expected: str | None) -> None:
    for name, value in variables.items():
        outside.setenv(name, value)
    assert cluster.gpu_given() == expected


def test_placed(outside: pytest.MonkeyPatch) -> None:
    assert cluster.placed() is None
    outside.setenv("SLURM_JOB_ID", "77")
    assert cluster.placed() == "SLURM job 77 on ?, None cores, no GPU"
    outside.setenv("SLURMD_NODENAME", "n1")
    outside.setenv("SLURM_CPUS_PER_TASK", "4")
    outside.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert cluster.placed() == "SLURM job 77 on n1, 4 cores, GPU 0,3"


# The configuration


def refused(folder: Path, text: str) -> str:
    """The message on a user's own `cluster:` with `text` from line 2 on, `FILE` for its path."""
    path = folder / "mine.yaml"
    path.write_text(f"cluster:\n{text}\n", encoding="utf-8")
    given = yaml.safe_load(path.read_text(encoding="utf-8"))["cluster"]
    with pytest.raises(UserError) as caught:
        check({**DEFAULTS, "cluster": settings(**given)}, SCHEMA, [CONFIG, path])
    message = str(caught.value).replace(str(path), "FILE")
    assert message.isprintable()
    return message


WORDS = ["account", "partition", "qos", "constraint", "gpu.partition", "gpu.qos", "gpu.constraint"]
WRONG = [
    *((key, "3", "3 is not of type 'string', 'null'; expected a word or null") for key in WORDS),
    *((key, "''", "'' does not match .*; expected a word or null") for key in WORDS),
    *((key, "a b", "'a b' does not match .*; expected a word or null") for key in WORDS),
    *(
        ("partition", given, "expected a word or null")
        for given in (r'"a\nb"', r'"a\n"', r'"\e[2J"', r'"a\x9b"', r'"a\0"', "[a]")
    ),
    ("gpu.count", "all", "'all' is not one of the allowed values; expected auto or a number of GPUs"),
    ("gpu.count", "-1", "'-1' is not one of the allowed values; expected auto or a number of GPUs"),
    ("gpu.count", "65", "expected auto or a number of GPUs"),
    ("gpu.count", "1.5", "expected auto or a number of GPUs"),
    ("gpu.count", "null", "expected auto or a number of GPUs"),
    ("gpu.model", "a 100", "'a 100' does not match .*; expected the name of a kind of GPU"),
    (
        "gpu.model",
        "a100-80g",
        "'a100-80g' does not match .*; expected the name of a kind of GPU .letters, digits",
    ),  # the plugin
    ("gpu.model", r'"a100\n"', "expected the name of a kind of GPU"),
    ("gpu.cpus", "0", "0 is less than the minimum of 1"),
    ("gpu.cpus", "auto", "'auto' is not of type 'integer'"),
    ("gpu.mem_mb", "0", "'0' is not one of the allowed values; expected auto or a number of MB"),
    ("gpu.mem_mb", "16G", "'16G' is not one of the allowed values; expected auto or a number of MB"),
    ("gpu.runtime", "2h", "'2h' is not one of the allowed values; expected auto or a number of minutes"),
    ("gpu.runtime", "null", "expected auto or a number of minutes"),
    ("light.run", "there", r"'there' is not one of \['cluster', 'here'\]"),
    ("light.cpus", "null", "None is not of type 'integer'"),
    ("light.mem_mb", "auto", "'auto' is not of type 'integer'"),
    ("light.runtime", "0", "0 is less than the minimum of 1"),
]


@pytest.mark.parametrize(("key", "value", "problem"), WRONG)
def test_wrong_values_are_named_with_line_and_key(tmp_path: Path, key: str, value: str, problem: str) -> None:
    section, _, name = key.rpartition(".")
    message = refused(tmp_path, f"  {section}:\n    {name}: {value}" if section else f"\n  {name}: {value}")
    assert re.match(rf"FILE:3: 'cluster\.{re.escape(key)}': .*{problem}", message), message


def test_each_setting_has_a_wrong_value_above() -> None:
    given = DEFAULTS["cluster"]
    inside = {f"{section}.{key}" for section in ("gpu", "light") for key in given[section]}
    assert {key for key, _, _ in WRONG} == {*(set(given) - {"gpu", "light"}), *inside}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  gpus: 2", "FILE:2: unknown key 'gpus' in 'cluster'. Did you mean 'gpu'?"),
        ("  gpu:\n    memory: 2", "FILE:3: unknown key 'memory' in 'cluster.gpu'."),
        ("  light:\n    gpu: 2", "FILE:3: unknown key 'gpu' in 'cluster.light'."),
        ("  light: here", "FILE:2: 'cluster.light': 'here' is not of type 'object'"),
    ],
)
def test_other_mistakes(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"account": "lab_1", "partition": "gpu-long,main", "qos": "high.prio", "constraint": "[rack1|rack2]&fast"},
        {"partition": "größe"},
        {"gpu": {"count": 0, "model": "tesla_v100.2", "mem_mb": 1, "runtime": 1, "cpus": 64}},
        {"gpu": {"count": 64}, "light": {"run": "here"}},
    ],
    ids=str,
)
def test_allowed_values(changes: dict[str, Any]) -> None:
    check({**DEFAULTS, "cluster": settings(**changes)}, SCHEMA)


def test_settings_of_the_command_line() -> None:
    """--config 'cluster={…}': Snakemake hands what is inside over as strings."""
    given = settings(
        account="null", partition="1", gpu={"count": "2", "mem_mb": "auto", "model": "null"}, light={"cpus": "8", "run": "here"}
    )
    found = with_numbers({**DEFAULTS, "cluster": given}, SCHEMA)
    right = settings(account=None, partition="1", gpu={"count": 2}, light={"cpus": 8, "run": "here"})
    assert found["cluster"] == right
    check(found, SCHEMA)
