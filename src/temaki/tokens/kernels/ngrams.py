"""Compiled parts of BytePiece training: segments, n-grams, pre-segmentation, the table of pieces.

An n-gram of n bytes (n <= 7) is one uint64: its bytes from the top down, n in the lowest byte; so sorted n-grams stand
in the order of their bytes, and those with a common beginning stand together. Text is uint8 with 8 readable bytes after
it.
"""
# pyright: basic, reportCallIssue=false

import numpy as np

from temaki.base.compile import fold, kernel, load64
from temaki.tokens.kernels.viterbi import best

_LAST = np.uint64(0xFF)


@kernel
def training_segments(text, bounds, longest, newlines, isolate, zeros, ends):
    """The end of every segment of texts text[bounds[i]:bounds[i+1]] into `ends`; how many.

    A segment is up to `longest` characters and the newlines, up to `newlines`, that follow them; with `isolate`, each
    decimal digit is one of its own. zeros: int32, the digits zero of all scripts, sorted; ends: int64 [bytes].
    """
    count = 0
    for number in range(bounds.size - 1):
        at, stop = bounds[number], bounds[number + 1]
        while at < stop:
            length = 0
            while at < stop and text[at] != 10 and length < longest:
                if isolate and is_digit(text, at, stop, zeros):
                    break
                at = next_character(text, at, stop)
                length += 1
            if at < stop and text[at] == 10:
                first = at
                while at < stop and text[at] == 10 and at - first < newlines:
                    at += 1
            elif length == 0:
                at = next_character(text, at, stop)  # a digit
            ends[count] = at
            count += 1
    return count


@kernel
def next_character(text, at, stop):
    """The place of the next character after the one at `at`."""
    at += 1
    while at < stop and text[at] & 0xC0 == 0x80:
        at += 1
    return at


@kernel
def is_digit(text, at, stop, zeros):
    """Is the character at `at` a decimal digit of any script?"""
    byte = text[at]
    if byte < 0x80:
        return 48 <= byte <= 57
    size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
    if byte < 0xC0 or at + size > stop:
        return False
    point = np.int64(byte) & (0x7F >> size)
    for k in range(at + 1, at + size):
        point = point << 6 | (np.int64(text[k]) & 0x3F)
    place = np.searchsorted(zeros, point + 1) - 1
    return place >= 0 and point - zeros[place] < 10


@kernel
def grams_at(text, ends, begin, low, high, order, out):
    """The longest n-gram (n <= order) at every byte of segments low..high, the first of which begins at `begin`.

    out: uint64 [bytes of those segments].
    """
    count = 0
    kept = np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(64 - 8 * order)
    for segment in range(low, high):
        end = ends[segment]
        gram = np.uint64(0)
        for at in range(end - 1, begin - 1, -1):
            gram = (gram >> np.uint64(8) | np.uint64(text[at]) << np.uint64(56)) & kept
            out[count] = gram | np.uint64(min(order, end - at))
            count += 1
        begin = end


@kernel
def tally(grams, counts):
    """Sorted n-grams, in place: each once, with its count in `counts` (int64); how many."""
    last = -1
    for i in range(grams.size):
        if last >= 0 and grams[last] == grams[i]:
            counts[last] += 1
        else:
            last += 1
            grams[last] = grams[i]
            counts[last] = 1
    return last + 1


@kernel
def merge(left, left_counts, right, right_counts, out, counts):
    """Two sorted tallies as one; how many."""
    i, j, k = 0, 0, 0
    while i < left.size or j < right.size:
        if j == right.size or (i < left.size and left[i] < right[j]):
            out[k], counts[k] = left[i], left_counts[i]
            i += 1
        elif i == left.size or right[j] < left[i]:
            out[k], counts[k] = right[j], right_counts[j]
            j += 1
        else:
            out[k], counts[k] = left[i], left_counts[i] + right_counts[j]
            i += 1
            j += 1
        k += 1
    return k


