"""What the host made of a batch, on a device: in one transfer that nothing waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
ALIGNED = 16
"""Bytes at whose multiples tensors begin in a transfer."""


def to_device(value: T, device: torch.device) -> T:
    """``value`` with each tensor in it on ``device``; looks into dataclasses, tuples, lists and mappings.

    All go in one copy from pinned memory, as each copy of its own costs more than its bytes, and one from other memory
    makes the host wait. They then share that memory. On a processor ``value`` comes back as it is.
    """
    if device.type == "cpu":
        return value
    found: dict[int, Tensor] = {}
    _collect(value, found)
    if not found:
        return value
    tensors = list(found.values())
    there = in_one(tensors, pinned=device.type == "cuda").to(device, non_blocking=True)
    moved: Any = _replaced(value, dict(zip(found, parts_of(there, tensors), strict=True)))
    return moved  # type: ignore[no-any-return]


def in_one(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """The bytes of all ``tensors``, one after another."""
    starts = _starts(tensors)
    whole = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
    for tensor, start in zip(tensors, starts, strict=False):
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        whole[start : start + len(flat)] = flat
    return whole


def parts_of(whole: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that :func:`in_one` joined, as parts of ``whole``."""
    starts = _starts(like)
    return [
        whole[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        for tensor, start in zip(like, starts, strict=False)
    ]


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED)
    return starts


def _collect(value: Any, found: dict[int, Tensor]) -> None:
    if isinstance(value, Tensor):
        found[id(value)] = value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            _collect(getattr(value, field.name), found)
    elif isinstance(value, Mapping):
        for inner in value.values():
            _collect(inner, found)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            _collect(inner, found)


def _replaced(value: Any, moved: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return moved[id(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _replaced(getattr(value, field.name), moved) for field in fields(value)})
    if isinstance(value, Mapping):
        return {key: _replaced(inner, moved) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_replaced(inner, moved) for inner in value)
    if isinstance(value, list):
        return [_replaced(inner, moved) for inner in value]
    return value
