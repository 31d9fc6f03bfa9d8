"""SentencePiece unigram models: ids, text and probabilities against the `sentencepiece` package, files, laws."""

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from temaki.base.errors import TokenizerError
from temaki.tokens import bytepiece, bytepiece_train, sentencepiece
from temaki.tokens.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Model, Normalizer, Piece
from temaki.tokens.tokenizer import Sampling
from temaki.tokens.unigram import Unigram

LETTERS = [*"abcdefgh    .,\n\té\u0301ﬁﬀ½Ａ日本的\u200b\u00a0\u3000▁İß€😀\0\ufeff가각ｶﾞ"]


@pytest.fixture(scope="module")
def t5(data: Callable[[str], Path]) -> Unigram:
    return Unigram(sentencepiece.load(data("t5_spm/spiece.model")))


def oracle(model: Model) -> Any:
    package = pytest.importorskip("sentencepiece", reason="the sentencepiece package is the oracle")
    return package.SentencePieceProcessor(model_proto=sentencepiece.write(model))


@cache
def small(**normalizer: bool) -> Model:
    """A model with every type of piece."""
    words = ["▁", "a", "b", "c", "▁a", "ab", "abc", "bc", "▁ab", "日", "日本", "1", "é", "▁▁"]
    draw = random.Random(3)
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    pieces += [Piece(word, float(np.float32(-draw.random() * 9 - 1)), NORMAL) for word in words]
    pieces += [Piece("[x]", 0.0, USER_DEFINED), Piece("bb", -0.5, UNUSED)]
    return Model(tuple(pieces), normalizer=Normalizer(**{"name": "identity", **normalizer}))


def with_bytes(model: Model) -> Model:
    every = tuple(Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))
    return replace(model, pieces=model.pieces + every, byte_fallback=True)


def nasty(draw: random.Random, most: int = 40) -> str:
    def one() -> str:
        if draw.random() < 0.9:
            return draw.choice(LETTERS)
        return chr(draw.randrange(*draw.choice([(0, 0x2000), (0x3000, 0xD000), (0xE000, 0x10FFFF)])))

    return "".join(one() for _ in range(draw.randrange(most)))


def agree(n: int, ours: Unigram, theirs: Any) -> None:
    draw = random.Random(1)
    for _ in range(n):
        text = nasty(draw)
        ids = ours.encode_list(text)
        assert ids == theirs.encode(text), repr(text)
        assert ours.decode(ids) == theirs.decode(ids), repr(text)


def test_ids_and_text_are_sentencepiece_s(t5: Unigram):
    agree(3000, t5, oracle(t5.model))


@pytest.mark.slow
def test_many_ids_are_sentencepiece_s(t5: Unigram):
    agree(100_000, t5, oracle(t5.model))


def test_a_long_text_is_sentencepiece_s(t5: Unigram, data: Callable[[str], Path]):
    text = data("bpe_fixtures/corpus.en").read_text("utf-8") * 4  # beyond what float32 sums can tell apart
    assert t5.encode_list(text) == oracle(t5.model).encode(text)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("fallback", [False, True])
def test_every_kind_of_piece_is_sentencepiece_s(prefix: bool, remove: bool, fallback: bool):
    model = small(add_dummy_prefix=prefix, remove_extra_whitespaces=remove)
    model = with_bytes(model) if fallback else model
    ours, theirs = Unigram(model), oracle(model)
    draw = random.Random(8)
    parts = ["a", "b", "c", " ", "  ", "日", "本", "é", "1", "[x]", "[", "x", "▁", "<s>", "zz"]
    for _ in range(400):
        text = "".join(draw.choice(parts) for _ in range(draw.randrange(12)))
        ids = ours.encode_list(text)
        assert ids == theirs.encode(text), repr(text)
        assert ours.decode(ids) == theirs.decode(ids), repr(text)


def test_whitespace_as_a_suffix():
    model = replace(small(), treat_whitespace_as_suffix=True)
    ours, theirs = Unigram(model), oracle(model)
    for text in ("ab c", " a ", "", "   ", "abc"):
        assert ours.encode_list(text) == theirs.encode(text), repr(text)


