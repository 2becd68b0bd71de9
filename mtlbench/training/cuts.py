"""Where the rows of a step are cut: into passes that fit, and so that little padding is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mtlbench.backbones.backbone import BackboneSize

LAYER_FLOP = {"cpu": 0.3e9}
"""What starting one more forward and backward of a layer costs, as the arithmetic a core does meanwhile (3 ms)."""
ACCELERATOR_LAYER_FLOP = 500e9
"""The same on an accelerator. Both are constants, so that the cut, and with it the rounding, is the same everywhere."""


def pass_slots(model: nn.Module, device: torch.device) -> float:
    """The token slots that one more pass over ``model`` costs: below them, padding is cheaper.

    A slot costs two operations forward and two backward for every weight of the layers.
    """
    tables = {id(p) for part in _embeddings(model) for p in part.parameters()}
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    if not weights:
        return float("inf")
    config = getattr(model, "config", None)
    layers = sum(getattr(config, name, None) or 0 for name in ("num_hidden_layers", "num_decoder_layers")) or 1
    return layers * LAYER_FLOP.get(device.type, ACCELERATOR_LAYER_FLOP) / (4 * weights)


PASS_BYTES = {"cpu": 0.3e9}
"""Bytes that a pass keeps for backward, at most: more tokens at once are hardly faster there."""
ACCELERATOR_PASS_BYTES = 16e9
"""The same on an accelerator."""


def pass_tokens(size: BackboneSize, device: str, *, bytes_each: int) -> int:
    """How many tokens a pass over a backbone computes at most, where rows are not longer.

    Args:
        device: Type of the device: ``cpu`` or ``cuda``.
        bytes_each: Of a number in the precision of the computation.
    """
    kept = size.activations * bytes_each
    return int(PASS_BYTES.get(device, ACCELERATOR_PASS_BYTES) // kept) if kept else 2**62


def end_to_end(lengths: Sequence[int], *, most: float) -> list[slice]:
    """Where to cut rows, in their order, into as few and as equal passes of at most ``most`` tokens as can be.

    Returns:
        Slices that cover all rows in order; a row that is longer is a pass of its own.
    """
    total = sum(lengths)
    share = total / max(1, math.ceil(total / most))
    cuts: list[slice] = []
    start, held, done = 0, 0, 0
    for at, length in enumerate(lengths):
        if at > start and (held + length > most or done + held + length / 2 > share * (len(cuts) + 1)):
            cuts.append(slice(start, at))
            start, held, done = at, 0, done + held
        held += length
    return [*cuts, slice(start, len(lengths))] if lengths else []


def like_length(lengths: Sequence[int], *, extra: float, most: float = math.inf) -> list[slice]:
    """Where to cut rows, shortest first, so that padding and ``extra`` slots per pass are least.

    Args:
        lengths: Tokens of each row, in the order of the rows; a pass computes its longest for each of its rows.
        extra: Slots that each pass costs.
        most: Slots of a pass, unless a row is longer.

    Returns:
        Slices that cover all rows in order.
    """
    count = len(lengths)
    sizes = np.asarray(lengths, dtype=np.float64)
    cost = np.zeros(count + 1)
    start = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        longest = np.maximum.accumulate(sizes[:end][::-1])[::-1]
        slots = longest * (end - np.arange(end))
        slots[:-1][slots[:-1] > most] = np.inf
        options = cost[:end] + slots + extra
        start[end] = int(options.argmin())
        cost[end] = options[start[end]]
    cuts = []
    end = count
    while end:
        cuts.append(slice(int(start[end]), end))
        end = int(start[end])
    return cuts[::-1]


def _embeddings(model: nn.Module) -> list[nn.Module]:
    found = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    return [part for get in found if callable(get) and isinstance(part := get(), nn.Module)]
