"""Shared by the cluster executors: how many workers of each width to request, and when to request them again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from mtlbench.api.executor import Launch
from mtlbench.executors.queue import CellQueue

NODE_RESTARTS = 3
"""Restarts in a row without a finished cell; after that, lost workers are not replaced."""
CHECK_DONE_S = 1.0
"""Seconds between two looks at the disk for missing records."""
_log = logging.getLogger(__name__)


@dataclass
class WorkerDemand:
    """How many workers of each width (devices per cell) the cells without a record can use."""

    launch: Launch
    most: int
    """Limit on simultaneous workers."""
    queue: CellQueue = field(init=False)
    _last_done: int = field(default=0, init=False)
    _restarts: int = field(default=0, init=False)
    _done: bool = field(default=False, init=False)
    _next_check: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.queue = CellQueue(self.launch)

    def widths(self, running: Counter[int]) -> dict[int, int]:
        """Width to number of additional workers; every width gets one before any gets two."""
        demand = self.queue.demand()
        left = self.most - running.total()
        more: Counter[int] = Counter()
        while left > 0:
            open_ = [width for width, count in demand.items() if running[width] + more[width] < count]
            if not open_:
                break
            more[min(open_, key=lambda width: (running[width] + more[width], -width))] += 1
            left -= 1
        return dict(more)

    def grew(self) -> bool:
        """Whether cells were added since the last call."""
        if not self.queue.grew():
            return False
        self._done = False
        return True

    def done(self) -> bool:
        """Whether every cell has a record; reads the disk at most once per second."""
        now = time.monotonic()
        if not self._done and now >= self._next_check:
            self._next_check = now + CHECK_DONE_S
            self._done = not self.queue.missing()
        return self._done

    def may_restart(self, what: str) -> bool:
        """Whether to replace a lost worker, described by ``what``; not after :data:`NODE_RESTARTS` without progress."""
        missing = len(self.queue.missing())
        done = len(self.queue.cells) - missing
        if done > self._last_done:
            self._restarts = 0
        self._last_done = done
        if not missing:
            return False
        if self._restarts >= NODE_RESTARTS:
            _log.error("%s and is not started again: see %s", what, self.queue.folder.path / "logs")
            return False
        self._restarts += 1
        _log.warning("%s: started again", what)
        return True
