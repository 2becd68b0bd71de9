"""How a machine is shared out: which devices and threads a worker gets, and which widths of cells go first."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mtlbench.errors import RequestError
from mtlbench.executors.devices import Device

MOST_CPU_WORKERS = 4
"""How many workers share a CPU when the number is not given: each holds its own copy of the backbone."""
NOTICED = 0.05
"""Share of a device's memory from which on what others have taken is noticed."""


@dataclass(frozen=True, kw_only=True)
class DeviceSlot:
    """Where one worker runs."""

    device: str
    """``cpu`` or ``cuda``."""
    threads: int
    devices: tuple[Device, ...]
    """As many as its cells ask for; on a CPU these are shares of the cores."""

    @property
    def width(self) -> int:
        return len(self.devices)

    @property
    def foreign(self) -> int:
        """Bytes on its devices that other programs had taken when the run began; what drivers keep is not counted."""
        return sum(d.used for d in self.devices if d.memory is not None and d.used > NOTICED * d.memory)

    @property
    def visible(self) -> str:
        """Word for ``CUDA_VISIBLE_DEVICES``."""
        return ",".join(device.id for device in self.devices) if self.device == "cuda" else ""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The devices of a machine that a run may use, never two workers on one."""

    device: str
    devices: tuple[Device, ...]
    workers: int
    """At most so many at once."""
    threads_each: float
    """CPU cores for each device in use."""

    def slot(self, devices: tuple[Device, ...]) -> DeviceSlot:
        """The slot of a worker on these devices."""
        return DeviceSlot(device=self.device, threads=max(1, int(self.threads_each * len(devices))), devices=devices)


def pool(device: str, workers: int, *, demand: Mapping[int, int], cores: int, cards: tuple[Device, ...]) -> Pool:
    """What a run takes of a machine with ``cores`` CPU cores and the GPUs ``cards``.

    ``demand`` is the number of cells by width (devices per cell). ``workers`` 0 takes every GPU, or one worker per core
    up to four. Cores are shared out evenly.

    Raises:
        RequestError: ``cuda`` is asked for and there is no GPU, or there are fewer than a cell or the workers need.
    """
    if device == "cuda" and not cards:
        raise RequestError("--device cuda: this machine shows no NVIDIA GPU (nvidia-smi -L). Use --device cpu or auto.")
    widest, narrowest = max(demand, default=1), min(demand, default=1)
    wanted = sum(width * cells for width, cells in demand.items())
    if not cards:
        units = max(widest, min(wanted, workers * narrowest or min(cores, MOST_CPU_WORKERS)))
        cards = tuple(Device(id=f"cpu-{number}") for number in range(units))
        device = "cpu"
    else:
        device = "cuda"
    if widest > len(cards):
        raise RequestError(
            f"--devices-per-cell asks for {widest} devices for one cell, and this machine shows {len(cards)}. "
            "Ask for fewer, or run where there are more."
        )
    if workers * narrowest > len(cards) and device == "cuda":
        raise RequestError(
            f"--workers {workers} with {narrowest} device{'s' if narrowest > 1 else ''} each need "
            f"{workers * narrowest} GPUs, and this machine shows {len(cards)}. Two workers never share a GPU: leave "
            "--workers away to use all."
        )
    most = workers or len(cards)
    used = sum(width * count for width, count in shares(len(cards), demand, most=most).items())
    return Pool(device=device, devices=cards, workers=most, threads_each=cores / max(used, 1))


def shares(devices: int, demand: Mapping[int, int], *, most: int) -> dict[int, int]:
    """Width to number of workers: the widest cells first, so that they never wait for narrow ones to run out.

    What is left over when no further wide cell fits goes to narrower ones. At most ``most`` workers in all.
    """
    found: dict[int, int] = {}
    for width in sorted(demand, reverse=True):
        count = min(demand[width], devices // width, most)
        found[width] = count
        devices -= count * width
        most -= count
    return found


try:
    import fcntl
except ImportError:  # no such locks on this system: runs there share devices only by CUDA_VISIBLE_DEVICES
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


def lease_folder() -> Path:
    """Where the files of this machine's devices are, for all its users."""
    return Path(tempfile.gettempdir()) / "mtlbench-devices"


def take(devices: Iterable[Device], *, folder: Path | None = None) -> tuple[int, ...] | None:
    """Lock all of ``devices`` or none; gives open files that hold them, ``None`` when another run has one.

    The lock ends when every process that has the file is gone.
    """
    held: list[int] = []
    for device in devices:
        file = _open(folder or lease_folder(), device)
        if file is None:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            give_back([*held, file])
            return None
        held.append(file)
    return tuple(held)


def give_back(files: Iterable[int]) -> None:
    """Close files that :func:`take` gave."""
    for file in files:
        os.close(file)


def _open(folder: Path, device: Device) -> int | None:
    if fcntl is None:
        return None
    path = folder / re.sub(r"[^\w.\-]", "_", device.uuid or device.id)
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o1777, exist_ok=True)
            folder.chmod(0o1777)
        # Without O_CREAT first: where /tmp is protected, it is refused on files of others.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        os.fchmod(file, 0o666)
        return file
    except OSError as error:
        _log.warning("cannot lock device %s (%s): another run may use it too", device.id, error)
        return None
