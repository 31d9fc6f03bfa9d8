"""Training a BytePiece vocabulary: the words that a byte n-gram model finds, pruned until none is wasted.

Four stages: count n-grams; cut every text by their conditional probabilities (pre-segmentation); count the pieces and
drop the rare and the long; again and again segment all pieces by the unigram model of themselves, so that a piece that
is worth less than its parts gives them its count. Results do not depend on the number of threads. Memory: 16 bytes for
each distinct n-gram of the highest order (twice while two tallies become one); for each n-gram of any order that is
kept, 24 bytes while the model is made and up to 64 in its table; and the distinct pieces. Source: Su 2023 (BytePiece
0.6.3); the n-gram model: Su 2016.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy import ndarray

from temaki.base import compile
from temaki.base.errors import TokenizerError
from temaki.tokens import split, utf8
from temaki.tokens.bytepiece import SPECIAL, BytePiece, Form
from temaki.tokens.kernels import ngrams
from temaki.tokens.piece_table import Pieces, PieceTable, joined

Progress = Callable[[str, int, int | None], None]
"""Called with the stage ("n-grams", "pieces", "pruning"), how much is done, and of how much (None: not known): bytes of
text in the first two stages, pieces in the last, whose number shrinks."""

LONGEST = 1 << 16
"""Bytes of the longest piece that can be asked for."""

SLICE = 1 << 20
"""Bytes that a kernel works on at a time: between two slices a run can be interrupted."""

LINE = 10_000
"""Characters up to which a line is one segment in training."""

NEWLINES = 100
"""Newlines that end one segment in training."""

ZEROS = np.array(
    [
        0x30, 0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0,
        0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620,
        0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x10D40, 0x11066, 0x110F0, 0x11136,
        0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x116D0, 0x116DA, 0x11730, 0x118E0, 0x11950, 0x11BF0,
        0x11C50, 0x11D50, 0x11DA0, 0x11DE0, 0x11F50, 0x16130, 0x16A60, 0x16AC0, 0x16B50, 0x16D70, 0x1CCF0, 0x1D7CE,
        0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E4F0, 0x1E5F1, 0x1E950, 0x1FBF0,
    ],
    np.int32,
)  # fmt: skip
"""The decimal digits zero of all scripts (Unicode 17); nine more follow each."""


@dataclass(frozen=True)
class Rules:
    """How a vocabulary is trained."""

    order: int = 6
    """Bytes of the longest n-gram, 1..7."""
    longest: int = 36
    """Bytes of the longest piece."""
    min_count: int = 2
    """How often an n-gram and a piece must occur to be kept."""
    isolate_digits: bool = False
    """Each decimal digit, of any script, is a segment of its own: no piece holds two."""
    whole_characters: bool = True
    """No piece begins inside a character (`ensure_unicode` of the reference)."""
    normalize: Form = "nfc"

    def __post_init__(self) -> None:
        for name, least, most in (("order", 1, 7), ("longest", 1, LONGEST), ("min_count", 1, 1 << 40)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise TokenizerError(f"{name} out of range", found=repr(value), allowed=f"{least} to {most}")
        if self.normalize not in ("nfc", None):
            raise TokenizerError("unknown normal form", found=repr(self.normalize), allowed='"nfc" or None')


DEFAULT = Rules()


def train(
    texts: Iterable[str | bytes],
    size: int,
    rules: Rules = DEFAULT,
    special: Sequence[str] = SPECIAL,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BytePiece:
    """Learn a vocabulary of at most `size` ids, those of `special` included; fewer where fewer are worth it.

    Texts are read twice. Raises TokenizerError for a size below 256 and the special tokens, an empty corpus, texts that
    can be read only once or are no UTF-8.
    """
    return train_sizes(texts, [size], rules, special, threads, progress)[0]


def train_sizes(
    texts: Iterable[str | bytes],
    sizes: Sequence[int],
    rules: Rules = DEFAULT,
    special: Sequence[str] = SPECIAL,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[BytePiece]:
    """Learn several vocabularies at once, in the order of `sizes`: each is pruned from the next larger one."""
    split.check_special(special)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or not 256 + len(special) <= size < 1 << 32:
            raise TokenizerError(
                "vocabulary size out of range",
                found=repr(size),
                allowed=f"{256 + len(special)} (256 bytes and {len(special)} special tokens) to {(1 << 32) - 1}",
            )
    if isinstance(texts, str | bytes) or iter(texts) is texts:
        raise TokenizerError("texts are a list of texts, or what can be read twice", found=type(texts).__name__)
    told = progress or (lambda stage, done, whole: None)
    workers = _workers(threads)
    model = count_grams(texts, rules, workers, told)
    pieces = count_pieces(texts, rules, model, workers, told)
    kept: dict[int, BytePiece] = {}
    pieces = pieces.pruned(rules.longest, rules.min_count, workers, told)
    for size in sorted(set(sizes), reverse=True):
        pieces = pieces.capped(size - len(special), workers, told)
        kept[size] = BytePiece(pieces.counted(), rules.normalize, special)
    return [kept[size] for size in sizes]


def from_counts(
    counts: Mapping[bytes, int], normalize: Form = "nfc", special: Sequence[str] = SPECIAL, threads: int | None = None
) -> BytePiece:
    """The vocabulary of pieces whose counts are known, as words of a dictionary; the wasted are dropped.

    Bytes that are missing get the count 1. Raises TokenizerError for a piece that is empty or too long, or a count that
    is no positive integer.
    """
    longest = max(map(len, counts), default=1)
    if not all(counts) or longest > LONGEST:
        raise TokenizerError("a piece is empty or too long", allowed=f"1 to {LONGEST} bytes")
    if any(type(count) is not int or count < 1 for count in counts.values()) or sum(counts.values()) >= 1 << 53:
        raise TokenizerError("the counts are no positive integers", allowed=f"all together below {1 << 53}")
    table = PieceTable()
    text = np.frombuffer(b"".join([*counts, bytes(8)]), np.uint8)
    ends = np.cumsum(np.array([*map(len, counts)], np.int64))
    table.add(text, 0, ends, np.array([*counts.values()], np.int64))
    pieces = joined([table]).pruned(longest, 1, _workers(threads), lambda stage, done, whole: None)
    return BytePiece(pieces.counted(), normalize, special)


def _workers(threads: int | None) -> int:
    """How many threads work. Raises TokenizerError."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise TokenizerError("threads out of range", found=repr(threads), allowed="1 or more, or None")
    return threads or compile.threads()


