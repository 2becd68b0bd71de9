"""The gradient of one step, whole or summed exactly from micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from mtlbench.api.method import Method
from mtlbench.api.routing import Routing, RowSums
from mtlbench.backbones.heap import LowHeap
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.siblings import forgotten_on_failure
from mtlbench.nn.row_sums import collecting
from mtlbench.training.batches import Batch, token_rows
from mtlbench.training.checkpoints.model_state import draw_states, set_draw_states
from mtlbench.training.draws import Draws
from mtlbench.training.loss import BatchAnswers, running
from mtlbench.training.objective import Objective
from mtlbench.training.tail import narrow_tail

Step = tuple[Tensor, Tensor, Tensor]
"""The loss, the row losses ``[rows]`` and the task ids ``[rows]``, detached."""
Reports = Mapping[str, RowSums]
"""What layers reported of the rows of a step, by name of the layer."""
Auxiliary = tuple[Tensor, Mapping[str, Tensor]]
"""The auxiliary loss of a step, detached, and its derivative by what each layer reported of each row."""


class Gradients:
    """Runs forward and backward of a method's loss inside the routing of each batch."""

    def __init__(
        self,
        *,
        model: nn.Module,
        method: Method,
        routing: Routing,
        autocast: torch.dtype | None,
        objective: Objective | None = None,
    ) -> None:
        self.model, self.method, self.routing, self.autocast = model, method, routing, autocast
        self.loss = objective or Objective(method=method)
        """What is minimised; by default the mean over rows, or what the method computes itself."""
        self.scaler: GradScaler | None = None
        """Scales losses before they are differentiated, as small float16 gradients would vanish; ``None`` where that is
        not the dtype."""
        self.linear: bool | None = None if self.loss.own else True
        """Whether the loss is linear in the losses of rows; ``None`` until :meth:`is_linear` has tried it."""
        self._heap = LowHeap()

    def forward(self, batch: Batch) -> Tensor:
        """Row losses ``[rows]``."""
        context: AbstractContextManager[object] = (
            nullcontext() if self.autocast is None else torch.autocast(batch.tasks.device.type, dtype=self.autocast)
        )
        with context, forgotten_on_failure(self.model):
            return self.method.row_losses(self.model, BatchAnswers(self.model, batch, self.routing))

    def step(self, batches: Sequence[Batch], draws: Draws | None = None) -> Step:
        """Leave the gradient of the method's loss on all rows of ``batches`` in the parameters, scaled by
        ``scaler``.

        One batch is differentiated as it is. Of several, each is weighted by the derivative of the loss by its rows'
        losses, and what does not pass through the row losses (a penalty, learned task weights) is added at the end. An
        auxiliary loss is that of all rows: what layers report is summed up in forwards before.

        Args:
            draws: Of several batches that are computed apart for memory only; ``None`` draws for each alone.

        Raises:
            RequestError: for several batches of a loss that is not linear in the row losses.
        """
        tasks = torch.cat([batch.tasks for batch in batches])
        if len(batches) == 1:
            with self._pass(batches[0]) as reports:
                losses = self.forward(batches[0])
                loss = self.loss(losses, tasks, self.model)
                if self.has_auxiliary_loss:
                    loss = loss + self.method.auxiliary_loss(reports, tasks, self.model)
                torch.autograd.backward(self._scaled(loss))
            return loss.detach(), losses.detach(), tasks
        auxiliary = self.auxiliary(self.reports(batches, draws), tasks) if self.has_auxiliary_loss else None
        losses = self.differentiate(batches, self.row_weights(tasks), draws, auxiliary)
        return self.finish(losses, tasks, auxiliary)

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether the loss has a part that is made of what layers report."""
        return self.method.has_auxiliary_loss

    @contextmanager
    def _pass(self, batch: Batch) -> Iterator[Reports]:
        """Inside, ``batch`` is computed; a backward belongs inside too. Gives what layers report, if that is read.

        Layers that report see all tokens: the last one is then not computed at the answers alone.
        """
        rows = token_rows(batch, self.model) if self.has_auxiliary_loss else None
        with (
            forgotten_on_failure(self.model),  # layers that are checkpointed run in the backward too
            running(self.model, batch, self.routing),
            narrow_tail(self.model, batch.answers if rows is None else None, self.routing),
            collecting(rows) as reports,
        ):
            yield reports
        self._heap.after_pass()

    @torch.no_grad()
    def reports(self, batches: Sequence[Batch], draws: Draws | None = None) -> Reports:
        """What layers report of all rows of ``batches``, by forwards alone; random states are left as they were."""
        found: list[Reports] = []
        device = batches[0].tasks.device
        before = draw_states(device)
        for number, batch in enumerate(batches):
            with nullcontext() if draws is None else draws.of(number), self._pass(batch) as reports:
                self.forward(batch)
            found.append(reports)
        set_draw_states(before, device)
        return {
            layer: RowSums(
                *(torch.cat([getattr(each[layer], name) for each in found]) for name in ("values", "tokens"))
            )
            for layer in found[0]
        }

    def auxiliary(self, reports: Reports, tasks: Tensor) -> Auxiliary:
        """The auxiliary loss of a step in which layers reported this of all rows."""
        leaves = {layer: sums.values.detach().requires_grad_() for layer, sums in reports.items()}
        given = {layer: RowSums(leaves[layer], sums.tokens) for layer, sums in reports.items()}
        with torch.enable_grad(), self.routing.of(tasks):
            loss = self.method.auxiliary_loss(given, tasks, self.model)
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        known = {layer: grad for layer, grad in zip(leaves, grads, strict=True) if grad is not None}
        return loss.detach(), known

    def differentiate(
        self,
        batches: Sequence[Batch],
        weights: Tensor,
        draws: Draws | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        """Add up the gradients of row losses times their ``weights [rows]``; the row losses, detached.

        Args:
            auxiliary: As :meth:`auxiliary` gives it, with the derivatives of these rows.
        """
        parts = [weights.new_zeros(0)]
        sizes = [batch.rows for batch in batches]
        shares = torch.split(weights, sizes)
        slopes = {} if auxiliary is None else {k: torch.split(v, sizes) for k, v in auxiliary[1].items()}
        for number, (batch, weight) in enumerate(zip(batches, shares, strict=True)):
            with nullcontext() if draws is None else draws.of(number), self._pass(batch) as reports:
                losses = self.forward(batch)
                total = (losses * weight).sum()
                for layer, slope in slopes.items():
                    total = total + (reports[layer].values * slope[number]).sum()
                torch.autograd.backward(self._scaled(total))
            parts.append(losses.detach())
        return torch.cat(parts)

    def finish(self, losses: Tensor, tasks: Tensor, auxiliary: Auxiliary | None = None) -> Step:
        """The step with these row losses, once they are differentiated; adds what does not pass through them."""
        with self.routing.of(tasks):
            loss = self.loss(losses, tasks, self.model)
            if loss.requires_grad:
                torch.autograd.backward(self._scaled(loss))
        loss = loss.detach() if auxiliary is None else loss.detach() + auxiliary[0]
        return loss, losses, tasks

    def _scaled(self, loss: Tensor) -> Tensor:
        if self.scaler is None:
            return loss
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def is_linear(self, tasks: Tensor) -> bool:
        """The loss is linear in the losses of rows of these tasks, so that micro-batches sum to its gradient.

        A method's own loss is tried once, at two points.
        """
        if self.linear is None:
            one = torch.ones(len(tasks), device=tasks.device)
            other = torch.linspace(0.5, 2.0, len(tasks), device=tasks.device)
            first, second = (self._derivative(point, tasks) for point in (one, other))
            self.linear = torch.allclose(first, second, rtol=1e-4)
        return self.linear

    def row_weights(self, tasks: Tensor) -> Tensor:
        """Derivative of the method's loss by each row's loss ``[rows]``: the same everywhere, as the loss is linear.

        Raises:
            RequestError: when it is not.
        """
        if not self.is_linear(tasks):
            raise RequestError(
                f"The loss of {self.method.name!r} is not linear in the losses of the rows, so its gradient cannot "
                "be summed from micro-batches. Leave micro_batch out, or make batch_size as small."
            )
        return self._derivative(torch.ones(len(tasks), device=tasks.device), tasks)

    def _derivative(self, point: Tensor, tasks: Tensor) -> Tensor:
        point.requires_grad_()
        return torch.autograd.grad(self.loss(point, tasks, self.model), point)[0]


def clear(params: Sequence[Tensor]) -> None:
    """Let go of the gradients."""
    for p in params:
        p.grad = None


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
