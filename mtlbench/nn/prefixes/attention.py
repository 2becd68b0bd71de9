"""What runs in the place of a model's attention: the stock kernel, with a prefix before its keys and values.

One function and one mask maker are known to transformers under the name :data:`NAME`. Queries, keys and values have
then passed their projections and rotary embedding, caches hold real tokens only, and layer checkpointing never sees the
prefix, so nothing else of the model changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mtlbench.compat import attention_of
from mtlbench.nn.attachments import get_state
from mtlbench.nn.packing import Bucket, attention_by_rows, packing_in_flight

NAME = "mtlbench"
"""Name of the attention function and the mask maker inside transformers."""

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(eq=False)
class AttentionSlot:
    """What one attention module finds when it runs. It stays with the module, so copies of a model share none."""

    kernel: Kernel
    additive: bool
    """Whether the kernel adds its mask to the scores; masks arrive as booleans."""
    prefix: tuple[Tensor, ...] | None = None
    """Keys and values ``[1 or rows, kv_heads, length, head_dim]``."""
    bias: Tensor | None = None
    """Position bias of the prefix ``[1, heads, queries, length]``; ``None`` is zero."""
    gate: Tensor | None = None
    """Weight of the prefix by head ``[heads]``: attention to it then has a softmax of its own. ``None`` is one softmax
    over prefix and tokens."""

    def of(self, bucket: Bucket, queries: int) -> AttentionSlot:
        """The same for the rows of a bucket whose longest has so many ``queries``."""
        prefix = self.prefix
        if prefix is not None and prefix[0].shape[0] > 1:
            prefix = tuple(own.index_select(0, bucket.rows) for own in prefix)
        bias = None if self.bias is None else self.bias[:, :, :queries]
        return replace(self, prefix=prefix, bias=bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionSlot:
        return AttentionSlot(self.kernel, self.additive)  # a prefix in flight belongs to one autograd graph


def register() -> None:
    """Make :data:`NAME` known to transformers; again is harmless."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def stock_kernel(module: nn.Module, config: Any) -> Any:
    """The kernel that ``config`` names for an attention module, or ``None``; eager ones stand beside its class."""
    if attention_of(config) == "sdpa":
        return AttentionInterface()["sdpa"]
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Boolean masks, written out: a causal mask left to the kernel would be wrong once keys outnumber queries.

    Without a mask, attention is bidirectional and sees every key: the kernel needs none for a prefix either.
    """
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The stock kernel on the prefix followed by the layer's own keys and values, or with a gated prefix added."""
    slot, packing = get_state(module, AttentionSlot), packing_in_flight()
    if packing is None:
        return _with_prefix(module, slot, query, key, value, attention_mask, **kwargs)

    def run(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, **own: Any) -> Tensor:
        mask, causal = bucket.mask, bucket.causal
        if causal and slot.prefix is not None and slot.gate is None:
            at = torch.arange(q.shape[2], device=q.device)
            mask, causal = (at[None, :] <= at[:, None])[None, None], False
        return _with_prefix(module, slot.of(bucket, q.shape[2]), q, k, v, mask, is_causal=causal, **own)[0]

    return attention_by_rows(module, query, key, value, packing, run, **kwargs), None


def _with_prefix(
    module: nn.Module,
    slot: AttentionSlot,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    mask = attention_mask
    if slot.prefix is not None and slot.gate is None:
        if mask is None and module.is_causal and query.shape[2] > 1 and kwargs.get("is_causal") is not False:
            raise RuntimeError(f"{type(module).__name__} got no attention mask: a prefix would break causality")
        tokens = key.shape[2]
        key, value = (
            torch.cat([_rows(prefix, own), own], dim=2) for prefix, own in zip(slot.prefix, (key, value), strict=True)
        )
        length = key.shape[2] - tokens
        if mask is not None:
            mask = F.pad(mask, (length, 0), value=mask.dtype == torch.bool)
        if kwargs.get("position_bias") is not None:
            kwargs["position_bias"] = _pad_bias(kwargs["position_bias"], slot.bias, length)
    if slot.additive and mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    output, weights = slot.kernel(module, query, key, value, mask, **kwargs)
    if slot.prefix is not None and slot.gate is not None:
        dropout, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling")
        prefix_keys, prefix_values = slot.prefix
        output = output + gated_prefix_attention(
            query, prefix_keys, prefix_values, slot.gate, dropout=dropout, scale=scale
        )
    return output, weights


def gated_prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, *, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """``gate * softmax(scale Q K_p^T) V_p`` of a gated prefix, to be added: ``[rows, queries, heads, head_dim]``.

    The two softmaxes share nothing, so masks and kernels of the tokens stay as they are, and a gate of zero leaves the
    stock model.

    Args:
        query: ``[rows, heads, queries, head_dim]``.
        key: Of the prefix ``[1 or rows, kv_heads, length, head_dim]``; rows that are a multiple repeat in place.
        value: The same.
        gate: ``[heads]``.
        scale: Of the scores; ``None`` is ``1 / sqrt(head_dim)``.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (_rows(prefix.repeat_interleave(groups, dim=1), query) for prefix in (key, value))
    seen = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale)
    return (seen * gate.to(seen.dtype)[:, None, None]).transpose(1, 2)


def _rows(prefix: Tensor, own: Tensor) -> Tensor:
    """``prefix`` for every row of ``own [rows, ...]`` and in its type; a multiple of its rows repeats each in place."""
    rows, given = own.shape[0], prefix.shape[0]
    if given == 1:
        prefix = prefix.expand(rows, -1, -1, -1)
    elif rows % given:
        raise RuntimeError(f"{given} prefixes cannot serve {rows} rows")
    elif given != rows:
        prefix = prefix.repeat_interleave(rows // given, dim=0)
    return prefix.to(own.dtype)  # last, so that the gradients of the rows are summed in the prefix's own type


def _pad_bias(position_bias: Tensor, prefix_bias: Tensor | None, length: int) -> Tensor:
    if prefix_bias is None:
        return F.pad(position_bias, (length, 0))
    columns = prefix_bias.to(position_bias.dtype).expand(position_bias.shape[0], -1, -1, -1)
    return torch.cat([columns, position_bias], dim=3)
