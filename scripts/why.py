"""Why each file would be built, and why others would not: told on the terminal and written to why.json."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.build import Build
from amygdala.changes import Forward
from amygdala.corpus import Index
from amygdala.errors import shown
from amygdala.files import write_json
from amygdala.job import Say, job
from amygdala.keys import SCRIPTS
from amygdala.products import READOUT, Graph, Product, Run
from amygdala.reasons import Explainer, Explanation, Texts, some
from amygdala.stored import Store
from changes import to_forward

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

NAMES_SHOWN, FEW_NAMES, GROUPS_SHOWN, LEFT_OUT_SHOWN = 8, 4, 30, 10
MOST_COUNTS = 4  # lines of a stage that differ in numbers of texts alone: more become one line with ranges
NUMBER = re.compile(r"\d+")
TEXTS = re.compile(r"\d+ texts? [a-z ]+(, \d+ [a-z ]+)*")
FEW = re.compile(r"(\d+) (.*)")  # a count before the reason why an emotion has no vector


@dataclass(frozen=True)
class Target:
    """runs: what would run; all: what the target is made of; why_not: why it cannot be made, empty where it can."""

    name: str
    runs: Sequence[Run]
    all: Sequence[Product]
    why_not: str = ""

    @property
    def todo(self) -> list[Product]:
        return [product for run in self.runs for product in [*run.todo, *_again(run)]]

    @property
    def status(self) -> str:
        return "cannot be made" if self.why_not else "to build" if self.runs else "up to date"


def _again(run: Run) -> list[Product]:
    """Results that are there and would be published anew."""
    return [product for product in run.job.products if product.shown and product not in run.todo]


@dataclass(frozen=True)
class Why:
    """What would be built, and what not.

    unneeded: files that are gone and that the readout does not ask for; layers: those of the build, and how many the model has;
    texts: of all examples; forward: None where no activations are to be captured.
    """

    targets: Mapping[str, Target]
    explained: Mapping[Product, Explanation]
    emotions: Sequence[str]
    unneeded: Sequence[str]
    left_out: Mapping[str, str]
    layers: tuple[Sequence[int], int]
    texts: int
    forward: Forward | None

    def as_json(self) -> dict[str, Any]:
        wanted: dict[Product, list[str]] = {}
        for target in self.targets.values():
            for product in target.todo:
                wanted.setdefault(product, []).append(target.name)
        return {
            "targets": {
                target.name: {
                    "status": target.status,
                    "why_not": target.why_not,
                    "jobs": [run.message for run in target.runs],
                    "stored": {stage: list(counts) for stage, counts in stored_counts(target.all).items()},
                }
                for target in self.targets.values()
            },
            "products": [
                {
                    "stage": product.stage,
                    "name": product.name,
                    "key": product.key,
                    "files": product.missing,
                    "targets": names,
                    **asdict(self.explained[product]),
                }
                for product, names in wanted.items()
            ],
            "unneeded": list(self.unneeded),
            "no_vector": dict(self.left_out),
            "layers": {"chosen": list(self.layers[0]), "of": self.layers[1]},
            "texts": self.texts,
            "forward": None if self.forward is None else self.forward.texts,
        }


def stored_counts(products: Iterable[Product]) -> dict[str, tuple[int, int]]:
    """{stage: (files there, all files)}"""
    found: dict[str, tuple[int, int]] = {}
    for product in products:
        there, count = found.get(product.stage, (0, 0))
        found[product.stage] = (there + len(product.files) - len(product.missing), count + len(product.files))
    return found


def find_why(build: Build, say: Say = lambda line: None) -> Why:
    """Compare what the build's targets are made of with what is there. Nothing is built."""
    graph, store = Graph(build), Store(build.store)
    targets = {name: Target(name, graph.pending(name), graph.behind(name)) for name in graph.targets}
    targets |= {name: Target(name, [], [], why) for name, why in graph.refused.items()}
    todo = {product: None for target in targets.values() for product in target.todo}

    def read_index() -> Index:
        return build.current.index(say)

    texts = Texts(build, read_index)
    explainer = Explainer(graph, store, texts, todo)
    main = targets[READOUT]
    needed = {path for product in main.todo for path in product.missing}
    behind = {path: None for product in main.all for path in product.missing}
    forward = None
    if any(product.stage == "activations" for product in main.todo):
        spaces = [Path(space) for space in build.spaces]
        neutral = {text.digest: len(text.text) for text in build.neutral}
        forward = to_forward(texts.index, texts.corpus, build.emotions, build.layers, spaces, neutral)
    return Why(
        targets,
        {product: explainer.explain(product) for product in todo},
        build.emotions,
        [path for path in behind if path not in needed],
        build.plan.left_out,
        (build.layers, build.model.n_layers),
        build.plan.texts,
        forward,
    )


