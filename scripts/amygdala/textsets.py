"""Texts beside the graph: neutral ones, whose main directions `denoise` takes out, and unseen ones to measure a release on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amygdala.errors import UserError, shown
from amygdala.exampleset import Example
from amygdala.files import content_identity, read_json, sha256_file
from amygdala.graph import Node, RawNode, canonical
from amygdala.keys import key
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


def texts_of(name: str, nodes: Sequence[Node], least: int) -> list[Text]:
    """The nodes with a text of `least` characters (min_content_chars) or more, each text once (with the highest score of each
    emotion), in order of digest.
    """
    found: dict[str, Text] = {}
    for node in nodes:
        if node.text and len(node.text) >= least:
            known = found.setdefault(node.digest, Text(node.digest, node.text, name, node.key, {}))
            for emotion, score in node.scores.items():
                known.scores[emotion] = max(score, known.scores.get(emotion, 0.0))
    return [found[digest] for digest in sorted(found)]


def neutral_texts(path: Path, least: int) -> list[Text]:
    """The neutral texts of a JSON Lines file, of `least` characters or more. UserError where these are fewer than two: they
    have no direction.
    """
    nodes, _ = canonical(NEUTRAL, READERS["file"](path, {}))
    texts = texts_of(NEUTRAL, nodes, least)
    if len(texts) < 2:
        held = f"neutral: {path} has {len(texts)} texts of min_content_chars ({least}) or more"
        raise UserError(f"{held}; denoise needs two at least, and does well with dozens")
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
            scores: dict[str, float] = {}
            for name, score in record.get("emotions", {}).items():
                emotion, value = emotion_name(str(name)), float(score)
                if isinstance(score, bool) or not 0 <= value <= 10:
                    raise ValueError(f"score {shown(score)} of {shown(name)} is none from 0 to 10")
                scores[emotion] = max(value, scores.get(emotion, 0.0))
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

    def texts(self, least: int) -> tuple[list[Text], int]:
        """(the set's texts of `least` characters or more, how many are shorter). UserError where there are none, or it holds
        other bytes than its identity says.
        """
        kind, options = self.source["kind"], self.source["options"]
        raws = read_conversations(Path(self.path)) if kind == CONVERSATIONS else READERS[kind](Path(self.path), options)
        nodes = canonical(self.name, raws)[0]
        texts, every = texts_of(self.name, nodes, least), texts_of(self.name, nodes, 1)
        if not texts:
            raise UserError(f"unseen: {self.path} holds no texts of min_content_chars ({least}) or more")
        if identity_of(Source(kind, self.name, options)) != self.identity:
            raise UserError(f"unseen: {self.path} changed while snakemake was running. Run snakemake again")
        return texts, len(every) - len(texts)


def identity_of(source: Source, memos: Path | None = None) -> list[Any]:
    """What a located source holds now: names and digests of its files, and how they are read. memos: a folder of digests known
    by path, size and times; without it all files are read.
    """
    root = Path(source.options["path"])
    files = [root] if source.kind == CONVERSATIONS else files_of(source.kind, root, source.options)
    names = [str(path.relative_to(root)) if root.is_dir() else "" for path in files]
    try:
        digests = [_digest(path, memos) for path in files]
    except OSError as error:
        raise UserError(f"unseen: cannot read {shown(error.filename)}: {error.strerror}") from None
    return [source.kind, source.reading, [list(pair) for pair in zip(names, digests, strict=True)]]


def _digest(path: Path, memos: Path | None) -> str:
    if memos is None:
        return f"sha256:{sha256_file(path)}"
    return content_identity([path], path, memos / f"unseen.{key(str(path.resolve()))}.json")


def unseen_sets(given: Sequence[Mapping[str, Any]], base: Sequence[Path], memos: Path | None = None) -> list[UnseenSet]:
    """The sets of a checked `unseen:` setting; memos: see identity_of. UserError where a file is missing."""
    found = []
    for item in given:
        options = {name: value for name, value in item.items() if name not in ("source", "name")}
        source = located(Source(str(item["source"]), str(item["name"]), options), base, "unseen")
        how = {"kind": source.kind, "options": dict(source.options)}
        found.append(UnseenSet(source.name, identity_of(source, memos), how))
    return found


def stored(texts: Sequence[Text], too_short: Mapping[str, int]) -> dict[str, Any]:
    """What the stored file holds: the texts as capture takes them, and what else is known of them; too_short: how many texts of
    each set were left out.
    """
    examples = {text.digest: Example(text.digest, NEUTRAL, UNSEEN, text.text) for text in texts}
    facts = [{name: value for name, value in asdict(text).items() if name != "text"} for text in texts]
    examples_of = [asdict(examples[digest]) for digest in sorted(examples)]
    return {"examples": examples_of, "texts": facts, "too_short": dict(too_short)}


def read_stored(path: str | Path) -> tuple[list[Text], dict[str, int]]:
    """(the texts of a stored file, {set: how many were too short})"""
    content = read_json(path)
    texts = {example["digest"]: example["text"] for example in content["examples"]}
    return [Text(text=texts[facts["digest"]], **facts) for facts in content["texts"]], content["too_short"]
