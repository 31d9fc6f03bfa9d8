"""What lies in a run folder, read for people; a damaged one raises nothing, it is told in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from temaki.base import config, files, log
from temaki.base.errors import RunError, TemakiError
from temaki.report.chart import MARKS
from temaki.report.figures import LARGEST, number, whole

Line = Mapping[str, Any]
BEGINNINGS = ("start", "resume")
"""Kinds of the lines that a process begins with."""
LAST = 200
"""Lines of a kind that are asked for their names."""
MEASURED = ("step", "validate", "sample", "save")
"""Kinds of line that a rollback takes back."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint as its manifest describes it; its files' checksums are not compared here."""

    name: str
    step: int | None
    tokens: int | None
    bytes: int | None
    """Of all its files."""
    healthy: bool | None
    problem: str
    """Why it does not count; empty if it does."""


@dataclass(frozen=True)
class RunFolder:
    """All that a run folder tells."""

    path: Path
    lines: tuple[Line, ...]
    """Metric lines in the order of the file."""
    settings: Mapping[str, Any]
    """config.toml, empty if it cannot be read."""
    settings_text: str
    results: Mapping[str, Any]
    """results.json, empty if there is none."""
    saved: tuple[Saved, ...]
    """Checkpoints by step."""
    problems: tuple[str, ...]
    """What is damaged or missing, in words."""
    changed: float | None
    """When the metrics were last written, seconds since the epoch."""

    @property
    def name(self) -> str:
        return self.path.name or self.path.resolve().name

    @cached_property
    def _kinds(self) -> dict[str, dict[int, Line]]:
        """The lines by kind and step, without what a rollback took back; of several with one step, the last.

        Lines without a step stand at -1.
        """
        found: dict[str, dict[int, Line]] = {}
        for line in self.lines:
            kind, step, back = line.get("kind"), whole(line.get("step")), whole(line.get("to"))
            if not isinstance(kind, str):
                continue
            found.setdefault(kind, {})[-1 if step is None else step] = line
            if kind == "rollback" and back is not None:
                for each in MEASURED:
                    found[each] = {at: kept for at, kept in found.get(each, {}).items() if at <= back}
        return {kind: dict(sorted(lines.items())) for kind, lines in found.items()}

    def kind(self, kind: str) -> list[Line]:
        """The lines of a kind by step; of several with one step (a resumed run wrote it again), the last."""
        return list(self._kinds.get(kind, {}).values())

    def curve(self, kind: str, name: str, most: int | None = None) -> list[tuple[float, float | None]]:
        """(step, value) of the lines of a kind: None where not finite, left out where absent.

        Of more than `most` lines about so many are read, evenly.
        """
        if (kind, name, most) not in self._curves:
            lines = self._kinds.get(kind, {})
            every = 1 if most is None else 1 + len(lines) // most
            self._curves[kind, name, most] = [
                (float(step), value if type(value := line[name]) is float and abs(value) <= LARGEST else number(value))
                for step, line in islice(lines.items(), 0, None, every)
                if name in line and step >= 0
            ]
        return self._curves[kind, name, most]

    @cached_property
    def _curves(self) -> dict[tuple[str, str, int | None], list[tuple[float, float | None]]]:
        return {}

    def names(self, kind: str, start: str) -> list[str]:
        """The names that begin with `start` in the last lines of a kind, without it, by the alphabet."""
        last = self.kind(kind)[-LAST:]
        return sorted({key[len(start) :] for line in last for key in line if key.startswith(start)})

    def last(self, kind: str, name: str) -> float | None:
        """The last finite value of a name in the lines of a kind."""
        return next((y for _, y in reversed(self.curve(kind, name)) if y is not None), None)

    def best(self, kind: str, name: str) -> float | None:
        """The least finite value of a name in the lines of a kind."""
        return min((y for _, y in self.curve(kind, name) if y is not None), default=None)

    def setting(self, *path: str) -> Any:
        """A setting by its path of keys, or None."""
        here: Any = self.settings
        for key in path:
            here = here.get(key) if isinstance(here, Mapping) else None
        return here

    @property
    def started(self) -> Line:
        """The first start line, empty if none."""
        return next((line for line in self.lines if line.get("kind") == "start"), {})

    @property
    def ended(self) -> Line | None:
        """The end line, if the run has ended and was not resumed since."""
        last = next((i for i in reversed(range(len(self.lines))) if self.lines[i].get("kind") == "end"), None)
        if last is None or any(line.get("kind") in (*BEGINNINGS, "step") for line in self.lines[last + 1 :]):
            return None
        return self.lines[last]

    @property
    def resumed(self) -> list[int]:
        """The steps at which the run was resumed."""
        starts = [whole(line.get("step")) or 0 for line in self.lines if line.get("kind") in BEGINNINGS]
        return starts[1:]

    @property
    def marks(self) -> list[tuple[float, str]]:
        """What a curve should say of itself: (step, one of `chart.MARKS`)."""
        named = zip(("skip", "spike", "rollback"), MARKS[2:], strict=True)
        found = [(float(step), name) for kind, name in named for step in self._kinds.get(kind, {}) if step >= 0]
        decay = next((whole(line.get("decay")) for line in reversed(self.kind("plan"))), None)
        falls = [] if decay is None else [(float(decay), MARKS[1])]
        return [*((float(step), MARKS[0]) for step in self.resumed), *falls, *found]

    @property
    def step(self) -> int:
        """Steps made so far, as far as the folder tells."""
        made = 0
        for line in self.lines:
            step, back = whole(line.get("step")), whole(line.get("to"))
            if line.get("kind") == "rollback" and back is not None:
                made = back
            elif step is not None:
                made = max(made, step)
        return max([made, *(saved.step for saved in self.saved if saved.step is not None and not self.lines)])

    @property
    def steps(self) -> int | None:
        """Steps in all: the last plan, else the recipe's."""
        plans = [whole(line.get("steps")) for line in self.lines if line.get("kind") in ("plan", *BEGINNINGS)]
        return next((n for n in reversed(plans) if n is not None), None) or whole(self.setting("stop", "steps"))


