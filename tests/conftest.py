from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Tensors of tests are not worth a second thread, which waits where the machine has other work. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Captures take as many threads as the run has cores: where tests run side by side, they must not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

import tiny

if TYPE_CHECKING:
    from lab import Lab

    from captures import Run, Watch
    from segmented import Store


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama folder: 4 layers, hidden 48, 4 heads of 16; float32."""
    return tiny.make_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The one of `tiny_model`."""
    return tiny.make_tokenizer()


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Run:
    from captures import Run  # which imports torch: tests that run nothing need not wait for it

    return Run(tmp_path, tiny_model)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    from captures import Watch

    return Watch(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A small store of segments whose every row is known."""
    from segmented import make_store

    return make_store(tmp_path)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A SLURM cluster for all tests that ask for one. (Its sockets need a short path.)"""
    from lab import Lab, NoSlurmError

    folder = Path(tempfile.mkdtemp(prefix="slurm."))
    try:
        cluster = Lab(folder)
    except NoSlurmError as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no SLURM here: {error}")
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


# Files that take longest by far, the longest first: where files are shared out, none of them is left for the end. Those with a
# cluster wait most of the time, beside others that work.
LONGEST = (
    *("test_cluster_build", "test_cluster_faults"),
    *("test_workflow", "test_faults", "test_measure_workflow", "test_embedded", "test_capture_faults", "test_damage"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, then those that run the Snakefile. A file's tests go to one process (`--dist loadgroup`), and all that
    want the cluster: it is one.
    """
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.get_closest_marker("end_to_end") is not None, places.get(item.path.stem, len(LONGEST))))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("slurm" if item.get_closest_marker("slurm") else item.path.stem))
