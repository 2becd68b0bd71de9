"""What methods that train a key/value prefix share: where it goes, what is left of it, its export."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, nn
from mtlbench.errors import PluginError
from mtlbench_methods.settings import check

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PrefixMethod(Method):
    """A prefix before the keys and values of every self-attention layer, made by a trained encoder."""

    adapts: ClassVar[str] = "attention"

    prefix_length: int = 20
    where: str = "dec"
    """Where the prefix goes: ``enc``, ``dec`` (self-attention) and ``cross``, joined by ``+``. The decoder alone fits
    the 2 to 8 % of parameters of the PEML paper; a decoder-only backbone has no other place."""
    bias: str = "relative"
    """Position bias of the decoder's prefix in T5: ``relative``, as memory slots before the first token, or ``zero``.
    """

    @property
    def size_field(self) -> str | None:
        return "prefix_length"

    @property
    def identity_at_start(self) -> bool:
        """A prefix takes attention from the first step on, even one of zeros."""
        return False

    @abstractmethod
    def encoder(self, slots: nn.PrefixSlots, hidden: int, setup: Setup, draw: torch.Generator) -> torch.nn.Module:
        """A module that gives the prefix as ``slots`` takes it; its ``static()`` gives a constant one."""

    @property
    def last(self) -> int | None:
        """How many layers at the end of each place have a prefix; ``None`` for all."""
        return None

    def check_prefix(self) -> None:
        """Check the settings that every prefix has."""
        check(self, "prefix_length", holds=self.prefix_length >= 1, allowed="a whole number of at least 1")
        places = self.where.split("+")
        known = set(places) <= {"enc", "dec", "cross"} and len(set(places)) == len(places)
        check(self, "where", holds=known, allowed="enc, dec and cross joined by '+'")
        check(self, "bias", holds=self.bias in ("relative", "zero"), allowed="relative or zero")

    def refuse(self, setup: Setup) -> str | None:
        if self.prefix_length >= setup.max_length:
            return (
                f"prefix_length={self.prefix_length} is not below max_length={setup.max_length}: the prefix would "
                "outweigh every row. Take a shorter prefix or a larger max_length."
            )
        return None

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:

        slots = nn.attach_prefix(model, where=self.where, bias=self.bias, last=self.last)
        encoder = self.encoder(slots, slots.hidden_size, setup, nn.seeded_generator(setup.seed, "prefix"))
        slots.feed(encoder.to(next(model.parameters()).device))

    def finish(self, model: torch.nn.Module) -> None:
        """Replace the encoder by the prefix it makes."""
        slots_of(model).feed(encoder_of(model).static())

    def switch(self, model: torch.nn.Module, *, on: bool) -> None:
        """Without its prefix the model is the stock one."""
        slots_of(model).on = on

    def export(self, model: torch.nn.Module, folder: Path, *, task: int | None = None) -> None:
        """A peft PrefixTuning checkpoint."""
        encoder = encoder_of(model)
        kv = (encoder.static() if hasattr(encoder, "static") else encoder).kv
        if self.task_routed:
            if task is None:
                raise PluginError(f"{self.name} has a prefix for each task: choose the task to export.")
            kv = kv[:, :, task]
        nn.export_prefix(model, kv, folder)


def slots_of(model: torch.nn.Module) -> nn.PrefixSlots:
    """The places of an attached prefix."""
    return nn.get_module(model, nn.PrefixSlots)


def encoder_of(model: torch.nn.Module) -> Any:
    """What makes the prefix: the encoder, or the static prefix after :meth:`PrefixMethod.finish`."""
    return slots_of(model).source
