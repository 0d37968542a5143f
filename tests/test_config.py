"""The configuration: messages with file, line and key; config.yaml and schema in step; which layers a setting means."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from amygdala.config import check, poolings, resolve_layers, with_numbers
from amygdala.errors import UserError
from tiny import REPOSITORY

CONFIG, SCHEMA = REPOSITORY / "config.yaml", REPOSITORY / "schemas" / "config.schema.yaml"
DEFAULTS: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
RULES: dict[str, Any] = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


def merged(changes: dict[str, Any]) -> dict[str, Any]:
    """The defaults with `changes`, `emotions` key by key, as snakemake merges them."""
    config = copy.deepcopy(DEFAULTS)
    inside = changes.get("emotions")
    config.update(changes)
    if isinstance(inside, dict):
        config["emotions"] = {**DEFAULTS["emotions"], **inside}
    return config


def refused(folder: Path, text: str) -> str:
    """The message on a user's own file with `text` from line 3 on, `FILE` for its path."""
    path = folder / "mine.yaml"
    path.write_text(f"# Mine.\n\n{text}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        check(merged(yaml.safe_load(path.read_text(encoding="utf-8"))), SCHEMA, [CONFIG, path])
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize("setting", ["store", "results", "snapshot", "model", "graph", "neutral", "store_read"])
def test_the_home_of_nobody(tmp_path: Path, setting: str) -> None:
    listed = setting == "store_read"
    message = refused(tmp_path, f"{setting}: {'[~nobody-at-all/x]' if listed else '~nobody-at-all/x'}")
    assert message.startswith("FILE:3: 'store_read.0'" if listed else f"FILE:3: '{setting}'")
    assert "there is no home folder for the `~` of '~nobody-at-all/x': write the path out" in message


# Poolings as they may be written, and what each means
POOLINGS: list[tuple[Any, list[str]]] = [
    ("mean", ["mean"]),
    ("last", ["last"]),
    ("from_token:50", ["from_token:50"]),
    ("from_token: 50", ["from_token:50"]),
    ("from_token:1", ["from_token:1"]),
    ("from_token:999999", ["from_token:999999"]),
    ({"from_token": 50}, ["from_token:50"]),
    (["mean"], ["mean"]),
    (["last", "mean"], ["last", "mean"]),
    (["mean", {"from_token": 50}, "last"], ["mean", "from_token:50", "last"]),
    (["from_token:9", "from_token:50"], ["from_token:9", "from_token:50"]),
    # the same in several spellings counts once, at its first place
    ([{"from_token": 50}, "from_token: 50", "mean", "from_token:50"], ["from_token:50", "mean"]),
]
TEMPLATES: list[Any] = [
    None,
    *({"role": role} for role in ("user", "assistant", "system")),
    {"role": "user", "system": None},
    {"role": "assistant", "system": "You keep a journal."},
]


# The defaults


def test_the_defaults_are_valid() -> None:
    Draft202012Validator.check_schema(RULES)
    check(DEFAULTS, SCHEMA, [CONFIG])


@pytest.mark.parametrize(("rules", "values"), [(RULES, DEFAULTS), (RULES["properties"]["emotions"], DEFAULTS["emotions"])])
def test_schema_and_defaults_have_the_same_keys(rules: dict[str, Any], values: dict[str, Any]) -> None:
    assert sorted(rules["properties"]) == sorted(values) == sorted(rules["required"])
    assert rules["additionalProperties"] is False


def commented_keys() -> dict[str, str]:
    """Key (`emotions.top` for one inside) to the comment lines straight above it."""
    found: dict[str, str] = {}
    comment: list[str] = []
    path: list[str] = []
    for line in CONFIG.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip())
            continue
        if match := re.match(r"( *)([a-z_]+):", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if path[0] != "families" or len(path) == 1:  # names of the user's own
                found[".".join(path)] = " ".join(comment)
        comment = []
    return found


def keys_inside(section: str, values: dict[str, Any]) -> list[str]:
    """Dotted keys of a section and of those in it."""
    found = []
    for key, value in values.items():
        found += [f"{section}.{key}", *(keys_inside(f"{section}.{key}", value) if isinstance(value, dict) and value else [])]
    return found


def test_each_key_of_the_defaults_is_explained() -> None:
    keys = commented_keys()
    sections = ("emotions", "ablation", "key_versions", "gc", "cluster")
    assert keys.keys() == {*DEFAULTS, *(key for section in sections for key in keys_inside(section, DEFAULTS[section]))}
    assert [key for key, comment in keys.items() if len(comment) < 20] == []


def test_the_comments_name_all_allowed_words() -> None:
    keys = commented_keys()
    properties = {
        **RULES["properties"],
        **{
            f"{s}.{k}": v
            for s in ("emotions", "ablation", "key_versions")
            for k, v in RULES["properties"][s]["properties"].items()
        },
        "cluster.light.run": RULES["properties"]["cluster"]["properties"]["light"]["properties"]["run"],
    }
    enums = {key: rule["enum"] for key, rule in properties.items() if "enum" in rule}
    assert len(enums) >= 5
    for key, words in enums.items():
        told = ["null" if word is None else word for word in words]
        assert [word for word in told if not re.search(rf"\b{word}\b", keys[key])] == [], key


@pytest.mark.parametrize(
    "changes",
    [
        {"max_negative_score": 0},
        {"max_negative_score": 2.5},
        {"min_positive_score": 10},
        {"min_positive_score": 0.5},
        {"held_out": 0},
        {"seed": -1},
        {"batch_tokens": 1},
        {"target_layers": [18, 0, 0.5, 1.0]},
        {"pooling": "last", "dtype": "fp16", "device": "cuda"},
        *({"pooling": given} for given, _ in POOLINGS),
        *({"device_map": given} for given in (None, "auto", "balanced", "sequential")),
        *({"batch_size": given} for given in (None, 1, 4096)),
        *({"template": given} for given in TEMPLATES),
        {"target_layers": "all"},
        {"shards": 1024},
        {"max_negative_mentions": 0},
        {"bad_nodes": "skip", "max_lost_nodes": 0, "snapshot": "any/where.jsonl"},
        {"max_lost_nodes": 1},
        {"emotions": {"aliases": {"Joyful": "JOY", "glee": "joy", "self-doubt": "self_doubt"}}},
        {"emotions": {"select": "data", "curated": ["Self_Doubt", "joy-2"], "exclude": ["रुचि"], "top": 1, "min_positives": 1}},
    ],
    ids=str,
)
def test_allowed_values(changes: dict[str, Any]) -> None:
    check(merged(changes), SCHEMA)


# Unknown keys


def test_unknown_key_is_named_with_file_line_suggestion_and_allowed_keys(tmp_path: Path) -> None:
    message = refused(tmp_path, "seed: 1\nheldout: 0.1\nshards: 2")
    assert message.startswith("FILE:4: unknown key 'heldout'. Did you mean 'held_out'? Allowed: ")
    allowed = message.partition("Allowed: ")[2].split(", ")
    assert allowed == sorted(DEFAULTS)


def test_unknown_key_inside_emotions(tmp_path: Path) -> None:
    message = refused(tmp_path, "emotions:\n  top: 3\n  min_positive: 5")
    assert message == (
        "FILE:5: unknown key 'min_positive' in 'emotions'. Did you mean 'min_positives'? "
        "Allowed: aliases, curated, exclude, min_positives, select, top"
    )


def test_unknown_key_unlike_any_other_gets_no_suggestion(tmp_path: Path) -> None:
    message = refused(tmp_path, "'zzz': 1")
    assert message.startswith("FILE:3: unknown key 'zzz'. Allowed: ")


def test_unknown_key_of_the_command_line_has_no_file() -> None:
    with pytest.raises(UserError, match=r"^config: unknown key 'layers'\. Did you mean 'sweep_layers'\? Allowed: ") as caught:
        check(merged({"layers": [3]}), SCHEMA, [CONFIG])
    assert "config.yaml" not in str(caught.value)


def test_unknown_key_that_is_no_string() -> None:
    unknown: dict[Any, Any] = {3: 1}
    with pytest.raises(UserError, match="unknown key '3'"):
        check(merged(unknown), SCHEMA, [CONFIG])


def test_unknown_key_with_control_characters_is_shown_escaped() -> None:
    with pytest.raises(UserError, match="unknown key") as caught:
        check(merged({"a\x1b[2J\nb": 1}), SCHEMA, [CONFIG])
    assert str(caught.value).isprintable()


def test_the_last_file_that_sets_a_key_is_named(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("1.yaml", "2.yaml", "3.yaml"))
    first.write_text("seed: x\n")
    second.write_text("\n\nseed: y\n")
    third.write_text("# seed: none here\nshards: 1\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(second))}:3: 'seed'"):
        check(merged({"seed": "y"}), SCHEMA, [first, second, third, tmp_path / "missing.yaml"])


def test_of_several_wrong_keys_the_outermost_is_told_and_then_the_first_by_name() -> None:
    for wrong, told in (({"held_out": 3}, "held_out"), ({"seed": "x", "held_out": 3}, "held_out"), ({"seed": "x"}, "seed")):
        with pytest.raises(UserError, match=f"^config: '{told}'"):
            check(merged({"emotions": {"top": 0}, **wrong}), SCHEMA)


def test_of_two_files_that_set_the_same_the_last_is_named(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("1.yaml", "2.yaml"))
    first.write_text("seed: x\n")
    second.write_text("\nseed: x\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(second))}:2: 'seed'"):
        check(merged({"seed": "x"}), SCHEMA, [first, second])


# Wrong types and values. In the messages: the key, the value given, what is expected


WRONG: list[tuple[str, str, str]] = [
    ("graph", "3", "3 is not of type 'string', 'object', 'array'; expected the path of a JSON Lines file, or a source"),
    ("graph", "null", "None is not of type 'string'"),
    ("graph", "''", "expected the path of a JSON Lines file"),
    ("graph", "[]", "expected the path of a JSON Lines file, or a source, or a list of sources"),
    ("snapshot", "''", "expected path of a file"),
    ("snapshot", "'{b}'", "expected path of a file .no braces in it."),
    ("snapshot", "[a]", "is not of type 'string'; expected path of a file"),
    ("bad_nodes", "drop", r"'drop' is not one of \['refuse', 'skip'\]"),
    ("max_lost_nodes", "1.5", "1.5 is greater than the maximum of 1"),
    ("max_lost_nodes", "-0.1", "-0.1 is less than the minimum of 0"),
    ("max_lost_nodes", "half", "'half' is not of type 'number'"),
    ("store", "[a]", "expected path of a folder"),
    ("store", "''", "expected path of a folder"),
    ("store", "'a/{b}'", "expected path of a folder .no braces in it."),
    ("graph", "'{b}'", "no braces in paths"),
    ("store_read", "/data/store", "expected a list of folders"),
    ("store_read", "[a, a]", "expected a list of folders"),
    ("results", "null", "expected path of a folder"),
    ("results", "''", "expected path of a folder"),
    ("emotions", "[joy]", r"\['joy'\] is not of type 'object'"),
    ("emotions", "all", "'all' is not of type 'object'"),
    ("min_positive_score", "high", "'high' is not of type 'number'"),
    ("min_positive_score", "0", "0 is less than or equal to the minimum of 0"),
    ("min_positive_score", "10.5", "10.5 is greater than the maximum of 10"),
    ("max_negative_score", "none", "'none' is not of type 'number', 'null'; expected a score or null"),
    ("max_negative_score", "-1", "-1 is less than the minimum of 0; expected a score or null"),
    ("max_negative_score", "11", "11 is greater than the maximum of 10; expected a score or null"),
    ("max_negative_mentions", "-1", "-1 is less than the minimum of 0"),
    ("max_negative_mentions", "0.5", "0.5 is not of type 'integer'"),
    ("min_content_chars", "0", "0 is less than the minimum of 1"),
    ("min_content_chars", "'40'", "'40' is not of type 'integer'"),
    ("max_examples_per_emotion", "0", "0 is less than the minimum of 1"),
    ("max_examples_per_emotion", "null", "None is not of type 'integer'"),
    ("min_examples", "0", "0 is less than the minimum of 1"),
    ("min_examples", "yes", "True is not of type 'integer'"),
    ("held_out", "1", "1 is greater than or equal to the maximum of 1"),
    ("held_out", "-0.1", "-0.1 is less than the minimum of 0"),
    ("held_out", "20%", "'20%' is not of type 'number'"),
    ("seed", "1.5", "1.5 is not of type 'integer'"),
    ("seed", "null", "None is not of type 'integer'"),
    ("model", "''", "expected embedded, a folder, a .gguf file, or a hub id"),
    ("model", "{name: x}", "expected embedded, a folder, a .gguf file, or a hub id"),
    ("dtype", "float32", r"'float32' is not one of \['auto', 'bf16', 'fp16', 'fp32'\]"),
    ("device", "gpu", r"'gpu' is not one of \['auto', 'cuda', 'cpu', 'mps'\]"),
    (
        "target_layers",
        "18",
        "18 is not of type 'array', 'string'; expected a list of layer indices .* from 0 to 1, all, or auto",
    ),
    (
        "target_layers",
        "every",
        "'every' does not match .*; expected a list of layer indices from 0 and depths .*, all, or auto",
    ),
    ("target_layers", "'12'", "'12' does not match .*; expected a list of layer indices"),
    ("target_layers", "[]", "expected a list of layer indices from 0 and depths from 0 to 1"),
    ("device_map", "cuda:0", r"'cuda:0' is not one of \[None, 'auto', 'balanced', 'sequential'\]"),
    ("device_map", "{'': 0}", r"\{'': 0\} is not one of \["),
    ("pooling", "max", "'max' is not one of the allowed values; expected mean, last, from_token:N .N at least 1., or a list"),
    ("pooling", "null", "'None' is not one of the allowed values; expected mean, last, from_token:N"),
    ("pooling", "50", "'50' is not one of the allowed values; expected mean, last, from_token:N"),
    ("pooling", "from_token", "'from_token' is not one of the allowed values; expected mean, last, from_token:N"),
    ("pooling", "from_token:0", "'from_token:0' is not one of the allowed values; expected mean, last, from_token:N"),
    ("pooling", "from_token:-1", "'from_token:-1' is not one of the allowed values"),
    ("pooling", "from_token:1.5", "'from_token:1.5' is not one of the allowed values"),
    ("pooling", "from_token:050", "'from_token:050' is not one of the allowed values"),
    (
        "pooling",
        "{from_token: 0}",
        r"\"\{'from_token': 0\}\" is not one of the allowed values; expected mean, last, from_token:N",
    ),
    ("pooling", "{from_token: 5.0}", r"\"\{'from_token': 5.0\}\" is not one of the allowed values"),
    ("pooling", "{from_token: '5'}", r"\{'from_token': '5'\}\" is not one of the allowed values"),
    ("pooling", "{first: 5}", r"\{'first': 5\}\" is not one of the allowed values"),
    ("pooling", "[]", r"'\[\]' is not one of the allowed values; expected mean, last, from_token:N"),
    ("pooling", "[mean, max]", r"'mean', 'max'\].* is not one of the allowed values; expected mean, last, from_token:N"),
    ("pooling", "[mean, mean]", "is not one of the allowed values; expected mean, last, from_token:N .* or a list of these"),
    ("pooling", "[[mean]]", "is not one of the allowed values; expected mean, last, from_token:N"),
    ("template", "chat", "'chat' is not of type 'object', 'null'; expected null, or .role: user, assistant or system; system:"),
    ("template", "{system: Hello.}", "'role' is missing; expected null, or .role: user, assistant or system; system:"),
    ("template", "{}", "'role' is missing; expected null, or .role: user"),
    ("template", "true", "True is not of type 'object', 'null'; expected null, or .role: user"),
    ("batch_size", "0", "0 is less than the minimum of 1; expected a number of texts or null"),
    ("batch_size", "auto", "'auto' is not of type 'integer', 'null'; expected a number of texts or null"),
    ("batch_size", "2.0", "2.0 is not of type 'integer', 'null'; expected a number of texts or null"),
    ("max_tokens", "1", "1 is less than the minimum of 2"),
    ("max_tokens", "2k", "'2k' is not of type 'integer'"),
    ("batch_tokens", "0", "'0' is not one of the allowed values; expected auto or a number of tokens"),
    ("batch_tokens", "all", "'all' is not one of the allowed values; expected auto or a number of tokens"),
    ("shards", "0", "0 is less than the minimum of 1"),
    ("shards", "1025", "1025 is greater than the maximum of 1024"),
    ("emotions_per_job", "0", "0 is less than the minimum of 1"),
    ("shards", "two", "'two' is not of type 'integer'"),
    ("cluster", "slurm", "'slurm' is not of type 'object'"),
    ("method", "magic", r"'magic' is not one of \["),
    ("denoise", "0", "0 is less than or equal to the minimum of 0; expected a share above 0 and below 1, or null"),
    ("denoise", "1", "1 is greater than or equal to the maximum of 1; expected a share"),
    ("denoise", "yes", "True is not of type 'number', 'null'; expected a share"),
    ("neutral", "null", "None is not of type 'string'; expected path of a JSON Lines file"),
    ("families", "[]", "expected a mapping of names to lists of emotions"),
    ("sweep_layers", "0", "0 is less than the minimum of 1"),
    ("key_versions", "exact", "'exact' is not of type 'object'"),
    ("ablation", "[]", r"\[\] is not of type 'object'"),
    ("unseen", "texts.jsonl", "'texts.jsonl' is not of type 'array'; expected a list of sources with names"),
    ("report_texts", "-1", "-1 is less than the minimum of 0"),
    ("gc", "5", "5 is not of type 'object'"),
    ("gc_confirm", "7", "7 is not of type 'string', 'null'; expected what gc printed, or null"),
    ("release", "1234", r"1234 is not of type 'string', 'null'; expected .* in quotes where it reads as a number"),
    ("release", "abc", r"'abc' does not match .*; expected null, or a release's key or 4 and more"),
    ("release", "../../x", "does not match"),
]


@pytest.mark.parametrize(("key", "value", "problem"), WRONG)
def test_wrong_value_is_named_with_file_line_and_key(tmp_path: Path, key: str, value: str, problem: str) -> None:
    message = refused(tmp_path, f"# {key}: so\n{key}: {value}")
    assert re.match(rf"FILE:4: '{key}': .*{problem}", message), message


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{precision: patch, pinned: {}}", r"\.precision': 'patch' is not one of \['any', 'major', 'minor', 'exact'\]"),
        ("{precision: any, pinned: {torhc: '2'}}", r"\.pinned': 'torhc' is not one of \['torch', 'transformers',"),
        ("{precision: any, pinned: {torch: 2}}", r"\.pinned\.torch': 2 is not of type 'string'"),
    ],
)
def test_wrong_versions_are_named(tmp_path: Path, value: str, problem: str) -> None:
    message = refused(tmp_path, f"key_versions: {value}")
    assert re.search(rf"^FILE:\d+: 'key_versions{problem}", message), message


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{keep: -1, releases: [], grace_days: 1}", r"\.keep': -1 is less than the minimum of 0"),
        ("{keep: 1, releases: [1234], grace_days: 1}", r"\.releases\.0': 1234 is not of type 'string'.*in quotes"),
        ("{keep: 1, releases: [../..], grace_days: 1}", r"\.releases\.0': .*in quotes"),
        ("{keep: 1, releases: [], grace_days: -0.5}", r"\.grace_days': -0.5 is less than the minimum of 0"),
    ],
)
def test_wrong_settings_of_gc_are_named(tmp_path: Path, value: str, problem: str) -> None:
    message = refused(tmp_path, f"gc: {value}")
    assert re.search(rf"^FILE:\d+: 'gc{problem}", message), message


