"""Tests on the same examples, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated import error

from mtlbench.statistics.metrics import measured
from mtlbench.statistics.on_examples import mcnemar, permutation


def right(count: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def of(*cells: np.ndarray):
    return [measured("acc", list(cells), [float(cell.mean()) for cell in cells])]


def test_mcnemar_is_the_binomial_test_of_what_changed():
    one, other = right(80, 0.8, 0), right(80, 0.6, 1)
    gained, lost = int(((one == 1) & (other == 0)).sum()), int(((one == 0) & (other == 1)).sum())
    told = mcnemar(one, other)
    assert told.p == stats.binomtest(gained, gained + lost).pvalue
    assert (told.differing, told.examples) == (gained + lost, 80)
    assert mcnemar(one, one).p == 1.0


def test_permutations_of_few_differences_are_exact_and_equal_mcnemars_test():
    one = right(60, 0.7, 2)
    other = one.copy()
    other[:9] = [1, 1, 1, 1, 1, 1, 1, 0, 1]
    told = permutation(of(one), of(other))
    assert told.name == "permutation, exact" and told.p == pytest.approx(mcnemar(one, other).p)


def test_permutations_over_several_seeds_are_scipys():
    cells = [right(11, share, seed) for seed, share in enumerate((0.5, 0.6, 0.8, 0.9))]
    differences = (cells[0] + cells[1] - cells[2] - cells[3]) / 2
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=10**6)
    assert permutation(of(*cells[:2]), of(*cells[2:])).p == pytest.approx(expected.pvalue)


def test_rows_that_are_alike_differ_five_times_in_a_hundred():
    rounds, generator = 300, np.random.default_rng(4)
    found = 0
    for _ in range(rounds):
        chance = generator.beta(5, 2, 60)
        cells = [(generator.random(60) < chance).astype(float) for _ in range(4)]
        found += permutation(of(*cells[:2]), of(*cells[2:]), rounds=200).p <= 0.05
    assert found / rounds <= 0.05 + error(0.05, rounds)


def test_a_correlation_is_permuted_too():
    generator = np.random.default_rng(6)
    gold = generator.normal(0, 1, 60)
    good, bad = (np.stack([gold, gold + generator.normal(0, sd, 60)], 1) for sd in (0.2, 3.0))
    values = [float(stats.spearmanr(*pairs.T).statistic) for pairs in (good, bad)]
    one, other = ([[measure]] for measure in measured("spearman", [good, bad], values))
    assert permutation(one, other, rounds=500).p < 0.01
    assert permutation(one, one).p == 1.0
