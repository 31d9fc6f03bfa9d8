"""Configuration, files, keys and metric lines: what a user can get wrong, and what must come back as it
went."""

import dataclasses
import json
import math
import os
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from temaki.base import config, files, keys, log
from temaki.base.errors import CheckpointError, ConfigError, DataError, TemakiError
from temaki.model import config as m


@config.settings
class Plain:
    """A small settings class of every simple type."""

    whole: Annotated[int, Field(ge=1, le=9)] = 3
    real: Annotated[float, Field(gt=0)] = 0.5
    yes: bool = False
    word: Literal["red", "blue"] = "red"
    path: str | None = None
    numbers: tuple[int, ...] = ()


@config.settings
class Round:
    """One shape."""

    kind: Literal["round"] = "round"
    radius: Annotated[float, Field(gt=0)] = 1.0
    plain: Plain = Plain()


@config.settings
class Square:
    """The other shape."""

    kind: Literal["square"] = "square"
    side: Annotated[int, Field(ge=1)]


Shape = Annotated[Round | Square, Field(discriminator="kind")]


@config.settings
class Nested:
    """Tables in tables, unions, lists of unions, a table of tables."""

    name: str
    shape: Shape = Round()
    many: tuple[Shape, ...] = ()
    tables: Mapping[str, Plain] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "forbidden":
            raise ValueError("the name 'forbidden' is forbidden")


def refused(kind: Any, found: Mapping[str, Any], where: str = "") -> str:
    with pytest.raises(ConfigError) as error:
        config.read(kind, found, where=where)
    return str(error.value)


# ---- reading -----------------------------------------------------------------------------------------------


def test_defaults_and_given_values():
    assert config.read(Plain, {}) == Plain()
    assert config.read(Plain, {"whole": 4, "numbers": [1, 2], "real": 2}) == Plain(whole=4, numbers=(1, 2), real=2.0)
    assert isinstance(config.read(Plain, {"real": 2}).real, float)
    assert config.read(Shape, {"kind": "square", "side": 2}) == Square(side=2)
    found = config.read(Nested, {"name": "n", "many": [{"kind": "round"}, {"kind": "square", "side": 1}]})
    assert found.many == (Round(), Square(side=1))


def test_settings_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Plain().whole = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        Plain(4)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "found", "key", "near"),
    [
        (Plain, {"hwole": 1}, "hwole", "'whole'"),
        (Nested, {"name": "n", "nmae": "m"}, "nmae", "'name'"),
        (Nested, {"name": "n", "shape": {"kind": "round", "radios": 1}}, "shape.radios", "'radius'"),
        (Nested, {"name": "n", "shape": {"kind": "round", "plain": {"yess": True}}},
         "shape.plain.yess", "'yes'"),
        (Nested, {"name": "n", "many": [{"kind": "round"}, {"kind": "square", "side": 1, "sied": 2}]},
         "many.1.sied", "'side'"),
        (Nested, {"name": "n", "tables": {"a": {"numbrs": []}}}, "tables.a.numbrs", "'numbers'"),
        (m.ModelConfig, {"vocabulary": 9, "width": 8, "depth": 1, "heads": 2,
                         "pattern": [{"mixer": {"kind": "attention", "heads": 2, "kv_head": 1}}]},
         "pattern.0.mixer.kv_head", "'kv_heads'"),
    ],
)  # fmt: skip
def test_an_unknown_key_gets_its_full_path_and_the_nearest_name(kind: Any, found: Any, key: str, near: str):
    message = refused(kind, found)
    assert f"{key}: unknown key; did you mean {near}?" in message


def test_an_unknown_key_near_nothing_gets_the_list():
    assert "qqqqqq: unknown key; allowed: whole, real, yes, word, path, numbers" in refused(Plain, {"qqqqqq": 1})


