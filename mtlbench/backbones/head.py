"""Logits only where they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def picked_rows(model: nn.Module, index: Tensor) -> Iterator[None]:
    """Inside, a forward of ``model`` gives logits ``[picked, vocab]`` instead of ``[rows, length, vocab]``.

    ``index [picked]`` (int64, on the model's device) counts positions of the flattened ``[rows * length]`` decoder
    input. The output projection reads only these hidden states, in backward too. Pass no ``labels`` to the forward.

    Raises:
        RuntimeError: the model has no output projection.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise RuntimeError(f"{type(model).__name__} has no output embeddings, so it gives no token logits")

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, index), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