def test_each_setting_has_a_wrong_value_above() -> None:
    assert {key for key, _, _ in WRONG} == set(DEFAULTS)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("select", "all", r"'all' is not one of \['data', 'curated', 'both'\]"),
        ("min_positives", "0", "0 is less than the minimum of 1"),
        ("min_positives", "many", "'many' is not of type 'integer'"),
        ("top", "0", "0 is less than the minimum of 1"),
        ("top", "null", "None is not of type 'integer'"),
        ("curated", "joy", "'joy' is not of type 'array'; expected a list of emotion names"),
        ("exclude", "null", "None is not of type 'array'; expected a list of emotion names"),
        (
            "aliases",
            "[joy]",
            r"\['joy'\] is not of type 'object'; expected a mapping of names to the emotion that they count as",
        ),
        ("aliases", "null", "None is not of type 'object'; expected a mapping of names"),
    ],
)
def test_wrong_value_inside_emotions_is_named_with_its_path(tmp_path: Path, key: str, value: str, problem: str) -> None:
    message = refused(tmp_path, f"emotions:\n  {key}: {value}")
    assert re.match(rf"FILE:[34]: 'emotions\.{key}': .*{problem}", message), message


@pytest.mark.parametrize(("key", "text"), [("curated", "curated: [joy, 3]"), ("exclude", "exclude: [joy, null]")])
def test_emotion_that_is_no_string_is_named_with_its_place(tmp_path: Path, key: str, text: str) -> None:
    assert re.match(rf"FILE:[34]: 'emotions\.{key}\.1': .* is not of type 'string'", refused(tmp_path, f"emotions:\n  {text}"))


