"""What a search for rate and batch ends in, and how it is said."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from temaki.base import config as config_door
from temaki.study.fitting import Fits
from temaki.study.laws import Tradeoff
from temaki.study.range_test import RangeTest


@dataclass(frozen=True)
class Suggestion:
    """What to train with, and what was seen on the way."""

    batch: int
    """Ids a step."""
    context: int
    """Ids a row."""
    rate: float
    loss: float
    """At the end of the longest run with these settings."""
    share: float
    """Of the recipe's ids that the longest runs read; below 1 the rate was carried on from there."""
    steps: int
    """Of the whole run."""
    settings: Mapping[str, Any]
    """The tables of the recipe that say so."""
    noise: float | None
    """B_simple near the end of the best long run, ids; None: not measured."""
    tradeoff: Tradeoff | None
    """Steps against ids to one loss, from the rounds; None: they do not tell."""
    laws: Fits
    """Over each batch's best rate in the last round that has them all."""
    pairs: Mapping[int, float]
    """Batch -> best rate in that round."""
    range: RangeTest

    @property
    def rows(self) -> int:
        """Rows a step."""
        return self.batch // self.context

    @property
    def beyond(self) -> float | None:
        """The batch, in ids, beyond which more machines no longer buy time: where twice the machines save a quarter at
        most. From steps against ids where the rounds tell, else from the gradient's noise.
        """
        return self.tradeoff.noise if self.tradeoff is not None else self.noise


def text(found: Suggestion) -> str:
    """The recommendation in plain words, the laws with their residuals, and the recipe's lines to paste."""
    beyond = found.beyond
    said = f"batch {found.rows:,} rows ({found.batch:,} ids), lr {found.rate:.2e}"
    if beyond is not None:
        said += f"; beyond batch {beyond / found.context:,.0f} ({beyond:,.0f} ids) more machines no longer buy time"
    how = "a run of the full length" if found.share == 1 else f"a run of {found.share:.0%} of it, carried on from there"
    lines = [said, f"{found.steps:,} steps; loss {found.loss:.4f} in {how}"]
    lines += [
        f"  law {each.law.kind}: residual {each.residual:.1%}, "
        + ", ".join(f"{name} {value:.3g}" for name, value in asdict(each.law).items())
        for each in found.laws.fitted
    ]
    lines += [f"  law {each}" for each in found.laws.unfitted]
    if found.noise is not None:
        lines.append(f"  the gradient's noise scale near the end: {found.noise:,.0f} ids")
    if found.tradeoff is not None:
        t = found.tradeoff
        lines.append(f"  steps against ids: at least {t.steps_min:,.0f} steps, {t.examples_min:,.0f} ids")
    recipe = config_door.toml(found.settings).splitlines()
    return "\n".join([*lines, "for the recipe:", *(f"  {line}" for line in recipe if line)])
