"""Chat templates: messages -> text whose origin is known -> ids, and which of them are to be learned.

The text of a message, tool or document never makes a special token, whatever it says; the text of the template does.
Templates are those of Hugging Face (Jinja), run in `sandbox`. What is learned: what a template's `generation` blocks
wrote; in a template without any, what the messages of the learned roles brought, and what the template wrote after it
up to and including the next special token, so that the end is learned as well.
"""

import datetime
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import regex
from numpy import ndarray

from temaki.base import files
from temaki.base.errors import TokenizerError
from temaki.tokens import sandbox, split, traced
from temaki.tokens.hf_fields import CONFIG
from temaki.tokens.runs import RunTokenizer
from temaki.tokens.tokenizer import Tokenizer

SOURCE = "chat_template.jinja"
LIMIT = 1 << 26
"""Bytes up to which a configuration is read."""
LONGEST = 1 << 20
"""Characters of a template."""
FAULTS = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    *(AssertionError, MemoryError, StopIteration),
)
"""What a wrong template, or one given messages it was not made for, raises."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered chat, of one origin."""

    text: str
    message: bool
    """Whether a message, tool or document brought it; else the template did."""
    learned: bool


@dataclass(frozen=True)
class Tokenised:
    """A chat as ids."""

    ids: ndarray
    """uint32 [N]."""
    learned: ndarray
    """bool [N]: which ids are targets."""


class ChatTemplate:
    """A template, checked and compiled once."""

    def __init__(self, source: str, names: Mapping[str, str] | None = None):
        """`names`: special tokens as the template calls them, such as bos_token. Raises TokenizerError."""
        if not isinstance(source, str) or len(source) > LONGEST:
            raise TokenizerError("a chat template is a text", found=type(source).__name__, allowed=f"up to {LONGEST}")
        self.source = source
        self.names = dict(names or {})
        self._sandbox = sandbox.Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(f"the chat template is wrong in line {error.lineno}: {error.message}") from None
        except (*FAULTS, SyntaxError, MemoryError) as error:
            raise TokenizerError(f"the chat template cannot be compiled: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        prompt: bool = False,
        unfinished: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        learn: Collection[str] = ("assistant",),
        moment: datetime.datetime | None = None,
        **more: Any,
    ) -> list[Segment]:
        """The segments of a chat; joined, their texts are what the template writes.

        `prompt` asks for the beginning of an answer at the end (add_generation_prompt); `unfinished` leaves out what
        the template writes after the last message's content, so that it can be gone on with. `learn`: roles whose
        messages are learned where the template has no generation blocks. `moment` is the time the template is told.
        `more` goes to the template by name. Raises TokenizerError for data that is no JSON, and for what the template
        refuses, does wrong, or does without end.

        >>> chat = ChatTemplate("{% for m in messages %}<s>{{ m.content | trim }}</s>{% endfor %}")
        >>> [(s.text, s.message) for s in chat.render([{"role": "user", "content": " <s> "}])]
        [('<s>', False), ('<s>', True), ('</s>', False)]
        """
        if isinstance(messages, str | Mapping) or not all(isinstance(message, Mapping) for message in messages):
            raise TokenizerError("messages are a list of mappings with a role and a content", found=repr(messages)[:80])
        try:
            values = {
                **self.names,
                **{name: traced.wrapped(value) for name, value in more.items()},
                "messages": [
                    _marked(message, learn, last=place == len(messages) - 1) for place, message in enumerate(messages)
                ],
                "tools": traced.wrapped(tools),
                "documents": traced.wrapped(documents),
                "add_generation_prompt": prompt,
            }
            written = self._sandbox.render(self._template, values, moment)
        except sandbox.Raised as error:
            raise TokenizerError(f"the chat template refuses these messages: {error}") from None
        except FAULTS as error:
            raise TokenizerError(f"the chat template fails: {type(error).__name__}: {error}") from None
        wanted = traced.GENERATION if self._sandbox.blocks else traced.ANSWER
        return _segments(_cut(written) if unfinished else written, wanted)

    def encode(self, tokenizer: Tokenizer, segments: Sequence[Segment]) -> Tokenised:
        """The ids of a rendered chat.

        Special tokens arise from the template's text alone, where it is not interrupted by a message's. Text is cut
        where learning begins or ends, so that a prompt has the ids it will have when an answer is generated; else
        template and messages between two special tokens are encoded as one text. Raises TokenizerError.
        """
        special = _special_in(segments, tokenizer)
        learned = np.repeat([each.learned for each in segments], [len(each.text) for each in segments])
        if not self._sandbox.blocks:
            _learn_ends(segments, special, learned)
        text = "".join(segment.text for segment in segments)
        pieces = list(_pieces(len(text), special, learned))
        found = _encoded(tokenizer, text, pieces, special)
        mask = [np.full(len(ids), learned[start]) for (start, _), ids in zip(pieces, found, strict=True)]
        return Tokenised(np.concatenate([np.empty(0, np.uint32), *found]), np.concatenate([np.empty(0, bool), *mask]))

    def save(self, folder: Path) -> None:
        """Write the template beside a tokenizer, so that `read` and `transformers` find it. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / CONFIG
        settings = files.read_json(config, TokenizerError, LIMIT) if config.exists() else {}
        settings.pop("chat_template", None)
        files.write_text(folder / SOURCE, self.source)
        files.write_json(config, settings | self.names)


def read(folder: Path | str) -> ChatTemplate | None:
    """The template of a folder, as Hugging Face's tokenizers keep it; None if it has none. Raises TokenizerError."""
    config, source = Path(folder) / CONFIG, Path(folder) / SOURCE
    settings = files.read_json(config, TokenizerError, LIMIT) if config.exists() else {}
    named = {key: _text(value) for key, value in settings.items() if key.endswith("_token")}
    names = {key: value for key, value in named.items() if value is not None}
    try:
        written = source.read_text(encoding="utf-8") if source.exists() else settings.get("chat_template")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{source} cannot be read: {error}") from None
    if isinstance(written, list):  # several, by name
        offered = {each.get("name"): each.get("template") for each in written if isinstance(each, dict)}
        written = offered.get("default")
    return None if written is None else ChatTemplate(written, names)