@pytest.mark.parametrize(
    ("place", "layers"), [(0, "[-1]"), (1, "[3, -2]"), (2, "[0.5, 1, -0.5]"), (0, "[last]"), (0, "[true]")]
)
def test_negative_layers_and_words_are_refused_with_their_place(tmp_path: Path, place: int, layers: str) -> None:
    message = refused(tmp_path, f"target_layers: {layers}")
    assert re.match(rf"FILE:3: 'target_layers\.{place}': .* is (less than the minimum of 0|not of type 'number')", message)


@pytest.mark.parametrize("key", ["curated", "exclude"])
@pytest.mark.parametrize("raw", ["../../x", "<b>", "", "self doubt", "9", "x" * 49])
def test_bad_emotion_name_in_a_list(tmp_path: Path, key: str, raw: str) -> None:
    message = refused(tmp_path, f"emotions:\n  select: both\n  {key}: [joy, {raw!r}]")
    assert message.startswith(f"FILE:5: 'emotions.{key}': '{raw[:20]}")
    assert "is not an emotion name: a letter first" in message


def test_missing_key_is_named() -> None:
    config = {key: value for key, value in DEFAULTS.items() if key != "seed"}
    with pytest.raises(UserError, match="missing key 'seed'"):
        check(config, SCHEMA, [CONFIG])


