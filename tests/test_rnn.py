"""Recurrent networks against torch's modules; pieces as rectangles."""

import pytest
import torch
from torch import nn

import variants
from temaki.base.rows import rows
from temaki.model.config import GruConfig, LstmConfig, RnnConfig
from temaki.model.layout import Layout
from temaki.model.rectangles import in_rectangles
from temaki.model.recurrent import Recurrent
from temaki.model.rnn import Rnn
from variants import close

ORACLES = {"rnn": (RnnConfig, nn.RNN), "gru": (GruConfig, nn.GRU), "lstm": (LstmConfig, nn.LSTM)}
every_kind = pytest.mark.parametrize("kind", ORACLES)
LENGTHS = [5, 1, 17, 0, 17, 40, 3]


def pair(kind: str, width: int = 12, size: int = 10) -> tuple[Rnn, nn.RNNBase]:
    """Ours, and torch's module with the same numbers."""
    config, module = ORACLES[kind]
    ours, theirs = Rnn(config(size=size), width).double(), module(width, size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        theirs.weight_ih_l0.copy_(ours.inputs)
        theirs.weight_hh_l0.copy_(ours.past)
        theirs.bias_ih_l0.copy_(ours.bias)
        theirs.bias_hh_l0.zero_()
    return ours, theirs


@every_kind
def test_it_is_torchs_module_piece_by_piece_and_so_are_its_gradients(kind: str) -> None:
    ours, theirs = pair(kind)
    parts = variants.pieces(LENGTHS)
    x = torch.randn(sum(LENGTHS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = ours(x, Layout(rows(parts)), None, None)
    wanted = torch.cat([theirs(piece)[0] for piece in x.split(LENGTHS) if len(piece)]) @ ours.out.T
    close(found, wanted)
    weights = torch.randn_like(found)
    of_torch = [theirs.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih")]
    a = torch.autograd.grad((found * weights).sum(), [ours.inputs, ours.past, ours.bias])
    b = torch.autograd.grad((wanted * weights).sum(), of_torch)
    for one, other in zip(a, b, strict=True):
        close(one, other)


@every_kind
def test_the_state_is_what_torch_carries(kind: str) -> None:
    ours, theirs = pair(kind)
    x = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    _, carried = ours.run(ours.system(), tuple(each[0] for each in ours.begin(1)), (x,))
    after = theirs(x)[1]
    for found, wanted in zip(carried, after if kind == "lstm" else (after,), strict=True):
        close(found, wanted[0])


def test_the_forget_gate_begins_open() -> None:
    bias = Rnn(LstmConfig(size=4), 6).bias
    assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8
    assert not Rnn(GruConfig(size=4), 6).bias.any()


def test_pieces_share_rectangles_and_see_nothing_of_each_other() -> None:
    """A running sum of each piece, read in fewer calls than there are pieces, none twice as long as a piece in it."""
    given = torch.arange(1.0, 84.0)
    cuts = torch.tensor([0, 5, 6, 23, 23, 40, 80, 83])
    pieces = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    shapes = []

    def read(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return x.cumsum(1)

    found = in_rectangles([given], pieces, read)
    assert torch.equal(found, torch.cat([given[a:b].cumsum(0) for a, b in pieces]))
    assert sorted(shapes) == [(1, 1), (1, 3), (1, 5), (1, 40), (2, 17)]
    shapes.clear()
    assert torch.equal(in_rectangles([given[:6]], [(0, 3), (3, 6)], read), torch.tensor([1.0, 3, 6, 4, 9, 15]))
    assert shapes == [(2, 3)]


@every_kind
def test_the_fast_form_is_the_slow_one(kind: str) -> None:
    ours, _ = pair(kind)
    layout = Layout(rows(variants.pieces(LENGTHS)))
    x = torch.randn(sum(LENGTHS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    system = ours.system()
    close(ours.whole(system, (x,), layout), Recurrent.whole(ours, system, (x,), layout))
