"""Balancers that weigh the losses of tasks by the losses of earlier steps: one backward a step, as without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtlbench.api.balancer import Balancer, LossWeights
from mtlbench.api.hooks import hookimpl
from mtlbench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Balancer):
    """``exp(-s) L + s / 2`` for each task, with ``s`` learned: the classification form, as answers are tokens."""

    name = "uncertainty"
    source = "Kendall et al. 2018, arXiv:1705.07115, eq. 10"
    reads = "losses"

    rate: float = 0.01
    """Learning rate of ``s`` (Adam, constant)."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise RequestError(f"uncertainty: rate must be above 0 and below 1, got {self.rate}.")

    def start(self, tasks: int) -> LossWeights:
        return _Learned(tasks, self.rate)


class _Learned(LossWeights):
    """The gradient of ``s`` is known in closed form, so a step of Adam needs no graph. A task that a step has no rows
    of keeps its ``s`` and its moments."""

    def __init__(self, tasks: int, rate: float) -> None:
        import torch

        self._log_variance, self._first, self._second, self._steps = torch.zeros(4, tasks, dtype=torch.float64)
        self._rate = rate

    def weights(self) -> Tensor:
        found: Tensor = (-self._log_variance).exp()
        return found

    def observe(self, losses: Tensor, tasks: Sequence[int]) -> None:
        at = list(tasks)
        grad = 0.5 - (-self._log_variance[at]).exp() * losses
        self._steps[at] += 1
        self._first[at] = 0.9 * self._first[at] + 0.1 * grad
        self._second[at] = 0.999 * self._second[at] + 0.001 * grad**2
        first = self._first[at] / (1 - 0.9 ** self._steps[at])
        second = self._second[at] / (1 - 0.999 ** self._steps[at])
        self._log_variance[at] -= self._rate * first / (second.sqrt() + 1e-8)

    def state_dict(self) -> Mapping[str, Any]:
        held = (self._log_variance, self._first, self._second, self._steps)
        return {"held": [each.clone() for each in held]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._log_variance, self._first, self._second, self._steps = (each.clone() for each in state["held"])


@dataclass(frozen=True, kw_only=True)
class DWA(Balancer):
    """Dynamic weight average: tasks whose loss falls slower weigh more."""

    name = "dwa"
    source = "Liu et al. 2019, arXiv:1803.10704, eq. 7"
    reads = "losses"

    temperature: float = 2.0
    """Higher is more even; 2 in the paper."""
    every: int = 20
    """Steps whose mean loss is compared with that of as many before; an epoch in the paper, which here may be longer
    than the training."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.every < 1:
            raise RequestError(f"dwa needs temperature > 0 and every >= 1, got {self.temperature} and {self.every}.")

    def start(self, tasks: int) -> LossWeights:
        return _Slopes(tasks, self.temperature, self.every)


class _Slopes(LossWeights):
    """Weights are 1 until there are two periods; a task without rows in one of them counts as one that stands still."""

    def __init__(self, tasks: int, temperature: float, every: int) -> None:
        import torch

        self._temperature, self._every, self._steps = temperature, every, 0
        self._weights = torch.ones(tasks, dtype=torch.float64)
        self._before = torch.zeros(tasks, dtype=torch.float64)
        self._sums, self._counts = torch.zeros(2, tasks, dtype=torch.float64)

    def weights(self) -> Tensor:
        return self._weights

    def observe(self, losses: Tensor, tasks: Sequence[int]) -> None:
        import torch

        self._sums[list(tasks)] += losses
        self._counts[list(tasks)] += 1
        self._steps += 1
        if self._steps % self._every:
            return
        means = self._sums / self._counts.clamp(min=1)
        known = (means > 0) & (self._before > 0)
        if known.any():
            slopes = torch.where(known, means / self._before.clamp(min=1e-12), 1.0)
            self._weights = len(means) * (slopes / self._temperature).softmax(0)
        self._before = torch.where(self._counts > 0, means, self._before)
        self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)

    def state_dict(self) -> Mapping[str, Any]:
        held = (self._weights, self._before, self._sums, self._counts)
        return {"steps": self._steps, "held": [each.clone() for each in held]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = state["steps"]
        self._weights, self._before, self._sums, self._counts = (each.clone() for each in state["held"])


@hookimpl
def mtlbench_balancers() -> Iterable[type[Balancer]]:
    return [Uncertainty, DWA]
