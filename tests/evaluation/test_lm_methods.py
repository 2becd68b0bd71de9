"""Shared contexts, choices and preambles give each method's own numbers, and what cannot share says so."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny_backbones import TEXTS, tiny_backbone, tiny_tokenizer
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from mtlbench.api.routing import Routing
from mtlbench.evaluation.lm import RoutedLM
from mtlbench.nn.prefixes.inject import attach_prefix
from mtlbench.planning.settings import build
from mtlbench.testing import setup_for

TASKS = ("suite/paragraphs", "suite/shots", "suite/letters")
LONGEST = 400
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


def requests_of(seed=0):
    """Choices of several tokens under shared paragraphs, five-shot letters, and single-token choices."""
    rng = random.Random(seed)
    words = " ".join(TEXTS[:2]).split()

    def text(low, high):
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    made = []
    preamble = "\n".join(f"Question: {text(5, 9)}\nAnswer: yes" for _ in range(8))
    paragraphs = [text(12, 16) for _ in range(2)]
    for document in range(10):
        question = f"{paragraphs[document % 2]}\nQuestion: {text(3, 6)}"
        made += [(TASKS[0], document, question, f" {text(1, 5)} {n}") for n in range(3)]
        made += [(TASKS[1], document, f"{preamble}\nQuestion: {text(3, 8)}\nAnswer:", c) for c in (" yes", " no")]
        made += [(TASKS[2], document, text(1, 8), c) for c in (" True", " Neither")]
    rng.shuffle(made)
    return [Instance("loglikelihood", {}, (c, a), i, metadata=(t, d, 1)) for i, (t, d, c, a) in enumerate(made)]


def scorer(model, tokenizer, *, routing=None, token_budget=300, max_length=LONGEST):
    architecture = "seq2seq" if model.config.is_encoder_decoder else "causal"
    return RoutedLM(
        model,
        tokenizer,
        architecture=architecture,
        routing=routing or Routing(),
        task_ids={name: i for i, name in enumerate(TASKS)},
        max_length=max_length,
        token_budget=token_budget,
    )


def one_by_one(model, tokenizer, requests, *, routing=None):
    """Each request alone in a plain row: nothing shared, nothing padded, the last layer whole."""
    lm = scorer(model, tokenizer, routing=routing)
    lm.__dict__["_packable"] = False
    return [lm.loglikelihood([request])[0] for request in requests]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for (a, greedy_a), (b, greedy_b) in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert greedy_a == greedy_b


def attached(name, model):
    settings = {"target": "all"} if name in ("mtl_lora", "moelora", "molora", "poly") else {}
    method, setup = build(name, settings), setup_for(model, tasks=len(TASKS))
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.03 * torch.randn(p.shape, generator=draw))
    method.finish(model.eval())
    return model.eval(), setup.routing


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
@pytest.mark.parametrize("name", METHODS)
def test_sharing_changes_no_score_of_a_method(tmp_path, name, architecture):
    model, tokenizer = tiny_backbone(tmp_path, architecture=architecture)
    requests = requests_of()
    plain = scorer(model, tokenizer).loglikelihood(requests)
    model, routing = attached(name, model)
    lm = scorer(model, tokenizer, routing=routing)
    assert lm._packable
    assert bool(behind_trunks(lm, requests)) == (architecture == "causal")
    ours = lm.loglikelihood(requests)
    assert max(abs(a - b) for (a, _), (b, _) in zip(ours, plain, strict=True)) > 1e-2
    assert_same(ours, one_by_one(model, tokenizer, requests, routing=routing))
    assert_same(scorer(model, tokenizer, routing=routing, token_budget=9999).loglikelihood(requests), ours)


def behind_trunks(lm, requests):
    return [pack for pack in lm._packs(lm._wishes(requests)) if pack.trunk]


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


def small(kind, **changes):
    torch.manual_seed(0)
    common = {"vocab_size": 340, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(**common, n_layer=2, n_head=4, initializer_range=0.3)).eval()
    if kind == "bart":
        sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 48))}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        config = BartConfig(**{**common, **sides, **heads}, d_model=32, decoder_start_token_id=1, init_std=0.3)
        return BartForConditionalGeneration(config).eval()
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    return MistralForCausalLM(MistralConfig(**common, **layers, initializer_range=0.3, **changes)).eval()


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
    packs = lm._packs(lm._wishes(requests))
    assert not any(pack.branches or pack.trunk for pack in packs)
