from __future__ import annotations

from pathlib import Path

import pytest

import tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama folder: 4 layers, hidden 48, 4 heads of 16; float32."""
    return tiny.make_model(tmp_path_factory.mktemp("models") / "llama")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: those that run the Snakefile later, those with the embedded model last."""
    items.sort(
        key=lambda item: (item.get_closest_marker("embedded") is not None, item.get_closest_marker("end_to_end") is not None)
    )