def is_run(path: Path) -> bool:
    """Whether a folder holds anything of a run."""
    return any((path / name).exists() for name in ("config.toml", "metrics.jsonl", "checkpoints"))


def read(path: Path) -> RunFolder:
    """All that a run folder tells; what cannot be read is left empty and told in `problems`."""
    problems: list[str] = []
    settings, text = _settings(path, problems)
    lines, changed = _lines(path, problems)
    saved = tuple(_saved(path, problems))
    return RunFolder(path, lines, settings, text, _results(path, problems), saved, tuple(problems), changed)


def _settings(path: Path, problems: list[str]) -> tuple[dict[str, Any], str]:
    file = path / "config.toml"
    try:
        text = file.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        problems.append("no config.toml" if isinstance(error, FileNotFoundError) else f"config.toml: {error.strerror}")
        return {}, ""
    try:
        return config.read_toml(file), text
    except TemakiError as error:
        problems.append(error.what.replace(str(file), "config.toml"))
    return {}, text


def _lines(path: Path, problems: list[str]) -> tuple[tuple[Line, ...], float | None]:
    file = path / "metrics.jsonl"
    found: list[Line] = []
    try:
        if not file.exists():
            return (), None
        changed = file.stat().st_mtime
        try:
            found.extend(log.read(file))
        except RecursionError:
            problems.append("metrics.jsonl: a line is nested too deeply; the lines after it are left out")
        if not found and file.stat().st_size > 1:
            problems.append("metrics.jsonl holds no readable line")
    except OSError as error:
        problems.append(f"metrics.jsonl: {error.strerror}")
        return (), None
    return tuple(found), changed


def _results(path: Path, problems: list[str]) -> dict[str, Any]:
    file = path / "results.json"
    try:
        return files.read_json(file, RunError) if file.exists() else {}
    except OSError as error:
        problems.append(f"results.json: {error.strerror}")
    except TemakiError as error:
        problems.append(error.what.replace(str(file), "results.json"))
    return {}


def _saved(path: Path, problems: list[str]) -> Iterator[Saved]:
    try:
        folders = sorted(p for p in (path / "checkpoints").glob("step-*") if p.is_dir())
    except OSError as error:
        problems.append(f"checkpoints: {error.strerror}")
        return
    read = [_manifest(folder) for folder in folders]
    if read and all(saved.problem for saved in read):
        problems.append(f"no whole checkpoint ({read[-1].name}: {read[-1].problem})")
    yield from sorted(read, key=lambda saved: (saved.step or 0, saved.name))


def _manifest(folder: Path) -> Saved:
    file = folder / "manifest.json"
    try:
        found = files.read_json(file, RunError)
    except TemakiError as error:
        problem = "no manifest" if not file.exists() else error.what.replace(str(file), "manifest.json")
        return Saved(folder.name, None, None, None, None, problem)
    except OSError as error:
        return Saved(folder.name, None, None, None, None, str(error.strerror))
    step, healthy = whole(found.get("step")), found.get("healthy")
    return Saved(
        name=folder.name,
        step=step,
        tokens=whole(found.get("tokens")),
        bytes=_bytes(found.get("files")),
        healthy=healthy if isinstance(healthy, bool) else None,
        problem="" if step is not None else "its manifest has no step",
    )


def _bytes(found: Any) -> int | None:
    if not isinstance(found, Mapping):
        return None
    marks: Sequence[Any] = [mark.get("bytes") if isinstance(mark, Mapping) else None for mark in found.values()]
    sizes = [size for mark in marks if (size := whole(mark)) is not None]
    return sum(sizes) if sizes else None
