"""How tasks of different sizes share a batch, as words."""

from __future__ import annotations

import math
from collections.abc import Callable

from mtlbench.errors import RequestError

Weigh = Callable[[int], float]
"""From the rows of a task to its weight in the mixture."""


def parse_mixing(words: str) -> Weigh:
    """The weight of a task from its rows: ``proportional``, ``uniform``, ``temperature:T`` (n^(1/T)), ``capped:ROWS``.

    Raises:
        RequestError: for anything else.
    """
    kind, _, argument = words.partition(":")
    if words == "proportional":
        return float
    if words == "uniform":
        return lambda rows: float(rows > 0)
    try:
        value = float(argument)
    except ValueError:
        value = 0.0
    if math.isfinite(value):
        if kind == "temperature" and value > 0:
            return lambda rows: float(rows) ** (1 / value)
        if kind == "capped" and value >= 1 and value.is_integer():
            return lambda rows: min(float(rows), value)
    raise RequestError(
        f"mixing={words!r} is not known. Known: proportional, uniform, temperature:T with T > 0, such as "
        "temperature:2, capped:ROWS with ROWS >= 1, such as capped:10000."
    )
