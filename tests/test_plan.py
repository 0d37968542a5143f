"""Which texts are whose examples: against a brute-force reading of the rules."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from amygdala import plan
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN
from amygdala.graph import Node
from amygdala.plan import held_out_mask
from nodes import (
    DEFAULTS,
    Member,
    brute_force,
    corpus_of,
    digest_of,
    members,
    mentioned,
    near_groups,
    node,
    own_side,
    rules,
    salted,
    sample_nodes,
    sides,
)


@pytest.fixture(scope="module")
def sample() -> list[Node]:
    return sample_nodes()


VARIANTS: list[dict[str, Any]] = [
    {},
    {"max_examples_per_emotion": 30},
    {"max_examples_per_emotion": 7, "seed": 41},
    {"max_negative_score": 4, "min_positive_score": 9, "max_examples_per_emotion": 100},
    {"max_negative_score": 10, "max_negative_mentions": 1},
    {"min_content_chars": 300, "held_out": 0.5},
    {"min_positive_score": 0.5, "max_negative_mentions": 3, "held_out": 0},
    {"aliases": {"calm": "tiredness", "house": "joy", "dread": "tiredness"}},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_examples_of_the_sample_graph_against_brute_force(sample: list[Node], changes: dict[str, Any]) -> None:
    chosen = dataclasses.replace(DEFAULTS, **changes)
    corpus = corpus_of(sample, chosen)
    emotions = sorted({emotion for each in sample for emotion in each.scores})
    assert len(emotions) > 20
    for emotion in [*emotions[::3], "joy", "tiredness"]:
        assert members(corpus, emotion) == brute_force(sample, chosen, emotion), emotion


MADE_WORDS = [
    *("rain", "joy", "Joy,", "joyful", "self", "doubt", "self-doubt", "Self_Doubt.", "doubts", "(self", "doubt)", "ＪＯＹ"),
    *("joy:9", "Joyful:3", "awe:10", "killjoy:2", "snow", "wind"),
]


def made_nodes(chance: random.Random, count: int) -> list[Node]:
    """Texts with mentions, labels, duplicates and all scores. Of 3 words at most, they are near duplicates or strangers."""
    made: list[Node] = []
    while len(made) < count:
        text = " ".join(chance.choices(MADE_WORDS, k=chance.randrange(1, 4)))
        if len(text.replace("-", " ").replace("_", " ").replace(":", " ").split()) <= 3:
            picked = chance.sample(["joy", "joyful", "self_doubt", "awe"], k=chance.randrange(3))
            scores = {name: chance.choice([0, 2, 5, 7.5, 8, 8.5, 10]) for name in picked}
            made.append(Node("file", f"n{len(made)}", text, scores))
    return made


def test_examples_of_made_graphs_against_brute_force() -> None:
    chance = random.Random(3)
    seen: Counter[str] = Counter()
    for _ in range(150):
        nodes = made_nodes(chance, chance.randrange(1, 60))
        chosen = rules(
            max_negative_score=chance.choice([None, 0, 5, 8, 9]),
            min_positive_score=chance.choice([5, 8, 8.5]),
            max_negative_mentions=chance.randrange(3),
            max_examples_per_emotion=chance.choice([1, 5, 500]),
            min_content_chars=chance.choice([1, 8]),
            held_out=chance.choice([0.25, 0.6]),
            seed=chance.randrange(9),
            aliases=chance.choice([{}, {"joyful": "joy"}]),
        )
        corpus = corpus_of(nodes, chosen)
        for emotion in {"unheard_of", *(name for each in nodes for name in each.scores)} - chosen.aliases.keys():
            found = members(corpus, emotion)
            assert found == brute_force(nodes, chosen, emotion)
            assert len({digest for digest, _, _ in found}) == len(found)
            seen.update(split + polarity for _, polarity, split in found)
        # a text counts as moved where its own hash would hold it out
        texts = {digest_of(each.text) for each in nodes}
        groups = near_groups(tuple(each.text for each in nodes))
        out = {digest for digest in texts if own_side(digest, chosen.held_out) == HELD_OUT}
        moved = sum(len(group & out) for group in groups if not group <= out)
        large = [group for group in groups if len(group) > 1]
        assert corpus.near_duplicates() == {"texts": sum(map(len, large)), "groups": len(large), "moved_to_train": moved}
        seen["moved"] += moved
    assert len(seen) == 5 and min(seen.values()) > 50


# The rules one by one


def test_a_role_names_its_row_and_digest() -> None:
    nodes = [node(f"Text {n}.", joy=9.0 * (n % 2)) for n in range(20)]
    corpus = corpus_of(nodes, rules(max_negative_score=0))
    roles = corpus.roles("joy")
    assert [corpus.index.digests[role.row].tobytes().hex() for role in roles] == [role.digest for role in roles]
    assert all(type(role.row) is int for role in roles)
    order = [(role.polarity == NEGATIVE, role.digest) for role in roles]
    assert order == sorted(order) and len(order) == 20
    assert corpus.positives("joy").tolist() == [role.row for role in roles if role.polarity == POSITIVE]
    assert corpus.negatives("joy").tolist() == [role.row for role in roles if role.polarity == NEGATIVE]


@pytest.mark.parametrize("limit", [8, 8.5, 9, 10])
def test_a_text_is_never_both(limit: float) -> None:
    """Also where the limit of negatives is above that of positives."""
    nodes = [node(f"Text {score}.", joy=score) for score in (0, 7.5, 8, 8.5, 9, 10)]
    found = sides(corpus_of(nodes, rules(max_negative_score=limit)), nodes, "joy")
    positives = dict.fromkeys(["Text 8.", "Text 8.5.", "Text 9.", "Text 10."], POSITIVE)
    assert found == {**positives, "Text 0.": NEGATIVE, "Text 7.5.": NEGATIVE}


@pytest.mark.parametrize(
    ("limit", "negatives"),
    [(None, ["Untagged."]), (0, ["Scored 0.", "Untagged."]), (3, ["Scored 0.", "Scored 3.", "Untagged."])],
)
def test_max_negative_score(limit: float | None, negatives: list[str]) -> None:
    nodes = [node("Untagged.", awe=9), *(node(f"Scored {score}.", joy=score) for score in (0, 3, 3.5, 7.9, 8))]
    found = sides(corpus_of(nodes, rules(max_negative_score=limit)), nodes, "joy")
    assert found == {**dict.fromkeys(negatives, NEGATIVE), "Scored 8.": POSITIVE}


def test_the_highest_score_of_equal_texts_decides() -> None:
    nodes = [node("Rain.", "a", joy=3, awe=9), node("Rain.", "b", joy=9), node("Rain.", "c", joy=5), node("Snow.", "d", joy=7)]
    corpus = corpus_of(nodes, rules(max_negative_score=7))
    assert sides(corpus, nodes, "joy") == {"Rain.": POSITIVE, "Snow.": NEGATIVE}
    assert sides(corpus, nodes, "awe") == {"Rain.": POSITIVE, "Snow.": NEGATIVE}
    rows, scores = corpus.scores("joy")
    assert dict(zip(corpus.index.hex_digests(rows), scores.tolist(), strict=True)) == {
        digest_of("Rain."): 9,
        digest_of("Snow."): 7,
    }


@pytest.mark.parametrize("allowed", range(5))
def test_a_negative_mentions_its_emotion_at_most_so_often(allowed: int) -> None:
    texts = ["Rain fell.", "One joy here.", "Joy, joy again.", "Joy, joy, JOY: end_joy now", "joyful snow"]
    nodes = [node(text) for text in texts]
    found = sides(corpus_of([*nodes, node("Sun.", joy=9)], rules(max_negative_mentions=allowed)), [*nodes, node("Sun.")], "joy")
    assert [text for text in texts if text in found] == [text for text in texts if mentioned(text, "joy") <= allowed]
    assert {mentioned(text, "joy") for text in texts} == {0, 1, 2, 4}


def test_a_positive_may_mention_its_emotion() -> None:
    nodes = [node("Joy, joy, joy.", joy=9), node("Joy."), node("Rain.")]
    assert sides(corpus_of(nodes, rules()), nodes, "joy") == {"Joy, joy, joy.": POSITIVE, "Rain.": NEGATIVE}


def test_a_text_that_shows_its_own_label_is_no_positive() -> None:
    """Nor a negative; other emotions don't mind, and negatives only as it is a mention."""
    nodes = [
        node("It was joy:9 then.", joy=9, awe=9),
        node("Sun.", joy=9),
        node("It was awe:2 once.", joy=8),
        node("Joy: 3 at noon.", joy=3),
        node("Rain."),
    ]
    for mentions in (0, 9):
        corpus = corpus_of(nodes, rules(max_negative_mentions=mentions, max_negative_score=3))
        lenient = {"Joy: 3 at noon.": NEGATIVE} if mentions else {}
        assert sides(corpus, nodes, "joy") == {"Sun.": POSITIVE, "It was awe:2 once.": POSITIVE, "Rain.": NEGATIVE, **lenient}
        assert corpus.labels_shown("joy") == 1
        assert corpus.labels_shown("awe") == 0
        assert sides(corpus, nodes, "awe")["It was joy:9 then."] == POSITIVE


