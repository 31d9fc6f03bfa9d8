"""Attention under every map: the plain formula, decoding, memory; buckets of distance; shifted positions."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from temaki.base.config import read
from temaki.base.errors import ConfigError
from temaki.base.rows import grid, rows
from temaki.model import build, mapped_attention
from temaki.model.attention import sight
from temaki.model.buckets import bucket_starts, distance_buckets
from temaki.model.build import Model
from temaki.model.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    BucketsConfig,
    DecoderConfig,
    EntmaxConfig,
    GumbelConfig,
    InputPositionConfig,
    LearnedConfig,
    NoPositionConfig,
    PerturbConfig,
    PositionConfig,
    RopeConfig,
    ScalableConfig,
    SigmoidConfig,
    SinkConfig,
    SinusoidalConfig,
    SoftmaxConfig,
    SparsemaxConfig,
    TaylorConfig,
    TopKConfig,
)
from temaki.model.count import count
from temaki.model.dense import mapped_piece_weights
from temaki.model.gumbel import gumbel_noise
from temaki.model.kernels import documents_attention
from temaki.model.mapped_attention import mapped_attention as attention
from temaki.model.mapped_scores import MappedScores, fused, learned_begin
from temaki.model.prune import prune_heads
from temaki.model.trace import attention_maps
from variants import VOCABULARY, close, pieces

HEADS, SIZE = 4, 6
CUTS, PREFIX = torch.tensor([0, 4, 4, 5, 14, 18, 27]), torch.tensor([2, 0, 1, 5, 4, 0])
UNPLACED, BUCKETS = NoPositionConfig(), BucketsConfig(count=8, distance=9)

# ---- every map, as its definition says, over what one query sees ----------------------------------------------------


def normal(z: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(z)).numpy()


def by_halving(mass: Callable[[float], np.ndarray], low: float, high: float) -> np.ndarray:
    """The weights at the threshold where they sum to 1."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle).sum() >= 1 else (low, middle)
    return mass(low) / mass(low).sum()


def entmax(s: np.ndarray, alpha: float) -> np.ndarray:
    z = (alpha - 1) * s
    return by_halving(lambda t: np.maximum(z - t, 0) ** (1 / (alpha - 1)), z.max() - 1, z.max())


def softmax(s: np.ndarray) -> np.ndarray:
    e = np.exp(s - s.max())
    return e / e.sum()


def top_k(s: np.ndarray, k: int) -> np.ndarray:
    kept = sorted(range(len(s)), key=lambda j: (-s[j], j))[:k]
    out = np.zeros_like(s)
    out[kept] = softmax(s[kept])
    return out


def taylor(s: np.ndarray, order: int) -> np.ndarray:
    f = sum(s**m / math.factorial(m) for m in range(order + 1))
    return f / f.sum()


def perturbed(s: np.ndarray) -> np.ndarray:
    """P(s_j + e_j is the largest), e normal, by the trapezoid rule on a fine grid."""
    grid = np.linspace(s.min() - 9, s.max() + 9, 1001)
    below = np.stack([normal(grid - each) for each in s])
    out = []
    for j in range(len(s)):
        density = np.exp(-((grid - s[j]) ** 2) / 2) / (2 * math.pi) ** 0.5
        out.append(np.trapezoid(density * np.delete(below, j, 0).prod(0), grid))
    return np.array(out)


def sunk(s: np.ndarray, sink: float) -> np.ndarray:
    return softmax(np.append(s, sink))[:-1]


