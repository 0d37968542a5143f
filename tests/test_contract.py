"""A release as an inference server reads it: what is written loads, what does not fit is refused, one marker says which."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import publish
import readout
from amygdala.contract import load_readout
from amygdala.errors import UserError
from amygdala.tensors import write_tensors
from amygdala.vectorfile import read_vector, write_vector

CONCEPTS = ["joy", "awe", "sadness"]  # not sorted: the order is the manifest's
LAYERS = [4, 18]
HIDDEN = 7


def unit_vector(concept: str, layer: int) -> np.ndarray:
    direction = np.random.default_rng([CONCEPTS.index(concept), layer]).standard_normal(HIDDEN)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def used_of(concept: str) -> dict[str, int]:
    """Training texts with a row, as a vector's file says."""
    return {"positive": 10 + CONCEPTS.index(concept), "negative": 20}


@pytest.fixture
def release(tmp_path: Path) -> tuple[Path, Path]:
    """vectors.safetensors and manifest.json from make_release."""
    files: dict[str, dict[int, Path]] = {}
    for concept in CONCEPTS:
        files[concept] = {layer: tmp_path / "store" / f"{concept}.{layer}" for layer in LAYERS}
        for layer, path in files[concept].items():
            write_vector(path, unit_vector(concept, layer), {"used": used_of(concept)})
    stats = [
        {
            "unique_texts": 5,
            "forwarded_texts": 2,
            "tokens": 50,
            "forwarded_tokens": 20,
            "cut_texts": 1,
            "short_texts": 3,
            "seconds": 1.5,
        },
        {
            "unique_texts": 6,
            "forwarded_texts": 0,
            "tokens": 60,
            "forwarded_tokens": 0,
            "cut_texts": 2,
            "short_texts": 4,
            "seconds": 0.0,
        },
    ]
    outputs = {"vectors": tmp_path / "out" / "vectors.safetensors", "manifest": tmp_path / "out" / "manifest.json"}
    readout.make_release(files, LAYERS, stats, {"joy": {"train": 3}}, {"pooling": "mean"}, outputs)
    return outputs["vectors"], outputs["manifest"]


def manifest_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def alter_manifest(path: Path, **changes: Any) -> None:
    """Set keys; None drops one."""
    told = {**manifest_of(path), **changes}
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))


