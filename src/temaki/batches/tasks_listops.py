"""Nested lists of digits: `[x2[n94]5]` is the largest of 2, the least of 9 and 4, and 5.

The operators are n (least), x (largest), m (median, rounded down) and s (sum modulo 10). Nangia and Bowman 2018,
"ListOps: a diagnostic dataset for latent tree learning", section 2.
"""

import numpy as np

OPERATORS = "nxms"
SYMBOLS = "0123456789[]=" + OPERATORS
NESTED = 0.35
"""Share of the arguments that are lists, where there is room for one."""
LEAST = 5
"""Ids of the shortest list: a bracket, an operator, two digits, a bracket."""


def expression(generator: np.random.Generator, depth: int, arguments: int, longest: int) -> tuple[str, int]:
    """A list of at most `depth` levels, `arguments` arguments each and `longest` characters, and its value.

    >>> expression(np.random.default_rng(3), 1, 2, 5)
    ('[s01]', 1)
    """
    operator = OPERATORS[int(generator.integers(len(OPERATORS)))]
    count = int(generator.integers(2, min(arguments, longest - LEAST + 2) + 1))
    spare = longest - LEAST + 2 - count
    texts, values = [], []
    for _ in range(count):
        if depth > 1 and spare + 1 >= LEAST and generator.random() < NESTED:
            text, value = expression(generator, depth - 1, arguments, spare + 1)
        else:
            value = int(generator.integers(10))
            text = str(value)
        spare -= len(text) - 1
        texts.append(text)
        values.append(value)
    return f"[{operator}{''.join(texts)}]", applied(operator, values)


def applied(operator: str, values: list[int]) -> int:
    """The value of a list.

    >>> applied("m", [1, 4, 2, 9]), applied("s", [7, 8])
    (3, 5)
    """
    match operator:
        case "n":
            return min(values)
        case "x":
            return max(values)
        case "s":
            return sum(values) % 10
        case _:
            order = sorted(values)
            return (order[(len(order) - 1) // 2] + order[len(order) // 2]) // 2
