"""The contract of an executor, which starts workers that claim cells from a run folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mtlbench.api.cell import Cell
from mtlbench.errors import RequestError

SILENCE_S = 1800.0
"""A cell that shows no sign of progress for this many seconds is ended."""
FOREIGN_BYTES = "MTLBENCH_FOREIGN_BYTES"
"""Environment variable of a worker: device memory that other programs held when it was started; records keep it."""
SHARED_BY = "MTLBENCH_WORKERS_PER_DEVICE"
"""Environment variable of a worker: workers on its device, where that is more than one; records keep it."""

DEVICE_WHY = "MTLBENCH_DEVICE_WHY"
"""Environment variable of a worker: why it uses the processor although the system shows a GPU; records keep it."""


@dataclass(frozen=True)
class DevicesPerCell:
    """How many devices a cell gets: the same for all, or by method; and how many workers share a device."""

    usual: int = 1
    of: Mapping[str, int] = field(default_factory=dict)
    """Method name to its number of devices."""
    shard: bool = False
    """Whether the frozen backbone is sharded over the devices of a cell that has several."""
    workers: int = 1
    """Workers on each GPU, which run as many cells at once there; more than one only with cells of one device."""

    def __call__(self, cell: Cell) -> int:
        return self.of.get(cell.method, self.usual)

    def __str__(self) -> str:
        """The numbers as a command line writes them; :attr:`shard` and :attr:`workers` are not among them."""
        return ",".join([str(self.usual), *(f"{name}={count}" for name, count in self.of.items())])


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
    threads: int | None = None
    """CPU threads of each worker; ``None`` divides the cores among the workers."""
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

    def check_shared(self, device: str, devices: DevicesPerCell) -> None:
        """Refuse several workers on a device where this executor cannot start them.

        Raises:
            RequestError: saying what to do instead.
        """
        if devices.workers > 1:
            raise RequestError(
                f"--workers-per-device {devices.workers} takes the executor local, and this is {self.name}. Leave it "
                "out, or start `mtlbench run` on the machine with the GPUs."
            )

    def check(self, device: str) -> None:  # noqa: B027
        """Refuse, before anything is created, an executor that cannot run here.

        Raises:
            RequestError: with what is missing and what to do.
        """

    @abstractmethod
    def start(self, launch: Launch) -> Workers:
        """Start the workers and return at once."""
