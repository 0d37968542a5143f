"""Texts on their way to the model: unique, on disk until their turn, tokenized in the background, in batches of like length."""

from __future__ import annotations

import array
import errno
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from amygdala.errors import UserError, shown
from amygdala.exampleset import read_examples, shard_of
from amygdala.tokens import Tokens, pool_weights

WINDOW = 1024  # texts tokenized at a time, at most
WINDOW_CHARS = 4_000_000  # and characters
AHEAD = 3  # batches made ready while the model works
Wanted = tuple[str, int]  # pooling and layer


class Texts:
    """The unique texts of a shard, sorted by digest. They lie in a temporary file; memory holds some 200 bytes a text.

    digests: S16 [N], sorted; chars: int64 [N].
    """

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """texts: (digest, text) pairs; the same digest may come several times."""
        try:
            self._keep(texts)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            where = tempfile.gettempdir()
            raise UserError(
                f"cannot keep texts in the temporary folder {where} ({error.strerror}): set TMPDIR to another"
            ) from None

    def _keep(self, texts: Iterable[tuple[str, str]]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the texts are wanted, gone with them)
        seen: dict[bytes, int] = {}
        starts, sizes, chars = array.array("q"), array.array("q"), array.array("q")
        for digest, text in texts:
            packed = bytes.fromhex(digest)
            if packed not in seen:
                seen[packed] = len(seen)
                data = text.encode("utf-8", "surrogatepass")
                starts.append(self._file.tell())
                sizes.append(self._file.write(data))
                chars.append(len(text))
        digests = np.array(list(seen), dtype="S16")
        order = np.argsort(digests, kind="stable")
        self.digests = digests[order]
        self._starts, self._sizes, self.chars = (np.array(column, np.int64)[order] for column in (starts, sizes, chars))

    def __len__(self) -> int:
        return len(self.digests)

    def text(self, position: int) -> str:
        self._file.seek(int(self._starts[position]))
        return self._file.read(int(self._sizes[position])).decode("utf-8", "surrogatepass")

    def hex(self, position: int) -> str:
        """The digest at `position`, as it is written elsewhere."""
        return self.digests[position : position + 1].tobytes().hex()


def shard_texts(example_files: Iterable[str], shard: int, shards: int) -> tuple[Texts, list[str]]:
    """The texts of all emotions that fall to `shard`, and a sample of up to WINDOW // 4 texts of all shards."""
    sample: dict[str, str] = {}

    def ours() -> Iterator[tuple[str, str]]:
        for path in example_files:
            for example in read_examples(path):
                if len(sample) < WINDOW // 4:
                    sample[example.digest] = example.text
                if shard_of(example.digest, shards) == shard:
                    yield example.digest, example.text

    texts = Texts(ours())
    return texts, list(sample.values())


@dataclass
class Budget:
    """How much goes into a batch: padded tokens, and texts where a cap is wanted. Texts longer than `border` tokens and others
    never share one (loading.rope_border).
    """

    tokens: int
    texts: int | None = None
    border: int | None = None

    def fits(self, count: int, longest: int, shortest: int) -> bool:
        """Whether a batch may hold `count` texts from `longest` to `shortest` tokens. Once it is an eighth full, it takes texts
        of nine tenths of the longest at least: on short texts, padding would be 12 % of the work else, and is 6 % so.
        """
        apart = self.border is not None and longest > self.border >= shortest
        alike = 10 * shortest >= 9 * longest or 8 * count * longest <= self.tokens
        return count * longest <= self.tokens and (self.texts is None or count <= self.texts) and alike and not apart

    def halve(self, failed: int) -> None:
        """After a batch of `failed` padded tokens ran out of memory: at most half of it from now on. Batches that were made
        ahead, and fail too, halve it no further.
        """
        self.tokens = max(1, min(self.tokens, failed // 2))


@dataclass
class Batch:
    """Texts padded on the right, longest first.

    positions: int64 [B] into Texts; ids: int64 [B, T]; weights: float32 [B, P, T], each pooling's, 0 on padding; tokens: int32
    [B], forwarded of each text; cut: bool [B].
    """

    positions: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    tokens: np.ndarray
    cut: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice) -> Batch:
        tokens = self.tokens[rows]
        longest = int(tokens.max())
        return Batch(self.positions[rows], self.ids[rows, :longest], self.weights[rows, :, :longest], tokens, self.cut[rows])


def pad(positions: Sequence[int], texts: Sequence[Tokens], poolings: Sequence[str]) -> Batch:
    """A batch of texts padded on the right with token 0.

    Causal models never look to the right, so that no attention mask is needed and attention takes its fastest path.
    """
    longest = max(len(text) for text in texts)
    ids = np.zeros((len(texts), longest), np.int64)
    weights = np.zeros((len(texts), len(poolings), longest), np.float32)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text.ids
        for number, pooling in enumerate(poolings):
            weights[row, number, : len(text)] = pool_weights(text.content, pooling)
    tokens = np.array([len(text) for text in texts], np.int32)
    return Batch(np.array(positions, np.int64), ids, weights, tokens, np.array([text.cut for text in texts], bool))


def _windows(order: np.ndarray, chars: np.ndarray) -> Iterator[tuple[list[int], bool]]:
    """(positions, whether they are the last) of at most WINDOW texts and, but for a single text, WINDOW_CHARS characters."""
    start = 0
    while start < len(order):
        fit = int(np.searchsorted(np.cumsum(chars[start : start + WINDOW]), WINDOW_CHARS, side="right"))
        end = start + max(1, fit)
        yield [int(position) for position in order[start:end]], end >= len(order)
        start = end


def batches(
    texts: Texts,
    positions: np.ndarray,
    encode: Callable[[Sequence[str]], list[Tokens]],
    poolings: Sequence[str],
    budget: Budget,
) -> Iterator[Batch]:
    """Batches of the texts at `positions`, the longest first (so that memory runs out at once or not at all).

    Texts are tokenized in windows of like length in characters; what does not fill a batch waits for the next window. UserError
    where a text has no content tokens.
    """
    order = positions[np.argsort(-texts.chars[positions], kind="stable")]
    waiting: list[tuple[int, Tokens]] = []
    for window, last_window in _windows(order, texts.chars[order]):
        read = [texts.text(position) for position in window]
        for position, text, tokens in zip(window, read, encode(read), strict=True):
            if not len(tokens):
                where = "within max_tokens; raise it" if tokens.cut else "beside the first; raise min_content_chars"
                raise UserError(f"text {texts.hex(position)} ({shown(text)}) has no content tokens {where}, or drop the node")
            waiting.append((position, tokens))
        waiting.sort(key=lambda entry: (-len(entry[1]), entry[0]))
        while waiting:
            longest = len(waiting[0][1])
            count = 1
            while count < len(waiting) and budget.fits(count + 1, longest, len(waiting[count][1])):
                count += 1
            if count == len(waiting) and not last_window:
                break
            yield pad([p for p, _ in waiting[:count]], [t for _, t in waiting[:count]], poolings)
            del waiting[:count]


def ahead(made: Iterator[Batch], depth: int = AHEAD) -> Generator[Batch]:
    """The same batches, made in a thread of their own, up to `depth` before they are asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as pool:
        try:
            coming = deque(pool.submit(next, made, None) for _ in range(depth))
            while (batch := coming.popleft().result()) is not None:
                coming.append(pool.submit(next, made, None))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
