"""Forecast of memory and time for a backbone with random weights, before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from mtlbench.errors import RequestError
from mtlbench.executors.devices import Inventory, Nvidia
from mtlbench.measuring.request import RANDOM, MeasureRow
from mtlbench.text import duration, memory

PARAMETERS: Mapping[str, int] = {"llama-7b": 6_738_415_616, "t5-large": 737_668_096}
"""Number of parameters by shape."""
_PER_WEIGHT = 4
"""FLOPs per weight and token of a step: forward and the gradient of the input, two each."""


def forecast(rows: Sequence[MeasureRow], *, inventory: Inventory | None = None) -> Iterator[str]:
    """A forecast line for random weights on a CPU; no line if they fit on an accelerator.

    Raises:
        RequestError: the weights alone do not fit into memory.
    """
    row = next((row for row in rows if row.model.startswith(RANDOM)), None)
    if row is None:
        return
    weights = PARAMETERS[row.model.removeprefix(RANDOM)]
    needed = weights * (4 if row.dtype == "float32" else 2)
    devices = () if row.device == "cpu" else (inventory or Nvidia()).devices()
    free = [device.memory - device.used for device in devices if device.memory is not None]
    available, where = (max(free), "the accelerator") if free else (_free(), "memory")
    if needed > available and (free or not devices):
        raise RequestError(
            f"The weights of {row.model} take {memory(needed)} in {_dtype(row)}, and {where} has "
            f"{memory(available)} free. Use a machine with more, or measure a smaller backbone: --model demo."
        )
    if devices:
        return
    tokens = row.batch_size * (row.shortest + row.longest) / 2
    step = _PER_WEIGHT * weights * tokens / _rate()
    training = step * (row.steps + row.warmup) * len(rows)
    yield (
        f"{row.model} on a CPU: {memory(needed)} of weights ({memory(available)} free), about "
        f"{step:,.0f} s a step, so about {duration(training)} for the training of {len(rows)} "
        f"row{'s' if len(rows) > 1 else ''}. For the same rows on a small backbone: --model demo"
    )


def _dtype(row: MeasureRow) -> str:
    return row.dtype if row.dtype != "auto" else "bfloat16"


def _free() -> int:
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)


def _rate(size: int = 768) -> float:
    """FLOP/s of a float32 matrix product on this machine, the best of three."""
    import numpy as np

    square = np.ones((size, size), dtype=np.float32)
    best = 0.0
    for _ in range(4):  # the first one starts the library's threads
        begun = time.perf_counter()
        square @ square
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best