# For a terminal


def _words(explanation: Explanation, emotions: Sequence[str]) -> str:
    """What starts here, then what comes from stages that are told above."""
    words = [reason.words for reason in explanation.reasons if not reason.via]
    inherited: dict[tuple[str, ...], list[str]] = {}
    for reason in explanation.reasons:
        if reason.via:
            inherited.setdefault(reason.emotions, []).append(reason.via)
    stages = [
        f"{_and(dict.fromkeys(stages))} of {_how_many(names, emotions)}" if names else f"the {_and(dict.fromkeys(stages))}"
        for names, stages in inherited.items()
    ]
    if stages:
        words.append(f"because {_and(stages)} change{'' if stages[1:] or ' and ' in stages[0] or _many(stages[0]) else 's'}")
    return "; ".join(words)


def _many(what: str) -> bool:
    return what.partition(" of ")[0].endswith("s")


def _how_many(names: Sequence[str], emotions: Sequence[str]) -> str:
    return _names(names, emotions) if len(names) <= FEW_NAMES else f"{len(names)} emotions"


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _names(names: Sequence[str], emotions: Sequence[str]) -> str:
    if len(emotions) > 1 and list(names) == list(emotions):
        return f"all {len(names)} emotions"
    return some(names, NAMES_SHOWN)


