"""`temaki`: one verb a file. A verb loads what it needs inside its function, so that help costs nothing."""

import io
import sys
from typing import Any

import typer
import typer.core

from temaki.cli import (
    chat,
    coefficients,
    count,
    data,
    demo,
    evaluate,
    export,
    generate,
    get,
    importing,
    inspect,
    quantize,
    reference,
    report,
    runs,
    score,
    speed,
    study,
    suggest,
    tokenizer,
    train,
    validate,
)

INTERRUPT = 130
INTERRUPTED = "interrupted; what was saved before is untouched, nothing half-made is left"
OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
"""How torch and the system say it."""
LESS_MEMORY = "lower model.width, batch.micro or batch.context; where a model is asked, --context or --max-tokens"

app = typer.Typer(
    name="temaki",
    help="Build a language model by hand, from bytes to chat, on the machine you have.\n\nBegin with: temaki demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("inspect")(inspect.inspect)
app.command("import")(importing.importing)
app.command("export")(export.export)
app.command("quantize")(quantize.quantize)
app.command("speed")(speed.speed)
app.command("score")(score.score)
app.command("get")(get.get)
app.command("reference")(reference.reference)
app.command("report")(report.report)
app.command("runs")(runs.runs)
app.command("suggest")(suggest.suggest)
app.command("study")(study.study)
app.command("coefficients")(coefficients.coefficients)
app.command("validate")(validate.validate)
app.command("count")(count.count)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(data.app, name="data")


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    """Build a language model by hand, from bytes to chat, on the machine you have.

    Begin with: temaki demo
    """


def main() -> None:
    """Run the command line; every error ends in one message and a code that is not 0."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(f"temaki {version('temaki')}")
        return
    debug: list[bool] = []
    command = _debuggable(typer.main.get_command(app), debug)
    try:
        code = command.main(arguments or ["--help"], prog_name="temaki", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            raise
        sys.exit(_say(INTERRUPTED, INTERRUPT))
    except typer.TyperException as error:
        said = error.format_message()
        help_asked = said.startswith("Usage:")
        sys.exit(_say(said if help_asked else f"error: {said}\n  do: see temaki --help", error.exit_code))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if debug:
            raise
        sys.exit(_explain(error))
    if code == INTERRUPT:  # typer turns a KeyboardInterrupt into this code
        print(INTERRUPTED, file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _debuggable(command: Any, asked: list[bool]) -> Any:
    """The same command, with --debug allowed after every verb; `asked` is filled where it is given."""
    probe = typer.Typer(add_completion=False)

    def note(value: bool) -> None:
        if value:
            asked.append(True)

    @probe.command()
    def _(debug: bool = typer.Option(False, "--debug", callback=note, help="Show the traceback of an error.")) -> None:
        """Has the option that the verbs are given."""

    option = typer.main.get_command(probe).params[0]
    option.expose_value = False
    waiting = [command]
    while waiting:
        each = waiting.pop()
        each.params = [*each.params, option]
        if isinstance(each, typer.core.TyperGroup):
            waiting += each.commands.values()
    return command


def _explain(error: Exception) -> int:
    from temaki.base.errors import TemakiError

    if "temaki.base.dist" in sys.modules:  # of several processes, one says what happened
        from temaki.base.dist import ElsewhereError, speaks

        if isinstance(error, ElsewhereError) or not speaks():
            return 1
    if isinstance(error, TemakiError):
        return _say(f"error: {error}", error.exit_code)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return _say(
            f"error: {error.strerror}{where}\n  do: check the path, its permissions and the room on the disk", 1
        )
    if isinstance(error, MemoryError) or any(each in str(error) for each in OUT_OF_MEMORY):
        return _say(f"error: not enough memory\n  do: {LESS_MEMORY}", 1)
    return _say(f"error: {type(error).__name__}: {error}\n  this is a bug in temaki; --debug shows where", 70)


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
