"""The GLUE-shaped demo data: the hub's columns, disjoint splits, labels that other code can work out from the text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from random import Random

import pytest

from mtlbench.demo.corpus import documents, drill
from mtlbench.demo.lexicon import BAD, GOOD, HE_NAMES, SEASIDE, SHE_NAMES
from mtlbench_tasks.demo_glue import CONFIGS, glue_rows, glue_splits

# Column names and types of nyu-mll/glue.
ONE = {"sentence": str, "label": int, "idx": int}
TWO = {"sentence1": str, "sentence2": str, "label": int, "idx": int}
SCHEMAS = {
    "cola": ONE,
    "sst2": ONE,
    "mrpc": TWO,
    "qqp": {"question1": str, "question2": str, "label": int, "idx": int},
    "stsb": {**TWO, "label": float},
    "mnli": {"premise": str, "hypothesis": str, "label": int, "idx": int},
    "qnli": {"question": str, "sentence": str, "label": int, "idx": int},
    "rte": TWO,
    "wnli": TWO,
}
SPLITS = [(config, split) for config in SCHEMAS for split in glue_splits(config)]
SPLITS_OF_TWO = ("train", "validation")
DIGEST = """
import hashlib, json
from mtlbench_tasks.demo_glue import CONFIGS, glue_rows, glue_splits
rows = [glue_rows(config, split) for config in CONFIGS for split in glue_splits(config)]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def _text(row):
    return tuple(value for key, value in row.items() if key not in {"label", "idx"})


def test_all_nine_configurations_are_there():
    assert set(CONFIGS) == set(SCHEMAS)
    assert glue_splits("mnli") == ("train", "validation_matched", "validation_mismatched")
    with pytest.raises(KeyError, match="no GLUE configuration 'snli'"):
        glue_rows("snli", "train")
    with pytest.raises(KeyError, match="no split 'test'"):
        glue_rows("rte", "test")


