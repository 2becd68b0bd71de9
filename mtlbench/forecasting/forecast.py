"""``mtlbench plan --forecast``: memory, time and disk of the cells to run, as text; rejects cells that cannot fit."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch

from mtlbench import text
from mtlbench.api.cell import Cell
from mtlbench.api.executor import DevicesPerCell
from mtlbench.api.record import Record
from mtlbench.api.row_checks import RowCheck
from mtlbench.backbones.machine import share_of
from mtlbench.cells.bench import Bench
from mtlbench.errors import RequestError
from mtlbench.executors.devices import Device
from mtlbench.executors.slots import pool
from mtlbench.files.owner import cpus
from mtlbench.forecasting.memory import ParameterCounts, count_parameters
from mtlbench.forecasting.time import (
    MemoryForecast,
    Throughput,
    TokenForecast,
    forecast_disk,
    forecast_memory,
    forecast_seconds,
    throughput_of,
    token_forecast_of,
)

_STATUS, _MEMINFO, _CGROUP = Path("/proc/self/status"), Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The machine on which the cells would run."""

    device: str
    """``cpu`` or ``cuda``."""
    memory: int | None
    """Bytes of a device, or of this machine for ``cpu``; ``None`` if unknown."""
    workers: int
    """Cells that run in parallel."""
    devices: DevicesPerCell = field(default_factory=DevicesPerCell)
    """Devices of each cell."""

    def room(self, cell: Cell) -> int | None:
        """Bytes that each device of ``cell`` may use; processes on the CPU share its memory, workers on a GPU its."""
        if self.memory is None:
            return None
        if self.device != "cpu":
            return share_of(self.memory, workers=self.devices.workers)
        return self.memory // self.devices(cell)


