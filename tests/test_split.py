"""Splitting: the compiled splitter is the `regex` package's, whatever the text; cuts are safe; UTF-8 is known."""

import random
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
import regex

from temaki.tokens import split, unicode, unicode_table
from temaki.tokens.kernels import match, places
from temaki.tokens.kernels import split as compiled

STRINGS = 8_000
SAME = unicode.version() == unicode_table.UNICODE
OTHER_TABLES = f"the table is of Unicode {unicode_table.UNICODE}, the regex package of {unicode.version()}"
every_pattern = pytest.mark.parametrize("name", split.PATTERNS)

ATOMS = [
    *"abszSTlLvVeErRdDmMA'\u017f",
    *("'", "'s", "'S", "'ll", "'VE", "'re", "'Ll", "'s's", "'\u017f"),
    *(" ", " ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\0", "\x1c", "\x7f"),
    *("\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\u200b", "\ufeff"),
    *"019٣½Ⅷ²𝟘߀௧",
    *"中文一龥龯々あアー한éÉǅʰßЯя҂ωΩ𐐀𐐨ªƻאक가힣䶿丁鿿꒐ꙮⴀᏣ",
    *("e\u0301", "\u0301", "\u0308", "\u093f", "ก", "ำ", "\u0488", "\u20e3", "\U000e0100", "\u180b"),
    *("!", "/", "//", "\n/", ".", "-", "_", "@", "—", "\u201c", "\u201d", "，", "。", "’"),
    *("😀", "👨\u200d👩\u200d👧", "🏳️\u200d🌈", "\u0378", "\U0010ffff", "\ue000", "\U00050000", "\u4db5䷀"),
]
"""What tells patterns apart: letters of each case and script, ends of words, each kind of space, numbers, marks, ..."""


ASCII = [atom for atom in ATOMS if atom.isascii()] + ["12", "345", "\n    ", "word", " The", "it's", "x'll've"]


def nasty(draw: random.Random, length: int) -> str:
    """A text of about that many characters that nobody would write."""
    kind = draw.random()
    if kind < 0.2:
        return "".join(draw.choices(draw.sample(ASCII, draw.randint(4, len(ASCII))), k=2 * length))
    if kind < 0.4:
        return "".join(draw.choices(draw.sample(ATOMS, draw.randint(1, 6)), k=length))
    if kind < 0.65:
        runs = (draw.choice(ATOMS) * draw.choice([1, 1, 1, 2, 3, 5, draw.randint(1, 80)]) for _ in range(length))
        return "".join(runs)[: 2 * length]
    if kind < 0.75 and SAME:
        points = [draw.randrange(draw.choice([0x250, 0x3000, 0x110000])) for _ in range(length)]
        return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    return "".join(draw.choices(ATOMS, k=length))


def texts(seed: int, count: int) -> Iterator[str]:
    draw = random.Random(seed)
    for _ in range(count):
        yield nasty(draw, draw.randint(0, draw.choice([12, 40, 200])))


def padded(text: bytes, padding: bytes = b"'s \xe4") -> np.ndarray:
    """A text as compiled code reads it; writable, since each kind of array is compiled for."""
    return np.frombuffer(bytearray(text + (padding * 64)[:64]), np.uint8)


def ends(name: str, text: bytes, room: int = 4096, padding: bytes = b"'s \xe4") -> list[int]:
    """Where the compiled splitter ends the pre-tokens, `room` of them a call."""
    buffer = padded(text, padding)
    out = np.full(room + 1, -1)
    found: list[int] = []
    at = 0
    while at < len(text):
        count, at = compiled.ends(compiled.RULES[name], buffer, at, len(text), out[:room])
        assert at == len(text) or count == room
        found += out[:count].tolist()
        assert found[-1] == at
    assert out[room] == -1
    return found


def twin_ends(words: Callable[[str], list[str]], text: str) -> list[int]:
    return list(accumulate(len(word.encode()) for word in words(text)))


def check(name: str, strings: Iterator[str]) -> None:
    words = split.Splitter(name).words
    for number, text in enumerate(strings):
        room = (4096, 4096, 1 + number % 7, 60 + number % 90)[number % 4]
        assert ends(name, text.encode(), room) == twin_ends(words, text), repr(text)


