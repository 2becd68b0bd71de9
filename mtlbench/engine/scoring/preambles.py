"""Which prompts begin alike for long enough that their beginning is better read once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mtlbench.engine.encode import Tokens
from mtlbench.engine.scoring.packs import TRUNK_COST, common_length

Run = tuple[int, int, int]
"""First row, last + 1, and how many tokens are read once for them; 0 for rows that are read whole."""


def shared_beginnings(rows: Sequence[Tokens], *, cost: int = TRUNK_COST) -> list[Run]:
    """Runs of sorted ``rows`` that together save most tokens; at least one token of every row stays its own.

    Args:
        cost: What a beginning read ahead has to save, in tokens.
    """
    shared = [min(common_length(a, b), len(a) - 1, len(b) - 1) for a, b in pairwise(rows)]

    def best(low: int, high: int) -> tuple[int, list[Run]]:
        if high - low == 1:
            return 0, [(low, high, 0)]
        least = min(shared[low : high - 1])
        whole = (high - low - 1) * least - cost
        ends = [low, *(at + 1 for at in range(low, high - 1) if shared[at] == least), high]
        parts = [best(*part) for part in pairwise(ends)]
        saved = sum(part for part, _ in parts)
        if whole > saved:
            return whole, [(low, high, least)]
        return saved, [run for _, runs in parts for run in runs]

    return best(0, len(rows))[1] if rows else []
