"""One rank of a worker of several processes; ``mtlbench.workers.group`` starts it through torchrun."""

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
from mtlbench.files.stop_request import StopRequest
from mtlbench.observers.events import Events
from mtlbench.store import RunFolder
from mtlbench.workers.arguments import WorkerArguments
from mtlbench.workers.stacks import STACKS_SIGNAL
from mtlbench.workers.worker import LOG_FORMAT, work_as

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m mtlbench.workers.rank``."""
    arguments = WorkerArguments.parse(argv)
    # The group reads standard output: redirect everything else that is printed to the log.
    channel = os.dup(1)
    os.dup2(2, 1)
    rank = int(os.environ["RANK"])
    faulthandler.enable()
    if STACKS_SIGNAL is not None:
        faulthandler.register(STACKS_SIGNAL, all_threads=True)
    _send(channel, f"rank {rank} {os.getpid()}")
    threading.Thread(target=_follow_group, name="follow-group", daemon=True).start()
    log_to_stderr(logging.INFO, LOG_FORMAT if rank == 0 else f"{LOG_FORMAT} (rank {rank})")
    stop = StopRequest()
    stop.install()
    # Torchrun sends this when another rank died: end at once, even inside a collective.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return _work(arguments, channel, stop)
    finally:
        # Python restores the default handlers while it shuts down.
        stop.ignore()


def _work(arguments: WorkerArguments, channel: int, stop: StopRequest) -> int:
    from mtlbench.distributed.collectives import join
    from mtlbench.workers.on_ranks import Leader, follow

    try:
        ranks = join(processes=arguments.devices, device=arguments.device)
    except RequestError as error:
        _log.error("this worker ends: %s", error)
        _send(channel, "refused")
        return 1
    if not ranks.first:
        with stop.held():
            return follow(arguments, ranks, stop)
    _send(channel, "met")
    leader = Leader(arguments, ranks, stop)

    def engine(
        arguments: WorkerArguments, folder: RunFolder, events: Events, stop: StopRequest
    ) -> Callable[[Cell], Record]:
        return leader.engine(folder, events)

    try:
        return work_as(replace(arguments, pulse=channel), engine=engine, stop=stop)
    finally:
        leader.end()


def _send(channel: int, line: str) -> None:
    os.write(channel, f"{line}\n".encode())


def _follow_group() -> None:
    """Exit once the supervising process is gone."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
