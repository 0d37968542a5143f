"""What each target is made of: the jobs behind it, their files, and which of them would run. As rules/*.smk wire them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amygdala.build import Build
from amygdala.reportfiles import PAGE

LAYER = re.compile(r"layer_(\d{3,})\.")
READOUT = "readout"
MEASUREMENTS = ("report", "compare", "sweep", "unseen", "ablation")


def layer_of(path: str) -> int | None:
    """The layer in a file's name, None where it has none."""
    found = LAYER.match(Path(path).name)
    return int(found[1]) if found else None


@dataclass(eq=False)
class Product:
    """Files that one job makes of one emotion, shard or other thing, under one key.

    stage: as people call it; name: the emotion, the shard, or what else tells products of a stage apart; inputs: {product:
    those of its files} that it is made of; shown: whether it is published, under stable paths, by `files[0]`, its keyed marker.
    """

    stage: str
    name: str
    key: str
    files: list[str]
    inputs: dict[Product, list[str]] = field(default_factory=dict)
    shown: bool = False

    @functools.cached_property
    def missing(self) -> list[str]:
        """The files that are not there."""
        return [path for path in self.files if not Path(path).exists()]


def whole(*products: Product) -> dict[Product, list[str]]:
    """The products as inputs, each with all its files."""
    return {product: product.files for product in products}


@dataclass(eq=False)
class Job:
    """A job of the workflow. says: its message, to which a batch adds the emotions that it has to make."""

    rule: str
    says: str
    products: list[Product]
    batch: bool = False

    def message(self, todo: Iterable[Product]) -> str:
        return f"{self.says} of {', '.join(product.name for product in todo)}" if self.batch else self.says


@dataclass(frozen=True)
class Run:
    """A job that would run. todo: its products with missing files; a published one may be made again with none missing."""

    job: Job
    todo: list[Product]

    @property
    def message(self) -> str:
        return self.job.message(self.todo)


