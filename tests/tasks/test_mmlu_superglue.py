"""MMLU with four SuperGLUE tasks: one MMLU task, asked with the worked examples of the subject."""

from __future__ import annotations

import json

from suite_loading import by_name, loaded, prompts

from mtlbench.data.choose import open_source
from mtlbench.data.examples import training_pairs
from mtlbench.data.from_train import eval_from_train_splits
from mtlbench.data.source import required_splits
from mtlbench_tasks.mmlu import FIVE_SHOT
from mtlbench_tasks.mmlu_superglue import MMLU_SUPERGLUE, mtlbench_tasks
from mtlbench_tasks.subjects import SUBJECTS

TASKS = by_name(MMLU_SUPERGLUE)
MMLU = TASKS["mmlu"]


def test_the_suite_has_the_columns_of_table_5(shared_data):
    tables = json.loads((shared_data.parent / "published" / "paper_tables.json").read_text())["tables"]
    columns = next(t["columns"] for t in tables if t["paper"].startswith("PEML") and t["table"] == "5")
    assert [column.lower() for column in columns] == list(TASKS)
    assert mtlbench_tasks() == (MMLU_SUPERGLUE,)
    assert all(task.metrics == ("acc",) and task.tables == ("peml/table-5",) for task in TASKS.values())


def test_every_question_is_asked_as_the_five_shot_task_of_its_subject_asks_it():
    ours = set(prompts(loaded(MMLU_SUPERGLUE, MMLU)))
    assert len(ours) == 57 * 10 * 4
    for name in ("anatomy", SUBJECTS[0], SUBJECTS[-1]):
        theirs = set(prompts(loaded(FIVE_SHOT, by_name(FIVE_SHOT)[name])))
        assert len(theirs) == 40 and theirs <= ours


def test_auxiliary_rows_are_learnt_without_worked_examples():
    pairs = training_pairs(loaded(MMLU_SUPERGLUE, MMLU), range(5))
    assert all(pair.context.count("Answer:") == 1 for pair in pairs)


def test_the_split_of_the_worked_examples_is_read_and_kept_when_training_rows_are_divided():
    assert required_splits(MMLU) == ("auxiliary_train", "test", "dev")
    splits = open_source("demo", suites={"mmlu_superglue": MMLU_SUPERGLUE}).splits(MMLU)
    divided = eval_from_train_splits(MMLU, splits, share=0.1, train_rows=50)
    assert (len(divided["auxiliary_train"]), len(divided["test"]), len(divided["dev"])) == (45, 5, 285)
    asked = {doc["question"] for doc in divided["test"]}
    assert not asked & set(splits["test"]["question"])
