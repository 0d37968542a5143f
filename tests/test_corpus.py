"""The index of a snapshot's texts: against a plain reading of the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amygdala.corpus import Index, Postings, index_of_snapshot, make_index, phrase, read_index, write_index
from amygdala.graph import Node, Skipped, node_at, read_snapshot
from nodes import digest_of, mentioned, node, same, sample_nodes, written

Found = dict[str, dict[str, float]]  # name: {digest: value}


def found(index: Index, name: str) -> Found:
    """A part of the index by name and digest; also checks that rows ascend and have the stored types."""
    postings: Postings = getattr(index, name)
    assert postings.rows.dtype == np.int32 and postings.values.dtype == np.float64
    result: Found = {}
    for each in postings.names:
        rows, values = postings[each]
        assert len(rows) and (np.diff(rows) > 0).all()
        result[each] = dict(zip(index.hex_digests(rows), values.tolist(), strict=True))
    assert list(result) == sorted(result)
    return result


def check_against_nodes(index: Index, nodes: Sequence[Node], extra: Iterable[str], snapshot: Path) -> None:
    """All parts but leaks and twins."""
    texts = {digest_of(each.text): each.text for each in nodes if each.text}
    assert index.hex_digests(range(len(index.chars))) == sorted(texts)
    assert index.chars.tolist() == [len(texts[digest]) for digest in sorted(texts)]
    lines = snapshot.read_bytes().splitlines(keepends=True)
    starts = [sum(map(len, lines[:place])) for place in range(len(lines))]
    for digest, offset, size in zip(sorted(texts), index.offsets.tolist(), index.sizes.tolist(), strict=True):
        first = next(place for place, each in enumerate(nodes) if each.text and digest_of(each.text) == digest)
        assert (offset, size) == (starts[first], len(lines[first]))
    tags: Found = {}
    scenarios: Found = {}
    for each in nodes:
        if each.text:
            for name, score in each.scores.items():
                of_name = tags.setdefault(name, {})
                of_name[digest_of(each.text)] = max([score, *([of_name[each.digest]] if each.digest in of_name else [])])
            if each.scenario is not None:
                scenarios.setdefault(each.scenario, {})[digest_of(each.text)] = 1
    assert found(index, "tags") == tags
    assert found(index, "scenarios") == scenarios
    names = {name for each in nodes for name in each.scores} | set(extra)
    mentions = {name: {digest: n for digest, text in texts.items() if (n := mentioned(text, name))} for name in names}
    assert found(index, "mentions") == {name: counts for name, counts in mentions.items() if counts}
    origins = sorted({each.origin for each in nodes})
    counts = {origin: sum(each.origin == origin for each in nodes) for origin in origins}
    assert index.facts["nodes"] == len(nodes)
    assert index.facts["empty"] == sum(not each.text for each in nodes)
    assert list(index.facts["origins"].items()) == list(counts.items())


NAMES = ["joy", "self_doubt", "self-doubt", "strasse", "élan", "猫", "on_and_on", "a2"]
# tokens without a label, then those that show the label of a name
PLAIN = [
    *("rain", "joy", "Joy,", "(JOY)", "joyful", "joys", "self", "doubt", "Self-Doubt", "self_doubt.", "ＪＯＹ", "Straße"),
    *("Élan", "猫", "猫猫", "😀", "on", "and", "a2", "\n", "…", "killjoy:9", "joy:high", "/joy:9", "9:joy", "x.joy:9"),
]
SHOWN = {"joy:9": "joy", "Joy: 7.5": "joy", "ＪＯＹ:3": "joy", "(self_doubt:10)": "self_doubt", "élan:0": "élan", "猫:1": "猫"}
TEXTS = st.lists(st.sampled_from([*PLAIN, *SHOWN]), max_size=6)
SCORES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.25, 5.0, 8.0, 10.0]), max_size=3)
MADE = st.lists(
    st.tuples(TEXTS, SCORES, st.sampled_from([None, "storm", "a letter"]), st.sampled_from(["notes", "file"])), max_size=12
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(made=MADE, extra=st.sets(st.sampled_from([*NAMES, "and"]), max_size=3))
def test_the_index_of_made_nodes_against_a_plain_reading(
    tmp_path_factory: pytest.TempPathFactory, made: list[Any], extra: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("made")
    nodes = [
        Node(origin, f"n{number}", " ".join(tokens).strip(), scores, None, scenario)
        for number, (tokens, scores, scenario, origin) in enumerate(made)
    ]
    snapshot = written(folder / "s.jsonl", nodes)
    index = make_index(nodes, (), extra)
    check_against_nodes(index, nodes, extra, snapshot)
    names = {name for each in nodes for name in each.scores} | extra
    leaks: Found = {}
    for (tokens, *_), each in zip(made, nodes, strict=True):
        for token in tokens:
            if SHOWN.get(token) in names:
                leaks.setdefault(SHOWN[token], {})[digest_of(each.text)] = 1
    assert found(index, "leaks") == leaks
    assert all(index.twins <= np.arange(len(index.twins)))
    again = index_of_snapshot(snapshot, index.facts, extra)
    assert same(again, index)
    write_index(folder / "index.safetensors", index)
    read = read_index(folder / "index.safetensors")
    assert read is not None and same(read, index)


def test_the_index_of_the_sample_graph_against_a_plain_reading(tmp_path: Path) -> None:
    nodes = sample_nodes()
    assert len(nodes) > 300
    check_against_nodes(make_index(nodes, (), ["house"]), nodes, ["house"], written(tmp_path / "s.jsonl", nodes))


# The parts one by one, written out


def test_equal_texts_are_one_with_the_highest_score_of_each_emotion() -> None:
    nodes = [
        node("Rain.", "a", "storm", joy=3, awe=9),
        node("Rain.", "b", "storm", joy=9),
        node("Snow.", "c"),
        node("Rain.", "d", "letter", "notes", joy=5, calm=0),
    ]
    index = make_index(nodes)
    rain, snow = digest_of("Rain."), digest_of("Snow.")
    assert index.hex_digests([0, 1]) == sorted([rain, snow])
    assert found(index, "tags") == {"awe": {rain: 9}, "calm": {rain: 0}, "joy": {rain: 9}}
    assert found(index, "scenarios") == {"letter": {rain: 1}, "storm": {rain: 1}}
    assert nodes[0].scores == {"joy": 3, "awe": 9}, "the nodes stay as they were"
    assert index.facts == {
        **{"nodes": 4, "empty": 0, "origins": {"file": 3, "notes": 1}, "skipped": 0, "skipped_nodes": []},
        **{"unread_labels": 0, "unread_label": ""},
    }


def test_labels_that_no_tag_line_holds_are_counted() -> None:
    """They look like tags, and are none by the grammar: the model would see them."""
    texts = [
        "A.\njoy: 9",
        "B.\njoy:7,5 awe:8",
        "C.\njoy:9/10 and awe:8/10",
        "D.\nWe met at 10:30.",
        "E.\nSee chapter seven: 7 of it.",
        "F.",
    ]
    index = make_index([Node("file", f"n{number}", text) for number, text in enumerate(texts)])
    assert (index.facts["unread_labels"], index.facts["unread_label"]) == (3, "n0")


def test_texts_without_a_character_are_counted_and_left_out() -> None:
    index = make_index([node("", "a", "storm", joy=9), node("Rain.", "b"), node("", "c")])
    assert index.hex_digests(range(len(index.digests))) == [digest_of("Rain.")]
    assert found(index, "tags") == {} and found(index, "scenarios") == {}
    assert (index.facts["nodes"], index.facts["empty"]) == (3, 2)


@pytest.mark.parametrize("nodes", [[], [node("", "a", joy=9)]], ids=["no node", "no text"])
def test_an_index_of_no_text(tmp_path: Path, nodes: list[Node]) -> None:
    index = make_index(nodes)
    assert index.digests.shape == (0, 16) and index.hashes.shape == (0,) and len(index.twins) == 0
    write_index(tmp_path / "i", index)
    read = read_index(tmp_path / "i")
    assert read is not None and same(read, index)


def test_characters_are_not_bytes_and_lines_are() -> None:
    index = make_index([node("猫é😀", "ключ"), node("abc")])
    assert sorted(index.chars.tolist()) == [3, 3]
    start = '{"origin": "file", "key": "ключ", "digest": "'
    line = start + digest_of("猫é😀") + '", "scores": {}, "text": "猫é😀"}\n'
    sizes = dict(zip(index.hex_digests([0, 1]), index.sizes.tolist(), strict=True))
    assert sizes[digest_of("猫é😀")] == len(line.encode())


def test_offsets_lead_to_the_texts_of_a_snapshot_with_any_line_end(tmp_path: Path) -> None:
    texts = [
        "two\nlines",
        "old\rmac",
        "windows\r\nlines",
        "next\x85line",
        "line\u2028separator",
        'quote " and \\',
        "猫 🐈",
        "tab\t.",
    ]
    nodes = [Node("file", f"k{n}", text, {"joy": 7.5}, "2026-01-01", "storm") for n, text in enumerate(texts)]
    snapshot = written(tmp_path / "s.jsonl", [Node("file", "first", "", {"joy": 3}), *nodes])
    index = make_index(read_snapshot(snapshot))
    read = []
    with open(snapshot, "rb") as file:
        for row, digest in enumerate(index.hex_digests(range(len(texts)))):
            at = node_at(file, int(index.offsets[row]), int(index.sizes[row]))
            assert digest_of(at.text) == digest
            read.append(at)
    assert sorted(each.key for each in read) == sorted(each.key for each in nodes)
    assert {each.text for each in read} == set(texts)


MENTIONS: list[tuple[str, str, int]] = [
    ("joy", "Joy, joy! (JOY) A joy's end_joy-joy.", 6),
    ("joy", "Enjoy the joyful joys; killjoy, joy2, 2joy.", 0),
    ("joy", "ＪＯＹ", 1),
    ("strasse", "Die Straße", 1),
    ("élan", "E\u0301lan, ÉLAN", 2),
    ("猫", "猫 and 猫猫", 1),
    ("self_doubt", "Self doubt, self-doubt and SELF_DOUBT; self\ndoubt, self – doubt.", 5),
    ("self-doubt", "self doubt self_doubt", 2),
    ("self_doubt", "selfdoubt, self doubts, myself doubt, doubt self, self and doubt", 0),
    ("self_doubt", "self self doubt doubt", 1),
    ("self_doubt", "doubt, and then self", 0),
    ("on_and_on", "on and on and on", 2),
    ("on_and_on", "on and on and", 1),
]


@pytest.mark.parametrize(("name", "text", "count"), MENTIONS)
@pytest.mark.parametrize("tagged", [True, False])
def test_mentions_are_whole_words_and_phrases(name: str, text: str, count: int, tagged: bool) -> None:
    """Of names that tag any node, and of those looked for beside."""
    filler = Node("file", "filler", "Nothing here, no self, no doubt of it.", {name: 1.0} if tagged else {})
    index = make_index([filler, node(text)], (), [] if tagged else [name])
    assert found(index, "mentions") == ({name: {digest_of(text): count}} if count else {})
    assert not make_index([node(text, awe=9)]).mentions.names, "a name that nobody asked for"


def test_names_that_begin_with_one_word_are_told_apart() -> None:
    index = make_index([node("self worth, self doubt and self, self doubt", "k", self_doubt=1, self=1, self_worth=1, doubt=1)])
    only = digest_of("self worth, self doubt and self, self doubt")
    assert found(index, "mentions") == {
        "doubt": {only: 2},
        "self": {only: 4},
        "self_doubt": {only: 2},
        "self_worth": {only: 1},
    }


@pytest.mark.parametrize(
    ("name", "words"), [("self_doubt", ("self", "doubt")), ("Joy", ("joy",)), ("a-b_c2", ("a", "b", "c2"))]
)
def test_the_words_of_a_name(name: str, words: tuple[str, ...]) -> None:
    assert phrase(name) == words


MARKS = "words are cut at combining marks (corpus.WORD), so a name of such a script is found inside other words"


@pytest.mark.parametrize(("name", "other"), [("सुख", "साख"), ("สุข", "สีข")], ids=["Devanagari", "Thai"])
def test_marks_belong_to_their_word(name: str, other: str) -> None:
    """Tag names may hold marks (amygdala.tags): happiness is not mentioned by credit, nor by a flank."""
    index = make_index([Node("file", "a", name, {name: 9.0}), Node("file", "b", other)])
    assert found(index, "mentions") == {name: {digest_of(name): 1}}


LEAKS: list[tuple[str, bool]] = [
    ("I was joy:9 then.", True),
    ("JOY: 8, I thought", True),
    ("**joy**: 9", True),
    ("ends in joy:7.5", True),
    ("joy 9", False),
    ("enjoy:9 killjoy:3", False),
    ("see http://joy:80/", False),
    ("joy:9:30 in the evening", False),
    ("awe:9", False),  # tags no node
]


@pytest.mark.parametrize(("text", "shown"), LEAKS)
def test_labels_that_still_stand_in_a_text(text: str, shown: bool) -> None:
    index = make_index([node("Rain.", joy=9), node(text)])
    assert found(index, "leaks") == ({"joy": {digest_of(text): 1}} if shown else {})


def test_a_bold_label_that_still_stands_in_a_text() -> None:
    text = "so **joy:** 9, I wrote"
    assert found(make_index([node(text, joy=9)]), "leaks") == {"joy": {digest_of(text): 1}}


@pytest.mark.parametrize(
    ("name", "text"), [("élan", "so e\u0301lan:9 it was"), ("सुख", "वह सुख:9 था")], ids=["decomposed", "marks"]
)
def test_labels_with_marks_that_still_stand_in_a_text(name: str, text: str) -> None:
    index = make_index([Node("file", "a", text, {name: 9.0})])
    assert found(index, "leaks") == {name: {digest_of(text): 1}}


def test_near_duplicates_go_by_the_first_row() -> None:
    words = [f"word{n}" for n in range(80)]
    family = [" ".join([*words[:n], "other", *words[n + 1 :]]) for n in (0, 40, 79)]
    alone = [" ".join(f"{kind}{n}" for n in range(80)) for kind in ("sun", "moon", "wind")]
    index = make_index([node(text) for text in (*family, *alone)])
    row = {digest: place for place, digest in enumerate(index.hex_digests(range(6)))}
    rows = [row[digest_of(text)] for text in family]
    assert [index.twins[place] for place in rows] == [min(rows)] * 3
    assert all(index.twins[row[digest_of(text)]] == row[digest_of(text)] for text in alone)
    assert index.twins.dtype == np.int32


def test_hashes_are_the_first_eight_bytes_of_the_digests() -> None:
    texts = [f"Text {n}." for n in range(20)]
    hashes = make_index([node(text) for text in texts]).hashes
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [int(digest[:16], 16) for digest in sorted(map(digest_of, texts))]


def test_at_most_a_hundred_skipped_nodes_are_listed_and_all_are_counted() -> None:
    skipped = [Skipped("file", f"k{n}", "a reason") for n in range(130)]
    facts = make_index([node("Rain.")], skipped).facts
    assert facts["skipped"] == 130
    assert facts["skipped_nodes"] == [["file", f"k{n}", "a reason"] for n in range(100)]