def _ranged(reasons: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Reasons that differ in numbers of texts alone, as one where there are many: "66 to 89 texts removed"."""
    alike: dict[str, list[str]] = {}
    for words in reasons:
        alike.setdefault(NUMBER.sub("#", words).replace("texts", "text") if TEXTS.fullmatch(words) else words, []).append(words)
    found: dict[str, list[str]] = {}
    for group in alike.values():
        if len(group) > MOST_COUNTS:
            words = NUMBER.sub("#", group[0])
            for column in zip(*(NUMBER.findall(one) for one in group), strict=True):
                low, high = min(map(int, column)), max(map(int, column))
                words = words.replace("#", f"{low} to {high}" if low < high else str(low), 1)
            words = words.replace("text ", "texts ")
            found[words] = sorted(name for one in group for name in reasons[one])
        else:
            found |= {one: reasons[one] for one in group}
    return found


def grouped(products: Iterable[Product], why: Why) -> Iterator[str]:
    """A line for all stages and emotions with the same reason."""
    stages: dict[str, dict[str, list[str]]] = {}
    for product in products:
        named = stages.setdefault(product.stage, {})
        named.setdefault(_words(why.explained[product], why.emotions), []).append(product.name)
    stages = {stage: _ranged(reasons) for stage, reasons in stages.items()}
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for stage, reasons in stages.items():
        for words, names in reasons.items():
            together.setdefault((words, tuple(names)), []).append(stage)
    for number, ((words, every), alike) in enumerate(together.items()):
        if number == GROUPS_SHOWN:
            yield f"… and {len(together) - GROUPS_SHOWN} more"
            return
        of = f" of {_names(every, why.emotions)}" if any(every) and alike != ["results"] else ""
        of = of.replace("shard_", "shard ") if alike == ["activations"] else of
        yield f"{', '.join(alike)}{of}: {words}"


def _amount(runs: Sequence[Run], products: Sequence[Product]) -> str:
    files = sum(len(product.missing) for product in products)
    return f"{len(runs)} job{'s' * (len(runs) != 1)}, {files} file{'s' * (files != 1)}"


def _target_lines(target: Target, why: Why) -> Iterator[str]:
    if not target.runs:
        yield f"{target.name}: up to date, nothing to build"
    else:
        yield f"{target.name}: {_amount(target.runs, target.todo)} to make"
        yield from (f"  {line}" for line in grouped(target.todo, why))


def _other_lines(why: Why) -> Iterator[str]:
    """The measurements: what each needs beside the readout, and its first cause."""
    main = why.targets[READOUT]
    told = {run.job for run in main.runs}
    others = [target for target in why.targets.values() if target.name != READOUT and not target.why_not]
    for target in others:
        runs = [run for run in target.runs if run.job not in told]
        if not runs:  # the results that it publishes are its own: it is up to date
            yield from _target_lines(target, why)
            continue
        todo = [product for run in runs for product in [*run.todo, *_again(run)]]
        beside = " more" if told & {run.job for run in target.runs} else ""
        causes = dict.fromkeys(
            _words(why.explained[product], why.emotions) for product in todo if not product.shown
        ) or dict.fromkeys(_words(why.explained[product], why.emotions) for product in todo)
        yield f"{target.name}: not asked for, {_amount(runs, todo)}{beside}: {next(iter(causes))}"


def _impossible_lines(why: Why) -> Iterator[str]:
    """Targets that cannot be made, those for the same cause together."""
    causes: dict[str, list[str]] = {}
    for target in why.targets.values():
        if target.why_not:
            causes.setdefault(target.why_not, []).append(target.name)
    for cause, names in causes.items():
        yield f"{', '.join(names)}: cannot be made: {cause}"


def _left_out_lines(why: Why) -> Iterator[str]:
    """Emotions without a vector, those with the same reason together."""
    alike: dict[str, list[tuple[int | None, str]]] = {}
    for emotion, reason in why.left_out.items():
        match = FEW.fullmatch(reason)
        count, rest = (int(match[1]), match[2]) if match else (None, reason)
        alike.setdefault(rest, []).append((count, emotion))
    for number, (rest, found) in enumerate(sorted(alike.items(), key=lambda group: (-len(group[1]), group[0]))):
        if number == LEFT_OUT_SHOWN:
            yield f"  … and {len(alike) - LEFT_OUT_SHOWN} more reasons"
            return
        counts = [count for count, _ in found if count is not None]
        range_of = f"{min(counts)} to {max(counts)} " if len(set(counts)) > 1 else f"{counts[0]} " if counts else ""
        yield f"  {some([emotion for _, emotion in found], NAMES_SHOWN)}: {range_of}{rest}"


def lines(why: Why) -> Iterator[str]:
    """All of it for a terminal: short at any number of emotions."""
    main = why.targets[READOUT]
    if not main.why_not:
        yield from _target_lines(main, why)
        yield why.forward.line() if why.forward else f"texts: 0 of {why.texts} to forward; the model is not loaded"
    counts = stored_counts(main.all)
    there = [
        f"{stage} {have} of {count}" if have < count else f"{stage} {count}" for stage, (have, count) in counts.items() if have
    ]
    if there:
        yield f"not built, as their keys are in the store: {', '.join(there)} files"
    if why.unneeded:
        names = some([shown(path, 100)[1:-1] for path in why.unneeded], 3)
        gone = f"{len(why.unneeded)} missing file{'s' * (len(why.unneeded) != 1)}"
        yield f"not built, as what is made of them is there: {gone} ({names})"
    chosen, count = why.layers
    if chosen and len(chosen) < count:
        yield f"layers: {', '.join(map(str, chosen))} of {count} (target_layers)"
    if why.left_out:
        yield f"{len(why.left_out)} emotions get no vector (`snakemake --cores 1 selection` lists them)"
        yield from _left_out_lines(why)
    yield from _other_lines(why)
    yield from _impossible_lines(why)


if "snakemake" in globals():
    with job(snakemake, aloud=True, needs_input=False) as say:
        build = Build(snakemake.config, SCRIPTS.parent, say=say)
        found = find_why(build, say)
        for line in lines(found):
            say(line)
        write_json(snakemake.params.output, found.as_json())
        say(f"all of it: {snakemake.params.output}")
