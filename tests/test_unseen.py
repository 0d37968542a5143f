"""Texts beside the graph: neutral ones and those from elsewhere, and what a release makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import amygdala.files
import texts as texts_script
import unseen
from amygdala import textsets
from amygdala.contract import Readout
from amygdala.errors import UserError
from amygdala.keys import text_digest
from amygdala.measures import Bootstrap, generator
from amygdala.textsets import Text, neutral_texts, read_stored, stored, unseen_sets

# Reading


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_neutral_texts_are_unique_and_in_order(tmp_path: Path) -> None:
    lines = [{"key": f"n{n}", "text": text} for n, text in enumerate(("Bus at six.", "Onions, 1 kg.", "Bus at six.", ""))]
    found = neutral_texts(write_lines(tmp_path / "n.jsonl", *lines), 11)
    assert [text.digest for text in found] == sorted(map(text_digest, ("Bus at six.", "Onions, 1 kg.")))
    with pytest.raises(
        UserError, match=r"n\.jsonl has 1 texts of min_content_chars \(12\) or more; denoise needs two at least"
    ):
        neutral_texts(tmp_path / "n.jsonl", 12)


def conversation(key: str, *turns: str, **emotions: float) -> dict[str, Any]:
    return {"key": key, "turns": [{"role": "user", "text": turn} for turn in turns], "emotions": emotions}


def sets_of(*items: dict[str, Any], base: Path) -> list[textsets.UnseenSet]:
    return unseen_sets(items, [base])


def test_a_conversation_is_one_text_with_its_scores(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "c.jsonl", conversation("a", "Hello.", "You too.", Joy=9, dread=2), conversation("b", "Rain.")
    )
    (one,) = sets_of({"source": "conversations", "name": "talks", "path": "c.jsonl"}, base=tmp_path)
    found = {text.key: text for text in one.texts(1)[0]}
    assert found["a"].text == "Hello.\nYou too." and found["a"].scores == {"joy": 9.0, "dread": 2.0}
    assert found["b"].scores == {} and {text.set for text in found.values()} == {"talks"}
    before = one.identity
    path.write_text(path.read_text().replace("Rain", "Snow"))
    assert sets_of({"source": "conversations", "name": "talks", "path": "c.jsonl"}, base=tmp_path)[0].identity != before
    with pytest.raises(UserError, match="changed while snakemake was running"):
        one.texts(1)[0]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"key": "a"}', "no conversation"),
        ('{"key": "a", "turns": []}', "no conversation"),
        ('{"key": 3, "turns": [{"text": "x"}]}', "no conversation"),
        ('{"key": "a", "turns": [{"text": 4}]}', "no conversation"),
        ('{"key": "a", "turns": ["x"]}', "no conversation"),
        ('{"key": "a", "turns": [{"text": "x"}], "emotions": {"9": 1}}', "no conversation"),
        ("[1]", "no conversation"),
        ("{", "not a line of JSON"),
        *(
            (
                f'{{"key": "a", "turns": [{{"text": "x"}}], "emotions": {{"joy": {score}}}}}',
                "score .* of 'joy' is none from 0 to 10",
            )
            for score in ("NaN", "1e999", "10.5", "-3", "true")
        ),
    ],
)
def test_a_wrong_conversation_is_named_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(conversation("fine", "Hello.")) + f"\n{line}\n")
    (one,) = sets_of({"source": "conversations", "name": "talks", "path": "c.jsonl"}, base=tmp_path)
    with pytest.raises(UserError, match=rf"c\.jsonl:2: .*{problem}"):
        one.texts(1)[0]


def test_tables_and_stories_are_read_as_sources_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("body,feeling\nA bright morning by the sea.,joy\nA list of parts.,\n")
    (tmp_path / "s" / "stories").mkdir(parents=True)
    (tmp_path / "s" / "stories" / "joy.txt").write_text("They danced until the lamps went out.")
    table = {"source": "table", "name": "t", "path": "t.csv", "text": "body", "label": "feeling"}
    one, two = sets_of(table, {"source": "stories", "name": "s", "path": "s"}, base=tmp_path)
    assert sorted((text.text, tuple(text.scores)) for text in one.texts(1)[0]) == [
        ("A bright morning by the sea.", ("joy",)),
        ("A list of parts.", ()),
    ]
    assert [text.scores for text in two.texts(1)[0]] == [{"joy": 10.0}]
    read_otherwise = {**table, "header": False, "text": 0, "label": 1}
    assert sets_of(read_otherwise, base=tmp_path)[0].identity != one.identity, "how a file is read belongs to what it is"
    with pytest.raises(UserError, match="unseen: no such file"):
        sets_of({**table, "path": "nowhere.csv"}, base=tmp_path)


def test_stored_texts_come_back_and_capture_gets_each_once(tmp_path: Path) -> None:
    texts = [
        Text(text_digest("Hello."), "Hello.", "one", "a", {"joy": 9.0}),
        Text(text_digest("Hello."), "Hello.", "two", "b"),
        Text(text_digest("Rain."), "Rain.", "two", "c", {"awe": 1.0}),
    ]
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(stored(texts, {"one": 0, "two": 3})))
    assert read_stored(path) == (texts, {"one": 0, "two": 3})
    content = json.loads(path.read_text())
    assert [example["digest"] for example in content["examples"]] == sorted(map(text_digest, ("Hello.", "Rain.")))
    assert stored(texts, {}) == stored([texts[2], *texts[:2]], {}) | {"texts": stored(texts, {})["texts"]}, "in order of digest"


def test_of_equal_texts_each_emotion_has_its_highest_score(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    write_lines(path, *(conversation(str(n), "Hello.", joy=score) for n, score in enumerate((3, 9, 5))))
    (one,) = sets_of({"source": "conversations", "name": "talks", "path": "c.jsonl"}, base=tmp_path)
    assert [(text.key, text.scores) for text in one.texts(1)[0]] == [("0", {"joy": 9.0})]
    spelled = {"key": "a", "turns": [{"role": "user", "text": "Hello."}], "emotions": {"Joy": 9, "joy": 1}}
    write_lines(path, spelled)
    (one,) = sets_of({"source": "conversations", "name": "talks", "path": "c.jsonl"}, base=tmp_path)
    assert [text.scores for text in one.texts(1)[0]] == [{"joy": 9.0}]


def test_texts_below_min_content_chars_are_counted_and_left_out(tmp_path: Path) -> None:
    """A model without a first token of its own makes one token of "Wow", and that one never counts."""
    texts = ["Wow", "Yes", "Wow", "A bright morning."]
    write_lines(tmp_path / "c.jsonl", *(conversation(str(n), text) for n, text in enumerate(texts)))
    (one,) = sets_of({"source": "conversations", "name": "talks", "path": "c.jsonl"}, base=tmp_path)
    kept, short = one.texts(4)
    assert [text.text for text in kept] == ["A bright morning."] and short == 2
    with pytest.raises(UserError, match=r"unseen: .*c\.jsonl holds no texts of min_content_chars \(40\) or more"):
        one.texts(40)


def test_digests_of_unseen_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parse of the Snakefile asks for them: a file is read again only where its size or time changed."""
    path = write_lines(tmp_path / "c.jsonl", conversation("a", "Hello."))
    os.utime(path, (1, 1))
    item = {"source": "conversations", "name": "talks", "path": "c.jsonl"}
    (first,) = unseen_sets([item], [tmp_path], tmp_path / "memo")
    assert first.identity == unseen_sets([item], [tmp_path])[0].identity, "the job compares without a memo"
    with monkeypatch.context() as patch:
        patch.setattr(amygdala.files, "sha256_file", lambda path: pytest.fail(f"{path} was read again"))
        assert unseen_sets([item], [tmp_path], tmp_path / "memo")[0].identity == first.identity
    write_lines(path, conversation("a", "Rain."))
    assert unseen_sets([item], [tmp_path], tmp_path / "memo")[0].identity != first.identity


