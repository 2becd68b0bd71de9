"""Nested state as plain JSON and a flat dictionary of tensors, and back. No code is ever read from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """``state`` as JSON, and its tensors by name, as copies on the host.

    Args:
        state: Dictionaries with words or whole numbers as keys, lists, tuples (they come back as lists), tensors,
            words, numbers, truth values and ``None``, nested.

    Raises:
        TypeError: when something else is in it.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, at: str) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, Tensor):
            tensors[at] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            return {"tensor": at}
        if isinstance(value, (int, float)):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Mapping):
            wrong = [key for key in value if isinstance(key, bool) or not isinstance(key, (str, int))]
            if wrong:
                raise TypeError(f"{at or 'the state'} has the key {wrong[0]!r}; keys are words or whole numbers")
            return {"items": [[key, walk(inner, f"{at}/{key}")] for key, inner in value.items()]}
        if isinstance(value, (list, tuple)):
            return [walk(inner, f"{at}/{number}") for number, inner in enumerate(value)]
        raise TypeError(
            f"{at or 'the state'} is a {type(value).__name__}; state is made of tensors, numbers, words, lists and "
            "dictionaries"
        )

    return walk(state, ""), tensors


def unpack(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`pack` was given.

    Raises:
        KeyError: when a tensor is missing.
    """
    if isinstance(plain, list):
        return [unpack(inner, tensors) for inner in plain]
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    if "float" in plain:
        return float(plain["float"])
    return {key: unpack(inner, tensors) for key, inner in plain["items"]}
