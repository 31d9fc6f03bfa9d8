"""How an answer is drawn and when it ends: settings that load no torch. Letters: V vocabulary."""

from dataclasses import fields
from typing import Annotated

from pydantic import Field

from temaki.base import config
from temaki.base.config import settings


@settings
class SamplingConfig:
    """The filters in their fixed order, then what ends an answer."""

    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Divides positive and multiplies negative logits of the ids in prompt and output; 1 changes nothing."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Logits are divided by it; 0 is the exact argmax."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Only the k largest logits stay; None: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the smallest set whose probabilities sum to at least p stays; 1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Only ids at least min_p times as probable as the best one stay; 0: all."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer in tokens; the room of a slot may end it earlier."""
    stop_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Ids that end an answer; never part of it."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end an answer; never part of it. For `text`: the engine knows no strings and refuses
    them."""


def checked(sampling: SamplingConfig) -> SamplingConfig:
    """The same settings, held to their types and ranges also where no file was read. Raises ConfigError.

    >>> checked(SamplingConfig(top_p=0.9)).top_p
    0.9
    """
    found = {field.name: vars(sampling)[field.name] for field in fields(sampling)}
    given = {name: value for name, value in found.items() if value is not None}
    return config.read(SamplingConfig, given, where="sampling")
