"""What layers report of their tokens, summed by row: the input of a method's auxiliary loss.

A loss over the tokens of a step, such as a balance of experts, must not depend on how the step is computed. Layers
report values of each token; here they become sums over the tokens of each row, without padding. Rows of several passes
and processes are put together by whoever computes the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlbench.api.routing import RowSums
from mtlbench.nn.packing import Packing


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The row of each token that layers see."""

    rows: int
    streams: Sequence[Tensor]
    """For each stream of tokens, by its place the number of its row, or ``rows`` for padding ``[places]``."""

    def of(self, places: int) -> Tensor:
        """Those of the stream with so many places.

        Raises:
            RuntimeError: there is none, or there are two.
        """
        found = [stream for stream in self.streams if stream.numel() == places]
        if len(found) != 1:
            sizes = ", ".join(str(stream.numel()) for stream in self.streams)
            raise RuntimeError(f"a layer that reports its tokens saw {places}; the streams of the batch have {sizes}")
        return found[0]


def packed_rows(packing: Packing) -> TokenRows:
    """The rows of the tokens of a packed batch. Places of a soft prompt belong to its row."""
    count = len(packing.lengths)
    streams = []
    for stream in packing.streams:
        by_slot = [
            own.repeat_interleave(width, output_size=rows * width)
            for own, (rows, width) in zip(packing.rows, stream.shapes, strict=True)
        ]
        streams.append(torch.cat(by_slot).index_select(0, stream.slots).index_fill(0, stream.empty_places, count))
    return TokenRows(count, streams)


def padded_rows(lengths: Sequence[tuple[Tensor, int]], *, slots: int = 0) -> TokenRows:
    """The rows of the tokens of batches that are padded on the right.

    Args:
        lengths: For each stream the tokens of each row ``[rows]`` and its width.
        slots: Places before each row of the first stream, for a soft prompt.
    """
    count = len(lengths[0][0])
    streams = []
    for number, (own, width) in enumerate(lengths):
        before = slots if number == 0 else 0
        at = torch.arange(width + before, device=own.device)
        rows = torch.arange(count, device=own.device)
        streams.append(torch.where(at < own[:, None] + before, rows[:, None], count).flatten())
    return TokenRows(count, streams)


class _Collector:
    def __init__(self, rows: TokenRows) -> None:
        self.rows = rows
        self.found: dict[str, RowSums] = {}


_collecting: list[_Collector | None] = [None]


@contextmanager
def collecting(rows: TokenRows | None) -> Iterator[Mapping[str, RowSums]]:
    """Inside, :func:`report` sums up what layers report; gives the sums by name of the layer.

    A backward belongs inside too: layers that are computed again there must do what they did before. ``None`` collects
    nothing.
    """
    if rows is None:
        yield {}
        return
    collector = _Collector(rows)
    before, _collecting[0] = _collecting[0], collector
    try:
        yield collector.found
    finally:
        _collecting[0] = before


def collects() -> bool:
    """Whether the pass in flight collects what layers report."""
    return _collecting[0] is not None


def report(layer: str, values: Tensor, *, shape: tuple[int, int]) -> None:
    """Report ``values`` of the tokens that ``layer`` sees.

    The first report of a layer in a pass counts; a layer that is computed again in the backward reports the same.

    Args:
        values: ``[rows or chunks, 1 or length, reported]``; 1 where all tokens of a chunk have the same.
        shape: Rows or chunks of the layer's input, and their length.
    """
    collector = _collecting[0]
    if collector is None:
        return
    index = collector.rows.of(shape[0] * shape[1])
    wide = values.to(torch.promote_types(values.dtype, torch.float32)).expand(*shape, -1).flatten(0, 1)
    count = collector.rows.rows
    sums = wide.new_zeros(count + 1, wide.shape[-1]).index_add(0, index, wide)[:count]
    if layer not in collector.found:
        tokens = wide.new_zeros(count + 1).index_add(0, index, wide.new_ones(len(index)))[:count]
        collector.found[layer] = RowSums(sums, tokens)
