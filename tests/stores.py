"""Stores as builds leave them, in milliseconds: small files at the real paths, stamped with recipes, with real segments."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amygdala import roots
from amygdala.files import write_json
from amygdala.keys import text_digest
from amygdala.recipes import recipe_key
from amygdala.segments import Mapped, Rows, as_keys, held_rows, write_index, write_segment
from amygdala.stamps import Sheet, using
from amygdala.tensors import write_tensors

LAYER, WIDTH = 1, 3


def digest(text: int) -> str:
    return text_digest(f"text {text}")


class FakeStore:
    """A store in `folder`. clock: the time of the next build; files are `age` seconds older than that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = 1_000_000.0

    def build(
        self,
        results: str,
        emotions: Mapping[str, Iterable[int]],
        pooling: str = "mean",
        code: str = "c",
        finished: bool = True,
        beside: bool = True,
    ) -> tuple[str, list[str]]:
        """A build of `emotions` ({name: its texts}); returns its release and the paths of all that it rests on.

        finished: False writes the root alone; beside: overview and report too.
        """
        recipes: dict[str, dict[str, Any]] = {}

        def add(kind: str, **ingredients: Any) -> str:
            made = recipe_key({"kind": kind, **ingredients})
            recipes[made] = {"kind": kind, **ingredients}
            return made

        texts = sorted(set().union(*map(set, emotions.values())))
        snapshot = add("snapshot", texts=texts)
        graph = add("graph index", snapshot=snapshot)
        space = add("space", pooling=pooling)
        weights = add("weights", code=code)
        index = add("index", spaces=[space], texts=recipe_key({"texts": texts}))
        files = {f"snapshots/{snapshot}.jsonl": "jsonl", f"snapshots/{snapshot}.{graph}.safetensors": "tensors"}
        files[f"weights/{weights}/layer_001.safetensors"] = "tensors"
        vectors, heads, figures = {}, {}, {}
        for emotion, given in emotions.items():
            listed = sorted(given)
            examples = add("examples", emotion=emotion, examples=listed)
            vectors[emotion] = add("vectors", emotion=emotion, space=space, training=listed, code=code)
            figures[emotion] = add("figures", examples=examples, vectors=vectors[emotion], weights=weights)
            heads[emotion] = add("heads", vectors=vectors[emotion], weights=weights)
            files[f"examples/{emotion}.{examples}.json"] = "json"
            files[f"vectors/{emotion}.{vectors[emotion]}/layer_001.safetensors"] = "tensors"
            files[f"heads/{emotion}.{heads[emotion]}/layer_001.json"] = "json"
            files[f"figures/{emotion}.{figures[emotion]}/texts.json"] = "json"
        quality = add("quality", figures=figures, heads=heads)
        release = add("release", target="readout", vectors=vectors, quality=quality, facts=recipe_key({"graph": snapshot}))
        overview = add("overview", release=release)
        report = add("report", release=release)
        files[f"quality/{quality}.json"] = "json"
        files[f"releases/{release}/vectors.safetensors"] = "tensors"
        files[f"releases/{release}/manifest.json"] = "manifest"
        if beside:
            files |= {f"overviews/{overview}.svg": "json", f"reports/{report}/report.html": "json"}
        place = f"activations/{space}/index/shard_0.{index}.safetensors"
        self.clock += 10
        memo = f"memo/plan.{recipe_key({'plan': release})}.json"
        entry = roots.Entry(results, "here", self.clock, release, frozenset(recipes), (place,), (memo,))
        write_json(roots.path_of(self.folder, entry), {**vars(entry), "keys": sorted(entry.keys)})
        if not finished:
            return release, []
        manifest = {"snapshot": {"key": snapshot}, "keys": {"activations": space, "quality": quality}}
        with using(Sheet(recipes)):
            for path, form in files.items():
                self._write(path, form, manifest)
            self._capture(self.folder / "activations" / space, [digest(text) for text in texts], self.folder / place)
        self.put(memo, "{}")
        return release, [*files, place, memo, *self.segments(place)]

    def _write(self, path: str, form: str, manifest: dict[str, Any]) -> None:
        target = self.folder / path
        if target.exists():
            return
        if form == "tensors":
            write_tensors(target, {"values": np.zeros(2, np.float32)}, {})
        else:
            write_json(target, manifest if form == "manifest" else {"of": path})

    def _capture(self, space: Path, digests: list[str], index: Path) -> None:
        held = held_rows(space, LAYER)
        missing = [one for one, place in zip(digests, held.find(as_keys(digests)), strict=True) if place < 0]
        if missing:
            ones = np.ones(len(missing), np.int32)
            rows = Rows(missing, np.ones((len(missing), WIDTH), np.float32), None, ones, ones, ones * 0)
            write_segment(space, LAYER, rows, {"reason": "none"})
        if not index.exists():
            write_index(index, np.sort(as_keys(digests)), {LAYER: held_rows(space, LAYER)}, {})

    def segments(self, index: str) -> list[str]:
        """Paths of the segments that an index names."""
        space = "/".join(index.split("/")[:2])
        names = Mapped(self.folder / index).facts["segments"][str(LAYER)]
        return [f"{space}/layer_{LAYER:03d}/{name}" for name in names]

    def put(self, path: str, content: str = "x") -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        return target

    def age(self, days: float, *paths: str) -> None:
        """Make files (all of the store, where none is named) older by so many days."""
        chosen = [self.folder / path for path in paths] or [path for path in self.folder.rglob("*") if not path.is_dir()]
        for path in chosen:
            stamp = path.lstat().st_mtime - days * 24 * 3600
            os.utime(path, (stamp, stamp), follow_symlinks=False)

    def files(self) -> dict[str, bytes]:
        """{path: bytes} of all but the roots."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file() and not path.is_symlink())
        named = {path.relative_to(self.folder).as_posix(): path for path in found}
        return {name: path.read_bytes() for name, path in named.items() if not name.startswith("roots/")}

    def entry(self, results: str, release: str) -> dict[str, Any]:
        path = self.folder / "roots" / roots.root_id(results) / f"{release}.json"
        return json.loads(path.read_bytes())
