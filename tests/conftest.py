"""What all tests share: where real data lies, and a fresh interpreter. TEMAKI_DATA is read here alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


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
def fresh() -> Callable[[str], str]:
    """Run a piece of Python in a fresh interpreter and give what it printed; its errors fail the test."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
