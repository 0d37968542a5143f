"""The build worked out from the sources: keys, paths in the store, and what each stage depends on.

Nothing here depends on what the store holds, so that every cluster job that parses the Snakefile again works out the same
build. (Memos in <store>/memo only save work: they hold what could be worked out again.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amygdala import config as configuration
from amygdala.files import recall, remember
from amygdala.keys import code, key, version
from amygdala.modelinfo import Model, describe
from amygdala.plan import Plan, Rules, make_plan
from amygdala.snapshots import Snapshot

LIBRARIES = ("torch", "transformers")
# Settings that say where and how to run, not what: no key and no manifest knows them.
RUN_ONLY = (
    *("graph", "snapshot", "max_lost_nodes", "store", "results", "model"),
    *("device", "device_map", "batch_tokens", "batch_size", "shards", "emotions_per_job"),
)


@dataclass(frozen=True)
class Selection:
    """A readout to publish: all concepts and layers, one emotion, or one layer.

    target: what a person types; folder: where it is published, below results; key: of its release.
    """

    target: str
    folder: str
    emotions: tuple[str, ...]
    layers: tuple[int, ...]
    key: str


def check(config: Mapping[str, Any], home: Path, config_files: Iterable[str | Path] = ()) -> dict[str, Any]:
    """The complete, checked configuration. UserError for what is wrong with it."""
    schema = home / "schemas" / "config.schema.yaml"
    checked = configuration.with_numbers(dict(config), schema)
    configuration.check(checked, schema, config_files)
    return checked


def batches(emotions: Sequence[str], size: int) -> list[list[str]]:
    """The emotions in order, cut into as few lists of at most `size` as possible, of nearly equal length."""
    count = -(-len(emotions) // size)
    bounds = [round(part * len(emotions) / count) for part in range(count + 1)]
    return [list(emotions[start:end]) for start, end in itertools.pairwise(bounds)]


class Build:
    """Everything that rules ask for. `config` must be complete; UserError for what is wrong with it, the graph or the model."""

    def __init__(
        self,
        config: Mapping[str, Any],
        home: Path,
        config_files: Iterable[str | Path] = (),
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config = check(config, home, config_files)
        self.store, self.results = (str(Path(config[name]).expanduser()) for name in ("store", "results"))
        base = [Path(), home]
        self.home = home
        self.rules = Rules.of(config)
        self.current = Snapshot(config, base, self.store)
        self.plan = self._plan(say)
        self.model: Model = describe(config["model"], base, Path(self.store))
        self.layers = configuration.resolve_layers(config["target_layers"], self.model.n_layers)
        self.dtype: str = self.model.dtype if config["dtype"] == "auto" else config["dtype"]
        self.emotions = sorted(self.plan.emotions)
        self.batches = batches(self.emotions, config["emotions_per_job"])
        self._make_keys()
        self._make_selections()

    def _plan(self, say: Callable[[str], None] | None) -> Plan:
        shards = self.config["shards"]
        plan_key = key("plan", self.current.key, self.rules.ingredients(), shards, code("amygdala.plan"))
        memo = Path(self.store) / "memo" / f"plan.{plan_key}.json"
        known = recall(memo)
        if isinstance(known, dict) and known.get("sum") == key(known.get("plan")):
            return Plan(**known["plan"])
        plan = make_plan(self.current.index(say), self.rules, shards, self.current.graph.title)
        remember(memo, {"plan": asdict(plan), "sum": key(asdict(plan))})
        return plan

    def _make_keys(self) -> None:
        config, plan = self.config, self.plan
        versions = [[library, version(library)] for library in LIBRARIES]
        self.model_key = key("model", self.model.identity, self.dtype, versions, code("amygdala.convert"))
        converted = [self.model_key] if self.model.converted else []
        self.template = configuration.template(config["template"])
        self.poolings = configuration.poolings(config["pooling"])
        tokens = [config["max_tokens"], self.template]
        basis = [self.model.identity, self.dtype, converted, tokens, versions, code("activations")]
        self.space_keys = [key("space", pooling, *basis) for pooling in self.poolings]
        self.space_key = self.space_keys[0]
        self.index_keys = [key("index", sorted(self.space_keys), part["digests"], self.layers) for part in plan.shards]
        examples_code, vectors_code, heads_code = code("examples"), code("vectors"), code("heads")
        self.example_keys, self.vector_keys, self.head_keys = {}, {}, {}
        for emotion, facts in plan.emotions.items():
            self.example_keys[emotion] = key("examples", emotion, facts["examples"], examples_code)
            basis = [emotion, self.space_key, facts["training"]]
            self.vector_keys[emotion] = key("vectors", *basis, config["method"], vectors_code)
            self.head_keys[emotion] = key("heads", *basis, heads_code)
        everything = [self.vector_keys, self.head_keys, self.example_keys, self.layers]
        self.quality_key = key("quality", everything, version("scikit-learn"), code("quality"))

    def _make_selections(self) -> None:
        shared = key(self.facts(), code("readout"))

        def selection(target: str, folder: str, emotions: Iterable[str], layers: Iterable[int], *more: str) -> Selection:
            emotions, layers = tuple(emotions), tuple(layers)
            vectors = [[emotion, self.vector_keys[emotion], self.plan.emotions[emotion]["counts"]] for emotion in emotions]
            return Selection(target, folder, emotions, layers, key("release", target, shared, vectors, layers, more))

        picture = key(version("matplotlib"), code("overview"))
        every = [selection("readout", "readout", self.emotions, self.layers, self.quality_key, picture)]
        every += [selection(f"emotion_{e}", f"emotions/{e}", [e], self.layers) for e in self.emotions]
        every += [selection(f"layer_{layer}", f"layers/{layer}", self.emotions, [layer]) for layer in self.layers]
        self.selections = {chosen.target: chosen for chosen in every}
        self.overview_key = key("overview", every[0].key)
        self.releases = {chosen.key: chosen for chosen in every}

    def facts(self) -> dict[str, Any]:
        """What the manifest says beside concepts and layers: where the numbers come from. No paths, no times, no secrets."""
        settings = {name: value for name, value in self.config.items() if name not in RUN_ONLY}
        source = self.model.source if self.model.kind in ("embedded", "hub") else Path(self.model.source).name
        return {
            "model": {"kind": self.model.kind, "name": source, "identity": self.model.identity, "dtype": self.dtype},
            "residual": "output of the decoder layer, before the final norm",
            "pooling": self.poolings[0],
            "template": self.template,
            "method": self.config["method"],
            "snapshot": {
                "key": self.current.key,
                "nodes": self.plan.graph["nodes"],
                "sources": self.plan.graph["origins"],
                "skipped_nodes": self.plan.graph["skipped"],
                "unread_labels": self.plan.graph["unread_labels"],
                "near_duplicates": self.plan.graph["near_duplicates"],
            },
            "selection": self.plan.selection,
            "config": settings,
            "keys": {"activations": self.space_key, "quality": self.quality_key},
            "versions": {library: version(library) for library in (*LIBRARIES, "numpy", "scikit-learn")},
        }

    # Paths in the store

    @property
    def snapshot(self) -> str:
        return self.current.path

    def examples(self, emotion: str) -> str:
        return f"{self.store}/examples/{emotion}.{self.example_keys[emotion]}.json"

    @property
    def model_ready(self) -> str:
        return f"{self.store}/models/{self.model_key}.json"

    @property
    def spaces(self) -> list[str]:
        """The folders of activations, one a pooling; vectors are made from the first."""
        return [f"{self.store}/activations/{space}" for space in self.space_keys]

    def captured(self, shard: int) -> list[str]:
        """What a capture job makes: an index a pooling."""
        return [f"{space}/index/shard_{shard}.{self.index_keys[shard]}.safetensors" for space in self.spaces]

    @property
    def indices(self) -> list[str]:
        """The indices that vectors are made from, those of shards that have texts."""
        return [self.captured(shard)[0] for shard, part in enumerate(self.plan.shards) if part["texts"]]

    @property
    def all_indices(self) -> list[str]:
        """The indices of all poolings."""
        return [path for shard, part in enumerate(self.plan.shards) if part["texts"] for path in self.captured(shard)]

    def vectors(self, emotion: str, layers: Iterable[int] | None = None) -> list[str]:
        folder = f"{self.store}/vectors/{emotion}.{self.vector_keys[emotion]}"
        return [f"{folder}/layer_{layer:03d}.safetensors" for layer in (self.layers if layers is None else layers)]

    def heads(self, emotion: str) -> list[str]:
        folder = f"{self.store}/heads/{emotion}.{self.head_keys[emotion]}"
        return [f"{folder}/layer_{layer:03d}.json" for layer in self.layers]

    @property
    def quality(self) -> str:
        return f"{self.store}/quality/{self.quality_key}.json"

    def release(self, chosen: Selection) -> list[str]:
        """The release's vectors and manifest."""
        return [f"{self.store}/releases/{chosen.key}/{name}" for name in ("vectors.safetensors", "manifest.json")]

    @property
    def overview(self) -> str:
        return f"{self.store}/overviews/{self.overview_key}.svg"

    def marker(self, chosen: Selection) -> str:
        return f"{self.results}/.current/{chosen.target}.{chosen.key}"

    # What rules pass to their scripts

    def graph_settings(self) -> dict[str, Any]:
        """What makes the sources again in a job, and the identity that they must still have."""
        names = ("graph", "snapshot", "bad_nodes")
        return {
            **{name: self.config[name] for name in names},
            "graph": [source.for_jobs() for source in self.current.graph.configured],
            "home": str(self.home),
            "store": self.store,
            "identity": self.current.graph.identity,
        }

    def index_settings(self) -> dict[str, Any]:
        """Where the index of the current snapshot lies, and what makes it again."""
        facts = {name: self.plan.graph[name] for name in ("skipped", "skipped_nodes")}
        return {"path": self.current.index_path, "facts": facts, "looked_for": self.current.looked_for}

    def model_source(self) -> tuple[str, str | None]:
        """What from_pretrained takes: a folder or hub id, and the hub's commit."""
        if self.model.kind == "hub":
            return self.model.source, self.model.identity.removeprefix("commit:")
        folder = self.model.source if self.model.kind == "folder" else self.model_ready.removesuffix(".json")
        return folder, None

    def capture_settings(self) -> dict[str, Any]:
        source, revision = self.model_source()
        names = ("max_tokens", "batch_tokens", "batch_size", "device", "device_map")
        given = {name: self.config[name] for name in names}
        return {"source": source, "revision": revision, "dtype": self.dtype, "template": self.template, **given}

    def change_settings(self) -> dict[str, Any]:
        """The current build as the report of changes compares it with the last release."""
        return {
            "store": self.store,
            "snapshot": self.snapshot,
            "snapshot_key": self.current.key,
            "nodes": self.plan.graph["nodes"],
            "index": self.index_settings(),
            "layers": self.layers,
            "spaces": self.spaces,
            "facts": self.facts(),
        }
