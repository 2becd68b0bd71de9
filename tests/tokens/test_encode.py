"""Token ids equal those lm-eval scores, and cutting never touches the answer."""

from __future__ import annotations

import pytest
from lm_eval.models.huggingface import HFLM
from tiny_backbones import tiny_backbone, tiny_tokenizer

from mtlbench.data.examples import Pair
from mtlbench.errors import DataError
from mtlbench.tokens.encode import PROBE, TokenRow, encode_pairs, encode_rows, fit

OVER_THE_JOIN = ("ends in a word the", "re it goes on")
PAIRS = [
    ("The concert continued until 10.\nAnswer:", " yes"),
    ("The concert continued until 10.\nAnswer:", " no"),
    ("Question: did the rain stop? Answer: ", "True"),
    ("Question: did the rain stop?  \n", " Neither of the two"),
    OVER_THE_JOIN,
    ("<s>starts with the start token", " x"),
    ("é 🙂", " 🙂"),
]


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_pairs_are_encoded_as_lm_eval_encodes_them(tmp_path, architecture):
    model, tokenizer = tiny_backbone(tmp_path, architecture=architecture)
    hflm = HFLM(pretrained=model, tokenizer=tokenizer, backend=architecture, device="cpu")
    theirs = [tuple(map(tuple, hflm._encode_pair(*pair))) for pair in PAIRS]
    ours = encode_pairs(tokenizer, PAIRS, architecture=architecture)
    over_the_join = [PAIRS.index(OVER_THE_JOIN)] if architecture == "causal" else []
    assert [at for at, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other] == over_the_join
    assert ours[0][0] == ours[1][0]


def test_a_token_over_the_join_gives_the_tokens_of_the_answer_alone():
    """lm-eval 0.4.13 reads "the" and scores "ere it goes on" here."""
    tokenizer = tiny_tokenizer(architecture="causal")
    ((context, answer),) = encode_pairs(tokenizer, [OVER_THE_JOIN], architecture="causal")
    assert tokenizer.decode(context) == "<s>" + OVER_THE_JOIN[0]
    assert list(answer) == tokenizer(OVER_THE_JOIN[1], add_special_tokens=False)["input_ids"]


def test_each_distinct_text_is_tokenised_once():
    tokenizer = tiny_tokenizer(architecture="causal")
    texts = []

    def counting(batch, **more):
        texts.extend(batch)
        return tokenizer(batch, **more)

    counting.bos_token_id, counting.eos_token_id, counting.decode = 2, 1, tokenizer.decode
    encode_pairs(
        counting, [("same prompt:", " yes"), ("same prompt:", " no"), ("same prompt:", " yes")], architecture="causal"
    )
    assert sorted(set(texts) - {PROBE}) == ["same prompt:", "same prompt: no", "same prompt: yes"]
    assert all(texts.count(text) == 1 for text in set(texts) - {PROBE})


def test_training_rows_hold_context_and_answer():
    tokenizer = tiny_tokenizer(architecture="causal")
    pair = Pair("did the rain stop?", " yes")
    (row,) = encode_rows(tokenizer, [pair], task=3, architecture="causal", max_length=50, append_eos=False)
    assert row == TokenRow(task=3, context=row.context, target=row.target)
    assert tokenizer.decode(row.context) == "<s>did the rain stop?"
    assert tokenizer.decode(row.target) == " yes"
    (ended,) = encode_rows(tokenizer, [pair], task=3, architecture="causal", max_length=50, append_eos=True)
    assert ended.target == (*row.target, tokenizer.eos_token_id)
    assert ended.context == row.context


def test_encoder_decoder_contexts_end_in_the_special_token_and_answers_do_not():
    tokenizer = tiny_tokenizer(architecture="seq2seq")
    pair = Pair("did the rain stop?", " yes")
    (row,) = encode_rows(tokenizer, [pair], task=0, architecture="seq2seq", max_length=50, append_eos=False)
    assert row.context[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in row.target


def test_a_causal_row_is_cut_on_the_left_of_the_context():
    context, target = tuple(range(10, 30)), (1, 2, 3)
    assert fit(context, target, architecture="causal", max_length=8) == ((25, 26, 27, 28, 29), target)
    assert fit(context, target, architecture="causal", max_length=23) == (context, target)


def test_an_encoder_decoder_row_is_limited_on_each_side():
    context, target = tuple(range(10, 30)), (1, 2, 3)
    assert fit(context, target, architecture="seq2seq", max_length=3) == ((27, 28, 29), target)


@pytest.mark.parametrize(("architecture", "limit"), [("causal", 3), ("seq2seq", 2)])
def test_an_answer_is_never_cut(architecture, limit):
    assert fit((9, 9), (1, 2, 3), architecture=architecture, max_length=limit + 1)[1] == (1, 2, 3)
    with pytest.raises(DataError, match=f"answer of 3 tokens does not fit --max-length {limit}"):
        fit((9, 9), (1, 2, 3), architecture=architecture, max_length=limit)


def test_an_empty_answer_is_an_error():
    tokenizer = tiny_tokenizer(architecture="causal")
    with pytest.raises(DataError, match="no tokens"):
        encode_rows(tokenizer, [Pair("a", "")], task=0, architecture="causal", max_length=9, append_eos=False)


def test_an_answer_that_does_not_fit_is_shown():
    tokenizer = tiny_tokenizer(architecture="causal")
    pairs = [Pair("a", "b"), Pair("which one", "one two " * 99)]
    with pytest.raises(DataError, match=r"does not fit --max-length 9.*'one two.*of 'which one'"):
        encode_rows(tokenizer, pairs, task=0, architecture="causal", max_length=9, append_eos=False)


def test_an_answer_that_should_end_needs_an_end_token():
    tokenizer = tiny_tokenizer(architecture="causal")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        encode_rows(tokenizer, [Pair("a", "b")], task=0, architecture="causal", max_length=9, append_eos=True)
