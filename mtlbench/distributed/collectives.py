"""Ranks that talk: started by torchrun, joined by ``torch.distributed``, gloo between processors and nccl on CUDA.

Host and device go different ways. What the hosts must agree on (who ran out of memory, whether a checkpoint is due) is
exchanged between processors and no device waits for it; gradients go from device to device.
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
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, though not in __all__

from mtlbench.distributed.ranks import Ranks
from mtlbench.errors import RequestError

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another that is alive; one that died is noticed at once."""
_log = logging.getLogger(__name__)


def _end(error: Exception) -> NoReturn:
    """End this process as if it had been killed, so that its claim stays and the attempt counts."""
    _log.error("another process of this cell is gone: %s", str(error).partition("\n")[0])
    os._exit(1)


class Connected(Ranks):
    """The ranks of one group.

    Args:
        store: Where the processes leave word for one another.
        device: That of this process.
        on_lost: Called when another process is gone; does not come back.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        store: PrefixStore,
        device: torch.device,
        on_lost: Callable[[Exception], NoReturn] = _end,
    ) -> None:
        self.rank, self.size, self.device, self._lost = rank, size, device, on_lost
        self._store: Any = store
        self._prefix, self._said = "", 0

    def turn_to(self, prefix: str) -> None:
        """Words for one another are about something new; whatever was left unread is forgotten."""
        self._prefix, self._said = prefix, 0

    def broadcast_object(self, value: Any) -> Any:
        self._said += 1
        name = f"{self._prefix}/tell/{self._said}"
        if self.first:
            self.leave(name, json.dumps(value))
            return json.loads(json.dumps(value))
        with self._watched():
            self._store.wait([name], PATIENCE)
        return json.loads(self.word(name))

    def leave(self, name: str, word: str) -> None:
        """Leave a word for the others."""
        with self._watched():
            self._store.set(name, word)

    def left(self, *names: str) -> bool:
        """Whether all these words were left."""
        with self._watched():
            return not names or bool(self._store.check(list(names)))

    def word(self, name: str) -> str:
        """A word that was :meth:`left`."""
        with self._watched():
            word: str = self._store.get(name).decode()
            return word

    def first_then_others(self, make: Callable[[], T], *, digest: Callable[[T], Any]) -> T:
        if self.first:
            made = make()
            self.broadcast_object(digest(made))
            return made
        wanted = self.broadcast_object(None)
        made = make()
        found = json.loads(json.dumps(digest(made)))
        if found != wanted:
            raise RuntimeError(f"the processes of this cell do not see the same: {found} and {wanted}")
        return made

    def any(self, holds: bool) -> bool:
        return any(value for (value,) in self.all_gather([int(holds)]))

    def broadcast_value(self, value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        with self._watched():
            dist.broadcast(tensor, src=0)
        return float(tensor)

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        for dtype in _by_dtype(list(tensors)).values():
            flat = torch.cat([tensor.detach().reshape(-1) for _, tensor in dtype])
            with self._watched():
                dist.broadcast(flat, src=0)
            for (_, tensor), part in zip(dtype, torch.split(flat, [t.numel() for _, t in dtype]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def all_gather(self, values: Sequence[int]) -> list[list[int]]:
        own = torch.tensor(values, dtype=torch.int64)
        every = [torch.empty_like(own) for _ in range(self.size)]
        with self._watched():
            dist.all_gather(every, own)
        return [each.tolist() for each in every]

    @torch.no_grad()
    def all_reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        summed = list(tensors)
        for dtype in _by_dtype(tensors).values():
            flat = torch.cat([tensor.detach().reshape(-1) for _, tensor in dtype])
            with self._watched():
                dist.all_reduce(flat)
            for (index, tensor), part in zip(dtype, torch.split(flat, [t.numel() for _, t in dtype]), strict=True):
                summed[index] = part.view_as(tensor)
        return summed

    def in_step(self, model: nn.Module) -> AbstractContextManager[None]:
        if not self.sharded:
            return nullcontext()
        from mtlbench.distributed.shards_gate import in_step

        return in_step(self, model)

    def fail(self, words: str) -> None:
        self.leave(f"{self._prefix}/failed/{self.rank}", words)

    def failures(self) -> str:
        names = [f"{self._prefix}/failed/{rank}" for rank in range(self.size) if rank != self.rank]
        return "; ".join(self.word(name) for name in names if self.left(name))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A message that cannot be sent or does not come means that its other end is gone."""
        try:
            yield
        except RuntimeError as error:
            self._lost(error)


def join(*, processes: int, device: str, environment: Mapping[str, str] | None = None) -> Connected:
    """Meet the other processes that torchrun started.

    Raises:
        RequestError: there are not as many as asked for, or too few devices for them.
    """
    words = os.environ if environment is None else environment
    rank, size, local = (int(words.get(name, "-1")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if size != processes:
        raise RequestError(
            f"{processes} processes were asked for and the group has {max(size, 0)}, so nothing is trained. Start "
            "cells on several devices through mtlbench run --devices-per-cell."
        )
    own = torch.device("cpu")
    if device != "cpu":
        if torch.cuda.device_count() < processes:
            raise RequestError(
                f"A cell gets {processes} devices and this process sees {torch.cuda.device_count()}. Look at "
                "CUDA_VISIBLE_DEVICES, or ask for fewer."
            )
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    store = TCPStore(words["MASTER_ADDR"], int(words["MASTER_PORT"]), is_master=False, timeout=PATIENCE)
    dist.init_process_group(
        "gloo" if own.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    ranks = Connected(rank=rank, size=size, store=PrefixStore("ranks", store), device=own)
    (counted,) = ranks.all_reduce([torch.ones(1, device=own)])
    if dist.get_world_size() != processes or int(counted) != processes:
        raise RequestError(f"{processes} processes were asked for and {int(counted)} answer, so nothing is trained.")
    return ranks


def _by_dtype(tensors: Sequence[Tensor]) -> dict[torch.dtype, list[tuple[int, Tensor]]]:
    found: dict[torch.dtype, list[tuple[int, Tensor]]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        found[tensor.dtype].append((index, tensor))
    return found
