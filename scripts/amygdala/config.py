"""The configuration: checked against its schema, with messages that name file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from amygdala.errors import UserError, shown
from amygdala.graph import emotion_name


def _where(name: str, files: Iterable[str | Path]) -> str:
    """`file:line: ` of the last configuration file that sets `name`, else `config: ` (the command line)."""
    for path in reversed([Path(file) for file in files]):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            if re.match(rf"\s*['\"]?{re.escape(name)}['\"]?\s*:", line):
                return f"{path}:{number}: "
    return "config: "


def _unknown(error: ValidationError, files: Iterable[str | Path]) -> str:
    schema: Any = error.schema
    allowed = sorted(schema["properties"])
    instance: Any = error.instance
    name = next(key for key in instance if key not in allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    inside = f" in '{error.path[-1]}'" if error.path else ""
    return f"{_where(str(name), files)}unknown key {shown(name)}{inside}.{hint} Allowed: {', '.join(allowed)}"


def _wrong(error: ValidationError, files: Iterable[str | Path]) -> str:
    name = ".".join(str(part) for part in error.absolute_path)
    top = str(error.absolute_path[0]) if error.absolute_path else ""
    expected = error.schema.get("description") if isinstance(error.schema, dict) else None
    expected = f"; expected {expected}" if expected else ""
    problem = f"{shown(error.instance)} is not one of the allowed values" if error.validator == "oneOf" else error.message
    return f"{_where(top, files)}'{name}': {problem}{expected}"


def check(config: dict[str, Any], schema: str | Path, files: Iterable[str | Path] = ()) -> None:
    """Raise UserError for the first thing wrong with `config`; `files` are the configuration files, for the message."""
    validator = Draft202012Validator(yaml.safe_load(Path(schema).read_text(encoding="utf-8")))
    files = list(files)
    for error in sorted(validator.iter_errors(config), key=lambda e: (len(e.absolute_path), str(e.absolute_path))):
        raise UserError(_unknown(error, files) if error.validator == "additionalProperties" else _wrong(error, files))
    for name in ("curated", "exclude"):
        for raw in config["emotions"][name]:
            try:
                emotion_name(raw)
            except ValueError as error:
                raise UserError(f"{_where(name, files)}'emotions.{name}': {error}") from None


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
