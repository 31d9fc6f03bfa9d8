"""The curves of one run: what it measured of itself, over its steps."""

from collections.abc import Callable, Sequence

from temaki.report import chart
from temaki.report.chart import MARKS, Point, Series
from temaki.report.figures import number
from temaki.report.folder import RunFolder

SMOOTH = 40
"""Smoothed curves are means over the number of points divided by this."""
MOST = 1000
"""Lines that a curve by role is made from; it is smoothed anyway."""


def smoothed(points: Sequence[Point]) -> list[Point]:
    """A curve's running mean, as wide as suits its length."""
    return chart.smooth(points, len(points) / SMOOTH)


def charts(run: RunFolder) -> list[str]:
    """The charts of a run; what it did not measure is left out, but for its loss, rate, gradient and speed."""
    made = [
        _loss(run),
        _bits(run),
        _accuracy(run),
        _rate(run),
        _measured(run, "Gradient norm", "grad_norm", "L2, before clipping", 3),
    ]
    made += [_roles(run, *each) for each in BY_ROLE]
    speed = _measured(run, "Speed", "tokens_per_second", "tokens a second", 4)
    return [each for each in [*made, _noise(run), speed, _share(run), _memory(run)] if each]


def _loss(run: RunFolder) -> str:
    loss = run.curve("step", "loss")
    curves = [
        Series("training, as logged", loss, "faint", 0),
        Series("training, smoothed", smoothed(loss), "line", 0),
        Series("validation", run.curve("validate", "loss"), "dots", 1),
    ]
    return chart.lines("Loss", curves, "step", "nats a token", late=True, marks=run.marks, wide=True)


def _bits(run: RunFolder) -> str:
    bits = Series("validation", run.curve("validate", "bits_per_byte"), "dots", 1)
    marks = [mark for mark in run.marks if mark[1] == MARKS[0]]
    return chart.lines("Bits per byte", [bits], "step", "bits per byte", marks=marks) if bits.points else ""


def _accuracy(run: RunFolder) -> str:
    share = Series("validation", run.curve("validate", "accuracy"), "dots", 1)
    return chart.lines("Accuracy", [share], "step", "share of the answers", zero=True) if share.points else ""


def _rate(run: RunFolder) -> str:
    falls = [mark for mark in run.marks if mark[1] == MARKS[1]]
    rate = Series("rate", run.curve("step", "lr"), "line", 2)
    return chart.lines("Learning rate", [rate], "step", "rate", zero=True, marks=falls)


def _measured(run: RunFolder, title: str, name: str, unit: str, colour: int) -> str:
    points = run.curve("step", name)
    both = [Series("as logged", points, "faint", colour), Series("smoothed", smoothed(points), "line", colour)]
    marks = run.marks if name == "grad_norm" else []
    trouble = [mark for mark in marks if mark[1] not in MARKS[:2]]
    return chart.lines(title, both, "step", unit, zero=True, marks=trouble)


def _gradient(run: RunFolder, role: str) -> list[Point]:
    return run.curve("step", f"grad_norm/{role}", MOST)


def _weight(run: RunFolder, role: str) -> list[Point]:
    return run.curve("step", f"weight_norm/{role}", MOST)


def _moved(run: RunFolder, role: str) -> list[Point]:
    """The norm of an update as a share of the weights' norm before it."""
    weights = dict(_weight(run, role))
    shares: list[Point] = []
    for step, update in run.curve("step", f"update_norm/{role}", MOST):
        weight = weights.get(step)
        shares.append((step, update / weight if update is not None and weight else None))
    return shares


BY_ROLE: tuple[tuple[str, Callable[[RunFolder, str], list[Point]], str, str], ...] = (
    ("Update by role", _moved, "update_norm/", "norm of the update / norm of the weights"),
    ("Gradient norm by role", _gradient, "grad_norm/", "L2, before clipping"),
    ("Weight norm by role", _weight, "weight_norm/", "L2"),
)
"""(title, the curve of a role, how its names begin in metric lines, unit)."""


def _roles(run: RunFolder, title: str, curve: Callable[[RunFolder, str], list[Point]], start: str, unit: str) -> str:
    series = [Series(role, smoothed(curve(run, role)), "line", i) for i, role in enumerate(run.names("step", start))]
    return chart.lines(title, series, "step", unit, log=True) if series else ""


def _noise(run: RunFolder) -> str:
    """The gradient's noise scale beside the batch: far above it, a larger batch would pay; far below, a smaller one."""
    scale = run.curve("step", "noise_scale")
    if not scale:
        return ""
    series = [Series("noise scale", scale, "line", 3)]
    batch = number(run.setting("batch", "tokens"))
    if batch:
        series.append(Series("ids a step", [(scale[0][0], batch), (scale[-1][0], batch)], "line", 5))
    return chart.lines("Gradient noise scale", series, "step", "ids", log=True)


def _share(run: RunFolder) -> str:
    share = run.curve("step", "peak_share")
    percent = [(x, None if y is None else 100 * y) for x, y in share]
    series = [Series("as logged", percent, "faint", 1), Series("smoothed", smoothed(percent), "line", 1)]
    return chart.lines("Share of the matrix product's peak", series, "step", "percent", zero=True) if share else ""


def _memory(run: RunFolder) -> str:
    memory = run.curve("step", "memory")
    held = Series("resident", [(x, None if y is None else y / 1e9) for x, y in memory], "line", 5)
    return chart.lines("Memory", [held], "step", "GB", zero=True) if memory else ""
