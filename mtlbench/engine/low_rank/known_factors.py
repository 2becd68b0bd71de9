"""Low-rank factors computed once for each task while a model only answers, instead of in every forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.engine.low_rank.fused import Factors
from mtlbench.engine.low_rank.layer import LowRankLinear, Rows

FOLD_FROM = 4
"""Tokens of a row from which an up-projection of its own costs less than a matrix before the shared one."""
KEPT_SHARE = 2
"""The factors kept for all tasks of one linear have at most its weight's elements divided by this."""


@dataclass(frozen=True)
class KnownFactors:
    """The factors of one linear for every task.

    Attributes:
        all: With one row for each task wherever they differ by row.
        folded: ``up`` with the matrix multiplied into it, ``[tasks, rank, out]``, where that is narrower.
    """

    all: Factors
    folded: Tensor | None

    def of(self, x: Tensor, layer: LowRankLinear) -> Factors:
        """Those of the rows ``x [rows, length, in]``."""
        f = self.all
        if not _differing(f) and self.folded is None:
            return f
        if layer.routing is None:
            raise RuntimeError("factors that differ by row need a routing")
        tasks = layer.routing.ids(x.shape[0])
        if self.folded is not None and x.shape[1] >= FOLD_FROM:
            own = self.folded.index_select(0, tasks).transpose(1, 2)
            down = f.down if f.down.dim() == 2 else f.down.index_select(0, tasks)
            return Factors(down, own, scale=f.scale)
        rows: dict[str, Any] = {name: factor.index_select(0, tasks) for name, factor in _differing(f).items()}
        return replace(f, **rows)


@contextmanager
def known_factors(model: nn.Module, *, tasks: int) -> Iterator[None]:
    """Inside, the low-rank linears of ``model`` take the factors of the task ids below ``tasks`` as computed now.

    For a model in evaluation mode whose parameters stay as they are, without gradients. Linears whose factors depend on
    the input, or would take too much memory for all tasks, compute them as ever.
    """
    changed: list[LowRankLinear] = []
    try:
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, LowRankLinear) and not module.reads_input and not module.training:
                    module.known = _known(module, tasks=tasks)
                    changed.append(module)
        yield
    finally:
        for module in changed:
            module.known = None


def _known(layer: LowRankLinear, *, tasks: int) -> KnownFactors | None:
    ids = torch.arange(tasks, device=layer.weight.device)
    with nullcontext() if layer.routing is None else layer.routing.of(ids):
        found = layer.factors(Rows(layer.routing, training=False, count=tasks))
    up = found.whole_up()
    folded: Tensor | None = None
    if found.matrix is not None and found.matrix.shape[1] > found.matrix.shape[2]:
        folded = (up @ found.matrix).transpose(1, 2).to(layer.weight.dtype).contiguous()
    ready: dict[str, Any] = {name: factor.to(layer.weight.dtype) for name, factor in _tensors(found, up).items()}
    known = KnownFactors(Factors(**ready, scale=found.scale), folded)
    kept = [*_differing(known.all).values(), *([] if folded is None else [folded])]
    return known if sum(factor.numel() for factor in kept) <= layer.weight.numel() // KEPT_SHARE else None


def _tensors(f: Factors, up: Tensor) -> dict[str, Tensor]:
    known = {"down": f.down, "up": up, "gate": f.gate, "matrix": f.matrix}
    return {name: factor for name, factor in known.items() if factor is not None}


def _differing(f: Factors) -> dict[str, Tensor]:
    """The factors that have one row for each task."""
    tensors = _tensors(f, f.up).items()
    return {name: factor for name, factor in tensors if factor.dim() == 3 and not (name == "gate" and len(factor) == 1)}
