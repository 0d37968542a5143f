"""Checks of single stored files, and that no job reads a damaged one in silence."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amygdala import checks, rowchecks
from amygdala.checks import DamagedFileError
from amygdala.contract import load_readout
from amygdala.corpus import index_of_snapshot
from amygdala.errors import UserError
from amygdala.exampleset import Example, count_examples
from amygdala.files import content_identity, read_json, sha256_file, write_bytes, write_json
from amygdala.graph import Node, read_snapshot, snapshot_line
from amygdala.keys import key, text_digest
from amygdala.modelinfo import check_model, converted_files
from amygdala.recipes import recipe_key
from amygdala.stamps import Sheet, made_from, seal_lines, using
from amygdala.tensors import write_tensors
from amygdala.vectorfile import write_vector
from publish import publish
from segmented import LAYERS, Store, digest_of, flip, index_over, rows_of, span

RECIPE: dict[str, Any] = {"kind": "quality", "layers": [1], "code": key({"quality": "abc"})}
KEY = recipe_key(RECIPE)
SHEET = Sheet({KEY: RECIPE}, {RECIPE["code"]: {"quality": "abc"}})
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"></svg>\n'


def stamped(folder: Path, suffix: str) -> Path:
    path = folder / f"{KEY}{suffix}"
    with using(SHEET):
        if suffix == ".json":
            write_json(path, {"a": 1})
        else:
            write_bytes(path, SVG)
    return path


def replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize("suffix", [".json", ".svg"])
def test_no_byte_of_a_stamped_file_is_silent(tmp_path: Path, suffix: str) -> None:
    path = stamped(tmp_path, suffix)
    _, made = checks.read_stamped(path)
    assert made is not None
    checks.check_made(made, KEY)
    for position in range(len(path.read_bytes())):
        for bit in (0, position % 8):  # the lowest makes another blank of a line's end
            flip(path, position, bit)
            with pytest.raises(DamagedFileError):
                checks.read_object(path) if suffix == ".json" else checks.read_stamped(path)
            flip(path, position, bit)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_picture_cut_short(tmp_path: Path, cut: int) -> None:
    path = stamped(tmp_path, ".svg")
    path.write_bytes(path.read_bytes()[:-cut] if cut < 200 else SVG[:20])
    with pytest.raises(DamagedFileError):
        checks.read_stamped(path)


def test_a_file_of_an_older_amygdala_has_no_stamp_and_is_not_damaged(tmp_path: Path) -> None:
    write_json(tmp_path / "old.json", {"a": 1})
    assert checks.read_object(tmp_path / "old.json") == ({"a": 1}, None)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "0" * 16},
        {"recipe": {**RECIPE, "layers": [2]}},
        {"code": {RECIPE["code"]: {"quality": "abd"}}},
        {"behind": {"1" * 16: {"kind": "space"}}},
    ],
)
def test_what_a_file_says_that_it_is_made_from(change: dict[str, Any]) -> None:
    made = SHEET.made_from(f"{KEY}.json")
    assert made is not None
    checks.check_made(made, KEY)
    with pytest.raises(DamagedFileError):
        checks.check_made({**made, **change}, KEY)
    with pytest.raises(DamagedFileError, match="stands under"):
        checks.check_made(made, "0" * 16)


def examples() -> list[Example]:
    texts = ["one text", "another text", "a third"]
    sides = [("positive", "train"), ("negative", "train"), ("positive", "held_out")]
    return [Example(text_digest(text), *side, text) for text, side in zip(texts, sides, strict=True)]


def told(found: list[Example]) -> dict[str, Any]:
    return {"emotion": "joy", "counts": count_examples(found), "examples": [dataclasses.asdict(one) for one in found]}


def test_examples_against_their_key() -> None:
    found = examples()
    expected = key([(one.digest, one.polarity, one.split, [], []) for one in found])
    assert checks.check_examples(told(found), "joy", expected) == found
    other = dataclasses.replace(found[0], split="held_out")
    wrong: list[dict[str, Any]] = [
        told(found[1:]),
        told([other, *found[1:]]),
        {**told(found), "emotion": "calm"},
        {**told(found), "counts": {}},
        told([dataclasses.replace(found[0], text="one  text"), *found[1:]]),
        {**told(found), "examples": [{"text": 1}]},
    ]
    for value in wrong:
        with pytest.raises(DamagedFileError):
            checks.check_examples(value, "joy", expected)


def test_a_vector_against_its_key(tmp_path: Path) -> None:
    path, vector = tmp_path / "layer_001.safetensors", np.array([0.6, 0.8], np.float32)
    texts = {"positive": [digest_of(2), digest_of(1)], "negative": [digest_of(3)]}
    training = key({side: sorted(digests) for side, digests in texts.items()})

    def check(vector: np.ndarray, emotion: str = "joy", layer: int = 1, training: str = training) -> None:
        write_vector(path, vector, {"emotion": emotion, "layer": layer}, texts)
        tensors, facts, _ = checks.read_arrays(path)
        checks.check_vector(tensors, facts, "joy", 1, training)

    check(vector)
    for wrong in (vector * np.float32(1.001), vector.astype(np.float64), vector[None], vector * np.float32(np.nan)):
        with pytest.raises(DamagedFileError):
            check(wrong)
    for change in ({"emotion": "calm"}, {"layer": 2}, {"training": "0" * 16}):
        with pytest.raises(DamagedFileError):
            check(vector, **change)


def test_a_release_row_for_row() -> None:
    rows = np.eye(3, 4, dtype=np.float32)[:2]
    own = {("calm", 1): rows[0], ("joy", 1): rows[1]}
    checks.check_release({"layer_1.vectors": rows}, ["calm", "joy"], [1], own)
    wrong = [rows[::-1], rows[:1], rows * np.float32(2), rows.astype(np.float64)]
    for values in wrong:
        with pytest.raises(DamagedFileError):
            checks.check_release({"layer_1.vectors": values}, ["calm", "joy"], [1], own)
    with pytest.raises(DamagedFileError):
        checks.check_release({"layer_2.vectors": rows}, ["calm", "joy"], [1], own)


def test_heads_of_another_layer_or_with_one_missing() -> None:
    value = {"layer": 3, "n_heads": 2, "heads": [{"head": 1}, {"head": 0}]}
    checks.check_heads(value, 3)
    checks.check_heads({"layer": 3, "no_heads": "why"}, 3)
    for wrong in ({**value, "layer": 4}, {**value, "heads": [{"head": 1}]}, {"layer": 3}):
        with pytest.raises(DamagedFileError):
            checks.check_heads(wrong, 3)


# Activations


def test_sound_activations(store: Store) -> None:
    for path in store.paths.values():
        rowchecks.check_segment(path, store.space.name)
    index = rowchecks.check_index(store.index_a, {"layers": list(LAYERS)}, {digest_of(number) for number in range(9)})
    for layer in LAYERS:
        held = {path.name: rowchecks.open_mapped(path) for (of, _), path in store.paths.items() if of == layer}
        rowchecks.check_places(index, layer, held)


@pytest.mark.parametrize("name", ["residual", "heads", "residual_crc", "digests", "tokens", "pooled", "cut"])
def test_a_flipped_bit_in_a_segment(store: Store, name: str) -> None:
    path = store.paths[4, 1]
    flip(path, span(path, name)[1] - 1)
    with pytest.raises(DamagedFileError):
        rowchecks.check_segment(path, store.space.name)


def test_a_segment_under_another_name_or_with_numbers_that_are_none(store: Store) -> None:
    from amygdala.segments import write_segment

    path = store.paths[4, 1]
    other = path.with_name(f"{'0' * 16}.safetensors")
    other.write_bytes(path.read_bytes())
    with pytest.raises(DamagedFileError, match="not those of its name"):
        rowchecks.check_segment(other, store.space.name)
    rows = rows_of([30, 31], 1)
    rows.residual[1, 2] = np.inf
    with pytest.raises(DamagedFileError, match="not finite"):
        rowchecks.check_segment(write_segment(store.space, 1, rows, {"n_heads": 2, "head_dim": 3}), store.space.name)


def test_an_index_of_other_layers_texts_or_rows(store: Store) -> None:
    texts = {digest_of(number) for number in range(9)}
    for layers, expected in (([1, 4], texts), ([1, 4, 7, 8], texts), (list(LAYERS), texts - {digest_of(0)})):
        with pytest.raises(DamagedFileError, match="not those of its key"):
            rowchecks.check_index(store.index_a, {"layers": layers}, expected)
    index = rowchecks.check_index(store.index_a, {"layers": list(LAYERS)}, None)
    name, other = (store.paths[1, flush] for flush in (0, 3))
    with pytest.raises(DamagedFileError, match="other texts"):
        rowchecks.check_places(index, 1, {name.name: rowchecks.open_mapped(other)})


def test_the_texts_of_an_index_in_order(store: Store) -> None:
    path = index_over(store.space, "c", range(9), LAYERS)
    flip(path, span(path, "layer_004")[0])
    with pytest.raises(DamagedFileError, match="checksum"):
        rowchecks.check_index(path, {"layers": list(LAYERS)}, None)


# What jobs read


def test_segments_written_in_another_thread_say_what_they_are_made_from(tmp_path: Path) -> None:
    found: list[Any] = []
    with using(SHEET):
        thread = threading.Thread(target=lambda: found.append(made_from(f"{KEY}.safetensors")))
        thread.start()
        thread.join()
    assert found[0]["key"] == KEY
    assert made_from(f"{KEY}.safetensors") is None


def snapshot(folder: Path) -> Path:
    path = folder / f"{KEY}.jsonl"
    path.write_bytes(b"".join(snapshot_line(Node("graph", f"node/{n}", f"Text {n}.", {"joy": 9.0})) for n in range(4)))
    with using(SHEET):
        seal_lines(path, path)
    return path


@pytest.mark.parametrize(("old", "new"), [(b"Text 2", b"Text 3"), (b'"joy": 9', b'"joy": 8'), (b"node/1", b"node/7")])
def test_a_changed_snapshot_is_not_read_in_silence(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = snapshot(tmp_path)
    assert len(list(read_snapshot(path))) == 4 and checks.check_snapshot(path, 4)
    with pytest.raises(DamagedFileError, match="4 nodes, 5 expected"):
        checks.check_snapshot(path, 5)
    replace(path, old, new)
    with pytest.raises(UserError, match="damaged"):
        list(read_snapshot(path))
    with pytest.raises(DamagedFileError):
        checks.check_snapshot(path, 4)


def test_a_snapshot_cut_at_the_end_of_a_line_makes_no_index(tmp_path: Path) -> None:
    path = snapshot(tmp_path)
    facts = {"nodes": 4, "skipped": 0, "skipped_nodes": []}
    assert index_of_snapshot(path, facts).facts["nodes"] == 4
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match="2 nodes, 4 expected"):
        index_of_snapshot(path, facts)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    vectors, manifest = tmp_path / f"{KEY}.safetensors", tmp_path / f"{KEY}.json"
    write_tensors(vectors, {"layer_1.vectors": np.eye(1, 3, dtype=np.float32)}, {})
    with using(SHEET):
        write_json(manifest, {"concepts": ["joy"], "layers": [1], "vectors_sha256": sha256_file(vectors)})
    assert load_readout(vectors, manifest).concepts == ["joy"]
    replace(manifest, b'"joy"', b'"woe"')
    with pytest.raises(UserError, match="not a readable manifest"):
        load_readout(vectors, manifest)


@pytest.mark.parametrize("suffix", [".json", ".svg"])
def test_a_damaged_file_is_not_published(tmp_path: Path, suffix: str) -> None:
    stored, target, marker = stamped(tmp_path, suffix), tmp_path / "out" / "file", tmp_path / "out" / ".current" / "x.1"
    publish({target: stored}, marker, "x.")
    assert target.read_bytes() == stored.read_bytes()
    before = target.read_bytes()
    flip(stored, 3)
    with pytest.raises(UserError, match=f"{stored.name} is damaged .*: delete it and run snakemake again"):
        publish({target: stored}, marker, "x.")
    assert target.read_bytes() == before and marker.exists()


def converted(folder: Path) -> Path:
    model = folder / "store" / "models" / KEY
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(100))
    write_json(Path(f"{model}.json"), {"files": converted_files(model)})
    for path in model.iterdir():
        os.utime(path, (1, 1))
    return model


def test_a_damaged_converted_model_is_set_aside(tmp_path: Path) -> None:
    model = converted(tmp_path)
    told = {"kind": "gguf", "source": "x.gguf", "identity": "sha256:0"}
    for _ in range(2):  # the second time from a memo
        check_model(told, str(model), tmp_path / "store")
    flip(model / "model.safetensors", 50)
    with pytest.raises(UserError, match=rf"{KEY} is damaged; it was set aside as {KEY}.damaged. Run snakemake again"):
        check_model(told, str(model), tmp_path / "store")
    assert sorted(path.name for path in model.parent.iterdir()) == [f"{KEY}.damaged", f"{KEY}.json.damaged"]


def test_a_wrong_memo_of_an_identity_is_not_used(tmp_path: Path) -> None:
    path, memo = tmp_path / "graph.jsonl", tmp_path / "memo.json"
    path.write_text("{}\n")
    os.utime(path, (1, 1))
    right = content_identity([path], path, memo)
    assert read_json(memo)["identity"] == right
    digit = right[-1]
    replace(memo, right.encode(), (right[:-1] + ("0" if digit != "0" else "1")).encode())
    assert content_identity([path], path, memo) == right
    assert json.loads(memo.read_text())["identity"] == right
