"""MMLU: 57 subjects with lm-eval's prompts, zero-shot and 5-shot, and all of them as one task."""

from __future__ import annotations

from pathlib import Path

import lm_eval
import pytest
from suite_loading import by_name, loaded, prompts, stock, stock_of

from mtlbench.data.choose import open_source
from mtlbench.data.examples import evaluation_golds, training_pairs
from mtlbench.data.source import required_splits
from mtlbench_tasks.mmlu import ALL, AUXILIARY, FIVE_SHOT, MMLU, mtlbench_tasks
from mtlbench_tasks.subjects import SUBJECTS

STOCK = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
SOME = ("anatomy", "high_school_us_history", "world_religions")


def test_the_subjects_are_the_57_of_lm_eval():
    assert mtlbench_tasks() == (MMLU, FIVE_SHOT, AUXILIARY)
    assert [f"mmlu_{subject}" for subject in SUBJECTS] == sorted(path.stem for path in STOCK.glob("mmlu_*.yaml"))
    for suite in (MMLU, FIVE_SHOT):
        assert [task.name for task in suite.tasks] == list(SUBJECTS)
        assert all(required_splits(task) == ("dev", "test") and task.licence and task.source for task in suite.tasks)
    assert {task.shots for task in MMLU.tasks} == {0} and {task.shots for task in FIVE_SHOT.tasks} == {5}


@pytest.mark.parametrize("name", SOME)
def test_zero_shot_requests_are_lm_evals_own(name):
    task = by_name(MMLU)[name]
    assert prompts(loaded(MMLU, task)) == prompts(stock_of(MMLU, task))


@pytest.mark.parametrize("name", SOME)
def test_five_shot_requests_are_lm_evals_own(name):
    task = by_name(FIVE_SHOT)[name]
    theirs = stock_of(FIVE_SHOT, task)
    theirs.set_config("num_fewshot", 5)
    assert prompts(loaded(FIVE_SHOT, task)) == prompts(theirs)


def test_in_five_shot_training_a_row_sees_the_four_others_of_its_subject():
    lm_task = loaded(FIVE_SHOT, by_name(FIVE_SHOT)["anatomy"])
    questions = [doc["question"] for doc in lm_task.training_docs()]
    for asked, pair in zip(questions, training_pairs(lm_task), strict=True):
        assert pair.context.count("Answer:") == 5
        assert [pair.context.count(question) for question in questions] == [1] * 5
        assert pair.context.rindex(asked) == max(pair.context.rindex(question) for question in questions)


def test_all_subjects_as_one_task_have_the_prompts_of_each():
    everything = {args[0] for args in prompts(loaded(AUXILIARY, ALL))}
    for name in SOME:
        splits = dict(open_source("demo", suites={"mmlu": MMLU}).splits(by_name(MMLU)[name]))
        assert {args[0] for args in prompts(stock(STOCK / f"mmlu_{name}.yaml", splits))} <= everything
    assert len(everything) == 57 * 10


def test_auxiliary_rows_have_no_subject_and_name_none():
    context = training_pairs(loaded(AUXILIARY, ALL), [0])[0].context
    assert context.startswith("The following are multiple choice questions (with answers).\n\n")


@pytest.mark.parametrize("suite", [MMLU, FIVE_SHOT], ids=lambda suite: suite.name)
def test_real_rows_of_every_subject_train_and_score(shared_data, suite):
    for task in suite.tasks:
        lm_task = loaded(suite, task, str(shared_data))
        assert len(training_pairs(lm_task)) == 5
        assert {pair.target for pair in training_pairs(lm_task)} <= {" A", " B", " C", " D"}
        assert len(evaluation_golds(lm_task)) == len(lm_task.eval_docs)