def alter_vectors(release: tuple[Path, Path], change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change the tensors, and let the manifest's sha256 follow, so that nothing but the change is wrong."""
    vectors, manifest = release
    tensors = {name: values.copy() for name, values in load_file(vectors).items()}
    change(tensors)
    save_file(tensors, vectors)
    alter_manifest(manifest, vectors_sha256=hashlib.sha256(vectors.read_bytes()).hexdigest())


# what is written


def test_release_loads(release: tuple[Path, Path]) -> None:
    loaded = load_readout(*release)
    assert loaded.concepts == CONCEPTS and loaded.layers == LAYERS
    assert set(loaded.vectors) == set(LAYERS)
    for layer in LAYERS:
        assert loaded.vectors[layer].dtype == np.float32
        assert np.array_equal(loaded.vectors[layer], np.stack([unit_vector(concept, layer) for concept in CONCEPTS]))
    assert loaded.manifest == manifest_of(release[1])


def test_files_of_a_release_as_a_server_reads_them(release: tuple[Path, Path]) -> None:
    vectors, manifest = release
    tensors, told = load_file(vectors), manifest_of(manifest)
    assert set(tensors) == {"layer_4.vectors", "layer_18.vectors"}
    for values in tensors.values():
        assert values.shape == (3, HIDDEN) and values.dtype == np.float32
        for row in values.tolist():
            assert abs(math.hypot(*row) - 1) < 1e-6
    assert told["concepts"] == CONCEPTS and told["layers"] == LAYERS and told["hidden_size"] == HIDDEN
    assert told["vectors_sha256"] == hashlib.sha256(vectors.read_bytes()).hexdigest()
    assert told["used"] == {concept: used_of(concept) for concept in CONCEPTS}
    assert told["pooling"] == "mean" and told["counts"] == {"joy": {"train": 3}}
    assert told["capture"] == {
        "unique_texts": 11,
        "forwarded_texts": 2,
        "tokens": 110,
        "forwarded_tokens": 20,
        "cut_texts": 3,
        "short_texts": 7,
    }


def test_the_same_release_has_the_same_bytes(release: tuple[Path, Path], tmp_path: Path) -> None:
    files = {concept: {layer: tmp_path / "store" / f"{concept}.{layer}" for layer in LAYERS} for concept in CONCEPTS}
    outputs = {"vectors": tmp_path / "again.safetensors", "manifest": tmp_path / "again.json"}
    readout.make_release(files, LAYERS, [], {}, {}, outputs)
    assert outputs["vectors"].read_bytes() == release[0].read_bytes()


def test_a_manifest_with_only_concepts_and_layers_is_enough(release: tuple[Path, Path]) -> None:
    vectors, manifest = release
    manifest.write_text(json.dumps({"concepts": CONCEPTS, "layers": LAYERS}))
    loaded = load_readout(str(vectors), str(manifest))
    assert loaded.concepts == CONCEPTS and loaded.vectors[18].shape == (3, HIDDEN)


def test_more_keys_are_free(release: tuple[Path, Path]) -> None:
    alter_manifest(release[1], anything={"at": ["all"]})
    assert load_readout(*release).manifest["anything"] == {"at": ["all"]}


def test_layers_keep_the_order_of_the_manifest(release: tuple[Path, Path]) -> None:
    alter_manifest(release[1], layers=[18, 4])
    assert load_readout(*release).layers == [18, 4]


# what is refused


def renamed(tensors: dict[str, np.ndarray]) -> None:
    tensors["layer_04.vectors"] = tensors.pop("layer_4.vectors")


def scaled(factor: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["layer_18.vectors"][1] *= np.float32(factor)

    return change


def converted(dtype: Any) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["layer_18.vectors"] = tensors["layer_18.vectors"].astype(dtype)

    return change


def replaced(values: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["layer_18.vectors"] = np.ascontiguousarray(values(tensors["layer_18.vectors"]))

    return change


MISFITS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str]] = {
    "layer missing": (lambda tensors: tensors.pop("layer_18.vectors"), r"holds 'layer_4\.vectors', but .* layers \[4, 18\]"),
    "layer extra": (lambda t: t.update({"layer_5.vectors": t["layer_4.vectors"]}), r"layer_5\.vectors.* layers \[4, 18\]"),
    "tensor of another name": (renamed, r"layer_04\.vectors.* layers \[4, 18\]"),
    "a tensor beside the layers": (lambda t: t.update({"bias": np.zeros(3, np.float32)}), r"'bias'.* layers \[4, 18\]"),
    "too few rows": (replaced(lambda v: v[:2]), r"layer_18\.vectors is float32 \(2, 7\), but float32 \(3, 7\) is expected"),
    "too many rows": (replaced(lambda v: np.vstack([v, v[:1]])), r"layer_18\.vectors is float32 \(4, 7\)"),
    "too narrow": (replaced(lambda v: np.eye(3, 6, dtype=np.float32)), r"layer_18\.vectors is float32 \(3, 6\)"),
    "transposed": (replaced(lambda v: v.T), r"layer_18\.vectors is float32 \(7, 3\)"),
    "three dimensions": (replaced(lambda v: v[None]), r"layer_18\.vectors is float32 \(1, 3, 7\)"),
    "float16": (converted(np.float16), r"layer_18\.vectors is float16"),
    "float64": (converted(np.float64), r"layer_18\.vectors is float64"),
    "length 2": (scaled(2), r"layer_18\.vectors: row 1 has length '2\.0*\d*', not 1"),
    "length 0": (scaled(0), r"layer_18\.vectors: row 1 has length '0\.0', not 1"),
    "length 1.00001": (scaled(1.00001), r"layer_18\.vectors: row 1 has length '1\.0000\d+', not 1"),
    "length 0.99999": (scaled(0.99999), r"layer_18\.vectors: row 1 has length '0\.9999\d+', not 1"),
    "not a number": (scaled(float("nan")), r"layer_18\.vectors: row 1 has length 'nan', not 1"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_vectors_that_do_not_fit(release: tuple[Path, Path], misfit: str) -> None:
    change, message = MISFITS[misfit]
    alter_vectors(release, change)
    with pytest.raises(UserError, match=message) as caught:
        load_readout(*release)
    assert str(release[0]) in str(caught.value)


@pytest.mark.parametrize("misfit", ["too narrow", "length 2", "layer extra", "float16"])
def test_a_bare_manifest_is_checked_alike(release: tuple[Path, Path], misfit: str) -> None:
    alter_vectors(release, MISFITS[misfit][0])
    release[1].write_text(json.dumps({"concepts": CONCEPTS, "layers": LAYERS}))
    with pytest.raises(UserError, match="layer_"):
        load_readout(*release)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": None}, "'concepts' must be a list of names"),
        ({"concepts": []}, "'concepts' must be a list of names"),
        ({"concepts": "joy"}, "'concepts' must be a list of names"),
        ({"concepts": ["joy", "awe", 3]}, "'concepts' must be a list of names"),
        ({"concepts": ["joy", "awe", "joy"]}, "a concept stands twice in 'concepts'"),
        ({"concepts": ["joy", "awe"]}, r"float32 \(2, 7\) is expected"),
        ({"layers": None}, "'layers' must be a list of layer indices"),
        ({"layers": []}, "'layers' must be a list of layer indices"),
        ({"layers": 4}, "'layers' must be a list of layer indices"),
        ({"layers": ["4", "18"]}, "'layers' must be a list of layer indices"),
        ({"layers": [4.0, 18.0]}, "'layers' must be a list of layer indices"),
        ({"layers": [True, 18]}, "'layers' must be a list of layer indices"),
        ({"layers": [-1, 18]}, "'layers' must be a list of layer indices"),
        ({"layers": [4, 18, 18]}, "a layer stands twice in 'layers'"),
        ({"layers": [4]}, r"but .* lists the layers \[4\]"),
        ({"layers": [4, 18, 19]}, r"but .* lists the layers \[4, 18, 19\]"),
        ({"layers": [4, 19]}, r"but .* lists the layers \[4, 19\]"),
        ({"hidden_size": 8}, r"float32 \(3, 8\) is expected"),
        ({"vectors_sha256": "0" * 64}, "is not the file that .* describes: its sha256 differs"),
    ],
)
def test_manifests_that_do_not_fit(release: tuple[Path, Path], changes: dict[str, Any], message: str) -> None:
    alter_manifest(release[1], **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_readout(*release)
    assert str(release[1]) in str(caught.value) or str(release[0]) in str(caught.value)


def test_one_flipped_bit_is_another_file(release: tuple[Path, Path]) -> None:
    content = bytearray(release[0].read_bytes())
    content[-1] ^= 1
    release[0].write_bytes(content)
    with pytest.raises(UserError, match=r"vectors\.safetensors is not the file that .*manifest\.json describes"):
        load_readout(*release)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 200, b"half"])
