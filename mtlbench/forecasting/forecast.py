"""``mtlbench plan --forecast``: what the cells to run will need, as lines; refuses what cannot fit."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch

from mtlbench.api.cell import Cell
from mtlbench.api.executor import DevicesPerCell
from mtlbench.api.record import Record
from mtlbench.cells.bench import Bench
from mtlbench.errors import RequestError
from mtlbench.executors.devices import Device
from mtlbench.executors.slots import pool
from mtlbench.files.owner import cpus
from mtlbench.forecasting.memory import Counts, count_parameters
from mtlbench.forecasting.time import Memory, Pace, Workload, disk_of, memory_of, pace_of, seconds_of, workload_of

_STATUS, _MEMINFO, _CGROUP = Path("/proc/self/status"), Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the cells would run."""

    device: str
    """``cpu`` or ``cuda``."""
    memory: int | None
    """Bytes of a device, or of this machine for ``cpu``; ``None`` where it is not known."""
    workers: int
    """Cells at once."""
    devices: DevicesPerCell = field(default_factory=DevicesPerCell)
    """Of each cell."""

    def room(self, cell: Cell) -> int | None:
        """Bytes that each device of ``cell`` may use; on one machine's CPU they share its memory."""
        if self.memory is None or self.device != "cpu":
            return self.memory
        return self.memory // self.devices(cell)


