"""Initial values of soft prompts, in the space of a backbone's token embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.distributed.shards_fit import is_shard
from mtlbench.errors import RequestError

STARTS = ("vocab", "random", "text")
COMMON = 5000
"""Tokens that ``vocab`` draws from: a tokenizer's first ones are its most common."""
STEP = 0.3
"""Learning rate of prompt tuning on T5 (Lester et al. 2021), the largest we take."""


@torch.no_grad()
def init_prompts(
    model: nn.Module,
    *,
    count: int,
    length: int,
    how: str,
    text: str,
    encode: Callable[[str], tuple[int, ...]] | None,
    draw: torch.Generator,
) -> Tensor:
    """``count`` prompts ``[count, length, width]`` in float32, as one of :data:`STARTS` says.

    ``vocab`` takes embeddings of tokens drawn from the :data:`COMMON` first (Lester et al. 2021, section 3.2, as
    AkariAsai/ATTEMPT@b5121e5 does), ``random`` numbers as widely spread as embeddings, ``text`` the embeddings of a
    text, repeated or cut to ``length``.

    Raises:
        RequestError: the text has no tokens, or there is no tokenizer.
    """
    table = embedding_table(model)
    if table.is_meta:
        return torch.empty(count, length, table.shape[1], device="meta")
    if how == "random":
        return torch.randn(count, length, table.shape[1], generator=draw).to(table.device) * spread(model)
    if how == "text":
        ids = torch.tensor(_tokens(text, encode, length)).expand(count, -1)
    else:
        ids = torch.stack([_drawn(min(COMMON, table.shape[0]), length, draw) for _ in range(count)])
    return (F.embedding(ids.to(table.device), table) * _scale(model)).float()


@torch.no_grad()
def spread(model: nn.Module) -> float:
    """Root mean square of the numbers in the backbone's token embeddings."""
    table = embedding_table(model)
    return float(torch.linalg.vector_norm(table, dtype=torch.float32) * _scale(model)) / math.sqrt(table.numel())


def prompt_learning_rate(model: nn.Module) -> float:
    """A peak learning rate for vectors among the token embeddings: 0.3 of their spread, at most :data:`STEP`.

    That is Lester et al.'s 0.3 on T5, whose embeddings are large, and some thousandths on a Llama.
    """
    return STEP * min(1.0, spread(model))


def embedding_table(model: nn.Module) -> Tensor:
    """The token embeddings ``[vocabulary, width]``; a sharded one is gathered, by all processes at once."""
    table: Any = _embeddings(model).weight
    found: Tensor = table.full_tensor() if is_shard(table) else table
    return found


def _scale(model: nn.Module) -> float | Tensor:
    """What a backbone multiplies its embeddings with as it looks them up (Gemma's family)."""
    scale: float | Tensor = getattr(_embeddings(model), "embed_scale", 1.0)
    return scale


def _embeddings(model: Any) -> Any:
    return model.get_input_embeddings()


def _drawn(vocabulary: int, length: int, draw: torch.Generator) -> Tensor:
    """Distinct token ids while there are enough."""
    passes = [torch.randperm(vocabulary, generator=draw) for _ in range(-(-length // vocabulary))]
    return torch.cat(passes)[:length]


def _tokens(text: str, encode: Callable[[str], tuple[int, ...]] | None, length: int) -> list[int]:
    ids = () if encode is None else encode(text)
    if not ids:
        missing = "there is no tokenizer to read it" if encode is None else "it has no tokens"
        raise RequestError(f"A prompt cannot start from the text {text!r}: {missing}. Take init=vocab.")
    return [ids[i % len(ids)] for i in range(length)]
