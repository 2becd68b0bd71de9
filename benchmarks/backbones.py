"""Frozen backbones of random weights, and rows of random tokens for them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Batch, collate

TASKS = 8
"""Tasks in every batch, as in GLUE."""


@dataclass(frozen=True)
class BackboneShape:
    """A backbone and the rows of a step on it."""

    hidden: int
    layers: int
    vocabulary: int = 8192
    architecture: str = "causal"
    rows: int = 16
    length: int = 32
    """Tokens of the decoder-only input, or of the encoder's."""
    answer: int = 2
    """Tokens with a label."""


SHAPES = {
    "512x6": BackboneShape(512, 6),
    "256x4": BackboneShape(256, 4),
    "t5": BackboneShape(384, 6, architecture="seq2seq", length=48, answer=8),
}


def build(shape: BackboneShape, *, seed: int = 0) -> nn.Module:
    """A frozen Llama with a feed-forward 2.7 times its width, or a gated T5 with as many encoder as decoder layers."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    tokens = {"vocab_size": shape.vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if shape.architecture == "causal":
        config = LlamaConfig(
            **tokens,
            hidden_size=shape.hidden,
            intermediate_size=shape.hidden * 43 // 16,
            num_hidden_layers=shape.layers,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=512,
        )
        model: nn.Module = LlamaForCausalLM(config)
    else:
        model = T5ForConditionalGeneration(
            T5Config(
                **tokens,
                d_model=shape.hidden,
                d_kv=shape.hidden // 6,
                d_ff=1024,
                num_layers=shape.layers,
                num_heads=6,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                decoder_start_token_id=0,
            )
        )
    return model.requires_grad_(False).eval()


def fresh(model: nn.Module) -> Any:
    """A copy with modules of its own over the same frozen weights."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def make_batch(shape: BackboneShape, *, device: torch.device, seed: int = 0) -> Batch:
    """Rows of equal length without padding, their tasks mixed."""
    random = np.random.default_rng(seed)
    # a decoder reads all but the last token of its row
    context = shape.length + 1 - shape.answer if shape.architecture == "causal" else shape.length

    def draw(count: int) -> tuple[int, ...]:
        return tuple(random.integers(3, shape.vocabulary, count).tolist())

    rows = [TokenRow(i % TASKS, draw(context), draw(shape.answer)) for i in random.permutation(shape.rows)]
    return collate(rows, architecture=shape.architecture, pad_id=0, decoder_start_id=0, device=device)
