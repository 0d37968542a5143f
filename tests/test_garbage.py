"""What gc keeps and deletes, on stores made without Snakemake."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import garbage as script
import tiny
from amygdala import garbage, layout, roots, trash
from amygdala.build import check
from amygdala.errors import UserError
from amygdala.segments import Reader
from stores import LAYER, FakeStore, digest

MINE, YOURS = "/mine/results", "/yours/results"
Say = list[str]


@pytest.fixture
def fake(tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path / "store")


def look(
    fake: FakeStore, keep: int = 1, releases: tuple[str, ...] = (), days: float = 0, mine: str = MINE
) -> script.Collection:
    return script.Collection(str(fake.folder), settings(keep, releases, days), roots.root_id(mine))


def settings(keep: int = 1, releases: tuple[str, ...] = (), days: float = 0) -> dict[str, Any]:
    return {"keep": keep, "releases": list(releases), "grace_days": days}


def collect(fake: FakeStore, confirmed: str | None = None, said: Say | None = None, **given: Any) -> dict[str, Any]:
    told = [] if said is None else said
    return script.collect(str(fake.folder), settings(**given), roots.root_id(MINE), confirmed, told.append)


def emptied(fake: FakeStore, **given: Any) -> dict[str, Any]:
    """gc, confirmed."""
    return collect(fake, collect(fake, **given)["token"], **given)


def there(fake: FakeStore, paths: list[str]) -> bool:
    return all((fake.folder / path).exists() for path in paths)


def test_nothing_goes_unconfirmed_or_with_another_token(fake: FakeStore) -> None:
    fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [2, 3]})
    before, said = fake.files(), Say()
    report = collect(fake, None, said)
    assert report["dead"] and report["deleted"] is None
    assert f"snakemake --cores 1 gc --config gc_confirm={report['token']}" in said[-1]
    said.clear()
    assert collect(fake, "delete-0123456789ab", said)["deleted"] is None
    assert any("'delete-0123456789ab' confirms another list" in line for line in said)
    assert fake.files() == before


def test_what_was_shown_is_what_goes(fake: FakeStore) -> None:
    _, old = fake.build(MINE, {"joy": [1, 2], "calm": [7, 8]})
    _, new = fake.build(MINE, {"joy": [2, 3], "calm": [7, 8]})
    before = fake.files()
    report = collect(fake)
    done = collect(fake, report["token"])
    assert sorted(done["deleted"]) == sorted(report["dead"])
    assert set(before) - set(fake.files()) == set(report["dead"]) == set(old) - set(new)
    assert there(fake, new)
    assert [(root["id"], root["results"]) for root in report["roots"]] == [(roots.root_id(MINE), MINE)]
    assert {path: before[path] for path in fake.files()} == fake.files()
    assert not (fake.folder / "trash").exists()
    said = Say()
    assert collect(fake, None, said)["dead"] == [] and said[-1] == "nothing to delete"


def test_an_emptied_folder_goes_and_one_in_use_stays(fake: FakeStore) -> None:
    _, old = fake.build(MINE, {"joy": [1, 2]}, pooling="mean")
    _, new = fake.build(MINE, {"joy": [1, 3]}, pooling="last")
    emptied(fake)
    for path in set(old) - set(new):
        folder = Path(path).parent
        assert (fake.folder / folder).exists() == any(Path(other).is_relative_to(folder) for other in new), path
    assert (fake.folder / "snapshots").is_dir()


def test_the_last_so_many_of_each_results_folder_stay(fake: FakeStore) -> None:
    mine = [fake.build(MINE, {"joy": [1, number]}) for number in (2, 3, 4, 5)]
    yours = [fake.build(YOURS, {"grief": [11, number]}) for number in (12, 13, 14)]
    emptied(fake, keep=2)
    assert [there(fake, paths) for _, paths in mine] == [False, False, True, True]
    assert [there(fake, paths) for _, paths in yours] == [False, True, True]


def test_the_last_build_stays_with_keep_0_and_unfinished_ones_count_for_none(fake: FakeStore) -> None:
    first = fake.build(MINE, {"joy": [1, 2]})
    second = fake.build(MINE, {"joy": [1, 3]})
    fake.build(MINE, {"joy": [1, 4]}, finished=False)
    fake.build(MINE, {"joy": [1, 5]}, finished=False)
    found = look(fake, keep=1)
    assert [one.why for one in found.kept] == ["among the last 1", "the last build"]
    assert found.kept[0].release == second[0]
    third = fake.build(MINE, {"joy": [1, 6]})
    emptied(fake, keep=0)
    assert [there(fake, paths) for _, paths in (first, second, third)] == [False, False, True]


def test_a_build_that_comes_back_is_the_last_again(fake: FakeStore) -> None:
    first = fake.build(MINE, {"joy": [1, 2]})
    second = fake.build(MINE, {"joy": [1, 3]})
    assert fake.build(MINE, {"joy": [1, 2]})[0] == first[0]
    emptied(fake, keep=1)
    assert [there(fake, paths) for _, paths in (first, second)] == [True, False]


@pytest.mark.parametrize("rooted", [True, False])
def test_a_named_release_stays_with_all_that_it_rests_on(fake: FakeStore, rooted: bool) -> None:
    """Also one whose root is gone: its recipes say what it rests on."""
    named, paths = fake.build(MINE, {"joy": [1, 2], "calm": [8, 9]}, code="old", pooling="last")
    _, others = fake.build(MINE, {"joy": [1, 3]})
    fake.build(MINE, {"joy": [1, 4]})
    if not rooted:
        (fake.folder / "roots" / roots.root_id(MINE) / f"{named}.json").unlink()
        paths.remove(next(path for path in paths if path.startswith("memo/")))
    emptied(fake, keep=0, releases=(named[:6],))
    assert there(fake, paths) and not there(fake, others)
    assert f"named in gc.releases: {named[:6]}" in {one.why for one in look(fake, 0, (named[:6],)).kept}
    Reader([fake.folder / path for path in paths if "/index/" in path]).rows(LAYER, "residual", [digest(8), digest(2)])


@pytest.mark.parametrize("content", ["cut", "[]", '{"snapshot": "x"}'])
def test_a_named_release_whose_manifest_cannot_be_read_stops_everything(fake: FakeStore, content: str) -> None:
    """Without a root, no other file tells which snapshot and activations it rests on."""
    named, _ = fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [1, 3]})
    (fake.folder / "roots" / roots.root_id(MINE) / f"{named}.json").unlink()
    (fake.folder / f"releases/{named}/manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"releases/{named}/manifest\.json cannot be read, .* Nothing was deleted"):
        look(fake, 0, (named,))


def test_a_name_that_fits_no_release_or_several_stops_everything(fake: FakeStore) -> None:
    release, _ = fake.build(MINE, {"joy": [1, 2]})
    with pytest.raises(UserError, match=r"gc\.releases: 'ffff' fits no release of the store\. Nothing was deleted"):
        look(fake, releases=("ffff",))
    with pytest.raises(UserError, match="several releases of the store: 'aa11', 'aa12'"):
        garbage.named(["aa1"], ["aa11", "aa12", "bb11"])
    assert garbage.named(["aa11", "bb"], ["aa11", "aa12", "bb11"]) == {"aa11": "aa11", "bb11": "bb"}
    assert look(fake, releases=(release,)).dead == []


def test_what_results_show_stays(fake: FakeStore, tmp_path: Path) -> None:
    """Also a release that no root names, as after going back to one of another workflow."""
    results = tmp_path / "results"
    shown, paths = fake.build(YOURS, {"joy": [1, 2]})
    fake.build(YOURS, {"joy": [1, 3]})
    fake.build(str(results), {"joy": [1, 4]})
    marker = results / ".current" / f"readout.{shown}"
    marker.parent.mkdir(parents=True)
    marker.write_text("")
    own, _ = fake.build(str(results), {"joy": [1, 5]})
    fake.build(str(results), {"joy": [1, 6]})
    marker.with_name(f"readout.{own}").write_text("")
    found = look(fake, keep=0, mine=str(results))
    assert (own, str(results), "shown in results") in {(one.release, one.results, one.why) for one in found.kept}
    assert (shown, "", "shown in results") in {(one.release, one.results, one.why) for one in found.kept}
    found.delete(garbage.token(found.dead))
    assert there(fake, [path for path in paths if not path.startswith("memo/")])


def test_a_release_shown_without_a_build_is_a_root_too(fake: FakeStore) -> None:
    shown, paths = fake.build(YOURS, {"joy": [1, 2]})
    fake.build(YOURS, {"joy": [1, 3]})
    roots.save(fake.folder, roots.entry_of_release(fake.folder, MINE, shown))
    emptied(fake, keep=0)
    assert there(fake, [path for path in paths if not path.startswith("memo/")])


def test_a_release_of_its_own_that_a_folder_shows_again_keeps_what_is_known_of_it(fake: FakeStore) -> None:
    own, _ = fake.build(MINE, {"joy": [1, 2]})
    path = next(Path(fake.folder).glob(f"roots/*/{own}.json"))
    before = roots.read_entry(path)
    again = roots.entry_of_release(fake.folder, MINE, own)
    assert again.time > before.time and again == dataclasses.replace(before, time=again.time) and again.keys
    path.write_text("cut")
    assert roots.entry_of_release(fake.folder, MINE, own).keys == frozenset()


def test_what_was_made_beside_a_kept_release_stays_and_goes_with_it(fake: FakeStore) -> None:
    """A comparison that the last build names no more, because its settings changed, still tells of living examples."""
    _, old = fake.build(MINE, {"joy": [1, 2]})
    _, new = fake.build(MINE, {"joy": [1, 3]})
    examples = [next(path for path in paths if path.startswith("examples/")).split(".")[1] for paths in (old, new)]
    from amygdala.files import write_json
    from amygdala.recipes import recipe_key
    from amygdala.stamps import Sheet, using

    made = []
    for one in examples:
        recipe = {"kind": "compare", "examples": one, "code": "0" * 16}
        merged = {"kind": "compare", "compared": {"joy": recipe_key(recipe)}}
        with using(Sheet({recipe_key(recipe): recipe, recipe_key(merged): merged})):
            made.append([f"compare/joy.{recipe_key(recipe)}.json", f"compare/compare.{recipe_key(merged)}.json"])
            for path in made[-1]:
                write_json(fake.folder / path, {})
    emptied(fake)
    assert there(fake, made[1]) and not any((fake.folder / path).exists() for path in made[0])
    assert not any((fake.folder / path).exists() for path in old if path.startswith(("overviews/", "reports/")))


def test_a_young_file_stays(fake: FakeStore) -> None:
    _, old = fake.build(MINE, {"joy": [1, 2]})
    _, new = fake.build(MINE, {"joy": [3, 4]})
    assert look(fake, days=1).dead == []
    fake.age(2)
    young = next(path for path in old if path.startswith("heads/"))
    fake.age(-1.5, young)
    assert {one.path for one in look(fake, days=1).dead} == set(old) - set(new) - {young}


# Segments


def test_a_segment_stays_for_one_living_row_and_its_dead_bytes_are_told(fake: FakeStore) -> None:
    _, old = fake.build(MINE, {"joy": [1, 2, 3, 4]})
    fake.build(MINE, {"joy": [4, 5, 6, 7]})
    segments = [path for path in old if "/layer_001/" in path and path.startswith("activations/")]
    found = look(fake)
    assert segments and not set(segments) & {one.path for one in found.dead}
    size = (fake.folder / segments[0]).stat().st_size
    assert script.dead_bytes(found) == round(size * 3 / 4)
    assert any("rows of no kept release" in line for line in script.lines_of(found))
    fake.build(MINE, {"joy": [5, 6, 7]})
    assert set(segments) <= {one.path for one in look(fake).dead}


def test_rows_of_an_unfinished_capture_stay(fake: FakeStore) -> None:
    """Its index is not there yet: which rows it stored is not known. Those of another space go."""
    _, other = fake.build(MINE, {"joy": [1, 2]}, pooling="last")
    _, first = fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [3, 4]}, finished=False)
    dead = {one.path for one in look(fake, keep=0).dead}
    assert not any("/layer_001/" in path for path in dead if path.startswith("activations/") and path in first)
    assert {path for path in other if path.startswith("activations/")} <= dead


def test_rows_of_a_kept_build_stay_where_nothing_has_needed_its_index_yet(fake: FakeStore) -> None:
    """As after an emotion was dropped: all vectors are there, so that no index over the remaining texts was made."""
    _, all_of = fake.build(MINE, {"joy": [1, 2], "calm": [8, 9]})
    _, dropped = fake.build(MINE, {"calm": [8, 9]})
    (fake.folder / next(path for path in dropped if "/index/" in path)).unlink()
    fake.build(MINE, {"grief": [20]})
    rows = [path for path in all_of if "/layer_001/" in path and path.startswith("activations/")]
    emptied(fake, keep=2)
    assert rows and there(fake, rows)
    fake.build(MINE, {"grief": [21]})
    emptied(fake, keep=2)
    assert not there(fake, rows)


@pytest.mark.parametrize(("held", "named", "share"), [("ab", "", 0), ("", "ab", 0), ("adz", "bdf", 1 / 3), ("bf", "bdf", 1)])
def test_the_share_of_rows_that_are_named(held: str, named: str, share: float) -> None:
    told = [np.array([letter.encode() * 16 for letter in letters], "S16") for letters in (held, named)]
    assert script._share(*told) == pytest.approx(share)


@pytest.mark.parametrize("what", ["/index/", "/layer_001/"])
def test_what_cannot_be_read_is_left_to_verify(fake: FakeStore, what: str) -> None:
    _, old = fake.build(MINE, {"joy": [1, 2]})
    _, new = fake.build(MINE, {"joy": [3, 4]})
    of = new if what == "/index/" else old
    path = next(path for path in of if what in path and path.startswith("activations/"))
    (fake.folder / path).write_bytes(b"damaged")
    dead = {one.path for one in look(fake).dead}
    segments = {one for one in [*old, *new] if "/layer_001/" in one and one.startswith("activations/")}
    assert not dead & (segments if what == "/index/" else {path})


# Leftovers, and what is not the store's


def test_leftovers_go_when_they_are_old_enough(fake: FakeStore) -> None:
    fake.build(MINE, {"joy": [1, 2]})
    key = "0123456789abcdef"
    left = [f"quality/.{key}.json.123-0a1b2c3d.tmp", f"quality/{key}.json.damaged", f"models/.{key}.abc.tmp/weights"]
    for path in left:
        fake.put(path)
    kinds = {one.path: one.kind for one in look(fake).files}
    assert kinds[left[0]] == layout.TEMPORARY and kinds[left[1]] == layout.SET_ASIDE
    assert {one.path for one in look(fake).dead} == {left[1]}  # whatever the grace, a file may still be being written
    fake.age(0.1, left[0], f"models/.{key}.abc.tmp")
    emptied(fake)
    assert not any((fake.folder / path).exists() for path in left)


def test_memos_of_kept_builds_and_of_files_stay(fake: FakeStore) -> None:
    _, old = fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [1, 3]})
    fake.put("memo/model.0123456789abcdef.json")
    dead = {one.path for one in look(fake).dead if one.path.startswith("memo/")}
    assert dead == {path for path in old if path.startswith("memo/")}


STRANGE = ["notes.txt", "quality/readme.md", "vectors/joy.0123/layer_001.safetensors", "mine/quality/0123456789abcdef.json"]


def test_unknown_files_are_counted_and_stay(fake: FakeStore) -> None:
    fake.build(MINE, {"joy": [1, 2]})
    for path in [*STRANGE, "quality/\x1b[31m.json", "ledger/a.json"]:
        fake.put(path)
    fake.age(100)
    found = look(fake)
    assert found.unknown == sorted(["notes.txt", "mine", "quality/\x1b[31m.json", *STRANGE[1:3]])
    assert found.dead == []
    assert "\x1b" not in "".join(script.lines_of(found)) + json.dumps(script.as_json(found, "", None))


def test_no_link_is_followed(fake: FakeStore, tmp_path: Path) -> None:
    """A file, a model's folder and a whole stage that lie elsewhere: links go as links, what they lead to stays as it is."""
    fake.build(MINE, {"joy": [1, 2]})
    key = "0123456789abcdef"
    elsewhere = FakeStore(tmp_path / "elsewhere")
    for path in (f"quality/{key}.json", f"models/{key}/config.json", f"tokens/{key}.json"):
        elsewhere.put(path)
    (fake.folder / f"quality/{key}.json").symlink_to(elsewhere.folder / f"quality/{key}.json")
    (fake.folder / "models").mkdir()
    (fake.folder / f"models/{key}").symlink_to(elsewhere.folder / f"models/{key}")
    (fake.folder / "tokens").symlink_to(elsewhere.folder / "tokens")
    refused = fake.folder / f"quality/{key[::-1]}.json.damaged"
    refused.symlink_to(elsewhere.folder / f"quality/{key[::-1]}.json")
    before = elsewhere.files()
    done = emptied(fake)
    assert sorted(done["deleted"]) == [f"models/{key}", f"quality/{key}.json"]
    assert elsewhere.files() == before and not (fake.folder / f"quality/{key}.json").is_symlink()
    assert (fake.folder / "tokens").is_symlink() and look(fake).unknown == ["tokens"]
    assert refused.is_symlink()  # which read-only store not to ask again