def test_labels_shown_are_counted_where_the_text_would_be_a_positive() -> None:
    nodes = [
        node("joy:9 and awe:9", joy=9, awe=9),
        node("joy:3 then", joy=8),
        node("joy:2 later", joy=7.9),
        node("joy:9.", joy=9),  # too short
        node("Rain, rain.", joy=9),
    ]
    corpus = corpus_of(nodes, rules(min_content_chars=7))
    assert (corpus.labels_shown("joy"), corpus.labels_shown("awe"), corpus.labels_shown("calm")) == (2, 1, 0)


def test_min_content_chars_counts_characters_of_both_sides() -> None:
    nodes = [node("é" * 40, joy=9), node("ü" * 40), node("x" * 39, joy=9), node("y" * 39)]
    assert sides(corpus_of(nodes, rules(min_content_chars=40)), nodes, "joy") == {"é" * 40: POSITIVE, "ü" * 40: NEGATIVE}


# Aliases


ALIASES = {"joyful": "joy", "glee": "joy"}


def test_scores_and_mentions_of_an_alias_are_the_emotions() -> None:
    nodes = [
        node("Sun.", joy=2, joyful=9),
        node("Moon.", joy=9, glee=1),
        node("Star.", glee=5),
        node("Full of glee.", awe=9),
        node("So joyful."),
        node("It was joyful:9.", glee=9),
        node("Rain."),
    ]
    corpus = corpus_of(nodes, rules(aliases=ALIASES))
    assert sides(corpus, nodes, "joy") == {"Sun.": POSITIVE, "Moon.": POSITIVE, "Rain.": NEGATIVE}
    assert corpus.labels_shown("joy") == 1
    lenient = corpus_of(nodes, rules(aliases=ALIASES, max_negative_mentions=1, max_negative_score=5))
    assert sides(lenient, nodes, "joy").keys() == {each.text for each in nodes} - {"It was joyful:9."}
    # without the aliases each stands for itself
    alone = corpus_of(nodes, rules(max_negative_score=5))
    assert sides(alone, nodes, "joy")["Sun."] == NEGATIVE
    assert sides(alone, nodes, "glee")["It was joyful:9."] == POSITIVE


