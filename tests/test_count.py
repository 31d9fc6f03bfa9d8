"""Laws of counting: figures made from a configuration are those of the model that is built from it."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import variants
from temaki.base.errors import ConfigError
from temaki.base.rows import grid
from temaki.cli import main
from temaki.model import build, roofline
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig
from temaki.model.count import count, flops_per_token, forward_flops
from temaki.model.roofline import Machine, Work
from temaki.optim import muon
from temaki.optim.config import MuonConfig, OptimConfig
from temaki.study import cost, recipes
from temaki.train.config import RunConfig, StopConfig

HERE = Machine(4e11, 3e10)
FURTHER = [{"kind": "parallel"}, {"kind": "sequential"}, {"kind": "medusa"}]


def run(name: str, *changes: str) -> RunConfig:
    """A known shape with changes."""
    found, _ = recipes.resolve(cost.named(name), changes)
    return cost.completed(found)


def several(heads: dict[str, str]) -> DecoderConfig:
    objective = {"kind": "several", "ids": 3, "heads": heads}
    pattern = [{"mixer": {"kind": "attention", "heads": 4}}]
    model = {"vocabulary": 300, "width": 32, "depth": 2, "pattern": pattern}
    return recipes.complete({"name": "a", "model": model, "objective": objective, "stop": {"steps": 1}}, 300).model


def taught(heads: dict[str, str], trunk: str) -> RunConfig:
    objective = {"kind": "several", "ids": 3, "heads": heads, "trunk": trunk}
    pattern = [{"mixer": {"kind": "attention", "heads": 4}}]
    model = {"vocabulary": 300, "width": 32, "depth": 2, "pattern": pattern}
    begin = {"kind": "model", "path": "there"}
    found = {"name": "a", "model": model, "objective": objective, "begin": begin, "stop": {"steps": 1}}
    return recipes.complete(found, 300)


@pytest.mark.parametrize("heads", FURTHER, ids=lambda heads: heads["kind"])
def test_a_frozen_trunk_is_not_counted_as_learning(heads: dict[str, str]) -> None:
    both = [taught(heads, trunk) for trunk in ("learns", "frozen")]
    learns, frozen = (cost.cost(each, HERE) for each in both)
    width, trunk = both[0].model.width, cost.muon(replace(both[0], model=replace(both[0].model, further=None)))
    assert trunk is not None
    assert learns["muon"]["flops"] - frozen["muon"]["flops"] == trunk["flops"]
    assert frozen["muon"]["flops"] > 0
    spared = learns["flops_per_token"]["training"] - frozen["flops_per_token"]["training"]
    plain = flops_per_token(replace(both[0].model, further=None), both[0].batch.context)
    assert spared == pytest.approx(plain * 2 / 3 + 2 * 300 * width)  # its backward, and its own head's forward


CONFIGS = {name: variants.config(name, True) for name in variants.NAMES}
CONFIGS |= {f"several-{heads['kind']}": several(heads) for heads in FURTHER}


@pytest.mark.parametrize("name", CONFIGS)
def test_matrices_are_those_of_the_model(name: str) -> None:
    """Each matrix that Muon moves, by rows and columns, cut as the model's roles cut it."""
    model = build.empty(CONFIGS[name])
    sizes = {each: parameter.shape for each, parameter in model.named_parameters()}
    wanted: Counter[tuple[int, int]] = Counter()
    for each, role in model.roles().items():
        if role.kind == "matrix":
            cols = sizes[each][-1]
            wanted.update((rows, cols) for rows in role.parts or (sizes[each][:-1].numel(),))
    found: Counter[tuple[int, int]] = Counter()
    for matrix in roofline.matrices(CONFIGS[name]):
        for rows in matrix.parts:
            found[rows, matrix.cols] += matrix.copies
    assert found == wanted


class Products(TorchDispatchMode):
    """Counts the numbers that go into matrix products and come out of them, weights apart."""

    def __init__(self, weights: set[int]):
        super().__init__()
        self.weights, self.moved = weights, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            tensors = [each for each in args if isinstance(each, torch.Tensor) and each.ndim == 2]
            self.moved += sum(each.numel() for each in tensors if each.untyped_storage().data_ptr() not in self.weights)
            self.moved += found.numel()
        return found


def test_a_forward_pass_multiplies_and_moves_what_was_counted() -> None:
    config = CONFIGS["grouped"]
    model = build.build(config)
    ids = torch.randint(config.vocabulary, (2, 16))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.no_grad(), FlopCounterMode(display=False) as flops, Products(weights) as seen:
        model.head.logits(model(grid(ids)))
    assert flops.get_total_flops() == 2 * forward_flops(config, 16)
    found = roofline.forward(config, 16, ids.numel())
    looked_up = ids.numel() * config.width
    assert seen.moved + looked_up == pytest.approx(found.bytes / 4 * ids.numel() - count(config).matrix)
    assert found.flops == flops_per_token(config, 16) / 3


def test_a_training_step_moves_each_number_as_often_as_told() -> None:
    config = CONFIGS["grouped"]
    one, summed = (roofline.training(config, 16, micro, 64, moments=2) for micro in (64, 16))
    moved = roofline.forward(config, 16, 1 << 40).bytes / 4
    matrix, total = count(config).matrix, count(config).total
    assert one.bytes / 4 == pytest.approx(3 * moved + 3 * matrix / 64 + 7 * total / 64)
    assert summed.bytes / 4 == pytest.approx(3 * moved + 4 * matrix / 16 + 7 * total / 64)
    assert one.flops == summed.flops == flops_per_token(config, 16)


