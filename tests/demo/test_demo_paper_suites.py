"""Demo rows of the Chinese suite, ATTEMPT's tasks and the joint instructions: columns, splits, labels from the text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from mtlbench.demo.lexicon import BAD, GOOD, KIND_OF
from mtlbench_tasks import demo_attempt21, demo_clue16, demo_commonsense_170k
from mtlbench_tasks.attempt21 import ATTEMPT21
from mtlbench_tasks.clue16 import CLUE16
from mtlbench_tasks.commonsense_170k import COMMONSENSE_170K
from mtlbench_tasks.demo_attempt21 import attempt21_rows
from mtlbench_tasks.demo_clue16 import clue16_rows
from mtlbench_tasks.demo_commonsense_170k import instruction_rows
from mtlbench_tasks.relations import FINRE, SANWEN

PAIR = {"sentence1": str, "sentence2": str, "label": int}
READ = {"id": str, "context": str, "question": str, "answers": {"text": [str], "answer_start": [int]}}
RELATE = {"head": str, "tail": str, "relation": str, "sentence": str}
MRQA = {"context": str, "question": str, "answers": [str], "key": str, "labels": [dict]}
# Columns and types as in the files or on the hub.
COLUMNS = {
    ("clue/clue", "afqmc"): {**PAIR, "idx": int},
    ("clue/clue", "cmnli"): {**PAIR, "idx": int},
    ("clue/clue", "ocnli"): {**PAIR, "idx": int},
    ("clue/clue", "tnews"): {"sentence": str, "label": int, "idx": int},
    ("clue/clue", "cmrc2018"): READ,
    ("clue/clue", "drcd"): READ,
    ("clue/clue", "c3"): {"id": int, "context": [str], "question": str, "choice": [str], "answer": str},
    ("shibing624/nli_zh", "BQ"): PAIR,
    ("shibing624/nli_zh", "LCQMC"): PAIR,
    ("thunlp/Chinese_NRE", "SanWen"): RELATE,
    ("thunlp/Chinese_NRE", "FinRE"): RELATE,
    ("thunlp/THUCNews", "title10"): {"text": str, "label": int},
    ("seamew/ChnSentiCorp", None): {"text": str, "label": int},
    ("mteb/amazon_reviews_multi", "zh"): {"id": str, "text": str, "label": int, "label_text": str},
    ("lsvih/chinese-customer-review", "baidu"): {"s": str, "ot": str},
    ("lsvih/chinese-customer-review", "mafengwo"): {"s": str, "ot": str},
    ("lucadiliello/naturalquestionsshortqa", None): MRQA,
    ("lucadiliello/hotpotqa", None): MRQA,
    ("lucadiliello/searchqa", None): MRQA,
    ("lucadiliello/newsqa", None): MRQA,
    ("fancyzhx/yelp_polarity", "plain_text"): {"text": str, "label": int},
    ("allenai/scitail", "tsv_format"): {"premise": str, "hypothesis": str, "label": str},
    ("google-research-datasets/paws", "labeled_final"): {"id": int, **PAIR},
    ("rajpurkar/squad", "plain_text"): {**READ, "title": str},
    **{("llm_adapters/commonsense", config): dict.fromkeys(("instruction", "input", "output", "answer"), str)
       for config in demo_commonsense_170k.CONFIGS},
}  # fmt: skip
TASKS = {
    (task.dataset, task.config): (suite, task)
    for suite in (ATTEMPT21, CLUE16, COMMONSENSE_170K)
    for task in suite.tasks
    if (task.dataset, task.config) in COLUMNS
}
DIGEST = """
import hashlib, json
from mtlbench_tasks import demo_attempt21, demo_clue16, demo_commonsense_170k
rows = [demo_clue16.clue16_rows(*c, "train") for c in demo_clue16.CONFIGS]
rows += [demo_attempt21.attempt21_rows(*c, "train") for c in demo_attempt21.CONFIGS]
rows += [demo_commonsense_170k.instruction_rows(c, "test") for c in demo_commonsense_170k.CONFIGS]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""
each_set = pytest.mark.parametrize("key", list(COLUMNS), ids=lambda key: f"{key[0]}-{key[1]}")


def rows_of(key) -> dict[str, list[dict]]:
    suite, task = TASKS[key]
    return {split: suite.demo(*key, split) for split in (task.train_split, task.eval_split)}


def shape(value):
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        (kind,) = {type(inner) for inner in value}
        return [kind]
    return type(value)


