"""The page of plain functions: printed values, laws, and every other implementation held against it."""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from temaki.base.errors import FormatError, RunError
from temaki.base.rows import Rows
from temaki.cli import named, reference_tree
from temaki.formats import open as opener
from temaki.formats.weights import plain
from temaki.model import build
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    GeluConfig,
    LayerNormConfig,
    LearnedConfig,
    NoPositionConfig,
    RopeConfig,
    SwigluConfig,
)
from temaki.reference import gpt, toy, use

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'temaki[jax]'")
jnp = jax.numpy

V, P, D, LAYERS, H, F = 29, 32, 16, 2, 4, 40
NAMES = ["gpt2", "llama", "grouped", "interleaved", "biased", "untied", "multi-query"]
FEW = ["gpt2", "grouped"]
MORE = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
"""For JAX, which compiles each anew."""
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Half the time to compile."""
SHAPES = {
    "llama": AttentionConfig(heads=H),
    "grouped": AttentionConfig(heads=H, kv_heads=2),
    "interleaved": AttentionConfig(heads=H, kv_heads=2, position=RopeConfig(theta=500.0, pairs="interleaved")),
    "biased": AttentionConfig(heads=H, kv_heads=2, bias="qkv", size=6),
    "untied": AttentionConfig(heads=H, kv_heads=2, bias="all"),
    "multi-query": AttentionConfig(heads=H, kv_heads=1),
}


@pytest.fixture
def wide() -> Iterator[None]:
    """JAX with float64."""
    with jax.enable_x64(True):
        yield


def config(name: str) -> DecoderConfig:
    around: dict[str, Any] = {"vocabulary": V, "width": D, "depth": LAYERS, "init": "cs336", "tied": name != "untied"}
    if name != "gpt2":
        return DecoderConfig(pattern=(BlockConfig(mixer=SHAPES[name], ffn=SwigluConfig(width=F)),), **around)
    mixer = AttentionConfig(heads=H, position=NoPositionConfig(), bias="all")
    block = BlockConfig(mixer=mixer, ffn=GeluConfig(bias=True), norm=LayerNormConfig())
    return DecoderConfig(pattern=(block,), input_position=LearnedConfig(room=P), **around)


def torch_model(name: str, dtype: torch.dtype = torch.float64) -> build.Model:
    """A model of ours in which no gain is 1 and no bias 0."""
    model = build.build(config(name), 1, dtype)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw, dtype=dtype)
    return model


def page_of(model: build.Model, arrays: dict[str, np.ndarray] | None = None) -> reference_tree.Page:
    held = {name: each.detach().numpy() for name, each in model.named_parameters()} if arrays is None else arrays
    return reference_tree.of(model.config, {name: plain(array) for name, array in held.items()})


def page(name: str, dtype: type = np.float64) -> tuple[Callable[..., Any], Any]:
    """A model of the page that is bound to its settings, and its parameters."""
    found = page_of(torch_model(name))
    return partial(found.model, **found.settings), cast(found.params, dtype)


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda array: array.astype(dtype), tree)


def to_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def ids_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, shape)


def near(found: Any, wanted: Any, bound: float = 1e-10) -> None:
    """In parts of the largest number."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


