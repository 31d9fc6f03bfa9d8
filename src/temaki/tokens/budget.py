"""How much one rendering of a chat template may do: steps, processor time, sizes. What would be more is refused."""

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2

from temaki.tokens import traced

STEPS = 1_000_000
"""Loop turns, calls, filters and operations of one rendering."""
SECONDS = 5.0
"""Processor time of one rendering."""
SIZE = 1 << 24
"""Characters of one text, items of one list."""
SPENT = 1 << 29
"""Characters and items that all operations of one rendering may make."""
WIDTH = 1_000
"""A number that tells how long something gets: a column width, an indentation; bits of a product."""
WIDENING = frozenset({"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "zfill"})
"""Filters and methods of text with numbers that tell how long something gets."""

TAKING_APART = frozenset({"groupby", "list", "max", "min", "rsplit", "slice", "sort", "split", "splitlines"})
"""Filters and methods that take a text apart at once: into characters, or what stands between separators."""
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
APART = 16
"""What such a part counts for, beside its characters."""


class Refused(jinja2.TemplateRuntimeError):
    """What a template must not do, or does without end."""


class Budget:
    """What is left of one rendering. Every method raises Refused where nothing is."""

    def __init__(self) -> None:
        self._steps = self._spent = 0
        self._until = 0.0

    def start(self) -> None:
        """Begin a rendering."""
        self._steps = self._spent = 0
        self._until = time.thread_time() + SECONDS

    def end(self) -> None:
        """End a rendering: nothing is allowed outside of one, so that a compiler computes nothing beforehand."""
        self._until = 0.0

    def step(self) -> None:
        """Count a step."""
        self._steps += 1
        if self._steps > STEPS or time.thread_time() > self._until:
            raise Refused(f"the template does not end: after {self._steps} steps; {SECONDS:g} s are allowed")

    def spend(self, size: int) -> None:
        """Count what is about to be made, or just was: characters or items."""
        self._spent += size
        if size > SIZE or self._spent > SPENT:
            raise Refused(f"the template makes too much: {size} characters or items at once, {self._spent} in all")

    def measured(self, value: Any) -> int:
        """About how many characters a value is as text, each mention of a part counted."""
        size = 0
        waiting = [value]
        while waiting:
            here = waiting.pop()
            if isinstance(here, Mapping):
                waiting += [*here.keys(), *here.values()]
            elif isinstance(here, list | tuple):
                waiting += here
            size += len(here) if isinstance(here, str) else 8
            if size > SIZE:
                self.spend(size)
        return size

    def compared(self, value: Any) -> Any:
        """The value, which is about to be compared, looked up or written: as often as its parts are mentioned in it."""
        if isinstance(value, list | tuple | Mapping):
            self.step()
            self.measured(value)
        return value

    def apart(self, name: str, text: str, given: Iterable[Any] = ()) -> None:
        """Count the parts that a filter or method of that name takes a text apart into."""
        parts = len(text)
        if name == "splitlines":
            parts = sum(map(text.count, LINE_ENDS))
        elif name in ("split", "rsplit"):
            separator = next(iter(given), None)
            parts = text.count(separator) if isinstance(separator, str) else len(text) // 2
        self.spend(APART * parts)

    def arguments(self, name: str, value: Any, given: Iterable[Any]) -> None:
        """What a filter or method of that name is asked to do with a value: no number that makes it long."""
        numbers = [argument for argument in given if isinstance(argument, int | float)]
        if name == "sum" and any(isinstance(argument, list | tuple) for argument in given):
            raise Refused("the template adds lists with sum")
        if isinstance(value, str) and name in TAKING_APART:
            self.apart(name, value, given)
        if name not in WIDENING:
            return
        if any(not -WIDTH <= number <= WIDTH for number in numbers):
            raise Refused(f"the template asks {name} for more than {WIDTH}")
        if isinstance(value, str) and name in ("indent", "expandtabs"):
            self.spend(len(value) + (value.count("\n") + value.count("\t") + 1) * max([8, *map(int, numbers)]))

    def format(self, how: str, mark: str, values: Any) -> None:
        """A format whose fields begin with `mark`: none that pads far, nor says its values too often."""
        text = traced.plain(how)
        if re.search(r"\d{4}|%[^a-zA-Z%]*\*|:[^{}]*\{", text):
            raise Refused("the template formats with widths of four digits or more, or with computed ones")
        self.spend(len(text) + text.count(mark) * (self.measured(values) + WIDTH))

    def operation(self, operator: str, left: Any, right: Any) -> None:
        """An operation that may grow: texts and lists put together or repeated, products and powers."""
        self.step()
        sizes = [len(one) for one in (left, right) if isinstance(one, str | list | tuple)]
        numbers = [int(one) for one in (left, right) if isinstance(one, int)]
        if operator == "+" and len(sizes) == 2:
            self.spend(sum(sizes))
        if operator == "*" and sizes and numbers:
            self.spend(sizes[0] * max(0, numbers[0]))
        if operator in ("*", "**") and len(numbers) == 2:
            bits = [number.bit_length() for number in numbers]
            if (bits[0] * abs(numbers[1]) if operator == "**" else sum(bits)) > WIDTH:
                raise Refused("the template calculates with too large numbers")
