"""Log-likelihoods of the answers in a batch of packs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlbench.evaluation.packed_rows import PackedRow


class Shape:
    """A batch of packs, padded on the right, as tensors on a device.

    Attributes:
        ids: Tokens ``[rows, length]``.
        positions: Of the tokens; 0 in the padding.
        needed: The places of the flattened ``[rows * length]`` whose logits are needed, each once.
        index: The same ``[picked]``.
        branches: Whether a row holds more than one sequence.
    """

    def __init__(self, batch: Sequence[PackedRow], *, pad_id: int, device: torch.device) -> None:
        self._device = device
        self.width = max(len(pack.tokens) for pack in batch)
        self.ids = self._padded([pack.tokens for pack in batch], fill=pad_id)
        self.positions = self._padded([pack.positions for pack in batch], fill=0)
        self.lengths = self.tensor([len(pack.tokens) for pack in batch])
        self.branches = any(pack.branches for pack in batch)
        self._ends = [pack.ends for pack in batch]
        picked: dict[int, int] = {}
        picks: list[int] = []
        answers: list[int] = []
        for row, pack in enumerate(batch):
            for wish, places in pack.picks:
                picks += [picked.setdefault(row * self.width + at, len(picked)) for at in places]
                answers += wish.answer
        self.needed = list(picked)
        self.index = self.tensor(self.needed)
        self._picks, self._answers = self.tensor(picks), self.tensor(answers)

    def tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)

    def padding_mask(self) -> Tensor:
        """1 for tokens, 0 for padding ``[rows, length]``."""
        return (torch.arange(self.width, device=self._device) < self.lengths[:, None]).long()

    def tree_mask(self, before: Tensor | None = None) -> Tensor:
        """Which tokens each token sees ``[rows, 1, length, before + length]``; padding sees itself alone.

        Args:
            before: Which positions of a cache each row sees ``[rows, before]``.
        """
        at = torch.arange(self.width, device=self._device)
        ends = torch.maximum(self._padded(self._ends, fill=0), at + 1)
        mask = (at[:, None] >= at) & (at[:, None] < ends[:, None, :])
        if before is not None:
            mask = torch.cat([before[:, None, :].expand(-1, self.width, -1), mask], dim=2)
        return mask[:, None]

    def scores(self, logits: Tensor) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]`` from ``logits [picked, vocabulary]``."""
        logprobs = logits.float().log_softmax(-1)
        said = logprobs[self._picks, self._answers]
        greedy = logprobs.argmax(-1)[self._picks] == self._answers
        return torch.stack([said, greedy.to(said.dtype)])

    def _padded(self, rows: Sequence[Sequence[int]], *, fill: int) -> Tensor:
        numbers = np.full((len(rows), self.width), fill, dtype=np.int64)
        for at, row in enumerate(rows):
            numbers[at, : len(row)] = row
        return torch.from_numpy(numbers).to(self._device)


def as_kernel_takes(mask: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """A boolean mask, or the same to be added to the scores for transformers' eager attention."""
    if implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
