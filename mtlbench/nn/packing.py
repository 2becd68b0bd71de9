"""Rows of unlike length without padding: laid end to end through the layers, padded only inside attention.

The tokens of a batch are one stream, which layers see as *chunks*: ``[chunks, width, hidden]``, where all tokens of a
chunk belong to rows of one task. A layer that treats its input row by row, such as one routed by task, therefore works
on chunks as it does on rows. Attention takes the rows out of the stream into buckets of like length, where the stock
kernel runs, and puts the results back.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mtlbench.compat import attention_of, dispatches_attention, set_attention

NAME = "mtlbench_packed"
"""Name of the attention function and the mask maker inside transformers."""


@dataclass(frozen=True, eq=False)
class Stream:
    """The tokens of one stack, and where they stand in the buckets of its rows.

    Attention over buckets reads ``[slots]`` of which some are empty; the stream has ``[places]`` of which some at the
    ends of chunks are empty.
    """

    chunks: int
    tasks: Tensor | None
    """Task id of each chunk ``[chunks]``; ``None`` where a chunk holds rows of several tasks."""
    places: Tensor
    """For each slot its place in the stream; any place for an empty one ``[slots]``."""
    slots: Tensor
    """For each place of the stream its slot; any slot for an empty one ``[places]``."""
    empty_slots: Tensor
    empty_places: Tensor
    shapes: tuple[tuple[int, int], ...]
    """Rows and slots of a row of each bucket."""
    real: tuple[Tensor | None, ...]
    """For each bucket which slots hold tokens ``[rows, 1, 1, width]``; ``None`` where all do."""

    @property
    def widest(self) -> int:
        """Slots of the longest row."""
        return max(width for _, width in self.shapes)


@dataclass(frozen=True, eq=False)
class Packing:
    """How the rows of a batch lie in its streams. Buckets hold the same rows in every stream."""

    rows: tuple[Tensor, ...]
    """Numbers of the rows in each bucket."""
    starts: Tensor
    """Place of the first token of each row in the first stream ``[rows]``."""
    lengths: Tensor
    """Tokens of each row there ``[rows]``."""
    streams: tuple[Stream, ...]
    """That of a decoder-only stack, or those of the encoder and of the decoder, whose sizes differ."""
    biases: dict[bool, Tensor] = field(default_factory=dict)
    """Position bias of the widest bucket by whether it is the decoder's, made by the first layer that has one."""

    def stream_of(self, places: int) -> Stream:
        """The stream with so many places.

        Raises:
            RuntimeError: there is none, as where a layer changes the number of tokens.
        """
        for stream in self.streams:
            if len(stream.slots) == places:
                return stream
        raise RuntimeError(f"attention got {places} tokens, and the packed batch has no stream of so many")

    def tasks_of(self, chunks: int) -> Tensor:
        """Task ids of the chunks of the stream that has so many ``[chunks]``.

        Raises:
            RuntimeError: there is none, or its chunks hold rows of several tasks.
        """
        for stream in self.streams:
            if stream.chunks == chunks and stream.tasks is not None:
                return stream.tasks
        raise RuntimeError(f"an activation of {chunks} rows cannot be routed: no stream has as many chunks of one task")


_in_flight: list[Packing | None] = [None]


def packing_in_flight() -> Packing | None:
    """How the batch that runs now is packed; ``None`` where rows are padded."""
    return _in_flight[0]


@contextmanager
def packed(model: nn.Module, packing: Packing | None) -> Iterator[None]:
    """Inside, attention of ``model`` reads its input by ``packing``; ``None`` changes nothing.

    A backward belongs inside too: it may compute layers again.
    """
    if packing is None:
        yield
        return
    register()
    changed = [config for config in attention_configs(model) if attention_of(config) == "sdpa"]
    for config in changed:
        set_attention(config, NAME)
    before, _in_flight[0] = _in_flight[0], packing
    try:
        yield
    finally:
        _in_flight[0] = before
        for config in changed:
            if attention_of(config) == NAME:
                set_attention(config, "sdpa")


def attention_configs(model: Any) -> list[Any]:
    """The configurations that name the attention of ``model``'s stacks, each once."""
    return list({id(stack.config): stack.config for stack in [model, *_stacks(model)]}.values())


def why_not_packed(model: Any) -> str | None:
    """Why rows of ``model`` cannot lie end to end, as its layers are built; ``None`` where they may.

    A trial alone would not do: a model that makes little of its tokens passes it with rows that see one another.
    """
    for stack in _stacks(model):
        if not dispatches_attention(stack):
            return "its attention does not go through transformers' AttentionInterface"
        if (mixer := token_mixer(stack)) is not None:
            return f"its {mixer} reads tokens outside attention"
        if model.config.is_encoder_decoder and not any(hasattr(module, "compute_bias") for module in stack.modules()):
            return "it takes positions from the index in a row"
    if not model.config.is_encoder_decoder and "position_ids" not in inspect.signature(model.forward).parameters:
        return "it accepts no position ids"
    return None


def token_mixer(stack: nn.Module) -> str | None:
    """Class of a module of ``stack`` that lets a token see others by other means than attention, if there is one."""
    kinds = (type(module) for module in stack.modules())
    return next((kind.__name__ for kind in kinds if issubclass(kind, nn.Conv1d) or _MIXERS.search(kind.__name__)), None)


_MIXERS = re.compile(
    "Mamba|SSM|ShortConv|DeltaNet|Recurrent|Rwkv|LSTM|LightningAttention|LinearAttention|Hyena|CausalConv"
)
"""Of class names: states that go from token to token, convolutions over tokens."""


def window_of(config: Any) -> int | None:
    """Tokens that a layer sees at most, where some layers have such a window."""
    kinds = getattr(config, "layer_types", None)
    if kinds and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None) or None  # 0 where a mixture of Qwen has none


def _stacks(model: Any) -> list[Any]:
    return [model.get_decoder(), *([model.get_encoder()] if model.config.is_encoder_decoder else [])]


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
        return kernel(module, query, key, value, attention_mask, **kwargs)

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
    asking, answering = (packing.stream_of(x.shape[0] * x.shape[2]) for x in (query, key))
    queries = _to_buckets(query, asking)
    keys, values = _to_buckets(key, answering), _to_buckets(value, answering)
    itself = asking is answering
    causal = itself and bool(getattr(module, "is_causal", True))
    bias = kwargs.pop("position_bias", None)
    own_bias = None if bias is None or not itself else _bias_of(module, packing, asking)
    found = []
    for at, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
        bucket = Bucket(packing.rows[at], None if causal else answering.real[at], causal and q.shape[2] > 1)
        if own_bias is not None:
            kwargs["position_bias"] = own_bias[:, :, : q.shape[2], : k.shape[2]]
        elif bias is not None:
            kwargs["position_bias"] = bias.new_zeros(1, 1, 1, 1)
        output = run(bucket, q, k, v, **kwargs)
        found.append(output.reshape(-1, output.shape[2] * output.shape[3]))
    joined = torch.cat(found) if len(found) > 1 else found[0]
    flat: Tensor = _moved(joined, asking.slots, asking.places, asking.empty_slots)
    return flat.view(query.shape[0], query.shape[2], query.shape[1], -1)


def _bias_of(module: Any, packing: Packing, stream: Stream) -> Tensor:
    """T5's position bias, one for all rows: layers without a table of their own take that of the first layer."""
    decoder = bool(module.is_decoder)
    if module.has_relative_attention_bias:
        packing.biases[decoder] = module.compute_bias(stream.widest, stream.widest)
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
