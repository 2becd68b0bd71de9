"""Tensors of a batch of packed rows, and log-likelihoods of its answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlbench.evaluation.packed_rows import PackedRow


class PackedBatch:
    """A batch of packed rows as tensors on a device, padded on the right.

    Attributes:
        ids: Tokens ``[rows, length]``.
        positions: Token positions ``[rows, length]``; 0 for padding.
        needed: Read-out positions in the flattened ``[rows * length]``, each once.
        index: The same as a tensor ``[positions]``.
        branches: Whether a row holds more than one sequence.
    """

    def __init__(self, batch: Sequence[PackedRow], *, pad_id: int, device: torch.device) -> None:
        self._device = device
        self.width = max(len(packed.tokens) for packed in batch)
        self.ids = self._padded([packed.tokens for packed in batch], fill=pad_id)
        self.positions = self._padded([packed.positions for packed in batch], fill=0)
        self.lengths = self.tensor([len(packed.tokens) for packed in batch])
        self.branches = any(packed.branches for packed in batch)
        self._ends = [packed.ends for packed in batch]
        needed: dict[int, int] = {}
        readouts: list[int] = []
        answers: list[int] = []
        for row, packed in enumerate(batch):
            for request, positions in packed.readouts:
                readouts += [needed.setdefault(row * self.width + at, len(needed)) for at in positions]
                answers += request.answer
        self.needed = list(needed)
        self.index = self.tensor(self.needed)
        self._readouts, self._answers = self.tensor(readouts), self.tensor(answers)

    def tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)

    def padding_mask(self) -> Tensor:
        """1 for tokens, 0 for padding ``[rows, length]``."""
        return (torch.arange(self.width, device=self._device) < self.lengths[:, None]).long()

    def tree_mask(self, before: Tensor | None = None) -> Tensor:
        """Attention mask by the tree ``[rows, 1, length, before + length]``; padding attends to itself only.

        Args:
            before: Cache positions that each row attends to ``[rows, before]``.
        """
        at = torch.arange(self.width, device=self._device)
        ends = torch.maximum(self._padded(self._ends, fill=0), at + 1)
        mask = (at[:, None] >= at) & (at[:, None] < ends[:, None, :])
        if before is not None:
            mask = torch.cat([before[:, None, :].expand(-1, self.width, -1), mask], dim=2)
        return mask[:, None]

    def scores(self, logits: Tensor) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]`` from ``logits [positions, vocab]``."""
        logprobs = logits.float().log_softmax(-1)
        answers = logprobs[self._readouts, self._answers]
        greedy = logprobs.argmax(-1)[self._readouts] == self._answers
        return torch.stack([answers, greedy.to(answers.dtype)])

    def _padded(self, rows: Sequence[Sequence[int]], *, fill: int) -> Tensor:
        numbers = np.full((len(rows), self.width), fill, dtype=np.int64)
        for at, row in enumerate(rows):
            numbers[at, : len(row)] = row
        return torch.from_numpy(numbers).to(self._device)


def attention_mask(mask: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """The boolean mask, or for transformers' eager attention an additive one."""
    if implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
