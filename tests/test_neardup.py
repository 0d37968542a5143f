"""Near duplicates: against the Jaccard similarity of 3-word shingles, with margins, and free of the other texts."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from amygdala import neardup
from amygdala.corpus import make_index
from amygdala.neardup import NEIGHBOURS, Sets, Signer, WordHashes, pairs, shingles_of, signatures
from nodes import jaccard, node, sample_nodes, shingles

Words = list[str]
VOCABULARY = [f"w{number}" for number in range(3000)]


def signed(texts: Sequence[Words]) -> np.ndarray:
    hashes = WordHashes()
    flat = [value for words in texts for value in hashes(words)]
    lengths = np.array([len(words) for words in texts], dtype=np.int64)
    return signatures(*shingles_of(np.array(flat, dtype=np.uint64), lengths))


def paired(texts: Sequence[Words]) -> set[tuple[int, int]]:
    signer = Signer()
    for words in texts:
        signer.add(words)
    return {(int(one), int(other)) for one, other in signer.pairs()}


def groups(texts: Sequence[Words]) -> list[int]:
    signer = Signer()
    for words in texts:
        signer.add(words)
    found = signer.groups()
    assert found.dtype == np.int32
    return found.tolist()


def likeness(one: Words, other: Words) -> float:
    return jaccard(shingles(" ".join(one)), shingles(" ".join(other)))


def text(chance: random.Random, length: int) -> Words:
    return chance.choices(VOCABULARY, k=length)


def changed(chance: random.Random, words: Words, places: int) -> Words:
    """The text with so many words replaced, anywhere."""
    made = list(words)
    for place in chance.sample(range(len(words)), places):
        made[place] = f"new{chance.getrandbits(60)}"
    return made


def planted(chance: random.Random) -> list[Words]:
    """60 families: a text, three copies with a few words changed, its first half or more with another end, and no kin."""
    found = []
    for _ in range(60):
        base = text(chance, chance.randrange(20, 160))
        keep = chance.randrange(len(base) // 2, len(base))
        found += [base, base[:keep] + text(chance, len(base) - keep), text(chance, len(base))]
        found += [changed(chance, base, chance.randrange(1, 2 + len(base) // 20)) for _ in range(3)]
    chance.shuffle(found)
    return found


def test_planted_pairs_against_brute_force() -> None:
    texts = planted(random.Random(7))
    of_text = [shingles(" ".join(words)) for words in texts]
    found = paired(texts)
    bands = {0.9: 0, 0.7: 0, 0.4: 0, 0.2: 0}  # how many pairs there are to be right about
    for pair in itertools.combinations(range(len(texts)), 2):
        similarity = jaccard(of_text[pair[0]], of_text[pair[1]])
        if similarity >= 0.9:
            assert pair in found, similarity
        elif similarity <= 0.4:
            assert pair not in found, similarity
        bands[next((bound for bound in bands if similarity >= bound), 0.2)] += 1
    assert bands[0.9] >= 40 and bands[0.7] >= 40 and bands[0.4] >= 100 and bands[0.2] >= 30
    assert len(found) > bands[0.9]


def test_the_share_of_equal_minima_estimates_the_similarity() -> None:
    """Over all pairs with something in common: unbiased, and off by the deviation of 64 draws."""
    texts = planted(random.Random(8))
    of_text, minima = [shingles(" ".join(words)) for words in texts], signed(texts)
    off = []
    for one, other in itertools.combinations(range(len(texts)), 2):
        similarity = jaccard(of_text[one], of_text[other])
        if 0.1 < similarity < 1:
            estimate = (minima[one] == minima[other]).mean()
            off.append((estimate - similarity) / (similarity * (1 - similarity) / 64) ** 0.5)
    assert len(off) > 300
    assert abs(np.mean(off)) < 0.3 and 0.8 < np.std(off) < 1.2


def test_a_pair_is_decided_by_its_two_texts_alone() -> None:
    """Those near the threshold too: the same verdict with nothing else, in a crowd, and in any order."""
    chance = random.Random(9)
    families = [[base, changed(chance, base, 5 + n % 9)] for n in range(60) if (base := text(chance, 100))]
    alone = [bool(paired(family)) for family in families]
    assert 10 < sum(alone) < 50
    crowd = [text(chance, 100) for _ in range(300)]
    mixed = [words for family in families for words in family] + crowd
    for _ in range(3):
        chance.shuffle(mixed)
        place = {id(words): number for number, words in enumerate(mixed)}
        found = paired(mixed)
        amid = [tuple(sorted(place[id(words)] for words in family)) in found for family in families]
        assert amid == alone
        assert len(found) == sum(alone), "no text of the crowd is near any other"


@pytest.mark.parametrize("chunk", [1, 5, 1 << 14])
def test_the_similarity_of_pairs_is_that_of_their_sets(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(neardup, "EXACT_CHUNK", chunk)
    chance = random.Random(11)
    texts = [*planted(chance)[:60], ["a"], ["a", "b"], ["a", "b", "a", "b", "a", "b"], ["x"] * 9]
    hashes = WordHashes()
    blocks = []
    for part in (texts[:20], texts[20:21], texts[21:]):
        lengths = np.array([len(words) for words in part])
        blocks.append(shingles_of(np.array([h for words in part for h in hashes(words)], dtype=np.uint64), lengths))
    drawn = [(one, other) for one in range(len(texts)) for other in range(len(texts)) if abs(one - other) < 5]
    asked = np.array(chance.sample(drawn, len(drawn)))
    expected = [likeness(texts[one], texts[other]) for one, other in asked]
    assert sum(0 < value < 1 for value in expected) > 5
    assert Sets(blocks).jaccard(asked).tolist() == pytest.approx(expected, abs=1e-12)


def test_pairs_are_those_of_seven_tenths_and_more() -> None:
    chance = random.Random(12)
    families = [[base, changed(chance, base, 3 + n % 12)] for n in range(150) if (base := text(chance, 100))]
    texts = [words for family in families for words in family]
    likenesses = {(2 * n, 2 * n + 1): likeness(*family) for n, family in enumerate(families)}
    found = paired(texts)
    assert {pair for pair, value in likenesses.items() if value >= 0.8} <= found
    assert found <= {pair for pair, value in likenesses.items() if value >= 0.7}
    near = {pair for pair, value in likenesses.items() if 0.7 <= value < 0.8}
    assert len(near) > 20 and len(found & near) > 0.8 * len(near)


def test_texts_on_one_template_are_no_group() -> None:
    """Alike to 0.66: by their signatures alone chance would chain nearly all of them."""
    chance = random.Random(13)
    template = text(chance, 80)
    texts = [template + text(chance, 20) for _ in range(400)]
    assert 0.6 < likeness(texts[0], texts[1]) < 0.7
    assert groups(texts) == list(range(400))
    assert len(pairs(signed(texts))) > 400


def test_beyond_a_number_of_pairs_signatures_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    base = text(random.Random(14), 60)
    monkeypatch.setattr(neardup, "EXACT_PAIRS", 2)
    monkeypatch.setattr(neardup.Sets, "jaccard", lambda *_: pytest.fail("the similarity of too many pairs was worked out"))
    assert paired([base] * 3) == {(0, 1), (0, 2), (1, 2)}


def test_pairs_are_given_once_and_the_smaller_row_first() -> None:
    base = text(random.Random(1), 60)
    assert paired([base, base, ["else"], base]) == {(0, 1), (0, 3), (1, 3)}
    assert pairs(signed([base, base, ["else"], base])).tolist() == [[0, 1], [0, 3], [1, 3]]
    none = pairs(signed([["a"], ["b"]]))
    assert none.shape == (0, 2)
    assert pairs(signed([base])).shape == (0, 2)


@pytest.mark.parametrize(("equal", "near"), [(38, False), (39, True), (64, True)])
def test_six_tenths_of_the_minima_are_looked_at(equal: int, near: bool) -> None:
    one = np.arange(64, dtype=np.uint32)
    other = np.where(np.arange(64) < equal, one, one + 1000).astype(np.uint32)
    assert len(pairs(np.stack([one, other]))) == near


@pytest.mark.parametrize("band", range(16))
def test_candidates_share_all_minima_of_a_band(band: int) -> None:
    """45 minima of 64 agree; in every band but the last of them the first, second, third or fourth does not."""
    one = np.arange(64, dtype=np.uint32)
    apart = [4 * other + other % 4 for other in range(16) if other != band]
    other = one.copy()
    other[apart] += 1000
    assert pairs(np.stack([one, other])).tolist() == [[0, 1]]
    other[4 * band] += 1000
    assert len(pairs(np.stack([one, other]))) == 0, "48 of 64 are equal, and no band"


@pytest.mark.parametrize("between", [0, 1, NEIGHBOURS - 1])
def test_others_in_the_bucket_do_not_hide_a_pair(between: int) -> None:
    one = np.arange(64, dtype=np.uint32)
    other = one + 1000 * (np.arange(64) >= 39).astype(np.uint32)
    # each shares the 9 bands that the pair shares, and nothing else with anyone
    crowd = np.arange(100_000, 100_000 + 64 * between, dtype=np.uint32).reshape(between, 64)
    crowd[:, :36] = one[:36]
    found = pairs(np.concatenate([[one], crowd, [other]]).astype(np.uint32)).tolist()
    assert found == [[0, between + 1]]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_candidates_are_compared_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    texts = planted(random.Random(10))[:120]
    expected = paired(texts)
    assert expected
    monkeypatch.setattr(neardup, "CHUNK", chunk)
    assert paired(texts) == expected


# Groups


def brute_groups(count: int, joined: set[tuple[int, int]]) -> list[int]:
    first = list(range(count))
    for _ in range(count):
        for one, other in joined:
            first[one] = first[other] = min(first[one], first[other])
    return first


def test_groups_are_the_chains_of_pairs_by_their_first_row() -> None:
    chance = random.Random(11)
    chain = [text(chance, 60)]
    for _ in range(12):  # each near the one before, the last unlike the first
        chain.append(changed(chance, chain[-1], 2))
    assert likeness(chain[0], chain[-1]) < 0.4
    texts = [*chain, *(text(chance, 60) for _ in range(20)), *planted(chance)[:60]]
    chance.shuffle(texts)
    found = groups(texts)
    assert found == brute_groups(len(texts), paired(texts))
    assert len({found[place] for place, words in enumerate(texts) if words in chain}) == 1


def test_groups_do_not_depend_on_the_order() -> None:
    texts = planted(random.Random(12))

    def families(order: list[int]) -> set[frozenset[int]]:
        found = groups([texts[place] for place in order])
        return {frozenset(order[row] for row, of in enumerate(found) if of == first) for first in found}

    order = list(range(len(texts)))
    expected = families(order)
    assert 1 < max(map(len, expected)) < 10
    for seed in range(3):
        random.Random(seed).shuffle(order)
        assert families(order) == expected


def test_a_crowd_of_equal_texts_is_one_group() -> None:
    words = text(random.Random(13), 30)
    assert groups([["other"], *([words] * 500), ["more"]]) == [0, *([1] * 500), 501]


@pytest.mark.parametrize("block", [1, 40, 100])
def test_pairs_do_not_depend_on_where_blocks_end(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    texts = planted(random.Random(6))
    whole = groups(texts)
    assert len(set(whole)) < len(whole)
    monkeypatch.setattr(neardup, "BLOCK", block)
    assert groups(texts) == whole


def test_texts_shorter_than_a_shingle_are_near_where_they_are_equal() -> None:
    texts = [["a"], ["a", "b"], ["b", "a"], ["a"], ["a", "b"], ["a", "b", "c"], ["b"], ["a", "b", "c"], ["c", "a", "b"]]
    assert groups(texts) == [0, 1, 2, 0, 1, 5, 6, 5, 8]


def test_texts_without_a_word_stand_alone() -> None:
    assert groups([]) == []
    assert groups([[]]) == [0]
    assert groups([[], [], []]) == [0, 1, 2]
    assert groups([[], ["a", "b"], [], ["c"], ["a", "b"], []]) == [0, 1, 2, 3, 1, 5]


def test_words_count_by_order_and_repetition_by_shingle() -> None:
    words = text(random.Random(14), 60)
    assert groups([words, words[::-1]]) == [0, 1]
    assert groups([words, words + words]) == [0, 0]  # two shingles more, at the seam


def test_where_one_text_ends_and_the_next_begins_is_no_shingle() -> None:
    """A text's signature is the same whatever stands before and behind it."""
    chance = random.Random(15)
    texts = [text(chance, length) for length in (1, 2, 3, 4, 2, 1, 50)]
    together = signed(texts)
    assert together.shape == (7, 64) and together.dtype == np.uint32
    for place, words in enumerate(texts):
        assert np.array_equal(signed([words])[0], together[place])


