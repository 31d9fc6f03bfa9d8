"""Laws of memories that decay: by chunks = id by id = the definition; and of the four mixers that keep one a head."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from temaki.base.rows import Rows
from temaki.model.config_recurrent import DeltaNetConfig, Mamba2Config, RetNetConfig, RwkvConfig, fits
from temaki.model.deltanet import DeltaNet
from temaki.model.layout import Layout
from temaki.model.linear_memory import (
    CHUNK,
    CHUNK_BY_KEY,
    decayed,
    decayed_by_key,
    decayed_by_key_step,
    decayed_step,
    delta,
    delta_step,
)
from temaki.model.mamba2 import Mamba2
from temaki.model.rectangles import in_rectangles
from temaki.model.recurrent import Recurrent
from temaki.model.retention import RetNet, retention_decays
from temaki.model.rwkv import Rwkv

RULES: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor]]]] = {
    "decayed": (decayed, decayed_step),
    "decayed_by_key": (decayed_by_key, decayed_by_key_step),
    "delta": (delta, delta_step),
}
DECAYS = {"none": (0.0, 0.0), "slow": (-1e-3, 0.0), "all": (-3.0, 0.0), "fast": (-900.0, -20.0), "mixed": (-400.0, 0.0)}
"""Logarithms of decays are drawn between the two."""
LENGTHS = [1, 5, CHUNK, 2 * CHUNK + 3]
WIDTH = 16
MIXERS: dict[str, Callable[[], Recurrent]] = {
    "retnet": lambda: RetNet(RetNetConfig(heads=4), WIDTH),
    "mamba2": lambda: Mamba2(Mamba2Config(heads=4, states=6), WIDTH),
    "rwkv": lambda: Rwkv(RwkvConfig(heads=2, rank=3), WIDTH),
    "deltanet": lambda: DeltaNet(DeltaNetConfig(heads=2), WIDTH),
}


def inputs(rule: str, length: int, decay: str = "all", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """What the rule reads, of 2 rows of 3 heads: keys of 4 numbers, values of 5, and a memory that is not empty."""
    g = torch.Generator().manual_seed(length)
    q, k = (torch.randn(2, 3, length, 4, generator=g, dtype=torch.float64) for _ in range(2))
    v = torch.randn(2, 3, length, 5, generator=g, dtype=torch.float64)
    s = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64)
    low, high = DECAYS[decay]
    shape = q.shape if rule == "decayed_by_key" else q.shape[:-1]
    log_a = low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64)
    if decay == "mixed":
        log_a = torch.where(torch.rand(shape, generator=g) < 0.1, log_a, log_a / 400)
    if rule == "delta":
        k = k / k.norm(dim=-1, keepdim=True)
    further = {
        "decayed": [],
        "decayed_by_key": [torch.randn(3, 4, generator=g, dtype=torch.float64)],
        "delta": [torch.rand(2, 3, length, generator=g, dtype=torch.float64)],
    }[rule]
    return [each.to(dtype) for each in (q, k, v, log_a, *further, s)]


def defined(rule: str, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The rule as its formula says, by matrices, one head of one row at a time."""
    q, k, v, log_a, *further, s = given
    found, last = torch.zeros_like(v), torch.zeros_like(s)
    for at in [(i, h) for i in range(q.shape[0]) for h in range(q.shape[1])]:
        memory = s[at]
        for t in range(q.shape[2]):
            new = torch.outer(k[at][t], v[at][t])
            a = log_a[at][t].exp()
            if rule == "decayed_by_key":
                found[at][t] = (memory + torch.diag(further[0][at[1]]) @ new).T @ q[at][t]
                memory = torch.diag(a) @ memory + new
                continue
            if rule == "delta":
                b = further[0][at][t]
                memory = a * (torch.eye(4, dtype=q.dtype) - b * torch.outer(k[at][t], k[at][t])) @ memory + b * new
            else:
                memory = a * memory + new
            found[at][t] = memory.T @ q[at][t]
        last[at] = memory
    return found, last


