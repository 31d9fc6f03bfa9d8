"""The house keeps its promises: what loads what, that examples run and names are public."""

import doctest
import importlib
import inspect
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
    "temaki.model.presets", "temaki.model.quantise", "temaki.checkpoint.store", "temaki.checkpoint.resume",
    "temaki.formats.open", "temaki.formats.own", "temaki.formats.hf", "temaki.formats.gguf", "temaki.formats.openai_tf",
    "temaki.formats.llama2c", "temaki.formats.cs336", "temaki.formats.told", "temaki.formats.carry",
    "temaki.reference", "temaki.generate.engine", "temaki.generate.text", "temaki.report.run", "temaki.optim.config",
    "temaki.optim.schedule", "temaki.optim.cost", "temaki.optim.coefficients", "temaki.model.roofline",
    "temaki.train.config", "temaki.cli.main",
]  # fmt: skip


@pytest.mark.parametrize("module", NO_TORCH)
def test_loads_no_torch(module: str, fresh: Callable[[str], str]) -> None:
    code = f"import sys, {module}; print(sorted(sys.modules.keys() & {{'torch', 'matplotlib', 'pandas'}}))"
    assert fresh(code).strip() == "[]"


@pytest.mark.parametrize(
    "module", ["temaki", "temaki.tokens.tokenizer", "temaki.corpus.sources", "temaki.model.config"]
)
def test_loads_no_numba(module: str, fresh: Callable[[str], str]) -> None:
    assert fresh(f"import sys, {module}; print('numba' in sys.modules)").strip() == "False"


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


PLAIN = [
    "temaki.model.norm", "temaki.model.ffn", "temaki.model.maps", "temaki.model.positions", "temaki.model.ssm",
    "temaki.model.attention", "temaki.model.kernels", "temaki.model.heads", "temaki.optim.schedule",
    "temaki.optim.adamw", "temaki.optim.muon", "temaki.optim.lion", "temaki.optim.sgd", "temaki.optim.cost",
    "temaki.batches.packing", "temaki.generate.sampling",
]  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_each_plain_function_has_an_example(name: str) -> None:
    module = importlib.import_module(name)
    functions = {
        f"{name}.{each}"
        for each, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == name and not each.startswith("_")
    }
    assert functions
    assert sorted(functions - {test.name for test in documented(module)}) == []


def test_public_names_load_on_first_use() -> None:
    for name in temaki.__all__:
        assert getattr(temaki, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        temaki.nothing  # noqa: B018


def test_folders_do_not_hide_the_functions_of_their_names(fresh: Callable[[str], str]) -> None:
    code = """
import temaki
from temaki.train import loop
from temaki.generate import engine, sampling
import temaki.generate.text
assert callable(temaki.train) and callable(temaki.generate) and callable(temaki.open)
from temaki import generate, train
print(train.__name__, generate.__name__, loop.__name__, sampling.top_p.__name__)
"""
    assert fresh(code).split() == ["run_recipe", "generate", "temaki.train.loop", "top_p"]


def test_folders_have_empty_init_files() -> None:
    from pathlib import Path

    root = Path(temaki.__path__[0])
    assert [path for path in root.rglob("__init__.py") if path.parent != root and path.read_text().strip()] == []
