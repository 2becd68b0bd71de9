"""What is cut of rows and which rows are repeated is counted for training and evaluation as it is computed."""

from __future__ import annotations

from dataclasses import replace

import datasets
import pytest
from tiny_backbones import tiny_tokenizer
from toy_tasks import RTE, WINOGRANDE, rte_rows, winogrande_rows

from mtlbench.api.row_checks import RowCheck, SplitCounts
from mtlbench.api.task import Task
from mtlbench.data.examples import training_pairs
from mtlbench.data.lm_task import load_lm_task
from mtlbench.errors import DataError
from mtlbench.plugins import load_suite
from mtlbench.tokens.encode import encode_prompts, encode_rows
from mtlbench.tokens.facts import counts_of, evaluation_facts, question_digest, training_facts

LONG = "word " * 50
LENGTH = 120


def facts_of(task, *, length=LENGTH, architecture="causal", **splits):
    """Facts of all training and of all evaluation rows."""
    made = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    lm_task, tokenizer = load_lm_task(task, made, name=f"toy/{task.name}"), tiny_tokenizer(architecture=architecture)
    numbers = range(len(splits["train"]))
    kind = {"architecture": architecture, "max_length": length}
    generates = lm_task.OUTPUT_TYPE == "generate_until"
    rows = encode_rows(tokenizer, training_pairs(lm_task, numbers), task=0, append_eos=generates, **kind)
    whole = encode_rows(
        tokenizer, training_pairs(lm_task, numbers), task=0, append_eos=generates, **{**kind, "max_length": 10**6}
    )
    for row, full in zip(rows, whole, strict=True):
        assert len(full.context) - len(row.context) == row.cut and row.target == full.target, "answers are whole"
    trained = training_facts(
        tokenizer, lm_task, numbers, cut=[row.cut for row in rows], kept=[len(row.context) for row in rows]
    )
    evaluated = range(len(lm_task.validation_docs()))
    return trained, evaluation_facts(tokenizer, lm_task, evaluated, **kind)


def long_rows(count, start=0, every=3):
    rows = rte_rows(count, start)
    return [{**row, "sentence1": LONG + row["sentence1"]} if at % every == 0 else row for at, row in enumerate(rows)]


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_cut_rows_of_both_splits_are_counted(architecture):
    trained, scored = facts_of(RTE, architecture=architecture, train=long_rows(9), validation=long_rows(4, 100))
    assert counts_of(trained) == SplitCounts(rows=9, cut=3, questions=3)
    assert counts_of(scored) == SplitCounts(rows=4, cut=2, questions=2)
    assert [bool(facts.cut) for facts in scored] == [True, False, False, True]


def test_few_shot_examples_that_are_cut_leave_the_question_whole():
    shots = replace(RTE, shots=2)
    trained, scored = facts_of(shots, length=75, train=rte_rows(5), validation=rte_rows(3, 100))
    assert counts_of(trained) == SplitCounts(rows=5, cut=5) and counts_of(scored) == SplitCounts(rows=3, cut=3)
    trained, scored = facts_of(shots, length=25, train=rte_rows(5), validation=rte_rows(3, 100))
    assert counts_of(trained).questions == 5 and counts_of(scored).questions == 3


def test_rows_ask_the_same_where_prompt_and_choices_are_equal():
    repeated = [rte_rows(3)[1], *rte_rows(2, 100)]
    repeated[0] = {**repeated[0], "label": 1 - repeated[0]["label"], "idx": 999}
    trained, scored = facts_of(RTE, train=rte_rows(3), validation=repeated)
    asked = [facts.question for facts in trained]
    assert [facts.question in asked for facts in scored] == [True, False, False]
    trained, scored = facts_of(replace(RTE, shots=1), train=rte_rows(3), validation=repeated)
    assert [facts.question in {f.question for f in trained} for facts in scored] == [True, False, False]


def test_questions_with_several_prompts_are_told_apart_by_all_of_them():
    rows = winogrande_rows(2)
    other = {**rows[0], "option2": "Ida"}
    trained, scored = facts_of(WINOGRANDE, train=rows, validation=[rows[1], other])
    assert [facts.question in {f.question for f in trained} for facts in scored] == [True, False]


def generated() -> Task:
    return next(task for task in load_suite("commonsense_170k").tasks if task.name == "boolq")


def instructions(*texts):
    return [
        {"instruction": text, "input": "", "output": "the correct answer is true", "answer": "true"} for text in texts
    ]


def test_prompts_of_generated_answers_keep_room_for_them():
    task = generated()
    rows = instructions("a" * 10, "b" * 400)
    trained, scored = facts_of(task, length=360, train=rows, test=rows)
    assert [bool(facts.cut) for facts in trained] == [False, True]
    lm_task = load_lm_task(task, {name: datasets.Dataset.from_list(rows) for name in ("train", "test")}, name="a/b")
    prompt = lm_task.fewshot_context(lm_task.validation_docs()[1], 0)
    given = encode_prompts(tiny_tokenizer(architecture="causal"), [prompt], architecture="causal")[prompt]
    assert [facts.cut for facts in scored] == [0, len(given) - (360 - 32)]
    with pytest.raises(DataError, match="Generating 32 tokens leaves no room for a prompt within --max-length 32"):
        facts_of(task, length=32, train=instructions("a"), test=rows)


def test_an_evaluation_answer_that_does_not_fit_is_said_before_training():
    rows = [{"sentence": "Ann met Eve and _ " + "left " * 40, "option1": "Ann", "option2": "Eve", "answer": "1"}]
    with pytest.raises(DataError, match=r"Evaluation row 0: An answer of \d+ tokens does not fit --max-length 60"):
        facts_of(WINOGRANDE, length=60, train=winogrande_rows(2), validation=rows)


def test_sentences_name_counts_shares_and_sides():
    check = RowCheck(
        train=SplitCounts(rows=48, cut=16, questions=16),
        evaluation=SplitCounts(rows=16, cut=6, questions=2),
        repeated=4,
    )
    assert list(check.sentences("glue/rte", max_length=256)) == [
        "glue/rte: 16 of 48 training rows (33 %) and 6 of 16 evaluation rows (38 %) were truncated to 256 tokens, on "
        "the left of the prompt (the question itself in 18 of them); answers are whole.",
        "glue/rte: 4 of 16 evaluation rows (25 %) are duplicates of training rows: same prompt, same choices.",
    ]
    assert check.warns and RowCheck.from_json(check.to_json()) == check
    few = RowCheck(train=SplitCounts(rows=2000, cut=8), evaluation=SplitCounts(rows=100))
    assert not few.warns
    assert list(few.sentences("a/b", max_length=8, verb="would be")) == [
        "a/b: 8 of 2,000 training rows (0.4 %) would be truncated to 8 tokens, on the left of the prompt (few-shot "
        "examples only); answers are whole."
    ]
    assert list(RowCheck(train=SplitCounts(rows=5)).sentences("a/b", max_length=8)) == []


def test_a_digest_fits_the_cache():
    lm_task = load_lm_task(
        RTE, {name: datasets.Dataset.from_list(rte_rows(40)) for name in ("train", "validation")}, name="toy/rte"
    )
    digests = {question_digest(lm_task, doc) for doc in lm_task.training_docs()}
    assert len(digests) == 40 and all(0 <= digest < 2**63 for digest in digests)
