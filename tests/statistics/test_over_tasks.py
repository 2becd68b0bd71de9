"""Rows over tasks, against scipy; ranks are tested over seeds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from record_builder import cell, done
from scipy import stats
from simulated import error

from mtlbench.results.study import study_of
from mtlbench.statistics.best import Differences, alike
from mtlbench.statistics.estimate import Measured, holm
from mtlbench.statistics.over_tasks import Ranking, improvement, interquartile_mean, ranking


def rows_of(scores: np.ndarray):
    """Rows of a table with scores ``[rows, seeds, tasks]``."""
    tasks = tuple(f"a/{at}" for at in range(scores.shape[2]))
    records = [
        done(cell(f"m{at}", seed, tasks=tasks), *of_seed)
        for at, of_row in enumerate(scores)
        for seed, of_seed in enumerate(of_row)
    ]
    (table,) = study_of(records).tables
    return sorted(table.rows, key=lambda row: row.label), tasks


def test_mean_ranks_are_by_seed():
    scores = np.random.default_rng(0).normal(70, 5, (4, 3, 6))
    found = ranking(*rows_of(scores))
    expected = stats.rankdata(-scores, axis=0).mean((1, 2))
    assert list(found.ranks.values()) == pytest.approx(expected.tolist())
    assert (found.tasks, found.seeds) == (6, 3) and sum(found.ranks.values()) == pytest.approx(10)


def test_equal_rows_share_the_mean_rank_and_are_alike():
    found = ranking(*rows_of(np.tile(np.random.default_rng(0).normal(70, 5, (1, 3, 6)), (3, 1, 1))))
    assert set(found.ranks.values()) == {2.0} and found.cliques == [("m0", "m1", "m2")]


def test_rows_apart_on_every_seed_are_in_no_clique_and_one_seed_tests_nothing():
    scores = np.random.default_rng(1).normal(70, 1, (6, 5, 8))
    scores[3:] -= 20
    found = ranking(*rows_of(scores))
    assert all(not (set(clique) & {"m0", "m1", "m2"} and set(clique) & {"m3", "m4", "m5"}) for clique in found.cliques)
    assert ranking(*rows_of(scores[:, :1])).cliques == []
    assert ranking([], ("a/x",)) is None


def test_cliques_are_the_largest_runs_of_which_no_two_differ():
    def among(*labels: str):
        return {frozenset(pair) for pair in combinations(labels, 2)}

    ranks = {"a": 3.1, "b": 1.0, "c": 1.9, "d": 5.0}
    found = Ranking(ranks=ranks, tasks=9, seeds=3, alike=frozenset(among("b", "c") | among("c", "a")))
    assert found.cliques == [("b", "c"), ("c", "a")]
    assert Ranking(ranks=ranks, tasks=9, seeds=3, alike=frozenset(among(*"abcd"))).cliques == [("b", "c", "a", "d")]
    assert Ranking(ranks=ranks, tasks=9, seeds=3, alike=frozenset()).cliques == []
    assert Ranking(ranks=ranks, tasks=9, seeds=1, alike=frozenset(among(*"abcd"))).cliques == []


@pytest.mark.parametrize("shared", [0.0, 3.0])
@pytest.mark.parametrize(
    ("seeds", "rounds"),
    [(3, 200), pytest.param(3, 1500, marks=pytest.mark.slow), pytest.param(5, 1500, marks=pytest.mark.slow)],
)
def test_ranks_keep_their_level_where_a_seed_moves_all_tasks(shared, seeds, rounds):
    """Friedman's and Nemenyi's tests do not: they take the tasks of one training for independent observations."""
    generator, apart, against, friedman = np.random.default_rng(0), 0, 0, 0
    for _ in range(rounds):
        scores = generator.normal(size=(6, seeds, 8)) + shared * generator.normal(size=(6, seeds, 1))
        by_seed = stats.rankdata(-scores, axis=0).mean(2)
        column = {str(at): Measured(seeds=tuple(range(seeds)), values=own) for at, own in enumerate(by_seed)}
        apart += len(alike(column)) < 15
        against += min(holm([Differences(column).of(str(at), "0").p for at in range(1, 6)])) <= 0.05
        friedman += stats.friedmanchisquare(*scores.mean(1)).pvalue <= 0.05
    assert max(apart, against) / rounds <= 0.05 + error(0.05, rounds)
    assert shared == 0 or friedman / rounds > 0.3


def test_interquartile_means_are_trimmed_means():
    scores = np.random.default_rng(1).normal(60, 9, (5, 3, 7))
    expected = [stats.trim_mean(one, 0.25, axis=None) for one in scores]
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_improvement_is_mann_whitneys_u_by_pairs():
    one, other = np.round(np.random.default_rng(2).normal(60, 2, (2, 4, 3)))
    expected = [stats.mannwhitneyu(a, b).statistic / 16 for a, b in zip(one.T, other.T, strict=True)]
    assert float(improvement(one, other)) == pytest.approx(100 * np.mean(expected))
    assert float(improvement(one, one)) == pytest.approx(50)
