"""The rows of a step or a score shared out to the processes of a cell: each computes its own, all end with the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtlbench.api.routing import RowSums
from mtlbench.backbones.machine import axis_seed, free_memory, is_out_of_memory
from mtlbench.distributed.ranks import FAILED, FINE, NO_MEMORY, OtherFailed, Ranks
from mtlbench.errors import RequestError
from mtlbench.planning.weighting import unbalanced
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Batch
from mtlbench.training.checkpoints.model_state import draw_states, set_draw_states
from mtlbench.training.gradients import Auxiliary, Gradients, Step
from mtlbench.training.micro_batches import MicroBatcher, TaskMicroBatcher, fewer, tasks_of
from mtlbench.training.progress import TrainingProgress


class RanksMicroBatcher(MicroBatcher):
    """Every process computes every ``size``-th row, shortest first, so that all have as much to do.

    Rows have the weights that they have in one process, and what does not pass through the row losses (a penalty) is
    differentiated by every process after gradients are summed, so that it counts once. Dropout is drawn from a seed of
    the step and the process: with dropout, another number of processes gives other masks.
    """

    def __init__(self, gradients: Gradients, *, ranks: Ranks, seed: int, **rest: Any) -> None:
        super().__init__(gradients, **rest)
        self._ranks, self._seed = ranks, seed

    def _plan(self, rows: Sequence[TokenRow], size: int) -> list[list[Sequence[TokenRow]]]:
        shares = [rows[rank :: self._ranks.size] for rank in range(self._ranks.size)]
        if not self._is_linear(rows):
            raise RequestError(
                f"The loss of {self.gradients.method.name!r} is not linear in the losses of the rows, so its gradient "
                "cannot be summed over devices. Give its cells one: --devices-per-cell "
                f"{self._ranks.size},{self.gradients.method.name}=1."
            )
        return [self._passes(share, size) for share in shares]

    def _compute(
        self,
        rows: Sequence[TokenRow],
        plan: list[list[Sequence[TokenRow]]],
        params: Sequence[Tensor],
        progress: TrainingProgress,
    ) -> Step:
        ranks = self._ranks
        tasks = tasks_of(rows, self._device)
        losses = torch.zeros(len(rows), device=self._device)
        auxiliary = self._auxiliary(rows, plan, tasks, progress.steps) if self.gradients.has_auxiliary_loss else None
        own = auxiliary and (auxiliary[0], {k: v[ranks.rank :: ranks.size] for k, v in auxiliary[1].items()})
        with self._together(lambda: [real, padded, *(p.grad is not None for p in params)], len(params) + 2) as told:
            real = padded = 0
            with self._own_draws(progress.steps):
                batches = [self.collate(part) for part in plan[ranks.rank]]
                weights = self.gradients.row_weights(tasks)[ranks.rank :: ranks.size]
                found = self._differentiate(batches, weights, rows, plan, own)
            real, padded = sum(b.real_tokens for b in batches), sum(b.padded_tokens for b in batches)
        if batches:
            losses[ranks.rank :: ranks.size] = found
        moved = [p for p, *any_rank in zip(params, *(each[2:] for each in told), strict=True) if any(any_rank)]
        *gradients, losses = ranks.all_reduce(
            [*(torch.zeros_like(p) if p.grad is None else p.grad for p in moved), losses]
        )
        for p, gradient in zip(moved, gradients, strict=True):
            p.grad = gradient
        progress.count(rows, real=sum(each[0] for each in told), padded=sum(each[1] for each in told))
        return self.gradients.finish(losses, tasks, auxiliary)

    def _auxiliary(
        self, rows: Sequence[TokenRow], plan: list[list[Sequence[TokenRow]]], tasks: Tensor, step: int
    ) -> Auxiliary:
        """The auxiliary loss of all rows, of which each process computes what layers report of its own."""
        ranks = self._ranks
        with self._together(lambda: [], 0), self._own_draws(step):
            batches = [self.collate(part) for part in plan[ranks.rank]]
            passes = max(map(len, plan)) if ranks.sharded else max(1, len(batches))
            idle = [self.collate(rows[:1])] * (passes - len(batches))
            reports = self.gradients.reports([*batches, *idle])
        own = len(range(ranks.rank, len(rows), ranks.size))
        spread = []
        for sums in reports.values():
            for value in (sums.values, sums.tokens):
                every = value.new_zeros(len(rows), *value.shape[1:])
                every[ranks.rank :: ranks.size] = value[:own]
                spread.append(every)
        summed = ranks.all_reduce(spread)
        whole = {k: RowSums(*summed[2 * at : 2 * at + 2]) for at, k in enumerate(reports)}
        return self.gradients.auxiliary(whole, tasks)

    def _differentiate(
        self,
        batches: Sequence[Batch],
        weights: Tensor,
        rows: Sequence[TokenRow],
        plan: list[list[Sequence[TokenRow]]],
        auxiliary: Auxiliary | None,
    ) -> Tensor:
        """Add up the gradients of this process's ``batches``, of a step of ``rows``; the row losses."""
        return self.gradients.differentiate(batches, weights, auxiliary=auxiliary)

    @torch.no_grad()
    def losses(
        self, rows: Sequence[TokenRow], *, asked: int, give_up: Callable[[], bool]
    ) -> tuple[Tensor, Tensor] | None:
        rank, size = self._ranks.rank, self._ranks.size
        rows = sorted(rows, key=lambda row: row.length, reverse=True)
        own = rows[rank::size]
        found: tuple[Tensor, Tensor] | None = None
        with self._together(lambda: [own != [] and found is None], 1) as told:
            found = super().losses(own, asked=asked, give_up=give_up) if own else None
        if any(gave_up for (gave_up,) in told):
            return None
        losses = torch.zeros(len(rows), device=self._device)
        if found is not None:
            losses[rank::size] = found[0]
        (losses,) = self._ranks.all_reduce([losses])
        return losses, tasks_of(rows, self._device)

    @contextmanager
    def _together(self, values: Callable[[], Sequence[int]], count: int) -> Iterator[list[list[int]]]:
        """What one process fails in, all do; at the end of the block the list has the ``values`` of each.

        Raises:
            MemoryError: memory ran out on another process.
            OtherFailed: another process failed.
        """
        told: list[list[int]] = []
        mine: Exception | None = None
        try:
            yield told
        except Exception as error:
            mine = error
            if not is_out_of_memory(error):
                self._ranks.fail(f"{type(error).__name__}: {error}")
        outcome = FINE if mine is None else NO_MEMORY if is_out_of_memory(mine) else FAILED
        own = [0] * count if mine is not None else [int(value) for value in values()]
        every = self._ranks.all_gather([outcome, *own])
        worst = max(each[0] for each in every)
        if mine is not None and outcome == worst:
            raise mine
        if worst == FAILED:
            raise OtherFailed(f"Another process of this cell failed: {self._ranks.failures()}")
        if worst == NO_MEMORY:
            raise MemoryError("out of memory on another device of this cell")
        told.extend(each[1:] for each in every)

    @contextmanager
    def _own_draws(self, step: int) -> Iterator[None]:
        """Inside, what is drawn differs between the processes; outside it is the same on all."""
        common = draw_states(self._device)
        torch.manual_seed(axis_seed(self._seed, f"dropout/{self._ranks.rank}/{step}"))
        try:
            yield
        finally:
            set_draw_states(common, self._device)


