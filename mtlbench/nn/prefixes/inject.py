"""Key/value prefixes for stock transformers models.

A prefix is put in just before the attention kernel: prefix tuning, Li & Liang 2021, equation 3, without shifting the
positions of real tokens. What happens there is in :mod:`mtlbench.nn.prefixes.attention`, which layers take part in
:mod:`mtlbench.nn.prefixes.places`, and when they get a prefix in :mod:`mtlbench.nn.prefixes.slots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mtlbench.errors import RequestError
from mtlbench.nn.prefixes.attention import AttentionSlot, register, stock_kernel
from mtlbench.nn.prefixes.places import (
    WHERE,
    PrefixShape,
    attentions,
    find_places,
    places_named,
    stacks_sharing,
)
from mtlbench.nn.prefixes.slots import BIASES, GatedPrefix, PrefixSlots

__all__ = ["BIASES", "WHERE", "GatedPrefix", "PrefixShape", "PrefixSlots", "StaticPrefix", "attach_prefix"]


class StaticPrefix(nn.Module):
    """A fixed prefix, kept as a buffer: what is left of a prefix encoder after training."""

    kv: Tensor

    def __init__(self, kv: Tensor, notes: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.register_buffer("kv", kv)
        self._notes = dict(notes or {})

    def forward(self) -> Tensor:
        """The prefix ``[layers, 2, kv_heads, length, head_dim]``."""
        return self.kv

    def notes(self) -> dict[str, Any]:
        """What the encoder that made this prefix wanted remembered."""
        return self._notes


def attach_prefix(
    model: nn.Module, *, where: str = "dec", bias: str = "relative", last: int | None = None
) -> PrefixSlots:
    """Prepare a model for key/value prefixes; without a prefix it stays the stock model.

    Rows padded on the left need explicit position ids, as ``generate`` makes them: prefix keys stand at no position, so
    an offset common to all tokens of a row is another function.

    Args:
        model: a transformers model whose attention is ``sdpa`` or ``eager``; that kernel stays underneath.
        where: words of :data:`WHERE` joined by ``+``, in any order; decoder-only models have ``dec`` alone.
        bias: one of :data:`BIASES`; read by models with a learned relative position bias, which is T5's family.
        last: only so many layers at the end of each place take a prefix; ``None`` for all, as where there are fewer.

    Raises:
        RequestError: for other words, or when the attention of the model cannot take a prefix.
    """
    names = places_named(where)
    if bias not in BIASES:
        raise RequestError(f"Prefix position bias {bias!r} is unknown. Known: {', '.join(BIASES)}.")
    if hasattr(model, "mtlbench_prefix"):
        raise RequestError(f"{type(model).__name__} already has a prefix: attach one per model.")
    places = find_places(model, names)
    register()
    for stack in stacks_sharing(model, places):
        eager = stack.config._attn_implementation == "eager"
        for module in attentions(stack):
            module.mtlbench_slot = AttentionSlot(stock_kernel(module, stack.config), eager)
    if last is not None:
        places = tuple(replace(place, layers=place.layers[-last:]) for place in places)
    slots = PrefixSlots(places, bias=bias)
    model.add_module("mtlbench_prefix", slots.train(model.training))
    stacks = list({id(place.stack): place.stack for place in places}.values())
    for stack in stacks:
        stack.register_forward_pre_hook(slots.enter_stack, with_kwargs=True)
    if len(stacks) > 1:
        model.register_forward_pre_hook(slots.enter_model)
        model.register_forward_hook(slots.leave_model, always_call=True)
    return slots
