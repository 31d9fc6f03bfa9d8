"""Feed-forward kinds, norms, orders of a block, capped heads, empty models, pruned heads: each against its formula."""

import math
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import variants
from temaki.base.errors import ConfigError
from temaki.base.rows import rows
from temaki.model import build, ffn
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    GegluConfig,
    GeluConfig,
    LayerNormConfig,
    NormConfig,
    PlainFfnConfig,
    ReluConfig,
    RmsNormConfig,
    SiluConfig,
    SwigluConfig,
    ffn_width,
)
from temaki.model.count import count, flops_per_token, forward_flops
from temaki.model.ffn import Ffn
from temaki.model.heads import Head, linear_nll
from temaki.model.norm import LayerNorm, layer_norm
from temaki.model.prune import prune_heads
from variants import close

FORMULAS: dict[str, tuple[PlainFfnConfig, Callable[[Tensor], Tensor]]] = {
    "swiglu": (SwigluConfig(width=12), lambda x: x / (1 + (-x).exp())),
    "geglu-tanh": (GegluConfig(width=12), lambda x: by_tanh(x)),
    "geglu-erf": (GegluConfig(width=12, form="erf"), lambda x: by_erf(x)),
    "gelu-tanh": (GeluConfig(width=12), lambda x: by_tanh(x)),
    "gelu-erf": (GeluConfig(width=12, form="erf"), lambda x: by_erf(x)),
    "silu": (SiluConfig(width=12), lambda x: x / (1 + (-x).exp())),
    "relu": (ReluConfig(width=12), lambda x: x * (x > 0)),
    "relu2": (ReluConfig(width=12, power=2), lambda x: x * x * (x > 0)),
}


def by_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def by_erf(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- feed-forward layers ----------------------------------------------------------------------------------------


def test_gelu_values() -> None:
    found = ffn.gelu(torch.tensor([[1.0, 2.0], [-2.0, 0.5]], dtype=torch.float64))
    wanted = torch.tensor([[0.84119, 1.9546], [-0.0454, 0.34571]], dtype=torch.float64)
    assert float((found - wanted).abs().max()) < 5e-5


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("bias", [False, True])
def test_every_kind_is_its_formula_of_any_width(name: str, bias: bool) -> None:
    config, formula = FORMULAS[name]
    config = replace(config, bias=bias)
    layer = Ffn(config, 8).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=i))
    assert (layer.up_bias is not None) == (layer.down_bias is not None) == bias
    x = drawn(3, 5, 8, seed=9)
    up = x @ layer.up.mT + (0 if layer.up_bias is None else layer.up_bias)
    hidden = formula(up[..., :12]) * (up[..., 12:] if ffn.is_gated(config) else 1)
    close(layer(x).detach(), (hidden @ layer.down.mT + (0 if layer.down_bias is None else layer.down_bias)).detach())
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),))


def test_default_widths() -> None:
    assert [ffn_width(SwigluConfig(), width) for width in (512, 768)] == [1344, 2048]
    assert [ffn_width(kind, 512) for kind in (GeluConfig(), SiluConfig(), ReluConfig())] == [2048] * 3
    assert ffn_width(GegluConfig(width=7), 512) == 7


# ---- norms ------------------------------------------------------------------------------------------------------


def test_layer_norm_values() -> None:
    x = torch.tensor([[2.0, 2.0, 3.0], [-5.0, 0.0, 1.0]], dtype=torch.float64)
    found = layer_norm(x, torch.ones(3, dtype=torch.float64))
    wanted = torch.tensor([[-0.70709, -0.70709, 1.41418], [-1.397, 0.508, 0.889]], dtype=torch.float64)
    assert float((found - wanted).abs().max()) < 6e-4
    assert found.var(-1, correction=0).tolist() == pytest.approx([0.99996, 1.0], abs=1e-5)


