"""temaki as a contestant: its executor, called as the engine calls it."""

import argparse
from collections.abc import Sequence

import numpy as np
from turns import serve

from temaki.cli import named
from temaki.formats import open as opener
from temaki.generate.executor import Work
from temaki.study.executing import executor_of


class Ours:
    """An executor whose slots are the streams."""

    def __init__(self, path: str, room: int, streams: int, threads: int, cache: str | None, kind: str):
        opened = opener.open(named.path(path))
        self.executor = executor_of(opened, streams, room, kind=kind, cache=cache, threads=threads)  # type: ignore[arg-type]
        self.opened: set[int] = set()

    def forget(self) -> None:
        for slot in self.opened:
            self.executor.close(slot)
        self.opened.clear()

    def read(self, rows: Sequence[Sequence[int]]) -> list[int]:
        for slot in set(range(len(rows))) - self.opened:
            self.executor.open(slot)
            self.opened.add(slot)
        work = [Work(slot, np.array(row, np.int32), "last") for slot, row in enumerate(rows)]
        return [int(logits.argmax()) for logits in self.executor.run(work).logits]


def main() -> None:
    """Be a child of `turns`."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("model")
    words.add_argument("--room", type=int, default=1024)
    words.add_argument("--streams", type=int, default=1)
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--cache", choices=["float32", "float16", "int8"])
    words.add_argument("--kind", choices=["compiled", "torch"], default="compiled")
    asked = words.parse_args()
    serve(lambda: Ours(asked.model, asked.room, asked.streams, asked.threads, asked.cache, asked.kind))


if __name__ == "__main__":
    main()
