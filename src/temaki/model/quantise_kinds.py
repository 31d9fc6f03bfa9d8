"""How blocks are laid out: ggml's kinds, one function to unpack each and one to pack those that are written.

Letters: N blocks, d the scale and m the least number of a block (float16), q its small integers. A nibble's low half
belongs to the first half of a block. Layout: ggml's `ggml-common.h`; the K kinds have 8 or 16 scales a block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

HALF_MOST = 65504.0
"""The largest float16."""


@dataclass(frozen=True)
class Kind:
    """One kind of block."""

    numbers: int
    """Numbers a block."""
    bytes: int
    """Bytes a block."""
    unpack: Callable[[ndarray, ndarray], None]
    """uint8 [N, bytes] -> written to float32 [N, numbers]."""
    pack: Callable[[ndarray, ndarray], None] | None = None
    """float32 [N, numbers] -> written to uint8 [N, bytes]; None: only read."""
    most: float = HALF_MOST
    """The largest number that can be packed, without its sign."""


def _halves(raw: ndarray, at: int) -> ndarray:
    """The float16 at byte `at` of each block as float32 [N, 1]."""
    return raw[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: ndarray, q: ndarray) -> None:
    """uint8 [N, n] -> q uint8 [N, 2n]: all low halves, then all high ones."""
    half = packed.shape[1]
    np.bitwise_and(packed, 15, out=q[:, :half])
    np.right_shift(packed, 4, out=q[:, half:])


def _fifth_bits(raw: ndarray, at: int, q: ndarray) -> None:
    """Add the fifth bits of 32 numbers, kept at byte `at` least bit first, to q uint8 [N, 32]."""
    bits = np.unpackbits(raw[:, at : at + 4], axis=1, bitorder="little")
    bits <<= 4
    q |= bits


def unpack_bf16(raw: ndarray, out: ndarray) -> None:
    """The upper half of a float32's bits."""
    np.left_shift(raw.view("<u2"), np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)


def unpack_q8_0(raw: ndarray, out: ndarray) -> None:
    """d * q, q of 8 bits with a sign."""
    np.copyto(out, raw[:, 2:].view(np.int8))
    out *= _halves(raw, 0)


def unpack_q4_0(raw: ndarray, out: ndarray) -> None:
    """d * (q - 8)."""
    q = np.empty(out.shape, np.uint8)
    _nibbles(raw[:, 2:], q)
    np.copyto(out, q)
    out -= 8
    out *= _halves(raw, 0)


def unpack_q4_1(raw: ndarray, out: ndarray) -> None:
    """d * q + m."""
    q = np.empty(out.shape, np.uint8)
    _nibbles(raw[:, 4:], q)
    np.copyto(out, q)
    out *= _halves(raw, 0)
    out += _halves(raw, 2)


def unpack_q5_0(raw: ndarray, out: ndarray) -> None:
    """d * (q - 16)."""
    q = np.empty(out.shape, np.uint8)
    _nibbles(raw[:, 6:], q)
    _fifth_bits(raw, 2, q)
    np.copyto(out, q)
    out -= 16
    out *= _halves(raw, 0)


def unpack_q5_1(raw: ndarray, out: ndarray) -> None:
    """d * q + m."""
    q = np.empty(out.shape, np.uint8)
    _nibbles(raw[:, 8:], q)
    _fifth_bits(raw, 4, q)
    np.copyto(out, q)
    out *= _halves(raw, 0)
    out += _halves(raw, 2)


def unpack_q4_k(raw: ndarray, out: ndarray) -> None:
    """(d * s) * q - (m * t): 8 runs of 32 numbers, each with scales s and t of 6 bits.

    Bytes 4 to 15 hold them: 4 with the low 6 bits of s, 4 with those of t; the rest of the later four in what is left.
    """
    first, second, rest = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    s = np.concatenate([first & 63, (rest & 15) | ((first >> 2) & 48)], axis=1)  # [N, 8]
    t = np.concatenate([second & 63, (rest >> 4) | ((second >> 2) & 48)], axis=1)
    q = np.empty((len(raw) * 4, 64), np.uint8)
    _nibbles(raw[:, 16:].reshape(-1, 32), q)
    runs = out.reshape(len(raw), 8, 32)
    np.copyto(runs, q.reshape(runs.shape))
    runs *= (_halves(raw, 0) * s)[:, :, None]
    runs -= (_halves(raw, 2) * t)[:, :, None]


def unpack_q6_k(raw: ndarray, out: ndarray) -> None:
    """(d * s) * (q - 32): 16 runs of 16 numbers, each with a scale s of 8 bits with a sign.

    A half block has 64 bytes of low nibbles and 32 bytes of upper pairs of bits, the least pair for the first quarter.
    """
    count = len(raw)
    q = np.empty((count * 2, 128), np.uint8)
    _nibbles(raw[:, :128].reshape(-1, 64), q)
    upper = raw[:, 128:192].reshape(-1, 32)
    for quarter in range(4):
        q[:, 32 * quarter : 32 * quarter + 32] |= ((upper >> (2 * quarter)) & 3) << 4
    runs = out.reshape(count, 16, 16)
    np.copyto(runs, q.reshape(runs.shape))
    runs -= 32
    runs *= (_halves(raw, 208) * raw[:, 192:208].view(np.int8))[:, :, None]


def pack_q8_0(x: ndarray, raw: ndarray) -> None:
    """d = max |x| / 127; q = x / d, halves away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    q = x * _inverse(d)
    size = np.abs(q)
    whole = np.floor(size)
    whole += np.floor(2 * (size - whole))
    raw[:, :2] = d.astype("<f2").view(np.uint8)
    raw[:, 2:] = np.copysign(whole, q).astype(np.int8).view(np.uint8)


def pack_q4_0(x: ndarray, raw: ndarray) -> None:
    """d = (the number farthest from zero) / -8; q = x / d + 8.5, cut to 0..15."""
    farthest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = farthest / np.float32(-8)
    q = np.trunc(x * _inverse(d) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    raw[:, :2] = d.astype("<f2").view(np.uint8)
    raw[:, 2:] = q[:, :16] | q[:, 16:] << 4


def pack_q4_1(x: ndarray, raw: ndarray) -> None:
    """m = min x, d = (max x - m) / 15; q = (x - m) / d + 0.5, cut to 0..15."""
    m = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - m) / np.float32(15)
    q = np.trunc((x - m) * _inverse(d) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    raw[:, :2] = d.astype("<f2").view(np.uint8)
    raw[:, 2:4] = m.astype("<f2").view(np.uint8)
    raw[:, 4:] = q[:, :16] | q[:, 16:] << 4


def _inverse(d: ndarray) -> ndarray:
    """1 / d, and 0 where d is; where 1 / d is beyond float32, as for d = 0."""
    with np.errstate(divide="ignore", over="ignore"):
        found = np.float32(1) / d
    return np.where(np.isfinite(found), found, np.float32(0))


KINDS = {
    "BF16": Kind(1, 2, unpack_bf16),
    "Q4_0": Kind(32, 18, unpack_q4_0, pack_q4_0, 8 * HALF_MOST),
    "Q4_1": Kind(32, 20, unpack_q4_1, pack_q4_1, HALF_MOST),
    "Q5_0": Kind(32, 22, unpack_q5_0),
    "Q5_1": Kind(32, 24, unpack_q5_1),
    "Q8_0": Kind(32, 34, unpack_q8_0, pack_q8_0, 127 * HALF_MOST),
    "Q4_K": Kind(256, 144, unpack_q4_k),
    "Q6_K": Kind(256, 210, unpack_q6_k),
}
"""By ggml's names."""
