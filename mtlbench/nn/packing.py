"""Rows of unlike length without padding: laid end to end through the layers, padded only inside attention.

The tokens of a batch are one stream, which layers see as *chunks*: ``[chunks, width, hidden]``, where all tokens of a
chunk belong to rows of one task. A layer that treats its input row by row, such as one routed by task, therefore works
on chunks as it does on rows. Attention (:mod:`mtlbench.nn.packed_attention`) takes the rows out of the stream into
buckets of like length, or gives a kernel that knows rows of unlike length their bounds.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mtlbench.compat import attention_of, dispatches_attention

PREFIXED = "mtlbench"
"""Name of the attention function of models with a prefix, which :mod:`mtlbench.nn.prefixes.attention` makes known."""
NAME = "mtlbench_packed"
"""Name of the attention function inside transformers; :mod:`mtlbench.nn.packed_attention` makes it known."""


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
class RowBounds:
    """The rows of a stream as kernels for rows of unlike length take them. Unused places between rows are rows too."""

    edges: Tensor
    """Where each begins, and the end of the last ``[rows + 1]``, int32."""
    rows: Tensor
    """Their numbers in the batch; 0 for unused places ``[rows]``."""
    lengths: tuple[int, ...]
    longest: int
    joined: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    """What puts a prefix before each row, by its length; made by the first layer that has one."""


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
    bounds: RowBounds | None = None
    """Of the rows of a decoder-only stack."""
    kernel: Callable[..., Tensor] | None = None
    """What reads rows by their bounds; ``None`` leaves it to :mod:`mtlbench.nn.varlen`."""
    reads: set[str] = field(default_factory=set)
    """How attention read the rows: by ``bounds``, in ``buckets``, or both."""
    biases: dict[bool, tuple[Tensor, ...]] = field(default_factory=dict)
    """Position bias and mask of each bucket in one, by whether they are the decoder's; made by the first layer that has
    a table of them."""
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Masks of causal rows behind a prefix, by queries and prefix tokens, for all layers."""

    @property
    def by_bounds(self) -> bool:
        """Whether attention read rows by their bounds."""
        return "bounds" in self.reads

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
_unmasked: list[bool] = [False]


def packing_in_flight() -> Packing | None:
    """How the batch that runs now is packed; ``None`` where rows are padded."""
    return _in_flight[0]


def without_mask() -> bool:
    """Whether the mask that reaches attention stands for none, as no row needs one."""
    return _unmasked[0]


@contextmanager
def in_flight(packing: Packing | None, *, unmasked: bool = False) -> Iterator[None]:
    """Inside, :func:`packing_in_flight` and :func:`without_mask` answer so."""
    before = _in_flight[0], _unmasked[0]
    _in_flight[0], _unmasked[0] = packing, unmasked
    try:
        yield
    finally:
        _in_flight[0], _unmasked[0] = before


def passes_masks(model: Any, *, longest: int) -> bool:
    """Whether masks that are made ready reach the attention of ``model`` unread, for rows of at most ``longest`` tokens
    padded on the right: of a decoder-only one, see :func:`~mtlbench.nn.packed_attention.right_padded`."""
    config = model.config.get_text_config()
    window, chunk = window_of(config), getattr(config, "attention_chunk_size", None)
    return (
        {attention_of(own) for own in attention_configs(model)} <= {"sdpa", PREFIXED}
        and why_not_packed(model) is None
        and (window is None or window >= longest)
        and (chunk is None or chunk >= longest)
    )


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