MAPS: dict[str, tuple[Any, Callable[[np.ndarray, float], np.ndarray]]] = {
    "softmax": (SoftmaxConfig(), lambda s, _: softmax(s)),
    "capped": (SoftmaxConfig(cap=0.8), lambda s, _: softmax(s)),
    "sparsemax": (SparsemaxConfig(), lambda s, _: entmax(s, 2.0)),
    "entmax15": (EntmaxConfig(), lambda s, _: entmax(s, 1.5)),
    "entmax": (EntmaxConfig(alpha=1.3), lambda s, _: entmax(s, 1.3)),
    "learned": (EntmaxConfig(alpha=1.4, learned=True), lambda s, own: entmax(s, 1 + 1 / (1 + math.exp(-own)))),
    "top-k": (TopKConfig(k=3), lambda s, _: top_k(s, 3)),
    "taylor": (TaylorConfig(order=4), lambda s, _: taylor(s, 4)),
    "gumbel": (GumbelConfig(temperature=0.7), lambda s, _: softmax(s / 0.7)),
    "perturb": (PerturbConfig(points=64), lambda s, _: perturbed(s)),
    "sigmoid": (SigmoidConfig(), lambda s, _: 1 / (1 + np.exp(-(s - math.log(len(s)))))),
    "sink": (SinkConfig(), sunk),
    "scalable": (ScalableConfig(), lambda s, own: softmax(own * math.log(len(s)) * s)),
}
FORMS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 4},
    "prefix": {"mask": "prefix"},
    "both-ways": {"mask": "bidirectional"},
    "alibi": {"position": AlibiConfig()},
    "alibi-both-ways": {"position": AlibiConfig(), "mask": "bidirectional", "scale": 0.9},
    "buckets": {"position": BUCKETS},
    "buckets-window": {"position": BUCKETS, "window": 5},
    "buckets-prefix": {"position": BUCKETS, "mask": "prefix"},
}
every_map = pytest.mark.parametrize("name", MAPS)
LOOSE = {"perturb": 1e-6}
"""Of the quadrature, which the formula does not have."""


def config(name: str, **form: Any) -> AttentionConfig:
    return AttentionConfig(heads=HEADS, kv_heads=2, map=MAPS[name][0], **{"position": UNPLACED, **form})


