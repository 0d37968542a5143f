"""docs/quality.md: every block is a configuration, every verdict is the code's, its numbers are the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from amygdala import triage
from amygdala.methods import METHODS
from builds import changed, make_build, make_config

PAGE = (tiny.REPOSITORY / "docs/quality.md").read_text(encoding="utf-8")
BLOCKS = {
    text.splitlines()[0].removeprefix("# "): yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
}
VERDICTS = {
    name.strip(): found for name, found in re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", PAGE, re.M) if name != "verdict"
}


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "reviews.csv").write_text("body,feeling\nA text about nothing in particular.,joy\n")
    return make_config(tmp_path, tiny_model, monkeypatch)


@pytest.mark.parametrize("title", BLOCKS)
def test_each_block_is_a_build(config: dict[str, Any], title: str) -> None:
    make_build(config, **BLOCKS[title])


def test_no_block_is_forgotten() -> None:
    assert len(BLOCKS) == PAGE.count("```yaml") == 5


def test_what_the_blocks_move(config: dict[str, Any]) -> None:
    before = make_build(config)
    moved = {title: changed(before, make_build(config, **block)) for title, block in BLOCKS.items() if "auto" not in str(block)}
    vectors = {"vectors", "heads", "figures", "quality", "release"}
    assert moved == {
        "how examples become a vector: the default": set(),
        "take out what neutral texts vary by most, before any method": {"index", *vectors},
        "the top 5 heads of joy, against 10 sets of as many random ones, read out at layer 18": set(),
        "sets that have nothing to do with the graph": set(),
    }


def test_methods_of_the_page_are_those_of_the_code() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) == set(METHODS)


def test_verdicts_of_the_page_are_those_of_the_code() -> None:
    source = (tiny.REPOSITORY / "scripts/amygdala/triage.py").read_text(encoding="utf-8")
    named = {re.split(r" \(| \{", name)[0] for name in re.findall(r'Flag\(\s*f?"([^"]+)"', source)}
    assert named == {re.split(r" \(| length", name)[0] for name in VERDICTS}


def test_thresholds_of_the_page_are_those_of_the_code() -> None:
    def told(verdict: str) -> list[float]:
        text = next(found for name, found in VERDICTS.items() if name.startswith(verdict))
        return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]

    assert told("too few") == [triage.FEW_TRAIN, triage.FEW_HELD_OUT]
    assert told("label") == [100 * triage.LABEL_WORD, 100 * triage.LABEL_WORD_OTHERS]
    assert told("one scenario") == [100 * triage.ONE_SCENE]
    assert told("confounded") == [triage.TELLS_LABEL, triage.LEANS]
    assert triage.SAME_TEXTS == 4 / 5
    assert told("redundant") == [100 * triage.REDUNDANT, triage.SAME_DIRECTION]
    assert told("one-neuron") == [triage.ONE_NEURON]
    assert told("one text") == [triage.ONE_TEXT]
    assert told("unstable") == [triage.UNSTABLE]
    assert told("fragmented") == [100 * triage.FRAGMENTED, 100 * triage.LESS_THAN_OTHERS]
    assert told("rows alike") == [100 * triage.ALIKE]
    assert told("unspecific") == [100 * triage.REACHED]
