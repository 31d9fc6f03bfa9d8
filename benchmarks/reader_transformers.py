"""transformers as a contestant: float32 with copies of our own weights, its usual attention."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from turns import serve


class Transformers:
    """A Llama and its cache; the rows of a call have one length."""

    def __init__(self, path: str, threads: int):
        from models import llama, real

        torch.set_num_threads(threads)
        self.model = llama(real(path))
        self.model.set_attn_implementation("sdpa")
        self.past: Any = None

    def forget(self) -> None:
        self.past = None

    @torch.inference_mode()
    def read(self, rows: Sequence[Sequence[int]]) -> list[int]:
        out = self.model(torch.tensor(rows), past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return out.logits[:, -1].argmax(-1).tolist()


def main() -> None:
    """Be a child of `turns`."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("model")
    words.add_argument("--threads", type=int, default=1)
    asked, _ = words.parse_known_args()
    serve(lambda: Transformers(asked.model, asked.threads))


if __name__ == "__main__":
    main()
