"""BytePiece: compiled against the plain form, values worked out by hand or by the reference, laws of random
segmentation, files."""

import itertools
import json
import math
import random
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base.errors import TokenizerError
from temaki.tokens import bytepiece, bytepiece_train, discover, plain_bytepiece
from temaki.tokens.bytepiece import BytePiece
from temaki.tokens.bytepiece_train import ZEROS, Rules
from temaki.tokens.tokenizer import Dropout, Sampling

laws = settings(derandomize=True, deadline=None, max_examples=60)
tricky = st.text(st.sampled_from([*"aabbc cab\n\n12٣é日本的\0\u0301e가\r😀"]), max_size=60)
BYTES = {bytes([byte]): 1 for byte in range(256)}
HAND = {b"a": 4, b"b": 3, b"c": 2, b"ab": 6, b"bc": 5, b"abc": 2}
CUTS = {("abc",), ("a", "bc"), ("ab", "c"), ("a", "b", "c")}


def hand() -> BytePiece:
    """The model of the methods' check values; other bytes count so little that they hardly matter."""
    scale = 1 << 40
    return BytePiece(bytepiece.in_order({**BYTES, **{piece: count * scale for piece, count in HAND.items()}}))


def random_model(seed: int, alphabet: Sequence[bytes] = (b"a", b"b", b"c", b"\n", "日".encode())) -> BytePiece:
    draw = random.Random(seed)
    pieces = dict(BYTES)
    for _ in range(60):
        pieces[b"".join(draw.choice(alphabet) for _ in range(draw.randrange(1, 6)))] = draw.choice([1, 2, 3, 50, 900])
    return BytePiece(bytepiece.in_order(pieces))


def plain_encode(tokenizer: BytePiece, text: str) -> list[bytes]:
    scores = plain_bytepiece.scored(tokenizer.pieces)
    return [piece for part in plain_bytepiece.segments(text) for piece in plain_bytepiece.best(part, scores)]


def pieces(tokenizer: BytePiece, ids: np.ndarray | Sequence[int]) -> list[bytes]:
    return [tokenizer.token(int(id)) for id in ids]


def corpus(seed: int, size: int) -> list[str]:
    draw = random.Random(seed)
    words = ["".join(draw.choice("abcdeé日本") for _ in range(draw.randrange(1, 6))) for _ in range(30)]
    weights = [1 / (rank + 1) for rank in range(30)]
    lines = []
    for _ in range(size):
        line = draw.choice([" ", "", "1"]).join(draw.choices(words, weights, k=draw.randrange(0, 9)))
        lines.append(line + draw.choice(["", "\n", "\n\n", "", ""]))
    return lines


# ---- values ------------------------------------------------------------------------------------------------


def test_segments_are_those_of_the_definition():
    assert plain_bytepiece.segments("ab\n\ncd12 x\n") == [b"ab\n\n", b"cd12 x\n"]
    assert plain_bytepiece.segments("ab\n\ncd12 x\n", isolate_digits=True) == [b"ab\n\n", b"cd", b"1", b"2", b" x\n"]
    assert plain_bytepiece.segments("") == []


@laws
@given(st.text(st.sampled_from([*"ab1٣\n\r日é"]), max_size=30), st.sampled_from([1, 2, 3, 10_000]), st.booleans())
def test_compiled_segments_are_the_plain_ones(text: str, longest: int, isolate: bool):
    from temaki.tokens.kernels import ngrams

    raw = np.frombuffer(text.encode() + bytes(8), np.uint8)
    ends = np.empty(raw.size, np.int64)
    count = ngrams.training_segments(raw, np.array([0, raw.size - 8]), longest, 100, isolate, ZEROS, ends)
    cuts = [0, *ends[:count].tolist()]
    found = [raw[begin:end].tobytes() for begin, end in itertools.pairwise(cuts)]
    assert found == plain_bytepiece.segments(text, longest, isolate)


def test_digits_are_those_of_unicode():
    digits = {zero + more for zero in ZEROS.tolist() for more in range(10)}
    assert {code for code in range(0x110000) if chr(code).isdecimal()} <= digits
    assert all(unicodedata.category(chr(code)) in ("Nd", "Cn") for code in digits)


