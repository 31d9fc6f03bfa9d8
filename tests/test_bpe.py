"""The compiled BPE tokenizer: the same ids as its readable twin, as tiktoken and as `tokenizers`, whatever comes."""

import base64
import gzip
import json
import random
import subprocess
import sys
import unicodedata
from itertools import chain, pairwise

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base.errors import TokenizerError
from temaki.tokens import bpe, feed, split
from temaki.tokens.bpe import Bpe
from temaki.tokens.bpe_vocabulary import Partial
from temaki.tokens.plain_bpe import PlainBpe
from temaki.tokens.tokenizer import Dropout

END = "<|endoftext|>"
laws = settings(derandomize=True, deadline=None, max_examples=60)
SCRAPS = [
    *"aabsltrevé了中文字符的一5٣ \n\t'\"!<|>E\0\u0301\u3000\u0085\u200b😀\u017f\u00a0_-=.",
    "  ", "\r\n", "'ll", "'S", "'\u017f", "the", " the", "hello", "中国", "的的", "----", "        ", "123456",
    "👩‍👩‍👧",
    "нет", "क्षि", "x" * 20, "ab" * 40, "你好世界和平", "\ufffd", "\ue000", "\U000e0001", "İ", "ß", "ﬁ", END, "<s>",
]  # fmt: skip
nasty = st.lists(st.sampled_from(SCRAPS), max_size=30).map("".join)


def nasty_text(draw: random.Random) -> str:
    """Scraps, and code points from anywhere but surrogates."""
    parts: list[str] = []
    for _ in range(draw.randrange(24)):
        if draw.random() < 0.8:
            parts.append(draw.choice(SCRAPS) * draw.choice((1, 1, 1, 2, 7)))
        else:
            point = draw.choice(
                (draw.randrange(0xD800), draw.randrange(0xE000, 0x110000), draw.randrange(0x3000, 0xA000))
            )
            parts.append(chr(point))
    return "".join(parts)


def settled(text: str) -> str:
    """Without the letters and numbers that Unicode got lately: other tokenizers have older tables."""
    return "".join(c for c in text if unicodedata.category(c) != "Cn" or not regex.match(r"[\p{L}\p{N}]", c))


