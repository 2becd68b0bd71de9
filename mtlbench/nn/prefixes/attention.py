"""What runs in the place of a model's attention: the stock kernel, with a prefix before its keys and values.

One function and one mask maker are known to transformers under the name :data:`PREFIXED`. Queries, keys and values have
then passed their projections and rotary embedding, caches hold real tokens only, and layer checkpointing never sees the
prefix, so nothing else of the model changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mtlbench.compat import attention_of
from mtlbench.nn.attachments import get_state
from mtlbench.nn.packed_attention import Bucket, attention_by_rows
from mtlbench.nn.packing import PREFIXED, Packing, packing_in_flight, without_mask
from mtlbench.nn.varlen import RowsKernel, attention_by_bounds, rows_kernel

WRITTEN_BELOW = {"cpu": 512}
"""Queries of a row below which the mask of a causal row behind a prefix is written out, by type of device; elsewhere it
never is. Without one the kernel computes rows for the prefix too: on a processor that takes 1.4 times the time for 64
tokens behind 30, and 0.7 times for 1,024 (forward and backward)."""

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
    """Make :data:`PREFIXED` known to transformers; again is harmless."""
    AttentionInterface.register(PREFIXED, _attention)
    AttentionMaskInterface.register(PREFIXED, sdpa_mask)


def stock_kernel(module: nn.Module, config: Any) -> Any:
    """The kernel that ``config`` names for an attention module, or ``None``; eager ones stand beside its class."""
    if attention_of(config) == "sdpa":
        return AttentionInterface()["sdpa"]
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The stock kernel on the prefix followed by the layer's own keys and values, or with a gated prefix added."""
    slot, packing = get_state(module, AttentionSlot), packing_in_flight()
    if packing is None:
        mask = None if without_mask() else attention_mask
        return _with_prefix(module, slot, query, key, value, mask, **kwargs)
    by_bounds = rows_kernel(module, query, packing, **kwargs)
    if by_bounds is not None:
        return _by_bounds(slot, query, key, value, packing, by_bounds, scale=kwargs.get("scaling")), None

    def run(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, **own: Any) -> Tensor:
        at = slot.of(bucket, q.shape[2])
        return _with_prefix(module, at, q, k, v, bucket.mask, is_causal=bucket.causal, masks=packing.masks, **own)[0]

    return attention_by_rows(module, query, key, value, packing, run, **kwargs), None


def _by_bounds(
    slot: AttentionSlot,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    kernel: RowsKernel,
    *,
    scale: float | None,
) -> Tensor:
    read = partial(attention_by_bounds, query, key, value, packing, kernel=kernel, scale=scale)
    if slot.prefix is None or slot.gate is None:
        return read(prefix=slot.prefix)
    seen = read(prefix=slot.prefix, apart=True)
    return read() + seen * slot.gate.to(seen.dtype)[:, None]


def _with_prefix(
    module: nn.Module,
    slot: AttentionSlot,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    masks: dict[tuple[int, int], Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention in rows side by side. ``masks`` holds those written out, by queries and prefix tokens."""
    mask, queries, length = attention_mask, query.shape[2], 0
    causal = kwargs.get("is_causal")
    causal = mask is None and queries > 1 and bool(module.is_causal if causal is None else causal)
    if causal and key.shape[2] > queries:  # an empty cache of fixed size: what is behind the queries is no key yet
        key, value = key[:, :, :queries], value[:, :, :queries]
        if kwargs.get("position_bias") is not None:
            kwargs["position_bias"] = kwargs["position_bias"][..., :queries]
    if slot.prefix is not None and slot.gate is None:
        length = slot.prefix[0].shape[2]
        key, value = (
            torch.cat([_rows(prefix, own), own], dim=2) for prefix, own in zip(slot.prefix, (key, value), strict=True)
        )
        if mask is not None:
            mask = F.pad(mask, (length, 0), value=mask.dtype == torch.bool)
        if kwargs.get("position_bias") is not None:
            kwargs["position_bias"] = _pad_bias(kwargs["position_bias"], slot.bias, length)
    unseen = 0
    if causal and (length or slot.additive):
        short = queries < WRITTEN_BELOW.get(query.device.type, 0)
        if short or slot.additive or kwargs.get("position_bias") is not None:
            mask = _lower_right(queries, length, query.device, {} if masks is None else masks)
        else:
            unseen = length
        kwargs["is_causal"] = mask is None
    if slot.additive and mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    # With as many queries more as the prefix has tokens, which nothing reads, the kernel needs no mask.
    asked = F.pad(query, (0, 0, unseen, 0)) if unseen else query
    output, weights = slot.kernel(module, asked, key, value, mask, **kwargs)
    output = output[:, unseen:]
    if slot.prefix is not None and slot.gate is not None:
        dropout, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling")
        prefix_keys, prefix_values = slot.prefix
        output = output + gated_prefix_attention(
            query, prefix_keys, prefix_values, slot.gate, dropout=dropout, scale=scale
        )
    return output, weights


def _lower_right(queries: int, length: int, device: torch.device, masks: dict[tuple[int, int], Tensor]) -> Tensor:
    """What causal rows see of a prefix and themselves ``[1, 1, queries, length + queries]``."""
    if (queries, length) not in masks:
        seen = torch.ones(queries, length + queries, dtype=torch.bool, device=device)
        masks[queries, length] = seen.tril(length)[None, None]
    return masks[queries, length]


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
