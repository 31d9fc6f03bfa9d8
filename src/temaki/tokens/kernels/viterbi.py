"""Compiled segmentation into pieces with scores: the best path, a random path, all arcs.

Two rules share each kernel, compiled apart. By lines (`characters` None, BytePiece): a segment ends after each run of
newlines, no piece crosses it, sums start anew in each, every byte is a piece, sums are float64. By characters
(`characters` True, SentencePiece unigram): one segment, pieces begin at characters, a character that is no piece costs
what piece `unknown` scores, and sums are rounded to float32.

Arrays: text uint8; units, first uint64 (see `trie`; first[b] is the slot of byte b, 0 without one); scores float64 [P].
"""
# pyright: basic, reportCallIssue=false

import numpy as np

from temaki.base.compile import bare_kernel, kernel
from temaki.tokens.kernels.wide import exponent, two_to, uniform

_SETTLE = 2048
"""Bytes after which a place that no piece crosses ends the tables: they stay in the fastest cache."""

_LOWEST = -100_000.0
"""The score below which sums by characters start anew, so that float32 can still tell paths apart (SentencePiece
0.2.3, found by comparing its ids)."""

_NOTHING = -(1 << 62)
"""A power of two below all others."""

_OFFSET = np.uint64(0xFFFFFF)
_BYTE = np.uint64(0xFF)


@bare_kernel
def segment_end(text, at, stop):
    """The end of the line that holds place `at`, its run of newlines included; `stop` if it is cut off there."""
    while at < stop and text[at] != 10:
        at += 1
    while at < stop and text[at] == 10:
        at += 1
    return at


@bare_kernel
def longest_segment(text, begin, stop):
    """Bytes of the longest line, its newlines included."""
    longest = 0
    while begin < stop:
        end = segment_end(text, begin, stop)
        longest = max(longest, end - begin)
        begin = end
    return longest


@bare_kernel
def width(byte):
    """Bytes of the character that begins with this byte; 1 for a byte that begins none."""
    if byte < 0xC0:
        return 1
    if byte < 0xE0:
        return 2
    return 3 if byte < 0xF0 else 4


@bare_kernel
def best(text, begin, stop, whole, carried, characters, unknown, units, first, scores, longest, total, via, out):
    """The best path's pieces of text[begin:stop] into `out`: (pieces written, place reached, its score, room needed).

    Of equal paths to a place the one whose last piece is longest wins. longest: bytes of the longest piece, at least 4;
    total: float64, via: int64, both [W], scratch; out: uint32 [stop - begin]. `carried` is the score at `begin`. Not
    `whole`: text goes on after `stop`; pieces are given as far as no continuation can change them; go on from the place
    reached. Room needed: W was too small to settle; call again from the place reached with larger ones.
    """
    written = 0
    cut = begin
    end = begin
    room = total.size - longest - 4
    while cut < stop:
        if cut == end:
            end = stop if characters is not None else segment_end(text, cut, stop)
        is_open = end == stop and not whole
        size = end - cut
        total[0] = carried
        for k in range(1, min(longest, total.size)):
            total[k] = -np.inf
        reach = 0  # no piece so far ends beyond it
        safe = 0  # the last place that no piece crosses
        safe_score = carried
        i = 0
        while True:
            if reach <= i:
                safe = i
                safe_score = total[i]
                if i >= _SETTLE:
                    break
            if i >= size:
                break
            if i >= room:
                return written, cut, carried, True
            here = total[i]
            if characters is not None and here < _LOWEST:
                for k in range(i, min(i + longest, size + 1)):
                    total[k] = np.float64(np.float32(total[k] - here))
                here = 0.0
            step = min(width(text[cut + i]), size - i) if characters is not None else 1
            for k in range(i + longest, i + longest + step):
                total[k] = -np.inf
            single = characters is None
            unit = first[text[cut + i]]
            j = i
            while unit != 0:
                j += 1
                piece = np.int64(unit >> np.uint64(32)) - 1
                if piece >= 0:
                    score = here + scores[piece]
                    if characters is not None:
                        score = np.float64(np.float32(score))
                    if score > total[j]:
                        total[j] = score
                        via[j] = (j - i) << 32 | piece
                    reach = max(reach, j)
                    if j - i == step:
                        single = True
                offset = (unit >> np.uint64(8)) & _OFFSET
                if j >= size:
                    if is_open and offset != 0:
                        reach = size + 1  # it may go on
                    break
                byte = text[cut + j]
                unit = units[np.int64(offset) ^ np.int64(byte)]
                if np.uint8(unit & _BYTE) != byte:
                    break
            if not single:
                j = i + step
                score = np.float64(np.float32(here + scores[unknown]))
                if score > total[j]:
                    total[j] = score
                    via[j] = step << 32 | unknown
                reach = max(reach, j)
            i += step
        ended = i >= size
        count = 0
        i = safe
        while i > 0:
            i -= via[i] >> 32
            count += 1
        k = written + count
        i = safe
        while i > 0:
            k -= 1
            out[k] = via[i] & 0xFFFFFFFF
            i -= via[i] >> 32
        written += count
        cut += safe
        carried = safe_score
        if ended and safe < size:
            break
        if cut == end and characters is None and not is_open:
            carried = 0.0
    return written, cut, carried, False


@kernel
def best_each(text, bounds, characters, unknown, units, first, scores, longest, total, via, out, stops):
    """The best paths of texts text[bounds[i]:bounds[i+1]] into `out`, each for itself; stops[i]: where its pieces end.

    The rest as in `best`, with room for the longest of them: W at least its bytes and `longest` and 5.
    """
    written = 0
    for i in range(bounds.size - 1):
        begin, stop = bounds[i], bounds[i + 1]
        written += best(
            text, begin, stop, True, 0.0, characters, unknown, units, first, scores, longest, total, via, out[written:]
        )[0]
        stops[i] = written