def test_an_id_decoded_alone_reads_what_it_meets() -> None:
    config = run("mixtral-8x7b").model
    found = roofline.decoding(config, 1000)
    assert found.flops == 2 * count(config).active + 4 * 1000 * 4096 * 32
    state = 2 * 1000 * 1024 * 32
    assert found.bytes / 4 == pytest.approx(count(config).active + state, rel=1e-3)
    few, many = (roofline.forward(config, 64, ids) for ids in (1, 64))
    weights = count(config).matrix
    assert few.bytes < many.bytes * 64 < 4 * 1.01 * (weights + 64 * (few.bytes / 4 - count(config).active))
    assert found.intensity == pytest.approx(0.5, rel=0.02)
    narrow = DecoderConfig(
        vocabulary=9, width=8, depth=1, pattern=(BlockConfig(mixer=AttentionConfig(heads=2, window=5)),)
    )
    assert roofline.decoding(narrow, 5) == roofline.decoding(narrow, 900)


def test_the_roof_is_the_lower_of_two() -> None:
    machine = Machine(peak=400.0, bandwidth=20.0)
    for flops, moved in ((100.0, 1.0), (100.0, 5.0), (100.0, 50.0), (3.0, 7.0)):
        work = Work(flops, moved)
        seconds = max(flops / machine.peak, moved / machine.bandwidth)
        assert machine.speed(work) == pytest.approx(1 / seconds)
        assert machine.share(work) == pytest.approx(flops / machine.peak / seconds)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("name", ["grouped", "hybrid", "several-sequential"])
def test_the_share_of_muon_is_that_of_its_products(name: str, per_head: bool) -> None:
    optim = OptimConfig(matrix=MuonConfig(per_head=per_head, steps=3))
    config = RunConfig(name="a", model=CONFIGS[name], stop=StopConfig(steps=1), optim=optim)
    model = build.build(config.model)
    roles = model.roles()
    with FlopCounterMode(display=False) as flops:
        for each, parameter in model.named_parameters():
            if roles[each].kind == "matrix":
                for piece in muon.matrices(parameter.detach(), muon.parts(roles[each], per_head)):
                    muon.newton_schulz(piece, 3)
    found = cost.muon(config)
    assert found is not None
    assert found["flops"] == flops.get_total_flops()
    step = config.batch.tokens * flops_per_token(config.model, config.batch.context)
    assert found["share"] == found["flops"] / (found["flops"] + step)
    enough = found["enough_tokens"]
    an_id = step / config.batch.tokens
    assert found["flops"] <= 0.05 * (found["flops"] + enough * an_id)
    assert found["flops"] > 0.05 * (found["flops"] + (enough - 1) * an_id)


def test_published_figures() -> None:
    """methods 7: the course's model and the shape of GPT-2 XL with SwiGLU, untied."""
    found = cost.cost(run("cs336"), HERE)
    parts = found["parameters"]
    assert parts["total"] == 22_696_448
    assert parts["total"] - parts["embedding"] - parts["head"] == 12_456_448
    block = BlockConfig(mixer=AttentionConfig(heads=25), ffn=recipes.preset("cs336").config.pattern[0].ffn)
    xl = DecoderConfig(vocabulary=50_257, width=1600, depth=48, tied=False, pattern=(block,))
    wide = DecoderConfig(**{**vars(xl), "pattern": (BlockConfig(mixer=block.mixer, ffn=type(block.ffn)(width=6400)),)})
    assert count(wide).total == 2_127_057_600
    assert forward_flops(wide, 1024) == pytest.approx(4.513e12, rel=1e-3)


def test_moments_follow_the_rules() -> None:
    """AdamW keeps two numbers a parameter, Muon one: the step's bytes and memory say so."""
    both = run("cs336", "optim.matrix.kind=adamw"), run("cs336")
    adamw, mixed = (cost.cost(each, HERE) for each in both)
    matrix = count(both[0].model).matrix - 512 * 10_000
    assert adamw["memory"]["optimizer"] - mixed["memory"]["optimizer"] == pytest.approx(4 * matrix)
    tokens = both[0].batch.tokens
    saved = (adamw["bytes_per_token"]["training"] - mixed["bytes_per_token"]["training"]) * tokens
    assert saved == pytest.approx(4 * 2 * matrix)
    assert adamw["muon"] is None


def test_the_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def said(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["temaki", "count", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    machine = ("--peak", "4e11", "--bandwidth", "3e10")
    code, out, _ = said("gpt2", *machine)
    assert code == 0
    for words in (
        "124,439,808 parameters",
        "embedding",
        "38,597,376",
        "400 GFLOP/s",
        "30 GB/s",
        "Muon",
        "292 GFLOP",
        "GB",
    ):
        assert words in out
    code, out, _ = said("gpt2", "batch.context=256", "optim.matrix.kind=adamw", *machine, "--json")
    assert json.loads(out)["parameters"]["total"] == 124_439_808
    assert (json.loads(out)["context"], json.loads(out)["muon"]) == (256, None)
    recipe = tmp_path / "empty.toml"
    recipe.write_text('name = "a"\n[stop]\nsteps = 3\n')
    for words, told in (
        (("gpt3", *machine), "did you mean 'gpt2'"),
        ((str(recipe), *machine), "no [model] table"),
        (("nowhere.toml", *machine), "no such file"),
        (("gpt2", "--peak", "nan", "--bandwidth", "1"), "--peak is out of range"),
        (("gpt2", "model.widht=3", *machine), "did you mean"),
    ):
        code, _, err = said(*words)
        assert code == 2, words
        assert told in err
    for bad in ("gpt2", "cs336"):
        with pytest.raises(ConfigError, match="multiple"):
            run(bad, "batch.context=1000")