def micro_batcher_for(ranks: Ranks, *, gradients: Gradients, seed: int, **rest: Any) -> MicroBatcher:
    """What splits the steps of a process: alone, or one of several.

    Raises:
        RequestError: several processes, and a balancer that weighs gradients.
    """
    balancing = gradients.loss.balancing
    if balancing is not None and balancing.by_gradients:
        if ranks.size > 1:
            raise RequestError(unbalanced(balancing.text))
        return TaskMicroBatcher(gradients, balancing=balancing, **rest)
    if ranks.size == 1:
        return MicroBatcher(gradients, **rest)
    if ranks.sharded:
        return ShardedMicroBatcher(gradients, ranks=ranks, seed=seed, **rest)
    return RanksMicroBatcher(gradients, ranks=ranks, seed=seed, **rest)


class ShardedMicroBatcher(RanksMicroBatcher):
    """A process whose rows need fewer passes than another's makes up for them with a row that counts nothing.

    As many rows as asked for are computed at once, whatever their lengths: one more pass gathers every layer again.
    """

    def __init__(self, gradients: Gradients, **rest: Any) -> None:
        super().__init__(gradients, **{**rest, "cut": lambda lengths: [slice(0, len(lengths))]})

    def _differentiate(
        self,
        batches: Sequence[Batch],
        weights: Tensor,
        rows: Sequence[TokenRow],
        plan: list[list[Sequence[TokenRow]]],
        auxiliary: Auxiliary | None,
    ) -> Tensor:
        missing = max(len(parts) for parts in plan) - len(batches)
        idle = [self.collate(rows[:1])] * missing

        def with_idle(by_row: Tensor) -> Tensor:
            return torch.cat([by_row, by_row.new_zeros(missing, *by_row.shape[1:])])

        if auxiliary is not None:
            auxiliary = auxiliary[0], {k: with_idle(v) for k, v in auxiliary[1].items()}
        found = self.gradients.differentiate([*batches, *idle], with_idle(weights), auxiliary=auxiliary)
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
        (losses,) = self._ranks.all_reduce([losses])
        return losses, tasks_of(rows, self._device)

    @contextmanager
    def _together(self, values: Callable[[], Sequence[int]], count: int) -> Iterator[list[list[int]]]:
        told: list[list[int]] = []
        with self._ranks.in_step(self.gradients.model):
            yield told
        told.extend(self._ranks.all_gather([int(value) for value in values()]))
