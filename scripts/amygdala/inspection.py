"""All files of a build, each checked in the order of the data, so that what is sound can be held against what comes after."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from amygdala import checks, rowchecks
from amygdala.build import Build
from amygdala.checks import DamagedFileError
from amygdala.errors import UserError
from amygdala.exampleset import Example, shard_of
from amygdala.inventory import Stored, Target
from amygdala.modelinfo import converted_problem
from amygdala.progress import Ticker
from amygdala.segments import Mapped, layer_folder, space_of
from amygdala.stamps import Made

DAMAGED, MISSING, CHANGED, UNREADABLE, UNSTAMPED = "damaged", "missing", "changed", "cannot be read", "without a stamp"
RESULTS, SEGMENTS, GRAPH_INDEX = "results", "segments", "graph index"  # stages that are no folder of the store
MOST_OPEN = 256  # segments that stay mapped between indices


@dataclass(frozen=True)
class Finding:
    """A file that is not as it should be. what: DAMAGED, MISSING, CHANGED (a published copy), UNREADABLE (for want of
    rights, say: it may be sound) or UNSTAMPED (it says nothing of its key).
    """

    what: str
    path: str
    stage: str
    why: str = ""


class Inspection:
    """Checks files one by one. found: what is wrong; files, bytes, rows: how much was checked."""

    def __init__(self, build: Build, tick: Ticker) -> None:
        self.build, self.tick = build, tick
        self.found: list[Finding] = []
        self.files = self.bytes = self.rows = 0
        self._seen: dict[str, bool] = {}
        self._examples: dict[str, list[Example]] = {}
        self._vectors: dict[tuple[str, int], np.ndarray] = {}
        self._texts: dict[str, set[str]] = {}
        self._segments: dict[Path, Mapped | None] = {}
        self._quality = Draft202012Validator(
            json.loads((build.home / "schemas" / "quality.schema.json").read_text(encoding="utf-8"))
        )

    def sound(self, path: str) -> bool:
        """Whether the file was checked and is as it should be."""
        return self._seen.get(path, False)

    def stored(self, file: Stored) -> None:
        """Check a stored file, once."""
        if file.path in self._seen:
            return
        self._seen[file.path] = False
        if not Path(file.path).exists():
            if file.stage == "models" and Path(file.path).with_suffix("").exists():
                self._tell(DAMAGED, file.path, file.stage, "missing, and with it what its folder should hold")
            else:
                self._tell(MISSING, file.path, file.stage)
            if file.stage == "activations":
                self._whole_layers(file)
            return
        try:
            made = self._check(file)
            if made is None:
                self._tell(UNSTAMPED, file.path, file.stage, "its key was not checked")
            else:
                checks.check_made(made, file.key)
            self._seen[file.path] = True
        except DamagedFileError as error:
            self._tell(DAMAGED, file.path, file.stage, str(error))
            if file.stage == "activations":
                self._whole_layers(file)
        except (OSError, UserError) as error:
            self._tell(UNREADABLE, file.path, file.stage, str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._tell(DAMAGED, file.path, file.stage, f"unreadable ({type(error).__name__}: {error})")
        self._count(Path(file.path))

    def published(self, target: Target) -> None:
        """Hold what is published against what is stored."""
        for shown, stored in target.published.items():
            if not Path(shown).exists():
                self._tell(MISSING, shown, RESULTS)
            elif self.sound(stored) and Path(shown).read_bytes() != Path(stored).read_bytes():
                self._tell(CHANGED, shown, RESULTS, f"it is not {stored}")
            self._count(Path(shown))

    def _tell(self, what: str, path: str, stage: str, why: str = "") -> None:
        self.found.append(Finding(what, path, stage, why))

    def _count(self, path: Path) -> None:
        self.files += 1
        self.bytes += path.stat().st_size if path.exists() else 0
        self.tick(f"{self.files} files, {self.bytes / 1e6:.1f} MB, {self.rows} rows")

    def _check(self, file: Stored) -> Made | None:
        by_stage: dict[str, Callable[[Stored], Made | None]] = {
            "snapshots": lambda file: checks.check_snapshot(file.path, self.build.plan.graph["nodes"]),
            GRAPH_INDEX: self._graph_index,
            "examples": self._examples_of,
            "texts": self._texts_of,
            "models": self._model,
            "activations": self._index,
            "weights": self._weights,
            "vectors": self._vector,
            "releases": self._release,
        }
        if file.stage in by_stage:
            return by_stage[file.stage](file)
        if not file.path.endswith(".json"):
            return checks.read_stamped(file.path)[1]
        value, made = checks.read_object(file.path)
        self._object(file, value)
        return made

    def _object(self, file: Stored, value: dict[str, Any]) -> None:
        """A JSON file of figures."""
        build = self.build
        if file.stage == "heads" and file.layer is not None:
            checks.check_heads(value, file.layer)
        elif file.stage == "figures" and file.layer is None and value["counts"] != build.plan.emotions[file.emotion]["counts"]:
            raise DamagedFileError("its counts are not those of its key")
        elif file.stage == "figures" and file.layer is not None and not {"held_out", "neuron"} <= value.keys():
            raise DamagedFileError("it holds no figures of a layer")
        elif file.stage == "quality":
            wrong = next(self._quality.iter_errors(value), None)
            if wrong is not None or sorted(value["emotions"]) != build.emotions or value["layers"] != build.layers:
                reason = "its emotions or layers are others" if wrong is None else f"{wrong.json_path}: {wrong.message[:80]}"
                raise DamagedFileError(f"it does not fit schemas/quality.schema.json or its key ({reason})")
        elif file.stage == "tokens" and sorted(value["emotions"]) != build.emotions:
            raise DamagedFileError("its emotions are not those of its key")
        elif file.stage == "compare" and file.emotion and value["emotion"] != file.emotion:
            raise DamagedFileError("it is of another emotion")

    def _graph_index(self, file: Stored) -> Made | None:
        snapshot = self.build.snapshot
        return checks.check_graph_index(file.path, snapshot if self.sound(snapshot) else None)[1]

    def _examples_of(self, file: Stored) -> Made | None:
        value, made = checks.read_object(file.path)
        facts = self.build.plan.emotions[file.emotion]
        self._examples[file.emotion] = checks.check_examples(value, file.emotion, facts["examples"])
        return made

    def _texts_of(self, file: Stored) -> Made | None:
        value, made = checks.read_object(file.path)
        texts = {text.digest for text in checks.check_texts(value["examples"])}
        if file.path == self.build.texts("neutral") and texts != {text.digest for text in self.build.neutral}:
            raise DamagedFileError("its texts are not those of its key")
        self._texts[file.path] = texts
        return made

    def _model(self, file: Stored) -> Made | None:
        value, made = checks.read_object(file.path)
        if value.get("identity") != self.build.model.identity:
            raise DamagedFileError("it is of another model")
        if self.build.model.converted:
            folder = Path(file.path).with_suffix("")
            if problem := converted_problem(folder):
                raise DamagedFileError(f"its folder {problem}")
            for part in folder.iterdir():
                self._count(part)
        return made

    def _weights(self, file: Stored) -> Made | None:
        assert file.layer is not None
        made = checks.read_arrays(file.path)[2]
        checks.check_weights(file.path, file.layer)
        return made

    def _vector(self, file: Stored) -> Made | None:
        assert file.layer is not None
        tensors, facts, made = checks.read_arrays(file.path)
        training = self.build.plan.emotions[file.emotion]["training"]
        self._vectors[file.emotion, file.layer] = checks.check_vector(tensors, facts, file.emotion, file.layer, training)
        return made

    def _release(self, file: Stored) -> Made | None:
        chosen = self.build.releases[file.key]
        vectors, manifest = self.build.release(chosen)
        if file.path == vectors:
            tensors, _, made = checks.read_arrays(file.path)
            checks.check_release(tensors, chosen.emotions, chosen.layers, self._vectors)
            return made
        value, made = checks.read_object(manifest)
        if self.sound(vectors):
            checks.check_manifest(value, vectors, chosen.emotions, chosen.layers)
        return made

    # Activations

    def _index(self, file: Stored) -> Made | None:
        recipe = self.build.recipes[file.key]
        index = rowchecks.check_index(file.path, recipe, self._texts_in(file.key))
        space = space_of(file.path)
        for layer, names in index.facts["segments"].items():
            paths = {name: layer_folder(space, int(layer)) / name for name in names}
            held = {name: self._segment(path) for name, path in paths.items()}
            rowchecks.check_places(index, int(layer), {name: one for name, one in held.items() if one is not None})
        lost = [name for layer, names in index.facts["segments"].items() for name in names if self._is_lost(space, layer, name)]
        if lost:
            raise DamagedFileError(f"it names rows that are lost with {len(lost)} segments")
        return index.made_from

    def _is_lost(self, space: Path, layer: str, name: str) -> bool:
        return not self._seen[str(layer_folder(space, int(layer)) / name)]

    def _texts_in(self, index_key: str) -> set[str] | None:
        """The texts that an index must hold; None where a file that tells them is not sound."""
        capture = self.build.captures[index_key]
        if capture.texts == (self.build.texts("unseen"),):
            return self._texts.get(capture.texts[0])
        if not all(self.sound(path) for path in capture.texts):
            return None
        digests = {example.digest for examples in self._examples.values() for example in examples}
        digests |= {text.digest for text in self.build.neutral}
        return {digest for digest in digests if shard_of(digest, capture.shards) == capture.shard}

    def _segment(self, path: Path) -> Mapped | None:
        """The segment, checked once; None where it is damaged."""
        if str(path) not in self._seen:
            self._seen[str(path)] = False
            if not path.exists():
                self._tell(MISSING, str(path), SEGMENTS)
            else:
                try:
                    mapped = rowchecks.check_segment(path, space_of(path).name)
                    self._seen[str(path)] = True
                    if mapped.made_from is None:
                        self._tell(UNSTAMPED, str(path), SEGMENTS, "its key was not checked")
                    self.rows += len(mapped.array("digests"))
                    self._segments[path] = mapped
                    if len(self._segments) > MOST_OPEN:
                        self._segments.pop(next(iter(self._segments)))
                except DamagedFileError as error:
                    self._tell(DAMAGED, str(path), SEGMENTS, str(error))
                except (OSError, UserError) as error:
                    self._tell(UNREADABLE, str(path), SEGMENTS, str(error))
                self._count(path)
        if path not in self._segments:
            return rowchecks.open_mapped(path) if self._seen[str(path)] else None
        return self._segments[path]

    def _whole_layers(self, file: Stored) -> None:
        """An index that cannot be read does not name its segments: all of its layers are looked through."""
        for layer in self.build.captures[file.key].layers:
            for path in sorted(layer_folder(space_of(file.path), layer).glob("*.safetensors")):
                self._segment(path)


def inspect(build: Build, targets: Iterable[Target], tick: Ticker) -> Inspection:
    """Check what the readout rests on, and what was made beside it and is published."""
    inspection = Inspection(build, tick)
    for target in targets:
        if target.name == "readout" or target.made:
            for file in target.stored:
                inspection.stored(file)
        else:
            for file in target.stored:
                if Path(file.path).exists():
                    inspection.stored(file)
        if target.made:
            inspection.published(target)
    return inspection
