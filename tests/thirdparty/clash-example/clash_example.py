"""A method whose name is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, hookimpl

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class OtherLora(Method):
    name: ClassVar[str] = "lora"
    source: ClassVar[str] = "none"

    def attach(self, model: nn.Module, setup: Setup) -> None:
        model.requires_grad_(True)


@hookimpl
def mtlbench_methods() -> Iterable[type[Method]]:
    return [OtherLora]
