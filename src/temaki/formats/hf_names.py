"""Our weights <-> the arrays of a Hugging Face file, as one table a configuration."""

import re
from collections.abc import Iterator

from temaki.formats.hf_keys import Family
from temaki.formats.weights import PLUS_ONE, SAME, TRANSPOSED, Change, Entry, Source, interleaved
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    GegluConfig,
    LearnedConfig,
    PlainFfnConfig,
    RopeConfig,
    SwigluConfig,
    ffn_width,
)

BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)")
"""Arrays of old files that hold nothing learned."""


def ignored(name: str) -> bool:
    """Whether an array holds nothing learned."""
    return BUFFERS.fullmatch(name) is not None


def arrays(config: DecoderConfig) -> int:
    """How many arrays a file of this configuration has at least."""
    experts = (block.ffn.experts if isinstance(block.ffn, ExpertsConfig) else 1 for block in config.pattern)
    return 3 * config.depth // len(config.pattern) * sum(experts)


def entries(config: DecoderConfig, family: Family) -> tuple[Entry, ...]:
    """The table of a configuration that this family can say."""
    return tuple(_gpt2(config) if family.name == "gpt2" else _stack(config, family))


def _one(ours: str, theirs: str, *shape: int, change: Change = SAME) -> Entry:
    """A weight that is one array of the same shape."""
    return Entry(ours, shape, (Source(theirs, shape, change),))


# ---- Llama and its relatives ----------------------------------------------------------------------------------------


def _stack(config: DecoderConfig, family: Family) -> Iterator[Entry]:
    v, d = config.vocabulary, config.width
    gain = PLUS_ONE if family.gemma else SAME
    yield _one("embedding", "model.embed_tokens.weight", v, d)
    for i, block in enumerate(config.blocks):
        assert isinstance(block.mixer, AttentionConfig), "every family here is made of attention"
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        for norm, name in _norms(block).items():
            yield _one(f"{ours}{norm}.gain", f"{theirs}{name}.weight", d, change=gain)
        yield from _attention(block.mixer, d, f"{ours}mixer.", f"{theirs}self_attn.")
        yield from _ffn(block, d, f"{ours}ffn.", theirs, family)
    yield _one("norm.gain", "model.norm.weight", d, change=gain)
    if not config.tied:
        yield _one("unembedding", "lm_head.weight", v, d)