def test_segments_behind_links_are_told_by_their_rows(fake: FakeStore, tmp_path: Path) -> None:
    _, paths = fake.build(MINE, {"joy": [1, 2]})
    segment = next(path for path in paths if "/layer_001/" in path and path.startswith("activations/"))
    (fake.folder / segment).rename(tmp_path / "moved")
    (fake.folder / segment).symlink_to(tmp_path / "moved")
    stale = fake.folder / segment.replace(Path(segment).stem, "0" * 16)
    stale.symlink_to(tmp_path / "nowhere")
    assert [one.path for one in look(fake).dead] == [stale.relative_to(fake.folder).as_posix()]


HOSTILE = {
    "not JSON": "{",
    "a list": "[]",
    "no keys": '{"results": "/a", "host": "h", "time": 1, "release": "0123456789abcdef"}',
    "a path for a key": '{"results": "/a", "host": "h", "time": 1, "release": "r", "keys": ["."], "awaits": [], "memos": []}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_root_stops_everything(fake: FakeStore, content: str) -> None:
    """What it kept is not known: nothing may be deleted."""
    fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [1, 3]})
    fake.put("roots/0123456789abcdef/r.json", content)
    with pytest.raises(UserError, match=r"roots/0123456789abcdef/r\.json' is damaged.*build writes its own anew"):
        look(fake)


