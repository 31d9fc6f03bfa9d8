"""Encoders side by side: ours and those of other packages, each with the call shapes it has.

A package that is not installed takes no part, and the benchmark says so. Nothing is loaded before it is asked for.
"""

import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text import Text
from vocabularies import Ranks

PEERS = (
    "gigatoken", "gigabpe", "rustbpe", "tiktoken", "tokenizers", "bytepiece", "rs_bytepiece", "sentencepiece",
)  # fmt: skip
Shape = Callable[[Any, Text, Path], object]
"""(encoder, text, the text as a file) -> ids."""


@dataclass(frozen=True)
class Encoder:
    """One encoder: how a fresh one is made, and how it is called."""

    name: str
    make: Callable[[Ranks], Any]
    shapes: Mapping[str, Shape]
    """Shape -> call; documents, file, bytes, text, lists."""


def installed(name: str) -> bool:
    """Whether a package is there."""
    return importlib.util.find_spec(name) is not None


def missing() -> list[str]:
    """Peers that are not there."""
    return [name for name in PEERS if not installed(name)]


def ours(threads: int) -> Encoder:
    """temaki's compiled BPE."""

    def make(ranks: Ranks) -> Any:
        from temaki.tokens.bpe import Bpe

        tokens = [*ranks.tokens]
        for text, id in sorted(ranks.special.items(), key=lambda each: each[1]):
            tokens += [b"<unused %d>" % n for n in range(len(tokens), id)]
            tokens.append(text.encode("utf-8"))
        return Bpe.from_ranks(tokens, ranks.special, ranks.pattern)

    return Encoder(
        "temaki",
        make,
        {
            "documents": lambda encoder, text, path: encoder.encode_batch(text.documents, threads=threads),
            "file": lambda encoder, text, path: encoder.encode_file(path, threads=threads),
            "bytes": lambda encoder, text, path: encoder.encode_batch([text.data], threads=threads),
            "text": lambda encoder, text, path: encoder.encode(text.whole, threads=threads),
            "lists": lambda encoder, text, path: [encoder.encode_list(document) for document in text.documents],
        },
    )


def gigatoken(threads: int) -> Encoder:
    """gigatoken by its own API; the number of its threads is RAYON_NUM_THREADS."""
    import gigatoken

    parallel = threads > 1

    def make(ranks: Ranks) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ranks.tiktoken"
            ranks.write(path)
            return gigatoken.Tokenizer.from_tiktoken(path, ranks.pattern, dict(ranks.special))

    def file(encoder: Any, text: Text, path: Path) -> object:
        return encoder.encode_files(gigatoken.TextFileSource([str(path)]), parallel=parallel)

    return Encoder(
        "gigatoken",
        make,
        {
            "documents": lambda encoder, text, path: encoder.encode_batch(list(text.documents), parallel=parallel),
            "file": file,
            "bytes": lambda encoder, text, path: encoder.encode_batch(
                gigatoken.BytesSource([text.data]), parallel=parallel
            ),
            "text": lambda encoder, text, path: encoder.encode(text.whole),
            "lists": lambda encoder, text, path: encoder.encode_batch_list(list(text.documents), parallel=parallel),
        },
    )


def tiktoken(threads: int) -> Encoder:
    """tiktoken, which gives lists."""
    import tiktoken

    def make(ranks: Ranks) -> Any:
        return tiktoken.Encoding(
            ranks.name, pat_str=ranks.expression, mergeable_ranks={t: rank for rank, t in enumerate(ranks.tokens)},
            special_tokens=dict(ranks.special),
        )  # fmt: skip

    def documents(encoder: Any, text: Text, path: Path) -> object:
        return encoder.encode_ordinary_batch(list(text.documents), num_threads=threads)

    return Encoder("tiktoken", make, {"documents": documents, "lists": documents})


def tokenizers(threads: int) -> Encoder:
    """Hugging Face tokenizers; merges are found from the ranks."""
    import tokenizers

    def make(ranks: Ranks) -> Any:
        from temaki.tokens.printable import printable

        known = {token: rank for rank, token in enumerate(ranks.tokens)}
        merges = []
        for token in ranks.tokens[256:]:
            left, right = last_merge(token, known)
            merges.append((printable(left), printable(right)))
        vocabulary = {printable(token): rank for token, rank in known.items()}
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        return made

    def documents(encoder: Any, text: Text, path: Path) -> object:
        return encoder.encode_batch_fast(list(text.documents))

    return Encoder("tokenizers", make, {"documents": documents})


def last_merge(token: bytes, known: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts of a token that its bytes end up as when only earlier tokens may be made."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranked = [(known.get(a + b, len(known)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        _, at = min(ranked)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
