"""The mark "not significantly worse than the best": how often it is wrong, and what it finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated import GAP, World, averages, column_of, error, trained

from mtlbench.statistics.best import Differences, alike, as_good_as, prior_weight
from mtlbench.statistics.estimate import Measured, estimate

WORLDS = {"equal": {}, "one flat": {"flat": True}, "two noisy": {"noisy": 2}, "one noisy": {"noisy": 1}}


def marks(column: dict[str, Measured]) -> dict[str, bool]:
    """Row to whether it is as good as the best, in the table's own words."""
    best = max(column, key=lambda label: column[label].values.mean())
    return {best: True, **as_good_as(best, column)}


def called_worse(world: World, rounds: int, *, row: str | None = None) -> float:
    """Share of studies in which ``row``, or any, is called worse than the best."""
    generator, found = np.random.default_rng(7), 0
    for _ in range(rounds):
        good = marks(column_of(world.scores(generator)))
        found += not (all(good.values()) if row is None else good[row])
    return found / rounds


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("methods", "seeds", "rounds"),
    [(8, 3, 500), *(pytest.param(m, s, 1000, marks=pytest.mark.slow) for m in (4, 8, 25) for s in (3, 5, 10))],
)
def test_in_at_most_five_of_a_hundred_studies_of_equal_methods_one_is_called_worse(world, methods, seeds, rounds):
    share = called_worse(World(methods=methods, seeds=seeds, **WORLDS[world]), rounds)
    assert share <= 0.05 + error(0.05, rounds)


@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("flat", [False, True])
def test_six_points_are_found_at_three_seeds(seeds, flat):
    share = called_worse(World(methods=8, seeds=seeds, gap=GAP, flat=flat), 500, row="7")
    assert share >= 0.5 + error(0.5, 500)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"flat": (6,)}, {"noisy": (0, 1)}])
def test_answers_of_eight_tasks_keep_the_level_and_the_power(kind):
    generator, rounds = np.random.default_rng(3), 300
    wrong = sum(
        not all(marks(averages(generator, trained(generator, methods=8, seeds=3, **kind))).values())
        for _ in range(rounds)
    )
    assert wrong / rounds <= 0.05 + error(0.05, rounds)
    if "noisy" not in kind:
        right = (averages(generator, trained(generator, methods=8, seeds=3, shift=0.245, **kind)) for _ in range(100))
        assert sum(not marks(column)["7"] for column in right) >= 50


def test_an_untrained_backbone_24_points_below_is_worse_at_three_seeds():
    """The table of a review: this row was called as good as the best."""
    scores = [[68.0, 70.5, 65.5], [67.8, 66.0, 70.1], [65.3, 68.2, 62.0], [54.4, 57.9, 52.0], [51.2, 50.0, 54.9]]
    good = marks(column_of(np.array([*scores, [44.0] * 3])))
    assert good["1"] and not good["5"]


def test_two_rows_are_a_paired_t_test():
    column = column_of(np.array([[70.0, 72.0, 71.0], [68.0, 71.5, 69.0]]))
    expected = stats.ttest_rel(column["0"].values, column["1"].values)
    assert Differences(column).of("0", "1").p == pytest.approx(expected.pvalue)


def test_with_many_rows_the_variance_is_drawn_towards_that_of_all_pairs():
    scores = np.random.default_rng(0).normal(70, 1, (8, 3))
    column, pairs = column_of(scores), [scores[a] - scores[b] for a in range(8) for b in range(a)]
    (variance, freedom), *rest = Differences(column).of("0", "1").components
    of_all = np.mean([difference.var(ddof=1) for difference in pairs])
    expected = ((scores[0] - scores[1]).var(ddof=1) + 1.5 * of_all) / 2.5
    assert (variance, freedom, rest) == (pytest.approx(expected / 3), 5.0, [])
    assert [prior_weight(rows) for rows in (2, 3, 4, 5, 6, 25)] == [0, 0, 1, 1, 1.5, 1.5]


def test_a_row_without_spread_says_nothing_about_the_spread_of_others():
    scores = np.random.default_rng(0).normal(70, 1, (8, 3))
    with_flat = column_of(np.vstack([scores, np.full((3, 3), 60.0)]))
    assert Differences(with_flat).of("0", "1").components == Differences(column_of(scores)).of("0", "1").components
    assert Differences(with_flat).of("8", "9").mean == 0.0, "two such rows are equal, or cannot be tested"
    column = {**with_flat, "9": Measured(seeds=(0, 1, 2), values=np.full(3, 61.0))}
    assert Differences(column).of("8", "9") is None and "9" not in as_good_as("8", column)


def test_one_seed_marks_nothing():
    column = column_of(np.random.default_rng(0).normal(70, 9, (8, 1)))
    assert as_good_as("0", column) == {}
    draws = np.random.default_rng(1).normal(70, 0.1, (50, 1))
    column = {str(at): Measured(seeds=(0,), values=np.array([at]), draws=draws + at, examples=99) for at in range(3)}
    assert as_good_as("2", column) == {} and estimate(column["0"]) is not None


def test_rows_are_compared_over_the_seeds_they_share():
    scores = np.random.default_rng(0).normal(70, 1, (8, 5))
    column = column_of(scores)
    column["7"] = column["7"].only((0, 1, 2))
    found = Differences(column).of("0", "7")
    assert found.seeds == 3 and found.components == Differences(column_of(scores[:, :3])).of("0", "7").components


def test_pairs_that_are_alike():
    good = np.random.default_rng(0).normal(70, 0.5, (6, 4))
    column = column_of(np.vstack([good, good[:2] - 20]))
    found = alike(column)
    assert frozenset(("0", "1")) in found and frozenset(("6", "7")) in found
    assert not any(frozenset((str(a), str(b))) in found for a in range(6) for b in (6, 7))
