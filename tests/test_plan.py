"""Which texts are whose examples: against a brute-force reading of the rules, and what the plan promises the build."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

import examples as examples_job
from amygdala.errors import UserError
from amygdala.exampleset import (
    HELD_OUT,
    NEGATIVE,
    POSITIVE,
    TRAIN,
    Example,
    count_examples,
    digests_of,
    read_examples,
    shard_of,
)
from amygdala.graph import Node, read_nodes, read_snapshot, snapshot_lines
from amygdala.plan import Corpus, Rules, held_out_mask, make_plan, unique_texts, warnings_of
from tiny import REPOSITORY, SAMPLE

Member = tuple[str, str, str]  # digest, polarity, split
DEFAULTS = Rules.of(yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8")))
# small texts and counts are enough for made nodes
SMALL = dataclasses.replace(DEFAULTS, min_content_chars=1, min_positives=1, min_examples=1, held_out=0.25)
MASK = 2**64 - 1


def rules(**changes: Any) -> Rules:
    return dataclasses.replace(SMALL, **changes)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def node(text: str, /, key: str = "", **scores: float) -> Node:
    return Node(key or text, text, scores)


# The rules of method.md once more, one text and one emotion at a time


def splitmix64(value: int) -> int:
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def salted(digest: str, salt: str) -> int:
    return splitmix64(int(digest, 16) >> 64 ^ int(hashlib.sha256(salt.encode()).hexdigest(), 16) >> 192)


def mentions(text: str, emotion: str) -> int:
    """Whole words alone; between the words of a phrase anything but letters and digits."""
    words = r"[\W_]+".join(re.escape(word) for word in re.split(r"[_-]+", emotion))
    folded = unicodedata.normalize("NFKC", text).casefold()
    return len(re.findall(rf"(?<![^\W_]){words}(?![^\W_])", folded))


def brute_force(nodes: Iterable[Node], rules: Rules, emotion: str) -> list[Member]:
    merged: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    for each in nodes:
        if len(each.text) >= rules.min_content_chars:
            digest = digest_of(each.text)
            texts[digest] = each.text
            merged.setdefault(digest, [])
            if emotion in each.scores:
                merged[digest].append(each.scores[emotion])
    sides: dict[str, list[str]] = {POSITIVE: [], NEGATIVE: []}
    for digest, scores in merged.items():
        if scores and max(scores) >= rules.min_positive_score:
            sides[POSITIVE].append(digest)
        elif scores and (rules.max_negative_score is None or max(scores) > rules.max_negative_score):
            continue
        elif mentions(texts[digest], emotion) <= rules.max_negative_mentions:
            sides[NEGATIVE].append(digest)
    found: list[Member] = []
    for polarity, digests in sides.items():
        chosen = sorted(digests, key=lambda digest: salted(digest, f"{rules.seed}\0{emotion}"))[
            : rules.max_examples_per_emotion
        ]
        for digest in sorted(chosen):
            split = HELD_OUT if salted(digest, "held out") < rules.held_out * 2**64 else TRAIN
            found.append((digest, polarity, split))
    return found


def members(found: Iterable[Example]) -> list[Member]:
    return [(example.digest, example.polarity, example.split) for example in found]


@pytest.fixture(scope="module")
def sample() -> list[Node]:
    return read_nodes(SAMPLE.read_bytes(), "graph.jsonl")


VARIANTS: list[dict[str, Any]] = [
    {},
    {"max_examples_per_emotion": 30},
    {"max_examples_per_emotion": 7, "seed": 41},
    {"max_negative_score": 4, "min_positive_score": 9, "max_examples_per_emotion": 100},
    {"max_negative_score": 10, "max_negative_mentions": 1},
    {"min_content_chars": 300, "held_out": 0.5},
    {"min_positive_score": 0.5, "max_negative_mentions": 3, "held_out": 0},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_examples_of_the_sample_graph_against_brute_force(sample: list[Node], changes: dict[str, Any]) -> None:
    chosen = dataclasses.replace(DEFAULTS, **changes)
    corpus = Corpus(sample, chosen)
    emotions = sorted({emotion for each in sample for emotion in each.scores})
    assert len(emotions) > 20
    texts = {digest_of(each.text): each.text for each in sample}
    for emotion in [*emotions, "house", "unheard_of"]:
        found = corpus.examples(emotion)
        assert members(found) == brute_force(sample, chosen, emotion), emotion
        assert all(example.text == texts[example.digest] for example in found)


def made_nodes(chance: random.Random, count: int) -> list[Node]:
    """Short texts with mentions, duplicates and all scores."""
    words = [
        "rain",
        "joy",
        "Joy,",
        "joyful",
        "self",
        "doubt",
        "self-doubt",
        "Self_Doubt.",
        "doubts",
        "(self",
        "doubt)",
        "ＪＯＹ",
    ]
    made = []
    for number in range(count):
        text = " ".join(chance.choices(words, k=chance.randrange(1, 5)))
        picked = chance.sample(["joy", "self_doubt", "awe"], k=chance.randrange(3))
        made.append(Node(f"n{number}", text, {name: chance.choice([0, 2, 5, 7.5, 8, 8.5, 10]) for name in picked}))
    return made


def test_examples_of_made_graphs_against_brute_force() -> None:
    chance = random.Random(3)
    for _ in range(150):
        nodes = made_nodes(chance, chance.randrange(1, 60))
        chosen = rules(
            max_negative_score=chance.choice([None, 0, 5, 8, 9]),
            min_positive_score=chance.choice([5, 8, 8.5]),
            max_negative_mentions=chance.randrange(3),
            max_examples_per_emotion=chance.choice([1, 5, 500]),
            min_content_chars=chance.choice([1, 8]),
            seed=chance.randrange(9),
        )
        corpus = Corpus(nodes, chosen)
        for emotion in ("joy", "self_doubt", "awe"):
            found = members(corpus.examples(emotion))
            assert found == brute_force(nodes, chosen, emotion)
            assert len({digest for digest, _, _ in found}) == len(found)


# The rules one by one


def test_scores_of_duplicate_texts_merge_by_maximum() -> None:
    nodes = [node("Rain.", "a", joy=3, awe=9), node("Rain.", "b", joy=9), node("Rain.", "c", joy=5, calm=2), node("Snow.", "d")]
    texts = unique_texts(nodes, 1)
    assert {text.text: text.scores for text in texts} == {"Rain.": {"joy": 9, "awe": 9, "calm": 2}, "Snow.": {}}
    assert [text.digest for text in texts] == sorted(text.digest for text in texts)
    assert nodes[0].scores == {"joy": 3, "awe": 9}  # the nodes stay as they were
    corpus = Corpus(nodes, rules())
    for emotion in ("joy", "awe"):
        assert {e.text: e.polarity for e in corpus.examples(emotion)} == {"Rain.": POSITIVE, "Snow.": NEGATIVE}


@pytest.mark.parametrize("limit", [8, 8.5, 9, 10])
def test_a_text_is_never_both(limit: float) -> None:
    """Also where the limit of negatives is above that of positives."""
    nodes = [node(f"Text {score}.", joy=score) for score in (0, 7.5, 8, 8.5, 9, 10)]
    found = Corpus(nodes, rules(max_negative_score=limit)).examples("joy")
    sides = {polarity: sorted(e.text for e in found if e.polarity == polarity) for polarity in (POSITIVE, NEGATIVE)}
    assert sides == {
        POSITIVE: ["Text 10.", "Text 8.", "Text 8.5.", "Text 9."],
        NEGATIVE: ["Text 0.", "Text 7.5."],
    }


@pytest.mark.parametrize(
    ("limit", "negatives"),
    [(None, ["Untagged."]), (0, ["Scored 0.", "Untagged."]), (3, ["Scored 0.", "Scored 3.", "Untagged."])],
)
def test_max_negative_score(limit: float | None, negatives: list[str]) -> None:
    nodes = [node("Untagged.", awe=9), *(node(f"Scored {score}.", joy=score) for score in (0, 3, 3.5, 7.9, 8))]
    found = Corpus(nodes, rules(max_negative_score=limit)).examples("joy")
    assert sorted(e.text for e in found if e.polarity == NEGATIVE) == negatives
    assert [e.text for e in found if e.polarity == POSITIVE] == ["Scored 8."]


MENTIONS: list[tuple[str, str, int]] = [
    ("joy", "Joy, joy! (JOY) A joy's end_joy-joy.", 6),
    ("joy", "Enjoy the joyful joys; killjoy, joy2, 2joy.", 0),
    ("joy", "ＪＯＹ", 1),
    ("strasse", "Die Straße", 1),
    ("élan", "E\u0301lan, ÉLAN", 2),
    ("self_doubt", "Self doubt, self-doubt and SELF_DOUBT; self\ndoubt, self – doubt.", 5),
    ("self-doubt", "self doubt self_doubt", 2),
    ("self_doubt", "selfdoubt, self doubts, myself doubt, doubt self, self and doubt", 0),
    ("self_doubt", "self self doubt doubt", 1),
    ("on_and_on", "on and on and on", 2),
]


@pytest.mark.parametrize(("emotion", "text", "count"), MENTIONS)
def test_mentions_are_whole_words_and_phrases(emotion: str, text: str, count: int) -> None:
    filler = node("Nothing here, no self, no doubt of it.")
    corpus = Corpus([filler, node(text)], rules())
    assert {corpus.texts[row].text: n for row, n in corpus.mentions(emotion).items()} == ({text: count} if count else {})
    for allowed in range(count + 2):
        found = Corpus([filler, node(text)], rules(max_negative_mentions=allowed)).examples(emotion)
        assert (text in {e.text for e in found}) == (count <= allowed)


def test_a_positive_may_mention_its_emotion() -> None:
    found = Corpus([node("Joy, joy, joy.", joy=9), node("Joy."), node("Rain.")], rules()).examples("joy")
    assert {e.text: e.polarity for e in found} == {"Joy, joy, joy.": POSITIVE, "Rain.": NEGATIVE}


def test_min_content_chars_counts_characters_of_both_sides() -> None:
    nodes = [node("é" * 40, joy=9), node("ü" * 40), node("x" * 39, joy=9), node("y" * 39)]
    found = Corpus(nodes, rules(min_content_chars=40)).examples("joy")
    assert {e.text: e.polarity for e in found} == {"é" * 40: POSITIVE, "ü" * 40: NEGATIVE}


# The cap


def test_one_more_node_displaces_at_most_one_example_a_side() -> None:
    chosen = rules(max_examples_per_emotion=20)
    nodes = [node(f"Positive {n}.", joy=9) for n in range(60)] + [node(f"Negative {n}.") for n in range(60)]
    before = {(e.polarity, e.digest) for e in Corpus(nodes, chosen).examples("joy")}
    assert Counter(polarity for polarity, _ in before) == {POSITIVE: 20, NEGATIVE: 20}
    displaced = 0
    for number in range(40):
        added = node(f"Added {number}.", **({"joy": 9} if number % 2 else {}))
        after = {(e.polarity, e.digest) for e in Corpus([*nodes, added], chosen).examples("joy")}
        gone, come = before - after, after - before
        assert {digest for _, digest in come} <= {added.digest}
        assert [polarity for polarity, _ in gone] == [polarity for polarity, _ in come]
        displaced += len(gone)
    assert 3 < displaced < 30  # a third of 40 is expected


def test_the_choice_under_the_cap_depends_on_seed_and_emotion_and_not_on_the_split() -> None:
    nodes = [node(f"Text {n}.", joy=9, awe=9) for n in range(3000)]

    def choice(emotion: str, seed: int) -> dict[str, str]:
        found = Corpus(nodes, rules(max_examples_per_emotion=600, seed=seed, held_out=0.2)).examples(emotion)
        return {e.digest: e.split for e in found}

    first = choice("joy", 0)
    assert first == choice("joy", 0)
    for other in (choice("awe", 0), choice("joy", 1)):
        assert len(other) == len(first) == 600
        assert 80 < len(first.keys() & other.keys()) < 160  # 600 * 600 / 3000 by chance
        assert 80 < sum(split == HELD_OUT for split in other.values()) < 160
        # a split belongs to the text
        assert all(first[digest] == other[digest] for digest in first.keys() & other.keys())


# The split


MADE_DIGESTS = [digest_of(f"text {n}") for n in range(5000)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5, 0.9])
def test_the_held_out_share_is_near_what_is_asked(share: float) -> None:
    mask = held_out_mask(MADE_DIGESTS, share)
    assert mask.shape == (5000,)
    assert abs(mask.mean() - share) < 0.025 if share else not mask.any()
    assert mask.tolist() == [salted(digest, "held out") < share * 2**64 for digest in MADE_DIGESTS]


def test_a_larger_share_only_adds_to_the_held_out_texts() -> None:
    small, large = held_out_mask(MADE_DIGESTS, 0.1), held_out_mask(MADE_DIGESTS, 0.2)
    assert not (small & ~large).any()


def test_the_split_is_by_digest_alone() -> None:
    alone = {digest: bool(held_out_mask([digest], 0.2)[0]) for digest in MADE_DIGESTS[:200]}
    assert held_out_mask(MADE_DIGESTS[:200][::-1], 0.2).tolist() == list(alone.values())[::-1]


def test_the_split_is_the_same_for_all_emotions_graphs_and_seeds(sample: list[Node]) -> None:
    emotions = ["joy", "calm", "tiredness", "dread"]
    splits: dict[str, set[str]] = {}
    for nodes, seed in ((sample, 0), (sample[100:], 0), (sample, 9)):
        corpus = Corpus(nodes, dataclasses.replace(DEFAULTS, seed=seed, max_examples_per_emotion=200))
        for emotion in emotions:
            for example in corpus.examples(emotion):
                splits.setdefault(example.digest, set()).add(example.split)
    assert {len(found) for found in splits.values()} == {1}
    assert Counter(split for found in splits.values() for split in found).keys() == {TRAIN, HELD_OUT}


# Which emotions


def tagged(**positives: int) -> list[Node]:
    """As many positives of each emotion; two more texts without it, of each a weak one."""
    made = [node(f"{name[::-1]} {n}", **{name: 9}) for name, count in positives.items() for n in range(count)]
    return made + [node(f"weak {name[::-1]}", **{name: 5}) for name in positives] + [node("Rain."), node("Snow.")]


GRAPH = {"joy": 6, "awe": 4, "calm": 4, "dread": 2, "envy": 1, "hope": 0}


@pytest.mark.parametrize(
    ("changes", "chosen", "left_out"),
    [
        (
            {"select": "data", "min_positives": 2, "top": 9},
            ["awe", "calm", "dread", "joy"],
            {"envy": "1 positives, fewer than emotions.min_positives (2)", "hope": "0 positives, fewer than emotions.m"},
        ),
        # ties go by name; curated names do not count
        (
            {"select": "data", "min_positives": 2, "top": 2, "curated": ("envy", "unknown")},
            ["awe", "joy"],
            {"calm": "not among the 2 most common (emotions.top)", "dread": "not among the 2", "envy": "1 p", "hope": "0 p"},
        ),
        # an excluded emotion takes no place among the most common
        (
            {"select": "data", "min_positives": 2, "top": 2, "exclude": ("joy", "unknown")},
            ["awe", "calm"],
            {"joy": "excluded by the configuration", "dread": "not among", "envy": "1 p", "hope": "0 p"},
        ),
        (
            {"select": "curated", "curated": ("envy", "joy", "hope", "unknown"), "exclude": ("joy",)},
            ["envy", "hope"],
            {
                "joy": "excluded by the configuration",
                "unknown": "curated, but no text of 1 characters or more carries this tag",
                **dict.fromkeys(("awe", "calm", "dread"), "not in emotions.curated"),
            },
        ),
        (
            {"select": "both", "min_positives": 3, "top": 2, "curated": ("dread", "calm", "unknown")},
            ["awe", "calm", "dread", "joy"],
            {"envy": "1 p", "hope": "0 p", "unknown": "curated, but no text"},
        ),
        ({"select": "both", "top": 9, "exclude": tuple(GRAPH)}, [], dict.fromkeys(GRAPH, "excluded by the configuration")),
    ],
)
def test_select(changes: dict[str, Any], chosen: list[str], left_out: dict[str, str]) -> None:
    got, reasons = Corpus(tagged(**GRAPH), rules(**changes)).select()
    assert got == chosen
    assert reasons.keys() == left_out.keys()
    for emotion, reason in left_out.items():
        assert reasons[emotion].startswith(reason)


def test_min_positives_counts_unique_texts_and_both_splits() -> None:
    nodes = [node("Same text.", f"k{n}", joy=9) for n in range(5)] + [node(f"Awe {n}.", awe=9) for n in range(3)]
    assert Corpus(nodes, rules(min_positives=2, held_out=0.9)).select()[0] == ["awe"]


def test_min_examples_counts_training_examples_of_each_side() -> None:
    nodes = [node(f"Text {n}.", joy=9) for n in range(12)] + [node(f"Other {n}.", awe=9) for n in range(40)]
    chosen = rules(held_out=0.25, min_positives=1, select="both", curated=("joy",))
    counts = count_examples(Corpus(nodes, chosen).examples("joy"))
    train = counts[TRAIN][POSITIVE]
    assert 0 < train < 12 == train + counts[HELD_OUT][POSITIVE]
    assert "joy" in make_plan(nodes, dataclasses.replace(chosen, min_examples=train), 1, "g").emotions
    # awe has the 12 texts of joy as its negatives: as few as joy has positives
    with pytest.raises(UserError, match="no emotion has enough positives"):
        make_plan(nodes, dataclasses.replace(chosen, min_examples=train + 1), 1, "g")
    more = [*nodes, *(node(f"Neither {n}.") for n in range(20))]
    plan = make_plan(more, dataclasses.replace(chosen, min_examples=train + 1), 1, "g")
    assert list(plan.emotions) == ["awe"]
    assert plan.left_out == {"joy": f"{train} positives to train on, fewer than min_examples ({train + 1})"}
    assert warnings_of(plan, chosen) == [f"emotion 'joy' gets no vector: {plan.left_out['joy']}"]
    assert warnings_of(plan, dataclasses.replace(chosen, curated=())) == []
    assert warnings_of(plan, dataclasses.replace(chosen, select="data")) == []  # the list is not in use


def test_both_short_sides_are_named() -> None:
    nodes = [
        *tagged(joy=1),
        *(node(f"Awe {n}.", joy=5, awe=9) for n in range(9)),
        *(node(f"Joy {n}.", joy=5) for n in range(9)),
    ]
    plan = make_plan(nodes, rules(held_out=0, min_examples=3), 1, "g")
    assert plan.left_out["joy"] == "1 positives and 2 negatives to train on, fewer than min_examples (3)"


def test_no_emotion_with_enough_positives_is_an_error_that_says_what_was_found() -> None:
    with pytest.raises(UserError, match=r"^my\.jsonl: no emotion has enough positives\. Texts scored at least 8: ") as caught:
        make_plan(tagged(joy=2, awe=3, hope=0), rules(min_positives=4), 1, "my.jsonl")
    assert "at least 8: awe 3, joy 2, hope 0." in str(caught.value)
    for setting in ("emotions.min_positives", "min_examples", "min_positive_score"):
        assert setting in str(caught.value)
    with pytest.raises(UserError, match=r"scored at least 8\.5: no tags at all"):
        make_plan([node("Rain."), node("Snow.")], rules(min_positive_score=8.5), 1, "g")


def test_rules_take_their_settings_from_the_configuration_with_names_in_canonical_form() -> None:
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    config["emotions"].update(curated=["Self_Doubt", "joy", "JOY"], exclude=["ＡＷＥ"], top=7)
    config.update(held_out=0.3, seed=4)
    got = Rules.of(config)
    assert (got.curated, got.exclude, got.top, got.held_out, got.seed) == (("joy", "self_doubt"), ("awe",), 7, 0.3, 4)
    assert got.ingredients() == dataclasses.asdict(got)
    assert examples_job.rules_from(json.loads(json.dumps(got.ingredients()))) == got


# The plan


def canonical_key(*ingredients: Any) -> str:
    text = json.dumps(ingredients, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 64])
def test_shards_partition_the_texts(sample: list[Node], shards: int) -> None:
    chosen = dataclasses.replace(DEFAULTS, max_examples_per_emotion=12)
    plan = make_plan(sample, chosen, shards, "g")
    assert len(plan.emotions) > 10
    digests = {digest for emotion in plan.emotions for digest, _, _ in brute_force(sample, chosen, emotion)}
    assert plan.texts == len(digests) < plan.nodes == len(sample)
    groups: list[list[str]] = [[] for _ in range(shards)]
    for digest in sorted(digests):
        groups[shard_of(digest, shards)].append(digest)
    assert plan.shards == [{"texts": len(group), "digests": canonical_key(group)} for group in groups]


def test_a_text_stays_in_its_shard_and_shards_are_even() -> None:
    for shards in (1, 5, 16):
        got = [shard_of(digest, shards) for digest in MADE_DIGESTS]
        assert got == [int(digest[24:], 16) % shards for digest in MADE_DIGESTS]
        assert min(Counter(got).values()) > 0.8 * 5000 / shards
        assert len(Counter(got)) == shards


def test_texts_of_emotions_left_out_are_not_forwarded() -> None:
    many = [node(f"Text {n}.", joy=9) for n in range(4)] + [node(f"Other {n}.", joy=5) for n in range(30)] + [node("Rain.")]
    more = [node("Snow.", awe=9, joy=5), node("Rain.", "again"), node("x")]
    plan = make_plan([*many, *more], rules(held_out=0, min_positives=2, min_content_chars=2), 1, "g")
    assert list(plan.emotions) == ["joy"]
    assert plan.texts == 5
    assert plan.nodes == 38  # short and repeated texts are nodes too


def test_plan_counts_and_hashes_are_of_the_examples(sample: list[Node]) -> None:
    plan = make_plan(sample, DEFAULTS, 2, "g")
    for emotion, facts in plan.emotions.items():
        found = brute_force(sample, DEFAULTS, emotion)
        counts = Counter((split, polarity) for _, polarity, split in found)
        assert facts["counts"] == {s: {p: counts[s, p] for p in (POSITIVE, NEGATIVE)} for s in (TRAIN, HELD_OUT)}
        assert facts["examples"] == canonical_key(found)
        training = {
            p: [digest for digest, polarity, split in found if (polarity, split) == (p, TRAIN)] for p in (POSITIVE, NEGATIVE)
        }
        assert facts["training"] == canonical_key(training)
    # what the memo does to it
    assert type(plan)(**json.loads(json.dumps(dataclasses.asdict(plan)))) == plan


def test_hashes_change_exactly_when_membership_changes() -> None:
    chance = random.Random(11)
    chosen = rules(max_examples_per_emotion=12, min_positives=1, max_negative_score=3)
    emotions = ("joy", "self_doubt", "awe")

    def seen(nodes: list[Node]) -> dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]]:
        plan = make_plan(nodes, chosen, 1, "g")
        result = {}
        for emotion in emotions:
            found = brute_force(nodes, chosen, emotion)
            training = [member for member in found if member[2] == TRAIN]
            facts = plan.emotions[emotion]
            result[emotion] = (facts["examples"], found), (facts["training"], training)
        return result

    nodes = made_nodes(chance, 50)
    before = seen(nodes)
    same: Counter[tuple[str, bool]] = Counter()
    for _ in range(120):
        changed = list(nodes)
        place = chance.randrange(len(nodes))
        old = nodes[place]
        edit = chance.randrange(4)
        if edit == 0:
            changed[place] = Node(old.key, old.text, {**old.scores, "joy": chance.choice([1, 5, 9, 10])})
        elif edit == 1:
            changed[place] = Node(old.key, old.text + " fell", old.scores)
        elif edit == 2:
            changed[place] = Node(old.key + "x", old.text, old.scores)
        else:
            del changed[place]
        for emotion, pairs in seen(changed).items():
            for name, (was, was_of), (now, now_of) in zip(("examples", "training"), before[emotion], pairs, strict=True):
                assert (was == now) == (was_of == now_of)
                same[name, was == now] += 1
    assert all(same[name, flag] > 20 for name in ("examples", "training") for flag in (True, False))
    assert same["training", True] > same["examples", True]  # a held-out text alone moves no vector


def test_a_change_in_one_emotion_moves_no_other(sample: list[Node]) -> None:
    before = make_plan(sample, DEFAULTS, 1, "g")
    place, changed = next((n, each) for n, each in enumerate(sample) if each.scores.get("joy", 0) >= 8)
    lowered = Node(changed.key, changed.text, {**changed.scores, "joy": 5})
    after = make_plan([*sample[:place], lowered, *sample[place + 1 :]], DEFAULTS, 1, "g")
    moved = {emotion for emotion in before.emotions if before.emotions[emotion] != after.emotions[emotion]}
    assert moved == {"joy"}
    # a score that stays on its side moves nothing
    raised = Node(changed.key, changed.text, {**changed.scores, "joy": 8.25})
    assert make_plan([*sample[:place], raised, *sample[place + 1 :]], DEFAULTS, 1, "g") == before


def test_plan_does_not_depend_on_the_order_of_nodes(sample: list[Node]) -> None:
    chosen = dataclasses.replace(DEFAULTS, max_examples_per_emotion=25)
    doubled = [*sample, *(Node(each.key + "/again", each.text, {"joy": 9}) for each in sample[:40])]
    expected = make_plan(doubled, chosen, 3, "g")
    assert list(expected.emotions) == sorted(expected.emotions)
    assert list(expected.left_out) == sorted(expected.left_out)
    chance = random.Random(2)
    for _ in range(3):
        chance.shuffle(doubled)
        shuffled = make_plan(doubled, chosen, 3, "g")
        assert shuffled == expected
        assert json.dumps(dataclasses.asdict(shuffled)) == json.dumps(dataclasses.asdict(expected))


# The examples job


def test_examples_job_writes_what_the_plan_promises(tmp_path: Path, sample: list[Node]) -> None:
    snapshot, output = tmp_path / "snapshot.jsonl", tmp_path / "examples" / "joy.json"
    snapshot.write_text("".join(snapshot_lines(sample)), encoding="utf-8", newline="\n")
    chosen = dataclasses.replace(DEFAULTS, max_examples_per_emotion=20, curated=("joy",))
    rules_again = examples_job.rules_from({**chosen.ingredients(), "curated": ["joy"]})
    counts = examples_job.make_examples(Corpus(read_snapshot(snapshot), rules_again), "joy", output)
    written = json.loads(output.read_text(encoding="utf-8"))
    expected = brute_force(sample, chosen, "joy")
    assert (written["emotion"], written["counts"]) == ("joy", counts)
    assert sorted(written) == ["counts", "emotion", "examples"]
    assert members(read_examples(output)) == expected
    assert all(digest_of(example.text) == example.digest for example in read_examples(output))
    planned = make_plan(sample, chosen, 1, "g").emotions["joy"]
    assert planned["counts"] == counts
    assert planned["examples"] == canonical_key(expected)


def test_examples_by_split_and_side() -> None:
    sides = [("c", POSITIVE, TRAIN), ("a", POSITIVE, TRAIN), ("b", NEGATIVE, TRAIN), ("d", POSITIVE, HELD_OUT)]
    made = [Example(digest, polarity, split, "Rain.") for digest, polarity, split in sides]
    assert digests_of(made, TRAIN) == {POSITIVE: ["a", "c"], NEGATIVE: ["b"]}
    assert digests_of(iter(made), HELD_OUT) == {POSITIVE: ["d"], NEGATIVE: []}
    assert count_examples(iter(made)) == {TRAIN: {POSITIVE: 2, NEGATIVE: 1}, HELD_OUT: {POSITIVE: 1, NEGATIVE: 0}}
