"""The embedded backbones: small on disk, loaded by the common classes, better at the demo language than at noise."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import mtlbench.demo
from mtlbench.demo.batches import corrupt
from mtlbench.demo.corpus import documents

FOLDER = Path(mtlbench.demo.__file__).parent / "backbones"
NAMES = ("demo", "demo-t5")
HELD_OUT = 987_654
GRADES = [f" {grade / 5:.1f}" for grade in range(26)]


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    folder = FOLDER / request.param
    kind = AutoModelForSeq2SeqLM if request.param == "demo-t5" else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_under_five_megabytes_and_says_what_it_is(name):
    files = [path for path in (FOLDER / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    names = {path.name for path in files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert "apache-2.0" in card.lower()
    assert "generated text only" in card.replace("\n", " ")


@torch.no_grad()
def _loss(model, tokenizer, prompt, target):
    if model.config.is_encoder_decoder:
        labels = tokenizer(target, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return float(model(**tokenizer(prompt, return_tensors="pt"), labels=labels).loss)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    more = tokenizer(target, add_special_tokens=False)["input_ids"]
    labels = torch.tensor([[-100] * len(ids) + more])
    return float(model(input_ids=torch.tensor([ids + more]), labels=labels).loss)


def test_what_comes_next_is_likelier_than_the_same_words_shuffled(backbone):
    model, tokenizer = backbone
    rng = Random(1)
    told = [each for each in islice(documents(HELD_OUT), 400) if len(each.answer.split()) > 3 and each.prompt][:40]
    right = shuffled = 0.0
    for document in told:
        words = document.answer.split()
        right += _loss(model, tokenizer, document.prompt, f" {document.answer}")
        shuffled += _loss(model, tokenizer, document.prompt, " " + " ".join(rng.sample(words, k=len(words))))
    assert right < shuffled - 0.5 * len(told)


def test_drills_not_seen_before_are_answered_better_than_with_another_drills_answer(backbone):
    model, tokenizer = backbone
    drills = [each for each in islice(documents(HELD_OUT), 200) if each.prompt and len(each.answer.split()) == 1][:60]
    others = drills[1:] + drills[:1]
    right = sum(_loss(model, tokenizer, each.prompt, f" {each.answer}") for each in drills)
    wrong = sum(
        _loss(model, tokenizer, each.prompt, f" {other.answer}") for each, other in zip(drills, others, strict=True)
    )
    assert right < 0.5 * wrong


@pytest.mark.parametrize(
    "text", ["naïve café — 東京 Ωμέγα 🙂\n\ttab", "x = {'a': [1, 22, 3.75]};", "  two  blanks ", "\u0000\u200d"]
)
def test_the_tokenizer_gives_any_text_back(backbone, text):
    tokenizer = backbone[1]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_grades_are_tokens_of_one_length_and_only_the_encoder_decoder_closes_its_texts(backbone):
    model, tokenizer = backbone
    lengths = {len(tokenizer(grade, add_special_tokens=False)["input_ids"]) for grade in GRADES}
    assert lengths == {3}
    closed = tokenizer("Tom slept.")["input_ids"][-1] == tokenizer.eos_token_id
    assert closed == model.config.is_encoder_decoder
    assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_answer_words_of_the_tasks_are_single_tokens(backbone):
    tokenizer = backbone[1]
    for word in ("yes", "no", "True", "False", "Neither", "positive", "negative"):
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1


def test_generation_stops(backbone):
    model, tokenizer = backbone
    prompt = tokenizer("Another word for big is", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert out.shape[1] < prompt["input_ids"].shape[1] + 24 or model.config.is_encoder_decoder
    assert tokenizer.eos_token_id in out[0].tolist()


def test_corrupted_spans_put_back_give_the_text():
    ids, sentinels = list(range(100, 160)), list(range(16))
    source, target = corrupt(ids, Random(3), sentinels)
    spans: dict[int, list[int]] = {}
    rebuilt: list[int] = []
    for token in target:
        if token in sentinels:
            spans[token] = current = []
        else:
            current.append(token)
    for token in source:
        rebuilt += spans[token] if token in sentinels else [token]
    assert rebuilt == ids
    assert len(source) < len(ids)
