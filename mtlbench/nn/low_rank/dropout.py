"""Dropout masks that are drawn again in the backward instead of kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DrawnPlaces:
    """Where the tokens of a pass would stand if the rows around it were computed at once."""

    places: Mapping[int, tuple[int, Tensor]]
    """By the number of tokens that a layer sees: how many it would see then, and which of them these are."""


_drawn: list[DrawnPlaces | None] = [None]


@contextmanager
def drawn_at(places: DrawnPlaces | None) -> Iterator[None]:
    """Inside, :func:`dropout_mask` gives a pass its part of the mask of all rows, so that cuts change no draw.

    A backward belongs inside too. ``None`` draws for the pass alone.
    """
    before, _drawn[0] = _drawn[0], places
    try:
        yield
    finally:
        _drawn[0] = before


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
    width, known = x.shape[-1], _drawn[0].places if _drawn[0] is not None else {}
    tokens, index = known.get(x.numel() // width, (x.numel() // width, None))
    count = tokens * width
    source = torch.Generator(x.device).manual_seed(seed)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device)
    bits.random_(-(2**63), None, generator=source)
    numbers = bits.view(torch.int16)[:count]
    numbers = (numbers if index is None else numbers.view(tokens, width).index_select(0, index)).view(x.shape)
    # written as numbers of x's dtype at once: products with a boolean mask are four times slower
    return torch.ge(numbers, round(dropout * 2**16) - 2**15, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
