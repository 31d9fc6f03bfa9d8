"""Where a long run of three-byte characters (Chinese, Japanese, Korean) may be cut, because no token lies across.

Whatever merges do, a token that covers the joint of two characters holds the end of the one and the begin of the other.
If no token of the vocabulary has both, the two sides are merged each for itself, and each is short and often seen. What
tokens have across joints is kept as bits under a hash of up to three bytes on each side; a hash that is met by chance
costs a cut, never an id.
"""
# pyright: basic, reportCallIssue=false

import numpy as np

from temaki.base.compile import bare_kernel, load64

THREE = np.uint64(0xFFFFFF)
BYTE = np.uint64(0xFF)
ONE, ZERO, LAST_SIX = np.uint64(1), np.uint64(0), np.uint64(63)
HEADER = np.uint64(64)
FULL, HEAD, TAIL, EDGE = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xD6E8FEB86659FD93),
    np.uint64(0xA0761D6478BD642F),
    np.uint64(0xE7037ED1A0B428DB),
)
"""Multipliers for: both characters whole; the second cut off; the first cut off; both."""


@bare_kernel
def add_joints(joints, text, offsets):
    """Note what the tokens text[offsets[i]:offsets[i+1]] have across joints. `joints`: uint64 [64 + power of 2], zeros.

    The first 64 words say, by the last byte before a joint and the first behind it, whether a token ends or begins
    inside one of the two characters: mostly none does, and one look is enough.
    """
    for i in range(len(offsets) - 1):
        begin, stop = offsets[i], offsets[i + 1]
        for at in range(begin + 1, stop):
            if text[at] & 0xF0 != 0xE0 or text[at - 1] & 0xC0 != 0x80:
                continue
            right = load64(text, at) & THREE
            left = load64(text, at - 3) & THREE if at - begin >= 3 else np.uint64(text[at - 1]) << np.uint64(16)
            if at - begin >= 3 and stop - at >= 3:
                _set(joints, left, right, FULL)
            elif at - begin >= 3:
                _set(joints, left, right & BYTE, HEAD)
            elif stop - at >= 3:
                _set(joints, left & ~np.uint64(0xFFFF), right, TAIL)
            else:
                _set(joints, left & ~np.uint64(0xFFFF), right & BYTE, EDGE)
            if at - begin < 3 or stop - at < 3:
                joints[(left >> np.uint64(16)) & LAST_SIX] |= ONE << (right & BYTE & LAST_SIX)


@bare_kernel
def can_cut(joints, text, at):
    """Whether no token lies across `at`, which has a three-byte character on each side."""
    left, right = load64(text, at - 3) & THREE, load64(text, at) & THREE
    if _bit(joints, left, right, FULL) & ONE != ZERO:
        return False
    last, first = left & ~np.uint64(0xFFFF), right & BYTE
    coarse = joints[(last >> np.uint64(16)) & LAST_SIX] >> (first & LAST_SIX)
    if coarse & ONE == ZERO:
        return True
    bits = _bit(joints, left, first, HEAD) | _bit(joints, last, right, TAIL) | _bit(joints, last, first, EDGE)
    return bits & ONE == ZERO


@bare_kernel
def _bit(joints, left, right, mix):
    mark = (left | right << np.uint64(24)) * mix >> np.uint64(32)
    return joints[HEADER + ((mark >> np.uint64(6)) & np.uint64(joints.size - 65))] >> (mark & np.uint64(63))


@bare_kernel
def _set(joints, left, right, mix):
    mark = (left | right << np.uint64(24)) * mix >> np.uint64(32)
    joints[HEADER + ((mark >> np.uint64(6)) & np.uint64(joints.size - 65))] |= ONE << (mark & np.uint64(63))
