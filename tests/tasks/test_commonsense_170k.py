"""The joint commonsense instructions: LLM-Adapters' rows and template, and how it reads answers."""

from __future__ import annotations

import importlib.util
import json

import pyarrow.parquet as parquet
import pytest
from suite_loading import by_name, loaded

from mtlbench.data.examples import training_pairs
from mtlbench.data.lm_task import yaml_path
from mtlbench.errors import DataError
from mtlbench_tasks.commonsense import COMMONSENSE
from mtlbench_tasks.commonsense_170k import COMMONSENSE_170K, mtlbench_tasks

TASKS = by_name(COMMONSENSE_170K)


def helper():
    path = yaml_path(TASKS["piqa"]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location("commonsense_170k_of_the_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_suite_has_the_eight_tasks_of_the_other_commonsense_suite():
    assert mtlbench_tasks() == (COMMONSENSE_170K,)
    assert list(TASKS) == [task.name for task in COMMONSENSE.tasks]
    assert all(task.licence and task.source and task.tables == ("peml/table-6",) for task in COMMONSENSE_170K.tasks)


def test_the_tasks_are_the_columns_of_table_6(shared_data):
    tables = json.loads((shared_data.parent / "published" / "paper_tables.json").read_text())["tables"]
    columns = next(t["columns"] for t in tables if t["paper"].startswith("PEML") and t["table"] == "6")
    theirs = {"SIQA": "social_iqa", "OBQA": "openbookqa", "ARC-E": "arc_easy", "ARC-C": "arc_challenge"}
    assert {theirs.get(column, column.lower()) for column in columns} == set(TASKS)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_real_rows_train_and_score(shared_data, name):
    lm_task = loaded(COMMONSENSE_170K, TASKS[name], str(shared_data))
    pairs = training_pairs(lm_task)
    assert len(pairs) == len(lm_task.training_docs()) > 100 and len(lm_task.eval_docs) > 100
    for doc, pair in zip(lm_task.training_docs(), pairs, strict=True):
        assert pair.context.endswith(f"### Instruction:\n{doc['instruction']}\n\n### Response:\n")
        assert pair.target == doc["output"] == f"the correct answer is {doc['answer']}"


def test_demo_rows_are_worded_as_the_real_ones(shared_data):
    """Whatever stands before the question and after the last choice is the same text, byte for byte."""
    for task in COMMONSENSE_170K.tasks:
        real = parquet.read_table(shared_data / task.dataset / task.config / "train.parquet").to_pylist()
        made = COMMONSENSE_170K.demo(task.dataset, task.config, "train")
        opening = made[0]["instruction"].partition(": ")[0]
        assert {row["instruction"].partition(": ")[0] for row in made + real} == {opening}
        last = {row["instruction"].rpartition("Answer format: ")[2] for row in real}
        assert {row["instruction"].rpartition("Answer format: ")[2] for row in made} <= last
        assert set(made[0]) == set(real[0])


def test_the_mix_of_llm_adapters_holds_rows_of_these_tasks_and_nothing_else(shared_data):
    mix = parquet.read_table(shared_data / "llm_adapters/commonsense/commonsense_170k_mix/train.parquet").to_pylist()
    known = {word for task in COMMONSENSE_170K.tasks for word in task.columns["answer"]}
    assert {row["answer"] for row in mix} <= known
    rows = {
        row["instruction"]
        for task in COMMONSENSE_170K.tasks
        for split in ("train", "test")
        for row in parquet.read_table(shared_data / task.dataset / task.config / f"{split}.parquet").to_pylist()
    }
    openings = {text.partition(": ")[0] for text in rows}
    assert {row["instruction"].partition(": ")[0] for row in mix} <= openings


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("the correct answer is answer3", "answer3", 1.0),
        ("answer2, no, answer3", "answer3", 0.0),
        ("it must be false", "false", 1.0),
        ("true is not false", "false", 0.0),
        ("the correct answer is ending1", "solution1", 0.0),
        ("", "option1", 0.0),
        ("ending5", "ending4", 0.0),
        ("answer5", "answer5", 1.0),
    ],
)
def test_the_first_answer_word_of_the_set_is_what_was_answered(text, answer, right):
    assert helper().process_results({"answer": answer}, [text]) == {"exact_match": right}


def test_an_output_that_gives_another_answer_is_named_with_its_row(tmp_path):
    import pyarrow

    task = TASKS["piqa"]
    for split in ("train", "test"):
        rows = COMMONSENSE_170K.demo(task.dataset, task.config, split)
        if split == "train":
            rows[4] |= {"output": "the correct answer is solution1", "answer": "solution2"}
        folder = tmp_path / task.dataset / task.config
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
    with pytest.raises(DataError, match="Row 4 of split 'train'.*does not give the answer 'solution2'"):
        training_pairs(loaded(COMMONSENSE_170K, task, str(tmp_path)))
