"""The mixture of experts: its formula with a dense oracle, its gradient, its loads and their balance."""

import importlib
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import variants
from temaki.base import device as devices
from temaki.base.errors import NonFiniteError
from temaki.base.rows import TokenBatch, grid
from temaki.model import build, init, part
from temaki.model.config import ExpertsConfig, GeluConfig, PlainFfnConfig, ReluConfig, SiluConfig, SwigluConfig
from temaki.model.experts import Experts, balanced, route, settle
from temaki.model.ffn import activation, is_gated
from temaki.optim.config import MuonConfig, OptimConfig
from temaki.optim.groups import groups
from temaki.optim.muon import muon_step
from temaki.optim.optimizer import Optimizer
from temaki.train.config import NextConfig
from temaki.train.objectives import Next
from temaki.train.step import update
from variants import close

KINDS: dict[str, PlainFfnConfig] = {
    "swiglu": SwigluConfig(width=12, bias=True),
    "gelu": GeluConfig(width=12, form="erf"),
    "relu": ReluConfig(width=12, bias=True, power=2),
    "silu": SiluConfig(width=12),
}


def made(kind: str = "swiglu", top: int = 2, renormalise: bool = True, balance: float = 1e-3) -> Experts:
    """Five experts of width 8 in float64, with biases that say something."""
    config = ExpertsConfig(experts=5, top=top, expert=KINDS[kind], renormalise=renormalise, balance=balance)
    experts = Experts(config, 8).double()
    init.fill(experts, variants.config("experts"), 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        experts.bias.copy_(0.2 * torch.randn(5, generator=generator))
    return experts


def dense(experts: Experts, x: Tensor) -> Tensor:
    """Every expert on every id, weighted by a matrix that is zero where it is not chosen."""
    config = experts.config
    p = (x @ experts.router.mT).softmax(-1)
    chosen = (p + experts.bias).sort(-1, descending=True).indices[:, : config.top]
    mask = torch.zeros_like(p).scatter(-1, chosen, 1.0)
    weights = p * mask
    weights = weights / weights.sum(-1, keepdim=True) if config.renormalise else weights
    up = torch.einsum("nd,erd->ner", x, experts.up) + (0 if experts.up_bias is None else experts.up_bias)
    act = activation(config.expert)
    if is_gated(config.expert):
        gate, value = up.chunk(2, -1)
        hidden = act(gate) * value
    else:
        hidden = act(up)
    said = torch.einsum("nef,edf->ned", hidden, experts.down) + (0 if experts.down_bias is None else experts.down_bias)
    return torch.einsum("ne,ned->nd", weights, said)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", [1, 2, 5])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("ids", [0, 1, 23])
def test_grouped_by_expert_is_dense_with_its_gradients(kind: str, top: int, renormalise: bool, ids: int) -> None:
    experts = made(kind, top, renormalise)
    generator = torch.Generator().manual_seed(3)
    x, pull = (torch.randn(ids, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    found, wanted = experts(x), dense(experts, x)
    if ids:
        close(found.detach(), wanted.detach())
    assert found.shape == x.shape
    into = [x, *experts.parameters()]
    for a, b in zip(*(torch.autograd.grad(y, into, pull) for y in (found, wanted)), strict=True):
        assert not a.numel() or float((a - b).detach().abs().max()) < 1e-12


def test_the_gradient_reaches_the_router() -> None:
    experts = made(top=2, renormalise=False)
    x = torch.randn(7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    experts(x).square().sum().backward()
    assert experts.router.grad is not None
    assert bool((experts.router.grad.abs().sum(-1) > 0).all())


def test_the_bias_moves_the_choice_and_not_the_weights() -> None:
    x, router = torch.ones(1, 1), torch.tensor([[2.0], [1.0], [0.0]])
    p = router.squeeze().softmax(0)
    chosen, weights = route(x, router, torch.tensor([0.0, 0.0, 1.0]), 2, renormalise=False)
    assert set(chosen[0].tolist()) == {0, 2}
    close(weights, p[chosen])
    assert not route(x, router, torch.zeros(3), 1, True)[1].sub(1).any()


def test_probabilities_are_made_in_float32() -> None:
    x, router = torch.full((1, 4), 3.0).bfloat16(), torch.eye(4).bfloat16()
    assert route(x, router, torch.zeros(4), 2, True)[1].dtype == torch.float32
    assert made().to(torch.bfloat16)(torch.ones(3, 8).bfloat16()).dtype == torch.bfloat16


def test_one_id_alone_is_one_among_many() -> None:
    experts = made()
    x = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        close(torch.cat([experts(each[None]) for each in x]), experts(x))


# ---- loads ------------------------------------------------------------------------------------------------------


def loads_of(experts: Experts) -> list[int]:
    total = experts.loads.take()
    return [] if total is None else total.tolist()


def test_loads_are_what_was_chosen_in_training_and_nothing_else() -> None:
    experts = made()
    x = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    wanted = route(x, experts.router, experts.bias, 2, True)[0].flatten().bincount(minlength=5).tolist()
    with torch.no_grad():
        experts(x)
    experts.eval()(x).sum().backward()
    experts.train()(x)  # a forward that teaches nothing
    assert loads_of(experts) == []
    for part_of_it in x.split(7):
        experts(part_of_it).sum().backward()
    assert loads_of(experts) == wanted
    assert loads_of(experts) == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_computed_anew_count_once(checkpointing: bool) -> None:
    model = variants.model("experts")
    model.checkpointing = checkpointing
    ids = torch.stack(variants.pieces([16] * 3))
    model.head.nll(model(grid(ids)), ids.reshape(-1), torch.ones(48)).backward()
    mixtures = [module for module in model.modules() if isinstance(module, Experts)]
    assert [sum(loads_of(each)) for each in mixtures] == [48 * each.config.top for each in mixtures]


def test_the_bias_follows_the_loads_by_one_step() -> None:
    bias = torch.tensor([0.5, 0.0, -0.25])
    assert balanced(bias, torch.tensor([9, 6, 3]), 0.25).tolist() == [0.25, 0.0, 0.0]
    experts = made(balance=0.0)
    before = experts.bias.clone()
    experts(torch.ones(4, 8, dtype=torch.float64)).sum().backward()
    settle(experts)
    assert torch.equal(experts.bias, before)
    assert loads_of(experts) == []


def test_an_update_settles_and_a_refused_one_forgets() -> None:
    model = variants.model("experts", torch.float32)
    roles = model.roles()
    optimizer = Optimizer(dict(model.named_parameters()), roles, groups(OptimConfig(), roles), 1e-3)
    ids = torch.stack(variants.pieces([16] * 4))
    batch = TokenBatch(grid(ids), ids.reshape(-1), torch.ones(64))
    step = next(module.config.balance for module in model.modules() if isinstance(module, Experts))
    update(model, Next(NextConfig()), optimizer, [batch, batch], 1.0, 1.0)
    for module in model.modules():
        if isinstance(module, Experts):
            assert loads_of(module) == []
            moved = module.bias.abs()
            assert bool(((moved == 0) | ((moved - step).abs() < 1e-9)).all())
            assert float(moved.max()) > 0
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        model.embedding[int(ids[0, 0])] = torch.nan
    with pytest.raises(NonFiniteError):
        update(model, Next(NextConfig()), optimizer, [batch], 1.0, 1.0)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not any(loads_of(module) for module in model.modules() if isinstance(module, Experts))


@pytest.mark.parametrize(("family", "renormalise"), [("mixtral", True), ("qwen3_moe", True), ("qwen3_moe", False)])
def test_it_is_the_mixture_of_transformers(family: str, renormalise: bool) -> None:
    transformers = pytest.importorskip("transformers")
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    if family == "mixtral":
        config = transformers.MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=5)
        theirs = modeling.MixtralSparseMoeBlock(config)
    else:
        config = transformers.Qwen3MoeConfig(
            hidden_size=8, moe_intermediate_size=12, num_experts=5, num_experts_per_tok=2, norm_topk_prob=renormalise
        )
        theirs = modeling.Qwen3MoeSparseMoeBlock(config)
    config._experts_implementation = "eager"
    experts = Experts(ExpertsConfig(experts=5, top=2, expert=SwigluConfig(width=12), renormalise=renormalise), 8)
    parameters = dict(theirs.named_parameters())
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, ours in (
            ("gate.weight", experts.router), ("experts.gate_up_proj", experts.up), ("experts.down_proj", experts.down)
        ):  # fmt: skip
            ours.copy_(torch.randn(ours.shape, generator=generator))
            parameters[name].copy_(ours)
        x = torch.randn(1, 33, 8, generator=generator)
        close(experts(x[0]), theirs(x).reshape(33, 8))


def test_a_skewed_router_is_balanced() -> None:
    """A router that sends nearly all to one expert: after the bias has moved, the loads are near to equal."""
    config = ExpertsConfig(experts=4, top=1, expert=SwigluConfig(width=4), balance=0.002)
    experts = Experts(config, 8)
    init.fill(experts, variants.config("experts"), 1)
    generator = torch.Generator().manual_seed(7)
    centre = torch.randn(8, generator=generator)
    with torch.no_grad():
        experts.router[2] += 2 * centre / centre.norm()
    shares = []
    for _ in range(300):
        x = centre + 1.5 * torch.randn(256, 8, generator=generator)
        experts(x).sum().backward()
        total = experts.loads.total
        assert total is not None
        shares.append(float(total.max()) / 256)
        settle(experts)
    assert shares[0] > 0.8
    assert sum(shares[-20:]) / 20 < 0.4


def test_the_bias_stays_float32_and_is_saved_and_not_trained() -> None:
    model = variants.model("experts", torch.bfloat16)
    names = [name for name, buffer in model.named_buffers() if name.endswith("ffn.bias") and buffer.ndim == 1]
    assert len(names) == sum(isinstance(module, Experts) for module in model.modules())
    assert set(names) <= set(part.tensors(model))
    assert not set(names) & {name for name, _ in model.named_parameters()}
    values = {name: model.get_buffer(name) for name in names}
    assert {value.dtype for value in values.values()} == {torch.float32}
    with torch.no_grad():
        for value in values.values():
            value.add_(0.123456789)
    kept = {name: value.clone() for name, value in values.items()}
    model.to(torch.bfloat16).to(torch.float64)
    assert all(torch.equal(model.get_buffer(name), kept[name]) for name in names)


TWO = """
import os, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
sys.path.insert(0, {tests!r})
from test_experts import made
from torch.distributed.device_mesh import init_device_mesh
from temaki.model.experts import settle

def worker(rank):
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method={meeting!r}, rank=rank, world_size=2)
    x = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    experts = made()
    experts(x[rank::2]).sum().backward()
    settle(experts, init_device_mesh("cpu", (2,)))
    if rank == 0:
        print(experts.bias.tolist())
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)

if __name__ == "__main__":
    mp.spawn(worker, nprocs=2)
"""


@pytest.mark.slow
def test_two_processes_balance_as_one(tmp_path, fresh: Callable[[str], str]) -> None:  # type: ignore[no-untyped-def]
    import subprocess
    import sys
    from pathlib import Path

    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(Path(__file__).parent), meeting=(tmp_path / "meeting").as_uri()))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    experts = made()
    experts(torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8))).sum().backward()
    settle(experts)
    assert done.stdout.strip() == str(experts.bias.tolist())


