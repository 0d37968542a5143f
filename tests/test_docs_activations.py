"""docs/activations.md: every block of configuration gives a build, keys move as the page says, its numbers are the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import activations
import tiny
from amygdala import residual
from builds import ALL_ROWS, changed, make_build, make_config

PAGE = (tiny.REPOSITORY / "docs/activations.md").read_text(encoding="utf-8")
BLOCKS = {
    text.splitlines()[0].removeprefix("# "): yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
}
DEFAULT = "the mean of the content tokens; the default"
RUN_ONLY = {"a model larger than one GPU: its layers are spread over all of them"}
OTHER_ROWS = {
    "the mean from the 50th content token on",
    "each text as a user's message, in the chat format of the model",
}


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return make_config(tmp_path, tiny_model, monkeypatch)


@pytest.mark.parametrize("title", BLOCKS)
def test_each_block_is_a_build(config: dict[str, Any], title: str) -> None:
    before, after = make_build(config), make_build(config, **BLOCKS[title])
    moved = changed(before, after)
    if title == DEFAULT or title in RUN_ONLY:
        assert moved == set()
    elif title in OTHER_ROWS:
        assert moved == ALL_ROWS
    else:
        assert moved


def test_there_are_eight_blocks_and_none_is_forgotten() -> None:
    assert len(BLOCKS) == PAGE.count("```yaml") == 8
    assert DEFAULT in BLOCKS and set(BLOCKS) >= RUN_ONLY | OTHER_ROWS


def test_a_list_of_poolings_makes_vectors_from_its_first(config: dict[str, Any]) -> None:
    block = BLOCKS["vectors from the mean; the last token's rows are captured in the same pass, for comparing"]
    before, after = make_build(config), make_build(config, **block)
    assert changed(before, after) == {"index", "release"}
    assert after.poolings == ["mean", "last", "from_token:50"]
    swapped = make_build(config, pooling=["last", "mean", "from_token:50"])
    assert set(swapped.space_keys) == set(after.space_keys)


def test_number_format_is_in_the_keys_and_the_rest_is_not(config: dict[str, Any]) -> None:
    block = dict(BLOCKS["settings that say how and where to run"])
    before = make_build(config)
    assert "space" in changed(before, make_build(config, dtype=block.pop("dtype")))
    assert changed(before, make_build(config, **block)) == set()


def test_shards_leave_rows_and_vectors_as_they_are(config: dict[str, Any]) -> None:
    block = BLOCKS["the texts are split over two jobs by digest; each loads the model once"]
    assert changed(make_build(config), make_build(config, **block)) == {"index"}


def test_all_layers(config: dict[str, Any]) -> None:
    assert make_build(config, **BLOCKS["every layer, in the same pass"]).layers == [0, 1, 2, 3]


def test_numbers_of_the_page() -> None:
    said = re.search(r"flushed every (\d+) texts, (\d+) MB or two minutes", PAGE)
    assert said and int(said[1]) == activations.FLUSH_ROWS and int(said[2]) << 20 == activations.FLUSH_BYTES
    assert activations.FLUSH_S == 120
    batch = re.search(r"`auto`: (\d+) on a CPU, (\d+) on a GPU", PAGE)
    assert batch and (int(batch[1]), int(batch[2])) == (residual.BATCH_TOKENS["cpu"], residual.BATCH_TOKENS["cuda"])


def test_benchmarks_named_exist() -> None:
    for name in re.findall(r"`(?:python benchmarks/)?(\w+\.py)`", PAGE):
        assert (tiny.REPOSITORY / "benchmarks" / name).exists(), name
