"""What a study's page shows of each thing that was measured: a function a measure, from results.json alone."""

import math
import statistics
from collections.abc import Callable, Mapping

from temaki.report import chart, figures, page, study_pictures
from temaki.report.chart import Series
from temaki.report.study_tables import Part, Run, at, ended, heading, means, plus, said, seen

PUBLISHED = (
    ("learned", "20.42", "13.05"), ("sinusoidal", "20.16", "12.93"), ("alibi", "19.71", "12.51"),
    ("none", "20.97", "13.10"),
)  # fmt: skip
"""Perplexities reported elsewhere: WikiText-103 with 247 M parameters, the Pile with 1.3 B."""


def length(part: Part) -> str:
    """Loss at the training length, and at two and four times it."""
    names = [name for name in part["variants"] if any("length" in each["measures"] for each in ended(part, name))]
    if not names:
        return ""
    context = part["context"]
    rows = []
    order = study_pictures.ranked([seen(part, name, _length("short")) for name in names])
    for one in order:
        cannot = next((m for each in ended(part, one.name) if (m := at(each, ["measures", "length", "cannot"]))), None)
        cells = [plus(seen(part, one.name, _length("mean", i))) for i in range(3)]
        gains = [plus(seen(part, one.name, _gain(i))) for i in (1, 2)]
        rows.append([one.name, plus(one), *(["cannot"] * 4 if cannot else [*cells[1:], *gains])])
    last, lengths = context // 4, (context, 2 * context, 4 * context)
    head = ["variant", *(f"rows of {n}" for n in lengths), *(f"last {last} of {n}, less short" for n in lengths[1:])]
    far = [seen(part, name, _length("mean", 2)) for name in names]
    places = [
        Series(name, [((i + 1) * context / 4, y) for i, y in enumerate(found)], "line", colour)
        for colour, name in enumerate(part["variants"])
        if (found := means(part, name, ["length", "places"]))
    ]
    told = (
        f"Held-out stretches of {4 * context} ids are read whole, and again in rows of {context}, the training length. "
        "The last two columns are the difference at the very same ids: below zero, the longer past helped; above, it "
        "harmed."
    )
    if any("cannot" in row for row in rows):
        told += " A learned vector a position ends where the vectors end: such a model cannot read on."
    return "".join([
        heading("Beyond the training length"), said(told), page.table(head, rows, numbers=range(1, 6)),
        heading(f"Loss in rows of {4 * context}"),
        study_pictures.whiskers(study_pictures.ranked([f for f in far if f.values]), "nats an id"),
        '<div class="charts">', chart.lines("Loss along the row", places, "place", "nats an id", wide=True), "</div>",
    ])  # fmt: skip


def _length(key: str, place: int | None = None) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found = at(run, ["measures", "length", key])
        return found if place is None or found is None else found[place]

    return value


def _gain(place: int) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found = at(run, ["measures", "length"])
        return found["last"][place] - found["cut"][place] if found and "last" in found else None

    return value


def order(part: Part) -> str:
    """What order is worth."""
    names = [name for name in part["variants"] if any("order" in each["measures"] for each in ended(part, name))]
    if not names:
        return ""

    def value(key: str) -> Callable[[Run], float | None]:
        return lambda run: at(run, ["measures", "order", key])

    rows = [
        [name, plus(seen(part, name, value("ordered"))), plus(seen(part, name, value("shuffled")))] for name in names
    ]
    told = (
        "Held-out text is read as it is, and with its order lost: the ids stay in pairs and the pairs change places "
        "within a row. Only the second id of each pair is judged, which follows its true predecessor in both texts; "
        "all that differs is whether the past before it is in order. none-shuffled is the model without positions "
        "trained on such mixed text: what the same model can do without order. If none is better in order than "
        "none-shuffled is in either text, then causal attention alone does know order."
    )
    table = page.table(["variant", "in order", "mixed"], rows, numbers=(1, 2))
    return heading("What order is worth") + said(told) + table


def spread(part: Part) -> str:
    """The scale of attention's output by place, of a trained model."""
    made = []
    for name in part["variants"]:
        run = next((each for each in ended(part, name) if "spread" in each["measures"]), None)
        if run is None or name not in ("none", "rope", "alibi"):
            continue
        found = run["measures"]["spread"]
        lines = [
            Series(f"layer {int(layer) + 1}", list(zip(map(_log2, found["places"]), ys, strict=True)), "dots", i)
            for i, (layer, ys) in enumerate(found["layers"].items())
        ]
        law = Series("1/n", [(_log2(n), 1 / n) for n in found["places"]], "line", 5)
        made.append(chart.lines(f"Trained, {name}", [*lines, law], "log2 of the place n", "share of place 1", log=True))
    if not made:
        return ""
    told = (
        "The same measured in trained models: the mean square of what each layer's attention adds, by place. Trained "
        "attention is not uniform, and its values have a mean, so it falls more slowly than 1/n."
    )
    return (
        heading("The scale of attention's output, after training")
        + said(told)
        + f'<div class="charts">{"".join(made)}</div>'
    )


