"""Compiled BPE training, against the readable twin and `tokenizers`."""

import errno
import json
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import regex

from temaki.base.errors import TokenizerError
from temaki.tokens import bpe_merges, bpe_train, chunks, plain_bpe, split, word_counts
from temaki.tokens.bpe_merges import Learner
from temaki.tokens.bpe_train import Plan, Report
from temaki.tokens.kernels import count as kernels
from temaki.tokens.pairs import PairTable
from temaki.tokens.room import Room
from temaki.tokens.word_counts import Counts, Spill, Words

END = "<|endoftext|>"
ALPHABETS = ["ab ", "aab\n ", "abc 's12", "éü了 a\u3000", "".join(map(chr, range(32, 127)))]
NASTY = [*"aabsltrevé了5٣ \n\t'\"!<|>E\0\u0301\u3000\u0085\u200b😀", "\r\n", "<|E|>", "'ll", "  ", "a" * 30, "-" * 70]


def nasty(draw: random.Random, length: int) -> str:
    return "".join(draw.choice(NASTY) for _ in range(length))


def merges_of(words: list[tuple[bytes, int]], most: int, memory: int | None = None, pairs: int | None = None):
    """What the compiled learner makes of words."""
    order = np.arange(256, dtype=np.uint8)
    room = Room(memory)
    with Spill() as spill:
        counts = Counts(1, memory, spill)
        counts.add(words)
        line = bpe_merges.line(counts, order, 1, spill, room)
        learner = Learner(line, order, 256 + most, True, room, pairs)
        while learner.step():
            pass
    tokens = learner.tokens()
    return [(tokens[left], tokens[right]) for left, right in learner.made[: len(tokens) - 256].tolist()]


def twin_of(words: list[tuple[bytes, int]], most: int) -> list[tuple[bytes, bytes]]:
    table = PairTable(words)
    merges = []
    while len(merges) < most and (pair := table.best()) is not None:
        merges.append((table.tokens[pair[0]], table.tokens[pair[1]]))
        table.merge(pair)
    return merges


# ---- values ----------------------------------------------------------------------------------------------------------


def test_merges_of_the_toy_corpus():
    words = [(b"low", 5), (b"lower", 2), (b"widest", 3), (b"newest", 6)]
    said = "s t, e st, o w, l ow, w est, n e, ne west, w i, wi d, wid est, low e, lowe r"
    assert merges_of(words, 100) == [tuple(pair.encode().split()) for pair in said.split(", ")]


def test_overlaps_are_counted_but_replaced_once():
    assert merges_of([(b"aaaa", 3), (b"aab", 2)], 9) == [(b"a", b"a"), (b"aa", b"aa"), (b"aa", b"b")]


