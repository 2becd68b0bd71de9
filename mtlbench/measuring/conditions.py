"""Measurement conditions: hardware, load by other processes, memory and energy."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from mtlbench.measuring.records import Conditions

_log = logging.getLogger(__name__)

OTHERS_CORES = 0.1
"""Average number of cores used by other processes above which a row counts as disturbed."""


def hardware(device: torch.device) -> dict[str, Any]:
    """The hardware; rows are comparable only if it is equal."""
    description: dict[str, Any] = {
        "kind": device.type,
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description["device"] = properties.name
        description["device_memory_gib"] = round(properties.total_memory / 2**30)
    return description


class MachineWatch:
    """Watches for other load between :meth:`__init__` and :meth:`conditions`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml = nvml_handle(device)
        self._began, self._busy, self._process_busy = time.perf_counter(), _busy_seconds(), _process_seconds()
        self._neighbours = self._processes()

    def conditions(self) -> Conditions:
        """Average ``others_cores``, load average, other processes on the accelerator, and ``disturbed``."""
        elapsed = time.perf_counter() - self._began
        others = max(0.0, (_busy_seconds() - self._busy - (_process_seconds() - self._process_busy)) / elapsed)
        neighbours = max(self._neighbours or 0, self._processes() or 0)
        return {
            "others_cores": round(others, 2),
            "load_average": round(psutil.getloadavg()[0], 2),
            "device_neighbours": neighbours if self._device.type == "cuda" and self._nvml else None,
            "disturbed": others > OTHERS_CORES or neighbours > 0,
        }

    def _processes(self) -> int | None:
        """Number of other processes on the accelerator; ``None`` where NVML does not know."""
        if self._nvml is None:
            return None
        nvml = _nvml()
        with suppress(nvml.NVMLError):
            running = nvml.nvmlDeviceGetComputeRunningProcesses(self._nvml)
            return len([process for process in running if process.pid != os.getpid()])
        return None


@dataclass(frozen=True)
class DeviceMemory:
    """Peak memory in bytes, by several counters; ``None`` where not available."""

    allocated: int | None
    """Tensors, counted by torch's allocator."""
    reserved: int | None
    """Reserved by torch's allocator."""
    driver: int | None
    """In use on the whole accelerator at the end, counted by the driver."""
    resident: int | None
    """Resident memory of this process, on a CPU."""


def device_memory(device: torch.device, *, resident: int | None) -> DeviceMemory:
    """Peaks since the last reset."""
    if device.type != "cuda":
        return DeviceMemory(allocated=None, reserved=None, driver=None, resident=resident)
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(
        allocated=torch.cuda.max_memory_allocated(device),
        reserved=torch.cuda.max_memory_reserved(device),
        driver=total - free,
        resident=None,
    )


def joules(device: torch.device) -> float | None:
    """Energy used by the accelerator since the driver was loaded; ``None`` where NVML does not provide it."""
    handle = nvml_handle(device)
    if handle is None:
        return None
    nvml = _nvml()
    with suppress(nvml.NVMLError):
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    return None


def nvml_handle(device: torch.device) -> Any:
    """NVML handle of the torch device, or ``None`` without NVML."""
    if device.type != "cuda":
        return None
    try:
        nvml = _nvml()
        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except Exception as error:  # no package, no driver, or a device that NVML does not know
        _log.warning(
            "energy and other processes on the device are not measured: %s. To enable: pip install 'mtlbench[nvml]'",
            error,
        )
        return None


def _nvml() -> Any:
    return importlib.import_module("pynvml")


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _busy_seconds() -> float:
    """Busy CPU time in seconds, summed over all cores."""
    times = psutil.cpu_times()._asdict()
    # Linux includes guest time in user time.
    idle = ("idle", "iowait", "guest", "guest_nice", "steal")
    return float(sum(seconds for name, seconds in times.items() if name not in idle))


def _process_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
