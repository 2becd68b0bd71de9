"""``scaled_rows``: every projection gets one learned scale per task and output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, hookimpl
from mtlbench.errors import RequestError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ScaledRows(Method):
    """``y = base(x) * (1 + strength * s[task])`` with ``s`` zero at the start."""

    name: ClassVar[str] = "scaled_rows"
    source: ClassVar[str] = "this package; one IA3 vector (arXiv:2205.05638, section 3.3) per task on every projection"
    task_routed: ClassVar[bool] = True
    strength: float = 4.0
    """How strongly a step of the optimizer moves the scale."""

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise RequestError(f"scaled_rows: strength must be above 0, got {self.strength}.")

    def attach(self, model: nn.Module, setup: Setup) -> None:
        import torch  # here and not at the top, so that listing and planning never load torch

        class Scaled(torch.nn.Module):
            def __init__(self, base: nn.Linear, strength: float) -> None:
                super().__init__()
                self.base, self.strength = base, strength
                # All tasks in one tensor: no loop over tasks, and no parameter that a batch leaves unused.
                self.scales = torch.nn.Parameter(
                    torch.zeros(len(setup.tasks), len(base.weight), device=base.weight.device)
                )

            weight = property(lambda self: self.base.weight)  # models read these two from their projections
            bias = property(lambda self: self.base.bias)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y: torch.Tensor = self.base(x)  # [rows, length, out]
                scale = 1 + self.strength * self.scales[setup.routing.ids(len(x))]
                return y * scale.to(y.dtype).unsqueeze(1)

        for name in setup.target_modules:
            parent, _, child = name.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, child, Scaled(getattr(owner, child), self.strength))


@hookimpl
def mtlbench_methods() -> Iterable[type[Method]]:
    return [ScaledRows]
