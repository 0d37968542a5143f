"""Scores of tokens: they are the projections that the stored row is the mean of, and stand at their part of the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tiny
from amygdala.errors import UserError
from amygdala.exampleset import Example
from amygdala.segments import RESIDUAL, Reader
from amygdala.tokens import Encoder, Tokens
from amygdala.vectorfile import write_vector
from captures import DIGESTS, TEXTS, Run, Slow, Watch
from token_scores import Chosen, choose, choose_all, pieces, score, shown_tokens, spaced, spread_of

HIDDEN = 48
ODD = "喜び é 👩‍🚀 naïve\u202eturn\x1b[1m <b>bold</b>\n\n\ttabs and </s> its end"


def unit(seed: int) -> np.ndarray:
    row = np.random.default_rng(seed).normal(size=HIDDEN)
    return (row / np.linalg.norm(row)).astype(np.float32)


def quiet(line: str) -> None:
    pass


def example(digest: str, polarity: str = "positive", split: str = "held_out", text: str | None = None) -> Example:
    return Example(digest, polarity, split, TEXTS[digest] if text is None else text)


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Run:
    made = Run(tmp_path, tiny_model)
    made(TEXTS)
    return made


def scored(run: Run, chosen: dict[str, Chosen], vectors: dict[str, np.ndarray], pooling: str = "mean", **settings: Any) -> Any:
    return score(chosen, vectors, pooling, {**run.settings, **settings}, quiet)


def chosen_of(reader: Reader, vectors: dict[str, np.ndarray], layers: dict[str, int], *at: int) -> dict[str, Chosen]:
    examples = [example(DIGESTS[number]) for number in at]
    return {name: choose(examples, reader, layers[name], vectors[name], 3) for name in vectors}


@pytest.mark.parametrize("pooling", ["mean", "last", "from_token:5"])
def test_the_tokens_are_what_the_stored_row_is_made_of(tmp_path: Path, tiny_model: Path, pooling: str) -> None:
    run = Run(tmp_path, tiny_model)
    run(TEXTS, poolings=[pooling])
    vectors, layers = {"calm": unit(0), "joy": unit(1)}, {"calm": 1, "joy": 2}
    reader = run.reader(pooling=pooling)
    found = scored(run, chosen_of(reader, vectors, layers, 0, 3, 7), vectors, pooling)
    for name in vectors:
        assert found["emotions"][name]["layer"] == layers[name]
        assert len(found["emotions"][name]["texts"]) == 3
        for text in found["emotions"][name]["texts"]:
            row = reader.rows(layers[name], RESIDUAL, [text["digest"]])[0].astype(np.float64)
            assert text["from_tokens"] == pytest.approx(row @ vectors[name], rel=1e-4, abs=1e-5)
            assert text["projection"] == pytest.approx(row @ vectors[name], rel=1e-9)


def test_z_is_that_of_every_token_of_all_texts_shown(run: Run) -> None:
    vectors, layers = {"calm": unit(0), "joy": unit(1)}, {"calm": 1, "joy": 2}
    reader = run.reader()
    chosen = chosen_of(reader, vectors, layers, 0, 3)
    chosen["joy"] = choose([example(DIGESTS[5])], reader, 2, vectors["joy"], 3)
    found = scored(run, chosen, vectors)
    slow = Slow(run.settings["source"])
    digests = [DIGESTS[0], DIGESTS[3], DIGESTS[5]]
    ids = {digest: slow.tokenizer(TEXTS[digest])["input_ids"] for digest in digests}
    assert found["tokens"] == sum(len(one) - 1 for one in ids.values()) and found["texts"] == 3
    for name in vectors:
        raw = {digest: slow.states(ids[digest], layers[name])["residual"][1:] @ vectors[name] for digest in digests}
        everything = np.concatenate(list(raw.values()))
        middle, spread = np.median(everything), stats.median_abs_deviation(everything, scale="normal")
        for text in found["emotions"][name]["texts"]:
            z = [value for _, value in text["tokens"]]
            assert z[0] is None and None not in z[1:]
            np.testing.assert_allclose(z[1:], (raw[text["digest"]] - middle) / spread, atol=2e-3)


def test_a_text_of_two_emotions_goes_through_the_model_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    vectors, layers = {"calm": unit(0), "joy": unit(1), "awe": unit(2)}, {"calm": 1, "joy": 2, "awe": 1}
    scored(run, chosen_of(run.reader(), vectors, layers, 0, 3, 7), vectors)
    assert watch.loads == [(1, 2)]
    assert len(watch.forwarded) == 3 == len(set(watch.forwarded))


def test_without_texts_no_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    none = {"calm": choose([example(DIGESTS[0])], run.reader(), 1, unit(0), 0)}
    assert scored(run, none, {"calm": unit(0)})["emotions"] == {}
    assert watch.loads == []


def test_longer_texts_are_cut_as_the_capture_cut_them(tmp_path: Path, tiny_model: Path) -> None:
    run = Run(tmp_path, tiny_model)
    run(TEXTS, max_tokens=9)
    vectors = {"calm": unit(0)}
    found = scored(run, chosen_of(run.reader(), vectors, {"calm": 1}, 4), vectors, max_tokens=9)
    (text,) = found["emotions"]["calm"]["texts"]
    assert text["cut"] and len(text["tokens"]) == 9
    assert text["from_tokens"] == pytest.approx(text["projection"], rel=1e-4)


def test_numbers_that_are_not_finite_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"calm": np.full(HIDDEN, np.inf, np.float32)}
    chosen = {"calm": Chosen(1, "held_out", 1, [(example(DIGESTS[0]), 1, 0.0)])}
    with np.errstate(all="ignore"), pytest.raises(UserError, match=f"{DIGESTS[0]}.*fp16"):
        scored(run, chosen, vectors)


# Which texts


class Rows:
    """A reader whose rows are given by digest."""

    def __init__(self, rows: dict[str, float], without: set[str] | None = None) -> None:
        self._rows, self._without = rows, without or set()

    def pooled(self, digest: str) -> int:
        return 0 if digest in self._without else 3

    def rows(self, layer: int, kind: str, digests: list[str]) -> np.ndarray:
        assert (layer, kind) == (4, RESIDUAL)
        return np.array([[self._rows[digest], 1.0] for digest in digests], np.float32)


def pick(values: dict[str, float], wanted: int, *others: Example, without: set[str] | None = None) -> Chosen:
    held_out = [example(digest, text="") for digest in values]
    rows = {**values, **{other.digest: 99.0 for other in others}}
    return choose([*others, *held_out], Rows(rows, without), 4, np.array([1, 0], np.float32), wanted)  # type: ignore[arg-type]


def test_the_highest_the_middle_and_the_lowest_held_out_positives() -> None:
    values = {"a": 0.5, "b": -1.0, "c": 3.0, "d": 2.0, "e": 1.0}
    others = (example("x", "negative", text=""), example("y", "positive", "train", text=""))
    found = pick(values, 3, *others)
    assert (found.layer, found.split, found.positives) == (4, "held_out", 5)
    assert [(one.digest, rank, value) for one, rank, value in found.texts] == [("c", 1, 3.0), ("e", 3, 1.0), ("b", 5, -1.0)]
    assert [one.digest for one, _, _ in pick({"b": 1.0, "a": 1.0}, 1).texts] == ["a"], "equals go by digest"


def test_training_positives_where_nothing_is_held_out_and_texts_without_a_row_nowhere() -> None:
    train = example("y", "positive", "train", text="")
    found = pick({"a": 1.0}, 3, train, without={"a"})
    assert (found.split, found.positives) == ("train", 1)
    assert [one.digest for one, _, _ in found.texts] == ["y"]
    assert pick({"a": 1.0}, 3, without={"a"}).texts == []


@pytest.mark.parametrize(
    ("count", "wanted", "places"),
    [(9, 3, [0, 4, 8]), (2, 3, [0, 1]), (1, 3, [0]), (0, 3, []), (5, 1, [0]), (5, 0, []), (5, 2, [0, 4]), (4, 9, [0, 1, 2, 3])],
)
def test_places_are_evenly_spaced(count: int, wanted: int, places: list[int]) -> None:
    assert spaced(count, wanted) == places


def test_each_emotion_is_shown_at_its_best_layer_and_the_last_where_none_is_known(run: Run, tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {}
    for at, name in enumerate(("calm", "joy")):
        examples = tmp_path / f"{name}.json"
        one = example(DIGESTS[at])
        examples.write_text(json.dumps({"examples": [vars(one)]}))
        paths = {str(layer): str(tmp_path / f"{name}.{layer}.safetensors") for layer in (1, 2)}
        for layer, path in paths.items():
            write_vector(Path(path), unit(10 * at + int(layer)), {})
        files[name] = {"examples": str(examples), "vectors": paths}
    quality = {"layers": [1, 2], "emotions": {"calm": {"best_layer": 1}, "joy": {"best_layer": None}}}
    chosen, vectors = choose_all(files, quality, run.reader(), 3)
    assert {name: one.layer for name, one in chosen.items()} == {"calm": 1, "joy": 2}
    np.testing.assert_array_equal(vectors["calm"], unit(1))
    np.testing.assert_array_equal(vectors["joy"], unit(12))


# Where tokens stand


@pytest.mark.parametrize("bos", [False, True])
def test_the_pieces_of_a_text_are_the_text(bos: bool) -> None:
    encoder = Encoder(tiny.make_tokenizer(bos), 2048)
    (tokens,) = encoder([ODD])
    found = pieces(encoder, ODD, tokens)
    assert len(found) == len(tokens) and "".join(found) == ODD
    assert (found[0] == "") == bos


def test_the_pieces_of_a_cut_text_are_its_beginning() -> None:
    encoder = Encoder(tiny.make_tokenizer(), 7)
    text = "A plain sentence that goes on for long enough."
    (tokens,) = encoder([text])
    found = "".join(pieces(encoder, text, tokens))
    assert tokens.cut and text.startswith(found) and 0 < len(found) < len(text)


def test_what_a_template_puts_around_a_text_is_no_piece() -> None:
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    encoder = Encoder(tokenizer, 2048, {"role": "user", "system": None})
    text = "I am glad 喜び of it."
    (tokens,) = encoder([text])
    found = pieces(encoder, text, tokens)
    assert "".join(found) == text
    assert all(found[at] for at in np.flatnonzero(tokens.content)[:3])


class SlowTokenizer:
    is_fast = False

    def decode(self, ids: list[int]) -> str:
        return f"<{ids[0]}>"


def test_a_tokenizer_without_offsets_decodes_each_token() -> None:
    class Encodes:
        tokenizer = SlowTokenizer()
        place = None

    tokens = Tokens(np.array([5, 7], np.int32), np.array([False, True]), False)
    assert pieces(Encodes(), "any", tokens) == ["<5>", "<7>"]  # type: ignore[arg-type]


def test_parts_of_a_character_are_shown_as_one() -> None:
    content = np.array([False, False, True, True, True, True])
    found = shown_tokens(["", "A", " b", "喜", "", ""], content, np.array([1.0, 2.0, 3.0, 7.0]))
    assert found == [["A", None], [" b", 1.0], ["喜", 4.0]]


def test_the_spread_is_the_other_tokens() -> None:
    random = np.random.default_rng(3).normal(5, 2, size=(20_001, 2))
    random[:20, 1] = 1e6
    middle, spread = spread_of(random)
    assert middle == pytest.approx([5, 5], abs=0.05) and spread == pytest.approx([2, 2], abs=0.05)
    np.testing.assert_allclose(spread, stats.median_abs_deviation(random, scale="normal"), rtol=1e-4)