def stepped(rule: str, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Id by id, all heads at once."""
    q, k, v, log_a, *further, s = given
    found = []
    for t in range(q.shape[2]):
        more = further if rule == "decayed_by_key" else [each[..., t] for each in further]
        one = log_a[..., t, :] if rule == "decayed_by_key" else log_a[..., t]
        y, s = RULES[rule][1](q[..., t, :], k[..., t, :], v[..., t, :], one, *more, s)
        found.append(y)
    return torch.stack(found, -2), s


def same(found: Any, wanted: Any, bound: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= bound * max(float(b.abs().max()), 1e-30)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("rule", RULES)
def test_by_chunks_is_id_by_id_is_the_definition(rule: str, decay: str) -> None:
    for length in LENGTHS:
        given = inputs(rule, length, decay)
        by_chunks = RULES[rule][0](*given)
        same(by_chunks, stepped(rule, given), 1e-10)
        if length != CHUNK:
            same(by_chunks, defined(rule, given), 1e-10)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("rule", RULES)
def test_float32_is_close(rule: str, decay: str) -> None:
    """Also where some ids forget nearly all and others nothing: sums of logarithms lose no digits that matter."""
    given = inputs(rule, 150, decay, torch.float32)
    same(RULES[rule][0](*given), RULES[rule][0](*(each.double() for each in given)), 1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_two_parts_are_the_whole(rule: str) -> None:
    given = inputs(rule, 100)
    q, k, v, log_a, *further, s = given
    found = []
    for span in (slice(0, 37), slice(37, None)):
        more = further if rule == "decayed_by_key" else [each[..., span] for each in further]
        one = log_a[..., span, :] if rule == "decayed_by_key" else log_a[..., span]
        y, s = RULES[rule][0](q[..., span, :], k[..., span, :], v[..., span, :], one, *more, s)
        found.append(y)
    same((torch.cat(found, -2), s), RULES[rule][0](*given), 1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_those_of_differences(rule: str) -> None:
    length = CHUNK_BY_KEY + 2 if rule == "decayed_by_key" else CHUNK + 1
    given = [each[:1, :1] if each.ndim > 2 else each[:1] for each in inputs(rule, length)]
    for each in given:
        each.requires_grad_()
    assert torch.autograd.gradcheck(RULES[rule][0], given, fast_mode=True)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_stay_finite_where_all_is_forgotten(rule: str) -> None:
    given = [each.requires_grad_() for each in inputs(rule, 40, "fast", torch.float32)]
    sum(each.sum() for each in RULES[rule][0](*given)).backward()  # type: ignore[union-attr]
    assert all(each.grad is not None and each.grad.isfinite().all() for each in given)


def test_retention_is_the_paper_s_parallel_formula() -> None:
    """(Q K^T . D) V with D_nm = a^(n-m) from an empty memory. Equation 5."""
    q, k, v, _, s = inputs("decayed", 90)
    log_a = retention_decays(3)
    n = torch.arange(90, dtype=torch.float64)
    mask = torch.exp((n[:, None] - n) * log_a[:, None, None]).tril()
    wanted = ((q @ k.mT) * mask) @ v
    found, _ = decayed(q, k, v, log_a[:, None].expand(q.shape[:-1]), torch.zeros_like(s))
    same((found,), (wanted,), 1e-10)
    assert retention_decays(4).exp().tolist() == pytest.approx([1 - 2**-5, 1 - 2**-6, 1 - 2**-7, 1 - 2**-8])


def test_the_delta_rule_reads_back_what_it_wrote_last() -> None:
    """After writing v under a unit key with b = 1 that key reads v, whatever was held; a decay is done before."""
    _, k, v, log_a, _, s = inputs("delta", 70)
    ones = torch.ones_like(log_a)
    same((delta(k, k, v, log_a, ones, s)[0],), (v,), 1e-10)
    assert (decayed(k, k, v, log_a, s)[0] - v).abs().max() > 0.1


# ---- the mixers -----------------------------------------------------------------------------------------------------


def mixer(name: str, dtype: torch.dtype = torch.float64) -> Recurrent:
    """The mixer with parameters that all matter."""
    torch.manual_seed(5)
    made = MIXERS[name]()
    with torch.no_grad():
        for each, filling in made.fillings.items():
            parameter = made.get_parameter(each)
            start = parameter if filling == "given" else torch.full_like(parameter, float(filling == "ones"))
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape))
    return made.to(dtype)


def rows(*lengths: int) -> Rows:
    positions = torch.cat([torch.arange(n) for n in lengths])
    return Rows(torch.zeros_like(positions), torch.tensor([0, *lengths]).cumsum(0), positions)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lengths", [(70, 70), (1, 0, 3, 66, 130, 2), (1,)])
@pytest.mark.parametrize("name", MIXERS)
def test_the_parallel_form_is_the_slow_one_is_the_steps(
    name: str, lengths: tuple[int, ...], dtype: torch.dtype
) -> None:
    made, layout = mixer(name, dtype), Layout(rows(*lengths))
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    x = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        given, system = made.project(x, layout), made.system()
        found = made.whole(system, given, layout)
        assert found.dtype == dtype
        assert found.shape == (len(x), made.channels)
        same((found,), (Recurrent.whole(made, system, given, layout),), bound)
        start, stop = max(layout.pieces, key=lambda span: span[1] - span[0])
        past, ys = made.begin(1), []
        for t in range(start, stop):
            y, past = made.step(system, past, tuple(each[t : t + 1] for each in given))
            ys.append(y)
        same((torch.cat(ys),), (found[start:stop],), bound)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_of_the_parallel_form_are_those_of_the_slow_one(name: str) -> None:
    made, layout = mixer(name), Layout(rows(20, 7, 70))
    x = torch.randn(97, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    wanted: list[Tensor] = []
    learned = [x, *made.parameters()]
    for whole in (made.whole, lambda *given: Recurrent.whole(made, *given)):
        given = made.project(x, layout)
        y = made.finish(whole(made.system(), given, layout), given)
        grads = list(torch.autograd.grad((y * torch.linspace(-1, 1, WIDTH, dtype=y.dtype)).sum(), learned))
        assert all(each.abs().max() > 0 for each in grads)
        same(grads, wanted or grads, 1e-9)
        wanted = grads


def test_retention_depends_on_distances_alone() -> None:
    made = mixer("retnet")
    x = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    near = rows(30)
    far = Rows(near.ids, near.cuts, near.positions + 1000)
    with torch.no_grad():
        found = [made(x, Layout(each), None, None) for each in (near, far)]
    same(found[:1], found[1:], 1e-10)


def test_mamba2_is_its_formula() -> None:
    """S_t = exp(-dt A) S_{t-1} + B (dt x)^T, y_t = S_t^T C + d x, written out for each head and id."""
    made = mixer("mamba2")
    assert isinstance(made, Mamba2)
    layout = Layout(rows(9))
    x = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        read, steps, _ = made.project(x, layout)
        found = made.whole(made.system(), made.project(x, layout), layout)
        padded = torch.cat((read.new_zeros(3, read.shape[1]), read))
        mixed = torch.stack([sum(made.conv[:, j] * padded[3 + t - j] for j in range(4)) for t in range(9)])  # type: ignore[arg-type]
        u, b, c = torch.nn.functional.silu(mixed + made.conv_bias).split((32, 6, 6), -1)
        for h in range(4):
            s = torch.zeros(6, 8, dtype=torch.float64)
            for t in range(9):
                dt = math.log1p(math.exp(float(steps[t, h] + made.step_bias[h])))
                value = u[t, 8 * h : 8 * h + 8]
                s = math.exp(-dt * math.exp(float(made.log_decay[h]))) * s + torch.outer(b[t], dt * value)
                same((found[t, 8 * h : 8 * h + 8],), (s.T @ c[t] + made.skip[h] * value,), 1e-10)


def test_rectangles_are_pieces_one_by_one() -> None:
    x = torch.randn(23, 2, dtype=torch.float64)
    spans = [(0, 0), (0, 9), (9, 10), (10, 18), (18, 18), (18, 23)]
    sizes = []

    def read(given: Tensor) -> Tensor:
        sizes.append(tuple(given.shape[:2]))
        return given.cumsum(1)

    found = in_rectangles([x], spans, read)
    assert torch.equal(found, torch.cat([x[a:b].cumsum(0) for a, b in spans]))
    assert sorted(sizes) == [(1, 1), (1, 9), (2, 8)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (RetNetConfig(heads=3), "width .16. must be a multiple of the heads of retnet .3."),
        (RetNetConfig(heads=16), "head size .1; width 16, heads 16. must be even"),
        (Mamba2Config(heads=5), "expand . width .32. must be a multiple of the heads of mamba2 .5."),
        (RwkvConfig(heads=3), "multiple of the heads of rwkv"),
        (DeltaNetConfig(heads=3), "multiple of the heads of deltanet"),
    ],
)
def test_heads_that_do_not_fit_are_refused(config: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fits(config, WIDTH)


@pytest.mark.parametrize("forgotten", [-1e30, -torch.inf])
def test_an_id_that_forgets_all_costs_its_neighbours_no_digits(forgotten: float) -> None:
    q, k, v = torch.randn(20, 4), torch.nn.functional.normalize(torch.randn(20, 4)), torch.randn(20, 3)
    log_a, b, u, s = -torch.rand(20), torch.rand(20), torch.randn(4), torch.zeros(4, 3)
    log_a[[5, 6, 13]] = forgotten
    by_key, cut = log_a[:, None].expand(20, 4), slice(13, 20)  # nothing before id 13 is left after it
    for whole, part in (
        (decayed(q, k, v, log_a, s), decayed(q[cut], k[cut], v[cut], log_a[cut], s)),
        (delta(q, k, v, log_a, b, s), delta(q[cut], k[cut], v[cut], log_a[cut], b[cut], s)),
        (decayed_by_key(q, k, v, by_key, u, s), None),
    ):
        if part is None:
            part = decayed_by_key(q[14:], k[14:], v[14:], by_key[14:], u, k[13, :, None] * v[13])
        torch.testing.assert_close(whole[0][-6:], part[0][-6:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole[1], part[1], atol=1e-5, rtol=1e-4)
