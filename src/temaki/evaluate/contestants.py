"""The tokenizers that can be compared: ours of every kind, and those of other packages where they are installed.

Each is trained from the same texts to the same size and then answers the same three questions. Packages of others are
loaded only by the functions that train them.
"""

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from temaki.tokens.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""(done, of); a trainer that says nothing never calls it."""


class Trained(Protocol):
    """A tokenizer as the comparison sees it."""

    size: int
    """Ids it has, which may be fewer than asked for."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, encoded in one call where the package has one."""
        ...

    def back(self, text: str) -> str:
        """What comes back when the text is encoded and decoded."""
        ...

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, as a person reads them."""
        ...


@dataclass(frozen=True)
class Contestant:
    """One way to learn a vocabulary."""

    name: str
    package: str | None
    """The package it needs; None: it is ours."""
    train: Callable[[Sequence[str], int, Progress], Trained]
    """(texts, size, progress) -> the trained tokenizer."""

    @property
    def installed(self) -> bool:
        """Whether it can take part here."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


class Ours:
    """A tokenizer of our own contract."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.size = tokenizer.size

    def lengths(self, texts: Sequence[str]) -> list[int]:
        offsets = self._tokenizer.encode_batch(texts).offsets
        return (offsets[1:] - offsets[:-1]).tolist()

    def back(self, text: str) -> str:
        return self._tokenizer.decode(self._tokenizer.encode(text))

    def pieces(self, text: str) -> list[str]:
        return [_read(self._tokenizer.tokens[id]) for id in self._tokenizer.encode_list(text)]


class Hf:
    """A tokenizer of the `tokenizers` package."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]

    def back(self, text: str) -> str:
        return self._tokenizer.decode(self._tokenizer.encode(text).ids, skip_special_tokens=False)

    def pieces(self, text: str) -> list[str]:
        return [text[begin:end] for begin, end in self._tokenizer.encode(text).offsets]


class Spm:
    """A model of the `sentencepiece` package, with its normalisation and its space in front off: nothing is lost."""

    def __init__(self, processor: Any):
        self._processor = processor
        self.size = processor.get_piece_size()

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._processor.encode(list(texts))]

    def back(self, text: str) -> str:
        return self._processor.decode(self._processor.encode(text))

    def pieces(self, text: str) -> list[str]:
        return [piece.replace("\u2581", " ") for piece in self._processor.encode(text, out_type=str)]


def _bpe(texts: Sequence[str], size: int, progress: Progress) -> Trained:
    from temaki.tokens import bpe_train

    return Ours(bpe_train.train(texts, size, progress=progress))


def _bytepiece(texts: Sequence[str], size: int, progress: Progress) -> Trained:
    from temaki.tokens import bytepiece_train

    def told(stage: str, done: int, of: int | None) -> None:
        if of is not None:
            progress(done, of)

    return Ours(bytepiece_train.train(texts, size, progress=told))


def _wordpiece(texts: Sequence[str], size: int, progress: Progress) -> Trained:
    from temaki.tokens import wordpiece_train

    return Ours(wordpiece_train.train(texts, size))


def _characters(texts: Sequence[str], size: int, progress: Progress) -> Trained:
    from temaki.tokens import characters

    return Ours(characters.train(texts, size))


def _hf_bpe(texts: Sequence[str], size: int, progress: Progress) -> Trained:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return Hf(made)


def _spm(kind: str) -> Callable[[Sequence[str], int, Progress], Trained]:
    def train(texts: Sequence[str], size: int, progress: Progress) -> Trained:
        import sentencepiece

        lines = (line for text in texts for line in text.split("\n") if line.strip())
        held = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=held, vocab_size=size, model_type=kind, character_coverage=0.9995,
            byte_fallback=True, hard_vocab_limit=False, num_threads=1, minloglevel=2, max_sentence_length=1 << 16,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
        )  # fmt: skip
        return Spm(sentencepiece.SentencePieceProcessor(model_proto=held.getvalue()))

    return train


CONTESTANTS: Mapping[str, Contestant] = {
    each.name: each
    for each in (
        Contestant("bpe", None, _bpe),
        Contestant("bytepiece", None, _bytepiece),
        Contestant("wordpiece", None, _wordpiece),
        Contestant("characters", None, _characters),
        Contestant("tokenizers-bpe", "tokenizers", _hf_bpe),
        Contestant("sentencepiece-bpe", "sentencepiece", _spm("bpe")),
        Contestant("sentencepiece-unigram", "sentencepiece", _spm("unigram")),
    )
}
"""All that can be compared, by name."""


def _read(token: bytes) -> str:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{token.hex(' ')}>"
