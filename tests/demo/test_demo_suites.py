"""Demo rows of SuperGLUE, the commonsense tasks and MMLU: hub columns, disjoint splits, labels that follow from the text."""

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

from mtlbench.demo.corpus import documents
from mtlbench.demo.grammar import TIMES
from mtlbench.demo.lexicon import BAD, GOOD, HE_NAMES, KIND_OF, SHE_NAMES, antonyms
from mtlbench_tasks import demo_commonsense, demo_mmlu, demo_superglue
from mtlbench_tasks.demo_commonsense import commonsense_rows
from mtlbench_tasks.demo_mmlu import mmlu_rows
from mtlbench_tasks.demo_rows import draw_splits, inside
from mtlbench_tasks.demo_superglue import superglue_rows
from mtlbench_tasks.subjects import SUBJECTS

SPLITS = ("train", "validation")
ARC = {"choices": {"text": [str], "label": [str]}, "answerKey": str}
# Columns and types as on the hub.
SUPERGLUE = {
    "boolq": {"question": str, "passage": str, "idx": int, "label": int},
    "cb": {"premise": str, "hypothesis": str, "idx": int, "label": int},
    "copa": {"premise": str, "choice1": str, "choice2": str, "question": str, "idx": int, "label": int},
    "multirc": {"paragraph": str, "question": str, "answer": str, "label": int,
        "idx": {"paragraph": int, "question": int, "answer": int}},
    "rte": {"premise": str, "hypothesis": str, "idx": int, "label": int},
    "wic": {"word": str, "sentence1": str, "sentence2": str, "start1": int, "start2": int, "end1": int, "end2": int,
        "idx": int, "label": int},
    "wsc.fixed": {"text": str, "span1_index": int, "span2_index": int, "span1_text": str, "span2_text": str, "idx": int,
        "label": int},
    "record": {"passage": str, "query": str, "entities": [str], "answers": [str],
        "entity_spans": {"text": [str], "start": [int], "end": [int]}, "idx": {"passage": int, "query": int}},
}  # fmt: skip
COMMONSENSE = {
    ("aps/super_glue", "boolq"): SUPERGLUE["boolq"],
    ("baber/piqa", None): {"goal": str, "sol1": str, "sol2": str, "label": int},
    ("lighteval/siqa", None): {"context": str, "question": str, "answerA": str, "answerB": str, "answerC": str,
        "label": str},
    ("Rowan/hellaswag", None): {"ind": int, "activity_label": str, "ctx_a": str, "ctx_b": str, "ctx": str,
        "endings": [str], "source_id": str, "split": str, "split_type": str, "label": str},
    ("allenai/winogrande", "winogrande_xl"): {"sentence": str, "option1": str, "option2": str, "answer": str},
    ("allenai/ai2_arc", "ARC-Easy"): {"id": str, "question": str, **ARC},
    ("allenai/ai2_arc", "ARC-Challenge"): {"id": str, "question": str, **ARC},
    ("allenai/openbookqa", "main"): {"id": str, "question_stem": str, **ARC},
}  # fmt: skip
MMLU = {"question": str, "subject": str, "choices": [str], "answer": int}
DIGEST = """
import hashlib, json
from mtlbench_tasks.demo_commonsense import CONFIGS, commonsense_rows
from mtlbench_tasks import demo_superglue
from mtlbench_tasks.demo_mmlu import mmlu_rows
rows = [demo_superglue.superglue_rows(c, s) for c in demo_superglue.CONFIGS for s in ("train", "validation")]
rows += [commonsense_rows(*c, s) for c in CONFIGS for s in ("train", "validation")]
rows += [mmlu_rows("all", s) for s in ("dev", "test", "auxiliary_train")]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def every_set():
    """Name, columns and the rows of each split of every data set."""
    for config, columns in SUPERGLUE.items():
        yield config, columns, {split: superglue_rows(config, split) for split in SPLITS}
    for key, columns in COMMONSENSE.items():
        yield key, columns, {split: commonsense_rows(*key, split) for split in SPLITS}
    yield "mmlu", MMLU, {split: mmlu_rows("all", split) for split in ("auxiliary_train", "dev", "test")}


def shape(value):
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        (kind,) = {type(inner) for inner in value}
        return [kind]
    return type(value)


def texts(value):
    """All text of a row but its identity and label, as one."""
    if isinstance(value, dict):
        return " ".join(
            texts(v) for k, v in value.items() if k not in {"id", "idx", "label", "subject", "entity_spans"}
        )
    return " ".join(map(texts, value)) if isinstance(value, list) else str(value) if isinstance(value, str) else ""


def test_the_data_sets_are_those_of_the_suites_and_others_are_refused():
    assert set(demo_superglue.CONFIGS) == set(SUPERGLUE)
    assert set(demo_commonsense.CONFIGS) == set(COMMONSENSE)
    with pytest.raises(KeyError, match="no SuperGLUE configuration 'axb'"):
        superglue_rows("axb", "train")
    with pytest.raises(KeyError, match="no split 'test'"):
        superglue_rows("rte", "test")
    with pytest.raises(KeyError, match="no data set 'allenai/ai2_arc'"):
        commonsense_rows("allenai/ai2_arc", None, "train")
    with pytest.raises(KeyError, match="no split 'test'"):
        commonsense_rows("baber/piqa", None, "test")
    with pytest.raises(KeyError, match="no MMLU subject 'cooking'"):
        mmlu_rows("cooking", "dev")
    with pytest.raises(KeyError, match="no split 'train'"):
        mmlu_rows("anatomy", "train")


@pytest.mark.parametrize(("name", "columns", "splits"), list(every_set()), ids=lambda value: str(value)[:40])
def test_columns_are_the_hubs(name, columns, splits):
    for split, rows in splits.items():
        assert len(rows) >= (80 if split != "dev" else 57 * 5)
        for row in rows:
            assert shape(row) == columns


@pytest.mark.parametrize(("name", "columns", "splits"), list(every_set()), ids=lambda value: str(value)[:40])
def test_no_row_is_twice_there_and_no_passage_in_two_splits(name, columns, splits):
    whole = [texts(row) for rows in splits.values() for row in rows]
    assert len(whole) == len(set(whole))
    firsts = [{row["paragraph"] if name == "multirc" else texts(row) for row in rows} for rows in splits.values()]
    for at, one in enumerate(firsts):
        assert not any(one & other for other in firsts[at + 1 :])


@pytest.mark.parametrize(("name", "columns", "splits"), list(every_set()), ids=lambda value: str(value)[:40])
def test_the_commonest_label_is_near_chance(name, columns, splits):
    for rows in splits.values():
        labels = Counter(
            str(row.get("label", row.get("answer", row.get("answerKey", row.get("answers"))))) for row in rows
        )
        allowed = {"multirc": 0.68}.get(name, 1 / len(labels) + 0.12)
        assert labels.most_common(1)[0][1] / labels.total() <= allowed, labels


def test_rows_are_the_same_in_another_process_with_another_hash_seed():
    env = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
    rows = [superglue_rows(c, s) for c in demo_superglue.CONFIGS for s in SPLITS]
    rows += [commonsense_rows(*c, s) for c in demo_commonsense.CONFIGS for s in SPLITS]
    rows += [mmlu_rows("all", s) for s in ("dev", "test", "auxiliary_train")]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == other.stdout.strip()


def test_pretraining_text_holds_no_pair_of_a_task_row():
    """The backbones may know every sentence's words, never a premise with its hypothesis or a question's passage."""
    rows = [row for config in ("cb", "rte") for split in SPLITS for row in superglue_rows(config, split)]
    seconds = {row["premise"]: row["hypothesis"] for row in rows}
    told = {row["passage"].split(". ")[0] + "." for split in SPLITS for row in superglue_rows("boolq", split)}
    for document in islice(documents(1), 20_000):
        for line in re.split(r"\n| \| | / |(?<=[.?]) ", document.prompt):
            if line in seconds:
                assert seconds[line] not in document.text
        assert not set(document.prompt.split("\n")[:1]) & told


def test_subjects_have_five_rows_each_and_the_auxiliary_rows_none():
    for subject in SUBJECTS:
        assert {row["subject"] for row in mmlu_rows(subject, "dev")} == {subject}
        assert (len(mmlu_rows(subject, "dev")), len(mmlu_rows(subject, "test"))) == (5, 10)
    assert {row["subject"] for row in mmlu_rows("all", "auxiliary_train")} == {""}


def test_drawing_more_than_there_is_ends_with_a_reason():
    with pytest.raises(RuntimeError, match="tiny has too few different rows"):
        draw_splits("tiny", lambda rng: (f"{rng.randrange(20)}", [{}]), {"train": 21})


@pytest.mark.parametrize(
    ("sentence", "clause"),
    [("The dog ran.", "the dog ran"), ("Tom ran.", "Tom ran"), ("On Monday, it ran.", "on Monday, it ran")],
)
def test_a_sentence_inside_another_keeps_the_capital_of_names_only(sentence, clause):
    assert inside(sentence) == clause


# What the labels follow from, worked out here from the words alone.


def test_copa_outcomes_agree_with_the_opinion():
    for row in superglue_rows("copa", "train"):
        right, wrong = (row["choice2"], row["choice1"]) if row["label"] else (row["choice1"], row["choice2"])
        held, then, instead = (
            (right, row["premise"], None) if row["question"] == "cause" else (row["premise"], right, wrong)
        )
        good = held.rstrip(".").split()[-1] in GOOD
        assert good != (held.rstrip(".").split()[-1] in BAD)
        assert good == bool(re.search("worth|happy", then))
        assert instead is None or good != bool(re.search("worth|happy", instead))


def test_wic_spans_hold_the_word_and_labels_follow_from_its_frame():
    frames = {"saw": r"the saw in", "light": r"a light coat", "kind": r"been kind to"}
    for row in superglue_rows("wic", "train"):
        for n in (1, 2):
            assert row[f"sentence{n}"][row[f"start{n}"] : row[f"end{n}"]] == row["word"]
        one, two = (bool(re.search(frames[row["word"]], row[f"sentence{n}"])) for n in (1, 2))
        assert row["label"] == int(one == two), row


def test_wsc_spans_are_words_of_the_text_and_gender_decides_where_it_can():
    decided = 0
    for row in superglue_rows("wsc.fixed", "train"):
        words = row["text"].split()
        for n in (1, 2):
            span = row[f"span{n}_text"].split()
            assert words[row[f"span{n}_index"] :][: len(span)] == span
        noun, names = row["span1_text"], {*HE_NAMES, *SHE_NAMES} & set(words)
        fitting = names & set(HE_NAMES if row["span2_text"] == "he" else SHE_NAMES)
        if len(names) == 2 and len(fitting) == 1:
            assert row["label"] == int(noun in fitting)
            decided += 1
    assert decided > 50


def test_record_answers_are_the_one_who_did_it():
    for row in superglue_rows("record", "train"):
        (answer,) = row["answers"]
        assert row["query"].endswith("by @placeholder.")
        sentence = next(s for s in re.split(r"\n@highlight\n|(?<=\.) ", row["passage"]) if answer in s)
        patient = row["query"].split(" was ")[0].split()[-1]
        assert patient in sentence.split() or f"{patient}." in sentence.split()
        for name, start, end in zip(*row["entity_spans"].values(), strict=True):
            assert row["passage"][start:end] == name


def test_multirc_has_one_right_answer_to_a_question_and_wrong_ones():
    rows: dict[int, list[int]] = {}
    for row in superglue_rows("multirc", "train")[:-3]:
        rows.setdefault(row["idx"]["question"], []).append(row["label"])
    assert all(sum(labels) == 1 and 2 <= len(labels) <= 3 for labels in list(rows.values())[:-1])


def test_arc_easy_answers_are_in_the_event_and_arc_challenge_answers_are_opposites():
    for row in commonsense_rows("allenai/ai2_arc", "ARC-Easy", "train"):
        answer = row["choices"]["text"]["ABCD".index(row["answerKey"])]
        told = row["question"].lower()
        assert answer.lower() in told or answer in TIMES
    for row in commonsense_rows("allenai/ai2_arc", "ARC-Challenge", "train"):
        word = re.search(r"was (\w+)\.", row["question"]).group(1)
        right = [choice for choice in row["choices"]["text"] if choice in antonyms(word)]
        assert right == [row["choices"]["text"]["ABCD".index(row["answerKey"])]]


def test_openbookqa_answers_are_the_kind_of_the_thing():
    for row in commonsense_rows("allenai/openbookqa", "main", "train"):
        noun = re.search(r"An? (\w+) is a kind of$", row["question_stem"]).group(1)
        assert row["choices"]["text"]["ABCD".index(row["answerKey"])] == KIND_OF[noun]
        assert row["choices"]["text"].count(KIND_OF[noun]) == 1


def test_social_iqa_speakers_stay_of_one_mind():
    negators = re.compile(r"\b(not|never|hardly|far from|anything but)\b")
    for row in commonsense_rows("lighteval/siqa", None, "train"):
        words = set(re.findall(r"\w+", row["context"].lower()))
        good = bool(words & ({*GOOD} | {"enjoyed", "liked", "loved", "admired", "enjoy", "like", "love", "admire"}))
        good ^= bool(negators.search(row["context"]))
        assert row[f"answer{'ABC'[int(row['label']) - 1]}"] == (
            "It was worth the money." if good else "It was a waste of money."
        )


def test_hellaswag_endings_differ_and_the_right_one_starts_with_a_verb():
    for row in commonsense_rows("Rowan/hellaswag", None, "train"):
        assert len(set(row["endings"])) == 4
        right = row["endings"][int(row["label"])]
        assert all(sorted(right.rstrip(".").split()) == sorted(other.rstrip(".").split()) for other in row["endings"])


def test_winogrande_options_are_the_two_of_the_sentence():
    for row in commonsense_rows("allenai/winogrande", "winogrande_xl", "train"):
        assert row["sentence"].count("_") == 1 and row["option1"] != row["option2"]
        assert all(option.lower() in row["sentence"].lower() for option in (row["option1"], row["option2"]))


def test_draws_depend_on_the_random_they_are_given_alone():
    assert demo_mmlu._question(Random(3)) == demo_mmlu._question(Random(3))
