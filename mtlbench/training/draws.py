"""Draws of dropout that do not depend on how many rows are computed at once.

Passes that were cut smaller for memory take the draws of the passes they were cut from: each begins with the same
random state, and takes its tokens' part of every mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mtlbench.nn.low_rank.dropout import DrawnPlaces, drawn_at
from mtlbench.training.batches import Batch
from mtlbench.training.checkpoints.model_state import draw_states, set_draw_states
from mtlbench.training.packing import put

Ints = NDArray[np.int64]
ROW = 2**24
"""Tokens of a row are numbered below this."""


@dataclass(frozen=True, eq=False)
class DrawnPass:
    """Some consecutive rows of a pass that would be computed at once if memory allowed."""

    whole: Batch
    """All rows of that pass."""
    first: int
    """The first of these rows in it."""


class Draws:
    """Gives each of several batches of a step its draws, in order."""

    def __init__(self, batches: Sequence[Batch], passes: Sequence[DrawnPass], *, device: torch.device) -> None:
        self._batches, self._passes, self._device = batches, passes, device
        self._whole: Batch | None = None
        self._states: Mapping[str, torch.Tensor] = {}

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Inside, the batch with this number is computed."""
        part = self._passes[number]
        if part.whole is self._whole:
            set_draw_states(self._states, self._device)
        else:
            self._whole, self._states = part.whole, draw_states(self._device)
        with drawn_at(_places(self._batches[number], part, self._device)):
            yield


def _places(batch: Batch, part: DrawnPass, device: torch.device) -> DrawnPlaces | None:
    if batch.rows == part.whole.rows:
        return None
    own, all_rows = _streams(batch, first=part.first), _streams(part.whole, first=0)
    places: dict[int, tuple[int, torch.Tensor]] = {}
    # What is computed at the answers only comes last and is looked for in the same, or in the whole stream.
    for number, tokens in enumerate(own):
        there = all_rows[min(number, len(all_rows) - 1)]
        order = np.argsort(there, kind="stable")
        at = order[np.minimum(np.searchsorted(there[order], tokens), len(order) - 1)]
        places.setdefault(len(tokens), (len(there), put(at.astype(np.int64), device)))
    return DrawnPlaces(places)


def _streams(batch: Batch, *, first: int) -> list[Ints]:
    """What stands at each place that layers see: row and number of its token as one number, -1 for none.

    The stream of a decoder-only stack or an encoder, that of a decoder, and the places of answers.
    """
    batch = batch.on_host
    ids = batch.inputs["input_ids"]
    stream = np.full(ids.numel(), -1, dtype=np.int64)
    if batch.packing is not None:
        starts, lengths = batch.packing.starts.tolist(), batch.packing.lengths.tolist()
    else:
        starts = [row * ids.shape[1] for row in range(batch.rows)]
        lengths = [ids.shape[1]] * batch.rows
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        stream[start : start + length] = (first + row) * ROW + np.arange(length)
    streams = [stream]
    if (decoder := batch.inputs.get("decoder_input_ids")) is not None:
        rows = batch.label_rows.numpy()
        within = np.arange(len(rows)) - np.searchsorted(rows, rows)
        written = np.full(decoder.numel(), -1, dtype=np.int64)
        written[batch.label_index.numpy()] = (first + rows) * ROW + within
        streams.append(written)
    if batch.answers is not None:
        streams.append(streams[-1][batch.answers.index.reshape(-1).numpy()])
    return streams