class Graph:
    """All targets of a build. targets: {name: what it asks for}; refused: {name: why it cannot be made}."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.jobs: list[Job] = []
        self.targets: dict[str, Product] = {}
        self.refused: dict[str, str] = {}
        self._job: dict[Product, Job] = {}
        self._captures: dict[str, Product] = {}
        self._sources()
        if build.layers:
            self._readout()
        else:
            self.refused |= dict.fromkeys((READOUT, *MEASUREMENTS), build.unswept)
            self.refused.pop("sweep")
        self._measurements()

    def pending(self, target: str) -> list[Run]:
        """The jobs that `snakemake <target>` would run, in the order of the data."""
        first = self._job[self.targets[target]]
        todo: dict[Job, list[Product]] = {}
        inputs: dict[Job, list[tuple[Product, list[str]]]] = {}
        queue = [first]
        while queue:
            job = queue.pop()
            if job not in todo:  # a job names the inputs of all that it lacks; one that publishes always does
                todo[job] = [one for one in job.products if one.missing]
                inputs[job] = [pair for one in job.products if one.shown or one.missing for pair in one.inputs.items()]
                queue.extend(self._job[one] for one, _ in inputs[job])
        # As Snakemake has it: a missing file is made where a job that runs reads it, and what reads a new file runs too.
        running = {first} if todo[first] else set()
        known = -1
        while len(running) != known:
            known = len(running)
            for job in reversed(self.jobs):
                if job in running:
                    running |= {self._job[one] for one, files in inputs[job] if set(one.missing).intersection(files)}
            for job in self.jobs:
                if any(self._job[one] in running for one, _ in inputs.get(job, [])):
                    running.add(job)
        return [Run(job, todo[job]) for job in self.jobs if job in running]

    def behind(self, target: str) -> list[Product]:
        """All that a target is made of, itself included, in the order of the data."""
        found: set[Product] = set()
        queue = [self.targets[target]]
        while queue:
            product = queue.pop()
            if product not in found:
                found.add(product)
                queue.extend(product.inputs)
        return [product for job in self.jobs for product in job.products if product in found]

    def products(self) -> Iterator[Product]:
        for job in self.jobs:
            yield from job.products

    def _add(self, rule: str, says: str, *products: Product, batch: bool = False) -> Product:
        job = Job(rule, says, list(products), batch)
        self.jobs.append(job)
        self._job.update(dict.fromkeys(products, job))
        return products[0]

    def _batches(self, rule: str, says: str, products: dict[str, Product]) -> dict[str, Product]:
        for number, emotions in enumerate(self.build.batches):
            self._add(f"{rule}_{number}", says, *(products[emotion] for emotion in emotions), batch=True)
        return products

    def _sources(self) -> None:
        build = self.build
        current = build.current
        self.snapshot = self._add(
            "snapshot", f"Snapshot of {current.graph.title}", Product("snapshot", "", current.key, [current.path])
        )
        self.examples = self._batches(
            "choose_examples",
            "Examples",
            {
                e: Product("examples", e, build.example_keys[e], [build.examples(e)], whole(self.snapshot))
                for e in build.emotions
            },
        )
        self.model: list[Product] = []
        if build.model.kind != "folder":
            self.model = [Product("model", "", build.model_key, [build.model_ready])]
            self._add("make_model_ready", f"Model {build.model.source}", *self.model)
        self.neutral: list[Product] = []
        if build.neutral:
            self.neutral = [Product("neutral texts", "", build.texts_keys["neutral"], [build.texts("neutral")])]
            self._add("store_neutral", "Neutral texts", *self.neutral)

    def _captured(self, index_keys: Sequence[str], texts: Iterable[Product]) -> list[Product]:
        """Captures of all poolings: they make one index a pooling."""
        build, found = self.build, []
        for key in index_keys:
            capture = build.captures[key]
            if key in self._captures:  # of a sweep where all layers are target layers
                found.append(self._captures[key])
                continue
            one = Product("activations", f"shard_{capture.shard}", key, build.captured(key), whole(*texts, *self.model))
            layers = " ".join(map(str, capture.layers))
            self._captures[key] = self._add("capture", f"Activations of shard {capture.shard} at layers {layers}", one)
            found.append(one)
        return found

    def _used(self, index_keys: Sequence[str]) -> list[str]:
        shards = self.build.plan.shards
        return [key for key in index_keys if shards[self.build.captures[key].shard]["texts"] or self.neutral]

    def _readout(self) -> None:
        build, emotions = self.build, self.build.emotions
        texts = [*self.examples.values(), *self.neutral]
        self.captured = self._captured(self._used(build.index_keys), texts)
        layers = " ".join(map(str, build.layers))
        says = f"Output projections and neurons of layers {layers}"
        weights = self._add(
            "extract_weights", says, Product("weights", "", build.weights_key, build.weights(), whole(*self.model))
        )

        rows = {one: one.files[:1] for one in self.captured}  # vectors and figures are of the first pooling
        shared = {**rows, **whole(*self.neutral)}
        self.vectors = self._batches(
            "compute_vectors",
            "Vectors",
            {
                e: Product("vectors", e, build.vector_keys[e], build.vectors(e), {**whole(self.examples[e]), **shared})
                for e in emotions
            },
        )
        basis = {e: {**whole(self.examples[e], self.vectors[e], weights), **rows} for e in emotions}
        self.heads = self._batches(
            "measure_heads",
            "Heads",
            {e: Product("heads", e, build.head_keys[e], build.heads(e), basis[e]) for e in emotions},
        )
        figures = self._batches(
            "measure_emotions",
            "Figures",
            {
                e: Product("figures", e, build.figure_keys[e], build.figures(e), {**basis[e], **whole(*self.neutral)})
                for e in emotions
            },
        )
        by_emotion = [one for e in emotions for one in (self.examples[e], self.vectors[e], self.heads[e], figures[e])]
        self.quality = self._add(
            "measure_quality",
            "Quality figures",
            Product("quality", "", build.quality_key, [build.quality], {**whole(*by_emotion), **rows}),
        )
        chosen = build.selections[READOUT]
        self.release = self._add(
            "merge_readout",
            f"Release {chosen.key}",
            Product("release", "", chosen.key, build.release(chosen), {**whole(*self.vectors.values(), self.snapshot), **rows}),
        )
        overview = Product("overview", "", build.overview_key, [build.overview], whole(self.release, self.quality))
        self._add("draw_overview", "Overview picture", overview)
        folder = f"{build.results}/{chosen.folder}"
        shown = [f"{folder}/vectors.safetensors", f"{folder}/manifest.json"]
        shown += [f"{build.results}/quality.json", f"{build.results}/overview.svg"]
        stored = [self.release, self.quality, overview]
        self._publish(READOUT, f"Publish readout in {folder}", chosen.key, build.marker(chosen), shown, stored)

    def _publish(self, target: str, says: str, key: str, marker: str, shown: list[str], stored: list[Product]) -> None:
        product = Product("results", target, key, [marker, *shown], whole(*stored), shown=True)
        self.targets[target] = self._add(target, says, product)

    def _marker(self, target: str, key: str) -> str:
        return f"{self.build.results}/.current/{target}.{key}"

    def _measurements(self) -> None:
        if self.build.layers:
            self._report()
            self._comparison("compare")
        self._comparison("sweep")
        if self.build.layers:
            self._unseen()
            self._ablation()

    def _report(self) -> None:
        build = self.build
        behind = whole(*self.examples.values(), *self.vectors.values(), self.quality, *self.model)
        behind |= {one: one.files[:1] for one in self.captured}
        tokens = self._add(
            "score_tokens",
            "Tokens of the report's texts",
            Product("tokens", "", build.token_key, [build.token_scores], behind),
        )
        page = Product(
            "report", "", build.report_key, build.report, whole(self.release, self.quality, tokens, *self.heads.values())
        )
        self._add("draw_report", "Report", page)
        says = f"Publish {build.results}/{PAGE}"
        self._publish("report", says, build.report_key, build.report_marker, build.published_report, [page])

    def _comparison(self, name: str) -> None:
        build = self.build
        if name == "sweep":
            captured = self._captured(self._used(build.sweep_index_keys), [*self.examples.values(), *self.neutral])
        else:
            captured = self.captured
        poolings = len(build.comparison(name)["poolings"])
        shared = {**{one: one.files[:poolings] for one in captured}, **whole(*self.neutral)}
        products = {}
        for emotion in build.emotions:
            path = build.compared(name, emotion)
            key = Path(path).name.split(".")[1]
            products[emotion] = Product(name, emotion, key, [path], {**whole(self.examples[emotion]), **shared})
        self._batches(name, "Comparison", products)
        key, stored = build.compared_key(name), build.compared_all(name)
        merged = self._add(
            f"merge_{name}", f"Merge of {name}", Product(f"merged {name}", "", key, stored, whole(*products.values()))
        )
        shown = [f"{build.results}/{name}{Path(path).suffix}" for path in stored]
        self._publish(name, f"Publish {build.results}/{name}.json", key, self._marker(name, key), shown, [merged])

    def _unseen(self) -> None:
        build = self.build
        if build.no_unseen:
            self.refused["unseen"] = build.no_unseen
            return
        texts = self._add(
            "store_unseen",
            "Texts from elsewhere",
            Product("texts from elsewhere", "", build.texts_keys["unseen"], [build.texts("unseen")]),
        )
        (index,) = self._captured([build.unseen_index_key], [texts])
        behind = {**whole(texts, *self.examples.values(), self.release, self.quality), index: index.files[:1]}
        figures = Product("unseen", "", build.unseen_key, build.unseen_report, behind)
        self._add("score_unseen", "The release on texts from elsewhere", figures)
        shown = [f"{build.results}/unseen.json", f"{build.results}/unseen.svg"]
        key, says = build.unseen_key, f"Publish {build.results}/unseen.json"
        self._publish("unseen", says, key, self._marker("unseen", key), shown, [figures])

    def _ablation(self) -> None:
        build = self.build
        if build.no_ablation:
            self.refused["ablation"] = build.no_ablation
            return
        emotions, layer = build.ablated()
        behind = whole(*(self.examples[emotion] for emotion in emotions), *self.model)
        behind |= {self.vectors[emotion]: build.vectors(emotion, [layer]) for emotion in emotions}
        behind |= {one: one.files[:1] for one in self.captured}
        figures = Product("ablation", "", build.ablation_key, [build.ablation], behind)
        self._add("ablate_heads", f"Ablation of heads up to layer {layer}", figures)
        key, says = build.ablation_key, f"Publish {build.results}/ablation.json"
        shown = [f"{build.results}/ablation.json"]
        self._publish("ablation", says, key, self._marker("ablation", key), shown, [figures])
