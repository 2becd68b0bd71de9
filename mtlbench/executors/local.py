"""The local executor: worker processes on this machine, one per group of devices."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mtlbench.api.executor import DEVICE_WHY, DevicesPerCell, Executor, Launch, Workers
from mtlbench.api.hooks import hookimpl
from mtlbench.errors import RequestError
from mtlbench.executors import slots as leases
from mtlbench.executors.devices import Device, Inventory, Nvidia
from mtlbench.executors.process import WorkerProcess, end_all, spawn
from mtlbench.executors.queue import CellQueue
from mtlbench.executors.room import with_room
from mtlbench.executors.slots import Pool, check_shareable, foreign, pool, shares
from mtlbench.executors.watch import overdue, timeout_record
from mtlbench.files.owner import cpus
from mtlbench.text import memory
from mtlbench.workers.arguments import WorkerArguments
from mtlbench.workers.stacks import frames, stacks_file
from mtlbench.workers.worker import BUSY, MAX_DEATHS, REFUSED

WORKER_RESTARTS = 2
"""Restarts of a slot in a row without a finished cell."""
FAULTS = 2
"""A device is dropped after workers died on it in this many different cells with none finished in between, unless it is
the last one."""
RESEND_S = 1.0
"""Seconds between two SIGTERMs to a worker that has not ended yet."""
KILL_AFTER_S = 5.0
"""Seconds from SIGTERM to SIGKILL for a worker without progress."""
KILL_BUSY_AFTER_S = 30.0
"""The same for a worker that makes progress but exceeded its time limit: it needs time to write a checkpoint."""
RETRY_FREE_S = 1.0
"""Seconds between two attempts to get devices or cells that were not free."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """Starts ``command`` once for each group of devices of this machine.

    ``inventory`` lists the accelerators. On a node of a cluster it runs ``only`` the cells of one width, numbers its
    workers from ``first`` and starts them in ``directory``.
    """

    name: ClassVar[str] = "local"
    command: tuple[str, ...] = (sys.executable, "-m", "mtlbench.workers.worker")
    inventory: Inventory = field(default_factory=Nvidia)
    only: int | None = None
    first: int = 0
    directory: Path | None = None

    def check(self, device: str) -> None:
        """Reject ``cuda`` without a GPU."""
        if device == "cuda":
            if (why := self._unusable()) is not None:
                raise RequestError(f"--device cuda: {why}.")
            pool(device, 0, demand={}, cores=1, cards=self.inventory.devices())

    def check_shared(self, device: str, devices: DevicesPerCell) -> None:
        """Reject several workers on a device without a GPU."""
        if devices.workers > 1:
            check_shareable(device, self.inventory.devices(), shared_by=devices.workers)

    def start(self, launch: Launch) -> LocalWorkers:
        """Start the workers, at most one for each cell without a record.

        Raises:
            RequestError: ``cuda`` is requested without a GPU, there are fewer GPUs than a cell or the workers need, or
                other programs have filled all of them.
        """
        queue = CellQueue(launch, only=self.only)
        why = None if launch.device == "cpu" else self._unusable()
        if why is not None and launch.device == "cuda":
            raise RequestError(f"--device cuda: {why}.")
        cards = () if launch.device == "cpu" or why is not None else self.inventory.devices()
        if why is not None:
            _log.warning("a GPU is not used: %s", why)
        cards = with_room(cards, queue.missing(), devices=launch.devices)
        threads = launch.threads
        if threads is None and self.only is None:  # on a node, the variable is the cluster's and not the user's
            threads = threads_asked(os.environ)
        chosen = pool(
            launch.device,
            launch.workers,
            demand=queue.expected_demand(),
            cores=cpus(),
            cards=cards,
            shared_by=launch.devices.workers,
            threads=threads,
        )
        for card in cards:
            if foreign := chosen.slot((card,)).foreign:
                _log.warning(
                    "other programs use %s of device %s: times measured there are not comparable, and the "
                    "records say so",
                    memory(foreign),
                    card.id,
                )
        return LocalWorkers(
            self.command,
            device_why=why,
            queue=queue,
            pool=chosen,
            inventory=self.inventory,
            first=self.first,
            directory=self.directory,
        )

    def _unusable(self) -> str | None:
        return self.inventory.unusable() if isinstance(self.inventory, Nvidia) else None


def threads_asked(environ: Mapping[str, str]) -> int | None:
    """What ``OMP_NUM_THREADS`` asks for: of a list for nested levels the first; nothing where it is no number, which
    OpenMP ignores too."""
    first = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


@dataclass
class _WorkerSlot:
    """A worker index, used by one worker at a time; it names the log file."""

    index: int
    worker: WorkerProcess | None = None
    restarts: int = 0
    """Restarts in a row without progress."""
    closed: bool = False
    lost: str | None = None
    """Key of the cell in which the latest worker died."""
    waits_for: str | None = None
    """Key of a cell whose worker was killed: the slot stays empty while others retry it, as memory may have run out."""


@dataclass
class LocalWorkers(Workers):
    """Worker processes, each the leader of its own process group."""

    command: tuple[str, ...]
    queue: CellQueue = field(kw_only=True)
    pool: Pool = field(kw_only=True)
    inventory: Inventory = field(kw_only=True)
    first: int = field(default=0, kw_only=True)
    directory: Path | None = field(default=None, kw_only=True)
    device_why: str | None = field(default=None, kw_only=True)
    """Why the processor is used although the system shows a GPU."""

    def __post_init__(self) -> None:
        self.launch, self.folder = self.queue.launch, self.queue.folder
        self._usable = list(self.pool.devices)
        self._faults: dict[str, set[str]] = {device.id: set() for device in self._usable}
        self._deaths: Counter[str] = Counter()
        demand = self.queue.expected_demand()
        count = min(self.pool.workers, sum(shares(len(self._usable), demand, most=self.pool.workers).values()))
        # Narrow cells that run after wide ones may need more slots than the start.
        most = min(self.pool.workers, len(self._usable) // min(demand, default=1), sum(demand.values()))
        self._slots = [_WorkerSlot(self.first + number) for number in range(max(count, most))]
        self._reported_held = False
        self._waiting = False
        """Whether cells wait for devices or slots that are in use."""
        self._next_retry = 0.0
        try:
            self._fill()
        except BaseException:
            self.stop(grace_s=0)
            raise

    def alive(self) -> int:
        """How many workers run now, after replacing those that ended while cells remain."""
        now = time.monotonic()
        ended = False
        for slot in self._slots:
            if slot.worker is None:
                continue
            if slot.worker.ended():
                self._reap(slot, slot.worker)
                ended = True
            else:
                self._watch(slot.worker, now)
        if self.queue.grew() or ended or (self._waiting and now >= self._next_retry):
            self._fill()
        return len(self._workers()) + (self._waiting and not self._workers())

    def stop(self, *, grace_s: float) -> None:
        """End all workers and their children: SIGTERM for ``grace_s`` seconds, then SIGKILL."""
        running = self._workers()
        for slot in self._slots:
            slot.worker, slot.closed = None, True
        self._waiting = False
        try:
            deadline, again = time.monotonic() + grace_s, 0.0
            while not all(worker.ended() for worker in running):
                now = time.monotonic()
                if now >= deadline:
                    break
                if now >= again:
                    # One signal may get lost: see mtlbench.files.stop_request.StopRequest.
                    for worker in running:
                        worker.signal(signal.SIGTERM)
                    again = now + RESEND_S
                time.sleep(0.05)
        finally:
            end_all(running)
            for worker in running:
                self._release_claim(worker)

    def _workers(self) -> list[WorkerProcess]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    # Stuck workers

    def _watch(self, worker: WorkerProcess, now: float) -> None:
        worker.heartbeat.read(now)
        if worker.kill_at is not None:
            if now > worker.kill_at:
                worker.signal(signal.SIGKILL)
            return
        reason = overdue(
            worker.heartbeat, now=now, silence_s=self.launch.silence_s, cell_timeout_s=self.launch.cell_timeout_s
        )
        if reason is not None and not self._logged_steps(worker):
            self._time_out(worker, reason)

    def _logged_steps(self, worker: WorkerProcess) -> bool:
        """Whether the step log grew although no heartbeat came, as when children of the worker train."""
        heartbeat, now = worker.heartbeat, time.monotonic()
        if heartbeat.cell is None or now - heartbeat.last <= self.launch.silence_s:
            return False
        try:
            age = time.time() - self.folder.steps_file(heartbeat.cell).stat().st_mtime
        except OSError:
            return False
        if age < self.launch.silence_s:
            heartbeat.last = now - max(age, 0.0)
            return True
        return False

    def _time_out(self, worker: WorkerProcess, reason: str) -> None:
        """Record the cell as timed out and send SIGTERM; :meth:`_watch` sends SIGKILL if the worker does not end."""
        key = worker.heartbeat.cell
        dump = worker.dump_stacks(stacks_file(self.folder.path, key)) if key else ""
        claim = self.folder.claims().get(key) if key else None
        cell = next((cell for cell in self.queue.cells if cell.key == key), None)
        if cell is not None and claim is not None and worker.is_or_started(claim.owner.pid):
            where = f"logs/{stacks_file(self.folder.path, cell.key).name}" if dump else None
            record = timeout_record(cell, reason, pid=worker.pid, frames=frames(dump), stacks=where)
            if self.folder.publish(record, claim):
                worker.claim = claim
        _log.error("worker %d is ended: %s", worker.pid, reason)
        now = time.monotonic()
        moving = now - worker.heartbeat.last < min(KILL_AFTER_S, self.launch.silence_s / 2)
        worker.kill_at = now + (KILL_BUSY_AFTER_S if moving else KILL_AFTER_S)
        worker.signal(signal.SIGTERM)

    # Ended workers

    def _reap(self, slot: _WorkerSlot, worker: WorkerProcess) -> None:
        worker.heartbeat.read(time.monotonic())
        worker.end()
        self._release_claim(worker)
        slot.worker = None
        code = worker.process.returncode
        demand = self.queue.demand()
        if worker.retired or (code == 0 and not demand[worker.slot.width]):
            return
        if worker.kill_at is None and code != REFUSED:
            self._count_fault(worker)
        if not demand:
            return
        log = self.folder.log(slot.index)
        if self._progressed(worker, demand.total()):
            slot.restarts = 0
        elif slot.restarts >= WORKER_RESTARTS or code == REFUSED:
            _log.error("worker %d ended (%s) and is not started again: see %s", slot.index, worker.ending(), log)
            slot.closed = True
            return
        else:
            slot.restarts += 1
        slot.lost = worker.heartbeat.cell
        if code == -signal.SIGKILL and worker.kill_at is None:
            slot.waits_for = worker.heartbeat.cell
        again = "restarted once its cell is done" if slot.waits_for and self._workers() else "restarted"
        _log.warning("worker %d ended (%s): %s, log in %s", slot.index, worker.ending(), again, log)

    def _progressed(self, worker: WorkerProcess, missing: int) -> bool:
        """Whether a cell was finished since the start, or the current one came closer to :data:`MAX_DEATHS`.

        Counting the latter as progress gives every cell a record, however many of them kill their workers.
        """
        cell = worker.heartbeat.cell
        if cell is not None:
            self._deaths[cell] += 1
        done = len(self.queue.cells) - missing
        return done > worker.done or (cell is not None and self._deaths[cell] <= MAX_DEATHS)

    def _release_claim(self, worker: WorkerProcess) -> None:
        """Release the claim of a cell that was recorded as timed out."""
        if worker.claim is not None:
            self.folder.release(worker.claim)
            worker.claim = None

    def _count_fault(self, worker: WorkerProcess) -> None:
        """Count a death against the devices of the worker; drop devices that are gone or failed repeatedly."""
        if self.pool.device == "cpu":
            return
        where = worker.heartbeat.cell or f"start {worker.mark}"
        for device in worker.slot.devices:
            if worker.heartbeat.done:
                self._faults[device.id].clear()
            self._faults[device.id].add(where)
        busy = worker.process.returncode == BUSY
        present = self._present()
        for device in list(self._usable):
            faults = len(self._faults[device.id])
            # The last one stays in use: the cells may be at fault, not the device, unless others have filled it.
            if device.id in present and (faults < FAULTS or (len(self._usable) == 1 and not busy)):
                continue
            self._usable.remove(device)
            why = f"{faults} workers in a row died on it" if device.id in present else "it is gone"
            if busy and device in worker.slot.devices:
                why = "other programs have filled it"
            _log.error("device %s is not used again: %s; %d left", device.id, why, len(self._usable))

    def _present(self) -> set[str]:
        """Ids of the devices that are there; those known before where the driver lists none or does not answer."""
        with contextlib.suppress(RequestError):
            if listed := {device.id for device in self.inventory.devices()}:
                return listed
        _log.warning("the driver does not list its devices now: they are used as before")
        return {device.id for device in self._usable}

    # New workers

    def _fill(self) -> None:
        """Start workers for the remaining cells, the widest first."""
        self._waiting, self._next_retry = False, time.monotonic() + RETRY_FREE_S
        demand = self.queue.demand()
        done = len(self.queue.cells) - demand.total()
        running = Counter(worker.slot.width for worker in self._workers())
        wanted = shares(len(self._usable), demand, most=self.pool.workers)
        for width, count in wanted.items():
            for _ in range(count - running[width]):
                slot = self._open_slot()
                if slot is None:
                    return
                taken = self._take(width)
                if taken is None:
                    # Narrower cells must not take the devices that this one waits for.
                    self._waiting = True
                    self._retire(wanted, running)
                    return
                self._spawn(slot, *taken, done=done)
        too_wide = [width for width, count in wanted.items() if width > len(self._usable) and demand[width]]
        if too_wide and not self._workers():
            _log.error("%d usable devices are left, but some cells need %d", len(self._usable), max(too_wide))

    def _open_slot(self) -> _WorkerSlot | None:
        for slot in self._slots:
            if slot.worker is not None or slot.closed:
                continue
            if slot.waits_for is not None:
                if self._workers() and self.folder.record(slot.waits_for) is None:
                    self._waiting = True
                    continue
                slot.waits_for = None
            return slot
        return None

    def _take(self, width: int) -> tuple[tuple[Device, ...], tuple[int, ...]] | None:
        """Free devices and their lock files, those without faults first, then those that no other program uses;
        ``None`` when too few are free."""
        busy = {(device.id, device.seat) for worker in self._workers() for device in worker.slot.devices}
        free = sorted(
            (device for device in self._usable if (device.id, device.seat) not in busy),
            key=lambda d: (len(self._faults[d.id]), foreign(d)),
        )
        if self.pool.device == "cpu":
            return (tuple(free[:width]), ()) if len(free) >= width else None
        taken: list[Device] = []
        held: list[int] = []
        for device in free:
            files = self._lease(device) if len(taken) < width else ()
            if files is not None and len(taken) < width:
                taken.append(device)
                held += files
        if len(taken) < width:
            leases.release(held)
            if len(free) >= width and not self._reported_held:
                self._reported_held = True
                _log.warning("%d devices are in use by another run on this machine: waiting", len(free) - len(taken))
            return None
        return tuple(taken), tuple(held)

    def _lease(self, device: Device) -> tuple[int, ...] | None:
        """The lock of a device; a copy of it where another worker of this run holds it and shares the device."""
        for worker in self._workers():
            if worker.leases and any(other.id == device.id for other in worker.slot.devices):
                return tuple(map(os.dup, worker.leases))
        return leases.take([device])

    def _retire(self, wanted: dict[int, int], running: Counter[int]) -> None:
        """End idle workers whose devices are needed for cells of another width."""
        for worker in self._workers():
            width = worker.slot.width
            if worker.heartbeat.idle and running[width] > wanted.get(width, 0):
                running[width] -= 1
                worker.retired = True
                worker.signal(signal.SIGTERM)

    def _spawn(self, slot: _WorkerSlot, devices: tuple[Device, ...], held: tuple[int, ...], *, done: int) -> None:
        launch = self.launch
        slot.worker = spawn(
            self.command,
            WorkerArguments(
                folder=launch.folder,
                request=launch.request,
                index=slot.index,
                devices=len(devices),
                devices_per_cell=launch.devices,
                series=launch.series,
                last=slot.lost,
            ),
            slot=self.pool.slot(devices),
            log=self.folder.log(slot.index),
            done=done,
            base=os.environ if self.device_why is None else {**os.environ, DEVICE_WHY: self.device_why},
            directory=self.directory,
            leases=held,
        )


@hookimpl
def mtlbench_executors() -> Iterable[Executor]:
    """The local executor."""
    return (LocalExecutor(),)
