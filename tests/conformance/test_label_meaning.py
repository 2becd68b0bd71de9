"""Labels that mean one thing in training and another in evaluation are found where names or words tell."""

from __future__ import annotations

import random
from dataclasses import replace

import datasets
import pytest
from test_suites import RTE, rows, suite

from mtlbench.api.task import TaskSuite
from mtlbench.conformance.label_meaning import exchanged, renamed
from mtlbench.conformance.suites import CHECKS, suite_findings
from mtlbench.data.choose import open_source
from mtlbench.data.lm_task import load_lm_task
from mtlbench.plugins import load_suite

TELLING = {0: ("gone", "cold", "broken"), 1: ("here", "warm", "whole")}


def worded(dataset, config, split, *, shares=(0.5, 0.5), told=1.0):
    """Rows whose words tell the label in ``told`` of the cases; ``shares`` of label 1 in training and evaluation."""
    draw = random.Random(split)
    found = []
    for number in range(200 if split == "train" else 80):
        label = int(draw.random() < shares[split != "train"])
        word = draw.choice(TELLING[label if draw.random() < told else 1 - label])
        found.append({"sentence1": f"Thing {number} of {split} is {word}.", "sentence2": "Claim.", "label": label})
    return found


def flipped(make, *, split):
    return lambda *words: [row | {"label": 1 - row["label"]} if words[2] == split else row for row in make(*words)]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_labels_exchanged_in_one_split_are_found_and_named(split):
    assert [f.ok for f in suite_findings(suite(worded), train=False)] == [True] * (len(CHECKS) - 1)
    *before, last = suite_findings(suite(flipped(worded, split=split)), train=False)
    assert all(finding.ok for finding in before)
    assert (last.check, last.ok) == ("labels", False)
    assert "80 evaluation rows fit with" in last.message and "0 as they are labelled" in last.message


def test_the_same_exchange_in_both_splits_is_nothing_that_rows_could_tell():
    both = flipped(flipped(worded, split="train"), split="validation")
    assert all(finding.ok for finding in suite_findings(suite(both), train=False))


def test_other_shares_of_the_labels_are_no_exchange():
    def shifted(*words):
        return worded(*words, shares=(0.9, 0.1), told=0.6)

    assert all(finding.ok for finding in suite_findings(suite(shifted), train=False))


def test_rows_that_repeat_a_text_of_training_with_another_label_are_no_exchange():
    """As WNLI's."""

    def twins(dataset, config, split):
        return [
            row | {"sentence1": row["sentence1"].replace("validation", "train")} for row in worded(None, None, "train")
        ] if split == "train" else [
            row | {"sentence2": "Other claim.", "label": 1 - row["label"]} for row in worded(None, None, "train")
        ]  # fmt: skip

    assert all(finding.ok for finding in suite_findings(suite(twins), train=False))


@pytest.mark.parametrize("name", ["glue/sst2", "clue16/amazon", "clue16/thucnews", "clue16/tnews"])
def test_training_labels_of_our_suites_moved_by_one_are_found(name):
    first, _, second = name.partition("/")
    known = load_suite(first)
    task = next(task for task in known.tasks if task.name == second)
    splits = dict(open_source("demo", suites={first: known}).splits(task))
    assert exchanged(load_lm_task(task, splits, name=name)) is None
    column = next(column for column in task.columns if column.startswith("label"))
    values = list(task.columns[column])
    after = dict(zip(values, [*values[1:], values[0]], strict=True))
    train = splits[task.train_split]
    splits[task.train_split] = train.map(lambda row: {column: after[row[column]]}, features=train.features)
    assert "as they are labelled" in exchanged(load_lm_task(task, splits, name=name))


def named(names, *, split):
    kinds = {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string")}
    features = datasets.Features({**kinds, "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_list(rows("toy", None, split), features=features)


@pytest.mark.parametrize(
    ("train", "validation", "told"),
    [
        (["entailment", "not_entailment"], ["entailment", "not_entailment"], None),
        (["entailment", "not_entailment"], ["not_entailment", "entailment"], "in split 'train' and"),
        (["True", "False"], ["True", "False"], None),
        (["false", "true"], ["false", "true"], "row 0 of split 'train' has the label 'false' in column 'label'"),
    ],
)
def test_names_of_labels_agree_with_one_another_and_with_the_choices(train, validation, told):
    splits = {"train": named(train, split="train"), "validation": named(validation, split="validation")}
    found = renamed(load_lm_task(RTE, splits, name="toy/rte"), splits)
    assert found is None if told is None else told in found


def test_every_suite_of_demo_rows_is_free_of_it():
    """One task of each kind of answer: chosen, written, chosen among inputs."""
    for name, tasks in {"glue": ("sst2", "wnli"), "commonsense": ("winogrande",), "clue16": ("cote_bd",)}.items():
        known = load_suite(name)
        few: TaskSuite = replace(known, tasks=tuple(task for task in known.tasks if task.name in tasks))
        assert all(finding.ok for finding in suite_findings(few, train=False))
