"""Byte-level BPE and its splitting, against slow oracles written from the definition."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base.errors import TokenizerError
from temaki.tokens import bpe, bpe_train, feed, plain_bpe, split
from temaki.tokens.pairs import PairTable
from temaki.tokens.tokenizer import Sampling, TextStream

END = "<|endoftext|>"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
laws = settings(derandomize=True, deadline=None, max_examples=150)
unicode = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
tricky = st.text(st.sampled_from([*"aabsltrevé了5٣ \n\t'\"!<|>E\0\u0301\u3000\u0085\u200b😀"]), max_size=60)

# ---- oracles: no tables, no heaps, everything counted anew -------------------------------------------------


def apply(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def recount(words: Iterable[tuple[list[bytes], int]]) -> Counter[tuple[bytes, bytes]]:
    counts: Counter[tuple[bytes, bytes]] = Counter()
    for word, count in words:
        for pair in pairwise(word):
            counts[pair] += count
    return counts


def slow_merges(words: Iterable[tuple[bytes, int]], most: int) -> list[tuple[bytes, bytes]]:
    table = [([word[i : i + 1] for i in range(len(word))], count) for word, count in words]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < most and (counts := recount(table)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        table = [(apply(word, best), count) for word, count in table]
    return merges


def slow_encode(word: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    tokens = [word[i : i + 1] for i in range(len(word))]
    while True:
        ranked = [pair for pair in pairwise(tokens) if pair in merges]
        if not ranked:
            return tokens
        tokens = apply(tokens, min(ranked, key=merges.index))


def fast_merges(words: Iterable[tuple[bytes, int]], most: int) -> list[tuple[bytes, bytes]]:
    table = PairTable(words)
    merges = []
    while len(merges) < most and (pair := table.best()) is not None:
        merges.append((table.tokens[pair[0]], table.tokens[pair[1]]))
        table.merge(pair)
    return merges


def random_vocabulary(seed: int, size: int) -> list[tuple[bytes, bytes]]:
    """Merges in an order that no corpus would give."""
    draw = random.Random(seed)
    tokens = [b"a", b"b", b"c"]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < size:
        left, right = draw.choice(tokens), draw.choice(tokens)
        if left + right not in tokens:
            merges.append((left, right))
            tokens.append(left + right)
    return merges


# ---- training: values --------------------------------------------------------------------------------------


def test_merges_of_the_toy_corpus():
    words = [(b"low", 5), (b"lower", 2), (b"widest", 3), (b"newest", 6)]
    said = "s t, e st, o w, l ow, w est, n e, ne west, w i, wi d, wid est, low e, lowe r"
    expected = [tuple(pair.encode().split()) for pair in said.split(", ")]
    assert fast_merges(words, 100) == expected
    six = bpe.from_merges(fast_merges(words, 6))
    assert [six.token(id) for id in six.encode("newest")] == [b"ne", b"west"]


def test_ties_go_to_the_greatest_pair_of_bytes():
    words = [(b"AB", 1), (b"AC", 1), (b"BAA", 1), (b"BZZ", 1)]
    table = PairTable([])
    table.tokens += [b"ZZ", b"BA"]
    table = PairTable([(b"BA", 9), (b"ZZ", 9), *words])
    for _ in range(2):  # (Z, Z), then (B, A)
        pair = table.best()
        assert pair is not None
        table.merge(pair)
    assert [table.tokens[-2:], table.counts[257, ord("A")]] == [[b"ZZ", b"BA"], 1]
    pair = table.best()
    assert pair is not None
    assert (table.tokens[pair[0]], table.tokens[pair[1]]) == (b"BA", b"A")  # over (A,B), (A,C) and (B,ZZ)


def test_ties_prefer_the_longer_token_and_high_bytes():
    assert fast_merges([(b"ab", 1), (b"ac", 1), (b"\xffa", 1)], 1) == [(b"\xff", b"a")]
    assert fast_merges([(b"abc", 2), (b"ax", 2)], 2) == [(b"b", b"c"), (b"a", b"x")]
    assert fast_merges([(b"ab", 3), (b"abz", 1), (b"az", 1)], 2)[1] == (b"ab", b"z")


def test_overlaps_are_counted_but_replaced_once():
    assert fast_merges([(b"aaaa", 3), (b"aab", 2)], 9) == [(b"a", b"a"), (b"aa", b"aa"), (b"aa", b"b")]


def test_training_meets_the_reference_of_the_course(data):
    text = data("bpe_fixtures/corpus.en").read_text(encoding="utf-8")
    printable = printable_table()
    said = data("bpe_fixtures/train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(bytes(printable[c] for c in part) for part in line.split(" ")) for line in said]
    tokenizer = bpe_train.train([text], 500)
    assert list(tokenizer.merges) == merges
    assert len(merges) == 243
    assert merges[:3] + merges[-1:] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e"), (b" ", b"ver")]
    vocabulary = json.loads(data("bpe_fixtures/train-bpe-reference-vocab.json").read_text(encoding="utf-8"))
    expected = {token.encode() if token == END else bytes(printable[c] for c in token) for token in vocabulary}
    assert set(tokenizer.tokens) == expected
    assert len(tokenizer.encode(text)) == 63_656
    larger = bpe_train.train([text], 2_000)
    assert larger.size == 2_000
    assert len(larger.encode(text)) == 39_363
    assert larger.decode(larger.encode(text)) == text


def printable_table() -> dict[str, int]:
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [value for value in range(256) if value not in kept]
    return {chr(value): value for value in kept} | {chr(256 + n): value for n, value in enumerate(moved)}


# ---- training: laws ----------------------------------------------------------------------------------------


@laws
@given(st.lists(st.tuples(st.text("aab\u00e9", min_size=1, max_size=12), st.integers(1, 4)), max_size=8))
def test_incremental_counts_are_a_full_recount_and_the_heap_is_a_scan(words):
    encoded = [(word.encode(), count) for word, count in words]
    table = PairTable(encoded)
    slow = [([word[i : i + 1] for i in range(len(word))], count) for word, count in encoded]
    while True:
        now = [([table.tokens[id] for id in word], count) for word, count in table.words()]
        assert now == slow
        counts = {(table.tokens[a], table.tokens[b]): n for (a, b), n in table.counts.items() if n}
        assert counts == recount(slow)
        pair = table.best()
        if pair is None:
            assert not counts
            break
        best = (table.tokens[pair[0]], table.tokens[pair[1]])
        assert best == max(counts, key=lambda pair: (counts[pair], pair))
        table.merge(pair)
        slow = [(apply(word, best), count) for word, count in slow]


@pytest.mark.parametrize("seed", range(5))
def test_training_is_the_definition_with_and_without_a_word_table(seed):
    draw = random.Random(seed)
    text = "".join(draw.choice("aaabbc é\n'l") for _ in range(1500))
    words = [word.encode() for word in regex.findall(GPT2, text)]
    each = slow_merges(((word, 1) for word in words), 40)
    assert slow_merges(Counter(words).items(), 40) == each
    assert list(bpe_train.train([text], 296, special=()).merges) == each
    assert fast_merges(((word, 1) for word in words), 40) == each


def test_special_tokens_are_not_counted_and_nothing_merges_across_them():
    with_special = bpe_train.train([f"ab{END}ab{END}"], 400)
    assert with_special.merges == ((b"a", b"b"),)
    assert bpe_train.train(["a<s>a<s>", "a"], 300, special=["<s>"]).size == 257
    overlapping = bpe_train.train(["xx<s><s>xx<s>xx"], 300, special=["<s>", "<s><s>"])
    assert overlapping.merges == ((b"x", b"x"),)


@laws
@given(st.lists(tricky, min_size=1, max_size=3))
def test_every_token_but_the_specials_is_encoded_as_itself(texts):
    try:
        tokenizer = bpe_train.train(texts, 300, special=["<|E|>", "a"])
    except TokenizerError:
        return
    for id in range(2, tokenizer.size):
        assert tokenizer.id(tokenizer.token(id)) == id
    for left, right in tokenizer.merges:
        assert slow_encode(left + right, list(tokenizer.merges)) == [left + right]


def test_training_stops_early_when_no_pair_is_left_and_says_how_far_it_is():
    seen: list[tuple[int, int]] = []
    twin = plain_bpe.train(["ab ab"], 1000, progress=lambda done, size: seen.append((done, size)))
    assert twin.size == 257 + 2
    assert seen == [(258, 1000), (259, 1000)]
    seen.clear()
    tokenizer = bpe_train.train(["ab ab"], 1000, progress=lambda done, size: seen.append((done, size)))
    assert tokenizer.size == 257 + 2
    assert seen == sorted(seen)
    assert {size for _, size in seen} == {1000}
    assert 257 <= seen[0][0] <= seen[-1][0] <= 259


@pytest.mark.parametrize(
    ("size", "special", "texts", "says"),
    [
        (256, [END], ["text"], "257"),
        (True, [], ["text"], "True"),
        (300.0, [], ["text"], "300.0"),
        (1 << 32, [], ["text"], "vocabulary size"),
        (300, [END], [], "no text"),
        (300, [END], ["", END], "no text"),
        (300, ["<a>", "<a>"], ["text"], "<a>"),
        (300, [""], ["text"], "not empty"),
        (300, [7], ["text"], "7"),
        (300, ["\ud800"], ["text"], "UTF-8"),
        (300, "<a>", ["text"], "list"),
        (300, [], "text", "list of texts"),
        (300, [], [7], "int"),
        (300, [], [b"a\xff"], "UTF-8"),
        (300, [], ["a\udc80b"], "character 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(size, special, texts, says):
    with pytest.raises(TokenizerError, match=regex.escape(says)):
        bpe_train.train(texts, size, special=special)


# ---- splitting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("some text that i'll pre-tokenize", "some| text| that| i|'ll| pre|-|tokenize"),
        ("Hello   world  \n\nI've 2024 了", "Hello|  | world|  \n|\n|I|'ve| 2024| 了"),
        ("", ""),
    ],
)
def test_pretokens_of_gpt2(text, words):
    assert split.Splitter("gpt2").words(text) == [word for word in words.split("|") if word]


@laws
@given(st.one_of(unicode, tricky))
def test_pretokens_are_the_pattern_s_matches(text):
    assert split.Splitter("gpt2").words(text) == regex.findall(GPT2, text)


@laws
@given(tricky, st.sampled_from([r"\p{L}+", r"a|\b", r"x*", r"(a)(b)?|s", r" ?[^ ]+"]))
def test_an_own_pattern_loses_nothing(text, pattern):
    words = split.Splitter(pattern).words(text)
    assert "".join(words) == text
    assert all(words)
    tokenizer = bpe.from_merges([(b"a", b"b")], pattern=pattern)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("gtp2", "gpt2"),
        ("", "unknown"),
        ("(", "regular expression"),
        ("(?a)(?u)x", "regular expression"),
        ("(" * 9_000, "regular expression"),
        ("(?r)a+", "backwards"),
    ],
)
def test_a_pattern_that_is_none_is_refused(pattern, says):
    with pytest.raises(TokenizerError, match=says):
        bpe.from_merges([], pattern=pattern)


@laws
@given(tricky, tricky)
def test_a_cut_is_safe_whatever_follows(text, rest):
    splitter = split.Splitter("gpt2")
    special = ["<|E|>", "<|E|>E", " a"]
    whole = tokens_of(splitter, text + rest, special)
    cut = splitter._last_cut(text, special)
    assert tokens_of(splitter, text[:cut], special) + tokens_of(splitter, (text + rest)[cut:], special) == whole


def tokens_of(splitter: split.Splitter, text: str, special: list[str]) -> list[tuple[str, bool]]:
    out: list[tuple[str, bool]] = []
    for part, is_special in split.parts(text, special):
        out += [(part, True)] if is_special else [(word, False) for word in splitter.words(part)]
    return out


def test_each_change_of_class_is_found_as_a_cut():
    splitter = split.Splitter("gpt2")
    for text, cut in [
        ("ab c", 2),
        ("ab!", 2),
        ("!!ab", 2),
        ("a'll", 1),
        ("12ab", 2),
        ("ab  ", 2),
        ("aaaa", 0),
    ]:
        assert splitter._last_cut(text, ()) == cut
    assert splitter._last_cut("x<s>y", ["<s>"]) == 4
    assert splitter._last_cut("x y<s", ["<s>"]) == 1


# ---- encoding ----------------------------------------------------------------------------------------------


def test_encoding_example_with_a_layout_of_its_own():
    tokens = [b" ", b"a", b"c", b"e", b"h", b"t", b"th", b" c", b" a", b"the", b" at"]
    tokens += [bytes([value]) for value in range(256) if bytes([value]) not in tokens]
    merges = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]
    tokenizer = bpe.Bpe(tokens, merges, {})
    assert tokenizer.encode_list("the cat ate") == [9, 7, 1, 5, 10, 3]


def test_gpt2_ids_with_gpt2_files(data):
    import gzip

    table = printable_table()
    vocabulary = json.loads(gzip.decompress(data("gpt2_bpe/encoder.json.gz").read_bytes()))
    lines = data("gpt2_bpe/vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(bytes(table[c] for c in part) for part in line.split(" ")) for line in lines]
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = [token.encode() if token == END else bytes(table[c] for c in token) for token in by_id]
    tokenizer = bpe.Bpe(tokens, merges, {END: vocabulary[END]})
    assert tokenizer.size == 50_257
    assert tokenizer.encode_list("Not all heroes wear capes.") == [3673, 477, 10281, 5806, 1451, 274, 13]
    assert [tokenizer.token(id) for id in tokenizer.encode("zjqfl")] == [b"z", b"j", b"q", b"fl"]
    assert tokenizer.encode_list(END, special=[END]) == [50_256]


def test_special_tokens_come_first_then_bytes():
    tokenizer = bpe.from_merges([])
    assert tokenizer.encode_list(bytes([32, 12, 5]).decode()) == [33, 13, 6]
    assert tokenizer.special == {END: 0}
    assert [tokenizer.token(value + 1) for value in range(256)] == [bytes([value]) for value in range(256)]
    assert [tokenizer.id(bytes([value])) for value in range(256)] == list(range(1, 257))


@laws
@given(st.integers(0, 10**6), st.integers(0, 25), st.text("abc", max_size=60))
def test_encoding_is_the_definition_on_random_vocabularies(seed, size, text):
    merges = random_vocabulary(seed, size)
    tokenizer = bpe.from_merges(merges, special=())
    assert [tokenizer.token(id) for id in tokenizer.encode(text)] == slow_encode(text.encode(), merges)


@laws
@given(st.one_of(unicode, tricky))
def test_encoding_is_the_definition_on_any_text(text):
    tokenizer = trained()
    expected = [
        token for word in regex.findall(GPT2, text) for token in slow_encode(word.encode(), list(tokenizer.merges))
    ]
    assert [tokenizer.token(id) for id in tokenizer.encode(text)] == expected


def trained(special: tuple[str, ...] = (END,)) -> bpe.Bpe:
    text = "the thé 'll  \n\n 了了 a's aab<|E|>! " * 3 + "bab aba éé 😀😀 <|E|>"
    return bpe_train.train([text], 256 + len(special) + 30, special)


@laws
@given(st.one_of(unicode, tricky, st.just("😀\0" + END + " \ufeff" + END)))
def test_round_trip(text):
    tokenizer = trained()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint32
    assert 0 not in ids.tolist()  # no special token arises unasked
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode(text, special=[END]), errors="strict") == text
    assert tokenizer.encode_list(text) == ids.tolist()
    forgetful = bpe.Bpe(tokenizer.tokens, tokenizer.merges, tokenizer.special, remember=1)
    assert forgetful.encode_list(text) == ids.tolist()


def test_special_tokens_arise_only_where_asked_and_the_longest_wins():
    tokenizer = trained(("<s>", "<s><s>", "<|E|>"))
    text = "<s><s><s>a<|E|>"
    assert tokenizer.encode_list(text, special=["<s>", "<s><s>", "<|E|>"]) == [1, 0, ord("a") + 3, 2]
    assert tokenizer.encode_list(text, special=["<s>"])[:3] == [0, 0, 0]
    assert not {0, 1, 2} & set(tokenizer.encode_list(text))
    assert tokenizer.decode([1, 0, ord("a") + 3, 2]) == text


def test_a_batch_is_its_texts():
    tokenizer = trained()
    texts = ["the", "", f"a{END}", "了".encode(), b""]
    ragged = tokenizer.encode_batch(texts, special=[END])
    assert (ragged.ids.dtype, ragged.offsets.dtype) == (np.uint32, np.int64)
    for i, text in enumerate(texts):
        whole = text.decode() if isinstance(text, bytes) else text
        ids = ragged.ids[ragged.offsets[i] : ragged.offsets[i + 1]]
        assert ids.tolist() == tokenizer.encode_list(whole, special=[END])
    assert tokenizer.encode_batch([]).offsets.tolist() == [0]


@laws
@given(tricky, st.lists(st.integers(0, 80), max_size=6), st.booleans(), st.integers(1, 20))
def test_chunks_are_the_whole_text(text, cuts, as_bytes, block):
    special = ["<|E|>", "<|E|>E", "\n "]
    tokenizer = trained(tuple(special))
    whole = text.encode() if as_bytes else text
    at = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    chunks = [whole[a:b] for a, b in pairwise(at)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split, "BLOCK", block)
        for asked in (special, []):
            parts = list(tokenizer.encode_iterable(chunks, special=asked))
            patch.setattr(split, "BLOCK", 1 << 16)
            expected = tokenizer.encode_list(text, special=asked)
            patch.setattr(split, "BLOCK", block)
            assert [id for part in parts for id in part.tolist()] == expected
            assert tokenizer.encode_list(text, special=asked) == expected


def test_chunks_of_an_own_pattern_are_the_whole_text():
    tokenizer = bpe.from_merges([(b"a", b"a")], special=["<s>"], pattern=r"a+$|.")
    chunks = ["aaa", "a<", "s>a", "aa"]
    parts = list(tokenizer.encode_iterable(chunks, special=["<s>"]))
    assert np.concatenate(parts).tolist() == tokenizer.encode_list("aaaa<s>aaa", special=["<s>"])


def test_memory_of_chunks_is_bounded():
    """Each block leaves before much more is read, so that a text without end can be encoded."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1000
            yield "the cat " * 125

    tokenizer = trained()
    for number, _ in enumerate(tokenizer.encode_iterable(endless()), start=1):
        assert read <= (number + 1) * (feed.BLOCK + 1000)
        if number == 10:
            break


