"""Bottleneck adapters of which each row takes that of its task."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.api.routing import Routing

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "swish": F.silu,
}


class AdapterBank(NamedTuple):
    """The weights of one place for all tasks, or one for all where ``tasks`` is 1."""

    down: Tensor
    """``[tasks, bottleneck, width]``."""
    down_bias: Tensor
    """``[tasks, bottleneck]``."""
    up: Tensor
    """``[tasks, width, bottleneck]``."""
    up_bias: Tensor
    """``[tasks, width]``."""
    norm_weight: Tensor | None = None
    """Of a layer norm on what the adapter adds ``[tasks, width]``."""
    norm_bias: Tensor | None = None


def adapter_forward(x: Tensor, bank: AdapterBank, routing: Routing, activation: str) -> Tensor:
    """``x + norm(U act(D x + b_D) + b_U)`` with the weights of each row's task.

    Args:
        x: ``[rows, length, width]``; the result is in its dtype.
        routing: Asked for the rows' tasks where there is more than one adapter.
    """
    if len(bank.down) > 1:
        tasks = routing.ids(x.shape[0])
        # cast later, so that gradients of the rows are summed in the bank's own type
        bank = AdapterBank(*(None if p is None else p.index_select(0, tasks) for p in bank))  # type: ignore[arg-type]
    down, down_bias, up, up_bias, weight, bias = bank
    with torch.autocast(x.device.type, enabled=False):
        hidden = _product(x, down, down_bias)
        y = _product(ACTIVATIONS[activation](hidden), up, up_bias)
        if weight is not None:
            assert bias is not None
            y = F.layer_norm(y.to(weight.dtype), y.shape[-1:]) * weight[:, None] + bias[:, None]
    return x + y.to(x.dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.matmul(x, weight.to(x.dtype).transpose(1, 2)) + bias.to(x.dtype)[:, None]


class Adapter(nn.Module):
    """An adapter with weights of its own for each task."""

    def __init__(self, bank: AdapterBank, activation: str, *, trains: bool = True) -> None:
        super().__init__()
        self.activation = activation
        for name, value in bank._asdict().items():
            if trains and value is not None:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @property
    def bank(self) -> AdapterBank:
        return AdapterBank(*(getattr(self, name) for name in AdapterBank._fields))

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """``x [rows, length, width]`` and what the adapter of each row's task adds."""
        return adapter_forward(x, self.bank, routing, self.activation)
