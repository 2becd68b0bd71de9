"""The parent process of a run: starts workers, watches the run folder, notifies observers; computes nothing itself."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.api.executor import SILENCE_S, DevicesPerCell, Executor, Launch, Workers
from mtlbench.api.record import Record
from mtlbench.errors import MtlbenchError
from mtlbench.executors.interrupts import Interrupts
from mtlbench.observers.events import Events
from mtlbench.store import RunFolder
from mtlbench.workers.stacks import forget_stacks

OK, FAILED, INTERRUPTED = 0, 1, 130
POLL_S = 0.2
GRACE_S = 30.0
"""Seconds that workers get to end after SIGTERM, so that they can write checkpoints."""
FINISH_S = 60.0
"""Seconds that workers get to exit by themselves once every cell has a record."""
_log = logging.getLogger(__name__)


class Session:
    """Runs one request after another with the same workers. A context manager: all workers have ended when it exits.

    Args:
        at_once: Most cells that any request has, where several requests follow; ``None`` for a single request.

    The other arguments are those of :class:`Launch`.
    """

    def __init__(
        self,
        folder: RunFolder,
        executor: Executor,
        observers: Mapping[str, object],
        *,
        device: str = "auto",
        workers: int = 0,
        devices: DevicesPerCell | None = None,
        silence_s: float = SILENCE_S,
        cell_timeout_s: float | None = None,
        threads: int | None = None,
        at_once: int | None = None,
    ) -> None:
        self._folder = folder
        self._executor = executor
        self._events = Events(observers)
        self._series = folder.series() if at_once is not None else None
        self._launch = Launch(
            folder=folder.path,
            request="",
            workers=workers,
            device=device,
            devices=devices or DevicesPerCell(),
            silence_s=silence_s,
            cell_timeout_s=cell_timeout_s,
            threads=threads,
            series=self._series.name if self._series is not None else None,
            at_once=at_once or 1,
        )
        self._workers: Workers | None = None
        self._interrupts = Interrupts()
        self._interrupted = False

    def __enter__(self) -> Session:
        self._interrupts.listen()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            with self._interrupts.raised():
                self._end()
        except KeyboardInterrupt:
            self._stop()
        finally:
            self._interrupts.forget()

    def run(self, request: str, cells: Sequence[Cell]) -> int:
        """Run the cells of ``request`` that have no record, and failed ones again.

        Returns the exit code: 0 all done (skipped counts as done), 1 some failed or are missing, 130 interrupted.
        Finished cells are kept in every case.

        Raises:
            RequestError: the executor cannot carry out the request on this machine.
            StoreError: a record was written by a newer version.
        """
        folder, keys = self._folder, [cell.key for cell in cells]
        # What other code failed at, before it was edited, is no result any more.
        outdated = folder.asked_before(cells) if self._workers is None else []
        retired = folder.retire_failed([*keys, *outdated])
        if retired:
            _log.info("retrying %d failed cells", len(retired))
        folder.forget_deaths(keys)
        running = folder.claims()
        there = folder.finished()
        forget_stacks(folder.path, (key for key in keys if key not in there and key not in running))
        self._events.run_started(cells)
        interrupted = False
        try:
            watch = _Watch(folder, cells, self._events)
            if watch.missing:
                interrupted = self._supervise(request, watch)
                # A worker that was killed after publishing has left its claim behind.
                folder.forget_deaths(key for key in keys if key not in watch.missing)
        finally:
            self._events.run_finished()
        if interrupted:
            _log.warning(
                "Interrupted with %d of %d cells done. Run the same command again to resume.",
                len(cells) - len(watch.missing),
                len(cells),
            )
            return INTERRUPTED
        return _exit_code(folder, watch, cells=len(cells))

    def _supervise(self, request: str, watch: _Watch) -> bool:
        """Keep workers running until no cell is missing or no worker is left; returns whether it was interrupted."""
        keep_workers = False
        if self._interrupted:
            return True
        try:
            with self._interrupts.raised():
                workers = self._begin(request)
                while watch.missing:
                    alive = workers.alive()
                    watch.poll()
                    if not alive:
                        break
                    time.sleep(POLL_S)
                keep_workers = self._series is not None
                if not keep_workers:
                    self._end()
        except KeyboardInterrupt:
            _log.warning(
                "Stopping: cells in training finish their step and write a checkpoint. Press Ctrl-C again to stop at "
                "once."
            )
            self._interrupted = True
        finally:
            if not keep_workers:
                self._stop()
            watch.poll()
        return self._interrupted

    def _begin(self, request: str) -> Workers:
        if self._series is not None:
            self._series.add(request)
        if self._workers is None:
            self._workers = self._executor.start(dataclasses.replace(self._launch, request=request))
        return self._workers

    def _end(self) -> None:
        """Let the workers exit by themselves, as their observers may still be busy; then stop the rest."""
        if self._series is not None:
            self._series.close()
        deadline = time.monotonic() + FINISH_S
        while self._workers is not None and self._workers.alive() and time.monotonic() < deadline:
            time.sleep(POLL_S / 4)
        self._stop()

    def _stop(self) -> None:
        """Stop the workers; a second interrupt ends the wait."""
        workers, self._workers = self._workers, None
        if self._series is not None:
            self._series.close()
        if workers is None:
            return
        try:
            with self._interrupts.raised():
                workers.stop(grace_s=GRACE_S)
        except KeyboardInterrupt:
            workers.stop(grace_s=0)


def run(
    folder: RunFolder,
    request: str,
    cells: Sequence[Cell],
    executor: Executor,
    observers: Mapping[str, object],
    **options: Any,
) -> int:
    """Run the cells of one request, as :meth:`Session.run` does; ``options`` are those of :class:`Session`."""
    with Session(folder, executor, observers, **options) as session:
        return session.run(request, cells)


class _Watch:
    """Turns changes in the run folder into events, each once."""

    def __init__(self, folder: RunFolder, cells: Sequence[Cell], events: Events) -> None:
        self.missing: dict[str, Cell] = {}
        self.statuses: Counter[str] = Counter()
        """Of the records that were reported."""
        self._folder = folder
        self._events = events
        self._order = {cell.key: number for number, cell in enumerate(cells)}
        self._tokens: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        there, logged = folder.finished(), folder.logged()
        for cell in cells:
            record = folder.record(cell.key) if cell.key in there else None
            if record is not None:
                self._finished(record)
                continue
            self.missing[cell.key] = cell
            # Lines logged by earlier runs are not reported again.
            self._offsets[cell.key] = folder.steps_since(cell.key, 0)[1] if cell.key in logged else 0

    def poll(self) -> None:
        """Report what changed since the last call.

        Folders are listed once, and only files of cells that run, ended or logged are opened: thousands may be missing.
        """
        running, there, logged = self._folder.claims(), self._folder.finished(), self._folder.logged()
        for key in sorted(self.missing.keys() & (running.keys() | there | logged), key=self._order.__getitem__):
            cell, claim = self.missing[key], running.get(key)
            if claim is not None and self._tokens.get(key) != claim.token:
                self._tokens[key] = claim.token
                self._events.cell_started(cell)
            record = self._folder.record(key) if key in there else None
            if record is not None and key not in self._tokens:
                self._events.cell_started(cell)
            if self._folder.steps_grew(key, self._offsets[key]):
                lines, self._offsets[key] = self._folder.steps_since(key, self._offsets[key])
                for line in lines:
                    self._events.step_logged(cell, line)
            if record is not None:
                del self.missing[key]
                self._finished(record)

    def _finished(self, record: Record) -> None:
        self.statuses[record.status] += 1
        self._events.cell_finished(record)


def _exit_code(folder: RunFolder, watch: _Watch, *, cells: int) -> int:
    if watch.missing:
        why = _unusable(folder) or _log_tail(folder)
        _log.error("No worker is left, but %d of %d cells have no record.%s", len(watch.missing), cells, why)
    return FAILED if watch.missing or watch.statuses["failed"] else OK


def _unusable(folder: RunFolder) -> str:
    """Why the run folder itself cannot be used, such as a full disk, which truncates the logs too; else empty."""
    try:
        folder.preflight()
    except MtlbenchError as error:
        return f" {error}"
    return ""


def _log_tail(folder: RunFolder, *, lines: int = 15) -> str:
    path = folder.newest_log()
    if path is None:
        return ""
    last = path.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f" Last lines of {path}:", *(f"  {line}" for line in last)])
