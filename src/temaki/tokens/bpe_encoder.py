"""The compiled encoder of a BPE vocabulary: its tables, its memory that grows, and one call for the texts of a job."""

import contextlib
import mmap
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from temaki.tokens import feed, plain_bpe, split
from temaki.tokens.bpe_vocabulary import Vocabulary
from temaki.tokens.kernels import encode as kernels
from temaki.tokens.kernels import encode_memory, encode_merge, encode_special, encode_vocabulary
from temaki.tokens.kernels.encode_joints import add_joints
from temaki.tokens.kernels.split import RULES
from temaki.tokens.tokenizer import Dropout

OUT_SPARE = 16
"""Ids that kernels may write behind the last."""
LARGE_PAGE = 1 << 21
LARGE_TEXT = 1 << 22
"""Bytes of a text from which on the room to work on it is not kept."""
OWN = -1
"""The number of a pattern that kernels do not know."""


@dataclass(frozen=True)
class Asked:
    """The special tokens that a call looks for."""

    special: encode_special.Special
    longest: int
    """Bytes of the longest, 1 if there is none."""
    texts: tuple[str, ...]


class Run(NamedTuple):
    """Pre-tokens that stand side by side in `text`, and the special token after them."""

    known: kernels.Known
    text: ndarray
    begin: int
    ends: ndarray
    place: int
    """Where they began in the buffer."""
    id: int | None


