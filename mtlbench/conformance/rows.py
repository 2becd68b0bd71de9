"""Random rows for the checks, as batches and padded on either side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlbench.conformance.toys import PAD, VOCABULARY
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Batch, collate

FIRST = 10
"""Smallest id of an ordinary token of the tiny backbones."""


def draw_rows(tasks: Sequence[int], *, lengths: Sequence[int], answers: Sequence[int] | None = None) -> list[TokenRow]:
    """One row of random tokens for each task id; ``lengths`` and ``answers`` (2 by default) count tokens."""
    draw = torch.Generator().manual_seed(11)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(FIRST, VOCABULARY, (count,), generator=draw).tolist())

    sizes = answers or [2] * len(tasks)
    return [TokenRow(t, tokens(n), tokens(m)) for t, n, m in zip(tasks, lengths, sizes, strict=True)]


def batch_of(rows: Sequence[TokenRow], architecture: str) -> Batch:
    """``rows`` as the training loop batches them."""
    return collate(rows, architecture=architecture, pad_id=PAD, decoder_start_id=PAD, device=torch.device("cpu"))


def padded(
    rows: Sequence[TokenRow], *, architecture: str, side: Literal["left", "right"]
) -> tuple[Mapping[str, Tensor], Tensor]:
    """Inputs of ``rows``, and a mask of their tokens ``[rows, length]``: positions whose logits are compared.

    The encoder of a seq2seq backbone is padded on ``side``, its decoder always on the right.
    """
    if architecture == "causal":
        ids, mask = _pad([row.context + row.target for row in rows], side)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, mask.bool()
    ids, mask = _pad([row.context for row in rows], side)
    shifted, real = _pad([(PAD, *row.target[:-1]) for row in rows], "right")
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": shifted, "decoder_attention_mask": real}
    return inputs, real.bool()


def _pad(texts: Sequence[tuple[int, ...]], side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[rows, longest]``."""
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), PAD)
    mask = torch.zeros_like(ids)
    for i, text in enumerate(texts):
        at = slice(width - len(text), width) if side == "left" else slice(len(text))
        ids[i, at], mask[i, at] = torch.tensor(text), 1
    return ids, mask
