"""`temaki tokenizer`: train, use, look into, compare and convert tokenizers."""

import typer

from temaki.cli import (
    tokenizer_compare,
    tokenizer_convert,
    tokenizer_discover,
    tokenizer_encode,
    tokenizer_inspect,
    tokenizer_train,
)

app = typer.Typer(help="Train and use tokenizers.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def tokenizer() -> None:
    """Train and use tokenizers."""


app.command("train")(tokenizer_train.train)
app.command("encode")(tokenizer_encode.encode)
app.command("decode")(tokenizer_encode.decode)
app.command("inspect")(tokenizer_inspect.inspect)
app.command("compare")(tokenizer_compare.compare)
app.command("discover")(tokenizer_discover.discover)
app.command("convert")(tokenizer_convert.convert)
