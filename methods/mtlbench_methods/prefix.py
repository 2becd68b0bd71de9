"""Prefix tuning: trained keys and values before those of every self-attention layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mtlbench import Method, Setup, hookimpl, nn
from mtlbench_methods.prefix_method import PrefixMethod
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Prefix(PrefixMethod):
    """The prefix as parameters, or made by a small network that is dropped after training (``reparam=mlp``)."""

    name: ClassVar[str] = "prefix"
    source: ClassVar[str] = "Li & Liang 2021, arXiv:2101.00190, eq. 3 and section 4.3; injection without position shift"

    reparam: str = "none"
    """``none`` or ``mlp``."""
    hidden: int = 512
    """Width of the network with ``reparam=mlp``; its embeddings are as wide as the backbone."""

    def __post_init__(self) -> None:
        self.check_prefix()
        check(self, "reparam", holds=self.reparam in ("none", "mlp"), allowed="none or mlp")
        check(self, "hidden", holds=self.hidden >= 1, allowed="a whole number of at least 1")

    @property
    def size_field(self) -> str:
        return "prefix_length" if self.reparam == "none" else "hidden"

    def encoder(self, slots: nn.PrefixSlots, hidden: int, setup: Setup, draw: torch.Generator) -> torch.nn.Module:

        if self.reparam == "none":
            return nn.DirectPrefix(shape=slots.shape, length=self.prefix_length, draw=draw)
        return nn.ReparameterisedPrefix(
            shape=slots.shape, length=self.prefix_length, width=hidden, hidden=self.hidden, draw=draw
        )


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Prefix]
