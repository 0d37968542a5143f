"""What a vector must never have seen: the tag line, and the held-out texts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import activations
import examples
import heads
import snapshot
import tiny
import vectors
from amygdala import loading
from amygdala.batching import shard_texts
from amygdala.corpus import make_index
from amygdala.directions import Recipe
from amygdala.exampleset import HELD_OUT, TRAIN, read_examples
from amygdala.graph import read_snapshot
from amygdala.methods import METHODS
from amygdala.plan import Corpus, Rules
from amygdala.segments import Reader, Rows, as_keys, held_rows, write_index, write_segment
from amygdala.sources import Graph
from segmented import unpacked
from stubs import weights_file

EMOTIONS = ["calm", "joy", "warmth"]
TAG_LINE = re.compile(r"\s*([A-Za-z]+:[0-9.]+[\s,;]*)+")
RULES = Rules(8, None, 0, 40, 40, 2, 0.2, 0, "curated", 1, 9, tuple(EMOTIONS), ())
SETTINGS = {
    "revision": None,
    "dtype": "fp32",
    "template": None,
    "device": "cpu",
    "device_map": None,
    "max_tokens": 64,
    "batch_tokens": 4096,
    "batch_size": None,
    "threads": 2,
}


def quiet(line: str) -> None:
    pass


class Spy:
    """A tokenizer that notes every text it is given."""

    def __init__(self, tokenizer: Any, seen: list[str]) -> None:
        self._tokenizer, self._seen = tokenizer, seen

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self._seen.extend(texts)
        return self._tokenizer(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, list[Path], list[str]]:
    """The index of a capture of the sample graph, its example files, and every text that reached the tokenizer."""
    folder = tmp_path_factory.mktemp("leaks")
    graph = folder / "graph.jsonl"
    odd = [
        {"key": "odd/commas", "text": "A long enough text with several tag lines beneath.\n\nWarmth:9, Calm:3\n\njoy:8.5;\n\n"},
        {"key": "odd/windows", "text": "Another long enough text, with line ends of another kind.\r\njoy:9 calm:9\r\n"},
    ]
    graph.write_text(tiny.SAMPLE.read_text() + "".join(json.dumps(node) + "\n" for node in odd))
    settings = {"graph": str(graph), "snapshot": "", "bad_nodes": "refuse", "home": str(folder)}
    identity = Graph(settings, [folder], folder).identity
    snapshot.make_snapshot({**settings, "identity": identity}, folder, folder / "snapshot.jsonl")
    files = [folder / f"{emotion}.json" for emotion in EMOTIONS]
    corpus = Corpus(make_index(read_snapshot(folder / "snapshot.jsonl")), RULES)
    with (folder / "snapshot.jsonl").open("rb") as stored:
        for emotion, path in zip(EMOTIONS, files, strict=True):
            examples.make_examples(corpus, emotion, stored, path)
    seen: list[str] = []
    index = folder / "space" / "index" / "shard_0.safetensors"
    capture(tiny_model, files, {"mean": index}, seen)
    return index, files, seen


def capture(model: Path, files: list[Path], indices: dict[str, Path], seen: list[str], **settings: Any) -> None:
    """Capture the texts of the example files at layers 1 and 2; every text that reaches the tokenizer goes into `seen`."""
    with pytest.MonkeyPatch.context() as patch:
        load = loading.load_tokenizer
        patch.setattr(loading, "load_tokenizer", lambda *where: Spy(load(*where), seen))
        texts, sample = shard_texts(map(str, files), 0, 1)
        options = {**SETTINGS, "source": str(model), **settings}
        activations.capture_shard(texts, [1, 2], indices, options, quiet, sample=sample)


def test_the_tag_line_never_reaches_the_tokenizer(captured: tuple[Path, list[Path], list[str]]) -> None:
    _, files, seen = captured
    assert len(seen) == len(set(seen)) == len({e.digest for path in files for e in read_examples(path)})
    assert any("several tag lines" in text for text in seen) and any("another kind" in text for text in seen)
    raw = [json.loads(line)["text"] for line in tiny.SAMPLE.read_text().splitlines()]
    tagged = {
        text.rsplit("\n", 1)[0].strip(): text.rsplit("\n", 1)[1] for text in raw if TAG_LINE.fullmatch(text.split("\n")[-1])
    }
    assert len(tagged) > 300 and set(tagged) & set(seen)
    for text in seen:
        assert not [line for line in text.splitlines() if TAG_LINE.fullmatch(line)], text
        assert text not in tagged or not text.endswith(tagged[text])


def test_the_tag_line_reaches_the_tokenizer_in_no_chat_and_no_check(
    captured: tuple[Path, list[Path], list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    """With a chat template, and with `last`, for which texts are tokenized before their turn."""
    _, files, texts = captured
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    tokenizer.save_pretrained(model)
    seen: list[str] = []
    index = tmp_path / "space" / "index" / "shard_0.safetensors"
    capture(model, files, {"last": index}, seen, template={"role": "user", "system": None})
    assert set(seen) == {f"<s>user\n{text}</s>\n" for text in texts}
    assert len(seen) > len(texts)
    for chat in seen:
        assert not [line for line in chat.removesuffix("</s>\n").splitlines() if TAG_LINE.fullmatch(line)], chat


def figures(index: Path, files: list[Path], folder: Path, method: str) -> dict[str, bytes]:
    """Bytes of all vectors and head files worked out from the rows behind `index`."""
    reader = Reader([index])
    random = np.random.default_rng(0)
    model = {layer: folder.parent / f"weights_{layer}.safetensors" for layer in (1, 2)}
    for path in model.values():
        weights_file(path, random.standard_normal((48, 64)).astype(np.float32), 4)
    batch = {}
    for emotion, path in zip(EMOTIONS, files, strict=True):
        out = {layer: folder / emotion / f"layer_{layer}.safetensors" for layer in (1, 2)}
        vectors.make_vectors(emotion, path, reader, Recipe(method), out, 2)
        heads_of = [place.with_suffix(".json") for place in out.values()]
        batch[emotion] = {"examples": path, "vectors": out, "outputs": heads_of}
    heads.make_heads(batch, reader, model, 2)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("layer_*"))}


def poisoned(index: Path, digests: set[str], folder: Path) -> Path:
    """The same rows in another folder, those of `digests` replaced by huge numbers; its index."""
    space = folder / "space"
    everything = sorted(unpacked(Reader([index])._tables[0][0].array("digests")))
    for layer in (1, 2):
        reader = Reader([index])
        values = {kind: reader.rows(layer, kind, everything) for kind in ("residual", "heads")}
        hit = np.array([digest in digests for digest in everything])
        for rows in values.values():
            rows[hit] = 1e6
        counts = np.ones(len(everything))
        replaced = Rows(everything, values["residual"], values["heads"], counts, counts, 0 * counts)
        write_segment(space, layer, replaced, reader.layout(layer))
    target = space / "index" / "shard_0.safetensors"
    write_index(target, as_keys(everything), {layer: held_rows(space, layer) for layer in (1, 2)}, {})
    return target


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.by_scenario])
def test_held_out_texts_never_reach_a_vector_or_head_figure(
    captured: tuple[Path, list[Path], list[str]], tmp_path: Path, method: str
) -> None:
    index, files, _ = captured
    texts = [example for path in files for example in read_examples(path)]
    held_out = {example.digest for example in texts if example.split == HELD_OUT}
    train = {example.digest for example in texts if example.split == TRAIN}
    assert held_out and train and not held_out & train, "a text is on one side for every emotion"
    clean = figures(index, files, tmp_path / "clean", method)
    assert len(clean) == 12
    assert figures(poisoned(index, held_out, tmp_path / "a"), files, tmp_path / "held_out", method) == clean
    one = {min(train)}
    assert figures(poisoned(index, one, tmp_path / "b"), files, tmp_path / "train", method) != clean, (
        "a training text does count"
    )
