"""Cutting the rows of a step into passes of like length, so that hardly any padding is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

LAYER_FLOP = {"cpu": 0.08e9}
"""What starting one more forward and backward of a layer costs, as the arithmetic a core does meanwhile (1 ms)."""
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


def like_length(lengths: Sequence[int], *, extra: float) -> list[slice]:
    """Where to cut rows, shortest first, so that padding and ``extra`` slots per pass are least.

    Args:
        lengths: Tokens of each row, in the order of the rows; a pass computes its longest for each of its rows.
        extra: Slots that each pass costs.

    Returns:
        Slices that cover all rows in order.
    """
    count = len(lengths)
    sizes = np.asarray(lengths, dtype=np.float64)
    cost = np.zeros(count + 1)
    start = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        longest = np.maximum.accumulate(sizes[:end][::-1])[::-1]
        options = cost[:end] + longest * (end - np.arange(end)) + extra
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
