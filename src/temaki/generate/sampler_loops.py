"""Compiled loops of `sampler`: weights, the boundary of a set, candidates, the walk to a draw.

A weight is exp(logit - largest), in float64; sums run in eight lanes of fixed places, so their bits depend neither on
the processor's vectors nor on threads. A filter that keeps a head of some order needs only that head's last member: it
is found by counting masses in bins over the keys' range and looking again into the bin where the goal is reached, so
nothing is sorted. Letters: V vocabulary, n candidates, C the bins.
"""
# pyright: basic

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _intrinsic

from temaki.base.compile import bare_kernel

intrinsic: Any = _intrinsic

BINS = 1024
"""C: bins of a look for a boundary, and stretches of a walk."""
FEW = 8
"""So few candidates are looked at one by one."""
NARROW = 1e-290
"""Keys nearer to each other than that are too near for bins."""
DEEPEST = -708.0
"""Below it a weight is 0: exp would not be a normal number."""
ROUND = 1.5 * 2.0**52
"""Added to a number and taken away again it leaves the nearest integer, which then stands in the low bits."""
LOG2_E = 1.4426950408889634
LOG_2 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)
"""log 2 as a sum whose first part has zeros at its end, so that an integer times it is exact."""
C = tuple(1.0 / float(np.prod(np.arange(1.0, i + 1))) for i in range(13))
"""1 / i!: e^r for |r| <= log(2) / 2 to the last bit but one."""
LEAST = 5e-324
LOWEST = -np.finfo(np.float64).max


@intrinsic
def _bits(_context, x):
    """A float64's bits."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
def _real(_context, bits):
    """The float64 of these bits."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), generate


@bare_kernel
def exponential(x):
    """e^x for x <= 0, 0 below DEEPEST; in plain arithmetic, so that loops of it become vectors."""
    y = max(x, DEEPEST)
    rounded = y * LOG2_E + ROUND
    n = rounded - ROUND
    r = (y - n * LOG_2[0]) - n * LOG_2[1]
    p = C[12] * r + C[11]
    p = (((p * r + C[10]) * r + C[9]) * r + C[8]) * r + C[7]
    p = (((p * r + C[6]) * r + C[5]) * r + C[4]) * r + C[3]
    p = ((p * r + C[2]) * r + C[1]) * r + C[0]
    found = p * _real((_bits(rounded) << 52) + 0x3FF0000000000000)  # 2^n: n to the place of the exponent
    return found if x >= DEEPEST else 0.0


@bare_kernel
def weigh(logits, top, n, weights):
    """weights[i] = e^(logits[i] - top) for the first n."""
    for i in range(n):
        weights[i] = exponential(np.float64(logits[i]) - top)


@bare_kernel
def cool(logits, top, t, out):
    """out = (logits - top) / t, rounded to its own type."""
    for i in range(len(logits)):
        out[i] = (np.float64(logits[i]) - top) / t


@bare_kernel
def total(weights, start, stop):
    """The sum of weights[start:stop]."""
    a = b = c = d = e = f = g = h = 0.0
    whole = start + ((stop - start) & ~7)
    for i in range(start, whole, 8):
        a += weights[i]
        b += weights[i + 1]
        c += weights[i + 2]
        d += weights[i + 3]
        e += weights[i + 4]
        f += weights[i + 5]
        g += weights[i + 6]
        h += weights[i + 7]
    found = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, stop):
        found += weights[i]
    return found


