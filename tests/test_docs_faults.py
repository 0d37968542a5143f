"""docs/faults.md: each row of its table has a test, each fault's test a row."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import test_faults
from amygdala.files import whole
from tiny import REPOSITORY

PAGE = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")


def test_each_row_names_its_tests_and_each_test_has_a_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    named = [set(re.findall(r"`(test_\w+)`", row.split("|")[-2])) for row in rows]
    assert len(rows) == 9 and all(named)
    assert set.union(*named) == {name for name in vars(test_faults) if name.startswith("test_")}


def test_the_command_finds_old_temporary_files_and_nothing_else(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with whole(store / "examples" / "joy.json") as temporary:
        temporary.write_text("{}")
        names = [temporary.name, f".{'0' * 16}.x.tmp/model/config.json"]
    old = [store / "examples" / names[0], store / "models" / names[1]]
    for path in [*old, store / "examples" / "calm.json", store / "models" / ".new.json.1-00000000.tmp"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in [old[0], old[1].parent.parent, store / "examples" / "calm.json"]:
        os.utime(path, (0, 0))
    [command] = re.findall(r"^find .*", PAGE, re.MULTILINE)
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    left = sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    assert left == ["examples/calm.json", "examples/joy.json", "models/.new.json.1-00000000.tmp"]
