"""The local executor: worker processes on this machine, one per GPU or a few over the CPU cores."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Executor, Launch, Workers
from mtlbench.api.hooks import hookimpl
from mtlbench.errors import RequestError
from mtlbench.executors.devices import cpus, gpus
from mtlbench.store import RunFolder

MOST_CPU_WORKERS = 4
"""How many workers share a CPU when the number is not given: each holds its own copy of the backbone."""
RESTARTS = 2
"""How often a slot gets a new worker while no cell gets done."""
ASK_AGAIN_S = 1.0
"""How often a worker that was asked to end is asked again."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one worker runs."""

    device: str
    threads: int
    gpu: str | None = None
    """Word for ``CUDA_VISIBLE_DEVICES``."""


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """Starts ``command`` once for each slot of this machine."""

    name: ClassVar[str] = "local"
    command: tuple[str, ...] = (sys.executable, "-m", "mtlbench.worker")

    def start(self, launch: Launch) -> Workers:
        """Start the workers, at most one for each cell without a record.

        Raises:
            RequestError: ``cuda`` is asked for and there is no GPU.
        """
        folder = RunFolder(launch.folder)
        cells = folder.cells(launch.request)
        missing = len(folder.missing(cells))
        chosen = slots(launch.device, launch.workers, cells=missing, cores=cpus(), cards=_cards(launch.device))
        return LocalWorkers(self.command, launch=launch, folder=folder, cells=cells, slots=chosen)


def _cards(device: str) -> tuple[str, ...]:
    return () if device == "cpu" else gpus(os.environ)


def slots(device: str, workers: int, *, cells: int, cores: int, cards: tuple[str, ...]) -> list[Slot]:
    """Where workers run on a machine with ``cores`` CPU cores and the GPUs ``cards``.

    ``workers`` 0 takes every GPU, or one worker per core up to four. Cores are shared out evenly.

    Raises:
        RequestError: ``cuda`` is asked for and there is no GPU.
    """
    if device == "cuda" and not cards:
        raise RequestError("--device cuda: this machine shows no NVIDIA GPU (nvidia-smi -L). Use --device cpu or auto.")
    automatic = len(cards) or min(cores, MOST_CPU_WORKERS)
    count = min(workers or automatic, max(cells, 1))
    threads = max(1, cores // count)
    if not cards:
        return [Slot(device="cpu", threads=threads) for _ in range(count)]
    if count > len(cards):
        _log.warning("%d workers share %d GPUs: their times and throughput are not comparable", count, len(cards))
    return [Slot(device="cuda", threads=threads, gpu=cards[i % len(cards)]) for i in range(count)]


@dataclass
class _Place:
    """A slot and the worker in it."""

    slot: Slot
    process: subprocess.Popen[bytes] | None = None
    missing: int = 0
    """Cells without a record when the worker was started."""
    restarts: int = 0
    """Restarts in a row without a cell done."""


@dataclass
class LocalWorkers(Workers):
    """Worker processes, each the leader of its own process group."""

    command: tuple[str, ...]
    launch: Launch = field(kw_only=True)
    folder: RunFolder = field(kw_only=True)
    cells: list[Cell] = field(kw_only=True)
    slots: list[Slot] = field(kw_only=True)

    def __post_init__(self) -> None:
        missing = len(self.folder.missing(self.cells))
        self._places = [_Place(slot) for slot in self.slots]
        try:
            for index in range(len(self._places)):
                self._spawn(index, missing=missing)
        except BaseException:
            self.stop(grace_s=0)
            raise

    def alive(self) -> int:
        """How many workers run now, after replacing those that ended while cells are left."""
        ended = [i for i, place in enumerate(self._places) if place.process and _ended(place.process)]
        if ended:
            missing = len(self.folder.missing(self.cells))
            for index in ended:
                self._replace(index, missing=missing)
        return sum(place.process is not None for place in self._places)

    def stop(self, *, grace_s: float) -> None:
        """End every worker and what it started: SIGTERM for ``grace_s`` seconds, then SIGKILL."""
        running = [place.process for place in self._places if place.process is not None]
        for place in self._places:
            place.process = None
        try:
            deadline, again = time.monotonic() + grace_s, 0.0
            while not all(_ended(process) for process in running):
                now = time.monotonic()
                if now >= deadline:
                    break
                if now >= again:
                    # Once may not be enough: see mtlbench.worker.Stop.
                    _signal(running, signal.SIGTERM)
                    again = now + ASK_AGAIN_S
                time.sleep(0.05)
        finally:
            _end(running)

    def _replace(self, index: int, *, missing: int) -> None:
        place = self._places[index]
        process = place.process
        if process is None:
            return
        _end([process])
        place.process = None
        if missing == 0:
            return
        # Deaths in a cell are bounded by its claims, so a worker that got cells done may always be replaced.
        place.restarts = 0 if missing < place.missing else place.restarts
        log = self.folder.log(index)
        if place.restarts >= RESTARTS:
            _log.error("worker %d ended (%s) and is not started again: see %s", index, _ending(process), log)
            return
        _log.warning("worker %d ended (%s): started again, log in %s", index, _ending(process), log)
        place.restarts += 1
        self._spawn(index, missing=missing)

    def _spawn(self, index: int, *, missing: int) -> None:
        place = self._places[index]
        slot = place.slot
        words = ["--folder", str(self.launch.folder), "--request", self.launch.request, "--index", str(index)]
        words += ["--device", slot.device, "--threads", str(slot.threads), "--parent", str(os.getpid())]
        with self.folder.log(index).open("ab") as log:
            place.process = subprocess.Popen(
                [*self.command, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(slot, os.environ),
                start_new_session=True,
            )
        place.missing = missing


def _environment(slot: Slot, base: Mapping[str, str]) -> dict[str, str]:
    threads = str(slot.threads)
    return {
        # Threads that spin while they wait make two busy processes on two cores an order of magnitude slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        **base,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": slot.gpu or "",
    }


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a worker has ended; where the system can, it is left unreaped, so that its number stays its own."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Kill workers and what is left of their groups, also where the worker itself has ended."""
    _signal(processes, signal.SIGKILL)
    for process in processes:
        process.wait()


def _signal(processes: Iterable[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


@hookimpl
def mtlbench_executors() -> Iterable[Executor]:
    """The local executor."""
    return (LocalExecutor(),)
