"""Text that remembers, for each character, where it came from: template or message, learned or not.

A chat template is a program: it trims, splits, joins and replaces. `Traced` is a `str` whose methods carry a mark along
with each character. What cannot be followed character by character (a format, a serialisation) is marked as message
throughout as soon as a message is in it: then text of a message never passes for text of the template.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import and_
from typing import Any, SupportsIndex

MESSAGE = 1
"""Mark of a character that a message, tool or document brought."""
ANSWER = 2
"""Mark of a character that a message of a role to be learned brought."""
GENERATION = 4
"""Mark of a character inside a generation block of the template."""
LAST = 8
"""Mark of a character of the last message's content."""

_RUNS = re.compile(rb"(.)\1*", re.DOTALL)


class Traced(str):
    """A text with a byte of marks for each character; without marks given, all of it is message."""

    __slots__ = ("_marks",)

    _marks: bytes

    def __new__(cls, text: object = "", marks: bytes | None = None) -> "Traced":
        made = super().__new__(cls, text)
        made._marks = bytes([MESSAGE]) * len(made) if marks is None else marks
        assert len(made._marks) == len(made), "a mark for each character"
        return made

    def __str__(self) -> str:
        return self

    def __format__(self, how: str) -> str:
        return blended(format(plain(self), how), self)

    def __add__(self, other: object) -> Any:
        return joined([self, other]) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> Any:
        return joined([other, self]) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> "Traced":
        return Traced(plain(self) * times, self._marks * times)

    def __rmul__(self, times: SupportsIndex) -> "Traced":
        return self * times

    def __mod__(self, values: Any) -> "Traced":
        return blended(plain(self) % values, self, values)

    def __getitem__(self, at: SupportsIndex | slice) -> "Traced":
        marks = self._marks[at]
        return Traced(plain(self)[at], bytes([marks]) if isinstance(marks, int) else marks)

    def __iter__(self) -> Any:
        return (Traced(letter, bytes([mark])) for letter, mark in zip(plain(self), self._marks, strict=True))

    def strip(self, chars: str | None = None, /) -> "Traced":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        return self[len(self) - len(plain(self).lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        return self[: len(plain(self).rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> "Traced":
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> "Traced":
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> Any:
        return self._at(plain(self).split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> Any:
        return self._at(plain(self).rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> Any:
        lines = self._at(plain(self).splitlines(True), "")
        return lines if keepends else [line[: len(plain(line).splitlines()[0])] for line in lines]

    def partition(self, sep: str, /) -> Any:
        return tuple(self._at(list(plain(self).partition(sep)), ""))

    def rpartition(self, sep: str, /) -> Any:
        return tuple(self._at(list(plain(self).rpartition(sep)), ""))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> "Traced":
        if not old:  # between all characters
            return blended(plain(self).replace(old, new, count), self, new)
        return Traced(new, marks(new)).join(self.split(old, count))

    def join(self, parts: Iterable[str], /) -> "Traced":
        between: list[str] = []
        for part in parts:
            between += [self, part] if between else [part]
        return joined(between)

    def _at(self, parts: list[str], sep: str | None) -> list["Traced"]:
        """Parts of this text, in order, `sep` (None: whitespace) between them, with the marks they have here."""
        letters = plain(self)  # once: it is a copy
        found: list[Traced] = []
        end = 0
        for part in parts:
            if sep is None:
                start = letters.find(part, end)  # parts begin with no whitespace, so the first find is the place
            else:
                start = end + len(sep) if found else 0
            end = start + len(part)
            found.append(Traced(part, self._marks[start:end]))
        return found


def _mapped(name: str) -> Callable[..., Traced]:
    """A method that changes characters: marks are kept where each stays one, else spread over the whole."""
    change = getattr(str, name)

    def method(self: Traced, *arguments: Any, **named: Any) -> Traced:
        found = change(plain(self), *arguments, **named)
        return Traced(found, self._marks) if len(found) == len(self) else blended(found, self)

    method.__name__ = name
    return method


def _whole(name: str) -> Callable[..., Traced]:
    """A method whose result is not followed character by character."""
    change = getattr(str, name)

    def method(self: Traced, *arguments: Any, **named: Any) -> Traced:
        return blended(change(plain(self), *arguments, **named), self, arguments, named)

    method.__name__ = name
    return method


for _name in ("capitalize", "casefold", "lower", "swapcase", "title", "upper"):
    setattr(Traced, _name, _mapped(_name))
for _name in ("center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill", "__repr__"):
    setattr(Traced, _name, _whole(_name))


def plain(text: str) -> str:
    """The same text without its marks."""
    return str.__str__(text)


def marks(text: str) -> bytes:
    """The marks of a text; a plain one is the template's."""
    return text._marks if isinstance(text, Traced) else bytes(len(text))


def joined(parts: Iterable[str]) -> Traced:
    """The parts as one text, each character with its marks.

    >>> joined(["<s>", Traced("hi")])._marks
    b'\\x00\\x00\\x00\\x01\\x01'
    """
    known = list(parts)
    return Traced("".join(map(plain, known)), b"".join(map(marks, known)))


def marked(text: str, mark: int) -> Traced:
    """The text with one more mark on each character."""
    return Traced(plain(text), bytes(found | mark for found in marks(text)))


def wrapped(value: Any, mark: int = MESSAGE) -> Any:
    """A message's data with every text in it, keys too, marked. Raises TypeError for what is no JSON."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return Traced(value, bytes([mark]) * len(value))
    if isinstance(value, Mapping):
        return {wrapped(key, mark): wrapped(inner, mark) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [wrapped(inner, mark) for inner in value]
    raise TypeError(f"{type(value).__name__} is neither text, number, list nor mapping")


def runs(text: str) -> Iterable[tuple[str, int]]:
    """The longest stretches of one mark: (text, mark), in order."""
    letters = plain(text)
    for run in _RUNS.finditer(marks(text)):
        yield letters[run.start() : run.end()], run[0][0]


def blended(text: str, *sources: Any) -> Traced:
    """A text made of sources in a way nobody followed: the template's only if all of them are, else marked whole."""
    found = marks_in(sources) - {0}
    mark = reduce(and_, found, -1) & 0xFF if found else 0  # what all of them have
    if any(each & MESSAGE for each in found):
        mark |= MESSAGE
    return Traced(text, bytes([mark]) * len(text))


def marks_in(value: Any) -> set[int]:
    """The marks of all texts in a value; what is neither text, number, list nor mapping counts as message."""
    found: set[int] = set()
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, str):
            found.update(marks(here))
        elif isinstance(here, Mapping | list | tuple):
            if id(here) not in seen:
                seen.add(id(here))
                waiting += [*here.keys(), *here.values()] if isinstance(here, Mapping) else here
        elif here is not None and not isinstance(here, bool | int | float):
            found.add(MESSAGE)
    return found
