"""docs/sources.md: every block of configuration finds the sample graph's emotions in a source of that form; commands plan."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import uvicorn
import yaml
from mcp.server.mcpserver import MCPServer

import tiny
from amygdala.tags import split_tags
from project import Project
from test_memory_server import PROGRAMS, free_port

pytestmark = pytest.mark.end_to_end
PAGE = (tiny.REPOSITORY / "docs/sources.md").read_text(encoding="utf-8")
BLOCKS = {block.splitlines()[0].removeprefix("# "): block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)}
NODES = tiny.sample_nodes()
SPLIT = [(node["key"], *split_tags(node["text"])) for node in NODES]
TOKEN = "open-sesame"


def positives(emotion: str) -> int:
    return sum(scores.get(emotion, 0) >= 8 for _, _, scores in SPLIT)


def test_every_block_has_a_test() -> None:
    assert len(BLOCKS) == PAGE.count("```yaml") == 12
    assert sorted(BLOCKS) == sorted([*LIVE, *LOCAL, "emotions"])


@contextlib.contextmanager
def mcp_server(port: int) -> Iterator[None]:
    """A real MCP server (the SDK's own) with read_graph, list_nodes in pages of 100, and render_node."""
    server = MCPServer("journal")

    @server.tool()
    def read_graph() -> dict[str, Any]:
        entities = [{"name": n["key"], "entityType": "memory", "observations": n["text"].splitlines()} for n in NODES]
        return {"entities": entities, "relations": []}

    @server.tool()
    def list_nodes(cursor: str = "0") -> dict[str, Any]:
        start = int(cursor)
        more = {"next_cursor": str(start + 100)} if start + 100 < len(NODES) else {}
        return {"nodes": [{"key": node["key"]} for node in NODES[start : start + 100]], **more}

    @server.tool()
    def render_node(key: str) -> str:
        return next(node["text"] for node in NODES if node["key"] == key)

    web = uvicorn.Server(uvicorn.Config(server.streamable_http_app(), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    try:
        while not web.started:
            assert thread.is_alive()
        yield
    finally:
        web.should_exit = True
        thread.join(20)


class Listing(BaseHTTPRequestHandler):
    """The JSON endpoint of the page: a hundred nodes at a time, the cursor in `after`, a token needed."""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        allowed = self.headers["Authorization"] == f"Bearer {TOKEN}" and asked.path == "/api/nodes"
        start, limit = int(query.get("after", ["0"])[0]), int(query["limit"][0])
        items = [{"id": n["key"], "body": n["text"], "created": n["created"]} for n in NODES[start : start + limit]]
        following = str(start + limit) if start + limit < len(NODES) else None
        body = json.dumps({"data": {"nodes": items, "next": following, "total": len(NODES)}}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@contextlib.contextmanager
def listing(port: int) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", port), Listing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(20)


def with_memory_file(block: str, folder: Path) -> str:
    """The stdio block with the installed program in place of npx, which would fetch it."""
    if not (PROGRAMS / "mcp-server-memory").exists():
        pytest.skip("mcp-server-memory is not installed: make test installs it where npm is")
    write_memory(folder)
    command = '[npx, -y, "@modelcontextprotocol/server-memory"]'
    assert command in block
    return block.replace(command, f"[{PROGRAMS / 'mcp-server-memory'}]")


def write_memory(folder: Path) -> None:
    lines = [{"type": "entity", "name": n["key"], "entityType": "m", "observations": n["text"].splitlines()} for n in NODES]
    lines.append({"type": "relation", "from": NODES[0]["key"], "to": NODES[1]["key"], "relationType": "before"})
    (folder / "memory.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_graph(folder: Path) -> None:
    (folder / "my-graph.jsonl").write_bytes(tiny.SAMPLE.read_bytes())


def write_export(folder: Path) -> None:
    lines = [{"meta": {"id": n["key"], "created": n["created"]}, "body": n["text"]} for n in NODES]
    (folder / "export.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def flat(text: str) -> str:
    return " ".join(text.split())


def write_labels(folder: Path) -> None:
    """Texts with the numbers of the emotions scored 8 or more, as GoEmotions has them."""
    names = sorted({emotion for _, _, scores in SPLIT for emotion in scores})
    (folder / "labels.txt").write_text("\n".join(names) + "\n")
    rows = [
        f"{flat(text)}\t{','.join(str(names.index(e)) for e, score in scores.items() if score >= 8)}\n"
        for _, text, scores in SPLIT
    ]
    (folder / "comments.tsv").write_text("".join(rows))


def write_ratings(folder: Path) -> None:
    with (folder / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "joy", "quiet_joy"])
        for key, text, scores in SPLIT:
            writer.writerow([key, text, scores.get("joy", 0) / 10, scores.get("calm", 0) / 10 if "calm" in scores else ""])


def write_stories(folder: Path) -> None:
    """All three kinds of text: the first positive a story, the second paired, the others direct; texts without tags neutral."""
    root = folder / "my-stories"
    root.mkdir()
    for number, (_, text, scores) in enumerate(SPLIT):
        for emotion in [e for e in ("joy", "calm") if scores.get(e, 0) >= 8][:1]:
            story, pair = root / "stories" / f"{emotion}.txt", root / "paired" / "kitchen" / f"{emotion}.txt"
            target = next((path for path in (story, pair) if not path.exists()), root / "direct" / f"{emotion}.txt")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("a") as file:
                file.write(flat(text) + "\n\n")
        if not scores:
            (root / f"_neutral-{number}.txt").write_text(text)
    (root / "paired" / "kitchen" / "baseline.txt").write_text("The kitchen was as it had been the day before, and the tap ran.")


LIVE: dict[str, Callable[[int], contextlib.AbstractContextManager[None]]] = {
    "mcp over HTTP": mcp_server,
    "mcp over stdio": lambda port: contextlib.nullcontext(),
    "mcp with a list and a render tool": mcp_server,
    "http": listing,
}
LOCAL: dict[str, list[Callable[[Path], None]]] = {
    "file": [write_graph],
    "file with other fields": [write_export],
    "a memory file": [write_memory],
    "table with labels": [write_labels],
    "table with scores": [write_ratings],
    "stories": [write_stories],
    "several": [write_graph, write_stories],
}


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    project.configure(model=str(tiny_model), emotions={"select": "curated", "curated": ["joy", "calm"]})
    return project


def selected(project: Project, *arguments: str, **environment: str) -> dict[str, Any]:
    """What `selection` finds with the block in mine.yaml."""
    project.run("selection", "--configfile", "mine.yaml", *arguments, **environment).ok()
    return json.loads((project.folder / "results/selection.json").read_text())["selection"]


@pytest.mark.parametrize("name", LIVE)
def test_live_sources(project: Project, name: str) -> None:
    port = free_port()
    block = re.sub(r"localhost:777\d", f"127.0.0.1:{port}", BLOCKS[name])
    if name == "mcp over stdio":
        block = with_memory_file(block, project.folder)
    (project.folder / "mine.yaml").write_text(block)
    environment = {"MEMORY_TOKEN": TOKEN, "JOURNAL_TOKEN": TOKEN, "MEMORY_FILE_PATH": str(project.folder / "memory.jsonl")}
    with LIVE[name](port):
        project.run("refresh", "--configfile", "mine.yaml", **environment).ok()
    found = selected(project)  # from the snapshot: the server is gone, and no token is needed
    assert {emotion: found[emotion]["positives"] for emotion in ("joy", "calm")} == {e: positives(e) for e in ("joy", "calm")}


@pytest.mark.parametrize("name", LOCAL)
def test_local_sources(project: Project, name: str) -> None:
    for write in LOCAL[name]:
        write(project.folder)
    (project.folder / "mine.yaml").write_text(BLOCKS[name])
    found = selected(project)
    graph = {emotion: {text for _, text, scores in SPLIT if scores.get(emotion, 0) >= 8} for emotion in ("joy", "calm")}
    # a text with both emotions is a story of joy alone
    stories = {emotion: {flat(text) for text in graph[emotion]} for emotion in graph}
    stories["calm"] -= stories["joy"]
    expected = {"stories": stories, "several": {emotion: graph[emotion] | stories[emotion] for emotion in graph}}.get(
        name, graph
    )
    assert {e: found[e]["positives"] for e in graph} == {emotion: len(texts) for emotion, texts in expected.items()}


def test_the_emotions_block(project: Project) -> None:
    given = yaml.safe_load(BLOCKS["emotions"])["emotions"]
    assert (given["curated"], given["exclude"], given["aliases"]) == (["envy"], ["note"], {"joyful": "joy", "bliss": "joy"})
    more = [
        {"key": f"more-{n}", "text": f"A kite over the dunes, number {n} of them.\n{tag}:9"}
        for n, tag in enumerate(["joyful", "note"])
    ]
    project.write_nodes([*NODES, *more])
    project.configure(graph="graph.jsonl", emotions={})
    (project.folder / "mine.yaml").write_text(BLOCKS["emotions"])
    found = selected(project)
    assert (found["joy"]["chosen"], found["joy"]["positives"]) == (True, positives("joy") + 1)
    assert not found["envy"]["chosen"] and "fewer than min_examples" in found["envy"]["reason"]
    assert found["joyful"]["reason"] == "counts as joy (emotions.aliases)"
    assert found["note"]["reason"] == "excluded (emotions.exclude)"


def test_its_commands(project: Project) -> None:
    (project.folder / "mine.yaml").write_text(yaml.safe_dump({"graph": str(tiny.SAMPLE)}))
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        words = [word for word in shlex.split(command) if word not in ("snakemake", "--cores", "1", "all")]
        assert project.run("--dry-run", *words).ok().jobs
