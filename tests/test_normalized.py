"""A tokenizer behind a normal form: the ids of the normalized text, special tokens found in the text as given."""

import random
import unicodedata
from typing import get_args

import numpy as np
import pytest
import regex

import nasty
from temaki.base.errors import TokenizerError
from temaki.tokens import bpe, bpe_train
from temaki.tokens.characters import Characters
from temaki.tokens.normalized import Form, Normalized
from temaki.tokens.tokenizer import Dropout

SPECIAL = ["<s>", "K", "e\u0301"]
"""The second is what the sign for kelvin becomes, the third is no normal form itself."""
MORE = ("<s>", "K", "\u212a", "e\u0301", "e", "\u0301", "\u1100", "\u1161", "\u11a8", "か", "\u3099", "각", " ", "\n")


def inner() -> Characters:
    return Characters(["é", "각", "が"], SPECIAL)


def plainly(text: str, form: Form, special: list[str]) -> list[int]:
    """The ids of a text, run by run."""
    found: list[int] = []
    while text:
        starts = [(text.find(one), -len(one), one) for one in special if one in text]
        at, _, one = min(starts, default=(len(text), 0, ""))
        found += inner().encode_list(unicodedata.normalize(form, text[:at]))
        found += [inner().special[one]] if one else []
        text = text[at + len(one) :]
    return found


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("special", [[], ["<s>"], SPECIAL])
def test_ids_are_those_of_the_normal_form(form, special):
    made = Normalized(inner(), form)
    texts = list(nasty.texts(300, 1, MORE))
    for text in texts:
        assert made.encode_list(text, special) == plainly(text, form, special)
    batch = made.encode_batch([text.encode() for text in texts], special)
    assert batch.ids.tolist() == [id for text in texts for id in plainly(text, form, special)]
    assert made.decode(made.encode("e\u0301")) == unicodedata.normalize(form, "e\u0301")


@pytest.mark.parametrize("form", get_args(Form))
def test_chunks_make_no_difference(form):
    made = Normalized(inner(), form)
    text = "".join(nasty.texts(9000, 2, MORE))
    whole = made.encode(text, ["<s>"])
    draw = random.Random(1)
    raw, chunks = text.encode(), []
    while raw:
        at = draw.randint(1, 30_000)
        chunks.append(raw[:at])
        raw = raw[at:]
    assert np.array_equal(np.concatenate(list(made.encode_iterable(chunks, ["<s>"]))), whole)


def test_chunks_make_no_difference_where_the_inner_tokenizer_merges():
    made = Normalized(bpe.from_merges([(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b"e", b"r")], ["<s>"]))
    for shift in range(8):
        text = "x" * shift + "the other e\u0301 " * 9000 + "<s>" + "\u212a there"
        ids = np.concatenate(list(made.encode_iterable([text[:70_001], text[70_001:]], ["<s>"])))
        assert np.array_equal(ids, made.encode(text, ["<s>"]))


@pytest.mark.parametrize("form", get_args(Form))
def test_nothing_joins_what_stands_before_a_cut(form):
    """Every character before which text may be cut leaves every other character before it alone."""
    cut = regex.compile(Normalized.cuts)
    safe = [character for character in map(chr, range(0x20000)) if cut.match(character)]
    assert len(safe) > 30_000
    draw = random.Random(form)
    before = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    for character in [*map(chr, range(128)), *draw.sample(safe, 2000)]:
        for text in ("".join(draw.sample(before, 3)) for _ in range(5)):
            split = unicodedata.normalize(form, text) + unicodedata.normalize(form, character)
            assert unicodedata.normalize(form, text + character) == split


def test_noise_is_the_inner_one_s():
    made = Normalized(bpe_train.train(["the cat the cat"], 270), "NFC")
    assert made.encode("the cat e\u0301", noise=Dropout(0, 0, 1.0)).tolist() == made.encode_list("x")[:0] + [
        1 + value for value in "the cat é".encode()
    ]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Normalized(inner(), "nfc"), "normal form"),  # type: ignore[arg-type]
        (lambda: Normalized(inner()).encode("a", ["<x>"]), "unknown special"),
        (lambda: Normalized(inner()).encode_batch(["a", b"\xff"]), "text 1"),
        (lambda: Normalized(inner()).encode("\ud800"), "surrogate"),
        (lambda: Normalized(inner()).decode([10**6]), "unknown id"),
    ],
)
def test_wrong_input_is_refused(call, says):
    with pytest.raises(TokenizerError, match=says):
        call()
