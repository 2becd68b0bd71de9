"""The accelerators of this machine, without loading torch.

The driver is asked through NVML if ``mtlbench[nvml]`` is installed, otherwise by the text of ``nvidia-smi``, otherwise
by its files in ``/proc``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from mtlbench.errors import RequestError

_GPU = re.compile(r"GPU \d+: (?P<name>.*) \(UUID: (?P<id>GPU-[^)]+)\)")
_MIG = re.compile(r"\s+MIG (?P<name>\S+).*\(UUID: (?P<id>MIG-[^)]+)\)")
_QUERY = ("--query-gpu=uuid,memory.total,memory.used", "--format=csv,noheader,nounits")
_MIB = 2**20
ANSWER_S = 20.0
"""Seconds that nvidia-smi may take."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, or one MIG slice."""

    id: str
    """As ``CUDA_VISIBLE_DEVICES`` names it: an index or a UUID."""
    uuid: str = ""
    """UUID as nvidia-smi prints it; empty where unknown."""
    name: str = ""
    memory: int | None = None
    """Bytes; ``None`` where the driver does not say."""
    used: int = 0
    """Bytes in use now."""
    seat: int = 0
    """Which of the workers that share it, where several do."""


class Inventory(Protocol):
    """The accelerators of a machine."""

    def devices(self) -> tuple[Device, ...]:
        """The accelerators that this process may use now."""


@dataclass(frozen=True)
class Nvidia:
    """The NVIDIA GPUs that the driver lists, filtered by ``CUDA_VISIBLE_DEVICES``."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    proc: Path = Path("/proc/driver/nvidia")
    """Where a loaded driver shows itself."""
    dev: Path = Path("/dev")

    def devices(self) -> tuple[Device, ...]:
        """The visible GPUs; none also where nothing answers that could list them.

        Raises:
            RequestError: nvidia-smi hangs, and nothing else lists GPUs.
        """
        present = self._present()
        chosen = self.environ.get("CUDA_VISIBLE_DEVICES")
        in_order = self.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        return present if chosen is None or not present else visible(present, chosen, in_order=in_order)

    def unusable(self) -> str | None:
        """Why no GPU can be used although the system shows one, in one sentence; ``None`` otherwise."""
        chosen = self.environ.get("CUDA_VISIBLE_DEVICES")
        present = self._present()
        if chosen is not None and not visible(present, chosen):
            return None  # hidden on purpose
        shown = next((path for path in (self.dev / "nvidia0", self.proc / "version") if path.exists()), None)
        if shown is None and not present:
            return None
        if (build := torch_without_gpu()) is not None:
            return f"this machine has an NVIDIA GPU, but {build}"
        if present:
            return None
        return (
            f"{shown} shows an NVIDIA GPU, but neither NVML nor nvidia-smi lists one. Repair the driver, or put "
            "nvidia-smi on the PATH or install mtlbench[nvml]"
        )

    def _present(self) -> tuple[Device, ...]:
        present = nvml_gpus()
        if present is not None:
            return present
        try:
            present = self._text_gpus()
        except RequestError:
            if present := listed_by_driver(self.proc):
                return present
            raise
        return listed_by_driver(self.proc) if present is None else present

    def _text_gpus(self) -> tuple[Device, ...] | None:
        answer = self._nvidia_smi("-L")
        if answer is None:
            return None
        code, listing = answer
        present = parse_gpus(listing)
        if not present:
            return None if code else ()
        used = self._nvidia_smi(*_QUERY)
        return present if used is None else with_memory(present, used[1])

    def _nvidia_smi(self, *arguments: str) -> tuple[int, str] | None:
        """Exit code and standard output of nvidia-smi; ``None`` where it is not installed.

        It lists the other GPUs and fails where one is lost, or has a corrupted infoROM.
        """
        tool = shutil.which("nvidia-smi", path=self.environ.get("PATH"))
        if tool is None:
            return None
        try:
            answer = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=ANSWER_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RequestError(f"{tool} does not answer ({error}). Repair the driver, or use --device cpu.") from error
        return answer.returncode, answer.stdout


def listed_by_driver(proc: Path) -> tuple[Device, ...]:
    """The GPUs in the files of a loaded driver, whose memory these do not say: where nothing else is installed."""
    found: list[Device] = []
    for path in sorted(proc.glob("gpus/*/information")):
        with suppress(OSError):
            told = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            if uuid := told.get("GPU UUID", "").strip():
                found.append(Device(id=uuid, uuid=uuid, name=told.get("Model", "").strip()))
    return tuple(found)


def torch_without_gpu(version: Path | None = None) -> str | None:
    """That the installed torch is built without a GPU, with the fix, read without loading it; ``None`` otherwise.

    Args:
        version: The file ``version.py`` of torch.
    """
    if version is None:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return None
        version = Path(spec.origin).parent / "version.py"
    try:
        text = version.read_text()
    except OSError:
        return None
    built = dict(re.findall(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*(.+?)\s*$", text, re.MULTILINE))
    if built.get("cuda") != "None" or built.get("hip", "None") != "None":
        return None
    number = built.get("__version__", "").strip("'\"")
    return f"torch {number} is built without CUDA. Install a build with CUDA, or say --device cpu"


def nvml_gpus() -> tuple[Device, ...] | None:
    """The devices that NVML knows, MIG devices in place of their GPU; ``None`` without the library or a driver for it.

    A device that does not answer, such as one that fell off the bus, is left out.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        found: list[Device] = []
        for at in range(nvml.nvmlDeviceGetCount()):
            with suppress(nvml.NVMLError):
                gpu = nvml.nvmlDeviceGetHandleByIndex(at)
                found += list(_mig_devices(nvml, gpu)) or [_nvml_device(nvml, gpu)]
        return tuple(found)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _mig_devices(nvml: Any, gpu: Any) -> Iterator[Device]:
    try:
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)
    except nvml.NVMLError:  # of a kind that cannot be cut
        return
    for at in range(most):
        with suppress(nvml.NVMLError):  # numbers without a device between them
            device = _nvml_device(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, at))
            yield replace(device, name=f"MIG {device.name.rpartition('MIG ')[2]}")