@pytest.mark.parametrize(
    ("found", "key", "says"),
    [
        ({"whole": 0}, "whole", ["greater than or equal to 1", "found: 0"]),
        ({"whole": 10}, "whole", ["less than or equal to 9", "found: 10"]),
        ({"whole": 2.0}, "whole", ["integer", "found: 2.0"]),
        ({"whole": "3"}, "whole", ["integer", 'found: "3"']),
        ({"whole": True}, "whole", ["integer", "found: true"]),
        ({"whole": [1]}, "whole", ["integer", "found: [1]"]),
        ({"real": 0}, "real", ["greater than 0", "found: 0"]),
        ({"real": "0.1"}, "real", ["number", 'found: "0.1"']),
        ({"yes": 1}, "yes", ["boolean", "found: 1"]),
        ({"yes": "true"}, "yes", ["boolean", 'found: "true"']),
        ({"word": "green"}, "word", ["'red' or 'blue'", 'found: "green"']),
        ({"path": 3}, "path", ["string", "found: 3"]),
        ({"numbers": [1, "x"]}, "numbers.1", ["integer", 'found: "x"']),
        ({"numbers": 3}, "numbers", ["array", "found: 3"]),
    ],
)
@pytest.mark.parametrize("place", ["", "tables.a", "shape.plain"])
def test_a_wrong_type_or_range_names_path_found_and_allowed(
    found: dict[str, Any], key: str, says: list[str], place: str
):
    match place:
        case "":
            message = refused(Plain, found, "recipe.toml")
        case "tables.a":
            message = refused(Nested, {"name": "n", "tables": {"a": found}}, "recipe.toml")
        case _:
            message = refused(Nested, {"name": "n", "shape": {"kind": "round", "plain": found}}, "recipe.toml")
    full = f"{place}.{key}" if place else key
    assert message.startswith(f"recipe.toml: {full}: "), message
    for part in says:
        assert part in message


def test_several_mistakes_are_told_at_once_each_once():
    message = refused(Plain, {"whole": 0, "wrd": "red", "yes": 3})
    assert message.startswith("3 settings are wrong:")
    assert all(part in message for part in ("whole: ", "wrd: unknown key", "yes: "))


def test_unions_need_a_known_kind():
    message = refused(Nested, {"name": "n", "many": [{"radius": 2.0}]})
    assert "many.0.kind: missing" in message
    assert "round" in message
    assert "square" in message
    message = refused(Nested, {"name": "n", "many": [{"kind": "round"}, {"kind": "oval"}]})
    assert "many.1.kind: unknown kind 'oval'; allowed: 'round', 'square'" in message
    assert "shape" in refused(Nested, {"name": "n", "shape": 3})
    assert refused(Shape, {}).startswith("kind: missing")
    assert refused(Shape, {"kind": 3})


def test_a_table_without_kind_is_of_its_fields_default():
    found = config.read(Nested, {"name": "n", "shape": {"radius": 2.0}})
    assert found.shape == Round(radius=2.0)
    assert "shape.side: unknown key" in refused(Nested, {"name": "n", "shape": {"side": 2}})


def test_a_missing_key_and_a_rule_across_fields():
    assert refused(Nested, {}) == "name: missing; give it a value"
    assert refused(Nested, {"name": "n", "shape": {"kind": "square"}}) == "shape.side: missing; give it a value"
    assert refused(Nested, {"name": "forbidden"}) == "the name 'forbidden' is forbidden"
    message = refused(
        m.ModelConfig,
        {
            "vocabulary": 9,
            "width": 8,
            "depth": 1,
            "pattern": [{"mixer": {"kind": "attention", "heads": 3, "kv_heads": 2}}],
        },
    )
    assert message == "pattern.0.mixer: heads (3) must be a multiple of kv_heads (2)"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float):
    assert "real" in refused(Plain, {"real": number})
    assert "whole" in refused(Plain, {"whole": number})
    assert "finite" in refused(Plain, {"real": number})


@pytest.mark.parametrize("digits", [30, 400, 5000])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_beyond_all_ranges_are_refused(digits: int, sign: int):
    assert "recipe.toml" in refused(Plain, {"whole": sign * 10**digits}, "recipe.toml")
    if digits > 308:
        assert "recipe.toml" in refused(Plain, {"real": sign * 10**digits}, "recipe.toml")


def test_values_that_are_no_json_are_refused(tmp_path: Path):
    path = tmp_path / "a.toml"
    path.write_text("whole = 2020-01-01\n")
    assert "a.toml" in refused(Plain, config.read_toml(path), "a.toml")
    assert refused(Plain, {"whole": {1}})
    assert refused(Plain, {"path": "\ud800"})