def test_a_value_of_the_command_line_names_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^config: 'held_out': 2 is greater"):
        check(merged({"held_out": 2}), SCHEMA, [CONFIG])
    with pytest.raises(UserError, match=r"^config: unknown key 'top'"):
        check(merged({"top": 5}), SCHEMA, [CONFIG])


def test_a_key_in_flow_style_is_found(tmp_path: Path) -> None:
    message = refused(tmp_path, "emotions: {top: 3,\n  selct: data}")
    assert message.startswith("FILE:4: unknown key 'selct' in 'emotions'. Did you mean 'select'?")


@pytest.mark.parametrize(("key", "value"), [("shards", 2.0), ("max_examples_per_emotion", 5.0), ("seed", 0.0), ("seed", True)])
def test_a_whole_number_is_no_float(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"'{key}': {value} is not of type 'integer'"):
        check(merged({key: value}), SCHEMA)


@pytest.mark.parametrize("key", ["held_out", "min_positive_score", "max_negative_score"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"'{key}': {value} is not of type 'number'"):
        check(merged({key: value}), SCHEMA)


def test_numbers_of_the_command_line_inside_lists_and_mappings() -> None:
    """As snakemake hands them over: strings, except at the top level."""
    given = merged({"target_layers": ["12", "0.6", "x"], "emotions": {"top": "5", "curated": ["7"]}, "graph": "8"})
    config = with_numbers(given, SCHEMA)
    assert config["target_layers"] == [12, 0.6, "x"]
    assert config["emotions"]["top"] == 5 and config["emotions"]["curated"] == ["7"]
    assert config["graph"] == "8"


@pytest.mark.parametrize("spelled", ["null", "None"])
def test_null_on_the_command_line_is_null_where_that_is_a_value(spelled: str) -> None:
    """`--config denoise=null`: snakemake hands over the word."""
    names = {"denoise", "batch_size", "device_map", "template", "max_negative_score"}
    config = with_numbers(merged({**dict.fromkeys(names, spelled), "method": spelled, "neutral": spelled}), SCHEMA)
    assert all(config[name] is None for name in names)
    assert (config["method"], config["neutral"]) == (spelled, spelled)


# Poolings and templates


@pytest.mark.parametrize(("given", "meant"), POOLINGS, ids=str)
def test_poolings(given: Any, meant: list[str]) -> None:
    assert poolings(given) == meant


@pytest.mark.parametrize(("given", "meant"), POOLINGS, ids=str)
def test_poolings_as_yaml_gives_them(given: Any, meant: list[str]) -> None:
    assert poolings(yaml.safe_load(yaml.safe_dump({"pooling": given}))["pooling"]) == meant


def test_a_mapping_written_in_yaml_is_a_pooling(tmp_path: Path) -> None:
    """`from_token: 50` without quotes is a mapping, in a list and alone."""
    for text, meant in (("from_token: 50", ["from_token:50"]), ("[mean, from_token: 50]", ["mean", "from_token:50"])):
        given = yaml.safe_load(f"pooling: {text}" if text[0] == "[" else f"pooling:\n  {text}")
        check(merged(given), SCHEMA, [CONFIG])
        assert poolings(given["pooling"]) == meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("role: robot", r"FILE:4: 'template\.role': 'robot' is not one of \['user', 'assistant', 'system'\]"),
        ("role: user\n  system: ''", r"FILE:5: 'template\.system': '' (is too short|should be non-empty)"),
        ("role: user\n  system: 3", r"FILE:5: 'template\.system': 3 is not of type 'string', 'null'"),
        ("role: user\n  sytem: Hello.", r"FILE:5: unknown key 'sytem' in 'template'\. Did you mean 'system'\?"),
    ],
)
def test_wrong_value_inside_template_is_named_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    told = refused(tmp_path, f"template:\n  {text}")
    assert re.match(message, told), told


