"""A worker: claim a cell, run it, publish its record, repeat. Executors start it with ``python -m``."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from mtlbench.api.cell import Cell
from mtlbench.api.record import Failure, Record
from mtlbench.errors import DeviceBusy, MtlbenchError, RequestError
from mtlbench.files import heartbeat
from mtlbench.files.failpoints import reach
from mtlbench.files.redact import log_to_stderr
from mtlbench.files.stop_request import StopRequest
from mtlbench.observers.events import Events, StepLog
from mtlbench.planning.built_on import ready
from mtlbench.store import Claim, RunFolder
from mtlbench.workers.arguments import WorkerArguments
from mtlbench.workers.elsewhere import Elsewhere
from mtlbench.workers.stacks import Stacks, crash_of

MAX_DEATHS = 2
"""A cell whose worker died this often is recorded as failed instead of being retried."""
IDLE_S = 300.0
"""A worker that follows a series ends after this many seconds without a cell to run."""
ORPHAN_GRACE_S = 30.0
"""Seconds that a worker without a parent may take to unwind."""

LOG_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"

_log = logging.getLogger(__name__)


BUSY, REFUSED = 75, 78
"""Exit codes of a worker whose device is in use by other programs, and of one that cannot run on this machine at all
(``EX_TEMPFAIL`` and ``EX_CONFIG`` of sysexits.h)."""


class DeviceLost(MtlbenchError):
    """The worker can no longer use its device."""


def work(
    folder: RunFolder,
    request: str,
    *,
    run: Callable[[Cell], Record],
    events: Events | None = None,
    index: int = 0,
    stop: StopRequest | None = None,
    takes: Callable[[Cell], bool] = lambda cell: True,
    last: str | None = None,
    series: str | None = None,
    poll_s: float = 0.5,
) -> None:
    """Run cells of ``request`` until every one that this worker ``takes`` has a record.

    Cells of later requests in ``series`` are taken too, until it is closed or none came for :data:`IDLE_S`.

    ``run`` returns the record of a cell and raises only to end the worker. The worker waits for cells that others have
    claimed, and takes them over if their worker dies. Cells built on the training of others come after those.
    ``index`` makes siblings start with different cells; the cell with the key ``last`` is tried after all others.

    Raises:
        StoreError: the request or a record cannot be read.
        DeviceLost: a cell broke the device. The first time it is left to another worker, the second time recorded.
        DeviceBusy: other programs hold the memory of the device; the cell is left to other workers.
        Stopped: a stop was requested; the claim is released and the cell stays without a record.
    """
    queue = folder.queue(request, series=series)
    pending: list[Cell] = []
    new, busy_at = queue.cells, time.monotonic()
    relay = events if events is not None else Events({})
    stop = stop if stop is not None else StopRequest()
    named: set[str] = set()
    elsewhere = Elsewhere(folder)
    folder.drop_finished_checkpoints()
    while True:
        taken = [cell for cell in new if takes(cell)]
        shift = index % len(taken) if taken else 0
        pending += sorted(taken[shift:] + taken[:shift], key=lambda cell: cell.key == last)
        with stop.held():
            pending = folder.missing(pending)
            mine = ready(elsewhere.leave(pending), pending)
            claim = next((c for cell in mine if (c := folder.claim(cell.key)) is not None), None)
        if claim is None:
            stop.check()
            new = queue.refresh()
            busy_at = time.monotonic() if pending or new else busy_at
            if not (pending or new) and (not queue.open or time.monotonic() > busy_at + IDLE_S):
                return
            heartbeat.wait()
            _log_waiting(folder, pending, named)
            time.sleep(poll_s if pending else poll_s / 5)
            continue
        try:
            stop.check()
            cell = next(cell for cell in pending if cell.key == claim.key)
            relay.cell_started(cell)
            reach("worker.claimed")
            try:
                record = run(cell) if claim.deaths < MAX_DEATHS else _killed(folder, cell, claim)
            except DeviceBusy:
                elsewhere.give_back(claim, kind="busy")
                raise
            if record.status == "failed":
                # A stop signal may be the cause: children of the worker get it too.
                stop.check()
            reach("worker.computed")
            if record.failure is not None and record.failure.kind == "device" and elsewhere.first(claim):
                elsewhere.give_back(claim, kind="device")
                raise DeviceLost(f"{record.failure.message} Its cell is tried once more, by another worker")
            with stop.held():
                record, published = _publish(folder, record, claim)
            reach("worker.published")
            if published and record.status != "failed":
                folder.drop_checkpoints(cell.key)
            if published:
                _log.info("%s %s seed %d: %s", cell.key, cell.variant, cell.seed, record.status)
                relay.cell_finished(record)
        finally:
            with stop.held():
                folder.release(claim)
        if record.failure is not None and record.failure.kind == "device":
            raise DeviceLost("the device is in a state that only a new process can leave")
        stop.check()
        new = queue.refresh()


def _publish(folder: RunFolder, record: Record, claim: Claim) -> tuple[Record, bool]:
    """The record as written, and whether it was; one that is not valid JSON is replaced by a failure."""
    try:
        return record, folder.publish(record, claim)
    except (TypeError, ValueError) as error:
        record = _unwritable(record.cell, error)
        return record, folder.publish(record, claim)


def _killed(folder: RunFolder, cell: Cell, claim: Claim) -> Record:
    crash = crash_of(folder.path, cell.key)
    if crash is not None:
        what, frames = crash
        failure = Failure(
            kind="plugin",
            message=f"{claim.deaths} workers crashed while they ran this cell: {what}.",
            next_step="The frames show the code that crashed: report them to the authors of that package.",
            frames=frames,
        )
        return Record(cell=cell, status="failed", failure=failure)
    return Record(
        cell=cell,
        status="failed",
        failure=Failure(
            kind="killed",
            message=f"{claim.deaths} workers died while they ran this cell.",
            next_step="The usual cause is too little memory: lower --micro-batch, --max-length or --workers, "
            "look into logs/, then run the same command again.",
        ),
    )


def _unwritable(cell: Cell, error: Exception) -> Record:
    return Record(
        cell=cell,
        status="failed",
        failure=Failure(
            kind="plugin",
            message=f"The record cannot be written as JSON: {type(error).__name__}: {error}.",
            next_step="The method or the task returned a number that is not finite or an object that is not JSON: "
            "report it to its authors.",
        ),
    )


def _log_waiting(folder: RunFolder, pending: Sequence[Cell], named: set[str]) -> None:
    """Log once for each claim which process this worker waits for; ``named`` are the claims logged before."""
    if not pending:
        return
    running = folder.claims()
    for cell in pending:
        claim = running.get(cell.key)
        if claim is not None and claim.token not in named:
            named.add(claim.token)
            owner = claim.owner
            _log.info("waiting for %s (%s), run by process %d on %s", cell.key, cell.variant, owner.pid, owner.host)


def follow_parent(parent: int, *, poll_s: float = 0.5) -> None:
    """End this process once ``parent`` is gone: by SIGTERM first, then by SIGKILL."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_s)
        _log.warning("the parent process %d is gone: this worker ends", parent)
        deadline = time.monotonic() + ORPHAN_GRACE_S
        while time.monotonic() < deadline:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        end_group()
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


