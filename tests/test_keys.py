"""Keys: canonical, sensitive to every ingredient, and to the code that makes a file, but not to its layout."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from amygdala import keys
from amygdala.errors import UserError
from amygdala.keys import NUMBER_FREE, SCRIPTS, code, code_modules, key, modules_of, text_digest, version
from tiny import REPOSITORY

RULES = "".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "rules").glob("*.smk")))
ENTRIES = sorted(set(re.findall(r"scripts/(\w+)\.py", RULES)))


def test_key_is_the_sha256_of_canonical_json() -> None:
    canonical = '["a",1,2.5,null,{"b":[true,"é"],"c":"x"}]'
    expected = hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]
    assert key("a", 1, 2.5, None, {"c": "x", "b": [True, "é"]}) == expected


def test_key_is_16_hex_digits() -> None:
    assert re.fullmatch("[0-9a-f]{16}", key())
    assert re.fullmatch("[0-9a-f]{16}", key("\ud800"))  # half a surrogate pair, as a file name may hold


def test_key_is_free_of_the_order_of_dicts_at_any_depth() -> None:
    assert key({"a": 1, "b": {"c": 2, "d": [{"e": 3, "f": 4}]}}) == key({"b": {"d": [{"f": 4, "e": 3}], "c": 2}, "a": 1})


def test_key_takes_tuples_as_lists() -> None:
    assert key(("a", (1, 2))) == key(["a", [1, 2]])


@pytest.mark.parametrize(
    "other",
    [
        ("other", 1, {"b": [1, 2]}, None),
        ("stage", 2, {"b": [1, 2]}, None),
        ("stage", "1", {"b": [1, 2]}, None),
        ("stage", 1.5, {"b": [1, 2]}, None),
        ("stage", 1, {"c": [1, 2]}, None),
        ("stage", 1, {"b": [2, 1]}, None),
        ("stage", 1, {"b": [1, 2, 2]}, None),
        ("stage", 1, {"b": [1, 2], "c": 0}, None),
        ("stage", 1, {"b": [1, 2]}, False),
        ("stage", 1, {"b": [1, 2]}),
        ("stage", 1, {"b": [1, 2]}, None, None),
        (1, "stage", {"b": [1, 2]}, None),
        ("stage", {"b": [1, 2]}, 1, None),
        ("Stage", 1, {"b": [1, 2]}, None),
        ("stage1", {"b": [1, 2]}, None),
    ],
)
def test_key_changes_with_each_ingredient(other: tuple[Any, ...]) -> None:
    assert key(*other) != key("stage", 1, {"b": [1, 2]}, None)


def test_ingredients_do_not_run_together() -> None:
    assert len({key("ab", "c"), key("a", "bc"), key("abc"), key(["ab", "c"]), key('ab","c')}) == 5


@pytest.mark.parametrize("text", ["", "one line", "two\nlines", "naïve 猫 🐈", " trailing ", "e\u0301"])
def test_text_digest_by_hand(text: str) -> None:
    assert text_digest(text) == hashlib.new("sha256", bytes(text, "utf-8")).hexdigest()[:32]


def test_text_digest_of_known_bytes() -> None:
    assert text_digest("abc") == "ba7816bf8f01cfea414140de5dae2223"  # FIPS 180-2, B.1


# code()

SOURCES = {
    "stage.py": '"""Doc."""\nfrom amygdala.near import f\n\n\ndef g(x):\n    return f(x) + 1\n',
    "amygdala/__init__.py": '"""Doc."""\n',
    "amygdala/near.py": "import amygdala.far\n\n\ndef f(x):\n    return amygdala.far.h(x)\n",
    "amygdala/far.py": "def h(x):\n    return x * 2\n",
    "amygdala/lazy.py": "Y = 1\n",
    "amygdala/unrelated.py": "Z = 1\n",
    "amygdala/files.py": "def write():\n    return 1\n",
    "package/__init__.py": "from package.inner import A\n",
    "package/inner.py": "A = 1\n",
}


def tree(folder: Path, **changed: str) -> Path:
    """SOURCES in `folder`; `changed` by file name, with `__` for `/`, less the `.py`."""
    sources = {**SOURCES, **{name.replace("__", "/") + ".py": text for name, text in changed.items()}}
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def code_with(tmp_path: Path, **changed: str) -> tuple[str, str]:
    """The code of the stage before and after the change."""
    return code("stage", tree(tmp_path / "before")), code("stage", tree(tmp_path / "after", **changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"stage": "# a comment\nfrom amygdala.near import f\n\n\ndef g(x):\n    return f(x) + 1\n"},
        {"stage": '"""Another doc."""\nfrom amygdala.near import f\ndef g(x): return f(x) + 1  # so\n'},
        {"stage": 'from amygdala.near import f\n\n\ndef g(x):\n    """One more."""\n\n    return (f(x)\n            + 1)\n'},
        {"amygdala__far": "def h(x):\n    '''Says more.'''\n    return x*2\n"},
        {"amygdala__unrelated": "Z = 2\n"},
        {"amygdala____init__": "VERSION = 2\n"},
        {"amygdala__files": "def write():\n    return 2\n"},
    ],
    ids=["comment", "layout", "docstring", "far docstring", "unrelated", "number free package", "not imported"],
)
def test_code_stays(tmp_path: Path, changed: dict[str, str]) -> None:
    before, after = code_with(tmp_path, **changed)
    assert before == after


def test_class_and_async_docstrings_do_not_count(tmp_path: Path) -> None:
    bare = "class A:\n    async def f(self):\n        return 1\n"
    told = 'class A:\n    """Doc."""\n\n    async def f(self):\n        """Doc."""\n        return 1\n'
    assert code("stage", tree(tmp_path / "a", stage=bare)) == code("stage", tree(tmp_path / "b", stage=told))


def test_a_docstring_alone_counts_as_little_as_another(tmp_path: Path) -> None:
    one, other = 'class A:\n    """Doc."""\n', 'class A:\n    """Another."""\n'
    assert code("stage", tree(tmp_path / "a", stage=one)) == code("stage", tree(tmp_path / "b", stage=other))


def test_code_does_not_depend_on_what_was_hashed_before(tmp_path: Path) -> None:
    """A string after the docstring is a statement like any other, however often the module is hashed."""
    scripts = tree(tmp_path / "a", one="import shared\n", two="import shared\n", shared='"""Doc."""\n"kept"\nX = 1\n')
    first = code("one", scripts)
    code("two", scripts)
    code_modules.cache_clear()
    assert code("one", scripts) == first


@pytest.mark.parametrize("python", ["python3.12", "python3.13", "python3.14"])
def test_other_pythons_give_the_same_code(python: str) -> None:
    """A store may be shared by machines with different Pythons."""
    candidates = [str(path) for path in Path.home().glob(f".pyenv/versions/{python.removeprefix('python')}.*/bin/{python}")]
    candidates += [path for path in [shutil.which(python)] if path]
    found = next(
        (c for c in candidates if not subprocess.run([c, "-c", ""], capture_output=True, check=False).returncode), None
    )
    if found is None:
        pytest.skip(f"no {python} on this machine")
    entries = ["snapshot", "amygdala.plan", "examples", "activations", "vectors", "heads", "quality", "readout"]
    ask = f"from amygdala.keys import code; print([code(entry) for entry in {entries}])"
    done = subprocess.run([found, "-c", ask], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([code(entry) for entry in entries])


@pytest.mark.parametrize(
    "changed",
    [
        {"stage": SOURCES["stage.py"].replace("+ 1", "+ 2")},
        {"stage": SOURCES["stage.py"].replace("g(x)", "g(x, y=1)")},
        {"stage": SOURCES["stage.py"] + "\n\nEXTRA = 1\n"},
        {"stage": SOURCES["stage.py"] + '\n\nEXTRA = "a string that is no docstring"\n'},
        {
            "stage": SOURCES["stage.py"]
            .replace("return f", "'a string within'\n    return f", 1)
            .replace("(x):\n", "(x):\n    y = 1\n")
        },
        {"amygdala__near": SOURCES["amygdala/near.py"].replace("h(x)", "h(x + 1)")},
        {"amygdala__far": SOURCES["amygdala/far.py"].replace("* 2", "* 3")},
    ],
    ids=["body", "signature", "constant", "string", "body string", "imported", "imported through another"],
)
def test_code_changes(tmp_path: Path, changed: dict[str, str]) -> None:
    before, after = code_with(tmp_path, **changed)
    assert before != after


def test_code_changes_with_a_changed_docstring_only_where_the_string_is_a_value(tmp_path: Path) -> None:
    one, two = 'X = """Doc."""\n', 'X = """Cod."""\n'
    assert code("stage", tree(tmp_path / "a", stage=one)) != code("stage", tree(tmp_path / "b", stage=two))


@pytest.mark.parametrize(
    "importing",
    [
        "import amygdala.lazy\n",
        "import amygdala.lazy as other\n",
        "from amygdala import lazy\n",
        "from amygdala.lazy import Y\n",
        "def f():\n    from amygdala import lazy\n    return lazy.Y\n",
        "if TYPE_CHECKING:\n    from amygdala.lazy import Y\n",
        "try:\n    import amygdala.lazy\nexcept ImportError:\n    pass\n",
    ],
)
def test_every_kind_of_import_counts(tmp_path: Path, importing: str) -> None:
    found = modules_of("stage", tree(tmp_path / "a", stage=importing))
    assert found == {"stage": tmp_path / "a" / "stage.py", "amygdala.lazy": tmp_path / "a" / "amygdala" / "lazy.py"}
    after = tree(tmp_path / "b", stage=importing, amygdala__lazy="Y = 2\n")
    assert code("stage", tmp_path / "a") != code("stage", after)


def test_number_free_modules_do_not_count(tmp_path: Path) -> None:
    importing = "from amygdala.files import write\n"
    before = tree(tmp_path / "a", stage=importing)
    after = tree(tmp_path / "b", stage=importing, amygdala__files="import amygdala.lazy\n\n\ndef write():\n    return 2\n")
    assert modules_of("stage", after).keys() == {"stage"}
    assert code("stage", before) == code("stage", after)


def test_packages_count_by_their_init(tmp_path: Path) -> None:
    folder = tree(tmp_path, stage="import package\n")
    assert modules_of("stage", folder).keys() == {"stage", "package", "package.inner"}


def test_a_circle_of_imports_ends(tmp_path: Path) -> None:
    folder = tree(tmp_path, stage="import amygdala.far\n", amygdala__far="import amygdala.near\n")
    assert modules_of("stage", folder).keys() == {"stage", "amygdala.near", "amygdala.far"}


def test_modules_of_others_do_not_count(tmp_path: Path) -> None:
    assert modules_of("stage", tree(tmp_path, stage="import numpy as np\nimport json\n")).keys() == {"stage"}


def test_the_same_bodies_under_swapped_module_names_are_another_code(tmp_path: Path) -> None:
    both = "import amygdala.far\nimport amygdala.lazy\n"
    one = tree(tmp_path / "a", stage=both, amygdala__lazy="A = 1\n", amygdala__far="B = 1\n")
    two = tree(tmp_path / "b", stage=both, amygdala__lazy="B = 1\n", amygdala__far="A = 1\n")
    assert code("stage", one) != code("stage", two)


# The project's own code


def own_imports(source: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, read with regular expressions."""
    text = source.read_text(encoding="utf-8")
    names = set(re.findall(r"^\s*(?:from|import) (amygdala\.\w+)", text, flags=re.M))
    for listed in re.findall(r"^\s*from amygdala import (.+)$", text, flags=re.M):
        names.update(f"amygdala.{name.split(' as ')[0].strip()}" for name in listed.split(","))
    return names


