"""The tokenizer of characters: nothing is lost, whatever the text; and the contract that all share."""

import random

import numpy as np
import pytest

import nasty
from temaki.base.errors import TokenizerError
from temaki.tokens import characters
from temaki.tokens.characters import Characters
from temaki.tokens.tokenizer import Dropout

TEXT = "déjà vu 了了 😀 \r\n\x00 abc"


def plainly(text: str, made: Characters) -> list[int]:
    """The ids of a text, character by character."""
    found: list[int] = []
    for character in text:
        if character in made.characters:
            found.append(
                made.tokens.index(character.encode(), len(made.special) + (256 if made.unknown is None else 0))
            )
        elif made.unknown is None:
            found += [len(made.special) + value for value in character.encode()]
        else:
            found.append(made.special[made.unknown])
    return found


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_ids_are_those_of_the_characters(unknown):
    made = characters.train([TEXT], special=["<s>", "<unk>"], unknown=unknown)
    for text in nasty.texts(300, 1, ("é", "了", "😀")):
        ids = made.encode_list(text)
        assert ids == plainly(text, made)
        if unknown is None:
            assert made.decode(ids) == text
        else:
            assert made.decode(ids) == "".join(c if c in made.characters else "<unk>" for c in text)


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_special_tokens_arise_where_named_and_chunks_make_no_difference(unknown):
    made = characters.train([TEXT], special=["<s>", "<s><s>", "<unk>"], unknown=unknown)
    text = "a<s>é<s><s>了" * 3
    assert made.encode_list(text) == plainly(text, made)
    asked = made.encode_list(text, ["<s>", "<s><s>"])
    assert asked.count(0) == asked.count(1) == 3
    whole = text * 3000
    draw = random.Random(1)
    raw, chunks = whole.encode(), []
    while raw:
        at = draw.randint(1, 40_000)
        chunks.append(raw[:at])
        raw = raw[at:]
    for given in (chunks, [whole], [*whole[:500], whole[500:]]):
        found = np.concatenate(list(made.encode_iterable(given, ["<s>", "<s><s>"])))
        assert found.tolist() == made.encode_list(whole, ["<s>", "<s><s>"])
    batch = made.encode_batch(["é<s>", b"", "了".encode()], ["<s>"])
    assert [batch.ids[a:b].tolist() for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)] == [
        made.encode_list("é<s>", ["<s>"]),
        [],
        made.encode_list("了"),
    ]


def test_a_stream_gives_what_decoding_gives():
    made = characters.train(["é"])
    ids = made.encode_list(TEXT) + made.encode_list("了")[:2]
    stream = made.stream()
    assert "".join(map(stream.push, ids)) + stream.close() == made.decode(ids)
    with pytest.raises(TokenizerError, match="UTF-8"):
        made.decode(ids, errors="strict")


def test_the_most_frequent_characters_are_kept():
    made = characters.train(["ßéééèè"], special=[], size=258)
    assert made.characters == ("é", "è")
    assert characters.train(["aßéééèèa"], special=["<unk>"], unknown="<unk>", size=4).characters == ("é", "a", "è")
    heard: list[tuple[int, int]] = []
    characters.train(["ab", "c"], progress=lambda done, all: heard.append((done, all)))
    assert heard == [(2, 0), (3, 0)]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: characters.train("abc"), "list"),
        (lambda: characters.train([]), "no text"),
        (lambda: characters.train(["a"], size=256), "size"),
        (lambda: characters.train(["a"], size=True), "size"),
        (lambda: characters.train(["\ud800"]), "surrogate"),
        (lambda: characters.train(["a"], special=["a", "a"]), "twice"),
        (lambda: characters.train(["a"], special=[""]), "empty"),
        (lambda: characters.train(["a"], unknown="<unk>"), "no special token"),
        (lambda: Characters(["a"]), "ASCII"),
        (lambda: Characters(["éé"]), "one code point"),
        (lambda: Characters(["é", "é"]), "once"),
        (lambda: Characters(["\ud800"]), "surrogate"),
        (lambda: Characters([]).encode("\ud800"), "surrogate"),
        (lambda: Characters([]).encode("a", ["<x>"]), "unknown special"),
        (lambda: Characters([]).encode("a", "<|endoftext|>"), "a list"),
        (lambda: Characters([]).encode("a", noise=Dropout(0, 0, 0.1)), "random"),
        (lambda: Characters([]).encode_batch(["a", b"\xff"]), "text 1"),
        (lambda: list(Characters([]).encode_iterable([b"a\xff"])), "offset 1"),
        (lambda: Characters([]).decode([257]), "unknown id"),
        (lambda: Characters([]).decode([-1]), "unknown id"),
        (lambda: Characters([]).decode([[1]]), "flat list"),
        (lambda: Characters([]).token(257), "unknown id"),
        (lambda: Characters.of({"special": 1}), "facts"),
    ],
)
def test_wrong_input_is_refused(call, says):
    with pytest.raises(TokenizerError, match=says):
        call()
