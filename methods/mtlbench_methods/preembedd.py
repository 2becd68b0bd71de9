"""PreEmbedd: the prefix baseline of the PEML paper, an embedding and an output layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.prefix_method import PrefixMethod
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch


WIDEST = 1024


@dataclass(frozen=True, kw_only=True)
class PreEmbedd(PrefixMethod):
    """PrefixNAS without its searched layers: 20 prefix tokens, learning rate 1e-3, as the paper states."""

    name: ClassVar[str] = "preembedd"
    source: ClassVar[str] = "PEML, arXiv:2605.14055, section 7.1: baseline PreEmbedd; no public code is known"

    size_field: ClassVar[str] = "width"

    learning_rate: float | None = 1e-3
    width: int | None = None
    """Width of the embedding; ``None`` is the backbone's hidden size, at most 1024."""

    def __post_init__(self) -> None:
        self.check_prefix()
        holds = self.width is None or self.width >= 1
        check(self, "width", holds=holds, allowed="none or a whole number of at least 1")

    def encoder(self, slots: nn.PrefixSlots, hidden: int, setup: Setup, draw: torch.Generator) -> torch.nn.Module:

        width = self.width or min(WIDEST, hidden)
        return nn.PrefixNAS(shape=slots.shape, length=self.prefix_length, width=width, layers=0, draw=draw)


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [PreEmbedd]