# ---- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SAME, reason=OTHER_TABLES)
def test_the_table_is_the_regex_packages():
    assert unicode.source() == Path(unicode_table.__file__).read_text(encoding="utf-8")
    which, classes = unicode.blocks()
    points = np.arange(unicode.CODE_POINTS)
    found = classes[which[points // unicode.BLOCK].astype(np.int64) * unicode.BLOCK + points % unicode.BLOCK]
    sets = {r"\p{L}": (5, 6, 7), r"\p{N}": (3,), r"\s": (1, 2), r"\p{M}": (4,), r"\p{Ll}": (6,)}
    sets |= {r"[\p{Lu}\p{Lt}]": (5,), r"[\p{Lm}\p{Lo}]": (7,), r"[\r\n]": (2,), r"[^\s\p{L}\p{N}\p{M}]": (0,)}
    text = "".join(map(chr, points.tolist()))
    for expression, wanted in sets.items():
        says = np.zeros(unicode.CODE_POINTS, bool)
        says[[match.start() for match in regex.finditer(expression, text)]] = True
        assert np.array_equal(says, np.isin(found, wanted)), expression
    assert all((classes[64 * kind : 64 * kind + 64] == kind).all() for kind in range(8))


def test_lead_bytes_that_vectors_take_for_letters():
    flat = unicode.flat()
    for first, last in ((0x400, 0x47F), (0x4E00, 0x9FFF), (0xB000, 0xCFFF)):
        assert (flat[first : last + 1] >= unicode.UPPER).all()
    assert (flat[0x4E00:0xA000] == unicode.BOTH).all()
    assert (flat[0xB000:0xD000] == unicode.BOTH).all()


# ---- pre-tokens ------------------------------------------------------------------------------------------------------


@every_pattern
def test_compiled_is_the_twin(name):
    check(name, texts(1, STRINGS))


@every_pattern
def test_one_pre_token_at_a_time(name):
    words = split.Splitter(name).words
    for text in texts(9, 1_500):
        raw = text.encode()
        buffer = padded(raw)
        found = [0]
        while found[-1] < len(raw):
            found.append(match.token_end(compiled.RULES[name], buffer, found[-1], len(raw)))
        assert found[1:] == twin_ends(words, text), repr(text)


@pytest.mark.slow
@every_pattern
def test_compiled_is_the_twin_often(name):
    check(name, texts(2, 120_000))


@every_pattern
def test_runs_across_windows(name):
    def strings() -> Iterator[str]:
        for run in "aA中1٣ !\n\t\u3000'\u0301/é😀":
            for length in (1, 2, 3, 20, 21, 22, 61, 62, 63, 64, 65, 66, 127, 128, 129, 300):
                for before, after in (
                    ("", ""),
                    ("x ", "b"),
                    ("(", " "),
                    ("1", "'s"),
                    ("中\n", "\n/x"),
                    ("\u0301", "A"),
                ):
                    yield before + run * length + after

    check(name, strings())


@every_pattern
def test_every_length_and_place_in_a_window(name):
    inner = [
        "'s",
        "'ll",
        "'x",
        "x's's",
        "a'sB",
        "12345",
        " \n b",
        "!\n/!",
        "中AA",
        "\u3000a",
        "\u2003!",
        "'\u017fa",
        "\n\n  ",
        "\n    \x0c\n x",
        "\n\t  \x0b y",
        "\n  \u3000\n",
    ]

    def strings() -> Iterator[str]:
        for length in range(200):
            yield ("The cat's 12345 toys;\n\n    it'll (be) done, " * 5)[:length]
        for fill in ("a", "ab ", "中"):
            for length in range(56, 70):
                for text in inner:
                    yield (fill * length)[:length] + text
                    yield (fill * length)[:length] + text + " and more of the same, up to the next window or so" * 2

    check(name, strings())


@every_pattern
def test_what_lies_behind_the_text_does_not_matter(name):
    draw = random.Random(3)
    for text in texts(3, 400):
        padding = bytes(draw.randrange(256) for _ in range(64))
        assert ends(name, text.encode(), padding=padding) == ends(name, text.encode(), padding=b"\0")


@every_pattern
def test_every_room(name):
    text = b"a1" * 63 + b"a" + b"!" * 100 + b" c" * 90
    whole = ends(name, text)
    for room in range(1, 300):
        assert ends(name, text, room) == whole


@every_pattern
def test_a_part_of_a_buffer_stands_alone(name):
    text = "He'll say “it's 12345”  \n\n in 2024 了！ ok".encode()
    buffer = padded(b"don'" + text + b"'s more")
    out = np.empty(100, np.int64)
    count, reached = compiled.ends(compiled.RULES[name], buffer, 4, 4 + len(text), out)
    assert reached == 4 + len(text)
    assert (out[:count] - 4).tolist() == ends(name, text)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt2", "Hello   world  \n\nI've 2024 了", "Hello|  | world|  \n|\n|I|'ve| |2024| 了"),
        ("cl100k", "I'Ve 12345\n  x(foo) !=\n\n y  \n ", "I|'Ve| |123|45|\n| | x|(foo|)| !=\n\n| y|  \n "),
        ("llama3", "y  \n ", "y|  \n| "),
        ("qwen2", "a 123", "a| |1|2|3"),
        ("smollm", "a  123 4'S's", "a|  |1|2|3| |4|'|S|'s"),
        ("o200k", "HTTPServer don't getX 中ABC 中Ab\n//x", "HTTPServer| don't| get|X| 中|ABC| 中Ab|\n|//|x"),
    ],
)
def test_examples(name, text, words):
    if name == "gpt2":
        words = words.replace("|I|'ve| |2024", "|I|'ve| 2024")
    assert split.Splitter(name).words(text) == words.split("|")
    assert ends(name, text.encode()) == list(accumulate(len(word.encode()) for word in words.split("|")))


