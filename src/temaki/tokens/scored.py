"""What tokenizers with probabilities share: the most probable segmentation, a random one, the n best, the lattice."""

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import utf8
from temaki.tokens.lattice import Lattice
from temaki.tokens.segmented import SegmentedTokenizer
from temaki.tokens.segmenter import Segmenter
from temaki.tokens.tokenizer import Noise, Sampling


class ScoredTokenizer(SegmentedTokenizer[Segmenter]):
    """The Tokenizer contract over pieces with scores."""

    def drawn(self, text: ndarray, noise: Noise, key: int, threads: int | None) -> ndarray:
        """The ids of a random path through a text; with the same draws the same with any number of threads. Raises
        TokenizerError for noise that is no `Sampling`, an alpha that is negative or no number."""
        if not isinstance(noise, Sampling):
            raise TokenizerError(
                "pieces with probabilities are sampled", found=type(noise).__name__, do="give Sampling"
            )
        return self.segmenter.sample(text, checked_alpha(noise.alpha), key, threads)

    def nbest(self, text: str, n: int) -> list[tuple[list[int], float]]:
        """The n most probable segmentations of a text and the logarithms of their probabilities among all. For short
        texts: plain Python. Raises TokenizerError."""
        lattice = self.lattice(text)
        whole = np.frombuffer(lattice.text, np.uint8)
        found = lattice.nbest(n)
        return [(self.spelled(lattice.ids[arcs].astype(np.uint32), whole).tolist(), log) for arcs, log in found]

    def lattice(self, text: str) -> Lattice:
        """All pieces that are in a text, with their places and scores. For short texts."""
        return self.segmenter.lattice(np.frombuffer(self.read(utf8.checked(text)), np.uint8))


def checked_alpha(alpha: float) -> float:
    """Alpha of a random segmentation. Raises TokenizerError for one that is negative or no number."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha >= 0.0:
        raise TokenizerError("alpha out of range", found=repr(alpha), allowed="0 (all alike) to infinity (the best)")
    return float(alpha)
