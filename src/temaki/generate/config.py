"""How an answer is drawn and when it ends: settings that load no torch. Letters: V vocabulary."""

from dataclasses import fields
from typing import Annotated

from pydantic import Field

from temaki.base import config
from temaki.base.config import settings
from temaki.base.errors import ConfigError

Id = Annotated[int, Field(ge=0)]


@settings
class SamplingConfig:
    """The filters in their fixed order, then what ends an answer."""

    logit_bias: tuple[tuple[Id, Annotated[float, Field(ge=-100, le=100)]], ...] = ()
    """Pairs (id, bias): what is added to an id's logit; several of one id add up. -100 all but bans it."""
    repetition_penalty: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """Divides positive and multiplies negative logits of the ids in prompt and output; 1 changes nothing."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken once from the logits of the ids in the output (not of those in the prompt)."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken from the logits of the ids in the output as often as they stand there."""
    no_repeat_ngram: Annotated[int, Field(ge=1)] | None = None
    """No run of so many ids comes twice in prompt and output; 1: no id does."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Logits are divided by it; 0 is the exact argmax."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Only the k largest logits stay; None: all."""
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the ids whose surprise is nearest to the expected one stay, as many as sum to at least p; 1: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the smallest set whose probabilities sum to at least p stays; 1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Only ids at least min_p times as probable as the best one stay; 0: all."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Stop ids are out until an answer has so many tokens; stop strings still end it."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer in tokens; the room of a slot may end it earlier."""
    stop_ids: tuple[Id, ...] = ()
    """Ids that end an answer; never part of it."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end an answer; never part of it. For `text`: the engine knows no strings and refuses
    them."""


def checked(sampling: SamplingConfig, vocabulary: int | None = None) -> SamplingConfig:
    """The same settings, held to their types and ranges also where no file was read. Raises ConfigError.

    vocabulary: V of the model, if known; a bias of an id that it does not have is refused.

    >>> checked(SamplingConfig(top_p=0.9)).top_p
    0.9
    """
    found = {field.name: vars(sampling)[field.name] for field in fields(sampling)}
    given = {name: value for name, value in found.items() if value is not None}
    read = config.read(SamplingConfig, given, where="sampling")
    if read.min_tokens > read.max_tokens:
        raise ConfigError(
            "sampling: min_tokens is more than max_tokens",
            found=str(read.min_tokens),
            allowed=f"0 to {read.max_tokens}",
        )
    strange = [id for id, _ in read.logit_bias if vocabulary is not None and id >= vocabulary]
    if strange and vocabulary is not None:
        raise ConfigError(
            "sampling: logit_bias names an id that the model does not know",
            found=str(strange[0]),
            allowed=f"0 to {vocabulary - 1}",
        )
    return read
