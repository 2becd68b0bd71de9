"""Backbones and token rows for measurements, which do not depend on the values of the weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mtlbench.backbones.backbone import Backbone, load_backbone
from mtlbench.measuring.request import RANDOM, MeasureRow
from mtlbench.tokens.encode import TokenRow

ANSWER = 4
"""Number of answer tokens."""


def measured_backbone(name: str, *, dtype: torch.dtype, device: torch.device, attention: str = "sdpa") -> Backbone:
    """The backbone ``name``, or one with random weights, which is created on the device without a download."""
    if not name.startswith(RANDOM):
        return load_backbone(name, dtype=dtype, attention=attention, device=device)
    config, auto, architecture = _shape(name.removeprefix(RANDOM))
    return random_backbone(name, config, auto, architecture, dtype=dtype, device=device, attention=attention)


def random_backbone(
    name: str, config: Any, auto: Any, architecture: str, *, dtype: torch.dtype, device: torch.device, attention: str
) -> Backbone:
    """A frozen backbone of this ``config`` with random weights, created on the device; it has no real tokenizer.

    Args:
        auto: The class of transformers with ``from_config``.
    """
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model = auto.from_config(config, attn_implementation=attention)
    finally:
        torch.set_default_dtype(before)
    model = model.eval().requires_grad_(False)
    return Backbone(
        name=name,
        model=model,
        tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=1),
        architecture=architecture,
        parameters=sum(p.numel() for p in model.parameters()),
        fingerprint="random",
    )


def measured_rows(row: MeasureRow, *, vocabulary: int, count: int) -> list[TokenRow]:
    """``count`` rows of random tokens with uniform lengths between shortest and longest, cycling through the tasks."""
    draw = np.random.default_rng(row.seed)
    lengths = draw.integers(row.shortest, row.longest + 1, size=count)
    texts = [draw.integers(3, vocabulary, size=int(length)).tolist() for length in lengths]
    return [TokenRow(at % row.tasks, tuple(text[:-ANSWER]), tuple(text[-ANSWER:])) for at, text in enumerate(texts)]


def _shape(shape: str) -> tuple[Any, Any, str]:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

    if shape == "llama-7b":  # Touvron et al. 2023, arXiv:2302.13971, table 2, as in the defaults of LlamaConfig
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
        )
        return config, AutoModelForCausalLM, "causal"
    assert shape == "t5-large", shape
    sizes = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16, "dropout_rate": 0.0}
    return T5Config(vocab_size=32128, decoder_start_token_id=0, **sizes), AutoModelForSeq2SeqLM, "seq2seq"