def test_an_emotion_that_only_its_aliases_tag() -> None:
    nodes = [node("Sun.", joyful=9), node("A joy."), node("Rain.")]
    corpus = corpus_of(nodes, rules(aliases=ALIASES))
    assert sides(corpus, nodes, "joy") == {"Sun.": POSITIVE, "Rain.": NEGATIVE}
    assert list(corpus.select()[0]) == ["joy"]


def test_mentions_of_emotion_and_aliases_add_up() -> None:
    nodes = [node("Sun.", joy=9), node("joy and glee"), node("joy, glee, joyful")]
    for allowed in range(4):
        found = sides(corpus_of(nodes, rules(aliases=ALIASES, max_negative_mentions=allowed)), nodes, "joy")
        assert found.keys() == {
            "Sun.",
            *(["joy and glee"] if allowed >= 2 else []),
            *(["joy, glee, joyful"] if allowed > 2 else []),
        }


def test_an_alias_that_reads_the_same_is_mentioned_once() -> None:
    nodes = [node("Sun.", self_doubt=9), node("Some self doubt there.")]
    chosen = rules(aliases={"self-doubt": "self_doubt"}, max_negative_mentions=1)
    assert sides(corpus_of(nodes, chosen), nodes, "self_doubt") == {"Sun.": POSITIVE, "Some self doubt there.": NEGATIVE}


# The cap


