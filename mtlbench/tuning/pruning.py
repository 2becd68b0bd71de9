"""Which trials get more of their budget: rules on plain scores.

A pruned trial is never stopped inside a cell. It runs a cell with a small share of the budget first, whole schedule
included, and goes on to a cell with a larger share only when the rule lets it. So every decision follows from records.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mtlbench.errors import RequestError, did_you_mean

FACTOR = 3
"""One in three goes on, to three times the budget."""
ENOUGH = 5
"""Earlier scores that the median rule waits for."""

SHARES: Mapping[str, tuple[float, ...]] = {
    "none": (1.0,),
    "median": (1 / FACTOR**2, 1 / FACTOR, 1.0),
    "halving": (1 / FACTOR**2, 1 / FACTOR, 1.0),
}
"""Shares of the budget, by rule."""


def check_rule(rule: str) -> None:
    """Refuse a rule that is not known.

    Raises:
        RequestError: naming those that are.
    """
    if rule not in SHARES:
        raise RequestError(f"Unknown pruning {rule!r}. {did_you_mean(rule, SHARES)}")


def goes_on(rule: str, score: float, earlier: Sequence[float]) -> bool:
    """Whether a trial with ``score`` gets the next share, given the scores of earlier trials at the same share.

    ``median`` keeps what is not below the median of the earlier ones (after the median stopping rule of Golovin et al.
    2017, Vizier), ``halving`` what is among the best third (asynchronous successive halving, Li et al. 2020,
    arXiv:1810.05934). Higher scores are better. Only trials with smaller numbers count, so that the answer does not
    depend on how many trials run at once.
    """
    if rule == "none":
        return True
    if rule == "median":
        return len(earlier) < ENOUGH or score >= statistics.median(earlier)
    better = sum(other >= score for other in earlier)
    return better < -(-(len(earlier) + 1) // FACTOR)
