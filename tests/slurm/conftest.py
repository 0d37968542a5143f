from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, NoSlurmError


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A cluster for all tests that ask for one. (Its sockets need a short path.)"""
    folder = Path(tempfile.mkdtemp(prefix="slurm."))
    try:
        lab = Lab(folder)
    except NoSlurmError as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no SLURM here: {error}")
    yield lab
    lab.stop()
    shutil.rmtree(folder, ignore_errors=True)
