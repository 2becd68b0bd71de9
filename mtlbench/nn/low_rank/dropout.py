"""Dropout masks that are drawn again in the backward instead of kept."""

from __future__ import annotations

import torch
from torch import Tensor


def dropout_seed() -> int:
    """A seed for :func:`dropout_mask` from the processor's global generator: gradient checkpointing replays it.

    No device waits for it.
    """
    return int(torch.randint(2**62, ()))


def dropout_mask(x: Tensor, *, dropout: float, seed: int) -> Tensor:
    """Ones where an element of ``x`` is kept and zeros where it is dropped, in the shape and dtype of ``x``.

    The same seed gives the same mask. Four 16-bit numbers come from one draw of 64 bits, which costs a seventh of
    ``bernoulli_`` on a processor; the chance is thus rounded to a multiple of 2^-16.
    """
    count = x.numel()
    source = torch.Generator(x.device).manual_seed(seed)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device)
    bits.random_(-(2**63), None, generator=source)
    numbers = bits.view(torch.int16)[:count].view(x.shape)
    # written as numbers of x's dtype at once: products with a boolean mask are four times slower
    return torch.ge(numbers, round(dropout * 2**16) - 2**15, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
