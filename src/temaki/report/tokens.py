"""Tokenizers compared, as one offline page: how long their tokens are, what they cost, how they cut one passage."""

from collections.abc import Sequence
from pathlib import Path

from temaki.base import files
from temaki.evaluate.contest import Score
from temaki.report import chart, figures, page
from temaki.report.chart import Bar, Series
from temaki.report.page import escape

HEAD = (
    "tokenizer", "ids", "bytes a token", "tokens a word", "training", "memory", "encodes", "comes back exactly",
)  # fmt: skip
STYLE = "<style>.bar { grid-template-columns: 11em 1fr 4.6em; }</style>"
"""Names are longer here than on other pages."""
SHADES = 6
"""Colours that pieces take in turn."""


def write(scores: Sequence[Score], corpus: str, out: Path) -> Path:
    """Write the page to the file `out` and give its path; `corpus` says what was read. Raises OSError."""
    files.write_text(out, html(scores, corpus))
    return out


def html(scores: Sequence[Score], corpus: str) -> str:
    """The comparison as HTML text; the largest size is shown in bars, all sizes in the table and the curve."""
    most = max(score.asked for score in scores)
    shown = sorted((s for s in scores if s.asked == most), key=lambda s: -s.bytes_per_token)
    best = next((score for score in shown if score.exact == 1), shown[0])
    head = (
        f'{STYLE}<header><div class="brand"><i></i>temaki tokenizers</div>'
        f"<h1>{len(shown)} tokenizers on one text</h1>"
        f'<p class="lead">{escape(corpus)}</p></header>'
    )
    hero = (
        '<div class="hero card"><div>'
        f'<div class="big">{best.bytes_per_token:.2f}</div>'
        f'<div class="of">bytes a token: {escape(best.name)}</div>'
        f'<p class="said">on held-out text that comes back exactly, with at most {most:,} ids. '
        "Longer tokens make shorter rows.</p></div>"
        + chart.bars("Bytes a token", [Bar(s.name, s.bytes_per_token, s is best) for s in shown], "bytes a token")
        + "</div>"
    )
    return page.page(
        "Tokenizers compared · temaki",
        [
            head,
            page.notes(_lossy(shown)),
            hero,
            page.section("Figures", table(scores)),
            page.section("Speed and memory", _cost(shown)),
            page.section("By size of the vocabulary", _curve(scores)),
            page.section("Fertility: tokens a word, by script", _fertility(shown)),
            page.section("The same passage, cut", *(_cut(score) for score in shown)),
            "<footer>Written by temaki. This file loads nothing from anywhere.</footer>",
        ],
    )


def cells(score: Score) -> list[str]:
    """A score as the words of a table's row, in the order of HEAD."""
    return [
        score.name,
        figures.count(score.size),
        figures.fixed(score.bytes_per_token),
        figures.fixed(score.tokens_per_word),
        figures.duration(score.train_seconds),
        figures.size(score.memory),
        f"{score.encode_mb_per_second:.3g} MB/s",
        "yes" if score.exact == 1 else f"{score.exact:.1%} of documents",
    ]


def table(scores: Sequence[Score]) -> str:
    """All scores, a row each."""
    return page.table(HEAD, [cells(score) for score in scores], numbers=range(1, len(HEAD)))


def _lossy(scores: Sequence[Score]) -> list[str]:
    return [
        f"{s.name}: {1 - s.exact:.1%} of the held-out documents do not come back exactly; its bytes a token count what "
        "was given, not what came back."
        for s in scores
        if s.exact < 1
    ]


def _cost(scores: Sequence[Score]) -> str:
    """Bars of encoding speed, training time and memory."""
    fast = [Bar(s.name, s.encode_mb_per_second) for s in scores]
    train = [Bar(s.name, s.train_seconds) for s in scores]
    held = [Bar(s.name, s.memory / 1e6) for s in scores if s.memory is not None]
    parts = [("Encoding, MB a second of CPU time", fast, "MB/s"), ("Training, seconds", train, "s")]
    parts += [("Memory of the training, MB", held, "MB")] if held else []
    heads = [f"<figcaption><h3>{escape(title)}</h3></figcaption>" for title, _, _ in parts]
    made = "".join(
        f'<figure class="card">{head}{chart.bars(*part)}</figure>' for head, part in zip(heads, parts, strict=True)
    )
    return f'<div class="charts">{made}</div>'


def _curve(scores: Sequence[Score]) -> str:
    """Bytes a token over the size asked for, where there are several sizes."""
    sizes = sorted({score.asked for score in scores})
    if len(sizes) < 2:
        return ""
    series = []
    for colour, name in enumerate(dict.fromkeys(score.name for score in scores)):
        points = sorted((float(s.asked), s.bytes_per_token) for s in scores if s.name == name)
        series.append(Series(name, points, "dots", colour))
    return f'<div class="charts">{chart.lines("Bytes a token", series, "ids", "bytes a token", wide=True)}</div>'


def _fertility(scores: Sequence[Score]) -> str:
    scripts = list(dict.fromkeys(script for score in scores for script in score.fertility))
    rows = [[s.name, *(figures.fixed(s.fertility.get(script), 2) for script in scripts)] for s in scores]
    return page.table(["tokenizer", *scripts], rows, numbers=range(1, len(scripts) + 1)) if scripts else ""


def _cut(score: Score) -> str:
    """The passage with a colour for each piece in turn."""
    made = "".join(
        f'<span class="c{i % SHADES}" style="background:color-mix(in srgb,var(--c) 26%,transparent);'
        f'border-radius:3px">{escape(piece)}</span>'
        for i, piece in enumerate(score.pieces)
    )
    title = f"{score.name}: {len(score.pieces)} pieces"
    return f'<p class="when">{escape(title)}</p><div class="card sample">{made}</div>'
