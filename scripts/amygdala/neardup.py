"""Near-duplicate texts: those whose sets of 3-word shingles have a Jaccard similarity of SIMILAR or more.

Candidates are found by MinHash signatures and banding (Broder 1997, "On the resemblance and containment of documents";
Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4); of those that the signatures call LIKELY the
similarity is worked out. (The estimate alone would chain texts on one template, alike to 0.6, into one group by chance.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

SHINGLE = 3
BANDS, ROWS = 16, 4
LIKELY, SIMILAR = 0.6, 0.7
NEIGHBOURS = 32
EXACT_PAIRS = 4_000_000  # beyond so many (a crowd of copies), SIMILAR signatures decide
CHUNK, EXACT_CHUNK = 1 << 20, 1 << 14
BLOCK = 1 << 21


def _salts(count: int) -> np.ndarray:
    digests = (hashlib.sha256(f"minhash {number}".encode()).digest()[:8] for number in range(count))
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)


MULTIPLIERS, OFFSETS = _salts(2 * BANDS * ROWS).reshape(2, -1)
MULTIPLIERS |= np.uint64(1)


class WordHashes:
    """A 64-bit hash of each word, the same in every graph."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, words: Iterable[str]) -> list[int]:
        known = self._known
        try:
            return [known[word] for word in words]
        except KeyError:
            for word in words:
                if word not in known:
                    known[word] = int.from_bytes(
                        hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big"
                    )
            return [known[word] for word in words]


