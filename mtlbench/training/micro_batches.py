"""Rows through the model in parts that fit: of like length, as many at once as asked for, fewer once memory ran out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.backbones.machine import NoRoom, free_memory, is_out_of_memory
from mtlbench.balancing.combined import Balancing
from mtlbench.errors import RequestError
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Batch
from mtlbench.training.checkpoints.model_state import draw_states, set_draw_states
from mtlbench.training.draws import DrawnPass, Draws
from mtlbench.training.gradients import Gradients, Step, clear
from mtlbench.training.packing import put
from mtlbench.training.progress import TrainingProgress

log = logging.getLogger(__name__)


class MicroBatcher:
    """Splits what a step or a score computes.

    Args:
        collate: Makes a batch of rows.
        cut: Where to cut rows, from their lengths, shortest first.
    """

    def __init__(
        self,
        gradients: Gradients,
        *,
        collate: Callable[[Sequence[TokenRow]], Batch],
        device: torch.device,
        cut: Callable[[Sequence[int]], list[slice]],
    ) -> None:
        self.gradients, self.collate, self._device, self._cut = gradients, collate, device, cut
        self.most: int | None = None
        """Rows at once in training, where memory ran out with more; ``None`` where it never did."""
        self.most_scored: int | None = None
        """The same for scores."""

    def step(
        self, rows: Sequence[TokenRow], params: Sequence[Tensor], *, asked: int, progress: TrainingProgress
    ) -> Step:
        """Loss, row losses and task ids of a step, at most ``asked`` rows at once; leaves gradients in ``params``.

        Where memory runs out, fewer rows are computed at once from here on; the step is the same one, with the same
        draws.

        Raises:
            NoRoom: memory runs out with a single row, or the loss cannot be summed from parts.
        """
        draws = draw_states(self._device)
        while True:
            plan = self._plan(rows, min(asked, self.most or asked))
            try:
                return self._compute(rows, plan, params, progress)
            except (RuntimeError, MemoryError) as error:
                self.most = fewer(max(len(part) for parts in plan for part in parts), error)
                progress.micro_batches.append((progress.steps, self.most))
            except RequestError as error:
                if self.most is None:
                    raise
                raise NoRoom(f"Memory ran out and the step cannot be taken in parts: {error}") from error
            clear(params)
            free_memory(self._device)
            set_draw_states(draws, self._device)

    @torch.no_grad()
    def losses(
        self, rows: Sequence[TokenRow], *, asked: int, give_up: Callable[[], bool]
    ) -> tuple[Tensor, Tensor] | None:
        """Row losses and task ids, longest rows first so that memory peaks early; ``None`` once ``give_up()`` holds.

        Raises:
            NoRoom: memory runs out with a single row.
        """
        rows = sorted(rows, key=lambda row: row.length, reverse=True)
        found: list[tuple[Tensor, Tensor]] = []
        at = 0
        while at < len(rows):
            if give_up():
                return None
            part = rows[at : at + min(asked, self.most or asked, self.most_scored or asked)]
            try:
                batch = self.collate(part)
                found.append((self.gradients.forward(batch), batch.tasks))
                at += len(part)
                continue
            except (RuntimeError, MemoryError) as error:
                self.most_scored = fewer(len(part), error)
            free_memory(self._device)
        losses, tasks = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(tasks)

    def _plan(self, rows: Sequence[TokenRow], size: int) -> list[list[Sequence[TokenRow]]]:
        """What each process computes at once: at most ``size`` rows, of like length."""
        return [[part for whole in self._wholes(rows) for part in self._parts_of(whole, size)]]

    def _wholes(self, rows: Sequence[TokenRow]) -> list[Sequence[TokenRow]]:
        """What would be computed at once if no setting and no lack of memory asked for fewer rows."""
        return self._passes(rows, len(rows))

    def _parts_of(self, whole: Sequence[TokenRow], size: int) -> list[Sequence[TokenRow]]:
        return [whole] if len(whole) <= size else self._passes(whole, size)

    def _compute(
        self,
        rows: Sequence[TokenRow],
        plan: list[list[Sequence[TokenRow]]],
        params: Sequence[Tensor],
        progress: TrainingProgress,
    ) -> Step:
        batches = [self.collate(part) for part in plan[0]]
        found = self.gradients.step(batches, self._draws(rows, batches))
        progress.count(rows, real=sum(b.real_tokens for b in batches), padded=sum(b.padded_tokens for b in batches))
        return found

    def _draws(self, rows: Sequence[TokenRow], batches: Sequence[Batch]) -> Draws | None:
        """Draws as if each of :meth:`_wholes` was computed at once; ``None`` where it is."""
        wholes = self._wholes(rows)
        if len(wholes) == len(batches):
            return None
        passes: list[DrawnPass] = []
        remaining = iter(batches)
        for whole in wholes:
            batch, first = self.collate(whole), 0
            while first < len(whole):
                passes.append(DrawnPass(batch, first))
                first += next(remaining).rows
        return Draws(batches, passes, device=self._device)

    def _passes(self, rows: Sequence[TokenRow], size: int) -> list[Sequence[TokenRow]]:
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        if not self._is_linear(rows):
            return parts
        return [part[cut] for part in parts for cut in self._cut([row.length for row in part])]

    def _is_linear(self, rows: Sequence[TokenRow]) -> bool:
        known = self.gradients.linear
        return known if known is not None else self.gradients.is_linear(tasks_of(rows, self._device))


class TaskMicroBatcher(MicroBatcher):
    """Computes the rows of each task of a step apart, for a balancer that weighs their gradients."""

    def __init__(self, gradients: Gradients, *, balancing: Balancing, **rest: Any) -> None:
        super().__init__(gradients, **rest)
        self._balancing = balancing

    def _plan(self, rows: Sequence[TokenRow], size: int) -> list[list[Sequence[TokenRow]]]:
        tasks = sorted({row.task for row in rows})
        apart = [[row for row in rows if row.task == task] for task in tasks]
        return [[part for of_task in apart for part in super(TaskMicroBatcher, self)._plan(of_task, size)[0]]]

    def _compute(
        self,
        rows: Sequence[TokenRow],
        plan: list[list[Sequence[TokenRow]]],
        params: Sequence[Tensor],
        progress: TrainingProgress,
    ) -> Step:
        losses: list[Tensor] = []
        batches: list[Batch] = []
        gradients: dict[int, list[Tensor | None]] = {}
        for task, parts in groupby(plan[0], key=lambda part: part[0].task):
            passes = list(parts)
            of_task = [row for part in passes for row in part]
            own = [self.collate(part) for part in passes]
            weights = torch.full((len(of_task),), 1 / len(of_task), device=self._device)
            losses.append(self.gradients.differentiate(own, weights, self._draws(of_task, own)))
            gradients[task] = [p.grad for p in params]
            clear(params)
            batches += own
        scaler = self.gradients.scaler
        self._balancing.combine(params, gradients, scale=1.0 if scaler is None else scaler.get_scale())
        progress.count(rows, real=sum(b.real_tokens for b in batches), padded=sum(b.padded_tokens for b in batches))
        return self.gradients.finish(torch.cat(losses), torch.cat([batch.tasks for batch in batches]))


def tasks_of(rows: Sequence[TokenRow], device: torch.device) -> Tensor:
    """Task ids of rows on a device ``[rows]``, which nothing waits for."""
    return put(np.array([row.task for row in rows], dtype=np.int64), device)


def fewer(rows: int, error: BaseException) -> int:
    """How many rows to compute at once after ``rows`` were too many.

    Raises:
        NoRoom: they were one. Whatever ``error`` is, where it does not say that memory ran out.
    """
    if not is_out_of_memory(error):
        raise error
    if rows == 1:
        raise NoRoom(f"Memory ran out with a single row at once: {error}") from error
    log.warning("memory ran out with %d rows at once: %d from here on", rows, rows // 2)
    return rows // 2