def target_of(device: str, cards: Sequence[Device], *, todo: Sequence[Cell], devices: DevicesPerCell) -> Target:
    """What the local executor would use for the cells ``todo``.

    Raises:
        RequestError: ``cuda`` is requested without a GPU.
    """
    demand = Counter(map(devices, todo)) or {1: 1}
    devices_pool = pool(
        device, 0, demand=demand, cores=cpus(), cards=tuple(cards) if device != "cpu" else (), shared_by=devices.workers
    )
    sizes = [card.memory for card in devices_pool.devices if card.memory is not None]
    memory = host_memory() if devices_pool.device == "cpu" else min(sizes, default=None)
    workers = min(len(devices_pool.devices) // min(demand), max(len(todo), 1))
    return Target(device=devices_pool.device, memory=memory, workers=max(workers, 1), devices=devices)


def host_memory() -> int | None:
    """Bytes of memory that this process may use; ``None`` if unknown."""
    limits = []
    for path in (_MEMINFO, _CGROUP):
        try:
            fields = path.read_text().split()
        except OSError:
            continue
        if path is _MEMINFO and "MemTotal:" in fields:
            limits.append(int(fields[fields.index("MemTotal:") + 1]) * 1024)
        elif fields and fields[0].isdigit():
            limits.append(int(fields[0]))
    return min(limits, default=None)


@dataclass(frozen=True, kw_only=True)
class VariantForecast:
    """The forecast of the cells of one variant."""

    cell: Cell
    """A representative cell."""
    cells: int
    counts: ParameterCounts
    memory: MemoryForecast
    smallest: MemoryForecast
    """Memory with a micro-batch of one."""
    seconds: float
    """Of one cell, without early stopping."""
    disk: int
    """Bytes that one cell leaves on disk."""
    temporary_disk: int
    """Additional bytes on disk while it runs."""
    throughput: Throughput
    tasks_per_step: float
    largest_share: float
    """Of the task with most examples in a step."""
    checks: Mapping[str, RowCheck]
    """What would be truncated of each task."""


def forecasts(
    todo: Sequence[Cell], records: Mapping[str, Record], *, target: Target, data: str
) -> tuple[list[VariantForecast], dict[str, str]]:
    """Forecast of each variant among the cells to run, and the reason for each that refuses its backbone."""
    bench = Bench(device=target.device, threads=max(1, cpus() // target.workers), data=data)
    cache = _Cache(bench)
    recorded = [record for record in records.values() if record.status == "ok" and record.costs is not None]
    variants: list[VariantForecast] = []
    refused: dict[str, str] = {}
    groups: dict[tuple[str, str, tuple[str, ...], str], list[Cell]] = {}
    for cell in todo:
        groups.setdefault((cell.variant, cell.model, cell.tasks, cell.protocol.hash()), []).append(cell)
    for (variant, *_), cells in groups.items():
        cell = cells[0]
        try:
            counts, tokens = cache.of(cell)
        except RequestError as error:
            refused[variant] = str(error)
            continue
        like = [record for record in recorded if record.cell.model == cell.model and _on(record, target)]
        same = [record for record in like if record.cell.variant == variant]
        measured = [(record, *cache.of(record.cell)) for record in (same or like)]
        dtype = bench.dtypes(cell)[0]
        gflops = bench.machine.float32_gflops if dtype is torch.float32 else bench.machine.bfloat16_gflops
        throughput = throughput_of(measured, gflops=gflops)
        rest = _rest(measured, bytes_each=dtype.itemsize, target=target)
        disk, temporary_disk = forecast_disk(counts, tokens)
        each = target.devices(cell)
        memory = partial(
            forecast_memory,
            cell,
            counts,
            tokens,
            bytes_each=dtype.itemsize,
            rest=rest,
            devices=each,
            shard=target.devices.shard,
            device=target.device,
        )
        variants.append(
            VariantForecast(
                cell=cell,
                cells=len(cells),
                counts=counts,
                memory=memory(),
                smallest=memory(rows=1),
                seconds=forecast_seconds(counts, tokens, throughput) / each,
                disk=disk,
                temporary_disk=temporary_disk,
                throughput=throughput,
                tasks_per_step=tokens.tasks_per_step,
                largest_share=tokens.largest_share,
                checks=tokens.checks,
            )
        )
    return variants, refused


def forecast_lines(
    variants: Sequence[VariantForecast], refused: Mapping[str, str], *, target: Target, folder: Path
) -> list[str]:
    """One line per variant, and one for all."""
    lines = [f"{variant}: will be skipped: {reason}" for variant, reason in refused.items()]
    for one in variants:
        memory = one.memory
        breakdown = f"weights {_amount(memory.weights)}, training {_amount(memory.training)}, "
        breakdown += f"activations {_amount(memory.activations)}, rest {_amount(memory.rest)}"
        time = f"{one.seconds:.0f} s a cell, as {one.throughput.records} recorded"
        if not one.throughput.records:
            time = f"{one.seconds:.0f} s a cell at the matrix rate measured now, expect a few times that"
        each = target.devices(one.cell)
        line = f"{one.cell.variant}: memory {_amount(memory.total)}{f' on each of {each} devices' if each > 1 else ''} "
        line += f"({breakdown}); {time}"
        line += f"; disk {_amount(one.disk)}, {_amount(one.temporary_disk)} more while it runs"
        if (room := target.room(one.cell)) is not None and memory.total > room:
            line += f"; a pass of {one.cell.protocol.micro_batch or one.cell.protocol.batch_size} rows will be halved"
        lines.append(line)
    lines += dict.fromkeys(map(_step_line, variants))
    lines += dict.fromkeys(
        sentence
        for one in variants
        for task, check in one.checks.items()
        for sentence in check.sentences(task, max_length=one.cell.protocol.max_length, verb="would be")
    )
    work = sum(one.seconds * one.cells for one in variants)
    disk = sum(one.disk * one.cells for one in variants) + target.workers * max(
        (one.temporary_disk for one in variants), default=0
    )
    size = f"{_amount(target.memory)} each" if target.memory is not None else "of unknown memory"
    where = (
        f"on this machine's CPU ({_amount(target.memory)})"
        if target.device == "cpu" and target.memory
        else f"on GPUs {size}"
    )
    lines.append(
        f"{sum(one.cells for one in variants)} cells: {work:.0f} s of work, {work / target.workers:.0f} s with "
        f"{target.workers} worker{'s' if target.workers > 1 else ''} {where}; "
        f"disk {_amount(disk)} of {_amount(free_disk(folder))} free"
    )
    return lines


def _step_line(one: VariantForecast) -> str:
    protocol, tasks = one.cell.protocol, len(one.cell.scored)
    return (
        f"a step of {protocol.batch_size} examples ({protocol.batching}) holds {one.tasks_per_step:.1f} of {tasks} "
        f"task{'s' if tasks != 1 else ''}, {one.largest_share:.0%} of one"
    )


def check_fits(variants: Sequence[VariantForecast], *, target: Target, folder: Path) -> None:
    """Reject cells that need more memory than a device has even with a micro-batch of one, or more disk than is free.

    Raises:
        RequestError: naming the variant, what it needs and what is available.
    """
    for one in variants:
        if (room := target.room(one.cell)) is not None and one.smallest.total > room:
            raise RequestError(
                f"{one.cell.variant} on {one.cell.model} needs about {_amount(one.smallest.total)} with one row in a "
                f"pass, but only {_amount(room)} are available. Take a smaller model, a shorter --max-length, "
                "--checkpointing, or a device with more memory."
            )
    disk = sum((one.disk + one.temporary_disk) * one.cells for one in variants)
    if disk > free_disk(folder):
        raise RequestError(
            f"The cells need about {_amount(disk)} of disk, but {_amount(free_disk(folder))} are free at "
            f"{str(folder)!r}. Free space, or name another folder with --out."
        )


def free_disk(folder: Path) -> int:
    """Free bytes where the run folder is or would be."""
    path = folder.resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


class _Cache:
    """Parameter counts and token forecasts, each computed once."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._counts: dict[tuple[str, str, tuple[str, ...], str], ParameterCounts] = {}
        self._tokens: dict[tuple[str, tuple[str, ...], str], TokenForecast] = {}

    def of(self, cell: Cell) -> tuple[ParameterCounts, TokenForecast]:
        key, rest = (cell.model, cell.tasks, cell.protocol.hash()), cell.variant
        if (rest, *key) not in self._counts:
            self._counts[rest, *key] = count_parameters(cell)
        counts = self._counts[rest, *key]
        if key not in self._tokens:
            self._tokens[key] = token_forecast_of(cell, bench=self._bench, architecture=counts.architecture)
        return counts, self._tokens[key]


def _on(record: Record, target: Target) -> bool:
    kind = record.costs.peak_memory_kind if record.costs else ""
    return kind == ("process" if target.device == "cpu" else "device")


def _rest(measured: Sequence[tuple[Record, ParameterCounts, TokenForecast]], *, bytes_each: int, target: Target) -> int:
    """Memory of recorded cells beyond the other terms; without records, on a CPU, the memory of this process now."""
    rests = [
        record.costs.peak_memory
        - forecast_memory(record.cell, counts, tokens, bytes_each=bytes_each, rest=0, device=target.device).total
        for record, counts, tokens in measured
        if record.costs is not None and record.costs.peak_memory is not None
    ]
    if rests:
        return max(0, round(median(rests)))
    if target.device != "cpu":
        return 0
    fields = _STATUS.read_text().split() if _STATUS.exists() else []
    return int(fields[fields.index("VmRSS:") + 1]) * 1024 if "VmRSS:" in fields else 0


def _amount(size: int | None) -> str:
    return "unknown" if size is None else text.memory(size)
