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

from mtlbench.api.routing import Routing
from mtlbench.compat import attention_of
from mtlbench.errors import RequestError
from mtlbench.nn.attachments import attach_module, attach_state, find_module
from mtlbench.nn.prefixes.attention import AttentionSlot, register, stock_kernel
from mtlbench.nn.prefixes.places import (
    WHERE,
    PrefixShape,
    all_attentions,
    find_places,
    places_named,
    stacks_sharing,
)
from mtlbench.nn.prefixes.slots import BIASES, GatedPrefix, PrefixSlots

__all__ = [
    "BIASES",
    "WHERE",
    "GatedPrefix",
    "PrefixShape",
    "PrefixSlots",
    "StaticPrefix",
    "StaticTaskPrefixes",
    "attach_prefix",
    "prefixes_of_rows",
]


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


class StaticTaskPrefixes(nn.Module):
    """Fixed prefixes by task, kept as buffers.

    Args:
        kv: ``[layers, 2, tasks, kv_heads, length, head_dim]``.
        gate: Of :class:`GatedPrefix`, ``[layers, heads]``; ``None`` for one softmax over prefix and tokens.
        notes: What the encoders want remembered.
    """

    kv: Tensor
    gate: Tensor | None

    def __init__(
        self, kv: Tensor, routing: Routing, *, gate: Tensor | None = None, notes: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.routing, self._notes = routing, dict(notes or {})
        self.register_buffer("kv", kv)
        self.register_buffer("gate", gate)

    def forward(self) -> Tensor | GatedPrefix:
        """Those of the rows in flight."""
        return prefixes_of_rows(self.kv, self.gate, self.routing)

    def notes(self) -> dict[str, Any]:
        """What the encoders wanted remembered."""
        return self._notes


def prefixes_of_rows(kv: Tensor, gate: Tensor | None, routing: Routing) -> Tensor | GatedPrefix:
    """Of prefixes by task ``kv [layers, 2, tasks, ...]``, those of the rows in flight ``[layers, 2, rows, ...]``."""
    rows = kv.index_select(2, routing.tasks)
    return rows if gate is None else GatedPrefix(rows, gate)


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
    if find_module(model, PrefixSlots) is not None:
        raise RequestError(f"{type(model).__name__} already has a prefix: attach one per model.")
    places = find_places(model, names)
    register()
    for stack in stacks_sharing(model, places):
        eager = attention_of(stack.config) == "eager"
        for module in all_attentions(stack):
            attach_state(module, AttentionSlot(stock_kernel(module, stack.config), eager))
    if last is not None:
        places = tuple(replace(place, layers=place.layers[-last:]) for place in places)
    slots = attach_module(model, "mtlbench_prefix", PrefixSlots(places, bias=bias))
    stacks = list({id(place.stack): place.stack for place in places}.values())
    for stack in stacks:
        stack.register_forward_pre_hook(slots.enter_stack, with_kwargs=True)
    if len(stacks) > 1:
        model.register_forward_pre_hook(slots.enter_model)
        model.register_forward_hook(slots.leave_model, always_call=True)
    return slots
