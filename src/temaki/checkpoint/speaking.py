"""How a model wants to be asked and when it is done: the [generation] table of a model folder's `config.toml`."""

from typing import Annotated

from pydantic import Field

from temaki.base.config import settings

Id = Annotated[int, Field(ge=0)]


@settings
class Speaking:
    """What stands before a prompt, what ends an answer, and how its makers advise to draw."""

    front: tuple[Id, ...] = ()
    """Ids put before a prompt."""
    stop: tuple[Id, ...] = ()
    """Ids that end an answer."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """What its makers advise; None: nothing was said. So for the following."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
