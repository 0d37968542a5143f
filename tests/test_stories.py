"""A folder of stories: the file's name says the emotion, the folder says the kind; what lies in the wrong place is named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from amygdala.errors import UserError
from amygdala.graph import RawNode, canonical
from amygdala.local import files_of, read_stories, story_files


def folder_of(root: Path, files: dict[str, str | bytes]) -> Path:
    folder = root / "texts"
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def read(root: Path, files: dict[str, str | bytes]) -> list[RawNode]:
    return list(read_stories(folder_of(root, files), {}))


def short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


WHOLE: dict[str, str | bytes] = {
    "stories/joy.txt": "A gull.\n\nIt flew.\n",
    "stories/Self_Doubt.txt": "Hm.",
    "stories/_weather.txt": "Rain until noon.",
    "paired/harbour/baseline.txt": "A boat came in.",
    "paired/harbour/joy.txt": "A boat came in, and how!",
    "paired/harbour/_other.txt": "A boat.",
    "paired/attic/baseline.txt": "Dust.",
    "paired/attic/fear.txt": "Dust moved.",
    "direct/joy.txt": "I am glad.\n\nWhat a day!\nReally.\n \t\n\n\nI am glad.\n",
    "direct/_plain.txt": "The shop opens at ten.\n\nIt is Tuesday.",
    "_neutral.txt": "Two forms,\n\nthree copies.",
    "README.md": "no text",
}


def test_all_kinds_of_texts_in_order_of_their_paths(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, WHOLE)
    (folder / "stories" / "empty.txt").mkdir()  # a folder, whatever its name, is no text
    joy, none = {"joy": 10.0}, dict[str, float]()

    def raw(name: str, text: str, scores: dict[str, float], scenario: str | None = None, end: str = "") -> RawNode:
        return RawNode(name + end, text, scores, None, scenario, f"{folder}/{name}")

    assert list(read_stories(folder, {})) == [
        raw("_neutral.txt", "Two forms,\n\nthree copies.", none),
        raw("direct/_plain.txt", "The shop opens at ten.", none, end="#" + short("The shop opens at ten.")),
        raw("direct/_plain.txt", "It is Tuesday.", none, end="#" + short("It is Tuesday.")),
        raw("direct/joy.txt", "I am glad.", joy, end="#" + short("I am glad.")),
        raw("direct/joy.txt", "What a day!\nReally.", joy, end="#" + short("What a day!\nReally.")),
        raw("paired/attic/baseline.txt", "Dust.", none, "attic"),
        raw("paired/attic/fear.txt", "Dust moved.", {"fear": 10.0}, "attic"),
        raw("paired/harbour/_other.txt", "A boat.", none, "harbour"),
        raw("paired/harbour/baseline.txt", "A boat came in.", none, "harbour"),
        raw("paired/harbour/joy.txt", "A boat came in, and how!", joy, "harbour"),
        raw("stories/Self_Doubt.txt", "Hm.", {"self_doubt": 10.0}),
        raw("stories/_weather.txt", "Rain until noon.", none),
        raw("stories/joy.txt", "A gull.\n\nIt flew.", joy),
    ]
    assert files_of("stories", folder, {}) == [folder / name for name in sorted(WHOLE) if name.endswith(".txt")]


def test_any_of_the_three_subfolders_will_do(tmp_path: Path) -> None:
    for name in ("stories/joy.txt", "direct/joy.txt", "_neutral.txt"):
        (tmp_path / name[:2]).mkdir()
        assert len(read(tmp_path / name[:2], {name: "Rain."})) == 1


def test_bytes_around_the_text_do_not_count(tmp_path: Path) -> None:
    text = "Caf\u00e9.\n\nTwo\rlines."
    files: dict[str, str | bytes] = {
        "stories/a.txt": "\ufeff \n" + text.replace("\n", "\r\n") + "\r\n\r\n",
        "stories/b.txt": text,
        "direct/c.txt": b"\xef\xbb\xbfOne.\r\n \t\r\nTwo.\r\n",
    }
    raws = read(tmp_path, files)
    assert [raw.text for raw in raws] == ["One.", "Two.", text, text]


def test_a_baseline_is_neutral_wherever_it_stands(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "stories/baseline.txt": "Rain.",
        "direct/baseline.txt": "A.\n\nB.",
        "direct/Baseline.txt": "C.",
    }
    raws = read(tmp_path, files)
    assert [(raw.text, raw.scores, raw.scenario) for raw in raws] == [
        ("C.", {"baseline": 10.0}, None),  # another name
        ("A.", {}, None),
        ("B.", {}, None),
        ("Rain.", {}, None),
    ]


def test_tags_in_a_story_are_text(tmp_path: Path) -> None:
    (node,), _ = canonical("s", read(tmp_path, {"stories/joy.txt": "A gull.\ncalm:9"}))
    assert (node.text, node.scores) == ("A gull.\ncalm:9", {"joy": 10.0})


def test_equal_texts_of_two_emotions_are_two_nodes(tmp_path: Path) -> None:
    nodes, _ = canonical(
        "s", read(tmp_path, {"direct/awe.txt": "Oh.\n\nOh.", "direct/joy.txt": "Oh.", "stories/joy.txt": "Oh."})
    )
    assert [(node.key.partition("#")[0], node.scores) for node in nodes] == [
        ("direct/awe.txt", {"awe": 10.0}),
        ("direct/joy.txt", {"joy": 10.0}),
        ("stories/joy.txt", {"joy": 10.0}),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "joy.txt",
        "baseline.txt",
        "Stories/joy.txt",
        "other/joy.txt",
        "other/_neutral.txt",
        "stories/more/joy.txt",
        "stories/more/_neutral.txt",
        "direct/harbour/joy.txt",
        "paired/joy.txt",
        "paired/baseline.txt",
        "paired/harbour/more/joy.txt",
    ],
)
def test_a_misplaced_text_is_named(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, {"paired/harbour/baseline.txt": "x", name: "x"})
    message = (
        rf"^{folder}/{name}: in a stories folder a text is stories/<emotion>\.txt, paired/<scenario>/<emotion>\.txt, "
        r"direct/<emotion>\.txt, or a neutral text _<name>\.txt$"
    )
    for check in (story_files, lambda folder: list(read_stories(folder, {}))):
        with pytest.raises(UserError, match=message):
            check(folder)


@pytest.mark.parametrize("files", [{}, {"joy.md": "x"}, {"README": "x"}])
def test_a_folder_without_texts_is_named(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    folder = folder_of(tmp_path, files)
    with pytest.raises(UserError, match=rf"^{folder}: no texts in it; expected stories/<emotion>\.txt, paired/"):
        list(read_stories(folder, {}))


def test_a_scenario_without_a_baseline_is_named(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        {"paired/attic/baseline.txt": "x", "paired/attic/joy.txt": "x", "paired/sea/joy.txt": "x", "_baseline.txt": "x"},
    )
    with pytest.raises(UserError, match=rf"^{folder}/paired/sea: a paired scenario needs a baseline\.txt beside its emotions$"):
        list(read_stories(folder, {}))


@pytest.mark.parametrize("name", ["2nd", "so glad", "a.b", ".joy", "-joy", "x" * 49, "joy\n", "\x1b[1m", "♥"])
@pytest.mark.parametrize("kind", ["stories", "direct", "paired/sea"])
def test_a_name_that_is_no_emotion_is_named_by_its_file(tmp_path: Path, kind: str, name: str) -> None:
    folder = folder_of(tmp_path, {"paired/sea/baseline.txt": "x", f"{kind}/{name}.txt": "x"})
    with pytest.raises(UserError) as caught:
        list(read_stories(folder, {}))
    message = str(caught.value)
    assert message.startswith(f"{folder}/{kind}/{repr(name)[1:-1]}.txt: the file's name: {name!r} is not an emotion name")
    assert message.isprintable()


HOSTILE: dict[str, dict[str, str | bytes]] = {
    "no emotion": {"stories/\x1b[1mjoy.txt": "x"},
    "misplaced": {"\x1b[1mjoy.txt": "x"},
    "no baseline": {"paired/\x1b[1m/joy.txt": "x"},
    "empty": {"stories/_\x1b[1m.txt": " "},
    "not UTF-8": {"stories/_\x1b[1m.txt": b"\xff"},
    "no text": {"stories/_\x1b[1m\udcff.txt": "x"},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_names_are_shown_safely(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, HOSTILE[kind])
    with pytest.raises(UserError) as caught:
        canonical("s", read_stories(folder, {}))
    message = str(caught.value)
    assert message.startswith(f"{folder}/")
    assert r"\x1b[1m" in message
    assert message.isprintable()


def test_a_name_whose_bytes_are_no_text_is_refused_as_a_key(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"stories/joy.txt": "x"})
    (folder / "stories" / os.fsdecode(b"_caf\xe9.txt")).write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="'key' holds half a surrogate pair"):
        canonical("s", read_stories(folder, {}))
    nodes, skipped = canonical("s", read_stories(folder, {}), skip_bad=True)
    assert [node.key for node in nodes] == ["stories/joy.txt"]
    assert [bad.key for bad in skipped] == ["stories/_caf?.txt"]


@pytest.mark.parametrize("name", ["stories/joy.txt", "direct/joy.txt", "_neutral.txt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": the text is empty"),
        (b"\xef\xbb\xbf \r\n\t\n", ": the text is empty"),
        (b"caf\xe9", r":1: not UTF-8 \(unexpected end of data\)"),
        (b"\xef\xbb\xbfRain.\n\nA caf\xe9.\n", r":3: not UTF-8 \(invalid continuation byte\)"),
        ("Rain".encode("utf-16"), r":1: not UTF-8 \(invalid start byte\)"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = folder_of(tmp_path, {name: content})
    with pytest.raises(UserError, match=rf"^{folder}/{name}{message}$"):
        list(read_stories(folder, {}))


@pytest.mark.parametrize("name", ["stories/joy.TXT", "direct/joy.md", "paired/kitchen/notes.json"])
def test_a_file_that_would_be_passed_over_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "texts" / name
    path.parent.mkdir(parents=True)
    path.write_text("x")
    with pytest.raises(UserError, match=rf"{name}: in a stories folder a text's name ends in \.txt"):
        list(read_stories(tmp_path / "texts", {}))