def test_hostile_names_in_roots_delete_nothing_outside(fake: FakeStore, tmp_path: Path) -> None:
    fake.build(MINE, {"joy": [1, 2]})
    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    paths = ("../../outside.json", "activations/", "activations/../../../outside.json", "/etc/passwd")
    entry = roots.Entry("\x1b[2J/../..", "h", 5.0, "old", frozenset(), paths, paths)
    told = {**vars(entry), "keys": []}
    fake.put("roots/0123456789abcdef/old.json", json.dumps(told))
    fake.put("roots/0123456789abcdef/new.json", json.dumps({**told, "release": "new", "time": 9}))
    fake.put("roots/README")
    elsewhere = tmp_path / "elsewhere"  # a root that is a link: its old entries are not the store's to delete
    shutil.copytree(fake.folder / "roots/0123456789abcdef", elsewhere)
    (fake.folder / "roots/fedcba9876543210").symlink_to(elsewhere)
    fake.put(f"quality/{'0' * 16}.json")
    said = Say()
    assert collect(fake, collect(fake)["token"], said)["deleted"] == [f"quality/{'0' * 16}.json"]
    assert outside.read_text() == "mine" and "\x1b" not in "".join(said)
    assert (fake.folder / "roots/README").exists() and len(list(elsewhere.iterdir())) == 2
    assert [path.name for path in (fake.folder / "roots/0123456789abcdef").iterdir()] == ["new.json"]


