"""Runs that say nothing about their method are flagged, and others are not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from record_builder import COSTS, PROTOCOL, accuracy, cell, correlation, done

from mtlbench.api.record import TaskScore
from mtlbench.api.study import AT_MAJORITY, TaskAnswers
from mtlbench.results.degenerate import BELOW_BASE, CONSTANT, ONE_CLASS, UNPARSED, flags_of
from mtlbench.results.formatting import flags
from mtlbench.results.study import study_of
from mtlbench.results.training_flags import FEW_TO_VALIDATE, STILL, UNDECIDED, UNDEFINED, UNDERTRAINED

RECORD = done(cell(tasks=("a/x",)), 70.0)


def answers(**changes) -> TaskAnswers:
    told = {"documents": "", "count": 64, "items": {}, "constant": False, "unparsed": 0, "undefined": 0}
    return TaskAnswers(**{**told, **changes})


def log(*losses: float, task: str = "a/x"):
    return [{"total": 10}, *({"step": at, "loss": loss, "tasks": {task: loss}} for at, loss in enumerate(losses))]


def kinds(record=RECORD, *, steps=(), **changes):
    return [(flag.task, flag.kind) for flag in flags_of(record, answers={"a/x": answers(**changes)}, steps=steps)]


def test_a_good_run_has_no_flag():
    assert kinds(steps=log(*np.linspace(3, 1, 20))) == []
    assert flags_of(RECORD, answers=None, steps=()) == ()


@pytest.mark.parametrize(
    ("score", "flagged"), [(accuracy(50.0), True), (accuracy(51.0), False), (correlation(0.0), True)]
)
def test_scores_of_a_constant_answer_are_flagged_by_seed(score, flagged):
    assert kinds(replace(RECORD, scores={"a/x": score})) == ([("a/x", AT_MAJORITY)] if flagged else [])


def test_predictions_are_looked_at():
    assert kinds(constant=True) == [("a/x", CONSTANT)]
    assert kinds(undefined=3, constant=True) == [("a/x", UNDEFINED)]
    assert kinds(unparsed=12) == [("a/x", UNPARSED)]
    (flag,) = flags_of(RECORD, answers={"a/x": answers(unparsed=12)}, steps=())
    assert (flag.detail, flag.seed) == ("12 of 64", 0)


def test_a_score_that_is_no_number_is_flagged():
    assert kinds(replace(RECORD, scores={"a/x": accuracy(math.nan)})) == [("a/x", UNDEFINED)]


def test_losses_that_stay_or_are_no_number_are_flagged():
    generator = np.random.default_rng(0)
    assert kinds(steps=log(*(2 + 0.001 * generator.normal(size=40)))) == [(None, STILL)]
    assert kinds(steps=log(*[3.0] * 10, math.nan, *[1.0] * 10)) == [(None, UNDEFINED)]


def test_a_log_too_short_to_say_and_a_method_that_trains_nothing_are_not():
    assert kinds(steps=log(2.0, 2.0, 2.0)) == []
    assert kinds(replace(RECORD, costs=replace(COSTS, trainable_parameters=0)), steps=log(*[2.0] * 30)) == []


def test_tasks_trained_one_after_another_are_looked_at_one_by_one():
    first, second = log(*np.linspace(2, 1, 20), task="a/x"), log(*np.linspace(9, 8, 20), task="a/y")
    assert kinds(steps=[*first, *second]) == []


def validated(*losses: float, every: int = 12, **notes):
    pairs = [[every * at, loss] for at, loss in enumerate(losses, 1)]
    return kinds(replace(RECORD, notes={"stop_losses": pairs, "best_step": None, **notes}))


@pytest.mark.parametrize(
    ("losses", "flagged"),
    [
        ((9.0, 8.6, 8.2, 7.8), True),
        ((0.9, 0.7, 0.66, 0.658), False),
        ((0.79, 0.65, 0.66, 0.67), False),
        ((0.9,), False),
        ((), False),
    ],
)
def test_a_run_whose_validation_loss_falls_to_the_end_is_undertrained(losses, flagged):
    assert validated(*losses) == ([(None, UNDERTRAINED)] if flagged else [])


def test_each_stage_is_looked_at_by_itself():
    stages = [{"tasks": ["a/x"], "steps": [0, 24]}, {"tasks": ["a/y"], "steps": [24, 48]}]
    assert validated(3.0, 2.0, 5.0, 6.0, stages=stages) == [(None, UNDERTRAINED)]
    assert validated(2.0, 3.0, 1.0, 1.5, stages=stages) == []
    (flag,) = flags_of(
        replace(RECORD, notes={"stop_losses": [[12, 3.0], [24, 2.0], [36, 5.0], [48, 4.0]], "stages": stages}),
        answers=None,
        steps=(),
    )
    assert flag.detail == "5 to 4 from step 36 to 48, in 2 of 2 stages"


@pytest.mark.parametrize("broken", ["abc", [[1], ["x", 2], [3, float("nan")]], None, 7])
def test_notes_that_are_no_losses_are_left_alone(broken):
    assert kinds(replace(RECORD, notes={"stop_losses": broken})) == []


def test_one_class_in_the_evaluation_examples_is_named_instead_of_the_model():
    """A correlation of 0 for all methods reads as a fault of theirs."""
    assert kinds(replace(RECORD, scores={"a/x": correlation(0.0, majority=100.0)})) == [("a/x", ONE_CLASS)]
    assert kinds(replace(RECORD, scores={"a/x": accuracy(100.0, majority=100.0)})) == [("a/x", ONE_CLASS)]
    graded = replace(RECORD, scores={"a/x": TaskScore(score=0.0, metrics={"pearson": 0.0}, rows=64)})
    same, other = np.ones((64, 2)), np.ones((64, 2))
    same[:, 1], other[:, 0] = np.arange(64), np.arange(64)
    assert kinds(graded, items={"pearson": same}) == [("a/x", ONE_CLASS)]
    assert kinds(graded, items={"pearson": other}) == []


def test_too_few_examples_to_validate_on_are_named_by_task():
    def found(protocol=PROTOCOL, **notes):
        return kinds(done(cell(tasks=("a/x",), protocol=protocol), 70.0, notes=notes))

    assert found(validation_examples={"a/x": 0}) == found(validation_examples={"a/x": 4}) == [("a/x", FEW_TO_VALIDATE)]
    assert found(validation_examples={"a/x": 5}) == found() == []
    few = replace(PROTOCOL, train_rows=40)
    assert found(few) == [("a/x", FEW_TO_VALIDATE)], "two of 40 rows, in records that do not say it"
    assert found(few, validation_examples={"a/x": 30}) == found(replace(PROTOCOL, train_rows=200)) == []
    assert found(replace(few, evals_per_run=0)) == found(replace(few, held_out=0.0)) == [], "nothing is chosen by it"


def searched(entropy, *, keep=1, by_task=False):
    one = {"trajectory": [{"step": 3, "keep": 6, "entropy": 0.99}, {"step": 6, "keep": keep, "entropy": entropy}]}
    return replace(RECORD, notes={"prefix_nas": {"by_task": {"a/x": one}} if by_task else one})


def test_a_search_that_followed_no_preference_at_its_last_cut_is_undecided():
    assert kinds(searched(0.95)) == [(None, UNDECIDED)] and kinds(searched(0.9)) == []
    assert kinds(searched(0.95, by_task=True)) == [("a/x", UNDECIDED)]
    assert kinds(searched(0.95, keep=3)) == [], "the last cut was not reached"
    assert (
        kinds(searched(math.nan))
        == kinds(searched("high"))
        == kinds(replace(RECORD, notes={"x": {"by_task": 3}}))
        == []
    )
    (flag,) = flags_of(searched(0.987), answers=None, steps=())
    assert flag.detail == "entropy at the last cut 0.987 of a uniform mixture's"


def test_tables_say_how_decided_each_search_was():
    seeds = [
        replace(searched(entropy), cell=cell("peml", at, tasks=("a/x",))) for at, entropy in enumerate((0.5, 0.75))
    ]
    (table,) = study_of([*seeds, done(cell("lora", tasks=("a/x",)), 70.0)]).tables
    (note,) = [note for note in table.notes if note.startswith("How decided the search")]
    assert note.endswith("1 for uniform ones: peml 0.500 to 0.750.")


def test_rows_below_the_untrained_backbone_are_flagged_by_seed():
    records = [done(cell("base"), 50.0, 20.0)]
    records += [done(cell("adalora", seed), 40.0 + 20 * seed, 20.0) for seed in (0, 1)]
    records += [done(cell("lora", seed), 70.0, 20.0) for seed in (0, 1)]
    (table,) = study_of(records).tables
    found = {row.label: [flag for flag in row.flags if flag.kind == BELOW_BASE] for row in table.rows}
    assert [(flag.seed, flag.detail) for flag in found["adalora"]] == [(0, "30.0, base 35.0")]
    assert found["lora"] == found["base"] == []
    (line,) = [line for row in table.rows for line in flags(row) if line.startswith(BELOW_BASE)]
    assert line == f"{BELOW_BASE}: seed 0: 30.0, base 35.0"
    (table,) = study_of(records[1:]).tables
    assert not any(flag.kind == BELOW_BASE for row in table.rows for flag in row.flags)
