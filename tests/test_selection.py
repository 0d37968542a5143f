"""Which emotions get a vector and why, and what the plan promises the build."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from typing import Any

import pytest
import yaml

from amygdala.corpus import make_index
from amygdala.errors import UserError
from amygdala.exampleset import HELD_OUT, NEGATIVE, POSITIVE, TRAIN, count_examples, digests_of
from amygdala.graph import Node, Skipped
from amygdala.plan import Plan, Role, Rules, make_plan, warnings_of
from nodes import (
    DEFAULTS,
    brute_force,
    canonical_key,
    corpus_of,
    digest_of,
    members,
    node,
    own_side,
    plan_of,
    rules,
    sample_nodes,
)
from tiny import REPOSITORY


@pytest.fixture(scope="module")
def sample() -> list[Node]:
    return sample_nodes()


def tagged(**positives: int) -> list[Node]:
    """As many positives of each emotion; two more texts without it, of each a weak one."""
    made = [node(f"{name[::-1]} {n}", **{name: 9}) for name, count in positives.items() for n in range(count)]
    return made + [node(f"weak {name[::-1]}", **{name: 5}) for name in positives] + [node("Rain."), node("Snow.")]


GRAPH = {"joy": 6, "awe": 4, "calm": 4, "dread": 2, "envy": 1, "hope": 0}
FEWER = "fewer than emotions.min_positives (2)"
EXCLUDED = "excluded (emotions.exclude)"
CURATED_MISSING = "curated, but no text of 1 characters or more carries this tag"


@pytest.mark.parametrize(
    ("changes", "chosen", "left_out"),
    [
        (
            {"select": "data", "min_positives": 2, "top": 9},
            {
                "joy": "number 1 of the most common",
                "awe": "number 2 of the most common",
                "calm": "number 3 of the most common",
                "dread": "number 4 of the most common",
            },
            {"envy": f"1 positives, {FEWER}", "hope": f"0 positives, {FEWER}"},
        ),
        # ties go by name; curated names do not count
        (
            {"select": "data", "min_positives": 2, "top": 2, "curated": ("envy", "unknown")},
            {"joy": "number 1 of the most common", "awe": "number 2 of the most common"},
            {
                "calm": "not among the 2 most common (emotions.top)",
                "dread": "not among the 2 most common (emotions.top)",
                "envy": f"1 positives, {FEWER}",
                "hope": f"0 positives, {FEWER}",
            },
        ),
        # an excluded emotion takes no place among the most common; one that nobody tagged is not heard of
        (
            {"select": "data", "min_positives": 2, "top": 2, "exclude": ("joy", "unknown")},
            {"awe": "number 1 of the most common", "calm": "number 2 of the most common"},
            {
                "joy": EXCLUDED,
                "dread": "not among the 2 most common (emotions.top)",
                "envy": f"1 positives, {FEWER}",
                "hope": f"0 positives, {FEWER}",
            },
        ),
        (
            {"select": "curated", "curated": ("envy", "joy", "hope", "nobody", "unknown"), "exclude": ("joy", "nobody")},
            {"envy": "curated", "hope": "curated"},
            {
                "joy": EXCLUDED,
                "nobody": EXCLUDED,
                "unknown": CURATED_MISSING,
                **dict.fromkeys(("awe", "calm", "dread"), "not in emotions.curated"),
            },
        ),
        (
            {"select": "both", "min_positives": 2, "top": 2, "curated": ("awe", "dread", "envy", "unknown")},
            {
                "joy": "number 1 of the most common",
                "awe": "curated, number 2 of the most common",
                "dread": "curated",
                "envy": "curated",
            },
            {
                "calm": "not among the 2 most common (emotions.top)",
                "hope": f"0 positives, {FEWER}",
                "unknown": CURATED_MISSING,
            },
        ),
        ({"select": "both", "top": 9, "exclude": tuple(GRAPH)}, {}, dict.fromkeys(GRAPH, EXCLUDED)),
        # an alias gives its positives to its emotion, and is no emotion itself, curated or not
        (
            {
                "select": "both",
                "min_positives": 5,
                "top": 1,
                "curated": ("dread", "gloom"),
                "aliases": {"calm": "awe", "dread": "hope", "gloom": "joy"},
            },
            {"awe": "number 1 of the most common"},
            {
                "calm": "counts as awe (emotions.aliases)",
                "dread": "counts as hope (emotions.aliases)",
                "gloom": "counts as joy (emotions.aliases)",
                "joy": "not among the 1 most common (emotions.top)",
                "envy": "1 positives, fewer than emotions.min_positives (5)",
                "hope": "2 positives, fewer than emotions.min_positives (5)",
            },
        ),
        # not in use: neither the curated list nor the aliases of names that nobody tags
        (
            {"select": "data", "min_positives": 4, "top": 9, "curated": ("gloom",), "aliases": {"gloom": "doom"}},
            {
                "joy": "number 1 of the most common",
                "awe": "number 2 of the most common",
                "calm": "number 3 of the most common",
            },
            {name: f"{GRAPH[name]} positives, fewer than emotions.min_positives (4)" for name in ("dread", "envy", "hope")},
        ),
    ],
)
def test_select(changes: dict[str, Any], chosen: dict[str, str], left_out: dict[str, str]) -> None:
    got, reasons, positives = corpus_of(tagged(**GRAPH), rules(**changes)).select()
    assert got == chosen and list(got) == sorted(chosen)
    assert reasons == left_out
    counted = dict(GRAPH)
    for name, other in changes.get("aliases", {}).items():
        if name in GRAPH:
            counted[other] += counted.pop(name)
    assert positives == counted


def test_min_positives_counts_unique_texts_and_both_splits() -> None:
    nodes = [node("Same text.", f"k{n}", joy=9) for n in range(5)] + [node(f"Awe {n}.", awe=9) for n in range(3)]
    chosen, left_out, positives = corpus_of(nodes, rules(min_positives=2, held_out=0.9)).select()
    assert list(chosen) == ["awe"]
    assert left_out == {"joy": f"1 positives, {FEWER}"}
    assert positives == {"awe": 3, "joy": 1}


def test_a_tag_of_short_texts_alone_has_no_positives() -> None:
    nodes = [node("Short.", joy=9), node("A longer text.", awe=9), node("A longer one again.", joy=3)]
    chosen = rules(min_content_chars=10, curated=("joy",))
    assert corpus_of(nodes, chosen).select() == (
        {"awe": "number 1 of the most common", "joy": "curated"},
        {},
        {"awe": 1, "joy": 0},
    )


# Enough examples


def test_min_examples_counts_training_examples_of_each_side() -> None:
    nodes = [node(f"Text {n}.", joy=9) for n in range(12)] + [node(f"Other {n}.", awe=9) for n in range(40)]
    chosen = rules(held_out=0.25, min_positives=1, select="both", curated=("joy",))
    train = sum(own_side(digest_of(f"Text {n}."), 0.25) == TRAIN for n in range(12))
    assert 0 < train < 12
    assert "joy" in plan_of(nodes, dataclasses.replace(chosen, min_examples=train)).emotions
    # awe has the 12 texts of joy as its negatives: as few as joy has positives
    with pytest.raises(UserError, match="no emotion has enough positives"):
        plan_of(nodes, dataclasses.replace(chosen, min_examples=train + 1))
    more = [*nodes, *(node(f"Neither {n}.") for n in range(20))]
    plan = plan_of(more, dataclasses.replace(chosen, min_examples=train + 1))
    assert list(plan.emotions) == ["awe"]
    assert plan.left_out == {"joy": f"{train} positives to train on, fewer than min_examples ({train + 1})"}
    assert plan.selection["joy"] == {
        "chosen": False,
        "reason": plan.left_out["joy"],
        "positives": 12,
        "negatives": 60,
        "label_shown": 0,
    }
    assert warnings_of(plan, chosen) == [f"emotion 'joy' gets no vector: {plan.left_out['joy']}"]
    assert warnings_of(plan, dataclasses.replace(chosen, curated=())) == []
    assert warnings_of(plan, dataclasses.replace(chosen, select="data")) == []  # the list is not in use


def test_both_short_sides_are_named() -> None:
    nodes = [
        *tagged(joy=1),
        *(node(f"Awe {n}.", joy=5, awe=9) for n in range(9)),
        *(node(f"Joy {n}.", joy=5) for n in range(9)),
    ]
    plan = plan_of(nodes, rules(held_out=0, min_examples=3))
    assert plan.left_out["joy"] == "1 positives and 2 negatives to train on, fewer than min_examples (3)"


def test_no_emotion_with_enough_positives_is_an_error_that_says_what_was_found() -> None:
    with pytest.raises(UserError, match=r"^my\.jsonl: no emotion has enough positives\. Texts scored at least 8: ") as caught:
        plan_of(tagged(joy=2, awe=3, hope=0), rules(min_positives=4), name="my.jsonl")
    assert "at least 8: awe 3, joy 2, hope 0." in str(caught.value)
    for setting in ("emotions.min_positives", "min_examples", "min_positive_score"):
        assert setting in str(caught.value)
    with pytest.raises(UserError, match=r"scored at least 8\.5: no tags at all"):
        plan_of([node("Rain."), node("Snow.")], rules(min_positive_score=8.5))
    many = [node(f"Text {n}.", **{f"e{n:02d}": 9}) for n in range(12)]
    with pytest.raises(UserError, match=r"at least 8: e00 1, (e0\d 1, ){6}e07 1\. Lower"):
        plan_of(many, rules(min_positives=2))


# The settings


def test_rules_take_their_settings_from_the_configuration_with_names_in_canonical_form() -> None:
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    config["emotions"].update(curated=["Self_Doubt", "joy", "JOY"], exclude=["ＡＷＥ"], top=7)
    config["emotions"]["aliases"] = {"Joyful": "JOY", "glee": "joy", "ＤＲＥＡＤ": "Fear"}
    config.update(held_out=0.3, seed=4)
    got = Rules.of(config)
    assert (got.curated, got.exclude, got.top, got.held_out, got.seed) == (("joy", "self_doubt"), ("awe",), 7, 0.3, 4)
    assert list(got.aliases.items()) == [("dread", "fear"), ("glee", "joy"), ("joyful", "joy")]
    assert [got.names_of(name) for name in ("joy", "fear", "calm")] == [["joy", "glee", "joyful"], ["fear", "dread"], ["calm"]]
    assert got.ingredients() == dataclasses.asdict(got)
    assert Rules.from_params(json.loads(json.dumps(got.ingredients()))) == got


# The plan


def test_the_selection_tells_of_every_emotion_in_the_graph_or_the_configuration() -> None:
    nodes = [
        *tagged(joy=6, awe=5, calm=2, dread=1, envy=3),
        node("joy:9 it said", joy=9),
        *(node(f"Glad {n}.", joyful=9) for n in range(2)),
    ]
    chosen = rules(
        min_positives=2,
        top=2,
        held_out=0,
        min_examples=2,
        curated=("dread", "gloom"),
        exclude=("calm",),
        aliases={"joyful": "joy"},
    )
    plan = plan_of(nodes, chosen)
    # 5 weak texts, rain, snow, and the positives of the others
    assert plan.selection == {
        "awe": {
            "chosen": True,
            "reason": "number 2 of the most common",
            "positives": 5,
            "negatives": 27 - 6,
            "label_shown": 0,
        },
        "calm": {"chosen": False, "reason": EXCLUDED, "positives": 2},
        "dread": {
            "chosen": False,
            "reason": "1 positives to train on, fewer than min_examples (2)",
            "positives": 1,
            "negatives": 27 - 2,
            "label_shown": 0,
        },
        "envy": {"chosen": False, "reason": "not among the 2 most common (emotions.top)", "positives": 3},
        "gloom": {"chosen": False, "reason": CURATED_MISSING, "positives": 0},
        "joy": {
            "chosen": True,
            "reason": "number 1 of the most common",
            "positives": 8,
            "negatives": 27 - 6 - 1 - 1 - 2,
            "label_shown": 1,
        },
        "joyful": {"chosen": False, "reason": "counts as joy (emotions.aliases)", "positives": 0},
    }
    assert list(plan.selection) == sorted(plan.selection)
    assert plan.left_out == {name: facts["reason"] for name, facts in plan.selection.items() if name not in ("awe", "joy")}
    assert list(plan.emotions) == ["awe", "joy"]


def test_a_graph_whose_positives_all_show_their_label_is_told_so() -> None:
    nodes = [node(f"joy:{n} it said", joy=9) for n in range(4)] + [node(f"Rain {n}.") for n in range(4)]
    with pytest.raises(UserError, match=r"joy 0 \(4 more are not used: their own label stands in the text as name:number\)"):
        plan_of(nodes, rules(held_out=0, min_positives=2))
    plan = plan_of([*nodes, *(node(f"Sun {n}.", awe=9) for n in range(4))], rules(held_out=0, min_positives=2))
    assert plan.selection["joy"]["label_shown"] == 4
    assert warnings_of(plan, rules(held_out=0))[0].startswith("4 positives are not used because")


def test_emotions_without_held_out_texts_and_labels_that_were_not_read_are_warned_of() -> None:
    nodes = [node(f"Sun {n}.", joy=9) for n in range(3)] + [node(f"Rain {n}.\nawe: 9") for n in range(3)]
    plan = plan_of(nodes, rules(held_out=1e-9))
    assert warnings_of(plan, rules(held_out=1e-9)) == [
        "1 emotions have no held-out positives or negatives to be measured on: 'joy'",
        "3 texts end in what looks like tags and is none (docs/sources.md#tags), the first 'Rain 0.\\nawe: 9': "
        "the model sees these labels",
    ]


def test_warnings_name_curated_emotions_skipped_nodes_and_shown_labels() -> None:
    nodes = [
        *(node(f"Sun {n}.", joy=9, awe=9) for n in range(5)),
        *(node(f"Rain {n}.") for n in range(5)),
        node("awe:9 it said", awe=9),
        *(node(f"joy:{n} it said", joy=9) for n in range(2)),
    ]
    chosen = rules(held_out=0, curated=("gloom", "doom"))
    skipped = [Skipped("file", "a\x1b/b", "score '11' is outside 0-10"), Skipped("file", "c", "why not")]
    plan = make_plan(make_index(nodes, skipped), chosen, 1, "g")
    missing = "curated, but no text of 1 characters or more carries this tag"
    assert warnings_of(plan, chosen) == [
        f"emotion 'gloom' gets no vector: {missing}",
        f"emotion 'doom' gets no vector: {missing}",
        "2 nodes were skipped (bad_nodes), the first 'a\\x1b/b': score '11' is outside 0-10",
        "3 positives are not used because their own label stands in the text as name:number (joy 2, awe 1)",
    ]
    assert warnings_of(make_plan(make_index(nodes[:10]), rules(held_out=0), 1, "g"), chosen) == []


def test_the_graph_is_told_in_counts() -> None:
    family = [" ".join([*(f"w{n}" for n in range(80)), last]) for last in ("one", "two", "three")]
    nodes = [*tagged(joy=3), *(node(text) for text in family), node("Rain.", "again", None, "notes"), node("", "none")]
    plan = plan_of(nodes, rules(held_out=0))
    assert plan.graph == {
        "nodes": len(nodes),
        "empty": 1,
        "origins": {"file": len(nodes) - 1, "notes": 1},
        "skipped": 0,
        "skipped_nodes": [],
        "unread_labels": 0,
        "unread_label": "",
        "unique_texts": len(nodes) - 2,
        "near_duplicates": {"texts": 3, "groups": 1, "moved_to_train": 0},
    }


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 64])
def test_shards_partition_the_texts(sample: list[Node], shards: int) -> None:
    plan = plan_of(sample, DEFAULTS, shards)
    texts = {digest for emotion in plan.emotions for digest, _, _ in members(corpus_of(sample, DEFAULTS), emotion)}
    assert plan.texts == len(texts) == sum(part["texts"] for part in plan.shards)
    assert len(plan.shards) == shards
    for shard, part in enumerate(plan.shards):
        mine = sorted(digest for digest in texts if int(digest, 16) % 2**32 % shards == shard)
        assert part == {"texts": len(mine), "digests": canonical_key(mine)}


def test_texts_of_emotions_left_out_are_not_forwarded() -> None:
    many = [node(f"Text {n}.", joy=9) for n in range(4)] + [node(f"Other {n}.", joy=5) for n in range(30)] + [node("Rain.")]
    more = [node("Snow.", awe=9, joy=5), node("Rain.", "again"), node("x")]
    plan = plan_of([*many, *more], rules(held_out=0, min_positives=2, min_content_chars=2))
    assert list(plan.emotions) == ["joy"]
    assert plan.texts == 5
    assert plan.graph["nodes"] == 38  # short and repeated texts are nodes too


def test_plan_counts_and_hashes_are_of_the_examples(sample: list[Node]) -> None:
    plan = plan_of(sample, DEFAULTS, 2)
    assert len(plan.emotions) > 5
    folders: dict[str, list[str]] = {}
    for each in sample:
        folder = each.key.rpartition("/")[0]
        assert "/" not in folder
        known = folders.setdefault(each.digest, [])
        known += [folder] if folder and folder not in known else []
        known.sort()
    for emotion, facts in plan.emotions.items():
        found = brute_force(sample, DEFAULTS, emotion)
        counts = Counter((split, polarity) for _, polarity, split in found)
        assert facts["counts"] == {s: {p: counts[s, p] for p in (POSITIVE, NEGATIVE)} for s in (TRAIN, HELD_OUT)}
        assert facts["examples"] == canonical_key([(*member, [], folders[member[0]]) for member in found])
        training = {
            p: [digest for digest, polarity, split in found if (polarity, split) == (p, TRAIN)] for p in (POSITIVE, NEGATIVE)
        }
        assert facts["training"] == canonical_key(training)
    # what the memo does to it
    assert Plan(**json.loads(json.dumps(dataclasses.asdict(plan)))) == plan


def test_scenarios_are_part_of_the_examples_and_not_of_the_training_texts() -> None:
    nodes = [node(f"Sun {n}.", f"s{n}", "storm", joy=9) for n in range(4)] + [node(f"Rain {n}.") for n in range(4)]
    again = [*nodes, node("Sun 1.", "again", "letter"), node("Rain 2.", "more", "letter")]
    chosen = rules(held_out=0)
    plan = plan_of(again, chosen)
    scenarios = {
        **{digest_of(f"Sun {n}."): ["letter", "storm"] if n == 1 else ["storm"] for n in range(4)},
        digest_of("Rain 2."): ["letter"],
    }
    found = [[*member, scenarios.get(member[0], []), []] for member in brute_force(again, chosen, "joy")]
    assert plan.emotions["joy"]["examples"] == canonical_key(found)
    corpus = corpus_of(again, chosen)
    rows = corpus.scenarios
    assert {corpus.index.hex_digests([row])[0]: names for row, names in rows.items()} == scenarios
    before = plan_of(nodes, chosen)
    assert before.emotions["joy"]["examples"] != plan.emotions["joy"]["examples"]
    assert before.emotions["joy"]["training"] == plan.emotions["joy"]["training"]


def test_hashes_change_exactly_when_membership_changes() -> None:
    chance = random.Random(11)
    chosen = rules(max_examples_per_emotion=12, min_positives=1, max_negative_score=3)
    emotions = ("joy", "self_doubt", "awe")
    words = ["rain", "snow", "wind", "joy", "self doubt", "awe", "sun"]

    def made(number: int) -> Node:
        picked = chance.sample(emotions, k=chance.randrange(3))
        text = f"{chance.choice(words)} n{number}"  # at most 3 words: no other text is near
        return Node("file", f"n{number}", text, {name: chance.choice([0, 2, 5, 8, 10]) for name in picked})

    def seen(nodes: list[Node]) -> dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]]:
        plan = plan_of(nodes, chosen)
        result = {}
        for emotion in emotions:
            found = brute_force(nodes, chosen, emotion)
            training = [member for member in found if member[2] == TRAIN]
            facts = plan.emotions[emotion]
            result[emotion] = (facts["examples"], found), (facts["training"], training)
        return result

    nodes = [made(number) for number in range(60)]
    before = seen(nodes)
    same: Counter[tuple[str, bool]] = Counter()
    for number in range(120):
        changed = list(nodes)
        place = chance.randrange(len(nodes))
        old = nodes[place]
        edit = chance.randrange(4)
        if edit == 0:
            changed[place] = dataclasses.replace(old, scores={**old.scores, "joy": chance.choice([1, 5, 9, 10])})
        elif edit == 1:
            changed[place] = dataclasses.replace(old, text=made(100 + number).text)
        elif edit == 2:
            changed[place] = dataclasses.replace(old, key=old.key + "x", time="now")
        else:
            del changed[place]
        for emotion, pairs in seen(changed).items():
            for name, (was, was_of), (now, now_of) in zip(("examples", "training"), before[emotion], pairs, strict=True):
                assert (was == now) == (was_of == now_of)
                same[name, was == now] += 1
    assert all(same[name, flag] > 20 for name in ("examples", "training") for flag in (True, False))
    assert same["training", True] > same["examples", True]  # a held-out text alone moves no vector


def test_a_change_in_one_emotion_moves_no_other(sample: list[Node]) -> None:
    before = plan_of(sample, DEFAULTS)
    place, changed = next((n, each) for n, each in enumerate(sample) if each.scores.get("joy", 0) >= 8)

    def with_joy(score: float) -> Plan:
        other = dataclasses.replace(changed, scores={**changed.scores, "joy": score})
        return plan_of([*sample[:place], other, *sample[place + 1 :]], DEFAULTS)

    after = with_joy(5)
    moved = {emotion for emotion in before.emotions if before.emotions[emotion] != after.emotions[emotion]}
    assert moved == {"joy"}
    # a score that stays on its side moves nothing
    assert with_joy(8.25) == before


def test_plan_does_not_depend_on_the_order_of_nodes(sample: list[Node]) -> None:
    chosen = dataclasses.replace(DEFAULTS, max_examples_per_emotion=25)
    doubled = [*sample, *(dataclasses.replace(each, key=each.key + "/again", scores={"joy": 9.0}) for each in sample[:40])]
    expected = plan_of(doubled, chosen, 3)
    assert list(expected.emotions) == sorted(expected.emotions)
    chance = random.Random(2)
    for _ in range(3):
        chance.shuffle(doubled)
        shuffled = plan_of(doubled, chosen, 3)
        assert shuffled == expected
        assert json.dumps(dataclasses.asdict(shuffled)) == json.dumps(dataclasses.asdict(expected))


def test_roles_by_split_and_side() -> None:
    made = [("c", POSITIVE, TRAIN), ("a", POSITIVE, TRAIN), ("b", NEGATIVE, TRAIN), ("d", POSITIVE, HELD_OUT)]
    roles = [Role(row, *role) for row, role in enumerate(made)]
    assert digests_of(roles, TRAIN) == {POSITIVE: ["a", "c"], NEGATIVE: ["b"]}
    assert count_examples(roles) == {TRAIN: {POSITIVE: 2, NEGATIVE: 1}, HELD_OUT: {POSITIVE: 1, NEGATIVE: 0}}