def end_group() -> None:
    """Kill this process and its children, if it leads its process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)


Engine = Callable[[WorkerArguments, RunFolder, Events, StopRequest], Callable[[Cell], Record]]
"""Returns the function that runs one cell, which ends early when a stop is requested."""


def torch_engine(
    arguments: WorkerArguments, folder: RunFolder, events: Events, stop: StopRequest
) -> Callable[[Cell], Record]:
    """The engine that trains; backbone and tokenised data stay warm between cells."""
    from mtlbench.cells.cell import Bench, run_cell
    from mtlbench.training.checkpoints.recovery import checkpoint_seconds

    every_s = checkpoint_seconds()
    data = folder.options(arguments.request)["data"]
    bench = Bench(device=arguments.device, threads=arguments.threads, data=data, places=folder.model_places)
    return lambda cell: run_cell(cell, bench=bench, folder=folder, events=events, stop=stop, checkpoint_s=every_s)


def main(argv: Sequence[str] | None = None, *, engine: Engine | None = None) -> int:
    """Entry point of ``python -m mtlbench.workers.worker``; without an ``engine``, cells are trained.

    A worker whose cells get several devices becomes a group of as many processes.
    """
    arguments = WorkerArguments.parse(argv)
    faulthandler.enable()
    log_to_stderr(logging.INFO, LOG_FORMAT)
    stop = StopRequest()
    stop.install()
    if hasattr(signal, "SIGUSR2"):
        # Slurm's warning signal is for the parent, which then sends SIGTERM.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if arguments.parent is not None:
        follow_parent(arguments.parent)
    try:
        if arguments.devices > 1 and engine is None:
            return _group(arguments, stop)
        return work_as(arguments, engine=engine or torch_engine, stop=stop)
    finally:
        stop.ignore()
        if arguments.parent is not None and os.getppid() != arguments.parent:
            end_group()


def work_as(arguments: WorkerArguments, *, engine: Engine, stop: StopRequest) -> int:
    """Run the cells of a worker with these arguments; returns the exit code."""
    from mtlbench.plugins import load_observers

    folder = RunFolder(arguments.folder)
    beat = {"heartbeat": heartbeat.install(arguments.pulse)} if arguments.pulse is not None else {}
    events = Events(
        {"step log": StepLog(folder), "stacks": Stacks(folder.path), **beat, **load_observers(_log.warning)}
    )
    try:
        work(
            folder,
            arguments.request,
            run=engine(arguments, folder, events, stop),
            events=events,
            index=arguments.index,
            stop=stop,
            takes=lambda cell: arguments.devices_per_cell(cell) == arguments.devices,
            last=arguments.last,
            series=arguments.series,
        )
    except MtlbenchError as error:
        # Without a traceback, which would push the message out of the lines that the parent shows.
        _log.error("this worker ends: %s", error)
        if isinstance(error, DeviceBusy):
            return BUSY
        return REFUSED if isinstance(error, RequestError) else 1
    return 0


def _group(arguments: WorkerArguments, stop: StopRequest) -> int:
    from mtlbench.workers import group

    ranks = arguments.of_rank()
    return group.serve(
        ranks.argv(),
        processes=arguments.devices,
        threads=ranks.threads,
        pulse=arguments.pulse,
        stop=stop,
        shard=arguments.shard,
    )


if __name__ == "__main__":
    sys.exit(main())
