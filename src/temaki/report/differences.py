"""What differs between the recipes of several runs, and a map of their losses by it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from temaki.report import figures
from temaki.report.folder import RunFolder
from temaki.report.page import escape
from temaki.report.runs import RunInfo

FIXED = ("seed",)
"""Settings that tell repetitions apart: means are taken over them."""
UNTOLD = ("name",)
"""Settings that differ between any two runs."""
FULL = 0.6
"""Share of a map's cells that must hold a run: less is not a grid."""
SHADES = 8
"""Shades of the map, the best first."""
FAILED = {"failed": "failed", "damaged": "damaged"}


def flat(settings: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Dotted keys -> values; the items of a list by their place.

    >>> flat({"model": {"pattern": [{"mixer": {"heads": 4}}]}, "seed": 1})
    {'model.pattern.0.mixer.heads': 4, 'seed': 1}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{under}{key}"
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inner, Mapping) and inner:
            found |= flat({str(k): v for k, v in inner.items()}, f"{name}.")
        else:
            found[name] = value
    return found


def keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys that are not the same in all recipes, in the order they first come.

    >>> keys([{"optim": {"lr": 1.0}, "seed": 1}, {"optim": {"lr": 2.0, "clip": 1.0}, "seed": 1}])
    ['optim.lr', 'optim.clip']
    """
    found = [flat(each) for each in settings]
    named = dict.fromkeys(key for each in found for key in each)
    return [key for key in named if key not in UNTOLD and any(each.get(key) != found[0].get(key) for each in found[1:])]


def said(settings: Mapping[str, Any], key: str) -> str:
    """The value of a dotted key in words; a dash where it is not there.

    >>> said({"optim": {"lr": 0.003}}, "optim.lr"), said({}, "optim.lr")
    ('0.003', '–')
    """
    value = flat(settings).get(key)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)


def map_of(found: Sequence[tuple[RunFolder, RunInfo]], all_keys: Sequence[str]) -> str:
    """A map of the best validation losses by the one or two settings that differ; nothing for other runs.

    Repetitions with another seed are one cell: their mean.
    """
    varied = [key for key in all_keys if key not in FIXED]
    if not 1 <= len(varied) <= 2 or len(found) < 3:
        return ""
    down, across = varied if len(varied) == 2 else (None, varied[0])
    cells: dict[tuple[str, str], list[RunInfo]] = defaultdict(list)
    for r, info in found:
        cells[said(r.settings, down) if down else "", said(r.settings, across)].append(info)
    rows, columns = (_ordered({place[i] for place in cells}) for i in (0, 1))
    if len(cells) < FULL * len(rows) * len(columns):
        return ""
    losses = {place: _loss(infos) for place, infos in cells.items()}
    whole = [loss for loss in losses.values() if loss is not None]
    low, high = (min(whole), max(whole)) if whole else (0.0, 0.0)
    head = "".join(f'<th scope="col" class="number">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row)}</th>'
        + "".join(_cell(losses.get((row, column)), cells.get((row, column), []), low, high) for column in columns)
        + "</tr>"
        for row in rows
    )
    seeds = " (means over seeds)" if any(len(infos) > 1 for infos in cells.values()) else ""
    corner = f"{down} \\ {across}" if down else across
    return (
        f'<div class="scroll card"><table class="heat"><thead><tr><th scope="col">{escape(corner)}</th>{head}'
        f'</tr></thead><tbody>{body}</tbody></table></div><p class="quiet">Best validation loss{seeds}, nats a token; '
        "less is better.</p>"
    )


def _ordered(values: set[str]) -> list[str]:
    """Numbers by size, words by the alphabet after them."""

    def place(text: str) -> tuple[bool, float, str]:
        try:
            return False, float(text), text
        except ValueError:
            return True, 0.0, text

    return sorted(values, key=place)


def _loss(infos: Sequence[RunInfo]) -> float | None:
    """The mean over repetitions; None where one of them failed or has none yet."""
    losses = [info.loss for info in infos if info.state not in FAILED]
    whole = [loss for loss in losses if loss is not None]
    return mean(whole) if whole and len(whole) == len(infos) else None


def _cell(loss: float | None, infos: Sequence[RunInfo], low: float, high: float) -> str:
    if loss is None:
        words = sorted({FAILED.get(info.state, info.state) for info in infos})
        return f'<td class="number quiet">{escape(", ".join(words) or "–")}</td>'
    worse = (loss - low) / (high - low) if high > low else 0.0
    shade = min(SHADES - 1, int(worse**0.5 * SHADES))  # the root: more shades near the best
    best = " best" if loss == low else ""
    return f'<td class="number heat{shade}{best}">{figures.fixed(loss)}</td>'