def test_the_hand_model():
    tokenizer = hand()
    assert pieces(tokenizer, tokenizer.encode("abc")) == [b"abc"]
    lattice = tokenizer.lattice("abc")
    found = {tuple(lattice.text[lattice.begins[a] : lattice.ends[a]].decode() for a in arcs): score
             for arcs, score in lattice.paths()}  # fmt: skip
    expected = [-2.397895, -3.186353, -3.697178, -6.095074]
    assert [found[cut] for cut in sorted(CUTS, key=lambda cut: -found[cut])] == pytest.approx(expected, abs=1e-6)


def test_the_reference_trainer_s_numbers(data: Callable[[str], Path]):
    lines = [line for line in data("bpe_fixtures/corpus.en").read_text("utf-8").split("\n") if line]
    assert sum(len(line.encode()) for line in lines) == 132_012

    def numbers(size: int, **rules: Any) -> tuple[int, int]:
        tokenizer = bytepiece_train.train(lines, size, Rules(**rules))
        return tokenizer.size, tokenizer.encode_batch(lines).ids.size

    assert numbers(500) == (500, 65_290)
    assert numbers(2000) == (1572, 47_423)
    assert numbers(2000, min_count=8) == (911, 51_934)
    assert numbers(2000, order=3) == (1173, 56_075)
    assert numbers(2000, order=4) == (748, 66_692)


def test_corpora_of_little_entropy_become_lines_or_bytes():
    four = [
        "the quick brown fox jumps over it",
        "pack my box with five dozen jugs",
        "how quick daft zebras jump",
        "ab cd ef gh",
    ]
    found = bytepiece_train.train(four * 8, 10_000)
    assert found.size == 263
    assert {text.encode() for text in four} <= set(found.pieces)
    orders = [" ".join(three) for three in itertools.permutations(["cat", "dog", "sat", "ran"], 3)]
    assert bytepiece_train.train(orders, 10_000).size == 259


def test_the_published_model(data: Callable[[str], Path], tmp_path: Path):
    with zipfile.ZipFile(data("bytepiece/bytepiece.plus.40k.zip")) as archive:
        path = Path(archive.extract("bytepiece.plus.40k.model", tmp_path))
    tokenizer = bytepiece.load(path)
    assert tokenizer.size == 39_843
    text = "今天天气不错, hello world!\n\n東京 😀 e\u0301\n"
    assert pieces(tokenizer, tokenizer.encode(text)) == plain_encode(tokenizer, text)
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)
    bytepiece.save(tokenizer, tmp_path / "again")
    assert json.loads((tmp_path / "again").read_text("utf-8")) == json.loads(path.read_text("utf-8"))


# ---- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_compiled_training_is_the_plain_one(seed: int):
    draw = random.Random(seed)
    texts = corpus(seed, 250)
    rules = Rules(
        order=draw.choice([1, 2, 3, 6, 7]), min_count=draw.choice([1, 2, 3]), isolate_digits=bool(seed % 2),
        whole_characters=seed % 3 > 0, longest=draw.choice([3, 6, 36]),
    )  # fmt: skip
    sizes = [2000, 300, 280]
    expected = plain_bytepiece.train(
        texts, sizes, rules.order, rules.longest, rules.min_count, rules.isolate_digits, rules.whole_characters
    )
    for threads in (1, 3):
        found = bytepiece_train.train_sizes(texts, sizes, rules, threads=threads)
        assert [dict(tokenizer.pieces) for tokenizer in found] == expected


def test_a_long_line_and_many_newlines_are_cut():
    texts = ["ab" * 5100 + "c" * 30 + "\n" * 250 + "x", "日" * 10_000 + "\n" + "日" * 30, "\n\n"]
    assert dict(bytepiece_train.train(texts, 9999).pieces) == plain_bytepiece.train(texts, [9999])[0]


def test_sizes_come_in_the_order_asked_for():
    texts = corpus(1, 200)
    small, large = bytepiece_train.train_sizes(texts, [270, 400])
    assert small.size <= 270 < large.size <= 400
    assert bytepiece_train.train(texts, 400).facts() == large.facts()


