"""Where a key/value prefix can go in a transformers model: the attention modules of each place, or why none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from mtlbench.compat import attention_of, dispatches_attention
from mtlbench.errors import RequestError
from mtlbench.nn.prefixes.attention import stock_kernel

WHERE = ("enc", "dec", "cross")
"""Places in their order in a prefix: the encoder's self-attention, the decoder's (of a decoder-only model: all its
attention), and the decoder's attention to the encoder's output."""


class PrefixShape(NamedTuple):
    """What one prefix token holds: ``[layers, 2, kv_heads, head_dim]`` numbers."""

    layers: int
    """Of all places together."""
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, eq=False)
class AttentionPlace:
    """The attention modules of one place, in the order they run."""

    name: str
    stack: Any
    """The encoder or decoder that they are part of."""
    layers: tuple[Any, ...]
    first: Any
    """That of the stack's first layer: in T5 it alone has a position bias, which all share."""


def places_named(where: str) -> tuple[str, ...]:
    """The places of ``where``, words of :data:`WHERE` joined by ``+``, in the order of :data:`WHERE`.

    Raises:
        RequestError: when a word is unknown, given twice, or there is none.
    """
    words = where.split("+")
    wrong = next((word for word in words if word not in WHERE), None)
    if wrong is not None:
        raise RequestError(f"Prefix location {wrong!r} is unknown. Known: {', '.join(WHERE)}, joined by '+'.")
    if len(set(words)) < len(words):
        raise RequestError(f"Prefix location {where!r} names a place twice. Name each once, joined by '+'.")
    return tuple(name for name in WHERE if name in words)


def find_places(model: nn.Module, names: Sequence[str]) -> tuple[AttentionPlace, ...]:
    """The named places of ``model``.

    Raises:
        RequestError: when the attention of one cannot take a prefix.
    """
    stacks = _stacks(model)
    missing = [repr(name) for name in names if name not in stacks]
    if missing:
        raise _refused(model, f"it has no encoder, so there is no place {' or '.join(missing)}. Take 'dec'.")
    found = []
    for name in names:
        stack = stacks[name]
        reason = _stack_refusal(stack)
        if reason:
            raise _refused(model, reason)
        by_layer = [(at, m) for at, m in _numbered(stack) if name == "enc" or bool(m.is_causal) == (name == "dec")]
        by_layer.sort(key=lambda pair: pair[0])
        layers = tuple(m for _, m in by_layer)
        place = AttentionPlace(name, stack, layers, layers[0] if layers else None)
        reason = _place_refusal(place, [at for at, _ in by_layer])
        if reason:
            raise _refused(model, reason)
        found.append(place)
    if len({_head_shape(place) for place in found}) > 1:
        raise _refused(model, "its encoder and decoder differ in key/value heads. Choose one of them.")
    return tuple(found)


def shape_of(places: Sequence[AttentionPlace]) -> PrefixShape:
    """The shape of a prefix for all of ``places`` together."""
    return PrefixShape(sum(len(place.layers) for place in places), *_head_shape(places[0]))


def stacks_sharing(model: nn.Module, places: Sequence[AttentionPlace]) -> list[Any]:
    """The stacks that read the attention's name from a configuration of ``places``: in BART that is one for both."""
    configs = {id(place.stack.config) for place in places}
    stacks = {id(stack): stack for stack in _stacks(model).values()}
    return [stack for stack in stacks.values() if id(stack.config) in configs]


def attentions(stack: nn.Module) -> list[Any]:
    """Every attention module of ``stack`` that knows its layer."""
    return [m for m in stack.modules() if hasattr(m, "is_causal") and getattr(m, "layer_idx", None) is not None]


def all_attentions(stack: nn.Module) -> list[Any]:
    """Those too that do not, as in the encoder of mBART."""
    return [m for _, m in _numbered(stack)]


def _numbered(stack: nn.Module) -> list[tuple[int, Any]]:
    """The attention modules of ``stack`` with their layers."""
    found: list[tuple[int, Any]] = []
    for name, m in stack.named_modules():
        if hasattr(m, "is_causal"):
            own = getattr(m, "layer_idx", None)
            at = next((part for part in name.split(".") if part.isdigit()), None) if own is None else own
            found += [] if at is None else [(int(at), m)]
    return found


def _stacks(model: nn.Module) -> dict[str, Any]:
    """The stack of every place that the model has."""
    host: Any = model
    decoder = host.get_decoder() if hasattr(host, "get_decoder") else host
    if not getattr(getattr(host, "config", None), "is_encoder_decoder", False):
        return {"dec": decoder}
    return {"enc": host.get_encoder(), "dec": decoder, "cross": decoder}


def _refused(model: nn.Module, reason: str) -> RequestError:
    return RequestError(f"{type(model).__name__} cannot take a key/value prefix: {reason}")


def _stack_refusal(stack: Any) -> str | None:
    config = getattr(stack, "config", None)
    if config is None or not dispatches_attention(stack):
        return "its attention is not dispatched through transformers' AttentionInterface."
    kind = attention_of(config)
    if kind not in ("sdpa", "eager"):
        return f"its attention implementation is {kind!r}; prefixes run on 'sdpa' and 'eager' alone. Load it with one."
    if not any(getattr(config, name, None) for name in ("num_key_value_heads", "num_attention_heads")):
        return "its configuration names no number of key/value heads."
    if getattr(config, "kv_lora_rank", None):
        return "its keys and values are compressed (multi-head latent attention)."
    if kind == "eager" and any(stock_kernel(m, config) is None for m in all_attentions(stack)):
        return "its module has no function eager_attention_forward; load it with 'sdpa'."
    return None


def _place_refusal(place: AttentionPlace, found: Sequence[int]) -> str | None:
    config = place.stack.config
    own = "encoder_layers" if place.name == "enc" else "decoder_layers"
    depth = getattr(config, own, None) or config.num_hidden_layers
    if list(found) == list(range(depth)):
        return None
    kind = {"enc": "self-attention", "dec": "causal self-attention", "cross": "cross-attention"}[place.name]
    return f"{kind} was found in layers {list(found)} of {depth}; every layer needs it."


def _head_shape(place: AttentionPlace) -> tuple[int, int]:
    layer, config = place.layers[0], place.stack.config
    heads = getattr(config, "num_key_value_heads", None) or getattr(layer, "num_heads", None)
    heads = heads or config.num_attention_heads
    size = getattr(layer, "head_dim", None) or getattr(config, "head_dim", None)
    return int(heads), int(size or config.hidden_size // config.num_attention_heads)
