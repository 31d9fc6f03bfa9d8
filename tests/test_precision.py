"""Precisions of a run: what is float32 stays so, run = rerun = resumed, and gradients stay near those of float32."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from little_runs import At, lines, prepared_in, recipe, same_checkpoints
from temaki.base import device as devices
from temaki.base.config import read
from temaki.base.device import Precision
from temaki.base.errors import ConfigError
from temaki.base.rows import TokenBatch, grid
from temaki.batches.prepare import Prepared
from temaki.model import build
from temaki.train import run as runs
from temaki.train.config import NextConfig, RunConfig
from temaki.train.objectives import Next
from temaki.train.step import gradients
from variants import config

HOST = torch.device("cpu")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
VARIANTS = ("grouped", "gpt2", "window", "gemma", "hybrid")


@pytest.fixture(autouse=True)
def _whole_again() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_in(tmp_path_factory.mktemp("prepared"))


def made(name: str, precision: Precision) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step."""
    devices.prepare(1, 0, precision)
    model = build.build(config(name), 3)
    if precision == "autocast-bf16":
        devices.mixed_(model, HOST)
    ids = torch.randint(model.config.vocabulary, (4, 33), generator=torch.Generator().manual_seed(1))
    batch = TokenBatch(grid(ids[:, :-1]), ids[:, 1:].reshape(-1), torch.ones(4 * 32))
    loss = gradients(model, Next(NextConfig()), [batch]).loss
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_float32_repeatable_and_near(name: str, precision: Precision) -> None:
    loss, grads = made(name, precision)
    again = made(name, precision)
    assert loss == again[0]
    assert all(torch.equal(grads[each], again[1][each]) for each in grads)
    whole, wanted = made(name, "float32")
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    far = sum(float((grads[each] - wanted[each]).square().sum()) for each in grads) ** 0.5
    size = sum(float(each.square().sum()) for each in wanted.values()) ** 0.5
    assert far <= 0.02 * size
    assert abs(loss - whole) <= 1e-3
    assert (far > 0) == (precision == "autocast-bf16" or (precision == "products-bf16" and devices.fast_bf16(HOST)))


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_resumed_is_uninterrupted_in_every_precision(precision: Precision, prepared: Prepared, tmp_path: Path) -> None:
    if precision != devices.usable("products-bf16", HOST) and not devices.fast_bf16(HOST):
        pytest.skip("this processor multiplies bfloat16 slowly")
    parallel: dict[str, Any] = {"threads": 1, "precision": precision}
    told = read(RunConfig, recipe("grouped", parallel=parallel, stop={"steps": 8}))
    runs.start(told, tmp_path / "whole", prepared)
    runs.start(told, tmp_path / "cut", prepared, [At(3, lambda _run: os.kill(os.getpid(), signal.SIGTERM))])
    runs.start(told, tmp_path / "cut", prepared, resuming="auto")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 8)


def test_a_machine_that_multiplies_bfloat16_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "fast_bf16", lambda _device: False)
    assert devices.usable("float32", HOST) == "float32"
    assert devices.usable("products-bf16", HOST) == "float32"
    with pytest.raises(ConfigError, match="only be slow"):
        devices.usable("autocast-bf16", HOST)
    monkeypatch.setattr(devices, "fast_bf16", lambda _device: True)
    assert [devices.usable(each, HOST) for each in PRECISIONS] == list(PRECISIONS)


def test_the_machine_says_its_precision_and_the_peak_is_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    devices.prepare(1, 0, "products-bf16")
    assert torch.get_float32_matmul_precision() == "medium"
    assert devices.machine(HOST, "products-bf16").dtype == "products-bf16"
    seen: list[str] = []
    plain = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return plain(a, b)

    monkeypatch.setattr(torch, "mm", mm)
    devices.matmul_peak(HOST, 8, 0.0)
    assert set(seen) == {"highest"}
    devices.prepare(1, 0)
    assert torch.get_float32_matmul_precision() == "highest"
    assert devices.machine(HOST).dtype == "float32"
