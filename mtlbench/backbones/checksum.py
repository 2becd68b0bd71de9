"""Detects whether a weight of a model has changed, without moving the weights off their device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mtlbench.backbones.quantized import stored_tensors

_CHUNK = 2**18
"""Elements at once. With 16 times as many, what the allocator keeps of the temporaries was a gigabyte at 135 million
parameters."""
_PERIOD = 8191
"""Period of the coefficients of the second sum, a prime, so that swapped elements are detected."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Checksum:
    """Two sums over the bits of every parameter and buffer, quantised ones as they are stored: a changed bit changes
    the first, a swap the second."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sums = _sums(model)

    def holds(self) -> bool:
        """Whether no bit of the model has changed."""
        return torch.equal(self.sums, _sums(self.model))


@torch.no_grad()
def sums_by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two sums ``[2]`` of each tensor, on the CPU: what tells whether it changed, without a copy of it."""
    if not tensors:
        return {}
    sums = torch.stack([_of(tensor) for tensor in tensors.values()]).cpu()
    return dict(zip(tensors, sums, strict=True))


@torch.no_grad()
def _sums(model: nn.Module) -> Tensor:
    """``[tensors, 2]`` int64 on the CPU, transferred in one copy."""
    sums = [_of(tensor) for _, tensor in stored_tensors(model)]
    return torch.stack(sums).cpu() if sums else torch.empty(0, 2, dtype=torch.int64)


def _of(tensor: Tensor) -> Tensor:
    integers = tensor.detach().contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
    coefficients = torch.arange(min(_CHUNK, len(integers)), device=integers.device) % _PERIOD + 1
    total = torch.zeros(2, dtype=torch.int64, device=integers.device)
    for number, chunk in enumerate(torch.split(integers, _CHUNK)):
        wide = chunk.to(torch.int64)
        total += torch.stack([wide.sum(), (number + 1) * (wide * coefficients[: len(wide)]).sum()])
    return total
