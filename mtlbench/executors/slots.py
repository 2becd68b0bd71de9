"""How the devices and threads of a machine are distributed to workers, and device locks between runs."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mtlbench.errors import RequestError
from mtlbench.executors.devices import Device

MOST_CPU_WORKERS = 4
"""Default limit of CPU workers: each holds its own copy of the backbone."""
FOREIGN_SHARE = 0.05
"""Fraction of a device's memory that other programs must use before it is reported."""


def foreign(device: Device) -> int:
    """Bytes of a device that other programs use; 0 for what drivers reserve."""
    return device.used if device.memory is not None and device.used > FOREIGN_SHARE * device.memory else 0


@dataclass(frozen=True, kw_only=True)
class DeviceSlot:
    """The devices and threads of one worker."""

    device: str
    """``cpu`` or ``cuda``."""
    threads: int
    devices: tuple[Device, ...]
    """As many as its cells need; on a CPU these are placeholders for shares of the cores."""
    shared_by: int = 1
    """Workers on each device."""

    @property
    def width(self) -> int:
        return len(self.devices)

    @property
    def foreign(self) -> int:
        """Bytes on its devices that other programs used when the run began; what drivers reserve is not counted."""
        return sum(map(foreign, self.devices))

    @property
    def visible(self) -> str:
        """Value of ``CUDA_VISIBLE_DEVICES``."""
        return ",".join(device.id for device in self.devices) if self.device == "cuda" else ""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The devices of a machine that a run may use: one worker on each, or one on each of its seats."""

    device: str
    devices: tuple[Device, ...]
    workers: int
    """Limit on simultaneous workers."""
    threads_each: float
    """CPU cores for each device in use."""
    shared_by: int = 1
    """Workers on each device; :attr:`devices` then holds each as often, with different seats."""
    threads: int | None = None
    """CPU threads of each worker, where they are given."""

    def slot(self, devices: tuple[Device, ...]) -> DeviceSlot:
        """The slot of a worker on these devices."""
        threads = self.threads or max(1, int(self.threads_each * len(devices)))
        return DeviceSlot(device=self.device, threads=threads, devices=devices, shared_by=self.shared_by)


def pool(
    device: str,
    workers: int,
    *,
    demand: Mapping[int, int],
    cores: int,
    cards: tuple[Device, ...],
    shared_by: int = 1,
    threads: int | None = None,
) -> Pool:
    """The devices that a run uses on a machine with ``cores`` CPU cores and the GPUs ``cards``.

    ``demand`` is the number of cells by width (devices per cell). ``workers`` 0 means every GPU, or one worker per core
    up to four. Cores are divided evenly, unless ``threads`` says how many threads each worker has. ``shared_by``
    workers run on each GPU.

    Raises:
        RequestError: ``cuda`` is requested without a GPU, or there are fewer GPUs than a cell or the workers need.
    """
    if device == "cuda" and not cards:
        raise RequestError("--device cuda: this machine shows no NVIDIA GPU (nvidia-smi -L). Use --device cpu or auto.")
    widest, narrowest = max(demand, default=1), min(demand, default=1)
    wanted = sum(width * cells for width, cells in demand.items())
    if shared_by > 1:
        check_shareable(device, cards, shared_by=shared_by)
        cards = tuple(replace(card, seat=seat) for seat in range(shared_by) for card in cards)
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
            f"{workers * narrowest} GPUs, and this machine shows {len(cards)}. Omit --workers to use all; "
            "--workers-per-device lets several small cells share one."
        )
    most = workers or len(cards)
    in_use = sum(width * count for width, count in shares(len(cards), demand, most=most).items())
    each = cores / max(in_use, 1)
    return Pool(device=device, devices=cards, workers=most, threads_each=each, shared_by=shared_by, threads=threads)


def check_shareable(device: str, cards: tuple[Device, ...], *, shared_by: int) -> None:
    """Refuse several workers on a device where there is no GPU.

    Raises:
        RequestError: saying what to do instead.
    """
    if device == "cpu" or not cards:
        raise RequestError(
            f"--workers-per-device {shared_by} shares a GPU, and "
            f"{'--device is cpu' if device == 'cpu' else 'this machine shows none (nvidia-smi -L)'}. On a processor "
            "workers share the cores anyway: --workers says how many."
        )


def shares(devices: int, demand: Mapping[int, int], *, most: int) -> dict[int, int]:
    """Width to number of workers: the widest cells first, so that they never wait for narrow ones.

    Devices that are left over go to narrower cells. At most ``most`` workers in all.
    """
    counts: dict[int, int] = {}
    for width in sorted(demand, reverse=True):
        count = min(demand[width], devices // width, most)
        counts[width] = count
        devices -= count * width
        most -= count
    return counts


try:
    import fcntl
except ImportError:  # no file locks on this system: runs there divide devices only by CUDA_VISIBLE_DEVICES
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


def lease_folder() -> Path:
    """The folder of device lock files, shared by all users of this machine."""
    return Path(tempfile.gettempdir()) / "mtlbench-devices"


def take(devices: Iterable[Device], *, folder: Path | None = None) -> tuple[int, ...] | None:
    """Lock all of ``devices`` or none; returns the open lock files, ``None`` when another run holds one.

    A lock ends when every process that has its file open is gone.
    """
    held: list[int] = []
    for device in devices:
        file = _open(folder or lease_folder(), device)
        if file is None:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            release([*held, file])
            return None
        held.append(file)
    return tuple(held)


def release(files: Iterable[int]) -> None:
    """Close lock files that :func:`take` returned."""
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
        # First without O_CREAT: fs.protected_regular forbids it on files of other users in /tmp.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        os.fchmod(file, 0o666)
        return file
    except OSError as error:
        _log.warning("cannot lock device %s (%s): another run may use it too", device.id, error)
        return None