@bare_kernel
def sample(
    text, begin, stop, key, characters, unknown, units, first, weights, powers, after, scales, pieces, ends, out
):
    """A random path's pieces of text[begin:stop] into `out`; how many.

    Each segmentation has a probability in proportion to the product of its pieces' weights, exactly: after[i] is the
    sum over all segmentations of what follows place i, made from the end; then pieces are drawn from the beginning. The
    draw at a place depends on `key` (uint64) and the place alone. Numbers of any size are kept as a float64 in 1..2 and
    a power of two (int64): piece p weighs weights[p] * 2^powers[p], what follows weighs after[i] * 2^scales[i]; so no
    logarithm is taken. after, scales: [longest segment + 1], pieces, ends: int64 [longest piece + 1], all scratch; out:
    uint32 [stop - begin].
    """
    written = 0
    cut = begin
    while cut < stop:
        end = stop if characters is not None else segment_end(text, cut, stop)
        after[end - cut] = 1.0
        scales[end - cut] = 0
        for at in range(end - 1, cut - 1, -1):
            if characters is not None and text[at] & 0xC0 == 0x80:
                continue
            step = min(width(text[at]), end - at) if characters is not None else 1
            single = characters is None
            total = 0.0
            scale = _NOTHING
            unit = first[text[at]]
            j = at
            while unit != 0:
                j += 1
                piece = np.int64(unit >> np.uint64(32)) - 1
                if piece >= 0:
                    power = powers[piece] + scales[j - cut]
                    higher = max(scale, power)
                    weight = weights[piece] * after[j - cut]
                    total = total * two_to(scale - higher) + weight * two_to(power - higher)
                    scale = higher
                    if j - at == step:
                        single = True
                if j >= end:
                    break
                byte = text[j]
                unit = units[np.int64((unit >> np.uint64(8)) & _OFFSET) ^ np.int64(byte)]
                if np.uint8(unit & _BYTE) != byte:
                    break
            if not single:
                power = powers[unknown] + scales[at + step - cut]
                higher = max(scale, power)
                weight = weights[unknown] * after[at + step - cut]
                total = total * two_to(scale - higher) + weight * two_to(power - higher)
                scale = higher
            extra = exponent(total)
            after[at - cut] = total * two_to(-extra)
            scales[at - cut] = scale + extra
        at = cut
        while at < end:
            count = arcs(text, at, end, characters, unknown, units, first, pieces, ends)
            chosen = 0
            if count > 1:
                draw = uniform(key, at) * after[at - cut]
                for chosen in range(count):
                    power = powers[pieces[chosen]] + scales[ends[chosen] - cut] - scales[at - cut]
                    draw -= weights[pieces[chosen]] * after[ends[chosen] - cut] * two_to(power)
                    if draw < 0.0:
                        break
            out[written] = pieces[chosen]
            written += 1
            at = ends[chosen]
        cut = end
    return written


@bare_kernel
def arcs(text, at, end, characters, unknown, units, first, pieces, ends):
    """The pieces that begin at `at` and end by `end`, shortest first, unknown last: written to `pieces`, `ends`; how
    many."""
    step = min(width(text[at]), end - at) if characters is not None else 1
    single = characters is None
    count = 0
    unit = first[text[at]]
    j = at
    while unit != 0:
        j += 1
        piece = np.int64(unit >> np.uint64(32)) - 1
        if piece >= 0:
            pieces[count] = piece
            ends[count] = j
            count += 1
            if j - at == step:
                single = True
        if j >= end:
            break
        byte = text[j]
        unit = units[np.int64((unit >> np.uint64(8)) & _OFFSET) ^ np.int64(byte)]
        if np.uint8(unit & _BYTE) != byte:
            break
    if not single:
        pieces[count] = unknown
        ends[count] = at + step
        count += 1
    return count


@bare_kernel
def lattice(text, begin, stop, characters, unknown, units, first, pieces, ends, found):
    """All arcs of text[begin:stop]: found int64 [3, n] gets begin, end, piece of each; how many there are, even beyond
    n."""
    count = 0
    cut = begin
    while cut < stop:
        end = stop if characters is not None else segment_end(text, cut, stop)
        for at in range(cut, end):
            if characters is not None and text[at] & 0xC0 == 0x80:
                continue
            for k in range(arcs(text, at, end, characters, unknown, units, first, pieces, ends)):
                if count < found.shape[1]:
                    found[0, count] = at
                    found[1, count] = ends[k]
                    found[2, count] = pieces[k]
                count += 1
        cut = end
    return count


@bare_kernel
def split_scores(pool, starts, sizes, units, first, scores, total, pieces, ends, out):
    """The best score of each piece of bytes cut into two pieces or more (-inf: there is no way) into `out`, float64.

    pool uint8, starts, sizes int64; total: float64, pieces, ends: int64, all [longest piece + 1], scratch.
    """
    for number in range(starts.size):
        begin, stop = starts[number], starts[number] + sizes[number]
        total[: stop - begin + 1] = -np.inf
        total[0] = 0.0
        for at in range(begin, stop):
            for k in range(arcs(pool, at, stop, None, 0, units, first, pieces, ends)):
                if ends[k] - at < stop - begin:
                    j = ends[k] - begin
                    total[j] = max(total[j], total[at - begin] + scores[pieces[k]])
        out[number] = total[stop - begin]
