"""Attention to the tokens of a row alone, where rows lie end to end: in buckets of like length, or by their bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mtlbench.compat import attention_of, set_attention
from mtlbench.nn.packing import (
    NAME,
    Packing,
    Stream,
    attention_configs,
    in_flight,
    packing_in_flight,
    without_mask,
)
from mtlbench.nn.varlen import attention_by_bounds, rows_kernel


@contextmanager
def packed(model: nn.Module, packing: Packing | None) -> Iterator[None]:
    """Inside, attention of ``model`` reads its input by ``packing``; ``None`` changes nothing.

    A backward belongs inside too: it may compute layers again.
    """
    if packing is None or packing is packing_in_flight():
        yield
        return
    with in_flight(packing), _attention_named(model, NAME), _without_bias(model):
        yield


@contextmanager
def _without_bias(model: nn.Module) -> Iterator[None]:
    """Inside, T5's layers make no bias of all tokens by all tokens, where attention reads rows by rows."""
    host: Any = model
    parts = host.modules() if host.config.is_encoder_decoder else ()
    tables: list[Any] = [part for part in parts if getattr(part, "has_relative_attention_bias", False)]
    changed = [table for table in tables if "compute_bias" not in vars(table)]
    for table in changed:
        table.compute_bias = _no_bias
    try:
        yield
    finally:
        for table in changed:
            del table.compute_bias


def _no_bias(queries: int, keys: int, device: Any = None, past_seen_tokens: int = 0) -> Tensor:
    return torch.zeros(1, 1, 1, 1, device=device)


@contextmanager
def right_padded(model: nn.Module) -> Iterator[Tensor]:
    """The mask with which a decoder-only ``model`` reads rows padded on the right, inside.

    No token sees padding behind it, so attention needs no mask. But transformers looks for padding in a mask, or for
    several rows in one where there is none, and a host waits for what it finds. This mask it passes on unread.
    """
    mask = torch.zeros(1, 1, 1, 1, device=next(model.parameters()).device)
    with in_flight(None, unmasked=True), _attention_named(model, NAME):
        yield mask


