"""WordPiece: trained as by hand, cut as by hand, lossy only where it says so. (Its oracle is in test_hf_json.py.)"""

import random
from collections import Counter

import numpy as np
import pytest

import nasty
from temaki.base.errors import TokenizerError
from temaki.tokens import wordpiece_train
from temaki.tokens.wordpiece import Pieces, WordPiece, Words

SPECIAL = {"[UNK]": 0, "<s>": 1}


def by_hand(texts: list[str], size: int, special: list[str]) -> list[str]:
    """The trainer with nothing kept up to date: count all pairs, join the best everywhere, again."""
    counts = Counter(word for text in texts for word in Words().split(text))
    spelled = {word: [" " + word[0], *word[1:]] for word in counts}
    letters = Counter(letter for word, count in counts.items() for letter in spelled[word] for _ in range(count))
    found = sorted(letters, key=lambda letter: (-letters[letter], letter.encode()))
    while len(found) + len(special) < size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in counts.items():
            for left, right in zip(spelled[word], spelled[word][1:], strict=False):
                pairs[left.encode(), right.encode()] += count
        if not pairs:
            break
        left, right = (part.decode() for part in max(pairs, key=lambda pair: (pairs[pair], pair)))
        for word, pieces in spelled.items():
            joined: list[str] = []
            for piece in pieces:
                if joined and (joined[-1], piece) == (left, right):
                    joined[-1] += piece
                else:
                    joined.append(piece)
            spelled[word] = joined
        if left + right not in found:
            found.append(left + right)
    return special + [piece[1:] if piece.startswith(" ") else "##" + piece for piece in found]


@pytest.mark.parametrize("seed", range(12))
def test_the_vocabulary_is_that_of_the_trainer_by_hand(seed):
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcé了"[: draw.randint(2, 5)], k=draw.randint(1, 8))) for _ in range(40)]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(3)]
    made = wordpiece_train.train(texts, 60, special=["[UNK]", "<s>"])
    assert list(made.vocabulary) == by_hand(texts, 60, ["[UNK]", "<s>"])
    for text in texts:
        assert made.decode(made.encode(text)) == " ".join(Words().split(text))


def test_a_word_is_cut_into_the_longest_pieces_from_the_left():
    vocabulary = ["[UNK]", "<s>", "un", "##aff", "##able", "##a", "##b", "unx", "x", "##", ","]
    made = WordPiece(vocabulary, SPECIAL, pieces=Pieces(longest=9))
    named = {text: id for id, text in enumerate(vocabulary)}
    assert made.encode_list("unaffable un") == [named[text] for text in ("un", "##aff", "##able", "un")]
    assert made.encode_list("unaffablex") == [0]  # ten characters
    assert made.encode_list("unaffabl") == [0]
    assert made.encode_list("x,x [UNK]<s>") == [8, 10, 8, 0, 0, 0, 0, 0, 0]
    assert made.encode_list("x,x [UNK]<s>", ["<s>", "[UNK]"]) == [8, 10, 8, 0, 1]
    assert made.tokens[2:5] == (b" un", b"aff", b"able")


def test_a_prefix_may_be_a_word():
    made = WordPiece(["[UNK]", "#", "#b", "a"], {"[UNK]": 0}, pieces=Pieces(prefix="#"))
    assert made.encode_list("# ab #") == [1, 3, 2, 1]
    assert made.decode([1, 3, 2, 1]) == "# ab #"


def test_what_decoding_gives():
    made = wordpiece_train.train(["the cat, the mat! naïve"], 60, special=["[UNK]", "<s>"])
    ids = made.encode_list("the  cat,\nthe mat!")
    assert made.decode(ids) == "the cat , the mat !"
    assert made.decode([*ids, 1, *ids]) == "the cat , the mat !<s> the cat , the mat !"
    for given in (ids, [1, *ids], made.encode_list("naïve"), []):
        stream = made.stream()
        for _ in range(2):  # a stream can be used anew
            assert "".join(map(stream.push, given)) + stream.close() == made.decode(given)


