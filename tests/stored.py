"""A store filled without running a job: every file of a build's targets, small, and stamped as its job would stamp it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from amygdala.build import Build
from amygdala.exampleset import TRAIN, Example, digests_of
from amygdala.files import write_json, write_text
from amygdala.plan import Corpus
from amygdala.products import Graph, Product
from amygdala.segments import pack_digests
from amygdala.stamps import using
from amygdala.tensors import write_tensors
from amygdala.vectorfile import write_vector


def fill(build: Build, targets: Iterable[str] = ("readout",)) -> Graph:
    """Write what the targets lack; returns their graph as it was before."""
    graph = Graph(build)
    corpus = Corpus(build.current.index(), build.rules)
    with using(build.recipes.sheet()):
        for target in targets:
            for run in graph.pending(target):
                for product in run.job.products:
                    for path in product.files:
                        if not Path(path).exists():
                            _write(build, corpus, product, Path(path))
                    if product.shown:
                        for stale in set(Path(product.files[0]).parent.glob(f"{product.name}.*")) - {Path(product.files[0])}:
                            stale.unlink()
    return graph


def _write(build: Build, corpus: Corpus, product: Product, path: Path) -> None:
    roles = corpus.roles(product.name) if product.name in build.emotions else []
    if product.shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    elif product.stage == "examples":
        examples = [asdict(Example(role.digest, role.polarity, role.split, "text")) for role in roles]
        write_json(path, {"examples": examples})
    elif product.stage == "vectors":
        write_vector(path, np.eye(1, 4, dtype=np.float32)[0], {}, digests_of(roles, TRAIN))
    elif product.stage == "activations":
        elsewhere = build.layers and product.key == build.unseen_index_key
        roles = [] if elsewhere else [role for emotion in build.emotions for role in corpus.roles(emotion)]
        digests = [32 * "0"] if elsewhere else sorted({role.digest for role in roles})
        write_tensors(path, {"digests": pack_digests(digests)}, {})
    elif path.name == "manifest.json":
        write_json(path, build.facts())
    elif path.suffix == ".safetensors":
        write_tensors(path, {"one": np.ones(1, dtype=np.float32)}, {})
    elif path.suffix == ".json":
        write_json(path, {})
    else:
        write_text(path, "")