def test_unreadable_vectors(release: tuple[Path, Path], content: bytes) -> None:
    release[0].write_bytes(content if content != b"half" else release[0].read_bytes()[:100])
    alter_manifest(release[1], vectors_sha256=None)
    with pytest.raises(UserError, match=r"vectors\.safetensors: not a readable safetensors file"):
        load_readout(*release)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"concepts"', b"3"])
def test_unreadable_manifest(release: tuple[Path, Path], content: bytes) -> None:
    release[1].write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json: (not a readable manifest|'concepts' must be a list of names)"):
        load_readout(*release)


def test_missing_files(release: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such file"):
        load_readout(tmp_path / "nowhere.safetensors", release[1])
    with pytest.raises(UserError, match=r"nowhere\.json: not a readable manifest"):
        load_readout(release[0], tmp_path / "nowhere.json")


@pytest.mark.parametrize("facts", [{"concepts": ["joy", "joy", "awe"]}, {"hidden_size": 9}, {"layers": [4]}])
def test_make_release_loads_what_it_wrote(tmp_path: Path, facts: dict[str, Any]) -> None:
    """Facts that contradict the vectors: the release is refused where it is made."""
    files = {concept: {layer: tmp_path / f"{concept}.{layer}" for layer in LAYERS} for concept in CONCEPTS}
    for concept in CONCEPTS:
        for layer in LAYERS:
            write_vector(files[concept][layer], unit_vector(concept, layer), {"used": used_of(concept)})
    with pytest.raises(UserError):
        readout.make_release(files, LAYERS, [], {}, facts, {"vectors": tmp_path / "v", "manifest": tmp_path / "m"})


# vector files


def test_vector_file_round_trip(tmp_path: Path) -> None:
    write_vector(tmp_path / "joy" / "v", unit_vector("joy", 4), {"emotion": "joy"})
    assert np.array_equal(read_vector(tmp_path / "joy" / "v"), unit_vector("joy", 4))


def test_vector_files_of_the_same_vector_have_the_same_bytes(tmp_path: Path) -> None:
    for number in range(8):
        write_vector(tmp_path / f"{number}", unit_vector("joy", 4), {"emotion": "joy", "layer": "4", "method": "x"})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize(
    "tensors",
    [
        {"vector": unit_vector("joy", 4) * np.float32(1.001)},
        {"vector": unit_vector("joy", 4) * np.float32(0)},
        {"vector": unit_vector("joy", 4) * np.float32("nan")},
        {"vector": unit_vector("joy", 4).astype(np.float64)},
        {"vector": np.array([1, 0], dtype=np.float16)},
        {"vector": unit_vector("joy", 4)[None]},
        {"victor": unit_vector("joy", 4)},
    ],
)
def test_vector_file_that_is_none(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(UserError, match=r"v\.safetensors is damaged .*: delete it and run snakemake again"):
        read_vector(tmp_path / "v.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_vector_file_cut_short(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "v.safetensors"
    write_vector(path, unit_vector("joy", 4), {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"v\.safetensors is damaged .*: delete it and run snakemake again") as caught:
        read_vector(path)
    assert str(path) in str(caught.value)


# publishing


@pytest.fixture
def stored(tmp_path: Path) -> dict[Path, Path]:
    """{target: stored file} of two files that are there."""
    store = tmp_path / "store"
    store.mkdir()
    copies = {}
    write_tensors(store / "vectors.safetensors", {"layer_1.vectors": np.eye(1, 3, dtype=np.float32)}, {})
    (store / "manifest.json").write_bytes(b"the manifest" * 1000)
    for name in ("vectors.safetensors", "manifest.json"):
        copies[tmp_path / "results" / "emotions" / "joy" / name] = store / name
    return copies


def test_publish_copies_and_marks(tmp_path: Path, stored: dict[Path, Path]) -> None:
    marker = tmp_path / "results" / ".current" / "emotion_joy.0123"
    publish.publish(stored, marker, "emotion_joy.")
    for target, source in stored.items():
        assert target.read_bytes() == source.read_bytes()
        assert not target.is_symlink()
        assert str(source) in marker.read_text() and target.name in marker.read_text()
    assert [path.name for path in marker.parent.iterdir()] == ["emotion_joy.0123"]
    assert sorted(path.name for path in next(iter(stored)).parent.iterdir()) == ["manifest.json", "vectors.safetensors"]


def test_one_marker_of_its_prefix_and_no_other_touched(tmp_path: Path, stored: dict[Path, Path]) -> None:
    folder = tmp_path / "results" / ".current"
    folder.mkdir(parents=True)
    others = ["emotion_joyful.0000", "emotion_joy-of-life.0000", "emotion_jo.0000", "layer_1.0000", "my.emotion_joy.0000"]
    for name in [*others, "emotion_joy.0000", "emotion_joy.1111", "emotion_joy.2222"]:
        (folder / name).write_text("before")
    publish.publish(stored, folder / "emotion_joy.2222", "emotion_joy.")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, "emotion_joy.2222"])
    assert all((folder / name).read_text() == "before" for name in others)
    assert (folder / "emotion_joy.2222").read_text() != "before"
    publish.publish(stored, folder / "emotion_joy.3333", "emotion_joy.")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, "emotion_joy.3333"])


