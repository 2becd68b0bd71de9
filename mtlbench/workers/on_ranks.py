"""The cells of a worker of several processes: rank 0 runs them, the other ranks join in training.

Rank 0 announces each cell in the store that the processes share. A rank that fails alone would leave the others
waiting for it: it exits instead, and torchrun ends the rest.
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
from mtlbench.backbones.machine import Machine, free_memory, tf32_products
from mtlbench.cells.attempt import CellAttempt, TrainingContext
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_along, run_cell
from mtlbench.distributed.collectives import Connected
from mtlbench.files.failpoints import reach
from mtlbench.files.stop_request import Stopped, StopRequest
from mtlbench.observers.events import Events
from mtlbench.store import RunFolder
from mtlbench.training.checkpoints.model_state import Unusable
from mtlbench.training.checkpoints.recovery import checkpoint_seconds
from mtlbench.training.checkpoints.state import trainable_names
from mtlbench.workers.arguments import WorkerArguments

POLL_S = 0.05
SETTLE_S = 10.0
"""Seconds that the other ranks may take to finish a cell that rank 0 has finished."""
_log = logging.getLogger(__name__)


class Leader:
    """Rank 0: runs cells like any worker, and announces them to the other ranks."""

    def __init__(self, arguments: WorkerArguments, ranks: Connected, stop: StopRequest) -> None:
        self._arguments, self._ranks, self._stop, self._cells = arguments, ranks, stop, 0

    def engine(self, folder: RunFolder, events: Events) -> Callable[[Cell], Record]:
        """Returns the function that runs one cell."""
        bench, every_s = _bench(self._arguments, self._ranks, folder), checkpoint_seconds()

        def run(cell: Cell) -> Record:
            self._wait_for_others()
            self._cells += 1
            self._ranks.use_prefix(f"cell/{self._cells}")
            self._ranks.put(f"cell/{self._cells}", json.dumps({"cell": cell.to_json(), "reload": bench.dropped}))
            bench.dropped = False
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
                self._ranks.put(f"over/{self._cells}", "1")

        return run

    def end(self) -> None:
        """Announce that there are no more cells."""
        self._ranks.put(f"cell/{self._cells + 1}", "")

    def _wait_for_others(self) -> None:
        """Wait until the other ranks have finished the previous cell; exit if they do not."""
        names = [f"idle/{self._cells}/{rank}" for rank in range(1, self._ranks.size)] if self._cells else []
        if not _wait(lambda: self._ranks.has(*names)):
            _log.error("the other processes of this worker do not finish the previous cell: the worker ends")
            raise SystemExit(1)


def follow(arguments: WorkerArguments, ranks: Connected, stop: StopRequest) -> int:
    """Train along with rank 0 until it has no more cells; returns the exit code."""
    folder = RunFolder(arguments.folder)
    bench = _bench(arguments, ranks, folder)
    context = TrainingContext(bench=bench, folder=folder, stop=stop, ranks=ranks)
    number = 0
    while True:
        number += 1
        while not ranks.has(f"cell/{number}"):
            time.sleep(POLL_S)
        text = ranks.get(f"cell/{number}")
        if not text:
            return 0
        told = json.loads(text)
        cell = Cell.from_json(told["cell"])
        if told["reload"]:
            bench.drop_backbones()
        ranks.use_prefix(f"cell/{number}")
        try:
            with tf32_products(cell.protocol.tf32):
                (run_along if ranks.sharded else _train)(cell, context)
        except Stopped:
            return 0
        except Exception as error:
            # If rank 0 does not fail too, it waits for this rank for ever.
            _log.warning("training along in cell %s ended: %s: %s", cell.key, type(error).__name__, error)
            if not _wait(partial(ranks.has, f"over/{number}")):
                return 1
        free_memory(bench.device)
        ranks.put(f"idle/{number}/{ranks.rank}", "1")


def _train(cell: Cell, context: TrainingContext) -> None:
    """The steps of :func:`~mtlbench.cells.cell.run_cell` up to the end of training. As every rank has the whole
    backbone, rank 0 evaluates alone."""
    for _ in range(2):
        attempt = CellAttempt(
            cell,
            context,
            on_step=lambda *step: reach("rank.step"),
            metric=lambda rows: 0.0,  # that of rank 0 is taken
            begun=time.perf_counter(),
        )
        if attempt.attach() is not None:
            return
        try:
            attempt.fit(trains=bool(trainable_names(attempt.model)))
        except Unusable:
            continue  # rank 0 removes the checkpoints
        return


def _bench(arguments: WorkerArguments, ranks: Connected, folder: RunFolder) -> Bench:
    """The warm state between cells. All ranks use the measurements of rank 0, as the dtype depends on them."""
    sharding = None
    if arguments.shard:
        from mtlbench.distributed.shards import Sharding

        sharding, ranks.sharded = Sharding(ranks, ranks.device), True
    data = folder.options(arguments.request)["data"]
    bench = Bench(
        device=str(ranks.device),
        threads=arguments.threads,
        data=data,
        sharding=sharding,
        places=folder.model_places,
    )
    bench.machine = Machine(**{**ranks.broadcast_object(asdict(bench.machine)), "device": bench.machine.device})
    return bench


def _wait(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SETTLE_S
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
