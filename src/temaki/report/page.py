"""The page around the numbers: one HTML file that loads nothing, its style and its script inside.

A content security policy names the script by its hash: whatever a sample contains, nothing else can run or
be loaded.
"""

import base64
import hashlib
import html
import time
from collections.abc import Iterable, Sequence
from importlib import resources

PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters -> characters that show them."""
LONGEST = 20_000
"""Characters of one text that are shown."""


def escape(text: str) -> str:
    """Text as HTML shows it, wherever it stands: markup is quoted, control characters become visible.

    >>> escape('<b> & "c"'), escape("a" + chr(0)) == "a" + chr(0x2400)
    ('&lt;b&gt; &amp; &quot;c&quot;', True)
    """
    whole = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n")
    shown = whole.translate(PICTURES).translate(dict.fromkeys(range(0x80, 0xA0), 0xFFFD))
    return html.escape(shown, quote=True)


def cut(text: str, longest: int = LONGEST) -> str:
    """Text of at most `longest` characters, saying how many more there were."""
    return text if len(text) <= longest else f"{text[:longest]}\n… {len(text) - longest:,} more characters"


def page(title: str, body: Iterable[str], renew: int | None = None) -> str:
    """A whole HTML document; with `renew` it loads itself anew after so many seconds."""
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            f'<body data-renew="{renew}" data-written="{time.time():.0f}">' if renew else "<body>",
            "<main>",
            *body,
            "</main>",
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def section(title: str, *content: str) -> str:
    """A titled part of the page; nothing if there is no content."""
    inside = "".join(content)
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Figures in a row: (what it is, the figure, a word on it)."""
    made = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd><strong>{escape(figure)}</strong>'
        f"{f'<small>{escape(note)}</small>' if note else ''}</dd></div>"
        for name, figure, note in items
    )
    return f'<dl class="tiles">{made}</dl>' if items else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; the columns in `numbers` are set to the right."""
    if not rows:
        return ""

    def cell(tag: str, place: int, text: str) -> str:
        kind = ' class="number"' if place in numbers else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{kind}{scope}>{escape(text)}</{tag}>"

    top = "".join(cell("th", i, text) for i, text in enumerate(head))
    body = "".join("<tr>" + "".join(cell("td", i, t) for i, t in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll card"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def notes(items: Sequence[str]) -> str:
    """What the reader should know before believing the numbers."""
    made = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<ul class="notes" aria-label="Warnings">{made}</ul>' if items else ""


def pairs(items: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    made = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return f'<dl class="pairs card">{made}</dl>' if items else ""


def code(text: str) -> str:
    """Text in a fixed pitch, lines as they are."""
    return f'<pre class="card" tabindex="0"><code>{escape(cut(text))}</code></pre>' if text else ""


def fold(title: str, content: str) -> str:
    """Content that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def _asset(name: str) -> str:
    return resources.files("temaki.report").joinpath(name).read_text(encoding="utf-8")
