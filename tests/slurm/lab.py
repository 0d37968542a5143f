"""A real SLURM cluster of two nodes on this machine, each with a pretend GPU, and projects whose jobs run on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project import Project, Run
from tiny import REPOSITORY

HERE = Path(__file__).parent
SUBMITTED = re.compile(r"has been submitted with SLURM jobid (\d+)")
RUN_ID = re.compile(r"^SLURM run ID: (\S+)$", re.MULTILINE)
CANNOT = 3  # exit status of start-slurm.sh where SLURM cannot be had
CLUSTER: dict[str, Any] = {
    "account": "root",
    "gpu": {"count": 1, "cpus": 1, "mem_mb": 1500, "runtime": 5},
    "light": {"cpus": 2, "mem_mb": 2000, "runtime": 5},
}


class NoSlurmError(Exception):
    """Why SLURM cannot be had on this machine."""


def until(true: Callable[[], Any], seconds: float = 120, what: str = "") -> Any:
    """The first true answer within so many seconds."""
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end, what or "it did not come about in time"
        time.sleep(0.2)
    return answer


def out(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


@dataclass(frozen=True)
class Job:
    """A job as the accounting has it. times in seconds since 1970, end 0 while it runs."""

    id: str
    state: str
    node: str
    memory: str
    minutes: int
    tres: str
    start: float
    end: float
    partition: str
    qos: str
    account: str
    comment: str


class Lab:
    """The cluster. folder: of its configuration, logs and state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        done = subprocess.run([HERE / "start-slurm.sh", folder], capture_output=True, text=True, check=False)
        if done.returncode == CANNOT:
            raise NoSlurmError(done.stderr.strip().splitlines()[-1])
        if done.returncode:
            self.stop()
        assert done.returncode == 0, done.stderr
        os.environ["SLURM_CONF"] = done.stdout.strip()

    def stop(self) -> None:
        subprocess.run([HERE / "stop-slurm.sh", self.folder], check=True, stdout=subprocess.DEVNULL)
        os.environ.pop("SLURM_CONF", None)

    def jobs(self, run: str) -> list[Job]:
        """The jobs of a run, by what it printed, in the order of submission."""
        found = RUN_ID.search(run)
        if found is None:
            return []
        fields = "JobIDRaw,State,NodeList,ReqMem,TimelimitRaw,ReqTRES,Start,End,Partition,QOS,Account,Comment"
        told = out("sacct", "-X", "-n", "-P", "--name", found[1], f"--format={fields}", "--starttime", "now-1day")
        return sorted((self._job(line.split("|")) for line in told.splitlines()), key=lambda job: int(job.id))

    def _job(self, row: list[str]) -> Job:
        def seconds(text: str) -> float:
            return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) if text[:1].isdigit() else 0.0

        state = row[1].split()[0] if row[1] else ""
        return Job(row[0], state, row[2], row[3], int(row[4] or 0), row[5], seconds(row[6]), seconds(row[7]), *row[8:12])

    def running(self) -> dict[str, str]:
        """{job id: state} of what is not over."""
        return dict(line.split() for line in out("squeue", "-h", "-o", "%i %T").splitlines())

    def kill_controller(self) -> None:
        os.kill(int((self.folder / "run/slurmctld.pid").read_text()), signal.SIGKILL)

    def start_again(self) -> None:
        """What does not run."""
        subprocess.run([HERE / "start-slurm.sh", self.folder], check=True, capture_output=True)


class ClusterProject(Project):
    """A project whose jobs go to the lab."""

    forks = False

    def command(self, *arguments: str, snakefile: Path | str = REPOSITORY / "Snakefile") -> list[str]:
        where = ["--snakefile", str(snakefile), "--directory", str(self.folder)]
        profile = ["--profile", str(REPOSITORY / "profiles/slurm"), "--slurm-init-seconds-before-status-checks", "1"]
        return [sys.executable, "-m", "snakemake", *where, *profile, *arguments]

    @contextmanager
    def started(self, *arguments: str, **environment: str) -> Iterator[Started]:
        """A run that goes on while the test does something to it; killed at the end if it still runs."""
        log = self.folder / "started.log"
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env={**os.environ, "NO_COLOR": "1", **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Started(process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@dataclass
class Started:
    """A run in the background."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def prints(self, pattern: str, seconds: float = 180) -> re.Match[str]:
        """The first match in what it prints, waited for."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.text)
            assert found or self.process.poll() is None, self.text[-6000:]
            return found

        found: re.Match[str] = until(look, seconds, f"no {pattern!r} in\n{self.text[-3000:]}")
        return found

    def ends(self, seconds: float = 240) -> Run:
        """Its end, waited for."""
        return Run(self.process.wait(seconds), self.text)


def submissions(run: Run) -> list[str]:
    """Ids of the jobs that a run submitted."""
    return SUBMITTED.findall(run.text)
