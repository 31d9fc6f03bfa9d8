"""Presets: published parameter totals, the shapes of `transformers`' own defaults, and recipes that name one."""

from typing import Any

import pytest
import torch

from temaki.base.config import mapping, read
from temaki.base.errors import ConfigError
from temaki.model import build
from temaki.model.config import AttentionConfig, DecoderConfig, GeluConfig, LearnedConfig, RopeConfig, ffn_width
from temaki.model.count import count, forward_flops
from temaki.model.presets import PRESETS, preset
from temaki.study import recipes
from temaki.train import run as runs

TOTALS = {
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616, "llama3-8b": 8_030_261_248, "llama3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096, "qwen2-0.5b": 494_032_768, "qwen3-0.6b": 596_049_920,
    "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
    "gemma2-2b": 2_614_341_888, "mixtral-8x7b": 46_702_792_704, "cs336": 22_696_448,
}  # fmt: skip
"""As published with the weights, or by methods 5.2 and 7."""


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_count_is_the_sum_over_its_model(name: str) -> None:
    config = PRESETS[name].config
    with torch.device("meta"):
        model = build.empty(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count(config).total
    assert name not in TOTALS or count(config).total == TOTALS[name]
    assert read(DecoderConfig, mapping(config)) == config


def test_every_published_total_is_checked() -> None:
    assert set(PRESETS) - set(TOTALS) == {"encoder-base"}
    assert count(PRESETS["mixtral-8x7b"].config).active == pytest.approx(12.75e9, rel=1e-3)
    cs336 = count(PRESETS["cs336"].config)
    assert cs336.total - cs336.embedding - cs336.head == 12_456_448


def test_the_encoder_is_berts_but_for_what_its_note_says() -> None:
    """BERT-base without pooler: 108,891,648; less segments (2 x 768) and a norm (2 x 768), more a final one."""
    config = PRESETS["encoder-base"].config
    assert count(config).total == 108_891_648 - 2 * 768 - 2 * 768 + 2 * 768
    mixer = config.pattern[0].mixer
    assert isinstance(mixer, AttentionConfig)
    assert mixer.mask == "bidirectional"


def test_shapes_are_those_of_transformers_defaults() -> None:
    transformers = pytest.importorskip("transformers")
    gpt2 = transformers.GPT2Config()
    ours = PRESETS["gpt2"].config
    block = ours.pattern[0]
    assert (ours.vocabulary, ours.width, ours.depth) == (gpt2.vocab_size, gpt2.n_embd, gpt2.n_layer)
    assert ours.input_position == LearnedConfig(room=gpt2.n_positions)
    assert (block.mixer.heads, block.norm.eps) == (gpt2.n_head, gpt2.layer_norm_epsilon)  # type: ignore[union-attr]
    assert gpt2.activation_function == "gelu_new"
    assert block.ffn == GeluConfig(bias=True, form="tanh")
    for name, theirs in (
        ("llama2-7b", transformers.LlamaConfig()), ("mistral-7b", transformers.MistralConfig()),
        ("mixtral-8x7b", transformers.MixtralConfig()), ("gemma2-2b", transformers.Gemma2Config()),
    ):  # fmt: skip
        found = PRESETS[name].config
        mixer = found.pattern[0].mixer
        assert isinstance(mixer, AttentionConfig)
        wanted = (theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads)
        assert (found.vocabulary, found.width, found.depth, mixer.heads) == wanted
        assert mixer.groups == theirs.num_key_value_heads
        ffn = found.pattern[0].ffn
        assert ffn_width(ffn.expert if ffn.kind == "experts" else ffn, found.width) == theirs.intermediate_size
        assert isinstance(mixer.position, RopeConfig)


def test_gemma_2_is_as_transformers_has_it() -> None:
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.Gemma2Config(), PRESETS["gemma2-2b"].config
    first, second = (block.mixer for block in ours.pattern)
    assert isinstance(first, AttentionConfig)
    assert isinstance(second, AttentionConfig)
    assert (first.window, second.window) == (theirs.sliding_window, None)
    assert theirs.layer_types[:2] == ["sliding_attention", "full_attention"]
    assert first.map.cap == second.map.cap == theirs.attn_logit_softcapping
    assert (ours.cap, first.size) == (theirs.final_logit_softcapping, theirs.head_dim)
    assert first.scale == theirs.query_pre_attn_scalar**-0.5
    assert ours.pattern[0].norm.eps == theirs.rms_norm_eps
    assert ours.embedding_scale == theirs.hidden_size**0.5


def test_flops_of_gpt2_xls_shape() -> None:
    """The course's: SwiGLU of 6400, no biases, an untied head, no learned positions."""
    found = {"model": {"preset": "cs336", "width": 1600, "depth": 48, "vocabulary": 50_257, "pattern": [
        {"mixer": {"kind": "attention", "heads": 25}, "ffn": {"kind": "swiglu", "width": 6400}}
    ]}}  # fmt: skip
    config = read(DecoderConfig, recipes.expanded(found)["model"])
    assert count(config).total == 2_127_057_600
    assert round(forward_flops(config, 1024) / 1e12, 3) == 4.513


# ---- recipes ----------------------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {"name": "mine", "model": {"preset": "smollm2-135m"}, "stop": {"steps": 3}}


def test_a_recipe_names_a_preset_and_its_vocabulary_is_the_tokenizers() -> None:
    resolved, line = recipes.resolve(RECIPE)
    assert line is None
    assert "preset" not in resolved["model"]
    config = recipes.complete(resolved, 300).model
    wanted = PRESETS["smollm2-135m"].config
    assert (config.vocabulary, config.width, config.pattern) == (300, wanted.width, wanted.pattern)
    assert recipes.complete(RECIPE, 300).model == config


def test_keys_beside_a_preset_and_changes_go_over_it() -> None:
    recipe = {**RECIPE, "model": {"preset": "gpt2", "depth": 2, "input_position": {"room": 64}, "context": 64}}
    changes = ["model.width=96", "model.pattern.0.mixer.heads=4", "model.vocabulary=500"]
    found = recipes.complete(recipes.resolve(recipe, changes)[0], 300).model
    assert (found.depth, found.width, found.vocabulary) == (2, 96, 500)
    assert found.input_position == LearnedConfig(room=64)
    mixer = found.pattern[0].mixer
    assert isinstance(mixer, AttentionConfig)
    assert (mixer.heads, mixer.bias) == (4, "all")
    other = recipes.resolve(RECIPE, ["model.depth=30", "model.preset=cs336", "model.tied=true", "model.depth=8"])[0]
    assert recipes.complete(other, 300).model.depth == 8
    assert recipes.complete(other, 300).model.init == "cs336"


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'smolm2-135m'(.|\n)*did you mean 'smollm2-135m'"):
        recipes.resolve(RECIPE, ["model.preset=smolm2-135m"])
    with pytest.raises(ConfigError, match="allowed: gpt2, "):
        preset("zzzz")
    for odd in (5, [], {}):
        with pytest.raises(ConfigError, match="no preset"):
            recipes.complete({**RECIPE, "model": {"preset": odd}}, 300)


def test_a_preset_and_a_dial_are_two_shapes() -> None:
    with pytest.raises(ConfigError, match="both fix the shape"):
        recipes.resolve(RECIPE, (), minutes=1.0, speed=1e9)


def test_the_dial_begins_with_bigrams_only_where_the_next_id_is_learned() -> None:
    mixer = {"kind": "attention", "mask": "bidirectional"}
    masked = {"model": {"pattern": [{"mixer": mixer}]}, "objective": {"kind": "masked"}}
    for recipe, begin in (({}, "bigrams"), (masked, "random")):
        found, _ = recipes.resolve({"name": "a", **recipe}, (), depth=3, speed=1e9)
        assert found["begin"]["kind"] == begin
        config = recipes.complete({**found, "data": {"special": ["<|mask|>"]}}, 300)
        runs.check_recipe(config)
