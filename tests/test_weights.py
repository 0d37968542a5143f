"""The job that writes each layer's weights, against the model's own files."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from amygdala import loading
from amygdala.errors import UserError
from amygdala.modelinfo import describe
from amygdala.modelweights import read_weights
from test_house import HEAVY, imported_by
from weights import make_weights


def settings_of(model: Path, **more: Any) -> dict[str, Any]:
    return {"source": str(model), "revision": None, "dtype": "fp32", "device": "cpu", "device_map": None, "threads": 1, **more}


def outputs(folder: Path, *layers: int) -> dict[int, Path]:
    return {layer: folder / f"layer_{layer:03d}.safetensors" for layer in layers}


def unit(columns: torch.Tensor) -> np.ndarray:
    rows = columns.T.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_files_hold_the_weights_of_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    assert make_weights(settings_of(tiny_model), outputs(tmp_path, 3, 1), lines.append) == [1, 3]
    stored = load_file(tiny_model / "model.safetensors")
    for layer, path in outputs(tmp_path, 1, 3).items():
        weights = read_weights(path)
        assert weights.facts["layer"] == layer and (weights.n_heads, weights.facts["head_dim"]) == (4, 16)
        assert np.array_equal(weights.o_proj, stored[f"model.layers.{layer}.self_attn.o_proj.weight"].numpy())  # type: ignore[arg-type]
        expected = unit(stored[f"model.layers.{layer}.mlp.down_proj.weight"])
        assert weights.neurons is not None and weights.neurons.shape == (96, 48)
        assert np.abs(weights.neurons - expected).max() < 5e-4
    assert lines[0] == "loading layers 0 to 3 in fp32 for the weights of layers [1, 3]"
    assert lines[1:] == [f"layer {layer}: 4 heads of 16; 96 neurons" for layer in (1, 3)]


def test_in_half_precision_they_are_those_that_the_model_runs_with(tiny_model: Path, tmp_path: Path) -> None:
    make_weights(settings_of(tiny_model, dtype="bf16"), outputs(tmp_path, 0), print)
    exact = load_file(tiny_model / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    found = read_weights(tmp_path / "layer_000.safetensors").o_proj
    assert found is not None and found.dtype == np.float32
    assert np.array_equal(found, exact.bfloat16().float().numpy()) and not np.array_equal(found, exact.numpy())


def test_gpt2_keeps_its_matrices_the_other_way_round(tmp_path: Path) -> None:
    model = tiny.make_model(tmp_path / "gpt2", "gpt2")
    make_weights(settings_of(model), outputs(tmp_path, 2), print)
    stored, weights = load_file(model / "model.safetensors"), read_weights(tmp_path / "layer_002.safetensors")
    assert np.array_equal(weights.o_proj, stored["transformer.h.2.attn.c_proj.weight"].numpy().T)  # type: ignore[arg-type]
    assert np.abs(weights.neurons - unit(stored["transformer.h.2.mlp.c_proj.weight"].T)).max() < 5e-4


def test_a_model_without_attention_has_reasons(tmp_path: Path) -> None:
    model = tiny.make_model(tmp_path / "mamba", "mamba")
    lines: list[str] = []
    make_weights(settings_of(model), outputs(tmp_path, 1), lines.append)
    weights = read_weights(tmp_path / "layer_001.safetensors")
    assert weights.o_proj is None and weights.neurons is None
    neurons = "no MLP that works on each token by itself (MambaMixer)"
    assert (weights.facts["reason"], weights.facts["neurons_reason"]) == ("a model without attention heads", neurons)
    assert lines[1] == f"layer 1: no heads (a model without attention heads); {neurons}"


def test_only_missing_files_are_made(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_weights(settings_of(tiny_model), outputs(tmp_path, 0, 1, 3), print)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "layer_003.safetensors").write_bytes(b"as it is")
    (tmp_path / "layer_001.safetensors").unlink()
    loads: list[int] = []
    real = loading.load_decoder

    def load(source: str, revision: str | None, n_layers: int, *rest: Any) -> Any:
        loads.append(n_layers)
        return real(source, revision, n_layers, *rest)

    monkeypatch.setattr(loading, "load_decoder", load)
    assert make_weights(settings_of(tiny_model), outputs(tmp_path, 0, 1, 3), print) == [1]
    assert make_weights(settings_of(tiny_model), outputs(tmp_path, 0, 1, 3), print) == []
    assert loads == [2], "layers 0 and 1, once"
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == {**before, "layer_003.safetensors": b"as it is"}


def test_a_device_map_needs_gpus(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^device_map: auto spreads a model over GPUs; with device: cpu set it to null$"):
        make_weights(settings_of(tiny_model, device_map="auto"), outputs(tmp_path, 0), print)


def run_job(folder_of_model: Path, folder: Path, **params: Any) -> None:
    settings = settings_of(folder_of_model)
    del settings["threads"]
    given = {
        "model": vars(describe(str(folder_of_model), [Path()], folder / "store")),
        "settings": settings,
        "layers": [0, 2],
        "store": str(folder / "store"),
        **params,
    }
    snakemake = SimpleNamespace(
        input=[],
        output=[str(path) for path in outputs(folder, 0, 2).values()],
        log=[str(folder / "log")],
        threads=1,
        params=SimpleNamespace(**given),
    )
    runpy.run_path(str(tiny.REPOSITORY / "scripts" / "weights.py"), {"snakemake": snakemake})


def test_the_job_needs_no_input(tiny_model: Path, tmp_path: Path) -> None:
    run_job(tiny_model, tmp_path)
    assert read_weights(tmp_path / "layer_002.safetensors").n_heads == 4
    assert "layer 2: 4 heads of 16; 96 neurons" in (tmp_path / "log").read_text()


def test_a_model_that_changed_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = {**vars(describe(str(tiny_model), [Path()], tmp_path / "store")), "identity": "sha256:other"}
    with pytest.raises(SystemExit):
        run_job(tiny_model, tmp_path, model=model)
    assert "changed while snakemake was running. Run snakemake again" in (tmp_path / "log").read_text()
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_job_imports_torch_only_where_a_file_is_missing() -> None:
    assert not HEAVY & imported_by("import weights")