def test_a_dictionary_s_counts_become_a_vocabulary():
    words = {b"cat": 9, b"dog": 5, b"catdog": 1, "日本".encode(): 4, b"a": 50}
    found = bytepiece_train.from_counts(words)
    assert dict(found.pieces) == plain_bytepiece.without({**BYTES, **words}, [])
    assert b"cat" in found.pieces
    with pytest.raises(TokenizerError, match="empty"):
        bytepiece_train.from_counts({b"": 1})
    for wrong in (0, 1.5, 1 << 62):
        with pytest.raises(TokenizerError, match="counts"):
            bytepiece_train.from_counts({b"ab": wrong, b"ac": wrong})  # pyright: ignore[reportArgumentType]


def test_training_can_be_interrupted():
    def stop(stage: str, done: int, whole: int | None) -> None:
        if stage == "pruning":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bytepiece_train.train(corpus(1, 50), 300, threads=2, progress=stop)


def test_progress_is_told():
    told: list[tuple[str, int, int | None]] = []
    bytepiece_train.train(corpus(1, 50), 300, progress=lambda *what: told.append(what))
    assert [stage for stage, _ in itertools.groupby(told, key=lambda what: what[0])] == ["n-grams", "pieces", "pruning"]
    assert told[0][1] == [done for stage, done, _ in told if stage == "pieces"][-1]


@pytest.mark.parametrize(
    ("texts", "size", "rules", "says"),
    [
        (["a"], 258, {}, "vocabulary size"),
        ([], 300, {}, "no text"),
        ([""], 300, {}, "no text"),
        ("abc", 300, {}, "list of texts"),
        (iter(["abc"]), 300, {}, "list of texts"),
        (["a", b"\xff"], 300, {}, "text 1"),
        (["\ud800"], 300, {}, "surrogate"),
        (["a"], 300, {"order": 8}, "order"),
        (["a"], 300, {"min_count": 0}, "min_count"),
        (["a"], 300, {"normalize": "nfd"}, "normal form"),
    ],
)
def test_what_cannot_be_trained(texts: list[str], size: int, rules: dict[str, Any], says: str):
    with pytest.raises(TokenizerError, match=says):
        bytepiece_train.train(texts, size, Rules(**rules))


@pytest.mark.parametrize("threads", [0, -1, True, "2"])
def test_an_impossible_number_of_threads(threads: Any):
    with pytest.raises(TokenizerError, match="threads"):
        bytepiece_train.train(["abc"], 300, threads=threads)


def test_special_tokens_are_checked_before_the_texts_are_read():
    class Unread:
        def __iter__(self):
            raise AssertionError

    for special, says in ((["a", "a"], "twice"), ([""], "not empty"), ("<eos>", "a list")):
        with pytest.raises(TokenizerError, match=says):
            bytepiece_train.train(Unread(), 300, special=special)


def test_long_pieces_need_no_table_of_their_own():
    texts = ["".join(random.Random(seed).choices("abcd", k=3000)) for seed in range(3)] * 3
    found = bytepiece_train.train(texts, 9999, Rules(longest=4000))
    assert dict(found.pieces) == plain_bytepiece.train(texts, [9999], longest=4000)[0]


# ---- the best segmentation -----------------------------------------------------------------------------------


