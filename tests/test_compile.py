"""Kernels: a cache that sees every change, threads beside torch's, spawned workers, vector helpers."""

import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from temaki.base import compile as compiling
from temaki.base.compile import equal64, fold, kernel, leading, load64, ones, prefetch, store64, trailing, within64

INNER = "from temaki.base.compile import kernel\n\n@kernel\ndef inner(x):\n    return x + {added}\n"
OUTER = (
    "from pack.inner import inner\nfrom temaki.base.compile import kernel\n\n@kernel\ndef outer(x):\n"
    "    return 10 * inner(x)\n"
)
SHOW = "from pack.outer import outer; print(outer(1), sum(outer.stats.cache_hits.values()))"


@kernel
def count_spaces(text, stop):
    found = 0
    for place in range(0, stop, 64):
        found += ones(equal64(text, place, np.uint8(32)))
    return found


@kernel
def masks(text, place, low, high):
    return within64(text, place, low, high)


@kernel
def words(text, place, value):
    prefetch(text, place)
    store64(text, place, value)
    return load64(text, place - 3)


@kernel
def bits(left, right):
    return trailing(left), leading(left), ones(left), fold(left, right)


def python(code: str, folder: Path, **environment: str) -> str:
    """What a fresh interpreter prints, with its kernels' cache in the folder."""
    found = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(folder), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def package(folder: Path, added: int) -> None:
    (folder / "pack").mkdir(exist_ok=True)
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "inner.py").write_text(INNER.format(added=added))
    (folder / "pack" / "outer.py").write_text(OUTER)


def test_the_cache_sees_a_change_in_another_file_and_another_version_of_numba(tmp_path):
    package(tmp_path, added=1)
    assert python(SHOW, tmp_path) == "20 0"
    assert python(SHOW, tmp_path) == "20 1"
    package(tmp_path, added=2)
    assert python(SHOW, tmp_path) == "30 0"
    assert python("import numba; numba.__version__ = '0.1'; " + SHOW, tmp_path) == "30 0"
    assert python(SHOW, tmp_path) == "30 0"  # the other version's index was written over, and is not believed


def test_a_stamp_covers_what_a_file_imports_and_nothing_else(tmp_path):
    package(tmp_path, added=1)
    (tmp_path / "pack" / "other.py").write_text("x = 1\n")
    outer = str(tmp_path / "pack" / "outer.py")
    before = compiling.stamp(outer)
    (tmp_path / "pack" / "other.py").write_text("x = 2\n")
    assert compiling.stamp(outer) == before
    (tmp_path / "pack" / "outer.py").write_text(OUTER.replace("from pack.inner import inner", "from pack import other"))
    assert compiling.stamp(outer) != before


def test_without_a_folder_for_the_cache_kernels_run_all_the_same(monkeypatch):
    monkeypatch.setattr(compiling._Compiled, "_locator_classes", [])

    def twice(x):
        return 2 * x

    for made in (compiling.kernel, compiling.bare_kernel):
        with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
            assert made(twice)(21) == 42


def test_kernels_run_in_threads_while_torch_runs_its_own():
    text = np.frombuffer(b"a b " * 100_000, np.uint8)
    left = torch.ones(256, 256)
    tasks = [lambda: count_spaces(text, len(text)), lambda: float((left @ left).sum())] * 6
    assert compiling.run(tasks, at_once=4) == [200_000, 256.0**3] * 6


def test_numbas_own_parallel_loops_survive_two_threads_beside_torch_with_the_omp_layer(tmp_path):
    code = """if 1:
        import numba, numpy as np, torch
        from temaki.base import compile as compiling
        @numba.njit(parallel=True)
        def double(x):
            for i in numba.prange(len(x)):
                x[i] = 2 * x[i]
            return x
        one = torch.ones(64, 64)
        tasks = [lambda: float(double(np.ones(1000)).sum()), lambda: float(one.mm(one)[0, 0])]
        print(sorted(set(compiling.run(tasks * 8, at_once=2))), numba.threading_layer())
    """
    assert python(code, tmp_path, NUMBA_THREADING_LAYER="omp") == "[64.0, 2000.0] omp"


def test_a_spawned_worker_runs_kernels():
    text = np.frombuffer(b"x " * 3_200, np.uint8)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(count_spaces, (text, len(text))) == 3_200


def test_no_kernel_asks_for_numbas_threads_and_nothing_forks():
    source = Path(compiling.__file__).parents[1]
    for path in source.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"\bprange\b|parallel=True|os\.fork|[\"']fork[\"']", code), path
        if path.name not in ("compile.py", "team.py"):  # the door to kernels, and that to torch's own threads
            assert not re.search(r"^\s*import numba|\bnjit\b", code, re.MULTILINE), path


def test_tasks_keep_their_order_and_the_first_error_is_raised():
    assert compiling.run([lambda i=i: i * i for i in range(20)], at_once=3) == [i * i for i in range(20)]
    assert compiling.run([]) == []

    def fail():
        raise ValueError("no")

    for at_once in (1, 2):
        with pytest.raises(ValueError, match="no"):
            compiling.run([lambda: 1, fail, lambda: 2], at_once)


@pytest.mark.parametrize("place", [0, 1, 7, 63, 64, 100])
def test_masks_are_what_a_loop_finds(place):
    text = np.random.default_rng(place).integers(0, 256, 256).astype(np.uint8)
    for low, high in ((0, 0), (48, 57), (128, 255), (0, 255), (97, 122)):
        mask = int(masks(text, place, np.uint8(low), np.uint8(high)))
        assert [mask >> k & 1 for k in range(64)] == [low <= value <= high for value in text[place : place + 64]]


def test_words_and_bits():
    text = np.arange(64, dtype=np.uint8)
    found = words(text, 13, np.uint64(0x0807060504030201))
    assert bytes(text[10:22]) == bytes([10, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8, 21])
    assert found == int.from_bytes(bytes(text[10:18]), "little")
    big, odd = (1 << 63) | 8, 0x9E3779B97F4A7C15
    product = big * odd
    expected = (3, 0, 2, (product >> 64) ^ (product & (1 << 64) - 1))
    assert bits(np.uint64(big), np.uint64(odd)) == expected
    assert bits(np.uint64(0), np.uint64(1)) == (64, 64, 0, 0)
