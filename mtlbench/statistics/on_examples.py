"""Tests of two rows on the same examples, valid for these trained models and not for other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtlbench.statistics.answers import Numbers
from mtlbench.statistics.metrics import Measure

ROUNDS = 10_000
_ENUMERATED = 13
"""Up to this many differing examples, all assignments are enumerated: the test is exact."""
_AT_ONCE = 2_000_000


@dataclass(frozen=True, kw_only=True)
class ExampleTest:
    """A two-sided test on examples."""

    name: str
    p: float
    examples: int
    differing: int
    """Examples on which the two rows score differently."""


def mcnemar(one: Numbers, other: Numbers) -> ExampleTest:
    """McNemar's exact test of right and wrong answers ``[examples]``, 1 and 0."""
    from scipy import stats

    gained, lost = int(((one == 1) & (other == 0)).sum()), int(((one == 0) & (other == 1)).sum())
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return ExampleTest(name="McNemar, exact", p=p, examples=len(one), differing=gained + lost)


def permutation(
    one: Sequence[Sequence[Measure]], other: Sequence[Sequence[Measure]], *, rounds: int = ROUNDS
) -> ExampleTest:
    """Paired permutation test of a score that is the mean of metrics over seeds.

    Under the null hypothesis the answers of the two rows to an example are exchangeable: they are swapped, for all
    seeds together.

    Args:
        one: Of each metric, the measures of the row's cells by seed.
        other: Of the other row, by the same seeds and on the same examples.
    """
    pairs = [pair for metric in zip(one, other, strict=True) for pair in zip(*metric, strict=True)]
    units = pairs[0][0].units
    differs = np.any([a.differs(b) for a, b in pairs], axis=0)
    count = int(differs.sum())
    exact = count <= _ENUMERATED
    number = 2**count if exact else rounds
    generator = np.random.default_rng(units)
    observed = abs(_difference(pairs, np.zeros((1, units)))[0])
    beyond, size = 0, max(1, _AT_ONCE // units)
    for start in range(0, number, size):
        swaps = np.zeros((min(size, number - start), units))
        if exact:
            swaps[:, differs] = (np.arange(start, start + len(swaps))[:, None] >> np.arange(count)) & 1
        else:
            swaps[:, differs] = generator.integers(0, 2, (len(swaps), count))
        beyond += int((np.abs(_difference(pairs, swaps)) >= observed - 1e-9).sum())
    p = beyond / number if exact else (1 + beyond) / (1 + number)
    name = "permutation, exact" if exact else f"permutation, {number:,} rounds"
    return ExampleTest(name=name, p=p, examples=units, differing=count)


def _difference(pairs: Sequence[tuple[Measure, Measure]], swaps: Numbers) -> Numbers:
    """Difference of the scores ``[rounds]`` with the examples in ``swaps [rounds, units]`` swapped."""
    differences = np.zeros(len(swaps))
    for one, other in pairs:
        left, right = one.swapped(other, swaps)
        differences += (left - right) / len(pairs)
    return differences
