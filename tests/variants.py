"""Every model variant, tiny: what the law tests run over."""

from typing import Any

import torch

from temaki.formats.weights import Weight, plain
from temaki.model import build
from temaki.model.build import Model
from temaki.model.config import (
    AlibiConfig,
    AttentionConfig,
    BatchNormConfig,
    BlockConfig,
    BucketsConfig,
    DecoderConfig,
    DeltaNetConfig,
    EntmaxConfig,
    ExpertsConfig,
    GegluConfig,
    GeluConfig,
    GruConfig,
    GumbelConfig,
    LayerNormConfig,
    LearnedConfig,
    LinearScalingConfig,
    Llama3ScalingConfig,
    LruConfig,
    LstmConfig,
    Mamba2Config,
    MambaConfig,
    MixerConfig,
    NoNormConfig,
    NoPositionConfig,
    NtkScalingConfig,
    PerturbConfig,
    RecurrentConfig,
    ReluConfig,
    RetNetConfig,
    RmsNormConfig,
    RnnConfig,
    RopeConfig,
    RtfConfig,
    RwkvConfig,
    S4Config,
    S4DConfig,
    S5Config,
    ScalableConfig,
    SigmoidConfig,
    SiluConfig,
    SinkConfig,
    SinusoidalConfig,
    SoftmaxConfig,
    SparsemaxConfig,
    SwigluConfig,
    TaylorConfig,
    TopKConfig,
    YarnScalingConfig,
)

VOCABULARY = 53


def blocks(*mixers: MixerConfig, **rest: Any) -> tuple[BlockConfig, ...]:
    """A block a mixer, alike in the rest."""
    return tuple(BlockConfig(mixer=mixer, **rest) for mixer in mixers)


def rope(scaling: Any, **rest: Any) -> AttentionConfig:
    return AttentionConfig(heads=4, position=RopeConfig(scaling=scaling, **rest))


def mapped(map: Any, **rest: Any) -> AttentionConfig:
    """Attention by another map, with buckets."""
    return AttentionConfig(heads=4, position=BucketsConfig(count=8, distance=20), map=map, **rest)


UNPLACED = NoPositionConfig()
RECURRENT: dict[str, RecurrentConfig] = {
    "s4d": S4DConfig(states=8),
    "s4": S4Config(states=8, length=128),
    "rtf": RtfConfig(states=6, length=128),
    "s5": S5Config(states=12),
    "lru": LruConfig(states=10),
    "mamba": MambaConfig(states=4, rank=3),
    "mamba2": Mamba2Config(heads=4, states=8),
    "retnet": RetNetConfig(heads=2),
    "rwkv": RwkvConfig(heads=2, rank=4),
    "deltanet": DeltaNetConfig(heads=2),
    "rnn": RnnConfig(),
    "gru": GruConfig(size=24),
    "lstm": LstmConfig(size=24),
}
"""Every mixer with a state of fixed size, tiny."""