def random_tokens(seed: int, size: int) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Tokens and merges in an order that no corpus would give, across joints of characters too; all bytes first."""
    draw = random.Random(seed)
    tokens = [bytes([value]) for value in range(256)]
    parts = [*b"abt hle", *"了中的".encode(), *"é😀".encode()]
    known = [bytes([value]) for value in parts]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(20 * size):
        left, right = draw.choice(known), draw.choice(known)
        if len(merges) < size and left + right not in known and len(left + right) < 40:
            merges.append((left, right))
            known.append(left + right)
    tokens += [left + right for left, right in merges]
    return tokens, merges


def both(*arguments: object, **named: object) -> tuple[Bpe, PlainBpe]:
    return Bpe(*arguments, **named), PlainBpe(*arguments, **named)  # type: ignore[arg-type]


# ---- the twin ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [*split.PATTERNS, r"\S+|\s+"])
@pytest.mark.parametrize("rule", ["merges", "whole", "ranks"])
def test_compiled_is_the_twin_on_random_vocabularies(pattern, rule):
    draw = random.Random(f"{pattern} {rule}")
    for seed in range(4):
        tokens, merges = random_tokens(seed, 120)
        if seed % 2:
            tokens.insert(256, b"")  # a hole
            tokens += [" 的的".encode(), b"hello", b"x" * 20, b"nobody makes this of merges"]
        tokens.append(b"<s>")
        given_merges = None if rule == "ranks" else merges
        fast, slow = both(tokens, given_merges, {"<s>": len(tokens) - 1}, pattern, rule != "merges", remember=300)
        for _ in range(60):
            text = nasty_text(draw)
            special = draw.choice(([], ["<s>"]))
            assert fast.encode(text, special).tolist() == slow.encode(text, special).tolist(), text


def test_several_splits_of_one_token_and_parts_that_come_later():
    tokens = [*(bytes([value]) for value in range(256)), b"ab", b"bc", b"abc", b"abcd", b"cd"]
    merges = [(b"ab", b"c"), (b"a", b"bc"), (b"b", b"c"), (b"abc", b"d"), (b"a", b"b"), (b"c", b"d"), (b"ab", b"cd")]
    fast, slow = both(tokens, merges, {})
    for text in ("abc", "abcd", "aabbccdd", "abcabcd", "bcd", "abababcdcd"):
        assert fast.encode(text).tolist() == slow.encode(text).tolist()


@pytest.mark.timeout(120)
def test_a_token_of_a_million_bytes_is_no_standstill():
    body = random.Random(1).randbytes(1_000_000)
    tokens = [*(bytes([value]) for value in range(256)), body, body[:500_000], body[500_000:]]
    assert Bpe(tokens, None, {}).encode_list("ab") == [97, 98]


@pytest.mark.parametrize("count", [80, 100])
def test_a_long_piece_is_not_taken_for_a_pre_token(count):
    """A token that merges do not make, of 240 and 300 bytes: taken as it is alone, never as a part of a longer word."""
    long = "".join(chr(0x4E00 + 7 * i) for i in range(count))
    fast, slow = both([*(bytes([value]) for value in range(256)), long.encode()], None, {})
    for text in (long, "龥" + long, long + "龥", "a " + long, long + " a"):
        assert fast.encode(text).tolist() == slow.encode(text).tolist()
    assert len(fast.encode("龥" + long)) == 3 * count + 3


@laws
@given(nasty, st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans())
def test_dropout_is_the_twins_dropout(text, place, drop, own):
    tokens, merges = random_tokens(7, 150)
    fast, slow = both([*tokens, b"<s>"], merges, {"<s>": len(tokens)}, r"\S+|\s+" if own else "cl100k")
    noise = Dropout(5, place, drop)
    ids = fast.encode(text, ["<s>"], noise)
    assert ids.tolist() == slow.encode(text, ["<s>"], noise).tolist()
    assert fast.decode(ids, errors="strict") == text
    if drop == 0:
        assert ids.tolist() == fast.encode(text, ["<s>"]).tolist()
    if drop == 1 and "<s>" not in text:
        assert fast.decode_bytes(ids) == text.encode()
        assert len(ids) == len(text.encode())


def test_dropout_has_the_probabilities_of_its_definition():
    """Of "abc" with merges ab, bc, abc: a step leaves each possible merge out with probability 1/2."""
    tokens = [*(bytes([value]) for value in range(256)), b"ab", b"bc", b"abc"]
    tokenizer = Bpe(tokens, [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")], {})
    found = [tuple(tokenizer.encode("abc", noise=Dropout(1, place, 0.5)).tolist()) for place in range(4000)]
    expected = {(97, 98, 99): 1 / 4, (258,): 1 / 4, (256, 99): 1 / 4, (97, 257): 1 / 4}
    square = sum((found.count(ids) - 4000 * p) ** 2 / (4000 * p) for ids, p in expected.items())
    assert set(found) == set(expected)
    assert square < 16.3  # 0.999 of chi-square with 3 degrees of freedom


@pytest.mark.parametrize("remember", [0, 1, 10, 300])
def test_a_small_memory_gives_the_same_ids(remember):
    tokens, merges = random_tokens(3, 200)
    fast, small = Bpe(tokens, merges, {}), Bpe(tokens, merges, {}, remember=remember)
    draw, made = random.Random(9), small._encoder._memory
    for _ in range(100):
        text = nasty_text(draw) * 3
        assert small.encode(text).tolist() == fast.encode(text).tolist()
        used = int(small._encoder._memory.state[0])
        assert used <= len(tokens) + remember
        assert remember or small._encoder._memory is made


# ---- calls -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Bpe:
    tokens, merges = random_tokens(11, 300)
    return Bpe(
        [*tokens, b"<s>", b"<s>s", END.encode()],
        merges,
        {"<s>": len(tokens), "<s>s": len(tokens) + 1, END: len(tokens) + 2},
    )


@laws
@given(st.data(), nasty, st.booleans(), st.integers(1, 40), st.booleans())
def test_any_chunks_are_the_whole_text(data, text, as_bytes, block, own):
    tokens, merges = random_tokens(11, 60)
    tokenizer = Bpe(
        [*tokens, b"<s>", END.encode()],
        merges,
        {"<s>": len(tokens), END: len(tokens) + 1},
        r"a+$|.|\s" if own else "o200k",
    )
    whole = text.encode() if as_bytes else text
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=6).map(sorted))
    chunks = [whole[a:b] for a, b in pairwise([0, *cuts, len(whole)])]
    tokenizer._buffers = feed.Buffers(block)
    for special in ([], ["<s>", END]):
        parts = [ids.tolist() for ids in tokenizer.encode_iterable(chunks, special)]
        joined = list(chain.from_iterable(parts))
        assert joined == PlainBpe.of(tokenizer.facts()).encode_list(text, special)
        assert joined == tokenizer.encode_list(text, special)


def test_threads_do_not_change_the_ids(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(bpe, "MANY", 1)
    tokenizer._buffers = tokenizer._large_buffers = feed.Buffers(2_000)
    draw = random.Random(4)
    texts = [nasty_text(draw) * draw.choice((0, 1, 1, 400)) for _ in range(60)]
    mixed = [text.encode() if i % 3 == 0 else text for i, text in enumerate(texts)]
    one = tokenizer.encode_batch(mixed, ["<s>", "<s>s"], threads=1)
    for threads in (2, 3):
        several = tokenizer.encode_batch(mixed, ["<s>", "<s>s"], threads=threads)
        assert np.array_equal(several.ids, one.ids)
        assert np.array_equal(several.offsets, one.offsets)
    for i, text in enumerate(texts):
        assert one.ids[one.offsets[i] : one.offsets[i + 1]].tolist() == tokenizer.encode_list(text, ["<s>", "<s>s"])
    whole = "".join(texts)
    path = tmp_path / "text"
    path.write_bytes(whole.encode())
    expected = tokenizer.encode(whole, [END], threads=1).tolist()
    for threads in (1, 2):
        assert tokenizer.encode(whole, [END], threads=threads).tolist() == expected
        assert tokenizer.encode_file(path, [END], threads=threads).tolist() == expected


def test_more_ids_than_one_array_holds(tokenizer, monkeypatch):
    text = "the hello 了中的 " * 3000
    expected = tokenizer.encode(text, threads=1).tolist()
    monkeypatch.setattr(bpe, "PIECE", 5000)
    tokenizer._buffers = feed.Buffers(2_000)
    assert tokenizer.encode(text, threads=1).tolist() == expected


@laws
@given(st.lists(st.one_of(nasty, nasty.map(str.encode)), max_size=8), st.integers(1, 60))
def test_a_batch_is_its_texts(texts, block):
    tokens, merges = random_tokens(11, 60)
    tokenizer = Bpe([*tokens, END.encode()], merges, {END: len(tokens)})
    tokenizer._buffers = feed.Buffers(block)
    ragged = tokenizer.encode_batch(texts, [END])
    assert (ragged.ids.dtype, ragged.offsets.dtype, len(ragged.offsets)) == (np.uint32, np.int64, len(texts) + 1)
    for i, text in enumerate(texts):
        whole = text.decode() if isinstance(text, bytes) else text
        assert ragged.ids[ragged.offsets[i] : ragged.offsets[i + 1]].tolist() == tokenizer.encode_list(whole, [END])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: t.encode_batch([b"\xe4\xbd", b"\xa0"]), "text 0.*offset 0"),
        (lambda t: t.encode_batch(["a", b"\xa0"]), "text 1.*offset 0"),
        (lambda t: t.encode_batch(["a", 7]), "text 1"),
        (lambda t: t.encode_batch(["a", "b" * 600_000 + "\ud800"]), "text 1.*character 600000"),
        (lambda t: t.encode("b" * 600_000 + "\ud800"), "character 600000"),
        (lambda t: list(t.encode_iterable(["é" * 600_000, "a\udfff"])), "character 600001"),
        (lambda t: list(t.encode_iterable([b"a" * 600_000, b"\xff"])), "offset 600000"),
        (lambda t: list(t.encode_iterable([b"a\xe4\xbd", "b"])), "offset 1"),
        (lambda t: t.decode(np.array([0, 1 << 31], np.uint32)), "place 1"),
        (lambda t: t.decode([0, 1, 600]), "place 2"),
        (lambda t: t.decode([[0], [1, 2]]), "flat list"),
        (lambda t: t.encode_batch(["a"], threads=-1), "threads"),
        (lambda t: t.encode("a", noise=Dropout(1, 2, 1.5)), "probability"),
    ],
)
def test_what_cannot_be_encoded_or_decoded_is_named(tokenizer, call, says):
    with pytest.raises(TokenizerError, match=f"(?s){says}"):
        call(tokenizer)


def test_a_hole_stands_for_nothing():
    tokens = [*(bytes([value]) for value in range(256)), b"", b"ab"]
    tokenizer = Bpe(tokens, [(b"a", b"b")], {})
    assert tokenizer.encode_list("ab") == [257]
    for call in (lambda: tokenizer.decode([97, 256]), lambda: tokenizer.token(256)):
        with pytest.raises(TokenizerError, match="256"):
            call()


@laws
@given(nasty)
def test_decoding_gives_the_text_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, errors="strict") == text
    assert tokenizer.decode(ids.astype(np.int64)) == tokenizer.decode(ids.tolist()) == text
    assert tokenizer.decode_bytes(np.repeat(ids, 2)[::2]) == text.encode()
    doubled = [id for id in ids.tolist() for _ in range(2)]
    assert tokenizer.decode_bytes(doubled) == b"".join(tokenizer.token(id) for id in doubled)


@pytest.mark.parametrize("word", ["a", "ab", "了", " ", "中的", "\n", "hello", "'", "1"])
def test_a_word_without_an_end_is_quick(tokenizer, word):
    """A quadratic way would take hours."""
    text = word * (400_000 // len(word))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_encoder_is_shared_by_threads_that_fill_it(tokenizer):
    from concurrent.futures import ThreadPoolExecutor

    tokens, merges = random_tokens(11, 300)
    texts = ["".join(random.Random(i).choices("abt hle了中", k=3000)) for i in range(40)]
    expected = [PlainBpe(tokens, merges, {}).encode_list(text) for text in texts]
    for remember in (50, 1000, 100_000):
        shared = Bpe(tokens, merges, {}, remember=remember)
        shared.encode("")
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(shared.encode_list, texts)) == expected


# ---- other tokenizers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2_files(data):
    """The release's vocabulary and lines of merges."""
    vocabulary = json.loads(gzip.decompress(data("gpt2_bpe/encoder.json.gz").read_bytes()))
    return vocabulary, data("gpt2_bpe/vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]


@pytest.fixture(scope="module")
def gpt2(gpt2_files) -> Bpe:
    vocabulary, lines = gpt2_files
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [value for value in range(256) if value not in kept]
    table = {chr(value): value for value in kept} | {chr(256 + n): value for n, value in enumerate(moved)}
    merges = [tuple(bytes(table[c] for c in part) for part in line.split(" ")) for line in lines]
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = [token.encode() if token == END else bytes(table[c] for c in token) for token in by_id]
    return Bpe(tokens, merges, {END: vocabulary[END]})  # type: ignore[arg-type]


def test_gpt2_values(gpt2):
    assert gpt2.encode_list("Not all heroes wear capes.") == [3673, 477, 10281, 5806, 1451, 274, 13]
    assert [gpt2.token(id) for id in gpt2.encode("zjqfl")] == [b"z", b"j", b"q", b"fl"]
    assert (gpt2.size, gpt2.encode_list(END, [END])) == (50_257, [50_256])


def hf_gpt2(gpt2_files):
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    vocabulary, lines = gpt2_files
    model = {"type": "BPE", "vocab": vocabulary, "merges": lines, "dropout": None, "unk_token": None,
             "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
             "byte_fallback": False}  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
               "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}  # fmt: skip
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def tiktoken_of(tokenizer: Bpe):
    tiktoken = pytest.importorskip("tiktoken", reason="the tiktoken package is not installed")
    ranks = dict(tokenizer.vocabulary.ids)
    pattern = split.named(tokenizer.pattern).expression
    return tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens=dict(tokenizer.special))


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_ids_are_those_of_tokenizers(gpt2, gpt2_files, count):
    other, draw = hf_gpt2(gpt2_files), random.Random(1)
    texts = [settled(nasty_text(draw)) for _ in range(count)]
    ragged = gpt2.encode_batch(texts)
    for i, found in enumerate(other.encode_batch(texts)):
        assert ragged.ids[ragged.offsets[i] : ragged.offsets[i + 1]].tolist() == found.ids, texts[i]


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_ids_are_those_of_tiktoken(gpt2, count):
    other, draw = tiktoken_of(gpt2), random.Random(2)
    for _ in range(count):
        text = settled(nasty_text(draw))
        assert gpt2.encode_list(text) == other.encode_ordinary(text), text
        assert gpt2.encode_list(text, [END]) == other.encode(text, allowed_special={END}), text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern"), [("cl100k_base", "cl100k"), ("o200k_base", "o200k")])