def scores(of: AttentionConfig, seed: int = 5) -> MappedScores:
    """In float64, with learned numbers that differ from head to head."""
    made = MappedScores(of, sight(of)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            begin = learned_begin(of.map)
            at = begin[1] if begin is not None and name == begin[0] else 0.0
            parameter.copy_(at + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def heads(n: int, seed: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, h, SIZE, generator=generator, dtype=torch.float64).requires_grad_() for h in (HEADS, 2, 2)]


def loop(of: AttentionConfig, by: MappedScores, given: list[Tensor], cuts: list[int], prefix: list[int]) -> Tensor:
    """Attention as its definition says: piece by piece, head by head, query by query."""
    q, k, v = (x.detach().numpy() for x in given)
    out, turn, seen = np.zeros_like(q), MAPS_OF[of.map], by.sight
    own = np.zeros(HEADS) if by.named is None else by.get_parameter(by.named).detach().numpy()
    for piece, (start, stop) in enumerate(itertools.pairwise(cuts)):
        for h, i in itertools.product(range(HEADS), range(stop - start)):
            found, places = [], []
            for j in range(stop - start):
                both = i < prefix[piece] and j < prefix[piece]
                if (seen.causal and j > i and not both) or (seen.window and i - j >= seen.window):
                    continue
                s = q[start + i, h] @ k[start + j, h // 2] * (seen.scale or SIZE**-0.5)
                s = seen.cap * math.tanh(s / seen.cap) if seen.cap else s
                s -= seen.slopes[h] * abs(i - j) if seen.slopes else 0
                if by.of_distance is not None:
                    s += by.buckets[h, bucket(i - j, by.both)].item()
                found.append(s)
                places.append(start + j)
            out[start + i, h] = turn(np.array(found), own[h]) @ v[places, h // 2]
    return torch.from_numpy(out)


def bucket(back: int, both: bool) -> int:
    """T5's formula for BUCKETS."""
    half = BUCKETS.count // 2 if both else BUCKETS.count
    n, single = (abs(back) if both else max(back, 0)), half // 2
    if n >= single:
        rest = math.log(n / single) / math.log(BUCKETS.distance / single) * (half - single)
        n = min(single + int(rest + 1e-9), half - 1)
    return n + (half if both and back < 0 else 0)


MAPS_OF = dict(MAPS.values())


@every_map
@pytest.mark.parametrize("form", FORMS)
def test_attention_is_the_plain_formula(name: str, form: str) -> None:
    of = config(name, **FORMS[form])
    by, given = scores(of), heads(27)
    prefix = PREFIX if of.mask == "prefix" else None
    found = attention(*given, CUTS, by, prefix)
    wanted = loop(of, by, given, CUTS.tolist(), [0] * 6 if prefix is None else PREFIX.tolist())
    assert float((found.detach() - wanted).abs().max()) < LOOSE.get(name, 1e-10)


@every_map
@pytest.mark.parametrize("form", ["window", "buckets-prefix"])
def test_gradients_are_those_of_all_scores_at_once(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of q, k, v and of every learned number; with runs of a few queries."""
    monkeypatch.setattr(mapped_attention, "SCORES", 3 * HEADS * 9)
    of = config(name, **FORMS[form])
    by, given = scores(of), heads(27)
    prefix = PREFIX if of.mask == "prefix" else None
    parts = []
    for i, (start, stop) in enumerate(itertools.pairwise(CUTS.tolist())):
        q, k, v = (x[start:stop] for x in given)
        weights = mapped_piece_weights(q, k, by, 0 if prefix is None else int(prefix[i]))
        parts.append((weights @ v.repeat_interleave(2, 1).transpose(0, 1)).transpose(0, 1))
    learned = [x for x in by.learned if x is not None]
    outward = heads(27, seed=9)[0].detach()
    wanted = torch.autograd.grad(torch.cat(parts), (*given, *learned), outward)
    found = torch.autograd.grad(attention(*given, CUTS, by, prefix), (*given, *learned), outward)
    assert all(bool(each.any()) for each in found[3:])
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", ["sparsemax", "learned", "sigmoid", "sink", "scalable", "taylor"])
def test_gradients_are_finite_differences(name: str) -> None:
    by, given = scores(config(name, position=BUCKETS)), heads(6)
    learned = [x for x in by.learned if x is not None]
    assert torch.autograd.gradcheck(
        lambda *_: attention(*given, torch.tensor([0, 2, 6]), by), (*given, *learned), fast_mode=True
    )


@pytest.mark.parametrize("form", [form for form in FORMS if "buckets" not in form])
@pytest.mark.parametrize("name", ["softmax", "capped"])
def test_softmax_by_this_path_is_the_fused_one(name: str, form: str) -> None:
    of = config(name, **FORMS[form])
    by, given = scores(of), heads(27)
    assert fused(of)
    prefix = PREFIX if of.mask == "prefix" else None
    found, wanted = attention(*given, CUTS, by, prefix), documents_attention(*given, CUTS, by.sight, prefix)
    outward = heads(27, seed=9)[0].detach()
    close(found, wanted)
    for one, other in zip(*(torch.autograd.grad(y, given, outward) for y in (found, wanted)), strict=True):
        close(one, other)


# ---- memory ---------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most numbers that one result has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return out


@every_map
def test_memory_is_linear_in_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for the backward pass doubles with the length, and no result is larger than a run of queries."""
    most = 1 << 12
    monkeypatch.setattr(mapped_attention, "SCORES", most)
    by, kept, largest = scores(config(name, position=BUCKETS)), [], []
    for length in (64, 128):
        given, held = heads(length), []

        def keep(x: Tensor, held: list[int] = held) -> Tensor:
            held.append(x.numel())
            return x

        with Largest() as seen:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                y = attention(*given, torch.tensor([0, length]), by)
            y.sum().backward()
        kept.append(sum(held))
        largest.append(seen.numbers)
    constant = sum(x.numel() for x in by.learned if x is not None)
    assert kept[1] - constant == 2 * (kept[0] - constant) == 2 * 64 * (HEADS + 2 + 2) * SIZE
    assert max(largest) <= most + HEADS * 128  # a sink is one score more


# ---- in a model -----------------------------------------------------------------------------------------------------


def model(of: AttentionConfig, around: InputPositionConfig = UNPLACED, depth: int = 2) -> Model:
    made = build.build(
        DecoderConfig(
            vocabulary=VOCABULARY, width=24, depth=depth, pattern=(BlockConfig(mixer=of),), init="cs336",
            input_position=around,
        ), 3, torch.float64,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".mapped." in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


def said(by: Model, of: Any, seats: Any = None) -> Tensor:
    with torch.no_grad():
        return by.head.logits(by(of, seats))


@every_map
@pytest.mark.parametrize("form", ["window", "buckets-window", "alibi"])
def test_decoded_is_read_whole(name: str, form: str) -> None:
    """In chunks, id by id in company of another length, after a rewind; packed as alone."""
    made = model(config(name, **FORMS[form]))
    parts = pieces([19, 13])
    wanted = [said(made, rows([part])) for part in parts]
    close(said(made, rows(parts)), torch.cat(wanted))
    state = made.new_state(slots=3, room=30, spare=4)
    close(said(made, rows([parts[0][:7], parts[1][:1]]), state.at([2, 0])), torch.cat((wanted[0][:7], wanted[1][:1])))
    state.mark([2])
    said(made, rows([[1, 2, 3, 4]], [7]), state.at([2]))
    state.rewind([2], [0])
    close(said(made, rows([parts[0][7:9]], [7]), state.at([2])), wanted[0][7:9])
    for i in range(10):
        both = said(made, rows([parts[0][9 + i : 10 + i], parts[1][1 + i : 2 + i]], [9 + i, 1 + i]), state.at([2, 0]))
        close(both, torch.stack((wanted[0][9 + i], wanted[1][1 + i])))
    close(said(made, rows([parts[1][11:12]], [11]), state.at([0])), wanted[1][11:12])


@every_map
def test_a_prefix_is_read_whole_and_then_continued(name: str) -> None:
    made, (ids,) = model(config(name, **FORMS["buckets-prefix"])), pieces([12])
    wanted = said(made, rows([ids], prefix=[5]))
    state = made.new_state(slots=1, room=12)
    close(said(made, rows([ids[:6]], prefix=[5]), state.at([0])), wanted[:6])
    close(said(made, rows([ids[6:7]], [6]), state.at([0])), wanted[6:7])
    close(said(made, rows([ids[7:]], [7]), state.at([0])), wanted[7:])


@every_map
def test_maps_are_zero_where_hidden_and_give_what_the_layer_gives(name: str) -> None:
    made = model(config(name, window=4), depth=1)
    parts = pieces([9, 5])
    (maps,) = attention_maps(made, rows(parts)).values()
    for each in maps:
        i, j = torch.meshgrid(torch.arange(each.shape[1]), torch.arange(each.shape[1]), indexing="ij")
        assert not each[:, (j > i) | (i - j >= 4)].any()
        total = each.sum(-1)
        if name in ("sigmoid", "sink"):
            assert bool((total <= 1.5).all())
        else:
            close(total, torch.ones_like(total))
        if name in ("sparsemax", "top-k", "entmax15"):
            assert bool((each[:, (j <= i) & (i - j < 4)] == 0).any())


@every_map
@pytest.mark.parametrize("position", [UNPLACED, BUCKETS], ids=["none", "buckets"])
def test_parameters_are_counted_and_pruned(name: str, position: PositionConfig) -> None:
    """A pruned model is the model with the columns of the pruned heads zero."""
    made, ids = model(config(name, position=position)), rows(pieces([11]))
    assert count(made.config).total == sum(parameter.numel() for parameter in made.parameters())
    pruned = prune_heads(made, 1, [0, 2])
    mixer = made.blocks[1].mixer
    with torch.no_grad():
        mixer.out.view(24, HEADS, SIZE)[:, [0, 2]] = 0.0  # type: ignore[union-attr, operator]
    close(said(pruned, ids), said(made, ids))


def test_a_model_learns_what_its_map_has_to_learn() -> None:
    """Every learned number moves the loss, so a step that follows its gradient lowers it."""
    ids = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    for name in ("learned", "sink", "scalable", "sparsemax"):
        made = model(config(name, position=BUCKETS))
        own = [parameter for path, parameter in made.named_parameters() if ".mapped." in path]
        losses = []
        for _ in range(2):
            hidden = made(grid(ids))
            loss = made.head.nll(hidden, ids.roll(-1).flatten(), torch.ones(24)) / 24
            slopes = torch.autograd.grad(loss, own)
            assert all(bool(slope.any()) for slope in slopes)
            with torch.no_grad():
                for parameter, slope in zip(own, slopes, strict=True):
                    parameter -= 0.05 * slope
            losses.append(loss.item())
        assert losses[1] < losses[0]


# ---- noise ----------------------------------------------------------------------------------------------------------


def test_gumbel_noise_has_its_moments() -> None:
    noise = gumbel_noise(torch.arange(400).view(2, 200), torch.tensor(3), 5, torch.arange(100), torch.float32)
    assert noise.shape == (2, 5, 200, 100)
    assert bool(noise.isfinite().all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)
    other = gumbel_noise(torch.arange(400).view(2, 200), torch.tensor(4), 5, torch.arange(100), torch.float32)
    assert not (noise == other).all(-1).any()  # layers draw apart
    flat = noise.transpose(1, 2).flatten(0, 1).flatten(1)  # a row a query
    assert len(flat.unique(dim=0)) == 400
    assert abs(float(torch.corrcoef(flat.T[[0, 1, 100, 101]]).fill_diagonal_(0).abs().max())) < 0.2


def test_noise_is_a_function_of_the_id_and_only_there_in_training() -> None:
    """Drawn by `Rows.draws` alone: the same packed as alone, another for other numbers, none without them."""
    made, parts = model(config("gumbel")), pieces([9, 6])
    draws = torch.arange(100, 115) * 7919
    packed = said(made, replace(rows(parts), draws=draws))
    alone = [
        said(made, replace(rows([parts[0]]), draws=draws[:9])),
        said(made, replace(rows([parts[1]]), draws=draws[9:])),
    ]
    close(packed, torch.cat(alone))
    assert not torch.allclose(packed, said(made, rows(parts)))
    assert not torch.allclose(packed, said(made, replace(rows(parts), draws=draws + 1)))
    assert made.config.draws
    assert not model(config("sparsemax")).config.draws
    first, second = (block.mixer.mapped.noise.site for block in made.blocks)  # type: ignore[union-attr]
    assert int(first) != int(second)


# ---- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("count", "distance"), [(32, 128), (64, 256), (16, 20), (8, 1000)])
def test_buckets_are_those_of_t5(count: int, distance: int, both: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    back = torch.arange(-1500, 1501)
    wanted = T5Attention._relative_position_bucket(-back, both, count, distance)
    assert torch.equal(distance_buckets(back, BucketsConfig(count=count, distance=distance), both), wanted)


def test_buckets_begin_at_the_first_distance_of_their_formula() -> None:
    for held, distance in itertools.product((2, 6, 16, 34), (18, 40, 1001)):
        single = held // 2
        for j, start in enumerate(bucket_starts(held, distance)[single:], 1):
            exact = single * (distance / single) ** (j / (held - single))
            assert start == pytest.approx(math.ceil(exact - 1e-9))


SCHEMES: dict[str, tuple[PositionConfig, InputPositionConfig, bool]] = {
    "rope": (RopeConfig(), UNPLACED, True),
    "alibi": (AlibiConfig(), UNPLACED, True),
    "buckets": (BUCKETS, UNPLACED, True),
    "none": (UNPLACED, UNPLACED, True),
    "learned": (UNPLACED, LearnedConfig(room=64), False),
    "sinusoidal": (UNPLACED, SinusoidalConfig(), False),
}


@pytest.mark.parametrize("name", ["softmax", "entmax15"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_shifting_all_positions(name: str, scheme: str) -> None:
    """Changes nothing where positions are relative, and what is said where they are added to the embeddings."""
    position, around, unmoved = SCHEMES[scheme]
    made, (ids,) = model(config(name, position=position), around), pieces([17])
    wanted, shifted = said(made, rows([ids])), said(made, rows([ids], [23]))
    assert unmoved == torch.allclose(wanted, shifted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"position": {"kind": "buckets", "count": 40, "distance": 20}}, "must be above half of count"),
        ({"position": {"kind": "buckets", "count": 6}, "mask": "bidirectional"}, "multiple of 4"),
        ({"map": {"kind": "entmax", "alpha": 2.5, "learned": True}}, "between 1 and 2"),
    ],
    ids=["distance", "both-ways", "alpha"],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(AttentionConfig, {"heads": 2, **change})
