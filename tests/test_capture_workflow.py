"""Capture through the real Snakefile: poolings, templates, layers, models, and the numbers in the manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from journal import EMOTIONS, examples_of, least_cosine, make_journal, make_project, row_of, stored, texts_of, vectors_of
from project import Project, Run

pytestmark = pytest.mark.end_to_end

COUNT = 150
CHAT = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Project, Run]:
    """A project after its first build with two poolings, and that run."""
    nodes = make_journal(COUNT)
    project = make_project(tmp_path_factory.mktemp("capture") / "p", tiny_model, nodes, pooling=["mean", "last"])
    return project, project.build()


@pytest.fixture
def project(built: tuple[Project, Run], tmp_path: Path) -> Project:
    """A copy of the built project, to change."""
    return built[0].copy(tmp_path / "p")


def captures(run: Run) -> int:
    return sum(times for job, times in run.jobs.items() if job.startswith("Activations"))


def content_ids(model: Path, text: str) -> list[int]:
    """The tokens of a text less the first; the tiny tokenizer adds none."""
    return AutoTokenizer.from_pretrained(model)(text)["input_ids"][1:]


def states_of(model: Path, ids: list[int]) -> tuple[torch.Tensor, ...]:
    """The residual after each layer, [tokens, hidden], of a full run without hooks, batches and padding."""
    whole = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        return tuple(state[0] for state in whole(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:])


def layer_manifest(project: Project) -> dict[str, Any]:
    """Of the readout of layer 1 alone, which rests on the same capture as the whole one and takes no figures."""
    return json.loads((project.folder / "results/layers/1/manifest.json").read_text())


def relative(row: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.linalg.norm(row - expected.numpy()) / np.linalg.norm(expected.numpy()))


def spaces_of(project: Project) -> list[str]:
    """The build's spaces, one a pooling, in the order of `pooling:`."""
    index = sorted(project.folder.glob("store/activations/*/index/*"))
    first = project.manifest()["keys"]["activations"]
    return [first, *(path.parent.parent.name for path in index if path.parent.parent.name != first)]


def test_two_poolings_come_from_one_pass(built: tuple[Project, Run], tiny_model: Path) -> None:
    project, run = built
    texts = texts_of(project)
    assert captures(run) == 1 and run.text.count("  loading layers 0 to 2 ") == 1
    assert run.forwarded == len(texts) == COUNT
    spaces = spaces_of(project)
    assert len(spaces) == len(set(spaces)) == 2
    assert len(list(project.folder.glob("store/activations/*/index/*.safetensors"))) == 2
    held = stored(project)
    assert set(held) == {(space, layer) for space in spaces for layer in (1, 2)}
    assert all(sorted(digests) == sorted(texts) for digests in held.values())
    for digest in sorted(texts)[::40]:
        states = states_of(tiny_model, AutoTokenizer.from_pretrained(tiny_model)(texts[digest])["input_ids"])
        for layer in (1, 2):
            assert relative(row_of(project, spaces[0], layer, digest), states[layer][1:].mean(0)) < 1e-5
            assert relative(row_of(project, spaces[1], layer, digest), states[layer][-1]) < 1e-5


def test_vectors_are_the_first_pooling_s(built: tuple[Project, Run]) -> None:
    project, _ = built
    assert project.manifest()["pooling"] == "mean"
    space = spaces_of(project)[0]
    for number, emotion in enumerate(EMOTIONS):
        rows: dict[str, list[np.ndarray]] = {"positive": [], "negative": []}
        for example in examples_of(project)[emotion]:
            if example["split"] == "train":
                rows[example["polarity"]].append(row_of(project, space, 2, example["digest"]).astype(np.float64))
        difference = np.mean(rows["positive"], axis=0) - np.mean(rows["negative"], axis=0)
        assert float(difference @ vectors_of(project)["layer_2.vectors"][number]) / np.linalg.norm(difference) > 1 - 1e-6


