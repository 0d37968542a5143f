"""Texts beside the graph: neutral ones, whose main directions `denoise` takes out, and unseen ones to measure a release on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amygdala.errors import UserError, shown
from amygdala.exampleset import Example
from amygdala.files import read_json, sha256_file
from amygdala.graph import Node, RawNode, canonical
from amygdala.local import READERS, files_of, numbered_lines, record_of
from amygdala.sources import Source, located
from amygdala.tags import emotion_name

NEUTRAL, UNSEEN = "neutral", "unseen"
CONVERSATIONS = "conversations"


@dataclass(frozen=True)
class Text:
    """A text with its set, its key there, and its scores."""

    digest: str
    text: str
    set: str
    key: str
    scores: dict[str, float] = field(default_factory=dict)


def texts_of(name: str, nodes: Sequence[Node]) -> list[Text]:
    """The nodes that have a text, each text once (with the highest score of each emotion), in order of digest."""
    found: dict[str, Text] = {}
    for node in nodes:
        if node.text:
            known = found.setdefault(node.digest, Text(node.digest, node.text, name, node.key, {}))
            for emotion, score in node.scores.items():
                known.scores[emotion] = max(score, known.scores.get(emotion, 0.0))
    return [found[digest] for digest in sorted(found)]


def neutral_texts(path: Path) -> list[Text]:
    """The neutral texts of a JSON Lines file. UserError where it has fewer than two: they have no direction."""
    nodes, _ = canonical(NEUTRAL, READERS["file"](path, {}))
    texts = texts_of(NEUTRAL, nodes)
    if len(texts) < 2:
        raise UserError(f"neutral: {path} has {len(texts)} texts; denoise needs two at least, and does well with dozens")
    return texts


def read_conversations(path: Path) -> Iterator[RawNode]:
    """JSON Lines of {"key", "turns": [{"role", "text"}], "emotions": {name: score}}: the turns of each as one text, in
    order.
    """
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        try:
            record = record_of(line)
            turns = [turn["text"] for turn in record["turns"]]
            scores = {emotion_name(str(name)): float(score) for name, score in record.get("emotions", {}).items()}
            if not isinstance(record["key"], str) or not turns or not all(isinstance(turn, str) for turn in turns):
                raise TypeError("a key or a turn's text is no string")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{where}: no conversation ({error}); expected key, turns with role and text, emotions with scores"
            raise UserError(problem) from None
        yield RawNode(record["key"], "\n".join(turns), scores, None, None, where)


@dataclass(frozen=True)
class UnseenSet:
    """A set of texts from elsewhere. identity: of its bytes and how they are read; source: as a job's parameters hold it."""

    name: str
    identity: list[Any]
    source: dict[str, Any]

    @property
    def path(self) -> str:
        return str(self.source["options"]["path"])

    def texts(self) -> list[Text]:
        """The set's texts; UserError where it holds none, or other bytes than its identity says."""
        kind, options = self.source["kind"], self.source["options"]
        raws = read_conversations(Path(self.path)) if kind == CONVERSATIONS else READERS[kind](Path(self.path), options)
        texts = texts_of(self.name, canonical(self.name, raws)[0])
        if not texts:
            raise UserError(f"unseen: {self.path} holds no texts")
        if identity_of(Source(kind, self.name, options)) != self.identity:
            raise UserError(f"unseen: {self.path} changed while snakemake was running. Run snakemake again")
        return texts


def identity_of(source: Source) -> list[Any]:
    """What a located source holds now: names and digests of its files, and how they are read."""
    root = Path(source.options["path"])
    files = [root] if source.kind == CONVERSATIONS else files_of(source.kind, root, source.options)
    names = [str(path.relative_to(root)) if root.is_dir() else "" for path in files]
    try:
        digests = [sha256_file(path) for path in files]
    except OSError as error:
        raise UserError(f"unseen: cannot read {shown(error.filename)}: {error.strerror}") from None
    return [source.kind, source.reading, [list(pair) for pair in zip(names, digests, strict=True)]]


def unseen_sets(given: Sequence[Mapping[str, Any]], base: Sequence[Path]) -> list[UnseenSet]:
    """The sets of a checked `unseen:` setting. UserError where a file is missing."""
    found = []
    for item in given:
        options = {name: value for name, value in item.items() if name not in ("source", "name")}
        source = located(Source(str(item["source"]), str(item["name"]), options), base, "unseen")
        found.append(UnseenSet(source.name, identity_of(source), {"kind": source.kind, "options": dict(source.options)}))
    return found


def stored(texts: Sequence[Text]) -> dict[str, Any]:
    """What the stored file holds: the texts as capture takes them, and what else is known of them."""
    examples = {text.digest: Example(text.digest, NEUTRAL, UNSEEN, text.text) for text in texts}
    facts = [{name: value for name, value in asdict(text).items() if name != "text"} for text in texts]
    return {"examples": [asdict(examples[digest]) for digest in sorted(examples)], "texts": facts}


def read_stored(path: str | Path) -> list[Text]:
    """The texts of a stored file."""
    content = read_json(path)
    texts = {example["digest"]: example["text"] for example in content["examples"]}
    return [Text(text=texts[facts["digest"]], **facts) for facts in content["texts"]]