def test_training_meets_the_reference_of_the_course(data):
    text = data("bpe_fixtures/corpus.en").read_bytes()
    values = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(value): value for value in values}
    table |= {chr(256 + n): value for n, value in enumerate(sorted(set(range(256)) - set(values)))}
    said = data("bpe_fixtures/train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(bytes(table[c] for c in part) for part in line.split(" ")) for line in said]
    small, large = bpe_train.train([text], [500, 2_000])
    assert list(small.merges) == merges
    assert len(merges) == 243
    assert merges[:3] + merges[-1:] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e"), (b" ", b"ver")]
    vocabulary = json.loads(data("bpe_fixtures/train-bpe-reference-vocab.json").read_text(encoding="utf-8"))
    assert set(small.tokens) == {t.encode() if t == END else bytes(table[c] for c in t) for t in vocabulary}
    assert len(small.encode(text.decode())) == 63_656
    assert (large.size, len(large.encode(text.decode()))) == (2_000, 39_363)


# ---- laws: the same as the twin --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fall", [2, bpe_merges.FALL, 1 << 40])
def test_merges_are_the_twin_s_on_random_words(fall, monkeypatch):
    monkeypatch.setattr(bpe_merges, "FALL", fall)
    for seed in range(60):
        draw = random.Random(seed)
        alphabet = draw.choice([b"ab", b"abc", b"aab\xff\0", bytes(range(256))])
        heaviest = draw.choice([2, 100, 1 << 35])  # the last: more than a place can hold
        words: Counter[bytes] = Counter()
        for _ in range(draw.randrange(1, 60)):
            words[bytes(draw.choice(alphabet) for _ in range(draw.randrange(1, 40)))] += draw.randrange(1, heaviest)
        assert merges_of([*words.items()], 60) == twin_of([*words.items()], 60)


def test_one_long_word_is_the_twin_s():
    draw = random.Random(5)
    for word in (b"a" * 1001, b"ab" * 700 + b"a", bytes(draw.choice(b"abc") for _ in range(3000))):
        assert merges_of([(word, 3)], 400) == twin_of([(word, 3)], 400)


@pytest.mark.parametrize("pattern", [*split.PATTERNS, r"\S+|\s+", r"[a-z]+"])
def test_training_is_the_twin_s(pattern):
    for seed in range(12):
        draw = random.Random(seed)
        if seed % 2:
            texts = [nasty(draw, draw.randrange(400)) for _ in range(draw.randrange(1, 9))]
        else:
            alphabet = draw.choice(ALPHABETS)
            texts = ["".join(draw.choice(alphabet) for _ in range(1500))]
        special = draw.choice([(), (END,), ("<|E|>", "<|E|>E", "a"), ("\n ", "了", "<")])
        expected = plain_bpe.train(["x", *texts], 330, special, pattern)
        found = bpe_train.train(["x", *texts], 330, special, pattern, threads=1)
        assert found.merges == expected.merges
        assert (found.tokens, found.special) == (expected.tokens, expected.special)


def test_chunks_threads_bytes_and_files_change_nothing(monkeypatch, tmp_path):
    special = ("<|E|>", "<|E|>E", "\n ")
    for seed in range(20):
        draw = random.Random(seed)
        texts = [nasty(draw, draw.randrange(900)) for _ in range(5)]
        pattern = draw.choice([*split.PATTERNS, r" ?[^ ]+| +"])
        expected = plain_bpe.train(["x", *texts], 340, special, pattern).merges
        paths = [tmp_path / f"{seed}-{number}" for number in range(6)]
        for path, text in zip(paths, ["x", *texts], strict=True):
            path.write_bytes(text.encode())
        monkeypatch.setattr(chunks, "CHUNK", draw.choice([64, 200, 1000]))
        for threads in (1, 3):
            assert bpe_train.train(["x", *texts], 340, special, pattern, threads=threads).merges == expected
            encoded = ["x", *(text.encode() for text in texts)]
            assert bpe_train.train(encoded, 340, special, pattern, threads=threads).merges == expected
            plan = Plan(special, pattern, threads=threads)
            assert bpe_train.train_files(paths, [340], plan)[0].merges == expected


def test_the_rule_of_ids_is_that_of_tokenizers():
    tokenizers = pytest.importorskip("tokenizers", reason="the package is the oracle")
    for seed in range(8):
        draw = random.Random(seed)
        alphabet = draw.choice(ALPHABETS)
        texts = ["".join(draw.choice(alphabet) for _ in range(600)) for _ in range(3)]
        texts += [nasty(draw, 150).replace("<|E|>", "")]
        theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[END],
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        theirs.train_from_iterator(texts, trainer)
        ours = bpe_train.train(texts, 400, ties="ids")
        assert ours.size == theirs.get_vocab_size()
        for text in texts:
            assert ours.encode_list(text) == theirs.encode(text).ids


def test_several_sizes_are_separate_runs():
    text = nasty(random.Random(3), 3000)
    sizes = [300, 257, 420]
    for made, size in zip(bpe_train.train([text], sizes), sizes, strict=True):
        alone = bpe_train.train([text], size)
        assert (made.tokens, made.merges, made.fingerprint) == (alone.tokens, alone.merges, alone.fingerprint)


# ---- tables of words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, 1 << 18])
def test_counts_are_those_of_a_counter(memory, monkeypatch):
    monkeypatch.setattr(word_counts, "FIRST", 1 << 6)
    draw = random.Random(1)
    expected: Counter[bytes] = Counter()
    with Spill() as spill:
        counts = Counts(2, memory, spill)
        for _ in range(4):
            words = [(bytes(draw.choices(b"ab\0", k=draw.randrange(1, 30))), draw.randrange(1, 9)) for _ in range(9000)]
            counts.add(words)
            for word, count in words:
                expected[word] += count
        found = [table for part in counts.parts() for table in listed(part)]
        assert (spill.bytes > 0) == (memory is not None)
    assert len(found) == len(dict(found))
    assert dict(found) == expected


def test_many_threads_do_not_take_more_memory():
    with Spill() as spill:
        counts = Counts(1000, bpe_train.SMALLEST, spill)
        assert 1 < len(counts._words) < 10
        assert sum(words.bytes for words in counts._words) <= bpe_train.SMALLEST


def listed(words: Words) -> list[tuple[bytes, int]]:
    """All words of a table with their counts."""
    sizes = np.zeros((1, 2), np.int64)
    kernels.part_sizes(words.table, 1, sizes)
    many, size = sizes[0].tolist()
    text, lengths, counts = np.zeros(size, np.uint8), np.zeros(many, np.int64), np.zeros(many, np.uint64)
    kernels.write_out(words.table, 1, np.zeros(1, np.int64), np.zeros(1, np.int64), text, lengths, counts)
    ends = np.cumsum(lengths).tolist()
    return [
        (text[end - n : end].tobytes(), c) for end, n, c in zip(ends, lengths.tolist(), counts.tolist(), strict=True)
    ]


def test_little_memory_gives_the_same_merges(monkeypatch):
    monkeypatch.setattr(word_counts, "FIRST", 1 << 6)
    monkeypatch.setattr(bpe_train, "SMALLEST", 1)
    monkeypatch.setattr(bpe_merges, "LEAST_TABLES", 64)
    monkeypatch.setattr(bpe_merges, "AROUND", 1 << 10)
    monkeypatch.setattr(chunks, "CHUNK", 1 << 12)
    draw = random.Random(2)
    words = ["".join(draw.choices("abcdeé", k=draw.randrange(1, 30))) for _ in range(6000)]
    texts = [" ".join(draw.choices(words, k=300)) for _ in range(30)]
    expected = plain_bpe.train(texts, 400).merges
    reports: list[Report] = []
    for memory, threads in ((None, 2), (1 << 19, 1), (1 << 19, 2)):
        assert bpe_train.train(texts, 400, memory=memory, threads=threads, report=reports.append).merges == expected
    free, *bounded = reports
    assert free.spilled == 0
    assert all(report.spilled > 0 for report in bounded)
    assert all(report.words == free.words and report.words_total == free.words_total for report in bounded)


def test_rare_words_are_left_out_by_name_and_reported():
    texts = ["low low low", "low rare rare", "once"]
    reports: list[Report] = []
    pruned = bpe_train.train(texts, 400, special=(), prune=2, report=reports.append)
    words = {word: n for word, n in plain_bpe.count_words(texts, (), "gpt2").items() if n >= 2}
    assert list(pruned.merges) == twin_of([*words.items()], 100)
    (said,) = reports
    assert (said.words, said.words_total, said.pruned, said.pruned_total) == (4, 7, 1, 1)
    assert (said.bytes, said.spilled, said.merges) == (28, 0, len(pruned.merges))


# ---- progress and ends -----------------------------------------------------------------------------------------------


def test_progress_tells_bytes_and_then_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 256)
    path = tmp_path / "text"
    path.write_text("the cat sat on the mat, the rat ran. " * 40, encoding="utf-8")
    said: list[tuple[str, int, int | None]] = []
    (made,) = bpe_train.train_files(
        [path],
        [300],
        Plan(threads=1),
        lambda done, of: said.append(("ids", done, of)),
        lambda done, of: said.append(("bytes", done, of)),
    )
    size = path.stat().st_size
    read = [done for what, done, _ in said if what == "bytes"]
    assert [what for what, _, _ in said] == ["bytes"] * len(read) + ["ids"] * (len(said) - len(read))
    assert read == sorted(read)
    assert len(read) > 3
    assert said[len(read) - 1] == ("bytes", size, size)
    assert said[-1] == ("ids", made.size, 300)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_ends_the_run(threads):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bpe_train.train(["some text"], 300, reading=interrupt, threads=threads)
    with pytest.raises(KeyboardInterrupt):
        bpe_train.train(["some text"], 300, progress=interrupt, threads=threads)


