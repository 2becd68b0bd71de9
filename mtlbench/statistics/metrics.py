"""Metrics as functions of sums over examples, so that one matrix product scores thousands of resamples.

Every metric is checked against the recorded score before it is used (:func:`measured`), so that a metric with the same
name and another definition is never resampled by mistake.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mtlbench.api.record import TaskScore
from mtlbench.api.study import TaskAnswers
from mtlbench.statistics.answers import Numbers

_EQUAL = 1e-6


class Measure(ABC):
    """A metric over the stored items of one task."""

    units: int
    """Number of resampled units: documents, or groups of documents such as all answers to a question."""

    @abstractmethod
    def of(self, weights: Numbers) -> Numbers:
        """The metric ``[draws]`` where unit ``u`` counts ``weights[draw, u]`` times."""

    @abstractmethod
    def differs(self, other: Measure) -> NDArray[np.bool_]:
        """Units ``[units]`` that are scored differently for another cell on the same examples."""

    @abstractmethod
    def swapped(self, other: Measure, swaps: Numbers) -> tuple[Numbers, Numbers]:
        """The metric of both cells ``[rounds]`` where they swap the answers that ``swaps [rounds, units]`` marks."""


@dataclass(frozen=True, eq=False)
class Sums(Measure):
    """A metric that is a function of sums over units."""

    features: Numbers
    """``[units, sums]``"""
    kind: str
    """Name in :data:`_FINISH`."""

    @property
    def units(self) -> int:  # type: ignore[override]
        return len(self.features)

    def of(self, weights: Numbers) -> Numbers:
        return finish(self.kind, weights @ self.features)

    def differs(self, other: Measure) -> NDArray[np.bool_]:
        assert isinstance(other, Sums)
        differing: NDArray[np.bool_] = (self.features != other.features).any(1)
        return differing

    def swapped(self, other: Measure, swaps: Numbers) -> tuple[Numbers, Numbers]:
        assert isinstance(other, Sums)
        moved = swaps @ (other.features - self.features)
        sums = self.features.sum(0) + moved, other.features.sum(0) - moved
        return finish(self.kind, sums[0]), finish(other.kind, sums[1])


@dataclass(frozen=True, eq=False)
class RankCorrelation(Measure):
    """Spearman's correlation: ranks change with the resample, so it is not a function of sums."""

    pairs: Numbers
    """``[units, 2]``"""

    @property
    def units(self) -> int:  # type: ignore[override]
        return len(self.pairs)

    def of(self, weights: Numbers) -> Numbers:
        ranks = [_ranks(side, weights) for side in self.pairs.T]
        total = weights.sum(1, keepdims=True)
        left, right = (rank - (weights * rank).sum(1, keepdims=True) / total for rank in ranks)
        bottom = np.sqrt((weights * left**2).sum(1) * (weights * right**2).sum(1))
        return _ratio((weights * left * right).sum(1), bottom)

    def differs(self, other: Measure) -> NDArray[np.bool_]:
        assert isinstance(other, RankCorrelation)
        differing: NDArray[np.bool_] = (self.pairs != other.pairs).any(1)
        return differing

    def swapped(self, other: Measure, swaps: Numbers) -> tuple[Numbers, Numbers]:
        assert isinstance(other, RankCorrelation)
        gold, mine, theirs = self.pairs[:, 0], self.pairs[:, 1], other.pairs[:, 1]
        marked = swaps.astype(bool)
        mixed = np.where(marked, theirs, mine), np.where(marked, mine, theirs)
        return _rank_correlations(gold, mixed[0]), _rank_correlations(gold, mixed[1])


def measured(name: str, items: Sequence[Numbers], recorded: Sequence[float]) -> list[Measure] | None:
    """The metric ``name`` of several cells, or ``None`` where no known definition gives all recorded values.

    Args:
        items: What each cell's metric aggregates, ``[rows]`` or ``[rows, numbers]``.
        recorded: Each cell's value, as computed by lm-eval.
    """
    classes = np.unique(np.concatenate([cell.reshape(len(cell), -1)[:, -2:] for cell in items]))
    for form in _FORMS.get((name.partition(",")[0], items[0].ndim if items[0].ndim == 1 else items[0].shape[1]), ()):
        made = [form(cell, classes) for cell in items]
        ones = [np.ones((1, measure.units)) for measure in made]
        values = [float(measure.of(one)[0]) for measure, one in zip(made, ones, strict=True)]
        if np.allclose(values, recorded, rtol=0, atol=_EQUAL):
            return made
    return None


def measures(scores: Sequence[TaskScore], answers: Sequence[TaskAnswers]) -> list[list[Measure]] | None:
    """For each metric of a task the measures of several cells, or ``None`` where one cannot be recomputed."""
    by_metric = []
    for metric in scores[0].metrics:
        name = metric.partition(",")[0]
        if any(name not in cell.items for cell in answers) or any(metric not in score.metrics for score in scores):
            return None
        made = measured(name, [cell.items[name] for cell in answers], [score.metrics[metric] for score in scores])
        if made is None:
            return None
        by_metric.append(made)
    return by_metric if by_metric and len({m.units for cell in by_metric for m in cell}) == 1 else None


