"""Vectors added to what linears and norms give, for each row those of its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.compat import parameters_of
from mtlbench.nn.attachments import attach_state, find_state
from mtlbench.nn.layer_rows import in_rows
from mtlbench.nn.linears import replace_module


class TaskShift(nn.Module):
    """``y + b_t`` behind a frozen module, which keeps all its attributes at ``base``.

    Args:
        base: A linear or a norm.
        tasks: Vectors ``b_t``; with 1 all rows have the same.
        width: Of its output.
    """

    def __init__(self, base: Any, tasks: int, width: int, routing: Routing) -> None:
        super().__init__()
        self.base, self.routing = base, routing
        self.shift = nn.Parameter(torch.zeros(tasks, width, device=base.weight.device))

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.base, "bias", None)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """The output ``[rows, ..., width]``, shifted."""
        if x.dim() == 2:
            return in_rows(self, x, self.forward)
        y: Tensor = self.base(x)
        shift: Tensor = self.shift
        if len(shift) > 1:
            shift = shift.index_select(0, self.routing.ids(y.shape[0])).view(-1, *(1,) * (y.dim() - 2), y.shape[-1])
        return y + shift.to(y.dtype)


def norm_names(model: nn.Module) -> tuple[str, ...]:
    """Qualified names of the layer norms of a backbone, those of single heads and of numbered layers included."""
    return tuple(
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm") and getattr(module, "weight", None) is not None
    )


def add_task_shift(model: nn.Module, name: str, *, tasks: int, routing: Routing) -> None:
    """Put a :class:`TaskShift` around the named module."""
    base: Any = model.get_submodule(name)
    width = base.out_features if isinstance(base, nn.Linear) else base.weight.shape[-1]
    replace_module(model, name, TaskShift(base, tasks, width, routing))


@dataclass(frozen=True)
class NormDtypes:
    """Types that trained norms had in the backbone, by the names of their parameters."""

    by_name: Mapping[str, torch.dtype]


def unfreeze_norms(model: nn.Module) -> None:
    """Make the weights and biases of every layer norm trainable; the backbone's own tensors stay as they are.

    What a norm gives stays in the type that it gets, with autocast and without.
    """
    dtypes: dict[str, torch.dtype] = {}
    for path, module in model.named_modules():
        if not type(module).__name__.endswith("Norm"):
            continue
        for name, p in list(parameters_of(module).items()):
            if p is not None:
                parameters_of(module)[name] = nn.Parameter(p.detach().to(torch.float32, copy=True))
                dtypes[f"{path}.{name}"] = p.dtype
        module.register_forward_hook(_as_given)
    attach_state(model, NormDtypes(dtypes))


def restore_norm_dtypes(model: nn.Module) -> None:
    """Give them the dtypes of the backbone again."""
    known = find_state(model, NormDtypes)
    for name, dtype in known.by_name.items() if known is not None else ():
        p = model.get_parameter(name)
        p.data = p.data.to(dtype)


def _as_given(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(args[0].dtype)