def test_another_order_of_poolings_forwards_nothing(project: Project) -> None:
    assert not project.run().ok().jobs
    before, segments = vectors_of(project), project.bytes_of("store/activations/*/layer_*/*")
    published = project.bytes_of("results/readout/*")
    space = spaces_of(project)[1]
    project.configure(pooling=["last", "mean"])
    done = project.build()
    assert captures(done) == 0 and "loading layers" not in done.text
    assert project.bytes_of("store/activations/*/layer_*/*") == segments
    assert project.manifest()["pooling"] == "last" and project.manifest()["keys"]["activations"] == space
    assert least_cosine(before, vectors_of(project)) < 0.99
    project.configure(pooling=["mean", "last"])
    assert set(project.run().ok().jobs) == {"Publish readout in results/readout"}
    assert project.bytes_of("results/readout/*") == published


def test_a_pooling_added_leaves_vectors_and_rows_as_they_are(project: Project) -> None:
    vectors, segments = (project.bytes_of(f"store/{what}") for what in ("vectors/**/*", "activations/*/layer_*/*"))
    project.configure(pooling=["mean", "last", {"from_token": 4}])
    done = project.build("activations")
    assert captures(done) == 1 and done.forwarded == COUNT
    after = project.bytes_of("store/activations/*/layer_*/*")
    assert {path: data for path, data in after.items() if path in segments} == segments
    assert len({Path(path).parts[2] for path in after.keys() - segments.keys()}) == 1, "rows of the new pooling alone"
    everything = project.run().ok()
    assert everything.forwarded == 0
    assert not [job for job in everything.jobs if job.startswith(("Vectors", "Heads", "Activations", "Quality"))]
    assert project.bytes_of("store/vectors/**/*") == vectors


