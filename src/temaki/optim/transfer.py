"""Rates carried from a narrow model to a wider one (muP), rule by rule and role by role.

Yang et al. 2021, "Tensor programs V", table 3: which power of the width a rate goes with so that every activation
moves by as much in a step, however wide the model is. With r = narrow width / this width:

    role                 AdamW, Lion, Signum   Muon               SGD
    matrix               r                     by its scale       1
    head                 r                     -                  r
    embedding, vector    1                     -                  1 / r
    dynamics             1                     -                  1

Muon's update has singular values near 1, and by Yang, Simon and Bernstein 2023, "A spectral condition for feature
learning", they should be near sqrt(rows / columns): that does not change with the width where all widths of the model
grow alike, so r^0 for the scales plain, rows-over-columns and mup, and r^(1/2) for moonlight's, which grows with it.
A rate that is multiplied leaves the decay of a step, rate * weight_decay, as it is. Heads should stay of one size.
"""

from dataclasses import replace

from temaki.optim.config import MuonConfig, OptimizerConfig, SgdConfig

ENTRIES = {"matrix": 1.0, "head": 1.0}
SGD = {"head": 1.0, "embedding": -1.0, "vector": -1.0}


def power(rule: OptimizerConfig, kind: str) -> float:
    """The power of r in the table.

    >>> power(MuonConfig(scale="mup"), "matrix"), power(SgdConfig(), "vector")
    (0.0, -1.0)
    """
    match rule:
        case MuonConfig():
            return 0.5 if rule.scale == "moonlight" else 0.0
        case SgdConfig():
            return SGD.get(kind, 0.0)
        case _:
            return ENTRIES.get(kind, 0.0)


def carried(rule: OptimizerConfig, kind: str, narrower: float) -> OptimizerConfig:
    """A rule found for parameters of a role at a narrow width, for the wide one; narrower: r.

    >>> carried(MuonConfig(weight_decay=0.1), "matrix", 0.25).rate
    0.5
    """
    factor = narrower ** power(rule, kind)
    return rule if factor == 1 else replace(rule, rate=rule.rate * factor, weight_decay=rule.weight_decay / factor)
