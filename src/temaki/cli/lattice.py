"""The lattice of a text under a unigram model, drawn: the pieces that are in it, the best paths, and sampled ones."""

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

from temaki.base.errors import TokenizerError
from temaki.cli.pieces import shown
from temaki.tokens.lattice import Lattice
from temaki.tokens.scored import ScoredTokenizer, checked_alpha
from temaki.tokens.tokenizer import Sampling, Tokenizer

LONGEST = 300
"""Bytes of a text that can be looked at."""
DRAWS = 1000
"""Random segmentations that are drawn."""
RARE = 0.001
"""Pieces whose probability is less are counted and not shown."""
WIDE = 20
"""Characters of the longest bar."""


def found(tokenizer: Tokenizer, text: str, alpha: float, paths: int) -> dict[str, Any]:
    """Pieces with scores and probabilities, the best paths, and sampled paths with their drawn and exact shares.

    Probabilities of pieces and paths are those of the model (alpha = 1); sampled paths are weighed by alpha. Raises
    TokenizerError for a kind without a lattice, a text that is empty or too long, an alpha out of range.
    """
    if not isinstance(tokenizer, ScoredTokenizer):
        raise TokenizerError(f"a {tokenizer.kind} tokenizer has no lattice", do="use --merges, or leave --lattice out")
    size = len(text.encode("utf-8"))
    if not 0 < size <= LONGEST:
        raise TokenizerError("the text cannot be drawn", found=f"{size} bytes", allowed=f"1 to {LONGEST} bytes")
    checked_alpha(alpha)
    lattice = tokenizer.lattice(text)
    return {
        "text": lattice.text.decode("utf-8", "replace"),
        "alpha": alpha,
        "pieces": _pieces(lattice),
        "paths": [_path(lattice, arcs, log) for arcs, log in lattice.nbest(paths)],
        "draws": DRAWS,
        "sampled": _sampled(tokenizer, text, lattice, alpha, paths),
    }


def table(found: Mapping[str, Any]) -> str:
    """The drawing: each piece under its place in the text, then the paths."""
    told = [piece for piece in found["pieces"] if piece["probability"] >= RARE]
    rare = len(found["pieces"]) - len(told)
    text = shown(found["text"].encode("utf-8"))
    room = _width(text) + 2
    lines = [f"{_padded(text, room)}probability  score"]
    for piece in told:
        bar = "█" * max(1, round(WIDE * piece["probability"]))
        drawn = _padded(" " * piece["column"] + piece["piece"], room)
        lines.append(f"{drawn}{piece['probability']:>11.3f} {piece['score']:>6.2f}  {bar}")
    lines += [f"and {rare} pieces with less than {RARE:g}"] if rare else []
    lines += ["", "best paths: probability, score, pieces"]
    lines += [f"{p['probability']:>7.4f} {p['score']:>8.2f}  {'|'.join(p['pieces'])}" for p in found["paths"]]
    lines += ["", f"sampled with alpha {found['alpha']:g}: share of {found['draws']:,} draws, exact share, pieces"]
    for each in found["sampled"]:
        exact = "-" if each["exact"] is None else f"{each['exact']:.4f}"
        lines.append(f"{each['drawn']:>7.4f} {exact:>8}  {'|'.join(each['pieces'])}")
    return "\n".join(lines)


def _pieces(lattice: Lattice) -> list[dict[str, Any]]:
    """Every piece with its place (bytes), the column where it is drawn, its score and probability."""
    rows = zip(lattice.begins, lattice.ends, lattice.ids, lattice.scores, lattice.marginals(), strict=True)
    return [
        {
            "begin": int(begin),
            "end": int(end),
            "id": int(id),
            "piece": shown(lattice.text[begin:end]),
            "column": _width(shown(lattice.text[:begin].decode("utf-8", "ignore").encode("utf-8"))),
            "score": float(score),
            "probability": float(probability),
        }
        for begin, end, id, score, probability in rows
    ]


def _path(lattice: Lattice, arcs: list[int], log: float) -> dict[str, Any]:
    return {
        "pieces": [shown(lattice.text[lattice.begins[arc] : lattice.ends[arc]]) for arc in arcs],
        "score": float(sum(lattice.scores[arc] for arc in arcs)),
        "probability": math.exp(log),
    }


def _sampled(tokenizer: ScoredTokenizer, text: str, lattice: Lattice, alpha: float, most: int) -> list[dict[str, Any]]:
    """The paths that were drawn most often; their exact share is exp(alpha * score) over the sum of all paths'."""
    drawn = Counter(tuple(tokenizer.encode(text, noise=Sampling(0, place, alpha)).tolist()) for place in range(DRAWS))
    scores = {int(id): float(score) for id, score in zip(lattice.ids, lattice.scores, strict=True)}
    whole = float(lattice.logs(alpha)[0][-1]) if math.isfinite(alpha) else math.inf
    made = []
    for ids, count in drawn.most_common(most):
        known = math.isfinite(whole) and all(id in scores for id in ids)
        exact = math.exp(alpha * sum(scores[id] for id in ids) - whole) if known else None
        pieces = [shown(tokenizer.tokens[id]) for id in ids]
        made.append({"pieces": pieces, "drawn": count / DRAWS, "exact": exact})
    return made


def _width(text: str) -> int:
    """Cells that a text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    silent = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - silent


def _padded(text: str, width: int) -> str:
    return text + " " * max(1, width - _width(text))
