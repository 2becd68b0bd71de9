"""A feed-forward block as a sparse mixture of low-rank experts.

Every expert is the whole block with low-rank updates of its three projections. The frozen projections are computed once
for all experts: the first ones read the same input, and the last one, being linear, reads the weighted sum of what the
chosen experts put into it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mtlbench.nn.layer_rows import in_rows
from mtlbench.nn.linears import replace_module
from mtlbench.nn.losses import routing_report
from mtlbench.nn.low_rank.dropout import dropout_mask, dropout_seed
from mtlbench.nn.low_rank.siblings import block_parts
from mtlbench.nn.parameters import kaiming_uniform
from mtlbench.nn.row_sums import collects, report


@dataclass(frozen=True, kw_only=True)
class ExpertShape:
    """How many experts a block has, and how large their updates are."""

    experts: int
    rank: int
    """Of each update."""
    top_k: int
    """Experts of a token."""
    scale: float
    """Of the updates."""
    dropout: float = 0.0
    """On the inputs of the updates, in training."""


class ExpertBlock(nn.Module):
    """``sum_e p_e FFN_e(x)`` over the ``top_k`` largest of ``softmax(G x)``, which then sum to one.

    ``FFN_e`` is the block with ``W + scale B_e A_e`` in the place of each of its projections. ``A`` is Kaiming-uniform,
    ``B`` zero, ``G`` normal with a standard deviation of 0.02. It reports what ``nn.load_balance`` reads.

    Args:
        block: The frozen block.
        name: Under which it reports.
    """

    router: nn.Parameter

    def __init__(self, block: nn.Module, shape: ExpertShape, *, name: str, draw: torch.Generator) -> None:
        super().__init__()
        parts = block_parts(block)
        if parts is None:
            raise ValueError(f"a {type(block).__name__} is no feed-forward block that is known")
        self.shape, self.name, self._dropout = shape, name, parts.dropout
        self._first = (parts.gate,) if parts.up is None else (parts.gate, parts.up)
        self._down = parts.down
        for child, module in block.named_children():
            self.add_module(child, module)
        self._activation: Callable[[Tensor], Tensor] = getattr(block, parts.activation)
        wide = shape.experts * shape.rank
        for linear_name in (*self._first, parts.down):
            base = self._linear(linear_name)
            device = base.weight.device
            down = kaiming_uniform((wide, base.in_features), base.in_features, draw)
            self.register_parameter(f"{linear_name}_A", nn.Parameter(down.to(device)))
            self.register_parameter(
                f"{linear_name}_B", nn.Parameter(torch.zeros(base.out_features, wide, device=device))
            )
        width = self._linear(parts.gate).in_features
        router = 0.02 * torch.randn(shape.experts, width, generator=draw)
        self.router = nn.Parameter(router.to(self._linear(parts.gate).weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            return in_rows(self, x, self.forward)
        logits = linear(x, self.router.to(x.dtype))
        shares = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        kept = shares.topk(self.shape.top_k, dim=-1)
        if collects():
            report(self.name, routing_report(shares, kept.indices), shape=(x.shape[0], x.shape[1]))
        weights = (kept.values / kept.values.sum(-1, keepdim=True)).to(x.dtype)
        shared = [self._linear(name)(x) for name in self._first]
        hidden = self._lower(x, *self._first)
        frozen = self._linear(self._down)
        joined: Tensor | None = None
        joined_low: Tensor | None = None
        for choice in range(self.shape.top_k):
            own = self._of_expert(kept.indices[..., choice], hidden[0])
            opened, *gated = (
                self._raised(y, low * own, name) for y, low, name in zip(shared, hidden, self._first, strict=True)
            )
            product = self._activation(opened)
            for other in gated:
                product = product * other
            if self._dropout is not None:
                product = nn.functional.dropout(product, getattr(self, self._dropout).p, self.training)
                product = product.to(frozen.weight.dtype)  # T5 may keep this one linear in float32
            weight = weights[..., choice, None].to(product.dtype)
            low = self._lower(product, self._down)[0] * own.to(product.dtype) * weight
            joined = product * weight if joined is None else joined + product * weight
            joined_low = low if joined_low is None else joined_low + low
        assert joined is not None and joined_low is not None
        return self._raised(frozen(joined), joined_low, self._down)

    def _linear(self, name: str) -> Any:
        return getattr(self, name)

    def _lower(self, x: Tensor, *names: str) -> tuple[Tensor, ...]:
        """Rank-sized products of all experts with ``x`` for each linear ``[rows, length, experts * rank]``."""
        rate = self.shape.dropout if self.training else 0.0
        given = x * dropout_mask(x, dropout=rate, seed=dropout_seed()) / (1 - rate) if rate else x
        downs = torch.cat([self.get_parameter(f"{name}_A") for name in names]).to(x.dtype)
        return linear(given, downs).chunk(len(names), dim=-1)

    def _raised(self, y: Tensor, low: Tensor, name: str) -> Tensor:
        """``y`` with the up-projected ``low`` of the linear ``name``."""
        return y + self.shape.scale * linear(low, self.get_parameter(f"{name}_B").to(low.dtype))

    def _of_expert(self, expert: Tensor, like: Tensor) -> Tensor:
        """Ones at the ranks of each token's expert ``[rows, length, experts * rank]``."""
        owners = torch.arange(self.shape.experts, device=expert.device).repeat_interleave(self.shape.rank)
        return (owners == expert.unsqueeze(-1)).to(like.dtype)


def adapt_blocks(model: nn.Module, shape: ExpertShape, *, draw: Callable[[str], torch.Generator]) -> list[str]:
    """Put an :class:`ExpertBlock` in the place of every feed-forward block that is known by its class; their names.

    Args:
        draw: Gives the generator of the initial values of the block with a name.
    """
    names = [name for name, module in model.named_modules() if block_parts(module) is not None]
    for name in names:
        replace_module(model, name, ExpertBlock(model.get_submodule(name), shape, name=name, draw=draw(name)))
    return names