def test_an_entry_that_calls_itself_by_another_path_is_damaged(fake: FakeStore, tmp_path: Path) -> None:
    """Else a gc would move that file as a stale entry."""
    fake.build(MINE, {"joy": [1, 2]})
    (tmp_path / "outside.json").write_text("mine")
    for number, name in enumerate(("../../../outside", "new")):
        told = {"results": "/a", "host": "h", "time": number, "release": name, "keys": [], "awaits": [], "memos": []}
        fake.put(f"roots/0123456789abcdef/{'old' if number == 0 else name}.json", json.dumps(told))
    fake.put(f"quality/{'0' * 16}.json")
    with pytest.raises(UserError, match=r"roots/0123456789abcdef/old\.json' is damaged"):
        collect(fake)
    assert (tmp_path / "outside.json").read_text() == "mine"


def test_a_store_that_cannot_be_written_says_so(fake: FakeStore) -> None:
    """Then this build's root is not there."""
    fake.build(YOURS, {"joy": [1, 2]})
    with pytest.raises(UserError, match="cannot be written, so that nothing in it can be deleted"):
        look(fake)


# Deletion beside builds, and cut short


def test_a_build_planned_meanwhile_gets_its_files_back(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, old = fake.build(MINE, {"joy": [1, 2], "calm": [8, 9]})
    fake.build(MINE, {"joy": [1, 3]})
    entry = fake.entry(MINE, first)
    before, said = fake.files(), Say()
    found = look(fake)
    take = trash.Trash.take

    def taken(self: trash.Trash, paths: Any) -> None:
        """Another workflow's build is planned when all has been moved."""
        take(self, paths)
        assert not there(fake, old)
        told = {**entry, "results": YOURS, "time": fake.clock + 1, "memos": []}
        fake.put(f"roots/{roots.root_id(YOURS)}/{first}.json", json.dumps(told))

    monkeypatch.setattr(trash.Trash, "take", taken)
    gone = found.delete(garbage.token(found.dead), said.append)
    wanted = [path for path in old if not path.startswith("memo/")]
    assert there(fake, wanted) and [one.path for one in gone] == [path for path in old if path.startswith("memo/")]
    assert f"{len(found.dead) - len(gone)} files stay: a build that began meanwhile" in said[0]
    assert all(before[path] == content for path, content in fake.files().items())


def test_a_build_planned_while_segments_were_read_keeps_its_files(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it names is moved even for a moment: its jobs may be running by then."""
    first, old = fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [3, 4]})
    entry = fake.entry(MINE, first)
    found = look(fake)
    assert {path for path in old if "/layer_001/" in path} <= {one.path for one in found.dead}
    fake.put(f"roots/{roots.root_id(YOURS)}/{first}.json", json.dumps({**entry, "results": YOURS}))
    taken: list[str] = []
    take = trash.Trash.take
    monkeypatch.setattr(trash.Trash, "take", lambda self, paths: take(self, [taken.append(path) or path for path in paths]))
    found.delete(garbage.token(found.dead))
    assert there(fake, old) and not set(taken) & set(old)


def test_a_root_written_again_meanwhile_stays(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, old = fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [1, 3]})
    entry = fake.entry(MINE, first)
    found = look(fake)
    take = trash.Trash.take

    def planned_again(self: trash.Trash, paths: Any) -> None:
        fake.put(f"roots/{roots.root_id(MINE)}/{first}.json", json.dumps({**entry, "time": fake.clock + 1}))
        take(self, paths)

    monkeypatch.setattr(trash.Trash, "take", planned_again)
    found.delete(garbage.token(found.dead))
    assert there(fake, old)
    assert fake.entry(MINE, first)["time"] == fake.clock + 1


def test_a_root_written_again_while_segments_were_read_stays(fake: FakeStore) -> None:
    """Its files stay, and so must what keeps them from the next gc."""
    first, old = fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [3, 4]})
    entry = fake.entry(MINE, first)
    found = look(fake)
    fake.put(f"roots/{roots.root_id(MINE)}/{first}.json", json.dumps({**entry, "time": fake.clock + 1}))
    found.delete(garbage.token(found.dead))
    assert there(fake, old) and fake.entry(MINE, first)["time"] == fake.clock + 1
    emptied(fake, keep=0)
    assert there(fake, old)


def test_two_gcs_at_once_tell_the_truth(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second puts back what the first has moved, as that of a killed one."""
    fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [3, 4]})
    before, found, said, take = fake.files(), look(fake), Say(), trash.Trash.take

    def taken(self: trash.Trash, paths: Any) -> None:
        take(self, paths)
        assert trash.recover(fake.folder) > len(found.dead)

    monkeypatch.setattr(trash.Trash, "take", taken)
    assert found.delete(garbage.token(found.dead), said.append) == []
    assert fake.files() == before and f"{len(found.dead)} files stay" in said[0]