@dataclass(frozen=True)
class Batch:
    """Texts in one array, cut into segments."""

    text: ndarray
    """uint8, with 8 bytes more at the end."""
    ends: ndarray
    """int64 [S], of the segments."""

    def slices(self) -> Iterator[tuple[int, int, int]]:
        """Runs of segments of about SLICE bytes: where the first begins, its number, the number after the last."""
        low, begin = 0, 0
        while low < self.ends.size:
            high = max(low + 1, int(np.searchsorted(self.ends, begin + SLICE, "right")))
            yield begin, low, high
            begin, low = int(self.ends[high - 1]), high


def batches(texts: Iterable[str | bytes], rules: Rules, size: int) -> Iterator[Batch]:
    """All texts in batches of about `size` bytes, or of one text. Raises TokenizerError naming the text."""
    held: list[bytes] = []
    length = 0
    for number, text in enumerate(texts):
        read = _read(text, number, rules.normalize)
        held.append(read)
        length += len(read)
        if length >= size:
            yield _batch(held, rules)
            held, length = [], 0
    if length:
        yield _batch(held, rules)


@dataclass(frozen=True)
class Model:
    """A byte n-gram model: log p(last byte | the others) of each n-gram that is frequent enough."""

    short: ndarray
    """float64 [65536 + 256]: of two bytes, of one; -inf where there is none."""
    table: ndarray
    """uint64 [2^k]: longer n-grams by hash, see `kernels.ngrams`."""
    values: ndarray
    """float64 [2^k]."""
    bytes: int
    """Of the texts that were counted."""


def count_grams(texts: Iterable[str | bytes], rules: Rules, threads: int, told: Progress) -> Model:
    """The n-gram model of texts. Raises TokenizerError for an empty corpus."""
    tallies: list[tuple[ndarray, ndarray]] = []
    done = 0
    for batch in batches(texts, rules, threads * SLICE):
        tasks = [partial(_tally, batch, rules.order, *slice) for slice in batch.slices()]
        for tally in compile.run(tasks, threads):
            tallies.append(tally)
            while len(tallies) > 1 and tallies[-2][0].size < 2 * tallies[-1][0].size:
                tallies.append(_merged(tallies.pop(-2), tallies.pop()))
        done += int(batch.ends[-1])
        told("n-grams", done, None)
    if not tallies:
        raise TokenizerError("no text to learn a vocabulary from", do="give a corpus that is not empty")
    while len(tallies) > 1:
        tallies.append(_merged(tallies.pop(-2), tallies.pop()))
    return _model(*tallies[0], rules, done)


