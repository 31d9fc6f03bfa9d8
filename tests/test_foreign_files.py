"""GPT-2's and tiktoken's files, in and out: the ids are tiktoken's, broken files are refused."""

import base64
import gzip
import json
import random
from pathlib import Path

import pytest

import nasty
from temaki.base.errors import TokenizerError
from temaki.tokens import bpe, bpe_train, gpt2_files, merge_rules, tiktoken_files, wordpiece_train

CORPUS = ["the cat sat on the mat 1234, don't 's " * 3, "über caffè 你好世界 😀\r\n\n  \t x"]
END = "<|endoftext|>"


def made() -> bpe.Bpe:
    return bpe_train.train(CORPUS, 330, special=[END, "<s>"])


@pytest.fixture(scope="module")
def gpt2(data) -> bpe.Bpe:
    return gpt2_files.load(data("gpt2_bpe"))


def test_the_released_gpt2_vocabulary(gpt2):
    assert (gpt2.size, dict(gpt2.special)) == (50257, {END: 50256})
    assert gpt2.encode_list("Not all heroes wear capes.") == [3673, 477, 10281, 5806, 1451, 274, 13]


def test_gpt2_s_ids_are_tiktoken_s(gpt2):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken, the oracle of ranks, is missing")
    ranks = merge_rules.as_ranks(gpt2)
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    theirs = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: 50256})
    by_ranks = bpe.Bpe.from_ranks(gpt2.tokens, gpt2.special, "gpt2")
    for text in nasty.texts(500, 1, (END,)):
        wanted = theirs.encode(text, allowed_special="all")
        assert gpt2.encode_list(text, [END]) == by_ranks.encode_list(text, [END]) == wanted


def test_gpt2_s_files_are_written_and_read_again(gpt2, tmp_path):
    gpt2_files.save(gpt2, tmp_path)
    assert gpt2_files.load(tmp_path).fingerprint == gpt2.fingerprint
    (tmp_path / "vocab.json").write_bytes((tmp_path / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((tmp_path / "vocab.bpe").read_bytes())
    (tmp_path / "encoder.json").unlink()
    assert gpt2_files.load(tmp_path).fingerprint == gpt2.fingerprint


def test_any_bpe_goes_through_gpt2_s_files(tmp_path):
    tokenizer = made()
    gpt2_files.save(tokenizer, tmp_path)
    assert gpt2_files.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_ranks_are_written_and_read_again(tmp_path):
    tokenizer = made()
    tiktoken_files.save(tokenizer, tmp_path / "ranks")
    again = tiktoken_files.load(tmp_path / "ranks", "gpt2", tokenizer.special)
    assert again.tokens == tokenizer.tokens
    for text in nasty.texts(300, 2, (END, "<s>")):
        assert again.encode_list(text, [END, "<s>"]) == tokenizer.encode_list(text, [END, "<s>"])
    tiktoken_files.save(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "ranks").read_bytes()


def test_tiktoken_reads_the_ranks_we_write(tmp_path, monkeypatch):
    load = pytest.importorskip("tiktoken.load", reason="tiktoken is missing")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    tokenizer = made()
    tiktoken_files.save(tokenizer, tmp_path / "ranks")
    assert load.load_tiktoken_bpe(str(tmp_path / "ranks")) == merge_rules.as_ranks(tokenizer)


def encoder() -> dict[str, object]:
    """An encoder as the npm package writes them."""
    words = [base64.b64encode(token).decode() for token in (*(bytes([b]) for b in range(256)), b"th", b"the")]
    lines = "! 0 " + " ".join(words[:200]) + "\n! 200 " + " ".join(words[200:])
    return {
        "pat_str": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        "special_tokens": {END: 260},
        "bpe_ranks": lines,
    }


def test_an_encoder_of_npm_is_read(tmp_path):
    (tmp_path / "gpt2.json").write_text(json.dumps(encoder()))
    tokenizer = tiktoken_files.load_json(tmp_path / "gpt2.json")
    assert (tokenizer.pattern, tokenizer.size) == ("gpt2", 261)
    assert tokenizer.encode_list("the th" + END, [END]) == [257, 32, 256, 260]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "byte"),
        (b"YQ==\n", "rank"),
        (b"YQ== x\n", "rank"),
        (b"YQ== -1\n", "rank"),
        (b"YQ== 1\nYQ== 2\n", "twice"),
        (b"YQ== 1\nYg== 1\n", "two tokens"),
        (b"YQ== 999999999\n", "rank"),
        (b"YQ== 1000000\n", "most ids"),
        (b"Y= 1\n", "base64"),
        (b" 1\n", "empty"),
        (b"\xff\xff 1\n", "base64"),
        (b"YQ== 1\xff\n", "rank"),
        (b"YQ== " + b"9" * 5000, "rank"),
    ],
)
def test_broken_ranks_are_refused(tmp_path, content, says):
    (tmp_path / "ranks").write_bytes(content)
    with pytest.raises(TokenizerError, match=says) as caught:
        tiktoken_files.load(tmp_path / "ranks", "gpt2")
    assert "ranks" in str(caught.value)


def test_special_tokens_of_ranks_are_checked(tmp_path):
    tiktoken_files.save(made(), tmp_path / "ranks")
    for special, says in (({END: 5}, "two tokens"), ({"": 0}, "empty"), ({END: 10**9}, "ids"), ({END: "1"}, "ids")):
        with pytest.raises(TokenizerError, match=says):
            tiktoken_files.load(tmp_path / "ranks", "gpt2", special)


