"""The loop of `temaki chat`: lines in, answers out as they come. Ctrl-C stops an answer, a second one leaves."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from temaki.base import config
from temaki.base.errors import ConfigError, DataError, GenerationError, TemakiError
from temaki.cli.said import say
from temaki.generate.config import SamplingConfig, checked
from temaki.generate.conversation import Conversation
from temaki.generate.engine import Engine
from temaki.generate.remembering import Remembering
from temaki.generate.text import Completion, Reply

HELP = """/clear        forget the chat so far; the system text stays
/system TEXT  set the system text; alone: the template's own
/undo         take the last message and its answer back
/save FILE    write the chat so far, as JSON; nothing is overwritten
/settings     how answers are drawn; /settings temperature=0.5 top_k=40 changes it
/help         this
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer, a second one leaves. A line that begins with // is sent with one /."""
LEAVING = "once more, Ctrl-D or /exit leaves"


class Stopping:
    """While this is entered, the first Ctrl-C only sets `asked`; the second is one as ever."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stopping":
        self._before: Any = signal.getsignal(signal.SIGINT)
        if self._before != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass
class Talk:
    """One chat with one model. The terminal is asked at each use, so that both may be pipes."""

    conversation: Conversation
    executor: Remembering
    engine: Engine
    """Over it."""
    sampling: SamplingConfig
    seed: int
    as_json: bool = False
    interrupts: int = field(default=0, init=False)
    """Ctrl-Cs since the last line."""

    def answer(self, text: str) -> Completion:
        """Ask, write the answer as it comes, and remember both; a message that gets no answer is taken back."""
        self.conversation.ask(text)
        try:
            found, read = self._said()
        except BaseException:
            self.conversation.undo()
            raise
        if found.text or found.done != "cancelled":
            self.conversation.answered(found.text)
        else:
            self.conversation.undo()
        if self.as_json:
            said = {"message": text, "answer": found.text, "tokens": len(found.ids), "read": read, "done": found.done}
            say(said, True, "")
        return found

    def _said(self) -> tuple[Completion, int]:
        """The answer to the chat as it stands, and how many ids of it were read."""
        conversation = self.conversation
        ids = conversation.ids(self.sampling.max_tokens)
        stop = self.sampling.stop if conversation.stop_text is None else (*self.sampling.stop, conversation.stop_text)
        before = self.executor.read
        with Stopping() as stopping:
            reply = Reply(
                self.engine,
                conversation.tokenizer,
                ids,
                replace(self.sampling, stop=stop),
                seed=self.seed,
                ends=conversation.ends,
            )
            begun = False
            try:
                with closing(iter(reply)) as steps:
                    for more in steps:
                        if not self.as_json:
                            sys.stdout.write(more)
                            sys.stdout.flush()
                        begun = True
                        if stopping.asked:
                            self.interrupts += 1
                            break
            finally:  # an error too begins on a new line
                if begun and not self.as_json:
                    sys.stdout.write("\n")
                    sys.stdout.flush()
        return reply.completion, self.executor.read - before

    def loop(self) -> bool:
        """Read lines to their end; whether every command of a pipe was a right one.

        On a terminal an error is said and the chat goes on. From a pipe one of a command is said, and the next lines
        are read; one of a message is raised, since what follows builds on its answer.
        """
        terminal = sys.stdin.isatty()
        if terminal and find_spec("readline") is not None:
            import_module("readline")  # by being there, it gives `input` its keys and its history
        right = True
        for line in self._lines(_typed if terminal else _piped):
            self.interrupts = 0
            try:
                if not self._command(line):
                    return right
            except TemakiError as error:
                if not terminal and _is_message(line):
                    raise
                right = terminal
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:  # the second one in an answer
                return right
        return right

    def _lines(self, read: Callable[[], str | None]) -> Iterator[str]:
        """Lines with something in them, until there is none or Ctrl-C was pressed twice."""
        while True:
            try:
                line = read()
            except KeyboardInterrupt:
                self.interrupts += 1
                if self.interrupts > 1:
                    return
                print(f"\n({LEAVING})", file=sys.stderr)
                continue
            if line is None:
                return
            if line.strip():
                yield line.strip()

    def _command(self, line: str) -> bool:
        """Do what a line says: a command or a message; False: leave."""
        if _is_message(line):
            found = self.answer(line[1:] if line.startswith("//") else line)
            if found.done == "cancelled":
                print("(stopped)", file=sys.stderr)
            return True
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], str]] = {
            "/help": lambda _: HELP,
            "/clear": self._clear,
            "/undo": self._undo,
            "/system": self._system,
            "/save": self._save,
            "/settings": self._settings,
        }
        if name == "/exit":
            return False
        if name not in commands:
            raise GenerationError(f"there is no command {name}", allowed=", ".join((*commands, "/exit")))
        print(commands[name](rest.strip()), file=sys.stderr)
        return True

    def _clear(self, _: str) -> str:
        self.conversation.clear()
        return "(forgotten)"

    def _undo(self, _: str) -> str:
        if not self.conversation.turns:
            return "(nothing to take back)"
        self.conversation.undo()
        return "(taken back)"

    def _system(self, text: str) -> str:
        self.conversation.system = text or None
        return "(system text set)" if text else "(the template's own system text)"

    def _save(self, file: str) -> str:
        if not file:
            raise GenerationError("where to?", do="/save FILE")
        content = {"messages": self.conversation.whole, "settings": config.mapping(self.sampling), "seed": self.seed}
        try:
            with Path(file).expanduser().open("x", encoding="utf-8") as opened:
                json.dump(content, opened, ensure_ascii=False, indent=1)
                opened.write("\n")
        except FileExistsError:
            raise DataError(f"{file} exists already; nothing was changed", do="choose another name") from None
        except OSError as error:
            raise DataError(f"{file} cannot be written: {error.strerror}") from None
        return f"(saved to {file})"

    def _settings(self, changes: str) -> str:
        table, words = config.mapping(self.sampling), changes.split()
        if len(words) == 2 and "=" not in changes:
            words = ["=".join(words)]
        for word in words:
            if "=" not in word:
                raise ConfigError("a setting is KEY=VALUE", found=word, do="/settings temperature=0.5 top_k=40")
        if words:
            self.sampling = checked(
                config.read(SamplingConfig, config.override(table, words), where="settings"),
                self.executor.vocabulary,
            )
            table = config.mapping(self.sampling)
        return ", ".join(f"{name} {value}" for name, value in table.items() if value != [])


def _is_message(line: str) -> bool:
    """It is for the model; other lines are commands."""
    return not line.startswith("/") or line.startswith("//")


def _typed() -> str | None:
    """A line from the terminal, None at its end (Ctrl-D). Raises KeyboardInterrupt."""
    shown = sys.stdout.isatty()
    if not shown:
        sys.stderr.write("> ")
        sys.stderr.flush()
    try:
        line = input("> " if shown else "")
    except EOFError:
        sys.stderr.write("\n")
        return None
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _piped() -> str | None:
    """A line from a pipe or a file, None at its end."""
    line = sys.stdin.buffer.readline()
    try:
        return line.decode("utf-8") if line else None
    except UnicodeDecodeError as error:
        raise DataError(f"a line is not UTF-8 at byte {error.start}", do="convert it to UTF-8") from None
