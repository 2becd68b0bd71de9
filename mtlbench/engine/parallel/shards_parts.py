"""The rows of a step or a score shared out to processes that share the backbone: as many passes on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtlbench.engine.batches import Batch
from mtlbench.engine.gradients import Gradients
from mtlbench.engine.memory import free_memory
from mtlbench.engine.parallel.parts import RanksParts
from mtlbench.engine.parts import fewer
from mtlbench.engine.tokens import TokenRow


class ShardedParts(RanksParts):
    """A process whose rows need fewer passes than another's makes up for them with a row that counts nothing.

    As many rows as asked for are computed at once, whatever their lengths: one more pass gathers every layer again.
    """

    def __init__(self, gradients: Gradients, **rest: Any) -> None:
        super().__init__(gradients, **{**rest, "extra": float("inf")})

    def _differentiate(
        self, batches: Sequence[Batch], weights: Tensor, rows: Sequence[TokenRow], plan: list[list[Sequence[TokenRow]]]
    ) -> Tensor:
        missing = max(len(parts) for parts in plan) - len(batches)
        idle = [self.collate(rows[:1])] * missing
        found = self.gradients.differentiate([*batches, *idle], torch.cat([weights, weights.new_zeros(missing)]))
        return found[: len(weights)]

    @torch.no_grad()
    def losses(
        self, rows: Sequence[TokenRow], *, asked: int, give_up: Callable[[], bool]
    ) -> tuple[Tensor, Tensor] | None:
        rank, size = self._ranks.rank, self._ranks.size
        rows = sorted(rows, key=lambda row: row.length, reverse=True)
        own = [rows[min(at, len(rows) - 1)] for at in range(rank, len(rows) + rank, size)]
        found: list[Tensor] = []
        at = 0
        while at < len(own):
            if self._ranks.any(give_up()):
                return None
            part = own[at : at + min(asked, self.most or asked, self.most_scored or asked)]
            try:
                with self._ranks.in_step(self.gradients.model):
                    found.append(self.gradients.forward(self.collate(part)))
                at += len(part)
                continue
            except (RuntimeError, MemoryError) as error:
                self.most_scored = fewer(len(part), error)
            free_memory(self._device)
        losses = torch.zeros(len(rows), device=self._device)
        if own:
            losses[rank::size] = torch.cat(found)[: len(range(rank, len(rows), size))]
        (losses,) = self._ranks.sum([losses])
        return losses, torch.tensor([row.task for row in rows], device=self._device)

    @contextmanager
    def _together(self, values: Callable[[], Sequence[int]], count: int) -> Iterator[list[list[int]]]:
        told: list[list[int]] = []
        with self._ranks.in_step(self.gradients.model):
            yield told
        told.extend(self._ranks.exchange([int(value) for value in values()]))
