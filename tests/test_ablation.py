"""Which heads are ablated, what the figures say, and a planted head that alone carries an emotion."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ablation
import tiny
from ablation import Emotion, Trial, check_rows, contributions, judged, make_ablation, plan_trial, random_sets, ranked
from amygdala.errors import UserError
from amygdala.keys import text_digest
from amygdala.modelinfo import describe
from amygdala.vectorfile import write_vector
from captures import Run, Slow, Watch

RANDOM = np.random.default_rng(11)
HIDDEN, N_HEADS, HEAD_DIM = 6, 4, 2
LAYERS = (1, 3, 4)
O_PROJS = {layer: RANDOM.standard_normal((HIDDEN, N_HEADS * HEAD_DIM)).astype(np.float32) for layer in LAYERS}
DELTAS = {layer: RANDOM.standard_normal((N_HEADS, HEAD_DIM)) for layer in LAYERS}
VECTOR = np.array([0.6, 0, 0, -0.8, 0, 0], np.float32)
HEADS = list(itertools.product(LAYERS, range(N_HEADS)))


def slow_contribution(layer: int, head: int) -> float:
    total = 0.0
    for row in range(HIDDEN):
        for i in range(HEAD_DIM):
            total += float(VECTOR[row]) * float(O_PROJS[layer][row, head * HEAD_DIM + i]) * float(DELTAS[layer][head, i])
    return total


def test_contributions_and_their_order_equal_brute_force() -> None:
    found = contributions(VECTOR, O_PROJS, DELTAS)
    assert set(found) == set(HEADS)
    for layer, head in HEADS:
        assert found[layer, head] == pytest.approx(slow_contribution(layer, head), abs=1e-12)
    order = ranked(found)
    assert order == sorted(HEADS, key=lambda pair: -abs(slow_contribution(*pair)))
    assert any(found[pair] < 0 for pair in order[:6]), "those that write against it count alike"
    assert ranked({(2, 1): -1.0, (2, 0): 1.0, (1, 3): 1.0, (0, 0): 0.5}) == [(1, 3), (2, 0), (2, 1), (0, 0)]


def test_random_sets_have_as_many_heads_of_each_layer_and_none_of_the_top() -> None:
    heads = list(itertools.product(range(5), range(12)))
    top = [(0, 3), (2, 1), (2, 7), (2, 8), (4, 0)]
    sets = random_sets(top, heads, 200, "joy", 4)
    assert len(sets) == len(set(sets)) == 200
    met: Counter[tuple[int, int]] = Counter()
    for chosen in sets:
        assert list(chosen) == sorted(set(chosen)) and not set(chosen) & set(top)
        assert Counter(layer for layer, _ in chosen) == {0: 1, 2: 3, 4: 1}
        met.update(chosen)
    others = [head for head in heads if head not in top and head[0] in (0, 2, 4)]
    assert set(met) == set(others)
    expected = {0: len(sets) / 11, 2: len(sets) * 3 / 9, 4: len(sets) / 11}
    for head in others:
        assert abs(met[head] - expected[head[0]]) < 5 * math.sqrt(expected[head[0]])


def test_random_sets_are_seeded_by_emotion_and_layer_alone() -> None:
    heads = list(itertools.product(range(5), range(12)))
    top = [(0, 3), (2, 1)]
    first = random_sets(top, heads, 5, "joy", 4)
    np.random.default_rng(0).random()
    assert random_sets(top[::-1], heads[::-1], 5, "joy", 4) == first
    assert random_sets(top, heads, 9, "joy", 4)[:5] == first
    assert random_sets(top, heads, 5, "joy", 3) != first != random_sets(top, heads, 5, "calm", 4)


def test_random_sets_take_from_other_layers_what_a_layer_lacks() -> None:
    heads = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    sets = random_sets([(0, 0), (0, 1)], heads, 50, "joy", 1)
    assert set(sets) == {((0, 2), (1, other)) for other in range(3)}
    assert random_sets([(0, 0), (0, 1), (1, 1)], heads, 50, "joy", 1) == [((0, 2), (1, 0), (1, 2))]
    assert random_sets(heads[:4], heads, 50, "joy", 1) == []
    assert random_sets([(0, 0)], heads, 0, "joy", 1) == []
    assert len(random_sets([(0, 0), (1, 1)], heads, 4, "joy", 1)) == 4, "all that there are"


def test_figures_by_closed_forms() -> None:
    found = judged(0.9, 0.6, [0.88, 0.9, 0.86, 0.88], 10)
    sd = math.sqrt((0.02**2 + 0.02**2) / 3)
    assert found["auc"] == {"intact": 0.9, "ablated": 0.6, "random_mean": pytest.approx(0.88), "random_sd": pytest.approx(sd)}
    assert found["fall"] == pytest.approx(0.3) and found["random_sets"] == 4
    assert found["z"] == pytest.approx((0.3 - 0.02) / sd) and found["p"] == pytest.approx(1 / 5)


MANY = "as many random heads"


@pytest.mark.parametrize(
    ("intact", "ablated", "random", "k", "outcome", "words"),
    [
        (0.81, 0.63, [0.79, 0.8, 0.81], 10, "carried", f"top 10 heads carry it: AUC falls 0.81 -> 0.63, {MANY} 0.80 ± 0.01"),
        (0.81, 0.63, [0.8, 0.8, 0.8], 1, "carried", f"the top head carries it: AUC falls 0.81 -> 0.63, {MANY} 0.80 ± 0.00"),
        (0.81, 0.77, [0.805, 0.81, 0.805], 2, "little", f"but little: AUC falls 0.81 -> 0.77, {MANY} 0.81 ± 0.00"),
        (0.81, 0.63, [0.5, 0.8, 0.81], 2, "not carried", f"heads do not carry it: AUC falls 0.81 -> 0.63, {MANY} 0.70 ± 0.18"),
        (0.81, 0.63, [0.64, 0.8, 0.81], 1, "not carried", f"does not carry it: AUC falls 0.81 -> 0.63, {MANY} 0.75 ± 0.10"),
        (
            0.81,
            0.85,
            [0.8, 0.81, 0.81],
            2,
            "not carried",
            f"top 2 heads do not carry it: AUC 0.81 -> 0.85, {MANY} 0.81 ± 0.01",
        ),
        (0.6, 0.4, [0.6, 0.6, 0.6], 2, "nothing to carry", f"tells little apart: AUC falls 0.60 -> 0.40, {MANY} 0.60 ± 0.00"),
        (
            0.81,
            0.63,
            [],
            2,
            "no comparison",
            "top 2 heads ablated: AUC falls 0.81 -> 0.63, there are 0 other sets of as many",
        ),
        (0.81, 0.7, [0.8], 2, "no comparison", "there are 1 other sets of as many heads to compare with, 3 are needed"),
        (0.81, 0.7, [0.8, 0.8], 2, "no comparison", "there are 2 other sets of as many heads to compare with, 3 are needed"),
    ],
)
def test_words(intact: float, ablated: float, random: list[float], k: int, outcome: str, words: str) -> None:
    found = judged(intact, ablated, random, k)
    assert found["outcome"] == outcome and words in found["words"]
    json.dumps(found, allow_nan=False)


def emotion_of(positive: int, negative: int, train: dict[str, list[str]] | None = None) -> Emotion:
    held = {f"{number:032x}": (f"text {number}", number < positive) for number in range(positive + negative)}
    return Emotion(held, {"positive": ["aa"], "negative": ["bb"]} if train is None else train)


def plan(emotion: Emotion, layer: int = 4, k: int = 3, deltas: Any = DELTAS, random: int = 5) -> Trial:
    return plan_trial("joy", emotion, layer, VECTOR, deltas, O_PROJS, k, random)


@pytest.mark.parametrize(
    ("trial", "outcome", "words"),
    [
        (
            lambda: plan(emotion_of(4, 9)),
            "too few held-out texts",
            "not tried: 4 positive and 9 negative held-out texts, 5 of",
        ),
        (lambda: plan(emotion_of(9, 0)), "too few held-out texts", "not tried: 9 positive and 0 negative held-out"),
        (lambda: plan(emotion_of(9, 9, {"positive": [], "negative": ["bb"]})), "no training texts", "not tried: no training"),
        (lambda: plan(emotion_of(9, 9), layer=0), "no heads", "not tried: no captured layer up to 0 has heads"),
        (
            lambda: plan(emotion_of(9, 9), k=12),
            "too few heads",
            "not tried: the captured layers up to 4 have 12 heads, k",
        ),
        (
            lambda: plan(emotion_of(9, 9), layer=2, k=4),
            "too few heads",
            "not tried: the captured layers up to 2 have 4 heads, k",
        ),
    ],
)
def test_what_makes_no_sense_is_not_tried(trial: Any, outcome: str, words: str) -> None:
    made = trial()
    assert made.report["outcome"] == outcome and made.report["words"].startswith(words)
    assert not made.top and not made.sets


def test_heads_are_those_up_to_the_readout_layer() -> None:
    trial = plan(emotion_of(5, 5), layer=3)
    assert (trial.report["layers"], trial.report["n_heads"], trial.report["held_out"]) == (
        [1, 3],
        8,
        {"positive": 5, "negative": 5},
    )
    order = sorted((head for head in HEADS if head[0] <= 3), key=lambda pair: -abs(slow_contribution(*pair)))
    assert trial.top == order[:3] and len(trial.random) >= 3
    assert all(layer <= 3 for chosen in trial.sets for layer, _ in chosen)
    assert trial.sets[0] == tuple(sorted(order[:3]))
    assert [head for *head, _ in trial.report["heads"]] == [list(head) for head in order[:3]]
    assert [value for _, _, value in trial.report["heads"]] == [pytest.approx(slow_contribution(*head)) for head in order[:3]]
    assert plan(emotion_of(5, 5), layer=3, k=7).random == [], "one other head is left"
    assert plan(emotion_of(5, 5), layer=4, k=11).report.get("outcome") is None


def test_other_rows_than_the_stored_ones_are_refused() -> None:
    rows = RANDOM.standard_normal((9, 5)).astype(np.float32)
    check_rows(rows, rows * np.float32(1.0005), 3, "fp32")
    check_rows(rows, rows * np.float32(1.01), 3, "bf16")
    for dtype, factor in (("fp32", 1.002), ("bf16", 1.1), ("fp32", np.nan)):
        with pytest.raises(UserError, match=r"^layer 3: without ablation the model gives other rows than the store has"):
            check_rows(rows * np.float32(factor), rows, 3, dtype)


# A planted model: texts of the emotion hold the letter Q. Head 2 of layer 1 moves it to a coordinate of its own, OWN; every
# token of a text gets it there. With `twin`, head 0 of layer 2 does the same.
LETTER, SEEN, OWN = "Q", 0, 1
PLANTED = (1, 2)
CAPTURED = (0, 1, 2)


def plant(folder: Path, twin: bool) -> Path:
    from transformers import AutoModelForCausalLM

    tiny.make_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (letter,) = tiny.make_tokenizer()(LETTER)["input_ids"]
    with torch.no_grad():
        embeddings = model.model.embed_tokens.weight
        embeddings[:, [SEEN, OWN]] = 0
        embeddings[letter, SEEN] = 3
        for number, block in enumerate(model.model.layers):
            attention = block.self_attn
            attention.o_proj.weight[[SEEN, OWN]] = 0
            block.mlp.down_proj.weight[[SEEN, OWN]] = 0
            for head in [2] * (number == 1) + [0] * (number == 2 and twin):
                attention.q_proj.weight[16 * head : 16 * head + 16] = 0  # looks at all tokens alike
                shared = head // 2  # 4 heads share 2 keys and values
                attention.v_proj.weight[16 * shared] = 0
                attention.v_proj.weight[16 * shared, SEEN] = 1
                attention.o_proj.weight[OWN, 16 * head] = 1
    model.save_pretrained(folder)
    return folder


WORDS = ("sun", "low", "we", "walked", "home", "along", "quiet", "road", "rain", "came", "over", "hills")


def text_of(number: int, letters: int) -> str:
    words = [WORDS[at] for at in np.random.default_rng([number, 7]).integers(0, len(WORDS), 10)]
    for place in range(letters):
        words[2 * place + 1] = LETTER
    return " ".join([*words, str(number)])


@pytest.fixture(scope="module", params=[False, True], ids=["one", "twin"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bool, Path]]:
    folder = tmp_path_factory.mktemp("planted")
    yield request.param, plant(folder / "model", request.param)


def examples_of(seed: int, held_out: int = 9) -> list[dict[str, Any]]:
    """12 training texts a side, `held_out` held out; a positive has one to three letters, every third negative one."""
    found: list[dict[str, Any]] = []
    for side, split, count in itertools.product(("positive", "negative"), ("train", "held_out"), (12, held_out)):
        if count == (12 if split == "train" else held_out):
            for number in range(count):
                letters = 1 + number % 3 if side == "positive" else int(number % 3 == 0)
                text = text_of(1000 * seed + 100 * len(found) + number, letters)
                found.append({"digest": text_digest(text), "polarity": side, "split": split, "text": text, "scenarios": []})
    return found


class Ablations:
    """A store of the planted model with the rows of two emotions, and make_ablation over it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.run, self.folder = Run(folder / "store", model), folder
        self.examples = {"joy": examples_of(1), "calm": examples_of(2)}
        self.vector = np.zeros(48, np.float32)
        self.vector[OWN] = 1
        self.files: dict[str, dict[str, Any]] = {}
        for name, examples in self.examples.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps({"examples": examples}))
            vectors = {layer: folder / f"{name}_{layer}.safetensors" for layer in (1, 2)}
            for vector in vectors.values():
                write_vector(vector, self.vector, {})
            self.files[name] = {"examples": str(path), "vectors": vectors}
        self.run({e["digest"]: e["text"] for examples in self.examples.values() for e in examples}, CAPTURED)
        self.output = folder / "ablation.json"
        self.lines: list[str] = []

    def __call__(self, k: int = 1, random: int = 6, fill: str = "mean", layer: int = 2, **settings: Any) -> dict[str, Any]:
        self.lines.clear()
        options = {"k": k, "random": random, "fill": fill}
        given = {**self.run.settings, **settings}
        return make_ablation(
            self.files, layer, CAPTURED, [self.run.index()], "mean", given, options, self.output, self.lines.append
        )

    def held_out(self, name: str) -> list[dict[str, Any]]:
        return sorted((e for e in self.examples[name] if e["split"] == "held_out"), key=lambda e: e["digest"])


