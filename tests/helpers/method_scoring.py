"""Scoring with methods attached: requests of three tasks, a scorer for them, and the reference for it."""

from __future__ import annotations

import random

import torch
from lm_eval.api.instance import Instance
from tiny_backbones import TEXTS
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
from mtlbench.planning.settings import build
from mtlbench.testing import setup_for

TASKS = ("suite/paragraphs", "suite/shots", "suite/letters")
LONGEST = 400


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
