"""The contract of an executor: a way to start workers that pull cells from a run folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class Launch:
    """What a worker needs to be started: everything else it reads from the run folder."""

    folder: Path
    """The run folder."""
    request: str
    """Id of the request under ``requests/`` whose cells the workers pull."""
    workers: int
    """How many workers at most; 0 lets the executor choose (one per accelerator, or one per core)."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""


class Workers(ABC):
    """The started workers."""

    @abstractmethod
    def alive(self) -> int:
        """How many workers run now. Dead ones are replaced here while cells are left and restarts remain."""

    @abstractmethod
    def stop(self, *, grace_s: float) -> None:
        """End every worker and its children: asked first, killed after ``grace_s`` seconds."""


class Executor(ABC):
    """Starts workers; it decides nothing about cells, claims or records."""

    name: ClassVar[str]

    @abstractmethod
    def start(self, launch: Launch) -> Workers:
        """Start the workers and return at once."""
