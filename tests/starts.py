"""Starts of Snakemake that share the imports: a process that has imported it, and forks at each request.

Most of a short run is Python importing Snakemake and what it needs, always the same. The child that is forked goes on as
`python -m snakemake` does: the same arguments, folder, environment, umask, handlers at exit. It imports what amygdala adds.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import runpy
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

IMPORTED = ("snakemake.cli", "snakemake.profiles", "snakemake.storage", "snakemake.report.html_reporter")


class Starter:
    """The process that forks, as the tests see it. Runs may be asked for by several threads at once."""

    def __init__(self) -> None:
        self.surroundings = surroundings()
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.numbers, self.asking = itertools.count(), threading.Lock()
        self.waiting: dict[int, tuple[threading.Event, list[int]]] = {}
        threading.Thread(target=self._listen, daemon=True).start()
        atexit.register(self.stop)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def fits(self, environment: dict[str, str]) -> bool:
        """Whether a run in this environment would import the same: it is that in which the process was started."""
        return not environment and surroundings() == self.surroundings

    def run(self, arguments: list[str], folder: Path, environment: dict[str, str], output: Path) -> int:
        """The exit status of `python -m snakemake` with these arguments; what it prints goes into the file `output`."""
        number, done = next(self.numbers), threading.Event()
        status: list[int] = []
        self.waiting[number] = (done, status)
        mask = os.umask(0)
        os.umask(mask)
        request = {"number": number, "arguments": arguments, "folder": str(folder), "environment": environment}
        with self.asking:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({**request, "umask": mask, "output": str(output)}) + "\n")
            self.process.stdin.flush()
        done.wait()
        return status[0]

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            number, status = json.loads(line)
            done, into = self.waiting.pop(number)
            into.append(status)
            done.set()
        for done, into in self.waiting.values():  # the process is gone, and nobody need wait for it
            into.append(-1)
            done.set()


def surroundings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def serve() -> dict[str, Any] | None:
    """Fork at each line on stdin and tell each child's end on stdout. Returns the request in a child, None when stdin ends."""
    running: dict[int, int] = {}
    lines = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02 if running else None)
        if ready:
            read = os.read(0, 1 << 16)
            if not read:
                return None
            *whole, lines = (lines + read).split(b"\n")
            for line in whole:
                request: dict[str, Any] = json.loads(line)
                child = os.fork()
                if not child:
                    return request
                running[child] = request["number"]
        with contextlib.suppress(ChildProcessError):
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                told = [running.pop(ended[0]), os.waitstatus_to_exitcode(ended[1])]
                os.write(1, json.dumps(told).encode() + b"\n")


def become(request: dict[str, Any]) -> None:
    """The child: `python -m snakemake`, and then the end of the process in the usual way."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, opened in enumerate((nothing, output, output)):
        os.dup2(opened, number)
    os.close(nothing)
    os.close(output)
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = request["folder"]
    sys.argv = ["snakemake", *request["arguments"]]
    runpy.run_module("snakemake", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for module in IMPORTED:
        __import__(module)
    asked = None
    with contextlib.suppress(KeyboardInterrupt):  # which the tests report
        asked = serve()
    if asked is not None:
        become(asked)
