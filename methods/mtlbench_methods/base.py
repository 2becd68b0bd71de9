"""The frozen backbone without training: what every other method is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Trainer, Value, hookimpl

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Base(Method):
    """No adaptation at all."""

    name: ClassVar[str] = "base"
    source: ClassVar[str] = "the frozen backbone"
    composable: ClassVar[bool] = False

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        """Add nothing."""

    def fit(self, model: torch.nn.Module, trainer: Trainer) -> None:
        """Train nothing."""

    def search_space(self, trial: Any) -> Mapping[str, Value]:
        """Nothing to tune."""
        return {}


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Base]