@laws
@given(tricky, st.integers(0, 5))
def test_compiled_is_plain(text: str, seed: int):
    tokenizer = random_model(seed)
    ids = tokenizer.encode(text)
    assert pieces(tokenizer, ids) == plain_encode(tokenizer, text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.encode_list(text) == ids.tolist()


@laws
@given(tricky, st.integers(0, 3), st.lists(st.integers(0, 60), max_size=5))
def test_chunks_do_not_matter(text: str, seed: int, cuts: list[int]):
    tokenizer = random_model(seed)
    whole = text + "<eos>" + text
    places = [0, *sorted(cuts), len(whole)]
    chunks = [whole[begin:end] for begin, end in itertools.pairwise(places)]
    for special in ([], ["<eos>", "<pad>"]):
        expected = tokenizer.encode_list(whole, special)
        assert np.concatenate(list(tokenizer.encode_iterable(chunks, special))).tolist() == expected
    raw = [whole.encode()[i : i + 3] for i in range(0, len(whole.encode()), 3)]
    assert np.concatenate(list(tokenizer.encode_iterable(raw))).tolist() == tokenizer.encode_list(whole)


def test_ties_do_not_depend_on_chunks():
    for seed in range(60):  # counts whose products are often equal; "z" ends every piece, so a chunk often ends a path
        draw = random.Random(seed)
        some = {bytes(draw.choices(b"abc", k=draw.randrange(1, 5))): draw.choice([1, 2, 3, 4, 6, 8]) for _ in range(60)}
        tokenizer = BytePiece(bytepiece.in_order({**BYTES, **some}))
        text = "".join(draw.choices("abcabcabcz", k=300))
        run, found, at = tokenizer.run(), [], 0
        while at < len(text):
            size = draw.randrange(1, 9)
            found += run.push(text[at : at + size]).tolist()
            at += size
        assert [*found, *run.close().tolist()] == tokenizer.encode_list(text)


@pytest.mark.parametrize("block", [1, 2, 7])
def test_a_stream_of_small_blocks_is_the_whole(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("temaki.tokens.split.BLOCK", block)
    for seed in range(4):
        draw = random.Random(seed)
        tokenizer = random_model(seed)
        text = "".join(draw.choice([*"aaabbbc\n\n日e\u0301x가", "<eos>"]) for _ in range(400))
        found = np.concatenate(list(tokenizer.encode_iterable(text, ["<eos>"])))
        assert found.tolist() == tokenizer.encode_list(text, ["<eos>"])


def test_without_normal_form_nothing_is_lost():
    tokenizer = BytePiece(BYTES, normalize=None)
    assert tokenizer.decode(tokenizer.encode("e\u0301\0\r\n")) == "e\u0301\0\r\n"
    chunks = np.concatenate(list(tokenizer.encode_iterable(["e", "\u0301"])))
    assert tokenizer.decode(chunks) == "e\u0301"


def test_long_texts_and_threads():
    tokenizer = random_model(1)
    draw = random.Random(2)
    text = "\n".join("".join(draw.choice("abc") for _ in range(draw.randrange(200))) for _ in range(9000))
    one = tokenizer.encode(text, threads=1)
    assert np.array_equal(one, tokenizer.encode(text, threads=3))
    noise = Sampling(1, 2, 0.3)
    assert np.array_equal(
        tokenizer.encode(text, noise=noise, threads=1), tokenizer.encode(text, noise=noise, threads=3)
    )
    batch = tokenizer.encode_batch(text.split("\n"), threads=3)
    for i in (0, 1, 4000, 8999):
        ids = batch.ids[batch.offsets[i] : batch.offsets[i + 1]]
        assert ids.tolist() == tokenizer.encode_list(text.split("\n")[i])


def test_one_letter_a_hundred_thousand_times():
    tokenizer = BytePiece({**BYTES, b"aa": 9, b"aaa": 9})
    text = "a" * 100_001
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert np.array_equal(ids, np.concatenate(list(tokenizer.encode_iterable([text[:777], text[777:]]))))
    assert tokenizer.decode(tokenizer.encode(text, noise=Sampling(1, 1, 0.1))) == text


@pytest.mark.parametrize("letter", ["a", "é", "\u0301", "\n"])
def test_one_letter_in_a_stream_is_looked_at_just_a_few_times(letter: str, monkeypatch: pytest.MonkeyPatch):
    tokenizer = BytePiece(BYTES)
    run, looked = tokenizer.run(), 0
    monkeypatch.setattr(tokenizer, "read", lambda text: text.encode())

    class Counted:
        def search(self, text: str, begin: int, end: int) -> None:
            nonlocal looked
            looked += end - begin

    if letter in "é\u0301":
        monkeypatch.setattr(run, "joins_nothing", Counted())
    size = sum(run.push(letter * 100).size for _ in range(2000)) + run.close().size
    assert size == len(letter.encode()) * 200_000
    assert looked < 4 * 200_000


def test_a_long_line_does_not_pile_up():
    draw = random.Random(1)
    tokenizer = random_model(2)
    run = tokenizer.run()
    held = []
    for _ in range(100):
        run.push("".join(draw.choice("abc日") for _ in range(1000)))
        held.append(run._flow.held)  # pyright: ignore[reportAttributeAccessIssue]
    assert max(held) < 2000


def test_what_is_no_text():
    tokenizer = hand()
    for text, says in (("a\ud800", "surrogate"), (b"a", "a text to encode is a str")):
        with pytest.raises(TokenizerError, match=says):
            tokenizer.encode(text)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TokenizerError, match=r"text 1.*offset 1"):
        tokenizer.encode_batch(["a", b"a\xff"])
    with pytest.raises(TokenizerError, match="text 1"):
        tokenizer.encode_batch(["a", 5])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TokenizerError, match="offset 3"):
        list(tokenizer.encode_iterable([b"ab", b"c\xff"]))
    for ids in ([0, 99_999], [-1], [[1]], [0.5]):
        with pytest.raises(TokenizerError):
            tokenizer.decode(ids)  # pyright: ignore[reportArgumentType]
    assert tokenizer.encode("").tolist() == tokenizer.encode_batch([]).ids.tolist() == []
    assert tokenizer.encode_batch(["", "ab", ""]).offsets.tolist() == [0, 0, 1, 1]
    assert tokenizer.decode([]) == ""


