"""A chat as ids: messages rendered by the model's template, cut to its context by forgetting the oldest exchanges."""

from typing import Any

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError, TokenizerError
from temaki.generate.text import Ends
from temaki.tokens.chat import ChatTemplate
from temaki.tokens.tokenizer import Tokenizer

PROBE = ("question", "answer", "another")
"""Messages by which a template is asked what it writes after an answer."""


class Conversation:
    """Messages in turn, user and assistant, under a system text.

    context: ids that a rendered chat and its answer may have together. stop: ids that end an answer, beside the special
    token that the template ends a turn with. What was forgotten to make room stays forgotten, until `clear` or `undo`.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        context: int,
        stop: tuple[int, ...] = (),
        system: str | None = None,
    ):
        self.template = template
        self.tokenizer = tokenizer
        self.context = context
        self.system = system
        """None: what the template says by itself."""
        self.turns: list[dict[str, Any]] = []
        self.forgotten = 0
        """Turns at the front that are no longer rendered."""
        end, self.stop_text = end_of_turn(template, tokenizer)
        self.ends = Ends(stop=tuple(dict.fromkeys((*stop, *(() if end is None else (end,))))))
        """Nothing stands in front: the template writes its own beginning."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What is rendered: the system text, if any, and the turns that are not forgotten."""
        return [*self._told, *self.turns[self.forgotten :]]

    @property
    def whole(self) -> list[dict[str, Any]]:
        """All that was said, what is forgotten too."""
        return [*self._told, *self.turns]

    @property
    def _told(self) -> list[dict[str, Any]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def ask(self, text: str) -> None:
        """The user's next message."""
        assert len(self.turns) % 2 == 0, "the last message is not answered yet"
        self.turns.append({"role": "user", "content": text})

    def answered(self, text: str) -> None:
        """The answer to it."""
        assert len(self.turns) % 2 == 1, "nothing was asked"
        self.turns.append({"role": "assistant", "content": text})

    def undo(self) -> None:
        """Take the last message of the user back, with its answer."""
        while self.turns and self.turns.pop()["role"] != "user":
            pass
        self.forgotten = 0

    def clear(self) -> None:
        """Forget all turns; the system text stays."""
        self.turns.clear()
        self.forgotten = 0

    def ids(self, answer: int) -> ndarray:
        """int32 [n]: the rendered chat with the beginning of an answer, so that `answer` more ids fit the context.

        The oldest exchanges are forgotten for it; system text and last message stay. Raises GenerationError where these
        alone do not fit, TokenizerError where the template refuses the messages.
        """
        while True:
            found = self.template.encode(self.tokenizer, self.template.render(self.messages, prompt=True)).ids
            if len(found) + answer <= self.context:
                return found.astype(np.int32)
            if self.forgotten + 1 >= len(self.turns):
                raise GenerationError(
                    "the message and the system text do not fit the model's context",
                    found=f"{len(found)} ids, and {answer} for the answer",
                    allowed=f"{self.context} ids",
                    do="shorten them, or ask for a shorter answer",
                )
            self.forgotten += 2


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int | None, str | None]:
    """What a template writes after an answer: its first special token, or, where there is none, the text that stands
    between an answer and the next message.

    (None, None) for a template that writes neither, or that refuses such a chat.
    """
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, PROBE, strict=True)]
    try:
        written = "".join(segment.text for segment in template.render(messages))
    except TokenizerError:
        return None, None
    answer = written.find(PROBE[1], written.find(PROBE[0]) + len(PROBE[0]))
    after = written[answer + len(PROBE[1]) : written.rfind(PROBE[2])] if answer >= 0 else ""
    found = [(after.index(name), id) for name, id in tokenizer.special.items() if name in after]
    if found:
        return min(found)[1], None
    return None, after.rstrip(" ") or None
