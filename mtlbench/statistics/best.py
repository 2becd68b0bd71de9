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

import numpy as np

from mtlbench.statistics.answers import Numbers
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
    pairs = _pairs(column)
    good = {}
    for label in column:
        estimated = None if label == best else moderated(column, best, label)
        if estimated is not None:
            good[label] = estimated.mean <= estimated.reach(partial(student, p=ALPHA / pairs))
    return good


def alike(column: Column) -> frozenset[frozenset[str]]:
    """The pairs of rows whose difference is not significant, with the correction of :func:`as_good_as`."""
    labels, pairs = list(column), _pairs(column)
    found = set()
    for at, one in enumerate(labels):
        for other in labels[at + 1 :]:
            estimated = moderated(column, one, other)
            if estimated is None or abs(estimated.mean) <= estimated.reach(partial(student, p=ALPHA / pairs)):
                found.add(frozenset((one, other)))
    return frozenset(found)


def moderated(column: Column, one: str, other: str) -> Estimate | None:
    """The difference ``one - other`` with the moderated variance between seeds.

    ``None`` for fewer than two shared seeds, and where neither seeds nor examples give a variance.
    """
    difference = column[one].minus(column[other])
    if difference is None or len(difference.seeds) < 2:
        return None
    own = estimate(difference)
    if own is None:
        return None
    spread = _rows_with_spread(column, difference.seeds)
    if spread is not None and any(np.ptp(column[row].only(difference.seeds).values) > _SPREAD for row in (one, other)):
        own = _towards(own, difference, spread)
    return own if own.components or abs(own.mean) <= _SPREAD else None


def prior_weight(rows: int) -> float:
    """Weight of the mean over all pairs of rows, in units of the degrees of freedom that a pair itself has.

    With two rows the mean is the pair itself, and with three nearly so: there it has no weight.
    """
    return 0.0 if rows < 4 else 1.0 if rows < 6 else 1.5


def _towards(own: Estimate, difference: Measured, spread: Numbers) -> Estimate:
    """``own`` with its variance between seeds drawn towards that of all pairs of the rows ``[rows, seeds]``."""
    rows, seeds = spread.shape
    weight = prior_weight(rows)
    if not weight:
        return own
    residuals = spread - spread.mean(1, keepdims=True) - spread.mean(0) + spread.mean()
    of_all = 2 * float((residuals**2).sum()) / ((rows - 1) * (seeds - 1))
    of_pair = float(difference.values.var(ddof=1))
    between_seeds = ((of_pair + weight * of_all) / (1 + weight) / seeds, (1 + weight) * (seeds - 1))
    between_examples = own.components[1:] if of_pair > 0 else own.components
    return replace(own, components=(between_seeds, *between_examples))


def _rows_with_spread(column: Column, seeds: tuple[int, ...]) -> Numbers | None:
    """Scores ``[rows, seeds]`` of the rows that have all ``seeds`` and are not the same for each.

    A row that is not trained has the same score for every seed: its variance says nothing about that of the others.
    """
    whole = [one.only(seeds).values for one in column.values() if set(seeds) <= set(one.seeds)]
    varying = [values for values in whole if np.isfinite(values).all() and np.ptp(values) > _SPREAD]
    return np.stack(varying) if len(varying) > 1 else None


def _pairs(column: Column) -> float:
    return max(1.0, len(column) * (len(column) - 1) / 2)
