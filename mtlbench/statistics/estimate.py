"""Intervals of numbers that were measured with a few seeds on a few hundred examples, both drawn at random.

A score varies because other seeds would train other models and because other examples would be asked. Every seed
answers every example, so the two are crossed and resampled together (the pigeonhole bootstrap: Owen 2007, Annals of
Applied Statistics 1(2)). Quantiles of such draws are too narrow for a handful of seeds, so the draws only give the
variance of the example level; that of the seed level is the seeds' own, and each level counts with Student's quantile
of its degrees of freedom (Banerjee 1961, Sankhya 23: such intervals never cover too little).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtlbench.api.study import Interval
from mtlbench.statistics.answers import Numbers
from mtlbench.statistics.intervals import LEVEL

_LEAST = 1e-12
"""Smallest p that is told."""
Statistic = Callable[[Numbers], Numbers]
"""From ``[..., seeds, tasks]`` to ``[...]``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """Scores of one row, or differences of two, in points."""

    seeds: tuple[int, ...]
    values: Numbers
    """``[seeds]``"""
    draws: Numbers | None = None
    """``[draws, seeds]``: the same scores on resampled examples; all rows and seeds share a draw's examples."""
    examples: int | None = None
    """Examples behind ``draws``."""

    def minus(self, other: Measured) -> Measured | None:
        """Differences by seed, over the seeds that both have; ``None`` where there is none."""
        common = tuple(sorted(set(self.seeds) & set(other.seeds)))
        if not common:
            return None
        one, two = self.only(common), other.only(common)
        paired = one.draws is not None and two.draws is not None
        return Measured(
            seeds=common,
            values=one.values - two.values,
            draws=one.draws - two.draws if one.draws is not None and two.draws is not None else None,
            examples=one.examples if paired else None,
        )

    def only(self, seeds: tuple[int, ...]) -> Measured:
        """The scores of these seeds, in this order."""
        at = [self.seeds.index(seed) for seed in seeds]
        draws = None if self.draws is None else self.draws[:, at]
        return Measured(seeds=seeds, values=self.values[at], draws=draws, examples=self.examples)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and how sure it is."""

    mean: float
    parts: tuple[tuple[float, int], ...]
    """Independent parts of the mean's variance, each with its degrees of freedom."""
    seeds: int
    examples: int | None

    def reach(self, quantile: Callable[[int], float]) -> float:
        """Half the width of an interval, given the quantile of each number of degrees of freedom."""
        return math.sqrt(sum(quantile(freedom) ** 2 * variance for variance, freedom in self.parts))

    @property
    def p(self) -> float:
        """Two-sided p of a mean of 0: 1 less the level at which the interval just leaves it out."""
        varying = [part for part in self.parts if part[0]]
        if self.mean == 0 or not varying:
            return 1.0  # what never varied is no evidence of anything
        if len(varying) == 1:
            from scipy.special import stdtr

            variance, freedom = varying[0]
            return max(_LEAST, 2 * float(stdtr(freedom, -abs(self.mean) / math.sqrt(variance))))
        from scipy.optimize import brentq

        def beyond(p: float) -> float:
            return self.reach(lambda freedom: student(freedom, p)) - abs(self.mean)

        return float(brentq(beyond, _LEAST, 1.0, xtol=1e-15, rtol=1e-10)) if beyond(_LEAST) > 0 else _LEAST

    def interval(self, *, low: float = -math.inf, high: float = math.inf) -> Interval:
        """The 95 % interval, cut where the number cannot be."""
        reach = self.reach(lambda freedom: student(freedom, 1 - LEVEL))
        return Interval(
            mean=self.mean,
            low=max(low, self.mean - reach),
            high=min(high, self.mean + reach),
            p=self.p,
            seeds=self.seeds,
            examples=self.examples,
        )


def student(freedom: int, p: float) -> float:
    """What Student's t leaves between its negative and itself with probability ``1 - p``."""
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, p / 2))


def estimate(measured: Measured) -> Estimate | None:
    """The mean over seeds; ``None`` for one seed without draws."""
    seeds = len(measured.values)
    if not np.isfinite(measured.values).all() or (seeds < 2 and measured.draws is None):
        return None
    by_seed = float(measured.values.var(ddof=1)) / seeds if seeds > 1 else 0.0
    draws = measured.draws
    together = float(draws.mean(1).var(ddof=1)) if draws is not None else 0.0
    apart = float(draws.var(0, ddof=1).mean()) / seeds if draws is not None else 0.0
    return _estimate(float(measured.values.mean()), by_seed, together, apart, seeds=seeds, examples=measured.examples)


def estimate_of(
    statistic: Statistic, values: Numbers, draws: Numbers | None, *, examples: int | None, rounds: int = 1000
) -> Estimate | None:
    """A statistic of scores ``[seeds, tasks]`` with draws ``[draws, seeds, tasks]``.

    Seeds are resampled with all their tasks: one training gives the scores of all tasks.
    """
    seeds = len(values)
    if not np.isfinite(values).all() or (seeds < 2 and draws is None):
        return None
    generator = np.random.default_rng(0)
    mean = float(statistic(values[None])[0])
    by_seed = together = apart = 0.0
    if seeds > 1:
        picked = generator.integers(0, seeds, (rounds, seeds))
        by_seed = float(statistic(values[picked]).var(ddof=1)) * seeds / (seeds - 1)
    if draws is not None:
        together = float(statistic(draws).var(ddof=1))
        shuffled = np.stack([generator.permutation(draws[:, seed]) for seed in range(seeds)], axis=1)
        apart = float(statistic(shuffled).var(ddof=1))
    return _estimate(mean, by_seed, together, apart, seeds=seeds, examples=examples)


def _estimate(
    mean: float, by_seed: float, together: float, apart: float, *, seeds: int, examples: int | None
) -> Estimate:
    """Put the levels together.

    Args:
        by_seed: Variance of the mean from seed to seed on the same examples.
        together: Variance over draws of examples that the seeds share.
        apart: Likewise, were every seed asked other examples.

    What single answers vary by is in all three; ``together - apart`` holds only what the choice of examples does,
    ``(S - 1) / S`` of it.
    """
    alone = max(0.0, together - apart) * seeds / (seeds - 1) if seeds > 1 else 0.0
    many = (examples or 2) - 1
    parts = ((by_seed, seeds - 1), (alone, many)) if by_seed > 0 else ((together, many),)
    return Estimate(mean=mean, parts=tuple(part for part in parts if part[0] > 0), seeds=seeds, examples=examples)