class Encoder:
    """Encodes jobs of one vocabulary; safe to use from several threads, which share what they learn."""

    def __init__(self, vocabulary: Vocabulary, remember: int):
        """`remember`: pre-tokens beside the vocabulary that are kept with their ids; when full, all are forgotten.

        With 0 the memory stays as it was made.
        """
        self.vocabulary = vocabulary
        self.rule = RULES.get(vocabulary.pattern, OWN)
        self._splitter = split.Splitter(vocabulary.pattern)
        self._index = _index(vocabulary)
        self._plain = np.zeros(len(vocabulary.tokens), np.bool_)
        self._plain[list(vocabulary.ids.values())] = True
        rules, unmade = _merging(vocabulary, self._index, self._plain)
        self._most = len(vocabulary.ids) + remember
        self._forgets = remember > 0
        self._lacking = np.array([bytes([value]) not in vocabulary.ids for value in range(256)])
        self._lock = threading.Lock()
        self._desks: deque[encode_merge.Desk] = deque(maxlen=8)
        self._wanted = self._plain if vocabulary.whole else self._plain & ~unmade
        self._memory = self._seeded(min(4 * len(vocabulary.ids), self._most))
        joints = np.zeros(64 + (1 << 14), np.uint64)
        add_joints(joints, self._index.text, self._index.offsets)
        whole = vocabulary.whole and bool(unmade.any())  # else merges give it anyway
        segment = encode_memory.SEGMENT if whole else np.uint64(0)
        self._known = kernels.Known(rules, _filled(self._index, unmade), whole, joints, segment)
        self._nothing = _asked((), vocabulary)
        self._asked: OrderedDict[tuple[str, ...], Asked] = OrderedDict()

    def asked(self, special: Collection[str]) -> Asked:
        """What to look for. Raises TokenizerError for a special token that the vocabulary lacks."""
        if not special:
            return self._nothing
        plain_bpe.check_asked(special, self.vocabulary.special)
        texts = tuple(sorted(special, key=lambda text: (-len(text.encode("utf-8")), text)))
        found = self._asked.get(texts)
        if found is None:
            found = _asked(texts, self.vocabulary)
            if len(self._asked) >= 16:
                self._asked.clear()
            self._asked[texts] = found
        return found

    def cut(self, buffer: ndarray, stop: int, asked: Asked) -> int:
        """The last place of buffer[:stop] where it can be cut whatever follows; 0 if there is none."""
        return encode_special.cut(asked.special, asked.longest, self.rule, buffer, 0, stop)

    def encode(self, buffer: ndarray, bounds: ndarray, asked: Asked, out: ndarray) -> ndarray:
        """Write the ids of the texts buffer[bounds[i]:bounds[i+1]] to `out`; where each ends, int64 [n].

        `out` has room for an id a byte and OUT_SPARE more.
        """
        stops = np.empty(len(bounds) - 1, np.int64)
        memory, desk = self._memory, self._desk(int(bounds[-1]))
        if self._splits(buffer, int(bounds[-1])):
            kernels.encode(self._known, memory, asked.special, desk, self.rule, buffer, bounds, out, stops)
        else:
            o = 0
            for i in range(len(stops)):
                for run in self._cut(buffer, int(bounds[i]), int(bounds[i + 1]), asked):
                    o += kernels.encode_cut(run.known, memory, desk, run.text, run.begin, run.ends, out[o:])
                    if run.id is not None:
                        out[o] = run.id
                        o += 1
                stops[i] = o
        self._put_back(desk)
        self._look_after(memory)
        return self._known_ones(out, stops)

    def encode_noisy(self, buffer: ndarray, stop: int, place: int, asked: Asked, noise: Dropout, out: ndarray) -> int:
        """Write the ids of buffer[:stop] under dropout to `out`; how many. `place`: the bytes that came before."""
        key = np.uint64(plain_bpe.noise_key(noise))
        below = np.uint64(int(noise.drop * (1 << 53)))
        desk = self._desk(stop)
        o = 0
        if self._splits(buffer, stop):
            o = kernels.encode_noisy(
                self._known_noisy, asked.special, desk, self.rule, buffer, 0, stop, place, key, below, out
            )
        else:
            for run in self._cut(buffer, 0, stop, asked):
                o = kernels.encode_cut_noisy(
                    self._known_noisy, desk, run.text, run.begin, run.ends, place + run.place, key, below, out, o
                )
                if run.id is not None:
                    out[o] = run.id
                    o += 1
        self._put_back(desk)
        return int(self._known_ones(out, np.array([o]))[0])

    def _known_ones(self, out: ndarray, stops: ndarray) -> ndarray:
        """Leave out what stands for a byte without a token; where each text ends then."""
        if self.vocabulary.partial != "after" or not len(stops):
            return stops
        kept = out[: stops[-1]] < len(self.vocabulary.tokens)
        ends = np.concatenate([[0], np.cumsum(kept)])[stops]
        out[: ends[-1]] = out[: stops[-1]][kept]
        return ends

    @cached_property
    def _known_noisy(self) -> kernels.Known:
        """As `_known`, with the pairs that a merge left out can bring together."""
        if self.vocabulary.merges is not None:
            return self._known
        return self._known._replace(rules=_rules(self.vocabulary, self._index, self._plain))

    def _splits(self, buffer: ndarray, stop: int) -> bool:
        """Whether kernels can split buffer[:stop]: by a pattern they know, with no byte to be taken out before."""
        if self.rule == OWN:
            return False
        return self.vocabulary.partial != "before" or not self._lacking[buffer[:stop]].any()

    def _cut(self, buffer: ndarray, begin: int, stop: int, asked: Asked) -> list["Run"]:
        """The pre-tokens as `split` finds them."""
        runs: list[Run] = []
        none = np.empty(0, np.int64)
        text = buffer[begin:stop].tobytes().decode("utf-8")
        for part, is_special in split.parts(text, asked.texts):
            if is_special:
                runs.append(Run(self._known, buffer, begin, none, begin, self.vocabulary.special[part]))
                begin += len(part.encode("utf-8"))
            else:
                sizes = [len(word.encode("utf-8")) for word in self._splitter.words(part)]
                ends = begin + np.cumsum(np.array(sizes, np.int64))
                runs.append(self._run(buffer, begin, ends))
                begin = int(ends[-1])
        return runs

    def _run(self, buffer: ndarray, begin: int, ends: ndarray) -> "Run":
        """Pre-tokens without the bytes that are left out before merging."""
        kept = ~self._lacking[buffer[begin : ends[-1]]]
        if self.vocabulary.partial != "before" or kept.all():
            return Run(self._known, buffer, begin, ends, begin, None)
        places = np.concatenate([[0], np.cumsum(kept)])
        left = np.unique(places[ends - begin])  # some pre-tokens are gone
        text = np.zeros(places[-1] + feed.SPARE, np.uint8)
        text[: places[-1]] = buffer[begin : ends[-1]][kept]
        return Run(self._known_anywhere, text, 0, left[left > 0], begin, None)

    @cached_property
    def _known_anywhere(self) -> kernels.Known:
        """As `_known`, for what may not be UTF-8: nowhere cut inside of a pre-token."""
        return self._known._replace(joints=np.full_like(self._known.joints, ~np.uint64(0)))

    def _desk(self, longest: int) -> encode_merge.Desk:
        """Room to work on texts of up to that many bytes; whoever takes it puts it back."""
        try:
            desk = self._desks.pop()
        except IndexError:  # none there, or another thread was faster
            return kernels.desk(max(longest, 1 << 12))
        return desk if len(desk.room) >= 7 * longest + 3 else kernels.desk(longest)

    def _put_back(self, desk: encode_merge.Desk) -> None:
        """Keep a desk for the next call; a very large one is let go."""
        if len(desk.room) <= 7 * LARGE_TEXT + 3:
            self._desks.append(desk)

    def _look_after(self, memory: encode_memory.Memory) -> None:
        """Replace a memory that is full by one twice as large, or by a new one where it is as large as may be."""
        used, arena = memory.state.tolist()
        if not self._forgets or (used < memory.limit and arena + 2 * encode_memory.LONGEST <= memory.arena.size):
            return
        with self._lock:
            if self._memory is not memory:
                return  # another thread did
            if memory.limit < self._most:
                larger = _memory(min(2 * memory.limit, self._most), memory.slots.size // encode_memory.SLOT * 2)
                encode_memory.move(memory, larger)
                self._memory = larger
            else:
                self._memory = self._seeded(self._most)

    def _seeded(self, limit: int) -> encode_memory.Memory:
        memory = _memory(limit, 2 * limit)
        encode_vocabulary.seed(memory, self._index, self._wanted, np.empty(OUT_SPARE, np.uint32))
        return memory


def _memory(limit: int, slots: int) -> encode_memory.Memory:
    """An empty memory for `limit` pre-tokens in at least `slots` slots."""
    lines = _power(max(slots, 1 << 10)) // 2
    arena = np.empty(max(4 * lines, 1 << 16), np.uint32)
    return encode_memory.Memory(_pages(lines * encode_memory.LINE), arena, np.zeros(2, np.int64), limit)


def _pages(size: int) -> ndarray:
    """`size` bytes of zeros that begin at a cache line, in large pages where the system has them."""
    if sys.platform != "linux" or size < LARGE_PAGE:
        room = np.zeros(size + encode_memory.LINE, np.uint8)
        return room[-room.ctypes.data % encode_memory.LINE :][:size]
    pages = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    room = np.frombuffer(pages, np.uint8)
    return room[-room.ctypes.data % LARGE_PAGE :][:size]


def _index(vocabulary: Vocabulary) -> encode_vocabulary.Index:
    """The index of a vocabulary, still empty."""
    text = np.frombuffer(bytearray(b"".join(vocabulary.tokens) + bytes(64)), np.uint8)
    offsets = np.zeros(len(vocabulary.tokens) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, vocabulary.tokens), np.int64, len(vocabulary.tokens)), out=offsets[1:])
    return encode_vocabulary.Index(text, offsets, np.full(1, -1, np.int32))


