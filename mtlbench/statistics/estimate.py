"""Confidence intervals of scores measured with a few seeds on a few hundred examples, both random samples.

A score varies with the seed and with the evaluation examples. Every seed answers every example, so the two are crossed
and resampled together (the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1(2)). Percentiles of such
draws are too narrow for few seeds. The draws therefore only give the variance between examples; the variance between
seeds is the sample variance, and each is scaled by Student's quantile of its degrees of freedom (Banerjee 1961,
Sankhya 23: the coverage of such intervals is never below the nominal one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mtlbench.api.study import Interval
from mtlbench.statistics.answers import Numbers

CONFIDENCE = 0.95
"""Of all confidence intervals."""
_LEAST = 1e-12
"""Smallest reported p."""
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
    """A mean with its variance components."""

    mean: float
    components: tuple[tuple[float, float], ...]
    """Independent components of the mean's variance, each with its degrees of freedom."""
    seeds: int
    examples: int | None

    def reach(self, quantile: Callable[[float], float]) -> float:
        """Half-width of an interval, given the quantile by number of degrees of freedom."""
        return math.sqrt(sum(quantile(freedom) ** 2 * variance for variance, freedom in self.components))

    @property
    def p(self) -> float:
        """Two-sided p of the null hypothesis that the mean is 0: 1 minus the level whose interval ends at 0."""
        varying = [component for component in self.components if component[0]]
        if self.mean == 0 or not varying:
            return 1.0  # without variance there is no evidence
        if len(varying) == 1:
            from scipy.special import stdtr

            variance, freedom = varying[0]
            return max(_LEAST, 2 * float(stdtr(freedom, -abs(self.mean) / math.sqrt(variance))))
        from scipy.optimize import brentq

        def beyond(p: float) -> float:
            return self.reach(lambda freedom: student(freedom, p)) - abs(self.mean)

        return float(brentq(beyond, _LEAST, 1.0, xtol=1e-15, rtol=1e-10)) if beyond(_LEAST) > 0 else _LEAST

    def interval(self, *, low: float = -math.inf, high: float = math.inf) -> Interval:
        """The 95 % interval, clipped to ``[low, high]``."""
        reach = self.reach(lambda freedom: student(freedom, 1 - CONFIDENCE))
        return Interval(
            mean=self.mean,
            low=max(low, self.mean - reach),
            high=min(high, self.mean + reach),
            p=self.p,
            seeds=self.seeds,
            examples=self.examples,
        )


def student(freedom: float, p: float) -> float:
    """Two-sided quantile of Student's t: ``|t|`` exceeds it with probability ``p``."""
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

    A seed is resampled with all its tasks, because one training run gives the scores of all tasks.
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
    """Combine the variances between seeds and between examples.

    Args:
        by_seed: Variance of the mean between seeds on the same examples.
        together: Variance over draws of examples that all seeds share.
        apart: Variance over draws of examples that are independent for each seed.

    The residual variance of single answers is in all three; ``together - apart`` is ``(S - 1) / S`` of the variance
    due to the choice of examples.
    """
    alone = max(0.0, together - apart) * seeds / (seeds - 1) if seeds > 1 else 0.0
    many = (examples or 2) - 1
    components = ((by_seed, seeds - 1), (alone, many)) if by_seed > 0 else ((together, many),)
    return Estimate(
        mean=mean,
        components=tuple(component for component in components if component[0] > 0),
        seeds=seeds,
        examples=examples,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the same order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[at] * (len(p_values) - rank)))
        adjusted[at] = largest
    return adjusted
