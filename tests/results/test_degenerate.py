"""Runs that say nothing about their method are flagged, and others are not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from record_builder import COSTS, accuracy, cell, correlation, done

from mtlbench.api.study import AT_MAJORITY, TaskAnswers
from mtlbench.results.degenerate import CONSTANT, STILL, UNDEFINED, UNPARSED, flags_of

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
