"""The configuration: checked against its schema, with messages that name file, line and key."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from amygdala.errors import UserError, shown
from amygdala.tags import emotion_name


def _node_at(node: yaml.Node | None, path: Sequence[str | int]) -> tuple[yaml.Node, yaml.Node] | None:
    """The (key, value) nodes at `path` of a composed YAML document (a list's item is both), None where there is none."""
    found: tuple[yaml.Node, yaml.Node] | None = None
    for part in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            found = (node, node)
            continue
        if not isinstance(node, yaml.MappingNode):
            return found
        found = next(((k, v) for k, v in node.value if k.value == part), None)
        if found is None:
            return None
        node = found[1]
    return found


def _where(path: Sequence[str | int], value: Any, files: Iterable[str | Path]) -> str:
    """`file:line: ` of the last configuration file that sets `path` to `value`, else `config: ` (the command line)."""
    for file in reversed([Path(file) for file in files]):
        try:
            text = file.read_text(encoding="utf-8")
            found = _node_at(yaml.compose(text, Loader=yaml.SafeLoader), path)
            given = yaml.safe_load(text)
            for part in path:
                given = given[part]
        except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
            continue
        if found is not None and (given == value or given != given):
            return f"{file}:{found[0].start_mark.line + 1}: "
    return "config: "


def _unknown(error: ValidationError, files: Iterable[str | Path], prefix: Sequence[str | int] = ()) -> str:
    schema: Any = error.schema
    allowed = sorted(schema["properties"])
    instance: Any = error.instance
    name = next(key for key in instance if key not in allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    path = [*prefix, *error.absolute_path]
    inside = f" in '{_dotted(path)}'" if path else ""
    where = _where([*path, name], instance[name], files)
    several = prefix and len({Path(file).resolve() for file in files}) > 2  # the defaults and two of the user's
    merged = " (configuration files are merged; `graph:` as a list replaces an earlier one)" if several else ""
    return f"{where}unknown key {shown(name)}{inside}.{hint} Allowed: {', '.join(allowed)}{merged}"


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)


class _Having:
    """Equal to each mapping that has the key `name`: a wrong name is all that the validator tells of its mapping."""

    def __init__(self, name: Any) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and self.name in other

    __hash__ = None  # type: ignore[assignment]


def _wrong(error: ValidationError, files: Iterable[str | Path], prefix: Sequence[str | int] = ()) -> str:
    path = [*prefix, *error.absolute_path]
    name = _dotted(path)
    is_name = "propertyNames" in error.absolute_schema_path
    where = _where(path, _Having(error.instance) if is_name else error.instance, files)
    if error.validator == "required":
        schema: Any = error.schema
        instance: Any = error.instance
        missing = next(key for key in schema["required"] if key not in instance)
        if prefix:
            return f"{where}'{name}': a source of this kind needs the key '{missing}' (docs/sources.md)"
        if "description" in schema:
            return f"{where}'{name}': '{missing}' is missing; expected {schema['description']}"
        return f"config: missing key '{name + '.' if name else ''}{missing}'; the default stands in amygdala's own config.yaml"
    expected = error.schema.get("description") if isinstance(error.schema, dict) else None
    expected = f"; expected {expected}" if expected else ""
    problem = f"{shown(error.instance)} is not one of the allowed values" if error.validator == "oneOf" else error.message
    return f"{where}'{name}': {problem}{expected}"


def _is_whole(checker: Any, value: Any) -> bool:
    """JSON Schema takes 2.0 for an integer; a range or a hash does not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(checker: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_whole, "number": _is_finite}),
)


def _kinds(rule: dict[str, Any]) -> list[Any]:
    """The JSON types that a rule of the schema allows; of one with `oneOf`, those of all its forms."""
    kinds = rule.get("type")
    found = kinds if isinstance(kinds, list) else [kinds]
    found = [*found, *(["null"] if None in rule.get("enum", []) else [])]
    return [*found, *(kind for form in rule.get("oneOf", []) for kind in _kinds(form))]


def _number(value: Any, rule: dict[str, Any]) -> Any:
    kinds = _kinds(rule)
    if value in ("null", "None") and "null" in kinds:
        return None
    if isinstance(value, str) and ("integer" in kinds or "number" in kinds):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


def _numbers(value: Any, rule: dict[str, Any], shared: dict[str, Any]) -> Any:
    """shared: rules that others refer to."""
    rule = shared[rule["$ref"].rpartition("/")[2]] if "$ref" in rule else rule
    if not isinstance(value, dict):
        return _number(value, rule)
    inner = rule.get("properties", {})
    return {key: _numbers(item, inner.get(key, {}), shared) for key, item in value.items()}


def with_numbers(config: dict[str, Any], schema: str | Path) -> dict[str, Any]:
    """`config` with nulls, and numbers inside lists and mappings, as such: `--config target_layers=[12,0.6] denoise=null` gives
    them as strings.
    """
    read = yaml.safe_load(Path(schema).read_text(encoding="utf-8"))
    rules = read["properties"]
    result = dict(config)
    for name, value in config.items():
        rule = rules.get(name, {})
        if isinstance(value, list):
            result[name] = [_number(item, rule.get("items", {})) for item in value]
        elif isinstance(value, dict):
            result[name] = _numbers(value, rule, read["$defs"])
        elif value in ("null", "None") and "null" in _kinds(rule):
            result[name] = None
    return result


def check(config: dict[str, Any], schema: str | Path, files: Iterable[str | Path] = ()) -> None:
    """Raise UserError for the first thing wrong with `config`; `files` are the configuration files, for the message."""
    rules = yaml.safe_load(Path(schema).read_text(encoding="utf-8"))
    files = list(files)
    _check_against(rules, config, files)
    _check_homes(config, files)
    graph = config["graph"]
    names: list[str] = []
    for number, item in enumerate(graph if isinstance(graph, list) else [graph]):
        _check_source(item, rules["$defs"], ["graph", number] if isinstance(graph, list) else ["graph"], files)
        name = "file" if isinstance(item, str) else item.get("name", item["source"])
        if name in names:
            where = _where(["graph", number], item, files)
            raise UserError(f"{where}'graph': two sources are called {shown(name)}: give each a `name:` of its own")
        names.append(name)
    _check_emotions(config["emotions"], files)
    _check_unseen(config["unseen"], rules["$defs"], files)
    for setting, given in (("ablation.emotions", config["ablation"]["emotions"]), *_families(config["families"])):
        _check_names(given, setting.split("."), files)


def _check_homes(config: dict[str, Any], files: list[str | Path]) -> None:
    """UserError where a path begins with the home folder of nobody, or of a user who has none (as in some containers)."""
    names = ("store", "results", "snapshot", "model", "graph", "neutral")
    given: list[tuple[list[str | int], Any]] = [([name], config[name]) for name in names if isinstance(config[name], str)]
    given += [(["store_read", number], path) for number, path in enumerate(config["store_read"])]
    for path, value in given:
        try:
            Path(value).expanduser()
        except RuntimeError:
            where = f"{_where(path, value, files)}'{_dotted(path)}'"
            raise UserError(f"{where}: there is no home folder for the `~` of {shown(value)}: write the path out") from None


def _families(families: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    return [(f"families.{family}", names) for family, names in families.items()]


def _check_names(given: list[str], path: Sequence[str | int], files: list[str | Path]) -> None:
    """UserError where one of the emotion names given at `path` can be none."""
    for raw in given:
        try:
            emotion_name(raw)
        except ValueError as error:
            raise UserError(f"{_where(path, given, files)}'{_dotted(path)}': {error}") from None


def _check_unseen(given: list[dict[str, Any]], kinds: dict[str, Any], files: list[str | Path]) -> None:
    """Texts from elsewhere: local sources or conversations, each with a name of its own."""
    names: set[str] = set()
    for number, item in enumerate(given):
        path: list[str | int] = ["unseen", number]
        _check_source(item, kinds, path, files, ("file", "table", "stories", "conversations"))
        name = item.get("name")
        if name is None or name in names:
            problem = "has no `name:`" if name is None else f"has the name {shown(name)} of another"
            raise UserError(f"{_where(path, item, files)}'unseen.{number}': the set {problem}: give each one of its own")
        names.add(name)


def _check_against(rules: dict[str, Any], value: Any, files: list[str | Path], prefix: Sequence[str | int] = ()) -> None:
    errors = Validator(rules).iter_errors(value)
    for error in sorted(errors, key=lambda e: (len(e.absolute_path), str(e.absolute_path))):
        tell = _unknown if error.validator == "additionalProperties" else _wrong
        raise UserError(tell(error, files, prefix))


def _check_source(
    item: Any, kinds: dict[str, Any], path: list[str | int], files: list[str | Path], only: Sequence[str] = ()
) -> None:
    known = [kind for kind, rules in kinds.items() if "source" in rules.get("properties", {})]
    known = [kind for kind in known if (kind in only if only else kind != "conversations")]
    where = _where(path, item, files)
    if isinstance(item, str):
        _check_against(kinds["path"], item, files, path)
        return
    if not isinstance(item, dict) or item.get("source") not in known:
        given = f"not {shown(item['source'])}" if isinstance(item, dict) and "source" in item else f"in {shown(item)}"
        raise UserError(f"{where}'{_dotted(path)}': a source says its kind, `source:` one of {', '.join(known)}, {given}")
    _check_against({**kinds[item["source"]], "$defs": kinds}, item, files, path)
    url = item.get("memory_mcp_url", item.get("url", ""))
    try:
        netloc = urlsplit(str(url)).netloc
        json.dumps(item)
    except (ValueError, TypeError) as error:
        hint = "; a date or time wants quotes" if isinstance(error, TypeError) else ""
        raise UserError(f"{where}'{_dotted(path)}': {error}{hint}") from None
    if "@" in netloc:
        raise UserError(f"{where}'{_dotted(path)}': no user or password in a URL: name an environment variable in token_env")
    if item["source"] == "mcp" and ("memory_mcp_url" in item) == ("command" in item):
        raise UserError(f"{where}'{_dotted(path)}': an mcp source needs either memory_mcp_url or command")
    if item["source"] == "mcp" and "preset" not in item and "tool" not in item:
        raise UserError(f"{where}'{_dotted(path)}': an mcp source needs a preset (knowledge-graph, nodes) or a tool to call")
    if item["source"] == "table" and "label" in item and "scores" in item:
        raise UserError(f"{where}'{_dotted(path)}': a table has either a label column or score columns")


def _check_emotions(emotions: dict[str, Any], files: list[str | Path]) -> None:
    given = [("curated", name) for name in emotions["curated"]] + [("exclude", name) for name in emotions["exclude"]]
    given += [("aliases", name) for pair in emotions["aliases"].items() for name in pair]
    for setting, raw in given:
        try:
            emotion_name(str(raw))
        except ValueError as error:
            where = _where(["emotions", setting], emotions[setting], files)
            raise UserError(f"{where}'emotions.{setting}': {error}") from None
    names = {emotion_name(str(name)): emotion_name(other) for name, other in emotions["aliases"].items()}
    if len(names) < len(emotions["aliases"]):
        where = _where(["emotions", "aliases"], emotions["aliases"], files)
        raise UserError(f"{where}'emotions.aliases': a name is given twice, in different spelling; case does not count")
    for name, other in names.items():
        if other in names:
            where = _where(["emotions", "aliases"], emotions["aliases"], files)
            problem = "itself" if other == name else f"{shown(other)}, which is an alias itself"
            raise UserError(f"{where}'emotions.aliases': {shown(name)} counts as {problem}; name the emotion that is kept")


def poolings(given: Any) -> list[str]:
    """The `pooling:` of a checked configuration as a list: mean, last, from_token:N, each once."""
    listed = given if isinstance(given, list) else [given]
    names = [f"from_token:{item['from_token']}" if isinstance(item, dict) else item.replace(" ", "") for item in listed]
    return list(dict.fromkeys(names))


def template(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """The `template:` of a checked configuration in one spelling: {role, system}, or None for raw text."""
    return None if given is None else {"role": given["role"], "system": given.get("system")}


def resolve_layers(wanted: list[int | float] | str, n_layers: int) -> list[int]:
    """Sorted 0-based decoder layers. An int is an index; a float d in [0, 1] the layer at depth d: floor(d * n_layers); `all`:
    all.

    Depth 1.0 is the last layer. Raises UserError for a layer that the model does not have.
    """
    if isinstance(wanted, str):
        return list(range(n_layers))
    layers = set()
    for given in wanted:
        if isinstance(given, float) and not 0 <= given <= 1:
            raise UserError(f"target_layers: {given} is neither an index (a whole number) nor a depth from 0 to 1")
        layer = min(int(round(given * n_layers, 6)), n_layers - 1) if isinstance(given, float) else given
        if layer >= n_layers:
            raise UserError(f"target_layers: layer {layer} is beyond the model, which has layers 0 to {n_layers - 1}")
        layers.add(layer)
    return sorted(layers)
