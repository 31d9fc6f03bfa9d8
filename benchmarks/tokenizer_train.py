"""BPE training beside its peers: seconds, and memory above the process after imports and a small training."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import peers
from text import MB, Text
from timing import Time, race

Row = tuple[str, ...]
SIZES = (10_000, 32_000)
GOALS = {"gigabpe": 1.3}
FAST = ("temaki", "gigabpe")
"""Those that run in each round; the others run in every third."""
END = "<|endoftext|>"


def rows(text: Text, threads: int, rounds: int) -> Iterator[Row]:
    """Training to each size: wall and CPU seconds, memory; on one thread the ratio is of CPU time, else of wall."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(text.data)
        small = Path(folder) / "small.txt"
        small.write_bytes(text.data[: MB // 4].rsplit(b"\n", 1)[0])
        trainers = _trainers(threads)
        for train in trainers.values():
            train(small, 500)
        for size in SIZES:
            fast = {name: train for name, train in trainers.items() if name in FAST}
            times = race({n: (lambda t=t, size=size: lambda: t(path, size)) for n, t in fast.items()}, rounds)
            slow = {name: train for name, train in trainers.items() if name not in fast}
            times |= race(
                {n: (lambda t=t, size=size: lambda: t(path, size)) for n, t in slow.items()}, max(1, rounds // 3)
            )
            for name in [name for name in times if name != "temaki"] or ["-"]:
                mine, theirs = times["temaki"], times.get(name, times["temaki"])
                ratio = theirs.cpu / mine.cpu if threads == 1 else theirs.wall / mine.wall
                goal = f"{GOALS[name]:g}x" if name in GOALS else "-"
                yield (
                    f"train BPE, {text.size / MB:.0f} MB English, {size:,} ids, wall / CPU", str(threads),
                    _seconds(mine), name, _seconds(theirs), f"{ratio:.2f}x", goal,
                )  # fmt: skip
            yield from _memory(path, small, size, threads, [n for n in trainers if n in (*FAST, "gigatoken")])


def _seconds(time: Time) -> str:
    return f"{time.wall:.2f} / {time.cpu:.2f} s"


def _memory(path: Path, small: Path, size: int, threads: int, names: list[str]) -> Iterator[Row]:
    held = {name: _above(name, path, small, size, threads) for name in names}
    for name in names[1:]:
        yield (
            f"train BPE, {size:,} ids: memory", str(threads), f"{held['temaki'] / MB:.0f} MB", name,
            f"{held[name] / MB:.0f} MB", f"{held['temaki'] / held[name]:.2f}x the memory",
            "at most 2x" if name == "gigabpe" else "-",
        )  # fmt: skip


def _above(name: str, path: Path, small: Path, size: int, threads: int) -> int:
    """Most bytes that were held above the process after a small training, in a process of its own."""
    command = [sys.executable, __file__, name, str(path), str(small), str(size), str(threads)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _trainers(threads: int) -> Mapping[str, Callable[[Path, int], object]]:
    found: dict[str, Callable[[Path, int], object]] = {"temaki": lambda path, size: _ours(path, size, threads)}
    if peers.installed("gigabpe"):
        found["gigabpe"] = lambda path, size: _gigabpe(path, size, threads)
    if peers.installed("gigatoken"):
        found["gigatoken"] = _gigatoken
    if peers.installed("rustbpe"):
        found["rustbpe"] = _rustbpe
    if peers.installed("tokenizers"):
        found["tokenizers"] = _tokenizers
    return found


def _ours(path: Path, size: int, threads: int) -> object:
    from temaki.tokens import bpe_train

    return bpe_train.train_files([path], [size], bpe_train.Plan(threads=threads))


def _gigabpe(path: Path, size: int, threads: int) -> object:
    import gigabpe

    return gigabpe.train_bpe([str(path)], size, special_tokens=[END], pretokenizer="bytelevel", threads=threads)


def _gigatoken(path: Path, size: int) -> object:
    import gigatoken

    return gigatoken.train_bpe(path.read_bytes(), size, [END])


def _rustbpe(path: Path, size: int) -> object:
    import rustbpe

    made = rustbpe.Tokenizer()
    made.train_from_iterator(iter([path.read_bytes().decode("utf-8")]), size)
    return made


def _tokenizers(path: Path, size: int) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    made.train([str(path)], trainer)
    return made


if __name__ == "__main__":
    from temaki.base import memory

    train = _trainers(int(sys.argv[5]))[sys.argv[1]]
    train(Path(sys.argv[3]), 500)
    memory.forget()
    before = memory.held() or 0
    train(Path(sys.argv[2]), int(sys.argv[4]))
    print(max(1, (memory.peak() or 0) - before))