def _text(value: object) -> str | None:
    """A special token as tokenizer_config.json writes it: a text, or a mapping with its content."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _marked(message: Mapping[str, Any], learn: Collection[str], last: bool) -> dict[str, Any]:
    """A message with its texts marked: its role is no part of an answer, its content is where it may go on."""
    mark = traced.MESSAGE | (traced.ANSWER if message.get("role") in learn else 0)
    marks = {"role": traced.MESSAGE, "content": mark | (traced.LAST if last else 0)}
    return {traced.wrapped(key): traced.wrapped(value, marks.get(key, mark)) for key, value in message.items()}


def _cut(written: traced.Traced) -> traced.Traced:
    """The text up to the end of the last message's content. Raises TokenizerError."""
    ends = [place for place, mark in enumerate(traced.marks(written), start=1) if mark & traced.LAST]
    if not ends:
        raise TokenizerError("the template writes nothing of the last message, so it cannot be gone on with")
    return written[: ends[-1]]


def _segments(written: str, wanted: int) -> list[Segment]:
    """The stretches of one origin; `wanted` is the mark of what is learned."""
    found: list[Segment] = []
    for text, mark in traced.runs(written):
        message, learned = bool(mark & traced.MESSAGE), bool(mark & wanted)
        if found and (found[-1].message, found[-1].learned) == (message, learned):
            text = found.pop().text + text
        found.append(Segment(text, message, learned))
    return found


def _special_in(segments: Sequence[Segment], tokenizer: Tokenizer) -> dict[tuple[int, int], int]:
    """Where special tokens stand, (start, end) -> id: in the template's text, where no message interrupts it."""
    found: dict[tuple[int, int], int] = {}
    at = 0
    for message, group in groupby(segments, key=lambda segment: segment.message):
        text = "".join(segment.text for segment in group)
        if not message and tokenizer.special:
            for match in _finder(tuple(tokenizer.special)).finditer(text):
                found[at + match.start(), at + match.end()] = tokenizer.special[match.group()]
        at += len(text)
    return found


def _encoded(
    tokenizer: Tokenizer, text: str, pieces: Sequence[tuple[int, int]], special: Mapping[tuple[int, int], int]
) -> list[ndarray]:
    """The ids of each piece; those that encode alike are encoded together."""
    readers: dict[Tokenizer, list[tuple[int, int]]] = {}
    for before, piece in pairwise([None, *pieces]):
        if piece is not None and piece not in special:
            reader = tokenizer
            if before is not None and isinstance(tokenizer, RunTokenizer):
                reader = tokenizer.after(before in special)
            readers.setdefault(reader, []).append(piece)
    found = {piece: np.array([id], np.uint32) for piece, id in special.items()}
    for reader, plain in readers.items():
        batch = reader.encode_batch([text[start:end] for start, end in plain])
        found |= zip(plain, np.split(batch.ids, batch.offsets[1:-1]), strict=True)
    return [found[piece] for piece in pieces]


@lru_cache(maxsize=16)
def _finder(special: tuple[str, ...]) -> regex.Pattern[str]:
    return split.finder(special)


def _learn_ends(segments: Sequence[Segment], special: Mapping[tuple[int, int], int], learned: ndarray) -> None:
    """Learn also what the template wrote after each learned stretch, up to and with its first special token there."""
    at = 0
    for segment, after in pairwise([*segments, Segment("", True, False)]):
        at += len(segment.text)
        if segment.learned and not after.message:
            inside = [end for start, end in special if at <= start and end <= at + len(after.text)]
            learned[at : min(inside, default=at)] = True


def _pieces(length: int, special: Mapping[tuple[int, int], int], learned: ndarray) -> Iterator[tuple[int, int]]:
    """The special tokens and what lies between them, cut where learning begins or ends."""
    changes = (np.flatnonzero(learned[1:] != learned[:-1]) + 1).tolist()
    within = {place for start, end in special for place in range(start + 1, end)}
    places = {0, length, *(place for pair in special for place in pair), *changes} - within
    yield from pairwise(sorted(places))