@pytest.mark.parametrize("entry", ENTRIES)
def test_modules_of_an_entry_hold_all_that_it_imports(entry: str) -> None:
    found = modules_of(entry)
    assert found[entry] == SCRIPTS / f"{entry}.py"
    for source in list(found.values()):
        for module in own_imports(source) - NUMBER_FREE:
            assert found.get(module) == SCRIPTS / (module.replace(".", "/") + ".py"), f"{source.name} imports {module}"


def test_every_script_is_the_entry_of_a_rule() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == set(ENTRIES)


@pytest.mark.parametrize(
    ("entry", "modules"),
    [
        ("activations", {"amygdala.exampleset", "amygdala.segments", "amygdala.residual", "amygdala.architecture"}),
        ("vectors", {"amygdala.exampleset", "amygdala.segments", "amygdala.vectorfile"}),
        ("heads", {"amygdala.exampleset", "amygdala.segments"}),
        ("quality", {"amygdala.exampleset", "amygdala.segments", "amygdala.vectorfile"}),
        ("readout", {"amygdala.contract", "amygdala.segments", "amygdala.vectorfile"}),
        ("snapshot", {"amygdala.graph"}),
        ("examples", {"amygdala.exampleset", "amygdala.graph", "amygdala.plan"}),
        ("amygdala.plan", {"amygdala.exampleset", "amygdala.graph"}),
    ],
)
def test_what_decides_the_numbers_is_part_of_the_code(entry: str, modules: set[str]) -> None:
    assert modules <= modules_of(entry).keys()


