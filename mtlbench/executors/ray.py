"""Workers as Ray actors, on a running cluster or one started here."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mtlbench.api.executor import Executor, Launch, Workers
from mtlbench.api.hooks import hookimpl
from mtlbench.errors import RequestError
from mtlbench.executors.cluster import WorkerDemand
from mtlbench.executors.node import Node, NodeShare, shares_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayExecutor(Executor):
    """One actor per worker, with as many GPUs as its cells need; the actor starts the worker as a subprocess."""

    name: ClassVar[str] = "ray"
    settings: ClassVar[tuple[str, ...]] = ("address", "cpus")
    address: str | None = None
    """Address of a running cluster, or ``auto``; default: ``RAY_ADDRESS``, else a cluster is started here."""
    cpus: float = 1.0
    """CPUs that Ray reserves for each worker."""
    command: tuple[str, ...] = (sys.executable, "-m", "mtlbench.workers.worker")

    def check(self, device: str) -> None:
        """Reject a machine without Ray."""
        _ray()

    def start(self, launch: Launch) -> Workers:
        """Start the actors; those without free resources wait in Ray's queue.

        Raises:
            RequestError: Ray is not installed, the cluster cannot be reached, or it has too few GPUs for a cell.
        """
        ray = _ray()
        started_here = not ray.is_initialized()
        if started_here:
            try:
                ray.init(address=self.address, log_to_driver=False, include_dashboard=None, namespace="mtlbench")
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = self.address or os.environ.get("RAY_ADDRESS", "")
                raise RequestError(
                    f"No Ray cluster answers at {where!r}: {error}. Start one with `ray start --head`, correct the "
                    "address, or omit it to start one on this machine."
                ) from error
        try:
            return RayWorkers(self, launch, ray=ray, shut_down=started_here)
        except BaseException:
            if started_here:
                ray.shutdown()
            raise


@dataclass
class _Actor:
    share: NodeShare
    handle: Any
    up: Any
    """Object reference that is ready once the actor is scheduled."""
    served: Any
    """Object reference that is ready when :meth:`Node.serve` has returned."""


@dataclass
class RayWorkers(Workers):
    """The actors of one launch."""

    executor: RayExecutor
    launch: Launch
    ray: Any = field(kw_only=True)
    shut_down: bool = field(kw_only=True)
    """Whether to disconnect from the cluster at the end."""

    def __post_init__(self) -> None:
        total = self.ray.cluster_resources()
        gpus = 0 if self.launch.device == "cpu" else int(total.get("GPU", 0))
        if self.launch.device == "cuda" and not gpus:
            raise RequestError("--device cuda: this Ray cluster has no GPU. Use --device cpu or auto.")
        self._on_gpu = gpus > 0
        room = gpus if self._on_gpu else max(1, int(total.get("CPU", 1) // self.executor.cpus))
        self._demand = WorkerDemand(self.launch, self.launch.workers or room)
        widest = max(map(self.launch.devices, self._demand.queue.cells), default=1)
        if self._on_gpu and widest > gpus:
            raise RequestError(f"--devices-per-cell asks for {widest} GPUs for one cell, and the cluster has {gpus}.")
        self._actors: list[_Actor] = []
        self._next = 0
        self._fill()

    def alive(self) -> int:
        """How many actors run or wait for resources, after replacing those that were lost."""
        for actor in list(self._actors):
            done, _ = self.ray.wait([actor.served], timeout=0)
            if not done:
                continue
            self._actors.remove(actor)
            lost = self._ending(actor)
            if lost is not None and self._demand.may_restart(f"worker {actor.share.first} was lost ({lost})"):
                self._fill()
        if self._demand.grew():
            self._fill()
        if self._actors and self._demand.done():
            # Actors that still wait for resources have nothing left to do.
            return sum(bool(self.ray.wait([actor.up], timeout=0)[0]) for actor in self._actors)
        return len(self._actors)

    def stop(self, *, grace_s: float) -> None:
        """End all workers: SIGTERM for ``grace_s`` seconds, then the actors are killed."""
        actors, self._actors = self._actors, []
        for actor in actors:
            actor.handle.stop.remote(grace_s)
        try:
            if actors:
                # The actor itself kills a worker that does not end; the extra seconds are for the network.
                served = [actor.served for actor in actors]
                self.ray.wait(served, num_returns=len(served), timeout=grace_s + 5)
        finally:
            for actor in actors:
                self.ray.kill(actor.handle)
            if self.shut_down:
                self.ray.shutdown()
                self.shut_down = False

    def _fill(self) -> None:
        counts = self._demand.widths(Counter(actor.share.width for actor in self._actors))
        for share in shares_of(self.launch, counts, command=self.executor.command, first=self._next):
            self._next += 1
            node = self.ray.remote(_RayNode).options(
                num_cpus=self.executor.cpus,
                num_gpus=share.width if self._on_gpu else 0,
                max_concurrency=2,
                scheduling_strategy="SPREAD",
            )
            handle = node.remote(share)
            self._actors.append(_Actor(share=share, handle=handle, up=handle.up.remote(), served=handle.serve.remote()))

    def _ending(self, actor: _Actor) -> str | None:
        """Why an actor ended before its cells were done, or ``None``."""
        try:
            self.ray.get(actor.served)
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            return lines[-1].strip() if lines else type(error).__name__
        return "its workers gave up" if self._demand.queue.demand()[actor.share.width] else None


class _RayNode:
    """The actor that runs on the cluster."""

    def __init__(self, share: NodeShare) -> None:
        self._node = Node(share)

    def up(self) -> None:
        """Returns once the actor is scheduled."""

    def serve(self) -> None:
        """Run until the cells are done."""
        self._node.serve()

    def stop(self, grace_s: float) -> None:
        """Stop the worker."""
        self._node.stop(grace_s=grace_s)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RequestError("--executor ray needs Ray, which is not installed: pip install 'mtlbench[ray]'.") from error
    return ray


@hookimpl
def mtlbench_executors() -> Iterable[Executor]:
    """The Ray executor."""
    return (RayExecutor(),)
