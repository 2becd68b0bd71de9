"""ATTEMPT's tasks: those of other suites as they are there, and eight data sets of its own."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
from suite_loading import by_name, loaded, prompts

from mtlbench.data.examples import evaluation_golds, training_pairs
from mtlbench.data.lm_task import yaml_path
from mtlbench_tasks.attempt21 import ATTEMPT21, SOURCES, TARGETS, mtlbench_tasks
from mtlbench_tasks.commonsense import COMMONSENSE
from mtlbench_tasks.glue import GLUE
from mtlbench_tasks.superglue import SUPERGLUE

TASKS = by_name(ATTEMPT21)
OWN = ("nq", "hotpotqa", "searchqa", "newsqa", "yelp", "scitail", "paws", "squad")
SAMPLED = ("yelp", "scitail", "paws")


def spans():
    path = yaml_path(TASKS["nq"]).with_name("spans.py")
    spec = importlib.util.spec_from_file_location("spans_of_the_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_suite_has_21_targets_and_the_two_sources_that_are_none():
    assert mtlbench_tasks() == (ATTEMPT21,)
    assert len(TARGETS) == 21 and len(SOURCES) == 6
    assert set(TASKS) == {*TARGETS, *SOURCES} and set(SOURCES) - set(TARGETS) == {"squad", "record"}


def test_tasks_of_other_suites_are_the_same_here():
    others = {**by_name(COMMONSENSE), **by_name(SUPERGLUE)}
    shared = {name: task for name, task in TASKS.items() if name not in OWN}
    of_glue = {name for name, task in shared.items() if task == by_name(GLUE).get(name)}
    assert of_glue == {"mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola"}
    assert all(shared[name] is others[name] for name in set(shared) - of_glue)


@pytest.mark.parametrize("name", SAMPLED)
def test_real_rows_train_and_score(shared_data, name):
    lm_task = loaded(ATTEMPT21, TASKS[name], str(shared_data))
    pairs = training_pairs(lm_task)
    assert len(pairs) == len(lm_task.training_docs()) > 40
    assert {pair.target.strip() for pair in pairs} == set(lm_task.doc_to_choice(lm_task.eval_docs[0]))
    assert len(evaluation_golds(lm_task)) == len(lm_task.eval_docs)


def test_labels_say_what_the_rows_say(shared_data):
    told = {p.context: p.target for n in SAMPLED for p in training_pairs(loaded(ATTEMPT21, TASKS[n], str(shared_data)))}
    assert next(told[c] for c in told if "Tuscumbia '' was sold to W. K. Adams on November 29" in c) == " no"
    assert next(told[c] for c in told if "When the stop codon is read the chain" in c) == " True"
    assert next(told[c] for c in told if "Stopped into eat while attending the 2011 ironman" in c) == " positive"


@pytest.mark.parametrize("name", OWN)
def test_demo_prompts_end_where_the_answer_begins(name):
    lm_task = loaded(ATTEMPT21, TASKS[name])
    assert all(context.endswith("Answer:") for context, _ in prompts(lm_task))
    assert all(pair.target[0] == " " and pair.target[1] != " " for pair in training_pairs(lm_task))


@pytest.mark.parametrize(
    ("made", "answers", "f1", "exact"),
    [
        (" the Eiffel Tower.", ["Eiffel Tower"], 1.0, 1.0),
        ("tower", ["Eiffel Tower", "a tower"], 1.0, 1.0),
        ("in Paris today", ["Paris"], 0.5, 0.0),
        ("", ["Paris"], 0.0, 0.0),
    ],
)
def test_spans_are_scored_as_squad_does_by_the_best_answer(made, answers, f1, exact):
    helper = spans()
    expected = pytest.approx({"f1": f1, "exact_match": exact})
    assert helper.process_mrqa({"answers": answers}, [made]) == expected
    assert helper.process_squad({"answers": {"text": answers}}, [made]) == expected


def test_demo_answers_stand_in_the_passage_where_the_row_says():
    for name in ("nq", "squad"):
        task = TASKS[name]
        for row in ATTEMPT21.demo(task.dataset, task.config, "train"):
            if name == "squad":
                answer, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
            else:
                answer, start = row["answers"][0], row["labels"][0]["start"][0]
                assert row["labels"][0]["end"][0] == start + len(answer) - 1
            assert row["context"][start : start + len(answer)] == answer


def test_no_two_sets_of_mrqa_have_the_same_demo_rows():
    seen = Counter(
        row["context"]
        for name in ("nq", "hotpotqa", "searchqa", "newsqa")
        for row in ATTEMPT21.demo(TASKS[name].dataset, None, "train")
    )
    assert sum(count > 1 for count in seen.values()) < 5
