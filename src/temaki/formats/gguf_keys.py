"""Reading GGUF's metadata: each value of the type that is wanted, or a FormatError that names its key."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.formats.gguf_file import Value


@dataclass(frozen=True)
class Keys:
    """The metadata of a file under its architecture's name."""

    metadata: Mapping[str, Value]
    architecture: str

    def key(self, name: str) -> str:
        """The whole key."""
        return f"{self.architecture}.{name}"

    def has(self, name: str) -> bool:
        """Whether the file says it."""
        return self.key(name) in self.metadata

    def whole(self, name: str, otherwise: int | None = None) -> int:
        """A whole number of at least 1. Raises FormatError where it is missing and nothing stands in for it."""
        found = self._single(name, otherwise)
        if type(found) is not int or found < 1:
            raise FormatError(f"{self.key(name)} is no count", found=f"{found!r:.40}", allowed="1 or more")
        return found

    def number(self, name: str, otherwise: float | None = None) -> float:
        """A number above zero, as the shortest decimal that is the same float32. Raises FormatError as `whole`."""
        found = self._single(name, otherwise)
        if type(found) not in (int, float) or not math.isfinite(found) or found <= 0:
            raise FormatError(f"{self.key(name)} is no number above 0", found=f"{found!r:.40}")
        return shortest(found)

    def text(self, name: str, otherwise: str) -> str:
        """A text."""
        found = self.metadata.get(self.key(name), otherwise)
        if not isinstance(found, str):
            raise FormatError(f"{self.key(name)} is no text", found=f"{found!r:.40}")
        return found

    def _single(self, name: str, otherwise: float | None) -> int | float:
        """A value; where there is one a layer, that of all. Raises FormatError."""
        found = self.metadata.get(self.key(name), otherwise)
        if isinstance(found, ndarray) and found.size and (found == found[0]).all():
            found = found[0].item()
        if found is None:
            raise FormatError(f"the key {self.key(name)} is missing")
        if isinstance(found, ndarray | list | str):
            raise FormatError(f"{self.key(name)} is not one number for all layers", found=f"{found!r:.60}")
        return found


def shortest(number: float) -> float:
    """The shortest decimal that is the same float32.

    >>> shortest(9.999999747378752e-06)
    1e-05
    """
    return float(str(np.float32(number)))


def flag(metadata: Mapping[str, Value], key: str, otherwise: bool) -> bool:
    """A yes or no. Raises FormatError."""
    found = metadata.get(key, otherwise)
    if not isinstance(found, bool):
        raise FormatError(f"{key} is neither true nor false", found=f"{found!r:.40}")
    return found
