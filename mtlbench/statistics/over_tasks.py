"""Rows compared over tasks: ranks, interquartile means, probability of improvement.

Sources: Demsar 2006, Journal of Machine Learning Research 7 (mean ranks and their diagram); Agarwal et al. 2021, arXiv
2108.13264 (interquartile mean, probability of improvement). Demsar's tests (Wilcoxon, Friedman, Nemenyi) take tasks for
independent observations, which those of one training are not; here the unit of a test is the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from mtlbench.api.study import Row
from mtlbench.statistics.answers import Numbers
from mtlbench.statistics.best import alike
from mtlbench.statistics.estimate import Measured


def ranks(scores: Numbers) -> Numbers:
    """Mean rank over tasks of each row of ``[rows, tasks]``; 1 is the highest score, ties share the mean rank."""
    from scipy import stats

    return cast(Numbers, stats.rankdata(-scores, axis=0).mean(1))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Mean ranks over tasks, and the pairs of rows that the seeds do not distinguish."""

    ranks: Mapping[str, float]
    """Row label to its mean over the seeds that all rows have."""
    tasks: int
    seeds: int
    """Seeds that all rows have; with fewer than two nothing is tested."""
    alike: frozenset[frozenset[str]]
    """Pairs whose mean ranks are not significantly different at 5 %, corrected for all pairs."""

    @property
    def cliques(self) -> list[tuple[str, ...]]:
        """Maximal runs of rows, best rank first, of which no two are significantly different; none without a test."""
        order = sorted(self.ranks, key=lambda label: (self.ranks[label], label)) if self.seeds > 1 else []
        cliques: list[tuple[str, ...]] = []
        for start in range(len(order)):
            end = start + 1
            while end < len(order) and all(frozenset((one, order[end])) in self.alike for one in order[start:end]):
                end += 1
            run = tuple(order[start:end])
            if len(run) > 1 and not (cliques and set(run) <= set(cliques[-1])):
                cliques.append(run)
        return cliques


def ranking(rows: Sequence[Row], tasks: Sequence[str]) -> Ranking | None:
    """Ranks of ``rows`` over ``tasks``; ``None`` where no seed has scores of all of them.

    The tasks of a seed come from one training, so they are no independent observations: each seed gives one mean rank
    over the tasks, and the seeds are compared, with variances moderated over the rows.
    """
    column = ranks_by_seed(rows, tasks)
    if not column:
        return None
    seeds = next(iter(column.values())).seeds
    return Ranking(
        ranks={label: float(one.values.mean()) for label, one in column.items()},
        tasks=len(tasks),
        seeds=len(seeds),
        alike=alike(column) if len(seeds) > 1 else frozenset(),
    )


def ranks_by_seed(rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, Measured]:
    """Row label to mean rank over tasks by seed, for the seeds of which all ``rows`` have all scores."""
    scores = {
        row.label: {
            record.cell.seed: values
            for record in row.records
            if record.status == "ok"
            and set(tasks) <= set(record.scores)
            and np.isfinite(values := np.array([record.scores[task].score for task in tasks])).all()
        }
        for row in rows
    }
    seeds = tuple(sorted(set.intersection(*(set(of_row) for of_row in scores.values())))) if scores else ()
    if not seeds:
        return {}
    grid = np.array([[of_row[seed] for seed in seeds] for of_row in scores.values()])
    by_seed = np.stack([ranks(grid[:, at]) for at in range(len(seeds))], axis=1)
    return {label: Measured(seeds=seeds, values=by_seed[at]) for at, label in enumerate(scores)}


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