def test_a_run_without_a_cut_is_looked_at_a_few_times():
    splitter = split.Splitter("gpt2")
    looked: list[int] = []

    def look(text: str, special: list[str]) -> int:
        looked.append(len(text))
        return 0

    splitter._last_cut = look  # type: ignore[method-assign]
    chunks = ["a" * (split.BLOCK // 4)] * 4 * 100
    assert list(splitter.blocks(chunks)) == ["".join(chunks)]
    assert sum(looked) < 2 * 100 * split.BLOCK


def test_the_kept_words_are_bounded():
    learned = trained()
    plain = plain_bpe.PlainBpe(learned.tokens, learned.merges, learned.special, remember=10)
    for number in range(100):
        plain.encode(f"{number} " + "b" * 1000)
        assert len(plain._words) <= 10
        assert all(len(word) <= 256 for word in plain._words)


def test_a_long_word_is_encoded_in_less_than_quadratic_work():
    """Counted, not timed: each id is looked at a bounded number of times."""
    looked = 0

    class Counting(dict[tuple[int, int], tuple[int, int]]):
        def __contains__(self, key: object) -> bool:
            nonlocal looked
            looked += 1
            return super().__contains__(key)

    n = 100_000
    pairs = Counting({(0, 0): (0, 1), (1, 1): (1, 2), (2, 2): (2, 3)})
    assert plain_bpe.merge_word([0] * n, pairs) == [3] * (n // 8)
    assert looked < 8 * n


def test_the_ids_can_be_written_to():
    ids = trained().encode("the")
    ids[0] = 7
    assert ids[0] == 7


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: t.encode("a", special=["<x>"]), "<x>"),
        (lambda t: t.encode("a", special=END), "list"),
        (lambda t: t.encode("ab\ud83d"), "character 2"),
        (lambda t: t.encode(b"ab"), "bytes"),
        (lambda t: t.encode("a", noise=Sampling(1, 2, 0.1)), "noise"),
        (lambda t: t.encode_batch(["a", "\udcff"]), "text 1"),
        (lambda t: t.encode_batch([b"a\xff"]), "offset 1"),
        (lambda t: list(t.encode_iterable([b"ab\xe4", b"\xbdx"])), "offset 2"),
        (lambda t: list(t.encode_iterable([b"abc", b"d\xe4\xbd"])), "offset 4"),
        (lambda t: list(t.encode_iterable([b"\xe4", "a"])), "offset 0"),
        (lambda t: list(t.encode_iterable([7])), "int"),
        (lambda t: t.decode([0, 287]), "place 1"),
        (lambda t: t.decode([-1]), "0 to 286"),
        (lambda t: t.decode([1 << 70]), "integers"),
        (lambda t: t.decode([1.5]), "integers"),
        (lambda t: t.decode([[1]]), "flat"),
        (lambda t: t.decode([0xE4 + 1], errors="strict"), "UTF-8"),
        (lambda t: t.token(287), "0 to 286"),
        (lambda t: t.token(-1), "-1"),
        (lambda t: t.id(b"qqq"), "qqq"),
        (lambda t: t.stream().push(287), "287"),
    ],
)
def test_what_cannot_be_encoded_or_decoded_is_refused(call, says):
    with pytest.raises(TokenizerError, match=says):
        call(trained())