def test_special_tokens_hold_no_bytes():
    tokenizer = hand()
    ids = tokenizer.encode_list("abc<eos>ab", ["<eos>"])
    assert ids == [*tokenizer.encode_list("abc"), 2, *tokenizer.encode_list("ab")]
    assert tokenizer.decode([1, *ids, 0]) == "abcab"
    assert [tokenizer.token(id) for id in (0, 1, 2)] == [b"<pad>", b"<bos>", b"<eos>"]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.close() == "abcab"
    assert 2 not in tokenizer.encode_list("<eos>")
    with pytest.raises(TokenizerError, match="unknown special"):
        tokenizer.encode("a", ["<no>"])


# ---- random segmentation -------------------------------------------------------------------------------------


def chi_square(found: Counter[tuple[str, ...]], expected: dict[tuple[str, ...], float], n: int) -> float:
    return sum((found[cut] - n * p) ** 2 / (n * p) for cut, p in expected.items())


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.0, (0.25, 0.25, 0.25, 0.25)), (0.5, (0.4248, 0.2864, 0.2219, 0.0669)), (1.0, (0.5708, 0.2594, 0.1557, 0.0142))],
)
def test_samples_have_their_probabilities(alpha: float, expected: tuple[float, ...]):
    tokenizer = hand()
    n = 20_000
    ids = tokenizer.encode("abc\n" * n, noise=Sampling(7, 1, alpha))
    lines = "|".join(piece.decode() for piece in pieces(tokenizer, ids)).split("|\n|")
    found = Counter(tuple(line.removesuffix("|\n").split("|")) for line in lines)
    cuts = [("abc",), ("a", "bc"), ("ab", "c"), ("a", "b", "c")]
    assert set(found) == CUTS
    assert chi_square(found, dict(zip(cuts, expected, strict=True)), n) < 16.3  # p > 1e-3, 3 degrees of freedom


