"""Merging where a second copy of the backbone does not fit, and its undoing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlbench.backbones.machine import available_memory, free_memory, is_out_of_memory
from mtlbench.nn.attachments import find_state
from mtlbench.nn.linears import replace_module

Merge = Callable[[Any], nn.Linear]
"""The layer as a plain linear with a new weight."""
NOTES = {
    "in place": "memory ran out: into the frozen weights, which waited on the host",
    "unmerged": "memory ran out: scored without merging",
}


@dataclass(frozen=True)
class _Merged:
    name: str
    layer: nn.Module
    make: Merge


@dataclass(eq=False)
class Merging:
    """How the layers of a model are merged; kept with the model as a state.

    A merged layer has a new weight, because the frozen one belongs to later cells too. Where memory runs out for these
    copies, merged weights take the place of the frozen ones, which wait on the host for :meth:`undo`; where the host
    has no room either, or is the device, layers stay unmerged. The function of the model is the same in each case.
    """

    how: Literal["copies", "in place", "unmerged"] = "copies"
    other_device: bool | None = None
    """Whether the host is another device than that of the weights; ``None`` asks the weights."""
    _merged: list[_Merged] = field(default_factory=list)
    _frozen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Weights of the backbone that hold merged ones now, and what they were."""

    @property
    def note(self) -> str | None:
        """What the record says; ``None`` where there was room for copies."""
        return NOTES.get(self.how)

    @property
    def merged(self) -> bool:
        """Whether anything was."""
        return bool(self._merged)

    def merge(self, model: nn.Module, name: str, layer: nn.Module, make: Merge) -> None:
        """Put the merged layer in the place of ``layer``, which has its frozen linear as ``base``."""
        if self.how == "copies":
            try:
                self._put(model, _Merged(name, layer, make), make(layer))
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.make_room(model)
        if self.how == "in place":
            try:
                self._into_frozen(model, _Merged(name, layer, make))
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.undo(model)
            self.how = "unmerged"

    def make_room(self, model: nn.Module) -> bool:
        """Do without copies from here on, in layers merged before too; ``False`` where that is so already."""
        if self.how != "copies":
            return False
        merged = list(self._merged)
        self.undo(model)
        device = next(model.parameters()).device
        free_memory(device)
        apart = device.type != "cpu" if self.other_device is None else self.other_device
        room = available_memory()
        fits = room is None or sum(p.nbytes for p in model.parameters()) < room
        self.how = "in place" if apart and fits else "unmerged"
        for one in merged:
            self.merge(model, one.name, one.layer, one.make)
        return True

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Unmerge every layer; the frozen weights are bitwise what they were."""
        while self._frozen:
            weight, frozen = self._frozen[-1]
            weight.copy_(frozen)
            self._frozen.pop()
        for one in self._merged:
            replace_module(model, one.name, one.layer)
        self._merged.clear()

    def _put(self, model: nn.Module, one: _Merged, linear: nn.Linear) -> None:
        replace_module(model, one.name, linear)
        self._merged.append(one)

    @torch.no_grad()
    def _into_frozen(self, model: nn.Module, one: _Merged) -> None:
        layer: Any = one.layer
        weight: Tensor = layer.base.weight
        linear = one.make(layer)
        if not _shared(model, weight):
            self._frozen.append((weight, weight.detach().to("cpu", copy=True)))
            weight.copy_(linear.weight)
            linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self._put(model, one, linear)


def merge_layers(model: nn.Module, layers: Sequence[tuple[str, nn.Module]], make: Merge) -> None:
    """Put ``make(layer)`` in the place of every named layer: as the :class:`Merging` kept with ``model`` says, or with
    new weights."""
    merging = find_state(model, Merging)
    for name, layer in layers:
        if merging is None:
            replace_module(model, name, make(layer))
        else:
            merging.merge(model, name, layer, make)


def _shared(model: nn.Module, weight: Tensor) -> bool:
    """Whether several modules have this weight, tied or one module in several places."""
    users = Counter(p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    return users[weight.data_ptr()] > 1