@pytest.fixture
def ablations(planted: tuple[bool, Path], tmp_path: Path) -> Ablations:
    return Ablations(tmp_path, planted[1])


def slow_auc(scores: list[float], positive: list[bool]) -> float:
    """Share of pairs in which the positive is higher, ties as half."""
    pairs = [(a, b) for a, is_positive in zip(scores, positive, strict=True) if is_positive
             for b, other in zip(scores, positive, strict=True) if not other]  # fmt: skip
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_the_planted_head_is_found_and_its_ablation_takes_the_emotion_away(
    planted: tuple[bool, Path], ablations: Ablations
) -> None:
    for fill in ("mean", "zero"):
        report = ablations(fill=fill, layer=1)
        for name in ("joy", "calm"):
            found = report["emotions"][name]
            assert [head[:2] for head in found["heads"]] == [list(PLANTED)]
            assert found["heads"][0][2] > 0 and found["layers"] == [0, 1] and found["n_heads"] == 8
            assert found["outcome"] == "carried", found["words"]
            assert found["auc"]["intact"] > 0.8
            # at the mean, all texts lie at one point, but for rounding
            assert found["auc"]["ablated"] == 0.5 if fill == "zero" else found["auc"]["ablated"] < 0.75
            assert found["auc"]["stored"] == pytest.approx(found["auc"]["intact"], abs=1e-9)
            assert found["auc"]["random_mean"] > 0.8
    two = ablations(k=2)["emotions"]["joy"]
    assert list(PLANTED) in [head[:2] for head in two["heads"]]
    one = ablations(k=1)["emotions"]["joy"]
    twin = planted[0]
    assert two["outcome"] == "carried"
    assert one["outcome"] == ("not carried" if twin else "carried")
    assert (one["auc"]["ablated"] > 0.8) == twin, "the other head still carries it"


