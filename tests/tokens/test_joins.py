"""Where prompt meets answer: on every tokenizer, training rows and scored rows are the same tokens, and none is lost."""

from __future__ import annotations

import functools
import re
import unicodedata

import pytest
from vocabularies import GIVEN, MADE

from mtlbench.data.examples import Pair
from mtlbench.tokens.encode import encode_pairs, encode_prompts, encode_rows, special_tokens_after

CONTEXTS = [
    "",
    "Question: did it rain? True or False?\nAnswer:",
    "Question: did it rain?\nAnswer: ",
    "### Response:\n",
    "did it rain?\n\n",
    "ends in a wor",
    "问题：下雨了吗？\n答案：",
]
ANSWERS = [" True", " False", "True", " yes, it is", " yes", "d, it is so", "是", "否", "1", "\n- a"]
PAIRS = [(context, answer) for context in CONTEXTS for answer in ANSWERS]


@functools.cache
def tokenizer_of(name):
    return (MADE.get(name) or GIVEN[name])()


@pytest.fixture(params=[*MADE, *GIVEN])
def tokenizer(request):
    made = tokenizer_of(request.param)
    if made is None:
        pytest.skip(f"the vocabulary of {request.param} is not given")
    return made


def squashed(text):
    """Without what some of the tokenizers drop or add: blanks, case, forms of a letter, marks inside a word."""
    return "".join(re.sub(r"##(?=\w)", "", unicodedata.normalize("NFKC", text)).split()).casefold()


def shown(tokenizer, tokens):
    return squashed(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def rows_of(tokenizer, pairs, *, architecture, generated=False):
    made = [Pair(*pair) for pair in pairs]
    kind = {"architecture": architecture, "max_length": 500, "append_eos": generated}
    return encode_rows(tokenizer, made, task=0, **kind)


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_training_rows_are_the_scored_tokens_and_no_part_of_an_answer_is_lost(tokenizer, architecture):
    scored = encode_pairs(tokenizer, PAIRS, architecture=architecture)
    trained = rows_of(tokenizer, PAIRS, architecture=architecture)
    assert [(row.context, row.target) for row in trained] == scored
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for (context, answer), (before, target) in zip(PAIRS, scored, strict=True):
        assert shown(tokenizer, target) == squashed(answer), (context, answer)
        assert shown(tokenizer, before) == squashed(context)
        assert not special & set(target), "an answer holds no special token"
        if architecture == "causal":
            assert before[-1] not in special or not context, "what is continued has not ended"


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_rows_of_generated_answers_begin_with_what_generation_is_given(tokenizer, architecture):
    prompts = encode_prompts(tokenizer, CONTEXTS, architecture=architecture)
    for (context, answer), row in zip(
        PAIRS, rows_of(tokenizer, PAIRS, architecture=architecture, generated=True), strict=True
    ):
        given, written = prompts[context], row.target
        if architecture == "causal":
            whole = row.context + row.target
            assert whole[: len(given)] == given, (context, answer)
            written = whole[len(given) :]
        else:
            assert row.context == given
        assert written[-1] == tokenizer.eos_token_id not in written[:-1]
        assert shown(tokenizer, written[:-1]) == squashed(answer), (context, answer)


def test_different_choices_have_different_tokens(tokenizer):
    """A tokenizer that ends every text, or a token over the join, once made all choices equal."""
    choices = [" True", " False", " yes, it is", " yes", "是", "否"]
    for context in CONTEXTS:
        encoded = encode_pairs(tokenizer, [(context, choice) for choice in choices], architecture="causal")
        assert len({target for _, target in encoded}) == len(choices)


@pytest.mark.parametrize("name", [*(n for n in MADE if n.startswith("byte")), *GIVEN])
def test_tokens_of_a_lossless_tokenizer_spell_prompt_and_answer(name):
    tokenizer = tokenizer_of(name)
    if tokenizer is None:
        pytest.skip(f"the vocabulary of {name} is not given")
    for pair, (context, target) in zip(PAIRS, encode_pairs(tokenizer, PAIRS, architecture="causal"), strict=True):
        assert tokenizer.decode([*context, *target], skip_special_tokens=True) == "".join(pair)


def test_special_tokens_after_every_text_are_found():
    after = {name: special_tokens_after(tokenizer_of(name)) for name in MADE}
    assert {name for name, tokens in after.items() if tokens} == {
        "byte-level, ends",
        "byte-level, begins and ends",
        "unigram, ends",
        "unigram, first only",
        "wordpiece",
    }
    assert {tokens for tokens in after.values() if tokens} == {
        (tokenizer_of(name).eos_token_id,) for name, tokens in after.items() if tokens
    }
