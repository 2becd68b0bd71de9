"""Tensors of a batch of packed rows, and log-likelihoods of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlbench.backbones.transfer import to_device
from mtlbench.evaluation.packed_rows import PackedRow
from mtlbench.training.tail import Places, places_by_task


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """A batch of packed rows as tensors on a device, padded on the right. All come in one transfer."""

    width: int
    branches: bool
    """Whether a row holds more than one sequence."""
    deepest: int
    """Largest position of a token."""
    ids: Tensor
    """Tokens ``[rows, length]``."""
    positions: Tensor
    """Token positions ``[rows, length]``; 0 for padding."""
    lengths: Tensor
    tasks: Tensor
    """Task ids ``[rows]``."""
    contexts: Tensor
    """Tokens before the first answer ``[rows]``."""
    index: Tensor
    """Read-out positions in the flattened ``[rows * length]``, each once ``[positions]``."""
    readouts: Tensor
    """For each answer token which of them predicts it ``[tokens]``."""
    answers: Tensor
    ends: Tensor | None
    """For each token the end of its subtree ``[rows, length]``; only with branches or a shared prefix."""
    places: Places | None
    """The read-out positions by task; ``None`` where the last layer is computed for all tokens."""
    prefixes: Tensor | None = None
    """Number of the shared prefix of each row; ``None`` without any."""
    source: EncoderInput | None = None

    def padding_mask(self) -> Tensor:
        """1 for tokens, 0 for padding ``[rows, length]``."""
        return _padding_mask(self.width, self.lengths)

    def tree_mask(self, before: Tensor | None = None) -> Tensor:
        """Attention mask by the tree ``[rows, 1, length, before + length]``; padding attends to itself only.

        Args:
            before: Cache positions that each row attends to ``[rows, before]``.
        """
        assert self.ends is not None
        at = torch.arange(self.width, device=self.ids.device)
        ends = torch.maximum(self.ends, at + 1)
        mask = (at[:, None] >= at) & (at[:, None] < ends[:, None, :])
        if before is not None:
            mask = torch.cat([before[:, None, :].expand(-1, self.width, -1), mask], dim=2)
        return mask[:, None]

    def scores(self, logits: Tensor) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]`` from ``logits [positions, vocab]``."""
        logprobs = logits.float().log_softmax(-1)
        answers = logprobs[self.readouts, self.answers]
        greedy = logprobs.argmax(-1)[self.readouts] == self.answers
        return torch.stack([answers, greedy.to(answers.dtype)])


@dataclass(frozen=True, eq=False)
class EncoderInput:
    """The distinct contexts of a batch, which an encoder reads."""

    width: int
    ids: Tensor
    """``[contexts, length]``."""
    lengths: Tensor
    tasks: Tensor
    of_row: Tensor | None
    """The context of each row; ``None`` where each has its own, in order."""

    def padding_mask(self) -> Tensor:
        """1 for tokens, 0 for padding ``[contexts, length]``."""
        return _padding_mask(self.width, self.lengths)


def packed_batch(
    batch: Sequence[PackedRow],
    *,
    pad_id: int,
    device: torch.device,
    narrow: bool = False,
    prefixes: Sequence[int] | None = None,
    encoder: bool = False,
) -> PackedBatch:
    """The tensors of ``batch``.

    Args:
        narrow: Whether the last layer is computed at read-out positions only.
        prefixes: Number of the shared prefix of each row.
        encoder: Whether rows have a context that an encoder reads.
    """
    width = max(len(packed.tokens) for packed in batch)
    branches = any(packed.branches for packed in batch)
    needed: dict[int, int] = {}
    readouts: list[int] = []
    answers: list[int] = []
    for row, packed in enumerate(batch):
        for request, positions in packed.readouts:
            readouts += [needed.setdefault(row * width + at, len(needed)) for at in positions]
            answers += request.answer
    tasks = [packed.group[0] for packed in batch]
    tree = branches or any(packed.prefix for packed in batch)
    made = PackedBatch(
        width=width,
        branches=branches,
        deepest=max(max(packed.positions) for packed in batch),
        ids=_padded([packed.tokens for packed in batch], fill=pad_id),
        positions=_padded([packed.positions for packed in batch], fill=0),
        lengths=torch.tensor([len(packed.tokens) for packed in batch]),
        tasks=torch.tensor(tasks),
        contexts=torch.tensor([packed.context for packed in batch]),
        index=torch.tensor(list(needed), dtype=torch.int64),
        readouts=torch.tensor(readouts, dtype=torch.int64),
        answers=torch.tensor(answers, dtype=torch.int64),
        ends=_padded([packed.ends for packed in batch], fill=0) if tree else None,
        places=places_by_task(list(needed), [tasks[at // width] for at in needed]) if narrow else None,
        prefixes=None if prefixes is None else torch.tensor(prefixes),
        source=_encoder_input(batch, pad_id=pad_id) if encoder else None,
    )
    return to_device(made, device)


def _encoder_input(batch: Sequence[PackedRow], *, pad_id: int) -> EncoderInput:
    groups = [packed.group for packed in batch]
    distinct = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    contexts = [context for _, context in distinct]
    return EncoderInput(
        width=max(map(len, contexts)),
        ids=_padded(contexts, fill=pad_id),
        lengths=torch.tensor([len(context) for context in contexts]),
        tasks=torch.tensor([task for task, _ in distinct]),
        of_row=None if len(distinct) == len(groups) else torch.tensor([distinct[group] for group in groups]),
    )


def _padded(rows: Sequence[Sequence[int]], *, fill: int) -> Tensor:
    numbers = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for at, row in enumerate(rows):
        numbers[at, : len(row)] = row
    return torch.from_numpy(numbers)


def _padding_mask(width: int, lengths: Tensor) -> Tensor:
    return (torch.arange(width, device=lengths.device) < lengths[:, None]).long()


def attention_mask(mask: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """The boolean mask, or for transformers' eager attention an additive one."""
    if implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
