"""What mixers with a state of fixed size hold, counted from their fields alone (no torch). Letters: D width."""

from dataclasses import dataclass

from temaki.model.config_recurrent import (
    DeltaNetConfig,
    GruConfig,
    LruConfig,
    LstmConfig,
    Mamba2Config,
    MambaConfig,
    RecurrentConfig,
    RetNetConfig,
    RnnConfig,
    RtfConfig,
    RwkvConfig,
    S4Config,
    S4DConfig,
    S5Config,
)


@dataclass(frozen=True)
class Shapes:
    """The parameters of one layer, and what training keeps of an id."""

    matrices: tuple[tuple[int, tuple[int, ...]], ...]
    """(columns, rows of the matrices stacked in it) of each parameter whose role is "matrix"."""
    others: int
    """Numbers in all other parameters: vectors and dynamics."""
    kept: float
    """Floats an id that a forward pass keeps for the backward pass beside its input."""


def shapes(config: RecurrentConfig, d: int) -> Shapes:
    """The parameters of a layer of this kind in a model of width D.

    >>> shapes(S4DConfig(states=8), 32)
    Shapes(matrices=((32, (32, 32)), (32, (32,))), others=576, kept=448.0)
    """
    match config:
        case S4DConfig():
            return Shapes(
                ((d, (d, d)), (d, (d,))), 2 * d + 2 * d * config.states, 14.0 * d
            )  # kept: rows twice as long for the transform, their spectra, gate and value
        case S4Config():
            return Shapes(((d, (d, d)), (d, (d,))), 2 * d + 4 * d * config.states, 14.0 * d)
        case RtfConfig():
            return Shapes(((d, (d, d)), (d, (d,))), d + 2 * d * config.states, 14.0 * d)
        case S5Config() | LruConfig():
            p = config.states // 2 if config.kind == "s5" else config.states
            matrices = ((d, (d, d)), (d, (p, p)), (2 * p, (d,)), (d, (d,)))
            return Shapes(matrices, 3 * p + d, 6.0 * d + 4 * p)
        case MambaConfig():
            e, n, rank = config.expand * d, config.states, config.step_rank(d)
            matrices = ((d, (e, e)), (e, (rank, n, n)), (rank, (e,)), (e, (d,)))
            # kept: projections, convolution, its activation, steps twice, output, gate; states before every 16th id
            return Shapes(matrices, e * (config.conv + 3 + n), 11.0 * e + e * n / 16 + rank + 4 * n)
        case RetNetConfig():
            return Shapes(((d, (d,) * 4), (d, (d,))), d, 18.0 * d)
        case Mamba2Config():
            e, n, h = config.expand * d, config.states, config.heads
            read = e + 2 * n
            others = (config.conv + 1) * read + 3 * h + e
            return Shapes(((d, (e, e, n, n, h)), (e, (d,))), others, (config.conv + 4.0) * read + 10 * e)
        case RwkvConfig():
            rows = (d,) * 4 + (config.rank,)
            matrices = ((d, rows), (config.rank, (d,)), (d, (d,)))
            return Shapes(matrices, 2 * sum(rows) + 3 * d, 60.0 * d)
        case DeltaNetConfig():
            others = 3 * d * config.conv + 2 * config.heads + d
            return Shapes(((d, (d,) * 4 + (config.heads,) * 2), (d, (d,))), others, (3.0 * config.conv + 28) * d)
        case RnnConfig() | GruConfig() | LstmConfig():
            size = d if config.size is None else config.size
            gates = {"rnn": 1, "gru": 3, "lstm": 4}[config.kind]
            parts = (size,) * gates
            matrices = ((d, parts), (size, parts), (size, (d,)))
            return Shapes(matrices, gates * size, (gates + 4.0) * size)
