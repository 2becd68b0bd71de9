"""Metrics of resamples are those that lm-eval and our suites give for the repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from mtlbench.statistics.draws import weights
from mtlbench.statistics.metrics import measured
from mtlbench_tasks.yaml import multirc


def macro_f1(pairs):
    return np.mean([f1_score(pairs[:, 1] == c, pairs[:, 0] == c) for c in range(3)])


def rows(kind: str, count: int = 40) -> np.ndarray:
    generator = np.random.default_rng(3)
    gold = generator.integers(0, 3 if kind == "three" else 2, count)
    flipped = generator.random(count) < 0.3
    if kind == "numbers":
        return generator.random(count)
    if kind == "real pairs":
        label = np.round(generator.random(count) * 5, 1)
        return np.stack([label, np.round(label + generator.normal(0, 1, count))], 1)
    predicted = np.where(flipped, (gold + 1) % (3 if kind == "three" else 2), gold)
    if kind == "answers":
        return np.stack([generator.integers(0, 9, count), gold, predicted], 1).astype(float)
    return np.stack([gold, predicted], 1).astype(float)


KNOWN = {
    ("acc", "numbers"): np.mean,
    ("f1", "pairs"): lambda x: f1_score(x[:, 0], x[:, 1]),
    ("f1", "three"): macro_f1,
    ("mcc", "pairs"): lambda x: matthews_corrcoef(x[:, 0], x[:, 1]),
    ("mcc", "three"): lambda x: matthews_corrcoef(x[:, 0], x[:, 1]),
    ("pearson", "real pairs"): lambda x: stats.pearsonr(*x.T).statistic,
    ("spearman", "real pairs"): lambda x: stats.spearmanr(*x.T).statistic,
    ("f1", "answers"): multirc.f1,
    ("em", "answers"): multirc.em,
}


@pytest.mark.parametrize(("metric", "kind"), KNOWN)
def test_resamples_score_as_if_rows_were_repeated(metric, kind):
    items, known = rows(kind), KNOWN[metric, kind]
    (measure,) = measured(metric, [items], [float(known(items))])
    groups = items[:, 0] if kind == "answers" else np.arange(len(items))
    order = np.unique(groups)
    assert measure.units == len(order)
    (drawn,) = weights("glue/rte", measure.units, 20)
    for weight, value in zip(drawn, measure.of(drawn), strict=True):
        parts = [
            np.where(groups == group, 1, 0).nonzero()[0]
            for group, n in zip(order, weight, strict=True)
            for _ in range(int(n))
        ]
        repeated = items[np.concatenate(parts)]
        if kind == "answers":  # a question drawn twice is two questions
            repeated = repeated.copy()
            repeated[:, 0] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        assert value == pytest.approx(float(known(repeated)), abs=1e-9)


@pytest.mark.parametrize(("metric", "kind"), KNOWN)
def test_swapped_answers_score_as_if_the_rows_were_exchanged(metric, kind):
    one, known = rows(kind), KNOWN[metric, kind]
    other = one.copy()
    changed = slice(5, 20)
    if kind == "numbers":
        other[changed] = 1 - other[changed]
    else:
        other[changed, -1] = one[changed, -2]
    first, second = measured(metric, [one, other], [float(known(one)), float(known(other))])
    groups = one[:, 0] if kind == "answers" else np.arange(len(one))
    marked = np.random.default_rng(5).integers(0, 2, (6, first.units)).astype(float)
    left, right = first.swapped(second, marked)
    for at, line in enumerate(marked):
        here = line[np.searchsorted(np.unique(groups), groups)].astype(bool)
        mixed = [np.where(here if a.ndim == 1 else here[:, None], b, a) for a, b in ((one, other), (other, one))]
        assert (left[at], right[at]) == pytest.approx([float(known(x)) for x in mixed], abs=1e-9)


def test_a_metric_that_does_not_give_the_recorded_value_is_not_resampled():
    assert measured("f1", [rows("pairs")], [0.123]) is None
    assert measured("bleu", [rows("numbers")], [0.5]) is None


def test_draws_of_a_task_are_the_same_in_every_study_and_hold_as_many_units():
    first, again, other = (np.concatenate(list(weights(t, 50, 30))) for t in ("a/x", "a/x", "a/y"))
    assert (first == again).all() and (first != other).any()
    assert (first.sum(1) == 50).all() and first.shape == (30, 50)