def test_the_job_reads_neutral_texts_or_all_sets(tmp_path: Path) -> None:
    neutral = write_lines(tmp_path / "n.jsonl", {"key": "a", "text": "One."}, {"key": "b", "text": "Two."})
    texts, short = texts_script.read_texts({"neutral": str(neutral), "least": 1})
    assert len(texts) == 2 and short == {}
    write_lines(tmp_path / "c.jsonl", conversation("a", "Hello."), conversation("b", "Wow"))
    sets = sets_of(
        *({"source": "conversations", "name": name, "path": "c.jsonl"} for name in ("talks", "again")), base=tmp_path
    )
    given = {"sets": [json.loads(json.dumps(vars(one))) for one in sets], "least": 5}
    texts, short = texts_script.read_texts(given)
    assert [text.set for text in texts] == ["talks", "again"] and short == {"talks": 1, "again": 1}


# Scoring

LAYERS = [3, 8]


class Rows:
    """A reader of made-up rows: a text's digest says its row."""

    def __init__(self, short: Sequence[str] = ()) -> None:
        self.short = short

    def pooled(self, digest: str) -> int:
        return 0 if digest in self.short else 4

    def rows(self, layer: int, kind: str, digests: Sequence[str]) -> np.ndarray:
        assert kind == "residual"
        return np.stack([np.random.default_rng([int(d[:8], 16), layer]).standard_normal(6) for d in digests]).astype(np.float32)


