"""Loading: only the weights that are needed, from safetensors alone, in the wanted format, and what cannot be loaded."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
from amygdala import loading
from amygdala.architecture import Decoder
from amygdala.batching import pad
from amygdala.errors import UserError
from amygdala.residual import Capture
from amygdala.tokens import Encoder

CPU = torch.device("cpu")
TEXTS = ["A short text.", "A longer text, with a good many more tokens than the other one has in it."]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        kind: tiny.make_model(tmp_path_factory.mktemp("models") / kind, kind) for kind in ("llama", "qwen3", "gpt2", "mamba")
    }


def load(source: Path, n_layers: int = 2, dtype: str = "fp32", device_map: str | None = None) -> Decoder:
    return loading.load_decoder(str(source), None, n_layers, dtype, CPU, device_map)


def altered(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a model folder with changed weights."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def without(*beginnings: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        gone = [name for name in tensors if name.startswith(beginnings)]
        assert gone
        for name in gone:
            del tensors[name]

    return change


def rows(source: Path, layers: Sequence[int] = (1,), device_map: str | None = None) -> dict[tuple[str, int], torch.Tensor]:
    with Capture(str(source), None, layers, "fp32", ["mean"], CPU, device_map) as capture:
        captured = capture(pad(range(len(TEXTS)), Encoder(capture.tokenizer, 100)(TEXTS), ["mean"]))
        return {**captured.residual, **{("heads", layer): values for (_, layer), values in captured.heads.items()}}


def assert_same(found: dict[Any, torch.Tensor], right: dict[Any, torch.Tensor]) -> None:
    assert set(found) == set(right)
    for name, values in found.items():
        assert torch.equal(values, right[name])


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),
        ("mamba", "backbone.layers.0.mixer.A_log"),
    ],
)
def test_missing_weights_of_a_needed_layer_are_refused(models: dict[str, Path], tmp_path: Path, kind: str, weight: str) -> None:
    broken = altered(models[kind], tmp_path / "broken", without(weight))
    short = weight.partition(".")[2]
    with pytest.raises(UserError, match=rf"model: .*broken lacks 1 weights, .*{short}.* does not fit its config\.json"):
        load(broken)


def test_missing_weights_are_counted(models: dict[str, Path], tmp_path: Path) -> None:
    broken = altered(models["llama"], tmp_path / "broken", without("model.layers.1.mlp"))
    with pytest.raises(UserError, match=r"lacks 3 weights, .*layers\.1\.mlp\.down_proj\.weight. first"):
        load(broken)


def test_weights_beyond_the_last_target_are_not_read(models: dict[str, Path], tmp_path: Path) -> None:
    """They may be missing, or of other shapes; so may the final norm."""

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.startswith(("model.layers.2.", "model.layers.3.", "lm_head")):
                tensors[name] = torch.full((3, 5), torch.nan)

    right = rows(models["llama"])
    gone = without("model.layers.2.", "model.layers.3.", "lm_head")
    assert_same(rows(altered(models["llama"], tmp_path / "gone", gone)), right)
    assert_same(rows(altered(models["llama"], tmp_path / "wide", widen)), right)


@pytest.mark.parametrize(("kind", "list_of_blocks"), [("llama", "layers"), ("gpt2", "h"), ("mamba", "layers")])
@pytest.mark.parametrize("n_layers", [1, 3, 4])
def test_what_is_loaded(models: dict[str, Path], kind: str, list_of_blocks: str, n_layers: int) -> None:
    decoder = load(models[kind], n_layers)
    assert len(decoder.layers) == n_layers
    names = [name for name, _ in decoder.module.named_parameters()]
    assert {int(name.split(".")[1]) for name in names if name.startswith(f"{list_of_blocks}.")} == set(range(n_layers))
    assert not [name for name in names if "head" in name]
    assert not any(module.training for module in decoder.module.modules())
    assert {parameter.device for parameter in decoder.module.parameters()} == {CPU}
    saved = load_file(models[kind] / "model.safetensors")
    for name, parameter in decoder.module.named_parameters():
        (right,) = [values for full, values in saved.items() if full.partition(".")[2] == name]
        assert torch.equal(parameter, right)


def test_more_layers_than_the_model_has(models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="model: "):
        load(models["llama"], 5)


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
def test_number_format_of_the_weights(tmp_path: Path, saved: str, dtype: str, expected: torch.dtype) -> None:
    source = tiny.make_model(tmp_path / "model", dtype=saved)
    assert {parameter.dtype for parameter in load(source, 1, dtype).module.parameters()} == {expected}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mamba"])
def test_a_device_map_gives_the_same_rows(models: dict[str, Path], kind: str) -> None:
    assert_same(rows(models[kind], (0, 2), "auto"), rows(models[kind], (0, 2)))


@pytest.mark.parametrize("device_map", ["auto", "sequential", None])
def test_the_device_map_goes_to_transformers_and_has_the_last_word(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, device_map: str | None
) -> None:
    real = transformers.PreTrainedModel.from_pretrained.__func__
    asked: list[Any] = []

    def spy(cls: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(options["device_map"])
        return real(cls, *arguments, **options)

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(spy))
    monkeypatch.setattr(loading, "check_causal", lambda decoder: None)
    decoder = loading.load_decoder(str(models["llama"]), None, 1, "fp32", torch.device("meta"), device_map)
    assert asked == [device_map or {"": torch.device("meta")}]
    devices = {parameter.device.type for parameter in decoder.module.parameters()}
    assert devices == {"cpu" if device_map else "meta"}


def test_folder_without_weights_config_or_tokenizer(models: dict[str, Path], tmp_path: Path) -> None:
    for name, pattern in (("weights", "model.safetensors"), ("config", "config.json"), ("tokenizer", "tokenizer*")):
        broken = tmp_path / f"without_{name}"
        shutil.copytree(models["llama"], broken)
        for path in broken.glob(pattern):
            path.unlink()
        with pytest.raises(UserError, match=f"model: .*without_{name}") as caught:
            rows(broken)
        assert "\n" not in str(caught.value)
        assert ("no usable tokenizer" in str(caught.value)) == (name == "tokenizer")


def test_pickled_weights_are_not_loaded(models: dict[str, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(models["llama"], pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model: .*pickled cannot be loaded"):
        load(pickled)


def test_weights_of_another_shape_or_cut_short_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:-1].clone()

    with pytest.raises(UserError, match=r"model: .*narrow has weights of other shapes; it does not fit its config\.json"):
        load(altered(models["llama"], tmp_path / "narrow", narrow))
    short = altered(models["llama"], tmp_path / "short", lambda tensors: None)
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model: .*short cannot be loaded"):
        load(short)


def write_config(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_an_encoder_with_a_decoder_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model: 't5' has an encoder and a decoder; amygdala reads causal language models"):
        load(write_config(tmp_path / "t5", model_type="t5"))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model: BertModel is no decoder: .*as in an encoder such as BERT\. Choose a causal"):
        load(tmp_path)


def test_kinds_that_transformers_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model: .*unknown cannot be loaded"):
        load(write_config(tmp_path / "unknown", model_type="not_yet_invented"))

    class Strange(transformers.PretrainedConfig):
        model_type = "strange"

    with pytest.raises(UserError, match=f"model: transformers {transformers.__version__} has no decoder for 'strange'"):
        loading.model_class(Strange())


def test_transformers_is_quiet_while_loading_and_no_longer(models: dict[str, Path], tmp_path: Path) -> None:
    """What is left out is left out on purpose; a report of it would only frighten."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    broken = altered(models["llama"], tmp_path / "broken", without("model.layers.1.mlp"))
    before = transformers.logging.get_verbosity()
    transformers.logging.add_handler(handler)
    transformers.logging.set_verbosity_info()
    try:
        load(models["llama"], 1)
        for lacking in (broken, Path("nowhere")):
            with pytest.raises(UserError):
                load(lacking)
        assert not said
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.remove_handler(handler)


