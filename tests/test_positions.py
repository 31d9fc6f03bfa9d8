"""Positions: the notes' check values, the laws of each kind, and `transformers` as the oracle of longer contexts."""

import math
from typing import Any, Literal

import pytest
import torch

import variants
from temaki.base.errors import ConfigError
from temaki.base.rows import Rows, rows
from temaki.model import build
from temaki.model.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    InputPositionConfig,
    LearnedConfig,
    LinearScalingConfig,
    Llama3ScalingConfig,
    NoPositionConfig,
    NtkScalingConfig,
    PositionConfig,
    RopeConfig,
    ScalingConfig,
    SinusoidalConfig,
    YarnScalingConfig,
)
from temaki.model.dense import attention
from temaki.model.positions import (
    Rotary,
    Sinusoidal,
    alibi_slopes,
    interleaved_to_half,
    rope_angles,
    rope_speeds,
    rotate,
    sinusoidal,
)
from variants import close, pieces

SCALINGS: dict[str, tuple[ScalingConfig, dict[str, Any]]] = {
    "linear": (LinearScalingConfig(factor=3.0), {"rope_type": "linear", "factor": 3.0}),
    "yarn": (
        YarnScalingConfig(factor=4.0, context=2048),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    ),
    "yarn-all": (
        YarnScalingConfig(factor=16.0, context=512, fast=20.0, slow=2.0, magnitude=1.25),
        {
            "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 512, "beta_fast": 20.0,
            "beta_slow": 2.0, "attention_factor": 1.25,
        },
    ),
    "yarn-tiny": (
        YarnScalingConfig(factor=2.0, context=4),
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4},
    ),
    "llama3": (
        Llama3ScalingConfig(factor=8.0, context=8192),
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "llama3-all": (
        Llama3ScalingConfig(factor=32.0, context=256, low=2.0, high=9.0),
        {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 9.0,
            "original_max_position_embeddings": 256,
        },
    ),
}  # fmt: skip


def theirs(size: int, theta: float, given: dict[str, Any], **rest: Any) -> tuple[torch.Tensor, float]:
    """Speeds and magnitude as `transformers` computes them, in float32."""
    oracle = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = oracle.LlamaConfig(
        hidden_size=size,
        num_attention_heads=1,
        head_dim=size,
        rope_parameters={"rope_theta": theta, **given},
        max_position_embeddings=4096,
    )
    return ROPE_INIT_FUNCTIONS[given["rope_type"]](config, torch.device("cpu"), **rest)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(("size", "theta"), [(64, 10_000.0), (128, 500_000.0), (8, 100.0)])
def test_scaled_speeds_are_those_of_transformers(name: str, size: int, theta: float) -> None:
    ours, given = SCALINGS[name]
    speeds, magnitude = rope_speeds(size, theta, ours)
    wanted, factor = theirs(size, theta, given)
    assert torch.allclose(speeds.float(), wanted, rtol=2e-6, atol=0)
    assert magnitude == pytest.approx(factor, rel=1e-12)


def test_ntk_is_the_dynamic_formula_of_transformers_at_its_factor() -> None:
    """Theirs at length s of a context m has base theta (f s / m - (f - 1))^(K / (K - 2)); 4 where f = 2, s = 2.5 m."""
    wanted, factor = theirs(64, 10_000.0, {"rope_type": "dynamic", "factor": 2.0}, seq_len=10_240)
    speeds, magnitude = rope_speeds(64, 10_000.0, NtkScalingConfig(factor=4.0))
    assert torch.allclose(speeds.float(), wanted, rtol=2e-6, atol=0)
    assert (magnitude, factor) == (1.0, 1.0)
    assert speeds[0] == 1
    assert speeds[-1].item() == pytest.approx(rope_speeds(64)[0][-1].item() / 4, rel=1e-12)


def test_what_each_scaling_leaves_and_stretches() -> None:
    plain = rope_speeds(64)[0]
    assert torch.equal(rope_speeds(64, scaling=LinearScalingConfig(factor=1.0))[0], plain)
    for scaling in (YarnScalingConfig(factor=8.0, context=2048), Llama3ScalingConfig(factor=8.0, context=2048)):
        share = plain / rope_speeds(64, scaling=scaling)[0]
        assert share[0] == 1
        assert share[-1].item() == pytest.approx(8.0)
        assert (share.diff() >= -1e-9).all()
    assert rope_speeds(64, scaling=YarnScalingConfig(factor=8.0, context=64))[1] == pytest.approx(0.1 * math.log(8) + 1)


