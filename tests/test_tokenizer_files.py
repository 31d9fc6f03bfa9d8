"""A tokenizer on disk: what is read is what was written, or an error of ours."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from temaki.base.errors import TokenizerError
from temaki.formats import tokenizer as opener
from temaki.tokens import bpe, bpe_train, characters, files, printable, sentencepiece, wordpiece_train
from temaki.tokens.bytepiece import BytePiece
from temaki.tokens.frame import Frame
from temaki.tokens.normalized import Normalized
from temaki.tokens.tokenizer import Tokenizer, fingerprint
from temaki.tokens.unigram import Unigram

TEXT = 'the cat sat on the mat, "the" cät 了了 \n\n\t\'ll \x00 ab ab'


def made(pattern: str = "gpt2") -> bpe.Bpe:
    return bpe_train.train([TEXT], 300, special=["<|endoftext|>", "<s> é\n"], pattern=pattern)


MADE: dict[str, Callable[[], Tokenizer]] = {
    "bpe": made,
    "own pattern": lambda: made(r"\S+|\s+"),
    "ranks": lambda: bpe.Bpe([bytes([b]) for b in range(256)] + [b"th", b"the", b"<s>", b""], None, {"<s>": 258}),
    "foreign layout": lambda: bpe.Bpe(
        [b"ab", *(bytes([value]) for value in reversed(range(256))), b"<s>", b"unused"], [(b"a", b"b")], {"<s>": 257}
    ),
    "characters": lambda: characters.train([TEXT]),
    "unknown characters": lambda: characters.train([TEXT], special=["<s>", "<unk>"], unknown="<unk>"),
    "wordpiece": lambda: wordpiece_train.train([TEXT], 60),
    "bytepiece": lambda: BytePiece({**{bytes([value]): 2 for value in range(256)}, b"the": 9, " cät".encode(): 3}),
    "normalized": lambda: Normalized(made(), "NFC"),
}
"""A tokenizer of each kind, and of each manner of it."""


@pytest.mark.parametrize("name", MADE)
def test_what_is_loaded_is_what_was_saved(tmp_path, name):
    tokenizer = MADE[name]()
    files.save(tokenizer, tmp_path / "new" / "tokenizer")
    loaded = files.load(tmp_path / "new" / "tokenizer")
    assert type(loaded) is type(tokenizer)
    assert (loaded.fingerprint, loaded.facts()) == (tokenizer.fingerprint, tokenizer.facts())
    assert (loaded.tokens, dict(loaded.special)) == (tokenizer.tokens, dict(tokenizer.special))
    asked = list(tokenizer.special)
    for text in (TEXT, "<s><|endoftext|>", "e\u0301 the"):
        assert loaded.encode_list(text, special=asked) == tokenizer.encode_list(text, special=asked)
    assert sorted(path.name for path in (tmp_path / "new" / "tokenizer").iterdir()) == [
        "vocabulary.json",
        "vocabulary.txt",
    ]


def test_a_unigram_model_is_loaded_as_it_was_saved(tmp_path, data):
    model = Unigram(sentencepiece.load(data("t5_spm/spiece.model")))
    files.save(model, tmp_path)
    loaded = files.load(tmp_path)
    assert type(loaded) is Unigram
    assert loaded.fingerprint == model.fingerprint
    assert loaded.encode_list(TEXT) == model.encode_list(TEXT)


def test_a_frame_goes_with_its_tokenizer(tmp_path):
    frame = Frame(before=("<|endoftext|>",), after=("<s> é\n",), ordinary=("<s> é\n",))
    files.save(made(), tmp_path, frame)
    loaded, found = files.load_framed(tmp_path)
    assert found == frame
    ids = found.around(loaded.encode("the"), loaded)
    assert loaded.decode(ids) == "<|endoftext|>the<s> é\n"
    with pytest.raises(TokenizerError, match="frame"):
        files.save(made(), tmp_path, Frame(before=("nothing",)))


def test_a_file_for_machines_is_opened_by_any_name(tmp_path):
    files.save(made(), tmp_path)
    files.save(characters.train([TEXT]), tmp_path / "other")
    (tmp_path / "other" / "vocabulary.json").rename(tmp_path / "kept.json")
    assert opener.open(tmp_path / "kept.json").kind == "characters"


def test_a_special_token_with_a_token_s_bytes_is_told_from_it(tmp_path):
    tokens = [*(bytes([value]) for value in range(256)), b"ab", b"ab"]
    lines = files.describe(bpe.Bpe(tokens, [(b"a", b"b")], {"ab": 257})).splitlines()
    assert [line.split(None, 2)[2] for line in lines[-2:]] == ["= 'a' + 'b'", "special"]


def test_every_byte_has_its_printable_character():
    shown = [printable.printable(bytes([value])) for value in range(256)]
    assert len(set(shown)) == 256
    assert all(character.isprintable() and not character.isspace() for character in shown)
    assert [printable.unprintable(character) for character in shown] == [bytes([v]) for v in range(256)]
    assert printable.printable(b" \n\x00~\xad\xff") == "ĠĊĀ~Ńÿ"  # as GPT-2's files have it
    with pytest.raises(TokenizerError, match="no byte"):
        printable.unprintable("a b")


def test_the_vocabulary_for_eyes_has_a_line_for_each_id(tmp_path):
    tokenizer = made()
    files.save(tokenizer, tmp_path)
    lines = (tmp_path / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == tokenizer.size + 1
    assert tokenizer.fingerprint in lines[0]
    assert lines[1].split() == ["0", "'<|endoftext|>'", "special"]
    for left, right in [pair for pair in tokenizer.merges if (pair[0] + pair[1]).isascii()]:
        line = lines[1 + tokenizer.id(left + right)]
        assert line.endswith(f"  {(left + right).decode()!r}  = {left.decode()!r} + {right.decode()!r}")
    assert lines[1 + 2 + 0xC3].endswith("<c3>")


def changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, **changes}


def resealed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Other facts, and the fingerprint that fits them."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        facts = {name: value for name, value in {**content["facts"], **changes}.items() if value != "left out"}
        return {**content, "facts": facts, "fingerprint": fingerprint(content["kind"], facts)}

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed(version=3), "version 3"),
        (changed(version=True), "version True"),
        (changed(kind="wordpiece"), "fingerprint"),
        (changed(kind="nothing", fingerprint="x"), "fingerprint"),
        (changed(extra=1), "'extra' is unknown"),
        (changed(frame={}), "frame"),
        (lambda c: {k: v for k, v in c.items() if k != "facts"}, "'facts' is missing"),
        (changed(facts=[]), "fingerprint"),
        (changed(fingerprint="0" * 64), "fingerprint"),
        (lambda c: {**c, "facts": {**c["facts"], "merges": c["facts"]["merges"][::-1]}}, "fingerprint"),
        (resealed(tokens="abc"), "tokens"),
        (resealed(special=[]), "special"),
        (resealed(special={"<|endoftext|>": True}), "integer"),
        (resealed(special={"": 0}), "special"),
        (resealed(merges="left out"), "'merges' is missing"),
        (resealed(merges=[[1]]), "pair"),
        (resealed(merges=[[1, 1 << 80]]), "pair"),
        (resealed(tokens=["61"], merges=[], special={}), "byte"),
        (resealed(tokens=["6"]), "hexadecimal"),
        (resealed(tokens=[None]), "hexadecimal"),
        (resealed(pattern="("), "regular expression"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused(tmp_path, change, says):
    files.save(made(), tmp_path)
    path = tmp_path / "vocabulary.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(content)), encoding="utf-8")
    with pytest.raises(TokenizerError, match=says) as caught:
        files.load(tmp_path)
    assert str(path) in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="no such file"):
        files.load(tmp_path)
    (tmp_path / "vocabulary.json").mkdir()
    with pytest.raises(TokenizerError, match="cannot be read"):
        files.load(tmp_path)


# ---- mutants ---------------------------------------------------------------------------------------------------------


def mutant(content: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(5)
    at = draw.randrange(len(content))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
    if kind == 2:
        return content[:at] + draw.randbytes(draw.randint(1, 4)) + content[at:]
    if kind == 3:
        return content[:at] + content[at + draw.randint(1, 40) :]
    return json.dumps(swapped(json.loads(content), draw)).encode()


def swapped(found: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The same JSON with one value, somewhere, replaced by another kind of value."""
    values = [
        None,
        True,
        0,
        -1,
        1 << 80,
        1.5,
        float("nan"),
        "",
        "Ġ",
        "a b",
        [],
        {},
        [["x"]],
        {"a": 1},
        "\ud800",
    ]
    here, key = found, draw.choice(list(found))
    while isinstance(here[key], dict | list) and here[key] and draw.random() < 0.8:
        here = here[key]
        key = draw.choice(list(here) if isinstance(here, dict) else range(len(here)))
    here[key] = draw.choice(values)
    return found


