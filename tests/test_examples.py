"""The examples job: the files that the plan promises, with texts out of the snapshot, or an error that names it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import examples as examples_job
from amygdala.corpus import index_of_snapshot
from amygdala.errors import UserError
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN, Example, count_examples, digests_of, read_examples
from amygdala.graph import Node
from amygdala.plan import Corpus, Rules
from nodes import DEFAULTS, brute_force, canonical_key, corpus_of, digest_of, node, plan_of, rules, sample_nodes, written


def test_the_job_writes_what_the_plan_promises(tmp_path: Path) -> None:
    sample = sample_nodes()
    snapshot, output = written(tmp_path / "snapshot.jsonl", sample), tmp_path / "examples" / "joy.json"
    chosen = dataclasses.replace(DEFAULTS, max_examples_per_emotion=20, curated=("joy",))
    rules_again = Rules.from_params({**chosen.ingredients(), "curated": ["joy"]})
    assert rules_again == chosen
    corpus = Corpus(index_of_snapshot(snapshot, {"skipped": 0, "skipped_nodes": []}), rules_again)
    with open(snapshot, "rb") as file:
        counts = examples_job.make_examples(corpus, "joy", file, output)
    content = json.loads(output.read_text(encoding="utf-8"))
    expected = brute_force(sample, chosen, "joy")
    assert (content["emotion"], content["counts"]) == ("joy", counts)
    assert sorted(content) == ["counts", "emotion", "examples"]
    found = read_examples(output)
    assert [(each.digest, each.polarity, each.split) for each in found] == expected
    texts = {digest_of(each.text): each.text for each in sample}
    assert all(example.text == texts[example.digest] for example in found)
    planned = plan_of(sample, chosen).emotions["joy"]
    assert planned["counts"] == counts == count_examples(found)
    assert planned["examples"] == canonical_key(
        [(each.digest, each.polarity, each.split, each.scenarios, each.groups) for each in found]
    )


NODES = [
    node("Sun over all of it.", "a", "storm", joy=9),
    node("Rain, and rain.\nAnd rain.", "b", "storm"),
    node("Sun over all of it.", "c", "letter"),
    node("Ключ 猫", "d"),
]


def test_texts_come_with_their_scenarios(tmp_path: Path) -> None:
    with open(written(tmp_path / "s.jsonl", NODES), "rb") as file:
        found = examples_job.examples_of(corpus_of(NODES, rules()), "joy", file)
    assert {(each.text, each.polarity, tuple(each.scenarios)) for each in found} == {
        ("Sun over all of it.", POSITIVE, ("letter", "storm")),
        ("Rain, and rain.\nAnd rain.", NEGATIVE, ("storm",)),
        ("Ключ 猫", NEGATIVE, ()),
    }


def changed(nodes: list[Node], place: int, text: str) -> list[Node]:
    return [dataclasses.replace(each, text=text) if number == place else each for number, each in enumerate(nodes)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: written(path, changed(NODES, 1, "Rain, and rain.\nAnd Rain.")),  # as long as it was
        lambda path: written(path, changed(NODES, 0, "Sun.")),
        lambda path: written(path, NODES[1:]),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"text"', b'"texT"')),
        lambda path: path.write_bytes(path.read_bytes().replace("Ключ".encode(), b"\xff" * 8)),
    ],
    ids=["a letter", "moved", "a line lost", "cut", "empty", "zeros", "field renamed", "no utf-8"],
)
def test_a_snapshot_that_is_not_the_indexed_one_is_named(tmp_path: Path, damage: object) -> None:
    """A text under a digest that is not its own would go through the model for another."""
    path = written(tmp_path / "s.jsonl", NODES)
    damage(path)  # type: ignore[operator]
    with open(path, "rb") as file, pytest.raises(UserError) as caught:
        examples_job.make_examples(corpus_of(NODES, rules()), "joy", file, tmp_path / "joy.json")
    assert str(caught.value) == f"{path} is damaged: delete it and run snakemake again, it will be rebuilt"
    assert not (tmp_path / "joy.json").exists()


def test_examples_by_split_and_side() -> None:
    made_of = [("c", POSITIVE, TRAIN), ("a", POSITIVE, TRAIN), ("b", NEGATIVE, TRAIN), ("d", POSITIVE, HELD_OUT)]
    made = [Example(digest, polarity, split, "Rain.") for digest, polarity, split in made_of]
    assert digests_of(made, TRAIN) == {POSITIVE: ["a", "c"], NEGATIVE: ["b"]}
    assert digests_of(iter(made), HELD_OUT) == {POSITIVE: ["d"], NEGATIVE: []}
    assert count_examples(iter(made)) == {TRAIN: {POSITIVE: 2, NEGATIVE: 1}, HELD_OUT: {POSITIVE: 1, NEGATIVE: 0}}