def test_texts_too_short_for_the_pooling_are_counted_and_left_out(project: Project, tiny_model: Path) -> None:
    lengths = {digest: len(content_ids(tiny_model, text)) for digest, text in texts_of(project).items()}
    least = sorted(lengths.values())[COUNT // 4]
    short = {digest for digest, length in lengths.items() if length < least}
    assert 10 < len(short) < COUNT / 3
    project.configure(pooling={"from_token": least})
    done = project.run().ok()
    assert f"warning: {len(short)} texts are too short for pooling from_token:{least} and have no row" in done.text
    manifest = project.manifest()
    assert manifest["pooling"] == f"from_token:{least}"
    assert manifest["capture"]["short_texts"] == len(short)
    quality = json.loads((project.folder / "results/quality.json").read_text())
    for emotion, examples in examples_of(project).items():
        for side in ("positive", "negative"):
            mine = [e["digest"] for e in examples if e["polarity"] == side and e["split"] == "train"]
            assert manifest["counts"][emotion]["train"][side] == len(mine)
            assert manifest["used"][emotion][side] == sum(digest not in short for digest in mine)
        assert quality["emotions"][emotion]["without_row"] == sum(e["digest"] in short for e in examples)
    just = next(digest for digest, length in lengths.items() if length == least)
    expected = states_of(tiny_model, AutoTokenizer.from_pretrained(tiny_model)(texts_of(project)[just])["input_ids"])[2][-1]
    assert relative(row_of(project, manifest["keys"]["activations"], 2, just), expected) < 1e-5
    assert not project.run().ok().jobs


def test_too_few_texts_long_enough_name_the_emotion(project: Project) -> None:
    before = project.bytes_of("results/**/*")
    project.configure(pooling="from_token: 900")
    done = project.run()
    assert done.status != 0 and "Traceback" not in done.text
    told = [line for line in done.text.splitlines() if "long enough for the pooling" in line]
    assert told and all("emotion 'calm': only 0 of " in line and "min_examples is 8" in line for line in told)
    assert project.bytes_of("results/**/*") == before


def with_chat(model: Path, folder: Path) -> Path:
    """A copy of the model whose tokenizer has a chat template."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def test_a_chat_template_end_to_end(project: Project, tmp_path: Path, tiny_model: Path) -> None:
    """Only the text's own tokens count, after the system prompt and the turn's beginning."""
    model = with_chat(tiny_model, tmp_path / "chat")
    system = "You keep a journal."
    project.configure(model=str(model), pooling=["mean", "last"], template={"role": "user", "system": system})
    done = project.run("layer_1").ok()
    manifest = layer_manifest(project)
    assert done.forwarded == COUNT
    assert manifest["template"] == manifest["config"]["template"] == {"role": "user", "system": system}
    texts = texts_of(project)
    digest = sorted(texts)[0]
    before = f"<s>system\n{system}</s>\n<s>user\n"
    encoded = AutoTokenizer.from_pretrained(model)(f"{before}{texts[digest]}</s>\n", return_offsets_mapping=True)
    end = len(before) + len(texts[digest])
    own = [n for n, (start, stop) in enumerate(encoded["offset_mapping"]) if start >= len(before) and stop <= end]
    states = states_of(tiny_model, encoded["input_ids"])
    rows = {"mean": states[1][own].mean(0), "last": states[1][own[-1]]}
    space = manifest["keys"]["activations"]
    assert relative(row_of(project, space, 1, digest), rows["mean"]) < 1e-5
    others = {path.parent.parent.name for path in project.folder.glob("store/activations/*/index/*")} - {space}
    assert min(relative(row_of(project, other, 1, digest), rows["last"]) for other in others) < 1e-5
    counted = sum(len(AutoTokenizer.from_pretrained(model)(before + text)["input_ids"]) for text in texts.values())
    assert abs(manifest["capture"]["tokens"] - counted) < COUNT, "what follows the text is not forwarded"


def refused(project: Project, *arguments: str) -> str:
    """The one error line of a run that ends without results, segments or indices."""
    done = project.run(*arguments)
    assert done.status != 0 and "Traceback" not in done.text
    told = sorted({line.partition("error: ")[2] for line in done.text.splitlines() if line.startswith("error: ")})
    assert len(told) == 1, done.text
    assert not list(project.folder.glob("results/readout/*"))
    left = [path for path in project.folder.glob("store/activations/**/*") if path.is_file()]
    assert not left and not list(project.folder.glob("store/**/*.tmp"))
    return told[0]


def test_a_template_that_the_tokenizer_lacks_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    project = make_project(tmp_path / "p", tiny_model, make_journal(60), template={"role": "user"})
    assert (
        refused(project, "activations")
        == "template: the model's tokenizer has no chat template; set `template: null` for raw text"
    )


@pytest.mark.parametrize("pooling", ["last", ["mean", "last"]], ids=str)
def test_last_of_texts_that_all_end_alike_is_refused(tmp_path: Path, tiny_model: Path, pooling: Any) -> None:
    project = make_project(tmp_path / "p", tiny_model, make_journal(60, end=" .\n\n###"), pooling=pooling)
    message = refused(project, "activations")
    assert message.startswith("pooling: last: all texts end in the same token '#") and "every vector would be noise" in message
    project.configure(pooling="mean")
    assert project.run("activations").ok().forwarded == 60


def test_all_layers(project: Project) -> None:
    project.configure(target_layers="all")
    done = project.run().ok()
    assert "loading layers 0 to 3 " in done.text and done.forwarded == COUNT
    assert project.manifest()["layers"] == [0, 1, 2, 3]
    assert sorted(vectors_of(project)) == [f"layer_{layer}.vectors" for layer in range(4)]
    texts = texts_of(project)
    assert all(sorted(digests) == sorted(texts) for digests in stored(project).values()), "layers 1 and 2 were there"


def test_the_last_layer_is_before_the_final_norm(built: tuple[Project, Run], tmp_path: Path, tiny_model: Path) -> None:
    project = built[0].copy(tmp_path / "p")
    project.configure(target_layers=[3], pooling="mean")
    project.run("activations").ok()
    texts = texts_of(project)
    digest = sorted(texts)[0]
    whole = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    seen: list[torch.Tensor] = []
    whole.model.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        whole(torch.tensor([AutoTokenizer.from_pretrained(tiny_model)(texts[digest])["input_ids"]]))
    assert relative(row_of(project, spaces_of(project)[0], 3, digest), seen[0][1:].mean(0)) < 1e-5


HYBRID = {
    "model_type": "lfm2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
}


def test_layers_without_heads_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.CONFIGS, "hybrid", HYBRID)
    model = tiny.make_model(tmp_path / "lfm2", "hybrid")
    project = make_project(tmp_path / "p", model, make_journal(90), target_layers="all")
    done = project.run().ok()
    quality = json.loads((project.folder / "results/quality.json").read_text())
    assert set(quality["layers_without_heads"]) == {"0", "2"}
    for layer, reason in quality["layers_without_heads"].items():
        assert reason.startswith("no attention (") and f"layer {layer} has no heads: {reason}" in done.text
        assert quality["emotions"]["joy"]["layers"][layer]["per_head"] == {"no_heads": reason}
    for layer in ("1", "3"):
        heads = quality["emotions"]["joy"]["layers"][layer]["per_head"]
        assert (heads["n_heads"], heads["head_dim"]) == (4, 8) and len(heads["heads"]) == 4
    assert project.manifest()["layers"] == [0, 1, 2, 3]


def test_an_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=500, **sizes)).save_pretrained(tmp_path / "bert")
    tiny.make_tokenizer().save_pretrained(tmp_path / "bert")
    project = make_project(tmp_path / "p", tmp_path / "bert", make_journal(60))
    message = refused(project)
    assert message.startswith("model: BertModel is no decoder: ") and message.endswith("Choose a causal language model")


def test_the_manifest_counts_texts_and_tokens(project: Project, tiny_model: Path) -> None:
    """Cut texts count with the tokens that were forwarded. How texts are batched moves nothing."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts_of(project).values()]
    most = sorted(lengths)[COUNT // 2]
    project.configure(max_tokens=most, pooling="mean", shards=3, batch_size=5)
    done = project.run().ok()
    tokens = sum(min(length, most) for length in lengths)
    cut = sum(length > most for length in lengths)
    assert captures(done) == 3 and cut
    assert project.manifest()["capture"] == {
        "unique_texts": COUNT,
        "forwarded_texts": COUNT,
        "tokens": tokens,
        "forwarded_tokens": tokens,
        "cut_texts": cut,
        "short_texts": 0,
    }
    project.configure(batch_size=None, batch_tokens=100, device="cpu")
    assert not project.run("--dry-run").ok().jobs


def test_one_new_text_in_a_hundred_is_forwarded_alone(project: Project, tiny_model: Path) -> None:
    project.configure(pooling="mean")
    project.run().ok()
    before, held = texts_of(project), stored(project)
    new = make_journal(2, start=COUNT)
    project.write_nodes([*project.nodes(), *new])
    done = project.run().ok()
    texts = [node["text"].rpartition("\n")[0] for node in new]
    tokens = sum(len(AutoTokenizer.from_pretrained(tiny_model)(text)["input_ids"]) for text in texts)
    capture = project.manifest()["capture"]
    assert done.forwarded == capture["forwarded_texts"] == 2 and capture["unique_texts"] == COUNT + 2
    assert capture["forwarded_tokens"] == tokens
    space = project.manifest()["keys"]["activations"]
    for layer in (1, 2):
        added = set(stored(project)[space, layer]) - set(held[space, layer])
        assert len(stored(project)[space, layer]) == len(held[space, layer]) + 2
        assert added and not added & before.keys()
