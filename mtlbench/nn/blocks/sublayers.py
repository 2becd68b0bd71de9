"""Where a block's sublayers end: the linear whose output goes into the residual stream, found by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.errors import RequestError
from mtlbench.nn.linears import replace_module

BLOCKS = ("attention", "ffn")
"""Self-attention and the feed-forward block. Attention to an encoder's output is neither."""
_ENDS = {"o_proj": 0, "o": 0, "out_proj": 0, "down_proj": 1, "wo": 1, "fc2": 1}
_CROSS = ("EncDecAttention", "encoder_attn", "cross_attn")


@dataclass(frozen=True)
class Sublayer:
    """One of them."""

    name: str
    """Of the linear."""
    stack: str
    """What the numbered layers are under: ``model.layers``, ``encoder.block``, ``decoder.block``."""
    layer: int
    block: int
    """Index in :data:`BLOCKS`."""


def find_sublayers(names: Sequence[str]) -> tuple[Sublayer, ...]:
    """The ends of the sublayers among the projections ``names``, in model order.

    Raises:
        RequestError: unless every layer of a stack has one of each.
    """
    found = tuple(_sublayer(name) for name in names if _is_end(name))
    by_place = {(at.stack, at.layer, at.block) for at in found}
    stacks = {at.stack for at in found} | {layer_of(name)[0] for name in names}
    wanted = {
        (stack, layer, block)
        for stack in stacks
        for layer in {layer_of(name)[1] for name in names if layer_of(name)[0] == stack}
        for block in range(len(BLOCKS))
    }
    if by_place != wanted or len(found) != len(wanted):
        raise RequestError(
            f"An adapter stands behind the self-attention and the feed-forward block of each layer, and of this "
            f"backbone {len(found)} such places are known where {len(wanted)} are due. Known are projections named "
            f"{', '.join(_ENDS)}. Take a Llama-, Qwen-, Mistral- or T5-like backbone."
        )
    return found


class AfterLinear(nn.Module):
    """A frozen linear and a module that changes its output.

    Args:
        after: Maps the output ``[rows, length, width]`` and the routing to a tensor like it.
    """

    def __init__(self, base: nn.Linear, after: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base, self.after, self.routing = base, after, routing

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        changed: Tensor = self.after(y, self.routing)
        return changed


def insert_after(
    model: nn.Module, places: Sequence[Sublayer], make: Callable[[Sublayer, int], nn.Module], routing: Routing
) -> None:
    """Change the output of every place by ``make(place, width)``.

    Raises:
        RequestError: what stands there is no plain linear.
    """
    device = next(model.parameters()).device
    for place in places:
        linear: Any = model.get_submodule(place.name)
        if not isinstance(linear, nn.Linear):
            raise RequestError(f"{place.name} is a {type(linear).__name__}, not a linear that can be adapted.")
        replace_module(model, place.name, AfterLinear(linear, make(place, linear.out_features).to(device), routing))


def _is_end(name: str) -> bool:
    return name.rpartition(".")[2] in _ENDS and not any(part in _CROSS for part in name.split("."))


def _sublayer(name: str) -> Sublayer:
    stack, layer = layer_of(name)
    return Sublayer(name, stack, layer, _ENDS[name.rpartition(".")[2]])


def layer_of(name: str) -> tuple[str, int]:
    """The stack and the number of the layer that ``name`` is in."""
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:at]), int(parts[at])
