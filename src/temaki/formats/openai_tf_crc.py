"""CRC-32C (Castagnoli), eight bytes at a time, and the mask TensorFlow and LevelDB store it under.

Sources: RFC 3720, appendix B.4 (polynomial and check values); Kounavis and Berry 2008, "Novel table lookup-based
algorithms for high-performance CRC generation" (slicing by 8); LevelDB's log format (the mask).
"""
# pyright: basic, reportCallIssue=false

import numpy as np
from numpy import ndarray

from temaki.base import compile

POLYNOMIAL = 0x82F63B78
"""Of CRC-32C, bits reversed."""
MASK = 0xA282EAD8
ALL = 0xFFFFFFFF


def _tables() -> ndarray:
    """uint32 [8, 256]: what a byte adds to the checksum when k bytes follow it in its group."""
    tables = np.empty((8, 256), np.uint32)
    rest = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        rest = (rest >> np.uint32(1)) ^ (np.uint32(POLYNOMIAL) * (rest & np.uint32(1)))
    tables[0] = rest
    for k in range(1, 8):
        tables[k] = tables[0][tables[k - 1] & 0xFF] ^ (tables[k - 1] >> np.uint32(8))
    return tables


TABLES = _tables()


def crc32c(content: ndarray) -> int:
    """The checksum of bytes, uint8 [n].

    >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8)))
    '0xe3069283'
    """
    content = content.view(np.ndarray)
    content.flags.writeable = False  # of this view: one type for the kernel
    return int(_crc32c(content, TABLES))


def masked(checksum: int) -> int:
    """A checksum as it is stored: turned right by 15 bits, plus a constant.

    >>> hex(masked(0xE3069283))
    '0xc78ab0e5'
    """
    return (((checksum >> 15) | (checksum << 17)) + MASK) & ALL


@compile.bare_kernel
def _crc32c(content, tables):
    """content uint8 [n], tables uint32 [8, 256] -> uint32."""
    rest = np.uint64(0xFFFFFFFF)
    low = np.uint64(0xFF)
    whole = content.size // 8 * 8
    for at in range(0, whole, 8):
        word = compile.load64(content, at) ^ rest
        rest = np.uint64(0)
        for k in range(8):
            rest ^= np.uint64(tables[7 - k, (word >> np.uint64(8 * k)) & low])
    for at in range(whole, content.size):
        rest = np.uint64(tables[0, (rest ^ np.uint64(content[at])) & low]) ^ (rest >> np.uint64(8))
    return rest ^ np.uint64(0xFFFFFFFF)
