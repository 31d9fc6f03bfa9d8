"""Training of WordPiece: the most frequent pair of neighbours is joined, as in BPE, with pieces marked by their place.

This is what the `tokenizers` package calls its WordPiece trainer. The score of the original paper (the gain in
likelihood, count of the pair over the product of its parts' counts) was never released and is not used. Ties: the
greatest pair of bytes, a piece that begins a word counted with a space before it. Source: Sennrich et al. 2016.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from temaki.base.errors import TokenizerError
from temaki.tokens import split, utf8
from temaki.tokens.pairs import PairTable
from temaki.tokens.wordpiece import SPECIAL, Pieces, WordPiece, Words


def train(
    texts: Iterable[str],
    size: int,
    special: Sequence[str] = SPECIAL,
    words: Words | None = None,
    pieces: Pieces | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WordPiece:
    """Learn a vocabulary of `size` ids: special tokens, the characters of the corpus, pieces in the order learned.

    A character is two pieces, at the beginning of a word and inside; where `size` has no room for all, the most
    frequent are kept and words with others become the unknown token. The unknown token is appended to `special` if it
    is not there. Stops early, with a smaller `.size`, when no pair is left. `progress(ids so far, size)` is called
    after each piece. Raises TokenizerError for a size without room, an empty corpus, unusable special tokens.

    >>> train(["low low lower lowest"], size=20).encode_list("lower") == [train(["low low lower"], 14).special["[UNK]"]]
    False
    """
    words, pieces = words or Words(), pieces or Pieces()
    split.check_special(special)
    named = list(special) if pieces.unknown in special else [*special, pieces.unknown]
    if isinstance(size, bool) or not isinstance(size, int) or not len(named) < size < 1 << 32:
        raise TokenizerError("vocabulary size out of range", found=repr(size), allowed=f"{len(named) + 1} and more")
    counts = count_words(texts, named, words, pieces.longest)
    if not counts:
        do = f"give a text with words of at most {pieces.longest} characters"
        raise TokenizerError("no text to learn a vocabulary from", do=do)
    room = size - len(named)
    letters = alphabet(counts)[:room]
    table = PairTable(_spelled(counts, letters), letters)
    found = dict.fromkeys(letters)  # in order, each once: two pairs may join to the same piece
    while len(found) < room and (pair := table.best()) is not None:
        found[table.tokens[table.merge(pair)]] = None
        if progress is not None:
            progress(len(named) + len(found), size)
    vocabulary = named + [_written(token, pieces.prefix) for token in found]
    return WordPiece(vocabulary, {text: id for id, text in enumerate(named)}, words, pieces)


def count_words(texts: Iterable[str], special: Sequence[str], words: Words, longest: int) -> Counter[str]:
    """How often each word of at most `longest` characters occurs, special tokens left out. Raises TokenizerError."""
    if isinstance(texts, str):
        raise TokenizerError("texts are a list of texts", found="one text", do="write [text]")
    counts: Counter[str] = Counter()
    for text in texts:
        for part, is_special in split.parts(utf8.checked(text), special):
            if not is_special:
                counts.update(words.split(part))
    return Counter({word: count for word, count in counts.items() if len(word) <= longest})


def alphabet(counts: Counter[str]) -> list[bytes]:
    """The characters by place (with a space before one that begins a word), most frequent first."""
    found: Counter[bytes] = Counter()
    for word, count in counts.items():
        for letter in _letters(word):
            found[letter] += count
    return sorted(found, key=lambda letter: (-found[letter], letter))


def _letters(word: str) -> list[bytes]:
    return [(" " + word[0]).encode(), *(character.encode() for character in word[1:])]


def _spelled(counts: Counter[str], letters: Sequence[bytes]) -> Iterable[tuple[list[int], int]]:
    """Each word as letters of the alphabet, and its count; words with other letters are left out."""
    symbols = {letter: symbol for symbol, letter in enumerate(letters)}
    for word, count in counts.items():
        spelled = [symbols.get(letter) for letter in _letters(word)]
        if None not in spelled:
            yield [symbol for symbol in spelled if symbol is not None], count


def _written(token: bytes, prefix: str) -> str:
    text = token.decode()
    return text[1:] if text.startswith(" ") else prefix + text
