"""Devices among the runs of one machine: each is held through a locked file, which the system frees with its holder."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mtlbench.executors.devices import Device

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
