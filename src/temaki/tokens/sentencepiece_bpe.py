"""SentencePiece BPE models (Llama 2, TinyLlama, Mistral): text is normalised, then its characters are joined.

The two neighbours that together are the piece of the highest score are joined first, leftmost on ties, until no two
are a piece; there is no list of merges. Unused pieces may arise on the way and are taken apart again. User-defined
ones are never joined. Source: Sennrich et al. 2016; Kudo and Richardson 2018 and its code (bpe_model).

Hugging Face keeps such a model as a list of merges instead. The two agree but where different pairs side by side join
to one piece ("a" and "aa" as well as "aa" and "a"), so a list, where there was one, is kept.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, Self, TypeVar

from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import utf8
from temaki.tokens.joiner import Joinable, Joiner
from temaki.tokens.runs import RunTokenizer
from temaki.tokens.sentencepiece import BPE, NORMAL, UNUSED, USER_DEFINED, Model
from temaki.tokens.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer
from temaki.tokens.tokenizer import Dropout, Noise, Ragged

Prefix = Literal["run", "text"]
"""run: each run between special tokens; text: a text that begins with neither a space nor a special token."""
PREFIXES: Mapping[object, Prefix] = {"run": "run", "text": "text"}
Text = TypeVar("Text", str, bytes, str | bytes)


class SentencePieceBpe(SentencePieceTokenizer[Joiner]):
    """A SentencePiece BPE model. Implements the Tokenizer contract; `encode` gives SentencePiece's ids.

    `encode_iterable` holds a chunk and the longest stretch in which pieces of the vocabulary overlap without a gap; in
    the presence of unused pieces, whose parts depend on the whole text, it holds all of it.
    """

    kind = "sentencepiece-bpe"
    type = BPE

    def __init__(
        self,
        model: Model,
        merges: Sequence[tuple[int, int]] | None = None,
        unknown_is_special: bool = False,
        prefix: Prefix = "run",
    ):
        """`merges`: the ids that may be joined, the first first; None: by the scores of the pieces. `prefix`: what the
        space that the model puts before a text is put before.

        Raises TokenizerError for a model of another type, without an unknown piece, with one twice or empty, for
        merges that make no piece.
        """
        self.merges = None if merges is None else tuple(merges)
        self.unknown_is_special = unknown_is_special
        self.prefix: Prefix = prefix
        _check(model, self.merges)
        super().__init__(model)
        if prefix == "text":  # it is put there by `encode`, not by the normaliser
            self.reading(replace(model, normalizer=replace(model.normalizer, add_dummy_prefix=False)))
        pieces = [
            Joinable(id, piece.text, piece.score, piece.type == UNUSED)
            for id, piece in enumerate(model.pieces)
            if piece.type in (NORMAL, UNUSED)
        ]
        fixed = [(id, piece.text) for id, piece in enumerate(model.pieces) if piece.type == USER_DEFINED]
        self.segmenter = Joiner(pieces, fixed, self.size, self.unknown, self.merges)

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> Self:
        """The tokenizer that `facts` describes. Raises TokenizerError."""
        found = {**facts}
        merges, named, prefix = (found.pop(name, None) for name in ("merges", "unknown_is_special", "prefix"))
        if not isinstance(named, bool) or not (merges is None or isinstance(merges, list)) or prefix not in PREFIXES:
            raise TokenizerError("this describes no BPE tokenizer", found=", ".join(map(str, facts)))
        pairs = None if merges is None else [_merge(merge) for merge in merges]
        return cls(cls.read_model(found), pairs, named, PREFIXES[prefix])

    def facts(self) -> dict[str, object]:
        """The pieces with scores and types in the order of their ids, the normaliser, the merges."""
        merges = None if self.merges is None else [list(merge) for merge in self.merges]
        more = {"merges": merges, "unknown_is_special": self.unknown_is_special, "prefix": self.prefix}
        return {**super().facts(), **more}

    def encode(
        self, text: str, special: Collection[str] = (), noise: Noise | None = None, threads: int | None = None
    ) -> ndarray:
        """The ids of a text, uint32 [N]; with noise, of a random segmentation. Raises TokenizerError."""
        return super().encode(self._begun(text, special), special, noise, threads)

    def encode_batch(
        self, texts: Sequence[str | bytes], special: Collection[str] = (), threads: int | None = None
    ) -> Ragged:
        """The ids of several texts; bytes are read as UTF-8. Raises TokenizerError naming the text."""
        if self.prefix == "text":
            texts = [self._begun(text, special) for text in texts]
        return super().encode_batch(texts, special, threads)

    def encode_iterable(self, chunks: Iterable[str | bytes], special: Collection[str] = ()) -> Iterator[ndarray]:
        """The ids of one text that comes in chunks; joined, they are those of the whole text. Raises TokenizerError."""
        return super().encode_iterable(chunks if self.prefix == "run" else self._opened(chunks, special), special)

    def after(self, special: bool) -> RunTokenizer:
        """What encodes text that goes on a text, as a text of its own."""
        return super().after(special and self.prefix == "run")

    @cached_property
    def _inner(self) -> RunTokenizer:
        model = replace(self.model, normalizer=replace(self.model.normalizer, add_dummy_prefix=False))
        return SentencePieceBpe(model, self.merges, self.unknown_is_special)

    def _begun(self, text: Text, special: Collection[str]) -> Text:
        """A text with the space before it, where that is put before a text alone."""
        if self.prefix == "run" or not text or not isinstance(text, str | bytes):
            return text
        if isinstance(text, str):
            return text if text.startswith((" ", SPACE, *special)) else " " + text
        first = tuple(each.encode() for each in (" ", SPACE, *special))
        return text if text.startswith(first) else b" " + text

    def _opened(self, chunks: Iterable[str | bytes], special: Collection[str]) -> Iterator[str]:
        """The same of a text in chunks, of which as many are held as may begin a special token."""
        wanted = max(map(len, special), default=1)
        held: str | None = ""
        for chunk in utf8.decoded(chunks):
            if held is None:
                yield chunk
                continue
            held += chunk
            if len(held) >= wanted:
                yield self._begun(held, special)
                held = None
        if held:
            yield self._begun(held, special)

    def drawn(self, text: ndarray, noise: Noise, key: int, threads: int | None) -> ndarray:
        """The ids of a text with joins left out at random. Raises TokenizerError for noise that is no `Dropout`, or
        out of range."""
        if not isinstance(noise, Dropout):
            raise TokenizerError("joins are left out at random", found=type(noise).__name__, do="give Dropout")
        if isinstance(noise.drop, bool) or not isinstance(noise.drop, int | float) or not 0 <= noise.drop <= 1:
            raise TokenizerError("drop out of range", found=repr(noise.drop), allowed="0 to 1")
        return self.segmenter.noisy(text, noise.drop, key)


def with_marks(tokenizer: SentencePieceBpe) -> SentencePieceBpe:
    """The same with U+2581 for spaces, as most formats want it; all texts without that character get the same ids.

    Raises TokenizerError where two pieces become one.
    """
    model = tokenizer.model
    if model.normalizer.escape_whitespaces:
        return tokenizer
    pieces = tuple(replace(piece, text=piece.text.replace(" ", SPACE)) for piece in model.pieces)
    rules = replace(model.normalizer, escape_whitespaces=True)
    changed = replace(model, pieces=pieces, normalizer=rules)
    return SentencePieceBpe(changed, tokenizer.merges, tokenizer.unknown_is_special, tokenizer.prefix)


def _merge(found: object) -> tuple[int, int]:
    match found:
        case [int(left), int(right)] if type(left) is int and type(right) is int:
            return left, right
    raise TokenizerError("a merge is not two ids", found=repr(found)[:80])


def _check(model: Model, merges: Sequence[tuple[int, int]] | None) -> None:
    """Refuse merges that do not join two normal pieces to a third, and one that comes twice. Raises TokenizerError."""
    normal = {id: piece.text for id, piece in enumerate(model.pieces) if piece.type == NORMAL}
    texts = set(normal.values())
    for left, right in merges or ():
        if left not in normal or right not in normal or normal[left] + normal[right] not in texts:
            raise TokenizerError("a merge does not join two pieces to a third", found=f"ids {left}, {right}")
    if merges is not None and len(set(merges)) < len(merges):
        raise TokenizerError("a merge comes twice")
    if merges is not None and any(piece.type == UNUSED for piece in model.pieces):
        raise TokenizerError("a model with merges has no unused pieces")