@pytest.mark.parametrize("seed", range(3))
def test_samples_n_best_and_marginals_agree(seed: int):
    tokenizer = random_model(seed)
    text = "abcab日a"
    all_paths = tokenizer.nbest(text, 100_000)
    chances = {tuple(ids): math.exp(log) for ids, log in all_paths}
    assert sum(chances.values()) == pytest.approx(1.0, abs=1e-12)
    assert len(chances) == len(all_paths) == len(list(tokenizer.lattice(text).paths(100_000)))
    logs = [log for _, log in all_paths]
    assert logs == sorted(logs, reverse=True)
    assert all_paths[0][0] == tokenizer.encode_list(text)
    assert [ids for ids, _ in tokenizer.nbest(text, 5)] == [ids for ids, _ in all_paths[:5]]
    lattice = tokenizer.lattice(text)
    for arc, marginal in enumerate(lattice.marginals()):
        begin, id = int(lattice.begins[arc]), int(lattice.ids[arc])
        passing = sum(
            p for ids, p in chances.items() if begin in (places := places_of(tokenizer, ids)) and places[begin] == id
        )
        assert marginal == pytest.approx(passing, abs=1e-9)
    n = 4000
    draws = (tokenizer.encode(text, noise=Sampling(3, place, 1.0)) for place in range(n))
    found = Counter(tuple(ids.tolist()) for ids in draws)
    frequent = {ids: p for ids, p in chances.items() if p * n >= 5}
    rest = 1 - sum(frequent.values())
    statistic = sum((found[ids] - n * p) ** 2 / (n * p) for ids, p in frequent.items())
    if rest * n >= 5:
        statistic += (n - sum(found[ids] for ids in frequent) - n * rest) ** 2 / (n * rest)
    degrees = len(frequent)
    assert statistic < degrees + 3.3 * math.sqrt(2 * degrees) + 8  # about p > 1e-3


def places_of(tokenizer: BytePiece, ids: Sequence[int]) -> dict[int, int]:
    places, at = {}, 0
    for id in ids:
        places[at] = id
        at += len(tokenizer.token(id))
    return places


@laws
@given(tricky, st.integers(0, 3), st.sampled_from([0.0, 0.1, 1.0, 30.0, 9e7]))
def test_samples_join_to_the_text_and_repeat(text: str, seed: int, alpha: float):
    tokenizer = random_model(seed)
    ids = tokenizer.encode(text, noise=Sampling(seed, 9, alpha))
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert np.array_equal(ids, tokenizer.encode(text, noise=Sampling(seed, 9, alpha)))


@laws
@given(tricky, st.integers(0, 3))
def test_an_infinite_alpha_is_the_best_one(text: str, seed: int):
    tokenizer = random_model(seed)
    for alpha in (math.inf, 1e8):
        assert np.array_equal(tokenizer.encode(text, noise=Sampling(1, 1, alpha)), tokenizer.encode(text))


def test_places_and_seeds_differ():
    tokenizer = hand()
    text = "abc" * 30
    found = {
        tuple(tokenizer.encode(text, noise=Sampling(seed, place, 0.1)).tolist()) for seed in (1, 2) for place in (1, 2)
    }
    assert len(found) == 4


@pytest.mark.parametrize("alpha", [-0.1, math.nan, "1", True])
def test_an_impossible_alpha(alpha: float):
    with pytest.raises(TokenizerError, match="alpha"):
        hand().encode("abc", noise=Sampling(1, 1, alpha))


def test_other_noise_is_refused():
    with pytest.raises(TokenizerError, match="sampled"):
        hand().encode("abc", noise=Dropout(1, 1, 0.1))


def test_the_old_sampling_is_biased():
    scores = {b"abc": -1.0, b"bc": -1.0, b"c": -1.0, b"a": 0.0, b"ab": 0.0}
    draw = random.Random(5)
    n = 20_000
    found = Counter(plain_bytepiece.sampled_old(b"abc", scores, 1.0, draw)[-1] for _ in range(n))
    for last, chance in ((b"abc", 0.25), (b"bc", 0.25), (b"c", 0.5)):
        assert found[last] / n == pytest.approx(chance, abs=0.015)


# ---- files ---------------------------------------------------------------------------------------------------


