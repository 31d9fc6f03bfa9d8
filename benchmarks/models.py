"""A model's reading and writing beside `transformers` (eager attention): same weights, same threads, one run.

    python benchmarks/models.py                      the shape of SmolLM2-135M, random weights
    python benchmarks/models.py --model smollm2      the real one, after `temaki get smollm2`

Prints a markdown table of medians over interleaved rounds, of CPU time on one thread and of wall time on more.
`decode`: what 64 more greedy ids cost after a prompt of 32, by each one's own generation, all of its parts included;
`forward`: the same by bare calls of the model with its cache; `prefill`: 512 ids read at once.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from temaki.formats.open import open as open_model
from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.executor import Work
from temaki.generate.request import Request
from temaki.generate.torch_executor import TorchExecutor
from temaki.model import build
from temaki.model.build import Model
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig, RopeConfig, SwigluConfig
from temaki.model.linear import lengthwise
from temaki.model.positions import interleaved_to_half

PROMPT, ANSWER, LONG = 32, 64, 512
GOALS = {"decode": 1.5}
SMOLLM2 = DecoderConfig(
    vocabulary=49152,
    width=576,
    depth=30,
    pattern=(
        BlockConfig(
            mixer=AttentionConfig(heads=9, kv_heads=3, position=RopeConfig(theta=100_000.0)),
            ffn=SwigluConfig(width=1536),
        ),
    ),
    init="cs336",
)


@dataclass(frozen=True)
class Contestant:
    """What is timed; each gives the greedy ids it drew, to be compared."""

    name: str
    decode: Callable[[np.ndarray, int], list[int]]
    """Greedy ids by its own generation."""
    forward: Callable[[np.ndarray, int], list[int]]
    """Greedy ids by bare calls of the model."""
    prefill: Callable[[np.ndarray], np.ndarray]
    """Logits [V] at the last place."""


def main() -> None:
    """Race and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", help="a path or a name; else random weights")
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--rounds", type=int, default=7)
    asked = words.parse_args()
    torch.set_num_threads(asked.threads)
    model = real(asked.model) if asked.model else build.build(SMOLLM2)
    theirs = peer(model)
    contestants = [ours(lengthwise(model)), theirs]
    preface(asked.threads, asked.rounds)
    ids = np.random.default_rng(0).integers(3, model.config.vocabulary, LONG).astype(np.int32)
    print(same(contestants, ids))
    clock = time.process_time if asked.threads == 1 else time.perf_counter
    print("\n" + table(race(contestants, ids, asked.rounds, clock)))


def real(word: str) -> Model:
    """A model by its path or name."""
    from temaki.cli import named

    return open_model(named.path(word)).model()


def ours(model: Model) -> Contestant:
    """temaki: the engine, and its executor alone."""
    executor = TorchExecutor(model, 1, LONG + PROMPT + ANSWER)

    def decode(ids: np.ndarray, count: int) -> list[int]:
        engine, drawn = Engine(executor), []
        engine.submit(Request(ids=ids, sampling=SamplingConfig(temperature=0, max_tokens=count)))
        while events := engine.step():
            drawn += [int(id) for event in events for id in event.ids]
        return drawn

    def forward(ids: np.ndarray, count: int) -> list[int]:
        executor.open(0)
        drawn, new = [], ids
        while len(drawn) < count:
            logits = executor.run([Work(0, new, "last")]).logits[0]
            drawn.append(int(logits.argmax()))
            new = np.array(drawn[-1:], np.int32)
        executor.close(0)
        return drawn

    def prefill(ids: np.ndarray) -> np.ndarray:
        executor.open(0)
        logits = executor.run([Work(0, ids, "last")]).logits[0]
        executor.close(0)
        return logits

    return Contestant("temaki", decode, forward, prefill)