BYTES = [bytes([value]) for value in range(256)]


@pytest.mark.parametrize(
    ("tokens", "merges", "special", "says"),
    [
        (BYTES[1:], [], {}, "the first 0"),
        ([*BYTES, b"a"], [], {}, "token 256"),
        ([*BYTES, b"ab"], [(b"a", b"b"), (b"a", b"b")], {}, "merge 1"),
        ([*BYTES, b"abc"], [(b"ab", b"c")], {}, "merge 0"),
        ([*BYTES, b"ab"], [(b"a", b"b"), (b"a", b"c")], {}, "merge 1"),
        (BYTES, [(b"a", b"b")], {}, "merge 0"),
        ([*BYTES, b"ab"], [(b"", b"ab")], {}, "merge 0"),
        ([*BYTES, b"<s>"], [], {"<s>": 3}, "not at its id"),
        ([*BYTES, b"<s>"], [], {"<s>": 257}, "not at its id"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(tokens, merges, special, says):
    with pytest.raises(TokenizerError, match=says):
        bpe.Bpe(tokens, merges, special)


def test_the_fingerprint_knows_all_that_can_change_an_id():
    merges = [(b"a", b"b"), (b"c", b"d")]
    tokens = [*BYTES, b"ab", b"cd", b"<s>"]
    special = {"<s>": 258}
    same = bpe.Bpe(tokens, merges, special)
    assert same.fingerprint == bpe.Bpe(tokens, merges, special, GPT2).fingerprint
    assert same.fingerprint == plain_bpe.PlainBpe(tokens, merges, special).fingerprint
    others = [
        bpe.Bpe(tokens, merges[::-1], special),
        bpe.Bpe(tokens, merges[:1], special),
        bpe.Bpe([*BYTES, b"cd", b"ab", b"<s>"], merges, special),
        bpe.Bpe(tokens, merges, {}),
        bpe.Bpe(tokens, merges, special, r"\S+|\s+"),
        bpe.Bpe(tokens, merges, special, whole=True),
        bpe.Bpe.from_ranks(tokens, special, "gpt2"),
    ]
    assert len({tokenizer.fingerprint for tokenizer in (same, *others)}) == 8
    for tokenizer in (same, *others):
        assert bpe.Bpe.of(json.loads(json.dumps(tokenizer.facts()))).fingerprint == tokenizer.fingerprint


# ---- streaming ---------------------------------------------------------------------------------------------

SCRAPS = [
    b"\xf0\x9f\x98\x80",
    b"\xe4\xba\x86",
    b"\xc3\xa9",
    b"a",
    b"\xed\xa0\x80",
    b"\xff",
    b"\xc0",
    b"\xf4\x90",
    b"\x80",
]


@laws
@given(
    st.lists(st.one_of(st.sampled_from(SCRAPS), st.binary(max_size=4)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_streamed_text_is_the_text_of_all_bytes(scraps, draw):
    whole = b"".join(scraps)
    at = sorted(draw.randrange(len(whole) + 1) for _ in range(draw.randrange(8)))
    tokens = [whole[a:b] for a, b in zip([0, *at], [*at, len(whole)], strict=True)]
    stream = TextStream(tokens.__getitem__)
    said = [stream.push(id) for id in range(len(tokens))]
    assert "".join(said) + stream.close() == whole.decode("utf-8", "replace")
    assert stream.close() == ""
    for n in range(len(said)):  # what was said is never taken back by what comes
        assert whole.decode("utf-8", "replace").startswith("".join(said[:n]))


@laws
@given(unicode)
def test_a_stream_never_emits_half_a_character(text):
    tokenizer = trained()
    stream = tokenizer.stream()
    said = [stream.push(id) for id in tokenizer.encode_list(text)]
    assert "".join(said) == text
    assert all("\ufffd" not in part for part in said) or "\ufffd" in text
    assert stream.close() == ""


# ---- start-up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("temaki.tokens.tokenizer", "torch numba regex"),
        ("temaki.tokens.files", "torch numba"),
        ("temaki.corpus.sources", "torch numba"),
    ],
)
def test_what_a_module_does_not_load(fresh, module, absent):
    found = fresh(f"import sys, {module}; print(*[name for name in {absent.split()} if name in sys.modules])")
    assert found == "\n"