def _filled(index: encode_vocabulary.Index, wanted: ndarray) -> encode_vocabulary.Index:
    """The index of the tokens where `wanted`, bool [V], says so."""
    index = index._replace(table=np.full(_power(2 * int(wanted.sum()) + 64), -1, np.int32))
    encode_vocabulary.fill_index(index, wanted)
    return index


def _rules(vocabulary: Vocabulary, index: encode_vocabulary.Index, plain: ndarray) -> encode_merge.Rules:
    """The table of all pairs, filled."""
    ids = vocabulary.ids
    if vocabulary.merges is None:
        none, index = np.empty(0, np.int64), _filled(index, plain)
        sizes = np.bincount(np.diff(index.offsets)[plain]) > 0
        count = encode_vocabulary.splits(index, plain, sizes, none, none, none)
        lefts, rights, ranks = (np.empty(count, np.int64) for _ in range(3))
        encode_vocabulary.splits(index, plain, sizes, lefts, rights, ranks)
        joined = np.arange(len(plain), dtype=np.uint32)
    else:
        merges, count = vocabulary.merges, len(vocabulary.merges)
        lefts = np.fromiter((ids[left] for left, _ in merges), np.int64, count)
        rights = np.fromiter((ids[right] for _, right in merges), np.int64, count)
        joined = np.fromiter((ids[left + right] for left, right in merges), np.uint32, count)
        ranks = np.arange(count, dtype=np.int64)
    rules = _empty_rules(vocabulary, count, joined)
    encode_merge.add_pairs(rules, lefts, rights, ranks)
    encode_merge.fill_doubles(rules)
    return rules


