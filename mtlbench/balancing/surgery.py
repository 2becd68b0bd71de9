"""Balancers that weigh the gradients of tasks, by what their Gramian says.

The rules are those of torchjd (https://github.com/SimplexLab/TorchJD, MIT), given the Gramian. Rules that sum over
tasks (PCGrad, GradVac) are divided by the number of tasks in the step, so that without conflict they are the mean.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mtlbench.api.balancer import Balancer, GradientWeights
from mtlbench.api.hooks import hookimpl
from mtlbench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MeanGradient(Balancer):
    """All tasks alike: no balancing, but the interference of tasks is measured."""

    name = "mean"
    source = "the mean over the tasks of a step"

    def start(self, tasks: int) -> GradientWeights:
        return _Alike()


class _Alike(GradientWeights):
    def weights(self, gramian: Tensor, tasks: Sequence[int]) -> Tensor:
        return gramian.new_full((len(tasks),), 1 / len(tasks))


@dataclass(frozen=True, kw_only=True)
class OfTorchjd(Balancer):
    """A rule of torchjd on the Gramian."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Packages beside torchjd."""
    sums: ClassVar[bool] = False
    """Whether the rule sums over tasks, where others take the mean."""

    def missing(self) -> str | None:
        absent = [name for name in ("torchjd", *self.needs) if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)}: pip install 'mtlbench[balance]'" if absent else None

    @abstractmethod
    def rule(self) -> Any:
        """The weighting of torchjd, which maps a Gramian to weights."""

    def start(self, tasks: int) -> GradientWeights:
        return _Ruled(self.rule(), sums=self.sums)


class _Ruled(GradientWeights):
    def __init__(self, rule: Any, *, sums: bool) -> None:
        self._rule, self._sums = rule, sums

    def weights(self, gramian: Tensor, tasks: Sequence[int]) -> Tensor:
        found: Tensor = self._rule(gramian)
        return found / len(tasks) if self._sums else found


@dataclass(frozen=True, kw_only=True)
class PCGrad(OfTorchjd):
    """Gradients are projected off those that they conflict with, in random order."""

    name = "pcgrad"
    source = "Yu et al. 2020, arXiv:2001.06782, algorithm 1; torchjd PCGradWeighting"
    sums = True

    def rule(self) -> Any:
        from torchjd.aggregation import PCGradWeighting

        return PCGradWeighting()


@dataclass(frozen=True, kw_only=True)
class MGDA(OfTorchjd):
    """The shortest convex combination of the gradients (Frank-Wolfe)."""

    name = "mgda"
    source = "Sener and Koltun 2018, arXiv:1810.04650, algorithm 2; torchjd MGDAWeighting"

    epsilon: float = 0.001
    """Frank-Wolfe ends below this step size."""
    max_iters: int = 100

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.max_iters < 1:
            raise RequestError(f"mgda needs epsilon > 0 and max_iters >= 1, got {self.epsilon} and {self.max_iters}.")

    def rule(self) -> Any:
        from torchjd.aggregation import MGDAWeighting

        return MGDAWeighting(epsilon=self.epsilon, max_iters=self.max_iters)


@dataclass(frozen=True, kw_only=True)
class IMTLG(OfTorchjd):
    """The combination with equal projections on all gradients."""

    name = "imtl_g"
    source = "Liu et al. 2021, Towards Impartial Multi-task Learning, ICLR; torchjd IMTLGWeighting"

    def rule(self) -> Any:
        from torchjd.aggregation import IMTLGWeighting

        return IMTLGWeighting()


@dataclass(frozen=True, kw_only=True)
class AlignedMTL(OfTorchjd):
    """Principal components of the gradients are scaled alike."""

    name = "aligned_mtl"
    source = "Senushkin et al. 2023, arXiv:2305.19000; torchjd AlignedMTLWeighting"

    scale: Literal["min", "median", "rmse"] = "min"
    """Which singular value the gradients are scaled to."""

    def rule(self) -> Any:
        from torchjd.aggregation import AlignedMTLWeighting

        return AlignedMTLWeighting(scale_mode=self.scale)


@dataclass(frozen=True, kw_only=True)
class UPGrad(OfTorchjd):
    """Each gradient is projected onto the cone that conflicts with none; their mean."""

    name = "upgrad"
    source = "Quinton and Rey 2024, arXiv:2406.16232; torchjd UPGradWeighting"
    needs = ("qpsolvers", "quadprog")

    def rule(self) -> Any:
        from torchjd.aggregation import UPGradWeighting

        return UPGradWeighting()


