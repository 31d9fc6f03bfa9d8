"""What all tests share: where real data lies, and a fresh interpreter. TEMAKI_DATA is read here alone."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from temaki.base.errors import TemakiError
from temaki.cli import named


def pytest_configure() -> None:
    """Where the tests were started with SIGINT ignored (a shell's background), their processes would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--models_dir DIR: OpenAI's released GPT-2, in DIR/124M, for the slow test that asks it something."""
    parser.addoption("--models_dir", default=None, help="folder with OpenAI's 124M, for a slow test")


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """Path of a file in the folder of real data, or a skip that says why."""

    def find(name: str) -> Path:
        root = os.environ.get("TEMAKI_DATA")
        if not root:
            pytest.skip("TEMAKI_DATA is not set: no real data here")
        path = Path(root) / name
        if not path.exists():
            pytest.skip(f"{path} is not there")
        return path

    return find


@pytest.fixture(scope="session")
def ranks() -> Path:
    """The folder of rank files in npm's package `tiktoken`, fetched once, or a skip that says why."""
    root = Path(sys.prefix) / "ranks"
    folder = root / "package" / "encoders"
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not there, which would fetch the package tiktoken")
    root.mkdir(exist_ok=True)
    done = subprocess.run(
        [npm, "pack", "--silent", "tiktoken"], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"npm could not fetch the package tiktoken: {done.stderr.strip()[-200:]}")
    with tarfile.open(root / done.stdout.strip()) as packed:
        packed.extractall(root, filter="data")
    return folder


@pytest.fixture(scope="session")
def fresh() -> Callable[[str], str]:
    """Run a piece of Python in a fresh interpreter and give what it printed; its errors fail the test."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2's file in the cache, or a skip that says what to do."""
    try:
        return named.path("smollm2")
    except TemakiError as error:
        pytest.skip(f"{error.what}: temaki get smollm2")
