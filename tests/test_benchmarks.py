"""The benchmarks start, the one for GPUs runs on a CPU too, and the jobs that they measure on are what they say."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import tiny
from amygdala.files import read_json

FOLDER = tiny.REPOSITORY / "benchmarks"
sys.path.append(str(FOLDER))

import contender  # noqa: E402
import goemotions  # noqa: E402
import jobs  # noqa: E402

STAGES = ["vectors", "heads", "figures", "quality"]
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py") if path.stem not in ("jobs", "contender"))


def run(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=tiny.REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_these_are_the_benchmarks() -> None:
    names = ("builds", "goemotions", "gpu", "growth", "large_graph", "limit", "peers", "quality")
    assert [f"{name}.py" for name in names] == PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_tells_how_it_is_run(program: str) -> None:
    assert f"python benchmarks/{program}" in run(FOLDER / program, "--help")


def test_the_gpu_benchmark_on_a_cpu() -> None:
    printed = run(FOLDER / "gpu.py", "--device", "cpu", "--shape", "tiny", "--tokens", "16", "--texts", "16")
    rows = [line.split() for line in printed.splitlines() if line[:1] == " " and line.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == [16, 64, 256, 256]
    assert all(float(row[1]) > 0 for row in rows)
    # 4 blocks of 4 * 64 * 64 for attention, 3 * 64 * 128 for the MLP and two norms of 64
    assert "0.00 billion weights in 4 blocks" in printed


def test_the_quality_benchmark_on_a_small_store() -> None:
    printed = run(FOLDER / "quality.py", "--emotions", "3", "--layers", "2", "--texts", "300", "--examples", "60")
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] and line.split()[0] in STAGES]
    assert [row[0] for row in rows] == STAGES
    assert all(float(value) > 0 for row in rows for value in row[1:])
    assert "3 emotions" in printed


def test_pairs_are_positives_and_as_many_texts_without_the_label() -> None:
    labelled = {f"text {n}": {"joy"} if n % 3 == 0 else {"calm", "grief"} if n % 3 == 1 else set() for n in range(60)}
    job = jobs.paired(labelled, seed=0, at_most=12)
    assert set(job) == {"joy", "calm", "grief"}
    for emotion, pairs in job.items():
        positives, negatives = zip(*pairs, strict=True)
        assert len(pairs) == 12 == len(set(positives)) == len(set(negatives))
        assert all(emotion in labelled[text] for text in positives)
        assert not any(emotion in labelled[text] for text in negatives)
    assert job == jobs.paired(dict(reversed(labelled.items())), seed=0, at_most=12)
    assert job != jobs.paired(labelled, seed=1, at_most=12)
    assert jobs.paired(labelled, seed=0, at_most=12, at_least=21) == {}
    unique, slots = jobs.count(job)
    assert slots == 72 and unique == len(jobs.texts_of(job)) <= 60


def test_our_own_contender_runs(tiny_model: Path) -> None:
    """The peers' libraries live in environments of their own; ours is imported here."""
    job = {"joy": [(f"A bright morning, number {n}.", f"A list of parts, page {n}.") for n in range(4)]}
    done = contender.amygdala(job, str(tiny_model), "fp32", [0, 1], 0)
    assert done["forwards"] == 8 and done["seconds"] > 0


def test_the_goemotions_job() -> None:
    if not jobs.GOEMOTIONS.is_dir():
        pytest.skip("the GoEmotions corpus is not beside this checkout")
    job = jobs.goemotions()
    assert len(job) == 23 and "neutral" not in job
    assert max(map(len, job.values())) == 60
    assert jobs.goemotions(seed=0) == job != jobs.goemotions(seed=1)


def test_the_sample_graph_s_job() -> None:
    job = jobs.sample_graph()
    assert len(job) >= 16
    assert not [text for text in jobs.texts_of(job) if text.rstrip().split()[-1][-2:] in (":8", ":9")]