def test_publishing_replaces_what_was_there(tmp_path: Path, stored: dict[Path, Path]) -> None:
    target = next(iter(stored))
    target.parent.mkdir(parents=True)
    target.write_bytes(b"of another release" * 10_000)
    publish.publish(stored, tmp_path / "results" / ".current" / "emotion_joy.1", "emotion_joy.")
    assert target.read_bytes() == stored[target].read_bytes()


def test_a_run_that_dies_halfway_leaves_no_marker_and_no_half_file(tmp_path: Path, stored: dict[Path, Path]) -> None:
    folder = tmp_path / "results" / ".current"
    first, second = stored
    publish.publish(stored, folder / "emotion_joy.1", "emotion_joy.")
    before = second.read_bytes()
    write_tensors(stored[first], {"layer_1.vectors": np.ones((1, 3), np.float32)}, {})
    stored[second].unlink()
    with pytest.raises(FileNotFoundError):
        publish.publish(stored, folder / "emotion_joy.2", "emotion_joy.")
    assert list(folder.iterdir()) == []
    assert first.read_bytes() == stored[first].read_bytes() and second.read_bytes() == before
    assert not list(first.parent.glob(".*"))


@pytest.mark.parametrize("form", ["bfloat16", "float8_e4m3fn", "scalar"])
def test_vectors_of_forms_that_numpy_does_not_know(tmp_path: Path, form: str) -> None:
    """Written byte by byte: numpy has no such dtypes."""
    kinds = {"bfloat16": ("BF16", [1, 1], 2), "float8_e4m3fn": ("F8_E4M3", [1, 1], 1), "scalar": ("F32", [], 4)}
    dtype, shape, size = kinds[form]
    header = json.dumps({"layer_0.vectors": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    path, manifest = tmp_path / "v.safetensors", tmp_path / "manifest.json"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * size)
    manifest.write_text('{"concepts": ["joy"], "layers": [0]}')
    with pytest.raises(UserError, match=r"v\.safetensors"):
        load_readout(path, manifest)
