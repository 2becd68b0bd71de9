"""Layers that get the tokens of their rows in another shape than ``[rows, length, width]``.

Some backbones call a linear with all tokens in one line (OPT, the shared expert of a mixture), some with one more
dimension (latent attention). What is put in the place of such a linear works on rows: the numbered layer around it
knows how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mtlbench.nn.attachments import attach_state, find_state


class LayerRows:
    """Rows and their length as a numbered layer of the backbone, or its mixture of experts, reads them now."""

    shape: tuple[int, int] | None = None

    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward-pre-hook of the layer."""
        x = args[0] if args else kwargs.get("hidden_states")
        self.shape = (x.shape[0], x.shape[1]) if isinstance(x, Tensor) and x.dim() == 3 else None


def watch_rows(model: nn.Module, name: str, module: nn.Module) -> None:
    """Let ``module``, which stands at ``name``, know the rows of the numbered layer that it is in, if it is in one."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return
    above = [model.get_submodule(".".join(parts[:end])) for end in range(at + 1, len(parts))]
    layer, blocks = above[0], [block for block in above[1:] if hasattr(block, "experts")]
    rows = find_state(layer, LayerRows) or LayerRows()
    for block in (layer, *blocks):
        if find_state(block, LayerRows) is None:
            attach_state(block, rows)
            block.register_forward_pre_hook(rows.enter, with_kwargs=True)
    attach_state(module, rows)


def in_rows(module: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """``run`` on ``x`` as ``[rows, length, width]``, its output in the shape that ``x`` came in.

    Raises:
        RuntimeError: the tokens are not those of the layer's rows, as when a router chose among them.
    """
    rows = x
    if x.dim() > 3:
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
    elif x.dim() == 2:
        known = find_state(module, LayerRows)
        shape = None if known is None else known.shape
        if shape is None or shape[0] * shape[1] != x.shape[0]:
            raise RuntimeError(
                f"{x.shape[0]} tokens reached a {type(module).__name__}, which are not those of its rows"
            )
        rows = x.view(*shape, x.shape[-1])
    y = run(rows)
    return y.reshape(*x.shape[:-1], y.shape[-1])
