"""Prompts that begin alike are read once and continued as each alone."""

from __future__ import annotations

import random

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from method_scoring import LONGEST, TASKS, attached, scorer, small
from tiny_backbones import TEXTS, tiny_backbone, tiny_tokenizer

from mtlbench.evaluation import generate as generation
from mtlbench.evaluation.generate import shared_prefix_runs

SETTINGS = {"until": ["on", "."], "max_gen_toks": 12, "do_sample": False}


def requests_of(*, seed=0, settings=SETTINGS):
    """Two tasks with worked examples of their own, one with several beginnings, and short prompts of a third."""
    rng = random.Random(seed)
    words = " ".join(TEXTS[:2]).split()

    def text(low, high):
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    made = []
    preambles = ["\n".join(f"Question: {text(6, 9)}\nAnswer: yes" for _ in range(6)) for _ in range(3)]
    for document in range(6):
        made += [(TASKS[0], f"{preambles[0]}\nQuestion: {text(1, 9)}\nAnswer:")]
        made += [(TASKS[1], f"{preambles[1 + document % 2]}\nQuestion: {text(1, 9)}\nAnswer:")]
        made += [(TASKS[2], text(1, 8))]
    rng.shuffle(made)
    return [Instance("generate_until", {}, (c, dict(settings)), 0, metadata=(t, i, 1)) for i, (t, c) in enumerate(made)]


def read_ahead(monkeypatch):
    """The beginnings that are read ahead from now on."""
    seen = []

    class Watched(generation.SharedPrefixes):
        def __init__(self, model, routing, groups, *, pad_id):
            seen.extend(groups)
            super().__init__(model, routing, groups, pad_id=pad_id)

    monkeypatch.setattr(generation, "SharedPrefixes", Watched)
    return seen


@pytest.mark.parametrize("budget", [1, 300, 10_000])
def test_continuations_behind_shared_examples_equal_hflm(tmp_path, monkeypatch, budget):
    model, tokenizer = tiny_backbone(tmp_path, architecture="causal")
    requests = requests_of()
    hflm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu", max_length=LONGEST)
    theirs = [hflm.generate_until([request], disable_tqdm=True)[0] for request in requests]
    assert len(set(theirs)) > 6
    ahead = read_ahead(monkeypatch)
    assert scorer(model, tokenizer, token_budget=budget).generate_until(requests) == theirs
    assert sorted(task for task, _ in ahead) == [0, 1, 1]
    assert all(len(tokens) > 100 for _, tokens in ahead)


@pytest.mark.parametrize(
    "name", ["prefix", "prefixnas", "peml", "mtl_lora", "moelora", "molora", "poly", "lora", "dora", "ia3"]
)
def test_a_method_continues_behind_shared_examples_as_alone(tmp_path, monkeypatch, name):
    model, tokenizer = tiny_backbone(tmp_path, architecture="causal")
    requests = requests_of(seed=1)
    plain = scorer(model, tokenizer).generate_until(requests)
    model, routing = attached(name, model)
    alone = [scorer(model, tokenizer, routing=routing).generate_until([request])[0] for request in requests]
    ahead = read_ahead(monkeypatch)
    assert scorer(model, tokenizer, routing=routing).generate_until(requests) == alone
    assert len(ahead) == 3 and alone != plain


def test_prompts_that_are_cut_on_the_left_share_what_is_left(tmp_path, monkeypatch):
    model, tokenizer = tiny_backbone(tmp_path, architecture="causal")
    requests = requests_of()
    limit = 60
    hflm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu", max_length=limit)
    theirs = [hflm.generate_until([request], disable_tqdm=True)[0] for request in requests]
    assert scorer(model, tokenizer, max_length=limit).generate_until(requests) == theirs


def test_a_penalty_of_the_model_counts_the_tokens_of_what_was_read_ahead(tmp_path, monkeypatch):
    model, tokenizer = tiny_backbone(tmp_path, architecture="causal")
    requests = requests_of()
    plain = scorer(model, tokenizer).generate_until(requests)
    model.generation_config.repetition_penalty = 3.0
    alone = [scorer(model, tokenizer).generate_until([request])[0] for request in requests]
    ahead = read_ahead(monkeypatch)
    assert scorer(model, tokenizer, token_budget=1).generate_until(requests) == alone != plain
    assert len(ahead) == 3


@pytest.mark.parametrize("kind", ["window", "seq2seq"])
def test_where_nothing_may_stand_before_a_row_nothing_is_read_ahead(tmp_path, monkeypatch, kind):
    if kind == "window":
        model, tokenizer = small("mistral", sliding_window=64), tiny_tokenizer(architecture="causal")
    else:
        model, tokenizer = tiny_backbone(tmp_path, architecture="seq2seq")
    requests = requests_of(seed=2)
    alone = [scorer(model, tokenizer).generate_until([request])[0] for request in requests]
    ahead = read_ahead(monkeypatch)
    assert scorer(model, tokenizer).generate_until(requests) == alone
    assert not ahead


def saved(rows, runs, *, cost):
    return sum((high - low - 1) * ahead - cost for low, high, ahead in runs if ahead)


def test_beginnings_save_as_many_tokens_as_any_choice_of_them_could():
    """Against every way to cut the rows into runs."""
    draw = random.Random(3)
    for _ in range(60):
        rows = sorted(
            tuple(draw.choices((1, 2), k=draw.randint(0, 4))) + tuple(draw.choices((1, 2, 3), k=4)) for _ in range(6)
        )
        runs = shared_prefix_runs(rows, cost=3)
        assert [low for low, _, _ in runs] == [0, *(high for _, high, _ in runs[:-1])] and runs[-1][1] == len(rows)
        for low, high, ahead in runs:
            assert all(row[:ahead] == rows[low][:ahead] and len(row) > ahead for row in rows[low:high])
        assert saved(rows, runs, cost=3) == best_of_all(rows, cost=3)


def best_of_all(rows, *, cost):
    best = [0] * (len(rows) + 1)
    for low in reversed(range(len(rows))):
        best[low] = best[low + 1]
        for high in range(low + 2, len(rows) + 1):
            common = 0
            while all(len(row) > common + 1 and row[common] == rows[low][common] for row in rows[low:high]):
                common += 1
            best[low] = max(best[low], (high - low - 1) * common - cost + best[high])
    return best[0]


def test_no_prompts_share_nothing():
    assert shared_prefix_runs([]) == []