@bare_kernel
def walk(weights, n, uniform, bins):
    """The first place whose cumulated weight is above uniform * sum; never one of weight 0."""
    length = ((n + BINS - 1) // BINS + 7) & ~7
    whole, blocks = 0.0, 0
    for start in range(0, n, length):
        bins[blocks] = total(weights, start, min(start + length, n))
        whole += bins[blocks]
        blocks += 1
    goal, sum_, block = uniform * whole, 0.0, 0
    while block < blocks - 1 and not sum_ + bins[block] > goal:
        sum_ += bins[block]
        block += 1
    found = -1
    for i in range(block * length, n):  # past the block only where rounding leaves nothing to find in it
        if weights[i] > 0:
            found = i
            sum_ += weights[i]
            if sum_ > goal:
                break
    while found < 0:  # all weights from the block on are 0: the last one before it
        block -= 1
        for i in range(block * length, (block + 1) * length):
            if weights[i] > 0:
                found = i
    return found


@bare_kernel
def boundary(keys, masses, n, goal, bins, spare_keys, spare_masses):
    """(key, mass above): in falling order of keys the sum of masses reaches `goal` among those that have this key."""
    above = 0.0
    while True:
        low = high = keys[0]
        for i in range(n):
            low = min(low, keys[i])
            high = max(high, keys[i])
        span = 0.5 * high - 0.5 * low  # halves, since the whole could be beyond all numbers
        if n <= FEW or span < NARROW:
            return _one_by_one(keys, masses, n, goal, low, high, above)
        scale = BINS / span
        last = min(int(span * scale), BINS - 1)
        for b in range(BINS):
            bins[b] = 0.0
        for i in range(n):
            bins[min(int((0.5 * high - 0.5 * keys[i]) * scale), BINS - 1)] += masses[i]
        at = 0
        while at < last and above + bins[at] < goal:
            above += bins[at]
            at += 1
        count = 0
        for i in range(n):
            spare_keys[count] = keys[i]
            spare_masses[count] = masses[i]
            count += min(int((0.5 * high - 0.5 * keys[i]) * scale), BINS - 1) == at
        n, keys, masses = count, spare_keys, spare_masses


@bare_kernel
def _one_by_one(keys, masses, n, goal, low, high, above):
    """`boundary` among few keys, all between low and high."""
    while True:
        mass, below = 0.0, low
        for i in range(n):
            if keys[i] == high:
                mass += masses[i]
            elif keys[i] < high:
                below = max(below, keys[i])
        if high == low or above + mass >= goal:
            return high, above
        above += mass
        high = below


@bare_kernel
def keep(keys, key, masses, above, goal, ids, logits, weights, n):
    """Candidates with a key above the boundary, and the first of those on it until `goal` is reached: how many."""
    count = 0
    for i in range(n):
        on = keys[i] == key and above < goal
        if on:
            above += masses[i]
        if on or keys[i] > key:
            ids[count], logits[count], weights[count] = ids[i], logits[i], weights[i]
            count += 1
    return count


@bare_kernel
def candidates(logits, floor, ids, found):
    """Those of at least this logit, by rising id: how many. What is out (-inf) is none."""
    n = 0
    floor = max(floor, LOWEST)
    for i in range(len(logits)):
        ids[n] = i
        n += logits[i] >= floor
    for i in range(n):
        found[i] = logits[ids[i]]
    return n


@bare_kernel
def floor_of_best(logits, k, ones, maxima, bins, spare_keys, spare_masses):
    """A logit that at least k are not below, near to the k-th best: the k-th best of the maxima of BINS classes."""
    size = len(logits)
    if k > BINS or size < 2 * BINS:
        return -np.inf
    for j in range(BINS):
        maxima[j] = logits[j]
    for start in range(BINS, size - BINS + 1, BINS):
        for j in range(BINS):
            maxima[j] = max(maxima[j], np.float64(logits[start + j]))
    n = 0
    for j in range(BINS):
        if maxima[j] > -np.inf:
            maxima[n] = maxima[j]
            n += 1
    if n < k:
        return -np.inf
    return boundary(maxima, ones, n, np.float64(k), bins, spare_keys, spare_masses)[0]


@bare_kernel
def surprises(logits, weights, top, n, keys):
    """keys = -|-log q - H|, q the candidates' probabilities and H their entropy."""
    whole = total(weights, 0, n)
    rest = top + np.log(whole)
    for i in range(n):
        keys[i] = (logits[i] - rest) * weights[i]
    entropy = -total(keys, 0, n) / whole
    for i in range(n):
        keys[i] = -abs(logits[i] - rest + entropy)


@bare_kernel
def choose(logits, top, whole, k, typical, p, least, space):
    """The candidates that top-k, typical, top-p and min-p leave, by rising id, in `space`: how many.

    logits: of any float type, `top` their largest. k = 0: all. typical, p: what is to be reached of a sum of 1; at
    least 1: all. least: the smallest logit that min-p leaves. whole: the sum of all weights, if top-p is the first that
    asks for a sum, else 0.
    """
    ids, found, weights, keys, ones, bins, spare_keys, spare_masses = space
    floor = -np.inf
    if k > 0:
        floor = floor_of_best(logits, k, ones, keys, bins, spare_keys, spare_masses)
    elif typical >= 1:  # ids that are out in any case: too small, or not missed by top-p even all together
        floor = least if p >= 1 else max(least, top + np.log((1 - p) * whole / len(logits)) - 1e-6)
    n = candidates(logits, floor, ids, found)
    if 0 < k < n:
        key, above = boundary(found, ones, n, np.float64(k), bins, spare_keys, spare_masses)
        n = keep(found, key, ones, above, np.float64(k), ids, found, weights, n)
    weigh(found, top, n, weights)
    if typical < 1:
        surprises(found, weights, top, n, keys)
        goal = max(typical * total(weights, 0, n), LEAST)
        key, above = boundary(keys, weights, n, goal, bins, spare_keys, spare_masses)
        n = keep(keys, key, weights, above, goal, ids, found, weights, n)
    if p < 1:
        goal = max(p * (whole if whole > 0 else total(weights, 0, n)), LEAST)
        key, above = boundary(found, weights, n, goal, bins, spare_keys, spare_masses)
        n = keep(found, key, weights, above, goal, ids, found, weights, n)
    count = 0
    for i in range(n):
        if found[i] >= least:
            ids[count], found[count], weights[count] = ids[i], found[i], weights[i]
            count += 1
    return count


@bare_kernel
def masked(logits, allowed, out):
    """out = logits where allowed, else -inf."""
    for i in range(len(logits)):
        out[i] = logits[i] if allowed[i] else -np.inf


@bare_kernel
def penalise(logits, ids, prompt, repetition, presence, frequency, counts):
    """The three penalties, in place. repetition: of the logits' own type; counts: zeros, and zeros again afterwards."""
    for id in ids:
        if counts[id] == 0:
            logits[id] = logits[id] / repetition if logits[id] > 0 else logits[id] * repetition
        counts[id] = 1
    for id in ids:
        counts[id] = 0
    for id in ids[prompt:]:
        counts[id] += 1
    for id in ids[prompt:]:
        if counts[id] > 0:
            logits[id] = np.float64(logits[id]) - (presence + frequency * counts[id])
        counts[id] = 0


@bare_kernel
def repeating_out(logits, ids, n):
    """Out with each id that would end a run of n ids which stands in `ids` already."""
    for start in range(len(ids) - n + 1):
        same = True
        for i in range(n - 1):
            same &= ids[start + i] == ids[len(ids) - n + 1 + i]
        if same:
            logits[ids[start + n - 1]] = -np.inf


@bare_kernel
def best(logits, k, space):
    """The ids of the k largest, 1 <= k <= V, by rising id, in `space`: how many. Logits are finite or -inf."""
    ids, found, weights, keys, ones, bins, spare_keys, spare_masses = space
    floor = floor_of_best(logits, k, ones, keys, bins, spare_keys, spare_masses)
    n = candidates(logits, floor, ids, found)
    if k < n:
        key, above = boundary(found, ones, n, np.float64(k), bins, spare_keys, spare_masses)
        n = keep(found, key, ones, above, np.float64(k), ids, found, weights, n)
    return n


@bare_kernel
def scatter(space, n, out):
    """out[id] = the candidate's share of all weights; 0 elsewhere."""
    ids, weights = space[0], space[2]
    out[:] = 0.0
    whole = total(weights, 0, n)
    for i in range(n):
        out[ids[i]] = weights[i] / whole
