"""The dial and recipes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temaki.base import config as config_door
from temaki.base.errors import ConfigError
from temaki.model.count import count, flops_per_token
from temaki.study import dial, recipes
from temaki.train.config import RunConfig

ROOT = Path(__file__).parents[1]


@given(minutes=st.floats(0.1, 3000), peak=st.floats(1e9, 1e14), vocabulary=st.sampled_from([300, 4096, 50_000]))
def test_any_minutes_on_any_machine_give_a_recipe_that_fits(minutes: float, peak: float, vocabulary: int) -> None:
    turned = dial.by_minutes(minutes, peak, vocabulary, {})
    config = recipes.complete({"name": "x", **turned.recipe}, vocabulary)
    cost = config.stop.steps * config.batch.tokens * flops_per_token(config.model, config.batch.context)
    assert cost <= minutes * 60 * peak or config.stop.steps == dial.SHORTEST
    assert config.stop.minutes == minutes


@given(depth=st.integers(1, dial.DEEPEST))
def test_any_depth_gives_a_recipe(depth: int) -> None:
    turned = dial.by_depth(depth, 1e11, 4096, {})
    config = recipes.complete({"name": "x", **turned.recipe}, 4096)
    assert config.model.depth == depth
    assert config.stop.steps * config.batch.tokens >= dial.RATIO * count(config.model).matrix


def test_more_minutes_never_give_a_smaller_model() -> None:
    sizes = []
    for minutes in (0.5, 1, 2, 5, 10, 30, 60, 300):
        turned = dial.by_minutes(minutes, 1.3e11, 4096, {})
        sizes.append(count(recipes.complete({"name": "x", **turned.recipe}, 4096).model).total)
    assert sizes == sorted(sizes)


NEW = [path for path in sorted((ROOT / "recipes").glob("*.toml")) if "model" in recipes.load(path)]
"""Recipes of new models: they say their shape. The others begin with a model that is there (--from), which gives it."""
OWN = [path for path in NEW if "tokenizer" not in recipes.load(path).get("data", {})]
"""Those that learn their own vocabulary: the dial asks for its size."""


def test_changes_lie_over_the_dial_and_the_dial_over_the_recipe() -> None:
    base = {"name": "x", "data": {"vocabulary": 500}, "model": {"width": 17, "tied": True}}
    found, line = recipes.resolve(base, ["optim.lr=0.5", "model.depth=2"], minutes=3, speed=1e11)
    assert found["optim"]["lr"] == 0.5
    assert found["model"]["depth"] == 2
    assert found["model"]["width"] != 17
    assert found["data"]["vocabulary"] == 500
    assert line is not None
    assert "fixes" in line


def test_two_dials_or_none_in_range_are_refused() -> None:
    for minutes, depth in ((1.0, 2), (-1.0, None), (None, 0), (None, 1000)):
        with pytest.raises(ConfigError):
            recipes.resolve({}, (), minutes, depth, 1e11)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"model": {"pattern": [{}]}}, "model.pattern.0"),
        ({"model": {"pattern": [{"mixer": {"kind": "s4d"}}, "x"]}}, "model.pattern.1"),
        ({"model": {"pattern": [{"mixer": "x"}]}}, "model.pattern.0"),
        ({"model": {"pattern": [{"mixer": {"kind": ["attention"]}}]}}, "mixer"),
        ({"batch": "x"}, "batch"),
        ({"batch": {"context": 0}}, "batch.context"),
        ({"batch": {"context": "a"}}, "batch.context"),
        ({"batch": {"context": True}}, "batch.context"),
    ],
    ids=str,
)
def test_a_malformed_recipe_under_a_dial_is_a_named_error(wrong: dict[str, object], key: str) -> None:
    for turned in ({"minutes": 1.0}, {"depth": 2}):
        with pytest.raises(ConfigError, match=key):
            recipes.resolve(wrong, speed=1e11, **turned)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", NEW, ids=lambda path: path.stem)
def test_every_recipe_reads_and_resolves_to_itself(path: Path) -> None:
    config = recipes.complete(recipes.load(path), 4096)
    again = config_door.read(RunConfig, config_door.mapping(config))
    assert again == config


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
@pytest.mark.parametrize("turned", [{"minutes": 1.0}, {"minutes": 60.0}, {"depth": 6}])
def test_the_dial_keeps_the_mixers_and_the_context_of_the_recipe(path: Path, turned: dict[str, float]) -> None:
    recipe = recipes.load(path)
    found, line = recipes.resolve(recipe, speed=1e11, **turned)  # type: ignore[arg-type]
    before, after = recipes.complete(recipe, 4096), recipes.complete(found, 4096)
    kinds = [[block.mixer.kind for block in config.model.pattern] for config in (before, after)]
    assert kinds[0] == kinds[1]
    assert before.batch.context == after.batch.context
    assert line is not None
    assert "+".join(dict.fromkeys(kinds[0])) in line