@pytest.mark.parametrize(
    "shape",
    [
        (["a", "b", "c", "d"], ["a", "b", "c", "d", "a", "b", "c"]),
        (["a", "b", "c"], ["a", "b", "c", "a", "b", "c", "a"]),
    ],
)
def test_a_shingle_given_twice_counts_once(shape: tuple[Words, Words]) -> None:
    """The minima of a text that holds all of another's shingles are at most the other's."""
    short, long = signed(list(shape))
    assert (long <= short).all() and (long < short).any()


def test_signatures_are_pinned() -> None:
    """They must be the same on every machine and in every session: groups decide who is held out."""
    found = signed([["rain", "on", "the", "roof"], ["snow"]])
    assert found[:, :3].tolist() == [[2738646588, 1483680477, 667978434], [2452063402, 1215534090, 1848214606]]
    assert hashlib.sha256(found.astype("<u4").tobytes()).hexdigest()[:16] == "9d5d6a3906753bb5"


def test_the_hash_of_a_word_is_its_own() -> None:
    one, other = WordHashes(), WordHashes()
    other(["b", "c"])
    assert one(["a", "b", "a"]) == other(["a", "b", "a"])
    assert len({*one(VOCABULARY)}) == len(VOCABULARY)
    assert all(0 <= value < 2**64 for value in one(["a", "\ud800", "猫"]))


