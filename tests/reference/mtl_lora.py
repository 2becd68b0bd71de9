"""MTL-LoRA, once as a loop over the tasks and once as the official module gathers matrices for every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from reference.layer import Reference


class MtlLora(Reference):
    """``[sum_i softmax_i(w_t / temperature) B_i] Lam_t A x`` for a row of task t, one task after another.

    ``A [rank, in]``, ``Lam [tasks, rank, rank]`` or its diagonals ``[tasks, rank]``, ``B [ups, out, rank]``,
    ``w [tasks, ups]``.
    """

    def __init__(self, base: nn.Linear, parameters: Mapping[str, Tensor], *, temperature: float, **given: Any) -> None:
        super().__init__(base, parameters, **given)
        self.temperature = temperature

    def term(self, x: Tensor) -> Tensor:
        x, ids = self.dropout(x), self.tasks(x)
        total = torch.zeros(*x.shape[:2], self.base.out_features, dtype=x.dtype, device=x.device)
        for task in range(len(self.w)):
            rows = (ids == task).nonzero().squeeze(1)
            if not len(rows):
                continue
            shares = torch.softmax(self.w[task] / self.temperature, dim=-1)
            up = sum(share * b for share, b in zip(shares, self.B, strict=True))
            transform = torch.diag(self.Lam[task]) if self.Lam.dim() == 2 else self.Lam[task]
            y = linear(linear(linear(x[rows], self.A), transform), up)
            total = total.index_add(0, rows, y.to(total.dtype))
        return total


class MtlLoraGathered(MtlLora):
    """The same with copies of all matrices for every row (pUmpKin-Co/MTL-LoRA@7848a70:src/adapter/mlora.py)."""

    def term(self, x: Tensor) -> Tensor:
        x, ids = self.dropout(x), self.tasks(x)
        down = self.A.unsqueeze(0).index_select(0, torch.zeros_like(ids))
        shares = torch.softmax(self.w / self.temperature, dim=-1)
        up = torch.einsum("tn,nor->tor", shares, self.B).index_select(0, ids)
        transforms = torch.diag_embed(self.Lam) if self.Lam.dim() == 2 else self.Lam
        hidden = torch.bmm(x, down.transpose(1, 2))
        hidden = torch.bmm(hidden, transforms.index_select(0, ids).transpose(1, 2))
        return torch.bmm(hidden, up.transpose(1, 2))
