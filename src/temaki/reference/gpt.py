"""GPT-2 and Llama as one page of plain functions over arrays: what every other implementation here is tested against.

Letters: .. any leading axes (a batch, or none), T ids, S positions looked at (the T and those before), D width,
H heads, G heads of keys and values, K head size, F hidden width, V vocabulary.

The arrays say whose functions compute: NumPy's are computed by NumPy, JAX's by JAX, under `grad`, `vmap` and `jit` too
(whole numbers such as `n_head` must stay plain ones: `jit(gpt2, static_argnames="n_head")`).

Sources: Radford et al. 2019 and the released weights' names; Touvron et al. 2023; Su et al. 2021; Jay Mody, "GPT in 60
lines of NumPy", whose tree of parameters is kept.
"""

import math
from typing import Any

Array = Any
"""`numpy.ndarray` or `jax.Array`."""
Tree = dict[str, Any]
"""Arrays in dictionaries and lists."""
Past = list[Array]
"""Keys and values of earlier positions of one block: empty at first, then `[k, v]`; `mha` and `gqa` extend it."""


def space(x: Array) -> Any:
    """The module whose functions take `x`: `numpy` or `jax.numpy`."""
    return x.__array_namespace__()


def gelu(x: Array) -> Array:
    """x times the chance that a normal number is below it, approximately. Hendrycks and Gimpel 2016, section 2."""
    return 0.5 * x * (1 + space(x).tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def silu(x: Array) -> Array:
    """x sigmoid(x), with tanh so that nothing overflows."""
    return x * 0.5 * (1 + space(x).tanh(0.5 * x))


def softmax(x: Array) -> Array:
    """exp(x) / sum(exp(x)) along the last axis; a row of -inf alone gives zeros."""
    xp = space(x)
    top = x.max(axis=-1, keepdims=True)
    e = xp.exp(x - xp.where(xp.isfinite(top), top, 0))
    total = e.sum(axis=-1, keepdims=True)
    return e / xp.where(total > 0, total, 1)


def log_softmax(x: Array) -> Array:
    """log(softmax(x)) of finite numbers."""
    xp = space(x)
    x = x - x.max(axis=-1, keepdims=True)
    return x - xp.log(xp.exp(x).sum(axis=-1, keepdims=True))


def layer_norm(x: Array, g: Array, b: Array, eps: float = 1e-5) -> Array:
    """(x - mean) / sqrt(var + eps) * g + b along the last axis, with the biased variance. Ba et al. 2016."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x / ((x * x).mean(axis=-1, keepdims=True) + eps) ** 0.5 * g + b


def rms_norm(x: Array, g: Array, eps: float = 1e-5) -> Array:
    """x / sqrt(mean(x^2) + eps) * g along the last axis. Zhang and Sennrich 2019, equation 4."""
    return x / ((x * x).mean(axis=-1, keepdims=True) + eps) ** 0.5 * g


def linear(x: Array, w: Array, b: Array = 0.0) -> Array:
    """x w + b: [.., in], [in, out], [out] -> [.., out]."""
    return x @ w + b


def rope(x: Array, positions: Array, theta: float = 10_000.0, pairs: str = "half") -> Array:
    """Turn pair t of each head, x [.., T, K], by position * theta^(-2t/K). Su et al. 2021, equation 34.

    `pairs` "half": coordinates t and t + K/2; "interleaved": 2t and 2t + 1.
    """
    xp, K = space(x), x.shape[-1]
    exact = xp.result_type(x.dtype, xp.float32)
    angle = positions[..., None].astype(exact) * theta ** (-xp.arange(0, K, 2, dtype=exact) / K)  # [T, K/2]
    cos, sin = xp.cos(angle).astype(x.dtype), xp.sin(angle).astype(x.dtype)
    if pairs == "half":
        a, b = x[..., : K // 2], x[..., K // 2 :]
        return xp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return xp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def causal(x: Array, T: int, S: int) -> Array:
    """[T, S] added to scores: 0 where the last T of S positions may look (themselves and before), else -inf."""
    xp = space(x)
    return xp.triu(xp.full((T, S), -math.inf, dtype=x.dtype), 1 + S - T)


def attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """softmax(q k^T / sqrt(K) + mask) v: [.., T, K], two of [.., S, K], [T, S] -> [.., T, K]. Vaswani et al. 2017."""
    return softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + mask) @ v


def apart(x: Array, heads: int) -> Array:
    """[.., T, H K] -> [.., H, T, K]."""
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def together(x: Array) -> Array:
    """[.., H, T, K] -> [.., T, H K]."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def remembered(past: Past | None, k: Array, v: Array) -> Past:
    """Keys and values of all positions so far, [.., heads, S, K]; `past`, if there is one, keeps them."""
    new = [space(k).concatenate(pair, axis=-2) for pair in zip(past, (k, v), strict=True)] if past else [k, v]
    if past is not None:
        past[:] = new
    return new


def seen(past: Past | None) -> int:
    """How many positions are remembered."""
    return past[0].shape[-2] if past else 0


def mha(x: Array, c_attn: Tree, c_proj: Tree, n_head: int, past: Past | None = None) -> Array:
    """Causal multi-head attention, [.., T, D] -> [.., T, D]; one product gives queries, keys and values."""
    q, k, v = (apart(each, n_head) for each in space(x).split(linear(x, **c_attn), 3, axis=-1))  # [.., H, T, K]
    k, v = remembered(past, k, v)  # [.., H, S, K]
    return linear(together(attention(q, k, v, causal(x, q.shape[-2], k.shape[-2]))), **c_proj)


def mha_by_heads(x: Array, c_attn: Tree, c_proj: Tree, n_head: int) -> Array:
    """The same as `mha`, one head after the other."""
    xp, mask = space(x), causal(x, x.shape[-2], x.shape[-2])
    three = [xp.split(each, n_head, axis=-1) for each in xp.split(linear(x, **c_attn), 3, axis=-1)]  # [.., T, K]
    heads = [attention(q, k, v, mask) for q, k, v in zip(*three, strict=True)]
    return linear(xp.concatenate(heads, axis=-1), **c_proj)


def ffn(x: Array, c_fc: Tree, c_proj: Tree) -> Array:
    """[.., T, D] -> [.., T, 4D] -> [.., T, D]."""
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def transformer_block(
    x: Array, mlp: Tree, attn: Tree, ln_1: Tree, ln_2: Tree, n_head: int, past: Past | None = None
) -> Array:
    """[.., T, D] -> [.., T, D]."""
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, past=past)
    return x + ffn(layer_norm(x, **ln_2), **mlp)


