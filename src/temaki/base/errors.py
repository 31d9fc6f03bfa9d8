"""The error tree: everything a user can cause. Our own mistakes are `assert`s with a message."""


class TemakiError(Exception):
    """A problem the user can act on: what happened, what was found, what is allowed, what to do.

    `exit_code` is what the command line returns.
    """

    exit_code = 1

    def __init__(self, what: str, *, found: str = "", allowed: str = "", do: str = ""):
        parts = [what]
        if found:
            parts.append(f"found: {found}")
        if allowed:
            parts.append(f"allowed: {allowed}")
        if do:
            parts.append(f"do: {do}")
        super().__init__("\n  ".join(parts))
        self.what = what
        self.found = found
        self.allowed = allowed
        self.do = do


class ConfigError(TemakiError):
    """A key, type or range in a recipe or override is wrong."""

    exit_code = 2


class DataError(TemakiError):
    """Text or shards that cannot be used."""


class TokenizerError(TemakiError):
    """A tokenizer file, vocabulary or id that cannot be used."""


class CheckpointError(TemakiError):
    """A saved folder that is damaged, incomplete or of another format."""


class FormatError(TemakiError):
    """A foreign model file that is damaged, or says what is not known here."""


class RunError(TemakiError):
    """A run that cannot start or go on."""


class NonFiniteError(RunError):
    """A loss or gradient that is not finite; the weights were not touched."""


class GenerationError(TemakiError):
    """A request that cannot be served."""