def test_chunks_do_not_matter(t5: Unigram, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(4)
    models = [t5, Unigram(with_bytes(small())), Unigram(small(remove_extra_whitespaces=False))]
    for block in (1, 5, 1 << 16):
        monkeypatch.setattr("temaki.tokens.split.BLOCK", block)
        for number in range(60):
            ours = models[number % 3]
            text = nasty(draw, 80) + draw.choice(["</s>", "", "  "]) + nasty(draw, 30)
            places = [0, *sorted(draw.randrange(len(text) + 1) for _ in range(4)), len(text)]
            chunks = [text[begin:end] for begin, end in itertools.pairwise(places)]
            for special in ([], ["</s>"]):
                found = np.concatenate(list(ours.encode_iterable(chunks, special)))
                assert found.tolist() == ours.encode_list(text, special), repr(text)


def test_streamed_is_decoded(t5: Unigram):
    draw = random.Random(5)
    for ours in (t5, Unigram(with_bytes(small()))):
        for _ in range(60):
            ids = [draw.randrange(ours.size) for _ in range(draw.randrange(9))]
            stream = ours.stream()
            for _ in range(2):  # it can be used anew
                assert "".join(map(stream.push, ids)) + stream.close() == ours.decode(ids)


def test_special_tokens_come_only_when_asked(t5: Unigram):
    assert t5.special == {"<pad>": 0, "</s>": 1}
    assert 1 not in t5.encode_list("a</s>")
    assert t5.encode_list("a</s>", ["</s>"]) == [*t5.encode_list("a"), 1]
    assert t5.decode(t5.encode_list("a</s>", ["</s>"])) == "a"


def test_samples_have_sentencepiece_s_probabilities():
    model = small()
    ours, theirs = Unigram(model), oracle(model)
    n, alpha = 6000, 0.5
    lattice = ours.lattice("abcab")
    weights = {tuple(lattice.ids[arcs].tolist()): math.exp(alpha * score) for arcs, score in lattice.paths()}
    whole = sum(weights.values())
    frequent = {ids: weight / whole for ids, weight in weights.items() if n * weight / whole >= 5}
    ours_found = Counter(tuple(ours.encode("abcab", noise=Sampling(1, place, alpha)).tolist()) for place in range(n))
    theirs_found = Counter(
        tuple(theirs.encode("abcab", enable_sampling=True, alpha=alpha, nbest_size=-1)) for _ in range(n)
    )
    assert set(ours_found) <= set(weights)
    assert set(theirs_found) <= set(weights)
    statistic = sum((ours_found[ids] - n * p) ** 2 / (n * p) for ids, p in frequent.items())
    degrees = len(frequent)
    assert statistic < degrees + 3.3 * math.sqrt(2 * degrees) + 8  # about p > 1e-3
    for ids, p in frequent.items():  # theirs is not seeded: seven sigma
        assert abs(theirs_found[ids] - n * p) < 7 * math.sqrt(n * p) + 1


def test_the_n_best_are_sentencepiece_s():
    model = small()
    ours, theirs = Unigram(model), oracle(model)
    expected = theirs.nbest_encode_as_ids("abcab 日本", 6)
    assert [ids for ids, _ in ours.nbest("abcab 日本", 6)] == expected
    found = ours.nbest("abcab", 100_000)
    assert sum(math.exp(log) for _, log in found) == pytest.approx(1.0)
    assert found[0][0] == ours.encode_list("abcab")


def test_an_infinite_alpha_is_the_best_one(t5: Unigram):
    for text in ("Hello worlds", "日本 xyz", ""):
        assert t5.encode(text, noise=Sampling(1, 1, math.inf)).tolist() == t5.encode_list(text)
        assert t5.decode(t5.encode(text, noise=Sampling(1, 1, 0.1))) == t5.decode(t5.encode(text))


def test_a_bytepiece_model_becomes_a_sentencepiece_model(tmp_path: Path):
    draw = random.Random(9)
    words = ["".join(draw.choice("abcde日本é") for _ in range(draw.randrange(1, 5))) for _ in range(40)]
    texts = [" ".join(draw.choices(words, [1 / (rank + 1) for rank in range(40)], k=9)) + "\n" for _ in range(400)]
    tokenizer = bytepiece_train.train(texts, 400)
    path = tmp_path / "m.model"
    sentencepiece.save(bytepiece.as_sentencepiece(tokenizer), path)
    theirs, ours = oracle(sentencepiece.load(path)), Unigram(sentencepiece.load(path))
    same = 0
    for text in texts:
        assert theirs.encode(text) == ours.encode_list(text)
        same += theirs.encode(text) == tokenizer.encode_list(text)
        assert theirs.decode(theirs.encode(text)) == text
    assert same > 0.95 * len(texts)  # float32 ties
    for piece in (b"a\0", "\u2581".encode(), b"<0xC3>"):
        with pytest.raises(TokenizerError, match="cannot say"):
            bytepiece.as_sentencepiece(bytepiece.BytePiece({**tokenizer.pieces, piece: 1}))
    with pytest.raises(TokenizerError, match="whole characters"):
        bytepiece.as_sentencepiece(bytepiece.BytePiece({**tokenizer.pieces, b"\x80\x80": 1}))


def test_facts_make_the_tokenizer_again(t5: Unigram):
    again = Unigram.of(json.loads(json.dumps(t5.facts())))
    assert again.fingerprint == t5.fingerprint
    assert again.encode_list("ﬁne  day") == t5.encode_list("ﬁne  day")
    assert sentencepiece.read(sentencepiece.write(t5.model)) == t5.model


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [Piece("a")],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("u", 0.0, UNKNOWN)],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("")],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("a"), Piece("a")],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("a", math.nan)],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("a", math.inf)],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("a", 0.0, 9)],
        [Piece("<unk>", 0.0, UNKNOWN), Piece("<0x00>", 0.0, BYTE)],
    ],
)
def test_models_that_cannot_be(pieces: list[Piece]):
    with pytest.raises(TokenizerError):
        Unigram(Model(tuple(pieces)))


