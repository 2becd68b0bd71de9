"""The training loop: bare, with the loss on the device and read only now and then."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method
from mtlbench.engine.batches import Batch, collate, plan_batches, planned_steps
from mtlbench.engine.gradients import Gradients, checkpointing
from mtlbench.engine.loss import task_means
from mtlbench.engine.optimizer import AdamW, clip_gradients, schedule_factor
from mtlbench.engine.progress import Progress, StageProgress
from mtlbench.engine.routing import Routing
from mtlbench.engine.seeds import axis_seed
from mtlbench.engine.splits import Splits
from mtlbench.engine.stages import Stage, stage_of
from mtlbench.engine.tokens import TokenRow
from mtlbench.errors import MtlbenchError, PluginError, RequestError

log = logging.getLogger(__name__)

READ_EVERY = 10
"""Steps between two reads of the loss by the host."""

OnStep = Callable[[int, Tensor, Tensor], None]


class DivergedError(MtlbenchError):
    """The loss became nan or infinite."""


class Loop:
    """Trains what a method attached; the :class:`~mtlbench.api.method.Trainer` that ``Method.fit`` drives.

    Args:
        model: The backbone with the method attached; ends in evaluation mode.
        splits: ``train`` is trained on, ``stop`` stops early, ``search`` feeds :meth:`search_loss`.
        tasks: Number of tasks.
        autocast: Dtype of the forward pass where it is not the backbone's own.
        on_step: Called after each step as ``on_step(step, row_losses, tasks)`` with detached tensors on the device.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        method: Method,
        splits: Splits,
        protocol: Protocol,
        tasks: int,
        routing: Routing,
        architecture: str,
        pad_id: int,
        decoder_start_id: int | None,
        seed: int,
        device: torch.device,
        autocast: torch.dtype | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.model, self.method, self.splits, self.protocol, self.tasks = model, method, splits, protocol, tasks
        self.seed, self.on_step = seed, on_step
        self._collate: Callable[[Sequence[TokenRow]], Batch] = partial(
            collate, architecture=architecture, pad_id=pad_id, decoder_start_id=decoder_start_id, device=device
        )
        self._rows_of_task = _by_task(splits.train, tasks)
        self._search_plan: list[list[int]] = []
        self._searches = 0
        self._gradients = Gradients(model=model, method=method, routing=routing, autocast=autocast)
        self.progress = Progress()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole budget."""
        return planned_steps(
            [len(rows) for rows in self._rows_of_task],
            epochs=self.protocol.epochs,
            steps=self.protocol.steps,
            batch_size=self.protocol.batch_size,
            mixing=self.protocol.mixing,
        )

    def run(
        self,
        *,
        tasks: Sequence[int] | None = None,
        share: float = 1.0,
        before_step: Callable[[int], None] | None = None,
        patience_from: int = 0,
    ) -> None:
        """Train for the budget, or until the stop split stops it; the best scored state is kept.

        Every run has its own optimizer, schedule, draws of dropout and early stopping, so that runs on disjoint tasks
        which share no parameter give what separate cells with these budgets would.

        Args:
            tasks: Train on the rows of these tasks only, for the share of the budget that they have in the mixture,
                at least one step each; shares of disjoint sets that cover all tasks sum to the budget.
            share: Train for this share of the budget, on the batches that the whole budget has after earlier runs.
            before_step: Runs before each step, which is counted from 0 in every run; gradients it leaves are dropped.
            patience_from: Steps done in this run before the stop split is first scored.

        Raises:
            DivergedError: when the loss is nan or infinite.
            PluginError: when the method attached nothing that trains, or there is no such task.
            RequestError: when the budget has fewer steps than there are tasks to share it.
        """
        started = time.perf_counter()
        stage = self._stage(tasks, share=share)
        optimizer = self._optimizer()
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        stop_points = self._stop_points(stage, patience_from)
        plan = self._plan(stage)
        if share < 1:
            plan = self._plan(self._stage(tasks))[self.progress.steps :][: stage.steps]
        done = StageProgress(tasks=stage.tasks, first_step=self.progress.steps, steps=self.progress.steps)
        self.progress.stages.append(done)
        best: dict[str, Tensor] = {}
        lowest, waited = math.inf, 0
        torch.manual_seed(axis_seed(self.seed, "dropout"))
        self.model.train()
        with checkpointing(self.model) if self.protocol.checkpointing else nullcontext():
            for step, indices in enumerate(plan):
                if before_step is not None:
                    before_step(step)
                    _clear(trainable)
                self._step(step, [self.splits.train[i] for i in indices], optimizer, total=stage.steps)
                _clear(trainable)
                done.steps = self.progress.steps
                if step + 1 not in stop_points:
                    continue
                score = self._score_stop(stage.stop)
                if score < lowest:
                    best, lowest, waited, done.best_step = self._state(), score, 0, done.steps
                    continue
                waited += 1
                if waited >= max(1, self.protocol.patience):
                    done.stopped_early = True
                    break
        self._restore(best)
        self.model.eval()
        self.progress.seconds += time.perf_counter() - started

    def search_loss(self, *, share: float = 1.0) -> Tensor:
        """The method's loss on the next batch of the search split of all tasks, dropout off, with gradients enabled.

        Args:
            share: Rows of the batch, as a share of those that training computes at once.

        Raises:
            RequestError: when nothing was held out.
        """
        if not self.splits.search:
            raise RequestError("The search split is empty: raise held_out or train_rows, or give the tasks more rows.")
        if not self._search_plan:
            self._search_plan = plan_batches(
                _by_task(self.splits.search, self.tasks),
                steps=self.total_steps,
                batch_size=max(1, round(share * self._rows_at_once)),
                mixing=self.protocol.mixing,
                seed=axis_seed(self.seed, "search-order"),
                lengths=[row.length for row in self.splits.search],
            )
        indices = self._search_plan[self._searches % len(self._search_plan)]
        self._searches += 1
        batch = self._collate([self.splits.search[i] for i in indices])
        training = self.model.training
        self.model.eval()
        loss = self.method.loss(self._gradients.forward(batch), batch.tasks, self.model)
        self.model.train(training)
        return loss

    @property
    def _rows_at_once(self) -> int:
        return self.protocol.micro_batch or self.protocol.batch_size

    def _stage(self, tasks: Sequence[int] | None = None, *, share: float = 1.0) -> Stage:
        steps = max(1, round(self.total_steps * share))
        return stage_of(self.splits, self._rows_of_task, tasks, steps=steps, mixing=self.protocol.mixing)

    def _plan(self, stage: Stage) -> list[list[int]]:
        return plan_batches(
            stage.rows_of_task,
            steps=stage.steps,
            batch_size=self.protocol.batch_size,
            mixing=self.protocol.mixing,
            seed=axis_seed(self.seed, "data-order"),
            lengths=[row.length for row in self.splits.train],
        )

    def _optimizer(self) -> AdamW:
        rate = self.method.learning_rate
        rate = self.protocol.learning_rate if rate is None else rate
        groups = self.method.param_groups(self.model, rate)
        if not any(True for group in groups for _ in group["params"]):
            raise PluginError(f"Method {self.method.name!r} attached nothing that trains: override fit to do without.")
        return AdamW(groups, lr=rate, weight_decay=self.protocol.weight_decay)

    def _step(self, step: int, rows: Sequence[TokenRow], optimizer: AdamW, *, total: int) -> None:
        size = self._rows_at_once
        batches = [self._counted(rows[i : i + size]) for i in range(0, len(rows), size)]
        loss, losses, tasks = self._gradients.step(batches)
        if self.protocol.clip:
            clip_gradients(optimizer.params, self.protocol.clip)
        optimizer.step(schedule_factor(step, total=total, warmup=self.protocol.warmup, schedule=self.protocol.schedule))
        self.method.after_step(self.model, step)
        self.progress.steps += 1
        if (step + 1) % READ_EVERY == 0 or step + 1 == total:
            self.progress.losses.append((self.progress.steps, self._finite(loss.item())))
        if self.on_step is not None:
            self.on_step(self.progress.steps - 1, losses, tasks)

    def _counted(self, rows: Sequence[TokenRow]) -> Batch:
        batch = self._collate(rows)
        progress = self.progress
        progress.rows += batch.rows
        progress.real_tokens += batch.real_tokens
        progress.padded_tokens += batch.padded_tokens
        for row in rows:
            progress.rows_per_task[row.task] += 1
            progress.tokens_per_task[row.task] += row.length
        return batch

    def _stop_points(self, stage: Stage, patience_from: int) -> set[int]:
        """Numbers of steps done in this run after which the stop split is scored."""
        evals = self.protocol.evals_per_run if stage.stop else 0
        points = {max(1, round(stage.steps * k / evals)) for k in range(1, evals + 1)}
        return {point for point in points if point >= patience_from}

    @torch.no_grad()
    def _score_stop(self, stop: Sequence[TokenRow]) -> float:
        """Mean over tasks of each task's mean loss on the rows ``stop``."""
        self.model.eval()
        rows = sorted(stop, key=lambda row: row.length)
        size = self._rows_at_once
        batches = [self._collate(rows[i : i + size]) for i in range(0, len(rows), size)]
        losses = torch.cat([self._gradients.forward(batch) for batch in batches])
        loss = task_means(losses, torch.cat([batch.tasks for batch in batches]), self.tasks)
        self.model.train()
        score = self._finite(loss.item())
        self.progress.stop_losses.append((self.progress.steps, score))
        log.debug("step %d: loss on the stop split %.4f", self.progress.steps, score)
        return score

    def _finite(self, loss: float) -> float:
        if loss - loss == 0:
            return loss
        rate = self.method.learning_rate
        raise DivergedError(
            f"The loss of {self.method.name!r} is {loss} after {self.progress.steps} steps. Take a learning_rate below "
            f"{self.protocol.learning_rate if rate is None else rate:g}, or a longer warmup."
        )

    def _state(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _restore(self, state: dict[str, Tensor]) -> None:
        for name, p in self.model.named_parameters():
            if name in state:
                p.copy_(state[name])


def _by_task(rows: Sequence[TokenRow], tasks: int) -> list[list[int]]:
    indices: list[list[int]] = [[] for _ in range(tasks)]
    for index, row in enumerate(rows):
        indices[row.task].append(index)
    return indices


def _clear(params: Sequence[Tensor]) -> None:
    for p in params:
        p.grad = None
