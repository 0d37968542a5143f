"""Why a file is not there, in words: how its recipe differs from that of the nearest stored one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amygdala.build import Build
from amygdala.changes import setting_changes
from amygdala.corpus import Index
from amygdala.errors import UserError, shown
from amygdala.exampleset import TRAIN, digests_of, read_examples, shard_of
from amygdala.files import read_json
from amygdala.keys import code_modules, key
from amygdala.plan import Corpus, Role
from amygdala.products import Graph, Product, layer_of
from amygdala.segments import DamagedError, Mapped
from amygdala.stamps import KEY, Made, Recipe
from amygdala.stored import Store, Stored, differing
from amygdala.vectorfile import read_texts

NAMED = 4  # names in one reason
DIGITS_SHOWN = 8  # of an identity
FIRST, SET_ASIDE, DELETED = "first build", "set aside as damaged", "deleted"
UNFINISHED = "missing beside others of its key: an earlier run stopped, or it was deleted"
# What people call an ingredient that a recipe holds as a hash, or under a short name.
CALLED = {
    "counts": "numbers of examples",
    "together": "positives that emotions share",
    "names": "names that count as the emotion",
    "facts": "what the manifest says",
    "sets": "texts from elsewhere",
    "texts": "texts",
    "neutral": "neutral texts",
    "scenarios": "scenarios of its texts",
    "templates": "templates of the page",
    "chosen_for": "what the layers are chosen for",
    "examples": "scenarios or sources of its texts",
    "training": "training texts",
}


# What stands before the key in the names of files that are of no emotion and no shard.
FILE_NAMES = {
    "neutral texts": "neutral",
    "texts from elsewhere": "unseen",
    "merged compare": "compare",
    "merged sweep": "sweep",
}


@dataclass(frozen=True)
class Reason:
    """words: for people; ingredient: of the recipe, empty where the key is the same; via: the stage that it comes from, empty
    where it starts here; emotions: those of that stage, where not all of it changes.
    """

    words: str
    ingredient: str = ""
    via: str = ""
    emotions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """nearest: the stored file that it was compared with, None where there is none; reasons: why it is not there."""

    nearest: str | None
    reasons: list[Reason]


class Texts:
    """The examples of the current build, worked out from the graph's index when they are asked for."""

    def __init__(self, build: Build, index: Callable[[], Index]) -> None:
        self._build, self._index = build, index

    @functools.cached_property
    def index(self) -> Index:
        return self._index()

    @functools.cached_property
    def corpus(self) -> Corpus:
        return Corpus(self.index, self._build.rules)

    @functools.cache  # noqa: B019  one object a process
    def roles(self, emotion: str) -> list[Role]:
        return self.corpus.roles(emotion)

    @functools.cached_property
    def shards(self) -> list[set[str]]:
        """The digests of all examples, by shard."""
        found: list[set[str]] = [set() for _ in self._build.plan.shards]
        for emotion in self._build.emotions:
            for role in self.roles(emotion):
                found[shard_of(role.digest, len(found))].add(role.digest)
        return found


def texts_in_words(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """{digest: role} of now and then: "3 texts added, 1 removed"; empty where they are the same."""
    counts = {
        "added": len(now.keys() - then.keys()),
        "removed": len(then.keys() - now.keys()),
        "in another role": sum(now[digest] != then[digest] for digest in now.keys() & then.keys()),
    }
    told = [(count, what) for what, count in counts.items() if count]
    return ", ".join(
        f"{count} text{'s' * (count != 1)} {what}" if not number else f"{count} {what}"
        for number, (count, what) in enumerate(told)
    )


def some(names: Iterable[str], limit: int = NAMED) -> str:
    """The first of several names, safe for a terminal (names of emotions are letters, digits, - and _)."""
    found = list(names)
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(name if name.isprintable() else shown(name) for name in found[:limit]) + more


def _module(name: str) -> str:
    return name.replace(".", "/") + ".py"


def _value(value: Any) -> str:
    """A short value as people write it, an identity cut short."""
    if value is None:
        return "none"
    kind, colon, digits = value.partition(":") if isinstance(value, str) else ("", "", "")
    if colon and len(digits) > 2 * DIGITS_SHOWN:
        value = f"{kind}:{digits[:DIGITS_SHOWN]}…"
    if isinstance(value, float | int | str):
        return shown(value, 40)[1:-1]
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))[:60]
    return shown(value, 60)[1:-1]


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and bool(KEY.fullmatch(value))