def deep(depth: int) -> dict[str, Any]:
    found: Any = 1
    for _ in range(depth):
        found = {"shape": found}
    return found


@pytest.mark.parametrize("depth", [100, 5_000, 200_000])
def test_deep_nesting_is_an_error_of_ours(depth: int):
    message = refused(Nested, {"name": "n", **deep(depth)}, "x.toml")
    assert "x.toml" in message
    assert len(message) < 1000


# ---- TOML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = ", "is not TOML"),
        (b"a = 1\na = 2", "is not TOML"),
        (b"\xff = 1", "is not TOML"),
        (b"a = " + b"[" * 100_000, "a.toml"),
        (b"a = " + b"9" * 10_000, "a.toml"),
        (b"[" + b"a." * 50_000 + b"a]\n[" + b"a." * 50_000 + b"b]", None),
    ],
)
def test_malformed_toml_is_named(content: bytes, says: str | None, tmp_path: Path):
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        config.read(Plain, config.read_toml(path), where=str(path))
    assert "a.toml" in str(error.value)
    assert says is None or says in str(error.value)


def test_a_missing_recipe_and_a_folder_say_what_to_do(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such file: .*none\.toml\n  do: "):
        config.read_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        config.read_toml(tmp_path)


POSITIVE = st.floats(1e-3, 1e6)
STRETCH = st.floats(1.0, 100.0)
SCALING = (
    st.builds(m.LinearScalingConfig, factor=STRETCH)
    | st.builds(m.NtkScalingConfig, factor=STRETCH)
    | st.builds(
        m.YarnScalingConfig, factor=STRETCH, context=st.integers(1, 10_000), fast=POSITIVE, slow=POSITIVE,
        magnitude=st.none() | POSITIVE,
    )
    | st.builds(
        m.Llama3ScalingConfig, factor=STRETCH, context=st.integers(1, 10_000), low=st.floats(0.1, 1.0),
        high=st.floats(1.5, 9.0),
    )
)  # fmt: skip
UNPLACED = st.just(m.NoPositionConfig())
POSITION = (
    st.builds(
        m.RopeConfig,
        theta=st.floats(1e-3, 1e9),
        pairs=st.sampled_from(["half", "interleaved"]),
        scaling=st.none() | SCALING,
    )
    | st.just(m.AlibiConfig())
    | st.builds(m.BucketsConfig, count=st.integers(1, 32).map(lambda part: 4 * part), distance=st.integers(200, 999))
    | UNPLACED
)
MAP = (
    st.builds(m.SoftmaxConfig, cap=st.none() | POSITIVE)
    | st.sampled_from([m.SparsemaxConfig(), m.SigmoidConfig(), m.SinkConfig(), m.ScalableConfig()])
    | st.builds(m.EntmaxConfig, alpha=st.floats(1.1, 1.9), learned=st.booleans())
    | st.builds(m.TopKConfig, k=st.integers(1, 99))
    | st.builds(m.TaylorConfig, order=st.sampled_from([2, 4, 6, 8]))
    | st.builds(m.GumbelConfig, temperature=POSITIVE)
    | st.builds(m.PerturbConfig, points=st.integers(8, 256))
)
ATTENTION = st.builds(
    lambda groups, several, sight, **rest: m.AttentionConfig(
        heads=groups * several, kv_heads=None if several == 1 else groups, mask=sight[0], window=sight[1], **rest
    ),
    groups=st.sampled_from([1, 2]),
    several=st.sampled_from([1, 2, 4]),
    size=st.none() | st.sampled_from([2, 6, 128]),
    position=POSITION,
    map=MAP,
    sight=st.tuples(st.sampled_from(["causal", "prefix", "bidirectional"]), st.none())
    | st.tuples(st.just("causal"), st.integers(1, 1000)),
    bias=st.sampled_from(["none", "qkv", "all"]),
    qk_norm=st.booleans(),
    scale=st.none() | POSITIVE,
)
EVEN = st.integers(1, 64).map(lambda half: 2 * half)
STEPS = {"step_min": st.floats(1e-5, 1e-3), "step_max": st.floats(1e-3, 1.0)}
FEW = st.integers(1, 8)
HEADS = st.sampled_from([1, 2, 4])
HIDDEN_SIZE = st.none() | st.integers(1, 100)
MIXER = (
    ATTENTION
    | st.builds(m.S4DConfig, states=EVEN, **STEPS)
    | st.builds(m.S4Config, states=EVEN, length=st.integers(1, 9000), **STEPS)
    | st.builds(m.RtfConfig, states=st.integers(1, 64), length=st.integers(65, 9000))
    | st.builds(m.S5Config, states=EVEN, **STEPS)
    | st.builds(
        m.LruConfig, states=FEW, radius_min=st.floats(0, 0.5), radius_max=st.floats(0.6, 0.99), phase_max=POSITIVE
    )
    | st.builds(m.MambaConfig, expand=FEW, states=FEW, conv=FEW, rank=st.none() | FEW, **STEPS)
    | st.builds(m.Mamba2Config, heads=HEADS, expand=FEW, states=FEW, conv=FEW, **STEPS)
    | st.builds(m.RetNetConfig, heads=HEADS, theta=POSITIVE)
    | st.builds(m.RwkvConfig, heads=HEADS, rank=FEW)
    | st.builds(m.DeltaNetConfig, heads=HEADS, conv=FEW)
    | st.builds(m.RnnConfig, size=HIDDEN_SIZE)
    | st.builds(m.GruConfig, size=HIDDEN_SIZE)
    | st.builds(m.LstmConfig, size=HIDDEN_SIZE)
)
HIDDEN = {"width": st.none() | st.integers(1, 10_000), "bias": st.booleans()}
FORM = st.sampled_from(["tanh", "erf"])
PLAIN = (
    st.builds(m.SwigluConfig, **HIDDEN)
    | st.builds(m.GegluConfig, form=FORM, **HIDDEN)
    | st.builds(m.GeluConfig, form=FORM, **HIDDEN)
    | st.builds(m.SiluConfig, **HIDDEN)
    | st.builds(m.ReluConfig, power=st.sampled_from([1, 2]), **HIDDEN)
)
FFN = PLAIN | st.builds(
    m.ExpertsConfig,
    experts=st.integers(2, 64),
    top=st.integers(1, 2),
    expert=PLAIN,
    renormalise=st.booleans(),
    balance=st.floats(0, 1),
)
EPS = st.floats(1e-12, 1.0)
NORM = (
    st.builds(m.RmsNormConfig, eps=EPS)
    | st.builds(m.LayerNormConfig, eps=EPS, bias=st.booleans())
    | st.builds(m.BatchNormConfig, eps=EPS, momentum=st.floats(0.01, 1.0))
    | st.just(m.NoNormConfig())
)
BLOCK = st.builds(
    m.BlockConfig, mixer=MIXER, ffn=FFN, norm=NORM, order=st.sampled_from(["pre", "post", "sandwich"])
)  # fmt: skip
INPUT_POSITION = (
    st.builds(m.LearnedConfig, room=st.integers(1000, 9000))
    | st.builds(m.SinusoidalConfig, base=POSITIVE)
    | UNPLACED
)  # fmt: skip
FURTHER = st.builds(
    m.FurtherConfig,
    ids=st.integers(2, 16),
    heads=st.sampled_from([m.ParallelHeadsConfig(), m.SequentialHeadsConfig(), m.MedusaHeadsConfig()]),
)
MODEL = st.builds(
    lambda pattern, repeats, **rest: m.DecoderConfig(pattern=tuple(pattern), depth=len(pattern) * repeats, **rest),
    pattern=st.lists(BLOCK, min_size=1, max_size=3),
    repeats=st.integers(1, 4),
    vocabulary=st.integers(1, 2**40),
    width=st.sampled_from([16, 32, 48]),
    tied=st.booleans(),
    input_position=INPUT_POSITION,
    embedding_scale=POSITIVE,
    cap=st.none() | POSITIVE,
    context=st.none() | st.integers(1, 1000),
    init=st.sampled_from(["cs336", "zero-out", "gpt2"]),
    dropout=st.sampled_from([0.0, 0.1]),
    further=st.none() | FURTHER,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(model=MODEL)
def test_every_model_configuration_survives_toml(model: m.DecoderConfig, tmp_path_factory):
    plain = config.mapping(model)
    path = tmp_path_factory.mktemp("c") / "config.toml"
    path.write_text(config.toml({"model": plain}), encoding="utf-8", newline="\n")
    found = config.read_toml(path)["model"]
    assert found == plain
    assert config.read(m.ModelConfig, found) == model
    assert hash(config.read(m.ModelConfig, found)) == hash(model)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(model=MODEL)
def test_the_mapping_holds_every_default_and_no_none(model: m.DecoderConfig):
    def walk(value: Any, plain: Any) -> None:
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            assert plain.keys() == {name for name, inner in fields.items() if inner is not None}
            for name in plain:
                walk(fields[name], plain[name])
        elif isinstance(value, tuple):
            assert len(value) == len(plain)
            for inner, found in zip(value, plain, strict=True):
                walk(inner, found)
        else:
            assert value == plain

    walk(model, config.mapping(model))


def test_the_unions_are_what_these_tests_range_over():
    members = {kind for kind in vars(m).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
    seen = {
        m.RopeConfig, m.AlibiConfig, m.NoPositionConfig, m.LinearScalingConfig, m.NtkScalingConfig,
        m.YarnScalingConfig, m.Llama3ScalingConfig, m.LearnedConfig, m.SinusoidalConfig, m.SoftmaxConfig,
        m.AttentionConfig, m.S4DConfig, m.SwigluConfig, m.GegluConfig, m.GeluConfig, m.SiluConfig, m.ReluConfig,
        m.ExpertsConfig, m.RmsNormConfig, m.LayerNormConfig, m.BlockConfig, m.DecoderConfig,
        m.ParallelHeadsConfig, m.SequentialHeadsConfig, m.MedusaHeadsConfig, m.FurtherConfig,
        m.BucketsConfig, m.SparsemaxConfig, m.EntmaxConfig, m.TopKConfig, m.TaylorConfig, m.GumbelConfig,
        m.PerturbConfig, m.SigmoidConfig, m.SinkConfig, m.ScalableConfig, m.S4Config, m.RtfConfig, m.S5Config,
        m.LruConfig, m.MambaConfig, m.Mamba2Config, m.RetNetConfig, m.RwkvConfig, m.DeltaNetConfig, m.RnnConfig,
        m.GruConfig, m.LstmConfig, m.BatchNormConfig, m.NoNormConfig,
    }  # fmt: skip
    assert members == seen, "a new variant: add it to the strategies above"


def stack(mixer: Mapping[str, Any], width: int) -> dict[str, Any]:
    return {"vocabulary": 9, "width": width, "depth": 1, "pattern": [{"mixer": mixer}]}


@pytest.mark.parametrize(
    ("kind", "found", "says"),
    [
        (m.AttentionConfig, {"heads": 4, "kv_heads": 3}, "multiple of kv_heads"),
        (m.AttentionConfig, {"heads": 4, "window": 5, "mask": "prefix"}, "needs mask = causal"),
        (m.ExpertsConfig, {"experts": 2, "top": 3}, "more than experts"),
        (m.Llama3ScalingConfig, {"factor": 2.0, "context": 9, "low": 4.0, "high": 4.0}, "must be below high"),
        (m.LinearScalingConfig, {"factor": 0.5}, "factor"),
        (m.EntmaxConfig, {"alpha": 2.5, "learned": True}, "between 1 and 2"),
        (m.RtfConfig, {"states": 64, "length": 64}, "below length"),
        (m.LruConfig, {"radius_min": 0.9, "radius_max": 0.8}, "below radius_max"),
        (m.S5Config, {"step_min": 0.2}, "above step_max"),
        (m.ModelConfig, stack({"kind": "retnet", "heads": 4}, 12), "must be even"),
        (m.ModelConfig, stack({"kind": "rwkv", "heads": 5}, 12), "multiple of the heads of rwkv (5)"),
        (m.ModelConfig, stack({"kind": "deltanet", "heads": 5}, 12), "multiple of the heads of deltanet (5)"),
        (m.ModelConfig, stack({"kind": "mamba2", "heads": 5}, 12), "expand * width (24)"),
    ],
)
def test_fields_that_contradict_each_other_are_named(kind: Any, found: Mapping[str, Any], says: str):
    assert says in refused(kind, found)


ONE = {"mixer": {"kind": "attention", "heads": 4}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 30}, "multiple of heads"),
        ({"width": 12}, "must be even"),
        ({"depth": 3, "pattern": [ONE, ONE]}, "multiple of the pattern"),
        ({"input_position": {"kind": "learned", "room": 8}, "context": 9}, "beyond the learned positions"),
    ],
)
def test_models_that_cannot_be_are_named(changes: dict[str, Any], says: str):
    found = {"vocabulary": 9, "width": 32, "depth": 2, "pattern": [ONE]}
    assert says in refused(m.DecoderConfig, {**found, **changes})


