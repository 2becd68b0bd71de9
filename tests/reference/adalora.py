"""AdaLoRA as peft 0.21.2 writes it: the layer, the penalty and the allocation of the rank budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference.layer import Reference


class AdaLora(Reference):
    """``B (E * A) x`` with ``A [rank, in]``, ``E [rank, 1]``, ``B [out, rank]``; ``scale`` is alpha / (rank + 1e-5)."""

    def term(self, x: Tensor) -> Tensor:
        return self.dropout(x) @ (self.A * self.E).t() @ self.B.t()

    def distances(self) -> list[Tensor]:
        """Frobenius norms of ``A A^T - I`` and ``B^T B - I``."""
        eye = torch.eye(self.A.shape[0], dtype=self.A.dtype, device=self.A.device)
        return [torch.linalg.norm(self.A @ self.A.t() - eye), torch.linalg.norm(self.B.t() @ self.B - eye)]


def penalty(layers: Sequence[AdaLora]) -> Tensor:
    """Mean distance from orthogonality over all matrices; the loss adds it times 0.5 by default."""
    return torch.stack([distance for layer in layers for distance in layer.distances()]).mean()


@dataclass
class Allocator:
    """Zeroes the singular values that matter least: peft's ``update_and_allocate``, called after the optimizer's step."""

    layers: Sequence[AdaLora]
    target_rank: int
    warmup: int
    """Steps (``tinit``) after which the budget starts to fall."""
    final: int
    """Last steps (``tfinal``), in which the choice is fixed."""
    every: int
    """Steps (``deltaT``) between two choices."""
    total: int
    beta1: float = 0.85
    beta2: float = 0.85
    importance: dict[Tensor, Tensor] = field(default_factory=dict)
    uncertainty: dict[Tensor, Tensor] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Read the gradients at hand and keep the singular values that the budget of ``step`` allows."""
        last = self.total - self.final
        if step < last:
            self._observe()
        if step == last or (self.warmup < step < last and step % self.every == 0):
            self._choose(self.budget(step))
        elif step > last:
            self._zero()

    def budget(self, step: int) -> int:
        """Singular values of all layers together, after the warm-up."""
        start, target = sum(layer.E.numel() for layer in self.layers), self.target_rank * len(self.layers)
        left = 1 - (step - self.warmup) / (self.total - self.final - self.warmup)
        return int((start - target) * left**3 + target)

    def _observe(self) -> None:
        for layer in self.layers:
            for p in (layer.A, layer.E, layer.B):
                zeros = torch.zeros_like(p)
                now = (p * p.grad).abs()
                smooth = self.beta1 * self.importance.get(p, zeros) + (1 - self.beta1) * now
                off = (now - smooth).abs()
                self.importance[p] = smooth
                self.uncertainty[p] = self.beta2 * self.uncertainty.get(p, zeros) + (1 - self.beta2) * off

    def _choose(self, budget: int) -> None:
        scores = []
        for layer in self.layers:
            a, e, b = (self.importance[p] * self.uncertainty[p] for p in (layer.A, layer.E, layer.B))
            scores.append(e.flatten() + a.mean(dim=1) + b.mean(dim=0))
        everything = torch.cat(scores)
        threshold = everything.kthvalue(len(everything) - budget).values
        self.kept = [score > threshold for score in scores]
        self._zero()

    def _zero(self) -> None:
        for layer, kept in zip(self.layers, self.kept, strict=True):
            layer.E[~kept] = 0