def test_training_stops_early_when_no_pair_is_left():
    assert bpe_train.train(["ab ab"], 1000).size == 257 + 2
    assert bpe_train.train(["a"], [257, 1000])[1].size == 257


@pytest.mark.parametrize(
    ("size", "special", "texts", "says"),
    [
        (256, [END], ["text"], "257"),
        ([300, 256], [END], ["text"], "257"),
        ([], [END], ["text"], "[]"),
        (True, [], ["text"], "True"),
        (300.0, [], ["text"], "300.0"),
        (1 << 32, [], ["text"], "vocabulary size"),
        (300, [END], [], "no text"),
        (300, [END], ["", END], "no text"),
        (300, ["<a>", "<a>"], ["text"], "<a>"),
        (300, [""], ["text"], "not empty"),
        (300, ["\ud800"], ["text"], "UTF-8"),
        (300, "<a>", ["text"], "list"),
        (300, [], "text", "list of texts"),
        (300, [], [7], "int"),
        (300, [], ["x", None], "text 1"),
        (300, [], ["x", "a\udc80b"], "text 1"),
        (300, [], ["a" * (1 << 20) + "\udc80b"], "character 1048576"),
        (300, [], ["x", b"ab\xffc"], "text 1: the bytes are not UTF-8 at offset 2"),
        (300, [], [b"a " * (1 << 19) + b"\xe4\xbd"], "offset 1048576"),
    ],
)
def test_what_cannot_be_trained_is_refused(size, special, texts, says):
    with pytest.raises(TokenizerError, match=regex.escape(says)):
        bpe_train.train(texts, size, special=special)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ties": "first"}, "first"),
        ({"prune": 0}, "prune"),
        ({"memory": 1}, "memory"),
        ({"memory": True}, "memory"),
        ({"threads": 0}, "threads"),
        ({"pattern": "gtp2"}, "gpt2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(TokenizerError, match=says):
        Plan(**settings)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bad").write_bytes(b"good text " * 200 + b"\xed\xa0\x80")
    for pattern in ("gpt2", r"\S+|\s+"):
        plan = Plan(pattern=pattern)
        with pytest.raises(TokenizerError, match=r"bad.* 2000"):
            bpe_train.train_files([tmp_path / "bad"], [300], plan)
        with pytest.raises(TokenizerError, match="absent"):
            bpe_train.train_files([tmp_path / "absent"], [300], plan)
    (tmp_path / "empty").touch()
    with pytest.raises(TokenizerError, match="no text"):
        bpe_train.train_files([tmp_path / "empty"], [300], Plan())


def test_what_is_no_file_on_disk_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    holder = os.open(tmp_path / "pipe", os.O_RDWR)  # else opening it waits
    try:
        with pytest.raises(TokenizerError, match="pipe is no file on disk"):
            bpe_train.train_files([tmp_path / "pipe"], [300], Plan())
    finally:
        os.close(holder)


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "text").write_text("".join(map(chr, range(300, 20_000))), encoding="utf-8")
    monkeypatch.setattr(bpe_train, "SMALLEST", 1)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="No space"):
        bpe_train.train_files([tmp_path / "text"], [300], Plan(memory=1 << 10))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps room on the disk")
