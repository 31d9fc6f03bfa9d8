"""Pictures of studies beside `chart.py`: values with error bars, attention maps, heads, columns. All inline."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from temaki.report.axis import axis
from temaki.report.figures import short
from temaki.report.page import escape

LEVELS = 9
"""Strongest weight of a drawn attention map."""


@dataclass(frozen=True)
class Seen:
    """A variant's values, one a seed."""

    name: str
    values: Sequence[float]
    lost: str = ""
    """What is said where there is none, or beside those there are."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Between seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def ranked(items: Sequence[Seen], most_first: bool = False) -> list[Seen]:
    """The best first, those without a value last."""
    return sorted(items, key=lambda s: (not s.values, (-s.mean if most_first else s.mean) if s.values else 0.0))


def whiskers(items: Sequence[Seen], unit: str, places: int = 3) -> str:
    """A line a variant: its mean, one deviation to both sides, a dot a seed; the same scale for all."""
    found = [
        x for s in items if s.values for x in (*s.values, s.mean - (s.deviation or 0), s.mean + (s.deviation or 0))
    ]
    scale = axis(found, most=5)
    rows = "".join(_whisker(s, scale.share, places) for s in items)
    ends = "".join(f"<span>{escape(name)}</span>" for name in scale.names())
    said = "; ".join(f"{s.name} {_said(s, places)}" for s in items)
    return (
        f'<div class="card" role="img" aria-label="{escape(said)}"><div class="unit">{escape(unit)}</div>'
        f'<div class="whisks">{rows}</div><div class="scale">{ends if found else ""}</div></div>'
    )


def _said(seen: Seen, places: int) -> str:
    if not seen.values:
        return seen.lost or "none"
    spread = "" if seen.deviation is None else f" ± {seen.deviation:.{places}f}"
    return f"{seen.mean:.{places}f}{spread}"


def _whisker(seen: Seen, share: Callable[[float], float], places: int) -> str:
    name = f'<span class="name">{escape(seen.name)}</span>'
    if not seen.values:
        lost = f'<span class="value lost">{escape(seen.lost)}</span>'
        return f'<div class="whisk">{name}<span class="lane"></span>{lost}</div>'
    at = [100 * share(x) for x in seen.values]
    middle = 100 * share(seen.mean)
    parts = []
    if seen.deviation is not None:
        low, high = (100 * share(seen.mean + side * seen.deviation) for side in (-1, 1))
        parts.append(f'<i class="sd" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>')
    parts += [f'<i class="dot" style="left:{x:.2f}%"></i>' for x in at]
    parts.append(f'<i class="mid" style="left:{middle:.2f}%"></i>')
    spread = "" if seen.deviation is None else f" <small>± {seen.deviation:.{places}f}</small>"
    lost = f' <small class="lost">{escape(seen.lost)}</small>' if seen.lost else ""
    value = f'<span class="value">{seen.mean:.{places}f}{spread}{lost}</span>'
    return f'<div class="whisk">{name}<span class="lane">{"".join(parts)}</span>{value}</div>'


def attention_map(rows: Sequence[str], said: str) -> str:
    """A map of weights, a text a query with a digit 0..LEVELS a key; 0 is left empty."""
    size = len(rows)
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(rows):
        x = 0
        while x < len(row):
            end = x + 1
            while end < len(row) and row[end] == row[x]:
                end += 1
            if row[x] != "0":
                paths.setdefault(int(row[x]), []).append(f"M{x} {y}h{end - x}v1h-{end - x}z")
            x = end
    drawn = "".join(
        f'<path opacity="{level / LEVELS:.2f}" d="{"".join(parts)}"/>' for level, parts in sorted(paths.items())
    )
    return f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{escape(said)}">{drawn}</svg>'


def gallery(items: Sequence[tuple[str, str, str]]) -> str:
    """Cards side by side: (name, a word, content)."""
    made = "".join(
        f'<div class="card"><h4>{escape(name)}</h4><small class="quiet">{escape(word)}</small>{content}</div>'
        for name, word, content in items
    )
    return f'<div class="gallery">{made}</div>' if items else ""


def heads(worth: Mapping[str, Sequence[float]], top: float) -> str:
    """What each head is worth as columns, the most first; those that would be better gone are marked."""
    found = sorted((x for layer in worth.values() for x in layer), reverse=True)
    said = ", ".join(short(x) for x in found)
    bars = "".join(
        f'<i class="{"less" if x < 0 else ""}" style="height:{100 * min(1.0, abs(x) / top):.1f}%" '
        f'title="{escape(f"{x:+.4f} nats")}"></i>'
        for x in found
    )
    return f'<div class="heads" role="img" aria-label="{escape(f"nats a head: {said}")}">{bars}</div>'


def columns(names: Sequence[str], one: Sequence[float], two: Sequence[float], said: tuple[str, str]) -> str:
    """Two columns a name about one line of zero, for numbers of both signs."""
    high, low = max(0.0, *one, *two), min(0.0, *one, *two)
    span = (high - low) or 1.0
    zero = 100 * high / span

    def bar(kind: str, x: float) -> str:
        top = zero - 100 * max(0.0, x) / span
        return f'<i class="{kind}" style="top:{top:.1f}%;height:{100 * abs(x) / span:.1f}%" title="{x:+.3f}"></i>'

    made = "".join(
        f'<div><div class="field"><hr style="top:{zero:.1f}%">{bar("one", a)}{bar("two", b)}</div>'
        f"<span>{escape(name)}</span><span>{a:+.2f} · {b:+.2f}</span></div>"
        for name, a, b in zip(names, one, two, strict=True)
    )
    keys = "".join(
        f'<span class="key"><i class="c{c}"></i>{escape(word)}</span>' for c, word in zip((0, 1), said, strict=True)
    )
    return f'<div class="card"><div class="legend">{keys}</div><div class="columns">{made}</div></div>'
