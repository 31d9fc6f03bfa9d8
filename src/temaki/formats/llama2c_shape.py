"""The header of llama2.c's model files: what it says, the arrays that follow, their shapes and order.

Source: llama2.c, export.py (legacy_export, version1_export) and run.c.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from temaki.base.errors import FormatError

MAGIC = b"24ka"  # "ak42" as a little-endian uint32
HEADER = {0: 28, 1: 256}
"""Bytes before the arrays."""
MOST = 1 << 26
"""The largest number that a header may hold."""
ORDER = {
    0: ("token_embedding", "rms_att", "wq", "wk", "wv", "wo", "rms_ffn", "w1", "w2", "w3", "rms_final",
        "freq_cis_real", "freq_cis_imag", "wcls"),
    1: ("rms_att", "rms_ffn", "rms_final", "token_embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls"),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What a header says."""

    version: int
    width: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    tied: bool

    @property
    def arrays(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array, in the file's order."""
        d, h, n = self.width, self.hidden, self.depth
        k = d // self.heads * self.kv_heads
        half = (self.context, d // self.heads // 2)
        shapes = {
            "token_embedding": (self.vocabulary, d), "wcls": (self.vocabulary, d), "rms_final": (d,),
            "rms_att": (n, d), "rms_ffn": (n, d), "wq": (n, d, d), "wk": (n, k, d), "wv": (n, k, d), "wo": (n, d, d),
            "w1": (n, h, d), "w2": (n, d, h), "w3": (n, h, d), "freq_cis_real": half, "freq_cis_imag": half,
        }  # fmt: skip
        return {name: shapes[name] for name in ORDER[self.version] if name != "wcls" or not self.tied}

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        return HEADER[self.version] + 4 * sum(map(math.prod, self.arrays.values()))


def read(head: bytes, path: Path) -> Shape:
    """What a header says. Raises FormatError for one that no model has."""
    version, at = 0, 0
    if head[:4] == MAGIC:
        version, at = int.from_bytes(head[4:8], "little"), 8
        if version != 1 or len(head) < HEADER[1]:
            raise FormatError(
                f"{path} is of a version that is not read", found=f"version {version}", allowed="0 and 1 (float32)"
            )
    elif len(head) < HEADER[0]:
        raise FormatError(f"{path} is no model of llama2.c", found=f"{len(head)} bytes")
    width, hidden, depth, heads, kv_heads, vocabulary, context = struct.unpack_from("<7i", head, at)
    tied = vocabulary > 0
    if version == 1:
        if head[36] > 1 or not tied:
            raise FormatError(f"{path} has a damaged header", found=f"tied {head[36]}, vocabulary {vocabulary}")
        tied = head[36] == 1
    shape = Shape(version, width, hidden, depth, heads, kv_heads, abs(vocabulary), context, tied)
    numbers = (width, hidden, depth, heads, kv_heads, abs(vocabulary), context)
    if not all(0 < number <= MOST for number in numbers) or width % heads or heads % kv_heads or width // heads % 2:
        raise FormatError(
            f"{path} is no model of llama2.c, or has a damaged header",
            found=", ".join(map(str, numbers)),
            allowed="width a multiple of 2 heads, heads a multiple of heads of keys and values",
        )
    return shape


def written(shape: Shape) -> bytes:
    """The header itself."""
    signed = shape.vocabulary if shape.tied or shape.version else -shape.vocabulary
    numbers = struct.pack(
        "<7i", shape.width, shape.hidden, shape.depth, shape.heads, shape.kv_heads, signed, shape.context
    )
    if shape.version == 0:
        return numbers
    return (MAGIC + struct.pack("<i", shape.version) + numbers + bytes([shape.tied])).ljust(HEADER[1], b"\0")
