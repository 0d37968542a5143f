"""Local sources: JSON Lines, memory files and tables read by hand, and every error with its file and line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from amygdala.errors import UserError
from amygdala.graph import Node, RawNode, canonical
from amygdala.local import READERS, files_of, read_file, read_table


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def from_file(tmp_path: Path, data: bytes, **options: Any) -> list[RawNode]:
    path = tmp_path / "g.jsonl"
    path.write_bytes(data)
    return list(read_file(path, options))


def from_table(tmp_path: Path, data: bytes | str, name: str = "t.csv", **options: Any) -> list[RawNode]:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_table(path, options))


def keys_and_texts(raws: list[RawNode]) -> list[tuple[str, str]]:
    return [(raw.key, raw.text) for raw in raws]


# JSON Lines


def test_a_node_a_line(tmp_path: Path) -> None:
    raws = from_file(
        tmp_path, lines({"key": "a", "text": "Rain.\ncalm:9", "created": 3}, {"text": "", "key": "b", "time": "now"})
    )
    assert raws == [
        RawNode("a", "Rain.\ncalm:9", None, None, None, f"{tmp_path}/g.jsonl:1"),
        RawNode("b", "", None, "now", None, f"{tmp_path}/g.jsonl:2"),
    ]


def test_other_fields_may_hold_key_text_and_time(tmp_path: Path) -> None:
    record = {"id": {"full": 17}, "body": [{"md": "Rain."}], "at": 1767225600, "key": "k", "text": "t", "time": "x"}
    (raw,) = from_file(tmp_path, lines(record), key="id.full", text="body.0.md", time="at")
    assert (raw.key, raw.text, raw.time) == ("17", "Rain.", "1767225600")


@pytest.mark.parametrize(("given", "time"), [("2026", "2026"), (5, "5"), (1.5, "1.5"), (None, None), ("", "")])
def test_time_is_kept_as_written(tmp_path: Path, given: Any, time: str | None) -> None:
    assert from_file(tmp_path, lines({"key": "a", "text": "x", "time": given}))[0].time == time


def test_a_text_of_several_strings_is_one_text_or_a_node_each(tmp_path: Path) -> None:
    data = lines(
        {"key": "a", "text": ["Rain.", "Snow.\ncalm:9", "Rain."]}, {"key": "b", "text": []}, {"key": "c", "text": "Sun."}
    )
    joined = [("a", "Rain.\nSnow.\ncalm:9\nRain."), ("b", ""), ("c", "Sun.")]
    assert keys_and_texts(from_file(tmp_path, data)) == joined
    assert keys_and_texts(from_file(tmp_path, data, observations="joined")) == joined
    apart = from_file(tmp_path, data, observations="apart")
    assert keys_and_texts(apart) == [
        (f"a#{digest_of('Rain.')[:12]}", "Rain."),
        (f"a#{digest_of('Snow.' + chr(10) + 'calm:9')[:12]}", "Snow.\ncalm:9"),
        ("c", "Sun."),
    ]
    assert {raw.where for raw in apart[:2]} == {f"{tmp_path}/g.jsonl:1"}


def test_half_a_surrogate_pair_in_an_observation_of_its_own_is_named(tmp_path: Path) -> None:
    (raw,) = from_file(tmp_path, b'{"key": "a", "text": ["x \\ud83d"]}', observations="apart")
    with pytest.raises(UserError, match=r"g\.jsonl:1: 'text' holds half a surrogate pair"):
        canonical("g", [raw])


def test_byte_order_mark_line_ends_and_a_missing_last_newline_change_nothing(tmp_path: Path) -> None:
    plain = lines({"key": "a", "text": "Rain.\ncalm:9"}, {"key": "b", "text": "Snow."})
    expected = [Node("g", "a", "Rain.", {"calm": 9.0}), Node("g", "b", "Snow.", {})]
    for data in (
        plain,
        b"\xef\xbb\xbf" + plain,
        plain.replace(b"\n", b"\r\n"),
        plain.rstrip(b"\n"),
        b"\n" + plain + b"\n \t\n",
    ):
        assert canonical("g", from_file(tmp_path, data))[0] == expected


def test_line_ends_other_than_newline_are_no_ends_of_a_node(tmp_path: Path) -> None:
    data = '{"key": "a",\r"text": "one\u2028two\x85three"}\n'.encode()
    assert keys_and_texts(from_file(tmp_path, data)) == [("a", "one\u2028two\x85three")]


BROKEN: list[tuple[bytes, str]] = [
    (b'{"key": "b", "text"', r"not a line of JSON"),
    (b"not json", r"not a line of JSON"),
    (b'{"key": "b", "text": "x"} {}', r"not a line of JSON"),
    (b'{"key": "b", "text": 1' + b"0" * 5000 + b"}", r"not a line of JSON"),
    (b"[" * 200_000, r"JSON nested too deeply"),
    (b'["key", "text"]', r"a node must be a JSON object with the fields 'key' and 'text'"),
    (b'"text"', r"a node must be a JSON object"),
    (b"null", r"a node must be a JSON object"),
    (b'{"text": "x"}', r"the node has no 'key'"),
    (b'{"key": "b"}', r"the node has no 'text'"),
    (b'{"key": 7.5, "text": "x"}', r"the node needs a string as 'key'"),
    (b'{"key": true, "text": "x"}', r"the node needs a string as 'key'"),
    (b'{"key": null, "text": "x"}', r"the node needs a string as 'key'"),
    (b'{"key": "", "text": "x"}', r"the node has an empty key"),
    (b'{"key": " ", "text": "x"}', r"the node has an empty key"),
    (b'{"key": "b", "text": null}', r"the node needs a string as 'text'"),
    (b'{"key": "b", "text": false}', r"the node needs a string as 'text'"),
    (b'{"key": "b", "text": {"x": "y"}}', r"the node needs a string as 'text'"),
    (b'{"key": "b", "text": ["x", 1]}', r"the node needs a string as 'text'"),
    (b'{"key": "a", "text": "other"}', r"the key 'a' stands in line 2 already; keys must be unique"),
    (b'{"key": "b", "text": "caf\xe9"}', r"not UTF-8 \(.* at byte 25\)"),
    (b'{"key": "b", "text": "x \\ud83d y"}', r"'text' holds half a surrogate pair"),
    (b'{"key": "\\udc00", "text": "x"}', r"'key' holds half a surrogate pair"),
    (b'{"key": "b", "text": "x\\njoy:11"}', r"score '11' of emotion 'joy' is outside 0-10"),
    (b'{"key": "b", "text": "x\\na.b:9"}', r"'a\.b' is not an emotion name"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_broken_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, message: str) -> None:
    # lines 1 and 3 are empty and line 5 has a node: the number counts lines of the file, not nodes
    data = b'\n{"key": "a", "text": "Rain."}\n\n' + line + b'\n{"key": "z", "text": "Rain."}\n'
    with pytest.raises(UserError, match=rf"^{tmp_path}/g\.jsonl:4: {message}"):
        canonical("g", from_file(tmp_path, data))


def test_a_file_in_utf_16_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"g\.jsonl:1: not UTF-8 \(invalid start byte at byte 0\)$"):
        from_file(tmp_path, '{"key": "a", "text": "x"}\n'.encode("utf-16"))


EMPTY = [b"", b"\n\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", lines({"type": "relation", "from": "a", "to": "b"})]


@pytest.mark.parametrize("data", EMPTY)
def test_a_file_without_nodes_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match=r"g\.jsonl: no nodes in it; expected one JSON object with 'key' and 'text' a line$"):
        from_file(tmp_path, data)


def test_missing_fields_are_named_as_configured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"g\.jsonl:1: the node has no 'meta\.id'"):
        from_file(tmp_path, lines({"key": "a", "text": "x"}), key="meta.id")
    for path in ("key.0", "pages.1", "pages.-1", "pages.x"):
        with pytest.raises(UserError, match=rf"g\.jsonl:1: the node has no '{path}'"):
            from_file(tmp_path, lines({"key": "a", "text": "x", "pages": ["y"]}), text=path)
    with pytest.raises(UserError, match="a node must be a JSON object with the fields 'id' and 'body'"):
        from_file(tmp_path, lines([]), key="id", text="body")


# The memory file of a knowledge-graph server

MEMORY = [
    {"type": "entity", "name": "Ada", "entityType": "person", "observations": ["Likes rain.", "calm:9"]},
    {"type": "relation", "from": "Ada", "to": "Sea", "relationType": "saw"},
    {"type": "entity", "name": "Sea", "entityType": "place", "observations": []},
]


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2]])
def test_a_memory_file_is_known_by_its_first_record(tmp_path: Path, order: list[int]) -> None:
    data = lines(*(MEMORY[number] for number in order))
    expected = [("Ada", "Likes rain.\ncalm:9"), ("Sea", "")]
    assert keys_and_texts(from_file(tmp_path, data)) == expected
    assert keys_and_texts(from_file(tmp_path, data, format="auto")) == expected
    assert keys_and_texts(from_file(tmp_path, data, format="memory")) == expected


def test_the_format_may_be_given(tmp_path: Path) -> None:
    records = [{"key": "k", "text": "t", "name": "n", "observations": ["o"]}, {"type": "relation", "key": "r", "text": "s"}]
    assert keys_and_texts(from_file(tmp_path, lines(*records), format="memory")) == [("n", "o")]
    assert keys_and_texts(from_file(tmp_path, lines(*records))) == [("k", "t"), ("r", "s")]
    assert keys_and_texts(from_file(tmp_path, lines(*reversed(records)), format="nodes")) == [("r", "s"), ("k", "t")]


def test_fields_of_a_memory_file_may_be_given_too(tmp_path: Path) -> None:
    raws = from_file(tmp_path, lines(*MEMORY), key="entityType", time="name", observations="apart")
    assert [(raw.key, raw.text, raw.time) for raw in raws] == [
        (f"person#{digest_of('Likes rain.')[:12]}", "Likes rain.", "Ada"),
        (f"person#{digest_of('calm:9')[:12]}", "calm:9", "Ada"),
    ]


def test_an_entity_without_observations_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"g\.jsonl:3: the node has no 'observations'"):
        from_file(tmp_path, lines(*MEMORY[:2], {"type": "entity", "name": "x"}))
    with pytest.raises(UserError, match=r"g\.jsonl:4: a node must be a JSON object with the fields 'name' and 'observations'"):
        from_file(tmp_path, lines(*MEMORY, []))


# Tables


def test_a_table_with_a_label_column(tmp_path: Path) -> None:
    data = 'id,text,mood,when,scene\r\n7,"Rain, and\r\n""snow"".",Calm,2026,kitchen\r\n\r\n8,Sun.,,, \r\n'
    raws = from_table(tmp_path, data, key="id", text="text", label="mood", time="when", scenario="scene")
    assert raws == [
        RawNode("7", 'Rain, and\r\n"snow".', {"calm": 10.0}, "2026", "kitchen", f"{tmp_path}/t.csv:2"),
        RawNode("8", "Sun.", {}, "", None, f"{tmp_path}/t.csv:5"),
    ]


def test_texts_of_a_table_without_labels_carry_their_own_tags(tmp_path: Path) -> None:
    raws = from_table(tmp_path, 'text\n"Rain.\ncalm:9"\n', text="text")
    assert raws[0].scores is None
    assert canonical("t", raws)[0][0].scores == {"calm": 9.0}


def test_a_labelled_text_is_not_searched_for_tags(tmp_path: Path) -> None:
    (node,), _ = canonical("t", from_table(tmp_path, 'text,mood\n"Rain.\njoy:9",calm\n', text="text", label="mood"))
    assert (node.text, node.scores) == ("Rain.\njoy:9", {"calm": 10.0})
    (node,), _ = canonical("t", from_table(tmp_path, 'text,mood\n"Rain.\njoy:9",\n', text="text", label="mood"))
    assert (node.text, node.scores) == ("Rain.\njoy:9", {})


GO_EMOTIONS = "Rain again.\t1\tee1\nSo \"glad!\t0,2\tee2\nWhat's up?\t3\tee3\nNo label.\t\tee4\n"


def test_a_table_as_go_emotions_has_it(tmp_path: Path) -> None:
    """Tabs, no header, several numbers a row that stand for lines of another file; a quote is a quote."""
    names = tmp_path / "emotions.txt"
    names.write_bytes(b"\xef\xbb\xbfadmiration\r\nSadness\r\njoy\r\nneutral\r\n")
    options: dict[str, Any] = {"header": False, "text": 0, "label": 1, "key": 2, "label_names": str(names)}
    options |= {"delimiter": "\t", "quotes": False}  # what the suffix says: test_sources.py
    raws = from_table(tmp_path, GO_EMOTIONS, "train.tsv", **options)
    assert [(raw.key, raw.text, raw.scores) for raw in raws] == [
        ("ee1", "Rain again.", {"sadness": 10.0}),
        ("ee2", 'So "glad!', {"admiration": 10.0, "joy": 10.0}),
        ("ee3", "What's up?", {"neutral": 10.0}),
        ("ee4", "No label.", {}),
    ]
    assert raws[0].where == f"{tmp_path}/train.tsv:1"
    for bad in ("4", "-1", "joy", "1.0", "²"):
        with pytest.raises(
            UserError, match=r"train\.tsv:1: label '.*' is no line number \(from 0\) of label_names, which has 4$"
        ):
            from_table(tmp_path, f"x\t{bad}\te\n", "train.tsv", **options)


def test_a_blank_line_of_label_names_counts_and_names_nothing(tmp_path: Path) -> None:
    names = tmp_path / "emotions.txt"
    names.write_text("\njoy\n \n\tanger \nfear\n\n \n", encoding="utf-8")
    options = {"text": "text", "label": "l", "label_names": str(names)}
    raws = from_table(tmp_path, "text,l\nx,1\nx,3\nx,4\n", **options)
    assert [raw.scores for raw in raws] == [{"joy": 10.0}, {"anger": 10.0}, {"fear": 10.0}]
    for label in ("0", "2", "5"):
        message = rf"t\.csv:2: label '{label}' is no line number \(from 0\) of label_names, which has 5$"
        with pytest.raises(UserError, match=message):
            from_table(tmp_path, f'text,l\nx,"1,{label}"\n', **options)


@pytest.mark.parametrize(
    ("cell", "separator", "scores"),
    [
        ("joy", None, {"joy"}),
        (" Joy , CALM ,", None, {"joy", "calm"}),
        ("joy|calm", "|", {"joy", "calm"}),
        ("joy; calm,awe", "; ", None),
        ("joy joy", " ", {"joy"}),
        ("ne utral", None, None),
        ("9", None, None),
    ],
)
def test_labels_of_a_row(tmp_path: Path, cell: str, separator: str | None, scores: set[str] | None) -> None:
    options = {"separator": separator} if separator else {}
    data = f'text,l\nx,"{cell}"\n'
    if scores is None:
        with pytest.raises(UserError, match=r"^.*t\.csv:2: '.*' is not an emotion name"):
            from_table(tmp_path, data, text="text", label="l", **options)
    else:
        assert from_table(tmp_path, data, text="text", label="l", **options)[0].scores == dict.fromkeys(scores, 10.0)


def test_score_columns_with_a_scale(tmp_path: Path) -> None:
    data = "text,Joy,calm score,anger\na,0.85,1,\nb,0, ,0.5\n"
    raws = from_table(tmp_path, data, text="text", scores=["Joy", "anger"], scale=10)
    assert [raw.scores for raw in raws] == [{"joy": 8.5}, {"joy": 0.0, "anger": 5.0}]
    raws = from_table(tmp_path, data, text="text", scores={"calm score": "Calm", "Joy": "delight"})
    assert [raw.scores for raw in raws] == [{"calm": 1.0, "delight": 0.85}, {"delight": 0.0}]
    raws = from_table(tmp_path, "text,joy\na,10\nb,1e1\nc,100\n", text="text", scores=["joy"], scale=0.1)
    assert [raw.scores for raw in raws] == [{"joy": 1.0}, {"joy": 1.0}, {"joy": 10.0}]


def test_of_several_score_columns_of_one_emotion_the_highest_counts(tmp_path: Path) -> None:
    data = "text,joy,glee,cheer\na,9,1,2\nb,1,9,2\nc,0,,\nd,,,\ne,10,9,\n"
    raws = from_table(tmp_path, data, text="text", scores={"joy": "joy", "glee": "Joy", "cheer": "JOY"})
    assert [raw.scores for raw in raws] == [{"joy": 9.0}, {"joy": 9.0}, {"joy": 0.0}, {}, {"joy": 10.0}]
    with pytest.raises(UserError, match=r"t\.csv:2: score '11' of emotion 'joy' is outside 0-10"):
        from_table(tmp_path, "text,joy,glee\na,9,11\n", text="text", scores={"joy": "joy", "glee": "joy"})


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("high", r"'high' is no score of 'joy'$"),
        ("0_1", r"'0_1' is no score of 'joy'$"),
        ("1.1", r"score '1\.1' of emotion 'joy' is outside 0-10 \(times the scale 10\)$"),
        ("-0.1", r"score '-0\.1' of emotion 'joy' is outside 0-10"),
        ("nan", r"score 'nan' of emotion 'joy' is outside 0-10"),
        ("inf", r"score 'inf' of emotion 'joy' is outside 0-10"),
        ("\x1b[1m", r"'\\x1b\[1m' is no score"),
    ],
)
def test_a_bad_score_cell_is_named(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/t\.csv:3: {message}"):
        from_table(tmp_path, f"text,joy\na,1\nb,{cell}\n", text="text", scores=["joy"], scale=10)


def test_bad_names_of_score_columns_are_named(tmp_path: Path) -> None:
    for scores in (["2nd"], {"joy": "../x"}):
        with pytest.raises(UserError, match=rf"^{tmp_path}/t\.csv: scores: '.*' is not an emotion name"):
            from_table(tmp_path, "text,joy,2nd\na,1,2\n", text="text", scores=scores)


def test_rows_without_keys_go_by_their_texts(tmp_path: Path) -> None:
    rain, snow = digest_of("Rain.")[:16], digest_of("Snow.")[:16]
    raws = from_table(tmp_path, "text\nRain.\nSnow.\nRain.\nRain.\n", text="text")
    assert [raw.key for raw in raws] == [rain, snow, f"{rain}.2", f"{rain}.3"]
    with_another = from_table(tmp_path, "text\nSun.\nRain.\nSnow.\nRain.\nRain.\n", text="text")
    assert [raw.key for raw in with_another[1:]] == [raw.key for raw in raws]


def test_two_rows_of_one_key_are_refused(tmp_path: Path) -> None:
    raws = from_table(tmp_path, 'id,text\na,"two\nlines"\na,x\n', text="text", key="id")
    with pytest.raises(UserError, match=r"t\.csv:4: the key 'a' stands in line 2 already"):
        canonical("t", raws)


@pytest.mark.parametrize(
    ("name", "data", "options", "text"),
    [
        ("t.csv", "a,text\n1,x;y\n", {}, "x;y"),
        ("t.csv", "a;text\n1;x,y\n", {"delimiter": ";"}, "x,y"),
        ("t.tsv", 'a\ttext\n1\t"x\n', {"delimiter": "\t", "quotes": False}, '"x'),
        ("t.tsv", 'a\ttext\n1\t"x\ty"\n', {"delimiter": "\t", "quotes": True}, "x\ty"),
        ("t.csv", 'a,text\n1,"x"\n', {"quotes": False}, '"x"'),
        ("t.txt", "\ufeffa,text\n1,\U0001f600\n", {}, "\U0001f600"),
        ("t.csv", "text,a\nx,1\n", {"text": 0}, "x"),
        ("t.csv", "a,text\r1,x\r", {}, "x"),
        ("t.csv", "a,text\n1,\x00\x0bx\u2028\x85\n", {}, "\x00\x0bx\u2028\x85"),
        ("t.csv", "a,text\n1," + "x" * 200_000 + "\n", {}, "x" * 200_000),
    ],
)
def test_shapes_of_tables(tmp_path: Path, name: str, data: str, options: dict[str, Any], text: str) -> None:
    raws = from_table(tmp_path, data, name, **{"text": "text", **options})
    assert [raw.text for raw in raws] == [text]


MISSING: list[tuple[str, dict[str, Any], str]] = [
    ("a,b\n", {"text": "text"}, r"there is no column 'text'; it has 'a', 'b'$"),
    ("a,b\nx,y\n", {"text": "a", "label": "mood"}, r"there is no column 'mood'; it has 'a', 'b'$"),
    ("a,b\nx,y\n", {"text": "a", "key": "id"}, r"there is no column 'id'; it has"),
    ("a,b\nx,y\n", {"text": "a", "time": "when"}, r"there is no column 'when'; it has"),
    ("a,b\nx,y\n", {"text": "a", "scenario": "scene"}, r"there is no column 'scene'; it has"),
    ("a,b\nx,y\n", {"text": "a", "scores": ["joy"]}, r"there is no column 'joy'; it has"),
    ("a,b\nx,y\n", {"text": "a", "scores": {"joy": "b"}}, r"there is no column 'joy'; it has"),
    ("x,y\n", {"text": "text", "header": False}, r"there is no column 'text', and no header \(header: false\)$"),
    ("x,y\n", {"text": 2, "header": False}, r"there is no column 2: the first row has 2, counted from 0$"),
    ("a,b\nx,y\n", {"text": 0, "label": 2}, r"there is no column 2: the first row has 2, counted from 0$"),
    ("", {"text": "text"}, r"no rows in it$"),
    ("\n\n", {"text": "text"}, r"no rows in it$"),
    ("\ufeff", {"text": 0, "header": False}, r"no rows in it$"),
]


@pytest.mark.parametrize(("data", "options", "message"), MISSING)
def test_a_missing_column_is_named(tmp_path: Path, data: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/t\.csv: {message}"):
        from_table(tmp_path, data, **options)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"text": 2}, 2),
        ({"text": 0, "label": 1}, 1),
        ({"text": 0, "key": 1}, 1),
        ({"text": 0, "time": 1}, 1),
        ({"text": 0, "scenario": 2}, 2),
        ({"text": 0, "scores": {"c": "joy"}}, 2),
    ],
)
def test_a_short_row_is_named(tmp_path: Path, options: dict[str, Any], needed: int) -> None:
    message = rf"^{tmp_path}/t\.csv:4: the row has 1 columns, and column {needed} \(from 0\) is needed$"
    with pytest.raises(UserError, match=message):
        from_table(tmp_path, 'a,b,c\n"x\n",y,9\nx\n', **options)
    # a short row that has what is needed is no error
    assert from_table(tmp_path, "a,b,c\nx,y\n", text="b")[0].text == "y"


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"caf\xe9,text\n", 1, "invalid continuation byte"),
        (b"\xef\xbb\xbftext\r\ncaf\xe9\r\n", 2, "invalid continuation byte"),
        (b"text\n" + b"a" * 20_000 + b'\n"b\n\xff"\n', 4, "invalid start byte"),  # beyond what a decoder reads at once
        (b"text\ncaf\xc3", 2, "unexpected end of data"),
    ],
)
def test_a_table_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path, data: bytes, line: int, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/t\.csv:{line}: not UTF-8 \({reason}\)$"):
        from_table(tmp_path, data, text="text")


def test_label_names_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"joy\ncaf\xe9\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}/names:2: not UTF-8"):
        from_table(tmp_path, "text,l\nx,0\n", text="text", label="l", label_names=str(tmp_path / "names"))


def test_a_table_of_a_header_alone_has_no_nodes(tmp_path: Path) -> None:
    assert from_table(tmp_path, "text\n", text="text") == []


def test_the_files_that_a_source_is_made_from() -> None:
    assert set(READERS) == {"file", "table", "stories"}
    path = Path("t.csv")
    assert files_of("file", path, {"path": "t.csv"}) == [path]
    assert files_of("table", path, {"text": 0}) == [path]
    assert files_of("table", path, {"text": 0, "label_names": "names.txt"}) == [path, Path("names.txt")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('text,label\nfine,joy\n"never closed,joy\nmore,calm\n', "t.csv:3: no row of a table"),
        ("text,label\nglad, truly,joy\n", "t.csv:2: the row has 3 columns, and the first row 2"),
        ("text,text,label\na,b,joy\n", "there are 2 columns 'text'"),
    ],
    ids=["a quote that is not closed", "a delimiter in a text", "two columns of one name"],
)
def test_rows_that_would_be_read_wrong_are_refused(tmp_path: Path, data: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(data)
    with pytest.raises(UserError, match=message):
        list(read_table(tmp_path / "t.csv", {"text": "text", "label": "label"}))
