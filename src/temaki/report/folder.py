"""What lies in a run folder, read for people; a damaged one raises nothing, it is told in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temaki.base import config, files, log
from temaki.base.errors import RunError, TemakiError
from temaki.report.figures import number, whole

Line = Mapping[str, Any]


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

    def kind(self, kind: str) -> list[Line]:
        """The lines of a kind; of several with one step (a resumed run wrote it again), the last; by step.

        Lines without a step keep their place before all others.
        """
        found: dict[int, Line] = {}
        for line in self.lines:
            if line.get("kind") == kind:
                step = whole(line.get("step"))
                found[-1 if step is None else step] = line
        return [found[step] for step in sorted(found)]

    def curve(self, kind: str, name: str) -> list[tuple[float, float | None]]:
        """(step, value) of the lines of a kind: None where not finite, left out where absent."""
        return [
            (float(step), number(line[name]))
            for line in self.kind(kind)
            if name in line and (step := whole(line.get("step"))) is not None
        ]

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
        if last is None or any(line.get("kind") in ("start", "step") for line in self.lines[last + 1 :]):
            return None
        return self.lines[last]

    @property
    def resumed(self) -> list[int]:
        """The steps at which the run was resumed."""
        starts = [whole(line.get("step")) or 0 for line in self.lines if line.get("kind") == "start"]
        return starts[1:]

    @property
    def step(self) -> int:
        """Steps made so far, as far as the folder tells."""
        told = [whole(line.get("step")) for line in self.lines] + [saved.step for saved in self.saved]
        return max((step for step in told if step is not None), default=0)

    @property
    def steps(self) -> int | None:
        """Steps in all: the last plan, else the recipe's."""
        plans = [whole(line.get("steps")) for line in self.lines if line.get("kind") in ("plan", "start")]
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
