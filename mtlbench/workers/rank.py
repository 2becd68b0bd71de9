"""One of the processes that share the cells of a worker; ``mtlbench.workers.group`` starts them through torchrun."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.errors import RequestError
from mtlbench.files.redact import log_to_stderr
from mtlbench.files.stop_request import Stop
from mtlbench.observers.events import Events
from mtlbench.store import RunFolder
from mtlbench.workers.arguments import WorkerArguments
from mtlbench.workers.stacks import ASK
from mtlbench.workers.worker import LOG_FORMAT, work_as

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m mtlbench.workers.rank``."""
    given = WorkerArguments.parse(argv)
    # What the group hears is only what is meant for it: everything printed goes where the log goes.
    channel = os.dup(1)
    os.dup2(2, 1)
    rank = int(os.environ["RANK"])
    faulthandler.enable()
    if ASK is not None:
        faulthandler.register(ASK, all_threads=True)
    _say(channel, f"rank {rank} {os.getpid()}")
    threading.Thread(target=_follow_group, name="follow-group", daemon=True).start()
    log_to_stderr(logging.INFO, LOG_FORMAT if rank == 0 else f"{LOG_FORMAT} (rank {rank})")
    stop = Stop()
    stop.install()
    # Torchrun sends this when another process died: end at once, whatever this one waits for.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return _work(given, channel, stop)
    finally:
        # Python gives a signal its deadly default back while it ends.
        stop.ignore()


def _work(given: WorkerArguments, channel: int, stop: Stop) -> int:
    from mtlbench.distributed.collectives import join
    from mtlbench.workers.on_ranks import Leader, follow

    try:
        ranks = join(processes=given.devices, device=given.device)
    except RequestError as error:
        _log.error("this worker ends: %s", error)
        _say(channel, "refused")
        return 1
    if not ranks.first:
        with stop.held():
            return follow(given, ranks, stop)
    _say(channel, "met")
    leader = Leader(given, ranks, stop)

    def engine(given: WorkerArguments, folder: RunFolder, events: Events, stop: Stop) -> Callable[[Cell], Record]:
        return leader.engine(folder, events)

    try:
        return work_as(replace(given, pulse=channel), engine=engine, stop=stop)
    finally:
        leader.end()


def _say(channel: int, line: str) -> None:
    os.write(channel, f"{line}\n".encode())


def _follow_group() -> None:
    """End this process once the one that watches it is gone."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