def _log2(n: float) -> float:
    return math.log2(n)


def heads(part: Part) -> str:
    """Loss for each head taken out."""
    found = {
        name: (each["measures"]["heads"]["worth"], each["seed"])
        for name in part["variants"]
        for each in ended(part, name)
        if "heads" in each["measures"]
    }
    if not found:
        return ""
    top = max(abs(x) for worth, _ in found.values() for layer in worth.values() for x in layer) or 1.0
    items = [
        (
            name,
            f"most {max(x for layer in worth.values() for x in layer):.3f} nats, seed {seed}",
            study_pictures.heads(worth, top),
        )
        for name, (worth, seed) in found.items()
    ]
    told = (
        "Each head's columns of the output projection are set to zero, one head at a time: how much the held-out loss "
        "grows. One scale for all; the most important head stands first. A head whose removal helps has the other "
        "colour."
    )
    return heading("Loss for each head taken out") + said(told) + study_pictures.gallery(items)


def maps(part: Part) -> str:
    """Where attention looks, and how many weights are zero."""
    found = {
        name: each["measures"]["maps"]
        for name in part["variants"]
        for each in ended(part, name)
        if "maps" in each["measures"]
    }
    if not found:
        return ""
    rows = [
        [
            name,
            *(figures.percent(x) for x in each["zeros"].values()),
            f"{each['sums'][0]:.3f} to {each['sums'][1]:.3f}",
        ]
        for name, each in found.items()
    ]
    layers = max(len(each["zeros"]) for each in found.values())
    table = page.table(
        ["map", *(f"layer {i + 1}" for i in range(layers)), "sum of a row"], rows, numbers=range(1, layers + 2)
    )
    items = [
        (
            name,
            f"layer {int(layer) + 1}",
            '<div class="looks">'
            + "".join(
                study_pictures.attention_map(head, f"{name}, layer {int(layer) + 1}, head {h + 1}")
                for h, head in enumerate(shown)
            )
            + "</div>",
        )
        for name, each in found.items()
        for layer, shown in each["maps"].items()
    ]
    told = (
        "The share of exact zeros among the weights an id may give, by layer of the trained models, and what the "
        "weights of a row sum to."
    )
    looks = (
        "Thirty-two ids of held-out text: a row is a query, a column a key, darker is more (the square root of the "
        "weight); nothing is drawn where the weight is exactly zero. First and last layer of the first seed."
    )
    return "".join([heading("Exact zeros"), said(told), table, heading("Where heads look"), said(looks),
                    study_pictures.gallery(items)])  # fmt: skip


def decoding(part: Part) -> str:
    """Milliseconds an id and bytes of state."""
    rows = []
    for name in part["variants"]:
        runs = [each["measures"]["decoding"] for each in ended(part, name) if "decoding" in each["measures"]]
        if runs:
            times = [statistics.median(each["milliseconds"][i] for each in runs) for i in range(len(runs[0]["held"]))]
            sizes = runs[0]["bytes"]
            rows.append([name, *(f"{ms:.2f}" for ms in times), *(figures.size(size) for size in sizes)])
    if not rows:
        return ""
    held = next(each["measures"]["decoding"]["held"] for n in part["variants"] for each in ended(part, n))
    head = ["variant", *(f"ms an id behind {n:,}" for n in held), *(f"state behind {n:,}" for n in held)]
    told = (
        "Writing one id after another, greedily, one stream, on torch: the median of 24 steps, and what a slot holds."
    )
    return heading("Writing") + said(told) + page.table(head, rows, numbers=range(1, len(head)))


def published(part: Part) -> str:
    """Perplexities reported elsewhere beside the losses found here, in the order found here."""
    known = {name: rest for name, *rest in PUBLISHED}
    found = [seen(part, name, lambda r: r["loss"]) for name in part["variants"] if name in known]
    order = study_pictures.ranked([each for each in found if each.values])
    if not order:
        return ""
    told = (
        "For orientation only: perplexities published for two larger models at their training length. Sizes, texts and "
        "tokenizers differ, so only the order may be compared."
    )
    rows = [[each.name, plus(each, 4), f"{math.exp(each.mean):.2f}", *known[each.name]] for each in order]
    head = ["positions", "loss here", "perplexity here", "WikiText-103, 247 M", "the Pile, 1.3 B"]
    return heading("Beside published figures") + said(told) + page.table(head, rows, numbers=range(1, 5))


SECTIONS: Mapping[str, Callable[[Part], str]] = {
    "length": length, "order": order, "spread": spread, "maps": maps, "heads": heads, "decoding": decoding,
}  # fmt: skip