def some_texts(count: int = 40) -> list[Text]:
    """Scores of joy go 8, none, 5, 0, none, …; awe is in one text alone."""
    given = [{"joy": 8.0}, {}, {"joy": 5.0}, {"joy": 0.0}]
    found = []
    for number in range(count):
        scores = {**given[number % 4], **({"awe": 10.0} if number == 1 else {}), **({"fright": 8.0} if number == 2 else {})}
        found.append(Text(text_digest(f"text {number}"), f"text {number}", "set", f"k{number}", scores))
    return found


@pytest.fixture
def readout() -> Readout:
    rows = np.random.default_rng(5).standard_normal((2, 2, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    return Readout(["awe", "joy"], LAYERS, dict(zip(LAYERS, rows, strict=True)), {})


def test_figures_of_a_set_by_hand(readout: Readout) -> None:
    texts = some_texts()
    found = unseen.score_set("set", texts, Rows(), readout, {"awe": 3, "joy": 8}, 8.0)  # type: ignore[arg-type]
    assert (found["texts"], found["without_row"], found["not_in_release"]) == (40, 0, ["fright"])
    joy = found["emotions"]["joy"]
    assert (joy["positive"], joy["negative"], joy["few"], joy["best_layer"]) == (10, 20, False, 8)
    for layer in LAYERS:
        scores = Rows().rows(layer, "residual", [t.digest for t in texts]).astype(np.float64) @ readout.vectors[layer][1]
        positive = [s for s, t in zip(scores, texts, strict=True) if t.scores.get("joy", 0) >= 8]
        negative = [s for s, t in zip(scores, texts, strict=True) if not t.scores.get("joy", 0)]
        told = joy["layers"][str(layer)]
        assert told["auc"] == pytest.approx(roc_auc_score([1] * 10 + [0] * 20, positive + negative))
        draws = Bootstrap(10, 20, generator("unseen", "set", "joy"))
        assert told["interval"] == draws.interval(np.array(positive), np.array(negative))
    ranked = sorted(zip(scores, texts, strict=True), key=lambda pair: -pair[0])
    assert [text["key"] for text in joy["highest"]] == [text.key for _, text in ranked[:3]]
    assert [text["key"] for text in joy["lowest"]] == [text.key for _, text in ranked[:-4:-1]]
    assert joy["highest"][0]["projection"] == pytest.approx(ranked[0][0])
    bars = joy["histogram"]
    assert sum(bars["positive"]) == 10 and sum(bars["negative"]) == 20 and len(bars["edges"]) == unseen.BINS + 1
    at = np.histogram(positive, bins=np.array(bars["edges"]))[0].tolist()
    assert bars["positive"] == at


def test_an_emotion_with_few_or_no_texts_is_told_so(readout: Readout) -> None:
    found = unseen.score_set("set", some_texts(), Rows(), readout, {"awe": 3, "joy": 8}, 8.0)  # type: ignore[arg-type]
    assert found["emotions"]["awe"]["few"] and found["emotions"]["awe"]["positive"] == 1
    macro = unseen.macro_of(found["emotions"])
    assert macro["enough"] == {"mean_auc": found["emotions"]["joy"]["layers"]["8"]["auc"], "emotions": 1}
    assert macro["any"]["emotions"] == 2
    plain = [Text(t.digest, t.text, t.set, t.key) for t in some_texts()]
    none = unseen.score_set("set", plain, Rows(), readout, {"awe": 3, "joy": 8}, 8.0)  # type: ignore[arg-type]
    assert none["emotions"]["joy"]["layers"]["3"] == {"auc": None, "interval": None, "cohens_d": None}
    assert len(none["emotions"]["joy"]["highest"]) == 3
    nothing = {"mean_auc": None, "emotions": 0}
    assert unseen.macro_of(none["emotions"]) == {"enough": nothing, "any": nothing}


def test_texts_without_a_row_are_counted_and_left_out(readout: Readout) -> None:
    texts = some_texts(8)
    short = [texts[0].digest, texts[1].digest]
    found = unseen.score_set("set", texts, Rows(short), readout, {"awe": 3, "joy": 8}, 8.0)  # type: ignore[arg-type]
    assert (found["texts"], found["without_row"]) == (8, 2) and found["emotions"]["joy"]["positive"] == 1
    none = unseen.score_set("set", texts, Rows([t.digest for t in texts]), readout, {}, 8.0)  # type: ignore[arg-type]
    assert none["emotions"] == {} and none["without_row"] == 8


def test_the_picture_is_the_same_each_time_and_takes_any_name(readout: Readout, tmp_path: Path) -> None:
    scored = unseen.score_set("set", some_texts(), Rows(), readout, {"awe": 3, "joy": 8}, 8.0)  # type: ignore[arg-type]
    report = {"sets": {"<b>$x$": scored, "empty": {"emotions": {}}}}
    for name in ("a.svg", "b.svg"):
        unseen.draw(report, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "joy, layer 8" in (tmp_path / "a.svg").read_text() and "<b>" not in (tmp_path / "a.svg").read_text()
    unseen.draw({"sets": {}}, tmp_path / "none.svg")


def test_an_alias_counts_as_its_emotion() -> None:
    given = [
        Text("1" * 32, "a", "set", "a", {"joyful": 9.0}),
        Text("2" * 32, "b", "set", "b", {"joyful": 3.0, "joy": 8.0}),
        Text("3" * 32, "c", "set", "c", {"joyful": 9.0, "joy": 1.0}),
        Text("4" * 32, "d", "set", "d"),
    ]
    named = unseen.with_aliases(given, {"joyful": "joy"})
    assert [text.scores for text in named] == [{"joy": 9.0}, {"joy": 8.0}, {"joy": 9.0}, {}]
    positive, negative = unseen.sides_of("joy", named, 8.0)
    assert positive.tolist() == [True, True, True, False] and negative.tolist() == [False, False, False, True]


def test_texts_that_vectors_were_made_from_are_left_out_and_counted(readout: Readout) -> None:
    texts = some_texts(12)
    trained = {texts[0].digest, texts[5].digest, "f" * 32}
    best = {"awe": 3, "joy": 8}
    found = unseen.score_set("set", texts, Rows(), readout, best, 8.0, trained)  # type: ignore[arg-type]
    rest = [text for text in texts if text.digest not in trained]
    alone = unseen.score_set("set", rest, Rows(), readout, best, 8.0)  # type: ignore[arg-type]
    assert (found["texts"], found["trained_on"], found["without_row"]) == (12, 2, 0)
    assert found["emotions"] == alone["emotions"] and alone["trained_on"] == 0


def test_an_interval_of_very_many_texts_is_of_the_first(readout: Readout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unseen, "MOST", 5)
    found = unseen.score_set("set", some_texts(), Rows(), readout, {"awe": 3, "joy": 8}, 8.0)  # type: ignore[arg-type]
    joy = found["emotions"]["joy"]["layers"]["8"]
    monkeypatch.undo()
    whole = unseen.score_set("set", some_texts(), Rows(), readout, {"awe": 3, "joy": 8}, 8.0)  # type: ignore[arg-type]
    assert joy["auc"] == whole["emotions"]["joy"]["layers"]["8"]["auc"], "of all texts"
    assert joy["interval"] != whole["emotions"]["joy"]["layers"]["8"]["interval"]
