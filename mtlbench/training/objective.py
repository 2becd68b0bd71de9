"""What a step minimises: how the losses of rows and tasks weigh, by the protocol or as the method declares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlbench.api.method import Method
from mtlbench.balancing.combined import Balancing
from mtlbench.nn.losses import task_means
from mtlbench.planning.weighting import read_weighting


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of a method, from the losses of rows."""

    method: Method
    kind: str = "rows"
    """``rows``, ``tasks``, ``weights:...`` or ``balanced by NAME``."""
    weights: Sequence[float] | None = None
    """Weight of each task's mean loss, by task id; ``None`` weighs rows alike, or leaves it to the method."""
    balancing: Balancing | None = None
    """Weighs the losses of tasks from step to step, or their gradients, which are then those of ``tasks``."""

    @property
    def own(self) -> bool:
        """Whether the method computes the loss itself."""
        return self.method.owns_loss()

    def __str__(self) -> str:
        return "own" if self.own else self.kind

    def __call__(self, row_losses: Tensor, tasks: Tensor, model: nn.Module) -> Tensor:
        """The scalar to minimise, from row losses ``[rows]`` and task ids ``[rows]``."""
        if self.own or self.weights is None:
            return self.method.loss(row_losses, tasks, model)
        balanced = None if self.balancing is None else self.balancing.of_losses()
        if balanced is not None:
            row_losses = row_losses * balanced.to(row_losses)[tasks]
        # all alike need no copy to the device in every step
        weights = None if len(set(self.weights)) == 1 else torch.tensor(self.weights).to(row_losses, non_blocking=True)
        loss = task_means(row_losses, tasks, len(self.weights), weights=weights)
        penalty = self.method.penalty(model)
        return loss if penalty is None else loss + penalty


def objective_of(
    method: Method, tasks: int, *, weighting: str = "method", balancing: Balancing | None = None
) -> Objective:
    """The objective of ``method`` on so many tasks under the protocol's ``task_weighting``, or its balancer."""
    if balancing is not None:
        kind = f"balanced by {balancing.text}"
        return Objective(method=method, kind=kind, weights=[1.0] * tasks, balancing=balancing)
    kind = method.weighting if weighting == "method" else weighting
    return Objective(method=method, kind=kind, weights=read_weighting(kind).weights(tasks))
