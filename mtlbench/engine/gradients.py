"""The gradient of one step, whole or summed exactly from micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.method import Method
from mtlbench.engine.batches import Batch
from mtlbench.engine.loss import row_losses
from mtlbench.engine.routing import Routing
from mtlbench.errors import RequestError


class Gradients:
    """Runs forward and backward of a method's loss inside the routing of each batch."""

    def __init__(self, *, model: nn.Module, method: Method, routing: Routing, autocast: torch.dtype | None) -> None:
        self.model, self.method, self.routing, self.autocast = model, method, routing, autocast
        self._linear = type(method).loss is Method.loss

    def forward(self, batch: Batch) -> Tensor:
        """Row losses ``[rows]``."""
        context: AbstractContextManager[object] = (
            nullcontext() if self.autocast is None else torch.autocast(batch.tasks.device.type, dtype=self.autocast)
        )
        with context:
            return row_losses(self.model, batch, self.routing)

    def step(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """Leave the gradient of the method's loss on all rows of ``batches`` in the parameters.

        One batch is differentiated as it is. Of several, each is weighted by the derivative of the loss by its rows'
        losses, and what does not pass through the row losses (a penalty, learned task weights) is added at the end.

        Returns:
            The loss, the row losses ``[rows]`` and the task ids ``[rows]``, detached.

        Raises:
            RequestError: for several batches of a loss that is not linear in the row losses.
        """
        tasks = torch.cat([batch.tasks for batch in batches])
        if len(batches) == 1:
            with self.routing.of(tasks):
                losses = self.forward(batches[0])
                loss = self.method.loss(losses, tasks, self.model)
                torch.autograd.backward(loss)
            return loss.detach(), losses.detach(), tasks
        weights = torch.split(self._row_weights(tasks), [batch.rows for batch in batches])
        parts = []
        for batch, weight in zip(batches, weights, strict=True):
            with self.routing.of(batch.tasks):
                losses = self.forward(batch)
                torch.autograd.backward((losses * weight).sum())
            parts.append(losses.detach())
        losses = torch.cat(parts)
        with self.routing.of(tasks):
            loss = self.method.loss(losses, tasks, self.model)
            if loss.requires_grad:
                torch.autograd.backward(loss)
        return loss.detach(), losses, tasks

    def _row_weights(self, tasks: Tensor) -> Tensor:
        """Derivative of the method's loss by each row's loss ``[rows]``: the same everywhere, as the loss is linear."""

        def at(point: Tensor) -> Tensor:
            point.requires_grad_()
            return torch.autograd.grad(self.method.loss(point, tasks, self.model), point)[0]

        weights = at(torch.ones(len(tasks), device=tasks.device))
        if not self._linear:
            other = at(torch.linspace(0.5, 2.0, len(tasks), device=tasks.device))
            if not torch.allclose(weights, other, rtol=1e-4):
                raise RequestError(
                    f"The loss of {self.method.name!r} is not linear in the losses of the rows, so its gradient cannot "
                    "be summed from micro-batches. Leave micro_batch out, or make batch_size as small."
                )
            self._linear = True
        return weights


@contextmanager
def checkpointing(model: Any) -> Iterator[None]:
    """Inside, the layers of ``model`` recompute their forward in the backward, without reentrant autograd."""
    # renamed during transformers 5; the old names warn where the new ones exist
    new = hasattr(model, "activation_checkpointing_enable")
    enable = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
    disable = model.activation_checkpointing_disable if new else model.gradient_checkpointing_disable
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        disable()
