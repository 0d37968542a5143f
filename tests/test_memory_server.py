"""The reference knowledge-graph server (npm), over stdio and over HTTP behind a gateway: what changes there is named here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

import tiny
from amygdala.sources import read_live
from project import Project, Run

pytestmark = pytest.mark.end_to_end
PROGRAMS = tiny.REPOSITORY / "tests/servers/node_modules/.bin"
NODES = 500


def program(name: str) -> str:
    path = PROGRAMS / name
    if not path.exists():
        pytest.skip(f"{name} is not installed: make test installs it where npm is")
    return str(path)


@dataclass
class Server:
    """A running memory server. source: how amygdala reaches it; target: how a test's own client does."""

    source: dict[str, Any]
    target: Callable[[], Any]
    environment: dict[str, str]

    def call(self, *calls: tuple[str, dict[str, Any]]) -> None:
        """Call the server's own tools in one session."""

        async def session() -> None:
            async with Client(self.target()) as client:
                for tool, arguments in calls:
                    result = await client.call_tool(tool, arguments)
                    assert not result.is_error, result.content

        anyio.run(session)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def gateway(port: int, environment: dict[str, str], log: Path) -> Iterator[None]:
    """supergateway, which puts the stdio server behind streamable HTTP, until the block ends."""
    command = [program("supergateway"), "--stdio", program("mcp-server-memory"), "--outputTransport", "streamableHttp"]
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, "--stateful", "--port", str(port)],
            env={**os.environ, **environment},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            for _ in range(300):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    environment = {"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")}
    common = {"source": "mcp", "preset": "knowledge-graph", "deadline_s": 60}
    command = [program("mcp-server-memory")]
    if request.param == "stdio":
        parameters = StdioServerParameters(command=command[0], env=environment)
        source = {**common, "command": command, "environment": list(environment)}
        yield Server(source, lambda: stdio_client(parameters), environment)
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    with gateway(port, environment, tmp_path / "gateway.log"):
        yield Server({**common, "memory_mcp_url": url}, lambda: url, environment)


def entities() -> list[dict[str, Any]]:
    """500 entities out of the sample graph: its nodes, then copies with a sentence more; the tag line comes last."""
    nodes = tiny.sample_nodes()
    more = [{"key": f"{node['key']}/again", "text": f"Told again, on another evening. {node['text']}"} for node in nodes]
    return [
        {"name": node["key"], "entityType": "memory", "observations": node["text"].splitlines()}
        for node in (nodes + more)[:NODES]
    ]


def build(project: Project, server: Server, *arguments: str) -> Run:
    return project.run(*arguments, **server.environment).ok()


def said_by(run: Run) -> list[str]:
    """What the job told, without its indent."""
    return [line[2:] for line in run.text.splitlines() if line.startswith("  ")]


def test_five_changes_on_the_server_are_named(server: Server, tmp_path: Path, tiny_model: Path) -> None:
    filled = entities()
    # the gateway takes no more than 100 kB at once
    server.call(*(("create_entities", {"entities": filled[start : start + 50]}) for start in range(0, NODES, 50)))
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    project.configure(
        graph=[server.source],
        model=str(tiny_model),
        emotions={"select": "curated", "curated": ["calm", "joy"]},
        max_examples_per_emotion=30,
        target_layers=[1],
    )
    assert "Fetch it with: snakemake --cores 1 refresh" in project.run("--dry-run", **server.environment).text
    assert f"mcp: {NODES} nodes; {NODES} added, 0 changed, 0 removed" in build(project, server, "refresh").text
    fetched = {raw.key: raw.text for raw in read_live(project.folder / "snapshot.jsonl")["mcp"]}
    assert fetched == {entity["name"]: "\n".join(entity["observations"]) for entity in filled}
    assert build(project, server, "examples").jobs["Examples of joy"] == 1

    text, tag, other, gone = (filled[place] for place in (3, 50, 100, 150))
    assert ":" in tag["observations"][-1]
    server.call(
        ("delete_observations", {"deletions": [{"entityName": text["name"], "observations": text["observations"][:1]}]}),
        ("delete_observations", {"deletions": [{"entityName": tag["name"], "observations": tag["observations"][-1:]}]}),
        ("add_observations", {"observations": [{"entityName": tag["name"], "contents": ["joy:10 calm:10"]}]}),
        ("add_observations", {"observations": [{"entityName": other["name"], "contents": ["joy:10"]}]}),
        ("delete_entities", {"entityNames": [gone["name"]]}),
        (
            "create_entities",
            {
                "entities": [
                    {
                        "name": "journal/brand-new",
                        "entityType": "memory",
                        "observations": ["A new morning, and the kettle sang before the birds did.", "joy:9"],
                    }
                ]
            },
        ),
    )
    before = (project.folder / "snapshot.jsonl").read_bytes()
    build(project, server, "--dry-run")
    assert (project.folder / "snapshot.jsonl").read_bytes() == before, "only refresh fetches"
    assert f"mcp: {NODES} nodes; 1 added, 3 changed, 1 removed" in build(project, server, "refresh").text

    told = said_by(build(project, server, "changes"))
    assert any(line.startswith("no release yet") for line in told)
    named = {
        line.split("  ")[1][:1] + line.split("'")[1]
        for line in told
        if line.startswith("  ") and line[2:3] in "+~-" and "'" in line
    }
    expected = {"+journal/brand-new", f"-{gone['name']}", *(f"~{entity['name']}" for entity in (text, tag, other))}
    assert named == expected

    build(project, server)
    assert "  nodes: 0 added, 0 changed, 0 removed (now 500, then 500)" in build(project, server, "changes").text
    assert project.manifest()["snapshot"]["sources"] == {"mcp": NODES}
    server.call(("delete_entities", {"entityNames": ["journal/brand-new"]}))
    build(project, server, "refresh")
    report = build(project, server, "changes")
    assert "- 'journal/brand-new'" in report.text
    changes = json.loads((project.folder / "results/changes.json").read_text())
    assert [(change["key"], change["kind"]) for change in changes["nodes"]] == [("journal/brand-new", "removed")]
    rebuilt = {
        job.removeprefix("Vectors of ") for job in build(project, server, "vectors").jobs if job.startswith("Vectors of ")
    }
    assert rebuilt == set(changes["rebuild"])