def test_ids_of_larger_vocabularies_are_those_of_tiktoken(name, pattern, ranks):
    content = json.loads((ranks / f"{name}.json").read_text(encoding="utf-8"))
    tokens = [b""] * (max(content["special_tokens"].values()) + 1)
    for line in content["bpe_ranks"].splitlines():
        _, first, *encoded = line.split(" ")
        for id, token in enumerate(encoded, int(first)):
            tokens[id] = base64.b64decode(token)
    for text, id in content["special_tokens"].items():
        tokens[id] = text.encode()
    tokenizer = Bpe.from_ranks(tokens, content["special_tokens"], pattern)
    other, draw = tiktoken_of(tokenizer), random.Random(3)
    for _ in range(100_000):
        text = settled(nasty_text(draw))
        assert tokenizer.encode_list(text) == other.encode_ordinary(text), text


# ---- memory ------------------------------------------------------------------------------------------------

STREAM = """
import resource, sys
from pathlib import Path
from temaki.tokens import bpe
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokenizer = bpe.from_merges([(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b"a", b"n")])
def chunks(size):
    line = 0
    while size > 0:
        numbers = range(line, line + 2000)
        text = "".join(f"the line {n} and another {n * 7919 % 100003:x} of them\\n" for n in numbers).encode()
        line += 2000
        size -= len(text)
        yield text
for _ in tokenizer.encode_iterable(chunks(1 << 20)): pass
before = peak()
read = 0
for ids in tokenizer.encode_iterable(chunks(1 << 30)): read += len(ids)
print((peak() - before) // 1024, read)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_a_stream_of_a_gigabyte_needs_little_memory():
    done = subprocess.run([sys.executable, "-c", STREAM], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    megabytes, read = map(int, done.stdout.split())
    assert read > 1 << 28
    assert megabytes < 64


@pytest.mark.parametrize("partial", ["before", "after"])
@pytest.mark.parametrize("pattern", ["gpt2", "llama3", r"\S+|\s+"])
def test_bytes_without_a_token_are_left_out_however_a_text_comes(pattern: str, partial: Partial) -> None:
    """Before merging neighbours are joined, after it they are not; bytes inside of characters too."""
    absent = {bytes([value]) for value in (0, 0x20, 0x61, 0xBD, 0xE4)}
    tokens = [bytes([value]) for value in range(256) if bytes([value]) not in absent] + [b"!!", b"bb", END.encode()]
    words = Bpe(tokens, [(b"!", b"!"), (b"b", b"b")], {END: len(tokens) - 1}, pattern, partial=partial)
    assert words.tokens[words.encode_list("!\0!")[0]] == (b"!!" if partial == "before" else b"!")
    assert words.encode_list("!\0!", ()) == words.encode("!\0!", noise=Dropout(seed=1, place=0, drop=0)).tolist()
    assert Bpe.of(words.facts()).fingerprint == words.fingerprint
    draw = random.Random(5)
    texts = ["", "\0", " \0 a", "bab", f"b{END}\0b", *(nasty_text(draw) for _ in range(60))]
    found = [words.encode_list(text, {END}) for text in texts]
    for text, ids in zip(texts, found, strict=True):
        parts = [text[at : at + 3] for at in range(0, len(text), 3)]
        assert [id for piece in words.encode_iterable(parts, {END}) for id in piece] == ids
    batch = words.encode_batch(texts, {END})
    assert [batch.ids[one:two].tolist() for one, two in pairwise(batch.offsets)] == found
    long = "".join(texts) * 30
    assert words.encode(long, {END}, threads=1).tolist() == words.encode(long, {END}, threads=2).tolist()


def test_a_vocabulary_with_all_bytes_is_not_partial() -> None:
    tokens = [bytes([value]) for value in range(256)]
    assert Bpe(tokens, [], {}, partial="after").fingerprint == Bpe(tokens, [], {}).fingerprint
    with pytest.raises(TokenizerError, match="before, after"):
        Bpe.of(Bpe(tokens, [], {}).facts() | {"partial": "never"})