def count_pieces(texts: Iterable[str | bytes], rules: Rules, model: Model, threads: int, told: Progress) -> Pieces:
    """How often each piece occurs where the n-gram model cuts the texts."""
    tables = [PieceTable() for _ in range(threads)]
    done = 0
    for batch in batches(texts, rules, threads * SLICE):
        slices = list(batch.slices())
        tasks = [
            partial(_count, table, batch, rules, model, slices[number::threads]) for number, table in enumerate(tables)
        ]
        compile.run(tasks, threads)
        done += int(batch.ends[-1])
        told("pieces", done, model.bytes)
    return joined(tables)


def _read(text: str | bytes, number: int, normalize: Form) -> bytes:
    try:
        read = utf8.checked(text) if isinstance(text, str) else "".join(utf8.decoded([text]))
    except TokenizerError as error:
        raise TokenizerError(f"text {number}: {error}") from None
    return (read if normalize is None else unicodedata.normalize("NFC", read)).encode()


def _batch(held: Sequence[bytes], rules: Rules) -> Batch:
    text = np.frombuffer(b"".join([*held, bytes(8)]), np.uint8)
    bounds = np.cumsum([0, *map(len, held)], dtype=np.int64)
    ends = np.empty(text.size, np.int64)
    count = ngrams.training_segments(text, bounds, LINE, NEWLINES, rules.isolate_digits, ZEROS, ends)
    return Batch(text, ends[:count].copy())


def _tally(batch: Batch, order: int, begin: int, low: int, high: int) -> tuple[ndarray, ndarray]:
    """The longest n-grams of segments low..high, sorted, with their counts."""
    grams = np.empty(int(batch.ends[high - 1]) - begin, np.uint64)
    ngrams.grams_at(batch.text, batch.ends, begin, low, high, order, grams)
    grams.sort()
    counts = np.empty(grams.size, np.int64)
    many = ngrams.tally(grams, counts)
    return grams[:many].copy(), counts[:many].copy()


def _merged(left: tuple[ndarray, ndarray], right: tuple[ndarray, ndarray]) -> tuple[ndarray, ndarray]:
    room = left[0].size + right[0].size
    grams, counts = np.empty(room, np.uint64), np.empty(room, np.int64)
    many = ngrams.merge(*left, *right, grams, counts)
    return grams[:many].copy(), counts[:many].copy()


def _model(grams: ndarray, counts: ndarray, rules: Rules, size: int) -> Model:
    """Counts as conditional log probabilities: log N(c1..cn) - log N(c1..cn-1); every byte occurs once at least."""
    found = np.empty(rules.order, np.int64)
    row = np.empty((rules.order, 0), np.int64)
    ngrams.condition(grams, counts, rules.order, rules.min_count, row.astype(np.uint64), row, row, found)
    room = (rules.order, int(found.max()))
    kept, kept_counts, parents = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
    ngrams.condition(grams, counts, rules.order, rules.min_count, kept, kept_counts, parents, found)
    ones = np.ones(256, np.int64)
    ones[(kept[0, : found[0]] >> np.uint64(56)).astype(np.int64)] = kept_counts[0, : found[0]]
    short = np.full(65536 + 256, -np.inf)
    short[65536:] = np.log(ones) - np.log(float(ones.sum()))
    longer = int(found[2:].sum())
    slots = 1 << max(4, (2 * longer).bit_length())
    table, values = np.zeros(slots, np.uint64), np.empty(slots)
    for n in range(2, rules.order + 1):
        many = found[n - 1]
        scores = np.log(kept_counts[n - 1, :many]) - np.log(kept_counts[n - 2][parents[n - 1, :many]])
        if n == 2:
            short[(kept[1, :many] >> np.uint64(48)).astype(np.int64)] = scores
        else:
            ngrams.remember(kept[n - 1, :many], scores, table, values)
    return Model(short, table, values, size)


def _count(table: PieceTable, batch: Batch, rules: Rules, model: Model, slices: Sequence[tuple[int, int, int]]) -> None:
    """Cut slices of a batch and enter their pieces."""
    for begin, low, high in slices:
        longest = int(np.diff(batch.ends[low:high], prepend=begin).max())
        cuts = np.empty(int(batch.ends[high - 1]) - begin, np.int64)
        routes = np.empty(longest, np.uint8)
        many = ngrams.presegment(
            batch.text, batch.ends, begin, low, high, rules.order, rules.whole_characters,
            model.short, model.table, model.values, routes, cuts,
        )  # fmt: skip
        table.add(batch.text, begin, cuts[:many])
