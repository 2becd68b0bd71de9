"""Experts of one low-rank layer that each see their own dropout of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from mtlbench.nn.low_rank.layer import FactorsFunction, LowRankLinear


class ExpertDropoutLinear(LowRankLinear):
    """A low-rank linear whose rank is split evenly over experts with a dropout mask each.

    A dropped copy of the input is kept for every expert, as the published loops do. Without dropout, and in
    evaluation, it is its base class.

    Args:
        experts: Divides the rank; the factors must have no matrix and no factor per row.
    """

    def __init__(
        self,
        base: nn.Linear,
        parameters: Mapping[str, Tensor],
        factors: FactorsFunction,
        *,
        experts: int,
        **options: Any,
    ) -> None:
        super().__init__(base, parameters, factors, **options, reads_input=True)
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate:
            return super().forward(x)
        f = self.branch(x).factors
        seen = dropout(x.unsqueeze(1).expand(-1, self.experts, -1, -1), self.rate)  # [rows, experts, length, in]
        down = f.down.reshape(self.experts, -1, self.in_features).to(x.dtype)
        hidden = (seen @ down.transpose(1, 2)).transpose(1, 2).flatten(2)  # [rows, length, rank]
        if f.gate is not None:
            hidden = hidden * f.gate.to(hidden.dtype)
        y: Tensor = self.base(x) + f.scale * linear(hidden, f.up.to(hidden.dtype))
        return y