@pytest.mark.parametrize("wild", [1e-320, 1e-3, 1.0, 7.5, 1e308])
def test_wild_settings_of_a_scaling_are_numbers_or_our_error(wild: float) -> None:
    """What a damaged file may say."""
    for size in (2, 8):
        for theta in (wild, 10_000.0):
            for factor in (1.0, max(1.0, wild)):
                for scaling in (
                    NtkScalingConfig(factor=factor),
                    YarnScalingConfig(factor=factor, context=10**20, fast=wild, slow=wild),
                    Llama3ScalingConfig(factor=factor, context=10**20, low=wild / 2, high=wild),
                ):
                    if theta == 1 and isinstance(scaling, YarnScalingConfig):
                        with pytest.raises(ConfigError, match="theta"):
                            rope_speeds(size, theta, scaling)
                    else:
                        speeds, magnitude = rope_speeds(size, theta, scaling)
                        assert speeds.shape == (size // 2,)
                        assert math.isfinite(magnitude)


def test_sinusoidal_values_and_relative_identity() -> None:
    table = sinusoidal(torch.arange(60), 512)
    assert table[1, :4].tolist() == pytest.approx([0.841471, 0.540302, 0.821856, 0.569695], abs=1e-6)
    assert table[0, :4].tolist() == [0, 1, 0, 1]
    products = table @ table.T
    for offset in (0, 1, 7, 30):
        along = products.diagonal(offset)
        assert (along - along[0]).abs().max() < 1e-9
    assert sinusoidal(torch.arange(3), 5).shape == (3, 5)
    moved = Sinusoidal(SinusoidalConfig(base=50.0), 6, room=2)
    moved.extend(9)
    close(moved(torch.zeros(9, 6, dtype=torch.float64), torch.arange(9)), sinusoidal(torch.arange(9), 6, 50.0))


def test_alibi_slopes_and_distances() -> None:
    assert alibi_slopes(8) == tuple(2.0**-h for h in range(1, 9))
    twelve = alibi_slopes(12)
    assert twelve[:8] == alibi_slopes(8)
    assert twelve[8:] == pytest.approx([0.707107, 0.353553, 0.176777, 0.088388], abs=1e-6)
    assert alibi_slopes(1) == (2.0**-8,)


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize("scaling", [None, *(ours for ours, _ in SCALINGS.values())])
def test_turned_scores_depend_on_the_offset_alone(pairs: Any, scaling: ScalingConfig | None) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(2))

    def turn(x: torch.Tensor, m: int) -> torch.Tensor:
        return rotate(x, *rope_angles(torch.tensor(m), 8, 100.0, scaling), pairs)

    magnitude = rope_speeds(8, 100.0, scaling)[1]
    for p, r in ((0, 3), (5, 8), (1000, 1003)):
        close(turn(q, p) @ turn(k, r), magnitude * (q @ turn(k, 3)))
    assert turn(q, 7).norm().item() == pytest.approx(magnitude * q.norm().item())


def test_the_two_conventions_are_one_after_the_permutation_of_weights() -> None:
    """A model with its query and key rows permuted head by head speaks the other convention."""
    interleaved = variants.model("attention-interleaved")
    order = torch.cat([interleaved_to_half(8) + 8 * h for h in range(8)])
    with torch.no_grad():
        for block in interleaved.blocks:
            weight = block.mixer.qkv  # type: ignore[union-attr]
            weight[:64] = weight[:64][order]  # type: ignore[index]
    read = rows(pieces([30]))
    changed = build.build(variants.config("attention-half"), 3, torch.float64)
    changed.load_state_dict(interleaved.state_dict())
    close(logits(changed, read), logits(variants.model("attention-interleaved"), read))


def test_tables_grow_and_are_exact_far_away() -> None:
    rotary = Rotary(RopeConfig(), 8, room=4).float()
    rotary.extend(70_000)
    cos, sin = rotary(torch.tensor([69_999]), torch.float32)
    wanted = rope_angles(torch.tensor(69_999), 8)
    assert torch.equal(cos[0, 0], wanted[0].float())
    assert torch.equal(sin[0, 0], wanted[1].float())


