"""The last decoder layer, computed only where answers are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

PARTS = ("self_attn.o_proj", "mlp")
"""What the last layer computes for each position by itself."""


@contextmanager
def narrow_tail(model: nn.Module, window: Tensor | None) -> Iterator[None]:
    """Inside, a forward of a decoder-only ``model`` computes :data:`PARTS` of its last layer in ``window`` only.

    Nothing reads the other positions after the last attention but the output projection, which is asked for answers
    alone. They keep the residual stream without what the parts would add, and get exact zero gradients from them.
    The backward belongs inside too, as layers may be computed again there.

    Args:
        window: The same number of different positions of each row, flat in ``[rows * length]``: ``[rows, width]``;
            ``None`` computes all.
    """
    if window is None:
        yield
        return
    with ExitStack() as stack:
        for part in _parts(model):
            stack.enter_context(_narrowed(part, window))
        yield


@contextmanager
def _narrowed(part: nn.Module, window: Tensor) -> Iterator[None]:
    rows, width = window.shape
    flat = window.reshape(-1)
    length = 0

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal length
        hidden = args[0]
        length = hidden.shape[1]
        return (hidden.reshape(rows * length, -1).index_select(0, flat).view(rows, width, -1), *args[1:])

    def scatter(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        wide = output.new_zeros(rows * length, output.shape[-1])
        return wide.index_copy(0, flat, output.reshape(rows * width, -1)).view(rows, length, -1)

    handles = (part.register_forward_pre_hook(gather), part.register_forward_hook(scatter))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: nn.Module) -> list[nn.Module]:
    """Those of the last layer, or none where the backbone is not built of such layers."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return []
    try:
        return [layers[-1].get_submodule(name) for name in PARTS]
    except AttributeError:
        return []