def test_of_equal_hashes_at_the_cap_the_first_rows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(0).integers(0, 20, 400).astype(np.uint64)
    in_order = sorted(range(len(hashes)), key=lambda row: (hashes[row], row))
    monkeypatch.setattr(plan, "_salted", lambda of, *salt: hashes[: len(of)])
    nodes = [node(f"Positive {n}.", joy=9) for n in range(len(hashes))]
    for cap in (1, 50, 200, 399):
        corpus = corpus_of(nodes, rules(max_examples_per_emotion=cap))
        assert corpus._capped(np.arange(len(hashes)), "joy").tolist() == sorted(in_order[:cap])


def test_one_more_node_displaces_at_most_one_example_a_side() -> None:
    chosen = rules(max_examples_per_emotion=20)
    nodes = [node(f"Positive {n}.", joy=9) for n in range(60)] + [node(f"Negative {n}.") for n in range(60)]

    def found(nodes: list[Node]) -> set[tuple[str, str]]:
        return {(polarity, digest) for digest, polarity, _ in members(corpus_of(nodes, chosen), "joy")}

    before = found(nodes)
    assert Counter(polarity for polarity, _ in before) == {POSITIVE: 20, NEGATIVE: 20}
    displaced = 0
    for number in range(40):
        added = node(f"Added {number}.", **({"joy": 9} if number % 2 else {}))
        after = found([*nodes, added])
        gone, come = before - after, after - before
        assert {digest for _, digest in come} <= {added.digest}
        assert [polarity for polarity, _ in gone] == [polarity for polarity, _ in come]
        displaced += len(gone)
    assert 3 < displaced < 30  # a third of 40 is expected


def test_a_thousand_more_nodes_change_what_the_order_by_hash_demands_and_nothing_else() -> None:
    chosen = rules(max_examples_per_emotion=50, seed=6, held_out=0.2)
    nodes = [node(f"Positive {n}.", joy=9) for n in range(150)] + [node(f"Negative {n}.", awe=9) for n in range(150)]
    more = [node(f"More {n}.", **({"joy": 9} if n % 4 == 0 else {"awe": 5} if n % 4 == 1 else {})) for n in range(1000)]
    before, after = (set(members(corpus_of(those, chosen), "joy")) for those in (nodes, [*nodes, *more]))

    def first(texts: list[str]) -> set[str]:
        return set(sorted(map(digest_of, texts), key=lambda digest: salted(digest, "6\0joy"))[:50])

    expected: set[Member] = set()
    for polarity, kind, quarter in ((POSITIVE, "Positive", [0]), (NEGATIVE, "Negative", [1, 2, 3])):
        old = [f"{kind} {n}." for n in range(150)]
        new = [f"More {n}." for n in range(1000) if n % 4 in quarter]
        was, now = first(old), first([*old, *new])
        assert {digest for digest, side, _ in before if side == polarity} == was
        assert now - was <= set(map(digest_of, new)) and len(now - was) == len(was - now) > 10
        expected |= {(digest, polarity, own_side(digest, 0.2)) for digest in was ^ now}
    assert before ^ after == expected
    # awe, which the 1,000 leave below its cap of positives, keeps all of them
    fewer = dataclasses.replace(chosen, max_examples_per_emotion=150)
    mine = [{m for m in members(corpus_of(those, fewer), "awe") if m[1] == POSITIVE} for those in (nodes, [*nodes, *more])]
    assert len(mine[0]) == 150 and mine[0] == mine[1]


def test_the_choice_under_the_cap_depends_on_seed_and_emotion_and_not_on_the_split() -> None:
    nodes = [node(f"Text {n}.", joy=9, awe=9) for n in range(3000)]

    def choice(emotion: str, seed: int) -> dict[str, str]:
        found = members(corpus_of(nodes, rules(max_examples_per_emotion=600, seed=seed, held_out=0.2)), emotion)
        return {digest: split for digest, _, split in found}

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
MADE_HASHES = np.array([int(digest[:16], 16) for digest in MADE_DIGESTS], dtype=np.uint64)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5, 0.9])
def test_the_held_out_share_is_near_what_is_asked(share: float) -> None:
    mask = held_out_mask(MADE_HASHES, share)
    assert mask.shape == (5000,)
    assert abs(mask.mean() - share) < 0.025 if share else not mask.any()
    assert mask.tolist() == [salted(digest, "held out") < share * 2**64 for digest in MADE_DIGESTS]