@pytest.mark.parametrize(("config", "split"), SPLITS)
def test_columns_are_the_hubs(config, split):
    rows = glue_rows(config, split)
    assert len(rows) >= (150 if split != "train" else 500)
    assert [row["idx"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert {key: type(value) for key, value in row.items()} == SCHEMAS[config]
        assert list(row) == list(SCHEMAS[config])


def test_rows_are_the_same_in_another_process_with_another_hash_seed():
    rows = [glue_rows(config, split) for config in CONFIGS for split in glue_splits(config)]
    other = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == other.stdout.strip()


@pytest.mark.parametrize("config", list(SCHEMAS))
def test_no_text_is_in_two_splits_or_twice_in_one(config):
    firsts = [_text(row)[0] for split in glue_splits(config) for row in glue_rows(config, split)]
    assert len(firsts) == len(set(firsts))


@pytest.mark.parametrize(("config", "split"), SPLITS)
def test_the_commonest_label_is_near_chance(config, split):
    labels = Counter(row["label"] for row in glue_rows(config, split))
    chance = 1 / 3 if config == "mnli" else 0.25 if config == "stsb" else 0.5
    assert labels.most_common(1)[0][1] / labels.total() < chance + 0.1


def test_pretraining_text_holds_no_pair_of_a_task_row():
    rows = {_text(row) for config, split in SPLITS for row in glue_rows(config, split)}
    pairs = [row for row in rows if len(row) == 2]
    seconds: dict[str, list[str]] = {}
    for first, second in pairs:
        seconds.setdefault(first, []).append(second)
    for document in islice(documents(1), 20_000):
        for line in re.split(r"\n| \| | / |(?<=[.?]) ", document.text):
            text = re.sub(r"^(One:|Two:|Here:|There:|Line:|Text:|left:|right:|Remark:|a\)|b\)) ", "", line.strip())
            assert not any(each in document.text for each in seconds.get(text, ())), document


def test_no_drill_of_the_pretraining_text_holds_a_sentence_of_a_single_sentence_task():
    rows = {_text(row)[0] for config in ("cola", "sst2") for split in SPLITS_OF_TWO for row in glue_rows(config, split)}
    rng = Random(1)
    for _ in range(20_000):
        lines = drill(rng).prompt.split("\n")
        assert not rows & {*lines, *(line.removeprefix("Text: ") for line in lines)}


# What the labels follow from, worked out here from the words alone.
NEGATORS = ("anything but", "far from", "not at all", "not", "never", "hardly", "did not", "never did")
LIKED = {"enjoyed", "liked", "loved", "admired", "enjoy", "like", "love", "admire"}
LOATHED = {"disliked", "hated", "regretted", "endured", "dislike", "hate", "regret", "endure"}


def _sentiment(clause):
    words = set(re.findall(r"[a-z]+", clause))
    negated = any(f" {negator} " in f" {clause} " for negator in NEGATORS)
    good = bool(words & (set(GOOD) | LIKED))
    assert good != bool(words & (set(BAD) | LOATHED))
    return good != negated


def test_sst2_labels_follow_from_words_negation_and_contrast():
    for split in ("train", "validation"):
        for row in glue_rows("sst2", split):
            text = row["sentence"]
            if " but i " in text or re.search(r"(?<!anything) but ", text):
                text = re.split(r"(?<!anything) but ", text)[-1]
            elif text.startswith("although "):
                text = text.split(" , ")[1]
            text = text.split(" even though ")[0]
            verdicts = {_sentiment(clause) for clause in text.split(" and ")}
            assert verdicts == {bool(row["label"])}, row


def test_cola_reflexives_agree_exactly_in_the_acceptable_sentences():
    checked = 0
    for row in glue_rows("cola", "train"):
        found = re.match(r"(\w+) \w+ (himself|herself)\b", row["sentence"])
        if not found:
            continue
        name, reflexive = found.groups()
        agrees = name in (HE_NAMES if reflexive == "himself" else SHE_NAMES)
        assert agrees == bool(row["label"]), row
        checked += 1
    assert checked > 20


def test_wnli_pronouns_of_one_gender_pick_the_one_of_that_gender():
    checked = 0
    for row in glue_rows("wnli", "train"):
        main, _, reason = row["sentence1"].partition(" because ")
        names = [name for name in HE_NAMES + SHE_NAMES if re.search(rf"\b{name}\b", main)]
        pool = HE_NAMES if reason.startswith("he ") else SHE_NAMES
        fitting = [name for name in names if name in pool]
        if len(names) != 2 or len(fitting) != 1:
            continue
        assert row["sentence2"].startswith(fitting[0]) == bool(row["label"]), row
        checked += 1
    assert checked > 30


def test_qnli_sentences_that_answer_when_and_where_have_a_time_or_a_place():
    for row in glue_rows("qnli", "train"):
        if row["label"] == 0 and re.match(r"Where|In which place", row["question"]):
            assert " the " in row["sentence"].replace("In the", " in the") and re.search(
                r"\b[Ii]n the ", row["sentence"]
            )
        if row["label"] == 0 and re.match(r"When|At what time", row["question"]):
            assert re.search(r"(?i)yesterday|today|last|this morning|\bon [A-Z]|\bin (May|June)", row["sentence"]), row


def test_quantified_premises_decide_as_logic_does():
    some = {"all the", "most", "many", "three", "some"}
    pattern = re.compile(r"(?i)^(all the|most|many|three|some|no) (\w+)( in the \w+)? (\w+)\.$")
    checked = 0
    for row in glue_rows("mnli", "train"):
        premise, hypothesis = pattern.match(row["premise"]), pattern.match(row["hypothesis"])
        if not premise or not hypothesis:
            continue
        (first, noun, where, deed), (second, other, there, done) = (
            [part.lower() if part else "" for part in match.groups()] for match in (premise, hypothesis)
        )
        if (noun, where, deed) != (other, there, done):
            continue
        clash = (first == "no") != (second == "no") and {first, second} & some
        assert (row["label"] == 2) == bool(clash), row
        assert row["label"] != 0 or second in {first, "some"} or first == "all the", row
        checked += 1
    assert checked > 40


def test_mismatched_rows_are_about_nouns_the_training_rows_lack():
    trained = " ".join(" ".join(_text(row)) for row in glue_rows("mnli", "train"))
    assert not set(re.findall(r"\w+", trained)) & {*SEASIDE.people, *SEASIDE.animals, *SEASIDE.places}
