"""The workers of one cluster node: the local executor on the devices that the cluster gave to the node."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mtlbench.api.executor import Launch
from mtlbench.executors.local import LocalExecutor, LocalWorkers

POLL_S = 0.2
CHECK_S = 1.0


@dataclass(frozen=True)
class NodeShare:
    """One node's share of a launch; plain values, because it is pickled."""

    launch: Launch
    command: tuple[str, ...]
    """Starts a worker."""
    width: int
    """Runs only the cells that get this many devices."""
    first: int
    """Index of its worker."""
    directory: str
    """Working directory of the command: relative paths of models and data are resolved there."""


class Node:
    """Runs the worker of a share. Call :meth:`stop` from another thread, :meth:`end` from a signal handler."""

    def __init__(self, share: NodeShare) -> None:
        self._share = share
        self._stop = threading.Event()
        self._grace_s = math.inf
        self._workers: LocalWorkers | None = None

    def serve(self, *, until: Callable[[], float | None] = lambda: None) -> None:
        """Run until every cell of the share has a record, no worker is left, or :meth:`stop` is called.

        ``until`` is called once a second; returning a number stops the node with that grace period in seconds.

        Raises:
            RequestError: the node has too few devices.
        """
        self._workers = workers = self._start()
        next_check = 0.0
        try:
            while not self._stop.is_set() and workers.alive():
                if time.monotonic() >= next_check:
                    next_check = time.monotonic() + CHECK_S
                    grace_s = until()
                    if grace_s is not None:
                        self.stop(grace_s=grace_s)
                self._stop.wait(POLL_S)
        finally:
            workers.stop(grace_s=self._grace_s if self._stop.is_set() else 0)

    def stop(self, *, grace_s: float) -> None:
        """Make :meth:`serve` end its worker within ``grace_s`` seconds; returns at once."""
        self._grace_s = min(self._grace_s, grace_s)
        self._stop.set()

    def end(self, *, grace_s: float) -> None:
        """End the worker now, within ``grace_s`` seconds."""
        self.stop(grace_s=grace_s)
        if self._workers is not None:
            self._workers.stop(grace_s=grace_s)

    def _start(self) -> LocalWorkers:
        share = self._share
        executor = LocalExecutor(
            command=share.command, only=share.width, first=share.first, directory=Path(share.directory)
        )
        return executor.start(dataclasses.replace(share.launch, workers=1))


def shares_of(launch: Launch, widths: dict[int, int], *, command: tuple[str, ...], first: int = 0) -> list[NodeShare]:
    """One share for each worker of each width, numbered from ``first`` on."""
    remote = dataclasses.replace(launch, folder=launch.folder.resolve())
    all_widths = [width for width, count in sorted(widths.items(), reverse=True) for _ in range(count)]
    return [
        NodeShare(launch=remote, command=command, width=width, first=first + number, directory=str(Path.cwd()))
        for number, width in enumerate(all_widths)
    ]
