"""The memory graph: tag grammar, messages on broken lines, canonical nodes, the snapshot."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

import snapshot
from amygdala.errors import UserError
from amygdala.graph import Node, emotion_name, read_graph, read_nodes, read_snapshot, snapshot_lines, split_tags
from tiny import SAMPLE


def lines(*nodes: dict[str, Any]) -> bytes:
    return "".join(json.dumps(node) + "\n" for node in nodes).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


GRAMMAR: list[tuple[str, str, dict[str, float]]] = [
    # one line, several lines, empty lines between and after
    ("Rain on the roof.\ncalm:9 warmth:8", "Rain on the roof.", {"calm": 9, "warmth": 8}),
    ("Rain.\ncalm:9\nwarmth:8\njoy:0", "Rain.", {"calm": 9, "warmth": 8, "joy": 0}),
    ("Rain.\n\ncalm:9\n\n \t\nwarmth:8\n\n\n", "Rain.", {"calm": 9, "warmth": 8}),
    ("Rain.\r\ncalm:9\r\n", "Rain.", {"calm": 9}),
    ("calm:9", "", {"calm": 9}),
    ("", "", {}),
    (" \n\n", "", {}),
    # separators
    ("Rain.\ncalm:9,warmth:8;joy:7", "Rain.", {"calm": 9, "warmth": 8, "joy": 7}),
    ("Rain.\n  calm:9 ,  warmth:8;\t", "Rain.", {"calm": 9, "warmth": 8}),
    # names: case, compatibility forms, digits, marks
    ("Rain.\nCalm:9 WARMTH:8", "Rain.", {"calm": 9, "warmth": 8}),
    ("Rain.\nself_doubt:9 well-being:8 joy2:1", "Rain.", {"self_doubt": 9, "well-being": 8, "joy2": 1}),
    ("Rain.\nＣalm:9", "Rain.", {"calm": 9}),
    ("Rain.\nSTRAßE:9", "Rain.", {"strasse": 9}),
    ("Rain.\nरुचि:7 чувство:3", "Rain.", {"रुचि": 7, "чувство": 3}),
    # scores
    ("Rain.\ncalm:8.5 joy:0.25 awe:10.0", "Rain.", {"calm": 8.5, "joy": 0.25, "awe": 10}),
    ("Rain.\npride:10 hope:0 love:+3", "Rain.", {"pride": 10, "hope": 0, "love": 3}),
    # a name given twice: the higher score, in a line, between lines, between cases, as numbers and not as strings
    ("Rain.\ncalm:3 calm:9 calm:5", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:9\ncalm:3", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:3\ncalm:9", "Rain.", {"calm": 9}),
    ("Rain.\nCALM:3 calm:9 Calm:5", "Rain.", {"calm": 9}),
    ("Rain.\ncalm:10 calm:9", "Rain.", {"calm": 10}),
    # tag-like lines that stay: above text, mixed with words, not the grammar
    ("calm:9\nThen it rained.", "calm:9\nThen it rained.", {}),
    ("calm:9\nThen it rained.\njoy:8", "calm:9\nThen it rained.", {"joy": 8}),
    ("Rain.\nfeeling calm:9", "Rain.\nfeeling calm:9", {}),
    ("Rain.\nself doubt:9", "Rain.\nself doubt:9", {}),
    ("Rain.\ncalm: 9", "Rain.\ncalm: 9", {}),
    ("Rain.\ncalm:9.", "Rain.\ncalm:9.", {}),
    ("Rain.\ncalm:.5", "Rain.\ncalm:.5", {}),
    ("Rain.\ncalm:9/10", "Rain.\ncalm:9/10", {}),
    ("Rain.\ncalm:1e1", "Rain.\ncalm:1e1", {}),
    ("Rain.\ncalm:high", "Rain.\ncalm:high", {}),
    ("Rain.\n:9", "Rain.\n:9", {}),
    ("Rain.\nscore:: 9::1", "Rain.\nscore:: 9::1", {}),
    ("Rain.\n,;", "Rain.\n,;", {}),
    # times are no tags
    ("The train goes at\n14:30", "The train goes at\n14:30", {}),
    ("Trains:\n14:30 15:30, 16:30", "Trains:\n14:30 15:30, 16:30", {}),
    ("Trains:\n14:30\ncalm:9", "Trains:\n14:30", {"calm": 9}),
    # the text: trimmed at both ends, otherwise unchanged
    ("\n  Rain.\n\n  Two  spaces;\ttab.  \n\ncalm:9\n", "Rain.\n\n  Two  spaces;\ttab.", {"calm": 9}),
    ("Ｒain ﬁne.\r\nCafe\u0301.\ncalm:9", "Ｒain ﬁne.\r\nCafe\u0301.", {"calm": 9}),
]


@pytest.mark.parametrize(("text", "body", "scores"), GRAMMAR)
def test_tag_grammar(text: str, body: str, scores: dict[str, float]) -> None:
    got_body, got = split_tags(text)
    assert got_body == body
    assert got == scores
    assert list(got) == sorted(got)


# line to its scores; None: not a tag line
KINDS: dict[str, dict[str, float] | None] = {
    "calm:9": {"calm": 9},
    " Joy:3, calm:4 ": {"joy": 3, "calm": 4},
    "joy:8.5;awe:0\t": {"joy": 8.5, "awe": 0},
    "14:30": None,
    "Rain fell.": None,
    "so calm:9": None,
    "calm:9 !": None,
    "": {},
    "  ": {},
}


def test_texts_put_together_from_lines_of_every_kind() -> None:
    chance = random.Random(5)
    for _ in range(2000):
        chosen = chance.choices(list(KINDS), k=chance.randrange(1, 8))
        end = len(chosen)
        expected: dict[str, float] = {}
        while end and KINDS[chosen[end - 1]] is not None:
            end -= 1
            for name, score in (KINDS[chosen[end]] or {}).items():
                expected[name] = max(score, expected.get(name, score))
        body, scores = split_tags("\n".join(chosen))
        assert body == "\n".join(chosen[:end]).strip()
        assert scores == expected
        assert split_tags(body) == (body, {})


@pytest.mark.parametrize("given", ["10.01", "11", "-1", "-0.5", "100"])
def test_score_outside_the_range_is_refused_by_line_and_name(given: str) -> None:
    data = lines({"key": "a", "text": "Rain."}, {"key": "b", "text": f"Rain.\njoy:3 calm:{given}"})
    with pytest.raises(UserError, match=rf"^g\.jsonl:2: score '{given}' of emotion 'calm' is outside 0-10"):
        read_nodes(data, "g.jsonl")


HARMFUL = ["../../x", "<b>", "/etc/passwd", "a.b", "a/b", "_calm", "-calm", "9calm", "c\u0000m", "ca\x1b[1m", "x" * 49]


@pytest.mark.parametrize("raw", HARMFUL)
def test_emotion_names_that_would_harm_a_file_name_are_refused(raw: str) -> None:
    with pytest.raises(ValueError, match="is not an emotion name: a letter first"):
        emotion_name(raw)
    data = lines({"key": "a", "text": f"Rain.\ncalm:9 {raw}:9"})
    with pytest.raises(UserError, match=r"^g\.jsonl:1: .* is not an emotion name: a letter first") as caught:
        read_nodes(data, "g.jsonl")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("raw", ["", " ", "calm down", "calm\n", "9", "²", "e\u202ecalm"])
def test_other_strings_that_are_no_emotion_names(raw: str) -> None:
    with pytest.raises(ValueError, match="is not an emotion name"):
        emotion_name(raw)


def test_emotion_name_is_folded_once_and_for_all() -> None:
    assert emotion_name("x" * 48) == "x" * 48
    for raw in ("Calm", "ＣＡＬＭ", "STRAßE", "Ἀγάπη", "ŉ", "ﬁ", "ΐ", "Self_Doubt-2", "İyi"):
        name = emotion_name(raw)
        assert name == emotion_name(name)
        assert name == emotion_name(raw.lower())


BROKEN: list[tuple[bytes, str]] = [
    (b'{"key": "b", "text"', r"not a line of JSON"),
    (b"not json", r"not a line of JSON"),
    (b'{"key": "b", "text": "x"} {}', r"not a line of JSON"),
    (b'["key", "text"]', r"a node must be a JSON object with the fields 'key' and 'text'"),
    (b'"text"', r"a node must be a JSON object"),
    (b'{"text": "x"}', r"the node has no 'key'"),
    (b'{"key": "b"}', r"the node has no 'text'"),
    (b'{"key": 7, "text": "x"}', r"the node needs a string as 'key'"),
    (b'{"key": "", "text": "x"}', r"the node needs a string as 'key'"),
    (b'{"key": " ", "text": "x"}', r"the node needs a string as 'key'"),
    (b'{"key": "b", "text": null}', r"the node needs a string as 'text'"),
    (b'{"key": "b", "text": ["x"]}', r"the node needs a string as 'text'"),
    (b'{"key": "a", "text": "other"}', r"the key 'a' stands in line 2 already; keys must be unique"),
    (b'{"key": "b", "text": "caf\xe9"}', r"not UTF-8 \(.* at byte 25\)"),
    (b'{"key": "b", "text": "x \\ud83d y"}', r"'text' holds half a surrogate pair"),
    (b'{"key": "\\udc00", "text": "x"}', r"'key' holds half a surrogate pair"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_broken_line_is_named_by_file_and_number(line: bytes, message: str) -> None:
    # lines 1 and 3 are empty and line 5 has a node: the number counts lines of the file, not nodes
    data = b'\n{"key": "a", "text": "Rain."}\n\n' + line + b'\n{"key": "z", "text": "Rain."}\n'
    with pytest.raises(UserError, match=rf"^my/graph\.jsonl:4: .*{message}"):
        read_nodes(data, "my/graph.jsonl")


@pytest.mark.parametrize("data", [b"", b"\n\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_empty_graph_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^g\.jsonl: no nodes in it; expected one JSON object with 'key' and 'text' a line"):
        read_nodes(data, "g.jsonl")


def test_byte_order_mark_line_ends_and_a_missing_last_newline_change_nothing() -> None:
    plain = lines({"key": "a", "text": "Rain.\ncalm:9"}, {"key": "b", "text": "Snow."})
    expected = [Node("a", "Rain.", {"calm": 9.0}), Node("b", "Snow.", {})]
    for data in (plain, b"\xef\xbb\xbf" + plain, plain.replace(b"\n", b"\r\n"), plain.rstrip(b"\n"), b"\n" + plain + b"\n\n"):
        assert read_nodes(data, "g.jsonl") == expected


def test_carriage_return_inside_a_line_is_white_space_of_the_json() -> None:
    assert read_nodes(b'{"key": "a",\r"text": "Rain."}\r\n', "g.jsonl") == [Node("a", "Rain.", {})]


def test_whole_surrogate_pairs_are_text() -> None:
    assert read_nodes(b'{"key": "a", "text": "\\ud83d\\ude00"}', "g")[0].text == "😀"


def test_nodes_are_sorted_by_key_whatever_their_order_and_other_fields_are_free() -> None:
    chance = random.Random(1)
    keys = ["b", "a/2", "a/10", "a", "B", "é", "z", "😀", "ﬁ"]
    for _ in range(5):
        chance.shuffle(keys)
        nodes = read_nodes(lines(*({"created": 3, "text": f"Of {key}.", "key": key, "more": []} for key in keys)), "g")
        assert [node.key for node in nodes] == ["B", "a", "a/10", "a/2", "b", "z", "é", "ﬁ", "😀"]
        assert all(node.text == f"Of {node.key}." for node in nodes)


def test_digest_is_of_the_text_without_its_tag_lines() -> None:
    expected = hashlib.sha256("Café, snow.".encode()).hexdigest()[:32]
    data = lines(
        {"key": "a", "text": "Café, snow."}, {"key": "b", "text": " Café, snow.\ncalm:9\n"}, {"key": "c", "text": "Café, snow"}
    )
    a, b, c = read_nodes(data, "g")
    assert a.digest == b.digest == expected != c.digest


def test_sample_graph_against_a_plain_reading() -> None:
    """Each text of the sample ends in one tag line or none; read here by hand."""
    raw = {record["key"]: record["text"] for record in map(json.loads, SAMPLE.read_text(encoding="utf-8").splitlines())}
    nodes = read_nodes(SAMPLE.read_bytes(), "g")
    assert [node.key for node in nodes] == sorted(raw)
    for node in nodes:
        above, _, last = raw[node.key].strip().rpartition("\n")
        pairs = [token.split(":") for token in last.split()]
        tagged = all(len(pair) == 2 and pair[0].isalpha() and pair[1].isdigit() for pair in pairs)
        assert node.scores == ({name: float(score) for name, score in pairs} if tagged else {})
        assert node.text == (above if tagged else raw[node.key]).strip()


HOSTILE = [
    {"key": "b", "text": 'Quotes " and \\ and \u2028 and \x85 and \x0b and \u0000.\r\nNext\rline.\ncalm:9\njoy:8.5'},
    {"key": "a", "text": "😀 é e\u0301 ﬁ\ttab\n\ncalm:0"},
    {"key": "c\n", "text": ""},
]


def test_snapshot_round_trip(tmp_path: Path) -> None:
    graph, output = tmp_path / "graph.jsonl", tmp_path / "store" / "snapshots" / "1.jsonl"
    graph.write_bytes(lines(*HOSTILE))
    data, digest = read_graph(graph)
    assert (data, digest) == (graph.read_bytes(), sha256(graph.read_bytes()))
    assert snapshot.make_snapshot(graph, digest, output) == 3
    assert read_snapshot(output) == read_nodes(data, "g")
    assert [node.key for node in read_snapshot(output)] == ["a", "b", "c\n"]

    records = [json.loads(line) for line in output.read_bytes().decode().split("\n")[:-1]]
    assert [sorted(record) for record in records] == [["digest", "key", "scores", "text"]] * 3
    for record in records:
        assert record["digest"] == sha256(record["text"].encode())[:32]
    assert records[1]["scores"] == {"calm": 9.0, "joy": 8.5}


def test_snapshot_depends_on_the_nodes_and_not_on_their_order() -> None:
    forward = "".join(snapshot_lines(read_nodes(lines(*HOSTILE), "g")))
    assert forward == "".join(snapshot_lines(read_nodes(lines(*reversed(HOSTILE)), "g")))
    assert forward.count("\n") == 3


def test_snapshot_of_the_sample_graph(tmp_path: Path) -> None:
    output = tmp_path / "s.jsonl"
    assert snapshot.make_snapshot(SAMPLE, sha256(SAMPLE.read_bytes()), output) == len(SAMPLE.read_bytes().splitlines())
    assert read_snapshot(output) == read_nodes(SAMPLE.read_bytes(), "g")


@pytest.mark.parametrize("change", [b'{"key": "n", "text": "new"}\n', b" ", b"\n"])
def test_graph_that_changed_since_the_plan_is_refused_and_nothing_written(tmp_path: Path, change: bytes) -> None:
    graph, output = tmp_path / "graph.jsonl", tmp_path / "store" / "1.jsonl"
    graph.write_bytes(lines({"key": "a", "text": "Rain."}))
    planned = read_graph(graph)[1]
    graph.write_bytes(graph.read_bytes() + change)
    with pytest.raises(UserError, match=r"graph\.jsonl changed while snakemake was running; nothing was written.*again"):
        snapshot.make_snapshot(graph, planned, output)
    assert list(tmp_path.rglob("*")) == [graph]


def test_broken_graph_leaves_no_snapshot(tmp_path: Path) -> None:
    graph, output = tmp_path / "graph.jsonl", tmp_path / "store" / "1.jsonl"
    graph.write_bytes(lines({"key": "a", "text": "Rain."}) + b"{")
    with pytest.raises(UserError, match=r"graph\.jsonl:2: not a line of JSON"):
        snapshot.make_snapshot(graph, sha256(graph.read_bytes()), output)
    assert list(tmp_path.rglob("*")) == [graph]


def test_missing_graph_is_named_with_its_setting(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=r"^graph: cannot read .*Set `graph:` to a JSON Lines file") as caught:
            read_graph(path)
        assert str(path) in str(caught.value)
