"""What one does with the page `gpt`: measure a text, continue one, learn from one, look at the parameters."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.random import Generator

from temaki.reference.gpt import Array, Past, Tree, gpt2, log_softmax, space


def lm_loss(inputs: Any, params: Tree, model: Callable[..., Array] = gpt2, **settings: Any) -> Array:
    """Mean of -log p(id | the ids before it), nats an id; inputs [.., T + 1], each id but the first is a target."""
    ids = space(params["wte"]).asarray(inputs)
    logs = log_softmax(model(ids[..., :-1], **params, **settings))  # [.., T, V]
    return -space(logs).take_along_axis(logs, ids[..., 1:, None], axis=-1).mean()


def greedy(
    inputs: Sequence[int], params: Tree, model: Callable[..., Array] = gpt2, cached: bool = True, **settings: Any
) -> Iterator[int]:
    """The most probable id after `inputs`, the one after that, and so on without end."""
    pasts: list[Past] | None = [[] for _ in params["blocks"]] if cached else None
    ids = fresh = list(inputs)
    while True:
        logits = model(fresh if cached else ids, **params, pasts=pasts, **settings)
        fresh = [int(logits[-1].argmax())]
        ids = ids + fresh
        yield fresh[0]


def generate(inputs: Sequence[int], params: Tree, n_tokens_to_generate: int, **settings: Any) -> list[int]:
    """The new ids alone; `settings` are `greedy`'s and the model's."""
    return list(islice(greedy(inputs, params, **settings), n_tokens_to_generate))


def compiled(params: Tree, room: int, model: Callable[..., Array] = gpt2, **settings: Any) -> tuple[Tree, Any]:
    """Parameters for JAX and a model that it compiles once: ids up to `room` of them are filled up with zeros.

    What stands behind an id cannot change its logits, so they are those of the ids alone. `greedy` takes it uncached.
    """
    import jax

    whole = jax.jit(partial(model, **settings))

    def padded(inputs: Sequence[int], pasts: None = None, **params: Any) -> Array:
        ids = np.zeros(room, np.int32)
        ids[: len(inputs)] = inputs
        return np.asarray(whole(ids, **params))[: len(inputs)]

    return jax.tree.map(jax.numpy.asarray, params), padded


def shape_tree(tree: Any) -> Any:
    """The same tree with shapes in place of arrays."""
    if isinstance(tree, dict):
        return {name: shape_tree(each) for name, each in tree.items()}
    return [shape_tree(each) for each in tree] if isinstance(tree, list) else tuple(tree.shape)


def train(
    texts: Sequence[Any], params: Tree, steps: int, rate: float, model: Callable[..., Array] = gpt2, **settings: Any
) -> tuple[Tree, list[float]]:
    """`steps` times down the gradient of each text's loss, by JAX; the parameters after it (NumPy), every loss."""
    import jax

    def step(ids: Array, params: Tree) -> tuple[Array, Tree]:
        loss, slopes = jax.value_and_grad(partial(lm_loss, model=model, **settings), argnums=1)(ids, params)
        return loss, jax.tree.map(lambda weight, slope: weight - rate * slope, params, slopes)

    stepped, params, losses = jax.jit(step), jax.tree.map(jax.numpy.asarray, params), []
    for ids in list(texts) * steps:
        loss, params = stepped(jax.numpy.asarray(ids), params)
        losses.append(float(loss))
    return jax.tree.map(np.asarray, params), losses


def random_gpt2(draw: Generator, V: int, P: int, D: int, blocks: int, scale: float = 0.02) -> Tree:
    """Parameters of a GPT-2 with P positions, float64: matrices normal with deviation `scale`, biases 0, gains 1."""

    def matrix(*shape: int) -> Array:
        return draw.normal(0, scale, shape)

    def affine(before: int, after: int) -> Tree:
        return {"w": matrix(before, after), "b": np.zeros(after)}

    def norm() -> Tree:
        return {"g": np.ones(D), "b": np.zeros(D)}

    def block() -> Tree:
        return {
            "attn": {"c_attn": affine(D, 3 * D), "c_proj": affine(D, D)},
            "ln_1": norm(),
            "ln_2": norm(),
            "mlp": {"c_fc": affine(D, 4 * D), "c_proj": affine(4 * D, D)},
        }

    return {"wte": matrix(V, D), "wpe": matrix(P, D), "blocks": [block() for _ in range(blocks)], "ln_f": norm()}


def random_llama(
    draw: Generator, V: int, D: int, F: int, blocks: int, heads: tuple[int, int], tied: bool, scale: float = 0.02
) -> Tree:
    """Parameters of a Llama with `heads` = (H, G), float64: matrices normal with deviation `scale`, gains 1."""
    small = D // heads[0] * heads[1]  # G K

    def affine(before: int, after: int) -> Tree:
        return {"w": draw.normal(0, scale, (before, after))}

    def norm() -> Tree:
        return {"g": np.ones(D)}

    def block() -> Tree:
        return {
            "attn_norm": norm(),
            "attn": {"q": affine(D, D), "k": affine(D, small), "v": affine(D, small), "o": affine(D, D)},
            "ffn_norm": norm(),
            "mlp": {"gate": affine(D, F), "up": affine(D, F), "down": affine(F, D)},
        }

    tree = {"wte": affine(V, D)["w"], "blocks": [block() for _ in range(blocks)], "norm": norm()}
    return tree if tied else tree | {"head": affine(D, V)}