@pytest.mark.parametrize(("kind", "longest"), [("llama", 1024), ("gpt2", 1024), ("mamba", None)])
def test_max_positions(models: dict[str, Path], kind: str, longest: int | None) -> None:
    assert loading.max_positions(loading.read_config(str(models[kind]), None)) == longest


def test_max_positions_of_a_text_tower_and_of_nothing(tmp_path: Path) -> None:
    text = {"model_type": "llama", "max_position_embeddings": 77}
    tower = write_config(tmp_path / "llava", model_type="llava", text_config=text)
    assert loading.max_positions(loading.read_config(str(tower), None)) == 77
    with pytest.raises(UserError, match=r"model: .*nowhere cannot be loaded"):
        loading.read_config(str(tmp_path / "nowhere"), None)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_device_auto(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert loading.pick_device("auto").type == chosen
    assert loading.pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device: {wanted} is not available here; set `device: auto`"):
        loading.pick_device(wanted)


@pytest.mark.parametrize(("wanted", "threads", "parallel"), [(3, 3, "true"), (2, 2, "true"), (1, 1, "false"), (0, 1, "false")])
def test_threads(monkeypatch: pytest.MonkeyPatch, wanted: int, threads: int, parallel: str) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "99")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "maybe")
    try:
        loading.set_threads(wanted)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert os.environ["RAYON_NUM_THREADS"] == str(threads)
    assert os.environ["TOKENIZERS_PARALLELISM"] == parallel