def peer(model: Model) -> Contestant:
    """transformers with the same weights."""
    from transformers import LlamaForCausalLM

    like = llama(model)
    cpu = torch.device("cpu")

    def row(ids: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(ids, dtype=torch.int64, device=cpu)[None]

    assert isinstance(like, LlamaForCausalLM), "the peer is transformers' own class"

    @torch.no_grad()
    def decode(ids: np.ndarray, count: int) -> list[int]:
        found: Any = like.generate(  # type: ignore[operator]
            row(ids), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), do_sample=False,
            max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
        )  # fmt: skip
        return found[0, len(ids) :].tolist()

    @torch.no_grad()
    def forward(ids: np.ndarray, count: int) -> list[int]:
        drawn: list[int] = []
        new, past = row(ids), None
        while len(drawn) < count:
            out = like(new, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            new = out.logits[:, -1].argmax(-1, keepdim=True)
            drawn.append(int(new))
        return drawn

    @torch.no_grad()
    def prefill(ids: np.ndarray) -> np.ndarray:
        return like(row(ids), use_cache=True, logits_to_keep=1).logits[0, -1].numpy()

    return Contestant("transformers", decode, forward, prefill)


def llama(model: Model) -> Any:
    """transformers' Llama with copies of our weights, in its own layout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    block = config.blocks[0]
    mixer, ffn = block.mixer, block.ffn
    assert isinstance(mixer, AttentionConfig), "a Llama's mixer"
    assert isinstance(mixer.position, RopeConfig), "a Llama's positions"
    assert isinstance(ffn, SwigluConfig), "a Llama's feed-forward layer"
    size = mixer.head_size(config.width)
    turning = {"rope_type": "default", "rope_theta": mixer.position.theta}
    like = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary, hidden_size=config.width, intermediate_size=ffn.width or 0,
            num_hidden_layers=config.depth, num_attention_heads=mixer.heads, num_key_value_heads=mixer.groups,
            head_dim=size, rope_parameters=turning, max_position_embeddings=8192, rms_norm_eps=block.norm.eps,
            tie_word_embeddings=config.tied, attn_implementation="eager", bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    found = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm.get_parameter("gain")}
    if not config.tied:
        found["lm_head.weight"] = model.head.weight
    for i in range(config.depth):
        found |= layer(dict(model.blocks[i].named_parameters()), f"model.layers.{i}.", mixer, size)
    missing, strange = like.load_state_dict({name: tensor.detach() for name, tensor in found.items()}, strict=False)
    assert not strange, f"they do not know {strange}"
    assert set(missing) <= {"lm_head.weight"}, f"they miss {missing}"
    return like


def layer(own: Mapping[str, torch.Tensor], name: str, mixer: AttentionConfig, size: int) -> dict[str, torch.Tensor]:
    """One layer's weights by their names."""
    q, k, v = own["mixer.qkv"].split((mixer.heads * size, mixer.groups * size, mixer.groups * size))
    if isinstance(mixer.position, RopeConfig) and mixer.position.pairs == "interleaved":
        q, k = (each.unflatten(0, (-1, size))[:, interleaved_to_half(size)].flatten(0, 1) for each in (q, k))
    gate, up = own["ffn.up"].chunk(2)
    return {
        f"{name}self_attn.q_proj.weight": q, f"{name}self_attn.k_proj.weight": k, f"{name}self_attn.v_proj.weight": v,
        f"{name}self_attn.o_proj.weight": own["mixer.out"], f"{name}mlp.gate_proj.weight": gate,
        f"{name}mlp.up_proj.weight": up, f"{name}mlp.down_proj.weight": own["ffn.down"],
        f"{name}input_layernorm.weight": own["mixer_norm.gain"],
        f"{name}post_attention_layernorm.weight": own["ffn_norm.gain"],
    }  # fmt: skip


def preface(threads: int, rounds: int) -> None:
    """What the figures depend on."""
    from importlib import metadata

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("temaki", "torch", "transformers")))
    print(f"float32, {threads} threads, {rounds} rounds", flush=True)


def same(contestants: list[Contestant], ids: np.ndarray) -> str:
    """How equal the contestants' logits and greedy ids are; this also warms them up."""
    logits = [each.prefill(ids) for each in contestants]
    drawn = [each.decode(ids[:PROMPT], ANSWER) for each in contestants]
    bare = [each.forward(ids[:PROMPT], ANSWER) for each in contestants]
    far = float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max())
    equal = all(each == drawn[0] for each in (*drawn, *bare))
    return f"largest difference of logits {far:.1e} of the largest; greedy ids {'equal' if equal else 'DIFFER'}"


def race(
    contestants: list[Contestant], ids: np.ndarray, rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Ids a second, row -> contestant: medians, each round in turned order."""

    def clocked(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    prompt = ids[:PROMPT]
    spent: dict[str, dict[str, list[float]]] = {
        row: {each.name: [] for each in contestants} for row in ("decode", "forward", "prefill")
    }
    for number in range(rounds):
        for each in contestants if number % 2 else contestants[::-1]:
            for row, run in (("decode", each.decode), ("forward", each.forward)):
                first = clocked(lambda run=run: run(prompt, 1))
                spent[row][each.name].append((clocked(lambda run=run: run(prompt, 1 + ANSWER)) - first) / ANSWER)
            spent["prefill"][each.name].append(clocked(lambda each=each: each.prefill(ids)) / LONG)
    return {row: {name: 1 / statistics.median(times) for name, times in by.items()} for row, by in spent.items()}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown."""
    lines = ["| row | temaki, ids/s | transformers eager, ids/s | ratio | goal |", "|---|---|---|---|---|"]
    for row, by in found.items():
        ratio = by["temaki"] / by["transformers"]
        goal = f"{GOALS[row]}" if row in GOALS else ""
        lines.append(f"| {row} | {by['temaki']:.1f} | {by['transformers']:.1f} | {ratio:.2f} | {goal} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