@dataclass(frozen=True, kw_only=True)
class CAGrad(OfTorchjd):
    """Near the mean gradient, the direction with the best worst decrease of a task's loss."""

    name = "cagrad"
    source = "Liu et al. 2021, arXiv:2110.14048, algorithm 1; torchjd CAGradWeighting"
    needs = ("cvxpy", "clarabel")

    c: float = 0.4
    """Radius of the ball around the mean gradient, in its norms; 0.4 in the official code."""

    def __post_init__(self) -> None:
        if self.c < 0:
            raise RequestError(f"cagrad: c must be at least 0, got {self.c}.")

    def rule(self) -> Any:
        from torchjd.aggregation import CAGradWeighting

        return CAGradWeighting(c=self.c)


@dataclass(frozen=True, kw_only=True)
class NashMTL(OfTorchjd):
    """The Nash bargaining solution: each task's gain counts by its logarithm."""

    name = "nash_mtl"
    source = "Navon et al. 2022, arXiv:2202.01017, algorithm 1; torchjd NashMTL"
    needs = ("cvxpy", "ecos")

    max_norm: float = 1.0
    """Most norm of the weighted sum; 0 does not limit it."""

    def __post_init__(self) -> None:
        if self.max_norm < 0:
            raise RequestError(f"nash_mtl: max_norm must be at least 0, got {self.max_norm}.")

    def rule(self) -> Any:
        from torchjd.aggregation import NashMTL as Rule

        return lambda tasks: Rule(n_tasks=tasks, max_norm=self.max_norm).weighting

    def start(self, tasks: int) -> GradientWeights:
        return _Nash(self.rule(), tasks)


class _Nash(GradientWeights):
    """Starts each step from the weights of the last one. The rule reads gradients only through their Gramian, so that
    a square root of it gives the same weights."""

    def __init__(self, rule: Any, tasks: int) -> None:
        self._rule = rule
        self._last = [1.0] * tasks

    def weights(self, gramian: Tensor, tasks: Sequence[int]) -> Tensor:
        import numpy as np
        import torch

        values, vectors = torch.linalg.eigh(gramian)
        rule = self._rule(len(tasks))
        rule.prvs_alpha = np.array([self._last[task] for task in tasks])
        found: Tensor = rule(vectors * values.clamp(min=0).sqrt())
        for task, value in zip(tasks, rule.prvs_alpha, strict=True):
            self._last[task] = float(value)
        return found

    def state_dict(self) -> Mapping[str, Any]:
        return {"last": list(self._last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last = list(state["last"])


@dataclass(frozen=True, kw_only=True)
class GradVac(Balancer):
    """Cosines between gradients are raised to their moving means, in random order."""

    name = "gradvac"
    source = "Wang et al. 2021, arXiv:2010.05874; as torchjd GradVacWeighting where every step has all tasks"

    beta: float = 0.5
    """Weight of a step's cosines in their moving mean."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise RequestError(f"gradvac: beta must be in [0, 1], got {self.beta}.")

    def start(self, tasks: int) -> GradientWeights:
        return _Vaccine(tasks, self.beta)


class _Vaccine(GradientWeights):
    """Torchjd forgets its moving mean whenever the number of tasks in a step changes; here pairs that are not in a step
    keep theirs, as steps that are draws of a mixture need."""

    def __init__(self, tasks: int, beta: float) -> None:
        import torch

        self._targets, self._beta = torch.zeros(tasks, tasks, dtype=torch.float64), beta

    def weights(self, gramian: Tensor, tasks: Sequence[int]) -> Tensor:
        import torch

        count, small = len(tasks), 1e-8
        parts = torch.eye(count, dtype=gramian.dtype)
        norms = gramian.diagonal().clamp(min=0).sqrt()
        for i in range(count):
            products = gramian[i].clone()
            others = [j for j in range(count) if j != i]
            for j in (others[at] for at in torch.randperm(len(others)).tolist()):
                norm = (products @ parts[i]).clamp(min=0).sqrt()
                cosine = products[j] / (norm * norms[j] + small)
                target = self._targets[tasks[i], tasks[j]].clone()
                if cosine < target:
                    sines = ((1 - value**2).clamp(min=0).sqrt() for value in (cosine, target))
                    of_cosine, of_target = sines
                    more = norm * (target * of_cosine - cosine * of_target) / (norms[j] * of_target + small)
                    parts[i, j] += more
                    products += more * gramian[j]
                self._targets[tasks[i], tasks[j]] = (1 - self._beta) * target + self._beta * cosine
        return parts.sum(0) / count

    def state_dict(self) -> Mapping[str, Any]:
        return {"targets": self._targets.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._targets = state["targets"].clone()


@hookimpl
def mtlbench_balancers() -> Iterable[type[Balancer]]:
    return [MeanGradient, PCGrad, MGDA, IMTLG, AlignedMTL, UPGrad, CAGrad, NashMTL, GradVac]