# Blocks


@pytest.mark.parametrize("block", [1, 2, 7, 100])
def test_blocks_of_any_size_give_the_same_groups(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    texts = planted(random.Random(16))[:90]
    texts[10:10] = [[], ["a"], [], ["a", "b"], ["a"]]
    expected = groups(texts)
    assert len(set(expected)) < len(texts) - 5
    monkeypatch.setattr(neardup, "BLOCK", block)
    assert groups(texts) == expected


def test_signatures_are_worked_out_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory: no more words are held than a block and the text that fills it."""
    sizes: list[int] = []
    whole = neardup.shingles_of

    def noted(hashes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(hashes))
        return whole(hashes, lengths)

    monkeypatch.setattr(neardup, "shingles_of", noted)
    monkeypatch.setattr(neardup, "BLOCK", 40)
    groups([text(random.Random(n), 20) for n in range(9)])
    assert sizes == [40, 40, 40, 40, 20]


def test_the_sample_graph_holds_no_near_duplicates() -> None:
    nodes = sample_nodes()
    index = make_index(nodes)
    assert index.twins.tolist() == list(range(len(index.twins)))
    again = make_index([*nodes, node(nodes[0].text + " Later.", "copy")])
    assert len(set(again.twins.tolist())) == len(again.twins) - 1