def decoder(position: PositionConfig, around: InputPositionConfig, mask: Any = "causal", **rest: Any) -> build.Model:
    mixer = AttentionConfig(heads=2, position=position, mask=mask)
    config = DecoderConfig(
        vocabulary=53,
        width=16,
        depth=2,
        pattern=(BlockConfig(mixer=mixer),),
        init="cs336",
        input_position=around,
        **rest,
    )
    return build.build(config, 1, torch.float64)


NONE = NoPositionConfig()
KINDS: dict[str, tuple[PositionConfig, InputPositionConfig]] = {
    "rope": (RopeConfig(), NONE),
    "alibi": (AlibiConfig(), NONE),
    "learned": (NONE, LearnedConfig(room=40)),
    "sinusoidal": (NONE, SinusoidalConfig()),
    "none": (NONE, NONE),
}


@pytest.mark.parametrize("name", KINDS)
def test_only_positions_see_an_order_and_only_absolute_ones_a_beginning(name: str) -> None:
    """Both ways and without positions a permutation passes through; a shift moves absolute positions alone."""
    (ids,) = pieces([9])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    both = decoder(*KINDS[name], mask="bidirectional")
    a, b = logits(both, rows([ids]))[order], logits(both, rows([ids[order]]))
    assert (float((a - b).abs().max()) < 1e-10) == (name == "none")
    causal = decoder(*KINDS[name])
    a, b = logits(causal, rows([ids])), logits(causal, rows([ids], [17]))
    assert (float((a - b).abs().max()) < 1e-10) == (name in ("rope", "alibi", "none"))


def test_more_positions_than_were_learned_is_an_error_naming_both() -> None:
    model = decoder(NONE, LearnedConfig(room=40))
    (ids,) = pieces([41])
    logits(model, rows([ids[:40]]))
    model.extend(40)
    for beyond in (lambda: logits(model, rows([ids])), lambda: model.extend(41)):
        with pytest.raises(ConfigError, match="41 ids is longer than the 40 positions"):
            beyond()
    state = model.new_state(slots=1, room=60)
    logits(model, rows([ids[:40]]), state.at([0]))
    with pytest.raises(ConfigError, match="41 ids is longer than the 40"):
        logits(model, rows([ids[40:]], [40]), state.at([0]))
    assert model.roles()["input_position.table"].kind == "embedding"


def test_embeddings_are_scaled_before_positions_are_added() -> None:
    model = decoder(NONE, LearnedConfig(room=40), embedding_scale=4.0)
    plain = decoder(NONE, LearnedConfig(room=40))
    with torch.no_grad():
        plain.load_state_dict(model.state_dict())
        plain.embedding.mul_(4)
        plain.head.weight = model.head.weight
    (ids,) = pieces([12])
    with torch.no_grad():
        close(plain(rows([ids])), model(rows([ids])))


def test_uniform_causal_attention_writes_the_place_into_the_scale() -> None:
    """With equal scores y_n is the mean of n values: its mean square is 1/n, which is why no positions can work."""
    generator = torch.Generator().manual_seed(4)
    v = torch.randn(1000, 512, generator=generator, dtype=torch.float64)
    y = attention(
        torch.zeros(1000, 1, dtype=torch.float64),
        torch.zeros(1000, 1, dtype=torch.float64),
        v,
        torch.ones(1000, 1000).tril().bool(),
    )
    square = y.square().mean(-1)
    for n in (1, 4, 16, 100, 1000):
        assert square[n - 1].item() == pytest.approx(1 / n, rel=0.25)


def logits(model: build.Model, of: Rows, seats: object = None) -> torch.Tensor:
    with torch.no_grad():
        return model.head.logits(model(of, seats))  # type: ignore[arg-type]


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_turning_without_gradient_is_turning_with_it_however_the_numbers_lie(
    pairs: Literal["half", "interleaved"], dtype: torch.dtype
) -> None:
    whole = torch.randn(5, 3, 9, dtype=torch.float64).to(dtype)
    cos, sin = (each.to(dtype)[:, None] for each in rope_angles(torch.arange(5), 8))
    for x in (whole[..., :8], whole[..., 1:], whole[..., :8].contiguous(), whole[:, :, :8].transpose(0, 1)):
        angles = (cos, sin) if x.shape[0] == 5 else (cos.squeeze(1), sin.squeeze(1))
        wanted = rotate(x.clone().requires_grad_(), *angles, pairs).detach()
        with torch.no_grad():
            found = rotate(x, *angles, pairs)
        torch.testing.assert_close(found, wanted)