def shingles_of(hashes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the texts' shingles uint64 [m], shingles a text int [n]), repeated ones included.

    hashes: uint64 [sum of lengths], the hashes of all texts' words in order; lengths: int [n], words a text, each at least 1.
    A text shorter than a shingle is one shingle.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    with np.errstate(over="ignore"):
        shingles = hashes.copy()
        left = np.repeat(starts + lengths, lengths) - np.arange(len(hashes))  # words from here to the text's end
        for step in range(1, SHINGLE):
            following = np.zeros_like(hashes)
            following[:-step] = hashes[step:]
            following[left <= step] = 0
            shingles = (shingles * np.uint64(0x9E3779B97F4A7C15)) ^ following ^ (shingles >> np.uint64(29))
        whole = (left >= SHINGLE) | (np.arange(len(hashes)) == np.repeat(starts, lengths))
        shingles ^= shingles >> np.uint64(32)
        shingles *= np.uint64(0xD6E8FEB86659FD93)
        shingles ^= shingles >> np.uint64(32)
    return shingles[whole], np.maximum(lengths - SHINGLE + 1, 1)


def signatures(shingles: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """MinHash signatures of texts given by their shingles (see shingles_of): uint32 [n, BANDS * ROWS]."""
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    result = np.empty((len(counts), BANDS * ROWS), dtype=np.uint32)
    with np.errstate(over="ignore"):
        for number in range(BANDS * ROWS):
            mixed = ((shingles * MULTIPLIERS[number] + OFFSETS[number]) >> np.uint64(32)).astype(np.uint32)
            result[:, number] = np.minimum.reduceat(mixed, begins)
    return result


class Sets:
    """The texts' sets of shingles, kept flat: sorted values and where each text's begin."""

    def __init__(self, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        values, sizes = [], []
        for shingles, counts in blocks:
            owner = np.repeat(np.arange(len(counts)), counts)
            order = np.lexsort((shingles, owner))
            shingles, owner = shingles[order], owner[order]
            first = np.ones(len(shingles), dtype=bool)
            first[1:] = (shingles[1:] != shingles[:-1]) | (owner[1:] != owner[:-1])
            values.append(shingles[first])
            sizes.append(np.bincount(owner[first], minlength=len(counts)))
        self.values, self.sizes = np.concatenate(values), np.concatenate(sizes)
        self.begins = np.concatenate([[0], np.cumsum(self.sizes)])

    def _gathered(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the sets of `rows` one after the other, the position in `rows` that each value is of)."""
        sizes = self.sizes[rows]
        owner = np.repeat(np.arange(len(rows)), sizes)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.values[np.repeat(self.begins[rows], sizes) + within], owner

    def jaccard(self, pairs: np.ndarray) -> np.ndarray:
        """float64 [p]: |A and B| / |A or B| of each pair of rows, int [p, 2]."""
        found = []
        for chunk in np.array_split(pairs, -(-len(pairs) // EXACT_CHUNK)):
            (values, owners), (more, others) = self._gathered(chunk[:, 0]), self._gathered(chunk[:, 1])
            values, owners = np.concatenate([values, more]), np.concatenate([owners, others])
            order = np.lexsort((values, owners))
            values, owners = values[order], owners[order]
            twice = (values[1:] == values[:-1]) & (owners[1:] == owners[:-1])
            common = np.bincount(owners[1:][twice], minlength=len(chunk))
            found.append(common / (self.sizes[chunk].sum(axis=1) - common))
        return np.concatenate(found)


def pairs(signed: np.ndarray) -> np.ndarray:
    """int [p, 2]: the rows of pairs whose signatures are LIKELY alike, the smaller first.

    Candidates share all ROWS minima of a band; each is compared with the NEIGHBOURS after it that do (a bucket of more texts is
    a crowd of copies, which chains join).
    """
    count = len(signed)
    found = np.empty(0, dtype=np.int64)  # a pair as one number, so that each is looked at once, whatever bands it shares
    for band in range(BANDS):
        part = np.ascontiguousarray(signed[:, band * ROWS : (band + 1) * ROWS])
        keys = part.view(f"V{part.itemsize * ROWS}").ravel()
        _, buckets = np.unique(keys, return_inverse=True)
        order = np.argsort(buckets, kind="stable")
        sorted_buckets = buckets[order]
        near: list[np.ndarray] = []
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            same = np.flatnonzero(sorted_buckets[:-step] == sorted_buckets[step:])
            if not len(same):
                break
            near.append(order[same] * count + order[same + step])
        found = np.unique(np.concatenate([found, *near]))
    pairs_found = np.stack(np.divmod(found, max(count, 1)), axis=1)
    return _similar(signed, pairs_found) if len(found) else pairs_found


def _similar(signed: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    kept = [
        chunk[(signed[chunk[:, 0]] == signed[chunk[:, 1]]).mean(axis=1) >= LIKELY]
        for chunk in np.array_split(candidates, -(-len(candidates) // CHUNK))
    ]
    return np.concatenate(kept)


class Signer:
    """Signatures of texts given one at a time by their words, worked out in blocks of BLOCK words."""

    def __init__(self) -> None:
        self._hash = WordHashes()
        self._hashes: list[int] = []
        self._lengths: list[int] = []
        self._rows: list[int] = []
        self._signed: list[np.ndarray] = []
        self._shingles: list[tuple[np.ndarray, np.ndarray]] = []
        self.texts = 0

    def add(self, words: Sequence[str]) -> None:
        """The next text. One without a word stands alone."""
        if words:
            self._hashes.extend(self._hash(words))
            self._lengths.append(len(words))
            self._rows.append(self.texts)
        self.texts += 1
        if len(self._hashes) >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        if self._lengths:
            block = shingles_of(np.array(self._hashes, dtype=np.uint64), np.array(self._lengths, dtype=np.int64))
            self._shingles.append(block)
            self._signed.append(signatures(*block))
            self._hashes, self._lengths = [], []

    def pairs(self) -> np.ndarray:
        """int [p, 2]: the near-duplicate pairs among the texts with words, as places in the order that they were given in."""
        self._flush()
        signed = np.concatenate(self._signed)
        likely = pairs(signed)
        if len(likely) > EXACT_PAIRS:
            return likely[(signed[likely[:, 0]] == signed[likely[:, 1]]).mean(axis=1) >= SIMILAR]
        if not len(likely):
            return likely
        rows, places = np.unique(likely, return_inverse=True)
        return likely[Sets(self._shingles_of(rows)).jaccard(places.reshape(likely.shape)) >= SIMILAR]

    def _shingles_of(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The blocks with the texts `rows` (ascending) alone."""
        start = 0
        for shingles, counts in self._shingles:
            kept = np.zeros(len(counts), dtype=bool)
            kept[rows[(rows >= start) & (rows < start + len(counts))] - start] = True
            yield shingles[np.repeat(kept, counts)], counts[kept]
            start += len(counts)

    def groups(self) -> np.ndarray:
        """int32 [n]: for each text the first row of its group of near duplicates, itself where it has none."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        first = np.arange(self.texts, dtype=np.int32)
        if len(self._rows) < 2:
            return first
        joined = np.array(self._rows)[self.pairs()]
        if len(joined):
            shape = (self.texts, self.texts)
            graph = coo_array((np.ones(len(joined), dtype=bool), (joined[:, 0], joined[:, 1])), shape=shape)
            number, labels = connected_components(graph, directed=False)
            smallest = np.full(number, self.texts, dtype=np.int32)
            np.minimum.at(smallest, labels, first)
            first = smallest[labels]
        return first