@kernel
def condition(grams, counts, order, least, kept, kept_counts, parents, found):
    """All n-grams, n = 1..order, that occur `least` times (n = 1: always), from the tally of the longest ones.

    Row n-1 of kept (uint64), kept_counts, parents (int64), all [order, cap], gets the n-grams in order, their counts
    and the place in row n-2 of the same without its last byte; found: int64 [order], how many (even beyond cap).
    """
    sums = np.zeros(order + 1, np.int64)
    for n in range(order):
        found[n] = 0
    for i in range(grams.size + 1):
        same = 0  # bytes shared with the next one
        if i > 0:
            if i < grams.size:
                differ = (grams[i] ^ grams[i - 1]) & ~_LAST
                while same < order and differ >> np.uint64(56 - 8 * same) == 0:
                    same += 1
            for n in range(order, same, -1):
                if sums[n] > 0 and (n == 1 or sums[n] >= least):
                    place = found[n - 1]
                    if place < kept.shape[1]:
                        bytes_of = np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(64 - 8 * n)
                        kept[n - 1, place] = grams[i - 1] & bytes_of | np.uint64(n)
                        kept_counts[n - 1, place] = sums[n]
                        parents[n - 1, place] = found[n - 2] if n > 1 else 0
                    found[n - 1] += 1
                sums[n] = 0
        if i < grams.size:
            for n in range(1, np.int64(grams[i] & _LAST) + 1):
                sums[n] += counts[i]


@kernel
def remember(grams, scores, table, values):
    """Enter n-grams with their scores into a hash table: uint64 and float64 [2^k], more than grams; empty is zero."""
    mask = table.size - 1
    for i in range(grams.size):
        slot = np.int64(fold(grams[i], np.uint64(0x9E3779B97F4A7C15))) & mask
        while table[slot] != 0:
            slot = (slot + 1) & mask
        table[slot] = grams[i]
        values[slot] = scores[i]


@kernel
def presegment(text, ends, begin, low, high, order, whole_characters, short, table, values, routes, cuts):
    """Cut segments low..high into pieces by the n-gram model; the end of every piece into `cuts`; how many.

    Viterbi over states: state j at a byte says that it is byte j+1 of its piece (the last state: or a later one), and
    costs the (j+1)-gram that ends there; any state may be followed by state 0, by the next state, the last by itself.
    Of equal predecessors the lowest state wins. Where no path has a finite score the rest of the segment is single
    bytes, as in the reference. With `whole_characters` no piece begins inside a character. short: float64 [65536 +
    256], scores of 2-grams, then of bytes (-inf: none); routes: uint8, cuts: int64 [bytes of those segments].
    """
    mask = table.size - 1
    nodes = np.empty((8, 8), np.float64)  # [place & 7, state]
    scores = np.empty(8, np.float64)
    last = order - 1
    written = 0
    for segment in range(low, high):
        end = ends[segment]
        nodes[:] = -np.inf
        for at in range(begin, end):
            gram = np.uint64(0)
            for state in range(order):
                nodes[(at + last) & 7, state] = -np.inf
            for n in range(1, min(order, end - at) + 1):
                byte = text[at + n - 1]
                gram |= np.uint64(byte) << np.uint64(64 - 8 * n)
                if n == 1:
                    score = short[65536 + byte] if not (whole_characters and byte & 0xC0 == 0x80) else -np.inf
                elif n == 2:
                    score = short[np.int64(text[at]) << 8 | byte]
                else:
                    slot = np.int64(fold(gram | np.uint64(n), np.uint64(0x9E3779B97F4A7C15))) & mask
                    while table[slot] != 0 and table[slot] != gram | np.uint64(n):
                        slot = (slot + 1) & mask
                    score = values[slot] if table[slot] != 0 else -np.inf
                nodes[(at + n - 1) & 7, n - 1] = score
                if score == -np.inf and n > 1:
                    break
            here = nodes[at & 7]
            if at == begin:
                for state in range(order):
                    scores[state] = here[state]
                continue
            route = 0
            highest = scores[0] + here[0]
            for state in range(1, order):
                if scores[state] + here[0] > highest:
                    route = state
                    highest = scores[state] + here[0]
            if last > 0:
                stay = scores[last] + here[last]
                come = scores[last - 1] + here[last]
                if stay > come:
                    route |= 8
                    come = stay
                scores[last] = come
                for state in range(last - 1, 0, -1):
                    scores[state] = scores[state - 1] + here[state]
            scores[0] = highest
            routes[at - begin] = route
        state = 0
        for other in range(1, order):
            if scores[other] > scores[state]:
                state = other
        count = 0
        for at in range(end - 1, begin - 1, -1):
            if state == 0:
                count += 1
                cuts[written + count - 1] = at
                state = routes[at - begin] & 7 if at > begin else 0
            elif state < last or routes[at - begin] & 8 == 0:
                state -= 1
        _turn(cuts, written, count, end)
        written += count
        begin = end
    return written


