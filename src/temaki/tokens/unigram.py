"""SentencePiece unigram models: text is normalised, then cut into pieces whose probabilities have the greatest product.

Sums are float32 and ties go as in SentencePiece, so ids are the same. Source: Kudo 2018; Kudo and Richardson 2018 and
its code (unigram_model).
"""

import numpy as np
from numpy import ndarray

from temaki.tokens.scored import ScoredTokenizer
from temaki.tokens.segmenter import Segmenter
from temaki.tokens.sentencepiece import NORMAL, UNIGRAM, UNKNOWN, USER_DEFINED, Model
from temaki.tokens.sentencepiece_tokenizer import SentencePieceTokenizer

UNKNOWN_PENALTY = 10.0
"""How much less than the worst piece an unknown character scores."""


class Unigram(SentencePieceTokenizer[Segmenter], ScoredTokenizer):
    """A SentencePiece unigram model. Implements the Tokenizer contract; `encode` gives SentencePiece's ids."""

    kind = "unigram"
    type = UNIGRAM

    def __init__(self, model: Model):
        """Raises TokenizerError for a model of another type, without an unknown piece, with one twice or empty."""
        super().__init__(model)
        used = [id for id, piece in enumerate(model.pieces) if piece.type in (NORMAL, USER_DEFINED)]
        texts = [model.pieces[id].text.encode() for id in used]
        self.segmenter = Segmenter(texts, np.array(used, np.int64), _scores(model), True, self.unknown)


def _scores(model: Model) -> ndarray:
    """What each id adds to a path, float64 [V]: float32 but for user-defined ones, as SentencePiece has it."""
    normal = [piece.score for piece in model.pieces if piece.type == NORMAL]
    least, most = np.float32(min(normal, default=0.0)), np.float32(max([*normal, 1.1754943508222875e-38]))
    scores = np.zeros(len(model.pieces))
    for id, piece in enumerate(model.pieces):
        if piece.type == NORMAL:
            scores[id] = np.float32(piece.score)
        elif piece.type == USER_DEFINED:
            scores[id] = float(np.float32(len(piece.text.encode())) * most) - 0.1
        elif piece.type == UNKNOWN:
            scores[id] = least - np.float32(UNKNOWN_PENALTY)
    return scores