def test_capture_code_does_not_reach_vectors_and_heads() -> None:
    for entry in ("vectors", "heads", "quality", "readout"):
        assert not {"amygdala.residual", "amygdala.build", "amygdala.config"} & modules_of(entry).keys()


def test_number_free_modules_exist_and_do_no_arithmetic() -> None:
    for module in sorted(NUMBER_FREE):
        base = SCRIPTS.joinpath(*module.split("."))
        source = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        imported: set[str] = set()
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
        assert not imported & {"numpy", "torch"}, module


def test_version_is_major_and_minor(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "odd": "3"}
    monkeypatch.setattr("importlib.metadata.version", installed.__getitem__)
    assert [version(name) for name in installed] == ["2.13", "2.4", "3"]


def test_keys_do_not_depend_on_the_hash_seed() -> None:
    import os
    import subprocess
    import sys

    line = "from amygdala.keys import key, code; import json; print(json.dumps([key({'b': 1, 'a': 2}), code('quality')]))"
    results = [
        subprocess.run(
            [sys.executable, "-c", line],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SCRIPTS)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert results[0] == results[1]
    assert json.loads(results[0]) == [key({"a": 2, "b": 1}), code("quality")]


def test_no_import_of_ours_is_relative() -> None:
    """modules_of does not follow relative imports."""
    for source in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{source}:{node.lineno}"


def test_a_library_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match=r"no-such-library is not installed .* key_versions\.pinned\.no-such-library"):
        version("no-such-library")


