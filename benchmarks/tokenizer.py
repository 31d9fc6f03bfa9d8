"""temaki's tokenizers beside their peers: the figures that the project wants to reach, as one markdown table.

    TEMAKI_DATA=... python benchmarks/tokenizer.py --cl100k encoders/cl100k_base.json

Each group of rows runs in a process of its own, bound to as many processors as it has threads, so that a package that
starts threads cannot take more. Ours and the peers take turns in it; a row gives medians, in CPU time on one thread
and in wall time on two. `--quick` takes less text and fewer rounds.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import text

GROUPS = ("encode", "decode", "threads", "train", "bytepiece", "bytepiece-train", "first")
THREADS = {"encode": (1, 2), "train": (1, 2), "threads": (2,)}
"""How many threads a group is run on; one where nothing is said."""
HEAD = ("work", "threads", "temaki", "peer", "its figure", "ratio", "goal")


def main() -> None:
    """Run the groups that were asked for and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rows", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)}")
    words.add_argument("--threads", default="1,2", help="1, 2 or 1,2")
    words.add_argument("--quick", action="store_true", help="4 MB and 3 rounds instead of 24 MB and 7")
    words.add_argument("--cl100k", type=Path, help="encoders/cl100k_base.json of npm's tiktoken")
    words.add_argument("--group", help=argparse.SUPPRESS)
    asked = words.parse_args()
    if asked.group is not None:
        child(asked)
        return
    groups = asked.rows.split(",")
    if unknown := sorted(set(groups) - set(GROUPS)):
        sys.exit(f"unknown rows: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    preface(asked.quick)
    rows: list[dict[str, Any]] = []
    for threads in map(int, asked.threads.split(",")):
        for group in groups:
            if threads in THREADS.get(group, (1,)):
                rows += run(group, threads, asked)
    print("\n" + table(rows))


def preface(quick: bool) -> None:
    """What the figures depend on: the machine, the packages, the texts."""
    from importlib import metadata

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    named = ("temaki", "numba", *(name for name in peers.PEERS if peers.installed(name)))
    print(", ".join(f"{name} {metadata.version(name)}" for name in named))
    if peers.missing():
        print(f"not installed, so they take no part: {', '.join(peers.missing())}")
    english, chinese = texts(quick)
    print(f"{english.line()}\n{chinese.line()}\nfiles: python benchmarks/text.py", flush=True)


def texts(quick: bool) -> tuple[text.Text, text.Text]:
    """English and Chinese."""
    return text.english((4 if quick else 24) * text.MB), text.chinese((2 if quick else 6) * text.MB)


def run(group: str, threads: int, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a group, measured in a process of its own."""
    command = [sys.executable, __file__, "--group", group, "--threads", str(threads)]
    command += ["--quick"] if asked.quick else []
    command += ["--cl100k", str(asked.cl100k)] if asked.cl100k else []
    alone = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alone)
    assert process.stdout is not None, "it was asked for"
    rows = []
    for line in process.stdout:
        if not line.startswith("{"):  # a peer that talks
            continue
        found = json.loads(line)
        rows.append(found)
        print("  ".join(found[name] for name in HEAD), file=sys.stderr, flush=True)
    if process.wait():
        print(f"{group} on {threads} threads ended with code {process.returncode}", file=sys.stderr)
    return rows


def child(asked: argparse.Namespace) -> None:
    """One group, in this process; each row is a line of JSON."""
    threads = int(asked.threads)
    if sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    english, chinese = texts(asked.quick)
    rounds = 3 if asked.quick else 7
    if asked.group == "encode":
        import tokenizer_encode

        found = tokenizer_encode.rows(english, chinese, threads, rounds, asked.cl100k)
    elif asked.group == "decode":
        import tokenizer_encode

        found = tokenizer_encode.decoding(english, rounds)
    elif asked.group == "threads":
        import tokenizer_encode

        found = tokenizer_encode.scaling(english, rounds)
    elif asked.group == "train":
        import tokenizer_train

        found = tokenizer_train.rows(english, threads, 3 if asked.quick else 5)
    elif asked.group == "first":
        import tokenizer_first

        found = tokenizer_first.rows(rounds)
    else:
        import tokenizer_bytepiece

        work = tokenizer_bytepiece.training if asked.group == "bytepiece-train" else tokenizer_bytepiece.rows
        found = work(chinese, rounds)
    for row in found:
        print(json.dumps(dict(zip(HEAD, row, strict=True))), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a markdown table."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row[name] for name in HEAD)} |" for row in rows)])


if __name__ == "__main__":
    main()