def test_a_full_disk_is_found_before_a_mapped_array_is_used(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda file, place, size: asked.append(size))
    with pytest.raises(ValueError, match="empty"):  # what a file without room cannot be mapped as
        Room(1 << 20).empty(1 << 25, np.uint8)
    assert asked == [1 << 25]
    assert Room(1 << 20).empty(1 << 10, np.uint8).size == 1 << 10


def test_more_words_than_a_line_holds_are_refused(monkeypatch):
    monkeypatch.setattr(bpe_merges, "MOST_PLACES", 20)
    assert bpe_train.train(["low lower"], 300).merges
    with pytest.raises(TokenizerError, match="prune"):
        bpe_train.train(["low lower newest widest"], 300)


# ---- slow ------------------------------------------------------------------------------------------------------------

MEASURED = """
import sys
from pathlib import Path
from temaki.tokens import bpe_train

def held():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def look(*_):
    global most
    most = max(most, held())

bpe_train.train(["low low lower newest " * 9], 300, memory=bpe_train.SMALLEST)
for memory in (None, int(sys.argv[2])):
    before = most = held()
    reports = []
    plan = bpe_train.Plan(memory=memory, threads=2)
    (made,) = bpe_train.train_files([Path(sys.argv[1])], [500], plan, look, look, reports.append)
    print(most - before, reports[0].bytes, reports[0].spilled, made.fingerprint)
    del made
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory is a process's own")
def test_memory_stays_below_its_bound_on_a_large_corpus(tmp_path):
    bound = 96 << 20
    draw = np.random.default_rng(1)
    letters = np.frombuffer(b"etaoinshrdlcumwfgypbvkjxqz", np.uint8)
    with (tmp_path / "text").open("wb") as file:
        while file.tell() < 210_000_000:
            lengths = draw.integers(3, 8, 500_000)
            text = letters[(draw.random(lengths.sum()) ** 2 * 26).astype(np.int64)]
            file.write(np.insert(text, np.cumsum(lengths), 32).tobytes())
    call = [sys.executable, "-c", MEASURED, str(tmp_path / "text"), str(bound)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    free, bounded = (line.split() for line in done.stdout.splitlines())
    assert free[3] == bounded[3]
    assert int(bounded[1]) > 210_000_000
    assert int(bounded[2]) > 0
    assert int(free[0]) > 2 * bound
    assert int(bounded[0]) < bound
