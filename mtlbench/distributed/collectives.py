"""Ranks that torchrun started, connected by ``torch.distributed``: gloo between CPUs and nccl on CUDA.

Decisions that the hosts must share (who ran out of memory, whether a checkpoint is due) are exchanged by gloo, so that
no device waits for them; gradients go from device to device.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlbench.compat import prefix_store, tcp_store
from mtlbench.distributed.ranks import Ranks
from mtlbench.errors import RequestError

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""Timeout for a process that is alive; a dead one is noticed at once."""
_log = logging.getLogger(__name__)


def _end(error: Exception) -> NoReturn:
    """Exit without unwinding, as if killed, so that the claim stays and the attempt counts as a death."""
    _log.error("another process of this cell is gone: %s", str(error).partition("\n")[0])
    os._exit(1)


class Connected(Ranks):
    """The ranks of one group.

    Args:
        store: Key-value store that the processes share.
        device: The device of this process.
        on_lost: Called when another process is gone; must not return.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        store: Any,
        device: torch.device,
        on_lost: Callable[[Exception], NoReturn] = _end,
    ) -> None:
        self.rank, self.size, self.device, self._lost = rank, size, device, on_lost
        self._store: Any = store
        self._prefix, self._broadcasts = "", 0

    def use_prefix(self, prefix: str) -> None:
        """Set the prefix of the keys of broadcasts and errors, such as the cell; unread earlier values are ignored."""
        self._prefix, self._broadcasts = prefix, 0

    def broadcast_object(self, value: Any) -> Any:
        self._broadcasts += 1
        key = f"{self._prefix}/broadcast/{self._broadcasts}"
        if self.first:
            self.put(key, json.dumps(value))
            return json.loads(json.dumps(value))
        with self._guarded():
            self._store.wait([key], PATIENCE)
        return json.loads(self.get(key))

    def put(self, key: str, value: str) -> None:
        """Set a key of the shared store."""
        with self._guarded():
            self._store.set(key, value)

    def has(self, *keys: str) -> bool:
        """Whether all these keys are set."""
        with self._guarded():
            return not keys or bool(self._store.check(list(keys)))

    def get(self, key: str) -> str:
        """The value of a key that is set."""
        with self._guarded():
            value: str = self._store.get(key).decode()
            return value

    def first_then_others(self, make: Callable[[], T], *, digest: Callable[[T], Any]) -> T:
        if self.first:
            made = make()
            self.broadcast_object(digest(made))
            return made
        expected = self.broadcast_object(None)
        made = make()
        actual = json.loads(json.dumps(digest(made)))
        if actual != expected:
            raise RuntimeError(f"the processes of this cell see different values: {actual} and {expected}")
        return made

    def any(self, holds: bool) -> bool:
        return any(value for (value,) in self.all_gather([int(holds)]))

    def broadcast_value(self, value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        with self._guarded():
            dist.broadcast(tensor, src=0)
        return float(tensor)

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        for dtype in _by_dtype(list(tensors)).values():
            flat = torch.cat([tensor.detach().reshape(-1) for _, tensor in dtype])
            with self._guarded():
                dist.broadcast(flat, src=0)
            for (_, tensor), chunk in zip(dtype, torch.split(flat, [t.numel() for _, t in dtype]), strict=True):
                tensor.copy_(chunk.view_as(tensor))

    def all_gather(self, values: Sequence[int]) -> list[list[int]]:
        local = torch.tensor(values, dtype=torch.int64)
        gathered = [torch.empty_like(local) for _ in range(self.size)]
        with self._guarded():
            dist.all_gather(gathered, local)
        return [tensor.tolist() for tensor in gathered]

    @torch.no_grad()
    def all_reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        summed = list(tensors)
        for dtype in _by_dtype(tensors).values():
            flat = torch.cat([tensor.detach().reshape(-1) for _, tensor in dtype])
            with self._guarded():
                dist.all_reduce(flat)
            for (index, tensor), chunk in zip(dtype, torch.split(flat, [t.numel() for _, t in dtype]), strict=True):
                summed[index] = chunk.view_as(tensor)
        return summed

    def in_step(self, model: nn.Module) -> AbstractContextManager[None]:
        if not self.sharded:
            return nullcontext()
        from mtlbench.distributed.shards_gate import in_step

        return in_step(self, model)

    def fail(self, message: str) -> None:
        self.put(f"{self._prefix}/failed/{self.rank}", message)

    def failures(self) -> str:
        keys = [f"{self._prefix}/failed/{rank}" for rank in range(self.size) if rank != self.rank]
        return "; ".join(self.get(key) for key in keys if self.has(key))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Treat a communication error as the loss of another process."""
        try:
            yield
        except RuntimeError as error:
            self._lost(error)


def join(*, processes: int, device: str, environ: Mapping[str, str] | None = None) -> Connected:
    """Connect to the other processes that torchrun started.

    Raises:
        RequestError: their number is not ``processes``, or there are too few devices.
    """
    environ = os.environ if environ is None else environ
    rank, size, local = (int(environ.get(name, "-1")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if size != processes:
        raise RequestError(
            f"{processes} processes were requested, but the group has {max(size, 0)}: nothing is trained. Start "
            "cells on several devices through mtlbench run --devices-per-cell."
        )
    local_device = torch.device("cpu")
    if device != "cpu":
        if torch.cuda.device_count() < processes:
            raise RequestError(
                f"A cell gets {processes} devices but this process sees {torch.cuda.device_count()}. Check "
                "CUDA_VISIBLE_DEVICES, or request fewer."
            )
        local_device = torch.device("cuda", local)
        torch.cuda.set_device(local_device)
    store = tcp_store(environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), timeout=PATIENCE)
    dist.init_process_group(
        "gloo" if local_device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=prefix_store("group", store),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    ranks = Connected(rank=rank, size=size, store=prefix_store("ranks", store), device=local_device)
    (counted,) = ranks.all_reduce([torch.ones(1, device=local_device)])
    if dist.get_world_size() != processes or int(counted) != processes:
        raise RequestError(f"{processes} processes were requested, but {int(counted)} answer: nothing is trained.")
    return ranks


def _by_dtype(tensors: Sequence[Tensor]) -> dict[torch.dtype, list[tuple[int, Tensor]]]:
    groups: dict[torch.dtype, list[tuple[int, Tensor]]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        groups[tensor.dtype].append((index, tensor))
    return groups
