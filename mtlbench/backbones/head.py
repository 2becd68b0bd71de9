"""Logits at selected positions only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def logits_at(model: nn.Module, index: Tensor) -> Iterator[None]:
    """Inside, a forward of ``model`` returns logits ``[positions, vocab]`` instead of ``[rows, length, vocab]``.

    ``index [positions]`` (int64, on the model's device) indexes the flattened ``[rows * length]`` decoder input. The
    output projection is computed for these hidden states only, in backward too. Do not pass ``labels``.

    Raises:
        RuntimeError: the model has no output projection.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise RuntimeError(f"{type(model).__name__} has no output embeddings, so it has no token logits")

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, index), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
