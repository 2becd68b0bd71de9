"""The training loop: bare, with the loss on the device and read only now and then."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method, Stateful
from mtlbench.api.routing import Routing
from mtlbench.backbones.heap import give_back
from mtlbench.backbones.machine import axis_seed
from mtlbench.balancing.combined import Balancing
from mtlbench.distributed.ranks import ALONE, Ranks
from mtlbench.errors import MtlbenchError, PluginError, RequestError
from mtlbench.nn.losses import task_means
from mtlbench.planning.weighting import read_balance
from mtlbench.tokens.encode import TokenRow, by_task
from mtlbench.training.batches import Collator, plan_batches
from mtlbench.training.checkpoints.checkpoint import TrainingPosition
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.run_state import RunState
from mtlbench.training.checkpoints.savepoints import TrainerState
from mtlbench.training.forms import RowForm, form_of
from mtlbench.training.gradients import Gradients, checkpointing, clear
from mtlbench.training.loss import running
from mtlbench.training.micro_batches import MicroBatcher, tasks_of
from mtlbench.training.objective import objective_of
from mtlbench.training.on_ranks import micro_batcher_for
from mtlbench.training.optimizer import make_optimizer, make_scaler, parameters_of, schedule_factor, take_step
from mtlbench.training.progress import RunProgress, TrainingProgress
from mtlbench.training.splits import SearchBatches, Splits, budget_steps
from mtlbench.training.stages import RunPlan, stage_of

log = logging.getLogger(__name__)

READ_EVERY = 10
"""Steps between two reads of the loss by the host."""

OnStep = Callable[[int, Tensor, Tensor], None]
Metric = Callable[[Sequence[TokenRow]], float]


class DivergedError(MtlbenchError):
    """The loss became nan or infinite."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is trained, on what, and how."""

    model: nn.Module
    """The backbone with the method attached."""
    method: Method
    splits: Splits
    """``train`` is trained on, ``stop`` stops early, ``search`` feeds :meth:`Loop.search_loss`."""
    protocol: Protocol
    tasks: int
    """Number of tasks."""
    routing: Routing
    collator: Collator
    seed: int
    autocast: torch.dtype | None = None
    """Dtype of the forward pass where it is not the backbone's own."""
    metric: Metric | None = None
    """The mean of the tasks' metrics in percent on some rows of the training split; where it is given, states are kept
    by it and not by the loss."""
    inherit: Callable[[], bool] = lambda: False
    """What ``inherit`` of the loop does: see :meth:`~mtlbench.api.method.Trainer.inherit`."""