def test_what_a_format_cannot_say_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="wordpiece"):
        gpt2_files.save(wordpiece_train.train(CORPUS, 100), tmp_path)
    with pytest.raises(TokenizerError, match="wordpiece"):
        tiktoken_files.save(wordpiece_train.train(CORPUS, 100), tmp_path / "ranks")
    tokens = [b"bc", b"ab", *(bytes([value]) for value in range(256))]
    with pytest.raises(TokenizerError, match="order"):
        tiktoken_files.save(bpe.Bpe(tokens, [(b"a", b"b"), (b"b", b"c")], {}), tmp_path / "ranks")
    plain = [bytes([value]) for value in range(256)]
    late = bpe.Bpe([*plain, b"bc", b"ab", b"abc"], [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")], {})
    assert late.encode_list("abc") == [97, 256]  # by ranks it would be 258
    with pytest.raises(TokenizerError, match="merged to"):
        tiktoken_files.save(late, tmp_path / "ranks")
    unreached = bpe.Bpe([*plain, b"bc", b"ab", b"cd", b"abcd"], None, {})
    assert unreached.encode_list("abcd") == [259]  # by merges it would be a bc d
    with pytest.raises(TokenizerError, match="merged to"):
        gpt2_files.save(unreached, tmp_path)
    version = [b"#v", b"er", b"#ver", b"si", b"#versi", b"on", b"#version", b"#version!"]
    merges = [(b"#", b"v"), (b"e", b"r"), (b"#v", b"er"), (b"s", b"i"), (b"#ver", b"si"), (b"o", b"n")]
    merges += [(b"#versi", b"on"), (b"#version", b"!")]
    with pytest.raises(TokenizerError, match="cannot say"):
        gpt2_files.save(bpe.Bpe([*plain, *version], merges, {}), tmp_path)
    with pytest.raises(TokenizerError, match="no merge makes"):
        gpt2_files.save(bpe.Bpe([*tokens, b"unmade"], [(b"a", b"b"), (b"b", b"c")], {}), tmp_path)
    with pytest.raises(TokenizerError, match="alike"):
        gpt2_files.save(bpe_train.train(CORPUS, 330, special=["a"]), tmp_path)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TokenizerError, match="holds no"):
            gpt2_files.load(folder)
    with pytest.raises(TokenizerError, match="cannot be read"):
        tiktoken_files.load(tmp_path / "nowhere", "gpt2")


@pytest.mark.parametrize(
    ("encoder", "merges", "says"),
    [
        (b"{", b"", "JSON"),
        (b"[]", b"", "object"),
        (b"\xff", b"", "UTF-8"),
        (b"{}", b"", "byte"),
        (b'{"a": "1"}', b"", "number"),
        (b'{"a": true}', b"", "number"),
        (b'{"a": 0, "b": 0}', b"", "two tokens"),
        (b'{"": 0}', b"", "empty"),
        (b'{"a": 1}', b"#version: 0.2\na\n", "merge 1"),
        (b'{"a": 1}', b"a b c\n", "merge 1"),
        (b'{"a": 1}', "a \u4e00\n".encode(), "no byte"),
        (b'{"a": 1}', b"\xff", "UTF-8"),
        (b'{"a": 1000000}', b"", "most ids"),
    ],
)
def test_broken_gpt2_files_are_refused(tmp_path, encoder, merges, says):
    (tmp_path / "encoder.json").write_bytes(encoder)
    (tmp_path / "vocab.bpe").write_bytes(merges)
    with pytest.raises(TokenizerError, match=says):
        gpt2_files.load(tmp_path)


def test_broken_packed_files_are_refused(tmp_path):
    (tmp_path / "vocab.bpe").write_bytes(b"")
    packed = gzip.compress(b'{"a": 0}')
    for content in (b"", packed[:10], packed[:-4], b"no gzip", packed[:12] + b"\xff" * 9):
        (tmp_path / "encoder.json.gz").write_bytes(content)
        with pytest.raises(TokenizerError):
            gpt2_files.load(tmp_path)


def survive(folder: Path, count: int, seed: int) -> int:
    """Mutants of all three formats: how many were refused; anything but an error of ours fails."""
    tokenizer = made()
    for place in ("first", "second"):
        gpt2_files.save(tokenizer, folder / place)
    tiktoken_files.save(tokenizer, folder / "ranks")
    (folder / "npm.json").write_text(json.dumps(encoder()))
    readers = {
        "first/encoder.json": lambda: gpt2_files.load(folder / "first"),
        "second/vocab.bpe": lambda: gpt2_files.load(folder / "second"),
        "ranks": lambda: tiktoken_files.load(folder / "ranks", "gpt2", {END: 0, "<s>": 1}),
        "npm.json": lambda: tiktoken_files.load_json(folder / "npm.json"),
    }
    contents = {name: (folder / name).read_bytes() for name in readers}
    draw = random.Random(seed)
    refused = 0
    for number in range(count):
        name = list(readers)[number % len(readers)]
        content = contents[name]
        at = draw.randrange(len(content))
        broken = [
            content[:at],
            content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :],
            content[:at] + draw.randbytes(draw.randint(1, 4)) + content[at:],
            content[:at] + content[at + draw.randint(1, 40) :],
        ][draw.randrange(4)]
        (folder / name).write_bytes(broken)
        try:
            found = readers[name]()
            if number % 10 == 0:  # tables are made on first use, which takes longer than to read
                found.decode(found.encode("the cat"))
        except TokenizerError:
            refused += 1
    return refused


def test_a_thousand_mutants_are_refused_or_work(tmp_path):
    assert survive(tmp_path, 1_000, seed=1) > 500


@pytest.mark.slow
def test_a_hundred_thousand_mutants_are_refused_or_work(tmp_path):
    assert survive(tmp_path, 100_000, seed=2) > 50_000