def test_what_another_gc_empties_meanwhile_is_passed_over(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.put(f"trash/delete-0123456789ab-01234567/quality/{'0' * 16}.json")
    iterate = Path.iterdir

    def emptied_first(self: Path) -> Any:
        if self.name == "quality":
            shutil.rmtree(self)
        return iterate(self)

    monkeypatch.setattr(Path, "iterdir", emptied_first)
    assert trash.recover(fake.folder) == 0


def test_a_root_that_goes_while_it_is_read_is_none(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = fake.build(MINE, {"joy": [1, 2]})
    second, _ = fake.build(MINE, {"joy": [1, 3]})
    read = Path.read_bytes

    def gone(self: Path) -> bytes:
        if self.stem == first:
            self.unlink()
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", gone)
    assert [entry.release for root in roots.read_roots(fake.folder) for entry in root.entries] == [second]


def test_a_root_that_may_not_be_read_is_not_called_damaged(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.build(MINE, {"joy": [1, 2]})

    def refused(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(UserError, match=r"\.json'?: Permission denied\. Ask its owner"):
        look(fake)


def test_roots_of_what_went_go_too(fake: FakeStore) -> None:
    fake.build(MINE, {"joy": [1, 2]})
    second, _ = fake.build(MINE, {"joy": [1, 3]})
    emptied(fake)
    left = [path.stem for path in (fake.folder / "roots" / roots.root_id(MINE)).iterdir()]
    assert left == [second]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(6))
def test_a_gc_killed_halfway_is_put_back_or_finished_by_the_next(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """At any step: no kept file is lost, what was not deleted is listed again, and the next confirmed gc deletes it."""
    fake.build(MINE, {"joy": [1, 2]})
    _, new = fake.build(MINE, {"joy": [3, 4]})
    fake.put(f"models/{'0' * 16}/config.json")
    fake.put(f"models/{'0' * 16}/weights.safetensors")
    before = fake.files()
    report = collect(fake)
    with monkeypatch.context() as patch:
        steps = {"rename": 0}
        rename, rmtree = Path.rename, trash.shutil.rmtree

        def counted(self: Path, target: Path) -> Path:
            steps["rename"] += 1
            if (moment == 0 and steps["rename"] == 3) or (moment == 2 and ".gone" in str(target)):
                raise Killed
            return rename(self, target)

        def half(folder: Path, **options: Any) -> None:
            if moment == 3:
                raise Killed
            if moment == 4:
                next(path for path in folder.rglob("config.json")).unlink()
                raise Killed
            rmtree(folder, **options)
            if moment == 5:
                raise Killed

        def looked_again(self: script.Collection) -> list[str]:
            if moment == 1 and list((fake.folder / "trash").glob("*")):
                raise Killed
            return look_again(self)

        look_again = script.Collection.still_dead
        patch.setattr(Path, "rename", counted)
        patch.setattr(trash.shutil, "rmtree", half)
        patch.setattr(script.Collection, "still_dead", looked_again)
        with pytest.raises(Killed):
            collect(fake, report["token"])
    assert there(fake, new)
    assert moment >= 3 or len(list((fake.folder / "trash").rglob("*"))) > 2
    said = Say()
    again = collect(fake, None, said)
    if moment < 3:
        assert fake.files() == before and again["token"] == report["token"]
        assert "were put back: a gc before was stopped halfway" in said[0]
        collect(fake, again["token"])
    assert set(fake.files()) == set(before) - {
        *report["dead"],
        f"models/{'0' * 16}/config.json",
        f"models/{'0' * 16}/weights.safetensors",
    }


def test_strange_things_in_the_trash_stay(fake: FakeStore, tmp_path: Path) -> None:
    fake.build(MINE, {"joy": [1, 2]})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/quality").mkdir()
    (tmp_path / f"elsewhere/quality/{'0' * 16}.json").write_text("x")
    fake.put("trash/delete-0123456789ab-01234567/letter.txt")
    fake.put("trash/mine/letter.txt")
    (fake.folder / "trash/delete-0123456789ab-76543210").symlink_to(tmp_path / "elsewhere")
    (fake.folder / "trash/delete-0123456789ab-76543210.gone").symlink_to(tmp_path / "elsewhere")
    before = fake.files()
    assert trash.recover(fake.folder) == 0
    assert fake.files() == before and (tmp_path / f"elsewhere/quality/{'0' * 16}.json").exists()
    (fake.folder / "trash").rename(tmp_path / "trash")
    (fake.folder / "trash").symlink_to(tmp_path / "trash")
    with pytest.raises(UserError, match="is a link, which gc does not follow"):
        collect(fake)


def test_a_file_that_cannot_be_moved_puts_all_back(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.build(MINE, {"joy": [1, 2]})
    fake.build(MINE, {"joy": [1, 3]})
    before, report = fake.files(), collect(fake)
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self == fake.folder / report["dead"][3]:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(UserError, match=r"another file system than the store\. Nothing was deleted"):
        collect(fake, report["token"])
    assert fake.files() == before


# Random stores


@pytest.mark.parametrize("seed", range(25))
def test_whatever_was_built_all_that_is_kept_is_whole_and_nothing_else_is_left(fake: FakeStore, seed: int) -> None:
    draw = random.Random(seed)
    builds: dict[str, list[tuple[str, list[str]]]] = {}
    for _ in range(draw.randint(1, 9)):
        names = draw.sample(["joy", "calm", "grief"], draw.randint(1, 3))
        emotions = {name: draw.sample(range(12), draw.randint(1, 5)) for name in names}
        results = draw.choice([MINE, YOURS])
        given: Any = {"pooling": draw.choice(["mean", "last"]), "code": draw.choice("ab"), "beside": draw.random() < 0.5}
        made = fake.build(results, emotions, **given)
        of = builds.setdefault(results, [])
        of[:] = [one for one in of if one[0] != made[0]] + [made]
    if MINE not in builds:
        builds[MINE] = [fake.build(MINE, {"joy": [1, 2]})]
    keep = draw.randint(0, 3)
    named = draw.choice([one for of in builds.values() for one in of])
    kept = {release for of in builds.values() for release, _ in of[-max(keep, 1) :]} | {named[0]}
    wanted = {path for of in builds.values() for release, paths in of if release in kept for path in paths}
    done = emptied(fake, keep=keep, releases=(named[0],))
    files = fake.files()
    assert wanted <= set(files)
    for path in wanted:
        if "/index/" in path:
            reader = Reader([fake.folder / path])
            held = [row.tobytes().hex() for row in np.array(reader._tables[0][0].array("digests"))]
            reader.rows(LAYER, "residual", held)
    segments = {path for path in set(files) - wanted if "/layer_001/" in path and path.startswith("activations/")}
    assert set(files) - wanted == segments  # which hold a living row beside one that another segment has too
    assert not collect(fake, keep=keep, releases=(named[0],))["dead"]
    assert set(done["deleted"] or []).isdisjoint(files)


# Layout and roots


def test_paths_of_other_shapes_are_not_the_stores() -> None:
    key = "0123456789abcdef"
    for path in (
        *STRANGE,
        f"quality/{key}.json/../../x",
        f"quality/{key.upper()}.json",
        f"quality/{key}.json\n",
        f"quality/x{key}.json",
        f"vectors/a/b.{key}/layer_001.safetensors",
        f"models/{key}/config.json",
        f"quality/.{key}.json.1-zz.tmp",
        "quality/notes.damaged",
        f"examples/\x1b[2J.{key}.json",
        f"examples/\udcff.{key}.json",
        f"activations/{key}/layer_001/../../../{key}.safetensors",
    ):
        assert layout.kind_of(path) is None, path
    assert layout.described(f"activations/{key}/layer_012/{key}.safetensors", 1, 0.0) == layout.Stored(
        f"activations/{key}/layer_012/{key}.safetensors", "segments", "", 1, 0.0, space=key, layer=12
    )


def test_names_go_before_what_they_name() -> None:
    key = "0123456789abcdef"
    paths = [f"models/{key}", f"models/{key}.json", f"releases/{key}/manifest.json", f"examples/a.{key}.json"]
    files = [one for one in (layout.described(path, 1, 0.0) for path in paths) if one is not None]
    ordered = [one.path for one in sorted(files, key=garbage.order)]
    assert ordered == [paths[2], paths[3], paths[1], paths[0]]


def test_roots_of_two_machines_with_the_same_path_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    one = roots.root_id("/srv/results")
    assert roots.root_id("/srv/../srv/results") == one
    monkeypatch.setattr(roots.platform, "node", lambda: "another")
    assert roots.root_id("/srv/results") != one


def test_a_token_is_of_one_list() -> None:
    one, other = (layout.Stored(f"a{number}", "quality", "", 1, 0.0) for number in (1, 2))
    tokens = {garbage.token(files) for files in ([], [one], [other], [one, other])}
    assert len(tokens) == 4 and all(token.startswith("delete-") for token in tokens)
    assert garbage.token([one, other]) == garbage.token([other, one])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_950, "100 kB"), (3.2e9, "3.2 GB")]
)
def test_sizes_for_people(count: float, text: str) -> None:
    assert script.size_of(count) == text


def test_a_root_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    roots.save(tmp_path / "store", roots.Entry(MINE, "h", 1.0, "r", frozenset()))
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]


# The page


PAGE = (tiny.REPOSITORY / "docs/build.md").read_text(encoding="utf-8")


def test_the_pages_block_is_a_configuration() -> None:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(# what gc .*?)```", PAGE, re.DOTALL)]
    defaults = yaml.safe_load((tiny.REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    assert len(blocks) == 1 and blocks[0]["gc"].keys() == defaults["gc"].keys()
    check({**defaults, **blocks[0]}, tiny.REPOSITORY)