def test_figures_equal_a_model_whose_weights_lack_the_heads(ablations: Ablations) -> None:
    """All of it by hand: sets of heads from the report's own rule, one text at a time, AUC pair by pair."""
    report = ablations(k=3, random=3, fill="zero")["emotions"]["joy"]
    texts = ablations.held_out("joy")
    positive = [e["polarity"] == "positive" for e in texts]
    heads = [(int(layer), int(head)) for layer, head, _ in report["heads"]]
    every = list(itertools.product(CAPTURED, range(4)))
    aucs = {}
    for chosen in [(), tuple(heads), *random_sets(heads, every, 3, "joy", 2)]:
        slow = Slow(ablations.run.settings["source"])
        for layer, head in chosen:
            slow.model.model.layers[layer].self_attn.o_proj.weight.data[:, 16 * head : 16 * head + 16] = 0
        aucs[chosen] = slow_auc(
            [round(float(slow.rows(e["text"], 2)["residual"] @ ablations.vector), 6) for e in texts], positive
        )
    intact, top, *random = aucs.values()
    assert report["auc"]["intact"] == pytest.approx(intact, abs=1e-6)
    assert report["auc"]["ablated"] == pytest.approx(top, abs=1e-6)
    assert report["auc"]["random_mean"] == pytest.approx(np.mean(random), abs=1e-6)
    assert report["auc"]["random_sd"] == pytest.approx(np.std(random, ddof=1), abs=1e-6)