def norms_apart(found: Any, wanted: Any) -> float:
    """Norm of the difference of two trees, in parts of the norm of one."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))
    apart = sum(float(((np.asarray(a) - np.asarray(b)) ** 2).sum()) for a, b in pairs)
    return math.sqrt(apart / sum(float((np.asarray(b) ** 2).sum()) for _, b in pairs))


# ---- values that are printed elsewhere ------------------------------------------------------------------------------


def test_gelu() -> None:
    found = gpt.gelu(np.array([[1, 2], [-2, 0.5]]))
    assert_allclose(found, [[0.84119, 1.9546], [-0.0454, 0.34571]], atol=5e-5)


def test_softmax() -> None:
    found = gpt.softmax(np.array([[2.0, 10], [-1, 0]]))
    assert_allclose(found, [[0.000335, 0.999665], [0.268941, 0.731059]], atol=5e-7)
    found = gpt.softmax(np.array([[2.0, 100], [-5, 0]]))
    assert_allclose(found, [[2.75e-43, 1], [0.00669285, 0.99330715]], rtol=2e-3)
    assert_allclose(found.sum(-1), 1, rtol=1e-15)


def test_layer_norm() -> None:
    found = gpt.layer_norm(np.array([[2.0, 2, 3], [-5, 0, 1]]), np.ones(3), np.zeros(3))
    assert_allclose(found, [[-0.70709, -0.70709, 1.41418], [-1.397, 0.508, 0.889]], atol=1e-3)
    assert_allclose(found.var(-1), [0.99996, 1], atol=2e-5)


def test_rope_values() -> None:
    x = np.array([[1.0, 2, 3, 4]])
    wanted = {
        ("interleaved", 1): [-1.14264, 1.922076, 2.959851, 4.0298],
        ("half", 1): [-1.984111, 1.959901, 2.462378, 4.0198],
        ("interleaved", 2): [-2.234742, 0.077004, 2.919405, 4.059196],
        ("half", 2): [-3.144039, 1.919605, -0.339143, 4.039197],
    }
    for (pairs, place), values in wanted.items():
        assert_allclose(gpt.rope(x, np.array([place]), pairs=pairs)[0], values, atol=1e-6)
        assert_allclose(gpt.rope(x, np.array([0]), pairs=pairs), x)


def test_rope_keeps_norms_and_knows_distances_alone() -> None:
    q, k = np.array([[1.0, 0, 0, 1]]), np.array([[0.5, -1, 2, 0.25]])
    for p, r in ((3, 5), (10, 12), (0, 2)):
        a, b = (gpt.rope(x, np.array([place]), pairs="interleaved") for x, place in ((q, p), (k, r)))
        assert_allclose((a * b).sum(), 0.9911713, atol=1e-7)
        assert_allclose(np.linalg.norm(b), np.linalg.norm(k))


def test_rope_conventions_are_one_after_a_permutation() -> None:
    x, places, order = np.random.default_rng(0).normal(size=(7, 8)), np.arange(7), [0, 2, 4, 6, 1, 3, 5, 7]
    interleaved = gpt.rope(x, places, pairs="interleaved")
    assert_allclose(gpt.rope(x[:, order], places, pairs="half"), interleaved[:, order], rtol=1e-14)


def test_silu_is_x_times_sigmoid_without_overflow() -> None:
    x = np.array([-1e4, -3, 0, 2, 1e4], np.float32)
    assert_allclose(gpt.silu(x), [0, -3 / (1 + math.exp(3)), 0, 2 / (1 + math.exp(-2)), 1e4], rtol=1e-5, atol=1e-6)


# ---- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_rows_sum_to_one_and_masked_rows_are_zero_in_any_precision(dtype: Any) -> None:
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(3, 9, 8)) * 30).astype(dtype) for _ in range(3))
    if dtype is not jnp.bfloat16:
        q, k, v = np.asarray(q), np.asarray(k), np.asarray(v)
    mask = gpt.causal(q, 9, 9)
    weights = gpt.softmax(q @ k.swapaxes(-1, -2) / math.sqrt(8) + mask)
    assert weights.dtype == q.dtype
    assert_allclose(np.asarray(weights, np.float64).sum(-1), 1, atol=2e-2)
    assert not np.asarray(weights, np.float32)[:, np.triu_indices(9, 1)[0], np.triu_indices(9, 1)[1]].any()
    nothing = gpt.attention(q, k, v, gpt.space(q).full((9, 9), -math.inf, dtype=q.dtype))
    assert not np.asarray(nothing, np.float32).any()
    assert np.isfinite(np.asarray(gpt.softmax(q[0] * 0 + jnp.asarray(1e4).astype(dtype)), np.float32)).all()


def test_gradient_through_a_masked_row_is_finite() -> None:
    mask = jnp.asarray(np.array([[0.0, -np.inf], [-np.inf, -np.inf]], np.float32))
    x = jnp.ones((2, 3), jnp.float32)
    found = jit(jax.grad(lambda q: gpt.attention(q, x, x, mask).sum()))(x)
    assert np.isfinite(found).all()


def test_the_notes_mask_means_the_same() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 6, 4))
    noted = (1 - np.tri(6, dtype=q.dtype)) * -1e10
    assert_allclose(gpt.attention(q, k, v, noted), gpt.attention(q, k, v, gpt.causal(q, 6, 6)), rtol=1e-14)


def test_heads_at_once_are_a_loop_over_heads_and_one_product_is_three() -> None:
    params = use.random_gpt2(np.random.default_rng(0), V, P, D, 1, scale=0.3)["blocks"][0]["attn"]
    x = np.random.default_rng(1).normal(size=(3, 7, D))
    whole = gpt.mha(x, **params, n_head=H)
    assert_allclose(gpt.mha_by_heads(x, **params, n_head=H), whole, rtol=1e-12)
    w, b = params["c_attn"]["w"], params["c_attn"]["b"]
    three = [gpt.apart(gpt.linear(x, w[:, i * D : (i + 1) * D], b[i * D : (i + 1) * D]), H) for i in range(3)]
    apart = gpt.linear(gpt.together(gpt.attention(*three, gpt.causal(x, 7, 7))), **params["c_proj"])
    assert_allclose(apart, whole, rtol=1e-12)


def test_attention_without_positions_follows_permutations_unless_causal() -> None:
    draw = np.random.default_rng(0)
    q, k, v = draw.normal(size=(3, 6, 4))
    order = draw.permutation(6)
    free = np.zeros((6, 6))
    assert_allclose(gpt.attention(q[order], k[order], v[order], free), gpt.attention(q, k, v, free)[order], rtol=1e-12)
    causal = gpt.causal(q, 6, 6)
    turned = gpt.attention(q[order], k[order], v[order], causal)
    assert np.abs(turned - gpt.attention(q, k, v, causal)[order]).max() > 0.1


def test_scaling_keeps_the_variance_of_scores() -> None:
    q, k = np.random.default_rng(0).normal(size=(2, 200_000, 64))
    scores = np.einsum("nk,nk->n", q, k)
    assert abs(scores.var() / 64 - 1) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_past_is_unchanged_by_future(name: str) -> None:
    model, params = page(name)
    ids = ids_of(12)
    before = model(ids, **params)
    ids[7] = (ids[7] + 1) % V
    after = model(ids, **params)
    assert np.array_equal(before[:7], after[:7])
    assert not np.allclose(before[7], after[7])


@pytest.mark.usefixtures("wide")
def test_cached_is_uncached_in_jax() -> None:
    model, params = page("grouped")
    ids = ids_of(6)

    def cached(ids: Any, params: Any) -> Any:
        pasts: list[gpt.Past] = [[] for _ in range(LAYERS)]
        return jnp.concatenate([model(part, **params, pasts=pasts) for part in (ids[:4], ids[4:])])

    near(jit(cached)(jnp.asarray(ids), to_jax(params)), model(ids, **params))


@pytest.mark.parametrize("name", NAMES)
def test_cached_is_uncached(name: str) -> None:
    model, params = page(name)
    ids = ids_of(12)
    pasts: list[gpt.Past] = [[] for _ in range(LAYERS)]
    pieces = [model(part, **params, pasts=pasts) for part in (ids[:5], ids[5:6], ids[6:11], ids[11:])]
    near(np.concatenate(pieces), model(ids, **params))
    new = use.generate([1, 2, 3], params, 8, model=model)
    assert new == use.generate([1, 2, 3], params, 8, model=model, cached=False)
    assert len(new) == 8


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-10), (np.float32, 1e-5)])
@pytest.mark.usefixtures("wide")
def test_jax_is_numpy_under_jit_and_vmap(name: str, dtype: type, bound: float) -> None:
    model, params = page(name, dtype)
    ids = ids_of(3, 12)
    wanted = model(ids, **params)
    assert wanted.dtype == dtype
    assert wanted.shape == (3, 12, V)
    for row, each in zip(ids, wanted, strict=True):
        near(model(row, **params), each, bound)
    there, places = to_jax(params), jnp.asarray(ids)
    for found in (jit(model)(places, **there), jit(jax.vmap(lambda row: model(row, **there)))(places)):
        assert found.dtype == dtype
        near(found, wanted, bound)


def test_vmap_as_the_notes_write_it() -> None:
    params = to_jax(use.random_gpt2(np.random.default_rng(0), V, P, D, LAYERS))
    ids = jnp.asarray(ids_of(3, 12))
    given = (params["wte"], params["wpe"], params["blocks"], params["ln_f"], H)
    compiled = jit(gpt.gpt2, static_argnames="n_head")
    batched = jax.vmap(compiled, in_axes=(0, None, None, None, None, None))(ids, *given)
    assert batched.shape == (3, 12, V)
    near(compiled(ids[0], *given), batched[0], 1e-5)
    q, k, v = (jnp.asarray(each, jnp.float32) for each in np.random.default_rng(1).normal(size=(3, H, 6, 4)))
    mask = gpt.causal(q, 6, 6)
    near(jax.vmap(gpt.attention, (0, 0, 0, None))(q, k, v, mask), gpt.attention(q, k, v, mask), 1e-6)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.usefixtures("wide")
def test_gradients_are_finite_differences(name: str) -> None:
    model, params = page(name)
    ids, draw = ids_of(2, 9), np.random.default_rng(0)
    slopes = jit(jax.grad(partial(use.lm_loss, model=model), argnums=1))(jnp.asarray(ids), to_jax(params))
    step = 1e-5
    for _ in range(4):  # along random directions
        way = jax.tree.map(lambda array: draw.normal(size=array.shape), params)
        ahead, behind = (
            use.lm_loss(ids, jax.tree.map(lambda array, by, by_how=by_how: array + by_how * by, params, way), model)
            for by_how in (step, -step)
        )
        slope = sum(float((np.asarray(a) * b).sum()) for a, b in zip(*map(jax.tree.leaves, (slopes, way)), strict=True))
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-5)


def test_loss_of_even_odds_is_the_logarithm_of_their_number() -> None:
    params = use.random_gpt2(np.random.default_rng(0), V, P, D, 1)
    params["wte"] *= 0
    assert_allclose(use.lm_loss(ids_of(4, 9), params, n_head=H), math.log(V), rtol=1e-12)


def test_learned_positions_end() -> None:
    params = use.random_gpt2(np.random.default_rng(0), V, P, D, 1)
    assert gpt.gpt2(ids_of(P), **params, n_head=H).shape == (P, V)
    for tree in (params, to_jax(params)):
        with pytest.raises(ValueError, match=f"{P + 1} ids .* {P} positions"):
            gpt.gpt2(ids_of(P + 1), **tree, n_head=H)


def test_float16_masks_do_not_overflow() -> None:
    params = cast(use.random_gpt2(np.random.default_rng(0), V, P, D, LAYERS), np.float16)
    wanted = gpt.gpt2(ids_of(12), **cast(params, np.float64), n_head=H)
    near(gpt.gpt2(ids_of(12), **params, n_head=H), wanted, 1e-2)


# ---- the toy --------------------------------------------------------------------------------------------------------


def test_toy() -> None:
    assert toy.encode("not all heroes wear") == [1, 0, 2, 4]
    assert toy.decode([2, 4, 6]) == "heroes wear capes"
    assert toy.gpt([1, 0]).shape == (2, len(toy.WORDS))
    assert len(toy.generate([1, 0], 3)) == 3
    params, losses = toy.train([toy.encode(toy.SENTENCE)])
    assert losses[-1] < 0.1 < 1.5 < losses[0]
    assert losses[0] == pytest.approx(float(toy.lm_loss(toy.encode(toy.SENTENCE), toy.untrained())), rel=1e-5)
    assert toy.generate([1, 0], 3, params) == [2, 4, 6]


def test_a_compiled_model_writes_the_same() -> None:
    model, params = page("grouped", np.float32)
    there, compiled = use.compiled(params, 20, model)
    assert use.generate([5, 6], there, 12, model=compiled, cached=False) == use.generate(
        [5, 6], params, 12, model=model
    )


def test_shape_tree() -> None:
    found = use.shape_tree(use.random_gpt2(np.random.default_rng(0), 9, 5, 4, 1))
    norm = {"g": (4,), "b": (4,)}
    assert found["wte"] == (9, 4)
    assert found["wpe"] == (5, 4)
    assert found["ln_f"] == norm
    assert found["blocks"] == [
        {
            "attn": {"c_attn": {"w": (4, 12), "b": (12,)}, "c_proj": {"w": (4, 4), "b": (4,)}},
            "ln_1": norm,
            "ln_2": norm,
            "mlp": {"c_fc": {"w": (4, 16), "b": (16,)}, "c_proj": {"w": (16, 4), "b": (4,)}},
        }
    ]


def test_the_page_is_a_page() -> None:
    folder = Path(gpt.__file__).parent
    source = (folder / "gpt.py").read_text()
    assert len(source.splitlines()) < 200
    assert "class " not in source.replace("classes", "")
    assert not any("import temaki" in line or "temaki.base" in line for line in source.splitlines())


# ---- everyone else --------------------------------------------------------------------------------------------------


def rows_of(ids: np.ndarray) -> Rows:
    """The rows of ids [B, T] as pieces."""
    B, T = ids.shape
    return Rows(torch.from_numpy(ids.reshape(-1)), torch.arange(B + 1) * T, torch.arange(T).repeat(B))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_our_models_are_the_reference(name: str, dtype: torch.dtype, bound: float) -> None:
    model, ids = torch_model(name, dtype), ids_of(3, 14)
    with torch.no_grad():
        found = model.head.logits(model(rows_of(ids))).numpy().reshape(3, 14, V)
    there = page_of(model)
    wanted = there.model(ids, **there.params, **there.settings)
    assert wanted.dtype == found.dtype
    near(found, wanted, bound)


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.usefixtures("wide")
def test_our_gradients_are_the_reference_s(name: str, dtype: torch.dtype, bound: float) -> None:
    model, ids = torch_model(name, dtype), ids_of(3, 15)
    hidden = model(rows_of(ids[:, :-1]))
    targets = torch.from_numpy(ids[:, 1:].reshape(-1))
    loss = model.head.nll(hidden, targets, torch.ones(len(targets), dtype=dtype)) / len(targets)
    loss.backward()
    slopes = {name: each.grad.numpy() for name, each in model.named_parameters() if each.grad is not None}
    found = page_of(model, slopes).params
    there = page_of(model)
    loss_of = jax.value_and_grad(partial(use.lm_loss, model=partial(there.model, **there.settings)), argnums=1)
    value, wanted = jit(loss_of)(jnp.asarray(ids), to_jax(there.params))
    assert loss.item() == pytest.approx(float(value), rel=bound)
    assert norms_apart(found, wanted) < bound


def test_a_real_llama_tells_its_story(data: Callable[[str], Path]) -> None:
    """The text that llama2.c's own program writes, to the byte."""
    opened = opener.open(data("stories260k/stories260K.bin"))
    there = reference_tree.page(opened)
    assert opened.tokenizer is not None
    new = use.generate(opened.speaking.front, there.params, 200, model=there.model, **there.settings)
    assert opened.tokenizer.decode_bytes(new) == data("stories260k/greedy_200.txt").read_bytes()


