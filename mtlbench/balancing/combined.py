"""A balancer at work in a cell: the gradients of tasks become one, and what was weighed is remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.api.balancer import Balancer, GradientWeights, LossWeights
from mtlbench.errors import PluginError

TaskGradients = Mapping[int, Sequence[Tensor | None]]
"""Task id to the gradient of its mean loss by each parameter; ``None`` where it has none."""


class Balancing:
    """The state of a balancer over the steps of a cell.

    Args:
        seed: Of what a balancer draws.
    """

    def __init__(self, balancer: Balancer, *, tasks: int, seed: int) -> None:
        self.text, self.by_gradients = balancer.text(), balancer.reads == "gradients"
        self._seed, self._steps = seed, 0
        self._weights = balancer.start(tasks)
        kind = GradientWeights if self.by_gradients else LossWeights
        if not isinstance(self._weights, kind):
            raise PluginError(
                f"Balancer {balancer.name!r} reads {balancer.reads}, so start() must return a {kind.__name__}, got "
                f"{type(self._weights).__name__}."
            )
        self._sums, self._counts = torch.zeros(2, tasks, dtype=torch.float64)
        self._cosines, self._pairs = torch.zeros(2, tasks, tasks, dtype=torch.float64)

    def combine(self, params: Sequence[Tensor], gradients: TaskGradients, *, scale: float = 1.0) -> None:
        """Leave the balanced gradient in ``params``.

        What only one of the tasks has a gradient of belongs to that task: it is no part of the Gramian and gets the
        gradient of the mean over tasks. So an element of a parameter is balanced where two tasks or more reach it.

        Args:
            gradients: Of the tasks in the step, ascending; by each parameter in the order of ``params``.
            scale: What losses were multiplied by before they were differentiated.
        """
        tasks, count = list(gradients), len(gradients)
        device = params[0].device
        gramian = torch.zeros(count, count, dtype=torch.float64, device=device)
        for columns in zip(*gradients.values(), strict=True):
            if sum(each is not None for each in columns) < 2:
                continue
            flat = _stacked(columns)
            shared = (flat != 0).sum(0) > 1
            flat = flat * shared
            gramian += (flat @ flat.t()).double()
        gramian = (gramian / scale**2).cpu()
        weights = self._weigh(gramian, tasks)
        on_device = weights.to(device)
        for p, columns in zip(params, zip(*gradients.values(), strict=True), strict=True):
            known = [each for each in columns if each is not None]
            if len(known) < 2:
                p.grad = known[0] / count if known else None
                continue
            flat = _stacked(columns)
            shared = (flat != 0).sum(0) > 1
            balanced = on_device.to(flat.dtype) @ flat
            p.grad = torch.where(shared, balanced, flat.sum(0) / count).view_as(p).to(p.dtype)

    def _weigh(self, gramian: Tensor, tasks: Sequence[int]) -> Tensor:
        """Weights of a step's tasks. Alike where there is one task, or a gradient is not finite: the step then is
        skipped (float16), or the next loss says it."""
        self._steps += 1
        weights = gramian.new_full((len(tasks),), 1 / len(tasks))
        if not bool(gramian.isfinite().all()):
            return weights
        if len(tasks) > 1 and float(gramian.diagonal().max()) > 0:
            assert isinstance(self._weights, GradientWeights)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed((self._seed * 1_000_003 + self._steps) % 2**63)
                weights = self._weights.weights(gramian.clone(), tasks).to(gramian)
        at = torch.tensor(tasks)
        self._sums[at] += weights
        self._counts[at] += 1
        norms = gramian.diagonal().clamp(min=0).sqrt()
        products = norms[:, None] * norms
        defined = products > 0
        pairs = at[:, None], at
        self._cosines[pairs] += torch.where(defined, gramian / products.where(defined, 1.0), 0.0)
        self._pairs[pairs] += defined
        return weights

    def of_losses(self) -> Tensor | None:
        """The weight of each task's loss in the next step ``[tasks]``; ``None`` where gradients are weighed."""
        return self._weights.weights() if isinstance(self._weights, LossWeights) else None

    def observe(self, losses: Tensor, tasks: Tensor) -> None:
        """Take in the row losses and task ids of a step ``[rows]``, where losses are weighed."""
        if not isinstance(self._weights, LossWeights):
            return
        rows, ids = losses.double().cpu(), tasks.cpu()
        present = torch.tensor(sorted(set(ids.tolist())))
        means = torch.stack([rows[ids == task].mean() for task in present])
        self._steps += 1
        self._sums[present] += self._weights.weights()[present]
        self._counts[present] += 1
        if bool(means.isfinite().all()):
            self._weights.observe(means, present.tolist())

    def summary(self) -> dict[str, Any]:
        """The text of the balancer; by task id the mean weight over the steps with rows of the task, ``None`` without
        any; where gradients are weighed, the mean cosine of the gradients of each two tasks."""
        weights = [float(s / n) if n else None for s, n in zip(self._sums, self._counts, strict=True)]
        found: dict[str, Any] = {"balancer": self.text, "weights": weights}
        if self.by_gradients:
            found["cosines"] = [
                [float(c / n) if n else None for c, n in zip(*lines, strict=True)]
                for lines in zip(self._cosines, self._pairs, strict=True)
            ]
        return found

    def state(self) -> dict[str, Any]:
        """What :meth:`load` reads back."""
        held = (self._sums, self._counts, self._cosines, self._pairs)
        return {
            "steps": self._steps,
            "held": [each.clone() for each in held],
            "weights": dict(self._weights.state_dict()),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self._steps = state["steps"]
        self._sums, self._counts, self._cosines, self._pairs = (each.clone() for each in state["held"])
        self._weights.load_state_dict(state["weights"])


def _stacked(gradients: Sequence[Tensor | None]) -> Tensor:
    """``[tasks, elements]``, zero where a task has no gradient; float32 at least."""
    like = next(each for each in gradients if each is not None)
    wide = torch.promote_types(like.dtype, torch.float32)
    return torch.stack([torch.zeros_like(like) if each is None else each for each in gradients]).flatten(1).to(wide)
