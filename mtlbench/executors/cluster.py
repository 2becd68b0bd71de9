"""What the executors of clusters share: how many nodes of which width to ask for, and when to ask again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Launch
from mtlbench.store import RunFolder

RESTARTS = 3
"""How often nodes are asked for again in a row while no cell gets done."""
LOOK_AGAIN_S = 1.0
_log = logging.getLogger(__name__)


@dataclass
class Wanted:
    """The cells of a launch that have no record, as numbers of workers by width."""

    launch: Launch
    most: int
    """Workers at once."""
    folder: RunFolder = field(init=False)
    cells: Sequence[Cell] = field(init=False)
    _missing: int | None = field(default=None, init=False)
    _restarts: int = field(default=0, init=False)
    _done: bool = field(default=False, init=False)
    _next_look: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.folder = RunFolder(self.launch.folder)
        self.cells = self.folder.cells(self.launch.request)

    def widths(self, running: Counter[int]) -> dict[int, int]:
        """Width to how many more workers are of use; every width gets one before any gets two."""
        demand = Counter(self.launch.devices(cell) for cell in self.folder.missing(self.cells))
        left = self.most - running.total()
        more: Counter[int] = Counter()
        while left > 0:
            open_ = [width for width, count in demand.items() if running[width] + more[width] < count]
            if not open_:
                break
            more[min(open_, key=lambda width: (running[width] + more[width], -width))] += 1
            left -= 1
        return dict(more)

    def done(self) -> bool:
        """Whether every cell has its record; asked of the disk once a second at most."""
        now = time.monotonic()
        if not self._done and now >= self._next_look:
            self._next_look = now + LOOK_AGAIN_S
            self._done = not self.folder.missing(self.cells)
        return self._done

    def may_restart(self, what: str) -> bool:
        """Whether what ended (in words) is asked for again: not over and over while nothing gets done."""
        missing = len(self.folder.missing(self.cells))
        if self._missing is not None and missing < self._missing:
            self._restarts = 0
        self._missing = missing
        if not missing:
            return False
        if self._restarts >= RESTARTS:
            _log.error("%s and is not started again: see %s", what, self.folder.path / "logs")
            return False
        self._restarts += 1
        _log.warning("%s: started again", what)
        return True
