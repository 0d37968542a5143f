"""`snakemake refresh` with the real Snakefile: faults leave the snapshot as it was, the token in no file, and one message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tiny
from amygdala.sources import read_live, sources_of
from faulty_server import Fault, Faulty, closed_port
from fetching import NODES, SECRET, TOKEN_ENV, like
from project import Project, Run

pytestmark = pytest.mark.end_to_end

ADVICE = "snakemake --cores 1 refresh"
ERROR = "error: "


def source(server: Faulty, **options: Any) -> dict[str, Any]:
    brief = {"timeout_s": 20, "deadline_s": 60, "tries": 2, "token_env": TOKEN_ENV}
    return {"source": "mcp", "name": "journal", "memory_mcp_url": server.mcp_url, "preset": "nodes", **brief, **options}


def run(project: Project, *arguments: str) -> Run:
    done = project.run(*arguments, **{TOKEN_ENV: SECRET})
    assert SECRET not in done.text
    assert not [path for path in project.folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert "Traceback" not in done.text
    return done


def errors(done: Run) -> list[str]:
    return [line for line in done.text.splitlines() if line.startswith(ERROR)]


def snapshot(project: Project) -> bytes:
    return (project.folder / "snapshot.jsonl").read_bytes()


# One run a fault. Each begins with a snapshot that cannot be built (five nodes without tags): it may still be fetched anew.

FAULTS: dict[str, tuple[Fault | None, dict[str, Any], str]] = {
    "connection refused": (None, {}, "cannot connect (…), 2 times"),
    "500": (Fault("500", "list_nodes", 1, echo=True), {}, "HTTP 500 no luck Bearer ***, 2 times"),
    "429": (
        Fault("429", "render_node", headers={"Retry-After": "90"}, echo=True),
        {},
        "HTTP 429 no luck Bearer ***; another try in 90 s would end after the deadline_s of 60 s",
    ),
    "time-out": (Fault("hang", "render_node", 2), {"timeout_s": 1}, "no answer within 1 s (timeout_s), 2 times"),
    "body cut off": (Fault("cut", "list_nodes"), {}, "the answer was cut off (…), 2 times"),
    "invalid JSON": (Fault("garbage", "list_nodes", echo=True), {}, "tool 'list_nodes': …JSON…"),
    "tool error": (Fault("tool error", "render_node", echo=True), {}, "tool 'render_node' failed: 'no luck Bearer ***'"),
    "endless cursor": (Fault("endless"), {}, "50 pages in a row brought no new node: the pages would never end"),
    "100 MB in one node": (Fault("huge", "render_node"), {}, "an answer is larger than max_page_mb (64 MB)"),
    "401": (Fault("401", echo=True), {}, f"HTTP 401 no luck Bearer ***: the token in {TOKEN_ENV} was not accepted"),
}


def endless(cursor: str | None) -> Any:
    return {"nodes": [{"key": "a"}], "next": str(int(cursor or 0) + 1)}


def failed(folder: Path, name: str) -> Callable[[], tuple[str, Run, bytes, list[str]]]:
    """Run one fault: the server's address, the run, the snapshot's bytes and what lies beside it."""
    fault, changes, _ = FAULTS[name]

    def work() -> tuple[str, Run, bytes, list[str]]:
        faults = [fault] if fault is not None and fault.kind != "endless" else []
        with Faulty(NODES, *faults, pages=endless if name == "endless cursor" else None) as server:
            url = f"http://127.0.0.1:{closed_port()}/mcp" if name == "connection refused" else server.mcp_url
            secretive = f"{url}?api_key=hidden-key"
            project = Project.make(folder / name, [], graph=source(server, memory_mcp_url=secretive, **changes))
            (project.folder / "snapshot.jsonl").write_bytes(OLD)
            done = run(project, "refresh")
            beside = sorted(path.name for path in project.folder.iterdir())
            return url, done, snapshot(project), beside

    return work


OLD = (
    json.dumps({"amygdala_snapshot": 1, "sources": {"journal": {"definition": "0", "nodes": 1}}})
    + '\n{"origin": "journal", "key": "a", "text": "Old."}\n'
).encode()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    """All faults, two at a time: a run is mostly Python starting."""
    folder = tmp_path_factory.mktemp("faults")
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(failed(folder, name)) for name in FAULTS}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_message_and_leaves_the_snapshot(runs: dict[str, Future[Any]], name: str) -> None:
    url, done, kept, beside = runs[name].result()
    assert done.status != 0
    (message,) = errors(done)
    like(message, f"{ERROR}graph: source 'journal' ('{url}'): {FAULTS[name][2]}. The snapshot is as it was.")
    assert "hidden" not in done.text
    assert kept == OLD
    assert beside == [".snakemake", "config.yaml", "graph.jsonl", "logs", "snapshot.jsonl"] + (
        ["store"] if "store" in beside else []
    )


# A life


def sample(count: int = 420) -> dict[str, str]:
    with tiny.SAMPLE.open(encoding="utf-8") as file:
        nodes = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    return {node["key"]: node["text"] for node in nodes}


@pytest.fixture(scope="module")
def server() -> Iterator[Faulty]:
    with Faulty(sample(), size=200) as served:
        yield served


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, server: Faulty) -> Project:
    """A project before its first refresh."""
    graph = source(server, memory_mcp_url=server.mcp_url, at_once=2)
    return Project.make(tmp_path_factory.mktemp("first") / "project", [], graph=graph, model=str(tiny_model), target_layers=[1])


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory, first: Project) -> Project:
    project = first.copy(tmp_path_factory.mktemp("refreshed") / "project")
    done = run(project, "refresh").ok()
    assert "journal: 420 nodes; 420 added, 0 changed, 0 removed" in done.text
    return project


@pytest.fixture
def project(refreshed: Project, tmp_path: Path) -> Project:
    return refreshed.copy(tmp_path / "project")


def test_first_use_says_how_to_fetch(first: Project) -> None:
    done = run(first, "--dry-run")
    assert done.status != 0
    words = f"graph: there is no snapshot of 'journal' yet (snapshot.jsonl). Fetch it with: {ADVICE}"
    assert done.text.count(words) == 1
    assert len(done.text.strip().splitlines()) <= 6
    assert not (first.folder / "snapshot.jsonl").exists()


def test_a_failed_first_refresh_leaves_no_snapshot(first: Project, tmp_path: Path) -> None:
    project = first.copy(tmp_path / "project")
    with Faulty(sample(), Fault("401")) as refusing:
        project.configure(graph=source(refusing))
        done = run(project, "refresh")
    assert done.status != 0
    (message,) = errors(done)
    assert message.endswith(f"HTTP 401 no luck: the token in {TOKEN_ENV} was not accepted. There is no snapshot yet.")
    assert not (project.folder / "snapshot.jsonl").exists()


def test_what_was_fetched_is_built_from(project: Project) -> None:
    assert {raw.key: raw.text for raw in read_live(project.folder / "snapshot.jsonl")["journal"]} == sample()
    done = run(project, "--dry-run", "examples").ok()
    assert done.jobs["Snapshot of journal"] == 1


def test_how_to_fetch_may_change(project: Project, server: Faulty) -> None:
    changes = {
        "timeout_s": 1,
        "deadline_s": 2,
        "tries": 9,
        "at_once": 1,
        "token_env": "OTHER",
        "max_nodes": 1,
        "max_page_mb": 1,
    }
    project.configure(graph=source(server, **changes))
    run(project, "--dry-run").ok()


def test_what_to_fetch_may_not_change(project: Project, server: Faulty) -> None:
    project.configure(graph=source(server, memory_mcp_url=server.mcp_url + "/other"))
    done = run(project, "--dry-run")
    assert done.status != 0
    words = f"graph: source 'journal' is defined differently than when snapshot.jsonl was fetched. Fetch it with: {ADVICE}"
    assert done.text.count(words) == 1
    assert len(done.text.strip().splitlines()) <= 6


def test_a_snapshot_that_cannot_be_built_may_be_fetched_anew(tmp_path: Path) -> None:
    with Faulty(NODES) as server:
        project = Project.make(tmp_path / "project", [], graph=source(server))
        run(project, "refresh").ok()
        before = snapshot(project)
        done = run(project, "--dry-run")
        assert done.status != 0 and "no emotion has enough positives" in done.text
        server.nodes["a"] = "Another text."
        done = run(project, "refresh").ok()
        assert "journal: 5 nodes; 0 added, 1 changed, 0 removed" in done.text
        assert snapshot(project) != before
        assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {SECRET}"}


def test_a_local_graph_has_nothing_to_fetch(tmp_path: Path, tiny_model: Path) -> None:
    nodes = [{"key": key, "text": text} for key, text in sample().items()]
    project = Project.make(tmp_path / "project", nodes, model=str(tiny_model), target_layers=[1])
    done = run(project, "refresh").ok()
    assert "every source lies on this machine and is read as it is: there is nothing to fetch" in done.text
    assert not (project.folder / "snapshot.jsonl").exists()


@pytest.mark.parametrize("words", [("refresh", "all"), ("all", "refresh"), ("--dry-run", "refresh", "all")], ids=" ".join)
def test_refresh_goes_alone(project: Project, server: Faulty, words: tuple[str, ...]) -> None:
    """What else was asked for would be planned from the old snapshot: nothing is fetched and nothing built."""
    before, asked = snapshot(project), len(server.seen)
    done = project.run(*words, **{TOKEN_ENV: SECRET})
    assert done.status != 0
    assert done.text.count("run `refresh` alone, then build: other targets would be planned from the old snapshot") == 1
    assert (snapshot(project), len(server.seen)) == (before, asked)
    assert not done.jobs and not (project.folder / "results").exists()


def test_no_url_is_kept_by_a_refresh_or_a_build(first: Project, server: Faulty, tmp_path: Path) -> None:
    """Without the profile Snakemake writes the parameters of jobs to .snakemake/; keys in a URL would stay there for ever."""
    project = first.copy(tmp_path / "project")
    graph = source(server, memory_mcp_url=f"{server.mcp_url}?api_key=hidden-key")
    project.configure(graph=graph, emotions={"select": "curated", "curated": ["calm", "joy"]}, max_examples_per_emotion=30)
    for targets in (["refresh"], ["all", "changes"]):
        assert "hidden-key" not in run(project, "--workflow-profile", "none", *targets).ok().text
    assert project.manifest()["concepts"] == ["calm", "joy"]
    kept = project.bytes_of(".snakemake/**/*")
    definition = sources_of(graph)[0].definition.encode()
    assert [path for path, data in kept.items() if definition in data], "the parameters of the snapshot's job are there"
    assert [path for path, data in kept.items() if server.address.encode() in data or b"hidden-key" in data] == []
    assert [path for path, data in project.bytes_of("**/*").items() if b"hidden-key" in data] == ["config.yaml"]