@pytest.mark.slow
def test_smollm2_gives_its_golden_ids(data: Callable[[str], Path]) -> None:
    try:
        opened = opener.open(named.path("smollm2"))
    except RunError:
        pytest.skip("SmolLM2 is not on this machine: temaki get smollm2")
    there = reference_tree.page(opened)
    for case in json.loads(data("smollm2_reference/reference.json").read_text())["cases"]:
        logits = there.model(case["ids"], **there.params, **there.settings)[-1]
        near(logits[case["last_top10_ids"]], case["last_top10_logits"], 1e-4)
        wanted = case["greedy_ids"]
        assert use.generate(case["ids"], there.params, len(wanted), model=there.model, **there.settings) == wanted


def test_what_is_neither_gpt2_nor_llama_is_refused() -> None:
    block = BlockConfig(mixer=AttentionConfig(heads=2, qk_norm=True), ffn=GeluConfig())
    config = DecoderConfig(vocabulary=V, width=D, depth=1, pattern=(block,))
    with pytest.raises(FormatError, match=r"found: pattern\.\*\.mixer\.qk_norm True"):
        reference_tree.of(config, {})


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def states(model: Any) -> dict[str, np.ndarray]:
    return {name: each.detach().numpy() for name, each in model.state_dict().items()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_transformers_gpt2(transformers: Any, dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    said = transformers.GPT2Config(
        vocab_size=V,
        n_positions=P,
        n_embd=D,
        n_layer=LAYERS,
        n_head=H,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(said).to(dtype).eval()
    arrays = states(model.transformer)
    params: dict[str, Any] = {"wte": arrays.pop("wte.weight"), "wpe": arrays.pop("wpe.weight")}
    params |= {"blocks": [{} for _ in range(LAYERS)], "ln_f": {}}
    letters = {"ln": {"weight": "g", "bias": "b"}, "c_": {"weight": "w", "bias": "b"}}
    for name, array in arrays.items():
        *way, layer, last = name.split(".")
        place = params["blocks"][int(way[1])] if way else params
        for each in [*way[2:], layer]:
            place = place.setdefault(each, {})
        place[letters[layer[:2]][last]] = array
    ids = ids_of(2, 13)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).logits.numpy()
    near(gpt.gpt2(ids, **params, n_head=H), wanted, bound)
    greedy = model.generate(
        torch.from_numpy(ids[:1]),
        attention_mask=torch.ones(1, 13),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert use.generate(ids[0].tolist(), params, 8, n_head=H) == greedy[0, 13:].tolist()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_transformers_llama(transformers: Any, tied: bool, groups: int, dtype: torch.dtype, bound: float) -> None:
    """Their angles are float32 in any precision."""
    torch.manual_seed(0)
    said = transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=LAYERS, num_attention_heads=H,
        num_key_value_heads=groups, tie_word_embeddings=tied, initializer_range=0.3, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(said).to(dtype).eval()
    arrays = states(model)

    def block(i: int) -> Any:
        front = f"model.layers.{i}"
        return {
            "attn_norm": {"g": arrays[f"{front}.input_layernorm.weight"]},
            "attn": {each: {"w": arrays[f"{front}.self_attn.{each}_proj.weight"].T} for each in "qkvo"},
            "ffn_norm": {"g": arrays[f"{front}.post_attention_layernorm.weight"]},
            "mlp": {each: {"w": arrays[f"{front}.mlp.{each}_proj.weight"].T} for each in ("gate", "up", "down")},
        }

    params = {
        "wte": arrays["model.embed_tokens.weight"],
        "blocks": [block(i) for i in range(LAYERS)],
        "norm": {"g": arrays["model.norm.weight"]},
    }
    if not tied:
        params["head"] = {"w": arrays["lm_head.weight"].T}
    ids = ids_of(2, 13)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).logits.numpy()
    near(gpt.llama(ids, **params, n_head=H, n_kv_head=groups), wanted, bound)
    shapes = use.random_llama(np.random.default_rng(0), V, D, F, LAYERS, (H, groups), tied)
    assert use.shape_tree(shapes) == use.shape_tree(params)
