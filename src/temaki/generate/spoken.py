"""What drafting brought: counts of passes, of ids, and of what was drafted and accepted, place by place."""

from dataclasses import dataclass, field


@dataclass
class Spoken:
    """Counts of an engine since it was made. A pass is one reading of one answer's newest id, with or without a draft.

    >>> spoken = Spoken()
    >>> spoken.count(drafted=3, accepted=2, ids=3)
    >>> spoken.count(drafted=3, accepted=0, ids=1)
    >>> spoken.ids_per_pass, round(spoken.rate, 3), spoken.accepted
    (2.0, 0.333, [1, 1, 0])
    """

    passes: int = 0
    ids: int = 0
    """Ids that these passes gave; an answer's first id comes from reading its prompt."""
    drafted: list[int] = field(default_factory=list)
    """By place in the draft."""
    accepted: list[int] = field(default_factory=list)

    @property
    def ids_per_pass(self) -> float:
        """1 without drafts; 0 before anything was said."""
        return self.ids / self.passes if self.passes else 0.0

    @property
    def rate(self) -> float:
        """Share of the drafted ids that were accepted; 0 before anything was drafted."""
        drafted = sum(self.drafted)
        return sum(self.accepted) / drafted if drafted else 0.0

    def count(self, *, drafted: int, accepted: int, ids: int) -> None:
        """One pass."""
        self.passes += 1
        self.ids += ids
        missing = [0] * (drafted - len(self.drafted))
        self.drafted += missing
        self.accepted += missing
        for place in range(drafted):
            self.drafted[place] += 1
        for place in range(accepted):
            self.accepted[place] += 1
