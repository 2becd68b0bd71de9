"""A budget of singular triplets that all layers share and that shrinks in training: AdaLoRA's allocation.

A triplet is one row of ``down``, one of ``values`` and one column of ``up``. After each step the importance of every
parameter is ``|p * gradient|``, smoothed, times its smoothed uncertainty; a triplet scores the sum of its value's
importance and the means of its two vectors'. The lowest triplets of the whole model have their value set to zero
(Zhang et al. 2023, arXiv:2303.10512, eq. 7 to 12; as in huggingface/peft 0.21.2: peft.tuners.adalora.layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.compat import multiply_each_
from mtlbench.nn.low_rank.layer import Factors, LowRankLinear


class TripletLinear(LowRankLinear):
    """A low-rank linear with ``down [rank, in]``, ``values [rank, 1]`` and ``up [out, rank]``."""

    down: nn.Parameter
    values: nn.Parameter
    up: nn.Parameter

    @torch.no_grad()
    def folded(self, task: int | None = None) -> Factors:
        """``values * down`` and ``up`` without the triplets of value zero; where all are, one stays."""
        whole = super().folded(task)
        kept = self.values.detach().flatten() != 0
        if not kept.any():
            kept[0] = True
        return Factors(whole.down[kept], whole.up[:, kept], scale=whole.scale)


@dataclass(frozen=True)
class RankSchedule:
    """How many triplets stay. Steps are counted from 1."""

    start: int
    """Triplets of the whole model until step ``first``."""
    end: int
    """From step ``last`` on, when which ones stay is settled."""
    first: int
    last: int
    every: int
    """Steps between two allocations in between."""

    @classmethod
    def of(
        cls, total_steps: int, *, prune_from: float, prune_until: float, every: int, start: int, end: int
    ) -> RankSchedule:
        """The schedule whose ``first`` and ``last`` steps are these shares of ``total_steps``.

        ``last`` comes after ``first`` and not before step 2, as scores need a step.

        Raises:
            ValueError: for fewer than two steps.
        """
        if total_steps < 2:
            raise ValueError(f"ranks cannot be allocated in {total_steps} steps")
        first = min(round(prune_from * total_steps), total_steps - 1)
        last = min(max(first + 1, 2, round(prune_until * total_steps)), total_steps)
        return cls(start=start, end=end, first=first, last=last, every=every)

    def budget(self, step: int) -> int | None:
        """Triplets to keep after ``step``, by the cube of the time left; ``None`` where nothing is decided."""
        if step == self.last:
            return self.end
        if step <= self.first or step > self.last or step % self.every:
            return None
        left = 1 - (step - self.first) / (self.last - self.first)
        return int((self.start - self.end) * left**3 + self.end)


class _Kind:
    """The same parameter of every layer. Those of one shape are handled as one tensor ``[layers, ...]``.

    Args:
        parameters: One per layer.
        along: The dimension of ``[layers, ...]`` that runs along a vector; the other one numbers the triplets.
    """

    def __init__(self, parameters: Sequence[Tensor], *, along: int) -> None:
        self.along = along
        shapes: dict[torch.Size, list[int]] = {}
        for layer, p in enumerate(parameters):
            shapes.setdefault(p.shape, []).append(layer)
        self.families = [[parameters[layer] for layer in layers] for layers in shapes.values()]
        places = torch.tensor([layer for layers in shapes.values() for layer in layers]).argsort()
        self._places = places.to(parameters[0].device)
        self._importance = [family[0].new_zeros((len(family), *family[0].shape)) for family in self.families]
        self._uncertainty = [torch.zeros_like(importance) for importance in self._importance]

    def update(self, beta1: float, beta2: float) -> None:
        """Take in the present gradients."""
        for family, importance, uncertainty in zip(self.families, self._importance, self._uncertainty, strict=True):
            grads = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in family])
            now = (torch.stack(family) * grads).abs_()
            importance.mul_(beta1).add_(now, alpha=1 - beta1)
            uncertainty.mul_(beta2).add_((now - importance).abs_(), alpha=1 - beta2)

    def smoothed(self) -> list[Tensor]:
        """Importances and then uncertainties, by family; the tensors themselves."""
        return [*self._importance, *self._uncertainty]

    def scores(self) -> Tensor:
        """Mean over the entries of each vector ``[layers, rank]``, in the order of the layers."""
        pairs = zip(self._importance, self._uncertainty, strict=True)
        scores = torch.cat([(importance * uncertainty).mean(self.along) for importance, uncertainty in pairs])
        return scores.index_select(0, self._places)

    def distances(self) -> Tensor:
        """``|P P^T - I|`` of each matrix ``P`` whose rows are the vectors: ``[layers]``, ordered by family."""
        return torch.cat([_distance(torch.stack(family), self.along) for family in self.families])


def _distance(p: Tensor, along: int) -> Tensor:
    gram = p @ p.mT if along == 2 else p.mT @ p
    distance: Tensor = torch.linalg.matrix_norm(gram - torch.eye(gram.shape[-1], dtype=p.dtype, device=p.device))
    return distance


class RankBudget(nn.Module):
    """Allocates the budget among layers; holds no parameters of its own. No step waits for the device.

    Args:
        layers: The linears by name, all of the same rank.
        beta1: Smoothing of the importance.
        beta2: Smoothing of the uncertainty.
    """

    def __init__(
        self, layers: Mapping[str, TripletLinear], schedule: RankSchedule, *, beta1: float, beta2: float
    ) -> None:
        super().__init__()
        self.schedule, self.beta1, self.beta2 = schedule, beta1, beta2
        self._layers = dict(layers)  # in a dict, so that they are not registered twice
        self._values: list[Tensor] = [layer.values for layer in layers.values()]
        self._kinds = [
            _Kind(self._values, along=2),
            _Kind([layer.down for layer in layers.values()], along=2),
            _Kind([layer.up for layer in layers.values()], along=1),
        ]
        self._keep: Tensor | None = None
        self._ranks: dict[str, int] | None = None

    def memory(self) -> BudgetMemory:
        """What it keeps between steps, for ``Trainer.keep``."""
        return BudgetMemory(self)

    def orthogonality(self) -> Tensor:
        """Mean over all ``down`` and ``up`` of the Frobenius norm of their distance from orthonormal vectors."""
        return torch.cat([kind.distances() for kind in self._kinds[1:]]).mean()

    @torch.no_grad()
    def allocate(self, step: int) -> None:
        """Take in the gradients of ``step`` (from 1) and set the values of the triplets that fall out to zero.

        To be called after the optimizer's step and before gradients are cleared.
        """
        if step > self.schedule.last:
            self._mask()
            return
        if step < self.schedule.last:
            for kind in self._kinds:
                kind.update(self.beta1, self.beta2)
        budget = self.schedule.budget(step)
        if budget is not None:
            self._keep = self._best(budget)
            self._mask()

    def pruned_parameters(self) -> int:
        """Parameters of the triplets that fell out: trained at the start, and no part of the result."""
        if self._keep is None:
            return 0
        sizes = [layer.down.shape[1] + layer.up.shape[0] + 1 for layer in self._layers.values()]
        dropped: list[int] = (~self._keep).sum(1).tolist()
        return sum(size * count for size, count in zip(sizes, dropped, strict=True))

    def close(self) -> None:
        """Note the final ranks and let go of the layers."""
        self._ranks = {name: int((layer.values != 0).sum()) for name, layer in self._layers.items()}
        self._layers, self._values, self._kinds, self._keep = {}, [], [], None

    def notes(self) -> Mapping[str, Any]:
        """``ranks``: the rank that each linear was left with, once training is over."""
        return {} if self._ranks is None else {"ranks": self._ranks}

    def _best(self, budget: int) -> Tensor:
        """Which triplets score above the lowest ``start - budget`` ``[layers, rank]``."""
        value, down, up = (kind.scores() for kind in self._kinds)
        scores = value + (down + up)
        drop = self.schedule.start - budget
        if drop == 0:
            return torch.ones_like(scores, dtype=torch.bool)
        return scores > torch.kthvalue(scores.flatten(), drop).values

    def _mask(self) -> None:
        if self._keep is not None:
            keep = self._keep.to(self._values[0].dtype).unsqueeze(2)
            multiply_each_(self._values, keep.unbind())


class BudgetMemory:
    """The importances of a budget and which triplets it keeps: an object apart, as a module's own state is tensors."""

    def __init__(self, budget: RankBudget) -> None:
        self._budget = budget

    def state_dict(self) -> dict[str, Any]:
        """As the budget has it now, not copied."""
        return {"kinds": [kind.smoothed() for kind in self._budget._kinds], "keep": self._budget._keep}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        for kind, smoothed in zip(self._budget._kinds, state["kinds"], strict=True):
            for own, value in zip(kind.smoothed(), smoothed, strict=True):
                own.copy_(value)
        keep = state["keep"]
        self._budget._keep = None if keep is None else keep.to(self._budget._values[0].device)