def test_every_set_of_the_suites_is_generated_and_others_are_refused():
    assert set(TASKS) == set(COLUMNS)
    assert set(COLUMNS) == {*demo_clue16.CONFIGS, *demo_attempt21.CONFIGS} | {
        ("llm_adapters/commonsense", config) for config in demo_commonsense_170k.CONFIGS
    }
    for call in (
        lambda: clue16_rows("clue/clue", "csl", "train"),
        lambda: clue16_rows("clue/clue", "tnews", "test"),
        lambda: attempt21_rows("rajpurkar/squad", None, "train"),
        lambda: attempt21_rows("fancyzhx/yelp_polarity", "plain_text", "validation"),
        lambda: instruction_rows("cosmos", "train"),
        lambda: instruction_rows("piqa", "validation"),
    ):
        with pytest.raises(KeyError, match="known are"):
            call()


@each_set
def test_columns_are_those_of_the_real_set(key):
    for rows in rows_of(key).values():
        assert len(rows) >= 80
        for row in rows:
            assert shape(row) == COLUMNS[key]


@each_set
def test_no_row_is_twice_there(key):
    unnumbered = [
        json.dumps({name: value for name, value in row.items() if name not in ("id", "idx", "key")}, sort_keys=True)
        for rows in rows_of(key).values()
        for row in rows
    ]
    assert len(set(unnumbered)) == len(unnumbered)


@each_set
def test_the_commonest_label_is_near_chance(key):
    for rows in rows_of(key).values():
        labels = Counter(str(row.get("label", row.get("relation", row.get("answer")))) for row in rows)
        if set(labels) == {"None"}:
            continue
        assert labels.most_common(1)[0][1] / labels.total() <= 1 / len(labels) + 0.12, labels


def test_rows_are_the_same_in_another_process_with_another_hash_seed():
    env = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
    rows = [clue16_rows(*config, "train") for config in demo_clue16.CONFIGS]
    rows += [attempt21_rows(*config, "train") for config in demo_attempt21.CONFIGS]
    rows += [instruction_rows(config, "test") for config in demo_commonsense_170k.CONFIGS]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == other.stdout.strip()


# What the labels follow from, worked out here from the words alone.


def test_topics_are_the_kinds_of_what_something_is_done_to():
    kinds: dict[int, set[str]] = {}
    for row in clue16_rows("clue/clue", "tnews", "train"):
        words = re.findall(r"\w+", row["sentence"].lower())
        kinds.setdefault(row["label"], set()).update(KIND_OF[word] for word in words if word in KIND_OF)
    assert len(kinds) == 15
    people = {"person", "artist"}
    told = [found - people for label, found in kinds.items() if label != 9]
    assert all(len(found) == 1 for found in told) and len(set.union(*told)) == 14


def test_stars_follow_the_strength_of_praise_and_blame():
    for row in clue16_rows("mteb/amazon_reviews_multi", "zh", "train"):
        words = re.findall(r"\w+", row["text"].lower())
        strengths = {GOOD.get(word, -BAD.get(word, 0)) for word in words} - {0}
        assert strengths <= {0: {-3}, 1: {-2}, 2: {-1, 1}, 3: {2}, 4: {3}}[row["label"]], row


def test_opinion_targets_are_what_the_opinion_is_about():
    for config in ("baidu", "mafengwo"):
        for row in clue16_rows("lsvih/chinese-customer-review", config, "train"):
            assert len(re.findall(rf"\b{row['ot']}\b", row["s"])) == 1


def test_relations_name_two_expressions_of_the_text_and_turn_with_them():
    for config, known in (("SanWen", SANWEN), ("FinRE", FINRE)):
        for row in clue16_rows("thunlp/Chinese_NRE", config, "train"):
            assert row["relation"] in known and row["head"] in row["sentence"] and row["tail"] in row["sentence"]
    for row in clue16_rows("thunlp/Chinese_NRE", "FinRE", "train"):
        turned = row["sentence"].index(row["head"]) > row["sentence"].index(row["tail"])
        assert row["relation"].startswith("被") == (turned and row["relation"] in {"被" + word for word in FINRE})


def test_answers_of_passages_stand_where_the_row_says():
    for config in ("cmrc2018", "drcd"):
        for row in clue16_rows("clue/clue", config, "train"):
            (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start : start + len(answer)] == answer


def test_the_right_choice_of_c3_is_one_of_four():
    for row in clue16_rows("clue/clue", "c3", "train"):
        assert len(set(row["choice"])) == 4 and row["choice"].count(row["answer"]) == 1
        assert row["answer"].lower() in row["context"][0].lower() and row["context"][0] not in row["question"]


def test_instructions_name_the_right_choice():
    for config in ("piqa", "hellaswag", "winogrande", "openbookqa"):
        for row in instruction_rows(config, "train"):
            shown = re.findall(r"(?:Solution|Ending|Option|Answer)(\d): ", row["instruction"])
            assert row["answer"][-1] in shown and row["output"] == f"the correct answer is {row['answer']}"
