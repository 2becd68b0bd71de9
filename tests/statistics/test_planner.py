"""The planner's number of seeds has the power it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated import error

from mtlbench.statistics.planner import MOST, power_of, seed_plan, seeds_for


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_seeds_are_those_of_the_textbook(effect, seeds):
    """As G*Power 3.1 gives for a paired t-test, two-sided, alpha 0.05, power 0.8."""
    assert seeds_for(effect) == seeds


@pytest.mark.parametrize("rounds", [2000, pytest.param(40_000, marks=pytest.mark.slow)])
def test_so_many_seeds_see_the_difference_as_often_as_promised(rounds):
    seeds = seeds_for(1.0 / 1.3)
    runs = np.random.default_rng(0).normal(1.0, 1.3, (rounds, seeds))
    share = float((stats.ttest_1samp(runs, 0.0, axis=1).pvalue <= 0.05).mean())
    assert share == pytest.approx(power_of(1.0 / 1.3, seeds), abs=error(0.8, rounds))
    assert power_of(1.0 / 1.3, seeds - 1) < 0.8 <= power_of(1.0 / 1.3, seeds)


def test_the_spread_of_few_seeds_is_told_as_a_range():
    differences = [1.0, -0.5, 2.0, 0.3]
    plan = seed_plan(differences, points=1.0)
    assert plan.sd == pytest.approx(np.std(differences, ddof=1)) and plan.measured == 4
    assert plan.fewest < plan.seeds < plan.most
    assert seed_plan(differences, points=1e-6).seeds == MOST


def test_no_spread_needs_the_least_that_can_be_tested():
    assert seed_plan([2.0, 2.0, 2.0], points=1.0).seeds == 2