def target_of(device: str, cards: Sequence[Device], *, todo: Sequence[Cell], devices: DevicesPerCell) -> Target:
    """What the local executor would use for the cells ``todo``.

    Raises:
        RequestError: ``cuda`` is asked for and there is no GPU.
    """
    demand = Counter(map(devices, todo)) or {1: 1}
    made = pool(device, 0, demand=demand, cores=cpus(), cards=tuple(cards) if device != "cpu" else ())
    sizes = [card.memory for card in made.devices if card.memory is not None]
    memory = host_memory() if made.device == "cpu" else min(sizes, default=None)
    workers = min(len(made.devices) // min(demand), max(len(todo), 1))
    return Target(device=made.device, memory=memory, workers=max(workers, 1), devices=devices)


def host_memory() -> int | None:
    """Bytes of memory that this process may use, where the system tells."""
    found = []
    for path in (_MEMINFO, _CGROUP):
        try:
            words = path.read_text().split()
        except OSError:
            continue
        if path is _MEMINFO and "MemTotal:" in words:
            found.append(int(words[words.index("MemTotal:") + 1]) * 1024)
        elif words and words[0].isdigit():
            found.append(int(words[0]))
    return min(found, default=None)


@dataclass(frozen=True, kw_only=True)
class VariantForecast:
    """The forecast of the cells of one variant."""

    cell: Cell
    """One of them."""
    cells: int
    counts: Counts
    memory: Memory
    smallest: Memory
    """With one row in a pass."""
    seconds: float
    """Of one of them, its whole budget used."""
    kept: int
    """Bytes on disk of one of them."""
    passing: int
    """More bytes while it runs."""
    pace: Pace


def forecasts(
    todo: Sequence[Cell], records: Mapping[str, Record], *, place: Target, data: str
) -> tuple[list[VariantForecast], dict[str, str]]:
    """The forecast of each variant among the cells to run, and the reason for each that its backbone refuses."""
    bench = Bench(device=place.device, threads=max(1, cpus() // place.workers), data=data)
    known = _Known(bench)
    recorded = [record for record in records.values() if record.status == "ok" and record.costs is not None]
    found: list[VariantForecast] = []
    refused: dict[str, str] = {}
    groups: dict[tuple[str, str, tuple[str, ...], str], list[Cell]] = {}
    for cell in todo:
        groups.setdefault((cell.variant, cell.model, cell.tasks, cell.protocol.hash()), []).append(cell)
    for (variant, *_), cells in groups.items():
        cell = cells[0]
        try:
            counts, load = known.of(cell)
        except RequestError as error:
            refused[variant] = str(error)
            continue
        like = [record for record in recorded if record.cell.model == cell.model and _on(record, place)]
        same = [record for record in like if record.cell.variant == variant]
        measured = [(record, *known.of(record.cell)) for record in (same or like)]
        dtype = bench.dtypes(cell)[0]
        gflops = bench.machine.float32_gflops if dtype is torch.float32 else bench.machine.bfloat16_gflops
        pace = pace_of(measured, gflops=gflops)
        rest = _rest(measured, bytes_each=dtype.itemsize, place=place)
        kept, passing = disk_of(counts, load)
        each = place.devices(cell)
        memory = partial(
            memory_of, cell, counts, load, bytes_each=dtype.itemsize, rest=rest, devices=each, shard=place.devices.shard
        )
        found.append(
            VariantForecast(
                cell=cell,
                cells=len(cells),
                counts=counts,
                memory=memory(),
                smallest=memory(rows=1),
                seconds=seconds_of(counts, load, pace) / each,
                kept=kept,
                passing=passing,
                pace=pace,
            )
        )
    return found, refused


def forecast_lines(
    found: Sequence[VariantForecast], refused: Mapping[str, str], *, place: Target, folder: Path
) -> list[str]:
    """One line for each variant and one for all."""
    lines = [f"{variant}: will be skipped: {reason}" for variant, reason in refused.items()]
    for one in found:
        memory = one.memory
        parts = f"weights {_mib(memory.weights)}, training {_mib(memory.training)}, "
        parts += f"activations {_mib(memory.activations)}, rest {_mib(memory.rest)}"
        time = f"{one.seconds:.0f} s a cell, as {one.pace.records} recorded"
        if not one.pace.records:
            time = f"{one.seconds:.0f} s a cell at the matrix rate measured now, expect a few times that"
        each = place.devices(one.cell)
        line = f"{one.cell.variant}: memory {_mib(memory.total)}{f' on each of {each} devices' if each > 1 else ''} "
        line += f"({parts}); {time}"
        line += f"; disk {_mib(one.kept)}, {_mib(one.passing)} more while it runs"
        if (room := place.room(one.cell)) is not None and memory.total > room:
            line += f"; a pass of {one.cell.protocol.micro_batch or one.cell.protocol.batch_size} rows will be halved"
        lines.append(line)
    work = sum(one.seconds * one.cells for one in found)
    disk = sum(one.kept * one.cells for one in found) + place.workers * max((one.passing for one in found), default=0)
    size = f"{_mib(place.memory)} each" if place.memory is not None else "of unknown memory"
    where = (
        f"on this machine's CPU ({_mib(place.memory)})" if place.device == "cpu" and place.memory else f"on GPUs {size}"
    )
    lines.append(
        f"{sum(one.cells for one in found)} cells: {work:.0f} s of work, {work / place.workers:.0f} s with "
        f"{place.workers} worker{'s' if place.workers > 1 else ''} {where}; "
        f"disk {_mib(disk)} of {_mib(free_disk(folder))} free"
    )
    return lines


def refuse_what_cannot_fit(found: Sequence[VariantForecast], *, place: Target, folder: Path) -> None:
    """Refuse cells that need more than a device has even with one row in a pass, or more disk than is free.

    Raises:
        RequestError: naming the variant, what it needs and what there is.
    """
    for one in found:
        if (room := place.room(one.cell)) is not None and one.smallest.total > room:
            raise RequestError(
                f"{one.cell.variant} on {one.cell.model} needs about {_mib(one.smallest.total)} with one row in a "
                f"pass, and there are {_mib(room)}. Take a smaller model, a shorter --max-length, "
                "--checkpointing, or a device with more memory."
            )
    disk = sum((one.kept + one.passing) * one.cells for one in found)
    if disk > free_disk(folder):
        raise RequestError(
            f"The cells need about {_mib(disk)} of disk, and {_mib(free_disk(folder))} are free at {str(folder)!r}. "
            "Free space, or name another folder with --out."
        )


def free_disk(folder: Path) -> int:
    """Free bytes where the run folder is or would be."""
    path = folder.resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


class _Known:
    """Counts and workloads, each made once."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._counts: dict[tuple[str, str, tuple[str, ...], str], Counts] = {}
        self._loads: dict[tuple[str, tuple[str, ...], str], Workload] = {}

    def of(self, cell: Cell) -> tuple[Counts, Workload]:
        key, rest = (cell.model, cell.tasks, cell.protocol.hash()), cell.variant
        if (rest, *key) not in self._counts:
            self._counts[rest, *key] = count_parameters(cell)
        counts = self._counts[rest, *key]
        if key not in self._loads:
            self._loads[key] = workload_of(cell, bench=self._bench, architecture=counts.architecture)
        return counts, self._loads[key]


def _on(record: Record, place: Target) -> bool:
    kind = record.costs.peak_memory_kind if record.costs else ""
    return kind == ("process" if place.device == "cpu" else "device")


def _rest(measured: Sequence[tuple[Record, Counts, Workload]], *, bytes_each: int, place: Target) -> int:
    """What recorded cells needed beyond their parts; without any, on a CPU, what this process needs by now."""
    rests = [
        record.costs.peak_memory - memory_of(record.cell, counts, load, bytes_each=bytes_each, rest=0).total
        for record, counts, load in measured
        if record.costs is not None and record.costs.peak_memory is not None
    ]
    if rests:
        return max(0, round(median(rests)))
    if place.device != "cpu":
        return 0
    words = _STATUS.read_text().split() if _STATUS.exists() else []
    return int(words[words.index("VmRSS:") + 1]) * 1024 if "VmRSS:" in words else 0


def _mib(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / _MIB:.1f} MiB"
