"""A worker whose cells do what their settings say: everything of a real worker except the engine.

``python toy_worker.py`` takes the command line of ``mtlbench.workers.worker``. Each run of a cell appends its key to ``ran`` in the
run folder. Settings: ``do`` is ``ok``, ``fail``, ``skip``, ``nan``, ``die``, ``die_once``, ``hang``, ``spin`` (hang with
Python's lock held), ``deaf`` (hang and swallow every exception), ``crash`` (read address 0), ``fork`` (hang with a child
that ignores SIGTERM), ``stray`` (leave a child behind that is in another session), ``bad_gpu`` (crash on a
device with this word in its name), ``break`` (lose the device), ``break_bad`` (that, on such a device), ``full_bad`` (find such
a device filled by others) or ``fail_when_stopped``;
``seconds`` is how long it works. A cell that :mod:`holding` holds waits after the second of its four steps.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from holding import wait_while_held

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.executor import DEVICE_WHY, FOREIGN_BYTES, SHARED_BY
from mtlbench.api.record import Failure, Record
from mtlbench.errors import DeviceBusy, RequestError
from mtlbench.files.stop_request import StopRequest
from mtlbench.observers.events import Events
from mtlbench.store import RunFolder
from mtlbench.workers.arguments import WorkerArguments
from mtlbench.workers.worker import main

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
ENVIRONMENT = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", FOREIGN_BYTES, SHARED_BY, DEVICE_WHY, *ALLOCATOR)
COMMAND = (sys.executable, __file__)


class Numbers(list[float]):
    """Stands for a tensor of a step: all the step log asks of one."""

    def tolist(self) -> list[float]:
        return list(self)


def toy_cell(seed: int = 0, do: str = "ok", seconds: float = 0.0, method: str = "toy") -> Cell:
    settings = {"do": do, "seconds": seconds}
    return Cell(method=method, settings=settings, tasks=("toy/a", "toy/b"), model="m", protocol=Protocol(), seed=seed)


def ran(folder: RunFolder) -> list[str]:
    """The key of every run of a cell, in order."""
    path = folder.path / "ran"
    return path.read_text().split() if path.exists() else []


def toy_run(cell: Cell, folder: RunFolder, events: Events) -> Record:
    with (folder.path / "ran").open("a") as file:
        file.write(f"{cell.key}\n")
    do = cell.settings["do"]
    if do == "die" or (do == "die_once" and ran(folder).count(cell.key) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "fork" and os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder.path / "child").write_text(str(os.getpid()))
        time.sleep(600)
    if do == "bad_gpu" and "bad" in os.environ["CUDA_VISIBLE_DEVICES"]:
        os.abort()
    if do == "break" or (do == "break_bad" and "bad" in os.environ["CUDA_VISIBLE_DEVICES"]):
        broken = Failure(kind="device", message="m", next_step="n")
        return Record(cell=cell, status="failed", failure=broken, notes={"pid": os.getpid()})
    if do == "full_bad" and "bad" in os.environ["CUDA_VISIBLE_DEVICES"]:
        raise DeviceBusy("memory ran out before the first step, and other programs hold 68 GiB of the device")
    if do in ("hang", "fork"):
        time.sleep(600)
    if do == "spin":
        library, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        library.pthread_mutex_lock(lock)
        library.pthread_mutex_lock(lock)  # never comes back, and keeps Python's lock meanwhile
    if do == "crash":
        ctypes.string_at(0)
    if do == "stray":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        (folder.path / "stray").write_text(str(child.pid))
    while do == "deaf":
        with contextlib.suppress(BaseException):
            time.sleep(600)
    if do == "fail_when_stopped":
        try:
            time.sleep(600)
        except BaseException:
            do = "fail"
    if do == "fail":
        return Record(cell=cell, status="failed", failure=Failure(kind="oom", message="m", next_step="n"))
    if do == "skip":
        return Record(cell=cell, status="skipped", failure=Failure(kind="refused", message="m", next_step="n"))
    began = time.monotonic()
    events.training_planned(cell, 4)
    for step in range(1, 5):
        if step == 3:
            wait_while_held(folder, cell)
        time.sleep(float(cell.settings["seconds"] or 0) / 4)
        events.step_finished(cell, step, Numbers([1.0, 2.0, 6.0]), Numbers([0, 1, 1]))  # type: ignore[arg-type]
    loss = float("nan") if do == "nan" else 0.0
    notes = {
        "pid": os.getpid(),
        "began": began,
        "ended": time.monotonic(),
        "loss": loss,
        **{name: os.environ.get(name) for name in ENVIRONMENT},
    }
    return Record(cell=cell, status="ok", notes=notes)


def toy_engine(
    given: WorkerArguments, folder: RunFolder, events: Events, stop: StopRequest
) -> Callable[[Cell], Record]:
    if (folder.path / "broken-engine").exists():
        raise RuntimeError("this engine cannot start")
    if (folder.path / "unfit-engine").exists():
        raise RequestError("torch 2.13 has no code for this GPU. Install a build for the card.")
    return lambda cell: toy_run(cell, folder, events)


def toy_folder(path: Path, cells: list[Cell]) -> tuple[RunFolder, str]:
    folder = RunFolder(path)
    folder.preflight()
    return folder, folder.put_request({"data": "demo"}, cells)


if __name__ == "__main__":
    sys.exit(main(engine=toy_engine))
