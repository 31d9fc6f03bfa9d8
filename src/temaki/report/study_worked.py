"""The worked pictures that open a study's page; their numbers are made by `study/worked.py`."""

import math
from collections.abc import Mapping
from typing import Any

from temaki.report import chart, page, study_pictures
from temaki.report.chart import Series
from temaki.report.study_tables import said


def opening(found: Mapping[str, Any]) -> list[str]:
    """The sections that a study opens with."""
    made = {
        "linear": _linear,
        "lookup": _lookup,
        "weights": _weights,
        "spread": _uniform,
        "contrast": _contrast,
        "memory": _memory,
    }
    return [make(found["worked"][name]) for name, make in made.items() if name in found["worked"]]


def _linear(found: Mapping[str, Any]) -> str:
    names, moved = [f"score {x:g}" for x in found["scores"]], found["moved"]
    curves = [
        Series(name, list(zip(moved["grown"], moved[key], strict=True)), "line", colour)
        for colour, (name, key) in enumerate((("score / sum", "linear"), ("softmax", "softmax")))
    ]
    title = f"Weight of the first score, as the last one grows from {moved['from']:g}"
    told = (
        "Dividing scores by their sum looks like the plainest way to make weights of them. With scores of both signs "
        "the weights have both signs too, are larger than one, and where the sum passes through zero they have no "
        "value at all: a small step of one score throws every weight from one end to the other. e^s is above zero for "
        "every s."
    )
    return page.section(
        "Why not divide by the sum?", said(told),
        study_pictures.columns(names, found["linear"], found["softmax"], ("score / sum", "softmax")),
        '<div class="charts">',
        chart.lines(title, curves, "grown by", "weight", wide=True),
        "</div>",
    )  # fmt: skip


def _lookup(found: Mapping[str, Any]) -> str:
    curves = [
        Series(f"sharpness {name}", list(zip(found["turn"], ys, strict=True)), "line", colour)
        for colour, (name, ys) in enumerate(found["answers"].items())
    ]
    told = (
        "Eight keys stand around a circle, each with its number as its value. A query between them is answered with "
        "the weighted mean of the values. The sharper the scores, the more the answer is the value of the nearest key: "
        "attention is a dictionary whose look-up can be differentiated. Blunt, it gives the mean of all values."
    )
    picture = chart.lines("What a query is answered", curves, "where the query stands, in keys", "answer", wide=True)
    return page.section("Attention is a soft look-up", said(told), f'<div class="charts">{picture}</div>')


def _weights(found: Mapping[str, Any]) -> str:
    def line(weights: list[float]) -> str:
        return "  ".join("0" if w == 0 else f"{w:.3f}" for w in weights)

    scores = ", ".join(f"{x:g}" for x in found["scores"])
    told = (
        f"The scores {scores}, and the same less {found['by']:g}. Where 0 stands, the weight is exactly zero. Beside "
        "them what holds for any scores: the weights sum to one; a larger score never has a smaller weight, and equal "
        "ones have equal ones; a number added to all scores changes nothing; exact zeros are possible."
    )
    rows = [
        [each["map"], line(each["weights"]), line(each["moved"]), *("yes" if kept else "no" for kept in each["keeps"])]
        for each in found["rows"]
    ]
    head = ["map", "weights", f"less {found['by']:g}", "sums to 1", "ordered", "shifts", "zeros"]
    return page.section("One set of scores, every map", said(told), page.table(head, rows))


def _uniform(found: Mapping[str, Any]) -> str:
    xs = [math.log2(n) for n in found["places"]]
    curves = [
        Series("measured", list(zip(xs, found["mean"], strict=True)), "dots", 0),
        Series("1/n", list(zip(xs, found["said"], strict=True)), "line", 5),
    ]
    told = (
        "Without positions, causal attention still is not blind to order: the n-th id averages n values. If attention "
        "is uniform and the values are independent with mean zero, the mean square of what it gives is 1/n. Measured "
        "with a layer of attention whose queries and keys are zero. It is one number, and it changes ever more slowly "
        "with n: enough to tell the third place from the thirtieth, hardly the 300th from the 301st."
    )
    rows = [
        [f"{n:,}", f"{a:.5f}", f"{b:.5f}"]
        for n, a, b in zip(found["places"], found["mean"], found["said"], strict=True)
    ]
    picture = chart.lines("Mean square by place", curves, "log2 of the place n", "mean square", log=True, wide=True)
    table = page.fold("As numbers", page.table(["n", "measured", "1/n"], rows, numbers=(0, 1, 2)))
    return page.section("How no positions can be enough", said(told), f'<div class="charts">{picture}</div>', table)


def _contrast(found: Mapping[str, Any]) -> str:
    def lines(x: list[list[float]]) -> str:
        return "\n".join("  ".join(f"{each:8.4f}" for each in row) for row in x)

    items = [
        ("the numbers", "two ids, three coordinates", page.code(lines(found["x"]))),
        ("LayerNorm", "over each row: an id by itself", page.code(lines(found["layer"]))),
        ("BatchNorm", "over each column: all ids together", page.code(lines(found["batch"]))),
    ]
    told = (
        "LayerNorm and RMSNorm look at one id. BatchNorm looks at one coordinate over all ids of a batch, so in "
        "training each id depends on its neighbours, on other rows and on later places; outside of training it uses "
        "running means."
    )
    return page.section("Along which side?", said(told), study_pictures.gallery(items))


def _memory(found: Mapping[str, Any]) -> str:
    curves = [Series("signal", list(zip(found["time"], found["signal"], strict=True)), "line", 5)]
    curves += [
        Series(name, list(zip(found["time"], ys, strict=True)), "line", colour)
        for colour, (name, ys) in enumerate(found["remembered"].items())
    ]
    picture = chart.lines("A signal, and what a few numbers remember of it", curves, "time", "value", wide=True)
    told = (
        "A state space reads a signal sample by sample and carries a few numbers. HiPPO's matrices make those numbers "
        "the coefficients of the best polynomial through the past: of all of it, evenly (LegS), or of a window that "
        "slides along (LegT). Drawn from the numbers alone, after the last sample."
    )
    return page.section("A memory of fixed size", said(told), f'<div class="charts">{picture}</div>')
