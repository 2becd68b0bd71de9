"""Tests over tasks, against scipy and published tables."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mtlbench.statistics.over_tasks import Ranking, improvement, interquartile_mean, ranking, wilcoxon

SCORES = np.random.default_rng(0).normal(70, 5, (4, 14))


def test_wilcoxon_is_scipys_and_nothing_differs_where_all_are_equal():
    differences = SCORES[0] - SCORES[1]
    assert wilcoxon(differences.tolist()) == stats.wilcoxon(SCORES[0], SCORES[1]).pvalue
    assert wilcoxon([0.0, 0.0, 0.0]) == 1.0


def test_ranking_is_friedmans_test_and_nemenyis_difference():
    found = ranking(SCORES)
    assert found.p == pytest.approx(stats.friedmanchisquare(*SCORES).pvalue)
    assert sum(found.ranks) == pytest.approx(10)
    assert found.ranks[int(np.argmax(SCORES.mean(1)))] == min(found.ranks)
    # Demsar 2006, table 5a: q 2.569 for four classifiers, and its example with 14 data sets: 1.25.
    assert found.critical == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, abs=1e-3) == pytest.approx(1.25, abs=6e-3)


def test_equal_rows_share_the_mean_rank_and_are_alike():
    found = ranking(np.tile(SCORES[:1], (3, 1)))
    assert found.ranks == (2.0, 2.0, 2.0) and found.p == 1.0


def test_cliques_are_the_largest_groups_within_the_critical_difference():
    found = Ranking(ranks=(3.1, 1.0, 1.9, 5.0), tasks=9, p=0.01, critical=1.5)
    assert found.cliques == [(1, 2), (2, 0)]
    assert Ranking(ranks=(1.0, 2.0, 3.0), tasks=9, p=0.9, critical=2.5).cliques == [(0, 1, 2)]
    assert Ranking(ranks=(1.0, 2.0, 3.0), tasks=99, p=0.0, critical=0.5).cliques == []


def test_interquartile_means_are_trimmed_means():
    scores = np.random.default_rng(1).normal(60, 9, (5, 3, 7))
    expected = [stats.trim_mean(one, 0.25, axis=None) for one in scores]
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_improvement_is_mann_whitneys_u_by_pairs():
    one, other = np.round(np.random.default_rng(2).normal(60, 2, (2, 4, 3)))
    expected = [stats.mannwhitneyu(a, b).statistic / 16 for a, b in zip(one.T, other.T, strict=True)]
    assert float(improvement(one, other)) == pytest.approx(100 * np.mean(expected))
    assert float(improvement(one, one)) == pytest.approx(50)
