"""Rows of a batch as streams of tokens: which row lies where, which chunks layers see, which buckets attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtlbench.backbones.transfer import to_device
from mtlbench.nn.packing import Packing, RowBounds, Stream
from mtlbench.training.cuts import like_length

Ints = NDArray[np.int64]
BUCKET_SLOTS = 48
"""What one more bucket costs in attention, in padded slots."""
CHUNK_TOKENS = 3
"""What one more chunk costs a layer with factors of its own for each, in tokens."""
WIDTHS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one stack stand: row after row, those of one task together, each task in whole chunks."""

    starts: Ints
    """Place of each row's first token ``[rows]``."""
    lengths: Ints
    chunks: int
    width: int
    tasks: Ints | None
    """Task of each chunk; ``None`` for one chunk with rows of all tasks."""

    @property
    def places(self) -> int:
        return self.chunks * self.width

    def spread(self, texts: Sequence[Ints], fill: int) -> Ints:
        """``texts`` of the rows as ``[chunks, width]``."""
        laid = np.full(self.places, fill, dtype=np.int64)
        laid[np.concatenate([start + np.arange(n) for start, n in zip(self.starts, self.lengths, strict=True)])] = (
            np.concatenate(texts)
        )
        return laid.reshape(self.chunks, self.width)

    def positions(self) -> Ints:
        """Positions of the tokens in their rows ``[chunks, width]``."""
        return self.spread([np.arange(n) for n in self.lengths], 0)


def lay_out(lengths: Ints, tasks: Ints, *, by_task: bool, more: int = 0) -> Layout:
    """Rows of ``lengths`` in a stream; ``by_task`` in chunks of one task each, or all in one chunk.

    Args:
        more: Empty chunks at the end, or empty places where all is one chunk.
    """
    if not by_task:
        starts = np.cumsum(lengths) - lengths
        return Layout(starts, lengths, 1, int(lengths.sum()) + more, None)
    order = np.argsort(tasks, kind="stable")
    known, first = np.unique(tasks[order], return_index=True)
    totals = np.add.reduceat(lengths[order], first)
    width = min(WIDTHS, key=lambda w: int((-(-totals // w)).sum()) * (w + CHUNK_TOKENS))
    chunks = -(-totals // width)
    begins = (np.cumsum(chunks) - chunks) * width
    own = lengths[order]
    within = np.cumsum(own) - own
    of_task = np.repeat(np.arange(len(known)), np.diff([*first, len(order)]))
    starts = np.empty_like(lengths)
    starts[order] = begins[of_task] + within - within[first][of_task]
    ids = np.repeat(known, chunks)
    return Layout(
        starts, lengths, int(chunks.sum()) + more, int(width), np.concatenate([ids, np.repeat(ids[-1:], more)])
    )


def pack(layouts: Sequence[Layout]) -> Packing:
    """The streams of ``layouts`` on the host, with rows of like length in one bucket: by the first stack's lengths."""
    lengths = layouts[0].lengths
    order = np.argsort(lengths, kind="stable")
    buckets = [order[cut] for cut in like_length(lengths[order].tolist(), extra=BUCKET_SLOTS)]
    return Packing(
        rows=tuple(torch.from_numpy(np.ascontiguousarray(rows)) for rows in buckets),
        streams=tuple(_stream(layout, buckets) for layout in layouts),
        starts=torch.from_numpy(layouts[0].starts),
        lengths=torch.from_numpy(lengths),
        bounds=row_bounds(layouts[0]) if len(layouts) == 1 else None,
    )


def row_bounds(layout: Layout) -> RowBounds:
    """Where rows begin and end in a stream. Places between them, at the ends of chunks, are rows of their own."""
    order = np.argsort(layout.starts, kind="stable")
    rows, edges, at = [], [0], 0
    for row in order:
        start, length = int(layout.starts[row]), int(layout.lengths[row])
        if start > at:
            rows.append(-1)
            edges.append(start)
        rows.append(int(row))
        edges.append(start + length)
        at = start + length
    if layout.places > at:
        rows.append(-1)
        edges.append(layout.places)
    numbers = np.asarray(rows, dtype=np.int64)
    return RowBounds(
        edges=torch.from_numpy(np.asarray(edges, dtype=np.int32)),
        rows=torch.from_numpy(np.maximum(numbers, 0)),
        longest=int(np.diff(edges).max()),
        lengths=tuple(int(length) for length in np.diff(edges)),
    )


def _stream(layout: Layout, buckets: Sequence[Ints]) -> Stream:
    places, shapes, real = [], [], []
    for rows in buckets:
        own = layout.lengths[rows]
        width = int(own.max())
        at = np.arange(width)
        held = at < own[:, None]
        places.append(np.where(held, layout.starts[rows][:, None] + at, -1).reshape(-1))
        shapes.append((len(rows), width))
        real.append(None if held.all() else torch.from_numpy(held)[:, None, None])
    flat = np.concatenate(places)
    slots = np.full(layout.places, -1, dtype=np.int64)
    slots[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    return Stream(
        chunks=layout.chunks,
        tasks=None if layout.tasks is None else torch.from_numpy(layout.tasks),
        places=torch.from_numpy(np.maximum(flat, 0)),
        slots=torch.from_numpy(np.maximum(slots, 0)),
        empty_slots=torch.from_numpy(np.flatnonzero(flat < 0)),
        empty_places=torch.from_numpy(np.flatnonzero(slots < 0)),
        shapes=tuple(shapes),
        real=tuple(real),
    )


def put(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on a device, which nothing waits for."""
    return to_device(torch.from_numpy(np.ascontiguousarray(array)), device)