def _layers(now: Iterable[int], then: Iterable[int]) -> Iterator[str]:
    for these, verb in ((set(now) - set(then), ("is new", "are new")), (set(then) - set(now), ("is gone", "are gone"))):
        if these:
            many = len(these) > 1
            yield f"layer{'s' * many} {', '.join(map(str, sorted(these)))} {verb[many]}"


class Explainer:
    """Why the products of a graph are not there."""

    def __init__(self, graph: Graph, store: Store, texts: Texts, pending: Iterable[Product]) -> None:
        self.graph, self.build, self.store, self.texts = graph, graph.build, store, texts
        self._pending = {product.key for product in pending if not product.shown}
        self._consumers: dict[Product, list[Product]] = {}
        for product in graph.products():
            for one in product.inputs:
                self._consumers.setdefault(one, []).append(product)
        self._layers_there: dict[str, set[int | None]] = {}
        for product in graph.products():
            there = set(product.files) - set(product.missing)
            self._layers_there.setdefault(product.stage, set()).update(layer_of(path) for path in there)

    def explain(self, product: Product) -> Explanation:
        """Why files of the product are missing, or why it is published again."""
        if product.shown:
            return self._published(product)
        reasons: list[Reason] = []
        new: list[int] = []
        unexplained = False
        for path in product.missing:
            layer = layer_of(path)
            if Path(f"{path}.damaged").exists():
                reasons.append(Reason(SET_ASIDE))
            elif self._was_used(product, layer):
                reasons.append(Reason(DELETED))
            elif len(product.missing) == len(product.files):
                unexplained = True
            elif layer is not None and layer not in self._layers_there[product.stage]:
                new.append(layer)
            else:
                reasons.append(Reason(UNFINISHED))
        reasons += [Reason(words, "layers") for words in _layers(new, [])]
        if not unexplained:
            return Explanation(None, _unique(reasons))
        recipe = self.build.recipes[product.key]
        name = FILE_NAMES.get(product.stage, product.name)
        elsewhere = recipe["kind"] == "index" and recipe["texts"] == self.build.texts_keys["unseen"]
        nearest = self.store.nearest(recipe, name, elsewhere)
        if nearest is None:
            if self.store.holds(recipe["kind"], name):
                words = "what is stored does not say what it is made from"
            elif product.name and self.store.holds(recipe["kind"]):
                words = f"nothing stored of {some([product.name])} yet"
            else:
                words = FIRST
            return Explanation(None, _unique([*reasons, Reason(words)]))
        return Explanation(str(nearest.path), _unique([*reasons, *self._differences(recipe, nearest, product.name)]))

    def _was_used(self, product: Product, layer: int | None) -> bool:
        """Whether something stored can only have been made when the file was there: it is made of it, and its key covers the
        file's.
        """
        for one in self._consumers.get(product, []):
            if one.shown:
                files = one.files[:1]
            elif product.key in self._covered(one.key):
                layered = any(layer_of(path) is not None for path in one.files)
                files = [path for path in one.files if layer is None or not layered or layer_of(path) == layer]
            else:
                continue
            if set(files) - set(one.missing):
                return True
        return False

    @functools.cache  # noqa: B019  one object a process
    def _covered(self, name: str) -> frozenset[str]:
        """All keys that a key covers, itself included."""
        recipe = self.build.recipes.get(name)
        return frozenset({name}.union(*map(self._covered, _keys_in(recipe)))) if recipe is not None else frozenset()

    def _published(self, product: Product) -> Explanation:
        reasons = [
            Reason(f"the {one.stage} {'change' if one.stage.endswith('s') else 'changes'}", via=one.stage)
            for one in product.inputs
            if one.key in self._pending
        ]
        marker, *shown_files = product.files
        if not reasons and marker in product.missing:
            folder = Path(marker).parent
            old = sorted(path.name.rpartition(".")[2] for path in folder.glob(f"{product.name}.*"))
            reasons.append(Reason(f"{some(old, 1)} is shown, not {product.key}" if old else "not published yet"))
        gone = [Path(path).name for path in shown_files if path in product.missing]
        if gone and marker not in product.missing:
            reasons.append(Reason(f"{some(gone)} {'is' if len(gone) == 1 else 'are'} gone from the results"))
        return Explanation(None, _unique(reasons))

    # How two recipes differ

    def _differences(self, recipe: Recipe, nearest: Stored, name: str = "") -> list[Reason]:
        return [
            reason
            for ingredient in differing(recipe, nearest.recipe)
            for reason in self._reasons(ingredient, recipe.get(ingredient), nearest.recipe.get(ingredient), nearest, name)
        ]

    def _reasons(self, ingredient: str, now: Any, then: Any, nearest: Stored, name: str) -> Iterator[Reason]:
        recipes, made = self.build.recipes, nearest.made
        entries = recipes.entries
        if isinstance(now, str) and now in entries:
            words: Iterable[str] = _code_words(code_modules(entries[now]), made.get("code", {}).get(then))
        elif ingredient == "versions":
            words = _version_words(now or {}, then or {})
        elif ingredient in ("spaces", "space"):
            words = self._space_words([now] if isinstance(now, str) else now, [then] if isinstance(then, str) else then, made)
        elif _is_hash(now) and now in recipes:
            yield from self._upstream(ingredient, now, then, name)
            return
        elif isinstance(now, Mapping) and now and all(_is_hash(one) and one in recipes for one in now.values()):
            yield from self._upstreams(ingredient, now, then)
            return
        else:
            words = self._plain(ingredient, now, then, nearest, name)
        for one in words:
            yield Reason(one, ingredient)

    def _space_words(self, now: Sequence[str], then: Sequence[str] | None, made: Made) -> Iterator[str]:
        """How spaces differ, each from the nearest of those before."""
        recipes = self.build.recipes
        old = {one: made.get("behind", {}).get(one) for one in then or [] if one not in now}
        known = {one: recipe for one, recipe in old.items() if recipe is not None}
        for one in now:
            if one in (then or []):
                continue
            if not known:
                yield f"pooling {_value(recipes[one]['pooling'])} is new" if old == {} and then else "activations differ"
                continue
            before = min(known, key=lambda name: (len(differing(recipes[one], known[name])), name))
            was = known.pop(before)
            changed = differing(recipes[one], was)
            for ingredient in changed:
                if ingredient == "converted" and len(changed) > 1:
                    continue  # the key of the converted model: what it is made from differs too, and is told
                yield from (
                    reason.words
                    for reason in self._reasons(
                        ingredient, recipes[one].get(ingredient), was.get(ingredient), Stored(Path(), 0.0, made), ""
                    )
                )
        for was in known.values():
            yield f"pooling {_value(was.get('pooling'))} is gone"

    def _upstream(self, ingredient: str, now: str, then: Any, name: str) -> Iterator[Reason]:
        kind = self.build.recipes[now]["kind"]
        what = f"the {kind}"
        if now in self._pending:
            yield Reason(f"{what} {'change' if kind.endswith('s') else 'changes'}", ingredient, kind)
            return
        stored = self.store.keyed(kind, name, then) if isinstance(then, str) else None
        if stored is None and isinstance(then, str):
            stored = self.store.keyed(kind, "", then)
        roots = self._differences(self.build.recipes[now], stored, name) if stored is not None else []
        if roots:
            for root in roots:
                yield Reason(root.words, ingredient, root.via)
        else:
            yield Reason(f"other {kind}{'' if kind.endswith('s') else ' figures' if kind == 'quality' else ''}", ingredient)

    def _upstreams(self, ingredient: str, now: Mapping[str, str], then: Any) -> Iterator[Reason]:
        before = then if isinstance(then, Mapping) else {}
        kind = ingredient if ingredient != "compared" else "figures"
        came, went = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
        other = sorted(name for name in now.keys() & before.keys() if now[name] != before[name])
        told = (
            (came, f"new: {some(came)}"),
            (other, f"{kind} of {some(other)} change"),
        )
        for names, words in told:
            if pending := tuple(one for one in names if now[one] in self._pending):
                yield Reason(words, ingredient, kind, pending)
            elif names:
                yield Reason(words.replace(" change", " are other ones"), ingredient)
        if went:
            yield Reason(f"gone: {some(went)}", ingredient)

    def _plain(self, ingredient: str, now: Any, then: Any, nearest: Stored, name: str) -> Iterator[str]:
        kind = nearest.recipe["kind"] if "recipe" in nearest.made else ""
        called = CALLED.get(ingredient, ingredient)
        told = ""
        if ingredient == "training":
            told = self._training_words(name, then, nearest)
        elif ingredient == "examples" and kind == "examples":
            told = self._example_words(name, nearest)
        elif ingredient == "texts" and kind == "index":
            told = self._shard_words(name, nearest)
        elif ingredient == "denoise" and not isinstance(now, list):
            shares = [one["share"] if isinstance(one, Mapping) else one for one in (then, now)]
            told = f"denoise {_value(shares[0])} → {_value(shares[1])}" if shares[0] != shares[1] else "neutral texts changed"
        elif ingredient == "sources":
            told = "the graph changed"
        elif ingredient == "layers":
            yield from _layers(now or [], then or [])
            return
        elif ingredient == "facts":
            yield from self._fact_words(nearest) or [f"{called} changed"]
            return
        if told:
            yield told
        elif any(isinstance(one, Mapping) or _is_hash(one) for one in (now, then)):
            if (
                isinstance(now, Mapping)
                and isinstance(then, Mapping)
                and not any(isinstance(v, Mapping) for v in (*now.values(), *then.values()))
            ):
                for one in differing(now, then):
                    was, becomes = then.get(one), now.get(one)
                    hidden = _is_hash(was) or _is_hash(becomes)
                    yield f"{called}: {some([one])}" + (" changed" if hidden else f" {_value(was)} → {_value(becomes)}")
            elif now is None or then is None:
                yield f"{called}: {'none any longer' if now is None else 'none before'}"
            else:
                yield f"{called} changed"
        elif ingredient == "model":
            yield f"model changed ({_value(then)} → {_value(now)})"
        else:
            yield f"{called} {_value(then)} → {_value(now)}"

    def _training_words(self, emotion: str, then: str, nearest: Stored) -> str:
        try:
            before = read_texts(nearest.path)
        except (UserError, OSError):
            return ""
        if not before or key({side: sorted(digests) for side, digests in before.items()}) != then:
            return ""
        now = digests_of(self.texts.roles(emotion), TRAIN)
        sides = [{digest: side for side, digests in one.items() for digest in digests} for one in (now, before)]
        return texts_in_words(*sides)

    def _example_words(self, emotion: str, nearest: Stored) -> str:
        try:
            examples = read_examples(nearest.path)
        except (UserError, OSError, TypeError, KeyError):
            return ""
        before = {one.digest: (one.polarity, one.split) for one in examples}
        return texts_in_words({role.digest: (role.polarity, role.split) for role in self.texts.roles(emotion)}, before)

    def _shard_words(self, shard: str, nearest: Stored) -> str:
        number = int(shard.removeprefix("shard_"))
        try:
            packed = Mapped(nearest.path).array("digests")
        except (UserError, DamagedError):
            return ""
        neutral = {text.digest for text in self.build.neutral}  # an index holds these too
        before = {row.tobytes().hex() for row in packed} - neutral
        return texts_in_words(dict.fromkeys(self.texts.shards[number] - neutral), dict.fromkeys(before))

    def _fact_words(self, nearest: Stored) -> list[str]:
        try:
            manifest = read_json(nearest.path.with_name("manifest.json"))
        except (UserError, OSError):
            return []
        now = self.build.facts()
        words = [f"setting {line}" for line in setting_changes(manifest, now)]
        was = manifest.get("snapshot", {})
        if was.get("key") != now["snapshot"]["key"]:
            words.append(f"snapshot {_value(was.get('key'))} → {now['snapshot']['key']}")
        if manifest.get("selection") != now["selection"]:
            words.append("other emotions or counts")
        return words


def _version_words(now: Mapping[str, str], then: Mapping[str, str]) -> Iterator[str]:
    for library in differing(now, then):
        if library in now and library in then:
            yield f"{library} {_value(then[library])} → {_value(now[library])}"
        else:
            yield f"{library} {'counts now' if library in now else 'counts no longer'}"


def _code_words(now: Mapping[str, str], then: Mapping[str, str] | None) -> Iterator[str]:
    if then is None:
        yield "code changed"
        return
    for module in differing(now, then):
        what = "is new" if module not in then else "is no longer used" if module not in now else "changed"
        yield f"{_module(module)} {what}"


def _keys_in(value: Any) -> Iterator[str]:
    """All strings in a recipe that look like keys."""
    if _is_hash(value):
        yield value
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _keys_in(one)


def _unique(reasons: Iterable[Reason]) -> list[Reason]:
    """Without repetitions of the same words."""
    return list({reason.words: reason for reason in reversed(list(reasons))}.values())[::-1]