def _norms(block: BlockConfig) -> dict[str, str]:
    if block.order == "sandwich":
        return {
            "mixer_norm": "input_layernorm",
            "mixer_after": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "ffn_after": "post_feedforward_layernorm",
        }
    return {"mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def _attention(mixer: AttentionConfig, d: int, ours: str, theirs: str) -> Iterator[Entry]:
    h, g, k = mixer.heads, mixer.groups, mixer.head_size(d)
    rows = (("q_proj", h, _pairs(mixer, h)), ("k_proj", g, _pairs(mixer, g)), ("v_proj", g, SAME))
    for part, columns in (("weight", (d,)), ("bias", ())):
        if part == "weight" or mixer.bias != "none":
            sources = tuple(Source(f"{theirs}{name}.{part}", (n * k, *columns), change) for name, n, change in rows)
            yield Entry(ours + ("qkv" if part == "weight" else "qkv_bias"), ((h + 2 * g) * k, *columns), sources)
    yield _one(f"{ours}out", f"{theirs}o_proj.weight", d, h * k)
    if mixer.bias == "all":
        yield _one(f"{ours}out_bias", f"{theirs}o_proj.bias", d)
    if mixer.qk_norm:
        yield _one(f"{ours}q_gain", f"{theirs}q_norm.weight", k, change=_pairs(mixer, 1))
        yield _one(f"{ours}k_gain", f"{theirs}k_norm.weight", k, change=_pairs(mixer, 1))


def _pairs(mixer: AttentionConfig, heads: int) -> Change:
    """Theirs are always (t, t + K/2)."""
    if not isinstance(mixer.position, RopeConfig) or mixer.position.pairs == "half":
        return SAME
    turned = interleaved(heads)
    return Change(turned.theirs, turned.ours)


def _ffn(block: BlockConfig, d: int, ours: str, theirs: str, family: Family) -> Iterator[Entry]:
    if not isinstance(block.ffn, ExpertsConfig):
        yield from _gated(block.ffn, d, ours, f"{theirs}mlp.")
        return
    e, f = block.ffn.experts, ffn_width(block.ffn.expert, d)
    mixtral = family.name == "mixtral"
    theirs += "block_sparse_moe." if mixtral else "mlp."
    gate, value, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    places = [f"{theirs}experts.{i}." for i in range(e)]
    yield _one(f"{ours}router", f"{theirs}gate.weight", e, d)
    ups = tuple(Source(f"{place}{name}.weight", (f, d)) for place in places for name in (gate, value))
    yield Entry(f"{ours}up", (e, 2 * f, d), ups)
    yield Entry(f"{ours}down", (e, d, f), tuple(Source(f"{place}{down}.weight", (d, f)) for place in places))
    yield Entry(f"{ours}bias", (e,), ())


def _gated(ffn: PlainFfnConfig, d: int, ours: str, theirs: str) -> Iterator[Entry]:
    assert isinstance(ffn, SwigluConfig | GegluConfig), "every family here but GPT-2 has a gate"
    f = ffn_width(ffn, d)
    yield Entry(f"{ours}up", (2 * f, d), tuple(Source(f"{theirs}{x}_proj.weight", (f, d)) for x in ("gate", "up")))
    yield _one(f"{ours}down", f"{theirs}down_proj.weight", d, f)
    if ffn.bias:
        yield Entry(f"{ours}up_bias", (2 * f,), tuple(Source(f"{theirs}{x}_proj.bias", (f,)) for x in ("gate", "up")))
        yield _one(f"{ours}down_bias", f"{theirs}down_proj.bias", d)


# ---- GPT-2 ----------------------------------------------------------------------------------------------------------


def _gpt2(config: DecoderConfig) -> Iterator[Entry]:
    assert isinstance(config.input_position, LearnedConfig), "GPT-2 has learned positions"
    v, d = config.vocabulary, config.width
    yield _one("embedding", "transformer.wte.weight", v, d)
    yield _one("input_position.table", "transformer.wpe.weight", config.input_position.room, d)
    for i, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
        assert not isinstance(block.ffn, ExpertsConfig), "GPT-2 has no experts"
        f = ffn_width(block.ffn, d)
        yield from _norm(f"{ours}mixer_norm", f"{theirs}ln_1", d)
        yield from _linear(f"{ours}mixer.qkv", f"{theirs}attn.c_attn", 3 * d, d)
        yield from _linear(f"{ours}mixer.out", f"{theirs}attn.c_proj", d, d)
        yield from _norm(f"{ours}ffn_norm", f"{theirs}ln_2", d)
        yield from _linear(f"{ours}ffn.up", f"{theirs}mlp.c_fc", f, d)
        yield from _linear(f"{ours}ffn.down", f"{theirs}mlp.c_proj", d, f)
    yield from _norm("norm", "transformer.ln_f", d)
    if not config.tied:
        yield _one("unembedding", "lm_head.weight", v, d)


def _norm(ours: str, theirs: str, d: int) -> Iterator[Entry]:
    yield _one(f"{ours}.gain", f"{theirs}.weight", d)
    yield _one(f"{ours}.bias", f"{theirs}.bias", d)


def _linear(ours: str, theirs: str, out: int, into: int) -> Iterator[Entry]:
    """A product that is kept as [in, out] there, and its bias."""
    yield Entry(ours, (out, into), (Source(f"{theirs}.weight", (into, out), TRANSPOSED),))
    yield _one(f"{ours}_bias", f"{theirs}.bias", out)