@kernel
def _turn(cuts, written, count, end):
    """Beginnings of pieces from the last to the first, in place: their ends from the first to the last."""
    for k in range(count // 2):
        other = written + count - 1 - k
        cuts[written + k], cuts[other] = cuts[other], cuts[written + k]
    for k in range(count - 1):
        cuts[written + k] = cuts[written + k + 1]
    cuts[written + count - 1] = end


@kernel
def count_pieces(text, begin, cuts, times, pool, starts, counts, slots, hashes, used):
    """Add the pieces that end at `cuts`, the first of which begins at `begin`, each `times[i]` times (or once: size 0).

    The table: piece i has the bytes pool[starts[i]:starts[i+1]] and counts[i]; slots: int64 [2^k], its number + 1 at
    the hash of its bytes; hashes: uint64. All must have room for every piece to be new. Used: pieces so far; how many
    after.
    """
    mask = slots.size - 1
    for i in range(cuts.size):
        end = cuts[i]
        size = end - begin
        mixed = np.uint64(size) * np.uint64(0x9E3779B97F4A7C15)
        for k in range(begin, end, 8):
            word = load64(text, k)
            if end - k < 8:
                word &= (np.uint64(1) << np.uint64(8 * (end - k))) - np.uint64(1)
            mixed = fold(mixed ^ word, np.uint64(0xD6E8FEB86659FD93))
        slot = np.int64(mixed >> np.uint64(7)) & mask
        entry = -1
        while slots[slot] != 0:
            other = slots[slot] - 1
            if hashes[other] == mixed and starts[other + 1] - starts[other] == size:
                entry = other
                for k in range(size):
                    if pool[starts[other] + k] != text[begin + k]:
                        entry = -1
                        break
                if entry >= 0:
                    break
            slot = (slot + 1) & mask
        if entry < 0:
            entry = used
            used += 1
            slots[slot] = entry + 1
            hashes[entry] = mixed
            counts[entry] = 0
            starts[entry + 1] = starts[entry] + size
            for k in range(size):
                pool[starts[entry] + k] = text[begin + k]
        counts[entry] += times[i] if times.size else 1
        begin = end
    return used


@kernel
def rehash(hashes, used, slots):
    """Enter pieces 0..used anew into empty `slots`."""
    mask = slots.size - 1
    for i in range(used):
        slot = np.int64(hashes[i] >> np.uint64(7)) & mask
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot] = i + 1


@kernel
def redistribute(pool, starts, sizes, counts, units, first, scores, longest, total, via, out, sums):
    """Cut pieces (uint8 pool, at starts with sizes) into the best pieces of a model; add each one's count to its parts.

    The model as in `viterbi.best`; sums: int64 [P]; total, via: scratch with room for the largest of them.
    """
    for i in range(starts.size):
        begin, stop = starts[i], starts[i] + sizes[i]
        written = best(pool, begin, stop, True, 0.0, None, 0, units, first, scores, longest, total, via, out)[0]
        for k in range(written):
            sums[out[k]] += counts[i]
