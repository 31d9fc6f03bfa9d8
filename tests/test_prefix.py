"""Search by byte prefix and token healing, compared with looking at every token."""

import random

import pytest

from temaki.base.errors import TokenizerError
from temaki.tokens import bpe, prefix
from temaki.tokens.characters import Characters


def vocabulary(draw: random.Random) -> list[bytes]:
    letters = [0x61, 0x62, 0xC3, 0xFE, 0xFF, 0x00]
    found = {bytes(draw.choices(letters, k=draw.randint(0, 4))) for _ in range(draw.randint(0, 60))}
    return draw.sample(sorted(found), len(found))


@pytest.mark.parametrize("seed", range(20))
def test_the_index_finds_what_looking_at_every_token_finds(seed):
    draw = random.Random(seed)
    tokens = vocabulary(draw)
    special = set(draw.sample(range(len(tokens)), len(tokens) // 5))
    index = prefix.PrefixIndex(tokens, special)
    plain = [(token, id) for id, token in enumerate(tokens) if id not in special and token]
    for _ in range(100):
        asked = bytes(draw.choices([0x61, 0x62, 0xC3, 0xFE, 0xFF, 0x00], k=draw.randint(0, 4)))
        assert sorted(index.starting_with(asked)) == sorted(id for token, id in plain if token.startswith(asked))
        inside = [id for token, id in plain if asked.startswith(token) and token != asked]
        assert sorted(index.inside(asked)) == sorted(inside)


def tokenizer() -> bpe.Bpe:
    words = [b"import", b" numpy", b" as", b" np"]
    merges: list[tuple[bytes, bytes]] = []
    for word in words:
        merges += [(word[:at], word[at : at + 1]) for at in range(1, len(word))]
    merges += [(b"import", b" numpy"), (b"import numpy", b" as"), (b"import numpy as", b" np")]
    known = dict.fromkeys(merges)
    return bpe.from_merges(list(known), ["<s>"], pattern=r"[\s\S]+")


def test_healing_steps_back_and_finds_the_longer_token():
    made = tokenizer()
    whole = made.encode_list("import numpy as np")
    assert len(whole) == 1
    prompt = made.encode_list("<s>import numpy", ["<s>"])
    found = prefix.heal(made, prompt)
    assert (found.kept, found.rest) == ([made.special["<s>"]], b"import numpy")
    longer = {token for token in made.tokens if token.startswith(b"import numpy")}
    assert {made.tokens[id] for id in found.candidates} == longer
    assert {b"import numpy", b"import numpy as", b"import numpy as np"} <= longer


def test_healing_of_several_tokens_takes_prefixes_as_well():
    made = Characters([], ["<s>"])
    ids = made.encode_list("<s>ab", ["<s>"])
    assert prefix.heal(made, ids, back=1) == prefix.Healed([0, ids[1]], b"b", [ids[2]])
    assert prefix.heal(made, ids, back=2) == prefix.Healed([0], b"ab", [ids[1]])
    assert prefix.heal(made, ids, back=9) == prefix.heal(made, ids, back=2)  # a special token is never taken back
    index = prefix.PrefixIndex.of(made)
    assert prefix.candidates(index, b"b") == [ids[2]]


def test_a_tail_that_nothing_goes_on_from_is_its_own_only_candidate():
    made = bpe.from_merges([(b"a", b"b")], ["<s>"])
    ids = made.encode_list("xab")
    assert prefix.heal(made, ids) == prefix.Healed(ids[:-1], b"ab", [ids[-1]])


def test_there_may_be_nothing_to_heal():
    made = Characters([], ["<s>"])
    assert prefix.heal(made, []) == prefix.Healed([], b"", [])
    assert prefix.heal(made, [0]) == prefix.Healed([0], b"", [])
    assert prefix.heal(made, [1, 2], back=0) == prefix.Healed([1, 2], b"", [])
    assert prefix.heal(made, [98], back=5).kept == []


@pytest.mark.parametrize("back", [-1, 1.0, True, None])
def test_a_wrong_number_of_steps_is_refused(back):
    with pytest.raises(TokenizerError, match="step back"):
        prefix.heal(Characters([], ["<s>"]), [1], back=back)


@pytest.mark.parametrize("id", [-1, 257, 1 << 40])
def test_an_unknown_id_is_refused(id):
    with pytest.raises(TokenizerError, match="unknown id"):
        prefix.heal(Characters([], ["<s>"]), [1, id])
    with pytest.raises(TokenizerError, match="unknown id"):
        prefix.heal(Characters([], ["<s>"]), [id, 1])
