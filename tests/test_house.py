"""The house keeps its promises: what loads what, how fast it opens, that examples run and names are public."""

import doctest
import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType

import pytest

import temaki

MODULES = sorted(
    each.name for each in pkgutil.walk_packages(temaki.__path__, "temaki.") if each.name != "temaki.__main__"
)
NO_TORCH = [
    "temaki", "temaki.base.config", "temaki.base.files", "temaki.base.log", "temaki.base.keys", "temaki.corpus.sources",
    "temaki.tokens.tokenizer", "temaki.tokens.bpe", "temaki.tokens.files", "temaki.model.config", "temaki.model.count",
    "temaki.checkpoint.store", "temaki.checkpoint.resume", "temaki.formats.open", "temaki.generate.engine",
    "temaki.generate.text", "temaki.report.run", "temaki.optim.config", "temaki.optim.schedule", "temaki.cli.main",
]  # fmt: skip


@pytest.mark.parametrize("module", NO_TORCH)
def test_loads_no_torch(module: str, fresh: Callable[[str], str]) -> None:
    code = f"import sys, {module}; print(sorted(sys.modules.keys() & {{'torch', 'numba', 'matplotlib', 'pandas'}}))"
    assert fresh(code).strip() == "[]"


def test_help_loads_neither_numpy_nor_pydantic(fresh: Callable[[str], str]) -> None:
    code = "import sys, temaki.cli.main; print(sorted(sys.modules.keys() & {'numpy', 'pydantic', 'torch', 'numba'}))"
    assert fresh(code).strip() == "[]"


def documented(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in documented(module):
        runner.run(test)
    assert runner.failures == 0


@pytest.mark.parametrize(
    "place",
    [
        "model.norm.rms_norm", "model.ffn.swiglu", "model.ffn.silu", "model.attention.attention",
        "model.positions.rotate", "model.positions.rope_angles", "model.ssm.hold", "model.ssm.causal_convolution",
        "model.maps.softmax", "model.maps.log_softmax", "model.maps.sigmoid", "model.maps.cross_entropy",
        "model.maps.entropy", "model.heads.linear_nll", "model.kernels.documents_attention", "optim.schedule.cosine",
        "optim.schedule.wsd", "optim.adamw.adamw_step", "optim.muon.newton_schulz", "optim.optimizer.clip_",
        "generate.sampling.temperature", "generate.sampling.top_k", "generate.sampling.top_p",
        "generate.sampling.min_p", "generate.sampling.repetition_penalty", "batches.packing.next_token",
    ],
)  # fmt: skip
def test_each_plain_function_has_an_example(place: str) -> None:
    module, _, name = place.rpartition(".")
    found = {test.name for test in documented(importlib.import_module(f"temaki.{module}"))}
    assert f"temaki.{module}.{name}" in found


def test_public_names_load_on_first_use() -> None:
    for name in temaki.__all__:
        assert getattr(temaki, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        temaki.nothing  # noqa: B018


def test_folders_have_empty_init_files() -> None:
    from pathlib import Path

    root = Path(temaki.__path__[0])
    assert [path for path in root.rglob("__init__.py") if path.parent != root and path.read_text().strip()] == []
