"""The sources of a graph, and aliases of emotions, in the configuration: messages with file, line and place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from amygdala.config import check
from amygdala.errors import UserError
from amygdala.sources import FETCH_ONLY, LIVE, sources_of
from test_config import CONFIG, DEFAULTS, RULES, SCHEMA, merged, refused

KINDS: dict[str, dict[str, Any]] = {
    "file": {"path": "a.jsonl"},
    "table": {"path": "a.csv", "text": "note"},
    "stories": {"path": "stories"},
    "http": {"url": "https://example.org/nodes"},
    "mcp": {"memory_mcp_url": "http://localhost:3000/mcp", "preset": "knowledge-graph"},
}
EVERYTHING: dict[str, dict[str, Any]] = {
    "file": {
        **{"name": "my-notes_2", "path": "a.jsonl", "format": "nodes", "key": "id", "text": "body.text", "time": "when"},
        "observations": "apart",
    },
    "table": {
        **{"name": "T", "path": "a.csv", "header": False, "delimiter": ";", "quotes": True, "text": 0, "key": 1, "time": 2},
        **{"scenario": 3, "separator": "/", "label_names": "names.txt", "label": 4, "scale": 0.1},
    },
    "stories": {"name": "stories", "path": "a/b"},
    "http": {
        **{"name": "web", "url": "http://[::1]:8000/nodes", "items": "", "key": "id", "text": "body", "time": "at"},
        **{"observations": "joined", "next": "links.next", "cursor_parameter": "page", "total": "count", "token_env": "_TOKEN"},
        **{"timeout_s": 0.5, "deadline_s": 60, "tries": 1, "max_nodes": 1, "max_node_mb": 0.5, "max_page_mb": 8},
    },
    "mcp": {
        **{"name": "memory", "command": ["npx", "-y", "server"], "tool": "read", "arguments": {"a": [1]}, "items": "nodes"},
        **{"key": "id", "text": "body", "time": "at", "observations": "joined", "next": "cursor", "cursor_argument": "cursor"},
        **{"total": "count", "render_tool": None, "render_argument": "id", "at_once": 64, "token_env": "TOKEN"},
        **{"environment": ["HOME", "PATH"], "timeout_s": 5, "deadline_s": 60, "tries": 3, "max_nodes": 9, "max_node_mb": 1},
        "max_page_mb": 8,
    },
}


def of(kind: str, **changes: Any) -> dict[str, Any]:
    """A sound source of the kind with changes; None takes a key out."""
    return {name: value for name, value in {"source": kind, **KINDS[kind], **changes}.items() if value is not None}


def wrong(graph: Any) -> str:
    """The message on a graph that no file sets."""
    with pytest.raises(UserError) as caught:
        check(merged({"graph": graph}), SCHEMA, [CONFIG])
    return str(caught.value)


def allowed_by(kind: str) -> list[str]:
    return sorted(RULES["$defs"][kind]["properties"])


def test_the_kinds_are_those_of_the_code() -> None:
    assert [kind for kind, rule in RULES["$defs"].items() if "source" in rule.get("properties", {})] == [
        *("file", "table", "stories", "conversations", "http", "mcp")
    ]
    for kind in KINDS:
        rule = RULES["$defs"][kind]
        assert rule["additionalProperties"] is False and rule["properties"]["source"] == {"const": kind}
        assert (kind in LIVE) == ("tries" in rule["properties"])
    assert set(FETCH_ONLY) <= set(allowed_by("mcp"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_source_alone_and_in_a_list(kind: str) -> None:
    check(merged({"graph": of(kind)}), SCHEMA)
    check(merged({"graph": [of(kind)]}), SCHEMA)
    check(merged({"graph": ["graph.jsonl", of(kind, name="other"), of(kind, name="third")]}), SCHEMA)


@pytest.mark.parametrize("kind", EVERYTHING)
def test_a_source_with_every_key(kind: str) -> None:
    source = {"source": kind, **EVERYTHING[kind]}
    check(merged({"graph": source}), SCHEMA)
    assert sources_of(source)[0].name == source["name"]
    missing = {"table": {"scores"}, "mcp": {"memory_mcp_url", "preset"}}.get(kind, set())
    assert source.keys() | missing == set(allowed_by(kind))


@pytest.mark.parametrize("scores", [["joy", "Awe"], {"column 3": "joy"}])
def test_a_table_of_scores(scores: Any) -> None:
    check(merged({"graph": of("table", scores=scores)}), SCHEMA)


# Unknown, missing and wrong keys


TYPOS = {"file": ("txet", "text"), "table": ("lable", "label"), "stories": ("paht", "path"), "http": ("tokenenv", "token_env")}
TYPOS |= {"mcp": ("comand", "command")}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_key_is_named_with_its_line_a_suggestion_and_the_keys_of_its_kind(tmp_path: Path, kind: str) -> None:
    typo, meant = TYPOS[kind]
    own = "".join(f"  {name}: {value}\n" for name, value in KINDS[kind].items())
    allowed = ", ".join(allowed_by(kind))
    message = refused(tmp_path, f"graph:\n  source: {kind}\n{own}  {typo}: x")
    line = 5 + len(KINDS[kind])
    assert message == f"FILE:{line}: unknown key '{typo}' in 'graph'. Did you mean '{meant}'? Allowed: {allowed}"
    inside = own.replace("  ", "    ")
    message = refused(tmp_path, f"graph:\n  - a.jsonl\n  - source: {kind}\n{inside}    {typo}: x")
    assert message == f"FILE:{line + 1}: unknown key '{typo}' in 'graph.1'. Did you mean '{meant}'? Allowed: {allowed}"


def test_the_first_of_several_wrong_sources_is_told(tmp_path: Path) -> None:
    text = "graph:\n  - {source: file, path: a}\n  - {source: file, paht: b, path: b}\n  - {source: file, pth: c}"
    assert refused(tmp_path, text).startswith("FILE:5: unknown key 'paht' in 'graph.1'. Did you mean 'path'?")


@pytest.mark.parametrize(
    ("kind", "key"), [("file", "path"), ("table", "path"), ("table", "text"), ("stories", "path"), ("http", "url")]
)
def test_a_missing_key_is_named_with_its_source(tmp_path: Path, kind: str, key: str) -> None:
    rest = "".join(f", {name}: {value}" for name, value in KINDS[kind].items() if name != key)
    problem = f"a source of this kind needs the key '{key}' (docs/sources.md)"
    assert refused(tmp_path, f"graph: {{source: {kind}{rest}}}") == f"FILE:3: 'graph': {problem}"
    message = refused(tmp_path, f"graph:\n  - a.jsonl\n\n  - {{source: {kind}{rest}}}")
    assert message == f"FILE:6: 'graph.1': {problem}"
    assert wrong([of(kind, **{key: None})]) == f"config: 'graph.0': {problem}"


KNOWN = "a source says its kind, `source:` one of file, table, stories, http, mcp"


@pytest.mark.parametrize(
    ("item", "given"),
    [
        ("{source: sql, path: a}", "not 'sql'"),
        ("{source: name, path: a}", "not 'name'"),  # a definition that is no source
        ("{source: null}", "not 'None'"),
        ("{source: [file]}", "not \"['file']\""),
        ("{path: a.jsonl}", "in \"{'path': 'a.jsonl'}\""),
        ("3", "in '3'"),
        ("[a.jsonl]", "in \"['a.jsonl']\""),
        ("null", "in 'None'"),
    ],
)
def test_a_source_of_no_kind(tmp_path: Path, item: str, given: str) -> None:
    assert refused(tmp_path, f"graph:\n  - a.jsonl\n  - {item}") == f"FILE:5: 'graph.1': {KNOWN}, {given}"
    if item.startswith("{"):
        assert refused(tmp_path, f"graph: {item}") == f"FILE:3: 'graph': {KNOWN}, {given}"


VALUES: list[tuple[str, str, Any, str]] = [
    ("file", "path", "", "expected a path (no braces in it)"),
    ("file", "path", "a{b}.jsonl", "expected a path (no braces in it)"),
    ("file", "path", 3, "3 is not of type 'string'; expected a path"),
    ("file", "format", "json", "'json' is not one of ['auto', 'nodes', 'memory']"),
    ("file", "key", "", "expected the name of a field, or a dotted path to it"),
    ("file", "observations", "split", "'split' is not one of ['joined', 'apart']"),
    ("file", "name", "two words", "expected a letter, then letters, digits, _ or -"),
    ("file", "name", "../x", "expected a letter, then"),
    ("file", "name", "2nd", "expected a letter, then"),
    ("file", "name", "x" * 49, "expected a letter, then"),
    ("table", "header", "no", "'no' is not of type 'boolean'"),
    ("table", "delimiter", ",,", "expected one character"),
    ("table", "delimiter", "", "expected one character"),
    ("table", "text", -1, "-1 is less than the minimum of 0; expected a column's name or its number from 0"),
    ("table", "text", 1.5, "1.5 is not of type 'string', 'integer'"),
    ("table", "label", True, "True is not of type 'string', 'integer'"),
    ("table", "scores", [], "expected a list of columns, or a mapping of columns to emotions"),
    ("table", "scores", {}, "expected a list of columns, or a mapping"),
    ("table", "scores", "joy", "'joy' is not of type 'array', 'object'"),
    ("table", "scale", 0, "0 is less than or equal to the minimum of 0"),
    ("table", "scale", float("nan"), "nan is not of type 'number'"),
    ("stories", "path", "a{b}", "expected a path (no braces in it)"),
    ("http", "url", "example.org/nodes", "expected a URL, http:// or https://"),
    ("http", "url", "ftp://example.org", "expected a URL"),
    ("http", "url", "http://a b", "expected a URL"),
    ("http", "token_env", "my token", "expected the name of an environment variable"),
    ("http", "token_env", "1TOKEN", "expected the name of an environment variable"),
    ("http", "timeout_s", 0, "0 is less than or equal to the minimum of 0; expected a number of seconds"),
    ("http", "timeout_s", "5s", "'5s' is not of type 'number'; expected a number of seconds"),
    ("http", "tries", 0, "0 is less than the minimum of 1"),
    ("http", "max_nodes", 0, "0 is less than the minimum of 1"),
    ("http", "max_node_mb", 0, "0 is less than or equal to the minimum of 0"),
    ("mcp", "memory_mcp_url", "localhost", "expected a URL"),
    ("mcp", "preset", "graph", "'graph' is not one of ['knowledge-graph', 'nodes']"),
    ("mcp", "arguments", ["a"], "['a'] is not of type 'object'"),
    ("mcp", "at_once", 65, "65 is greater than the maximum of 64"),
    ("mcp", "at_once", 0, "0 is less than the minimum of 1"),
    ("mcp", "environment", "HOME", "'HOME' is not of type 'array'; expected a list of environment variables' names"),
]


@pytest.mark.parametrize(("kind", "key", "value", "problem"), VALUES)
def test_a_wrong_value_is_named_with_its_line_and_place(tmp_path: Path, kind: str, key: str, value: Any, problem: str) -> None:
    source = {**of(kind, **{key: None}), key: value}
    text = yaml.safe_dump({"graph": ["a.jsonl", source]}, sort_keys=False)
    line = 3 + next(number for number, each in enumerate(text.splitlines()) if re.match(rf"[- ] {key}:", each))
    message = refused(tmp_path, text)
    assert message.startswith(f"FILE:{line}: 'graph.1.{key}': "), message
    assert problem in message
    assert wrong(source).startswith(f"config: 'graph.{key}': ")


@pytest.mark.parametrize(
    ("key", "value", "place", "problem"),
    [
        ("command", ["npx", 3], "graph.1.command.1", "3 is not of type 'string'"),
        ("command", [], "graph.1.command", "expected a list: the program, then its arguments"),
        ("environment", ["HOME", "A B"], "graph.1.environment.1", "expected the name of an environment variable"),
    ],
)
def test_a_wrong_item_inside_a_source_is_named_with_its_place(key: str, value: Any, place: str, problem: str) -> None:
    message = wrong(["a.jsonl", of("mcp", memory_mcp_url=None, **{"command": ["npx"], key: value})])
    assert message.startswith(f"config: '{place}': ") and problem in message


@pytest.mark.parametrize("path", ["a{b}.jsonl", ""])
def test_a_path_in_a_list_is_checked_like_one_alone(tmp_path: Path, path: str) -> None:
    assert "expected the path of a JSON Lines file" in wrong(path)
    message = refused(tmp_path, f"graph:\n  - a.jsonl\n  - {path!r}")
    assert re.match(r"FILE:5: 'graph\.1': .*; expected a path \(no braces in it\)$", message), message


# What no single key can be wrong about


@pytest.mark.parametrize("change", [{"memory_mcp_url": None}, {"command": ["npx"]}], ids=["neither", "both"])
def test_an_mcp_source_has_either_a_url_or_a_command(tmp_path: Path, change: dict[str, Any]) -> None:
    problem = "an mcp source needs either memory_mcp_url or command"
    assert wrong(of("mcp", **change)) == f"config: 'graph': {problem}"
    text = yaml.safe_dump({"graph": ["a.jsonl", of("mcp", **change)]})
    assert refused(tmp_path, text) == f"FILE:5: 'graph.1': {problem}"


def test_an_mcp_source_has_a_preset_or_a_tool() -> None:
    problem = "an mcp source needs a preset (knowledge-graph, nodes) or a tool to call"
    assert wrong([of("mcp", preset=None)]) == f"config: 'graph.0': {problem}"
    check(merged({"graph": of("mcp", preset=None, tool="read_graph")}), SCHEMA)
    check(merged({"graph": of("mcp", tool="read_graph")}), SCHEMA)


def test_a_table_has_labels_or_scores() -> None:
    problem = "a table has either a label column or score columns"
    assert wrong(of("table", label="emotion", scores=["joy"])) == f"config: 'graph': {problem}"


@pytest.mark.parametrize(
    ("items", "name"),
    [
        ("- a.jsonl\n  - {source: file, path: b}", "file"),
        ("- {source: file, path: a, name: x}\n  - {source: stories, path: b, name: x}", "x"),
        ("- {source: http, url: 'http://a', name: table}\n  - {source: table, path: b, text: 0}", "table"),
    ],
)
def test_two_sources_of_one_name(tmp_path: Path, items: str, name: str) -> None:
    problem = f"'graph': two sources are called '{name}': give each a `name:` of its own"
    assert refused(tmp_path, f"graph:\n  {items}") == f"FILE:5: {problem}"


def test_a_source_of_an_earlier_file_is_not_blamed_on_a_later_one(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("graph:\n  - a.jsonl\n  - {source: file, pth: b}\n")
    second.write_text("graph: [b.jsonl]\n")
    config = merged(yaml.safe_load(first.read_text()))
    with pytest.raises(UserError, match=rf"^{re.escape(str(first))}:3: unknown key 'pth' in 'graph\.1'"):
        check(config, SCHEMA, [CONFIG, first, second])


@pytest.mark.parametrize("url", ["http://[::1/x", "https://a]/x", "http://[1.2.3.4.5]/x"], ids=["open", "closed", "no address"])
@pytest.mark.parametrize(("kind", "key"), [("http", "url"), ("mcp", "memory_mcp_url")])
def test_a_url_that_is_none_is_named_with_its_place(tmp_path: Path, kind: str, key: str, url: str) -> None:
    text = yaml.safe_dump({"graph": ["a.jsonl", of(kind, **{key: url})]}, sort_keys=False)
    message = refused(tmp_path, text)
    assert message.startswith("FILE:5: 'graph.1': ") and len(message.splitlines()) == 1
    assert wrong(of(kind, **{key: url})).startswith("config: 'graph': ")
    check(merged({"graph": of(kind, **{key: "http://[::1]/x"})}), SCHEMA)


@pytest.mark.parametrize(
    "arguments", ["{since: 2026-01-06}", "{since: 2026-01-06 07:08:09}", "{all: [{from: 2026-01-06}]}", "{2026-01-06: x}"]
)
def test_a_date_among_arguments_wants_quotes(tmp_path: Path, arguments: str) -> None:
    """YAML makes a date of it, which no tool can be given."""
    text = "graph:\n  - a.jsonl\n  - source: mcp\n    command: [npx]\n    preset: nodes\n    arguments: "
    message = refused(tmp_path, text + arguments)
    assert re.fullmatch(r"FILE:5: 'graph\.1': .*; a date or time wants quotes", message), message
    check(merged(yaml.safe_load(text + re.sub(r"(2026[-\d]+( [\d:]+)?)", r"'\1'", arguments))), SCHEMA)


MERGED = " (configuration files are merged; `graph:` as a list replaces an earlier one)"


def test_that_files_are_merged_is_told_where_there_are_several(tmp_path: Path) -> None:
    """Beside the defaults, that is: a key that one file sets and another's kind of source doesn't know."""
    paths = [tmp_path / "1.yaml", tmp_path / "2.yaml"]
    paths[0].write_text("graph: {source: http, url: 'http://a', tries: 2}\n")
    paths[1].write_text("graph: {source: file, path: b.jsonl}\n")
    config = merged({"graph": {"source": "file", "url": "http://a", "tries": 2, "path": "b.jsonl"}})

    def told(*files: Path, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            check({**config, **changes}, SCHEMA, files)
        return str(caught.value)

    plain = f"'graph'. Allowed: {', '.join(allowed_by('file'))}"
    assert told(CONFIG, *paths) == f"{paths[0]}:1: unknown key 'url' in {plain}{MERGED}"
    assert told(CONFIG, paths[0]) == f"{paths[0]}:1: unknown key 'url' in {plain}"
    assert told(CONFIG) == told() == f"config: unknown key 'url' in {plain}"
    assert MERGED not in told(CONFIG, *paths, grahp="a.jsonl"), "outside a source no merging is behind it"


# Aliases


@pytest.mark.parametrize(
    ("aliases", "problem"),
    [
        ("{joyful: joy, joy: delight}", "'joyful' counts as 'joy', which is an alias itself; name the emotion that is kept"),
        ("{joy: joy}", "'joy' counts as itself; name the emotion that is kept"),
        ("{JOY: joy}", "'joy' counts as itself"),
        ("{Joyful: Joy, ＪＯＹ: delight}", "'joyful' counts as 'joy', which is an alias itself"),
        ("{a: b, b: a}", "'a' counts as 'b', which is an alias itself"),
        ("{self doubt: self_doubt}", "'self doubt' is not an emotion name: a letter first"),
        ("{joyful: '../../x'}", "'../../x' is not an emotion name"),
        ("{1: joy}", "1 is not of type 'string'"),
        ("{joyful: ''}", "'' is not an emotion name"),
    ],
)
def test_aliases_of_aliases_and_bad_names(tmp_path: Path, aliases: str, problem: str) -> None:
    message = refused(tmp_path, f"emotions:\n  select: both\n  aliases: {aliases}")
    assert message.startswith(f"FILE:5: 'emotions.aliases': {problem}"), message


def test_an_alias_of_no_string_is_named_with_its_place(tmp_path: Path) -> None:
    message = refused(tmp_path, "emotions:\n  aliases:\n    glee: joy\n    joyful: [joy]")
    assert message.startswith("FILE:6: 'emotions.aliases.joyful': ['joy'] is not of type 'string'")


@pytest.mark.parametrize("key", ["bad_nodes", "max_lost_nodes", "snapshot", "graph"])
def test_a_missing_key_of_the_graph_is_named(key: str) -> None:
    config = {name: value for name, value in DEFAULTS.items() if name != key}
    with pytest.raises(UserError, match=f"^config: missing key '{key}'"):
        check(config, SCHEMA, [CONFIG])


def test_missing_aliases_are_named_with_their_path() -> None:
    emotions = {name: value for name, value in DEFAULTS["emotions"].items() if name != "aliases"}
    with pytest.raises(UserError, match=r"^config: missing key 'emotions\.aliases'"):
        check({**DEFAULTS, "emotions": emotions}, SCHEMA, [CONFIG])


def test_an_alias_in_two_spellings_is_refused() -> None:
    with pytest.raises(UserError, match=r"'emotions\.aliases': a name is given twice"):
        check(merged({"emotions": {"aliases": {"Joyful": "joy", "joyful": "awe"}}}), SCHEMA, [])


@pytest.mark.parametrize("key", ["url", "memory_mcp_url"])
def test_a_password_in_a_url_is_refused_and_not_shown(key: str) -> None:
    kind = {"url": {"source": "http"}, "memory_mcp_url": {"source": "mcp", "preset": "nodes"}}[key]
    with pytest.raises(UserError, match=r"'graph\.0': no user or password in a URL") as caught:
        check(merged({"graph": [{**kind, key: "http://me:s3cret@host/x"}]}), SCHEMA, [])
    assert "s3cret" not in str(caught.value)
