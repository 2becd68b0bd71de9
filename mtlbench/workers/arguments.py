"""The command line of a worker, written and parsed in one place, and its thread settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mtlbench.api.executor import DevicesPerCell
from mtlbench.planning.request import read_devices

ONE_DEVICE = DevicesPerCell()
"""Every cell gets one device."""


@dataclass(frozen=True, kw_only=True)
class WorkerArguments:
    """The command line of ``python -m mtlbench.workers.worker``: one field for each option."""

    folder: Path
    """Run folder."""
    request: str
    """Id of the request whose cells to run."""
    index: int = 0
    """Index of this worker."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: int | None = None
    """CPU threads."""
    parent: int | None = None
    """Pid of the parent; the worker ends when it is gone."""
    devices: int = 1
    """Devices of each cell of this worker."""
    devices_per_cell: DevicesPerCell = ONE_DEVICE
    """Rule for the devices of each cell: the worker takes the cells that get :attr:`devices`."""
    last: str | None = None
    """Key of the cell in which the previous worker died: siblings try it first."""
    series: str | None = None
    """Name of the series whose later requests the worker follows."""
    pulse: int | None = None
    """File descriptor of the heartbeat pipe."""

    @property
    def shard(self) -> bool:
        """Whether each of several devices holds only a shard of the backbone."""
        return self.devices_per_cell.shard

    def argv(self) -> list[str]:
        """The command line, without options at their defaults."""
        argv: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                argv += [f"--{field.name.replace('_', '-')}", str(value)]
        return [*argv, "--shard"] if self.shard else argv

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None) -> WorkerArguments:
        """Parse ``argv``; by default the command line of this process."""
        parser = argparse.ArgumentParser(
            prog="python -m mtlbench.workers.worker", description="Claim a cell, run it, publish its record, repeat."
        )
        parser.add_argument("--folder", type=Path, required=True, help="run folder")
        parser.add_argument("--request", required=True, help="id of the request whose cells to run")
        parser.add_argument("--index", type=int, default=0, help="index of this worker")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        parser.add_argument("--threads", type=int, help="CPU threads")
        parser.add_argument("--parent", type=int, help="end when this process is gone")
        parser.add_argument("--devices", type=int, default=1, help="devices of each cell")
        parser.add_argument("--devices-per-cell", default="1", help="run the cells that get --devices by this rule")
        parser.add_argument("--shard", action="store_true", help="hold only a shard of the backbone on each device")
        parser.add_argument("--last", help="key of a cell to try after all others")
        parser.add_argument("--series", help="name of the series of requests to follow")
        parser.add_argument("--pulse", type=int, help="file descriptor of the heartbeat pipe")
        values = vars(parser.parse_args(argv))
        rule = read_devices(values.pop("devices_per_cell"), shard=values.pop("shard"))
        return cls(**values, devices_per_cell=rule)

    def of_rank(self) -> WorkerArguments:
        """The arguments of each rank of a worker of :attr:`devices` processes."""
        threads = max(1, self.threads // self.devices) if self.threads else None
        return replace(self, threads=threads, parent=None, pulse=None)


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables that limit numerical libraries to ``threads`` CPU threads."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
