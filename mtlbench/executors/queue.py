"""The cells of a launch, and how many of each width have no record."""

from __future__ import annotations

from collections import Counter

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Launch
from mtlbench.store import RunFolder


class CellQueue:
    """The cells of a launch, or ``only`` those of one width, as on a node of a cluster.

    If the launch follows a series, later requests add cells: :meth:`grew` checks for them.
    """

    def __init__(self, launch: Launch, *, only: int | None = None) -> None:
        self.launch, self._only = launch, only
        self.folder = RunFolder(launch.folder)
        self._queue = self.folder.queue(launch.request, series=launch.series)
        self.grew()

    @property
    def cells(self) -> list[Cell]:
        """The cells known so far, with or without a record."""
        return [cell for cell in self._queue.cells if self._only in (None, self.launch.devices(cell))]

    def grew(self) -> bool:
        """Whether cells were added since the last call."""
        return bool(self._queue.refresh())

    def missing(self) -> list[Cell]:
        """The cells without a record."""
        return self.folder.missing(self.cells)

    def demand(self) -> Counter[int]:
        """Width (devices per cell) to number of cells without a record."""
        return Counter(map(self.launch.devices, self.missing()))

    def expected_demand(self) -> Counter[int]:
        """The demand, or what later requests of the series will need of each width where that is more."""
        demand = self.demand()
        if self.launch.series is not None:
            for width in set(map(self.launch.devices, self.cells)):
                demand[width] = max(demand[width], self.launch.at_once)
        return demand
