"""Whether any weight of a model was written to, without moving the weights off their device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CHUNK = 2**22
_PERIOD = 8191
"""Weights of the second sum repeat after this prime: swapped elements do not cancel."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Checksum:
    """Two sums over the bits of every parameter and buffer; one changed bit changes the first, a swap the second."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sums = _sums(model)

    def holds(self) -> bool:
        """Whether the model still has the bits it had."""
        return torch.equal(self.sums, _sums(self.model))


@torch.no_grad()
def _sums(model: nn.Module) -> Tensor:
    """``[tensors, 2]`` int64, on the processor: one copy for all."""
    sums = [_of(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    return torch.stack(sums).cpu() if sums else torch.empty(0, 2, dtype=torch.int64)


def _of(tensor: Tensor) -> Tensor:
    words = tensor.detach().contiguous().reshape(-1).view(_WORDS[tensor.element_size()])
    place = torch.arange(min(_CHUNK, len(words)), device=words.device) % _PERIOD + 1
    total = torch.zeros(2, dtype=torch.int64, device=words.device)
    for number, chunk in enumerate(torch.split(words, _CHUNK)):
        wide = chunk.to(torch.int64)
        total += torch.stack([wide.sum(), (number + 1) * (wide * place[: len(wide)]).sum()])
    return total