@contextmanager
def _attention_named(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, stacks whose attention is sdpa look up ``name``."""
    register()
    changed = [config for config in attention_configs(model) if attention_of(config) == "sdpa"]
    for config in changed:
        set_attention(config, name)
    try:
        yield
    finally:
        for config in changed:
            if attention_of(config) == name:
                set_attention(config, "sdpa")


def register() -> None:
    """Make :data:`NAME` known to transformers; again is harmless."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    kernel: Callable[..., tuple[Tensor, Tensor | None]] = AttentionInterface()["sdpa"]
    packing = packing_in_flight()
    if packing is None:
        return kernel(module, query, key, value, None if without_mask() else attention_mask, **kwargs)
    by_bounds = rows_kernel(module, query, packing, **kwargs)
    if by_bounds is not None:
        return attention_by_bounds(query, key, value, packing, kernel=by_bounds, scale=kwargs.get("scaling")), None

    def run(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, **own: Any) -> Tensor:
        return kernel(module, q, k, v, bucket.mask, is_causal=bucket.causal, **own)[0]

    return attention_by_rows(module, query, key, value, packing, run, **kwargs), None


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows of like length, as attention sees them."""

    rows: Tensor
    """Their numbers in the batch ``[rows]``."""
    mask: Tensor | None
    """Which keys there are ``[rows, 1, 1, keys]``; ``None`` where all are, or where attention is causal: what a token
    sees then are tokens before it."""
    causal: bool


def attention_by_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    run: Callable[..., Tensor],
    **kwargs: Any,
) -> Tensor:
    """Attention of every row to itself, or of the decoder's rows to the encoder's.

    Args:
        query: ``[chunks, heads, width, head_dim]``; ``key`` and ``value`` likewise, with their own heads.
        run: Attention in one bucket: ``run(bucket, query, key, value, **kwargs)`` with ``[rows, heads, width,
            head_dim]`` gives ``[rows, width, heads, head_dim]``.

    Returns:
        ``[chunks, width, heads, head_dim]``.
    """
    packing.reads.add("buckets")
    asking, answering = (packing.stream_of(x.shape[0] * x.shape[2]) for x in (query, key))
    queries = _to_buckets(query, asking)
    keys, values = _to_buckets(key, answering), _to_buckets(value, answering)
    itself = asking is answering
    causal = itself and bool(getattr(module, "is_causal", True))
    bias = kwargs.pop("position_bias", None)
    combined = None
    if bias is not None and itself:
        combined = _biases_of(module, packing, asking, causal=causal, dtype=key.dtype)
    found = []
    for at, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
        bucket = Bucket(packing.rows[at], None if causal else answering.real[at], causal and q.shape[2] > 1)
        if combined is not None:
            bucket, kwargs["position_bias"] = Bucket(packing.rows[at], None, False), combined[at]
        elif bias is not None:
            kwargs["position_bias"] = bias.new_zeros(1, 1, 1, 1)
        output = run(bucket, q, k, v, **kwargs)
        found.append(output.reshape(-1, output.shape[2] * output.shape[3]))
    joined = torch.cat(found) if len(found) > 1 else found[0]
    flat: Tensor = _moved(joined, asking.slots, asking.places, asking.empty_slots)
    return flat.view(query.shape[0], query.shape[2], query.shape[1], -1)


def table_bias(module: Any, queries: int, keys: int, *, past_seen_tokens: int = 0) -> Tensor:
    """T5's position bias from the table of an attention module ``[1, heads, queries, keys]``, also in a packed batch,
    where layers do not make it themselves."""
    bias: Tensor = type(module).compute_bias(module, queries, keys, past_seen_tokens=past_seen_tokens)
    return bias


def _biases_of(
    module: Any, packing: Packing, stream: Stream, *, causal: bool, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """T5's position bias with the mask of each bucket ``[1 or rows, heads, width, width]``, to be added to scores.

    Layers without a table take what the first layer made, so that they all read, and keep for backward, one.
    """
    decoder = bool(module.is_decoder)
    if module.has_relative_attention_bias:
        whole, lowest = table_bias(module, stream.widest, stream.widest), torch.finfo(dtype).min
        made = []
        for (_, width), real in zip(stream.shapes, stream.real, strict=True):
            bias = whole[:, :, :width, :width]
            if causal and width > 1:
                at = torch.arange(width, device=bias.device)
                bias = torch.where(at[None, :] <= at[:, None], bias, lowest)
            elif not causal and real is not None:
                bias = torch.where(real, bias, lowest)
            made.append(bias.to(dtype).contiguous())
        packing.biases[decoder] = tuple(made)
    return packing.biases[decoder]


def _to_buckets(x: Tensor, stream: Stream) -> list[Tensor]:
    """``[rows, heads, width, head_dim]`` for each bucket."""
    chunks, heads, width, size = x.shape
    flat = x.transpose(1, 2).reshape(chunks * width, heads * size)
    spread = _moved(flat, stream.places, stream.slots, stream.empty_places)
    parts = torch.split(spread, [rows * width for rows, width in stream.shapes])
    return [
        part.view(rows, width, heads, size).transpose(1, 2)
        for part, (rows, width) in zip(parts, stream.shapes, strict=True)
    ]


class _Moved(torch.autograd.Function):
    """Rows of a matrix in another order, ``x[there]``; ``back`` leads the other way, and ``empty`` rows of ``x`` are in
    no row that is read: they get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, empty: Tensor) -> Tensor:
        ctx.save_for_backward(back, empty)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back, empty = ctx.saved_tensors
        returned = grad.index_select(0, back)
        if len(empty):
            returned.index_fill_(0, empty, 0)
        return returned, None, None, None


def _moved(x: Tensor, there: Tensor, back: Tensor, empty: Tensor) -> Tensor:
    run: Callable[..., Tensor] = _Moved.apply
    return run(x, there, back, empty)
