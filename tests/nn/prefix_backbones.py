"""Tiny random backbones of every family that takes prefixes, prefixes for them, and decoding without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mtlbench.nn.prefixes.inject import PrefixSlots

LENGTH = 5
CAUSAL = ("llama", "qwen2", "qwen3")
ALL = "enc+dec+cross"
PLACES = [*((kind, "dec") for kind in CAUSAL), *((kind, ALL) for kind in ("t5", "flan"))]
"""Every family with as many places as it has. ``flan`` is gated, its heads are not as wide together as the model, and
its decoder is not as deep as its encoder."""


def build(kind: str, *, attention: str = "sdpa", layers: int = 3, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    common = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers}
    common |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    common |= {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": 1}
    seq2seq = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": layers, "num_heads": 4}
    seq2seq |= {"dropout_rate": 0.0, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": None}
    if kind == "flan":
        seq2seq |= {"num_heads": 3, "feed_forward_proj": "gated-gelu", "num_decoder_layers": layers - 1}
        seq2seq |= {"tie_word_embeddings": False}
    model: nn.Module
    if kind in ("t5", "flan"):
        model = T5ForConditionalGeneration(T5Config(**{**seq2seq, **changes}))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**{**common, **changes}))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**{**common, **changes}))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**{**common, "head_dim": 16, **changes}))
    model.set_attn_implementation(attention)
    return model.requires_grad_(False).eval()


def prefix_for(slots: PrefixSlots, *, rows: int | None = None, seed: int = 1) -> Tensor:
    layers, heads, size = slots.shape
    shape = (layers, 2, heads, LENGTH, size) if rows is None else (layers, 2, rows, heads, LENGTH, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(rows: int = 3, length: int = 7, seed: int = 2) -> Tensor:
    return torch.randint(2, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def padding(side: str) -> Tensor:
    mask = torch.ones(3, 7, dtype=torch.long)
    if side == "left":
        mask[1, :3] = 0
        mask[2, :1] = 0
    if side == "right":
        mask[1, 4:] = 0
    return mask


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def rotate(keys: Tensor, by: int, theta: float = 10000.0) -> Tensor:
    """Half-split rotary rotation by ``by`` positions; frequencies in float32, as the models keep them."""
    half = keys.shape[-1] // 2
    angle = by * (theta ** (-torch.arange(half, dtype=torch.float32) / half)).to(keys.dtype)
    a, b = keys[..., :half], keys[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def rotated(kv: Tensor, by: int) -> Tensor:
    """``kv`` with its keys rotated."""
    return torch.stack([rotate(kv[:, 0], by), kv[:, 1]], dim=1)


def inputs(kind: str, mask: Tensor | None = None) -> dict[str, Tensor]:
    mask = padding("none") if mask is None else mask
    if kind not in CAUSAL:
        return {"input_ids": tokens(), "attention_mask": mask, "decoder_input_ids": tokens(length=6, seed=3)}
    return {"input_ids": tokens(), "attention_mask": mask, "position_ids": positions(mask)}


class Maker(nn.Module):
    """A prefix made by trainable parts, with dropout and a count of its calls."""

    def __init__(self, kv: Tensor, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.kv = nn.Parameter(kv)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.drop = nn.Dropout(dropout)
        self.calls = 0

    def forward(self) -> Tensor:
        self.calls += 1
        return self.drop(self.kv * self.gain)


def naive(model: nn.Module, ids: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Greedy decoding without any cache."""
    if model.config.is_encoder_decoder:
        made = torch.zeros(len(ids), 1, dtype=torch.long)
        for _ in range(steps):
            logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=made, use_cache=False).logits
            made = torch.cat([made, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        return made
    for _ in range(steps):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids
