"""Whether printed shares are possible as k/n for n examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WAYS = ("rounded", "truncated", "rounded or truncated")


@dataclass(frozen=True, kw_only=True)
class ShareFit:
    """How well printed shares fit ``rows`` examples."""

    rows: int
    way: str
    """How the fractions were printed: one of :data:`WAYS`, the first under which most values fit."""
    impossible: tuple[float, ...]
    """Values that are not k/n."""
    chance: float
    """Probability that as many distinct values, drawn uniformly from all printable ones, would all fit."""

    @property
    def holds(self) -> bool:
        return not self.impossible


def fit(values: Sequence[float], *, rows: int, decimals: int, unit: float) -> ShareFit:
    """The best fit of ``values`` to shares of ``rows``; a value printed with more digits is compared with all of them.

    Args:
        decimals: Digits printed after the point, for values whose last digits are zeros.
        unit: What a share of 1 is printed as: 1 or 100.
    """
    best: ShareFit | None = None
    for way in WAYS:
        impossible, chance = [], 1.0
        for value in dict.fromkeys(values):
            digits = max(decimals, printed_digits(value))
            if not is_share(value, rows=rows, digits=digits, unit=unit, way=way):
                impossible.append(value)
            chance *= _density(rows, digits=digits, unit=unit, way=way)
        candidate = ShareFit(rows=rows, way=way, impossible=tuple(impossible), chance=chance)
        if best is None or len(candidate.impossible) < len(best.impossible):
            best = candidate
    assert best is not None
    return best


def is_share(value: float, *, rows: int, digits: int, unit: float, way: str) -> bool:
    """Whether some k of ``rows`` is printed as ``value``."""
    steps = round(value * 10**digits)
    first = math.floor(value / unit * rows) - 1
    return any(steps in _printed(k, rows, digits, unit, way) for k in range(max(0, first), min(rows, first + 3) + 1))


def printed_digits(value: float) -> int:
    """Digits after the point of the shortest decimal that is ``value``."""
    return len(repr(float(value)).partition(".")[2].rstrip("0"))


def _printed(k: int, rows: int, digits: int, unit: float, way: str) -> set[int]:
    """Possible printed forms of k of ``rows``, in units of the last digit; halves may be rounded either way."""
    scaled, rest = divmod(k * round(unit) * 10**digits, rows)
    printed: set[int] = set()
    if way != "rounded":
        printed.add(scaled)
    if way != "truncated":
        printed |= {scaled + (2 * rest > rows)} if 2 * rest != rows else {scaled, scaled + 1}
    return printed


def _density(rows: int, *, digits: int, unit: float, way: str) -> float:
    """Share of the printable values that are possible."""
    possible: set[int] = set()
    total = int(round(unit) * 10**digits) + 1
    if rows >= total:
        return 1.0
    for k in range(rows + 1):
        possible |= _printed(k, rows, digits, unit, way)
    return len(possible) / total
