"""The cells of a worker that is several processes: the first runs them, the others train along.

Each cell is announced in the store the processes share. A process that fails alone leaves the others waiting for it:
it ends then, and torchrun ends the rest.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.backbones.machine import Machine, free_memory
from mtlbench.cells.attempt import CellAttempt, TrainingContext
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_along, run_cell
from mtlbench.distributed.collectives import Connected
from mtlbench.files.failpoints import reach
from mtlbench.files.stop_request import Stop, Stopped
from mtlbench.observers.events import Events
from mtlbench.store import RunFolder
from mtlbench.training.checkpoints.model_state import Unusable
from mtlbench.training.checkpoints.recovery import checkpoint_seconds
from mtlbench.training.checkpoints.state import trainable_names
from mtlbench.workers.arguments import WorkerArguments

POLL_S = 0.05
SETTLE_S = 10.0
"""How long the others may take to come out of a cell that the first process is done with."""
_log = logging.getLogger(__name__)


class Leader:
    """The first process: runs cells like any worker, and lets the others know which."""

    def __init__(self, given: WorkerArguments, ranks: Connected, stop: Stop) -> None:
        self._given, self._ranks, self._stop, self._cells = given, ranks, stop, 0

    def engine(self, folder: RunFolder, events: Events) -> Callable[[Cell], Record]:
        """Gives the function that runs one cell."""
        bench, every_s = _bench(self._given, self._ranks, folder), checkpoint_seconds()

        def run(cell: Cell) -> Record:
            self._gather()
            self._cells += 1
            self._ranks.turn_to(f"cell/{self._cells}")
            self._ranks.leave(f"cell/{self._cells}", json.dumps(cell.to_json()))
            try:
                return run_cell(
                    cell,
                    bench=bench,
                    folder=folder,
                    events=events,
                    stop=self._stop,
                    checkpoint_s=every_s,
                    ranks=self._ranks,
                )
            finally:
                self._ranks.leave(f"over/{self._cells}", "1")

        return run

    def end(self) -> None:
        """Tell the others that there are no more cells."""
        self._ranks.leave(f"cell/{self._cells + 1}", "")

    def _gather(self) -> None:
        """Wait until the others are through with the cell before; end this process if they do not come."""
        names = [f"idle/{self._cells}/{rank}" for rank in range(1, self._ranks.size)] if self._cells else []
        if not _wait(lambda: self._ranks.left(*names)):
            _log.error("the other processes of this worker do not come out of the cell before: the worker ends")
            raise SystemExit(1)


def follow(given: WorkerArguments, ranks: Connected, stop: Stop) -> int:
    """Train along until the first process has no more cells; gives the exit code."""
    folder = RunFolder(given.folder)
    bench = _bench(given, ranks, folder)
    around = TrainingContext(bench=bench, folder=folder, stop=stop, ranks=ranks)
    number = 0
    while True:
        number += 1
        while not ranks.left(f"cell/{number}"):
            time.sleep(POLL_S)
        text = ranks.word(f"cell/{number}")
        if not text:
            return 0
        cell = Cell.from_json(json.loads(text))
        ranks.turn_to(f"cell/{number}")
        try:
            (run_along if ranks.sharded else _train)(cell, around)
        except Stopped:
            return 0
        except Exception as error:
            # The first process fails in the same, or it waits for this one for ever.
            _log.warning("training along in cell %s ended: %s: %s", cell.key, type(error).__name__, error)
            if not _wait(partial(ranks.left, f"over/{number}")):
                return 1
        free_memory(bench.device)
        ranks.leave(f"idle/{number}/{ranks.rank}", "1")


def _train(cell: Cell, around: TrainingContext) -> None:
    """What :func:`~mtlbench.cells.cell.run_cell` does with a cell up to the end of its training. Every process has the
    whole backbone: the rest is the first one's."""
    for _ in range(2):
        attempt = CellAttempt(cell, around, on_step=lambda *step: reach("rank.step"), begun=time.perf_counter())
        if attempt.attach() is not None:
            return
        try:
            attempt.fit(trains=bool(trainable_names(attempt.model)))
        except Unusable:
            continue  # the first process removes the checkpoints
        return


def _bench(given: WorkerArguments, ranks: Connected, folder: RunFolder) -> Bench:
    """What stays warm. All take the first one's measurements, from which the numbers' format follows."""
    sharding = None
    if given.shard:
        from mtlbench.distributed.shards import Sharding

        sharding, ranks.sharded = Sharding(ranks, ranks.device), True
    data = folder.words(given.request)["data"]
    bench = Bench(device=str(ranks.device), threads=given.threads, data=data, sharding=sharding)
    bench.machine = Machine(**{**ranks.broadcast_object(asdict(bench.machine)), "device": bench.machine.device})
    return bench


def _wait(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLE_S
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
