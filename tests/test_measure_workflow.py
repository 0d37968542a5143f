"""What is measured on request, end to end: compare, sweep and the layers it chooses, texts from elsewhere, denoise, paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from amygdala.contract import load_readout
from project import Project, Run

pytestmark = pytest.mark.end_to_end

EMOTIONS = ["calm", "frustration", "joy"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """3 emotions at layers 1 and 2 of the tiny model, two poolings, neutral texts projected out."""
    nodes = tiny.sample_nodes()
    project = Project.make(
        tmp_path_factory.mktemp("measured") / "project",
        nodes,
        model=str(tiny_model),
        emotions={"select": "curated", "curated": EMOTIONS},
        max_examples_per_emotion=60,
        target_layers=[1, 2],
        pooling=["mean", "last"],
        denoise=0.5,
    )
    project.build()
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    return built.copy(tmp_path / "copy")


@pytest.fixture(scope="module")
def swept(built: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """A copy whose layers a sweep chooses, and the run of the sweep."""
    project = built.copy(tmp_path_factory.mktemp("swept") / "project")
    project.configure(target_layers="auto")
    return project, project.build("sweep")


def result(project: Project, name: str) -> dict[str, Any]:
    return json.loads((project.folder / "results" / name).read_text(encoding="utf-8"))


def test_neutral_texts_are_captured_and_the_release_says_so(built: Project) -> None:
    manifest = built.manifest()
    assert manifest["denoise"] == {"share": 0.5, "neutral_texts": 72}
    texts = {
        e["digest"] for path in built.folder.glob("store/examples/*.json") for e in json.loads(path.read_text())["examples"]
    }
    assert manifest["capture"]["unique_texts"] == len(texts) + 72


def test_other_neutral_texts_are_other_vectors_and_none_are_the_plain_ones(project: Project) -> None:
    first = project.bytes_of("results/readout/vectors.safetensors")
    lines = (tiny.REPOSITORY / "resources" / "neutral.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (project.folder / "neutral.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
    project.configure(neutral="neutral.jsonl")
    done = project.build()
    assert done.forwarded == 0, "the rows of these 40 are there"
    other = project.bytes_of("results/readout/vectors.safetensors")
    project.configure(denoise=None)
    project.run().ok()
    assert len({tuple(first.values()), tuple(other.values()), tuple(project.bytes_of("results/readout/v*").values())}) == 3
    project.configure(denoise=0.5, neutral="nowhere.jsonl")
    assert "neutral: no such file" in project.run().text
    (project.folder / "neutral.jsonl").write_text(lines[0], encoding="utf-8")
    project.configure(neutral="neutral.jsonl")
    failed = project.run()
    assert (
        failed.status != 0 and "neutral.jsonl has 1 texts of min_content_chars (40) or more; denoise needs two" in failed.text
    )


def test_compare_ranks_every_method_layer_and_pooling_without_a_pass(project: Project) -> None:
    done = project.build("compare")
    assert done.forwarded == 0 and "Comparison of joy" in done.jobs
    report = result(project, "compare.json")
    ranking = report["ranking"]
    plain = ("mean_difference", "pca", "logistic", "lda")
    assert {(r["pooling"], r["layer"], r["method"], r["denoise"]) for r in ranking} == {
        (pooling, layer, method, share)
        for pooling in ("mean", "last")
        for layer in (1, 2)
        for method in plain
        for share in (None, 0.5)
    }
    assert [r["mean_auc"] for r in ranking] == sorted((r["mean_auc"] for r in ranking), reverse=True)
    assert all(r["interval"][0] <= r["mean_auc"] <= r["interval"][1] and r["emotions"] == 3 for r in ranking)
    assert report["not_measured"] == {"no scenario has texts of both sides": EMOTIONS}
    assert report["in_words"].startswith(f"best: {ranking[0]['method']}") and report["in_words"] in done.text
    own = next(
        r for r in ranking if (r["pooling"], r["layer"], r["method"], r["denoise"]) == ("mean", 2, "mean_difference", 0.5)
    )
    quality = result(project, "quality.json")
    assert own["mean_auc"] == pytest.approx(quality["macro_auc"]["2"]["mean"], abs=1e-5), "the release's own vectors"
    assert not project.run("compare").ok().jobs


def test_auto_wants_a_sweep(project: Project) -> None:
    project.configure(target_layers="auto")
    for targets in ([], ["activations"], ["vectors"], ["report"], ["emotion_joy"], ["layer_2"]):
        refused = project.run(*targets)
        assert refused.status != 0 and "Measure all layers with: snakemake --cores all sweep" in refused.text


def test_what_a_sweep_chose_is_built(swept: tuple[Project, Run], tmp_path: Path) -> None:
    project, done = swept[0].copy(tmp_path / "copy"), swept[1]
    forwarded = project.manifest()["capture"]["unique_texts"]
    assert done.forwarded == forwarded and "loading layers 0 to 3" in done.text, "layers 0 and 3 were not there"
    sweep = result(project, "sweep.json")
    assert set(sweep["macro_auc"]) == {"0", "1", "2", "3"} and set(sweep["emotions"]) == set(EMOTIONS)
    assert "<svg" in (project.folder / "results/sweep.svg").read_text()
    best = max(sweep["macro_auc"], key=lambda layer: sweep["macro_auc"][layer]["mean_auc"])
    assert sweep["choice"][0]["layer"] == int(best) and int(best) in sweep["layers"]
    assert project.build().forwarded == 0
    assert project.manifest()["layers"] == sweep["layers"]
    assert result(project, "quality.json")["macro_auc"][best]["mean"] == pytest.approx(
        sweep["macro_auc"][best]["mean_auc"], abs=1e-5
    )
    assert not project.run("readout", "sweep").ok().jobs
    project.configure(pooling="last")
    failed = project.run()
    assert failed.status != 0 and "was made for pooling 'mean'" in failed.text


def test_a_sweep_stays_chosen_when_the_graph_changes(swept: tuple[Project, Run], tmp_path: Path) -> None:
    """A daily update must not move the layers that a server hooks."""
    project = swept[0].copy(tmp_path / "copy")
    layers = result(project, "sweep.json")["layers"]
    project.edit(project.nodes()[0]["key"], lambda text: "Something else came first. " + text)
    project.run().ok()
    assert project.manifest()["layers"] == layers


def test_texts_from_elsewhere_are_scored(project: Project) -> None:
    lamps = (f'"The lamp {n} burned low and the boats came in one by one.",{n % 2 * 9},' for n in range(24))
    rows = ["text,joy,calm", *lamps]
    (project.folder / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    table = {"source": "table", "name": "lamps", "path": "table.csv", "text": "text", "scores": ["joy", "calm"], "scale": 1}
    conversations = {"source": "conversations", "name": "talks", "path": "resources/conversations.jsonl"}
    project.configure(unseen=[table, conversations])
    assert not project.run().ok().jobs, "no release rests on them"
    done = project.build("unseen")
    assert done.forwarded == 24 + 10
    sets = result(project, "unseen.json")["sets"]
    assert (sets["lamps"]["texts"], sets["talks"]["texts"]) == (24, 10)
    joy = sets["lamps"]["emotions"]["joy"]
    assert (joy["positive"], joy["negative"], joy["few"]) == (12, 12, False)
    assert sum(joy["histogram"]["positive"]) == 12 and len(joy["highest"]) == len(joy["lowest"]) == 3
    # by hand, from the stored rows
    readout = load_readout(*(project.folder / "results/readout" / n for n in ("vectors.safetensors", "manifest.json")))
    assert set(joy["layers"]) == {str(layer) for layer in readout.layers}
    assert sets["lamps"]["emotions"]["calm"]["layers"]["1"]["auc"] is None
    assert "svg" in (project.folder / "results/unseen.svg").read_text()[:400]
    assert not project.run("unseen").ok().jobs
    project.configure(unseen=[])
    assert "the configuration names no texts from elsewhere" in project.run("unseen").text


def test_heads_are_ablated_as_asked(project: Project) -> None:
    """Both fills through the real rules, an answer for each emotion, nothing to do the second time, and what cannot be done
    said before anything is built.
    """
    project.configure(ablation={"emotions": ["joy", "Calm"], "layer": 2, "heads": 1, "random": 3, "fill": "zero"})
    assert not project.run().ok().jobs, "no release rests on it"
    project.build("ablation")
    zero = result(project, "ablation.json")
    assert (zero["k"], zero["random"], zero["fill"], sorted(zero["emotions"])) == (1, 3, "zero", ["calm", "joy"])
    assert zero["layer"] == 2 and zero["forwarded_texts"] > 0 and zero["layers_without_heads"] == {}
    joy, calm = (zero["emotions"][emotion] for emotion in ("joy", "calm"))
    assert joy["layers"] == [1, 2] and len(joy["heads"]) == 1 and joy["random_sets"] == 3
    assert joy["fall"] == joy["auc"]["intact"] - joy["auc"]["ablated"] != 0
    assert joy["auc"]["stored"] == pytest.approx(joy["auc"]["intact"], abs=0.01)
    assert calm["outcome"] == "too few held-out texts" and calm["held_out"]["positive"] < 5 and "heads" not in calm
    assert not project.run("ablation").ok().jobs

    project.configure(ablation={"emotions": [], "layer": None, "heads": 1, "random": 3, "fill": "mean"})
    assert "Ablation of heads up to layer 2" in project.run("ablation").ok().text
    mean = result(project, "ablation.json")
    assert mean["fill"] == "mean" and sorted(mean["emotions"]) == EMOTIONS
    same, other = (found["emotions"]["joy"] for found in (zero, mean))
    assert same["heads"] == other["heads"] and same["auc"]["intact"] == other["auc"]["intact"]

    for ablation, message in (
        ({"emotions": ["gladness"]}, "ablation.emotions: this build makes no vector of 'gladness'"),
        ({"layer": 3}, "ablation.layer: 3 is not among the target layers [1, 2]"),
    ):
        project.configure(ablation={"heads": 1, "random": 3, "fill": "zero", **ablation})
        refused = project.run("ablation")
        assert refused.status != 0 and message in refused.text, refused.text
        assert not project.run().ok().jobs, "it stops nobody else"


def test_paired_stories(tmp_path: Path, tiny_model: Path) -> None:
    """The same scenes with joy and without: `paired` takes them scene by scene; an emotion without scenes is refused by
    name.
    """
    stories = tmp_path / "stories"
    for number in range(40):
        scene = stories / "paired" / f"scene{number}"
        scene.mkdir(parents=True)
        opening = f"Harbour{number} tells{number} of{number} mornings{number} and{number} sails{number}"
        (scene / "joy.txt").write_text(f"{opening}, bright bright and dancing, glad glad.")
        (scene / "baseline.txt").write_text(f"{opening}, plain and as listed, noted down.")
    project = Project.make(
        tmp_path / "project",
        [],
        graph={"source": "stories", "path": str(stories)},
        model=str(tiny_model),
        emotions={"select": "data", "min_positives": 5},
        target_layers=[1],
        method="paired",
    )
    project.run().ok()
    assert project.manifest()["method"] == "paired"
    joy = result(project, "quality.json")["emotions"]["joy"]
    assert joy["layers"]["1"]["held_out"]["auc"] > 0.75
    assert joy["scenarios"]["groups"] == 40
