"""The report of one run: `report.html` in its folder, one file that opens anywhere without a network."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from temaki.base import files
from temaki.report import chart, curves, figures, page, runs
from temaki.report import folder as folders
from temaki.report.chart import Bar, Point
from temaki.report.figures import number, whole
from temaki.report.folder import RunFolder
from temaki.report.page import escape
from temaki.report.runs import RunInfo

TOLD = 5
"""Messages of one kind that are shown."""
GROWTH = 4
"""Samples of one prompt, taken while training, that are shown."""
RENEW = 10
"""Seconds after which the page of a run that goes on loads itself anew."""


def write(run_folder: Path, over: bool = False) -> Path:
    """Write `report.html` into a run folder and give its path; tells of whatever is there, however little.

    `over`: the run has ended, however fresh its last line. Raises OSError if the folder cannot be written to.
    """
    run = folders.read(run_folder)
    path = run_folder / "report.html"
    files.write_text(path, html(run, runs.info(run, math.inf if over else None)))
    return path


def html(run: RunFolder, info: RunInfo) -> str:
    """The report as HTML text."""
    return page.page(
        f"{run.name} · temaki",
        [
            _header(run, info),
            _hero(run),
            page.tiles(_tiles(run)),
            page.notes(_warnings(run, info)),
            page.section("Curves", f'<div class="charts">{"".join(curves.charts(run))}</div>'),
            page.section("Samples", _samples(run)),
            page.section("Checkpoints", _checkpoints(run)),
            page.section("Machine", page.pairs(_machine(run))),
            page.section("Configuration", page.fold("config.toml, resolved", page.code(run.settings_text))),
            page.section("Again", page.code("\n".join(_commands(run, info)))),
            "<footer>Written by temaki. This file loads nothing from anywhere.</footer>",
        ],
        renew=RENEW if info.state == "running" else None,
    )


def speed(run: RunFolder) -> float | None:
    """Tokens a second: the median over the steps logged."""
    return _median(run.curve("step", "tokens_per_second"))


def params(run: RunFolder) -> int | None:
    """The model's parameters."""
    return whole(run.results.get("params")) or whole(run.started.get("params"))


def seconds(run: RunFolder) -> float | None:
    """Seconds of training."""
    found = [
        number(run.results.get("train_seconds")),
        run.last("end", "seconds"),
        run.last("step", "seconds"),
    ]
    return next((value for value in found if value is not None), None)


def progress(info: RunInfo) -> str:
    """How far a run is."""
    return f"{info.step:,} of {info.steps:,} steps" if info.steps else f"{info.step:,} steps"


def _median(points: Sequence[Point]) -> float | None:
    values = [y for _, y in points if y is not None]
    return median(values) if values else None


def _header(run: RunFolder, info: RunInfo) -> str:
    shape = [
        f"{figures.short(params(run))} parameters" if params(run) else "",
        f"depth {run.setting('model', 'depth')}" if run.setting("model", "depth") else "",
        f"width {run.setting('model', 'width')}" if run.setting("model", "width") else "",
        f"vocabulary {run.setting('model', 'vocabulary')}" if run.setting("model", "vocabulary") else "",
        progress(info),
    ]
    return (
        '<header><div class="brand"><i></i>temaki run</div>'
        f'<div class="title"><h1>{escape(run.name)}</h1>'
        f'<span class="state {info.state}">{info.state}</span><small data-age></small></div>'
        f'<p class="lead">{escape(" · ".join(part for part in shape if part))}</p></header>'
    )


