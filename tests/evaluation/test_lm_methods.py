"""Shared contexts, choices and preambles give each method's own numbers, and what cannot share says so."""

from __future__ import annotations

import logging

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from method_scoring import LONGEST, attached, one_by_one, requests_of, scorer, small
from tiny_backbones import tiny_backbone, tiny_tokenizer
from torch import nn

from mtlbench.nn.prefixes.inject import attach_prefix

METHODS = [
    "peml",
    "prefix",
    "prefixnas",
    "mtl_lora",
    "moelora",
    "molora",
    "poly",
    "lora",
    "dora",
    "ia3",
    "vera",
    "loha",
    "ln_tuning",
]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for (a, greedy_a), (b, greedy_b) in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert greedy_a == greedy_b


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
@pytest.mark.parametrize("name", METHODS)
def test_sharing_changes_no_score_of_a_method(tmp_path, name, architecture):
    model, tokenizer = tiny_backbone(tmp_path, architecture=architecture)
    requests = requests_of()
    plain = scorer(model, tokenizer).loglikelihood(requests)
    model, routing = attached(name, model)
    lm = scorer(model, tokenizer, routing=routing)
    assert lm._packable
    assert bool(behind_prefixes(lm, requests)) == (architecture == "causal")
    ours = lm.loglikelihood(requests)
    assert max(abs(a - b) for (a, _), (b, _) in zip(ours, plain, strict=True)) > 1e-2
    assert_same(ours, one_by_one(model, tokenizer, requests, routing=routing))
    assert_same(scorer(model, tokenizer, routing=routing, token_budget=9999).loglikelihood(requests), ours)


def behind_prefixes(lm, requests):
    return [packed for packed in lm._packed_rows(lm._score_requests(requests)) if packed.prefix]


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_scores_of_an_adapter_equal_hflm(tmp_path, name, architecture):
    """HFLM knows neither tasks nor prefixes, but any model whose layers were replaced."""
    model, tokenizer = tiny_backbone(tmp_path, architecture=architecture)
    model, _ = attached(name, model)
    hflm = HFLM(
        pretrained=model, tokenizer=tokenizer, backend=architecture, device="cpu", batch_size=4, max_length=LONGEST
    )
    requests = requests_of(seed=1)
    assert_same(scorer(model, tokenizer).loglikelihood(requests), hflm.loglikelihood(requests, disable_tqdm=True))


@pytest.mark.parametrize("where", ["dec", "enc+dec+cross"])
@pytest.mark.parametrize("bias", ["relative", "zero"])
def test_a_prefix_of_every_place_goes_with_packed_answers(tmp_path, where, bias):
    model, tokenizer = tiny_backbone(tmp_path, architecture="seq2seq")
    slots = attach_prefix(model, where=where, bias=bias)
    shape = (slots.shape.layers, 2, slots.shape.kv_heads, 3, slots.shape.head_dim)
    slots.set(torch.randn(shape, generator=torch.manual_seed(8)))
    lm = scorer(model, tokenizer)
    assert lm._packable
    requests = requests_of(seed=2)
    assert_same(lm.loglikelihood(requests), one_by_one(model, tokenizer, requests))


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_eager_attention_shares_too(tmp_path, architecture):
    model, tokenizer = tiny_backbone(tmp_path, architecture=architecture)
    requests = requests_of(seed=3)
    wanted = scorer(model, tokenizer).loglikelihood(requests)
    model.set_attn_implementation("eager")
    lm = scorer(model, tokenizer)
    assert lm._packable
    assert_same(lm.loglikelihood(requests), wanted)


def test_sixteen_bits_share_too(tmp_path):
    model, tokenizer = tiny_backbone(tmp_path, architecture="causal")
    requests = requests_of(seed=3)
    model = model.to(torch.bfloat16)
    lm = scorer(model, tokenizer)
    assert lm._packable
    ours, alone = lm.loglikelihood(requests), one_by_one(model, tokenizer, requests)
    assert max(abs(a - b) / abs(b) for (a, _), (b, _) in zip(ours, alone, strict=True)) < 0.05


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("bloom", {}, "causal"),
        ("bart", {}, "positions"),
        ("mistral", {"sliding_window": 64}, "window"),
    ],
)
def test_models_that_cannot_share_say_so_and_are_scored_row_by_row(caplog, kind, changes, reason):
    model = small(kind, **changes)
    tokenizer = tiny_tokenizer(architecture="seq2seq" if kind == "bart" else "causal")
    requests = requests_of(seed=4)
    with caplog.at_level(logging.DEBUG, logger="mtlbench.evaluation.packable"):
        ours = scorer(model, tokenizer).loglikelihood(requests)
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    backend = "seq2seq" if kind == "bart" else "causal"
    hflm = HFLM(pretrained=model, tokenizer=tokenizer, backend=backend, device="cpu", batch_size=1, max_length=LONGEST)
    assert_same(ours, hflm.loglikelihood(requests, disable_tqdm=True))


def test_a_window_that_no_row_leaves_is_no_obstacle():
    model = small("mistral", sliding_window=LONGEST)
    assert scorer(model, tiny_tokenizer(architecture="causal"))._packable


class RowMean(nn.Module):
    """Looks at a whole row at once, as some prompt poolers do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + x.mean(dim=1, keepdim=True)


def test_a_method_that_looks_at_whole_rows_is_found_by_the_trial(tmp_path, caplog):
    model, tokenizer = tiny_backbone(tmp_path, architecture="causal")
    layer = model.model.layers[0].self_attn
    layer.o_proj = RowMean(layer.o_proj)
    with caplog.at_level(logging.DEBUG, logger="mtlbench.evaluation.packable"):
        lm = scorer(model, tokenizer)
        assert not lm._packable
    assert "trial" in caplog.text
    requests = requests_of(seed=5)
    packed_rows = lm._packed_rows(lm._score_requests(requests))
    assert not any(packed.branches or packed.prefix for packed in packed_rows)
