"""Key/value prefixes for stock transformers models: where they come from and which layers take them.

A prefix is put in just before the attention kernel: prefix tuning, Li & Liang 2021, equation 3, without shifting the
positions of real tokens. What happens there is in :mod:`mtlbench.engine.prefix_attention`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from mtlbench.engine.prefix_attention import NAME, Slot, register, stock_kernel
from mtlbench.errors import RequestError

WHERE = ("dec",)
"""Places that take a prefix: ``dec`` is every self-attention layer of the decoder (of a decoder-only model: all)."""
BIASES = ("relative", "zero")
"""Position bias of the prefix in models that learn one (T5): as memory slots before the first token, or none."""


class PrefixShape(NamedTuple):
    """What one prefix token holds: ``[layers, 2, kv_heads, head_dim]`` numbers."""

    layers: int
    kv_heads: int
    head_dim: int


class PrefixSlots(nn.Module):
    """The places of one model that take a prefix; a submodule of the model, ``model.mtlbench_prefix``.

    A ``source`` module makes the prefix inside autograd, once at the start of every forward of the decoder stack. The
    tensors stay until the next forward, so that layers replayed during backward (non-reentrant checkpointing) see the
    same ones: run backward before the next forward when layers are checkpointed.
    """

    def __init__(self, *, shape: PrefixShape, slots: list[Slot], config: Any, relative: nn.Module | None) -> None:
        super().__init__()
        self.shape = shape
        self.source: nn.Module | None = None
        self._slots = slots
        self._config = config
        self._stock: str = config._attn_implementation
        self._relative = (relative,)  # in a tuple, so that the backbone's module is not registered twice

    def feed(self, source: nn.Module) -> None:
        """Take the prefix ``[layers, 2, kv_heads, length, head_dim]`` from ``source()`` at every forward."""
        self.source = source.train(self.training)
        self._config._attn_implementation = NAME

    def set(self, kv: Tensor | None) -> None:
        """Set the prefix of every layer; ``None`` leaves the stock model, bit for bit.

        Args:
            kv: ``[layers, 2, kv_heads, length, head_dim]``, or ``[layers, 2, rows, kv_heads, length, head_dim]`` for
                one prefix per row; rows that generation repeats (beams) repeat theirs. Any floating type.
        """
        if kv is None:
            self._config._attn_implementation = self._stock
            for slot in self._slots:
                slot.prefix = slot.bias = None
            return
        kv = kv.unsqueeze(2) if kv.dim() == 5 else kv
        layers, pair, _, heads, _, size = kv.shape
        if (layers, pair, heads, size) != (self.shape.layers, 2, self.shape.kv_heads, self.shape.head_dim):
            raise ValueError(f"a prefix of shape {tuple(kv.shape)} does not fit {self.shape}")
        self._config._attn_implementation = NAME
        for slot, layer in zip(self._slots, kv.unbind(0), strict=True):
            slot.prefix = layer.unbind(0)

    def refresh(self, stack: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward-pre-hook of the decoder stack: make the prefix and its position bias."""
        if self.source is not None:
            self.set(self.source())
        (relative,) = self._relative
        prefix = self._slots[0].prefix
        if relative is None or prefix is None:
            return
        tokens = args[0] if args else kwargs.get("input_ids")
        queries = (kwargs["inputs_embeds"] if tokens is None else tokens).shape[1]
        length, cache = prefix[0].shape[2], kwargs.get("past_key_values")
        seen = 0 if cache is None else cache.get_seq_length()
        bias = relative.compute_bias(queries, length, past_seen_tokens=length + seen)  # type: ignore[operator]
        for slot in self._slots:
            slot.bias = bias


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


def attach_prefix(model: nn.Module, *, where: str = "dec", bias: str = "relative") -> PrefixSlots:
    """Prepare a model for key/value prefixes; without a prefix it stays the stock model.

    Args:
        model: a transformers model whose attention is ``sdpa`` or ``eager``; that kernel stays underneath.
        where: one of :data:`WHERE`.
        bias: one of :data:`BIASES`; read by models with a learned relative position bias, which is T5's family.

    Raises:
        RequestError: for other words, or when the attention of the model cannot take a prefix.
    """
    if where not in WHERE:
        raise RequestError(f"Prefix location {where!r} is not supported. Known: {', '.join(WHERE)}.")
    if bias not in BIASES:
        raise RequestError(f"Prefix position bias {bias!r} is unknown. Known: {', '.join(BIASES)}.")
    if hasattr(model, "mtlbench_prefix"):
        raise RequestError(f"{type(model).__name__} already has a prefix: attach one per model.")
    host: Any = model
    stack = host.get_decoder() if hasattr(host, "get_decoder") else host
    refusal = _refusal(stack)
    if refusal:
        raise RequestError(f"{type(model).__name__} cannot take a key/value prefix: {refusal}")
    register()
    layers = _self_attentions(stack)
    for module in _attentions(stack):
        module.mtlbench_slot = Slot(stock_kernel(module, stack.config), stack.config._attn_implementation == "eager")
    slots = PrefixSlots(
        shape=_shape(layers[0], stack.config),
        slots=[layer.mtlbench_slot for layer in layers],
        config=stack.config,
        relative=layers[0] if bias == "relative" and hasattr(layers[0], "compute_bias") else None,
    )
    model.add_module("mtlbench_prefix", slots.train(model.training))
    stack.register_forward_pre_hook(slots.refresh, with_kwargs=True)
    return slots


def _attentions(stack: nn.Module) -> list[Any]:
    """Attention modules, cross-attention included: they share the name in the stack's configuration."""
    return [m for m in stack.modules() if hasattr(m, "is_causal") and getattr(m, "layer_idx", None) is not None]


def _self_attentions(stack: nn.Module) -> list[Any]:
    return sorted((m for m in _attentions(stack) if m.is_causal), key=lambda m: int(m.layer_idx))


def _refusal(stack: Any) -> str | None:
    """Why the attention of ``stack`` cannot take a prefix, or ``None``."""
    config = getattr(stack, "config", None)
    if config is None or not getattr(type(stack), "_can_set_attn_implementation", bool)():
        return "its attention is not dispatched through transformers' AttentionInterface."
    kind = config._attn_implementation
    if kind not in ("sdpa", "eager"):
        return f"its attention implementation is {kind!r}; load it with 'sdpa' or 'eager'."
    depth, found = config.num_hidden_layers, [int(m.layer_idx) for m in _self_attentions(stack)]
    if found != list(range(depth)):
        return f"causal self-attention was found in layers {found} of {depth}; every layer needs it."
    if not any(getattr(config, name, None) for name in ("num_key_value_heads", "num_attention_heads")):
        return "its configuration names no number of key/value heads."
    if getattr(config, "kv_lora_rank", None):
        return "its keys and values are compressed (multi-head latent attention)."
    if kind == "eager" and any(stock_kernel(m, config) is None for m in _attentions(stack)):
        return "its module has no function eager_attention_forward; load it with 'sdpa'."
    return None


def _shape(layer: Any, config: Any) -> PrefixShape:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(layer, "head_dim", None) or getattr(config, "head_dim", None)
    return PrefixShape(config.num_hidden_layers, heads, size or config.hidden_size // config.num_attention_heads)
