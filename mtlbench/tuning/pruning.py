"""Pruning rules: which trials are promoted to a larger share of the budget.

A trial is never stopped inside a cell. It first runs a cell with a small share of the budget, with its whole schedule,
and then a cell with a larger share only if the rule promotes it. So every decision follows from records.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mtlbench.errors import RequestError, did_you_mean

FACTOR = 3
"""One trial in three is promoted, to three times the budget."""
MEDIAN_STARTUP = 5
"""Number of earlier scores below which the median rule promotes every trial."""

SHARES: Mapping[str, tuple[float, ...]] = {
    "none": (1.0,),
    "median": (1 / FACTOR**2, 1 / FACTOR, 1.0),
    "halving": (1 / FACTOR**2, 1 / FACTOR, 1.0),
}
"""Shares of the budget, by rule."""


def check_rule(rule: str) -> None:
    """Reject an unknown rule.

    Raises:
        RequestError: with the known rules.
    """
    if rule not in SHARES:
        raise RequestError(f"Unknown pruning {rule!r}. {did_you_mean(rule, SHARES)}")


def promoted(rule: str, score: float, earlier: Sequence[float]) -> bool:
    """Whether a trial with ``score`` gets the next share, given the scores of earlier trials at the same share.

    ``median`` promotes scores not below the median of the earlier ones (after the median stopping rule of Golovin et
    al. 2017, Vizier), ``halving`` those among the best third (asynchronous successive halving, Li et al. 2020,
    arXiv:1810.05934). Higher scores are better. Only trials with smaller numbers count, so that the answer does not
    depend on how many trials run at once.
    """
    if rule == "none":
        return True
    if rule == "median":
        return len(earlier) < MEDIAN_STARTUP or score >= statistics.median(earlier)
    better = sum(other >= score for other in earlier)
    return better < -(-(len(earlier) + 1) // FACTOR)