def gpt2(
    inputs: Any, wte: Array, wpe: Array, blocks: list[Tree], ln_f: Tree, n_head: int, pasts: list[Past] | None = None
) -> Array:
    """Ids [.., T] -> logits [.., T, V]; with `pasts` (one a block) the ids go on after those given before."""
    ids = space(wte).asarray(inputs)
    start, T = seen(pasts[0] if pasts else None), ids.shape[-1]
    if start + T > wpe.shape[0]:
        raise ValueError(f"{start + T} ids are more than the {wpe.shape[0]} positions there are")
    x = wte[ids] + wpe[start : start + T]  # [.., T, D]
    for block, past in zip(blocks, pasts or [None] * len(blocks), strict=True):
        x = transformer_block(x, **block, n_head=n_head, past=past)
    return layer_norm(x, **ln_f) @ wte.T


def gqa(
    x: Array, q: Tree, k: Tree, v: Tree, o: Tree, n_head: int, n_kv_head: int, past: Past | None = None, **turn: Any
) -> Array:
    """Causal attention where H / G heads share keys and values, with rotary positions. Ainslie et al. 2023."""
    positions = seen(past) + space(x).arange(x.shape[-2])  # [T]
    queries = rope(apart(linear(x, **q), n_head), positions, **turn)  # [.., H, T, K]
    keys, values = rope(apart(linear(x, **k), n_kv_head), positions, **turn), apart(linear(x, **v), n_kv_head)
    keys, values = (
        each.repeat(n_head // n_kv_head, axis=-3) for each in remembered(past, keys, values)
    )  # [.., H, S, K]
    mask = causal(x, x.shape[-2], keys.shape[-2])
    return linear(together(attention(queries, keys, values, mask)), **o)


def swiglu(x: Array, gate: Tree, up: Tree, down: Tree) -> Array:
    """[.., T, D] -> [.., T, F] -> [.., T, D]. Shazeer 2020, equation 6."""
    return linear(silu(linear(x, **gate)) * linear(x, **up), **down)


def llama_block(x: Array, attn_norm: Tree, attn: Tree, ffn_norm: Tree, mlp: Tree, eps: float, **heads: Any) -> Array:
    """[.., T, D] -> [.., T, D]; `heads` are `n_head`, `n_kv_head`, `past` and `rope`'s."""
    x = x + gqa(rms_norm(x, **attn_norm, eps=eps), **attn, **heads)
    return x + swiglu(rms_norm(x, **ffn_norm, eps=eps), **mlp)


def llama(
    inputs: Any, wte: Array, blocks: list[Tree], norm: Tree, n_head: int, n_kv_head: int, head: Tree | None = None,
    eps: float = 1e-5, pasts: list[Past] | None = None, **turn: Any,
) -> Array:  # fmt: skip
    """Ids [.., T] -> logits [.., T, V]; without `head` the embedding is the head. `turn` is `rope`'s."""
    x = wte[space(wte).asarray(inputs)]  # [.., T, D]
    for block, past in zip(blocks, pasts or [None] * len(blocks), strict=True):
        x = llama_block(x, **block, eps=eps, n_head=n_head, n_kv_head=n_kv_head, past=past, **turn)
    x = rms_norm(x, **norm, eps=eps)
    return x @ wte.T if head is None else linear(x, **head)
