"""What the host made of a batch, on a device: in one transfer that nothing waits for."""

from __future__ import annotations

from collections.abc import Mapping
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
    sizes = [tensor.numel() * tensor.element_size() for tensor in found.values()]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // ALIGNED) * ALIGNED)
    host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, start, size in zip(found.values(), starts, sizes, strict=False):
        host[start : start + size] = tensor.contiguous().reshape(-1).view(torch.uint8)
    there = host.to(device, non_blocking=True)
    moved = {
        key: there[start : start + size].view(tensor.dtype).view(tensor.shape)
        for (key, tensor), start, size in zip(found.items(), starts, sizes, strict=False)
    }
    return _replaced(value, moved)  # type: ignore[no-any-return]


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
