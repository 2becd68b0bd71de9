"""What the executors of clusters share: how many nodes of which width to ask for, and when to ask again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from mtlbench.api.executor import Launch
from mtlbench.executors.queue import CellQueue

RESTARTS = 3
"""How often nodes are asked for again in a row while no cell gets done."""
LOOK_AGAIN_S = 1.0
_log = logging.getLogger(__name__)


@dataclass
class WorkerDemand:
    """The cells of a launch that have no record, as numbers of workers by width."""

    launch: Launch
    most: int
    """Workers at once."""
    asked: CellQueue = field(init=False)
    _seen_done: int = field(default=0, init=False)
    _restarts: int = field(default=0, init=False)
    _done: bool = field(default=False, init=False)
    _next_look: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.asked = CellQueue(self.launch)

    def widths(self, running: Counter[int]) -> dict[int, int]:
        """Width to how many more workers are of use; every width gets one before any gets two."""
        demand = self.asked.demand()
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
        """Whether cells came since the last call."""
        if not self.asked.grew():
            return False
        self._done = False
        return True

    def done(self) -> bool:
        """Whether every cell has its record; asked of the disk once a second at most."""
        now = time.monotonic()
        if not self._done and now >= self._next_look:
            self._next_look = now + LOOK_AGAIN_S
            self._done = not self.asked.missing()
        return self._done

    def may_restart(self, what: str) -> bool:
        """Whether what ended (in words) is asked for again: not over and over while nothing gets done."""
        missing = len(self.asked.missing())
        done = len(self.asked.cells) - missing
        if done > self._seen_done:
            self._restarts = 0
        self._seen_done = done
        if not missing:
            return False
        if self._restarts >= RESTARTS:
            _log.error("%s and is not started again: see %s", what, self.asked.folder.path / "logs")
            return False
        self._restarts += 1
        _log.warning("%s: started again", what)
        return True
