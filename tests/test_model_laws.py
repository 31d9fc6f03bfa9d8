"""Laws of the decoder, over every variant."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import variants
from temaki.base.rows import Rows, grid, rows
from temaki.batches.packing import next_token
from temaki.model import build
from temaki.model.attention import attention
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig, NoPositionConfig, SwigluConfig
from temaki.model.count import count, forward_flops
from temaki.model.dense import document_mask
from temaki.optim.config import OptimConfig
from temaki.optim.groups import groups
from temaki.optim.optimizer import Optimizer
from variants import DTYPES, EVERY, NAMES, close, pieces


@dataclass(frozen=True)
class Weaker:
    """A law that holds less strictly, or not at all, for some. A law that fails and is not listed here fails."""

    law: str
    variants: tuple[str, ...]
    allowed: float
    """Of the largest value; infinite where it does not hold."""
    why: str


EXCEPTIONS = (
    Weaker("causal bits", ("s4-rtf",), 1e-5, "kernels are convolved by FFT, which mixes all places"),
    Weaker("packed, in training", ("batch-norm",), math.inf, "moments are taken over all places"),
    Weaker("causal, in training", ("batch-norm",), math.inf, "moments are taken over all places"),
    Weaker("accumulated", ("batch-norm",), math.inf, "each micro-batch has moments of its own"),
    Weaker("processes", ("batch-norm",), math.inf, "several would learn another model: refused before step 0"),
)

every_variant = pytest.mark.parametrize("name", EVERY)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])


def logits(model: build.Model, of: Rows, seats: object = None) -> torch.Tensor:
    with torch.no_grad():
        return model.head.logits(model(of, seats))  # type: ignore[arg-type]


@every_variant
@both_dtypes
def test_packed_is_separate(name: str, dtype: torch.dtype) -> None:
    model = variants.model(name, dtype)
    parts = pieces([5, 1, 17, 17, 40, 64, 3])
    separate = torch.cat([logits(model, rows([part])) for part in parts])
    close(logits(model, rows(parts)), separate)


@every_variant
@pytest.mark.parametrize("parts", [[], [[]], [[], [1, 2], []]], ids=str)
def test_pieces_of_nothing_say_and_teach_nothing(name: str, parts: list[list[int]]) -> None:
    model = variants.model(name)
    read, alone = rows(parts), logits(model, rows([[1, 2]]))
    found = logits(model, read)
    stepped = logits(model, read, model.new_state(3, 10).at(range(len(parts))))
    assert found.shape == stepped.shape == (len(read.ids), variants.VOCABULARY)
    if len(read.ids):
        close(found, alone)
        close(stepped, alone)
    model.head.nll(model(read), torch.zeros_like(read.ids), torch.ones(len(read.ids))).backward()
    assert all(p.grad is None or bool(p.grad.any()) <= bool(len(read.ids)) for p in model.parameters())


@every_variant
def test_more_ids_than_a_slot_holds_are_refused(name: str) -> None:
    model = variants.model(name)
    state = model.new_state(slots=2, room=8)
    logits(model, rows([range(7)]), state.at([0]))
    with pytest.raises(AssertionError, match="room for 8"):
        logits(model, rows([[1, 2]], [7]), state.at([0]))
    other = model.new_state(slots=1, room=6)
    with pytest.raises(AssertionError, match="do not fit"):
        other.load(0, state.save(0))


@every_variant
@both_dtypes
def test_batched_is_single(name: str, dtype: torch.dtype) -> None:
    model = variants.model(name, dtype)
    ids = torch.stack(pieces([24] * 5))
    close(
        logits(model, grid(ids)).unflatten(0, (5, 24)),
        torch.stack([logits(model, rows([row])) for row in ids]),
    )


@every_variant
@both_dtypes
@pytest.mark.parametrize("chunk", [1, 7, 31])
def test_chunked_is_whole(name: str, dtype: torch.dtype, chunk: int) -> None:
    model = variants.model(name, dtype)
    parts = pieces([31, 9, 18])
    slots = [2, 0, 3]
    state = model.new_state(slots=4, room=40)
    found: list[list[torch.Tensor]] = [[], [], []]
    for start in range(0, 31, chunk):
        live = [i for i, part in enumerate(parts) if start < len(part)]
        now = [parts[i][start : start + chunk] for i in live]
        out = logits(model, rows(now, [state.lengths[slots[i]] for i in live]), state.at([slots[i] for i in live]))
        for i, piece in zip(live, out.split([len(piece) for piece in now]), strict=True):
            found[i].append(piece)
    assert [state.lengths[slot] for slot in slots] == [31, 9, 18]
    for part, piece in zip(parts, found, strict=True):
        close(torch.cat(piece), logits(model, rows([part])))


@every_variant
@both_dtypes
def test_rewound_never_read(name: str, dtype: torch.dtype) -> None:
    """Reading a draft and rewinding to any number of its ids = having read only those."""
    model = variants.model(name, dtype)
    prompt, draft, after = pieces([20, 6, 4])
    for keep in range(7):
        state = model.new_state(slots=2, room=40, spare=7)
        logits(model, rows([prompt, prompt[:5]], [0, 0]), state.at([0, 1]))
        state.mark([0, 1])
        logits(model, rows([draft, draft[:3]], [20, 5]), state.at([0, 1]))
        state.rewind([0, 1], [keep, min(keep, 3)])
        assert state.lengths == [20 + keep, 5 + min(keep, 3)]
        both = logits(model, rows([after, after], state.lengths), state.at([0, 1]))
        close(both[:4], logits(model, rows([torch.cat([prompt, draft[:keep], after])]))[-4:])
        close(both[4:], logits(model, rows([torch.cat([prompt[:5], draft[: min(keep, 3)], after])]))[-4:])


@every_variant
def test_state_saves_forks_and_clears_to_the_bit(name: str) -> None:
    model = variants.model(name, torch.float32)
    prompt, other, after = pieces([20, 11, 5])
    state = model.new_state(slots=4, room=40)
    logits(model, rows([prompt, other], [0, 0]), state.at([0, 1]))
    saved = state.save(0)
    state.fork(0, 2)
    first = logits(model, rows([after], [20]), state.at([0]))
    assert torch.equal(first, logits(model, rows([after], [20]), state.at([2])))
    logits(model, rows([after], [state.lengths[1]]), state.at([1]))
    state.load(1, saved)
    assert torch.equal(first, logits(model, rows([after], [20]), state.at([1])))
    state.clear([0, 1, 2])
    assert state.lengths == [0, 0, 0, 0]
    empty = model.new_state(slots=4, room=40)
    for found, wanted in zip(state.layers, empty.layers, strict=True):
        for slot in range(3):
            a, b = found.save(slot, 40), wanted.save(slot, 40)
            assert all(torch.equal(a[key], b[key]) for key in b)


@every_variant
def test_nan_left_in_a_cleared_slot_harms_nobody(name: str) -> None:
    model = variants.model(name, torch.float32)
    state = model.new_state(slots=2, room=16)
    poisoned = {
        key: value * float("nan") if value.is_floating_point() else value for key, value in state.save(0).items()
    }
    state.load(0, {**poisoned, "length": torch.tensor(0)})
    state.clear([0])
    (part,) = pieces([6])
    assert logits(model, rows([part]), state.at([0])).isfinite().all()


@every_variant
@pytest.mark.parametrize("place", [1, 12, 29])
def test_past_is_unchanged_by_future(name: str, place: int) -> None:
    model = variants.model(name, torch.float32)
    (ids,) = pieces([30])
    changed = ids.clone()
    changed[place] = (changed[place] + 1) % variants.VOCABULARY
    a, b = logits(model, rows([ids])), logits(model, rows([changed]))
    allowed = [each.allowed for each in EXCEPTIONS if each.law == "causal bits" and name in each.variants]
    if allowed:
        assert (a[:place] - b[:place]).abs().max() <= allowed[0] * a.abs().max()
    else:
        assert torch.equal(a[:place], b[:place])
    assert not torch.equal(a[place:], b[place:])


@every_variant
def test_past_is_unchanged_by_future_to_the_bit_in_steps(name: str) -> None:
    model = variants.model(name, torch.float32)
    (ids,) = pieces([12])
    changed = ids.clone()
    changed[8] = (changed[8] + 1) % variants.VOCABULARY
    runs = []
    for version in (ids, changed):
        state = model.new_state(slots=1, room=12)
        runs.append(torch.cat([logits(model, rows([[i]], [t]), state.at([0])) for t, i in enumerate(version.tolist())]))
    assert torch.equal(runs[0][:8], runs[1][:8])
    assert not torch.equal(runs[0][8:], runs[1][8:])


@every_variant
def test_loss_over_all_positions_is_a_loop_over_prefixes(name: str) -> None:
    model = variants.model(name)
    (ids,) = pieces([18])
    inputs, targets = next_token(ids)
    assert len(targets) == len(ids) - 1
    with torch.no_grad():
        whole = model.head.nll_each(model(rows([inputs])), targets)
        each = [-logits(model, rows([ids[:n]]))[-1].log_softmax(-1)[ids[n]] for n in range(1, len(ids))]
    close(whole, torch.stack(each))


@pytest.mark.parametrize(("name", "tied"), [*((name, True) for name in NAMES), *((name, False) for name in EVERY)])
def test_overfits_one_batch(name: str, tied: bool) -> None:
    model = variants.model(name, torch.float32, tied)
    ids = torch.stack(pieces([17] * 2, seed=5))
    ids[:, 0] = torch.tensor([1, 2])  # one beginning has one continuation
    read, targets = grid(ids[:, :-1]), ids[:, 1:].reshape(-1)
    optimizer = Optimizer(dict(model.named_parameters()), model.roles(), groups(OptimConfig(), model.roles()), lr=1e-2)
    loss = torch.tensor(0.0)
    for step in range(100):
        model.zero_grad()
        loss = model.head.nll(model(read), targets, torch.ones(len(targets))) / len(targets)
        loss.backward()
        optimizer.step(min(1.0, (100 - step) / 50))
    assert loss.item() < 0.01


@every_variant
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_counts_and_roles_agree(name: str, tied: bool) -> None:
    model = variants.model(name, tied=tied)
    assert sum(p.numel() for p in model.parameters()) == count(model.config).total
    roles = model.roles()
    assert set(roles) == {parameter for parameter, _ in model.named_parameters()}
    assert sum(role.kind == "head" for role in roles.values()) == (0 if tied else 1)
    for parameter, role in roles.items():
        if role.parts:
            assert sum(role.parts) == model.get_parameter(parameter).flatten(0, -2).shape[0]
    matrices = sum(model.get_parameter(n).numel() for n, role in roles.items() if role.kind in ("matrix", "head"))
    assert matrices + (model.embedding.numel() if tied else 0) == count(model.config).matrix


@every_variant
def test_initial_values_are_a_function_of_config_and_seed(name: str) -> None:
    one, again, other = (variants.model(name, seed=seed) for seed in (1, 1, 2))
    pairs = list(zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.embedding, other.embedding)


def test_trained_tensors_are_parameters_and_saved_and_plain_tensors_are_neither() -> None:
    model = variants.model("hybrid")
    model.plain = torch.zeros(3, requires_grad=True)
    names = {name for name, _ in model.named_parameters()}
    assert "plain" not in names
    assert "plain" not in model.state_dict()
    assert names <= set(model.state_dict())
    tables = {name for name, _ in model.named_buffers()}
    assert tables
    assert not tables & names
    assert not tables & set(model.state_dict())


def test_rotary_tables_move_with_to() -> None:
    model = variants.model("attention-half", torch.float32)
    for dtype in (torch.float64, torch.bfloat16):
        assert {buffer.dtype for buffer in model.to(dtype).buffers()} == {dtype}
    assert {buffer.device.type for buffer in model.to("meta").buffers()} == {"meta"}


def test_positions_beyond_the_tables_extend_them() -> None:
    model = variants.model("attention-half")
    (part,) = pieces([3])
    near, far = logits(model, rows([part], [0])), logits(model, rows([part], [5000]))
    close(far, near)


def test_look_up_is_a_loop_and_gradient_falls_on_used_rows_only() -> None:
    model = variants.model("no-positions")
    ids = torch.tensor([[3, 5, 3], [7, 0, 5]])
    table = model.embedding
    found = torch.nn.functional.embedding(grid(ids).ids, table).unflatten(0, (2, 3))
    assert torch.equal(found, torch.stack([torch.stack([table[i] for i in row]) for row in ids.tolist()]))
    model(grid(ids)).sum().backward()
    used = torch.zeros(variants.VOCABULARY, dtype=torch.bool)
    used[[0, 3, 5, 7]] = True
    assert table.grad is not None
    assert torch.equal(table.grad.abs().sum(-1) > 0, used)


def test_unmasked_attention_without_positions_is_permutation_equivariant() -> None:
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(9, generator=generator)
    (ids,) = pieces([9])
    for mask, equal in (("bidirectional", True), ("causal", False)):
        mixer = AttentionConfig(heads=2, position=NoPositionConfig(), mask=mask)  # type: ignore[arg-type]
        config = DecoderConfig(
            vocabulary=variants.VOCABULARY,
            width=16,
            depth=2,
            pattern=(BlockConfig(mixer=mixer),),
            init="cs336",
        )
        model = build.build(config, 1, torch.float64)
        a, b = logits(model, rows([ids]))[order], logits(model, rows([ids[order]]))
        assert (float((a - b).abs().max()) < 1e-6) == equal


def test_document_mask_is_a_loop() -> None:
    cuts = torch.tensor([0, 3, 4, 9])
    document = [0, 0, 0, 1, 2, 2, 2, 2, 2]
    for causal in (True, False):
        mask = document_mask(cuts, causal)
        for i in range(9):
            for j in range(9):
                assert bool(mask[i, j]) == (document[i] == document[j] and (j <= i or not causal))


def test_attention_function_against_torch_and_a_row_that_sees_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(5, 5, generator=generator) < 0.6
    mask[2] = False
    mask[0, 0] = True
    found = attention(q, k, v, mask)
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    seen = mask.any(-1)
    close(found[..., seen, :], wanted[..., seen, :])
    assert found[..., 2, :].abs().max() == 0


def test_variance_of_scores_is_the_head_size() -> None:
    generator = torch.Generator().manual_seed(7)
    q, k = (torch.randn(200_000, 64, generator=generator) for _ in range(2))
    scores = (q * k).sum(-1)
    assert abs(scores.var().item() - 64) < 1
    assert abs((scores / 8).var().item() - 1) < 0.02


def test_counts_of_the_course_and_of_gpt2_xl_shape() -> None:
    course = DecoderConfig(
        vocabulary=10_000,
        width=512,
        depth=4,
        tied=False,
        pattern=(BlockConfig(mixer=AttentionConfig(heads=16)),),
    )
    assert count(course).total == 22_696_448
    assert count(course).total - count(course).embedding - count(course).head == 12_456_448
    xl = DecoderConfig(
        vocabulary=50_257, width=1600, depth=48, tied=False,
        pattern=(BlockConfig(mixer=AttentionConfig(heads=25), ffn=SwigluConfig(width=6400)),),
    )  # fmt: skip
    assert count(xl).total == 2_127_057_600
    assert round(forward_flops(xl, 1024) / 1e12, 3) == 4.513


@every_variant
def test_activation_checkpointing_changes_no_bit(name: str) -> None:
    model = variants.model(name, torch.float32)
    ids = torch.stack(pieces([16] * 3))
    found = []
    for flag in (False, True):
        model.checkpointing = flag
        model.zero_grad()
        model.head.nll(model(grid(ids)), ids.reshape(-1), torch.ones(48)).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_exceptions_are_of_variants_that_are_there_and_are_printed() -> None:
    for each in EXCEPTIONS:
        assert set(each.variants) <= set(EVERY)
        says = "does not hold" if each.allowed == math.inf else f"to {each.allowed:g} of the largest"
        print(f"{each.law}: {', '.join(each.variants)}: {says} ({each.why})")


def test_batch_norm_breaks_the_laws_that_it_is_listed_for() -> None:
    """While it learns; with running moments it keeps them as all do."""
    model = variants.model("batch-norm")
    parts = pieces([9, 12])
    learning, alone = model(rows(parts)).detach(), model(rows(parts[:1])).detach()
    assert not torch.allclose(learning[:9], alone, rtol=1e-3)