@pytest.mark.slow
@pytest.mark.skipif(devices.compiler() is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_counts_and_learns_the_same(fresh: Callable[[str], str]) -> None:
    """The experts themselves run as they are: how many ids each reads is data."""
    code = f"""
import copy, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch, variants
from temaki.base.rows import grid
from temaki.model import part
model = variants.model("experts", torch.float32)
part.leave_uncompiled(model)
twin = copy.copy(model)
twin.compile(dynamic=False)
ids = torch.stack(variants.pieces([16] * 3))
found = []
for each in (model, twin):
    model.zero_grad()
    model.head.nll(each(grid(ids)), ids.reshape(-1), torch.ones(48)).backward()
    loads = [block.ffn.loads.take().tolist() for block in model.blocks]
    found.append((torch.cat([p.grad.reshape(-1) for p in model.parameters()]), loads))
(a, x), (b, y) = found
print(x == y, float((a - b).norm() / a.norm()) < 1e-5)
"""
    assert fresh(code).split() == ["True", "True"]


# ---- what others see of stacked matrices ------------------------------------------------------------------------


def test_initial_values_and_updates_are_each_experts_own() -> None:
    config = variants.config("experts")
    wide = replace(config, width=64, depth=1, pattern=config.pattern[:1])
    model = build.build(wide, 1)
    mixture = model.blocks[0].ffn
    assert isinstance(mixture, Experts)
    wanted = (2 / sum(mixture.up.shape[1:])) ** 0.5
    assert float(mixture.up.detach().std()) == pytest.approx(wanted, rel=0.05)
    generator = torch.Generator().manual_seed(9)
    roles = model.roles()
    rule = MuonConfig()
    for name in ("up", "down", "router"):
        theta = getattr(mixture, name).detach()
        g, m = torch.randn(theta.shape, generator=generator), torch.zeros_like(theta)
        stacked = theta.clone()
        muon_step(stacked, g, m, 0.1, rule, roles[f"blocks.0.ffn.{name}"].parts)
        if theta.ndim == 2:
            each = theta.clone()
            muon_step(each, g, torch.zeros_like(each), 0.1, rule, ())
            close(stacked, each)
            continue
        inner = nn.ParameterList([theta[e].clone() for e in range(len(theta))])
        split = (theta.shape[1] // 2,) * 2 if name == "up" else ()
        for e, one in enumerate(inner):
            muon_step(one.data, g[e], torch.zeros_like(one), 0.1, rule, split)
            close(stacked[e], one.data)
