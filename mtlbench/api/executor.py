"""The contract of an executor, which starts workers that claim cells from a run folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mtlbench.api.cell import Cell
from mtlbench.errors import RequestError, did_you_mean

SILENCE_S = 1800.0
"""A cell without progress for this many seconds is ended."""


@dataclass(frozen=True)
class DevicesPerCell:
    """How many devices a cell gets: the same for all, or by method."""

    usual: int = 1
    of: Mapping[str, int] = field(default_factory=dict)
    """Method name to its number of devices."""
    shard: bool = False
    """Whether the frozen backbone is sharded over the devices of a cell that has several."""

    def __call__(self, cell: Cell) -> int:
        return self.of.get(cell.method, self.usual)

    def __str__(self) -> str:
        return ",".join([str(self.usual), *(f"{name}={count}" for name, count in self.of.items())])

    @classmethod
    def read(cls, text: str) -> DevicesPerCell:
        """``"2"``, ``"full=4"`` or ``"1,full=4"``.

        Raises:
            RequestError: the text does not give numbers of devices.
        """
        usual, of = 1, dict[str, int]()
        for item in text.split(","):
            name, equals, number = item.strip().rpartition("=")
            if not number.isdigit() or int(number) < 1 or (equals and not name):
                raise RequestError(
                    f"--devices-per-cell {text!r} cannot be read at {item!r}. Write a number, and a number for each "
                    "method that needs another one: 1,full=4."
                )
            if name:
                of[name.strip()] = int(number)
            else:
                usual = int(number)
        return cls(usual=usual, of=of)

    def check(self, cells: Iterable[Cell]) -> None:
        """Refuse names of methods that no cell has, and sharding when no cell has several devices.

        Raises:
            RequestError: saying what is wrong.
        """
        cells = list(cells)
        methods = {cell.method for cell in cells}
        if self.shard and all(self(cell) == 1 for cell in cells):
            raise RequestError(
                "--shard needs cells with several devices, and every cell here has one. Give them more: "
                "--devices-per-cell 2."
            )
        for name in self.of:
            if name not in methods:
                raise RequestError(f"--devices-per-cell names {name!r}, no method here. {did_you_mean(name, methods)}")


@dataclass(frozen=True)
class Launch:
    """Arguments for starting workers; they read everything else from the run folder."""

    folder: Path
    """The run folder."""
    request: str
    """Id of the request under ``requests/`` whose cells the workers claim."""
    workers: int
    """Maximum number of workers; 0 lets the executor choose (one per accelerator, or one per core)."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    devices: DevicesPerCell = field(default_factory=DevicesPerCell)
    """Number of devices of each cell."""
    silence_s: float = SILENCE_S
    """A cell without a step or a scored batch for this many seconds is ended with class ``timeout``."""
    cell_timeout_s: float | None = None
    """A cell that runs longer than this many seconds is ended with class ``timeout``."""
    series: str | None = None
    """Name of the series whose later requests the workers also serve; they stay until it is closed."""
    at_once: int = 1
    """Number of missing cells that each later request of the series will have."""


class Workers(ABC):
    """The started workers."""

    @abstractmethod
    def alive(self) -> int:
        """Number of running workers. This call replaces dead ones while there are cells to run and restarts left."""

    @abstractmethod
    def stop(self, *, grace_s: float) -> None:
        """End every worker and its children: SIGTERM first, SIGKILL after ``grace_s`` seconds."""


class Executor(ABC):
    """Starts workers. It does not decide about cells, claims or records."""

    name: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    """Fields that can be set in brackets, as in ``slurm[partition=gpu]``; the executor is then a frozen dataclass."""

    def check(self, device: str) -> None:  # noqa: B027
        """Refuse, before anything is created, an executor that cannot run here.

        Raises:
            RequestError: with what is missing and what to do.
        """

    @abstractmethod
    def start(self, launch: Launch) -> Workers:
        """Start the workers and return at once."""