class Loop:
    """Trains what a method attached; the :class:`~mtlbench.api.method.Trainer` that ``Method.fit`` drives.

    Its model ends in evaluation mode.

    Args:
        on_step: Called after each step as ``on_step(step, row_losses, tasks)`` with detached tensors on the device.
        recovery: Where checkpoints go and come from; ``None`` writes none.
        ranks: The processes that share the rows of every step; each has a loop of its own.
    """

    def __init__(
        self,
        job: TrainingJob,
        *,
        on_step: OnStep | None = None,
        recovery: CheckpointPolicy | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.method, self.splits, self.protocol = job.model, job.method, job.splits, job.protocol
        self.tasks, self.seed, self.on_step, self._ranks = job.tasks, job.seed, on_step, ranks
        self._metric, self.inherit = job.metric, job.inherit
        self._device = job.collator.device
        balancer = read_balance(job.protocol.balance)
        self._balancing = (
            None if balancer is None else Balancing(balancer, tasks=job.tasks, seed=axis_seed(job.seed, "balance"))
        )
        self._gradients = Gradients(
            model=job.model,
            method=job.method,
            routing=job.routing,
            autocast=job.autocast,
            objective=objective_of(
                job.method, job.tasks, weighting=job.protocol.task_weighting, balancing=self._balancing
            ),
        )
        self._collator = job.collator
        self._savepoints = TrainerState(self.model, recovery, self._device, ranks)
        self._rows_of_task = by_task(self.splits.train, self.tasks)
        self._searches = self._search_batches()
        self._runs = 0
        """Runs begun."""
        self._mark = 0.0
        self._first_step = self._budgets_before = 0
        """Steps done and steps of the budgets before :meth:`turn_to`."""
        self.progress = TrainingProgress()

    @cached_property
    def form(self) -> RowForm:
        """How rows go through the model; settled when the first batch is made, with the method attached."""
        with self._ranks.in_step(self.model):
            return form_of(
                self._gradients,
                self._collator,
                self.splits.train,
                longest=self.protocol.max_length,
            )

    @cached_property
    def _parts(self) -> MicroBatcher:
        return micro_batcher_for(
            self._ranks,
            gradients=self._gradients,
            collate=self.form.collate,
            device=self._device,
            cut=self.form.cut,
            seed=self.seed,
        )

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole budget."""
        return budget_steps(self.splits, self.protocol)

    def turn_to(self, splits: Splits, protocol: Protocol) -> None:
        """Train on other rows with another budget from here on: the targets, after their sources.

        Steps that :meth:`~mtlbench.api.method.Method.after_step` is told go on from the end of the budget before, so
        that schedules that ended stay ended.
        """
        self._first_step, self._budgets_before = self.progress.steps, self._budgets_before + self.total_steps
        self.splits, self.protocol = splits, protocol
        self._rows_of_task = by_task(splits.train, self.tasks)
        self._searches = self._search_batches()

    def run(
        self,
        *,
        tasks: Sequence[int] | None = None,
        share: float = 1.0,
        before_step: Callable[[int], None] | None = None,
        patience_from: int = 0,
    ) -> None:
        """Train for the budget, or until the stop split stops it; the first of the best scored states is kept.

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
        stage = self._stage(tasks, share=share)
        number, self._runs = self._runs, self._runs + 1
        if self._skip(number):
            return
        optimizer, stop_points, plan = self._optimizer(), self._stop_points(stage, patience_from), self._plan(stage)
        if share < 1:
            plan = self._plan(self._stage(tasks))[self.progress.steps - self._first_step :][: stage.steps]
        done = RunProgress(tasks=stage.tasks, first_step=self.progress.steps, steps=self.progress.steps)
        self.progress.stages.append(done)
        scaler = make_scaler(self._gradients.autocast, self._device)
        run = RunState(number, stage, optimizer, plan, stop_points, self.protocol.patience, done, scaler=scaler)
        torch.manual_seed(axis_seed(self.seed, "dropout"))
        self.model.train()
        recomputed = checkpointing(self.model) if self.protocol.checkpointing else nullcontext()
        with self._savepoints.held(), recomputed:
            self._train(run, before_step)
            if self._balancing is not None:
                self.progress.balance = self._balancing.summary()
            self._restore(run.best)
            self.model.eval()
            self._save(run, ended=True)
        give_back()
        self._savepoints.end_if_asked()

    def keep(self, holder: Stateful, *, modules: Iterable[nn.Module] = ()) -> None:
        """Let checkpoints hold what ``holder`` has between steps, and the plain attributes of ``modules``."""
        self._savepoints.keep(holder, modules)

    def search_loss(self, *, share: float = 1.0) -> Tensor:
        """The method's loss on the next batch of the search split of all tasks, dropout off, with gradients enabled.

        Args:
            share: Rows of the batch, as a share of a training batch. No more of them are computed at once than in
                training; others are computed again in the backward, so that the result is that of one pass.

        Raises:
            RequestError: when nothing was held out.
        """
        rows = self._searches.take(size=round(share * self.protocol.batch_size))
        most = min(self._rows_at_once, self._parts.most or self._rows_at_once)
        parts = [rows[low : low + most] for low in range(0, len(rows), most)]
        found = [self._search_losses(parts[0])] if len(parts) == 1 else [self._recomputed(part) for part in parts]
        tasks = tasks_of(rows, self._device)
        with self._without_dropout():
            return self._gradients.loss(torch.cat(found), tasks, self.model)

    def validation_score(self) -> float:
        """As :meth:`~mtlbench.api.method.Trainer.validation_score` has it.

        Raises:
            RequestError: when nothing was held out.
        """
        if not self.splits.stop:
            raise RequestError(
                "The validation split is empty: raise held_out or train_rows, or give the tasks more rows."
            )
        training = self.model.training
        while (found := self._validate(self.splits.stop)) is None:
            self._savepoints.end_if_asked()
        self.model.train(training)
        loss, metric = found
        return loss if metric is None else -metric

    def _search_losses(self, rows: Sequence[TokenRow]) -> Tensor:
        """Row losses without dropout ``[rows]``."""
        batch = self.form.collate(rows)
        with self._without_dropout(), running(self.model, batch, self._gradients.routing):
            return self._gradients.forward(batch)

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Evaluation mode inside. What computes again in a backward is left by an exception once it has enough."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def _recomputed(self, rows: Sequence[TokenRow]) -> Tensor:
        losses: Tensor = checkpoint(self._search_losses, rows, use_reentrant=False)
        return losses

    def _train(self, run: RunState, before_step: Callable[[int], None] | None) -> None:
        """Every step of a run that is left. Checkpoints are taken before a score, so that the score is made again."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.progress.parameters = max(self.progress.parameters, sum(p.numel() for p in trainable))
        self._gradients.scaler = run.scaler
        self._savepoints.begin_run()
        self.progress.row_layout, self.progress.task_weighting = str(self.form), str(self._gradients.loss)
        self._mark = time.perf_counter()
        if self._go_on(run):
            self._score(run)
        while not run.over:
            if before_step is not None:
                before_step(run.step)
                clear(trainable)
                # All computed the same; what rounding may have left apart is brought together.
                self._ranks.broadcast(trainable)
            rows = [self.splits.train[i] for i in run.plan[run.step]]
            self._step(run.step, rows, run.optimizer, total=run.stage.steps)
            clear(trainable)
            run.step += 1
            run.done.steps = self.progress.steps
            if self._savepoints.due:
                self._pause(run)
            self._score(run)

    def _score(self, run: RunState) -> None:
        """Score the stop split where the run has come to that."""
        if run.step not in run.stop_points:
            return
        while (score := self._score_stop(run.stage.stop)) is None:
            self._pause(run)
        if run.judge(score):
            run.best = {name: p.detach().to("cpu", copy=True) for name, p in _trained(self.model)}

    def _pause(self, run: RunState) -> None:
        """Write a checkpoint, and end here if that was asked for."""
        self._save(run, ended=False)
        self._mark = time.perf_counter()
        self._savepoints.end_if_asked()

    def _save(self, run: RunState, *, ended: bool) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._mark
        self._savepoints.save(
            TrainingPosition(run.number, ended, run.step),
            lambda: {
                "progress": self.progress.to_json(),
                "search": self._searches.state(),
                "balance": None if self._balancing is None else self._balancing.state(),
                "most": [self._parts.most, self._parts.most_scored],
                "run": None if ended else run.state(),
            },
        )

    def _load(self, state: Mapping[str, Any]) -> None:
        self.progress = TrainingProgress.from_json(state["progress"])
        self._searches.load(state["search"])
        if self._balancing is not None:
            self._balancing.load(state["balance"])
        self._parts.most, self._parts.most_scored = state["most"]

    def _skip(self, number: int) -> bool:
        """Whether an earlier attempt ended this run; the model is then as it left it."""
        state = self._savepoints.load(number, ended=True)
        if state is not None:
            self._load(state)
            self.model.eval()
        return state is not None

    def _go_on(self, run: RunState) -> bool:
        """Whether an earlier attempt was in this run; the loop is then where that one wrote its last checkpoint."""
        state = self._savepoints.load(run.number, ended=False)
        if state is not None:
            self._load(state)
            run.load(state["run"], done=self.progress.stages[-1])
        return state is not None

    @property
    def _rows_at_once(self) -> int:
        return self.protocol.micro_batch or self.protocol.batch_size

    def _search_batches(self) -> SearchBatches:
        return SearchBatches(
            self.splits.search, self.protocol, tasks=self.tasks, steps=self.total_steps, seed=self.seed
        )

    def _stage(self, tasks: Sequence[int] | None = None, *, share: float = 1.0) -> RunPlan:
        steps = max(1, round(self.total_steps * share))
        return stage_of(self.splits, self._rows_of_task, tasks, steps=steps, mixing=self.protocol.mixing)

    def _plan(self, stage: RunPlan) -> list[list[int]]:
        return plan_batches(
            stage.rows_of_task,
            steps=stage.steps,
            batch_size=self.protocol.batch_size,
            mixing=self.protocol.mixing,
            seed=axis_seed(self.seed, "data-order"),
            lengths=[row.length for row in self.splits.train],
            by_length=self.protocol.batching == "by_length",
        )

    def _optimizer(self) -> Optimizer:
        rate = self.method.learning_rate
        rate = self.protocol.learning_rate if rate is None else rate
        groups = self.method.param_groups(self.model, rate)
        if not any(True for group in groups for _ in group["params"]):
            raise PluginError(f"Method {self.method.name!r} attached nothing that trains: override fit to do without.")
        return make_optimizer(
            self.protocol.optimizer, groups, learning_rate=rate, weight_decay=self.protocol.weight_decay
        )

    def _step(self, step: int, rows: Sequence[TokenRow], optimizer: Optimizer, *, total: int) -> None:
        params = parameters_of(optimizer)
        loss, losses, tasks = self._parts.step(rows, params, asked=self._rows_at_once, progress=self.progress)
        if self._balancing is not None:
            self._balancing.observe(losses, tasks)
        scaler = self._gradients.scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self.protocol.clip:
            nn.utils.clip_grad_norm_(params, self.protocol.clip)
        factor = schedule_factor(step, total=total, warmup=self.protocol.warmup, schedule=self.protocol.schedule)
        take_step(optimizer, factor, scaler)
        self.method.after_step(self.model, self._budgets_before + step)
        self.progress.steps += 1
        if (step + 1) % READ_EVERY == 0 or step + 1 == total:
            self.progress.losses.append((self.progress.steps, self._finite(loss.item())))
        if self.on_step is not None:
            self.on_step(self.progress.steps - 1, losses, tasks)

    def _stop_points(self, stage: RunPlan, patience_from: int) -> set[int]:
        """Numbers of steps done in this run after which the stop split is scored."""
        evals = self.protocol.evals_per_run if stage.stop else 0
        points = {max(1, round(stage.steps * k / evals)) for k in range(1, evals + 1)}
        return {point for point in points if point >= patience_from}

    def _score_stop(self, stop: Sequence[TokenRow]) -> float | None:
        """Mean over tasks of each task's mean loss on the rows ``stop``, or minus the mean of their metrics: lower is
        better. ``None`` when the worker is asked to end."""
        found = self._validate(stop)
        self.model.train()
        if found is None:
            return None
        score = self._finite(found[0])
        self.progress.stop_losses.append((self.progress.steps, score))
        log.debug("step %d: loss on the stop split %.4f", self.progress.steps, score)
        if found[1] is None:
            return score
        self.progress.stop_scores.append((self.progress.steps, found[1]))
        return -found[1]

    def _validate(self, stop: Sequence[TokenRow]) -> tuple[float, float | None] | None:
        """The loss on the rows ``stop`` and, where states are kept by it, their metric. Leaves evaluation mode on."""
        self.model.eval()
        found = self._parts.losses(stop, asked=self._rows_at_once, give_up=self._savepoints.stop_requested)
        if found is None:
            return None
        loss = self._ranks.broadcast_value(task_means(*found, self.tasks).item())
        if self._metric is None or not math.isfinite(loss):
            return loss, None
        return loss, self._ranks.broadcast_value(self._metric(stop))

    def _finite(self, loss: float) -> float:
        if loss - loss == 0:
            return loss
        rate = self.method.learning_rate
        raise DivergedError(
            f"The loss of {self.method.name!r} is {loss} after {self.progress.steps} steps. Take a learning_rate below "
            f"{self.protocol.learning_rate if rate is None else rate:g}, or a longer warmup."
        )

    @torch.no_grad()
    def _restore(self, state: dict[str, Tensor]) -> None:
        for name, p in self.model.named_parameters():
            if name in state:
                p.copy_(state[name])


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
