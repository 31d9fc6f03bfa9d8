"""Between the ways in which files write a BPE vocabulary: token -> id, merges in order, ranks.

Two rules are in use (see `bpe_vocabulary`); a list of merges can say both, a list of ranks only its own.
"""

from collections.abc import Mapping

from temaki.base.errors import TokenizerError
from temaki.tokens import bpe_vocabulary, plain_bpe
from temaki.tokens.bpe_vocabulary import LARGEST, Vocabulary
from temaki.tokens.tokenizer import Tokenizer


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """What a BPE tokenizer knows. Raises TokenizerError for one of another kind."""
    if tokenizer.kind != "bpe":
        raise TokenizerError("this format holds byte-level BPE", found=f"a tokenizer of kind {tokenizer.kind}")
    return bpe_vocabulary.of(tokenizer.facts())


def as_merges(tokenizer: Tokenizer) -> list[tuple[bytes, bytes]]:
    """The merges of a BPE tokenizer; those of the rule of ranks, in the order of their ranks. Raises TokenizerError."""
    found = vocabulary(tokenizer)
    if found.merges is not None:
        return list(found.merges)
    pairs = sorted((rank, left, right) for left, right, rank, _ in found.pairs())
    return [(found.tokens[left], found.tokens[right]) for _, left, right in pairs]


def as_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Bytes -> rank of the plain tokens of a BPE tokenizer, its ids.

    Raises TokenizerError for one of another kind, and where merges do not come in the order of the ids that they make,
    or leave a token unmade or unreached: there the rule of ranks would join otherwise.
    """
    found = vocabulary(tokenizer)
    if found.partial is not None:
        raise TokenizerError("some bytes have no token, so ranks cannot say this vocabulary")
    if found.merges is not None:
        made = [found.ids[left + right] for left, right in found.merges]
        if made != sorted(set(made)) or len(made) != len(found.ids) - 256:
            raise TokenizerError("the merges are not in the order of their ids, so ranks cannot say them")
        if made and min(made) < max(found.ids[bytes([value])] for value in range(256)):
            raise TokenizerError("a merge has a smaller id than a byte, so ranks cannot say it")
        check_reached(found)
    return dict(found.ids)


def check_reached(found: Vocabulary) -> None:
    """Refuse a vocabulary with a token that its own bytes are not merged to. Raises TokenizerError.

    Where all are, it is the same whether merges are listed or any two tokens that join to a token are merged, and
    whether a pre-token that is a token is looked up first: two tokens that join to a third never stand side by side.
    """
    pairs = {(left, right): (rank, joined) for left, right, rank, joined in found.pairs()}
    letters = [found.ids.get(bytes([value]), len(found.tokens)) for value in range(256)]
    for token, id in found.ids.items():
        if plain_bpe.merge_word([letters[value] for value in token], pairs) != [id]:
            raise TokenizerError(
                "a token is not what its bytes are merged to, so this format would be read otherwise",
                found=f"{token!r:.60}, id {id}",
            )


def texts_by_id(vocabulary: Mapping[str, object]) -> list[str | None]:
    """The text of each id, None where there is none. Raises TokenizerError for ids that are wrong or come twice."""
    if len(vocabulary) > LARGEST:
        raise TokenizerError("too large a vocabulary", found=f"{len(vocabulary)} ids", allowed=f"up to {LARGEST}")
    size = 0
    for text, id in vocabulary.items():
        if type(id) is not int or not 0 <= id < LARGEST:
            raise TokenizerError("an id is no number, or out of range", found=f"{ascii(text)[:40]}: {id!r:.40}")
        size = max(size, id + 1)
    if size > 2 * len(vocabulary) + 1024:
        raise TokenizerError("most ids have no token", found=f"{len(vocabulary)} tokens, the last id {size - 1}")
    found: list[str | None] = [None] * size
    for text, id in vocabulary.items():
        assert isinstance(id, int)  # as seen above
        if found[id] is not None or not text:
            raise TokenizerError(f"id {id} has two tokens, or an empty one", found=ascii([found[id], text])[:80])
        found[id] = text
    return found
