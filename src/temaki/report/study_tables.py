"""What a study's page says of every part: figures with their deviation, the table, error bars, curves.

All is read from the mapping that results.json holds.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from temaki.report import chart, figures, page, study_pictures
from temaki.report.chart import Series
from temaki.report.study_pictures import Seen

Part = Mapping[str, Any]
Run = Mapping[str, Any]


def said(text: str) -> str:
    """A paragraph."""
    return f'<p class="told">{page.escape(text)}</p>'


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{page.escape(text)}</h3>"


def ended(part: Part, name: str) -> list[Run]:
    """The runs of a variant that finished, by seed."""
    return [each for each in part["variants"][name]["runs"] if each["state"] == "finished"]


def seen(part: Part, name: str, value: Callable[[Run], float | None]) -> Seen:
    """A variant's values, one a seed, and how many runs diverged."""
    values = [found for each in ended(part, name) if (found := value(each)) is not None]
    lost = part["variants"][name]["diverged"]
    word = f"{lost} diverged" if lost else ("" if values else "not run")
    return Seen(name, values, word)


def plus(value: Seen, places: int = 3) -> str:
    """Mean ± deviation."""
    if not value.values:
        return value.lost or "–"
    spread = "" if value.deviation is None else f" ± {value.deviation:.{places}f}"
    return f"{round(value.mean, places) + 0.0:.{places}f}{spread}"


def means(part: Part, name: str, path: Sequence[str]) -> list[float | None]:
    """The mean over seeds of a measured list, place by place."""
    found = [at(each["measures"], path) for each in ended(part, name)]
    lists = [each for each in found if each]
    return [
        statistics.fmean(values) if (values := [x for x in place if x is not None]) else None
        for place in zip(*lists, strict=True)
    ]


def at(found: Any, path: Sequence[str]) -> Any:
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def summary(part: Part) -> str:
    """The table of a part: parameters, loss, accuracy, speed, the best first."""
    asked = any("accuracy" in each for each in part["variants"].values())
    key = "accuracy" if asked else "loss"
    order = study_pictures.ranked([seen(part, name, lambda r: r[key]) for name in part["variants"]], asked)
    rows = []
    for place, one in enumerate(order):
        each = part["variants"][one.name]
        loss = seen(part, one.name, lambda r: r["loss"])
        first = ended(part, one.name)[:1]
        rows.append(
            [
                str(place + 1) if one.values else "–",
                one.name,
                each["says"],
                figures.short(first[0]["parameters"]) if first else "–",
                plus(loss, 4),
                *([plus(one, 3)] if asked else []),
                figures.short(_mean(each, "tokens_per_second")),
                f"{first[0]['lr']:.3g}" if first and first[0]["lr"] else "–",
            ]
        )
    head = ["", "variant", "what it is", "parameters", "loss, held-out"]
    head += [*(["accuracy"] if asked else []), "ids/s", "rate"]
    return page.table(head, rows, numbers=(0, *range(3, len(head))))


def _mean(variant: Mapping[str, Any], name: str) -> float | None:
    return variant[name]["mean"] if name in variant else None


def scores(part: Part) -> str:
    """Loss, or accuracy where answers are asked, with error bars."""
    if any("accuracy" in each for each in part["variants"].values()):
        items = [seen(part, name, lambda r: r["accuracy"]) for name in part["variants"]]
        return study_pictures.whiskers(study_pictures.ranked(items, True), "accuracy; more is better")
    items = [seen(part, name, lambda r: r["loss"]) for name in part["variants"]]
    return study_pictures.whiskers(study_pictures.ranked(items), "loss on held-out text, nats an id; less is better")


def curves(part: Part, *, gradients: bool = False) -> str:
    """Curves over steps, a line a variant (the mean over seeds), each seed faint behind it."""
    wanted = [("validation", "Held-out loss", "nats an id", False)]
    wanted += [("training", "Training loss", "nats an id", False)]
    wanted += [("gradients", "Norm of the gradient", "L2, before clipping", True)] if gradients else []
    made = [_curves(part, key, title, unit, log) for key, title, unit, log in wanted]
    return f'<div class="charts">{"".join(made)}</div>'


def _curves(part: Part, key: str, title: str, unit: str, log: bool) -> str:
    back, front = [], []
    for colour, (name, variant) in enumerate(part["variants"].items()):
        every = [[(float(x), y) for x, y in each[key]] for each in variant["runs"] if each[key]]
        back += [Series(name, points, "back", colour) for points in every] if len(every) > 1 else []
        lengths = {len(points) for points in every}
        if every and len(lengths) == 1:
            front.append(Series(name, [_middle(place) for place in zip(*every, strict=True)], "line", colour))
        elif every:
            front.append(Series(name, max(every, key=len), "line", colour))
    return chart.lines(title, [*back, *front], "step", unit, late=not log, log=log, wide=key == "validation")


def _middle(place: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    values = [y for _, y in place if y is not None]
    return place[0][0], statistics.fmean(values) if len(values) == len(place) else None


def rates(part: Part) -> str:
    """What the rates that were tried ended at."""
    rows = []
    for name, ends in part["rates"].items():
        best = min((x for x in ends.values() if x is not None), default=None)
        for factor, loss in ends.items():
            mark = "chosen" if loss is not None and loss == best else ""
            rows.append([name, f"x{factor}", "diverged" if loss is None else f"{loss:.4f}", mark])
    table = page.table(["rule", "factor on its rate", "loss", ""], rows, numbers=(1, 2))
    return page.fold("Rates that were tried, on a seed of their own", table) if rows else ""
