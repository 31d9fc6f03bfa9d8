"""Every command of README and the tour is run, in order, in a folder of its own."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STORY = (
    "Once upon a time there was a small boat that carried rice to the city. The old man who rowed it sang a song about "
    "the river, and the song had {n} verses. In verse {n} the boat met a heron, {m} frogs and a cat called {cat}. "
)


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder such as the pages speak of: recipes, and notes of a few hundred kilobytes."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "notes").mkdir()
    for i in range(60):
        text = "\n".join(STORY.format(n=i * 40 + j, m=j % 7, cat=["Miso", "Nori", "Sushi"][j % 3]) for j in range(20))
        (tmp_path / "notes" / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    grids = [code for language, code in blocks("docs/training.md") if language == "toml"]
    (tmp_path / "grid.toml").write_text(grids[0], encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["README.md", "docs/tour.md", "docs/models.md", "docs/training.md", "docs/generation.md", "docs/lab.md"]
)
def test_every_command_runs(page: str, desk: Path) -> None:
    ran = 0
    for language, code in blocks(page):
        if language == "toml":
            continue
        if language == "python":
            commands = [[sys.executable, "-c", code]]
        else:
            lines = [shlex.split(line, comments=True) for line in code.splitlines() if line.strip()]
            commands = [[sys.executable, "-m", *words] for words in lines if words and words[0] == "temaki"]
        for command in commands:
            done = subprocess.run(command, cwd=desk, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran >= 4


@pytest.mark.slow
def test_make_demo_on_ones_own_text(desk: Path) -> None:
    """The README's `make` lines: on the user's text, with a short dial."""
    lines = [line for _, code in blocks("README.md") for line in code.splitlines() if line.startswith("make ")]
    assert lines[:2] == ["make demo", "make test"]
    if shutil.which("make") is None or not (ROOT / ".venv").exists():
        pytest.skip("needs make and the project's own environment")
    out = desk / "runs" / "mine"
    words = ["make", "demo", f"TEXT={desk / 'notes'}", "MINUTES=0.5", f"OUT={out}"]
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bits per byte  this model" in done.stdout
    assert (out / "report.html").exists()


def test_pages_link_to_files_that_are_there() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
