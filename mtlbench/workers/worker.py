"""A worker: claim a cell, run it, publish its record, again. Executors start ``python -m`` this."""

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
from mtlbench.errors import MtlbenchError
from mtlbench.files import heartbeat as pulse
from mtlbench.files.failpoints import reach
from mtlbench.files.redact import log_to_stderr
from mtlbench.files.stop_request import Stop
from mtlbench.observers.events import Events, StepLog
from mtlbench.store import Claim, RunFolder
from mtlbench.workers.arguments import WorkerArguments
from mtlbench.workers.stacks import Stacks, crash_of

MAX_DEATHS = 2
"""A cell whose worker died this often is recorded as failed instead of being run again."""
LINGER_S = 300.0
"""A worker that follows a series ends when all cells have records and no more came for so many seconds."""
ORPHAN_GRACE_S = 30.0
"""How long a worker without a parent may take to unwind, in seconds."""

LOG_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"

_log = logging.getLogger(__name__)


class DeviceLost(MtlbenchError):
    """The worker cannot use its device any more."""


def work(
    folder: RunFolder,
    request: str,
    *,
    run: Callable[[Cell], Record],
    events: Events | None = None,
    index: int = 0,
    stop: Stop | None = None,
    takes: Callable[[Cell], bool] = lambda cell: True,
    last: str | None = None,
    series: str | None = None,
    poll_s: float = 0.5,
) -> None:
    """Run cells of ``request`` until every one that this worker ``takes`` has a record.

    Cells of requests that follow in ``series`` are taken too, until it is closed, or nothing came for a while.

    ``run`` gives the record of a cell and raises only to end the worker. Cells that other workers hold are waited for
    and taken over when their worker died. Worker ``index`` starts at another cell than its siblings, and
    tries the cell with the key ``last`` after all others.

    Raises:
        StoreError: the request or a record cannot be read.
        DeviceLost: a cell broke the device; it is recorded.
        Stopped: the worker was asked to end; the cell in hand is given back unrecorded.
    """
    queue = folder.queue(request, series=series)
    pending: list[Cell] = []
    new, busy_at = queue.cells, time.monotonic()
    relay = events if events is not None else Events({})
    stop = stop if stop is not None else Stop()
    named: set[str] = set()
    folder.drop_finished_checkpoints()
    while True:
        taken = [cell for cell in new if takes(cell)]
        shift = index % len(taken) if taken else 0
        pending += sorted(taken[shift:] + taken[:shift], key=lambda cell: cell.key == last)
        with stop.held():
            pending = folder.missing(pending)
            claim = next((c for cell in pending if (c := folder.claim(cell.key)) is not None), None)
        if claim is None:
            stop.check()
            new = queue.refresh()
            busy_at = time.monotonic() if pending or new else busy_at
            if not (pending or new) and (not queue.open or time.monotonic() > busy_at + LINGER_S):
                return
            pulse.wait()
            _log_waiting(folder, pending, named)
            time.sleep(poll_s if pending else poll_s / 5)
            continue
        try:
            stop.check()
            cell = next(cell for cell in pending if cell.key == claim.key)
            relay.cell_started(cell)
            reach("worker.claimed")
            record = run(cell) if claim.deaths < MAX_DEATHS else _killed(folder, cell, claim)
            if record.status == "failed":
                # The signal may be the cause: it goes to the children of the worker too.
                stop.check()
            reach("worker.computed")
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
    """The record as written, and whether it was; one that is no JSON is written as a failure."""
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
            next_step="The method or the task gave a number that is not finite or an object that is not plain data: "
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
    """End this process, in good order if it can, once ``parent`` is gone."""

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
    """Kill this process and what it started, if it leads its process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)


Engine = Callable[[WorkerArguments, RunFolder, Events, Stop], Callable[[Cell], Record]]
"""Gives the function that runs one cell, and ends early when the worker is asked to stop."""


def torch_engine(given: WorkerArguments, folder: RunFolder, events: Events, stop: Stop) -> Callable[[Cell], Record]:
    """The real engine; backbone and tokenised data stay warm between cells."""
    from mtlbench.cells.cell import Bench, run_cell
    from mtlbench.training.checkpoints.recovery import checkpoint_seconds

    every_s = checkpoint_seconds()
    bench = Bench(device=given.device, threads=given.threads, data=folder.words(given.request)["data"])
    return lambda cell: run_cell(cell, bench=bench, folder=folder, events=events, stop=stop, checkpoint_s=every_s)


def main(argv: Sequence[str] | None = None, *, engine: Engine | None = None) -> int:
    """Entry point of ``python -m mtlbench.workers.worker``; without an ``engine``, cells are trained.

    A worker whose cells get several devices is a group of as many processes.
    """
    given = WorkerArguments.parse(argv)
    faulthandler.enable()
    log_to_stderr(logging.INFO, LOG_FORMAT)
    stop = Stop()
    stop.install()
    if hasattr(signal, "SIGUSR2"):
        # A job's warning of its end is for the process that started this worker, and it asks then.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if given.parent is not None:
        follow_parent(given.parent)
    try:
        if given.devices > 1 and engine is None:
            return _group(given, stop)
        return work_as(given, engine=engine or torch_engine, stop=stop)
    finally:
        stop.ignore()
        if given.parent is not None and os.getppid() != given.parent:
            end_group()


def work_as(given: WorkerArguments, *, engine: Engine, stop: Stop) -> int:
    """Run the cells of a worker with these arguments; gives the exit code."""
    folder = RunFolder(given.folder)
    beats = {"pulse": pulse.install(given.pulse)} if given.pulse is not None else {}
    events = Events({"step log": StepLog(folder), "stacks": Stacks(folder.path), **beats, **_observers()})
    try:
        work(
            folder,
            given.request,
            run=engine(given, folder, events, stop),
            events=events,
            index=given.index,
            stop=stop,
            takes=lambda cell: given.devices_per_cell(cell) == given.devices,
            last=given.last,
            series=given.series,
        )
    except MtlbenchError as error:
        # Its one sentence says all; the traceback would push it out of what the parent shows.
        _log.error("this worker ends: %s", error)
        return 1
    return 0


def _group(given: WorkerArguments, stop: Stop) -> int:
    from mtlbench.workers import group

    ranks = given.of_rank()
    return group.serve(
        ranks.argv(), processes=given.devices, threads=ranks.threads, pulse=given.pulse, stop=stop, shard=given.shard
    )


def _observers() -> dict[str, object]:
    from mtlbench.plugins import load_observer, offers

    observers: dict[str, object] = {}
    for name in offers("observers"):
        try:
            observers[name] = load_observer(name)
        except MtlbenchError as error:
            _log.warning("%s", error)
    return observers


if __name__ == "__main__":
    sys.exit(main())