@pytest.mark.parametrize("text", ["a", " ", "\n", "A", "中", "中A", "1", "!", "!/\n", " \n", "'s", "\u0301A", "x's"])
@every_pattern
def test_long_runs_take_linear_time(name, text):
    long = (text * 400_000)[:600_000]
    assert ends(name, long.encode())[-1] == len(long.encode())


@pytest.mark.parametrize("write", [places.write, places.write_plain])
def test_places_are_the_set_bits(write):
    draw = random.Random(8)
    for mask in [0, 1, 1 << 63, 2**64 - 1, *(draw.getrandbits(64) & draw.getrandbits(64) for _ in range(300))]:
        out = np.full(2 + places.ROOM, -1)
        write(out, 2, 1000, np.uint64(mask))
        wanted = [1000 + k for k in range(64) if mask >> k & 1]
        assert out[: 2 + len(wanted)].tolist() == [-1, -1, *wanted]


# ---- the field -------------------------------------------------------------------------------------------------------


FIELD = ["".join(random.Random(number).choices(ATOMS, k=30)) for number in range(400)]
"""Texts of characters that all tables of Unicode in use know."""


@every_pattern
def test_compiled_is_the_tokenizers_package(name):
    tokenizers = pytest.importorskip("tokenizers", reason="the package is the oracle")
    parts = tokenizers.pre_tokenizers
    if name == "smollm":
        cutter = parts.Sequence([parts.Digits(individual_digits=True), parts.ByteLevel(add_prefix_space=False)])
    else:
        expression = split.PATTERNS[name].expression.replace("{1,3}+", "{1,3}")  # there, {1,3}+ is a repetition
        cutter = parts.Split(tokenizers.Regex(expression), "isolated")
    for text in FIELD:
        found = [end for _, (_, end) in cutter.pre_tokenize_str(text)]
        assert ends(name, text.encode()) == [len(text[:end].encode()) for end in found], repr(text)


@every_pattern
def test_compiled_is_tiktoken(name):
    check_tiktoken(name, FIELD)


@pytest.mark.slow
@every_pattern
def test_compiled_is_tiktoken_often(name):
    draw = random.Random(7)
    check_tiktoken(name, ["".join(draw.choices(ATOMS, k=draw.randint(1, 60))) for _ in range(20_000)])