PATTERNS: dict[str, tuple[BlockConfig, ...]] = {
    "attention-half": blocks(AttentionConfig(heads=4)),
    "attention-interleaved": blocks(AttentionConfig(heads=4, position=RopeConfig(pairs="interleaved"))),
    "grouped": blocks(AttentionConfig(heads=4, kv_heads=2, qk_norm=True)),
    "multi-query": blocks(AttentionConfig(heads=4, kv_heads=1)),
    "no-positions": blocks(AttentionConfig(heads=2, position=UNPLACED)),
    "s4d": blocks(S4DConfig(states=8)),
    "hybrid": blocks(AttentionConfig(heads=4, kv_heads=2), S4DConfig(states=8)),
    "window": blocks(AttentionConfig(heads=4, kv_heads=2, window=6)),
    "window-one": blocks(AttentionConfig(heads=2, window=1), AttentionConfig(heads=2, window=3)),
    "alibi": blocks(AttentionConfig(heads=6, kv_heads=3, size=4, position=AlibiConfig())),
    "alibi-window": blocks(AttentionConfig(heads=4, position=AlibiConfig(), window=9), ffn=SiluConfig()),
    "prefix": blocks(AttentionConfig(heads=4, kv_heads=2, mask="prefix"), ffn=ReluConfig(power=2, bias=True)),
    "linear-ntk": blocks(
        rope(LinearScalingConfig(factor=2.5)), rope(NtkScalingConfig(factor=4.0), pairs="interleaved")
    ),
    "yarn-llama3": blocks(
        rope(YarnScalingConfig(factor=4.0, context=16)), rope(Llama3ScalingConfig(factor=8.0, context=32))
    ),
    "gpt2": blocks(
        AttentionConfig(heads=4, position=UNPLACED, bias="all"),
        ffn=GeluConfig(width=64, bias=True),
        norm=LayerNormConfig(),
    ),
    "post": blocks(
        AttentionConfig(heads=4, position=UNPLACED), ffn=ReluConfig(), norm=LayerNormConfig(bias=False), order="post"
    ),
    "gemma": blocks(
        AttentionConfig(heads=2, kv_heads=1, size=12, scale=0.3, map=SoftmaxConfig(cap=2.0), window=7),
        AttentionConfig(heads=2, kv_heads=1, size=12, scale=0.3, map=SoftmaxConfig(cap=2.0)),
        ffn=GegluConfig(width=48),
        norm=RmsNormConfig(eps=1e-6),
        order="sandwich",
    ),
    "qwen": blocks(AttentionConfig(heads=4, kv_heads=2, bias="qkv", qk_norm=True), norm=RmsNormConfig(eps=1e-3)),
    "experts": blocks(
        AttentionConfig(heads=4, kv_heads=2), ffn=ExpertsConfig(experts=4, top=2, expert=SwigluConfig(width=32))
    ),
    "capped-prefix": blocks(
        AttentionConfig(heads=2, mask="prefix", position=AlibiConfig(), map=SoftmaxConfig(cap=3.0)),
        ffn=ExpertsConfig(experts=3, top=1, expert=GeluConfig(width=32, form="erf"), renormalise=False),
    ),
    "s4-rtf": blocks(RECURRENT["s4"], RECURRENT["rtf"]),
    "s5-lru": blocks(RECURRENT["s5"], RECURRENT["lru"]),
    "attention-mamba": blocks(AttentionConfig(heads=4, kv_heads=2), RECURRENT["mamba"]),
    "mamba2-retnet": blocks(RECURRENT["mamba2"], RECURRENT["retnet"]),
    "rwkv": blocks(RECURRENT["rwkv"]),
    "deltanet-window": blocks(RECURRENT["deltanet"], AttentionConfig(heads=2, window=6)),
    "lstm-attention": blocks(RECURRENT["lstm"], AttentionConfig(heads=2, position=UNPLACED)),
    "rnn-gru": blocks(RECURRENT["rnn"], RECURRENT["gru"], norm=LayerNormConfig()),
    "batch-norm": blocks(
        AttentionConfig(heads=4, kv_heads=2, qk_norm=True), RECURRENT["s4d"], norm=BatchNormConfig(momentum=0.3)
    ),
    "buckets": blocks(mapped(SoftmaxConfig()), mapped(SinkConfig(), window=6)),
    "sparse-maps": blocks(mapped(SparsemaxConfig()), mapped(EntmaxConfig(alpha=1.4, learned=True), kv_heads=2)),
    "dense-maps": blocks(mapped(TaylorConfig()), mapped(ScalableConfig())),
    "other-maps": blocks(mapped(TopKConfig(k=3)), mapped(SigmoidConfig())),
    "drawn-maps": blocks(mapped(PerturbConfig(points=16)), mapped(GumbelConfig(temperature=0.7))),
    "no-norm": blocks(AttentionConfig(heads=4), norm=NoNormConfig(), ffn=GeluConfig(width=64)),
}
AROUND: dict[str, dict[str, Any]] = {
    "gpt2": {"input_position": LearnedConfig(room=128)},
    "post": {"input_position": SinusoidalConfig(), "embedding_scale": 32**0.5},
    "gemma": {"embedding_scale": 32**0.5, "cap": 30.0},
}
"""What stands around the blocks of some."""

EVERY = list(PATTERNS)
NAMES = [
    "attention-half", "grouped", "no-positions", "s4d", "hybrid", "window", "gpt2", "gemma", "experts",
]  # fmt: skip
"""Those that differ in kind: for laws of training, where each run takes long."""
PREFIXED = ["prefix", "capped-prefix"]
DTYPES = [torch.float64, torch.float32]


def config(name: str, tied: bool = False, width: int = 32, vocabulary: int = VOCABULARY) -> DecoderConfig:
    """Two layers of the variant, with initial values that say something (no zero outputs)."""
    return DecoderConfig(
        vocabulary=vocabulary,
        width=width,
        depth=2,
        pattern=PATTERNS[name],
        tied=tied,
        init="cs336",
        **AROUND.get(name, {}),
    )


def model(name: str, dtype: torch.dtype = torch.float64, tied: bool = False, seed: int = 3) -> Model:
    """The variant with biases and gains that say something too."""
    made = build.build(config(name, tied), seed, dtype)
    generator, roles = torch.Generator().manual_seed(seed), made.roles()
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            if parameter.ndim == 1 and roles[path].kind == "vector":
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return made


def weights(of: Model, dtype: torch.dtype = torch.float32) -> dict[str, Weight]:
    """A model's parameters as a file would hold them."""
    return {name: plain(each.detach().to(dtype).numpy()) for name, each in of.named_parameters()}


def pieces(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths]


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal as "how equal" says: float64 1e-10 relative; float32 1e-4 of the largest value."""
    found, wanted = found.detach(), wanted.detach()
    bound = (1e-10 if wanted.dtype == torch.float64 else 1e-4) * max(float(wanted.abs().max()), 1e-30)
    worst = float((found - wanted).abs().max()) if found.numel() else 0.0
    assert found.shape == wanted.shape
    assert worst <= bound, f"differs by {worst}, allowed {bound}"
