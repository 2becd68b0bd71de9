"""Rows compared over tasks: ranks, signed-rank tests, interquartile means, probability of improvement.

Sources: Demsar 2006, Journal of Machine Learning Research 7 (ranks, Friedman, Nemenyi, Wilcoxon); Agarwal et al. 2021,
arXiv 2108.13264 (interquartile mean, probability of improvement).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from mtlbench.statistics.answers import Numbers

ALPHA = 0.05


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of the signed-rank test that the differences on tasks are symmetric around 0; 1 where all are 0."""
    from scipy import stats

    return float(stats.wilcoxon(differences).pvalue) if any(differences) else 1.0


def ranks(scores: Numbers) -> Numbers:
    """Mean rank over tasks of each row of ``[rows, tasks]``; 1 is the highest score, ties share the mean rank."""
    from scipy import stats

    return cast(Numbers, stats.rankdata(-scores, axis=0).mean(1))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Mean ranks and their critical difference."""

    ranks: tuple[float, ...]
    tasks: int
    p: float
    """Of Friedman's test; the null hypothesis is that all rows are equal."""
    critical: float
    """Smallest difference of mean ranks that is significant at 5 % in Nemenyi's test."""

    @property
    def cliques(self) -> list[tuple[int, ...]]:
        """Maximal groups of rows within one critical difference, best first: not significantly different."""
        order = sorted(range(len(self.ranks)), key=lambda at: (self.ranks[at], at))
        cliques: list[tuple[int, ...]] = []
        for start, first in enumerate(order):
            near = [at for at in order[start:] if self.ranks[at] - self.ranks[first] < self.critical]
            if len(near) > 1 and not (cliques and set(near) <= set(cliques[-1])):
                cliques.append(tuple(near))
        return cliques


def ranking(scores: Numbers) -> Ranking:
    """Friedman's and Nemenyi's tests of ``[rows, tasks]``, at least 3 rows and 2 tasks."""
    from scipy import stats

    rows, tasks = scores.shape
    alike = bool(np.ptp(scores, axis=0).max() == 0)
    quantile = float(stats.studentized_range.ppf(1 - ALPHA, rows, np.inf)) / math.sqrt(2)
    return Ranking(
        ranks=tuple(ranks(scores).tolist()),
        tasks=tasks,
        p=1.0 if alike else float(stats.friedmanchisquare(*scores).pvalue),
        critical=quantile * math.sqrt(rows * (rows + 1) / (6 * tasks)),
    )


def interquartile_mean(scores: Numbers) -> Numbers:
    """Mean of the middle half of all scores, ``[..., seeds, tasks]`` to ``[...]``: a quarter is dropped at each end."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = int(0.25 * flat.shape[-1])
    return cast(Numbers, flat[..., cut : flat.shape[-1] - cut].mean(-1))


def improvement(one: Numbers, other: Numbers) -> Numbers:
    """Probability in percent that a run of ``one`` beats a run of ``other`` on a random task; ties count half.

    Args:
        one: ``[..., seeds, tasks]``.
        other: Likewise, with the same tasks.
    """
    pairs = one[..., :, None, :] - other[..., None, :, :]
    return cast(Numbers, 50 * (np.sign(pairs) + 1).mean((-1, -2, -3)))
