"""Every model variant, tiny: what the law tests run over."""

import torch

from temaki.model import build
from temaki.model.build import Model
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    NoPositionConfig,
    RopeConfig,
    S4DConfig,
)

VOCABULARY = 53

MIXERS = {
    "attention-half": (AttentionConfig(heads=4),),
    "attention-interleaved": (AttentionConfig(heads=4, position=RopeConfig(pairs="interleaved")),),
    "grouped": (AttentionConfig(heads=4, kv_heads=2, qk_norm=True),),
    "multi-query": (AttentionConfig(heads=4, kv_heads=1),),
    "no-positions": (AttentionConfig(heads=2, position=NoPositionConfig()),),
    "s4d": (S4DConfig(states=8),),
    "hybrid": (AttentionConfig(heads=4, kv_heads=2), S4DConfig(states=8)),
}
NAMES = list(MIXERS)
DTYPES = [torch.float64, torch.float32]


def config(name: str, tied: bool = False, width: int = 32, vocabulary: int = VOCABULARY) -> DecoderConfig:
    """Two layers of the variant, with initial values that say something (no zero outputs)."""
    pattern = tuple(BlockConfig(mixer=mixer) for mixer in MIXERS[name])
    return DecoderConfig(vocabulary=vocabulary, width=width, depth=2, pattern=pattern, tied=tied, init="cs336")


def model(name: str, dtype: torch.dtype = torch.float64, tied: bool = False, seed: int = 3) -> Model:
    return build.build(config(name, tied), seed, dtype)


def pieces(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths]


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal as "how equal" says: float64 1e-10 relative; float32 1e-4 of the largest value."""
    bound = (1e-10 if wanted.dtype == torch.float64 else 1e-4) * max(float(wanted.abs().max()), 1e-30)
    worst = float((found - wanted).abs().max()) if found.numel() else 0.0
    assert found.shape == wanted.shape
    assert worst <= bound, f"differs by {worst}, allowed {bound}"