# The memo of modules' digests


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of modules that is the installation, all older than a tick of the clock, and nothing known of it."""
    scripts = tree(tmp_path / "scripts")
    for path in scripts.rglob("*.py"):
        os.utime(path, (1, 1))
    monkeypatch.setattr(keys, "SCRIPTS", scripts)
    monkeypatch.setattr(keys, "_modules", {})
    code_modules.cache_clear()
    return scripts


def fresh(monkeypatch: pytest.MonkeyPatch, memo: Path) -> list[Path]:
    """As a new process that takes the memo; returns the sources that it parses from then on."""
    parsed: list[Path] = []
    own = keys.ast.parse
    monkeypatch.setattr(keys, "_modules", {})
    monkeypatch.setattr(keys.ast, "parse", lambda data, filename: parsed.append(Path(filename)) or own(data, filename))
    code_modules.cache_clear()
    keys.recall_code(memo)
    return parsed


def test_modules_are_parsed_once_for_all_runs(modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = keys.code_memo(tmp_path)
    first = code("stage", modules)
    keys.remember_code(memo)
    parsed = fresh(monkeypatch, memo)
    assert code("stage", modules) == first and parsed == []
    near = modules / "amygdala" / "near.py"
    near.write_text(near.read_text() + "X = 1\n")
    os.utime(near, (1, 1))
    parsed = fresh(monkeypatch, memo)
    assert code("stage", modules) != first and parsed == [near], "the size is another; with the time set back"
    keys.remember_code(memo)
    parsed = fresh(monkeypatch, memo)
    assert code("stage", modules) != first and parsed == []


def test_a_module_of_the_same_size_and_mtime_is_parsed_again(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo, near = keys.code_memo(tmp_path), modules / "amygdala" / "near.py"
    first = code("stage", modules)
    keys.remember_code(memo)
    near.write_text(near.read_text().replace("h(x)", "h(f)"))
    os.utime(near, (1, 1))
    assert fresh(monkeypatch, memo) == [] and code("stage", modules) != first


@pytest.mark.parametrize("state", ["damaged", "other sum", "a list", "missing"])
def test_a_memo_that_does_not_hold_is_not_taken(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    memo, first = keys.code_memo(tmp_path), code("stage", modules)
    keys.remember_code(memo)
    told = json.loads(memo.read_text())
    next(iter(told["modules"].values()))[1] = "0" * 16
    texts = {"damaged": memo.read_text()[:-9], "other sum": json.dumps(told), "a list": "[]"}
    memo.unlink() if state == "missing" else memo.write_text(texts[state])
    assert fresh(monkeypatch, memo) == [] and code("stage", modules) == first


def test_a_module_that_is_being_written_is_not_remembered(modules: Path, tmp_path: Path) -> None:
    (modules / "stage.py").touch()
    code("stage", modules)
    keys.remember_code(keys.code_memo(tmp_path))
    assert not list(tmp_path.glob("code.*"))


def test_another_way_to_work_out_digests_has_another_memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys.code_memo(tmp_path)
    (tmp_path / "keys.py").write_text(Path(keys.__file__).read_text() + "\n")
    monkeypatch.setattr(keys, "__file__", str(tmp_path / "keys.py"))
    assert keys.code_memo(tmp_path) != before


def test_a_remembered_digest_that_is_wrong_is_found(modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = keys.code_memo(tmp_path)
    code("stage", modules)
    keys.remember_code(memo)
    fresh(monkeypatch, memo)
    assert keys.misremembered() == []
    told = json.loads(memo.read_text())
    told["modules"]["amygdala/near.py"][1] = "0" * 16
    memo.write_text(json.dumps({**told, "sum": key(told["modules"])}))
    fresh(monkeypatch, memo)
    assert keys.misremembered() == ["near.py"]
