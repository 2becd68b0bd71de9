"""Small methods that keep every promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtlbench import Method, Setup
from mtlbench.nn.linears import replace_module
from mtlbench.nn.parameters import kaiming_uniform, seeded_generator

RANK = 2


class Shared(nn.Module):
    """``base(x) + up(down(x))``, the same for all tasks."""

    up_shape: ClassVar[tuple[str, ...]] = ("out", "rank")

    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__()
        sizes = {"tasks": len(setup.tasks), "out": base.out_features, "rank": RANK}
        self.base, self.routing = base, setup.routing
        self.down = nn.Parameter(
            kaiming_uniform((RANK, base.in_features), base.in_features, seeded_generator(setup.seed, name))
        )
        self.up = nn.Parameter(torch.zeros([sizes[word] for word in self.up_shape]))

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.term(x)

    def term(self, x: Tensor) -> Tensor:
        return x @ self.down.T @ self.ups(x).mT

    def ups(self, x: Tensor) -> Tensor:
        """``[out, rank]``, or ``[rows, out, rank]``."""
        return self.up


class PerTask(Shared):
    """One up-projection per task."""

    up_shape = ("tasks", "out", "rank")

    def ups(self, x: Tensor) -> Tensor:
        return self.up[self.ids(x)]

    def ids(self, x: Tensor) -> Tensor:
        return self.routing.ids(len(x))


@dataclass(frozen=True, kw_only=True)
class Honest(Method):
    """A low-rank update, merged at the end."""

    name: ClassVar[str] = "toy"
    source: ClassVar[str] = "these tests"
    layer: ClassVar[type[Shared]] = Shared

    def attach(self, model: nn.Module, setup: Setup) -> None:
        for name in setup.target_modules[::2]:
            replace_module(model, name, self.layer(model.get_submodule(name), setup, name))

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, Shared) and not isinstance(module, PerTask):
                merged = nn.Linear(*module.weight.T.shape, bias=False)
                merged.weight = nn.Parameter(module.weight + module.up @ module.down, requires_grad=False)
                replace_module(model, name, merged)


@dataclass(frozen=True, kw_only=True)
class HonestRouted(Honest):
    layer: ClassVar[type[Shared]] = PerTask
    task_routed: ClassVar[bool] = True


class OtherLayout(PerTask):
    """One table with a block of rows per task, in the middle dimension."""

    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        self.up = nn.Parameter(torch.zeros(base.out_features, len(setup.tasks) * RANK))

    def ups(self, x: Tensor) -> Tensor:
        return self.up.unflatten(1, (-1, RANK)).movedim(1, 0)[self.ids(x)]


class OneEach(PerTask):
    """A parameter of its own for every task."""

    def __init__(self, base: nn.Linear, setup: Setup, name: str) -> None:
        super().__init__(base, setup, name)
        del self.up
        self.up = nn.ParameterList([torch.zeros(base.out_features, RANK) for _ in setup.tasks])

    def ups(self, x: Tensor) -> Tensor:
        return torch.stack([self.up[t] for t in self.ids(x).tolist()])


class Noisy(Shared):
    """Dropout from the global random state, as it should be."""

    def term(self, x: Tensor) -> Tensor:
        return super().term(nn.functional.dropout(x, 0.5, self.training))


def toy(layer: type[Shared] = Shared, **members: Any) -> Honest:
    """A method with this layer that is honest but for its ``members``."""
    parent = HonestRouted if issubclass(layer, PerTask) else Honest
    made = type(f"With{layer.__name__}", (parent,), {"layer": layer, **members})
    return dataclass(frozen=True, kw_only=True)(made)()
