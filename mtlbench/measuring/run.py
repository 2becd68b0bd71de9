"""Measures each row in its own process, so that memory starts empty and a failure does not affect other rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mtlbench.errors import RequestError
from mtlbench.executors import slots as leases
from mtlbench.executors.devices import Inventory, Nvidia
from mtlbench.files.owner import import_variables
from mtlbench.measuring.records import Measured, check_hardware, read_measured, write_measured
from mtlbench.measuring.request import RANDOM, MeasureRow
from mtlbench.text import duration, memory, one_line


def measure_rows(rows: Sequence[MeasureRow], folder: Path, *, log: Callable[[str], None]) -> bool:
    """Measure every row into ``folder``; returns whether all were measured or refused.

    Raises:
        RequestError: the backbone's weights do not fit, a run uses the device, or the first row shows that the folder's
            rows were measured on other hardware; that row is not written.
    """
    with alone_on_device(rows):
        return _measure_rows(rows, folder, log=log)


@contextmanager
def alone_on_device(rows: Sequence[MeasureRow], *, inventory: Inventory | None = None) -> Iterator[None]:
    """Inside, no run of mtlbench on this machine uses the device of ``rows``, which is the first one visible.

    Raises:
        RequestError: one does now.
    """
    cards = () if all(row.device == "cpu" for row in rows) else (inventory or Nvidia()).devices()[:1]
    held = leases.take(cards)
    if held is None:
        raise RequestError(
            f"A run of mtlbench on this machine uses the device {cards[0].id}, so nothing can be measured there. Wait "
            "until it has ended, or name another device in CUDA_VISIBLE_DEVICES."
        )
    try:
        yield
    finally:
        leases.release(held)


def _measure_rows(rows: Sequence[MeasureRow], folder: Path, *, log: Callable[[str], None]) -> bool:
    complete = True
    for line in forecast(rows):
        log(line)
    for row in rows:
        log(f"measuring {row.variant} on {row.model}")
        measured = _measured(row)
        check_hardware([*_others(folder, row), measured])
        path = write_measured(folder, row.name, measured)
        if measured["status"] != "ok":
            log(f"{row.variant}: {measured['status']}: {one_line(str(measured.get('reason', '')))}")
        complete = complete and measured["status"] in ("ok", "refused")
        log(f"wrote {path}")
    return complete


def _others(folder: Path, row: MeasureRow) -> list[Measured]:
    return [other for other in read_measured(folder) if MeasureRow.from_json(other["row"]) != row]


def _measured(row: MeasureRow) -> Measured:
    """The result of the row's process, or ``failed`` with its last line of output."""
    with tempfile.TemporaryDirectory(prefix="mtlbench-") as scratch:
        row_file, result_file = Path(scratch) / "row.json", Path(scratch) / "result.json"
        row_file.write_text(json.dumps(row.to_json()))
        done = subprocess.run(
            [sys.executable, "-m", "mtlbench.measuring.measure", str(row_file), str(result_file)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **import_variables()},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if result_file.exists():
            measured: Measured = json.loads(result_file.read_text())
            return measured
    lines = done.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"the process ended with {done.returncode}"
    return {
        "row": row.to_json(),
        "status": "failed",
        "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "reason": reason,
    }


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
