"""A table of sorted keys and values, as LevelDB and TensorFlow's checkpoint index keep it, read whole and written.

    block .. block | metaindex block | index block | footer (48 bytes)
    block:  entries, uint32 restarts [r], uint32 r | type (0: as it is, 1: snappy) | uint32 masked CRC-32C of both
    entry:  varints: letters shared with the key before, letters of its own, bytes of the value | letters | value
    footer: offset and size of metaindex and index as varints, zeros up to 40 bytes, the magic number

The index block's values are offset and size of a block, its keys are no smaller than the block's last. Source: LevelDB,
"Table format".
"""

import struct
from collections.abc import Iterator, Mapping

import numpy as np

from temaki.base.errors import FormatError
from temaki.formats.openai_tf_crc import crc32c, masked

FOOTER = 48
MAGIC = 0xDB4775248B80FB57
RESTART = 16
"""Entries after which a written key is whole again."""
ROOM = 1 << 18
"""Bytes of a written block after which the next begins."""
LONGEST = 10
"""Bytes of a varint of 64 bits."""
KEY_LIMIT = 1 << 12
"""Bytes of the longest key that is read: a key that shares letters takes many more than it stands for."""
COMPRESSED = {1: "snappy", 2: "zstd"}


def read(table: bytes, where: str) -> dict[bytes, bytes]:
    """Values by key. Raises FormatError, naming `where`, for a table that is damaged, truncated or compressed."""
    if len(table) < FOOTER or struct.unpack_from("<Q", table, len(table) - 8)[0] != MAGIC:
        raise FormatError(
            f"{where} is no checkpoint index, or is cut short", found=f"{len(table)} bytes, the last 8 {table[-8:]!r}"
        )
    try:
        footer = table[-FOOTER:-8]
        *meta, at = handle(footer, 0)
        block(table, *meta)  # nothing is kept there
        offset, size, at = handle(footer, at)
        if any(footer[at:]):
            raise FormatError("its footer is not filled up with zeros")
        found: dict[bytes, bytes] = {}
        last, free = None, 0
        for _, place in entries(block(table, offset, size)):
            begin, length, _ = handle(place, 0)
            if begin < free:
                raise FormatError(f"the block at {begin} lies over the one before it, which ends at {free}")
            free = begin + length
            for key, value in entries(block(table, begin, length)):
                if last is not None and key <= last:
                    raise FormatError(f"keys are out of order: {key!r} after {last!r}")
                found[key], last = value, key
    except FormatError as error:
        raise FormatError(f"{where} is damaged: {error.what}", do="copy or download it again") from None
    return found


def block(table: bytes, offset: int, size: int) -> bytes:
    """The entries and restarts of a block, its checksum compared. Raises FormatError."""
    end = offset + size
    if end + 5 > len(table) - FOOTER:
        raise FormatError(f"a block of {size} bytes at {offset} reaches beyond the {len(table)} bytes there are")
    stored = struct.unpack_from("<I", table, end + 1)[0]
    if masked(crc32c(np.frombuffer(table, np.uint8, size + 1, offset))) != stored:
        raise FormatError(f"the block at {offset} does not have its checksum")
    if table[end] in COMPRESSED:
        raise FormatError(f"the block at {offset} is compressed by {COMPRESSED[table[end]]}, which is not read here")
    if table[end]:
        raise FormatError(f"the block at {offset} is of an unknown type, {table[end]}")
    return table[offset:end]


def entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block. Raises FormatError."""
    restarts = struct.unpack_from("<I", block, len(block) - 4)[0] if len(block) >= 4 else -1
    end = len(block) - 4 - 4 * restarts
    if restarts < 0 or end < 0:
        raise FormatError(f"a block of {len(block)} bytes has no room for its restarts")
    key, at = b"", 0
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        size, at = varint(block, at)
        if shared > len(key) or at + own + size > end:
            raise FormatError(f"an entry reaches beyond its block: {shared}, {own} and {size} bytes at {at} of {end}")
        if shared + own > KEY_LIMIT:
            raise FormatError(f"a key of {shared + own} bytes, of {KEY_LIMIT} at most")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + size]
        at += own + size


def handle(content: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and where the next thing stands."""
    offset, at = varint(content, at)
    size, at = varint(content, at)
    return offset, size, at


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the place behind it. Raises FormatError.

    >>> varint(bytes([0xAC, 2]), 0)
    (300, 2)
    """
    value = 0
    for k, byte in enumerate(content[at : at + LONGEST]):
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, at + k + 1
    raise FormatError(f"a number at byte {at} has no end")


def number(value: int) -> bytes:
    """The inverse of `varint`.

    >>> number(300).hex()
    'ac02'
    """
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def write(content: Mapping[bytes, bytes]) -> bytes:
    """The table of values by key; the keys are sorted here."""
    table, index = bytearray(), {}
    gathered: dict[bytes, bytes] = {}
    for key in sorted(content):
        gathered[key] = content[key]
        if sum(map(len, gathered.values())) > ROOM:
            index[key] = _placed(table, gathered)
            gathered = {}
    if gathered or not index:
        index[_behind(max(gathered, default=b""))] = _placed(table, gathered)
    footer = _placed(table, {}) + _placed(table, index, restart=1)
    return bytes(table) + footer.ljust(FOOTER - 8, b"\0") + struct.pack("<Q", MAGIC)


def _placed(table: bytearray, content: Mapping[bytes, bytes], restart: int = RESTART) -> bytes:
    """Append a block to a table; its handle."""
    out, restarts, last = bytearray(), [0], b""
    for place, (key, value) in enumerate(content.items()):
        if place % restart == 0:
            last = b""
            restarts[place // restart :] = [len(out)]
        shared = _shared(last, key)
        out += number(shared) + number(len(key) - shared) + number(len(value)) + key[shared:] + value
        last = key
    out += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    found = number(len(table)) + number(len(out))
    out.append(0)
    table += out + struct.pack("<I", masked(crc32c(np.frombuffer(bytes(out), np.uint8))))
    return found


def _behind(key: bytes) -> bytes:
    """A short key that is larger, as LevelDB ends an index: the first letter that can be raised is the last."""
    for place, letter in enumerate(key):
        if letter < 0xFF:
            return key[:place] + bytes([letter + 1])
    return key


def _shared(left: bytes, right: bytes) -> int:
    """How many letters two keys begin alike with."""
    alike = 0
    while alike < min(len(left), len(right)) and left[alike] == right[alike]:
        alike += 1
    return alike