def test_a_model_of_nothing_knows_nothing():
    tokenizer = Unigram(Model((Piece("<unk>", 0.0, UNKNOWN),)))
    assert tokenizer.encode_list("ab 日") == [0]
    assert tokenizer.encode("ab", noise=Sampling(1, 1, 0.5)).tolist() == [0]
    assert tokenizer.decode([0]) == " \u2047 "


def test_other_models_are_refused():
    with pytest.raises(TokenizerError, match="unigram"):
        Unigram(replace(small(), type=sentencepiece.BPE))
    with pytest.raises(TokenizerError, match="describes no"):
        Unigram.of({"pieces": []})


@pytest.mark.parametrize(
    ("row", "unknown"),
    [(["\ud800", 0.0, 1], "x"), (["\ud800", 0.0, 3], "x"), (["a", 0.0, 1], "\udc80"), (["a", 10**400, 1], "x")],
)
def test_facts_that_cannot_be(row: list[Any], unknown: str):
    told = Unigram(small()).facts()
    rows = [["<unk>", 0.0, UNKNOWN], row]
    assert Unigram.of({**told, "pieces": [["<unk>", 0.0, UNKNOWN], ["a", 0.0, NORMAL]]}).size == 2
    with pytest.raises(TokenizerError):
        Unigram.of({**told, "pieces": rows, "unknown_text": unknown})


def test_bytes_that_begin_no_character_are_sampled_alike_each_time():
    segmenter = Unigram(small()).segmenter
    for raw in (b"\x80\x80a\x80bc\xe6", b"\xe6\x80a\xf0ab\x80\x80\x80" * 40):
        text = np.frombuffer(raw, np.uint8)
        first = segmenter.sample(text, 0.5, 7)
        for _ in range(5):
            junk = np.full(text.size + 1, np.nan)  # what the next scratch array may find where it comes to lie
            del junk
            assert np.array_equal(segmenter.sample(text, 0.5, 7), first)


def test_a_stream_of_escaped_spaces_is_the_whole(t5: Unigram):
    text = "▁" * 3000 + "a" + " ▁" * 500
    for size in (1, 7, 1000):
        run, found = t5.run(), []
        for at in range(0, len(text), size):
            found += run.push(text[at : at + size]).tolist()
        assert [*found, *run.close().tolist()] == t5.encode_list(text)


def survives(n: int, content: bytes) -> None:
    """Every mutant of a model loads and encodes, or is refused with an error of ours."""
    draw = random.Random(2)
    refused = 0
    for _ in range(n):
        mutant = bytearray(content)
        for _ in range(draw.randrange(1, 5)):
            place = draw.randrange(len(mutant))
            match draw.randrange(3):
                case 0:
                    mutant[place] = draw.randrange(256)
                case 1:
                    del mutant[place : place + draw.randrange(1, 20)]
                case _:
                    mutant[place:place] = draw.randbytes(draw.randrange(1, 5))
        try:
            tokenizer = Unigram(sentencepiece.read(bytes(mutant)))
            tokenizer.decode(tokenizer.encode("abc [x] 日本 ﬁ\u0301"))
        except TokenizerError:
            refused += 1
    assert refused > n // 3


def small_file(t5: Unigram) -> bytes:
    """A small model with the real rules of normalising, cut down."""
    charsmap = t5.model.normalizer.charsmap
    return sentencepiece.write(replace(small(), normalizer=Normalizer("x", charsmap)))


def test_mutants_of_a_model(t5: Unigram):
    survives(500, sentencepiece.write(small()))
    survives(500, small_file(t5))


@pytest.mark.slow
def test_many_mutants_of_a_model(t5: Unigram):
    survives(50_000, sentencepiece.write(small()))
    survives(50_000, small_file(t5))


def test_rules_that_point_anywhere_are_harmless():
    draw = random.Random(6)
    for _ in range(300):
        units = draw.randbytes(4 * draw.randrange(1, 300))
        charsmap = len(units).to_bytes(4, "little") + units + draw.randbytes(draw.randrange(40)) + b"\0"
        tokenizer = Unigram(replace(small(), normalizer=Normalizer("x", charsmap)))
        tokenizer.encode("abc 日本" + "".join(map(chr, range(200))))
