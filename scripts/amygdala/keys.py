"""Keys: the hash of everything that a stored file is made from, worked out from the sources alone.

What each key covers
  snapshot   bytes of the local sources and how they are read, of the live ones' snapshot; bad_nodes; code
  index      snapshot; names looked for in the texts (aliases); code                (the graph's index, beside its snapshot)
  plan       snapshot; emotion and example settings; code
  examples   emotion; digest, polarity, split, scenarios and source of each example; code
  model      model identity; dtype; code of the conversion; major.minor of torch and transformers
  space      model (converted models) or its identity; dtype; pooling; template; max_tokens; code; major.minor of torch and
             transformers                                                          (one a pooling)
  index      spaces; digests of the shard's texts and of the neutral ones; layers   (of the activations)
  texts      digests of the neutral texts; or names and contents of the unseen sets, min_content_chars; code
  weights    model's identity, dtype and conversion; code; major.minor of torch and transformers
                                                                                    (the layer is in the file's name)
  vectors    space; method; denoise and neutral texts; digests of the emotion's training examples, their scenarios for a
             method that pairs them; code; major.minor of scikit-learn and scipy for all methods but the two means
                                                                                    (the layer is in the file's name)
  heads      vectors; weights; code                                                (the layer is in the file's name)
  figures    examples, vectors; weights; names that count as the emotion's own; code; major.minor of scipy, and of scikit-learn
             for all methods but the two means
                                                                                    (the layer is in the file's name)
  quality    figures and heads of all emotions; layers; shares of common positives; families; code
  compare    examples; spaces; layers, poolings, methods and denoise that are compared; neutral texts; min_examples; code;
             major.minor of scikit-learn and scipy; of all emotions for the merged file
  ablation   examples and vectors of its emotions; layers; heads, fill and random of `ablation`; weights; code
  unseen     release; unseen texts; min_positive_score; code; major.minor of matplotlib
  tokens     quality; space; report_texts; code                                     (of the report's example texts)
  report     release, tokens, heads; templates' bytes; code; major.minor of matplotlib, scipy and jinja2
  release    vectors; layers; what the manifest says beside; code; for the whole readout also quality and the picture's code
  overview   release

"code" is the syntax tree of the stage's entry script and of every module of ours that it imports, without comments and
docstrings. NUMBER_FREE names the modules left out: nothing in them can change a number other than through a value that the key
covers itself (a digest, the model's identity).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amygdala.errors import UserError
from amygdala.files import is_settled, recall, remember, stamp_of

SCRIPTS = Path(__file__).resolve().parent.parent
NUMBER_FREE = {
    "amygdala",
    "amygdala.cluster",
    "amygdala.errors",
    "amygdala.fetch",
    "amygdala.files",
    "amygdala.job",
    "amygdala.keys",
    "amygdala.modelinfo",
    "amygdala.progress",
    "amygdala.recipes",
    "amygdala.stamps",
}


def key(*ingredients: Any) -> str:
    """16 hex digits over the canonical JSON of the ingredients."""
    canonical = json.dumps(ingredients, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def text_digest(text: str) -> str:
    """The digest that a text goes by: the first 32 hex digits of the sha256 of its UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def _canonical(node: Any) -> Any:
    """A syntax tree as JSON without docstrings, positions and empty fields (ast.dump differs between Python versions there)."""
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _is_docstring(node.body):
        fields["body"] = node.body[1:]
    return [type(node).__name__, {name: _canonical(value) for name, value in fields.items()}]


def _is_docstring(body: list[ast.stmt]) -> bool:
    first = body[0] if body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _imported(tree: ast.Module) -> set[str]:
    """Dotted names that the module imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _source_of(module: str, scripts: Path) -> Path | None:
    path = scripts.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def modules_of(entry: str, scripts: Path = SCRIPTS) -> dict[str, Path]:
    """The entry module and all modules of ours that it imports, directly or not, less NUMBER_FREE."""
    found: dict[str, Path] = {}
    queue = [entry]
    while queue:
        module = queue.pop()
        source = _source_of(module, scripts)
        if source is None or module in found or module in NUMBER_FREE:
            continue
        found[module] = source
        queue.extend(_module(source).imports)
    return found


@dataclass(frozen=True)
class _Module:
    """stamp: of the file before it was read; digest: of its syntax tree; imports: dotted names."""

    stamp: list[int]
    digest: str
    imports: list[str]


_modules: dict[Path, _Module] = {}


def _module(source: Path) -> _Module:
    if source not in _modules:
        _modules[source] = _look_at(source)
    return _modules[source]


def _look_at(source: Path) -> _Module:
    stamp = stamp_of(source)
    tree = ast.parse(source.read_bytes(), filename=str(source))
    return _Module(stamp, key(_canonical(tree)), sorted(_imported(tree)))


def misremembered() -> list[str]:
    """Modules whose source is not what their digest here, remembered or not, says: all are parsed."""
    return sorted(source.name for source, module in _modules.items() if vars(_look_at(source)) != vars(module))


def code_memo(folder: Path) -> Path:
    """Where the digests of this installation's modules are remembered, by what works them out."""
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return folder / f"code.{key(str(SCRIPTS), own, sys.version_info[:2])}.json"


def recall_code(memo: Path) -> None:
    """Take remembered digests of modules whose size and times are what they were: to parse all modules takes longer than the
    rest of a plan that did not change."""
    known = recall(memo)
    if not isinstance(known, dict) or known.get("sum") != key(known.get("modules")):
        return
    for name, told in known["modules"].items():
        source, module = SCRIPTS / name, _Module(*told)
        if source not in _modules and source.is_file() and stamp_of(source) == module.stamp:
            _modules[source] = module


def remember_code(memo: Path) -> None:
    """Remember the digests of all modules of ours that were looked at, where any is new."""
    own = {str(path.relative_to(SCRIPTS)): one for path, one in _modules.items() if path.is_relative_to(SCRIPTS)}
    modules = {name: list(vars(one).values()) for name, one in sorted(own.items())}
    known = recall(memo)
    before = known.get("modules", {}) if isinstance(known, dict) else {}
    if not modules.items() <= before.items() and all(is_settled(one.stamp) for one in own.values()):
        modules = {**before, **modules}
        remember(memo, {"modules": modules, "sum": key(modules)}, indent=None)


@functools.cache
def code_modules(entry: str, scripts: Path = SCRIPTS) -> dict[str, str]:
    """{module: digest} of the code behind a stage; `entry` is a module name such as "vectors" or "amygdala.plan"."""
    return {module: _module(source).digest for module, source in sorted(modules_of(entry, scripts).items())}


def code(entry: str, scripts: Path = SCRIPTS) -> str:
    """Digest of the code behind a stage."""
    return key(code_modules(entry, scripts))


PRECISIONS = {"any": 0, "major": 1, "minor": 2, "exact": None}


@functools.cache
def version(package: str, precision: str = "minor") -> str:
    """The version of an installed package to a precision of PRECISIONS; "any" tells nothing. UserError where there is none."""
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{package} is not installed beside Snakemake, and keys cover its version: install requirements.txt there, or name "
            f"the version that the jobs have as key_versions.pinned.{package}"
        ) from None
    return ".".join(installed.split(".")[: PRECISIONS[precision]]) or "any"
