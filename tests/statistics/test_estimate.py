"""Intervals: Student's where only seeds vary, and cover what they should in worlds with a known difference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated import answers, error, measured

from mtlbench.statistics.estimate import Measured, estimate, estimate_of
from mtlbench.statistics.over_tasks import interquartile_mean

WORLDS = {
    "few examples": {"examples": 64, "seed_sd": 0.1, "example_sd": 0.3, "noise": 0.5},
    "seeds and examples": {"examples": 300, "seed_sd": 0.1, "example_sd": 0.3, "noise": 0.5},
    "seeds above all": {"examples": 300, "seed_sd": 0.3, "example_sd": 0.3, "noise": 0.5},
    "chance alone": {"examples": 300, "seed_sd": 0.0, "example_sd": 0.0, "noise": 0.8},
    "examples above all": {"examples": 300, "seed_sd": 0.02, "example_sd": 0.8, "noise": 0.2},
}


def seen(values) -> Measured:
    return Measured(seeds=tuple(range(len(values))), values=np.array(values, dtype=float))


def test_without_examples_it_is_the_paired_t_test():
    values = np.random.default_rng(0).normal(1.0, 2.0, 7)
    told = estimate(seen(values))
    expected = stats.ttest_1samp(values, 0.0)
    assert told.p == pytest.approx(expected.pvalue, rel=1e-6)
    interval = told.interval()
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (interval.seeds, interval.examples, interval.mean) == (7, None, values.mean())


def test_pairs_are_made_of_common_seeds():
    one = Measured(seeds=(0, 1, 2), values=np.array([5.0, 6.0, 8.0]))
    other = Measured(seeds=(2, 1, 7), values=np.array([1.0, 2.0, 3.0]))
    assert one.minus(other).seeds == (1, 2)
    assert one.minus(other).values.tolist() == [4.0, 7.0]
    assert one.minus(Measured(seeds=(9,), values=np.array([1.0]))) is None


def test_one_seed_without_examples_and_what_is_no_number_have_no_interval():
    assert estimate(seen([3.0])) is None
    assert estimate(seen([3.0, np.nan])) is None


def test_what_never_varied_is_no_evidence():
    assert estimate(seen([5.0, 5.0, 5.0])).p == 1.0


def test_one_seed_varies_by_its_examples_alone():
    generator = np.random.default_rng(1)
    right = generator.random(400) < 0.7
    told = estimate(measured(generator, 100.0 * right[None], draws=2000)).interval()
    half = 1.966 * 100 * right.std(ddof=1) / 20
    assert told.high - told.mean == pytest.approx(half, rel=0.1)


def _covered(world: dict, *, seeds: int, rounds: int) -> float:
    generator = np.random.default_rng(seeds)
    told = [estimate(measured(generator, answers(generator, seeds=seeds, **world))) for _ in range(rounds)]
    return sum(0.0 in one.interval() for one in told) / rounds


def test_intervals_cover_the_truth_quickly():
    rounds = 250
    share = _covered(WORLDS["seeds and examples"], seeds=3, rounds=rounds)
    assert 0.93 - error(0.95, rounds) <= share <= 0.97 + error(0.95, rounds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_cover_93_to_97_percent(name, seeds):
    """With two seeds, of which one degree of freedom is left, they may cover more, and never less."""
    rounds = 2000
    share = _covered(WORLDS[name], seeds=seeds, rounds=rounds)
    assert 0.93 - error(0.95, rounds) <= share <= (1.0 if seeds == 2 else 0.97 + error(0.95, rounds))


@pytest.mark.parametrize(
    ("seeds", "tasks", "rounds"),
    [(3, 9, 150), *(pytest.param(s, t, 1000, marks=pytest.mark.slow) for s in (2, 3, 5, 10) for t in (3, 9, 20))],
)
def test_interquartile_means_are_covered(seeds, tasks, rounds):
    generator = np.random.default_rng(7)
    level = generator.uniform(55, 90, tasks)

    def world(count: int) -> np.ndarray:
        shared, own = generator.normal(0, 1.0, (count, seeds, 1)), generator.normal(0, 1.5, (count, seeds, tasks))
        return level + shared + own

    truth = float(interquartile_mean(world(20_000)).mean())
    told = [estimate_of(interquartile_mean, one, None, examples=None, rounds=300) for one in world(rounds)]
    share = sum(truth in one.interval() for one in told) / rounds
    assert 0.93 - error(0.95, rounds) <= share <= 0.97 + error(0.95, rounds)