def test_all_layers() -> None:
    for n_layers in (1, 2, 30, 64):
        assert resolve_layers("all", n_layers) == [*range(n_layers)]


# Layers


@pytest.mark.parametrize(
    ("wanted", "n_layers", "layers"),
    [
        ([18], 30, [18]),
        ([0, 29], 30, [0, 29]),
        ([0.4, 0.5, 0.6, 0.7], 30, [12, 15, 18, 21]),
        ([0.6], 32, [19]),  # 19.2
        ([0.99], 32, [31]),
        ([0.0], 30, [0]),
        ([1.0], 30, [29]),  # a depth: the last layer
        ([1], 30, [1]),  # an index
        ([0], 1, [0]),
        ([0.5, 1.0], 1, [0]),
        ([0.5, 3], 30, [3, 15]),  # mixed
        ([20, 3, 0.1, 20, 0.1, 3], 30, [3, 20]),  # duplicates, unsorted
        ([0.5, 0.51, 15], 30, [15]),
        # decimals that fall just short in binary: 0.29 * 100 = 28.999…
        ([0.29, 0.57, 0.58], 100, [29, 57, 58]),
        ([0.7], 10, [7]),
    ],
)
def test_resolve_layers(wanted: list[int | float], n_layers: int, layers: list[int]) -> None:
    assert resolve_layers(wanted, n_layers) == layers