def _hero(run: RunFolder) -> str:
    right = number(run.results.get("accuracy")) or run.last("validate", "accuracy")
    if right is not None:
        chance = number(run.results.get("chance"))
        said = "" if chance is None else f"One of {1 / chance:.0f} is right by chance."
        return _headline(right, "of the answers are right, in examples that were not learned from", said, "")
    ours = number(run.results.get("bits_per_byte"))
    if ours is None:
        found = run.best("validate", "bits_per_byte")
        if found is None:
            return ""
        return _headline(found, "bits per byte, best validation so far", "Not evaluated yet; no yardsticks.", "")
    others = [(name, number(run.results.get(key))) for name, key in (("PPMd", "ppmd"), ("zstd", "zstd"))]
    rivals = [(name, value) for name, value in others if value is not None]
    items = [Bar("this model", ours, ours=True), *(Bar(name, value) for name, value in rivals)]
    unit = "bits per byte, less is better"
    drawn = chart.bars("Bits per byte", sorted(items, key=lambda item: item.value), unit)
    said = _compared(ours, rivals, run)
    return _headline(ours, "bits per byte of held-out text", said, drawn if rivals else "")


def _headline(value: float, of: str, said: str, beside: str) -> str:
    return (
        f'<div class="card hero"><div><div class="big">{value:.3f}</div><p class="of">{escape(of)}</p>'
        f'<p class="said">{escape(said)}</p></div>{beside}</div>'
    )


def _compared(ours: float, rivals: Sequence[tuple[str, float]], run: RunFolder) -> str:
    said = [
        f"{abs(1 - ours / value):.1%} {'fewer' if ours < value else 'more'} than {name}"
        for name, value in rivals
        if value > 0
    ]
    read = number(run.results.get("bytes"))
    over = f"measured over {figures.size(read)}" if read else ""
    text = ", ".join([*said, over] if over else said)
    return f"{text[:1].upper()}{text[1:]}. Less is better." if text else "Less is better."


def _tiles(run: RunFolder) -> list[tuple[str, str, str]]:
    tokens = run.last("step", "tokens")
    best, noise = run.best("validate", "loss"), run.last("step", "noise_scale")
    memory = max((y for _, y in run.curve("step", "memory") if y is not None), default=None)
    found = [
        ("Parameters", figures.short(params(run)) if params(run) else None, ""),
        ("Tokens seen", figures.short(tokens) if tokens else None, "in training"),
        ("Training time", figures.duration(seconds(run)) if seconds(run) is not None else None, ""),
        ("Speed", f"{figures.short(speed(run))}/s" if speed(run) else None, "tokens, median"),
        ("Share of peak", _share(run), "of the matrix product"),
        ("Memory", figures.size(memory) if memory else None, "resident, most"),
        ("Noise scale", figures.short(noise) if noise else None, "of the gradient, ids"),
        ("Validation loss", figures.fixed(best) if best is not None else None, "best, nats a token"),
        ("Perplexity", _perplexity(run), "held out, a token"),
    ]
    return [(name, figure, note) for name, figure, note in found if figure is not None]


def _share(run: RunFolder) -> str | None:
    share = _median(run.curve("step", "peak_share"))
    return None if share is None else figures.percent(share)


def _perplexity(run: RunFolder) -> str | None:
    found = number(run.results.get("perplexity"))
    return None if found is None else figures.short(found)


def _warnings(run: RunFolder, info: RunInfo) -> list[str]:
    broken = [int(x) for name in ("loss", "grad_norm") for x, y in run.curve("step", name) if y is None]
    found = [f"Damaged: {problem}." for problem in run.problems]
    if broken:
        found.append(f"Not finite: loss or gradient norm of {len(set(broken)):,} logged steps, first {min(broken):,}.")
    if "bits_per_byte" in run.results and number(run.results["bits_per_byte"]) is None:
        found.append(f"The evaluation gave no finite figure: {run.results['bits_per_byte']} bits per byte.")
    if run.ended is not None and run.ended.get("reason") != "finished":
        message = f" ({run.ended['message']})" if run.ended.get("message") else ""
        found.append(f"The run ended at step {info.step:,}: {run.ended.get('reason')}{message}.")
    elif info.state == "stopped":
        found.append(f"The run has no end line: it was interrupted after step {info.step:,}.")
    if run.resumed:
        steps = ", ".join(f"{step:,}" for step in run.resumed[:8])
        steps += " and more" if len(run.resumed) > 8 else ""
        found.append(f"Resumed at step {steps}.")
    found += _told(run)
    found += [f"Checkpoint {c.name} does not count: {c.problem}." for c in run.saved if c.problem]
    found += [f"Checkpoint {c.name} was saved unhealthy." for c in run.saved if c.healthy is False]
    return found


