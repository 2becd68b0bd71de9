"""MOELoRA (task-gated) and MoLoRA (token-gated): experts one after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from reference.layer import Reference


class TaskGate(nn.Module):
    """``softmax(gate emb_t)``: ``emb [tasks, width]``, ``gate [experts, width]``."""

    def __init__(self, emb: Tensor, gate: Tensor) -> None:
        super().__init__()
        self.emb, self.gate = nn.Parameter(emb.clone()), nn.Parameter(gate.clone())

    def forward(self, tasks: Tensor) -> Tensor:
        """Weights ``[rows, experts]``."""
        return torch.softmax(linear(self.emb.index_select(0, tasks), self.gate), dim=-1)


class MoeLora(Reference):
    """``sum_e weight_e(t) B_e A_e x``: ``A [experts, rank, in]``, ``B [experts, out, rank]``.

    Every expert drops its own elements of the input. One gate per layer is liuqidong07/MOELoRA-peft@2d9efa4's
    ``mmoelora`` and what pUmpKin-Co/MTL-LoRA@7848a70 compares with; the same gate object in all layers is that
    repository's ``mmoeloraS`` and the method of the paper (Liu et al. 2024, arXiv:2310.18339). There an expert has rank
    / experts of the whole rank that ``scale`` is divided by. With experts of full rank this is the task-gated MoLoRA.
    """

    def __init__(self, base: nn.Linear, parameters: Mapping[str, Tensor], *, gate: TaskGate, **given: Any) -> None:
        super().__init__(base, parameters, **given)
        self.gate = gate

    def term(self, x: Tensor) -> Tensor:
        weights = self.gate(self.tasks(x)).to(x.dtype)
        return sum(
            linear(linear(self.dropout(x), a), b) * weights[:, e, None, None]
            for e, (a, b) in enumerate(zip(self.A, self.B, strict=True))
        )


class MoLora(Reference):
    """``sum_e softmax_e(G x) B_e A_e x`` per token (Zadouri et al. 2023; for-ai/parameter-efficient-moe@e2683fe).

    ``A [experts, rank, in]``, ``B [experts, out, rank]``, ``G [experts, in]``. The router sees the input without
    dropout.
    """

    def term(self, x: Tensor) -> Tensor:
        weights = torch.softmax(linear(x, self.G), dim=-1)
        dropped = self.dropout(x)
        return sum(
            linear(linear(dropped, a), b) * weights[..., e, None]
            for e, (a, b) in enumerate(zip(self.A, self.B, strict=True))
        )
