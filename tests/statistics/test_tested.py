"""Tables with their tests: marks, differences and what they cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from record_builder import cell, done
from scipy import stats

from mtlbench.api.record import Record, TaskScore
from mtlbench.api.study import Table, TaskAnswers
from mtlbench.results.columns import difference_legend
from mtlbench.results.formatting import legend
from mtlbench.results.study import study_of
from mtlbench.statistics.estimate import holm
from mtlbench.statistics.tested import ONE_SEED

TASKS = ("a/x", "a/y")


def study(right: Mapping[str, np.ndarray], *, draws: int = 200, reference: str | None = None) -> Table:
    """Methods by right and wrong answers ``[seeds, tasks, examples]``."""
    records: list[Record] = []
    stored: dict[str, dict[str, TaskAnswers]] = {}
    for method, cells in right.items():
        for seed, tasks in enumerate(cells):
            made = done(cell(method, seed, tasks=TASKS), *(100 * own.mean() for own in tasks))
            records.append(made)
            stored[made.key] = {
                task: TaskAnswers(
                    documents="same", count=len(own), items={"acc": own}, constant=False, unparsed=0, undefined=0
                )
                for task, own in zip(TASKS, tasks, strict=True)
            }
    (table,) = study_of(records, predictions=stored.get, draws=draws, reference=reference).tables
    return table


def world(shares: Mapping[str, float], *, seeds: int = 3, examples: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    level = generator.normal(0, 0.5, examples)
    return {
        name: (generator.normal(share, 0.6, (seeds, len(TASKS), examples)) + level > 0).astype(float)
        for name, share in shares.items()
    }


def test_a_row_far_below_is_worse_and_one_close_by_is_not():
    table = study(world({"good": 1.0, "same": 1.0, "bad": -0.5}, seeds=5))
    rows = {row.label: row for row in table.rows}
    best, other = sorted(("good", "same"), key=lambda name: -rows[name].average.scores.mean)
    assert rows[best].average.best and rows[best].average.tied is None
    assert rows[other].average.tied is True and rows["bad"].average.tied is False
    assert "over seeds and examples (200 resamples)" in table.tests
    assert all(row.average.scores.mean in row.average.interval for row in table.rows)


def test_examples_widen_an_interval_that_seeds_alone_make_narrow():
    right = world({"one": 1.0, "two": 0.8})
    right = {name: np.repeat(cells[:1], 3, axis=0) for name, cells in right.items()}
    right["one"][1, :, 0] = 1 - right["one"][1, :, 0]
    with_examples, without = ({r.label: r for r in study(right, draws=d).rows}["one"] for d in (200, 0))
    assert without.entries["a/x"].interval.examples is None
    assert with_examples.entries["a/x"].interval.examples == 200
    wide, narrow = (r.entries["a/x"].interval for r in (with_examples, without))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_one_seed_has_intervals_on_its_examples_and_neither_best_nor_mark_nor_star():
    table = study(world({"lora": 1.0, "bad": -0.5}, seeds=1))
    assert "valid for these trained models on these examples, not for methods" in table.tests
    assert table.tests.startswith(ONE_SEED)
    for row in table.rows:
        assert all(not e.best and e.tied is None and e.interval for e in (*row.entries.values(), row.average))
    far = next(row for row in table.rows if row.label == "bad").comparison
    assert far.average.p < 0.001 and not far.average.significant and far.rank_p is None
    assert difference_legend(table).endswith("on these examples, not of methods.")
    assert "significant" not in legend(table)


def test_rows_of_one_seed_beside_rows_of_three_are_neither_best_nor_marked():
    right = world({"lora": 1.0, "x": 0.9, "alone": 1.6}, seeds=3)
    right["alone"] = right["alone"][:1]
    table = study(right)
    assert table.rows[0].label == "alone" and not any(row.average.best for row in table.rows)
    assert all(row.average.tied is None for row in table.rows)


def test_a_reference_that_was_selected_as_the_best_is_corrected_for_all_pairs():
    right = world({"x": 1.0, "y": 0.9, "z": 0.5}, seeds=6)
    chosen, named = study(right, draws=0), study(right, draws=0, reference="x")
    assert chosen.reference == "x" and chosen.reference_is_best and not named.reference_is_best
    by_label = {row.label: row for row in chosen.rows}
    scores = {name: row.entries["a/x"].scores.values for name, row in by_label.items()}
    for name in ("y", "z"):
        expected = min(1.0, 3 * stats.ttest_rel(scores[name], scores["x"]).pvalue)
        assert by_label[name].comparison.differences["a/x"].p == pytest.approx(expected, rel=1e-6)
    assert "because the reference was chosen as the best" in difference_legend(chosen)
    assert "after Holm" in difference_legend(named)


def test_without_seeds_and_examples_there_is_no_test_and_that_is_told():
    table = study(world({"good": 1.0, "bad": -0.5}, seeds=1), draws=0)
    assert table.tests == f"{ONE_SEED}."
    assert [row.average.tied for row in table.rows] == [None, None]


def test_the_test_over_ranks_has_the_seed_as_its_unit():
    table = study(world({"lora": 1.0, "x": 0.9, "y": 0.2}, seeds=4), draws=0)
    rows = {row.label: row for row in table.rows}
    by_seed = np.array(
        [[[row.entries[task].scores.values[seed] for row in rows.values()] for task in TASKS] for seed in range(4)]
    )
    ranks = dict(zip(rows, stats.rankdata(-by_seed, axis=2).mean(1).T, strict=True))
    expected = [stats.ttest_rel(ranks[name], ranks["lora"]).pvalue for name in ("x", "y")]
    assert [rows[name].comparison.rank_p for name in ("x", "y")] == pytest.approx(holm(expected), rel=1e-6)


def test_differences_to_the_reference_are_paired_t_tests_after_holm():
    table = study(world({"lora": 1.0, "x": 1.1, "y": 0.5}, seeds=6), draws=0)
    by_label = {row.label: row for row in table.rows}

    def scores(name):
        return by_label[name].entries["a/x"].scores.values

    expected = [stats.ttest_rel(scores(name), scores("lora")) for name in ("x", "y")]
    told = [by_label[name].comparison.differences["a/x"] for name in ("x", "y")]
    assert [one.p for one in told] == pytest.approx(holm([one.pvalue for one in expected]), rel=1e-6)
    assert [one.interval.low for one in told] == pytest.approx([one.confidence_interval().low for one in expected])


def test_other_examples_or_scores_that_do_not_come_back_are_told_and_left_to_the_seeds():
    right = world({"lora": 1.0, "x": 1.1})
    records = [
        done(cell(name, seed, tasks=TASKS), *(100 * own.mean() for own in tasks))
        for name, cells in right.items()
        for seed, tasks in enumerate(cells)
    ]

    def stored(key: str, *, metric: str = "acc") -> dict[str, TaskAnswers]:
        told = {"items": {metric: np.ones(9)}, "count": 9, "constant": False, "unparsed": 0, "undefined": 0}
        return {task: TaskAnswers(documents=key if task == "a/x" else "same", **told) for task in TASKS}

    (table,) = study_of(records, predictions=stored, draws=50).tables
    assert "No resampling of the examples of a/x: the cells answered different examples." in table.notes
    assert (
        "No resampling of the examples of a/y: the stored predictions do not reproduce the recorded scores."
        in table.notes
    )
    assert all(row.entries["a/y"].interval.examples is None for row in table.rows)


def test_scores_that_are_no_number_break_nothing():
    records = [done(cell(m, s, tasks=TASKS), 60.0 + s, 70.0) for m in ("lora", "x") for s in (0, 1)]
    records[0] = replace(records[0], scores={**records[0].scores, "a/x": TaskScore(score=np.nan, metrics={}, rows=3)})
    (table,) = study_of(records).tables
    assert {row.label for row in table.rows} == {"lora", "x"}


def test_two_equal_studies_are_equal():
    right = world({"lora": 1.0, "x": 1.1, "y": 0.5})
    assert study(right) == study(right)