def test_the_fill_is_the_mean_over_all_training_texts(ablations: Ablations, monkeypatch: pytest.MonkeyPatch) -> None:
    import amygdala.ablating

    given: list[Any] = []
    real = amygdala.ablating.ablated

    def spy(projections: Any, heads: Any, fill: Any = None) -> Any:
        given.append(fill)
        return real(projections, heads, fill)

    monkeypatch.setattr(amygdala.ablating, "ablated", spy)
    ablations(random=1)
    slow = Slow(ablations.run.settings["source"])
    for name, fill in zip(("joy", "calm"), given[::2], strict=True):
        rows = [slow.rows(e["text"], 1)["heads"] for e in ablations.examples[name] if e["split"] == "train"]
        assert len(rows) == 24 and set(fill) == set(CAPTURED)
        assert np.allclose(fill[1], np.mean(rows, axis=0).reshape(4, 16), atol=1e-5)
    given.clear()
    ablations(fill="zero")
    assert given and all(fill is None for fill in given)


def test_passes_are_shared_and_counted(ablations: Ablations, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    report = ablations(random=3)
    assert report["forwarded_texts"] == len(watch.forwarded) and report["layer"] == 2
    assert watch.loads == [CAPTURED]
    sets = 1 + 3  # the top head and three random ones
    assert len(watch.forwarded) == 36 + 2 * sets * 18, "all 36 texts intact in one pass, each set the 18 of its emotion"
    assert json.loads(ablations.output.read_text()) == report
    assert f"forwarded {report['forwarded_texts']} texts" in ablations.lines


def test_the_same_run_gives_the_same_bytes(ablations: Ablations) -> None:
    ablations()
    first = ablations.output.read_bytes()
    ablations()
    assert ablations.output.read_bytes() == first


def test_emotions_without_enough_texts_cost_no_pass(ablations: Ablations, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(ablations.files["calm"]["examples"])
    path.write_text(json.dumps({"examples": examples_of(2)[:24] + examples_of(2)[24:28]}))
    watch = Watch(monkeypatch)
    report = ablations(random=3)
    assert report["emotions"]["calm"]["outcome"] == "too few held-out texts"
    assert report["emotions"]["joy"]["outcome"] in ("carried", "not carried")
    assert len(watch.forwarded) == 18 * 5
    ablations.files = {"calm": ablations.files["calm"]}
    assert ablations()["forwarded_texts"] == 0


def test_a_k_as_large_as_all_heads_is_told(ablations: Ablations) -> None:
    report = ablations(k=12)
    assert report["forwarded_texts"] == 0
    assert {found["outcome"] for found in report["emotions"].values()} == {"too few heads"}
    assert ablations(k=11)["emotions"]["joy"]["outcome"] == "no comparison"


def test_a_store_of_another_model_is_refused(ablations: Ablations, tmp_path: Path) -> None:
    other = tiny.make_model(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match=r"^layer 2: without ablation the model gives other rows than the store has"):
        ablations(source=str(other))
    assert not ablations.output.exists()


def test_a_model_without_heads_is_told(tmp_path: Path) -> None:
    made = Ablations(tmp_path, tiny.make_model(tmp_path / "mamba", "mamba"))
    vector = np.zeros(32, np.float32)
    vector[1] = 1
    for paths in made.files.values():
        for path in paths["vectors"].values():
            write_vector(path, vector, {})
    report = made()
    assert report["layers_without_heads"] == {str(layer): "a model without attention heads" for layer in CAPTURED}
    assert report["emotions"]["joy"]["outcome"] == "no heads" and report["forwarded_texts"] == 0


def test_the_job(ablations: Ablations) -> None:
    model = ablations.run.settings["source"]
    params = SimpleNamespace(
        model=vars(describe(model, [Path()], ablations.folder)),
        store=str(ablations.folder),
        settings={name: value for name, value in ablations.run.settings.items() if name != "threads"},
        files={
            name: {
                "examples": paths["examples"],
                "vectors": {str(layer): str(path) for layer, path in paths["vectors"].items()},
            }
            for name, paths in ablations.files.items()
        },
        layer=1,
        captured=list(CAPTURED),
        pooling="mean",
        k=1,
        random=3,
        fill="mean",
    )

    class Files(list[str]):
        @property
        def indices(self) -> list[str]:
            return [str(ablations.run.index())]

    snakemake = SimpleNamespace(
        input=Files(["something"]),
        output=[str(ablations.output)],
        log=[str(ablations.folder / "log")],
        threads=1,
        params=params,
    )
    runpy.run_path(str(tiny.REPOSITORY / "scripts" / "ablation.py"), {"snakemake": snakemake})
    written = json.loads(ablations.output.read_text())
    assert written == ablations(random=3, layer=1)
    log = (ablations.folder / "log").read_text()
    assert "'joy', layer 1: the top head carries it: AUC falls" in log


def test_the_module_imports_no_torch_until_it_runs() -> None:
    from test_house import imported_by

    assert not {"torch", "transformers"} & imported_by("import ablation")
    assert ablation.SCHEMA_VERSION == 2
