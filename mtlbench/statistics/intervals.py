"""The level of all confidence intervals, and Holm's correction for multiple tests; without numpy."""

from __future__ import annotations

from collections.abc import Sequence

LEVEL = 0.95


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the same order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[at] * (len(p_values) - rank)))
        adjusted[at] = largest
    return adjusted
