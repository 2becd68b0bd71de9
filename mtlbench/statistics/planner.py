"""The number of seeds needed to detect a difference, from the measured spread between seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA, POWER = 0.05, 0.8
MOST = 10_000
"""Larger numbers of seeds are not distinguished."""


@dataclass(frozen=True, kw_only=True)
class SeedPlan:
    """Number of seeds at which the paired t-test detects a true difference of :attr:`points` with the given power."""

    points: float
    level: float
    power: float
    measured: int
    """Seeds behind the spread."""
    sd: float
    """Standard deviation of the difference between seeds, in points."""
    seeds: int
    fewest: int
    """Seeds needed if the standard deviation is at the low end of its 95 % interval."""
    most: int
    """Seeds needed if it is at the high end."""


def seed_plan(differences: Sequence[float], *, points: float, level: float = ALPHA, power: float = POWER) -> SeedPlan:
    """The plan for paired differences of at least two seeds, in points; ``points`` is above 0."""
    from scipy import stats

    measured = len(differences)
    sd = float(np.std(differences, ddof=1))
    low, high = (sd * math.sqrt((measured - 1) / stats.chi2.ppf(q, measured - 1)) for q in (0.975, 0.025))
    needed = [seeds_for(points / one if one else math.inf, level=level, power=power) for one in (sd, low, high)]
    return SeedPlan(
        points=points,
        level=level,
        power=power,
        measured=measured,
        sd=sd,
        seeds=needed[0],
        fewest=needed[1],
        most=needed[2],
    )


def seeds_for(effect: float, *, level: float = ALPHA, power: float = POWER) -> int:
    """Fewest seeds, at least 2 and at most :data:`MOST`, at which the two-sided paired t-test detects an effect of
    this many standard deviations with this power."""
    low, high = 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, middle, level=level) >= power else (middle, high)
    return high


def power_of(effect: float, seeds: int, *, level: float = ALPHA) -> float:
    """Probability that the two-sided one-sample t-test detects a mean of ``effect`` standard deviations."""
    from scipy import stats

    if math.isinf(effect):
        return 1.0
    critical = float(stats.t.ppf(1 - level / 2, seeds - 1))
    shift = effect * math.sqrt(seeds)
    tails = [float(stats.nct.sf(critical, seeds - 1, shift)), float(stats.nct.cdf(-critical, seeds - 1, shift))]
    return sum(tail for tail in tails if math.isfinite(tail))