def survive(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """Load mutants: (refused, equal to the original); anything else raises."""
    tokenizer = made()
    files.save(tokenizer, folder, Frame(before=("<|endoftext|>",)))
    path = folder / "vocabulary.json"
    content = path.read_bytes()
    draw = random.Random(seed)
    refused = equal = 0
    for _ in range(count):
        changed = content
        for _ in range(draw.choice([1, 1, 2, 5])):
            try:
                changed = mutant(changed or b"{", draw)
            except ValueError:  # no longer JSON, so no value of it can be swapped
                changed = changed[: len(changed) // 2]
        path.write_bytes(changed)
        try:
            loaded, frame = files.load_framed(folder)
        except TokenizerError:
            refused += 1
            continue
        if b'"frame"' in changed:
            assert frame == Frame(before=("<|endoftext|>",))
        assert loaded.facts() == tokenizer.facts()
        equal += 1
    return refused, equal


def test_a_thousand_mutants_are_refused_or_equal(tmp_path):
    refused, equal = survive(tmp_path, 1_000, seed=1)
    assert refused + equal == 1_000
    assert refused > 900


@pytest.mark.slow
def test_a_hundred_thousand_mutants_are_refused_or_equal(tmp_path):
    refused, equal = survive(tmp_path, 100_000, seed=2)
    assert refused + equal == 100_000


def believed(name: str, count: int, seed: int) -> tuple[int, int]:
    """Facts with other values, as if a fingerprint had been forged: (refused, taken); anything else raises."""
    tokenizer = MADE[name]()
    content = json.dumps(tokenizer.facts())
    draw = random.Random(seed)
    refused = taken = 0
    for _ in range(count):
        facts = json.loads(content)
        for _ in range(draw.choice([1, 1, 2])):
            swapped(facts, draw)
        try:
            loaded = files.build(tokenizer.kind, facts)
            loaded.decode(loaded.encode("the cat <s>", list(loaded.special)))
        except TokenizerError:
            refused += 1
            continue
        taken += 1
    return refused, taken


@pytest.mark.parametrize("name", ["bpe", "ranks", "characters", "unknown characters", "wordpiece", "normalized"])
def test_forged_facts_are_refused_or_work(name):
    refused, taken = believed(name, 150, seed=3)
    assert refused + taken == 150
    assert refused > 50