def test_options_change_words():
    text = "Ünïté\tΑΣ 了了a\x00b don't"
    assert Words().split(text) == ["Ünïté", "ΑΣ", "了", "了", "ab", "don", "'", "t"]
    assert Words(lowercase=True, accents=False).split(text)[:2] == ["unite", "ας"[0] + "σ"]
    assert Words(han=False, clean=False).split(text)[2] == "了了a\x00b"


def test_chunks_make_no_difference():
    made = wordpiece_train.train(list(nasty.texts(50, 1)), 400)
    text = "".join(nasty.texts(6000, 2, ("[MASK]", " ")))
    whole = made.encode(text, ["[MASK]"])
    draw = random.Random(1)
    raw, chunks = text.encode(), []
    while raw:
        at = draw.randint(1, 50_000)
        chunks.append(raw[:at])
        raw = raw[at:]
    assert np.array_equal(np.concatenate(list(made.encode_iterable(chunks, ["[MASK]"]))), whole)
    assert np.array_equal(made.encode_batch([text, "x"], ["[MASK]"]).ids[: len(whole)], whole)


def test_a_small_memory_of_words_gives_the_same_ids():
    made = wordpiece_train.train(["the cat sat on the mat"], 60)
    wanted = [made.encode_list(text) for text in ("the cat", "mat the sat xyz", "the")]
    made.remember = 1
    assert [made.encode_list(text) for text in ("the cat", "mat the sat xyz", "the")] == wanted


def test_letters_that_find_no_room_become_unknown():
    made = wordpiece_train.train(["aaa aab z"], 8, special=["[UNK]"])
    assert made.encode_list("aaa aa z")[:1] != [0]
    small = wordpiece_train.train(["aaa zzz aaa"], 3, special=["[UNK]"])
    assert small.vocabulary == ("[UNK]", "##a", "a")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: wordpiece_train.train("abc", 50), "list"),
        (lambda: wordpiece_train.train([], 50), "no text"),
        (lambda: wordpiece_train.train(["  \n"], 50), "no text"),
        (lambda: wordpiece_train.train(["a"], 5), "size"),
        (lambda: wordpiece_train.train(["a"], 5.0), "size"),
        (lambda: wordpiece_train.train(["a"], 50, special=["x", "x"]), "twice"),
        (lambda: wordpiece_train.train(["\udfff"], 50), "surrogate"),
        (lambda: WordPiece(["a"], {}), "unknown token"),
        (lambda: WordPiece(["[UNK]", "a", "a"], {"[UNK]": 0}), "another"),
        (lambda: WordPiece(["[UNK]", ""], {"[UNK]": 0}), "empty"),
        (lambda: WordPiece(["[UNK]"], {"[UNK]": 1}), "id"),
        (lambda: WordPiece(["[UNK]", "\ud800"], {"[UNK]": 0}), "UTF-8"),
        (lambda: WordPiece(["[UNK]"], {"[UNK]": 0}, pieces=Pieces(prefix="")), "prefix"),
        (lambda: WordPiece(["[UNK]"], {"[UNK]": 0}, pieces=Pieces(prefix="zz")), "prefix"),
        (lambda: WordPiece(["[UNK]"], {"[UNK]": 0}).decode([1]), "unknown id"),
        (lambda: WordPiece(["[UNK]"], {"[UNK]": 0}).stream().push(1), "unknown id"),
        (lambda: WordPiece.of({}), "facts"),
        (
            lambda: WordPiece.of({"vocabulary": ["[UNK]"], "special": {"[UNK]": 0}, "words": {}, "pieces": {}}),
            "options",
        ),
    ],
)
def test_wrong_input_is_refused(call, says):
    with pytest.raises(TokenizerError, match=says):
        call()
