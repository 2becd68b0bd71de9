"""What one machine offers to workers; asked without loading torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from mtlbench.errors import RequestError

_GPU = re.compile(r"GPU \d+: (?P<name>.*) \(UUID: (?P<id>GPU-[^)]+)\)")
_MIG = re.compile(r"\s+MIG (?P<name>\S+).*\(UUID: (?P<id>MIG-[^)]+)\)")
_QUERY = ("--query-gpu=uuid,memory.total,memory.used", "--format=csv,noheader,nounits")
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, or a part of one."""

    id: str
    """Word for ``CUDA_VISIBLE_DEVICES``."""
    uuid: str = ""
    """Its name among all devices of the machine, where it is known."""
    name: str = ""
    memory: int | None = None
    """Bytes; ``None`` where the driver does not say."""
    used: int = 0
    """Bytes that are taken now."""


class Inventory(Protocol):
    """The accelerators of a machine."""

    def devices(self) -> tuple[Device, ...]:
        """Those there now that this process may use."""


@dataclass(frozen=True)
class Nvidia:
    """The NVIDIA GPUs that ``nvidia-smi`` lists and ``CUDA_VISIBLE_DEVICES`` leaves."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def devices(self) -> tuple[Device, ...]:
        """Those there now.

        Raises:
            RequestError: the driver's tool is there but does not answer.
        """
        listing = self._ask("-L")
        present = parse_gpus(listing) if listing is not None else ()
        if not present:
            return ()
        present = with_memory(present, self._ask(*_QUERY) or "")
        chosen = self.environment.get("CUDA_VISIBLE_DEVICES")
        return present if chosen is None else visible(present, chosen)

    def _ask(self, *words: str) -> str | None:
        """What the driver's tool says; ``None`` without one, or where it finds no driver."""
        tool = shutil.which("nvidia-smi", path=self.environment.get("PATH"))
        if tool is None:
            return None
        try:
            answer = subprocess.run([tool, *words], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RequestError(f"{tool} does not answer ({error}). Repair the driver, or use --device cpu.") from error
        return answer.stdout if answer.returncode == 0 else None


def parse_gpus(listing: str) -> tuple[Device, ...]:
    """The devices in the output of ``nvidia-smi -L``; a GPU cut into MIG devices gives those instead of itself."""
    found: list[Device] = []
    whole: Device | None = None
    for line in listing.splitlines():
        if gpu := _GPU.match(line):
            whole = Device(id=gpu["id"], uuid=gpu["id"], name=gpu["name"])
            found.append(whole)
        elif mig := _MIG.match(line):
            if found and found[-1] is whole:
                found.pop()
            found.append(Device(id=mig["id"], uuid=mig["id"], name=f"MIG {mig['name']}"))
    return tuple(found)


def with_memory(devices: tuple[Device, ...], listing: str) -> tuple[Device, ...]:
    """The devices with the memory that lines of ``uuid, total, used`` in MiB tell; MIG devices have no such line."""
    told: dict[str, tuple[int, int]] = {}
    for line in listing.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
            told[words[0]] = (int(words[1]) * _MIB, int(words[2]) * _MIB)
    return tuple(
        replace(device, memory=told[device.id][0], used=told[device.id][1]) if device.id in told else device
        for device in devices
    )


def visible(present: tuple[Device, ...], chosen: str) -> tuple[Device, ...]:
    """Those that the words of ``CUDA_VISIBLE_DEVICES`` name, as CUDA reads them: nothing after the first wrong one.

    A number stays a number, because CUDA may count in another order than ``nvidia-smi``; memory is then known only
    where all devices are alike.
    """
    alike = len({(device.name, device.memory) for device in present}) == 1
    found: list[Device] = []
    for word in (word.strip() for word in chosen.split(",")):
        if word.isdigit() and int(word) < len(present):
            at = present[int(word)]
            found.append(replace(at, id=word) if alike else Device(id=word))
            continue
        named = [device for device in present if word and device.id.startswith(word)]
        if len(named) != 1:
            break
        found.append(replace(named[0], id=word))
    return tuple(found)
