"""A tokenizer on disk: what is read is what was written, or an error of ours."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from temaki.base.errors import TokenizerError
from temaki.tokens import bpe, files

TEXT = 'the cat sat on the mat, "the" cät 了了 \n\n\t\'ll \x00 ab ab'


def made(pattern: str = "gpt2") -> bpe.Bpe:
    return bpe.train([TEXT], 300, special=["<|endoftext|>", "<s> é\n"], pattern=pattern)


@pytest.mark.parametrize("pattern", ["gpt2", r"\S+|\s+"])
def test_what_is_loaded_is_what_was_saved(tmp_path, pattern):
    tokenizer = made(pattern)
    files.save(tokenizer, tmp_path / "new" / "tokenizer")
    loaded = files.load(tmp_path / "new" / "tokenizer")
    assert isinstance(loaded, bpe.Bpe)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.tokens, loaded.merges, loaded.pattern) == (tokenizer.tokens, tokenizer.merges, pattern)
    assert dict(loaded.special) == dict(tokenizer.special)
    asked = list(tokenizer.special)
    assert loaded.encode_list(TEXT, special=asked) == tokenizer.encode_list(TEXT, special=asked)
    assert sorted(path.name for path in (tmp_path / "new" / "tokenizer").iterdir()) == [
        "vocabulary.json",
        "vocabulary.txt",
    ]


def test_a_foreign_layout_keeps_its_ids(tmp_path):
    tokens = [b"ab", *(bytes([value]) for value in reversed(range(256))), b"<s>", b"unused"]
    tokenizer = bpe.Bpe(tokens, [(b"a", b"b")], {"<s>": 257})
    files.save(tokenizer, tmp_path)
    assert files.load(tmp_path).encode_list("abc<s>", special=["<s>"]) == [0, 1 + 255 - ord("c"), 257]


def test_every_byte_has_its_printable_character():
    characters = [files.printable(bytes([value])) for value in range(256)]
    assert len(set(characters)) == 256
    assert all(character.isprintable() and not character.isspace() for character in characters)
    assert [files.unprintable(character) for character in characters] == [bytes([v]) for v in range(256)]
    assert files.printable(b" \n\x00~\xad\xff") == "ĠĊĀ~Ńÿ"  # as GPT-2's files have it
    with pytest.raises(TokenizerError, match="no byte"):
        files.unprintable("a b")


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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed(version=2), "version 2"),
        (changed(kind="wordpiece"), "wordpiece"),
        (changed(extra=1), "'extra' is unknown"),
        (lambda c: {k: v for k, v in c.items() if k != "merges"}, "'merges' is missing"),
        (changed(tokens="abc"), "tokens must be of type list"),
        (changed(special=[]), "special must be of type dict"),
        (lambda c: {**c, "special": {**c["special"], "<|endoftext|>": True}}, "integers"),
        (lambda c: {**c, "tokens": [*c["tokens"], 7]}, "int at place"),
        (lambda c: {**c, "tokens": [*c["tokens"], " "]}, "no byte"),
        (lambda c: {**c, "merges": [*c["merges"], "ab"]}, "space between"),
        (lambda c: {**c, "merges": c["merges"][::-1]}, "fingerprint"),
        (changed(pattern="gpt3"), "gpt2"),
        (changed(pattern="("), "regular expression"),
        (changed(fingerprint="0" * 64), "fingerprint"),
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


# ---- mutants ---------------------------------------------------------------------------------------------


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
    return swapped(content, draw)


def swapped(content: bytes, draw: random.Random) -> bytes:
    """The same JSON with one value, somewhere, replaced by another kind of value."""
    found = json.loads(content)
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
    return json.dumps(found).encode()


def survive(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """Load mutants: (refused, equal to the original); anything else raises."""
    tokenizer = made()
    files.save(tokenizer, folder)
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
            loaded = files.load(folder)
        except TokenizerError:
            refused += 1
            continue
        assert isinstance(loaded, bpe.Bpe)
        assert (loaded.tokens, loaded.merges, loaded.pattern) == (
            tokenizer.tokens,
            tokenizer.merges,
            tokenizer.pattern,
        )
        assert dict(loaded.special) == dict(tokenizer.special)
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
