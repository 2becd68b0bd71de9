"""Attention of packed rows by a kernel that takes their bounds: no buckets, no padding, no mask.

On CUDA that is flash attention through ``torch.nn.attention.varlen``. Causal there means that a row's last query sees
its last key, so a prefix before the keys needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.backbones.transfer import to_device
from mtlbench.nn.packing import Packing, RowBounds

RowsKernel = Callable[..., Tensor]
"""``kernel(query, key, value, edges, key_edges, longest, longest_key, causal=, scale=)`` with ``query [tokens, heads,
head_dim]``, keys and values likewise with their own heads, gives ``[tokens, heads, head_dim]``."""

DTYPES = (torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)
"""Least compute capability (Ampere)."""
HEAD_DIM = 256
"""Largest width of a head; its multiples of 8 alone."""
KNOWN = frozenset({"dropout", "scaling", "is_causal", "sliding_window", "position_ids", "use_cache"})
"""Arguments of an attention call that leave it plain causal attention; a window is no shorter than a row here."""


def rows_kernel(module: nn.Module, query: Tensor, packing: Packing, **call: Any) -> RowsKernel | None:
    """The kernel for an attention call ``call`` in a packed batch; ``None`` where buckets serve it."""
    if packing.bounds is None:
        return None
    if packing.kernel is not None:
        return packing.kernel
    why = why_buckets(
        device=query.device.type,
        dtype=_dtype(query),
        head_dim=query.shape[-1],
        causal=bool(getattr(module, "is_causal", True)),
        call=call,
    )
    return None if why is not None or not _card_has_it(query.device) else torch_kernel


def why_buckets(*, device: str, dtype: torch.dtype, head_dim: int, causal: bool, call: dict[str, Any]) -> str | None:
    """Why an attention call goes by buckets; ``None`` where torch's kernel for rows of unlike length serves it.

    Args:
        device: Type of the device.
        dtype: Of the computation.
        call: Named arguments of the call.
    """
    unknown = sorted(name for name, value in call.items() if name not in KNOWN and value is not None)
    if device != "cuda":
        return f"there is no kernel for rows of unlike length on {device}"
    if dtype not in DTYPES:
        return f"it computes in 16 bit, not in {str(dtype).removeprefix('torch.')}"
    if head_dim > HEAD_DIM or head_dim % 8:
        return f"heads of {head_dim} are no multiple of 8 up to {HEAD_DIM}"
    if not causal:
        return "attention is not causal"
    if call.get("dropout"):
        return "it has no dropout"
    return f"it does not know {', '.join(unknown)}" if unknown else None


def attention_by_bounds(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    kernel: RowsKernel,
    scale: float | None,
    prefix: tuple[Tensor, ...] | None = None,
    apart: bool = False,
) -> Tensor:
    """Causal attention of every row of a packed decoder-only batch to itself, and to its prefix.

    Args:
        query: ``[chunks, heads, width, head_dim]``; ``key`` and ``value`` likewise, with their own heads.
        prefix: Keys and values ``[1 or rows, kv_heads, length, head_dim]``.
        apart: Attention to the prefix alone, as with a softmax of its own.

    Returns:
        ``[chunks, width, heads, head_dim]``.
    """
    bounds = packing.bounds
    assert bounds is not None
    packing.reads.add("bounds")
    dtype = _dtype(query)
    q, k, v = (x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]).to(dtype) for x in (query, key, value))
    edges, longest = bounds.edges, bounds.longest
    if prefix is not None:
        length = prefix[0].shape[2]
        before = [_of_rows(own, bounds, x) for own, x in zip(prefix, (k, v), strict=True)]
        key_edges, there, back = _joined(bounds, length, q.device)
        if apart:
            (k, v), longest = before, length
            edges = torch.arange(len(bounds.edges), dtype=torch.int32, device=q.device) * length
        else:
            join: Callable[..., Tensor] = _Joined.apply
            k, v = (join(x, own, there, back) for own, x in zip(before, (k, v), strict=True))
            edges, longest = key_edges, bounds.longest + length
    found = kernel(q, k, v, bounds.edges, edges, bounds.longest, longest, causal=not apart, scale=scale)
    return found.view(query.shape[0], query.shape[2], query.shape[1], -1)


def torch_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edges: Tensor,
    key_edges: Tensor,
    longest: int,
    longest_key: int,
    *,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """:data:`RowsKernel` by torch's flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    found: Any = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        edges,
        key_edges,
        longest,
        longest_key,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    output: Tensor = found
    return output


def _of_rows(prefix: Tensor, bounds: RowBounds, own: Tensor) -> Tensor:
    """``[rows * length, kv_heads, head_dim]`` of a prefix, in the type of ``own``."""
    if prefix.shape[0] == 1:
        prefix = prefix.expand(len(bounds.lengths), -1, -1, -1)
    else:
        prefix = prefix.index_select(0, bounds.rows)
    return prefix.to(own.dtype).transpose(1, 2).reshape(-1, own.shape[1], own.shape[2])


def _joined(bounds: RowBounds, length: int, device: torch.device) -> tuple[Tensor, ...]:
    """Where rows behind a prefix of ``length`` begin, the order of ``[tokens; prefixes]`` in them, and its reverse."""
    if length not in bounds.joined:
        sizes = np.asarray(bounds.lengths, dtype=np.int64)
        tokens, rows = int(sizes.sum()), len(sizes)
        edges = np.concatenate(([0], np.cumsum(sizes + length)))
        at = np.arange(tokens + rows * length)
        row = np.repeat(np.arange(rows), sizes + length)
        within = at - edges[row]
        first = np.cumsum(sizes) - sizes
        there = np.where(within < length, tokens + row * length + within, first[row] + within - length)
        back = np.empty_like(there)
        back[there] = at
        made = tuple(torch.from_numpy(x) for x in (edges.astype(np.int32), there, back))
        bounds.joined[length] = to_device(made, device)
    return bounds.joined[length]


class _Joined(torch.autograd.Function):
    """Tokens and prefixes in another order; ``back`` is the reverse, so that no gradient is added up atomically."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, prefixes: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.tokens = tokens.shape[0]
        return torch.cat([tokens, prefixes]).index_select(0, there)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        returned = grad.index_select(0, back)
        return returned[: ctx.tokens], returned[ctx.tokens :], None, None


def _dtype(query: Tensor) -> torch.dtype:
    """That of the computation: autocast would turn the inputs of torch's own attention into its dtype."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def _card_has_it(device: torch.device) -> bool:
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= CAPABILITY
