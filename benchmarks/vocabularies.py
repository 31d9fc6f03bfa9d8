"""Vocabularies that ours and the peers encode with: GPT-2's from TEMAKI_DATA, cl100k's from npm's tiktoken."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from text import data

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Ranks:
    """Tokens by rank; a token's rank is its id."""

    name: str
    pattern: str
    """The name of the split pattern, in ours and in gigatoken."""
    expression: str
    tokens: tuple[bytes, ...]
    special: Mapping[str, int]

    def write(self, path: Path) -> None:
        """As a file that tiktoken and gigatoken read: base64 and rank, a line each."""
        lines = (f"{base64.b64encode(token).decode('ascii')} {rank}\n" for rank, token in enumerate(self.tokens))
        path.write_text("".join(lines), encoding="ascii")


def gpt2() -> Ranks:
    """From vocab.bpe: the bytes in GPT-2's order, then a token for each merge."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [value for value in range(256) if value not in kept]
    meaning = {chr(value): value for value in kept} | {chr(256 + n): value for n, value in enumerate(moved)}
    tokens = [bytes([value]) for value in (*kept, *moved)]
    for line in data("gpt2_bpe/vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]:
        tokens.append(bytes(meaning[character] for character in line.replace(" ", "")))
    return Ranks("gpt2", "gpt2", GPT2, tuple(tokens), {"<|endoftext|>": len(tokens)})


def cl100k(path: Path) -> Ranks:
    """From encoders/cl100k_base.json of npm's tiktoken: lines of a mark, the first rank, and tokens in base64."""
    found = json.loads(path.read_text(encoding="utf-8"))
    ranked: dict[int, bytes] = {}
    for line in found["bpe_ranks"].splitlines():
        _, first, *tokens = line.split()
        ranked |= {int(first) + n: base64.b64decode(token) for n, token in enumerate(tokens)}
    assert sorted(ranked) == list(range(len(ranked))), "ranks without gaps"
    return Ranks(
        "cl100k", "cl100k", CL100K, tuple(ranked[rank] for rank in range(len(ranked))), found["special_tokens"]
    )
