"""Where a block's sublayers end: the linear whose output goes into the residual stream, found by name, or a mixture of
experts as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.errors import RequestError
from mtlbench.nn.layer_rows import in_rows
from mtlbench.nn.linears import replace_module

BLOCKS = ("attention", "ffn")
"""Self-attention and the feed-forward block. Attention to an encoder's output is neither."""
_ENDS = {
    "o_proj": 0, "o": 0, "out_proj": 0, "dense": 0, "down_proj": 1, "wo": 1, "fc2": 1, "fc_out": 1, "dense_4h_to_h": 1,
    "w2": 1,
}  # fmt: skip
"""Last parts of names to the block that they end; GPT-2's ``c_proj`` ends both, and their parents tell which."""
_CROSS = ("EncDecAttention", "encoder_attn", "cross_attn", "crossattention")
_MIXTURE = ("experts",)


@dataclass(frozen=True)
class Sublayer:
    """One of them."""

    name: str
    """Of the linear, or of a mixture of experts."""
    stack: str
    """What the numbered layers are under: ``model.layers``, ``encoder.block``, ``decoder.block``."""
    layer: int
    block: int
    """Index in :data:`BLOCKS`."""


def find_sublayers(names: Sequence[str], model: nn.Module | None = None) -> tuple[Sublayer, ...]:
    """The ends of the sublayers among the projections ``names``, in model order.

    Args:
        model: Where they are. With it, a feed-forward block that is a mixture of experts counts as a whole.

    Raises:
        RequestError: unless every layer of a stack has one of each.
    """
    mixtures = () if model is None else _mixtures(model)
    ends = [name for name in names if ends_block(name) is not None and not name.startswith(_under(mixtures))]
    found = [Sublayer(name, *layer_of(name), block=ends_block(name) or 0) for name in ends]
    found += [Sublayer(name, *layer_of(name), block=1) for name in mixtures]
    found.sort(key=lambda at: (_first(names, at.stack), at.layer, at.block))
    by_place = {(at.stack, at.layer, at.block) for at in found}
    stacks = {at.stack for at in found} | {layer_of(name)[0] for name in names}
    wanted = {
        (stack, layer, block)
        for stack in stacks
        for layer in {layer_of(name)[1] for name in [*names, *mixtures] if layer_of(name)[0] == stack}
        for block in range(len(BLOCKS))
    }
    if by_place != wanted or len(found) != len(wanted):
        raise RequestError(
            f"An adapter stands behind the self-attention and the feed-forward block of each layer, and of this "
            f"backbone {len(by_place & wanted)} such places are known where {len(wanted)} are due. Known are "
            f"projections named {', '.join(_ENDS)} and c_proj. Take a Llama-, Qwen-, GPT-2- or T5-like backbone."
        )
    return tuple(found)


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
        if x.dim() != 3:
            return in_rows(self, x, self.forward)
        y: Tensor = self.base(x)
        changed: Tensor = self.after(y, self.routing)
        return changed


class AfterBlock(nn.Module):
    """The same around a whole block that gives a tensor, or one first of several."""

    def __init__(self, base: nn.Module, after: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base, self.after, self.routing = base, after, routing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = self.base(*args, **kwargs)
        if isinstance(y, tuple):
            return (self.after(y[0], self.routing), *y[1:])
        return self.after(y, self.routing)


def insert_after(
    model: nn.Module, places: Sequence[Sublayer], make: Callable[[Sublayer, int], nn.Module], routing: Routing
) -> None:
    """Change the output of every place by ``make(place, width)``.

    Raises:
        RequestError: what stands there is neither a plain linear nor a mixture of experts.
    """
    device = next(model.parameters()).device
    width = block_width(model, places)
    for place in places:
        block: Any = model.get_submodule(place.name)
        if isinstance(block, nn.Linear):
            replace_module(model, place.name, AfterLinear(block, make(place, block.out_features).to(device), routing))
        elif place.name in _mixtures(model):
            replace_module(model, place.name, AfterBlock(block, make(place, width).to(device), routing))
        else:
            raise RequestError(f"{place.name} is a {type(block).__name__}, not a linear that can be adapted.")


def block_width(model: nn.Module, places: Sequence[Sublayer]) -> int:
    """Width of the residual stream behind ``places``."""
    ends: list[Any] = [model.get_submodule(place.name) for place in places]
    known = next((end.out_features for end in ends if hasattr(end, "out_features")), None)
    host: Any = model
    return int(host.config.hidden_size if known is None else known)


def _mixtures(model: nn.Module) -> tuple[str, ...]:
    """Names of the blocks that hold experts."""
    return tuple(
        name
        for name, module in model.named_modules()
        if any(child in _MIXTURE for child, _ in module.named_children()) and any(p.isdigit() for p in name.split("."))
    )


def _under(blocks: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{block}." for block in blocks)


def _first(names: Sequence[str], stack: str) -> int:
    return next((at for at, name in enumerate(names) if name.startswith(f"{stack}.")), len(names))


def ends_block(name: str) -> int | None:
    """Index in :data:`BLOCKS` of the block that the linear ``name`` ends, or ``None``."""
    *parents, last = name.split(".")
    if any(part in _CROSS for part in parents):
        return None
    if last == "c_proj":
        return 0 if any("attn" in part.lower() or "attention" in part.lower() for part in parents) else 1
    return _ENDS.get(last)


def layer_of(name: str) -> tuple[str, int]:
    """The stack and the number of the layer that ``name`` is in."""
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[:at]), int(parts[at])
