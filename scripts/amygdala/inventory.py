"""The files that a build names: what its release rests on, what was made beside it, and what is published of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amygdala.build import Build, Selection
from amygdala.files import recall

REPORT = "verify.json"  # below results/: what `verify` found, and what the next run repairs


@dataclass(frozen=True)
class Stored:
    """A file of the store. stage: its folder there; key: of its recipe; emotion, layer: where the file is of one alone."""

    stage: str
    path: str
    key: str
    emotion: str = ""
    layer: int | None = None


@dataclass(frozen=True)
class Target:
    """What a person can ask for. marker: there where it was made; stored: the files that it rests on, in the order of the data;
    published: {path below results/: the stored file that it is a copy of}.
    """

    name: str
    marker: str
    stored: tuple[Stored, ...]
    published: dict[str, str]

    @property
    def made(self) -> bool:
        return Path(self.marker).exists()


def targets_of(build: Build) -> list[Target]:
    """The readout first, then what may have been made beside it. The build must have layers."""
    readout = build.selections["readout"]
    found = [Target("readout", build.marker(readout), tuple(_readout(build)), _published(build, readout))]
    for chosen in build.selections.values():
        if chosen is not readout:
            found.append(Target(chosen.target, build.marker(chosen), tuple(_release(build, chosen)), _published(build, chosen)))
    return [*found, _report(build), *(_comparison(build, name) for name in ("compare", "sweep")), *_measured(build)]


def _readout(build: Build) -> Iterator[Stored]:
    current = build.current
    yield Stored("snapshots", build.snapshot, current.key)
    yield Stored("graph index", current.index_path, Path(current.index_path).name.split(".")[1])
    for emotion in build.emotions:
        yield Stored("examples", build.examples(emotion), build.example_keys[emotion], emotion)
    if build.neutral:
        yield Stored("texts", build.texts("neutral"), build.texts_keys["neutral"])
    if build.model.kind != "folder":
        yield Stored("models", build.model_ready, build.model_key)
    yield from _indices(build.all_indices)
    for layer, path in zip(build.layers, build.weights(), strict=True):
        yield Stored("weights", path, build.weights_key, layer=layer)
    for emotion in build.emotions:
        for stage, keys, paths in (
            ("vectors", build.vector_keys, build.vectors(emotion)),
            ("heads", build.head_keys, build.heads(emotion)),
            ("figures", build.figure_keys, build.figures(emotion)[1:]),
        ):
            for layer, path in zip(build.layers, paths, strict=True):
                yield Stored(stage, path, keys[emotion], emotion, layer)
        yield Stored("figures", build.figures(emotion)[0], build.figure_keys[emotion], emotion)
    yield Stored("quality", build.quality, build.quality_key)
    yield from _release(build, build.selections["readout"])
    yield Stored("overviews", build.overview, build.overview_key)


def _indices(paths: Iterable[str]) -> Iterator[Stored]:
    for path in paths:
        yield Stored("activations", path, Path(path).name.split(".")[1])


def _release(build: Build, chosen: Selection) -> Iterator[Stored]:
    for path in build.release(chosen):
        yield Stored("releases", path, chosen.key)


def _published(build: Build, chosen: Selection) -> dict[str, str]:
    copies = {f"{build.results}/{chosen.folder}/{Path(path).name}": path for path in build.release(chosen)}
    if chosen.target == "readout":
        copies |= {f"{build.results}/quality.json": build.quality, f"{build.results}/overview.svg": build.overview}
    return copies


def _report(build: Build) -> Target:
    files = [Stored("tokens", build.token_scores, build.token_key)]
    files += [Stored("reports", path, build.report_key) for path in build.report]
    return Target("report", build.report_marker, tuple(files), dict(zip(build.published_report, build.report, strict=True)))


def _comparison(build: Build, name: str) -> Target:
    files = [one for paths in build.comparison_indices(name).values() for one in _indices(paths)]
    for emotion in build.emotions:
        path = build.compared(name, emotion)
        files.append(Stored("compare", path, Path(path).name.split(".")[1], emotion))
    files += [Stored("compare", path, build.compared_key(name)) for path in build.compared_all(name)]
    return _merged(build, name, build.compared_key(name), files, build.compared_all(name))


def _measured(build: Build) -> Iterator[Target]:
    if not build.no_ablation:
        key = build.ablation_key
        yield _merged(build, "ablation", key, [Stored("ablation", build.ablation, key)], [build.ablation])
    if not build.no_unseen:
        key = build.unseen_key
        files = [Stored("texts", build.texts("unseen"), build.texts_keys["unseen"])]
        files += _indices(build.captured(build.unseen_index_key))
        files += [Stored("unseen", path, key) for path in build.unseen_report]
        yield _merged(build, "unseen", key, files, build.unseen_report)


def _merged(build: Build, name: str, key: str, files: list[Stored], shown: list[str]) -> Target:
    published = {f"{build.results}/{name}{Path(path).suffix}": path for path in shown}
    return Target(name, f"{build.results}/.current/{name}.{key}", tuple(files), published)


def paths_of(targets: Iterable[Target]) -> set[str]:
    """All paths that a rule can make."""
    found: set[str] = set()
    for target in targets:
        found |= {target.marker, *target.published, *(file.path for file in target.stored if file.stage != "graph index")}
    return found


def to_repair(build: Build) -> list[str]:
    """The files that `verify` found to be missing or set aside, as far as this build names them and they are still missing.

    The default target asks for them: whatever was made from them is there, so that no rule would.
    """
    noted: Any = recall(Path(build.results) / REPORT)
    asked = noted.get("repair") if isinstance(noted, dict) else None
    named = [path for path in asked if isinstance(path, str)] if isinstance(asked, list) else []
    missing = [path for path in named if not Path(path).exists()]
    known = paths_of(targets_of(build)) if missing and build.layers else set()
    return [path for path in missing if path in known]