# ---- overrides ---------------------------------------------------------------------------------------------

BASE = {
    "name": "n",
    "model": {"depth": 4, "pattern": [{"mixer": {"kind": "attention", "heads": 2, "kv_heads": 1}}]},
}


def put(*changes: str) -> dict[str, Any]:
    return config.override(BASE, changes)


def test_overrides_change_what_they_name_and_nothing_else():
    before = json.dumps(BASE)
    assert put("model.depth=8")["model"] == {**BASE["model"], "depth": 8}
    assert put("model.depth = 8") == put("model.depth=8")
    assert put("model.pattern.0.mixer.heads=4")["model"]["pattern"][0]["mixer"] == {
        "kind": "attention", "heads": 4, "kv_heads": 1,
    }  # fmt: skip
    assert put("optim.lr=3e-3")["optim"] == {"lr": 3e-3}
    assert put("a.b.c=1", "a.b.d=2")["a"] == {"b": {"c": 1, "d": 2}}
    assert put("model.depth=8", "model.depth=9")["model"]["depth"] == 9
    assert put() == BASE
    assert json.dumps(BASE) == before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("-1", -1), ("3e-3", 3e-3), ("true", True), ('"8"', "8"), ("'a b'", "a b"),
        ("[1, 2]", [1, 2]),
        ("{a = 1}", {"a": 1}), ("first", "first"), ("a b", "a b"), ("", ""), ("a=b", "a=b"), ("True", "True"),
        ("runs/x-1", "runs/x-1"), ("1\nb = 2", "1\nb = 2"), ("0x1f", 31), ("1_000", 1000),
        ("9" * 5000, "9" * 5000), ("[" * 5000, "[" * 5000), ("2020-01-01", "2020-01-01"),
        ("07:32:00", "07:32:00"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_toml_or_as_text(text: str, value: Any):
    found = put(f"some.key={text}")["some"]["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_new_kind_drops_the_old_variants_keys():
    mixer = put("model.pattern.0.mixer.kind=s4d")["model"]["pattern"][0]["mixer"]
    assert mixer == {"kind": "s4d"}
    mixer = put("model.pattern.0.mixer.kind=s4d", "model.pattern.0.mixer.states=8")["model"]["pattern"][0]["mixer"]
    assert mixer == {"kind": "s4d", "states": 8}
    mixer = put("model.pattern.0.mixer.kind=attention")["model"]["pattern"][0]["mixer"]
    assert mixer == {"kind": "attention", "heads": 2, "kv_heads": 1}


@pytest.mark.parametrize(
    "change",
    ["model.depth", "=8", ".a=1", "a..b=1", "a.=1", "name.x=1", "name.x.y=1", "model.pattern.1.mixer=1",
     "model.pattern.x=1", "model.pattern.-1=1", "model.pattern.0.mixer.heads.x=1", "", "model.pattern.²=1"],
)  # fmt: skip
def test_an_override_that_leads_nowhere_is_refused(change: str):
    with pytest.raises(ConfigError) as error:
        put(change)
    assert repr(change) in str(error.value)


def test_an_override_of_a_recipe_with_a_date_is_an_error_of_ours_at_the_latest_when_it_is_read(
    tmp_path: Path,
):
    path = tmp_path / "a.toml"
    path.write_text("path = 2020-01-01\n")
    with pytest.raises(ConfigError):
        config.read(Plain, config.override(config.read_toml(path), ["whole=2"]))


WORD = st.text(string.ascii_lowercase, min_size=1, max_size=3)
VALUE = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
TABLE = st.recursive(
    st.dictionaries(WORD, VALUE, max_size=3),
    lambda inner: st.dictionaries(WORD, inner | VALUE, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(table=TABLE, path=st.lists(WORD.map(lambda word: word.upper()), min_size=1, max_size=4), value=VALUE)
def test_what_an_override_puts_is_there_and_the_rest_stays(table: dict[str, Any], path: list[str], value: Any):
    found = config.override(table, [f"{'.'.join(path)}={json.dumps(value)}"])
    here: Any = found
    for part in path:
        here = here[part]
    assert here == value
    del found[path[0]]
    assert found == table


@settings(max_examples=200, derandomize=True, deadline=None)
@given(under=TABLE, over=TABLE)
def test_merge_is_over_laid_on_under(under: dict[str, Any], over: dict[str, Any]):
    found = config.merge(under, over)
    assert found.keys() == under.keys() | over.keys()
    for key in found:
        if key not in over:
            assert found[key] == under[key]
        elif key in under and isinstance(over[key], dict) and isinstance(under[key], dict):
            assert found[key] == config.merge(under[key], over[key])
        else:
            assert found[key] == over[key]
    assert config.merge(found, over) == found
    assert config.merge(under, {}) == under
    assert config.merge({}, over) == over


def test_merge_replaces_a_table_of_another_kind():
    under = {"mixer": {"kind": "attention", "heads": 2}}
    assert config.merge(under, {"mixer": {"kind": "s4d"}}) == {"mixer": {"kind": "s4d"}}
    assert config.merge(under, {"mixer": {"heads": 4}}) == {"mixer": {"kind": "attention", "heads": 4}}
    assert config.merge(under, {"mixer": {"kind": "attention", "kv_heads": 1}}) == {
        "mixer": {"kind": "attention", "heads": 2, "kv_heads": 1}
    }


# ---- files -------------------------------------------------------------------------------------------------


def write_half(path: Path, error: BaseException) -> None:
    with files.writing(path) as file:
        file.write(b"half")
        raise error


def test_a_file_is_whole_or_as_it_was(tmp_path: Path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old\r\nü")
    assert path.read_bytes() == "old\r\nü".encode()
    for found in (KeyboardInterrupt(), OSError(28, "full")):
        with pytest.raises(type(found)):
            write_half(path, found)
    assert path.read_bytes() == "old\r\nü".encode()
    with files.writing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == "old\r\nü".encode()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_creating_refuses_a_file_that_is_there(tmp_path: Path):
    with files.creating(tmp_path / "a") as file:
        file.write(b"1")
    with pytest.raises(FileExistsError), files.creating(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_a_mark_is_size_and_sha256(size: int, tmp_path: Path):
    import hashlib

    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "a").write_bytes(content)
    assert files.mark(tmp_path / "a") == files.FileMark(size, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "not JSON"), (b"[1]", "no JSON object"), (b"{", "not JSON"), (b"\xff", "not JSON"),
     (b"[" * 100_000, "not JSON"), (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON")],
)  # fmt: skip
def test_malformed_json_is_named(content: bytes, says: str, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        files.read_json(path, DataError)
    assert str(path) in str(error.value)


def test_json_that_is_missing_a_folder_or_too_large_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.read_json(tmp_path)
    files.write_json(tmp_path / "a.json", {"ü": 1})
    assert files.read_json(tmp_path / "a.json") == {"ü": 1}
    with pytest.raises(CheckpointError, match="too large"):
        files.read_json(tmp_path / "a.json", limit=3)


# ---- metric lines ------------------------------------------------------------------------------------------


def test_metric_lines_come_back_in_order_with_their_bits(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rng = np.random.default_rng(1)
    lines = [
        {"kind": "step", "step": step, "loss": float(rng.normal() * 10.0 ** rng.integers(-300, 300))}
        for step in range(50)
    ]
    first = log.MetricLog(path)
    for line in lines[:20]:
        first.write(line)
    assert list(log.read(path)) == lines[:20], "a line is on its way to the disk as soon as it is written"
    first.close()
    second = log.MetricLog(path)
    for line in lines[20:]:
        second.write(line)
    second.close()
    assert list(log.read(path)) == lines
    assert list(log.read(tmp_path / "none.jsonl")) == []


def test_numbers_without_a_json_word_are_text(tmp_path: Path):
    writer = log.MetricLog(tmp_path / "m")
    writer.write({"a": math.nan, "b": math.inf, "c": 1.0, "machine": {"speed": math.nan}})
    writer.close()
    text = (tmp_path / "m").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert next(log.read(tmp_path / "m"))["a"] == "nan"


@settings(max_examples=60, derandomize=True, deadline=None)
@given(kept=st.integers(0, 400))
def test_a_log_cut_anywhere_loses_only_its_last_line_and_goes_on(kept: int, tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    lines = [{"kind": "step", "step": step, "text": "ü" * step} for step in range(8)]
    writer = log.MetricLog(path)
    for line in lines:
        writer.write(line)
    writer.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    complete = lines[: whole[:kept].count(b"\n")]
    found = list(log.read(path))
    assert found[: len(complete)] == complete
    assert found == lines[: len(found)]
    assert len(found) - len(complete) in (0, 1)
    writer = log.MetricLog(path)
    writer.write({"kind": "end", "step": 9})
    writer.close()
    assert list(log.read(path)) == [*found, {"kind": "end", "step": 9}]


def test_cut_drops_the_lines_after_a_step(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    writer = log.MetricLog(path)
    lines = [
        {"kind": "start"},
        *({"kind": "step", "step": step} for step in (1, 2, 3)),
        {"kind": "end", "step": 3},
    ]
    for line in lines:
        writer.write(line)
    writer.close()
    log.cut(path, 2)
    assert list(log.read(path)) == lines[:3]
    log.cut(path, 9)
    assert list(log.read(path)) == lines[:3]
    log.cut(tmp_path / "none", 1)
    assert not (tmp_path / "none").exists()


# ---- keys --------------------------------------------------------------------------------------------------


def test_keys_are_fixed_for_good():
    """A changed value here changes every run in the world."""
    assert keys.key(0, "sample", 1) == int.from_bytes(
        __import__("hashlib").blake2b(b"0:sample:1", digest_size=16).digest(), "little"
    )
    assert keys.uniform(1, "sample", 5) == keys.uniform(1, "sample", 5)
    assert keys.generator(1, "order").permutation(5).tolist() == keys.generator(1, "order").permutation(5).tolist()


def test_keys_differ_wherever_one_part_differs():
    found = {keys.key(seed, purpose, *place) for seed in (0, 1, -1, 11) for purpose in ("a", "b") for place in
             ((), (0,), (1,), (0, 1), (1, 0), (11,), (1, 1))}  # fmt: skip
    assert len(found) == 4 * 2 * 7


def test_uniform_is_uniform_and_its_neighbours_are_independent():
    count = 20_000
    draws = np.array([keys.uniform(3, "test", place) for place in range(count)])
    assert draws.min() >= 0
    assert draws.max() < 1
    filled = np.bincount((draws * 50).astype(int), minlength=50)
    chi2 = ((filled - count / 50) ** 2 / (count / 50)).sum()
    assert 20 < chi2 < 90  # 49 degrees of freedom: 1 in 10,000 on either side
    assert abs(draws.mean() - 0.5) < 4 * math.sqrt(1 / 12 / count)
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 4 / math.sqrt(count)
    other = np.array([keys.uniform(4, "test", place) for place in range(count)])
    assert abs(np.corrcoef(draws, other)[0, 1]) < 4 / math.sqrt(count)
    low = np.array([keys.uniform(3, "test", place) * 2**53 % 1024 for place in range(2000)])
    assert np.unique(low).size > 800, "the last bits are drawn too"


def test_torch_seeds_fit_63_bits():
    seeds = [keys.torch_seed(seed, "build") for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


# ---- errors and promises -----------------------------------------------------------------------------------


def test_an_error_says_what_found_allowed_do():
    error = TemakiError("it broke", found="3", allowed="1 or 2", do="give 1")
    assert str(error) == "it broke\n  found: 3\n  allowed: 1 or 2\n  do: give 1"
    assert str(TemakiError("it broke")) == "it broke"
    assert (TemakiError.exit_code, ConfigError.exit_code) == (1, 2)


def test_configuration_files_and_keys_load_no_torch(fresh):
    code = "import sys, temaki.base.files, temaki.base.keys, temaki.base.log, temaki.model.config"
    assert fresh(f"{code}; print('torch' in sys.modules, 'temaki.base.config' in sys.modules)").split() == [
        "False",
        "True",
    ]
