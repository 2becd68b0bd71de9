"""Where the slots of a soft prompt stand in a row, and what masks and outputs look like with them.

The slots stand before the first token that is not padding, so a row is the same wherever its padding is, also for
backbones that read positions off the place in a row (T5's family).
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_before(mask: Tensor) -> Tensor:
    """How much padding each row begins with ``[rows]``, from its mask ``[rows, length]``."""
    return (mask.cumsum(1) == 0).sum(1)


def joined(slots: Tensor, tokens: Tensor, before: Tensor | None) -> Tensor:
    """``slots [rows, slots, ...]`` and ``tokens [rows, length, ...]`` in one row ``[rows, slots + length, ...]``.

    Args:
        before: Tokens that stay before the slots ``[rows]``; ``None`` for none.
    """
    whole = torch.cat([slots, tokens], dim=1)
    if before is None:
        return whole
    count, at, start = slots.shape[1], torch.arange(whole.shape[1], device=whole.device), before[:, None]
    return _taken(whole, torch.where(at < start, at + count, torch.where(at < start + count, at - start, at)))


def token_places(length: int, *, slots: int, before: Tensor | None, device: torch.device) -> Tensor:
    """Where the tokens stand in joined rows ``[1 or rows, length]``."""
    at = torch.arange(length, device=device)[None]
    return at + slots if before is None else at + slots * (at >= before[:, None])


def tokens_of(whole: Tensor, *, slots: int, before: Tensor | None) -> Tensor:
    """Joined rows ``[rows, slots + length, ...]`` without the slots."""
    if before is None:
        return whole[:, slots:]
    length = whole.shape[1] - slots
    return _taken(whole, token_places(length, slots=slots, before=before, device=whole.device))


def behind(mask: Tensor, slots: int) -> Tensor:
    """The mask of tokens whose slots were read before them: all tokens see the slots.

    Args:
        mask: Booleans, or what is added to the scores ``[rows, 1, queries, keys]``.

    Returns:
        ``[rows, 1, queries, slots + keys]``.
    """
    seen = torch.ones(*mask.shape[:3], slots, dtype=torch.bool, device=mask.device)
    return torch.cat([_like(seen, mask), mask], dim=3)


def among(mask: Tensor, slots: int) -> Tensor:
    """The mask of causal slots and the tokens behind them ``[rows, 1, slots + queries, slots + keys]``."""
    lower = behind(mask, slots)
    at, keys = torch.arange(slots, device=mask.device), torch.arange(lower.shape[3], device=mask.device)
    upper = (keys <= at[:, None]).expand(*mask.shape[:2], -1, -1)
    return torch.cat([_like(upper, mask), lower], dim=2)


def _like(allowed: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return allowed
    return mask.new_zeros(allowed.shape).masked_fill(~allowed, torch.finfo(mask.dtype).min)


def _taken(whole: Tensor, places: Tensor) -> Tensor:
    index = places.reshape(*places.shape, *(1,) * (whole.dim() - 2))
    return whole.gather(1, index.expand(*places.shape, *whole.shape[2:]))
