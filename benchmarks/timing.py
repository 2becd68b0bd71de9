"""Interleaved timing, its spread, and the bytes saved for backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Taken:
    """Seconds of one run."""

    wall: float
    cpu: float
    """Of the whole process: on a shared machine it does not count the time others had the core."""


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def timed(run: Callable[[], object], device: torch.device) -> Taken:
    """Seconds of ``run``, the device idle before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def spread(values: Sequence[float]) -> Quartiles:
    """Median and quartiles of ``values``."""
    low, median, high = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return Quartiles(median, low, high)


def interleaved(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device, warm: bool = True
) -> dict[str, list[Taken]]:
    """Times of every run, one after another in each round, every second round backwards.

    With ``warm`` each run is made once untimed before it is timed: what the run before it left in the allocator is gone
    then.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in list(runs.items())[:: -1 if number % 2 else 1]:
            if warm:
                run()
            taken[name].append(timed(run, device))
    return taken


def ratio(above: Sequence[Taken], below: Sequence[Taken], *, clock: str) -> Quartiles:
    """Quartiles of the ratios of runs of the same round by ``wall`` or ``cpu``."""
    return spread([getattr(a, clock) / getattr(b, clock) for a, b in zip(above, below, strict=True)])


def saved_tensor_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that ``forward`` keeps for the backward, the model's parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # held here, as a freed address could be given out again

    def pack(tensor: Tensor) -> None:  # gives nothing to the graph: an output kept by its own node would never be freed
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage

    def unpack(_: None) -> Tensor:
        raise RuntimeError("there is no backward of a forward whose bytes were counted")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        forward()
    return sum(storage.nbytes() for storage in storages.values())
