"""A project folder in which the real Snakefile runs, and what a run did, read from what it printed."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from starts import Starter
from tiny import REPOSITORY

JOB = re.compile(r"^Job \d+: (.*)$", re.MULTILINE)
FORWARDED = re.compile(r"^  forwarded (\d+) of (\d+) unique texts, (\d+) tokens$", re.MULTILINE)


@functools.cache
def starter() -> Starter:
    return Starter()


@dataclass
class Run:
    """status: exit status; text: stdout and stderr; jobs: how often each job (by its message) ran, or would in a dry run."""

    status: int
    text: str

    @property
    def jobs(self) -> Counter[str]:
        """A job that makes several emotions counts once for each: "Vectors of calm, joy" as two."""
        found: Counter[str] = Counter()
        for job in JOB.findall(self.text):
            what, of, names = job.partition(" of ")
            batch = of and what in ("Examples", "Vectors", "Heads", "Figures", "Comparison")
            found.update([f"{what} of {name}" for name in names.split(", ")] if batch else [job])
        return found

    @property
    def forwarded(self) -> int:
        """Texts that went through the model."""
        return sum(int(done) for done, _, _ in FORWARDED.findall(self.text))

    def ok(self) -> Run:
        assert self.status == 0, self.text[-6000:]
        return self


class Project:
    """A folder with a config.yaml (only what differs from the defaults) and a graph.jsonl. forks: whether its runs may share
    imports (starts.py).
    """

    forks = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def make(cls, folder: Path, nodes: list[dict[str, Any]], **config: Any) -> Self:
        project = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        project.configure(**{"graph": "graph.jsonl", **config})
        project.write_nodes(nodes)
        return project

    def copy(self, folder: Path) -> Self:
        shutil.copytree(self.folder, folder, symlinks=True)
        return type(self)(folder)

    def configure(self, **changes: Any) -> None:
        path = self.folder / "config.yaml"
        config = yaml.safe_load(path.read_text()) if path.exists() else {}
        path.write_text(yaml.safe_dump({**config, **changes}, allow_unicode=True))

    def write_nodes(self, nodes: list[dict[str, Any]]) -> None:
        lines = (json.dumps(node, ensure_ascii=False) + "\n" for node in nodes)
        (self.folder / "graph.jsonl").write_text("".join(lines), encoding="utf-8")

    def nodes(self) -> list[dict[str, Any]]:
        lines = (self.folder / "graph.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def edit(self, key: str, change: Callable[[str], str]) -> None:
        """Change the text (tag line included) of one node."""
        self.write_nodes([{**n, "text": change(n["text"])} if n["key"] == key else n for n in self.nodes()])

    def command(self, *arguments: str, snakefile: Path | str = REPOSITORY / "Snakefile") -> list[str]:
        where = ["--snakefile", str(snakefile), "--directory", str(self.folder)]
        return [sys.executable, "-m", "snakemake", *where, "--cores", "2", *arguments]

    def run(self, *arguments: str, snakefile: Path | str = REPOSITORY / "Snakefile", **environment: str) -> Run:
        command, environ = self.command(*arguments, snakefile=snakefile), {**os.environ, "NO_COLOR": "1", **environment}
        if self.forks and starter().fits(environment):
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "output"
                status = starter().run(command[3:], self.folder, environ, output)
                return Run(status, output.read_text())
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Run(done.returncode, done.stdout)

    def build(self, *arguments: str) -> Run:
        """Dry run, then run; both must succeed and agree on the jobs."""
        foreseen = self.run("--dry-run", *arguments).ok()
        done = self.run(*arguments).ok()
        assert done.jobs == foreseen.jobs
        return done

    def path(self, pattern: str) -> Path:
        """The one file of the project that fits the glob pattern."""
        found = sorted(self.folder.glob(pattern))
        assert len(found) == 1, found
        return found[0]

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "results/readout/manifest.json").read_text())

    def bytes_of(self, pattern: str) -> dict[str, bytes]:
        """{path: bytes} of all files that fit the pattern."""
        files = [path for path in sorted(self.folder.glob(pattern)) if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}