def test_a_larger_share_only_adds_to_the_held_out_texts() -> None:
    small, large = held_out_mask(MADE_HASHES, 0.1), held_out_mask(MADE_HASHES, 0.2)
    assert not (small & ~large).any()


def test_the_own_side_is_by_digest_alone() -> None:
    alone = [bool(held_out_mask(MADE_HASHES[n : n + 1], 0.2)[0]) for n in range(200)]
    assert held_out_mask(MADE_HASHES[:200][::-1], 0.2).tolist() == alone[::-1]


def test_the_split_is_the_same_for_all_emotions_graphs_and_seeds(sample: list[Node]) -> None:
    emotions = ["joy", "calm", "tiredness", "dread"]
    splits: dict[str, set[str]] = {}
    for nodes, seed in ((sample, 0), (sample[100:], 0), (sample, 9)):
        corpus = corpus_of(nodes, dataclasses.replace(DEFAULTS, seed=seed, max_examples_per_emotion=200))
        for emotion in emotions:
            for digest, _, split in members(corpus, emotion):
                splits.setdefault(digest, set()).add(split)
    assert {len(found) for found in splits.values()} == {1}
    assert Counter(split for found in splits.values() for split in found).keys() == {TRAIN, HELD_OUT}


def family(chance: random.Random, count: int) -> list[str]:
    """A text of 80 words and copies with two words changed, near the first and one another."""
    base = [f"w{chance.getrandbits(60)}" for _ in range(80)]
    made = [base]
    for _ in range(count - 1):
        made.append([f"v{chance.getrandbits(60)}" if place in (0, 79) else word for place, word in enumerate(base)])
    return [" ".join(words) for words in made]


def splits(texts: list[str], share: float) -> dict[str, str]:
    corpus = corpus_of([node(text) for text in texts], rules(held_out=share))
    return {digest: split for digest, _, split in members(corpus, "joy")}


def test_near_duplicates_are_held_out_together_and_only_where_all_would_be() -> None:
    chance = random.Random(4)
    families = [family(chance, 1 + n % 3) for n in range(90)]
    chance.shuffle(families)
    found = splits([text for texts in families for text in texts], 0.6)
    kinds: Counter[tuple[int, bool]] = Counter()
    for texts in families:
        own = [own_side(digest_of(text), 0.6) for text in texts]
        expected = HELD_OUT if set(own) == {HELD_OUT} else TRAIN
        assert {found[digest_of(text)] for text in texts} == {expected}
        kinds[len(texts), expected == HELD_OUT] += 1
    assert len(kinds) == 6 and min(kinds.values()) >= 3


def test_no_text_that_was_trained_on_is_ever_held_out() -> None:
    """As the graph grows: a new near duplicate may bring an old text into training, never take one out."""
    chance = random.Random(5)
    texts = [text for n in range(60) for text in family(chance, 1 + n % 4)]
    chance.shuffle(texts)
    before: dict[str, str] = {}
    moves: Counter[tuple[str, str]] = Counter()
    for count in range(10, len(texts) + 1, 10):
        after = splits(texts[:count], 0.7)
        moves.update((split, after[digest]) for digest, split in before.items())
        before = after
    assert moves[TRAIN, HELD_OUT] == 0
    assert moves[HELD_OUT, TRAIN] > 5 and moves[TRAIN, TRAIN] > 5 and moves[HELD_OUT, HELD_OUT] > 5


def test_a_near_duplicate_too_short_to_be_an_example_still_ties_its_group() -> None:
    chance = random.Random(6)
    pairs = (sorted(family(chance, 2), key=len) for _ in range(200))
    short, long = next(
        pair
        for pair in pairs
        if len(pair[0]) < len(pair[1]) and [own_side(digest_of(text), 0.5) for text in pair] == [TRAIN, HELD_OUT]
    )
    corpus = corpus_of([node(short), node(long)], rules(held_out=0.5, min_content_chars=len(long)))
    assert members(corpus, "joy") == [(digest_of(long), NEGATIVE, TRAIN)]
    assert corpus.near_duplicates() == {"texts": 2, "groups": 1, "moved_to_train": 1}
    alone = corpus_of([node(long)], rules(held_out=0.5))
    assert members(alone, "joy") == [(digest_of(long), NEGATIVE, HELD_OUT)]
    assert alone.near_duplicates() == {"texts": 0, "groups": 0, "moved_to_train": 0}
