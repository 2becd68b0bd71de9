"""The parent of a run: starts workers, watches the run folder, tells observers; computes nothing itself."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from mtlbench.api.cell import Cell
from mtlbench.api.executor import SILENCE_S, DevicesPerCell, Executor, Launch, Workers
from mtlbench.errors import MtlbenchError
from mtlbench.observers.events import Events
from mtlbench.processes.stacks import forget_stacks
from mtlbench.store import RunFolder

OK, FAILED, INTERRUPTED = 0, 1, 130
POLL_S = 0.2
GRACE_S = 30.0
"""How long workers may take to end when they are asked to: they keep what their cells have done so far."""
FINISH_S = 60.0
"""How long workers may take to end by themselves when every cell has its record."""
_log = logging.getLogger(__name__)


def run(
    folder: RunFolder,
    request: str,
    cells: Sequence[Cell],
    executor: Executor,
    observers: Mapping[str, object],
    *,
    device: str = "auto",
    workers: int = 0,
    devices: DevicesPerCell | None = None,
    silence_s: float = SILENCE_S,
    cell_timeout_s: float | None = None,
) -> int:
    """Run the cells of ``request`` that have no record; failed ones are tried again.

    The words after ``observers`` are those of :class:`Launch`.

    Gives the exit code: 0 all done (skipped counts as done), 1 some failed or are missing, 130 interrupted. What was
    finished stays in every case.

    Raises:
        RequestError: the executor cannot carry out the request on this machine.
        StoreError: a record was written by a newer version.
    """
    keys = [cell.key for cell in cells]
    retired = folder.retire_failed(keys)
    if retired:
        _log.info("%d failed cells are tried again", len(retired))
    folder.forget_deaths(keys)
    running = folder.claims()
    forget_stacks(folder.path, (cell.key for cell in folder.missing(cells) if cell.key not in running))
    events = Events(observers)
    events.run_started(cells)
    interrupted = False
    try:
        watch = _Watch(folder, cells, events)
        if watch.missing:
            launch = Launch(
                folder=folder.path,
                request=request,
                workers=workers,
                device=device,
                devices=devices or DevicesPerCell(),
                silence_s=silence_s,
                cell_timeout_s=cell_timeout_s,
            )
            with _signals_interrupt():
                interrupted = _supervise(executor, launch, watch)
            # A worker that was killed after it published has left its claim.
            folder.forget_deaths(key for key in keys if key not in watch.missing)
    finally:
        events.run_finished()
    if interrupted:
        _log.warning(
            "Interrupted with %d of %d cells done. Run the same command again: it goes on where this one ended.",
            len(cells) - len(watch.missing),
            len(cells),
        )
        return INTERRUPTED
    return _exit_code(folder, cells, missing=len(watch.missing))


class _Watch:
    """Turns what appears in the run folder into events, each once."""

    def __init__(self, folder: RunFolder, cells: Sequence[Cell], events: Events) -> None:
        self.missing: dict[str, Cell] = {}
        self._folder = folder
        self._events = events
        self._tokens: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        for cell in cells:
            record = folder.record(cell.key)
            if record is not None:
                events.cell_finished(record)
                continue
            self.missing[cell.key] = cell
            # What earlier runs logged is not news.
            self._offsets[cell.key] = folder.steps_since(cell.key, 0)[1]

    def look(self) -> None:
        """Tell what is new."""
        running = self._folder.claims()
        for key, cell in list(self.missing.items()):
            claim = running.get(key)
            if claim is not None and self._tokens.get(key) != claim.token:
                self._tokens[key] = claim.token
                self._events.cell_started(cell)
            record = self._folder.record(key)
            if record is not None and key not in self._tokens:
                self._events.cell_started(cell)
            lines, self._offsets[key] = self._folder.steps_since(key, self._offsets[key])
            for line in lines:
                self._events.step_logged(cell, line)
            if record is not None:
                del self.missing[key]
                self._events.cell_finished(record)


def _supervise(executor: Executor, launch: Launch, watch: _Watch) -> bool:
    """Keep workers running until nothing is missing or none is left; says whether it was interrupted."""
    started: Workers | None = None
    try:
        started = executor.start(launch)
        while watch.missing:
            alive = started.alive()
            watch.look()
            if not alive:
                break
            time.sleep(POLL_S)
        # Observers in the workers may still be busy with the last record.
        deadline = time.monotonic() + FINISH_S
        while started.alive() and time.monotonic() < deadline:
            time.sleep(POLL_S / 4)
    except KeyboardInterrupt:
        _log.warning(
            "Stopping: cells in training end after their step and keep what they have done. Press Ctrl-C again to stop "
            "at once."
        )
        return True
    finally:
        if started is not None:
            _stop(started)
        watch.look()
    return False


def _stop(workers: Workers) -> None:
    """Stop the workers; a second interrupt ends the wait."""
    try:
        workers.stop(grace_s=GRACE_S)
    except KeyboardInterrupt:
        workers.stop(grace_s=0)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal like Ctrl-C; what the caller ignores (as nohup does) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(folder: RunFolder, cells: Sequence[Cell], *, missing: int) -> int:
    records = folder.records()
    counts = Counter(records[cell.key].status for cell in cells if cell.key in records)
    if missing:
        why = _unusable(folder) or _log_tail(folder)
        _log.error("No worker is left and %d of %d cells have no record.%s", missing, len(cells), why)
    return FAILED if missing or counts["failed"] else OK


def _unusable(folder: RunFolder) -> str:
    """What is wrong with the run folder itself, such as a full disk, on which logs end too."""
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
