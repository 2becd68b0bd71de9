"""Rows that are not significantly worse than the best of their column.

With three seeds the variance of a difference has two degrees of freedom. After a correction for all pairs of rows, a
test of such a difference rejects almost nothing. Variances are therefore moderated as limma does for genes (Smyth 2004,
Statistical Applications in Genetics and Molecular Biology 3(1)): that of a pair is drawn towards the mean over all
pairs of rows, and gains degrees of freedom. limma estimates the weight of that mean from the rows. A table has too few
rows for this: estimated, the rule calls equal rows worse in too many tables when two rows are noisier than the others.
The weight is fixed instead, at the largest for which it does not (docs/statistics.md has the figures).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np

from mtlbench.statistics.estimate import Estimate, Measured, estimate, student

ALPHA = 0.05
Column = Mapping[str, Measured]
"""Row label to scores."""
_SPREAD = 1e-9
"""Points below which the scores of a row's seeds are the same number."""


def as_good_as(best: str, column: Column) -> dict[str, bool]:
    """Whether each other row is not significantly worse than ``best``, which was selected on the same scores.

    The unit is the seed. Because of the selection the level is divided among all pairs of rows (Bonferroni). Rows that
    cannot be tested are omitted: those that share fewer than two seeds with ``best``, or none of which has a spread.
    """
    differences = Differences(column)
    good = {}
    for label in column:
        estimated = None if label == best else differences.of(best, label)
        if estimated is not None:
            good[label] = estimated.mean <= differences.reach(estimated)
    return good


def alike(column: Column) -> frozenset[frozenset[str]]:
    """The pairs of rows whose difference is not significant, with the correction of :func:`as_good_as`."""
    differences = Differences(column)
    found = set()
    for one, other in combinations(column, 2):
        estimated = differences.of(one, other)
        if estimated is None or abs(estimated.mean) <= differences.reach(estimated):
            found.add(frozenset((one, other)))
    return frozenset(found)


def prior_weight(rows: int) -> float:
    """Weight of the mean over all pairs of rows, in units of the degrees of freedom that a pair itself has.

    With two rows the mean is the pair itself, and with three nearly so: there it has no weight.
    """
    return 0.0 if rows < 4 else 1.0 if rows < 6 else 1.5


class Differences:
    """The differences of a column's rows, with moderated variances between seeds."""

    def __init__(self, column: Column) -> None:
        self._column = column
        self._pairs = max(1.0, len(column) * (len(column) - 1) / 2)
        self._of_all: dict[tuple[int, ...], tuple[float, float]] = {}

    def of(self, one: str, other: str) -> Estimate | None:
        """The difference ``one - other``.

        ``None`` for fewer than two shared seeds, and where neither seeds nor examples give a variance.
        """
        difference = self._column[one].minus(self._column[other])
        own = estimate(difference) if difference is not None and len(difference.seeds) > 1 else None
        if own is None or difference is None:
            return None
        if any(np.ptp(self._column[row].only(difference.seeds).values) > _SPREAD for row in (one, other)):
            own = self._moderated(own, difference)
        return own if own.components or abs(own.mean) <= _SPREAD else None

    def reach(self, estimated: Estimate) -> float:
        """Half-width of the interval at 5 % for all pairs together."""
        return estimated.reach(partial(student, p=ALPHA / self._pairs))

    def _moderated(self, own: Estimate, difference: Measured) -> Estimate:
        variance_of_all, weight = self._all_pairs(difference.seeds)
        if not weight:
            return own
        seeds, of_pair = len(difference.seeds), float(difference.values.var(ddof=1))
        between_seeds = ((of_pair + weight * variance_of_all) / (1 + weight) / seeds, (1 + weight) * (seeds - 1))
        between_examples = own.components[1:] if of_pair > 0 else own.components
        return replace(own, components=(between_seeds, *between_examples))

    def _all_pairs(self, seeds: tuple[int, ...]) -> tuple[float, float]:
        """Mean variance of a pair of the rows that have all ``seeds`` and vary, and its weight.

        A row that is not trained has the same score for every seed: its variance says nothing about that of others.
        """
        if seeds not in self._of_all:
            whole = [row.only(seeds).values for row in self._column.values() if set(seeds) <= set(row.seeds)]
            rows = [values for values in whole if np.isfinite(values).all() and np.ptp(values) > _SPREAD]
            variance = 0.0
            if weight := prior_weight(len(rows)):
                grid = np.stack(rows)
                residuals = grid - grid.mean(1, keepdims=True) - grid.mean(0) + grid.mean()
                variance = 2 * float((residuals**2).sum()) / ((len(rows) - 1) * (len(seeds) - 1))
            self._of_all[seeds] = variance, weight
        return self._of_all[seeds]
