"""Training pairs are what lm-eval scores for the gold answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_tasks import ARC, RTE, WINOGRANDE, arc_rows, rte_rows, winogrande_rows, write

from mtlbench.api.task import Task
from mtlbench.data.choose import open_source
from mtlbench.data.examples import Pair, evaluation_golds, gold_indices, gold_pair, training_pairs
from mtlbench.data.lm_task import load_lm_task, quiet_lm_eval
from mtlbench.errors import DataError

# A suite may leave its columns unstated: then only the label of each row is checked.
LOOSE = replace(RTE, columns={})
ROWS = {"rte": rte_rows, "winogrande": winogrande_rows, "arc_easy": arc_rows}
BOOLQ = Task(
    name="boolq-seq2seq",
    yaml="lm_eval:super_glue/boolq/seq2seq.yaml",
    metrics=("exact_match",),
    dataset="aps/super_glue",
    config="boolq",
)
BOOLQ_ROWS = [{"question": f"is it {i}", "passage": f"It is {i}.", "label": i % 2} for i in range(4)]


def loaded(folder, task, **splits):
    write(folder, task, **splits)
    return load_lm_task(task, open_source(str(folder), suites={}).splits(task), name=f"toy/{task.name}")


@pytest.mark.parametrize("task", [RTE, WINOGRANDE, ARC], ids=lambda task: task.name)
def test_the_pair_of_an_evaluation_row_is_the_request_that_lm_eval_counts_as_right(tmp_path, task):
    rows = ROWS[task.name](7)
    lm_task = loaded(tmp_path, task, train=rows, validation=rows)
    with quiet_lm_eval():
        lm_task.build_all_requests()
    by_doc = {}
    for request in lm_task.instances:
        by_doc.setdefault(request.doc_id, []).append(request)
    for requests in by_doc.values():
        pair = gold_pair(lm_task, requests[0].doc)
        # lm-eval itself says which request is right: the one whose win it scores with accuracy 1.
        right = [
            request.args
            for i, request in enumerate(requests)
            if lm_task.process_results(request.doc, [(float(j == i), False) for j in range(len(requests))])["acc"] == 1
        ]
        assert right == [(pair.context, pair.target)]


def test_training_and_evaluation_prompts_are_the_same_text(tmp_path):
    lm_task = loaded(tmp_path, RTE, train=rte_rows(2), validation=rte_rows(2))
    prompts = [
        "Fact 0.\nQuestion: Claim 0. True or False?\nAnswer:",
        "Fact 1.\nQuestion: Claim 1. True or False?\nAnswer:",
    ]
    assert training_pairs(lm_task) == [Pair(prompts[0], " True"), Pair(prompts[1], " False")]


def test_winogrande_puts_the_choice_into_the_context(tmp_path):
    lm_task = loaded(tmp_path, WINOGRANDE, train=winogrande_rows(2), validation=winogrande_rows(2))
    assert training_pairs(lm_task)[1] == Pair("Ann met Eve and Eve", " left 1.")


def test_generation_tasks_give_the_text_that_is_compared(tmp_path):
    lm_task = loaded(tmp_path, BOOLQ, train=BOOLQ_ROWS, validation=BOOLQ_ROWS)
    pairs = training_pairs(lm_task)
    assert [pair.target for pair in pairs] == [" no", " yes", " no", " yes"]
    for doc, pair in zip(BOOLQ_ROWS, pairs, strict=True):
        assert lm_task.process_results(doc, [pair.target])["exact_match"] == 1


def test_rows_can_be_chosen(tmp_path):
    lm_task = loaded(tmp_path, RTE, train=rte_rows(9), validation=rte_rows(9))
    everything = training_pairs(lm_task)
    assert training_pairs(lm_task, [1, 5]) == [everything[1], everything[5]]
    assert evaluation_golds(lm_task, [1, 4]) == [1, 0]


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_out_of_range_names_the_row(tmp_path, label):
    rows = rte_rows(5)
    rows[3]["label"] = label
    lm_task = loaded(tmp_path, LOOSE, train=rows, validation=rte_rows(2))
    with pytest.raises(DataError, match=f"Row 3 of split 'train' of task 'toy/rte'.*label {label} is not"):
        training_pairs(lm_task)
    lm_task = loaded(tmp_path, replace(LOOSE, train_split="validation", eval_split="train"))
    with pytest.raises(DataError, match=f"Row 3 of split 'train' of task 'toy/rte'.*label {label} is not"):
        evaluation_golds(lm_task)


@pytest.mark.parametrize("label", [0.5, None, "maybe"])
def test_a_label_of_the_wrong_type_names_the_row(tmp_path, label):
    rows = [{**row, "label": label} for row in rte_rows(3)]
    lm_task = loaded(tmp_path, LOOSE, train=rows, validation=rte_rows(2))
    with pytest.raises(DataError, match=rf"Row 1 of split 'train'.*the label {label!r} is neither"):
        training_pairs(lm_task, [1, 2])


def test_of_several_right_choices_training_takes_the_first(tmp_path):
    lm_task = loaded(tmp_path, RTE, train=rte_rows(4), validation=rte_rows(2))
    lm_task.config.doc_to_target = lambda doc: [1, 0]
    doc = lm_task.training_docs()[0]
    assert gold_indices(lm_task, doc) == [1, 0]
    assert gold_pair(lm_task, doc).target == " False"
    lm_task.config.doc_to_target = lambda doc: []
    with pytest.raises(ValueError, match="no label says which"):
        gold_indices(lm_task, doc)
