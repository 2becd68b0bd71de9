"""The cells that a launch asks for, and how many workers of which width they keep busy."""

from __future__ import annotations

from collections import Counter

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Launch
from mtlbench.store import RunFolder


class CellQueue:
    """The cells of a launch; ``only`` those of one width, as a part of a cluster runs them.

    Where the launch follows a series, cells are added: :meth:`grew` looks.
    """

    def __init__(self, launch: Launch, *, only: int | None = None) -> None:
        self.launch, self._only = launch, only
        self.folder = RunFolder(launch.folder)
        self._queue = self.folder.queue(launch.request, series=launch.series)
        self.grew()

    @property
    def cells(self) -> list[Cell]:
        """Those known so far, with a record or without."""
        return [cell for cell in self._queue.cells if self._only in (None, self.launch.devices(cell))]

    def grew(self) -> bool:
        """Whether cells came since the last call."""
        return bool(self._queue.refresh())

    def missing(self) -> list[Cell]:
        """Those without a record."""
        return self.folder.missing(self.cells)

    def demand(self) -> Counter[int]:
        """Width (devices of a cell) to cells without a record."""
        return Counter(map(self.launch.devices, self.missing()))

    def prospect(self) -> Counter[int]:
        """The demand, and what later requests of the series will have of each width."""
        found = self.demand()
        if self.launch.series is not None:
            for width in set(map(self.launch.devices, self.cells)):
                found[width] = max(found[width], self.launch.at_once)
        return found
