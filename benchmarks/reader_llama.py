"""llama.cpp as a contestant, by the functions of its own library; runs in an environment of its own (`make llama`)."""

import argparse
import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as api  # pyright: ignore[reportMissingImports]
import numpy as np
from turns import serve

BATCH = 512


class Llama:
    """One model and one context; keys and values in float16, as it likes best."""

    def __init__(self, path: str, room: int, streams: int, threads: int):
        api.llama_backend_init()
        api.llama_log_set(SILENT, ctypes.c_void_p(0))
        wanted = api.llama_model_default_params()
        wanted.use_extra_bufts = False  # repacked weights use AMX, which a virtual machine may announce and then refuse
        self.model = api.llama_model_load_from_file(path.encode(), wanted)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room * streams, BATCH, BATCH
        params.n_seq_max, params.n_threads, params.n_threads_batch = streams, threads, threads
        self.context = api.llama_init_from_model(self.model, params)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(BATCH, 0, 1)
        self.lengths = [0] * streams

    def forget(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        self.lengths = [0] * len(self.lengths)

    def read(self, rows: Sequence[Sequence[int]]) -> list[int]:
        flat = [
            (id, stream, place, place == len(row) - 1)
            for stream, row in enumerate(rows)
            for place, id in enumerate(row)
        ]
        best: list[int] = []
        for first in range(0, len(flat), BATCH):
            best += self._run(flat[first : first + BATCH])
        for stream, row in enumerate(rows):
            self.lengths[stream] += len(row)
        return best

    def _run(self, part: list[tuple[int, int, int, bool]]) -> list[int]:
        batch: Any = self.batch
        batch.n_tokens = len(part)
        for i, (id, stream, place, last) in enumerate(part):
            batch.token[i], batch.pos[i] = id, self.lengths[stream] + place
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, stream, last
        code = api.llama_decode(self.context, batch)
        assert code == 0, f"llama_decode says {code}"
        return [self._best(i) for i, each in enumerate(part) if each[3]]

    def _best(self, i: int) -> int:
        logits = api.llama_get_logits_ith(self.context, i)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())


@api.llama_log_callback
def SILENT(level: int, text: bytes, data: Any) -> None:  # noqa: N802
    """Its log goes nowhere."""


def main() -> None:
    """Be a child of `turns`."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("model")
    words.add_argument("--room", type=int, default=1024)
    words.add_argument("--streams", type=int, default=1)
    words.add_argument("--threads", type=int, default=1)
    asked = words.parse_args()
    serve(lambda: Llama(asked.model, asked.room, asked.streams, asked.threads))


if __name__ == "__main__":
    main()
