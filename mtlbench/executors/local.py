"""The local executor: worker processes on this machine, one per group of devices."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mtlbench.api.executor import Executor, Launch, Workers
from mtlbench.api.hooks import hookimpl
from mtlbench.executors import slots as leases
from mtlbench.executors.devices import Device, Inventory, Nvidia
from mtlbench.executors.process import WorkerProcess, end_all, spawn
from mtlbench.executors.queue import CellQueue
from mtlbench.executors.slots import Pool, pool, shares
from mtlbench.executors.watch import overdue, timeout_record
from mtlbench.files.owner import cpus
from mtlbench.workers.arguments import WorkerArguments
from mtlbench.workers.stacks import frames, stacks_file
from mtlbench.workers.worker import MAX_DEATHS

RESTARTS = 2
"""How often a slot gets a new worker while no cell makes progress."""
FAULTS = 2
"""A device on which workers died in this many different cells, with none done in between, is not used again, unless it
is the last one."""
ASK_AGAIN_S = 1.0
"""How often a worker that was asked to end is asked again."""
KILL_AFTER_S = 5.0
"""How long a worker that shows no progress may take to end when it is asked."""
DRAIN_S = 30.0
"""How long one whose cell only takes too long may: it keeps what the cell has done, for a run with a higher limit."""
LOOK_AGAIN_S = 1.0
"""How often is looked for devices or cells that were not free."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """Starts ``command`` once for each group of devices of this machine.

    ``inventory`` says which accelerators there are: tests give one of their own. As a part of a cluster it runs
    ``only`` the cells of one width, numbers its workers from ``first`` and starts them in ``directory``.
    """

    name: ClassVar[str] = "local"
    command: tuple[str, ...] = (sys.executable, "-m", "mtlbench.workers.worker")
    inventory: Inventory = field(default_factory=Nvidia)
    only: int | None = None
    first: int = 0
    directory: Path | None = None

    def check(self, device: str) -> None:
        """Refuse ``cuda`` without a GPU."""
        if device == "cuda":
            pool(device, 0, demand={}, cores=1, cards=self.inventory.devices())

    def start(self, launch: Launch) -> LocalWorkers:
        """Start the workers, at most one for each cell without a record.

        Raises:
            RequestError: ``cuda`` is asked for and there is no GPU, or there are fewer than a cell or the workers need.
        """
        asked = CellQueue(launch, only=self.only)
        cards = () if launch.device == "cpu" else self.inventory.devices()
        chosen = pool(launch.device, launch.workers, demand=asked.prospect(), cores=cpus(), cards=cards)
        for card in cards:
            if taken := chosen.slot((card,)).foreign:
                _log.warning(
                    "other programs have taken %.1f GiB of device %s: times there are not comparable, and the records "
                    "say so",
                    taken / 2**30,
                    card.id,
                )
        return LocalWorkers(
            self.command,
            asked=asked,
            pool=chosen,
            inventory=self.inventory,
            first=self.first,
            directory=self.directory,
        )


@dataclass
class _WorkerSlot:
    """A number under which one worker at a time runs; its log carries it."""

    index: int
    worker: WorkerProcess | None = None
    restarts: int = 0
    """Restarts in a row without progress."""
    closed: bool = False
    lost: str | None = None
    """Key of the cell in which its latest worker died."""
    waits_for: str | None = None
    """Key of the cell whose worker was killed here: it is tried with one worker less, as memory is the usual cause."""


@dataclass
class LocalWorkers(Workers):
    """Worker processes, each the leader of its own process group."""

    command: tuple[str, ...]
    asked: CellQueue = field(kw_only=True)
    pool: Pool = field(kw_only=True)
    inventory: Inventory = field(kw_only=True)
    first: int = field(default=0, kw_only=True)
    directory: Path | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.launch, self.folder = self.asked.launch, self.asked.folder
        self._usable = list(self.pool.devices)
        self._faults: dict[str, set[str]] = {device.id: set() for device in self._usable}
        self._deaths: Counter[str] = Counter()
        demand = self.asked.prospect()
        count = min(self.pool.workers, sum(shares(len(self._usable), demand, most=self.pool.workers).values()))
        # Narrow cells that follow wide ones may fill more slots than the start needs.
        most = min(self.pool.workers, len(self._usable) // min(demand, default=1), sum(demand.values()))
        self._slots = [_WorkerSlot(self.first + number) for number in range(max(count, most))]
        self._told_held = False
        self._waiting = False
        """Whether cells wait for devices or slots that are not free now."""
        self._next_look = 0.0
        try:
            self._fill()
        except BaseException:
            self.stop(grace_s=0)
            raise

    def alive(self) -> int:
        """How many workers run now, after replacing those that ended while cells are left."""
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
        if self.asked.grew() or ended or (self._waiting and now >= self._next_look):
            self._fill()
        return len(self._workers()) + (self._waiting and not self._workers())

    def stop(self, *, grace_s: float) -> None:
        """End every worker and what it started: SIGTERM for ``grace_s`` seconds, then SIGKILL."""
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
                    # Once may not be enough: see mtlbench.files.stop_request.Stop.
                    for worker in running:
                        worker.signal(signal.SIGTERM)
                    again = now + ASK_AGAIN_S
                time.sleep(0.05)
        finally:
            end_all(running)
            for worker in running:
                self._settle(worker)

    def _workers(self) -> list[WorkerProcess]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    # What is stuck

    def _watch(self, worker: WorkerProcess, now: float) -> None:
        worker.signs.read(now)
        if worker.given_up is not None:
            if now > worker.given_up:
                worker.signal(signal.SIGKILL)
            return
        reason = overdue(
            worker.signs, now=now, silence_s=self.launch.silence_s, cell_timeout_s=self.launch.cell_timeout_s
        )
        if reason is not None and not self._moved(worker):
            self._give_up(worker, reason)

    def _moved(self, worker: WorkerProcess) -> bool:
        """Whether the step log grew though the pipe was silent, as it does when children of the worker train."""
        signs, now = worker.signs, time.monotonic()
        if signs.cell is None or now - signs.last <= self.launch.silence_s:
            return False
        try:
            age = time.time() - self.folder.steps_file(signs.cell).stat().st_mtime
        except OSError:
            return False
        if age < self.launch.silence_s:
            signs.last = now - max(age, 0.0)
            return True
        return False

    def _give_up(self, worker: WorkerProcess, reason: str) -> None:
        """Record the cell as timed out and ask its worker to end; :meth:`_watch` sees to it that it does."""
        key = worker.signs.cell
        dump = worker.ask_stacks(stacks_file(self.folder.path, key)) if key else ""
        claim = self.folder.claims().get(key) if key else None
        cell = next((cell for cell in self.asked.cells if cell.key == key), None)
        if cell is not None and claim is not None and worker.is_or_started(claim.owner.pid):
            where = f"logs/{stacks_file(self.folder.path, cell.key).name}" if dump else None
            record = timeout_record(cell, reason, pid=worker.pid, frames=frames(dump), stacks=where)
            if self.folder.publish(record, claim):
                worker.claim = claim
        _log.error("worker %d is ended: %s", worker.pid, reason)
        now = time.monotonic()
        moving = now - worker.signs.last < min(KILL_AFTER_S, self.launch.silence_s / 2)
        worker.given_up = now + (DRAIN_S if moving else KILL_AFTER_S)
        worker.signal(signal.SIGTERM)

    # Who ended

    def _reap(self, slot: _WorkerSlot, worker: WorkerProcess) -> None:
        worker.signs.read(time.monotonic())
        worker.end()
        self._settle(worker)
        slot.worker = None
        code = worker.process.returncode
        demand = self.asked.demand()
        if worker.retired or (code == 0 and not demand[worker.slot.width]):
            return
        if worker.given_up is None:
            self._blame(worker)
        if not demand:
            return
        log = self.folder.log(slot.index)
        if self._progressed(worker, demand.total()):
            slot.restarts = 0
        elif slot.restarts >= RESTARTS:
            _log.error("worker %d ended (%s) and is not started again: see %s", slot.index, worker.ending(), log)
            slot.closed = True
            return
        else:
            slot.restarts += 1
        slot.lost = worker.signs.cell
        if code == -signal.SIGKILL and worker.given_up is None:
            slot.waits_for = worker.signs.cell
        again = "it is started again once its cell is done" if slot.waits_for and self._workers() else "started again"
        _log.warning("worker %d ended (%s): %s, log in %s", slot.index, worker.ending(), again, log)

    def _progressed(self, worker: WorkerProcess, missing: int) -> bool:
        """Whether a cell was done since it was started, or its own has come nearer to being given up.

        So every cell gets its record, however many of them kill their workers.
        """
        cell = worker.signs.cell
        if cell is not None:
            self._deaths[cell] += 1
        done = len(self.asked.cells) - missing
        return done > worker.done or (cell is not None and self._deaths[cell] <= MAX_DEATHS)

    def _settle(self, worker: WorkerProcess) -> None:
        """Take away the claim of a cell that was recorded from outside."""
        if worker.claim is not None:
            self.folder.release(worker.claim)
            worker.claim = None

    def _blame(self, worker: WorkerProcess) -> None:
        """Count a death against the devices it happened on, and stop to use those that are gone or fail again."""
        if self.pool.device == "cpu":
            return
        where = worker.signs.cell or f"start {worker.mark}"
        for device in worker.slot.devices:
            if worker.signs.done:
                self._faults[device.id].clear()
            self._faults[device.id].add(where)
        present = {device.id for device in self.inventory.devices()}
        for device in list(self._usable):
            faults = len(self._faults[device.id])
            # The last one is kept: on it, cells that kill their workers look like a bad device.
            if device.id in present and (faults < FAULTS or len(self._usable) == 1):
                continue
            self._usable.remove(device)
            why = f"{faults} workers in a row died on it" if device.id in present else "it is gone"
            _log.error("device %s is not used again: %s; %d are left", device.id, why, len(self._usable))

    # Who is next

    def _fill(self) -> None:
        """Start workers for the cells that are left: the widest first."""
        self._waiting, self._next_look = False, time.monotonic() + LOOK_AGAIN_S
        demand = self.asked.demand()
        done = len(self.asked.cells) - demand.total()
        running = Counter(worker.slot.width for worker in self._workers())
        wanted = shares(len(self._usable), demand, most=self.pool.workers)
        for width, count in wanted.items():
            for _ in range(count - running[width]):
                slot = self._open_slot()
                if slot is None:
                    return
                taken = self._take(width)
                if taken is None:
                    # Nothing narrower starts on what this one waits for.
                    self._waiting = True
                    self._retire(wanted, running)
                    return
                self._spawn(slot, *taken, done=done)
        too_wide = [width for width, count in wanted.items() if width > len(self._usable) and demand[width]]
        if too_wide and not self._workers():
            _log.error("%d usable devices are left, and cells that need %d wait", len(self._usable), max(too_wide))

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
        """Free devices, those without faults first, and what holds them; ``None`` when too few are free."""
        busy = {device.id for worker in self._workers() for device in worker.slot.devices}
        free = sorted(
            (device for device in self._usable if device.id not in busy), key=lambda d: len(self._faults[d.id])
        )
        if self.pool.device == "cpu":
            return (tuple(free[:width]), ()) if len(free) >= width else None
        taken: list[Device] = []
        held: list[int] = []
        for device in free:
            files = leases.take([device]) if len(taken) < width else ()
            if files is not None and len(taken) < width:
                taken.append(device)
                held += files
        if len(taken) < width:
            leases.give_back(held)
            if len(free) >= width and not self._told_held:
                self._told_held = True
                _log.warning("%d devices are held by another run on this machine: waiting", len(free) - len(taken))
            return None
        return tuple(taken), tuple(held)

    def _retire(self, wanted: dict[int, int], running: Counter[int]) -> None:
        """End workers that only wait for a cell, where cells of another width wait for their devices."""
        for worker in self._workers():
            width = worker.slot.width
            if worker.signs.idle and running[width] > wanted.get(width, 0):
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
            base=os.environ,
            directory=self.directory,
            leases=held,
        )


@hookimpl
def mtlbench_executors() -> Iterable[Executor]:
    """The local executor."""
    return (LocalExecutor(),)