def check_tiktoken(name: str, strings: list[str]) -> None:
    """tiktoken gives a pre-token that is in the vocabulary as one id: so one of all ours, and of pairs of them."""
    tiktoken = pytest.importorskip("tiktoken", reason="the package is the oracle")
    ours = [cut(text.encode(), ends(name, text.encode())) for text in strings]
    known = {bytes([value]) for value in range(256)}
    for words in ours:
        known |= {*words, *(left + right for left, right in pairwise(words))}
    tokens = sorted(known)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    expression = split.PATTERNS[name].expression
    theirs = tiktoken.Encoding("theirs", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    for text, words in zip(strings, ours, strict=True):
        assert [tokens[id] for id in theirs.encode_ordinary(text)] == words, repr(text)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    return [text[begin:end] for begin, end in pairwise([0, *places])]


# ---- cuts ------------------------------------------------------------------------------------------------------------


@every_pattern
def test_safe_cuts_are_safe(name):
    draw = random.Random(4)
    rule = compiled.RULES[name]
    cuts = 0
    for text in texts(4, 4_000):
        raw = text.encode()
        cut = compiled.safe_cut(rule, padded(raw, b"\0"), 0, len(raw))
        assert cut == compiled.safe_cut(rule, padded(raw, b"\xff"), 0, len(raw))
        assert 0 <= cut < max(1, len(raw))
        if cut:
            cuts += 1
            raw += nasty(draw, draw.randint(0, 9)).encode()
            sides = ends(name, raw[:cut]), ends(name, raw[cut:])
            assert sides[0] + [cut + end for end in sides[1]] == ends(name, raw), (text, cut)
    assert cuts > 2_500


@every_pattern
def test_the_twins_cuts_are_safe(name):
    cuts = split.PATTERNS[name].cuts
    assert cuts is not None
    words = split.Splitter(name).words
    for text in texts(5, 500):
        whole = words(text)
        for cut in regex.finditer(cuts, text):
            assert words(text[: cut.start()]) + words(text[cut.start() :]) == whole


@every_pattern
def test_plain_text_is_cut_near_its_end(name):
    for text in (
        "It was the best of times, it was the worst of times",
        "满纸荒唐言，一把辛酸泪！都云作者痴，谁解其中味？",
    ):
        raw = text.encode()
        assert compiled.safe_cut(compiled.RULES[name], padded(raw, b"\0"), 0, len(raw)) > len(raw) - 40


# ---- UTF-8 -----------------------------------------------------------------------------------------------------------

PIECES = [b"a", b"abc" * 30, b"\x7f", "é".encode(), "中".encode(), "😀".encode(), b"\xed\x9f\xbf", b"\xee\x80\x80"]
BROKEN = [
    b"\x80",
    b"\xbf",
    b"\xc0\x80",
    b"\xc1",
    b"\xc3",
    b"\xe0\x80\x80",
    b"\xe0\x9f\xbf",
    b"\xe4\xb8",
    b"\xed\xa0\x80",
]
BROKEN += [
    b"\xf0\x8f\xbf\xbf",
    b"\xf0\x9f\x98",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xff",
    b"\xf0",
    b"\xe4\xb8\xad\xad",
]


def first_wrong(raw: bytes) -> int:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return -1


def test_validate_is_pythons_decoder():
    draw = random.Random(6)
    for number in range(20_000):
        whole = draw.choices(PIECES, k=draw.randint(0, 60))
        if number % 3:
            whole.insert(draw.randint(0, len(whole)), draw.choice(BROKEN))
        raw = b"".join(whole)[: draw.randint(0, 300)]
        if number % 10 == 0:
            raw = draw.randbytes(len(raw))
        buffer = padded(raw, b"\xad\x98")
        assert compiled.validate(buffer, 0, len(raw)) == first_wrong(raw), raw


def test_validate_knows_every_start_of_a_character():
    for first in range(256):
        for second in range(256):
            for place in (0, 61, 62, 63):
                raw = b"a" * place + bytes([first, second]) + b"\x80\x80" + b"b" * 70
                buffer = padded(raw, b"\0")
                assert compiled.validate(buffer, 0, len(raw)) == first_wrong(raw), raw
