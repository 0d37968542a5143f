"""The configuration: checked against its schema, with messages that name file, line and key."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from amygdala.errors import UserError, shown
from amygdala.graph import emotion_name


def _node_at(node: yaml.Node | None, path: Sequence[str | int]) -> tuple[yaml.Node, yaml.Node] | None:
    """The (key, value) nodes at `path` of a composed YAML document, None where it has no such key."""
    found: tuple[yaml.Node, yaml.Node] | None = None
    for part in path:
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


def _unknown(error: ValidationError, files: Iterable[str | Path]) -> str:
    schema: Any = error.schema
    allowed = sorted(schema["properties"])
    instance: Any = error.instance
    name = next(key for key in instance if key not in allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    inside = f" in '{error.path[-1]}'" if error.path else ""
    where = _where([*error.absolute_path, name], instance[name], files)
    return f"{where}unknown key {shown(name)}{inside}.{hint} Allowed: {', '.join(allowed)}"


def _wrong(error: ValidationError, files: Iterable[str | Path]) -> str:
    name = ".".join(str(part) for part in error.absolute_path)
    where = _where(list(error.absolute_path), error.instance, files)
    if error.validator == "required":
        schema: Any = error.schema
        instance: Any = error.instance
        missing = next(key for key in schema["required"] if key not in instance)
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


def _number(value: Any, rule: dict[str, Any]) -> Any:
    if isinstance(value, str) and rule.get("type") in ("integer", "number"):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


def with_numbers(config: dict[str, Any], schema: str | Path) -> dict[str, Any]:
    """`config` with numbers inside lists and mappings as numbers: `--config target_layers=[12,0.6]` gives them as strings."""
    rules = yaml.safe_load(Path(schema).read_text(encoding="utf-8"))["properties"]
    result = dict(config)
    for name, value in config.items():
        rule = rules.get(name, {})
        if isinstance(value, list):
            result[name] = [_number(item, rule.get("items", {})) for item in value]
        elif isinstance(value, dict):
            inner = rule.get("properties", {})
            result[name] = {key: _number(item, inner.get(key, {})) for key, item in value.items()}
    return result


def check(config: dict[str, Any], schema: str | Path, files: Iterable[str | Path] = ()) -> None:
    """Raise UserError for the first thing wrong with `config`; `files` are the configuration files, for the message."""
    validator = Validator(yaml.safe_load(Path(schema).read_text(encoding="utf-8")))
    files = list(files)
    for error in sorted(validator.iter_errors(config), key=lambda e: (len(e.absolute_path), str(e.absolute_path))):
        raise UserError(_unknown(error, files) if error.validator == "additionalProperties" else _wrong(error, files))
    for name in ("curated", "exclude"):
        for raw in config["emotions"][name]:
            try:
                emotion_name(raw)
            except ValueError as error:
                where = _where(["emotions", name], config["emotions"][name], files)
                raise UserError(f"{where}'emotions.{name}': {error}") from None


def resolve_layers(wanted: list[int | float], n_layers: int) -> list[int]:
    """Sorted 0-based decoder layers. An int is an index; a float d in [0, 1] the layer at depth d: floor(d * n_layers).

    Depth 1.0 is the last layer. Raises UserError for a layer that the model does not have.
    """
    layers = set()
    for given in wanted:
        if isinstance(given, float) and not 0 <= given <= 1:
            raise UserError(f"target_layers: {given} is neither an index (a whole number) nor a depth from 0 to 1")
        layer = min(int(round(given * n_layers, 6)), n_layers - 1) if isinstance(given, float) else given
        if layer >= n_layers:
            raise UserError(f"target_layers: layer {layer} is beyond the model, which has layers 0 to {n_layers - 1}")
        layers.add(layer)
    return sorted(layers)