def _told(run: RunFolder) -> list[str]:
    """What the run's guards said."""
    found = []
    for kind, what in (("skip", "Update left out"), ("spike", "Loss spike"), ("rollback", "Rolled back")):
        lines = [line for line in run.lines if line.get("kind") == kind]
        for line in lines[:TOLD]:
            message = f": {line['message']}" if line.get("message") else ""
            at = (
                f"from step {line.get('from')} to step {line.get('to')}"
                if kind == "rollback"
                else f"at step {line.get('step')}"
            )
            found.append(f"{what} {at}{message}.")
        if len(lines) > TOLD:
            found.append(f"{what} {len(lines) - TOLD:,} more times.")
    return found


def _samples(run: RunFolder) -> str:
    final = _texts(run.results.get("samples"))
    logged = _texts([line for line in run.lines if line.get("kind") == "sample"])
    last = [sample for sample in logged if sample[0] == logged[-1][0]] if logged else []
    shown = "".join(_sample(prompt, text) for _, prompt, text in (final or last)[:12])
    first = [sample for sample in logged if sample[1] == logged[0][1]] if logged else []
    growth = "".join(
        f'<p class="when">step {step:,}</p>{_sample(prompt, text)}' for step, prompt, text in _spread(first)
    )
    grown = page.fold("How the text grew", f'<div class="samples">{growth}</div>') if len(first) > 1 else ""
    return (f'<div class="samples">{shown}</div>' if shown else "") + grown


def _texts(found: Any) -> list[tuple[int, str, str]]:
    """(step, prompt, text) of all samples that are whole."""
    if not isinstance(found, list):
        return []
    return [
        (whole(sample.get("step")) or 0, str(sample.get("prompt") or ""), sample["text"])
        for sample in found
        if isinstance(sample, Mapping) and isinstance(sample.get("text"), str)
    ]


def _spread(samples: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """At most GROWTH of them, from the first to the last."""
    if len(samples) <= GROWTH:
        return samples
    return [samples[round(i * (len(samples) - 1) / (GROWTH - 1))] for i in range(GROWTH)]


def _sample(prompt: str, text: str) -> str:
    said = f"<b>{escape(page.cut(prompt))}</b>" if prompt else "<em>no prompt</em>\n"
    return f'<div class="card sample" dir="auto" tabindex="0">{said}{escape(page.cut(text))}</div>'


def _checkpoints(run: RunFolder) -> str:
    words = {True: "healthy", False: "unhealthy", None: "–"}
    rows = [
        [
            saved.name,
            figures.count(saved.tokens),
            figures.size(saved.bytes),
            saved.problem or words[saved.healthy],
        ]
        for saved in run.saved
    ]
    return page.table(["checkpoint", "tokens", "size", "state"], rows, numbers=(1, 2))


def _machine(run: RunFolder) -> list[tuple[str, str]]:
    found = run.started.get("machine")
    told = [(str(key), str(value)) for key, value in found.items()] if isinstance(found, Mapping) else []
    peak, flops = number(run.started.get("peak_flops")), number(run.started.get("flops_per_token"))
    told += [("matrix product", figures.size(peak, "FLOP/s"))] if peak else []
    told += [("work a token", figures.size(flops, "FLOP"))] if flops else []
    return [(name, value) for name, value in told if value]


def _commands(run: RunFolder, info: RunInfo) -> list[str]:
    return [
        "# the same run once more, under another name",
        runs.command("train", run.path / "config.toml", f"name={run.name}-again"),
        "# next",
        info.next,
    ]
