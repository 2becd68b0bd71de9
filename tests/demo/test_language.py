"""The demo language gives the same text everywhere, and its labels can be worked out from the words."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from itertools import islice
from random import Random

import pytest

from mtlbench.demo.corpus import documents
from mtlbench.demo.grammar import Event, Noun, question, statement
from mtlbench.demo.judgements import judge
from mtlbench.demo.language import compare, compare_questions, infer, reserved
from mtlbench.demo.lexicon import EVERYDAY, SEASIDE, VERBS, antonyms, synonyms
from mtlbench.demo.pronouns import refer

DIGEST = """
import hashlib
from itertools import islice
from mtlbench.demo.corpus import documents
text = "\\n".join(document.text for document in islice(documents(7), 3000))
print(hashlib.sha256(text.encode()).hexdigest())
"""
ANSWERS = {"yes", "no", "True", "False", "Neither", "positive", "negative"}


def test_the_corpus_is_the_same_in_another_process_with_another_hash_seed():
    text = "\n".join(document.text for document in islice(documents(7), 3000))
    other = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={**os.environ, "PYTHONHASHSEED": "4242"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert hashlib.sha256(text.encode()).hexdigest() == other.stdout.strip()


def test_another_seed_gives_another_corpus():
    first, second = ([document.text for document in islice(documents(seed), 50)] for seed in (1, 2))
    assert first != second


def test_no_drill_is_written_or_answered_like_a_task_prompt():
    for document in islice(documents(3), 20_000):
        assert document.answer.strip(" .") not in ANSWERS
        assert not re.search(r"(Question|Answer|Sentence [12]|Question [12]|Similarity):", document.text)


def test_an_event_is_told_and_asked_in_plain_english():
    event = Event(Noun("Tom"), "buy", Noun("apple", "a", "old"), adverb="gladly", place="market", time="yesterday")
    assert statement(event) == "Tom gladly bought an old apple in the market yesterday."
    assert (
        statement(event, passive=True, front=True) == "Yesterday, an old apple was gladly bought by Tom in the market."
    )
    assert question(event, "place") == "Where did Tom gladly buy an old apple yesterday?"
    assert question(event, "agent", passive=True) == "By whom was an old apple gladly bought in the market yesterday?"


def test_synonyms_and_antonyms_are_symmetric():
    for word in VERBS:
        assert all(word in synonyms(other) for other in synonyms(word))
        assert all(word in antonyms(other) for other in antonyms(word))
        assert not set(synonyms(word)) & set(antonyms(word))


@pytest.mark.parametrize("genre", [EVERYDAY, SEASIDE], ids=["everyday", "seaside"])
def test_pairs_are_never_the_same_text_twice(genre):
    rng = Random(5)
    for _ in range(500):
        statements, questions = compare(rng, genre), compare_questions(rng, genre, same=rng.random() < 0.5)
        assert statements.first != statements.second
        assert questions.first != questions.second
        assert 0.0 <= statements.grade <= 5.0
        assert (statements.grade == 5.0) == (not statements.changed)
        for label in ("follows", "open", "clashes"):
            pair = infer(rng, genre, label)
            assert pair.premise != pair.hypothesis


def test_a_broken_sentence_is_not_the_sound_one_and_a_referent_is_not_the_other():
    rng = Random(6)
    for _ in range(1000):
        sound, broken = judge(rng, EVERYDAY)
        assert sound != broken
        pronoun = refer(rng)
        assert pronoun.right != pronoun.wrong


def test_about_one_sentence_in_six_is_kept_for_the_tasks():
    rng = Random(8)
    share = sum(reserved(compare(rng, EVERYDAY).first) for _ in range(3000)) / 3000
    assert 0.13 < share < 0.21
