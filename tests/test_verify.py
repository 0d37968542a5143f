"""What `verify` says and remembers, without a project."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amygdala.inspection import DAMAGED, MISSING, UNREADABLE, Finding
from amygdala.inventory import REPORT, to_repair
from verify import advice


def told(*found: tuple[str, Path]) -> str:
    inspection: Any = SimpleNamespace(found=[Finding(what, str(path), "heads") for what, path in found])
    return advice(inspection)


def test_a_run_is_not_said_to_mend_what_stays_in_its_place(tmp_path: Path) -> None:
    gone, there = tmp_path / "gone.json", tmp_path / "there.json"
    there.write_text("x")
    assert told((DAMAGED, gone), (MISSING, gone)) == "Run snakemake again: it makes them anew"
    for what in (UNREADABLE, DAMAGED):
        assert told((what, there), (DAMAGED, gone)).startswith("1 of them could not be read or set aside, and stay as they are")


@pytest.mark.parametrize("noted", [[1, None, ["x"]], "x", {"repair": 1}, None])
def test_a_strange_note_of_repairs_stops_no_run(tmp_path: Path, noted: Any) -> None:
    (tmp_path / REPORT).write_text(json.dumps({"repair": noted}))
    build: Any = SimpleNamespace(results=str(tmp_path), layers=[])
    assert to_repair(build) == []