@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"])
def test_few_kernels_are_kept_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "500")
    loading.keep_few_kernels()
    assert os.environ[name] == "500"
    monkeypatch.delenv(name)
    loading.keep_few_kernels()
    assert 10 < int(os.environ[name]) < 100


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *call: said.append(call)))
    loading.keep_freed_memory()
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    assert set(said) == {(mmap_threshold, 1 << 30), (trim_threshold, 2**31 - 1)}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    loading.keep_freed_memory()


# Where a job runs its model


def placement(**changes: Any) -> dict[str, Any]:
    return {"device": "auto", "device_map": None, "threads": 1, **changes}


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_gpu_that_slurm_gave_and_torch_cannot_use_is_refused(without_gpu: pytest.MonkeyPatch) -> None:
    """On its cores alone a job would take as long as nobody asked for, with a GPU that nobody else gets."""
    assert loading.place(placement()) == CPU
    without_gpu.setenv("SLURM_JOB_GPUS", "0,\x1b[2J")
    with pytest.raises(
        UserError, match=r"device: SLURM gave this job a GPU .*, but torch \S+ finds none that it can use"
    ) as caught:
        loading.place(placement())
    assert str(caught.value).isprintable() and "say `device: cpu`" in str(caught.value)
    assert loading.place(placement(device="cpu")) == CPU
    with pytest.raises(UserError, match="device: cuda is not available here"):
        loading.place(placement(device="cuda"))


def test_a_job_of_slurm_without_a_gpu_runs_on_its_cores(without_gpu: pytest.MonkeyPatch) -> None:
    without_gpu.setenv("SLURM_JOB_ID", "7")
    without_gpu.setenv("SLURM_GPUS_ON_NODE", "0")
    assert loading.place(placement()) == CPU


def test_a_gpu_that_torch_can_use_is_used(without_gpu: pytest.MonkeyPatch) -> None:
    without_gpu.setenv("SLURM_JOB_GPUS", "0")
    without_gpu.setattr(torch.cuda, "is_available", lambda: True)
    without_gpu.setattr(torch.cuda, "device_count", lambda: 2)
    assert [loading.place(placement(shard=shard)) for shard in range(3)] == [torch.device("cuda", n) for n in (0, 1, 0)]


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_map_contradicts_a_device_without_gpus(without_gpu: pytest.MonkeyPatch, device: str) -> None:
    without_gpu.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"device_map: auto spreads a model over GPUs; with device: {device} set it to null"):
        loading.place(placement(device=device, device_map="auto"))