WORDS = {"joy": "sunny laughing picnic", "fear": "dark creaking cellar", "neutral": "table paper street", "rare": "odd"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of GoEmotions' form, in which the words of a text tell its label."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    (folder / "labels.txt").write_text("\n".join(WORDS))
    for part, count in (("train", 180), ("dev", 45)):
        rows = []
        for number in range(count):
            label = number % 3 if number < count - 2 else 3
            words = rng.choices(list(WORDS.values())[label].split(), k=9)
            rows.append(f"{' '.join(words)} {part} {number}\t{label}{',2' if number % 9 == 0 else ''}\tid{number}")
        rows += ["both of them twice\t0\tx", "both of them twice\t1\ty", '"a quote stays\t2\tz', "a\t1\tw"]
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_table_of_methods_poolings_and_layers(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.make_model(tmp_path / "model", "llama")
    program = ["--corpus", corpus, "--model", model, "--store", tmp_path / "store", "--layers", "1,3", "--texts", "182"]
    goemotions.main([*map(str, program), "--poolings", "mean,last", "--output", str(tmp_path / "table.json")])
    printed = capsys.readouterr().out
    table = read_json(tmp_path / "table.json")
    found = {(row["pooling"], row["layer"], row["denoise"], row["method"]): row for row in table["rows"]}
    methods = ("mean_difference", "pca", "logistic", "lda")
    assert list(found) == list(itertools.product(("mean", "last"), (1, 3), (False, True), methods))
    for row in found.values():
        assert set(row["by_emotion"]) == {"joy", "fear"} and row["emotions"] == 2
        assert row["auc"] == pytest.approx(np.mean(list(row["by_emotion"].values())))
        assert (row["components"] > 0) is row["denoise"]
    assert found["mean", 1, False, "logistic"]["auc"] > 0.9  # words tell the label, even in a model of random weights
    assert len({round(row["auc"], 6) for row in found.values() if row["method"] == "mean_difference"}) > 4
    best = max(table["rows"], key=lambda row: row["auc"])
    assert f"best method: {best['auc']:.4f} ({best['method']}), at or above 0.86" in printed
    assert f"{'logistic':15} {'mean':>14}" in printed and "(1 of the texts have a single token" in printed
    goemotions.main([*map(str, program), "--poolings", "mean", "--methods", "lda", "--folds", "2"])
    again = capsys.readouterr()
    assert "2 folds of them as unseen" in again.out and "mean_difference" not in again.out
    assert " 0 to forward" in again.err


def test_the_table_refuses_what_it_cannot_measure(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = ["--model", tiny.make_model(tmp_path / "model", "llama"), "--store", tmp_path / "store"]
    for arguments, message in (
        (["--corpus", tmp_path / "nowhere"], f"the GoEmotions corpus is not here ({tmp_path / 'nowhere' / 'train.tsv'})"),
        (["--corpus", corpus, "--methods", "magic"], "--methods magic: choose among mean_difference, pca, logistic, lda"),
        (["--corpus", corpus, "--layers", "0", "--texts", "10"], "pooling mean: no emotion has 20 training and 10 unseen"),
        (["--corpus", corpus, "--layers", "9"], "--layers 9: the model has layers 0 to 3"),
        (["--corpus", corpus, "--layers", "x"], "--layers x: all, every_third or numbers"),
    ):
        with pytest.raises(SystemExit) as stopped:
            goemotions.main(list(map(str, [*program, *arguments])))
        said = capsys.readouterr()
        assert stopped.value.code and message in f"{stopped.value.code}{said.err}" and said.out == ""


def test_training_texts_are_drawn_by_seed_and_never_unseen(corpus: Path) -> None:
    everything = goemotions.labelled_texts(corpus, "train")
    assert everything["both of them twice"] == {"joy", "fear"}
    assert everything['"a quote stays'] == {"neutral"}
    training, unseen = goemotions.split(corpus, 60, 0)
    assert len(training) == 60 and training.items() <= everything.items()
    assert not training.keys() & unseen.keys()
    assert unseen.keys() | training.keys() >= goemotions.labelled_texts(corpus, "dev").keys()
    assert goemotions.split(corpus, 60, 0)[0] == training != goemotions.split(corpus, 60, 1)[0]


def test_examples_are_texts_with_the_label_and_without() -> None:
    labelled = {f"text {n}": {"joy"} if n % 3 == 0 else {"calm", "joy"} if n % 3 == 1 else {"calm"} for n in range(60)}
    positive, negative = goemotions.examples(labelled, "joy", 15, 0)
    assert len(set(positive)) == len(set(negative)) == 15
    assert all("joy" in labelled[text] for text in positive) and not any("joy" in labelled[text] for text in negative)
    assert goemotions.examples(dict(reversed(labelled.items())), "joy", 15, 0) == (positive, negative)
    assert goemotions.examples(labelled, "joy", 15, 1) != (positive, negative)
    assert [len(side) for side in goemotions.examples(labelled, "joy", 500, 0)] == [40, 20]


def test_an_emotion_is_scored_with_enough_texts_of_both() -> None:
    def part(**counts: int) -> dict[str, set[str]]:
        return {f"{name} {number}": {name} for name, count in counts.items() for number in range(count)}

    training, unseen = part(a=20, b=19, c=20, neutral=50), part(a=10, b=30, c=9, neutral=50)
    assert goemotions.scored_emotions(training, unseen) == ["a"]


def test_areas_under_the_curve_are_sklearn_s() -> None:
    rng = np.random.default_rng(0)
    scores, member = rng.integers(0, 6, size=(50, 3)).astype(float), rng.random((50, 3)) < [0.2, 0.5, 0.9]
    expected = [roc_auc_score(member[:, column], scores[:, column]) for column in range(3)]
    assert goemotions.aucs(scores, member) == pytest.approx(expected)


def test_the_goemotions_corpus_is_split_as_the_table_says() -> None:
    if not jobs.GOEMOTIONS.is_dir():
        pytest.skip("the GoEmotions corpus is not beside this checkout")
    training, unseen = goemotions.split(jobs.GOEMOTIONS, 4000, 0)
    assert len(training) == 4000 and 5400 < len(unseen) < 5426 and not training.keys() & unseen.keys()
    assert 20 <= len(goemotions.scored_emotions(training, unseen)) <= 27


def test_the_builds_benchmark_takes_no_project_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "size.json").write_text(json.dumps({"nodes": 20_000, "emotions": 200, "layers": 8}))
    command = [sys.executable, str(FOLDER / "builds.py"), "--folder", str(tmp_path), "--emotions", "1000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "'emotions': 200" in done.stderr and "give another --folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["size.json"]


def test_the_changes_of_the_builds_benchmark(tmp_path: Path) -> None:
    """`builds` is a module of the tests too, so this one is loaded by its path."""
    spec = importlib.util.spec_from_file_location("builds_benchmark", FOLDER / "builds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    nodes = [
        {"key": "a", "text": "Rain."},
        {"key": "b", "text": "Sun.\n\ncalm:4 joy:10 awe:10"},
        {"key": "c", "text": "Ice.\n\njoy:10"},
    ]
    for how, text in (
        (module.lower, "Sun.\n\ncalm:4 joy:5 awe:10"),
        (module.reword, "Suddenly another morning came. " + nodes[1]["text"]),
    ):
        (tmp_path / "graph.jsonl").write_text("".join(json.dumps(node) + "\n" for node in nodes))
        module.change(tmp_path, how)
        changed = [json.loads(line) for line in (tmp_path / "graph.jsonl").read_text().splitlines()]
        assert changed == [nodes[0], {"key": "b", "text": text}, nodes[2]]
    said = "Job 3: Examples of joy\nJob 4: Vectors of awe, joy\nJob 5: Vectors of calm\n"
    assert module.made(said) == "3 jobs, vectors of 3 emotions"