def finish(kind: str, sums: Numbers) -> Numbers:
    """The metric of sums ``[..., sums]``; 0 where it is undefined, as in scikit-learn and our suites."""
    return _FINISH[kind](sums)


def _values(items: Numbers, classes: Numbers) -> Measure:
    numbers = items.reshape(len(items))
    return Sums(np.stack([numbers, np.ones(len(numbers))], 1), "ratio")


def _f1(pairs: Numbers, classes: Numbers) -> Measure:
    one, other = pairs[:, -2], pairs[:, -1]
    if not np.isin(pairs[:, -2:], (0, 1)).all():
        return _values(np.full(len(pairs), np.nan), classes)
    return Sums(np.stack([2 * one * other, one + other], 1), "ratio")


def _macro_f1(pairs: Numbers, classes: Numbers) -> Measure:
    one, other = pairs.T
    sums = [np.stack([2.0 * ((one == c) & (other == c)), 1.0 * (one == c) + (other == c)]) for c in classes]
    return Sums(np.concatenate(sums).T, "ratios")


def _correlation(pairs: Numbers, classes: Numbers) -> Measure:
    one, other = (pairs - pairs[:, 0].mean()).T  # centred by the shared labels: answers may be swapped
    return Sums(np.stack([one, other, one**2, other**2, one * other, np.ones(len(one))], 1), "correlation")


def _rank_correlation(pairs: Numbers, classes: Numbers) -> Measure:
    return RankCorrelation(pairs)


def _matthews(pairs: Numbers, classes: Numbers) -> Measure:
    one, other = pairs.T
    marks = [np.stack([one == c, other == c]) for c in classes]
    return Sums(np.concatenate([*marks, [one == other, np.ones(len(one), bool)]]).T.astype(np.float64), "matthews")


def _questions_f1(triples: Numbers, classes: Numbers) -> Measure:
    one, other = triples[:, 1], triples[:, 2]
    return Sums(_by_question(triples, np.stack([2 * one * other, one + other], 1)), "ratio")


def _questions_right(triples: Numbers, classes: Numbers) -> Measure:
    wrong = _by_question(triples, (triples[:, 1] != triples[:, 2])[:, None].astype(np.float64))[:, 0]
    return Sums(np.stack([wrong == 0, np.ones(len(wrong))], 1).astype(np.float64), "ratio")


def _by_question(triples: Numbers, features: Numbers) -> Numbers:
    _, question = np.unique(triples[:, 0], return_inverse=True)
    sums = np.zeros((question.max() + 1, features.shape[1]))
    np.add.at(sums, question, features)
    return sums


_FORMS = {
    ("f1", 2): (_f1, _macro_f1),
    ("mcc", 2): (_matthews,),
    ("pearson", 2): (_correlation,),
    ("spearman", 2): (_rank_correlation,),
    ("f1", 3): (_questions_f1,),
    ("em", 3): (_questions_right,),
    **{(name, 1): (_values,) for name in ("acc", "acc_norm", "f1", "em", "exact_match")},
}
"""Metric and number of values it aggregates per document, to its possible definitions. They get the items and all
classes; triples begin with a question id."""


def _ratios(sums: Numbers) -> Numbers:
    return cast(Numbers, _ratio(sums[..., ::2], sums[..., 1::2]).mean(-1))


def _pearson(sums: Numbers) -> Numbers:
    x, y, xx, yy, xy, n = np.moveaxis(sums, -1, 0)
    bottom = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return _ratio(n * xy - x * y, bottom)


def _mcc(sums: Numbers) -> Numbers:
    ones, others = sums[..., 0:-2:2], sums[..., 1:-2:2]
    right, n = sums[..., -2], sums[..., -1]
    spread = [np.maximum(n**2 - (side**2).sum(-1), 0) for side in (ones, others)]
    return _ratio(right * n - (ones * others).sum(-1), np.sqrt(reduce(np.multiply, spread)))


_FINISH = {
    "ratio": lambda sums: _ratio(sums[..., 0], sums[..., 1]),
    "ratios": _ratios,
    "correlation": _pearson,
    "matthews": _mcc,
}


def _ratio(top: Numbers, bottom: Numbers) -> Numbers:
    return cast(Numbers, np.divide(top, bottom, out=np.zeros_like(top), where=np.abs(bottom) > 1e-9))


def _rank_correlations(gold: Numbers, predicted: Numbers) -> Numbers:
    """Of each line of ``predicted [rounds, units]``."""
    from scipy import stats

    left = stats.rankdata(gold) - (len(gold) + 1) / 2
    right = stats.rankdata(predicted, axis=1) - (len(gold) + 1) / 2
    return _ratio(right @ left, np.sqrt((left**2).sum() * (right**2).sum(1)))


def _ranks(values: Numbers, weights: Numbers) -> Numbers:
    """Mid-ranks ``[draws, units]`` in the sample that contains unit ``u`` ``weights[draw, u]`` times."""
    known, group = np.unique(values, return_inverse=True)
    belongs = np.zeros((len(values), len(known)))
    belongs[np.arange(len(values)), group] = 1
    sizes = weights @ belongs
    middle = np.cumsum(sizes, axis=1) - sizes / 2
    return middle[:, group]
