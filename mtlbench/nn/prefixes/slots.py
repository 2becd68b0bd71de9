"""When the layers of a model get their key/value prefix, and from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from mtlbench.compat import attention_of, set_attention
from mtlbench.nn.attachments import get_state
from mtlbench.nn.packed_attention import table_bias
from mtlbench.nn.packing import PREFIXED, packing_in_flight
from mtlbench.nn.prefixes.attention import AttentionSlot
from mtlbench.nn.prefixes.places import AttentionPlace, shape_of

BIASES = ("relative", "zero")
"""Position bias of the prefix in models that learn one (T5): as memory slots before the decoder's first token, or none.
``relative`` is about the decoder's self-attention: the encoder's has no first token that padding does not move, and
attention to the encoder has no bias at all, so the prefixes there always take none."""


class GatedPrefix(NamedTuple):
    """A prefix that is attended to with a softmax of its own, and how much of that is added."""

    kv: Tensor
    """As :meth:`PrefixSlots.set` takes it."""
    gate: Tensor
    """``[layers, heads]``; zeros leave the stock model."""


class PrefixSlots(nn.Module):
    """The places of one model that take a prefix; a submodule of the model, ``model.mtlbench_prefix``.

    A ``source`` module makes the prefix inside autograd, once at the start of every forward of the model, or of its
    encoder or decoder where one is called alone. The tensors stay until the next forward, so that layers replayed
    during backward (non-reentrant checkpointing) see the same ones: run backward before the next forward when layers
    are checkpointed.

    Attributes:
        where: Places in the order of :data:`~mtlbench.nn.prefixes.places.WHERE`; the layers of a prefix are those of
            the first place, then the next.
        bias: One of :data:`BIASES`.
        places: Their attention modules.
        shape: What one prefix token holds.
        stock: Names of the attention functions that the prefix stands in for.
    """

    def __init__(self, places: Sequence[AttentionPlace], *, bias: str) -> None:
        super().__init__()
        self.where = tuple(place.name for place in places)
        self.bias = bias
        self.shape = shape_of(places)
        self.source: nn.Module | None = None
        self.places = tuple(places)
        self._configs = list({id(place.stack.config): place.stack.config for place in places}.values())
        self.stock: list[str] = [attention_of(config) for config in self._configs]
        self._on = True
        self._made = False

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's hidden states."""
        return int(self.places[0].stack.config.hidden_size)

    @property
    def on(self) -> bool:
        """Whether the source is asked. Setting it to false leaves the stock model, bit for bit."""
        return self._on

    @on.setter
    def on(self, on: bool) -> None:
        self._on = on
        if not on:
            self.set(None)
        elif self.source is not None:
            self._use(PREFIXED)

    def feed(self, source: nn.Module) -> None:
        """Take the prefix from ``source()`` at every forward, as :meth:`set` takes it."""
        self.source = source.train(self.training)
        if self._on:
            self._use(PREFIXED)

    def set(self, kv: Tensor | GatedPrefix | None) -> None:
        """Set the prefix of every layer; ``None`` leaves the stock model, bit for bit.

        Args:
            kv: ``[layers, 2, kv_heads, length, head_dim]``, or ``[layers, 2, rows, kv_heads, length, head_dim]`` for
                one prefix per row; rows that generation repeats (beams) repeat theirs. Any floating type. A gated one
                takes no position bias.
        """
        self._put(kv, self.places)
        self._use(PREFIXED if kv is not None else None)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model is the stock model, whatever feeds it."""
        on, slots = self._on, [slot for place in self.places for slot in _slots(place)]
        names = [attention_of(config) for config in self._configs]
        prefixes = [(slot.prefix, slot.gate) for slot in slots]
        self.on = False
        try:
            yield
        finally:
            self._on = on
            for slot, prefix in zip(slots, prefixes, strict=True):
                slot.prefix, slot.gate = prefix
            for config, name in zip(self._configs, names, strict=True):
                set_attention(config, name)

    def enter_model(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward-pre-hook of a model with two stacks: make the prefix of both at once."""
        if self.source is not None and self._on:
            self.set(self.source())
            self._made = True

    def leave_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of a model with two stacks, also after an error."""
        self._made = False

    def enter_stack(self, stack: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward-pre-hook of an encoder or decoder: make its prefix unless the model has, and its position bias."""
        own = [place for place in self.places if place.stack is stack]
        if self.source is not None and self._on and not self._made:
            # only its own: layers of the other stack may be replayed later with the prefix they had
            self._put(self.source(), own)
        for place in own:
            if place.name == "dec" and self.bias == "relative" and _slots(place)[0].gate is None:
                _make_bias(place, args, kwargs)

    def _put(self, prefix: Tensor | GatedPrefix | None, places: Sequence[AttentionPlace]) -> None:
        if prefix is None:
            for place in places:
                for slot in _slots(place):
                    slot.prefix = slot.bias = slot.gate = None
            return
        kv, gate = prefix if isinstance(prefix, GatedPrefix) else (prefix, None)
        kv = kv.unsqueeze(2) if kv.dim() == 5 else kv
        layers, pair, _, heads, _, size = kv.shape
        if (layers, pair, heads, size) != (self.shape.layers, 2, self.shape.kv_heads, self.shape.head_dim):
            raise ValueError(f"a prefix of shape {tuple(kv.shape)} does not fit {self.shape}")
        every = iter(zip(kv.unbind(0), [None] * layers if gate is None else gate.unbind(0), strict=True))
        for place in self.places:
            for slot in _slots(place):
                layer, own_gate = next(every)
                if place in places:
                    slot.prefix, slot.gate = layer.unbind(0), own_gate

    def _use(self, name: str | None) -> None:
        for config, stock in zip(self._configs, self.stock, strict=True):
            set_attention(config, name or stock)


def _slots(place: AttentionPlace) -> list[AttentionSlot]:
    return [get_state(layer, AttentionSlot) for layer in place.layers]


def _make_bias(place: AttentionPlace, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Set the learned relative bias of every prefix token; layers without one of their own use the first layer's."""
    slots = _slots(place)
    prefix = slots[0].prefix
    if prefix is None or not hasattr(place.first, "compute_bias"):
        return
    tokens = args[0] if args else kwargs.get("input_ids")
    packing = packing_in_flight()
    queries = (kwargs["inputs_embeds"] if tokens is None else tokens).shape[1]
    queries = queries if packing is None else packing.streams[-1].widest
    length, cache = prefix[0].shape[2], kwargs.get("past_key_values")
    seen = 0 if cache is None else cache.get_seq_length()
    shared = None
    for layer, slot in zip(place.layers, slots, strict=True):
        giver = layer if layer.has_relative_attention_bias else place.first
        if shared is None or giver is layer:
            # scores of several rows in one replace the table's own bias, and packed rows have none of their layers
            made = giver.compute_bias if packing is None else partial(table_bias, giver)
            shared = made(queries, length, past_seen_tokens=length + seen)
        slot.bias = shared
