"""A study as one offline page: worked pictures first, then each part with table, error bars and curves."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

from temaki.report import page, study_pictures, study_sections, study_tables, study_worked
from temaki.report.page import escape
from temaki.report.study_tables import heading, said, seen

HOW = (
    "Every point is a run of its own: the same data, order, steps and batch; the seed draws the initial values and the "
    "order of rows. A bar is one deviation to both sides of the mean over seeds, a dot is a seed. Differences smaller "
    "than the bars mean nothing."
)


def html(found: Mapping[str, Any]) -> str:
    """The page of what results.json of a study holds."""
    style = resources.files("temaki.report").joinpath("study.css").read_text(encoding="utf-8")
    parts = [_part(found, name, part) for name, part in found["parts"].items()]
    body = [
        f"<style>{style}</style>",
        _head(found),
        *study_worked.opening(found),
        _overview(found),
        *parts,
        _setting(found),
        "<footer>Written by temaki. This file loads nothing from anywhere.</footer>",
    ]
    return page.page(f"{found['title']} · temaki", body)


def _head(found: Mapping[str, Any]) -> str:
    runs = [run for part in found["parts"].values() for each in part["variants"].values() for run in each["runs"]]
    state = "stopped, not whole" if found["stopped"] else "whole"
    words = f"{found['says']} {len(runs)} runs, {found['seeds']} seeds, {found['written']}."
    notes = [f"Stopped by {found['stopped']}; the same command goes on from there."] if found["stopped"] else []
    lost = [
        f"{name}, {variant}: {each['diverged']} of {len(each['runs'])} runs diverged."
        for name, part in found["parts"].items()
        for variant, each in part["variants"].items()
        if each["diverged"]
    ]
    return (
        f'<header><div class="brand"><i></i>temaki study {escape(found["study"])}</div><div class="title">'
        f'<h1>{escape(found["title"])}</h1><span class="state">{state}</span></div>'
        f'<p class="lead">{escape(words)}</p></header>{page.notes([*notes, *lost])}'
    )


def _part(found: Mapping[str, Any], name: str, part: Mapping[str, Any]) -> str:
    ran = any(each["runs"] for each in part["variants"].values())
    if not ran:
        return page.section(part["title"], said(part["says"]), said("Not run yet."))
    steps, tokens = part["steps"], part["tokens"]
    runs = f"{steps:,} steps of {tokens:,} ids ({steps * tokens:,} in all) in rows of {part['context']}."
    measured = {key for each in part["variants"].values() for run in each["runs"] for key in run["measures"]}
    sections = [make(part) for key, make in study_sections.SECTIONS.items() if key in measured]
    return page.section(
        part["title"],
        said(part["says"]), said(runs),
        study_tables.scores(part), heading("All figures"), study_tables.summary(part), study_tables.rates(part),
        study_sections.published(part) if found["study"] == "positions" else "",
        *sections,
        heading("Curves"), study_tables.curves(part, gradients=found["study"] in ("norms", "optimizers")),
    )  # fmt: skip


def _overview(found: Mapping[str, Any]) -> str:
    """Variants by parts: the mean accuracy of every task side by side."""
    asked = {
        name: part for name, part in found["parts"].items() if any("accuracy" in v for v in part["variants"].values())
    }
    if len(asked) < 2:
        return ""
    names = list(dict.fromkeys(variant for part in found["parts"].values() for variant in part["variants"]))
    text = next((part for name, part in found["parts"].items() if name not in asked), None)
    rows = []
    for name in names:
        loss = seen(text, name, lambda r: r["loss"]) if text is not None and name in text["variants"] else None
        cells = [
            seen(part, name, lambda r: r["accuracy"]) if name in part["variants"] else None for part in asked.values()
        ]
        rows.append([name, *([_short(loss)] if text is not None else []), *(_short(each) for each in cells)])
    head = ["variant", *(["loss on text"] if text is not None else []), *asked]
    told = "Loss on text, and accuracy on each task: the mean over seeds. Each has a section below, with error bars."
    return page.section("All at a glance", said(told), page.table(head, rows, numbers=range(1, len(head))))


def _short(value: study_pictures.Seen | None) -> str:
    return "–" if value is None or not value.values else f"{value.mean:.3f}"


def _setting(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    items = [("machine", machine["system"]), ("torch", machine["torch"]), ("device", machine["device"]),
             ("threads", str(machine["threads"])), ("written", found["written"])]  # fmt: skip
    folds = [
        page.fold(f"Recipe of the part {name}", page.code(_plain(part["recipe"])))
        for name, part in found["parts"].items()
    ]
    return page.section("How it was measured", said(HOW), page.pairs(items), *folds)


def _plain(value: Any, deep: int = 0) -> str:
    """A table as indented lines."""
    if not isinstance(value, Mapping):
        return str(value)
    lines = []
    for key, each in value.items():
        inner = _plain(each, deep + 1)
        lines.append(f"{'  ' * deep}{key}" + (f"\n{inner}" if isinstance(each, Mapping) else f" = {inner}"))
    return "\n".join(lines)
