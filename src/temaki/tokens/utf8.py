"""What a tokenizer reads: text that UTF-8 can say, whole or in chunks. Else it is refused, with the place."""

import codecs
from collections.abc import Iterable, Iterator

from temaki.base.errors import TokenizerError


def checked(text: str) -> str:
    """The text, if UTF-8 can say it. Raises TokenizerError."""
    if not isinstance(text, str):
        raise TokenizerError("a text to encode is a str", found=type(text).__name__)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text holds a lone surrogate at character {error.start}, which UTF-8 cannot say",
            found=ascii(text[error.start]),
            do='read files with errors="replace", not "surrogateescape"',
        ) from None
    return text


def decoded(chunks: Iterable[str | bytes]) -> Iterator[str]:
    """Chunks of text, or of UTF-8 bytes cut anywhere, as text. Raises TokenizerError with the offset."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    read = 0
    for chunk in chunks:
        if isinstance(chunk, bytes):
            yield _step(decoder, chunk, read, final=False)
            read += len(chunk)
        else:
            yield _step(decoder, b"", read, final=True)  # a character cut by a text chunk never becomes whole
            yield checked(chunk)
    yield _step(decoder, b"", read, final=True)


def _step(decoder: codecs.IncrementalDecoder, chunk: bytes, read: int, final: bool) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"the bytes are not UTF-8 at offset {read - pending + error.start}",
            found=repr(error.object[error.start : error.start + 4]),
            do='decode them with errors="replace" first, or convert the file to UTF-8',
        ) from None