def test_layer_norm_sees_a_place_and_batch_norm_sees_its_neighbours() -> None:
    """[[1, 2, 3], [4, 6, 8]]: rows normalised, or columns; a change in one row moves the other in the second alone."""
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]], dtype=torch.float64)
    by_row = layer_norm(x, torch.ones(3, dtype=torch.float64), eps=1e-12)
    assert by_row.flatten().tolist() == pytest.approx([-1.2247, 0, 1.2247] * 2, abs=1e-4)
    by_column = F.batch_norm(x, None, None, training=True, eps=1e-12)
    assert by_column.flatten().tolist() == pytest.approx([-1.0] * 3 + [1.0] * 3, abs=1e-9)
    other = x.clone()
    other[1, 0] += 9
    assert torch.equal(layer_norm(other, torch.ones(3, dtype=torch.float64), eps=1e-12)[0], by_row[0])
    assert not torch.equal(F.batch_norm(other, None, None, training=True)[0], by_column[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_layer_norm_is_its_formula(bias: bool, dtype: torch.dtype) -> None:
    norm = LayerNorm(LayerNormConfig(eps=1e-3, bias=bias), 16).to(dtype)
    assert {name for name, _ in norm.named_parameters()} == ({"gain", "bias"} if bias else {"gain"})
    with torch.no_grad():
        for i, parameter in enumerate(norm.parameters()):
            parameter.copy_(drawn(16, seed=i))
    x = (drawn(2, 5, 16, seed=5) * 30 + 100).to(dtype)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    wanted = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.gain.double()
    wanted = wanted + norm.bias.double() if norm.bias is not None else wanted
    found, wanted = norm(x).detach(), wanted.detach()
    assert found.dtype == dtype
    bound = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    assert float((found.double() - wanted).abs().max()) <= bound * float(wanted.abs().max())


# ---- blocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [RmsNormConfig(), LayerNormConfig()], ids=["rms", "layer"])
@pytest.mark.parametrize("order", ["pre", "post", "sandwich"])
def test_every_order_is_its_formula(order: str, norm: NormConfig) -> None:
    config = DecoderConfig(
        vocabulary=11, width=16, depth=1, init="cs336",
        pattern=(BlockConfig(mixer=AttentionConfig(heads=2), norm=norm, order=order),),  # type: ignore[arg-type]
    )  # fmt: skip
    model = build.build(config, 1, torch.float64)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter.add_(0.3 * drawn(*parameter.shape, seed=i))
    block = model.blocks[0]
    seen: list[tuple[Tensor, Tensor]] = []
    block.mixer.register_forward_hook(lambda _m, inputs, output: seen.append((inputs[0], output)))
    read = rows([[1, 2, 3, 4], [5, 6]])
    with torch.no_grad():
        found = model(read)
        x = model.embedding[read.ids]
        mixed = seen[0][1]
        if order == "pre":
            close(seen[0][0], block.mixer_norm(x))
            y = x + mixed
            y = y + block.ffn(block.ffn_norm(y))
        elif order == "post":
            close(seen[0][0], x)
            y = block.mixer_norm(x + mixed)
            y = block.ffn_norm(y + block.ffn(y))
        else:
            close(seen[0][0], block.mixer_norm(x))
            y = x + block.mixer_after(mixed)
            y = y + block.ffn_after(block.ffn(block.ffn_norm(y)))
        close(found, model.norm(y))


# ---- counting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", variants.NAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_count_is_the_sum_over_the_model_part_by_part(name: str, tied: bool) -> None:
    model = build.empty(variants.config(name, tied))
    found = count(model.config)
    sizes = {parameter: tensor.numel() for parameter, tensor in model.named_parameters()}

    def held(*words: str) -> int:
        return sum(size for parameter, size in sizes.items() if any(word in parameter for word in words))

    assert found.embedding == sizes["embedding"]
    assert found.head == held("unembedding")
    assert found.positions == held("input_position")
    assert found.mixers == held(".mixer.")
    assert found.ffns == held(".ffn.")
    assert found.norms == held("norm", "_after")
    assert found.total == sum(sizes.values())


def test_an_id_meets_the_chosen_experts_only() -> None:
    expert = SwigluConfig(width=96)
    plain = BlockConfig(mixer=AttentionConfig(heads=4), ffn=expert)
    many = replace(plain, ffn=ExpertsConfig(experts=8, top=2, expert=expert))
    one, eight = (DecoderConfig(vocabulary=50, width=32, depth=3, pattern=(block,)) for block in (plain, many))
    router, matrices = 3 * 8 * 32, 3 * 3 * 32 * 96
    assert count(eight).total == count(one).total + 7 * matrices + router
    assert count(eight).active == count(one).active + matrices + router
    assert flops_per_token(eight, 64) - flops_per_token(one, 64) == 6 * (matrices + router)


def test_flops_of_windows_and_masks_are_a_sum_over_places() -> None:
    for mask, window in (("causal", None), ("causal", 10), ("causal", 500), ("bidirectional", None)):
        mixer = AttentionConfig(heads=4, kv_heads=2, size=6, mask=mask, window=window)  # type: ignore[arg-type]
        config = DecoderConfig(vocabulary=50, width=32, depth=2, pattern=(BlockConfig(mixer=mixer),))
        context = 64
        ends = range(1, context + 1) if mask == "causal" else [context] * context
        seen = [min(end, window or context) for end in ends]
        exact = 12 * 2 * 4 * 6 * sum(seen) / context
        found = flops_per_token(config, context) - 6 * count(config).active
        assert found == pytest.approx(exact, rel=0.06)  # the diagonal is counted by half
        assert forward_flops(config, context) >= 2 * count(config).active * context


# ---- heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("smooth", "z"), [(0.0, 0.0), (0.2, 1e-2)])
def test_a_capped_head_and_its_gradient(smooth: float, z: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temaki.model.heads.CHUNK", 60)
    hidden, weight = 3 * drawn(23, 6, seed=1).requires_grad_(), drawn(17, 6, seed=2).requires_grad_()
    targets = torch.randint(0, 17, (23,), generator=torch.Generator().manual_seed(3))
    weights = torch.rand(23, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    head = Head(nn.Parameter(weight.detach()), cap=2.5)
    logits = 2.5 * torch.tanh(hidden @ weight.mT / 2.5)
    close(head.logits(hidden).detach(), logits.detach())
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smooth) + z * logits.logsumexp(-1) ** 2
    wanted, found = (each * weights).sum(), linear_nll(hidden, weight, targets, weights, smooth, z, 2.5)
    close(found.detach(), wanted.detach())
    close(head.nll(hidden, targets, weights, smooth, z).detach(), wanted.detach())
    close(head.nll_each(hidden, targets), F.cross_entropy(logits, targets, reduction="none").detach())
    for a, b in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (found, wanted)), strict=True):
        close(a, b)
    small, few = drawn(5, 3).requires_grad_(), drawn(4, 3, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_nll(h, w, targets[:5] % 4, weights[:5], smooth, z, 0.7), (small, few)
    )


# ---- empty models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", variants.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_empty_model_filled_is_the_model(name: str, dtype: torch.dtype) -> None:
    model = variants.model(name, dtype)
    empty = build.empty(model.config, dtype)
    buffers = dict(model.named_buffers())
    for buffer, value in empty.named_buffers():
        assert torch.equal(value, buffers[buffer])
        assert value.dtype == buffers[buffer].dtype
    assert [(n, p.shape, p.dtype) for n, p in empty.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in model.named_parameters()
    ]
    empty.load_state_dict(model.state_dict())
    read = rows(variants.pieces([5, 9]))
    with torch.no_grad():
        assert torch.equal(empty(read), model(read))


def test_shapes_alone_take_no_memory() -> None:
    with torch.device("meta"):
        model = build.empty(variants.config("gpt2"))
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_an_empty_model_touches_no_memory(fresh: Callable[[str], str]) -> None:
    """SmolLM2's shape, 538 MB of float32: built, but not a tenth of it is there yet."""
    code = """
from temaki.model import build
from temaki.model.presets import preset
pages = lambda: int(open("/proc/self/statm").read().split()[1])
build.empty(preset("cs336").config)
before = pages()
model = build.empty(preset("smollm2-135m").config)
print((pages() - before) * 4096 < 54e6, sum(p.numel() for p in model.parameters()))
"""
    assert fresh(code).split() == ["True", "134515008"]


# ---- pruning ----------------------------------------------------------------------------------------------------


def muted(model: build.Model, layer: int, heads: list[int]) -> build.Model:
    """The same model with the columns of the output projection that read these heads at zero."""
    twin = build.empty(model.config, model.embedding.dtype)
    twin.load_state_dict(model.state_dict())
    mixer = twin.blocks[layer].mixer
    with torch.no_grad():
        for head in heads:
            mixer.out[:, head * mixer.size : (head + 1) * mixer.size] = 0
    return twin


@pytest.mark.parametrize(
    ("name", "layer", "heads"),
    [
        ("attention-half", 0, [1]),
        ("attention-interleaved", 1, [0, 2, 3]),
        ("grouped", 1, [2, 3]),
        ("grouped", 0, [0, 3]),
        ("multi-query", 0, [1, 2]),
        ("hybrid", 0, [0, 1]),
        ("gpt2", 1, [0, 3]),
        ("gemma", 1, [1]),
        ("qwen", 0, [1, 2]),
        ("experts", 1, [0, 1]),
    ],
)
def test_pruned_is_muted_and_recounted(name: str, layer: int, heads: list[int]) -> None:
    model = variants.model(name)
    pruned = prune_heads(model, layer, heads)
    read = rows(variants.pieces([7, 12]))
    with torch.no_grad():
        close(
            pruned.head.logits(pruned(read)), muted(model, layer, heads).head.logits(muted(model, layer, heads)(read))
        )
    assert count(pruned.config).total == sum(parameter.numel() for parameter in pruned.parameters())
    assert count(pruned.config).total < count(model.config).total
    mixer = pruned.config.blocks[layer].mixer
    assert isinstance(mixer, AttentionConfig)
    assert mixer.heads == model.config.blocks[layer].mixer.heads - len(heads)  # type: ignore[union-attr]
    again = prune_heads(pruned, layer, [])
    with torch.no_grad():
        assert torch.equal(again(read), pruned(read))


@pytest.mark.parametrize(
    ("name", "layer", "heads", "says"),
    [
        ("grouped", 0, [0], "unevenly"),
        ("grouped", 0, [0, 1, 2], None),
        ("grouped", 2, [0], "no such layer"),
        ("grouped", -1, [0], "no such layer"),
        ("grouped", 0, [4], "no such head"),
        ("grouped", 0, [0, 1, 2, 3], "at least one"),
        ("hybrid", 1, [0], "no heads"),
        ("alibi", 0, [0, 1], "slopes"),
    ],
)
def test_heads_that_cannot_go_are_named(name: str, layer: int, heads: list[int], says: str | None) -> None:
    model = variants.model(name)
    if says is None:
        assert prune_heads(model, layer, heads).config.blocks[layer].mixer.heads == 1  # type: ignore[union-attr]
        return
    with pytest.raises(ConfigError, match=says):
        prune_heads(model, layer, heads)


def test_the_union_of_layers_is_what_these_tests_range_over() -> None:
    assert set(build.FFNS) == {*(type(config) for config, _ in FORMULAS.values()), ExpertsConfig}
    every = [block for pattern in variants.PATTERNS.values() for block in pattern]
    assert set(build.NORMS) == {type(block.norm) for block in every}
    assert set(build.MIXERS) == {type(block.mixer) for block in every}