def _merging(
    vocabulary: Vocabulary, index: encode_vocabulary.Index, plain: ndarray
) -> tuple[encode_merge.Rules, ndarray]:
    """The table of the pairs that can arise, and which tokens are never made, bool [V]."""
    longest = max(map(len, vocabulary.ids))
    desk, out = kernels.desk(longest), np.empty(longest + OUT_SPARE, np.uint32)
    if vocabulary.merges is None:
        unmade = np.zeros(len(plain), np.bool_)
        rules = _empty_rules(vocabulary, len(vocabulary.ids), np.arange(len(plain), dtype=np.uint32))
        if encode_vocabulary.last_pairs(rules, index, plain, unmade, desk, out):
            return rules, unmade
    rules = _rules(vocabulary, index, plain)
    unmade = np.zeros(len(plain), np.bool_)
    encode_vocabulary.find_unmade(rules, index, plain, unmade, desk, out)
    return rules, unmade


def _empty_rules(vocabulary: Vocabulary, count: int, joined: ndarray) -> encode_merge.Rules:
    """Tables for so many pairs, still empty."""
    size = _power(max(5 * count // 2, 64))
    pairs, marks = np.full(size, encode_merge.EMPTY, np.uint64), np.zeros(size // 16, np.uint64)
    nothing = len(vocabulary.tokens)  # stands for a byte without a token
    singles = np.array([vocabulary.ids.get(bytes([value]), nothing) for value in range(256)], np.uint32)
    return encode_merge.Rules(pairs, marks, joined, singles, np.full(1 << 16, encode_merge.NEVER, np.uint32))


def _asked(texts: tuple[str, ...], vocabulary: Vocabulary) -> Asked:
    encoded = [text.encode("utf-8") for text in texts]
    heads = np.array(sorted({text[0] for text in encoded}), np.uint8)
    offsets = np.zeros(len(texts) + 1, np.int64)
    offsets[1:] = np.cumsum([len(text) for text in encoded])
    ids = np.array([vocabulary.special[text] for text in texts], np.int64)
    found = encode_special.Special(heads, np.frombuffer(bytearray(b"".join(encoded) + b"\0"), np.uint8), offsets, ids)
    return Asked(found, max(map(len, encoded), default=1), texts)


def _power(least: int) -> int:
    """The power of 2 that is at least that.

    >>> [_power(n) for n in (1, 2, 3, 1024)]
    [1, 2, 4, 1024]
    """
    return 1 << max(least - 1, 0).bit_length()
