"""The commonsense suite: eight tasks with lm-eval's prompts, on official validation splits."""

from __future__ import annotations

import pytest
from suite_loading import by_name, loaded, prompts, stock_of

from mtlbench.data.examples import evaluation_golds, training_pairs
from mtlbench.data.source import required_splits
from mtlbench_tasks.commonsense import COMMONSENSE, mtlbench_tasks
from mtlbench_tasks.superglue import SUPERGLUE

TASKS = by_name(COMMONSENSE)


def test_the_suite_has_the_eight_tasks_and_reads_no_test_split():
    assert mtlbench_tasks() == (COMMONSENSE,)
    assert set(TASKS) == {
        "boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"
    }  # fmt: skip
    for task in COMMONSENSE.tasks:
        assert task.licence and task.source and task.metrics == ("acc",)
        assert required_splits(task) == ("train", "validation")
    assert TASKS["boolq"] is by_name(SUPERGLUE)["boolq"], "one data set, one prompt"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_requests_are_lm_evals_own(name):
    assert prompts(loaded(COMMONSENSE, TASKS[name])) == prompts(stock_of(COMMONSENSE, TASKS[name]))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_real_rows_train_and_score(shared_data, name):
    lm_task = loaded(COMMONSENSE, TASKS[name], str(shared_data))
    pairs = training_pairs(lm_task)
    assert len(pairs) == len(lm_task.training_docs()) > 100
    assert all(pair.context.strip() and pair.target.strip() for pair in pairs)
    assert len(evaluation_golds(lm_task)) == len(lm_task.eval_docs) > 100


def test_rows_are_processed_once_and_read_as_they_are(monkeypatch):
    """HellaSwag's `process_docs` cleans every row; lm-eval runs it again each time rows are asked for."""
    lm_task = loaded(COMMONSENSE, TASKS["hellaswag"])
    assert lm_task.config.process_docs is None
    assert lm_task.training_docs() is lm_task.training_docs()
    doc = lm_task.eval_docs[0]
    assert doc["query"].startswith("A story: ") and doc["choices"] == doc["endings"]