def test_depth_is_the_floor_for_every_hundredth_and_model() -> None:
    for n_layers in range(1, 100):
        for hundredths in range(101):
            assert resolve_layers([hundredths / 100], n_layers) == [min(hundredths * n_layers // 100, n_layers - 1)]


@pytest.mark.parametrize(("wanted", "n_layers"), [([30], 30), ([3, 0.5, 31], 30), ([1], 1)])
def test_layer_beyond_the_model_is_refused(wanted: list[int | float], n_layers: int) -> None:
    with pytest.raises(UserError, match=rf"^target_layers: layer {max(wanted)} is beyond .* layers 0 to {n_layers - 1}$"):
        resolve_layers(wanted, n_layers)


@pytest.mark.parametrize("given", [1.01, 18.0, 2.5, -0.1, float("nan"), float("inf")])
def test_float_that_is_no_depth_is_refused(given: float) -> None:
    with pytest.raises(UserError, match=rf"^target_layers: {given} is neither an index .* nor a depth from 0 to 1$"):
        resolve_layers([0.5, given], 30)


# Names of emotions, and texts from elsewhere


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "ablation:\n  emotions: [joy, '9']\n  layer: 2\n  heads: 1\n  fill: mean\n  random: 3",
            r"FILE:5: 'ablation.emotions': ",
        ),
        ("families:\n  warm: [joy, 'a b']", r"FILE:5: 'families.warm': "),
        ("families:\n  2024: [joy]", r"FILE:4: 'families': 2024 is not of type 'string'"),
        ("families:\n  on: [joy]", r"FILE:4: 'families': True is not of type 'string'"),
        ("emotions:\n  aliases: {on: joy}", r"FILE:5: 'emotions.aliases': True is not of type 'string'"),
        ("families:\n  warm: joy", r"FILE:5: 'families.warm': 'joy' is not of type 'array'"),
        ("ablation:\n  heads: 1", r"config: missing key 'ablation.emotions'|FILE:3: 'ablation'"),
        (
            "ablation: {emotions: [], layer: null, heads: 1, fill: mean, random: 2}",
            r"'ablation.random': 2 is less than the minimum of 3",
        ),
        ("unseen:\n  - {source: table, path: a.csv}", r"FILE:5: 'unseen.0': a source of this kind needs the key 'text'"),
        ("unseen:\n  - {source: file, path: a.jsonl}", r"FILE:5: 'unseen.0': the set has no `name:`"),
        ("unseen:\n  - {source: mcp, name: a, command: [b]}", r"one of file, table, stories, conversations, not 'mcp'"),
        (
            "unseen:\n  - {source: file, name: a, path: a.jsonl}\n  - {source: file, name: a, path: b.jsonl}",
            r"FILE:6: 'unseen.1': the set has the name 'a' of another",
        ),
        ("graph: {source: conversations, name: a, path: b}", r"one of file, table, stories, http, mcp, not 'conversations'"),
    ],
)
def test_a_wrong_name_or_set_is_named_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    message = refused(tmp_path, f"# so\n{text}")
    assert re.search(problem, message), message
