"""Tiny random models for the tests of the GGUF door: one of each architecture that the format has a word for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from temaki.checkpoint.speaking import Speaking
from temaki.formats import gguf_names, proof
from temaki.formats.opened import Opened
from temaki.formats.weights import plain
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    GegluConfig,
    GeluConfig,
    LayerNormConfig,
    LearnedConfig,
    LinearScalingConfig,
    Llama3ScalingConfig,
    NoPositionConfig,
    RmsNormConfig,
    RopeConfig,
    SoftmaxConfig,
    SwigluConfig,
    YarnScalingConfig,
)
from temaki.tokens import plain_bpe, sentencepiece
from temaki.tokens.bpe import Bpe
from temaki.tokens.frame import Frame
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe
from temaki.tokens.tokenizer import Tokenizer

TEXT = [
    "The quick brown fox jumps over the lazy dog, doesn't it? " * 3,
    "naive cafe: naïve café, 12345 and 67 (89). 你好世界 привет мир\n\n\tdef f(x):\n        return x ** 2\n",
    "it's I'm we'll they've DON'T   spaces \r\n and \U0001f600 emoji é",
]
"""What the tests' vocabulary is learned from."""
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}{{ eos_token }}"
IDS = 400
TELLING = 4000
"""Ids of a vocabulary that tells where a text was cut."""


def one(mixer: AttentionConfig, **more: object) -> DecoderConfig:
    """A model of two equal blocks."""
    parts = {name: more.pop(name) for name in ("ffn", "norm", "order") if name in more}
    block = BlockConfig(mixer=mixer, **({"ffn": SwigluConfig(width=96)} | parts))  # type: ignore[arg-type]
    shape = {"vocabulary": IDS, "width": 64, "depth": 2, "context": 128}
    return DecoderConfig(pattern=(block,), **(shape | more))  # type: ignore[arg-type]


def rope(**more: object) -> AttentionConfig:
    """Four heads on two of keys and values, turned."""
    position = RopeConfig(**{name: more.pop(name) for name in ("theta", "pairs", "scaling") if name in more})  # type: ignore[arg-type]
    return AttentionConfig(**({"heads": 4, "kv_heads": 2, "position": position} | more))  # type: ignore[arg-type]


def gemma() -> DecoderConfig:
    """Gemma 2: a window in every other layer."""
    local = rope(map=SoftmaxConfig(cap=50.0), window=24, size=32)
    far = rope(map=SoftmaxConfig(cap=50.0), size=32)
    blocks = tuple(
        BlockConfig(mixer=mixer, ffn=GegluConfig(width=96), norm=RmsNormConfig(eps=1e-6), order="sandwich")
        for mixer in (local, far)
    )
    return DecoderConfig(
        vocabulary=IDS, width=64, depth=2, pattern=blocks, cap=30.0, embedding_scale=math.sqrt(64), context=128
    )


EXPERTS = ExpertsConfig(experts=4, top=2, expert=SwigluConfig(width=64))
CONFIGS = {
    "llama": one(rope(), tied=False),
    "llama-interleaved": one(rope(pairs="interleaved", theta=5e5), norm=RmsNormConfig(eps=1e-6)),
    "llama-multi-query": one(rope(kv_heads=1, size=32), depth=3),
    "llama-biases": one(rope(bias="all"), ffn=SwigluConfig(width=96, bias=True)),
    "llama-linear": one(rope(scaling=LinearScalingConfig(factor=4.0))),
    "llama-yarn": one(rope(scaling=YarnScalingConfig(factor=4.0, context=32))),
    "llama-3": one(rope(scaling=Llama3ScalingConfig(factor=8.0, context=64))),
    "mixtral": one(rope(), ffn=EXPERTS),
    "qwen2": one(rope(bias="qkv"), norm=RmsNormConfig(eps=1e-6)),
    "qwen3": one(rope(qk_norm=True, size=32), tied=False),
    "qwen3moe": one(rope(qk_norm=True, size=32), ffn=EXPERTS),
    "gpt2": one(
        AttentionConfig(heads=4, bias="all", position=NoPositionConfig()),
        ffn=GeluConfig(bias=True),
        norm=LayerNormConfig(),
        input_position=LearnedConfig(room=128),
    ),
    "gemma2": gemma(),
}
"""By architecture and what is special."""


@cache
def tokenizer(
    pattern: str = "gpt2",
    size: int = IDS - 8,
    special: Sequence[str] = ("<|endoftext|>", "<|tool|>"),
    whole: bool = False,
) -> Bpe:
    """A byte-level BPE learned from `TEXT`; as it comes, fewer ids than the model has."""
    learned = plain_bpe.train(TEXT, size, special, pattern)
    return Bpe(learned.tokens, learned.merges, learned.special, pattern, whole)


@cache
def telling(pattern: str, special: Sequence[str] = (), whole: bool = False) -> Bpe:
    """A vocabulary learned without any splitting, from nasty texts: a cut at another place gives other ids."""
    texts = [*TEXT, *proof.texts(500, seed=9)]
    learned = plain_bpe.train(texts, TELLING, special, r"[\s\S]+")
    return Bpe(learned.tokens, learned.merges, learned.special, pattern, whole)


def pieces(**more: bool) -> SentencePieceBpe:
    """A SentencePiece BPE as Llama 2 has it."""
    listed = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    listed += [(f"<0x{value:02X}>", 0.0, 6) for value in range(256)]
    words = ["\u2581t", "he", "\u2581the", "in", "er", "\u2581\u2581"]
    listed += [(text, -float(place), 1) for place, text in enumerate(words)]
    listed += [(letter, -100.0 - place, 1) for place, letter in enumerate("\u2581theinrsalo.")]
    every = tuple(sentencepiece.Piece(*each) for each in listed)
    rules = replace(sentencepiece.Normalizer(remove_extra_whitespaces=False), **more)
    return SentencePieceBpe(sentencepiece.Model(every, sentencepiece.BPE, True, normalizer=rules))


def model(
    config: DecoderConfig,
    words: Tokenizer | None = None,
    frame: Frame | None = None,
    speaking: Speaking | None = None,
    seed: int = 1,
) -> Opened:
    """A model with random weights."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for entry in gguf_names.entries(config, fused=False):
        spread = 0.3 if entry.ours == "embedding" else 1.5 / math.sqrt(config.width)
        array = draw.normal(scale=spread, size=entry.shape).astype(np.float32)
        if entry.ours.endswith("gain"):
            array = 1 + array / 8
        arrays[entry.ours] = array if entry.sources else np.zeros_like(array)
    return Opened(
        folder=Path("tiny"),
        config=config,
        settings={},
        step=None,
        warnings=(),
        read_weights=lambda: {name: plain(array) for name, array in arrays.items()},
        read_tokenizer=lambda: None if words is None else (words, frame or Frame()),
        speaking=speaking or Speaking(),
    )


def taught(opened: Opened, steps: int = 120) -> Opened:
    """The model after it has learned `TEXT` by heart."""
    import torch

    from temaki.base import rows

    assert opened.tokenizer is not None
    pieces = [torch.as_tensor(opened.tokenizer.encode(text).astype(np.int64)) for text in TEXT]
    module = opened.model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        hidden = module(rows.rows([piece[:-1] for piece in pieces]))
        targets = torch.cat([piece[1:] for piece in pieces])
        torch.nn.functional.cross_entropy(module.head.logits(hidden), targets).backward()
        optimizer.step()
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return replace(opened, read_weights=lambda: {name: plain(array) for name, array in arrays.items()})
