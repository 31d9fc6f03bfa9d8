"""From text to shards: read, hold out, train a tokenizer, encode, write."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from temaki.base import config as config_door
from temaki.base import files as base_files
from temaki.base.errors import DataError
from temaki.batches import shards
from temaki.batches.config import DataConfig
from temaki.batches.shards import Shards
from temaki.corpus import sources
from temaki.corpus.sources import Document
from temaki.tokens import bpe_train, characters, files
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import END_OF_TEXT, Tokenizer

if TYPE_CHECKING:
    from temaki.tokens.chat import ChatTemplate

BOUNDARY = END_OF_TEXT
"""The special token that begins each document and, as a target, ends it, where none is named."""

UNKNOWN = "<|unknown|>"
"""What a tokenizer of single characters reads for one that its text did not hold."""

SETTINGS = "data.toml"
"""The [data] table that a folder was made with."""

Progress = Callable[[str, int, int], None]
"""(what is going on, done, of)."""


@dataclass(frozen=True)
class Words:
    """A tokenizer and what travels with it."""

    tokenizer: Tokenizer
    frame: Frame = field(default_factory=Frame)
    chat: "ChatTemplate | None" = None

    def save(self, folder: Path) -> None:
        """Write all of it to a folder. Raises OSError, TokenizerError."""
        files.save(self.tokenizer, folder, self.frame)
        if self.chat is not None:
            self.chat.save(folder)


@dataclass(frozen=True)
class Prepared:
    """Data that a run can read."""

    folder: Path
    tokenizer: Tokenizer
    train: Shards
    held: Shards

    @property
    def fingerprint(self) -> str:
        """sha256 of all that training can see."""
        return self.train.manifest.fingerprint


def read_whole(config: DataConfig) -> tuple[list[Document], str]:
    """All documents, and a line on what was read and skipped."""
    source = sources.standard_library() if config.text == "stdlib" else sources.files(Path(config.text), config.errors)
    documents = list(source)
    size = sum(len(document.text.encode()) for document in documents)
    line = f"{source.name}: {len(documents)} documents, {size / 1e6:.2f} MB"
    if source.skipped:
        line += "; skipped " + ", ".join(f"{count} ({reason})" for reason, count in source.skipped.items())
    return documents, line


def read_documents(config: DataConfig) -> tuple[list[Document], list[Document], str]:
    """The training documents, the held-out ones, and a line on what was read and skipped."""
    documents, line = read_whole(config)
    if config.held == "tail":
        train, held = tail(documents, config.held_out)
        return train, held, f"{line}; held out: the last {sum(len(each.text) for each in held):,} characters"
    train, held = sources.held_out(documents, config.held_out)
    sizes = [sum(len(document.text.encode()) for document in split) for split in (train, held)]
    share = sizes[1] / sum(sizes)
    line += f"; held out by the hash of the text: {share:.0%} of the bytes"
    if not config.held_out / 2 <= share <= config.held_out * 2:
        line += f" (asked: {config.held_out:.0%}; few or unequal documents come out unevenly)"
    return train, held, line


def tail(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """(all but the last characters, the last ones): `share` of all; a document across the cut is cut in two.

    Raises DataError where one side would be empty.

    >>> [[each.text for each in side] for side in tail([Document("abc", "a"), Document("defgh", "b")], 0.5)]
    [['abc', 'd'], ['efgh']]
    """
    total = sum(len(each.text) for each in documents)
    left = cut = int(total * (1 - share))
    if not 0 < cut < total:
        raise DataError("the text is too short to hold its end out", found=f"{total} characters", do="give more text")
    train: list[Document] = []
    held: list[Document] = []
    for each in documents:
        inside = min(left, len(each.text))
        left -= inside
        if 0 < inside < len(each.text):
            train.append(Document(each.text[:inside], f"{each.id}#0", each.meta))
            held.append(Document(each.text[inside:], f"{each.id}#1", each.meta))
        else:
            (train if inside else held).append(each)
    return train, held


def train_tokenizer(
    config: DataConfig, train: Sequence[Document], held: Sequence[Document], progress: Progress
) -> Tokenizer:
    """A tokenizer of at most `config.vocabulary` ids: BPE of the training documents, or all characters of all of them.

    The alphabet is that of the held-out text too, so that no character of it is lost and its loss is that of all of it.
    Raises DataError for more characters than `config.vocabulary` has room for.
    """
    special = (config.boundary or BOUNDARY, *(config.special or ()))
    texts = [document.text for document in train]
    if config.kind == "characters":
        texts += [document.text for document in held]
        found = characters.train(texts, None, tuple(dict.fromkeys((*special, UNKNOWN))), UNKNOWN)
        if found.size > config.vocabulary:
            raise DataError(
                "more characters than data.vocabulary has room for", found=f"{found.size} ids",
                allowed=f"at most {config.vocabulary}",
                do=f'set data.vocabulary={found.size}, or data.kind="bpe", which has no such limit',
            )  # fmt: skip
        return found
    return bpe_train.train(
        texts, config.vocabulary, special, config.split,
        progress=lambda done, of: progress("tokenizer: ids", done, of),
    )  # fmt: skip


def boundary(tokenizer: Tokenizer, frame: Frame | None = None, wanted: str | None = None) -> int:
    """The boundary's id: of `wanted`, else of `<|endoftext|>`, else of the first token that the frame puts before a
    text. Raises DataError where there is none of it.
    """
    named = [wanted] if wanted is not None else [BOUNDARY, *(frame.before[:1] if frame is not None else ())]
    for text in named:
        if text in tokenizer.special:
            return tokenizer.special[text]
    raise DataError(
        f"the tokenizer has no {wanted!r}" if wanted is not None else "the tokenizer has no boundary between documents",
        found=", ".join(tokenizer.special) or "no special token", allowed=wanted or BOUNDARY,
        do="name a special token of it: data.boundary" if tokenizer.special else f"train one with {BOUNDARY}",
    )  # fmt: skip


def write(
    folder: Path,
    train: Sequence[Document],
    held: Sequence[Document],
    words: Words,
    named: str | None,
    progress: Progress,
) -> None:
    """Encode both splits into `folder`/train and `folder`/held, and save the tokenizer in `folder`/tokenizer.

    `named`: the boundary, if it is not the usual one.
    """
    tokenizer, between = words.tokenizer, boundary(words.tokenizer, words.frame, named)
    words.save(folder / "tokenizer")
    total = len(train) + len(held)
    for name, documents, before in (("train", train, 0), ("held", held, len(train))):
        encoded = _encoded(
            documents,
            tokenizer,
            lambda done, before=before: progress("encoding: documents", before + done, total),
        )
        shards.write(folder / name, encoded, tokenizer.size, between, tokenizer.fingerprint)


def prepare(
    config: DataConfig, folder: Path, progress: Progress, anew: bool = False, given: Words | None = None
) -> Prepared:
    """Everything a run needs to read, made in `folder` unless `config.shards` names a folder that has it already.

    A folder that was made with the same settings is used as it is, or made `anew`; made with others, it is an error
    unless it is made anew. A folder that holds anything else is never touched. The folder is whole or absent. `given`:
    the tokenizer to use, where it is not the configuration that says so.
    """
    if config.shards is not None:
        return open_prepared(Path(config.shards))

    def written(part: Path) -> None:
        train, held, line = read_documents(config)
        progress(line, 1, 1)
        write(part, train, held, given or _words(config, train, held, progress), config.boundary, progress)

    whole(config, folder, anew, written)
    return open_prepared(folder)


def whole(config: DataConfig, folder: Path, anew: bool, write: Callable[[Path], None]) -> None:
    """Have `write` make a folder that is whole or absent, unless one is there that was made with these settings.

    One made with others is an error unless it is made `anew`; one that holds anything else is never touched.
    """
    said = config_door.toml(config_door.mapping(config))
    if folder.exists() and not (anew and (folder / SETTINGS).exists()):
        _same_settings(folder, config)
        return
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write(part)
        base_files.write_text(part / SETTINGS, said)
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
        base_files.sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _words(config: DataConfig, train: Sequence[Document], held: Sequence[Document], progress: Progress) -> Words:
    """The tokenizer that the configuration names, with its frame and template, or one trained on the documents."""
    if config.tokenizer is None:
        return Words(train_tokenizer(config, train, held, progress))
    from temaki.tokens import chat  # loads the template engine, which others need not wait for

    return Words(*files.load_framed(config.tokenizer), chat.read(config.tokenizer))


def _same_settings(folder: Path, config: DataConfig) -> None:
    path = folder / SETTINGS
    if not path.exists() or config_door.read(DataConfig, config_door.read_toml(path), where=str(path)) != config:
        raise DataError(
            f"{folder} was prepared with other settings", found=str(path), allowed="the recipe's own [data] table",
            do="remove the folder, choose another --out, or name it as data.shards",
        )  # fmt: skip


def open_prepared(folder: Path) -> Prepared:
    """Open a folder that `write` made. Raises DataError naming what is missing, damaged or does not match."""
    if not (folder / "tokenizer").is_dir():
        raise DataError(f"{folder} holds no prepared data", do="make it with: temaki data prepare --out FOLDER")
    tokenizer = files.load(folder / "tokenizer")
    return Prepared(
        folder,
        tokenizer,
        *(shards.open_shards(folder / name, tokenizer.fingerprint) for name in ("train", "held")),
    )


def texts(split: Shards, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of every document of a split, byte for byte."""
    for i in range(split.manifest.documents):
        yield tokenizer.decode_bytes(split.document(i)[1:])


def _encoded(
    documents: Iterable[Document], tokenizer: Tokenizer, done: Callable[[int], None], at_once: int = 64
) -> Iterator[tuple[NDArray[np.uint32], int]]:
    remaining = iter(documents)
    count = 0
    while some := list(islice(remaining, at_once)):
        texts = [document.text.encode("utf-8") for document in some]
        ragged = tokenizer.encode_batch(texts)
        for i, text in enumerate(texts):
            yield ragged.ids[ragged.offsets[i] : ragged.offsets[i + 1]], len(text)
        count += len(some)
        done(count)
