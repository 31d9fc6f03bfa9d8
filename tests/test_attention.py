"""Attention in all its forms: the fused operator against its dense twin, and both against loops."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import variants
from temaki.base.errors import GenerationError
from temaki.base.rows import Rows, rows
from temaki.model import build, kernels
from temaki.model.attention import Attention, split_heads
from temaki.model.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    GegluConfig,
    NoPositionConfig,
    RmsNormConfig,
    SigmoidConfig,
    SinkConfig,
    SoftmaxConfig,
)
from temaki.model.dense import attention_weights, documents_attention_dense
from temaki.model.kernels import attend, documents_attention
from temaki.model.layout import Layout
from temaki.model.positions import alibi_slopes
from temaki.model.sight import Sight, blocks
from temaki.model.trace import attention_maps
from variants import close, pieces

SIGHTS = {
    "causal": Sight(),
    "both-ways": Sight(causal=False),
    "scale": Sight(scale=0.7),
    "window": Sight(window=5),
    "window-one": Sight(window=1),
    "slopes": Sight(slopes=alibi_slopes(4)),
    "slopes-both-ways": Sight(causal=False, slopes=alibi_slopes(4)),
    "slopes-window": Sight(slopes=alibi_slopes(4), window=6),
    "cap": Sight(cap=1.5),
    "cap-both-ways": Sight(causal=False, cap=0.8),
    "window-both-ways": Sight(causal=False, window=4),
    "all": Sight(scale=0.9, window=7, slopes=alibi_slopes(4), cap=2.0),
}
every_sight = pytest.mark.parametrize("name", SIGHTS)
CUTS = torch.tensor([0, 5, 5, 12, 17, 40, 64])
PREFIX = torch.tensor([2, 0, 7, 1, 20, 0])
"""A part, nothing of nothing, all of a piece, a single id, a part, nothing."""


def heads(n: int, groups: int = 4, dtype: torch.dtype = torch.float64, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, h, size, generator=generator, dtype=dtype).requires_grad_() for h in (4, groups, groups)]


def loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cuts: list[int], sight: Sight, prefix: list[int]):  # type: ignore[no-untyped-def]
    """Attention as its definition says: piece by piece, head by head, query by query, key by key."""
    out = torch.zeros_like(q)
    repeat = q.shape[1] // k.shape[1]
    for piece, (start, stop) in enumerate(itertools.pairwise(cuts)):
        for h in range(q.shape[1]):
            for i in range(stop - start):
                seen, scores = [], []
                for j in range(stop - start):
                    both = i < prefix[piece] and j < prefix[piece]
                    if (j > i and sight.causal and not both) or (sight.window and i - j >= sight.window and not both):
                        continue
                    s = q[start + i, h] @ k[start + j, h // repeat] * (sight.scale or q.shape[-1] ** -0.5)
                    s = sight.cap * torch.tanh(s / sight.cap) if sight.cap else s
                    scores.append(s - sight.slopes[h] * abs(i - j) if sight.slopes else s)
                    seen.append(v[start + j, h // repeat])
                out[start + i, h] = torch.stack(scores).softmax(0) @ torch.stack(seen)
    return out


@every_sight
@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["", "prefix"])
def test_the_dense_twin_is_a_loop(name: str, prefix: torch.Tensor | None) -> None:
    q, k, v = (x.detach() for x in heads(17, groups=2))
    cuts, ends = CUTS[:5], [0] * 4 if prefix is None else PREFIX.tolist()[:4]
    found = documents_attention_dense(q, k, v, cuts, SIGHTS[name], None if prefix is None else prefix[:4])
    close(found, loop(q, k, v, cuts.tolist(), SIGHTS[name], ends))


@every_sight
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", variants.DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["", "prefix"])
def test_the_fused_operator_is_its_dense_twin(
    name: str, groups: int, dtype: torch.dtype, prefix: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("temaki.model.sight.BLOCK", 7)
    monkeypatch.setattr("temaki.model.sight.SCORES", 500)
    sight = SIGHTS[name]
    q, k, v = heads(64, groups, dtype)
    fused, dense = (f(q, k, v, CUTS, sight, prefix) for f in (documents_attention, documents_attention_dense))
    close(fused.detach(), dense.detach())
    weight = torch.randn(fused.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    found, wanted = (
        torch.cat([g.flatten() for g in torch.autograd.grad((y * weight).sum(), (q, k, v))]) for y in (fused, dense)
    )
    close(found, wanted)


@every_sight
def test_the_operator_is_sound_and_its_gradient_is_right(name: str) -> None:
    s = SIGHTS[name]
    q, k, v = heads(9, 2, size=3)
    cuts, prefix = torch.tensor([0, 3, 9]), torch.tensor([2, 3])
    given = (q, k, v, cuts, prefix, s.causal, s.scale, s.window, s.slopes, s.cap)
    if name in ("causal", "all"):
        torch.library.opcheck(torch.ops.temaki.documents_attention.default, given)
    assert torch.autograd.gradcheck(lambda *x: documents_attention(x[0], x[1], x[2], cuts, s, prefix), (q, k, v))


@every_sight
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_sum_to_one_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """With values that are all one, the output is the sum of a row's weights."""
    q, k, v = (x.detach() for x in heads(600, 2, dtype))
    cuts, prefix = torch.tensor([0, 1, 90, 600]), torch.tensor([1, 50, 300])
    q, k = q * 10, k * 10
    for ends in (None, prefix):
        for f in (documents_attention, documents_attention_dense):
            found = f(q, k, torch.ones_like(v), cuts, SIGHTS[name], ends)
            assert found.dtype == dtype
            assert (found.float() - 1).abs().max() <= max(torch.finfo(dtype).eps, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_fully_masked_row_gives_zeros(dtype: torch.dtype) -> None:
    q, k, _ = (x.detach().transpose(0, 1) for x in heads(6, 4, dtype))
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = mask[5] = False
    found = attention_weights(q * 1e2, k, mask)
    assert found.isfinite().all()
    assert found[:, [2, 5]].abs().max() == 0
    assert (found.sum(-1)[:, [0, 1, 3, 4]].double() - 1).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", [name for name, sight in SIGHTS.items() if sight.causal])
def test_the_last_queries_of_a_piece_are_the_rest_of_it(name: str) -> None:
    """A query that sees the future has no step form."""
    sight = SIGHTS[name]
    q, k, v = (x.detach().transpose(0, 1)[None] for x in heads(40))
    whole = attend(q, k, v, sight)[0]
    for n in (1, 3, 17):
        close(attend(q[:, :, -n:], k, v, sight)[0], whole[:, :, -n:])


@pytest.mark.parametrize("name", [n for n in variants.EVERY if variants.config(n).masks])
@torch.no_grad()
def test_attention_maps_are_what_the_fused_kernel_does(name: str) -> None:
    model = variants.model(name)
    parts = pieces([9, 1, 20])
    read = rows(parts, prefix=[4, 1, 7] if name in variants.PREFIXED else None)
    maps = attention_maps(model, read)
    watched = 0
    for i, block in enumerate(model.blocks):
        if not isinstance(block.mixer, Attention):
            assert i not in maps
            continue
        x, found = hidden_at(model, read, i)
        layout = Layout(read, {n: r(read.positions, x.dtype) for n, r in model.rotaries.items()})
        v = block.mixer.project(x, layout)[2].repeat_interleave(block.mixer.heads // block.mixer.groups, 1)
        mixed = []
        for each, (start, stop) in zip(maps[i], layout.pieces, strict=True):
            assert each.shape == (block.mixer.heads, stop - start, stop - start)
            if not isinstance(block.mixer.config.map, SinkConfig | SigmoidConfig):
                close(each.sum(-1), torch.ones(each.shape[:2], dtype=each.dtype))
            mixed.append((each @ v[start:stop].transpose(0, 1)).transpose(0, 1).flatten(1))
        close(F.linear(torch.cat(mixed), block.mixer.out, block.mixer.out_bias), found)
        watched += 1
    assert watched
    first = min(maps)
    some = attention_maps(model, read, [first], heads=[1, 0])
    assert torch.equal(some[first][0], maps[first][0][[1, 0]])


def hidden_at(model: build.Model, read: Rows, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer's mixer was given and gave."""
    seen: list[torch.Tensor] = []
    handle = model.blocks[layer].mixer.register_forward_hook(lambda _m, given, out: seen.extend((given[0], out)))  # type: ignore[union-attr]
    with torch.no_grad():
        model(read)
    handle.remove()
    return seen[0], seen[1]


def test_attention_maps_name_what_is_not_there() -> None:
    model = variants.model("hybrid")
    with pytest.raises(ValueError, match=r"layer 1 has no attention; layers with attention: \[0\]"):
        attention_maps(model, rows(pieces([3])), layers=[1])
    with pytest.raises(ValueError, match="no head 4; it has 4"):
        attention_maps(model, rows(pieces([3])), heads=[4])


def test_many_heads_are_a_loop_over_heads_and_one_matrix_is_three() -> None:
    """Multi-head = loop over heads; the stacked matrix = three projections; grouped = repeated keys and values."""
    config = AttentionConfig(heads=4, kv_heads=2, position=NoPositionConfig(), bias="all")
    mixer = Attention(config, 16, 1e-5, None).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        x = torch.randn(7, 16, generator=generator, dtype=torch.float64)
        assert mixer.qkv_bias is not None
        parts = (16, 8, 8)
        q, k, v = (F.linear(x, w, b) for w, b in zip(mixer.qkv.split(parts), mixer.qkv_bias.split(parts), strict=True))
        for stacked, own in zip(split_heads(F.linear(x, mixer.qkv, mixer.qkv_bias), 4, 2), (q, k, v), strict=True):
            close(stacked.flatten(1), own)
        mixed = []
        for h in range(4):
            at, shared = slice(4 * h, 4 * h + 4), slice(4 * (h // 2), 4 * (h // 2) + 4)
            scores = (q[:, at] @ k[:, shared].T / 2).masked_fill(~torch.ones(7, 7).tril().bool(), float("-inf"))
            mixed.append(scores.softmax(-1) @ v[:, shared])
        wanted = F.linear(torch.cat(mixed, -1), mixer.out, mixer.out_bias)
        close(mixer(x, Layout(rows([range(7)])), None, None), wanted)


@pytest.mark.parametrize("name", variants.PREFIXED)
@pytest.mark.parametrize("dtype", variants.DTYPES, ids=["float64", "float32"])
def test_a_prefix_is_seen_both_ways_and_kept_in_decoding(name: str, dtype: torch.dtype) -> None:
    model = variants.model(name, dtype)
    parts, ends = pieces([20, 9, 33]), [6, 9, 1]
    whole = logits(model, rows(parts, prefix=ends))
    separate = [logits(model, rows([part], prefix=[end])) for part, end in zip(parts, ends, strict=True)]
    close(whole, torch.cat(separate))
    assert not torch.allclose(whole, logits(model, rows(parts)))
    state = model.new_state(slots=3, room=40)
    first = logits(model, rows([part[:9] for part in parts], prefix=ends), state.at([2, 0, 1]))
    close(first, torch.cat([each[:9] for each in separate]))
    for t in range(9, 20):
        found = logits(model, rows([parts[0][t : t + 1], parts[2][t : t + 1]], [t, t]), state.at([2, 1]))
        close(found, torch.stack([separate[0][t], separate[2][t]]))


def test_a_prefix_in_parts_and_a_mask_without_steps_are_refused() -> None:
    model = variants.model("prefix")
    state = model.new_state(slots=1, room=40)
    (part,) = pieces([10])
    with pytest.raises(GenerationError, match="prefix of 12 ids, 0 ids read before, 10 in this call"):
        logits(model, rows([part], prefix=[12]), state.at([0]))
    logits(model, rows([part], prefix=[4]), state.at([0]))
    with pytest.raises(GenerationError, match="prefix of 2 ids, 10 ids read before"):
        logits(model, rows([part], [10], prefix=[2]), state.at([0]))
    mixer = AttentionConfig(heads=2, mask="bidirectional")
    both = DecoderConfig(vocabulary=9, width=8, depth=1, pattern=(BlockConfig(mixer=mixer),))
    with pytest.raises(GenerationError, match="bidirectional"):
        build.build(both).new_state(slots=1, room=4)


@pytest.mark.parametrize("name", ["window", "window-one", "alibi-window", "gemma"])
@pytest.mark.parametrize("spare", [1, 4])
def test_a_window_holds_no_more_places_than_it_needs(name: str, spare: int) -> None:
    """A ring of window + spare - 1 places gives what the whole row gives, however long, drafts taken back included."""
    model = variants.model(name)
    (ids,) = pieces([70])
    whole = logits(model, rows([ids]))
    state = model.new_state(slots=2, room=70, spare=spare)
    for layer, block in zip(state.layers, model.config.blocks, strict=True):
        assert isinstance(block.mixer, AttentionConfig)
        assert layer.store.shape[3] == min(70, (block.mixer.window or 70) + spare - 1)  # type: ignore[attr-defined]
    read = 0
    for n in (11, 1, 1, 3, 2, 1, 20, 1, 4, 1, 1):
        close(logits(model, rows([ids[read : read + n]], [read]), state.at([1])), whole[read : read + n])
        read += n
        state.mark([1])
        draft = min(spare, 4)
        logits(model, rows([ids[:draft]], [read]), state.at([1]))
        state.rewind([1], [0])
    saved = state.save(1)
    other = model.new_state(slots=3, room=60, spare=2)
    other.load(2, saved)
    close(logits(model, rows([ids[read : read + 5]], [read]), other.at([2])), whole[read : read + 5])


def test_pieces_with_a_bias_of_their_own_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slopes and prefixes: [P, H, T, S] biases of a block hold no more than SCORES, however many pieces there are."""
    monkeypatch.setattr("temaki.model.sight.SCORES", 1 << 12)
    for block in blocks(Sight(slopes=alibi_slopes(4)), 64, reach=30, rows=8 * 4):
        bias = block.bias(Sight(slopes=alibi_slopes(4)), 4, torch.zeros(1), torch.arange(8))
        assert bias is None or bias.numel() <= 1 << 12
        assert block.stop - block.first == 2


@pytest.mark.parametrize("name", ["window", "slopes-window", "all"])
def test_a_window_reads_only_what_it_sees(name: str) -> None:
    """No tensor that the operator makes, forward or backward, grows with the square of a row's length."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple) else (out,)
            largest = max([largest, *(each.numel() for each in made if isinstance(each, torch.Tensor))])
            return out

    n = 3000
    q, k, v = (x.detach().transpose(0, 1)[None] for x in heads(n, 4, torch.float32))
    with Watch():
        out, sums = attend(q, k, v, SIGHTS[name])
        kernels._attend_backward(out, q, k, v, out, sums, SIGHTS[name], None)
    assert n * 4 * 8 <= largest <= 4 * n * 4 * 8 < n * n


def test_more_ids_than_spare_cannot_be_taken_back() -> None:
    model = variants.model("window")
    state = model.new_state(slots=1, room=70, spare=2)
    (ids,) = pieces([30])
    logits(model, rows([ids]), state.at([0]))
    state.mark([0])
    logits(model, rows([ids[:9]], [30]), state.at([0]))
    with pytest.raises(AssertionError, match="spare"):
        state.rewind([0], [1])


def test_a_window_and_slopes_forget_what_is_far() -> None:
    """A layer with window w sees back w - 1 ids; two layers twice as far; nothing beyond moves."""
    for position in (NoPositionConfig(), AlibiConfig()):
        mixer = AttentionConfig(heads=2, window=4, position=position)
        config = DecoderConfig(vocabulary=53, width=8, depth=2, pattern=(BlockConfig(mixer=mixer),), init="cs336")
        model = build.build(config, 1, torch.float64)
        (ids,) = pieces([20])
        changed = ids.clone()
        changed[5] = (changed[5] + 1) % 53
        moved = (logits(model, rows([ids])) - logits(model, rows([changed]))).abs().amax(-1) > 0
        assert moved.nonzero().flatten().tolist() == list(range(5, 5 + 2 * 3 + 1))


def test_caps_windows_and_sandwiches_are_those_of_gemma_2_in_transformers() -> None:
    """Every second layer with a window, capped scores and logits, own scale, norms around each branch."""
    oracle = pytest.importorskip("transformers")
    torch.manual_seed(3)
    given = oracle.Gemma2Config(
        vocab_size=53, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=20, sliding_window=5, attn_logit_softcapping=1.5,
        final_logit_softcapping=3.0, rms_norm_eps=1e-6, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    theirs = oracle.Gemma2ForCausalLM(given).double().eval()
    parts = {"heads": 4, "kv_heads": 2, "size": 12, "scale": 20**-0.5, "map": SoftmaxConfig(cap=1.5)}
    rest = {"ffn": GegluConfig(width=48), "norm": RmsNormConfig(eps=1e-6), "order": "sandwich"}
    pattern = variants.blocks(AttentionConfig(**parts, window=5), AttentionConfig(**parts), **rest)
    config = DecoderConfig(vocabulary=53, width=32, depth=4, pattern=pattern, embedding_scale=32**0.5, cap=3.0)
    ours = build.build(config, 0, torch.float64)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        found = dict(ours.named_parameters())
        found["embedding"].copy_(theirs.model.embed_tokens.weight)
        found["norm.gain"].copy_(theirs.model.norm.weight + 1)
        for i, layer in enumerate(theirs.model.layers):
            q, k, v = (getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv")
            found[f"blocks.{i}.mixer.qkv"].copy_(torch.cat((q, k, v)))
            found[f"blocks.{i}.mixer.out"].copy_(layer.self_attn.o_proj.weight)
            found[f"blocks.{i}.ffn.up"].copy_(torch.cat((layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight)))
            found[f"blocks.{i}.ffn.down"].copy_(layer.mlp.down_proj.weight)
            for name, norm in {
                "mixer_norm": layer.input_layernorm,
                "mixer_after": layer.post_attention_layernorm,
                "ffn_norm": layer.pre_feedforward_layernorm,
                "ffn_after": layer.post_feedforward_layernorm,
            }.items():
                found[f"blocks.{i}.{name}.gain"].copy_(norm.weight + 1)
        (ids,) = pieces([20])
        wanted = theirs(ids[None]).logits[0]
    assert (logits(ours, rows([ids])) - wanted).abs().max() < 1e-5 * wanted.abs().max()  # they turn in float32
    state = ours.new_state(slots=1, room=20)
    stepped = [logits(ours, rows([ids[t : t + 1]], [t]), state.at([0])) for t in range(20)]
    assert (torch.cat(stepped) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def logits(model: build.Model, of: Rows, seats: object = None) -> torch.Tensor:
    with torch.no_grad():
        return model.head.logits(model(of, seats))  # type: ignore[arg-type]