def _nvml_device(nvml: Any, handle: Any) -> Device:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    device = Device(id=uuid, uuid=uuid, name=nvml.nvmlDeviceGetName(handle))
    with suppress(nvml.NVMLError):
        # the second version does not count what the driver keeps for itself as used
        told = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        return replace(device, memory=told.total, used=told.used)
    return device


def parse_gpus(listing: str) -> tuple[Device, ...]:
    """The devices in the output of ``nvidia-smi -L``; a GPU in MIG mode is replaced by its MIG devices."""
    devices: list[Device] = []
    whole: Device | None = None
    for line in listing.splitlines():
        if gpu := _GPU.match(line):
            whole = Device(id=gpu["id"], uuid=gpu["id"], name=gpu["name"])
            devices.append(whole)
        elif mig := _MIG.match(line):
            if devices and devices[-1] is whole:
                devices.pop()
            devices.append(Device(id=mig["id"], uuid=mig["id"], name=f"MIG {mig['name']}"))
    return tuple(devices)


def with_memory(devices: tuple[Device, ...], listing: str) -> tuple[Device, ...]:
    """The devices with memory from CSV lines ``uuid, total, used`` (MiB); MIG devices have no such line."""
    memory: dict[str, tuple[int, int]] = {}
    for line in listing.splitlines():
        columns = [column.strip() for column in line.split(",")]
        if len(columns) == 3 and columns[1].isdigit() and columns[2].isdigit():
            memory[columns[0]] = (int(columns[1]) * _MIB, int(columns[2]) * _MIB)
    return tuple(
        replace(device, memory=memory[device.id][0], used=memory[device.id][1]) if device.id in memory else device
        for device in devices
    )


def visible(present: tuple[Device, ...], chosen: str, *, in_order: bool = False) -> tuple[Device, ...]:
    """The devices that ``CUDA_VISIBLE_DEVICES`` selects. Like CUDA, ignores everything after the first invalid entry.

    An index stays an index, because CUDA may number devices differently from ``nvidia-smi``: which device it is, is
    then known only where all are identical or CUDA numbers them ``in_order`` of the bus, as ``nvidia-smi`` does.
    """
    alike = len({(device.name, device.memory) for device in present}) == 1
    selected: list[Device] = []
    for entry in (entry.strip() for entry in chosen.split(",")):
        if entry.isdigit() and int(entry) < len(present):
            device = present[int(entry)]
            selected.append(replace(device, id=entry) if alike or in_order else Device(id=entry))
            continue
        matches = [device for device in present if entry and device.id.startswith(entry)]
        if len(matches) != 1:
            break
        selected.append(replace(matches[0], id=entry))
    return tuple(selected)
