"""How a SentencePiece model normalises text: rules of replacement, spaces, what the user defined is left as it is.

The rules' file form: a little-endian uint32, how many bytes of units follow; the units; the replacements, each ended by
a zero byte. Source: SentencePiece, normalizer.cc.
"""

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens.kernels import charsmap as kernels
from temaki.tokens.segmenter import Automaton, readonly
from temaki.tokens.sentencepiece import USER_DEFINED, Model

LONGEST = 1024
"""Bytes of the longest replacement that is accepted."""

PORTION = 1 << 16
"""Bytes that are normalised at a time."""


class Charsmap:
    """The normaliser of one model."""

    def __init__(self, model: Model):
        """Raises TokenizerError for rules that are damaged."""
        self._normalizer = model.normalizer
        self.space = "\u2581".encode() if model.normalizer.escape_whitespaces else b" "
        self.suffix = self.space if model.treat_whitespace_as_suffix and model.normalizer.add_dummy_prefix else b""
        self.squeeze = model.normalizer.remove_extra_whitespaces
        self.prefix = model.normalizer.add_dummy_prefix and not model.treat_whitespace_as_suffix
        rules, texts = _split(model.normalizer.charsmap)
        literals = sorted(piece.text.encode() for piece in model.pieces if piece.type == USER_DEFINED)
        units, first = _literals(literals)
        self._tables = (model.normalizer.escape_whitespaces, rules, texts, units, first, _plain(rules, first))

    def normalized(self, text: bytes) -> bytes:
        """A whole text."""
        flow = self.flow()
        return flow.push(text) + flow.close()

    def flow(self) -> "Flow":
        """What normalises a text as it comes."""
        return Flow(self)

    def some(self, text: ndarray, whole: bool, state: int) -> tuple[bytes, int, int]:
        """What can be normalised of a text: the result, the place reached, the state there."""
        made: list[bytes] = []
        room = 3 * PORTION
        at = 0
        while True:
            out = np.empty(room, np.uint8)
            written, reached, state = kernels.normalize(
                text, at, text.size, whole, state, self.prefix, self.squeeze, *self._tables, out
            )
            made.append(out[:written].tobytes())
            if reached == text.size or (reached == at and not whole):
                return b"".join(made), reached, state
            if reached == at:
                room *= 2
            at = reached


class Flow:
    """A text that is normalised as it comes."""

    def __init__(self, charsmap: Charsmap):
        self._charsmap = charsmap
        self._rest = b""  # what the next bytes may still change
        self._spaces = b""  # spaces that vanish if nothing follows
        self._state = 0

    def push(self, text: bytes) -> bytes:
        """What more text makes certain."""
        return self._made(text, False)

    def close(self) -> bytes:
        """What is left; the spaces at the end are dropped where the model says so."""
        made = self._made(b"", True)
        return made + (self._charsmap.suffix if self._state & kernels.STARTED else b"")

    def _made(self, text: bytes, whole: bool) -> bytes:
        read = readonly(np.frombuffer(self._rest + text, np.uint8))
        made, reached, self._state = self._charsmap.some(read, whole, self._state)
        self._rest = read[reached:].tobytes()
        if not self._charsmap.squeeze:
            return made
        end = len(made)
        while made.endswith(self._charsmap.space, 0, end):
            end -= len(self._charsmap.space)
        if end == 0:
            self._spaces += made
            return b""
        stays, self._spaces = self._spaces + made[:end], made[end:]
        return stays


def _split(charsmap: bytes) -> tuple[ndarray, ndarray]:
    """The units, uint32, and the replacements, uint8."""
    if not charsmap:
        return np.empty(0, np.uint32), readonly(np.empty(0, np.uint8))
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) <= 4 or size % 4 or size > len(charsmap) - 4:
        raise TokenizerError("the normaliser's rules are cut off or damaged", found=f"{len(charsmap)} bytes")
    texts = charsmap[4 + size :]
    if max(map(len, texts.split(b"\0"))) > LONGEST:
        raise TokenizerError("a replacement of the normaliser is too long", allowed=f"{LONGEST} bytes")
    return np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.uint32), np.frombuffer(texts, np.uint8)


def _literals(texts: list[bytes]) -> tuple[ndarray, ndarray]:
    """What is never changed, as an automaton."""
    if not texts:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    sizes = np.array([len(text) for text in texts], np.int64)
    pool = np.frombuffer(b"".join(texts), np.uint8)
    automaton = Automaton(pool, np.cumsum(sizes) - sizes, sizes, np.arange(len(texts)))
    return automaton.units, automaton.first


def _plain(rules: ndarray, first: ndarray) -> ndarray:
    """Which ASCII characters, spaces left out, no rule and no literal changes before another one: bool [256]."""
    byte = np.arange(256)
    plain = (byte < 128) & (byte != 32)
    if first.size:
        plain &= first == 0
    if rules.size:
        known, node = _children(rules, _offset(rules[:1]), byte)
        begins = known & (byte < 128)
        for one in np.flatnonzero(begins):
            unit = rules[node[one]]
            more, _ = _children(rules, node[one] ^ _offset(unit), byte)
            plain[one] &= not unit >> np.uint32(8) & 1 and not more[:128].any()
    return plain


def _children(rules: ndarray, offset: ndarray, byte: ndarray) -> tuple[ndarray, ndarray]:
    """Whether the units at this offset go on by each byte, and where."""
    node = offset ^ byte
    inside = node < rules.size
    return inside & (rules[np.where(inside, node, 0)] & np.uint32(0x800000FF) == byte), node


def _offset(unit: ndarray) -> ndarray:
    return (unit >> np.uint32(10)).astype(np.int64) << ((unit & np.uint32(0x200)) >> np.uint32(6)).astype(np.int64)
