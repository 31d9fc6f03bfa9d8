"""Charts as HTML with inline SVG: lines, dots and bars; no library, nothing loaded.

The SVG stretches with its box and only its strokes keep their width; all words are HTML beside it, so that
they stay readable on a phone. `page.py` holds the style and the few lines of script for the readout.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from temaki.report.axis import Axis, axis, log_axis
from temaki.report.figures import short
from temaki.report.page import escape

Point = tuple[float, float | None]
"""(x, y); y = None breaks the line."""
MOST = 500
"""Points of a series that are drawn in a wide chart; half as many in a narrow one."""
LATE = 0.06
"""The share of a chart that counts as its start."""
OUTLIER = 10
"""A few values more than this times the 99th percentile are cut off at the top."""

MARKS = ("resumed", "the rate falls from here", "update left out", "spike", "rolled back")
"""What upright lines can say; each has its own look."""
MOST_MARKS = 40
"""Upright lines of one name that are drawn."""

OVER = " · higher values run out at the top"


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    look: Literal["line", "faint", "dots", "back"] = "line"
    """faint: measured values behind their smoothed line; dots: a line with a dot at each value; back: faint, and in
    neither legend nor readout."""
    colour: int = 0
    """Which colour of the page's list."""


def thin(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """About `most` points of the same shape: the least and the greatest of each of most/2 runs, in order."""
    if len(points) <= most:
        return list(points)
    runs = most // 2
    kept: list[Point] = []
    for i in range(runs):
        run = points[i * len(points) // runs : (i + 1) * len(points) // runs]
        seen = [(y, place) for place, (_, y) in enumerate(run) if y is not None]
        broken = [place for place, (_, y) in enumerate(run) if y is None][:1]
        places = {min(seen)[1], max(seen)[1], *broken} if seen else set(broken)
        kept.extend(run[place] for place in sorted(places))
    return kept


def smooth(points: Sequence[Point], width: float) -> list[Point]:
    """An exponential mean over about `width` points, fewer at the start; broken places are passed over.

    m_t = m_(t-1) + (y_t - m_(t-1)) / w_t with w_t = min(width, 1 + t/5), so that a steep start is not
    dragged along.

    >>> smooth([(0, 2.0), (1, 2.0), (2, None), (3, 2.0)], 5)
    [(0, 2.0), (1, 2.0), (2, None), (3, 2.0)]
    """
    mean, seen = 0.0, 0
    made: list[Point] = []
    for x, y in points:
        if y is not None:
            mean += (y - mean) / max(1.0, min(width, 1 + seen / 5))
            seen += 1
        made.append((x, mean if y is not None else None))
    return made


def lines(
    title: str,
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    *,
    zero: bool = False,
    late: bool = False,
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    wide: bool = False,
) -> str:
    """A chart of lines over x from 0; without a finite value, a card that says so.

    `marks` are upright lines with a name; `zero` takes 0 into the range of y; `late` lets the first values
    run out at the top, so that the later ones can be told apart; `log` draws ratios of y, of values above 0.
    """
    card = "card wide" if wide else "card"
    most = MOST if wide else MOST // 2
    drawn = [replace(s, points=thin(_above(s.points) if log else s.points, most)) for s in series]
    drawn = [s for s in drawn if any(y is not None for _, y in s.points)]
    if not drawn:
        quiet = '<p class="quiet">Nothing measured yet.</p>'
        return f'<figure class="{card}"><h3>{escape(title)}</h3>{quiet}</figure>'
    xs = axis((x for s in drawn for x, _ in s.points), most=6, round_out=False, zero=True)
    first = xs.low + LATE * (xs.high - xs.low) if late else xs.low
    seen = [y for s in drawn for x, y in s.points if y is not None and x >= first]
    values = seen or [y for s in drawn for _, y in s.points if y is not None]
    ys = log_axis(values) if log else axis(_within(values), zero=zero)
    shapes = [_grid(xs, ys), *(_mark(xs, x, name) for x, name in _few(marks)), *(_shape(s, xs, ys) for s in drawn)]
    return "".join(
        [
            f'<figure class="{card}" data-chart="{escape(_numbers(drawn, xs, ys, x_name))}">',
            f"<figcaption><h3>{escape(title)}</h3>{_legend(drawn, marks)}</figcaption>",
            f'<div class="unit">{escape(y_name)}{OVER if _over(drawn, ys) else ""}</div>',
            '<div class="plot" tabindex="0">',
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(_words(title, drawn))}">',
            f"<title>{escape(title)}</title>",
            *shapes,
            "</svg>",
            *(_tick("y", 1 - ys.share(t), word) for t, word in zip(ys.ticks, ys.names(), strict=True)),
            *(_tick("x", xs.share(t), word) for t, word in zip(xs.ticks, xs.names(), strict=True)),
            '<div class="cursor" hidden></div><div class="readout" role="status" hidden></div>',
            "</div>",
            f'<div class="unit below">{escape(x_name)}</div>',
            "</figure>",
        ]
    )


@dataclass(frozen=True)
class Bar:
    """One bar of a comparison."""

    name: str
    value: float
    ours: bool = False


def bars(title: str, items: Sequence[Bar], unit: str) -> str:
    """Bars from zero, one below the other, each with its number."""
    top = max((item.value for item in items), default=0.0) or 1.0
    words = ", ".join(f"{item.name} {item.value:.3f}" for item in items)
    rows = "".join(
        f'<div class="bar{" ours" if item.ours else ""}"><span class="name">{escape(item.name)}</span>'
        '<span class="track">'
        f'<span class="fill" style="width:{100 * max(0.0, item.value) / top:.2f}%"></span></span>'
        f'<span class="value">{item.value:.3f}</span></div>'
        for item in items
    )
    said = escape(f"{title}: {words} {unit}")
    return f'<div class="bars" role="img" aria-label="{said}">{rows}</div>'


def _above(points: Sequence[Point]) -> list[Point]:
    """The points, broken where there is no logarithm."""
    return [(x, y if y is not None and y > 0 else None) for x, y in points]


def _few(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """At most MOST_MARKS of each name, evenly."""
    found = []
    for name in dict.fromkeys(name for _, name in marks):
        places = [x for x, said in marks if said == name]
        every = -(-len(places) // MOST_MARKS)
        found += [(x, name) for x in places[::every]]
    return found


def _within(values: Sequence[float]) -> list[float]:
    """The values without the few that would flatten all others."""
    bound = OUTLIER * abs(sorted(values)[int(0.99 * (len(values) - 1))])
    return [value for value in values if value <= bound] or list(values)


def _over(series: Sequence[Series], ys: Axis) -> bool:
    return any(y > ys.high for s in series for _, y in s.points if y is not None)


def _place(xs: Axis, ys: Axis, x: float, y: float) -> str:
    return f"{100 * xs.share(x):.2f} {100 - 100 * max(-0.5, min(1.5, ys.share(y))):.2f}"


def _shape(series: Series, xs: Axis, ys: Axis) -> str:
    parts, pen = [], "M"
    for x, y in series.points:
        if y is None:
            pen = "M"
            continue
        parts.append(pen + _place(xs, ys, x, y))
        pen = "L"
    kind = _colour(series)
    path = f'<path class="{"line" if series.look in ("line", "dots") else series.look} {kind}" d="{"".join(parts)}"/>'
    alone = sum(y is not None for _, y in series.points) == 1
    if series.look != "dots" and not alone:
        return path
    dots = "".join(f"M{_place(xs, ys, x, y)}h.001" for x, y in series.points if y is not None)
    return path + f'<path class="dot {kind}" d="{dots}"/>'


def _colour(series: Series) -> str:
    return f"c{series.colour % 6} dash{series.colour // 6 % 3}"


def _grid(xs: Axis, ys: Axis) -> str:
    upright = "".join(f"M{100 * xs.share(t):.2f} 0V100" for t in xs.ticks)
    level = "".join(f"M0 {100 - 100 * ys.share(t):.2f}H100" for t in ys.ticks)
    return f'<path class="grid" d="{upright}{level}"/>'


def _mark(xs: Axis, x: float, name: str) -> str:
    return f'<path class="{_said(name)}" d="M{100 * max(0.0, min(1.0, xs.share(x))):.2f} 0V100"/>'


def _said(name: str) -> str:
    """The look of an upright line."""
    return f"mark m{MARKS.index(name) if name in MARKS else 0}"


def _tick(side: Literal["x", "y"], share: float, word: str) -> str:
    edge = "left" if side == "x" else "top"
    return f'<span class="{side}tick" style="{edge}:{100 * share:.2f}%">{escape(word)}</span>'


def _legend(series: Sequence[Series], marks: Sequence[tuple[float, str]]) -> str:
    keys = [
        f'<span class="key"><i class="{s.look} {_colour(s)}"></i>{escape(s.name)}</span>'
        for s in series
        if s.look != "back"
    ]
    names = dict.fromkeys(name for _, name in marks)
    keys += [f'<span class="key"><i class="{_said(name)}"></i>{escape(name)}</span>' for name in names]
    return f'<div class="legend">{"".join(keys)}</div>' if len(keys) > 1 else ""


def _words(title: str, series: Sequence[Series]) -> str:
    """What the picture shows, for those who hear it."""
    told = []
    for s in [s for s in series if s.look != "back"]:
        values = [y for _, y in s.points if y is not None]
        told.append(f"{s.name} from {short(values[0])} to {short(values[-1])}, least {short(min(values))}")
    return f"{title}: {'; '.join(told)}"


def _numbers(series: Sequence[Series], xs: Axis, ys: Axis, x_name: str) -> str:
    """What the readout needs, as JSON."""
    return json.dumps(
        {
            "x": [xs.low, xs.high],
            "y": [ys.low, ys.high],
            "unit": x_name,
            "series": [
                {
                    "name": s.name,
                    "colour": s.colour % 6,
                    "x": [x for x, y in s.points if y is not None],
                    "y": [float(f"{y:.5g}") for _, y in s.points if y is not None],
                }
                for s in series
                if s.look != "back"
            ],
        },
        separators=(",", ":"),
    )
