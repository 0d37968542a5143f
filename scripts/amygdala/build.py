"""The build worked out from the sources: keys, paths in the store, and what each stage depends on.

Nothing here depends on what the store holds, so that every cluster job that parses the Snakefile again works out the same
build. (Memos in <store>/memo only save work: they hold what could be worked out again.)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amygdala import config as configuration
from amygdala.errors import UserError, listed
from amygdala.files import check_readable, recall, remember, sha256_file
from amygdala.keys import code, code_memo, key, recall_code, remember_code, version
from amygdala.methods import METHODS
from amygdala.modelinfo import Model, describe
from amygdala.plan import Plan, Rules, make_plan
from amygdala.recipes import Recipes, versions_of
from amygdala.reportfiles import FIGURES, PAGE, PARTS, TEMPLATES
from amygdala.snapshots import Snapshot
from amygdala.sources import Source, located
from amygdala.sweeping import NotSweptError, swept_layers
from amygdala.tags import emotion_name
from amygdala.textsets import UnseenSet, neutral_texts, unseen_sets
from amygdala.tiers import Tiers

LIBRARIES = ("torch", "transformers")
NUMPY_ONLY = ("mean_difference", "paired")  # methods whose vectors no other library's version can change
FITTING = ("scikit-learn", "scipy")
# Settings that say where and how to run, not what: no key and no manifest knows them.
RUN_ONLY = (
    *("graph", "snapshot", "max_lost_nodes", "store", "store_read", "results", "model"),
    *("device", "device_map", "batch_tokens", "batch_size", "shards", "emotions_per_job", "cluster"),
    *("sweep_layers", "key_versions", "neutral", "families", "ablation", "unseen", "report_texts"),
    *("release", "gc", "gc_confirm"),
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


@dataclass(frozen=True)
class CaptureJob:
    """A capture: the shard's number among how many, the layers, and the stored files that hold the texts. check_last: whether
    they must not all end in the same token, as texts must that vectors are made from.
    """

    shard: int
    shards: int
    layers: tuple[int, ...]
    texts: tuple[str, ...]
    check_last: bool = True


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
    """Everything that rules ask for. `config` must be complete; UserError for what is wrong with it, the graph or the model.

    share: whether other users' stores are minded: the own one must be readable, `store_read` is looked into (amygdala.tiers).
    The main process does so; its jobs find the links made.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        home: Path,
        config_files: Iterable[str | Path] = (),
        say: Callable[[str], None] | None = None,
        share: bool = False,
    ) -> None:
        self.config = config = check(config, home, config_files)
        self.store, self.results = (str(Path(config[name]).expanduser()) for name in ("store", "results"))
        base = [Path(), home]
        self.home = home
        if share:
            check_readable(Path(self.store))
        self.tiers = Tiers(self.store, config["store_read"] if share else [])
        self.rules = Rules.of(config)
        self.recipes = Recipes()
        memo = code_memo(Path(self.store) / "memo")
        recall_code(memo)
        self.current = Snapshot(config, base, self.store)
        self.plan = self._plan(say)
        self.model: Model = describe(config["model"], base, Path(self.store))
        self.dtype: str = self.model.dtype if config["dtype"] == "auto" else config["dtype"]
        self.template = configuration.template(config["template"])
        self.poolings = configuration.poolings(config["pooling"])
        self.all_layers = list(range(self.model.n_layers))
        self.unswept = ""  # why `target_layers: auto` names no layers yet
        self.layers = self._layers()
        self.emotions = sorted(self.plan.emotions)
        self.batches = batches(self.emotions, config["emotions_per_job"])
        self.neutral_path = None
        if config["denoise"]:
            neutral = located(Source("file", "neutral", {"path": config["neutral"]}), base, "neutral")
            self.neutral_path = str(neutral.options["path"])
        least = config["min_content_chars"]
        self.neutral = neutral_texts(Path(self.neutral_path), least) if self.neutral_path else []
        self.unseen, self.no_unseen = self._unseen(base)
        self.recipes.add(**self.current.recipe)
        self.recipes.entries |= self.current.entries
        self.recipes.add(**self.current.index_recipe)
        self._make_keys()
        self._make_selections()
        self._make_report_keys()
        remember_code(memo)

    @functools.cached_property
    def recipe_file(self) -> str:
        """The recipes as jobs read them. To be asked for when all rules are read: some keys are worked out by rules."""
        return self.recipes.save(Path(self.store) / "memo")

    def _layers(self) -> list[int]:
        if self.config["target_layers"] != "auto":
            return configuration.resolve_layers(self.config["target_layers"], self.model.n_layers)
        try:
            return swept_layers(Path(self.results) / "sweep.json", self.swept())
        except NotSweptError as error:
            self.unswept = str(error)
            return []

    def _unseen(self, base: list[Path]) -> tuple[list[UnseenSet], str]:
        """(sets of texts from elsewhere, why there are none): a missing file stops those who ask for them, nobody else."""
        try:
            found = unseen_sets(self.config["unseen"], base, Path(self.store) / "memo")
        except UserError as error:
            return [], str(error)
        return found, "" if found else "unseen: the configuration names no texts from elsewhere"

    def swept(self) -> dict[str, Any]:
        """What a choice of layers holds for."""
        return {
            "model": self.model.identity,
            "dtype": self.dtype,
            "pooling": self.poolings[0],
            "template": self.template,
            "method": self.config["method"],
            "denoise": self.config["denoise"],
            "max_tokens": self.config["max_tokens"],
        }

    def _plan(self, say: Callable[[str], None] | None) -> Plan:
        shards = self.config["shards"]
        plan_key = key("plan", self.current.key, self.rules.ingredients(), shards, code("amygdala.plan"))
        self.plan_memo = memo = Path(self.store) / "memo" / f"plan.{plan_key}.json"
        self.tiers.take([str(memo), self.current.index_path])
        known = recall(memo)
        if isinstance(known, dict) and known.get("sum") == key(known.get("plan")):
            return Plan(**known["plan"])
        plan = make_plan(self.current.index(say), self.rules, shards, self.current.graph.title)
        remember(memo, {"plan": asdict(plan), "sum": key(asdict(plan))})
        return plan

    def _code(self, entry: str) -> str:
        """Digest of the code behind a stage, told to the recipes."""
        digest = code(entry)
        self.recipes.entries[digest] = entry
        return digest

    def _versions(self, *names: str) -> dict[str, str]:
        return versions_of(names, self.config["key_versions"], version)

    def _fitting(self) -> tuple[str, ...]:
        """Libraries other than numpy that decide the vectors' numbers."""
        return () if self.config["method"] in NUMPY_ONLY else FITTING

    def _make_keys(self) -> None:
        """The keys of all stages, in the order of the data. Each call of `add` is a recipe (keys.py lists them)."""
        config, plan, add = self.config, self.plan, self.recipes.add
        versions = self._versions(*LIBRARIES)
        model: dict[str, Any] = {"model": self.model.identity, "dtype": self.dtype}
        self.model_key = add("model", **model, versions=versions, code=self._code("amygdala.convert"))
        model["converted"] = self.model_key if self.model.converted else None
        given = {**model, "max_tokens": config["max_tokens"], "template": self.template, "versions": versions}
        code_of = self._code("activations")
        self.space_keys = [add("space", pooling=pooling, **given, code=code_of) for pooling in self.poolings]
        self.space_key = self.space_keys[0]
        self.weights_key = add("weights", **model, versions=versions, code=self._code("weights"))
        self.neutral_key = key([text.digest for text in self.neutral])
        sets = {one.name: one.identity for one in self.unseen}
        least = config["min_content_chars"]
        self.texts_keys = {
            "neutral": add("texts", texts=self.neutral_key, code=self._code("texts")),
            "unseen": add("texts", sets=sets, min_content_chars=least, code=self._code("texts")),
        }
        self._make_emotion_keys()
        together = key({emotion: facts["together"] for emotion, facts in plan.emotions.items()})
        measured = {"figures": self.figure_keys, "heads": self.head_keys, "layers": self.layers}
        self.quality_key = add("quality", **measured, together=together, families=self.families(), code=self._code("quality"))
        self._compared: dict[tuple[str, str], str] = {}
        self._make_captures()

    def _make_emotion_keys(self) -> None:
        config, add = self.config, self.recipes.add
        made_of = {name: self._code(name) for name in ("examples", "vectors", "heads", "figures")}
        fitted = self._versions(*self._fitting())
        cleaned = {"share": config["denoise"], "texts": self.neutral_key} if self.neutral else None
        by_scenario = METHODS[config["method"]].by_scenario
        self.example_keys, self.vector_keys, self.head_keys, self.figure_keys = {}, {}, {}, {}
        for emotion, facts in self.plan.emotions.items():
            self.example_keys[emotion] = add("examples", emotion=emotion, examples=facts["examples"], code=made_of["examples"])
            self.vector_keys[emotion] = add(
                "vectors",
                emotion=emotion,
                space=self.space_key,
                training=facts["training"],
                scenarios=facts["scenarios"] if by_scenario else None,
                method=config["method"],
                denoise=cleaned,
                versions=fitted,
                code=made_of["vectors"],
            )
            basis = {"vectors": self.vector_keys[emotion], "weights": self.weights_key}
            self.head_keys[emotion] = add("heads", emotion=emotion, **basis, code=made_of["heads"])
            self.figure_keys[emotion] = add(
                "figures",
                emotion=emotion,
                examples=self.example_keys[emotion],
                **basis,
                names=self.rules.names_of(emotion),
                versions={**fitted, **self._versions("scipy")},
                code=made_of["figures"],
            )

    def _make_captures(self) -> None:
        """The keys of the captures' indices, and {key: what the capture is of}."""
        self.captures: dict[str, CaptureJob] = {}
        texts = (*(self.examples(emotion) for emotion in self.emotions), *([self.texts("neutral")] if self.neutral else []))
        spaces = sorted(self.space_keys)

        def indices(layers: Sequence[int]) -> list[str]:
            found = []
            for shard, part in enumerate(self.plan.shards):
                # neutral texts lie in shards by their own digests: without the numbers, all empty shards would be one
                numbers = {"texts": self.neutral_key, "shard": shard, "shards": len(self.plan.shards)}
                neutral = numbers if self.neutral else None
                found.append(
                    self.recipes.add("index", spaces=spaces, texts=part["digests"], neutral=neutral, layers=list(layers))
                )
                self.captures[found[-1]] = CaptureJob(shard, len(self.plan.shards), tuple(layers), texts)
            return found

        self.index_keys = indices(self.layers) if self.layers else []
        self.sweep_index_keys = indices(self.all_layers)
        if not self.layers:
            return
        self.unseen_index_key = self.recipes.add(
            "index", spaces=spaces, texts=self.texts_keys["unseen"], neutral=None, layers=self.layers
        )
        self.captures[self.unseen_index_key] = CaptureJob(0, 1, tuple(self.layers), (self.texts("unseen"),), check_last=False)

    def _make_selections(self) -> None:
        if not self.layers:
            self.selections, self.releases = {}, {}
            return
        facts, code_of = key(self.facts()), self._code("readout")

        def selection(target: str, folder: str, emotions: Iterable[str], layers: Iterable[int], **more: Any) -> Selection:
            emotions, layers = tuple(emotions), tuple(layers)
            made = self.recipes.add(
                "release",
                target=target,
                vectors={emotion: self.vector_keys[emotion] for emotion in emotions},
                layers=list(layers),
                counts=key({emotion: self.plan.emotions[emotion]["counts"] for emotion in emotions}),
                facts=facts,
                code=code_of,
                **more,
            )
            return Selection(target, folder, emotions, layers, made)

        picture = {"versions": self._versions("matplotlib"), "picture": self._code("overview")}
        every = [selection("readout", "readout", self.emotions, self.layers, quality=self.quality_key, **picture)]
        every += [selection(f"emotion_{e}", f"emotions/{e}", [e], self.layers) for e in self.emotions]
        every += [selection(f"layer_{layer}", f"layers/{layer}", self.emotions, [layer]) for layer in self.layers]
        self.selections = {chosen.target: chosen for chosen in every}
        self.overview_key = self.recipes.add("overview", release=every[0].key)
        self.releases = {chosen.key: chosen for chosen in every}

    # The report

    def _make_report_keys(self) -> None:
        if not self.layers:
            return
        self.token_key = self.recipes.add(
            "tokens",
            quality=self.quality_key,
            space=self.space_key,
            report_texts=self.config["report_texts"],
            code=self._code("token_scores"),
        )
        self.report_key = self.recipes.add(
            "report",
            release=self.selections["readout"].key,
            tokens=self.token_key,
            heads=self.head_keys,
            templates={name: sha256_file(TEMPLATES / name) for name in PARTS},
            versions=self._versions("matplotlib", "scipy", "jinja2"),
            code=self._code("report"),
        )

    @property
    def token_scores(self) -> str:
        """The example texts of the report with a number for each token."""
        return f"{self.store}/tokens/{self.token_key}.json"

    @property
    def report(self) -> list[str]:
        """The stored report: the page, then its figures."""
        return [f"{self.store}/reports/{self.report_key}/{name}" for name in (PAGE, *(f"{name}.svg" for name in FIGURES))]

    @property
    def published_report(self) -> list[str]:
        """The stable paths of the same."""
        return [f"{self.results}/{PAGE}", *(f"{self.results}/report/{name}.svg" for name in FIGURES)]

    @property
    def report_marker(self) -> str:
        return f"{self.results}/.current/report.{self.report_key}"

    def families(self) -> dict[str, list[str]]:
        """The configured families by the names that emotions have in this build, aliases resolved."""
        aliases = self.rules.aliases
        named = {family: [emotion_name(raw) for raw in names] for family, names in self.config["families"].items()}
        return {family: sorted({aliases.get(name, name) for name in names}) for family, names in named.items()}

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
            "denoise": {"share": self.config["denoise"], "neutral_texts": len(self.neutral)} if self.neutral else None,
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
            "versions": self._versions(*LIBRARIES, "numpy", "scikit-learn"),
        }

    def readout_code(self, chosen: Selection) -> dict[str, str]:
        """{stage: digest of its code} of all stages behind a release. (The release's key covers each through other keys.)"""
        stages = ["snapshot", "activations", "vectors", "readout"]
        if chosen.target == "readout":
            stages += ["examples", "heads", "figures", "quality", "overview", "weights"]
        return {stage: code(stage) for stage in sorted(stages)}

    def reproducing(self) -> dict[str, Any]:
        """What making a release again takes beside the settings that its key covers, as they are now. No paths, no secrets."""
        kinds = [{"source": source.kind, "name": source.name} for source in self.current.graph.configured]
        names = ("families", "key_versions")
        return {
            "graph": {"sources": kinds, "identity": self.current.graph.identity},
            "neutral_texts": self.neutral_key if self.neutral else None,
            **{name: self.config[name] for name in names},
        }

    # Measurements on request: {name: (key, the layers, poolings, methods and shares of `denoise` that are compared)}

    def comparison(self, name: str) -> dict[str, Any]:
        """What `compare` or `sweep` measures: layers, poolings (with the indices of each), methods, shares of denoise."""
        cleaned = [self.config["denoise"]] if self.neutral else []
        if name == "sweep":
            method = [self.config["method"]]
            return {"layers": self.all_layers, "poolings": self.poolings[:1], "methods": method, "denoise": cleaned or [None]}
        return {
            "layers": self.layers,
            "poolings": self.poolings,
            "methods": list(METHODS),
            "denoise": [None, *cleaned],
        }

    def comparison_indices(self, name: str) -> dict[str, list[str]]:
        """{pooling: its indices}"""
        used = self._used(self.sweep_index_keys if name == "sweep" else self.index_keys)
        poolings = self.comparison(name)["poolings"]
        return {pooling: [self.captured(one)[number] for one in used] for number, pooling in enumerate(poolings)}

    def compared(self, name: str, emotion: str) -> str:
        """What is measured of one emotion."""
        if (name, emotion) not in self._compared:
            compared = self.comparison(name)
            found = self.recipes.add(
                "compare",
                emotion=emotion,
                examples=self.example_keys[emotion],
                spaces=self.space_keys[: len(compared["poolings"])],
                **compared,
                neutral=self.neutral_key,
                min_examples=self.config["min_examples"],
                versions=self._versions(*FITTING),
                code=self._code("compare"),
            )
            self._compared[name, emotion] = f"{self.store}/compare/{emotion}.{found}.json"
        return self._compared[name, emotion]

    def compared_key(self, name: str) -> str:
        """The key of the whole comparison."""
        files = {emotion: Path(self.compared(name, emotion)).name.split(".")[1] for emotion in self.emotions}
        drawn: dict[str, Any] = {}
        if name == "sweep":
            drawn = {"chosen_for": self.swept(), "sweep_layers": self.config["sweep_layers"]}
            drawn["versions"] = self._versions("matplotlib")
        return self.recipes.add(name, compared=files, **drawn, code=self._code("comparison"))

    def compared_all(self, name: str) -> list[str]:
        """The stored files of the whole comparison: its figures, and of a sweep a picture."""
        stem = f"{self.store}/compare/{name}.{self.compared_key(name)}"
        return [f"{stem}.json", *([f"{stem}.svg"] if name == "sweep" else [])]

    def ablated(self) -> tuple[list[str], int]:
        """(emotions, readout layer) of `ablation`."""
        asked = self.config["ablation"]
        named = (emotion_name(raw) for raw in asked["emotions"])
        emotions = sorted({self.rules.aliases.get(name, name) for name in named}) or self.emotions
        return emotions, self.layers[-1] if asked["layer"] is None else asked["layer"]

    @property
    def no_ablation(self) -> str:
        """Why the configuration's `ablation` cannot be made in this build; empty where it can."""
        emotions, layer = self.ablated()
        if absent := [emotion for emotion in emotions if emotion not in self.emotions]:
            return f"ablation.emotions: this build makes no vector of {listed(absent)}"
        return "" if layer in self.layers else f"ablation.layer: {layer} is not among the target layers {self.layers}"

    @property
    def ablation_key(self) -> str:
        emotions, layer = self.ablated()
        return self.recipes.add(
            "ablation",
            examples={emotion: self.example_keys[emotion] for emotion in emotions},
            vectors={emotion: self.vector_keys[emotion] for emotion in emotions},
            layer=layer,
            layers=[one for one in self.layers if one <= layer],
            **{name: self.config["ablation"][name] for name in ("heads", "fill", "random")},
            weights=self.weights_key,
            code=self._code("ablation"),
        )

    @property
    def ablation(self) -> str:
        return f"{self.store}/ablation/{self.ablation_key}.json"

    @property
    def unseen_key(self) -> str:
        return self.recipes.add(
            "unseen",
            release=self.selections["readout"].key,
            texts=self.texts_keys["unseen"],
            min_positive_score=self.config["min_positive_score"],
            aliases=self.rules.aliases,
            versions=self._versions("matplotlib"),
            code=self._code("unseen"),
        )

    @property
    def unseen_report(self) -> list[str]:
        """What the release does on texts from elsewhere: figures and picture."""
        return [f"{self.store}/unseen/{self.unseen_key}{suffix}" for suffix in (".json", ".svg")]

    # Paths in the store

    @property
    def snapshot(self) -> str:
        return self.current.path

    def examples(self, emotion: str) -> str:
        return f"{self.store}/examples/{emotion}.{self.example_keys[emotion]}.json"

    def texts(self, name: str) -> str:
        """The neutral or unseen texts, as capture takes them."""
        return f"{self.store}/texts/{name}.{self.texts_keys[name]}.json"

    @property
    def model_ready(self) -> str:
        return f"{self.store}/models/{self.model_key}.json"

    @property
    def spaces(self) -> list[str]:
        """The folders of activations, one a pooling; vectors are made from the first."""
        return [f"{self.store}/activations/{space}" for space in self.space_keys]

    def captured(self, index_key: str) -> list[str]:
        """What a capture job makes: an index a pooling."""
        shard = self.captures[index_key].shard
        return [f"{space}/index/shard_{shard}.{index_key}.safetensors" for space in self.spaces]

    def _used(self, index_keys: Sequence[str]) -> list[str]:
        """Those of shards that have texts."""
        return [one for one in index_keys if self.plan.shards[self.captures[one].shard]["texts"] or self.neutral]

    @property
    def indices(self) -> list[str]:
        """The indices that vectors are made from."""
        return [self.captured(index_key)[0] for index_key in self._used(self.index_keys)]

    @property
    def all_indices(self) -> list[str]:
        """The indices of all poolings."""
        return [path for index_key in self._used(self.index_keys) for path in self.captured(index_key)]

    def vectors(self, emotion: str, layers: Iterable[int] | None = None) -> list[str]:
        folder = f"{self.store}/vectors/{emotion}.{self.vector_keys[emotion]}"
        return [f"{folder}/layer_{layer:03d}.safetensors" for layer in (self.layers if layers is None else layers)]

    def heads(self, emotion: str) -> list[str]:
        folder = f"{self.store}/heads/{emotion}.{self.head_keys[emotion]}"
        return [f"{folder}/layer_{layer:03d}.json" for layer in self.layers]

    def weights(self, layers: Iterable[int] | None = None) -> list[str]:
        """Output projections and MLP neurons of the model, a file a layer."""
        folder = f"{self.store}/weights/{self.weights_key}"
        return [f"{folder}/layer_{layer:03d}.safetensors" for layer in (self.layers if layers is None else layers)]

    def figures(self, emotion: str) -> list[str]:
        """An emotion's own figures: of its texts, then of each layer."""
        folder = f"{self.store}/figures/{emotion}.{self.figure_keys[emotion]}"
        return [f"{folder}/texts.json", *(f"{folder}/layer_{layer:03d}.json" for layer in self.layers)]

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
        facts = {name: self.plan.graph[name] for name in ("nodes", "skipped", "skipped_nodes")}
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

    def weights_settings(self) -> dict[str, Any]:
        """As a capture's, on the CPU: a look at the weights is worth no GPU, unless the model is spread over several."""
        settings = self.capture_settings()
        return settings if settings["device_map"] else {**settings, "device": "cpu"}

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
            "neutral": {text.digest: len(text.text) for text in self.neutral},
            "facts": self.facts(),
        }