def test_facts_make_the_tokenizer_again():
    tokenizer = BytePiece(bytepiece.in_order({**BYTES, b"ab": 3}), None, ["<pad>", "<bos>", "<|endoftext|>"])
    again = BytePiece.of(json.loads(json.dumps(tokenizer.facts())))
    assert again.fingerprint == tokenizer.fingerprint != BytePiece(tokenizer.pieces).fingerprint
    assert again.encode_list("abba<|endoftext|>", ["<|endoftext|>"]) == [259, 101, 100, 2]


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("pieces"),
        lambda facts: facts.update(more=1),
        lambda facts: facts.update(normalize="nfd"),
        lambda facts: facts.update(special=["<pad>", "<pad>", "x"]),
        lambda facts: facts.update(special=[1, 2, 3]),
        lambda facts: facts["pieces"].append(["YWI=", 0]),
        lambda facts: facts["pieces"].append(["YWI=", -3]),
        lambda facts: facts["pieces"].append(["YWI=", 1.5]),
        lambda facts: facts["pieces"].append(["YWI=", True]),
        lambda facts: facts["pieces"].append(["YQ==", 1]),
        lambda facts: facts["pieces"].append(["", 1]),
        lambda facts: facts["pieces"].append(["!", 1]),
        lambda facts: facts["pieces"].append("YWI="),
        lambda facts: facts["pieces"].pop(),
    ],
)
def test_broken_facts(change: Callable[[dict[str, list[object]]], object]):
    facts = json.loads(json.dumps(BytePiece(BYTES).facts()))
    change(facts)
    with pytest.raises(TokenizerError):
        BytePiece.of(facts)


def survives(n: int, tmp_path: Path) -> None:
    """Every mutant of a file loads, or is refused with an error of ours."""
    path = tmp_path / "model"
    bytepiece.save(BytePiece(bytepiece.in_order({**BYTES, b"ab": 3})), path)
    whole = path.read_bytes()
    draw = random.Random(11)
    refused = 0
    for _ in range(n):
        mutant = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(mutant))
            match draw.randrange(4):
                case 0:
                    mutant[place] = draw.randrange(256)
                case 1:
                    del mutant[place : place + draw.randrange(1, 40)]
                case 2:
                    mutant[place:place] = draw.choice([b"[", b"]", b"9", b'"', b"-", b"null", b"1e400", b"{", b","])
                case _:
                    del mutant[place:]
            mutant = mutant or bytearray(b"{")
        path.write_bytes(mutant)
        try:
            tokenizer = bytepiece.load(path)
        except TokenizerError:
            refused += 1
        else:
            assert tokenizer.decode(tokenizer.encode("ab\n")) == "ab\n"
    assert refused > n // 2


def test_mutants_of_a_file(tmp_path: Path):
    survives(1000, tmp_path)


@pytest.mark.slow
def test_many_mutants_of_a_file(tmp_path: Path):
    survives(100_000, tmp_path)


def test_the_reference_s_other_ids_are_refused(tmp_path: Path):
    with pytest.raises(TokenizerError, match="three special"):
        bytepiece.save(BytePiece(BYTES, special=["<eos>"]), tmp_path / "x")
    (tmp_path / "gap").write_text('{"YQ==": [4, "a", 1]}')
    with pytest.raises(TokenizerError, match="ids"):
        bytepiece.load(tmp_path / "gap")


# ---- words that were found -----------------------------------------------------------------------------------


def test_discovered_words_by_a_slow_count():
    texts = corpus(4, 300)
    tokenizer = bytepiece_train.train(texts, 400)
    found = discover.discover(texts, tokenizer)
    scores = plain_bytepiece.scored(tokenizer.pieces)
    sequences = [pieces(tokenizer, tokenizer.encode(text)) for text in texts]
    counts = Counter(piece for sequence in sequences for piece in sequence)
    after: dict[bytes, Counter[bytes]] = {}
    before: dict[bytes, Counter[bytes]] = {}
    for sequence in sequences:
        for left, right in itertools.pairwise(sequence):
            after.setdefault(left, Counter())[right] += 1
            before.setdefault(right, Counter())[left] += 1
    assert {row.text.encode(): row.count for row in found} == {p: n for p, n in counts.items() if len(p.decode()) > 1}
    assert [row.count for row in found] == sorted((row.count for row in found), reverse=True)
    for row in found:
        piece = row.text.encode()
        cuts = plain_bytepiece.best(piece, {**scores, piece: -math.inf})
        assert row.cohesion == pytest.approx(scores[piece] - sum(map(scores.__getitem__, cuts)))
        assert row.cohesion > 0  # else training had dropped it
        for entropy, neighbours in ((row.after, after), (row.before, before)):
            shares = [n / neighbours[piece].total() for n in neighbours.get(piece, Counter()).values()]
            assert entropy == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-9)
        assert row.boundary == min(row.before, row.after)
