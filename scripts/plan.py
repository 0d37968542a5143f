"""What a build will cost on a cluster, before anything is submitted: submissions, GPU jobs, texts, tokens and GPU time."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.batch import missing_of
from amygdala.changes import Forward
from amygdala.cluster import conversion_mb, first_asked, gpu_resources, light_resources, memory_mb, runtime_min
from amygdala.errors import shown
from amygdala.estimate import example_texts, forward_by_shard
from amygdala.files import write_json
from amygdala.job import job
from amygdala.plan import Corpus, Rules
from amygdala.progress import duration
from amygdala.snapshots import index_beside

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

SHARDS_SHOWN = 8


@dataclass(frozen=True)
class Submission:
    """Jobs that go to the cluster together. asks: Snakemake's resources; forward: of a capture; here: they stay where snakemake
    runs.
    """

    what: str
    asks: Mapping[str, int | str]
    forward: Forward | None = None
    here: bool = False

    @property
    def gpu_seconds(self) -> float | None:
        """What the capture's GPUs are expected to be busy for, by the last measured rate; None where there is none."""
        seconds = self.forward.seconds if self.forward else 0.0
        return None if seconds is None else seconds * int(self.asks.get("gpu", 0))

    @property
    def gpu_minutes_asked(self) -> int:
        return int(self.asks["runtime"]) * int(self.asks.get("gpu", 0))

    def as_json(self) -> dict[str, Any]:
        facts = {**asdict(self), "gpu_seconds": self.gpu_seconds}
        if self.forward:
            facts["forward"] |= {"tokens": self.forward.tokens, "seconds": self.forward.seconds}
        return facts


def submissions(
    cluster: Mapping[str, Any],
    gpus: int,
    weights: int,
    files: Mapping[str, Sequence[str]],
    forward: Sequence[Forward],
) -> list[Submission]:
    """What a build submits. weights: bytes; files: those of a model that a job converts, what is made before the captures, by
    each capture (`shard 0`, …), and after them; forward: of each shard.
    """
    light_asks = first_asked(light_resources(cluster))
    here, gpu = cluster["light"]["run"] == "here", cluster["gpu"]
    found = []
    if missing_of(files["model"]):
        found.append(
            Submission("the model, converted", first_asked(light_resources(cluster, functools.partial(conversion_mb, weights))))
        )
    if missing_of(files["before"]):
        found.append(Submission("snapshot, texts and examples", light_asks, here=here))
    for shard, texts in enumerate(forward):
        if missing_of(files[f"shard {shard}"]):
            memory = functools.partial(memory_mb, gpu["mem_mb"], weights)
            asks = first_asked(gpu_resources(cluster, gpus, memory, _minutes(gpu["runtime"], texts.seconds)))
            found.append(Submission(f"capture of shard {shard}", asks, texts))
    if missing_of(files["after"]):
        found.append(Submission("vectors, heads, quality and the release", light_asks, here=here))
    return found


def _minutes(asked: int | str, seconds: float | None) -> Callable[[object], int]:
    return lambda wildcards: runtime_min(asked, seconds)


def _asks(asks: Mapping[str, int | str]) -> str:
    return ", ".join(f"{name}={value if isinstance(value, int) else shown(value)}" for name, value in asks.items())


def _time(forward: Sequence[Forward], seconds: float) -> str:
    rate = next(one.rate for one in forward if one.rate)
    return f"about {duration(seconds)} at the last capture's {rate['tokens_per_s']:.0f} tokens/s ({rate['device']})"


def lines(planned: Sequence[Submission]) -> Iterator[str]:
    """The plan for a terminal."""
    if not planned:
        yield "nothing to submit: all of the readout is stored"
        return
    away = [one for one in planned if not one.here]
    captures = [one for one in planned if one.forward is not None]
    with_gpu = sum("gpu" in one.asks for one in captures)
    yield f"{len(away)} submissions, {with_gpu} of them with GPUs"
    shown_captures = 0
    for one in planned:
        if one.here:
            yield f"  {one.what}: here, where snakemake runs"
            continue
        if one.forward is not None:
            shown_captures += 1
            if shown_captures == SHARDS_SHOWN + 1:
                yield f"  … and {len(captures) - SHARDS_SHOWN} captures more"
            if shown_captures > SHARDS_SHOWN:
                continue
        yield f"  {one.what}: {_asks(one.asks)}"
        if one.forward is not None:
            yield f"    {one.forward.line()}"
    if not captures:
        yield "no text is forwarded, and the model is not loaded"
        return
    forward = [one.forward for one in captures if one.forward is not None]
    texts, unique = sum(one.texts for one in forward), sum(one.unique for one in forward)
    expected = [one.seconds for one in forward]
    if None in expected:
        yield f"texts: {texts} of {unique} to forward; no earlier capture with these settings to estimate the time from"
    else:
        tokens, seconds = sum(one.tokens or 0 for one in forward), sum(time or 0.0 for time in expected)
        loads = sum(bool(one.texts) for one in forward)
        head = f"texts: {texts} of {unique} to forward, about {tokens} tokens; the model is loaded {loads} times"
        yield f"{head}: {_time(forward, seconds)}" if seconds else head
    if with_gpu:
        busy = [one.gpu_seconds for one in captures]
        if None not in busy:
            yield f"GPU time expected: {duration(sum(time or 0.0 for time in busy))}"
        yield f"GPU time asked for: {sum(one.gpu_minutes_asked for one in captures)} minutes at most"


def forward_of(params: Any, snapshot: str) -> list[Forward]:
    """What each shard of the build has to forward."""
    beside = params.index
    index = index_beside(beside["path"], snapshot, beside["facts"], beside["looked_for"])
    texts = example_texts(index, Corpus(index, Rules.from_params(params.rules)), params.emotions, params.neutral)
    return forward_by_shard(texts, params.layers, [Path(space) for space in params.spaces], params.shards)


def report(planned: Iterable[Submission]) -> dict[str, Any]:
    """plan.json"""
    return {"submissions": [one.as_json() for one in planned]}


if "snakemake" in globals():
    with job(snakemake, aloud=True) as say:
        params = snakemake.params
        planned = submissions(params.cluster, params.gpus, params.weights, params.files, forward_of(params, snakemake.input[0]))
        for line in lines(planned):
            say(line)
        write_json(Path(params.output), report(planned))
        say(f"all of it: {params.output}")
